//! `portcullis catalog show`.

use anyhow::bail;

use super::{Workspace, fetch, near, picked, placed};
use crate::{
    cli::{Context, Exit, Usage},
    manage::catalog_search::{about, runs_as},
};
use portcullis_catalog::{CATALOG, Entry, Options, Reference, SERVERS, read, write};

/// Lists the servers of a catalog, or shows one of them.
pub async fn run(
    ctx: &Context,
    workspace: &Workspace,
    catalog: &str,
    server: Option<&str>,
) -> anyhow::Result<Exit> {
    let mut options = Options { foreign: true, ..Options::default() };
    let fetched = if let Some(pin) = workspace.lock.catalogs.get(catalog) {
        workspace.read_pinned(catalog, pin)?
    } else if catalog.contains("://") || std::path::Path::new(catalog).exists() {
        let reference: Reference = catalog.parse().map_err(|error| Usage(format!("{error}")))?;
        options.foreign = !matches!(reference, Reference::File(_));
        fetch(ctx, workspace, &reference).await?
    } else if catalog.contains('/') {
        workspace.artifact(catalog, &[CATALOG, SERVERS]).await?
    } else {
        bail!("there is no catalog `{catalog}`{}", near(workspace, catalog))
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

/// Prints the config entries that single servers would get, with notes about them.
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
                for delivery in server.deliveries() {
                    let (kind, to) = (delivery.kind.as_str(), server.destination().join(", "));
                    ctx.line(format!("# {kind} {} <- {} -> {to}", delivery.name, delivery.from))?;
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
    [entry.name.clone(), runs_as(entry).to_owned(), about(entry)]
}
