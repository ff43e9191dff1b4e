//! `portcullis profile`: named sets of servers.

use std::path::PathBuf;

use anyhow::{Context as _, bail};
use serde_json::{Value, json};

use super::{
    Context, Exit, Usage,
    adding::{Offer, Said, take},
    catalog::{Fetched, House, file, pushed},
    wrong::Wrong,
};
use crate::{
    catalog::{self, PROFILE, lock::replace, member, profile as made, profile_file::Profile, read},
    names::ServerName,
};

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    /// List the profiles beside the config
    Ls,
    /// Show the servers of a profile
    Show {
        /// The profile's name
        name: String,
    },
    /// Make a profile of servers of the config, or make it anew
    Create {
        /// The profile's name
        name: String,
        /// A server of the config; may be given several times
        #[arg(long = "server", value_name = "SERVER", required = true)]
        servers: Vec<ServerName>,
        /// A title, for people
        #[arg(long)]
        title: Option<String>,
    },
    /// Write a profile as others read it (Docker's form, as JSON or YAML), without secrets and folders
    Export {
        /// The profile's name
        name: String,
        /// The file. Default: standard output
        file: Option<PathBuf>,
    },
    /// Take a profile of Docker's form: its servers into the config, and a profile of them
    Import {
        /// The file
        file: PathBuf,
        /// What it is to be called. Default: its own name
        #[arg(long)]
        name: Option<String>,
        #[command(flatten)]
        said: Said,
    },
    /// Push a profile to a registry, as an artifact
    Push {
        /// The profile's name
        name: String,
        /// The artifact: `HOST/NAME:TAG`
        reference: String,
    },
    /// Pull a profile from a registry, and take it
    Pull {
        /// The artifact: `HOST/NAME:TAG` or `HOST/NAME@sha256:…`
        reference: String,
        /// What it is to be called. Default: its own name
        #[arg(long)]
        name: Option<String>,
        #[command(flatten)]
        said: Said,
    },
}

/// Runs the verb.
pub async fn run(args: Args, ctx: &Context) -> anyhow::Result<Exit> {
    let mut house = House::open(ctx)?;
    match args.verb {
        Verb::Ls => ls(ctx, &house),
        Verb::Show { name } => show(ctx, &house, &name),
        Verb::Create { name, servers, title } => create(ctx, &house, &name, servers, title),
        Verb::Export { name, file } => export(ctx, &house, &name, file),
        Verb::Import { file: path, name, said } => {
            let fetched = file(&path)?;
            import(ctx, &mut house, fetched, &path.display().to_string(), name, &said).await
        }
        Verb::Push { name, reference } => {
            let content = content(ctx, &house, &name)?;
            let digest = {
                let _progress = ctx.progress(format!("pushing {reference}"));
                house.push(&reference, PROFILE, &content).await?
            };
            pushed(ctx, &reference, &digest)
        }
        Verb::Pull { reference, name, said } => {
            let fetched = {
                let _progress = ctx.progress(format!("pulling {reference}"));
                house.artifact(&reference, &[PROFILE]).await?
            };
            import(ctx, &mut house, fetched, &format!("oci://{reference}"), name, &said).await
        }
    }
}

