//! `portcullis profile export`: writes a profile in Docker's format.

use std::path::PathBuf;

use anyhow::Context as _;
use serde_json::Value;

use crate::{
    cli::{Context, Exit, Usage, catalog::Workspace, config_errors::ConfigErrors},
    manage::profile_overrides::with_overrides,
};
use portcullis_catalog::{member, profile_file::Profile, write::left_on_id};
use portcullis_config::Loaded;
use portcullis_upstream::config::Server;

/// Writes a profile to a file, or to standard output.
pub fn run(
    ctx: &Context,
    workspace: &Workspace,
    name: &str,
    file: Option<PathBuf>,
) -> anyhow::Result<Exit> {
    let content = content(ctx, workspace, name)?;
    let Some(path) = file else {
        ctx.json(&content)?;
        return Ok(Exit::Ok);
    };
    let text = match path.extension().and_then(|extension| extension.to_str()) {
        Some("json") => serde_json::to_string_pretty(&content)?,
        Some("yaml" | "yml") => serde_yaml_ng::to_string(&content)?,
        _ => return Err(Usage("the file's name ends in `.json` or `.yaml`".into()).into()),
    };
    portcullis_foundation::atomic_file::replace(&path, text.as_bytes())
        .with_context(|| format!("cannot write {}", path.display()))?;
    ctx.note(format_args!("the profile `{name}` is in {}", path.display()));
    Ok(Exit::Ok)
}

/// Profile in Docker's format.
pub fn content(ctx: &Context, workspace: &Workspace, name: &str) -> anyhow::Result<Value> {
    let profile = Profile::read(&workspace.base, name)?;
    let loaded = ctx.load()?;
    let plain = serde_json::to_value(Server::default())?;
    let mut servers = Vec::new();
    let mut errors = ConfigErrors::of(&loaded);
    let mut notes = Vec::new();
    for server in &profile.servers {
        let (known, entry) = with_overrides(&loaded, &profile, server)
            .with_context(|| format!("the profile `{name}` can't be written for others"))?;
        errors.literals(known, &entry);
        let settings = profile.settings.get(server);
        let only = settings.and_then(|settings| settings.tools.as_deref());
        let (member, left_out) = member(server, &serde_json::to_value(&entry)?, &plain, only)?;
        notes.extend(left_out.into_iter().map(|what| format!("left out of `{server}`: {what}")));
        servers.push(member);
    }
    errors.end()?;
    for note in notes {
        ctx.note(note);
    }
    unlisted(ctx, &loaded, &profile);
    Ok(portcullis_catalog::profile(name, profile.title.as_deref().unwrap_or(name), servers))
}

/// Prints a note for each server whose tools only policies restrict, without a list in the profile:
/// policies are not part of a profile.
pub fn unlisted(ctx: &Context, loaded: &Loaded, profile: &Profile) {
    // `check` reports policies that cannot be read.
    let texts = portcullis_policy::Source::of(&loaded.config.policy, &loaded.config.state_dir)
        .texts(&loaded.base)
        .unwrap_or_default();
    for server in &profile.servers {
        let listed = profile.settings.get(server).is_some_and(|set| set.tools.is_some());
        let id = left_on_id(server);
        let policy = format!("@id(\"{id}\")");
        if !listed && let Some((file, _)) = texts.iter().find(|(_, text)| text.contains(&policy)) {
            ctx.note(format_args!(
                "the profile has no list of the tools of `{server}`, and the policy `{id}` ({}) leaves only \
                 some on: the recipient of the profile has all of them on; overwrite it with `--tool {server}/TOOL` \
                 for each",
                file.display()
            ));
        }
    }
}
