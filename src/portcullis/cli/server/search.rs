//! `portcullis server search`.

use serde_json::{Value, json};

use crate::{
    cli::{Context, Exit, catalog},
    manage::catalog_search::{about, matching, runs_as},
};

/// Lists the servers of the added catalogs with these words.
pub(super) fn run(ctx: &Context, words: &[String]) -> anyhow::Result<Exit> {
    let workspace = catalog::Workspace::open(ctx)?;
    let catalogs = catalog::catalogs(ctx, &workspace);
    let found = matching(&catalogs, words);
    if ctx.is_json() {
        let rows: Vec<Value> = found
            .iter()
            .map(|found| {
                let (entry, about) = (found.entry, about(found.entry));
                json!({ "name": entry.name, "catalog": found.catalog, "runs": runs_as(entry), "about": about })
            })
            .collect();
        ctx.json(&rows)?;
        return Ok(Exit::Ok);
    }
    if catalogs.is_empty() {
        ctx.note("No catalog is installed: add one with `catalog add` or `catalog pull`.");
    } else if found.is_empty() {
        ctx.note("No server of the added catalogs has these words.");
    } else {
        let rows = found.iter().map(|found| {
            let entry = found.entry;
            let (name, catalog) = (entry.name.clone(), found.catalog.to_owned());
            [name, catalog, runs_as(entry).to_owned(), about(entry)]
        });
        ctx.table(&["NAME", "CATALOG", "RUNS AS", "WHAT IT IS"], rows)?;
    }
    Ok(Exit::Ok)
}
