//! `portcullis server import`.

use std::path::PathBuf;

use anyhow::bail;

use super::{Workspace, fetch, file, only_one, picked, placed};
use crate::cli::{
    Context, Exit, Usage,
    adding::{AddOptions, Offer, take},
};
use portcullis_catalog::{Reference, enabled, read};
use portcullis_protocol::names::ServerName;

/// `server import`
#[derive(Debug, clap::Args)]
pub struct Import {
    /// A file or the URL of one: a client's config (such as `mcpServers`), a catalog, a profile or a
    /// `server.json`
    #[arg(value_name = "FILE|URL")]
    from: String,
    /// Import only this server of the file; repeatable
    #[arg(long = "only", value_name = "SERVER")]
    only: Vec<String>,
    /// Name of the server in the config; needs a file with one server, or `--only`
    #[arg(long)]
    name: Option<ServerName>,
    /// Import only the servers that a Docker `registry.yaml` enables
    #[arg(long, value_name = "FILE", conflicts_with = "only")]
    enabled: Option<PathBuf>,
    #[command(flatten)]
    add_options: AddOptions,
}

/// Adds the servers of a file.
pub async fn import(args: Import, ctx: &Context) -> anyhow::Result<Exit> {
    let reference: Reference = args.from.parse().map_err(|error| Usage(format!("{error}")))?;
    if matches!(reference, Reference::Catalog { .. } | Reference::Image(_)) {
        let text =
            "a file or a URL is imported; `portcullis add` adds a server of a catalog or an image";
        return Err(Usage(text.into()).into());
    }
    let mut workspace = Workspace::open(ctx)?;
    let fetched = fetch(ctx, &workspace, &reference).await?;
    let single = match args.only.as_slice() {
        [one] => Some(one.clone()),
        _ => only_one(&fetched.text),
    };
    let mut options = args.add_options.options(single.as_deref())?;
    if args.name.is_some() && single.is_none() {
        return Err(Usage("`--name` is for one server: choose it with `--only`".into()).into());
    }
    options.foreign = !matches!(reference, Reference::File(_));
    options.name = args.name.as_ref().map(ToString::to_string);
    let mut only = args.only.clone();
    if let Some(path) = &args.enabled {
        let list = file(path)?;
        let (names, values) = enabled(&list.text).map_err(|problem| placed(&list, &problem))?;
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
    let (source, digest) = (workspace.source(&reference), Some(fetched.digest));
    let offer = Offer { entries, source, digest, name: fetched.name, clients: None };
    Ok(take(ctx, &mut workspace, offer, &args.add_options).await?.1)
}