fn ls(ctx: &Context, house: &House) -> anyhow::Result<Exit> {
    let mut rows = Vec::new();
    for name in Profile::all(&house.base)? {
        let profile = Profile::read(&house.base, &name)?;
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

fn show(ctx: &Context, house: &House, name: &str) -> anyhow::Result<Exit> {
    let profile = Profile::read(&house.base, name)?;
    if ctx.is_json() {
        ctx.json(&profile)?;
        return Ok(Exit::Ok);
    }
    let loaded = ctx.load()?;
    let rows = profile.servers.iter().map(|name| {
        let server = loaded.config.servers.iter().find(|(known, _)| known.as_str() == name);
        let what = server.map_or("(not in the config)".to_owned(), |(_, server)| {
            let program = server.command.as_ref().and_then(|command| command.first());
            let what = server.image.as_ref().or(server.url.as_ref()).or(program);
            what.cloned().unwrap_or_default()
        });
        [name.clone(), what]
    });
    ctx.table(&["SERVER", "WHAT IT IS"], rows)?;
    Ok(Exit::Ok)
}

fn create(
    ctx: &Context,
    house: &House,
    name: &str,
    servers: Vec<ServerName>,
    title: Option<String>,
) -> anyhow::Result<Exit> {
    let loaded = ctx.load()?;
    for server in &servers {
        if !loaded.config.servers.contains_key(server) {
            bail!("there is no server `{server}` in {}", ctx.config.display());
        }
    }
    let mut profile = Profile::of(servers.iter().map(ToString::to_string).collect());
    profile.title = title;
    let there = profile.write(&house.base, name)?;
    let verb = if there { "replaced" } else { "made" };
    ctx.note(format_args!(
        "{verb} the profile `{name}`: `portcullis run --profile {name}` runs its servers alone"
    ));
    Ok(Exit::Ok)
}

/// A profile in the form of others.
fn content(ctx: &Context, house: &House, name: &str) -> anyhow::Result<Value> {
    let profile = Profile::read(&house.base, name)?;
    let loaded = ctx.load()?;
    let mut servers = Vec::new();
    let mut wrong = Wrong::of(&loaded);
    for server in &profile.servers {
        let entry = loaded.config.servers.iter().find(|(known, _)| known.as_str() == server);
        let Some((known, entry)) = entry else {
            bail!("the profile `{name}` names the server `{server}`, which the config has not");
        };
        wrong.literals(known, entry);
        let (server_of, left_out) = member(server, &serde_json::to_value(entry)?, None)?;
        for what in left_out {
            ctx.note(format_args!("left out of `{server}`: {what}"));
        }
        servers.push(server_of);
    }
    wrong.end()?;
    Ok(made(name, profile.title.as_deref().unwrap_or(name), servers))
}

fn export(ctx: &Context, house: &House, name: &str, file: Option<PathBuf>) -> anyhow::Result<Exit> {
    let content = content(ctx, house, name)?;
    let Some(path) = file else {
        ctx.json(&content)?;
        return Ok(Exit::Ok);
    };
    let text = match path.extension().and_then(|extension| extension.to_str()) {
        Some("json") => serde_json::to_string_pretty(&content)?,
        Some("yaml" | "yml") => serde_yaml_ng::to_string(&content)?,
        _ => return Err(Usage("the file's name ends in `.json` or `.yaml`".into()).into()),
    };
    replace(&path, text.as_bytes()).with_context(|| format!("cannot write {}", path.display()))?;
    ctx.note(format_args!("the profile `{name}` is in {}", path.display()));
    Ok(Exit::Ok)
}

async fn import(
    ctx: &Context,
    house: &mut House,
    fetched: Fetched,
    source: &str,
    name: Option<String>,
    said: &Said,
) -> anyhow::Result<Exit> {
    let found = read(&fetched.text, &said.options(None)?)
        .map_err(|problem| anyhow::anyhow!("{}: {problem}", fetched.name))?;
    if found.format != "Docker profile" {
        bail!(
            "{} is no profile but a {}: `server import` takes its servers",
            fetched.name,
            found.format
        );
    }
    let id = catalog::parse(&fetched.text)
        .ok()
        .and_then(|node| Some(node.get("id")?.text()?.to_owned()));
    let title = found.title;
    let name = match name {
        Some(name) => name,
        None => catalog::ours(id.as_deref().or(title.as_deref()).unwrap_or(""))
            .map_err(|error| Usage(error.to_string()))?,
    };
    let digest = fetched.manifest.clone().unwrap_or_else(|| fetched.digest.clone());
    let offer = Offer {
        entries: found.servers,
        source: source.to_owned(),
        digest: Some(digest),
        name: fetched.name,
    };
    let dry = said.is_dry();
    let (servers, exit) = take(ctx, house, offer, said).await?;
    if !servers.is_empty() && !dry {
        let mut profile = Profile::of(servers);
        profile.title = title;
        profile.source = Some(source.to_owned());
        profile.write(&house.base, &name)?;
        ctx.note(format_args!("made the profile `{name}`"));
    }
    Ok(exit)
}
