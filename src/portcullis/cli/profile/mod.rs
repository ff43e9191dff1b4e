//! `portcullis profile`: named sets of servers.

mod create;
mod export;
mod import;

use std::path::PathBuf;

use serde_json::{Value, json};

use super::{
    Context, Exit,
    adding::AddOptions,
    catalog::{Workspace, file, pushed},
};
use portcullis_catalog::{PROFILE, profile_file::Profile};
use portcullis_protocol::names::ServerName;

#[derive(Debug, clap::Subcommand)]
pub enum Verb {
    /// List the profiles in the config's folder
    Ls,
    /// Show the servers of a profile
    Show {
        /// The profile's name
        name: String,
    },
    /// Create or overwrite a profile of servers in the config
    Create {
        /// The profile's name
        name: String,
        /// A server of the config; repeatable
        #[arg(long = "server", value_name = "SERVER", required = true)]
        servers: Vec<ServerName>,
        /// A title, for people
        #[arg(long)]
        title: Option<String>,
        #[command(flatten)]
        settings: create::Set,
    },
    /// Export a profile in Docker's format (JSON or YAML), without secret values and folders
    Export {
        /// The profile's name
        name: String,
        /// The file. Default: standard output
        file: Option<PathBuf>,
    },
    /// Import a profile in Docker's format: adds its servers to the config, and the profile
    Import {
        /// The file
        file: PathBuf,
        /// Local name. Default: the profile's own name
        #[arg(long)]
        name: Option<String>,
        #[command(flatten)]
        add_options: AddOptions,
    },
    /// Push a profile to an OCI registry
    Push {
        /// The profile's name
        name: String,
        /// The artifact: `HOST/NAME:TAG`
        reference: String,
    },
    /// Pull a profile from an OCI registry, and import it
    Pull {
        /// The artifact: `HOST/NAME:TAG` or `HOST/NAME@sha256:…`
        reference: String,
        /// Local name. Default: the profile's own name
        #[arg(long)]
        name: Option<String>,
        #[command(flatten)]
        add_options: AddOptions,
    },
}

/// Runs the verb.
pub async fn run(verb: Verb, ctx: &Context) -> anyhow::Result<Exit> {
    let mut workspace = Workspace::open(ctx)?;
    match verb {
        Verb::Ls => ls(ctx, &workspace),
        Verb::Show { name } => show(ctx, &workspace, &name),
        Verb::Create { name, servers, title, settings } => {
            create::run(ctx, &workspace, &name, servers, title, &settings)
        }
        Verb::Export { name, file } => export::run(ctx, &workspace, &name, file),
        Verb::Import { file: path, name, add_options } => {
            let fetched = file(&path)?;
            let source = workspace.place(&path);
            import::run(ctx, &mut workspace, fetched, &source, name, &add_options).await
        }
        Verb::Push { name, reference } => {
            let content = export::content(ctx, &workspace, &name)?;
            let digest = {
                let _progress = ctx.progress(format!("pushing {reference}"));
                workspace.push(&reference, PROFILE, &content).await?
            };
            pushed(ctx, &reference, &digest)
        }
        Verb::Pull { reference, name, add_options } => {
            let fetched = {
                let _progress = ctx.progress(format!("pulling {reference}"));
                workspace.artifact(&reference, &[PROFILE]).await?
            };
            import::run(
                ctx,
                &mut workspace,
                fetched,
                &format!("oci://{reference}"),
                name,
                &add_options,
            )
            .await
        }
    }
}

fn ls(ctx: &Context, workspace: &Workspace) -> anyhow::Result<Exit> {
    let mut rows = Vec::new();
    for name in Profile::all(&workspace.base)? {
        let profile = Profile::read(&workspace.base, &name)?;
        rows.push((name, profile));
    }
    if ctx.is_json() {
        let all: serde_json::Map<String, Value> =
            rows.into_iter().map(|(name, profile)| (name, json!(profile))).collect();
        ctx.json(&all)?;
    } else {
        let rows = rows.into_iter().map(|(name, profile)| {
            [name, profile.servers.join(", "), profile.title.unwrap_or_default()]
        });
        ctx.table(&["NAME", "SERVERS", "TITLE"], rows)?;
    }
    Ok(Exit::Ok)
}

fn show(ctx: &Context, workspace: &Workspace, name: &str) -> anyhow::Result<Exit> {
    let profile = Profile::read(&workspace.base, name)?;
    if ctx.is_json() {
        ctx.json(&profile)?;
        return Ok(Exit::Ok);
    }
    let loaded = ctx.load()?;
    let rows = profile.servers.iter().map(|name| {
        let settings = profile.settings.get(name);
        let tools = settings.and_then(|settings| settings.tools.as_ref());
        let tools = tools.map_or("all".to_owned(), |tools| tools.join(", "));
        let otherwise = settings.map_or(String::new(), |settings| {
            let names = settings.env.keys().chain(settings.secrets.keys());
            names.map(String::as_str).collect::<Vec<_>>().join(", ")
        });
        let server = loaded.config.servers.iter().find(|(known, _)| known.as_str() == name);
        let what = server.map_or("(not in the config)".to_owned(), |(_, server)| {
            let program = server.command.as_ref().and_then(|command| command.first());
            let what = server.image.as_ref().or(server.url.as_ref()).or(program);
            what.cloned().unwrap_or_default()
        });
        [name.clone(), what, tools, otherwise]
    });
    ctx.table(&["SERVER", "WHAT IT IS", "TOOLS LEFT ON", "OTHERWISE"], rows)?;
    Ok(Exit::Ok)
}
