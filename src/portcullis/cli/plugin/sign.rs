//! `portcullis plugin key`, `sign` and `verify`: signatures of plugins.

use std::{fs, io, path::PathBuf};

use anyhow::Context as _;
use clap::ArgAction;
use serde_json::json;

use super::{compiled, found, wrong};
use crate::cli::{
    Context, Exit,
    signing_keys::{self, KeyLocation},
};
use portcullis_foundation::{atomic_file, note_key::Verifier};
use portcullis_plugin_host::{Artifact, Compiled, LoadError, Pin, Signed, signature_path};

/// Options of `key`.
#[derive(Debug, clap::Args)]
pub struct Key {
    /// The file of the signing key
    file: PathBuf,
    /// The name of the key; required to create one
    #[arg(long)]
    name: Option<String>,
}

/// Options of `sign`.
#[derive(Debug, clap::Args)]
pub struct Sign {
    /// The component
    #[arg(value_name = "FILE")]
    component: PathBuf,
    /// The signing key: a file, or `env:NAME`; repeatable
    #[arg(long = "key", value_name = "FILE", required = true, action = ArgAction::Append,
          value_parser = signing_keys::redacting_parser::<KeyLocation>())]
    keys: Vec<KeyLocation>,
}

/// Options of `verify`.
#[derive(Debug, clap::Args)]
pub struct Verify {
    /// The component: a file, `oci://HOST/REPOSITORY:TAG` (or `@sha256:…`), or `https://…`
    #[arg(value_name = "FILE")]
    component: String,
    /// The verifier key; repeatable, one valid signature is enough
    #[arg(long = "key", value_name = "KEY", required = true, action = ArgAction::Append,
          value_parser = signing_keys::redacting_parser::<Verifier>())]
    keys: Vec<Verifier>,
}

/// Creates a signing key, or prints the verifier key of an existing one.
pub fn key(options: &Key, ctx: &Context) -> anyhow::Result<Exit> {
    signing_keys::key(&options.file, options.name.as_deref(), ctx)
}

/// Writes the signature next to the component.
pub fn sign(options: &Sign, ctx: &Context) -> anyhow::Result<Exit> {
    let Sign { component, keys } = options;
    let keys = keys.iter().map(KeyLocation::read).collect::<anyhow::Result<Vec<_>>>()?;
    // A component that cannot be loaded is not signed.
    let signed = Signed::of(&compiled(&Artifact::file(component).map_err(wrong)?)?);
    let path = signature_path(component);
    let before = match fs::read_to_string(&path) {
        Ok(note) => Some(note),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => {
            return Err(error).with_context(|| format!("cannot read {}", path.display()));
        }
    };
    let note = signed.sign(&keys, before.as_deref())?;
    // Everybody may verify a signature, so everybody may read it.
    atomic_file::write_as(&path, note.as_bytes(), 0o644)
        .with_context(|| format!("cannot write {}", path.display()))?;
    if ctx.is_json() {
        ctx.json(&json!({ "signature": path, "signed": signed }))?;
    } else {
        ctx.line(format!("signed: {} {} in {}", signed.name, signed.version, path.display()))?;
    }
    Ok(Exit::Ok)
}

/// Checks whether the proxy would accept the component with these keys. A component without their
/// signature is never run.
pub async fn verify(options: &Verify, ctx: &Context) -> anyhow::Result<Exit> {
    let Verify { component, keys } = options;
    let found = found(component, ctx).await?;
    let (place, note_path) = found.places();
    if let Err(why) = found.note() {
        anyhow::bail!("there is no signature in {note_path}: {why}");
    }
    match Compiled::of(&found, Pin::Signed { by: keys, sha256: None }, None) {
        Ok(compiled) => {
            let signed = Signed::of(&compiled);
            let by: Vec<_> = compiled.signed_by().iter().map(ToString::to_string).collect();
            if ctx.is_json() {
                ctx.json(&json!({ "holds": true, "signed": signed, "signed_by": by }))?;
            } else {
                ctx.line(format!("{} {} holds", signed.name, signed.version))?;
                for key in by {
                    ctx.line(format!("signed by {key}"))?;
                }
            }
            Ok(Exit::Ok)
        }
        Err(LoadError::Unsigned { why, .. }) => {
            if ctx.is_json() {
                ctx.json(&json!({ "holds": false, "why": why }))?;
            } else {
                ctx.line(format!("the signature of {} does not hold: {why}", place.display()))?;
            }
            Ok(Exit::Findings)
        }
        Err(unusable) => Err(wrong(unusable)),
    }
}
