//! `portcullis policy bundle`: creates keys, and signs and verifies bundles.

use std::path::{Path, PathBuf};

use anyhow::bail;
use clap::ArgAction;
use jiff::Timestamp;
use serde_json::json;

use super::{count, load, reports};
use crate::cli::{
    Context, Exit, Usage,
    signing_keys::{self, KeyLocation},
};
use portcullis_foundation::note_key::Verifier;
use portcullis_policy::{Bundle, Source, sign};

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    /// Create a signing key file, and print the verifier key for `bundle-keys`
    ///
    /// A bundle has the name of its key. If the file exists, only the verifier key is printed. Keep
    /// the file where bundles are signed, not on the proxy's machine.
    Key {
        /// The file of the signing key
        file: PathBuf,
        /// The name of the key and of its bundles; required to create one
        #[arg(long)]
        name: Option<String>,
    },
    /// Sign all files of a folder as the next version
    ///
    /// The policies must load. The manifest is written to `bundle.note` last, in one step. If the
    /// files have not changed, the version stays and the signature is added.
    Sign {
        dir: PathBuf,
        /// The signing key: a file, or `env:NAME`; repeatable
        #[arg(long = "key", value_name = "FILE", required = true, action = ArgAction::Append,
              value_parser = signing_keys::redacting_parser::<KeyLocation>())]
        keys: Vec<KeyLocation>,
        /// The version. Default: the next
        #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u64).range(1..))]
        as_version: Option<u64>,
    },
    /// Verify a bundle: signature, files and version
    Verify {
        /// The folder of the bundle. Default: the config's
        dir: Option<PathBuf>,
        /// The verifier key, instead of the config's; disables the check against earlier versions. Repeatable
        #[arg(long = "key", value_name = "KEY", action = ArgAction::Append,
              value_parser = signing_keys::redacting_parser::<Verifier>())]
        keys: Vec<Verifier>,
    },
}

/// Runs the verb.
pub fn run(args: Args, ctx: &Context) -> anyhow::Result<Exit> {
    match args.verb {
        Verb::Key { file, name } => signing_keys::key(&file, name.as_deref(), ctx),
        Verb::Sign { dir, keys, as_version } => signed(&dir, &keys, as_version, ctx),
        Verb::Verify { dir, keys } => verify(dir, keys, ctx),
    }
}

fn signed(
    dir: &Path,
    keys: &[KeyLocation],
    version: Option<u64>,
    ctx: &Context,
) -> anyhow::Result<Exit> {
    let keys = keys.iter().map(KeyLocation::read).collect::<anyhow::Result<Vec<_>>>()?;
    // Every proxy would refuse a set that cannot be loaded.
    load(Source::Paths(vec![dir.to_owned()])).map_err(reports)?;
    let signed = sign(dir, &keys, version, Timestamp::now())?;
    if ctx.is_json() {
        ctx.json(&json!({
            "name": signed.name,
            "version": signed.version,
            "files": signed.files,
            "again": signed.unchanged,
        }))?;
    } else {
        for file in &signed.files {
            ctx.line(file)?;
        }
        let files = count(signed.files.len(), "file", "files");
        let what = if signed.unchanged { "signed again" } else { "signed" };
        ctx.line(format!("{what}: {} version {}, {files}", signed.name, signed.version))?;
    }
    Ok(Exit::Ok)
}

fn verify(dir: Option<PathBuf>, keys: Vec<Verifier>, ctx: &Context) -> anyhow::Result<Exit> {
    let source = match (dir, keys.is_empty()) {
        (Some(dir), false) => Source::Bundle(Bundle { dir, keys, state: None }),
        (dir, without) => {
            let loaded = ctx.load()?;
            let Source::Bundle(bundle) =
                Source::of(&loaded.config.policy, &loaded.config.state_dir).from_base(&loaded.base)
            else {
                let message = "the config names no bundle: give the folder and `--key`";
                return Err(Usage(message.to_owned()).into());
            };
            let bundle = Bundle { dir: dir.unwrap_or(bundle.dir), ..bundle };
            Source::Bundle(if without { bundle } else { Bundle { keys, state: None, ..bundle } })
        }
    };
    let status = match load(source) {
        Ok(engine) => engine.status().borrow().clone(),
        Err(findings) if ctx.is_json() => {
            ctx.json(&json!({ "holds": false, "findings": findings }))?;
            return Ok(Exit::Findings);
        }
        Err(findings) => {
            for finding in &findings {
                ctx.diagnostic(finding)?;
            }
            ctx.line(count(findings.len(), "finding", "findings"))?;
            return Ok(Exit::Findings);
        }
    };
    let Some(bundle) = &status.bundle else { bail!("the policies are from no bundle") };
    if ctx.is_json() {
        ctx.json(&json!({
            "holds": true,
            "bundle": bundle,
            "policies": status.policies,
            "revision": status.revision,
        }))?;
    } else {
        let policies = count(status.policies, "policy", "policies");
        ctx.line(format!(
            "{} version {} of {} holds: {policies}",
            bundle.name, bundle.version, bundle.time
        ))?;
        for key in &bundle.signed_by {
            ctx.line(format!("signed by {key}"))?;
        }
    }
    Ok(Exit::Ok)
}
