//! `portcullis catalog`: catalogs of servers that others wrote. Servers can be added from them.

mod import;
mod registry_pages;
mod show;
mod sources;

use anyhow::bail;
use serde_json::json;

use super::{Context, Exit, Usage};
use crate::manage::catalog_search::Catalog;
use portcullis_catalog::{
    CATALOG, Entry, Options, ParsedFile, Reference, artifact, is_legal, read,
};
use portcullis_protocol::names::nearest;

pub(super) use {
    import::{Import, import},
    sources::{Fetched, Workspace, file},
};

#[derive(Debug, clap::Subcommand)]
pub enum Verb {
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
pub async fn run(verb: Verb, ctx: &Context) -> anyhow::Result<Exit> {
    let mut workspace = Workspace::open(ctx)?;
    match verb {
        Verb::Ls => ls(ctx, &workspace),
        Verb::Show { catalog, server } => {
            show::run(ctx, &workspace, &catalog, server.as_deref()).await
        }
        Verb::Add { name, source, allow_downgrade } => {
            let reference: Reference = source.parse().map_err(|error| Usage(format!("{error}")))?;
            if matches!(reference, Reference::Image(_) | Reference::Catalog { .. }) {
                return Err(Usage(
                    "a catalog is added from a file or a URL; `catalog pull` has artifacts".into(),
                )
                .into());
            }
            let fetched = fetch(ctx, &workspace, &reference).await?;
            let source = workspace.source(&reference);
            keep(ctx, &mut workspace, &name, &source, &fetched, allow_downgrade)
        }
        Verb::Rm { name } => match workspace.forget(&name)? {
            Some(pin) => {
                ctx.note(format_args!("forgot the catalog `{name}` of {}", pin.source));
                Ok(Exit::Ok)
            }
            None => bail!("there is no catalog `{name}`{}", near(&workspace, &name)),
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
                workspace.artifact(&reference, &[CATALOG, portcullis_catalog::SERVERS]).await?
            };
            keep(
                ctx,
                &mut workspace,
                &name,
                &format!("oci://{reference}"),
                &fetched,
                allow_downgrade,
            )
        }
        Verb::Push { name, reference } => {
            let Some(pin) = workspace.lock.catalogs.get(&name) else {
                bail!("there is no catalog `{name}`{}", near(&workspace, &name))
            };
            let fetched = workspace.read_pinned(&name, pin)?;
            let content =
                artifact(&fetched.text, &name).map_err(|problem| placed(&fetched, &problem))?;
            let digest = {
                let _progress = ctx.progress(format!("pushing {reference}"));
                workspace.push(&reference, CATALOG, &content).await?
            };
            pushed(ctx, &reference, &digest)
        }
    }
}

/// Prints the digest of a pushed artifact.
pub(super) fn pushed(ctx: &Context, reference: &str, digest: &str) -> anyhow::Result<Exit> {
    if ctx.is_json() {
        ctx.json(&json!({ "reference": reference, "digest": digest }))?;
    } else {
        ctx.line(format!("{reference}@{digest}"))?;
    }
    Ok(Exit::Ok)
}

fn ls(ctx: &Context, workspace: &Workspace) -> anyhow::Result<Exit> {
    if ctx.is_json() {
        ctx.json(&workspace.lock.catalogs)?;
        return Ok(Exit::Ok);
    }
    let rows = workspace.lock.catalogs.iter().map(|(name, pin)| {
        let servers = workspace
            .read_pinned(name, pin)
            .ok()
            .and_then(|fetched| read(&fetched.text, &Options::default()).ok());
        let count =
            servers.map_or("unreadable".to_owned(), |found| found.servers.len().to_string());
        [name.clone(), count, pin.source.clone(), pin.digest.clone()]
    });
    ctx.table(&["NAME", "SERVERS", "SOURCE", "DIGEST"], rows)?;
    Ok(Exit::Ok)
}

pub(super) async fn fetch(
    ctx: &Context,
    workspace: &Workspace,
    reference: &Reference,
) -> anyhow::Result<Fetched> {
    let _progress = ctx.progress(format!("fetching {reference}"));
    workspace.fetch(reference).await
}

pub(super) fn placed(fetched: &Fetched, problem: &portcullis_catalog::Problem) -> anyhow::Error {
    let place = problem.place.map_or(String::new(), |place| format!(":{place}"));
    anyhow::anyhow!("{}{place}: {problem}", fetched.name)
}

fn keep(
    ctx: &Context,
    workspace: &mut Workspace,
    name: &str,
    source: &str,
    fetched: &Fetched,
    allow_downgrade: bool,
) -> anyhow::Result<Exit> {
    if !is_legal(name) {
        return Err(Usage(format!(
            "`{}` is not a name of a catalog",
            portcullis_catalog::brief(name)
        ))
        .into());
    }
    let found =
        read(&fetched.text, &Options::default()).map_err(|problem| placed(fetched, &problem))?;
    workspace.keep(name, source, fetched, allow_downgrade)?;
    ctx.note(format_args!(
        "`{name}` has {} servers ({}), {}",
        found.servers.len(),
        found.format,
        fetched.digest
    ));
    Ok(Exit::Ok)
}

/// Servers with these names, in that order.
pub(super) fn picked(
    found: ParsedFile,
    names: &[String],
    from: &str,
) -> anyhow::Result<Vec<Entry>> {
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

/// The added catalogs. A note names each that cannot be read.
pub(super) fn catalogs(ctx: &Context, workspace: &Workspace) -> Vec<Catalog> {
    // Entries are shown or added as those of others.
    let options = Options { foreign: true, ..Options::default() };
    let read_one = |name: &String, pin| {
        let fetched = workspace.read_pinned(name, pin)?;
        read(&fetched.text, &options).map_err(|problem| placed(&fetched, &problem))
    };
    let mut all = Vec::new();
    for (name, pin) in &workspace.lock.catalogs {
        match read_one(name, pin) {
            Ok(file) => all.push((name.clone(), file)),
            Err(error) => ctx.note(format_args!("the catalog `{name}` is left out: {error:#}")),
        }
    }
    all
}

fn near(workspace: &Workspace, name: &str) -> String {
    let catalogs = workspace.lock.catalogs.keys().map(String::as_str);
    let near = nearest(name, catalogs);
    near.first().map_or(String::new(), |near| format!("; did you mean `{near}`?"))
}

/// Name of the only server in a file.
pub(super) fn only_one(text: &str) -> Option<String> {
    let found = read(text, &Options::default()).ok()?;
    match found.servers.as_slice() {
        [one] => Some(one.name.clone()),
        _ => None,
    }
}
