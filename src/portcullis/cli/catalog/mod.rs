//! `portcullis catalog`: catalogs of servers that others wrote.

mod sources;

use std::path::PathBuf;

use anyhow::bail;
use serde_json::json;

use super::{Context, Exit, Usage};
use crate::cli::adding::{Offer, Said, locate, take};
use portcullis_catalog::{
    CATALOG, Entry, Found, Options, Reference, Run, artifact, is_legal, read, write,
};
use portcullis_protocol::names::nearest;

pub(super) use sources::{Fetched, Workspace, file};

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    /// List the added catalogs
    Ls,
    /// List the servers of a catalog, or show the config entry for one of them
    Show {
        /// An added catalog, a file, a URL, or the name of an artifact
        catalog: String,
        /// The server's name in the catalog
        server: Option<String>,
    },
    /// Add a catalog from a file or a URL; keeps a copy and locks its digest
    Add {
        /// Local name of the catalog
        name: String,
        /// A file, or a URL
        source: String,
        /// Allow going back to a copy that was replaced earlier
        #[arg(long)]
        allow_downgrade: bool,
    },
    /// Remove a catalog; servers that were added from it stay
    Rm {
        /// The catalog's name
        name: String,
    },
    /// Pull a catalog from an OCI registry, and add it
    Pull {
        /// The artifact: `HOST/NAME:TAG` or `HOST/NAME@sha256:…`
        reference: String,
        /// Local name. Default: the last part of the artifact's name
        #[arg(long)]
        name: Option<String>,
        /// Allow going back to a copy that was replaced earlier
        #[arg(long)]
        allow_downgrade: bool,
    },
    /// Push an added catalog to an OCI registry
    Push {
        /// The catalog's name
        name: String,
        /// The artifact: `HOST/NAME:TAG`
        reference: String,
    },
}

/// Runs the verb.
pub async fn run(args: Args, ctx: &Context) -> anyhow::Result<Exit> {
    let mut house = Workspace::open(ctx)?;
    match args.verb {
        Verb::Ls => ls(ctx, &house),
        Verb::Show { catalog, server } => show(ctx, &house, &catalog, server.as_deref()).await,
        Verb::Add { name, source, allow_downgrade } => {
            let reference: Reference = source.parse().map_err(|error| Usage(format!("{error}")))?;
            if matches!(reference, Reference::Image(_) | Reference::Catalog { .. }) {
                return Err(Usage(
                    "a catalog is added from a file or a URL; `catalog pull` has artifacts".into(),
                )
                .into());
            }
            let fetched = fetch(ctx, &house, &reference).await?;
            let source = house.source(&reference);
            keep(ctx, &mut house, &name, &source, &fetched, allow_downgrade)
        }
        Verb::Rm { name } => match house.forget(&name)? {
            Some(kept) => {
                ctx.note(format_args!("forgot the catalog `{name}` of {}", kept.source));
                Ok(Exit::Ok)
            }
            None => bail!("there is no catalog `{name}`{}", near(&house, &name)),
        },
        Verb::Pull { reference, name, allow_downgrade } => {
            let name = match name {
                Some(name) => name,
                None => portcullis_catalog::ours(
                    reference.split(['@']).next().unwrap_or("").rsplit_once(':').map_or(
                        &*reference,
                        |(name, tag)| {
                            if tag.contains('/') { &*reference } else { name }
                        },
                    ),
                )
                .map_err(|error| Usage(error.to_string()))?,
            };
            let fetched = {
                let _progress = ctx.progress(format!("pulling {reference}"));
                house.artifact(&reference, &[CATALOG, portcullis_catalog::SERVERS]).await?
            };
            keep(ctx, &mut house, &name, &format!("oci://{reference}"), &fetched, allow_downgrade)
        }
        Verb::Push { name, reference } => {
            let Some(kept) = house.lock.catalogs.get(&name) else {
                bail!("there is no catalog `{name}`{}", near(&house, &name))
            };
            let fetched = house.kept(&name, kept)?;
            let content =
                artifact(&fetched.text, &name).map_err(|problem| placed(&fetched, &problem))?;
            let digest = {
                let _progress = ctx.progress(format!("pushing {reference}"));
                house.push(&reference, CATALOG, &content).await?
            };
            pushed(ctx, &reference, &digest)
        }
    }
}

