//! `portcullis server add`.

use anyhow::bail;

use super::{Workspace, fetch, only_one, picked, placed};
use crate::cli::{
    Context, Exit, Usage,
    adding::{AddOptions, Offer, locate, take},
};
use portcullis_catalog::{Reference, of_image, read};
use portcullis_protocol::names::ServerName;

/// `server add`
#[derive(Debug, clap::Args)]
pub struct Add {
    /// `catalog://CATALOG/SERVER`, `docker://IMAGE`, `https://…`, `file://…` or a path
    reference: String,
    /// Name of the server in the config
    #[arg(long)]
    name: Option<ServerName>,
    #[command(flatten)]
    add_options: AddOptions,
}

/// Adds the servers of a reference.
pub async fn add(args: Add, ctx: &Context) -> anyhow::Result<Exit> {
    let reference: Reference = args.reference.parse().map_err(|error| Usage(format!("{error}")))?;
    let mut workspace = Workspace::open(ctx)?;
    let chosen = match &reference {
        Reference::Catalog { servers, .. } => servers.clone(),
        _ => Vec::new(),
    };
    if chosen.len() > 1 && args.name.is_some() {
        return Err(Usage("`--name` is for one server, and these are several".into()).into());
    }
    let name = args.name.as_ref().map(ServerName::as_str);
    let offer = if let Reference::Image(image) = &reference {
        let mut image = image.clone();
        // The import below refuses an image that does not resolve, and reports it.
        let _ = locate(ctx, &workspace, &mut image).await;
        let described = match image.digest {
            Some(_) => workspace.described(&image).await,
            None => None,
        };
        let entry = of_image(&image, name, described.as_ref());
        Offer {
            entries: vec![entry],
            source: workspace.source(&reference),
            digest: None,
            name: reference.to_string(),
            in_full: true,
        }
    } else {
        let fetched = fetch(ctx, &workspace, &reference).await?;
        let single = match chosen.as_slice() {
            [one] => Some(one.clone()),
            _ => only_one(&fetched.text),
        };
        let mut options = args.add_options.options(single.as_deref())?;
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
        let source = workspace.source(&reference);
        Offer { entries, source, digest: Some(digest), name: fetched.name, in_full: false }
    };
    Ok(take(ctx, &mut workspace, offer, &args.add_options).await?.1)
}
