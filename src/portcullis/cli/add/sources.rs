//! What `add` offers: a server that the command line describes, an image, or servers of a catalog.

use super::{
    super::{
        Context, Usage,
        adding::{Offer, locate},
        catalog::{Workspace, catalogs, fetch, picked, placed},
    },
    Args, USAGE,
};
use crate::manage::catalog_search;
use portcullis_catalog::{Image, Named, Reference, of_image, read};
use portcullis_protocol::names::ServerName;

impl Args {
    /// A server of the command line.
    pub(super) fn named(&self, named: Named<'_>) -> anyhow::Result<Offer> {
        if matches!(named, Named::Url(_)) && !self.env.is_empty() {
            return Err(Usage("a remote server has no variables: omit `--env`".into()).into());
        }
        let name = self.name.as_ref().map(ToString::to_string).or_else(|| named.name());
        let name = name.ok_or_else(|| Usage("choose a name for the server: `--name`".into()))?;
        let secrets = self.add_options.secrets()?.into_iter().map(|(_, name, _)| name.to_owned());
        let document = named.document(&name, &self.env(), secrets);
        let found = read(&document, &self.add_options.options(Some(&name))?)?;
        let source = match found.servers.first().map(|entry| &entry.server) {
            Some(Ok(server)) => server.destination().into_iter().next().unwrap_or_default(),
            Some(Err(_)) | None => String::new(),
        };
        Ok(Offer::named(found.servers, source))
    }

    pub(super) async fn image(
        &self,
        ctx: &Context,
        workspace: &Workspace,
        reference: &str,
    ) -> anyhow::Result<Offer> {
        let mut image: Image = reference
            .parse()
            .map_err(|error: portcullis_catalog::NoImage| Usage(error.to_string()))?;
        let source = workspace.source(&Reference::Image(image.clone()));
        // The import refuses an image that does not resolve, and reports it.
        let _ = locate(ctx, workspace, &mut image).await;
        let described = match image.digest {
            Some(_) => workspace.described(&image).await,
            None => None,
        };
        let secrets = self.add_options.secrets()?.into_iter();
        let secrets = secrets.map(|(_, name, from)| (name.to_owned(), from.to_owned())).collect();
        let name = self.name.as_ref().map(ServerName::as_str);
        let entry = of_image(&image, name, described.as_ref(), &self.env(), &secrets);
        Ok(Offer::named(vec![entry], source))
    }

    /// Servers of a catalog: one by its name, or those of `catalog://CATALOG/SERVER+SERVER`.
    pub(super) async fn of_catalog(
        &self,
        ctx: &Context,
        workspace: &Workspace,
        name: &str,
    ) -> anyhow::Result<Offer> {
        if !self.env.is_empty() {
            let text =
                "a catalog lists the variables of a server: use `--set KEY=VALUE`, not `--env`";
            return Err(Usage(text.into()).into());
        }
        let reference = match name.split_once("://") {
            Some(("catalog", _)) => name.parse().map_err(|error| Usage(format!("{error}")))?,
            Some(("docker", image)) => {
                return Err(Usage(format!("write `portcullis add image {image}`")).into());
            }
            _ if name.contains("://") || std::path::Path::new(name).is_file() => {
                let text = "`portcullis server import` reads files that describe servers";
                return Err(Usage(text.into()).into());
            }
            _ => {
                let catalogs = catalogs(ctx, workspace);
                let found = catalog_search::named(&catalogs, name)?;
                let (catalog, server) = (found.catalog.to_owned(), found.entry.name.clone());
                Reference::Catalog { catalog, servers: vec![server] }
            }
        };
        let Reference::Catalog { servers, .. } = &reference else {
            return Err(Usage(format!("name one server:\n{USAGE}")).into());
        };
        let single = match servers.as_slice() {
            [one] => Some(one.as_str()),
            _ if self.name.is_some() => {
                return Err(
                    Usage("`--name` is for one server, and these are several".into()).into()
                );
            }
            _ => None,
        };
        let fetched = fetch(ctx, workspace, &reference).await?;
        let mut options = self.add_options.options(single)?;
        options.name = self.name.as_ref().map(ToString::to_string);
        options.foreign = true;
        let found = read(&fetched.text, &options).map_err(|problem| placed(&fetched, &problem))?;
        Ok(Offer {
            entries: picked(found, servers, &fetched.name)?,
            source: workspace.source(&reference),
            digest: Some(fetched.manifest.unwrap_or(fetched.digest)),
            name: fetched.name,
            clients: None,
        })
    }
}