/// Tells what was pushed.
pub(super) fn pushed(ctx: &Context, reference: &str, digest: &str) -> anyhow::Result<Exit> {
    if ctx.is_json() {
        ctx.json(&json!({ "reference": reference, "digest": digest }))?;
    } else {
        ctx.line(format!("{reference}@{digest}"))?;
    }
    Ok(Exit::Ok)
}

fn ls(ctx: &Context, house: &Workspace) -> anyhow::Result<Exit> {
    if ctx.is_json() {
        ctx.json(&house.lock.catalogs)?;
        return Ok(Exit::Ok);
    }
    let rows = house.lock.catalogs.iter().map(|(name, kept)| {
        let servers = house
            .kept(name, kept)
            .ok()
            .and_then(|fetched| read(&fetched.text, &Options::default()).ok());
        let count =
            servers.map_or("unreadable".to_owned(), |found| found.servers.len().to_string());
        [name.clone(), count, kept.source.clone(), kept.digest.clone()]
    });
    ctx.table(&["NAME", "SERVERS", "SOURCE", "DIGEST"], rows)?;
    Ok(Exit::Ok)
}

async fn fetch(ctx: &Context, house: &Workspace, reference: &Reference) -> anyhow::Result<Fetched> {
    let _progress = ctx.progress(format!("fetching {reference}"));
    house.fetch(reference).await
}

fn placed(fetched: &Fetched, problem: &portcullis_catalog::Problem) -> anyhow::Error {
    let place = problem.place.map_or(String::new(), |place| format!(":{place}"));
    anyhow::anyhow!("{}{place}: {problem}", fetched.name)
}

fn keep(
    ctx: &Context,
    house: &mut Workspace,
    name: &str,
    source: &str,
    fetched: &Fetched,
    allow_downgrade: bool,
) -> anyhow::Result<Exit> {
    if !is_legal(name) {
        return Err(Usage(format!(
            "`{}` is no name of a catalog",
            portcullis_catalog::brief(name)
        ))
        .into());
    }
    let found =
        read(&fetched.text, &Options::default()).map_err(|problem| placed(fetched, &problem))?;
    house.keep(name, source, fetched, allow_downgrade)?;
    ctx.note(format_args!(
        "`{name}` has {} servers ({}), {}",
        found.servers.len(),
        found.format,
        fetched.digest
    ));
    Ok(Exit::Ok)
}

async fn show(
    ctx: &Context,
    house: &Workspace,
    catalog: &str,
    server: Option<&str>,
) -> anyhow::Result<Exit> {
    let mut options = Options { foreign: true, ..Options::default() };
    let fetched = if let Some(kept) = house.lock.catalogs.get(catalog) {
        house.kept(catalog, kept)?
    } else if catalog.contains("://") || std::path::Path::new(catalog).exists() {
        let reference: Reference = catalog.parse().map_err(|error| Usage(format!("{error}")))?;
        options.foreign = !matches!(reference, Reference::File(_));
        fetch(ctx, house, &reference).await?
    } else if catalog.contains('/') {
        house.artifact(catalog, &[CATALOG, portcullis_catalog::SERVERS]).await?
    } else {
        bail!("there is no catalog `{catalog}`{}", near(house, catalog))
    };
    let found = read(&fetched.text, &options).map_err(|problem| placed(&fetched, &problem))?;
    if let Some(server) = server {
        return one(ctx, picked(found, &[server.to_owned()], &fetched.name)?);
    }
    if ctx.is_json() {
        ctx.json(&found)?;
        return Ok(Exit::Ok);
    }
    if let Some(title) = &found.title {
        ctx.note(format_args!("{title} ({})", found.format));
    }
    let rows = found.servers.iter().map(row);
    ctx.table(&["NAME", "RUNS AS", "WHAT IT IS"], rows)?;
    Ok(Exit::Ok)
}

