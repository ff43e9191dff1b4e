//! Resolution of a server's image, in its registry or on the local engine.

use anyhow::bail;

use crate::cli::{Context, catalog::Workspace};
use portcullis_catalog::{Image, Kind, Note, Problem, Run, Server};
use portcullis_oci::names_host;

/// Resolves an image to its content. An id, or a name without a registry, is the engine's image if
/// the engine has one, as for `docker run`. Registries resolve all other names.
///
/// # Errors
/// The image cannot be resolved.
pub(in crate::cli) async fn locate(
    ctx: &Context,
    workspace: &Workspace,
    image: &mut Image,
) -> anyhow::Result<()> {
    if image.digest.is_some() {
        return Ok(());
    }
    if !names_host(&image.name) {
        let here = workspace.on_engine(&image.name).await;
        match here {
            Ok(Some(_)) if image.is_id() => return Ok(()),
            Ok(Some(id)) => {
                image.id = Some(id);
                return Ok(());
            }
            Ok(None) if image.is_id() => bail!("no image on this engine has that id"),
            Err(error) if image.is_id() => return Err(error),
            Ok(None) | Err(_) => {}
        }
    }
    let _progress = ctx.progress(format!("asking for the digest of {}", image.name));
    image.digest = Some(workspace.resolve(image).await?);
    Ok(())
}

/// Pins the image of a server, and returns the name that was requested.
pub(super) async fn pin(
    ctx: &Context,
    workspace: &Workspace,
    server: &mut Server,
) -> Result<Option<String>, Problem> {
    let Run::Image { image, .. } = &mut server.run else { return Ok(None) };
    let reference = image.to_string();
    if let Err(error) = locate(ctx, workspace, image).await {
        let what = match image.is_id() {
            true => format!("the image of `{}` is `{reference}`: {error:#}", server.name),
            false => format!(
                "the image of `{}` is named by a tag, `{reference}`, which can name another image later, and its \
                 digest could not be had ({error:#}); name it by digest, or build or load it on this engine",
                server.name
            ),
        };
        return Err(Problem::of(what));
    }
    if let (Some(id), false) = (&image.id, image.is_id()) {
        let text = format!(
            "`{reference}` names no registry, and is the image of this engine by that name ({id}); write `docker.io/…` \
             if Docker Hub's is meant"
        );
        server.notes.push(Note { kind: Kind::Note, place: None, text });
    }
    Ok(Some(reference))
}

/// Rejects an image that was replaced earlier, unless the operator allows it. The author of a
/// catalog or the publisher of an image could otherwise restore an old version without later fixes.
pub(super) fn reject_downgrade(
    workspace: &Workspace,
    server: &Server,
    allow_downgrade: bool,
) -> Result<(), Problem> {
    let Run::Image { image, .. } = &server.run else { return Ok(()) };
    let (Some(content), Some(locked)) = (image.content(), workspace.lock.servers.get(&server.name))
    else {
        return Ok(());
    };
    if allow_downgrade || !locked.was_once(content) {
        return Ok(());
    }
    Err(Problem::of(format!(
        "the image of `{}` would go back to {content}, which was replaced earlier: the source may have been rolled back; to accept it, add `--allow-downgrade`",
        server.name
    )))
}
