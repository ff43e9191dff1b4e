//! `portcullis profile create`.

use std::collections::BTreeMap;

use anyhow::Context as _;

use super::export::unlisted;
use crate::{
    cli::{Context, Exit, Usage, catalog::Workspace},
    manage::profile_overrides::with_overrides,
};
use portcullis_catalog::{
    brief,
    profile_file::{Profile, Settings},
};
use portcullis_protocol::names::ServerName;

/// What is otherwise with servers while they run for a profile.
#[derive(Debug, clap::Args)]
pub struct Set {
    /// Enable only this tool of the server, by the server's own name for it; repeatable
    #[arg(long = "tool", value_name = "SERVER/TOOL")]
    tools: Vec<String>,
    /// Override the value of a variable in the server's `env`; repeatable
    #[arg(long = "env", value_name = "SERVER/NAME=VALUE")]
    env: Vec<String>,
    /// Override the reference of a secret or header of the server; repeatable
    #[arg(long = "secret", value_name = "SERVER/NAME=REFERENCE")]
    secrets: Vec<String>,
}

impl Set {
    /// Settings, by server.
    fn by_server(&self) -> Result<BTreeMap<String, Settings>, Usage> {
        let mut all: BTreeMap<String, Settings> = BTreeMap::new();
        let wrong = |key: &str, form: &str| Usage(format!("write `--{key} {form}`"));
        for tool in &self.tools {
            let parts = tool.split_once('/').filter(|(_, tool)| !tool.is_empty());
            let (server, tool) = parts.ok_or_else(|| wrong("tool", "SERVER/TOOL"))?;
            let settings = all.entry(server.to_owned()).or_default();
            settings.tools.get_or_insert_default().push(tool.to_owned());
        }
        // The error does not repeat the given text: it may be the secret.
        for (key, form, values) in [
            ("env", "SERVER/NAME=VALUE", &self.env),
            ("secret", "SERVER/NAME=REFERENCE", &self.secrets),
        ] {
            for text in values {
                let parts = text.split_once('=').and_then(|(place, value)| {
                    let (server, name) = place.split_once('/')?;
                    Some((server, name, value))
                });
                let (server, name, value) = parts.ok_or_else(|| wrong(key, form))?;
                let settings = all.entry(server.to_owned()).or_default();
                let table = if key == "env" { &mut settings.env } else { &mut settings.secrets };
                table.insert(name.to_owned(), value.to_owned());
            }
        }
        Ok(all)
    }
}

/// Creates a profile of servers in the config.
pub fn run(
    ctx: &Context,
    workspace: &Workspace,
    name: &str,
    servers: Vec<ServerName>,
    title: Option<String>,
    settings: &Set,
) -> anyhow::Result<Exit> {
    let loaded = ctx.load()?;
    let mut profile = Profile::of(servers.iter().map(ToString::to_string).collect());
    profile.title = title;
    profile.settings = settings.by_server()?;
    if let Some(server) = profile.settings.keys().find(|name| !profile.servers.contains(name)) {
        return Err(
            Usage(format!("`{}` is not one of the profile's servers", brief(server))).into()
        );
    }
    for name in &servers {
        with_overrides(&loaded, &profile, name.as_str()).with_context(|| "no profile was made")?;
    }
    let there = profile.write(&workspace.base, name)?;
    let verb = if there { "replaced" } else { "made" };
    ctx.note(format_args!(
        "{verb} the profile `{name}`: `portcullis run --profile {name}` runs its servers alone"
    ));
    unlisted(ctx, &loaded, &profile);
    Ok(Exit::Ok)
}