/// Shows what single servers would become: their entry, and what should be known of it.
fn one(ctx: &Context, entries: Vec<Entry>) -> anyhow::Result<Exit> {
    let mut exit = Exit::Ok;
    if ctx.is_json() {
        ctx.json(&entries)?;
        return Ok(exit);
    }
    for entry in entries {
        match entry.server {
            Ok(server) => {
                for line in write::add("", &server)?.lines().filter(|line| !line.is_empty()) {
                    ctx.line(line)?;
                }
                for handed in server.handed() {
                    let (kind, to) = (handed.kind.as_str(), server.destination().join(", "));
                    ctx.line(format!("# {kind} {} <- {} -> {to}", handed.name, handed.from))?;
                }
                for tool in &server.tools {
                    ctx.line(format!("# tool: {}", tool.name))?;
                }
                for note in &server.notes {
                    ctx.line(format!("# {}: {}", note.kind.as_str(), note.text))?;
                }
            }
            Err(problems) => {
                exit = Exit::Findings;
                for problem in problems {
                    ctx.note(problem);
                }
            }
        }
    }
    Ok(exit)
}

fn row(entry: &Entry) -> [String; 3] {
    let (runs, what) = match &entry.server {
        Ok(server) => {
            let runs = match &server.run {
                Run::Image { image, .. } => image.name.clone(),
                Run::Command { program, .. } => program.clone(),
                Run::Remote { url, .. } => url.clone(),
            };
            (runs, server.title.clone().or(server.description.clone()).unwrap_or_default())
        }
        Err(problems) => {
            ("-".to_owned(), problems.first().map_or(String::new(), |problem| problem.text.clone()))
        }
    };
    [entry.name.clone(), runs, what.chars().take(80).collect()]
}

/// The servers of these names, in their order.
fn picked(found: Found, names: &[String], from: &str) -> anyhow::Result<Vec<Entry>> {
    let known: Vec<String> = found.servers.iter().map(|entry| entry.name.clone()).collect();
    let mut entries: Vec<Option<Entry>> = found.servers.into_iter().map(Some).collect();
    names
        .iter()
        .map(|name| {
            let at = known.iter().position(|known| known == name);
            at.and_then(|at| entries[at].take()).ok_or_else(|| {
                let near = nearest(name, known.iter().map(String::as_str));
                let near =
                    near.first().map_or(String::new(), |near| format!("; did you mean `{near}`?"));
                anyhow::anyhow!("{from} has no server `{}`{near}", portcullis_catalog::brief(name))
            })
        })
        .collect()
}

fn near(house: &Workspace, name: &str) -> String {
    let known = house.lock.catalogs.keys().map(String::as_str);
    let near = nearest(name, known);
    near.first().map_or(String::new(), |near| format!("; did you mean `{near}`?"))
}

/// `server add`
#[derive(Debug, clap::Args)]
pub(super) struct Add {
    /// `catalog://CATALOG/SERVER`, `docker://IMAGE`, `https://…`, `file://…` or a path
    reference: String,
    /// Name of the server in the config
    #[arg(long)]
    name: Option<portcullis_protocol::names::ServerName>,
    #[command(flatten)]
    said: Said,
}

