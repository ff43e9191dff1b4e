//! `portcullis plugin push`: pushes a component to a registry.

use std::{fs, io, path::PathBuf};

use serde_json::json;

use super::{compiled, registries, wrong};
use crate::cli::{Context, Exit};
use portcullis_plugin_host::{Artifact, Signed, signature_path};

/// Options of the verb.
#[derive(Debug, clap::Args)]
pub struct Push {
    /// The component; `FILE.sig` is pushed with it, if it exists
    #[arg(value_name = "FILE")]
    component: PathBuf,
    /// The destination: `oci://HOST/REPOSITORY:TAG`
    #[arg(value_name = "REFERENCE")]
    reference: String,
}

/// Runs the verb.
pub async fn push(options: &Push, ctx: &Context) -> anyhow::Result<Exit> {
    let Push { component, reference } = options;
    let found = Artifact::file(component).map_err(wrong)?;
    // A component that cannot be loaded is not pushed.
    let compiled = compiled(&found)?;
    let (_, place) = found.places();
    let again = "sign it with `portcullis plugin sign`, or remove that file";
    match found.note() {
        // A proxy that requires a signature would refuse the component.
        Ok(note) if !Signed::of(&compiled).is_in(note) => {
            anyhow::bail!("the signature in {place} is of another file or version: {again}")
        }
        Err(why) if !is_absent(fs::symlink_metadata(signature_path(component))) => {
            anyhow::bail!("the signature in {place} cannot be read: {why}: {again}")
        }
        _ => {}
    }
    let progress = ctx.progress("pushing");
    let pushed = registries(ctx)?.push(reference, &found, &compiled).await;
    drop(progress);
    let pinned = pushed.map_err(wrong)?;
    if ctx.is_json() {
        let signed = found.note().is_ok();
        ctx.json(&json!({ "oci": pinned, "sha256": compiled.sha256(), "signed": signed }))?;
    } else {
        ctx.line(format!("oci = \"{pinned}\""))?;
        if found.note().is_err() {
            ctx.line(format!("without a signature: {place} has none"))?;
        }
    }
    Ok(Exit::Ok)
}

fn is_absent<T>(file: io::Result<T>) -> bool {
    file.is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
}