/// Adds the servers that a reference names.
pub(super) async fn add(args: Add, ctx: &Context) -> anyhow::Result<Exit> {
    let reference: Reference = args.reference.parse().map_err(|error| Usage(format!("{error}")))?;
    let mut house = Workspace::open(ctx)?;
    let chosen = match &reference {
        Reference::Catalog { servers, .. } => servers.clone(),
        _ => Vec::new(),
    };
    if chosen.len() > 1 && args.name.is_some() {
        return Err(Usage("`--name` is for one server, and these are several".into()).into());
    }
    let name = args.name.as_ref().map(portcullis_protocol::names::ServerName::as_str);
    let offer = if let Reference::Image(image) = &reference {
        let mut image = image.clone();
        // Where nobody can say what it is, it is not taken, and that is told then.
        let _ = locate(ctx, &house, &mut image).await;
        let described = match image.digest {
            Some(_) => house.described(&image).await,
            None => None,
        };
        let entry = portcullis_catalog::of_image(&image, name, described.as_ref());
        Offer {
            entries: vec![entry],
            source: house.source(&reference),
            digest: None,
            name: reference.to_string(),
            in_full: true,
        }
    } else {
        let fetched = fetch(ctx, &house, &reference).await?;
        let single = match chosen.as_slice() {
            [one] => Some(one.clone()),
            _ => only_one(&fetched.text),
        };
        let mut options = args.said.options(single.as_deref())?;
        options.name = name.map(str::to_owned);
        options.foreign = !matches!(reference, Reference::File(_));
        let found = read(&fetched.text, &options).map_err(|problem| placed(&fetched, &problem))?;
        let digest = fetched.manifest.clone().unwrap_or_else(|| fetched.digest.clone());
        let entries = match &reference {
            Reference::Catalog { servers, .. } => picked(found, servers, &fetched.name)?,
            _ if found.servers.len() == 1 => found.servers,
            _ => bail!(
                "{} has {} servers: `server import` takes them all, and `catalog add` keeps it to choose from",
                fetched.name,
                found.servers.len()
            ),
        };
        let source = house.source(&reference);
        Offer { entries, source, digest: Some(digest), name: fetched.name, in_full: false }
    };
    Ok(take(ctx, &mut house, offer, &args.said).await?.1)
}

/// The name of the one server that a file has.
pub(super) fn only_one(text: &str) -> Option<String> {
    let found = read(text, &Options::default()).ok()?;
    match found.servers.as_slice() {
        [one] => Some(one.name.clone()),
        _ => None,
    }
}

/// `server import`
#[derive(Debug, clap::Args)]
pub(super) struct Import {
    /// A client's config file (such as `mcpServers`), a catalog, a profile or a `server.json`
    file: PathBuf,
    /// Import only this server of the file; repeatable
    #[arg(long = "only", value_name = "SERVER")]
    only: Vec<String>,
    /// Name of the server in the config; needs a file with one server, or `--only`
    #[arg(long)]
    name: Option<portcullis_protocol::names::ServerName>,
    /// Import only the servers that a Docker `registry.yaml` enables
    #[arg(long, value_name = "FILE", conflicts_with = "only")]
    enabled: Option<PathBuf>,
    #[command(flatten)]
    said: Said,
}

/// Adds the servers of a file.
pub(super) async fn import(args: Import, ctx: &Context) -> anyhow::Result<Exit> {
    let mut house = Workspace::open(ctx)?;
    let fetched = file(&args.file)?;
    let single = match args.only.as_slice() {
        [one] => Some(one.clone()),
        _ => only_one(&fetched.text),
    };
    let mut options = args.said.options(single.as_deref())?;
    if args.name.is_some() && single.is_none() {
        return Err(Usage("`--name` is for one server: choose it with `--only`".into()).into());
    }
    options.name = args.name.as_ref().map(ToString::to_string);
    let mut only = args.only.clone();
    if let Some(path) = &args.enabled {
        let list = file(path)?;
        let (names, values) =
            portcullis_catalog::enabled(&list.text).map_err(|problem| placed(&list, &problem))?;
        for (server, settings) in values {
            options.values.entry(server).or_insert(settings);
        }
        only = names;
    }
    let found = read(&fetched.text, &options).map_err(|problem| placed(&fetched, &problem))?;
    for note in &found.notes {
        let place =
            note.place.map_or(String::new(), |place| format!(" ({}:{place})", fetched.name));
        ctx.note(format_args!("{}: {}{place}", note.kind.as_str(), note.text));
    }
    let entries = match only.as_slice() {
        [] if args.enabled.is_none() => found.servers,
        names => picked(found, names, &fetched.name)?,
    };
    if entries.is_empty() {
        bail!("{} has no servers", fetched.name);
    }
    let (source, digest) = (house.place(&args.file), Some(fetched.digest));
    let offer = Offer { entries, source, digest, name: fetched.name, in_full: false };
    Ok(take(ctx, &mut house, offer, &args.said).await?.1)
}
