//! `portcullis policy bundle`: keys, signing and verifying of bundles.

use std::{
    fs,
    io::{self, Write as _},
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    str::FromStr,
};

use anyhow::{Context as _, bail};
use clap::ArgAction;
use jiff::Timestamp;
use serde_json::json;
use zeroize::Zeroizing;

use super::{count, load, reports};
use crate::{
    cli::{Context, Exit, Usage},
    policy::{Bundle, Source, sign},
    signing::{PRIVATE, Signer, Verifier},
    vault,
};

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    /// Make a signing key in a file, and print the verifier key for `bundle-keys`
    ///
    /// A bundle has the name of its key. Of a file that is there, the verifier key is printed. Keep
    /// the file where bundles are signed, and not where the proxy runs.
    Key {
        /// The file of the signing key
        file: PathBuf,
        /// The name of the key and of its bundles; to make one
        #[arg(long)]
        name: Option<String>,
    },
    /// Sign all files of a folder, as the next version
    ///
    /// The policies must load. The manifest is written to `bundle.note`, whole and last. The same
    /// files are not signed as another version: the signature is added.
    Sign {
        dir: PathBuf,
        /// The signing key: its file, or `env:NAME`; may be given several times
        #[arg(long = "key", value_name = "FILE", required = true, action = ArgAction::Append)]
        keys: Vec<KeyPlace>,
        /// The version, instead of the next
        #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u64).range(1..))]
        as_version: Option<u64>,
    },
    /// Say whether a bundle holds: signature, every file, and version
    Verify {
        /// The folder, instead of the config's
        dir: Option<PathBuf>,
        /// The verifier key, instead of those of the config; then nothing is known of versions that
        /// were in force. May be given several times
        #[arg(long = "key", value_name = "KEY", action = ArgAction::Append)]
        keys: Vec<Verifier>,
    },
}

/// Where a signing key is. Never the key itself, which would stand in the list of processes.
#[derive(Debug, Clone)]
struct KeyPlace(vault::Source);

impl FromStr for KeyPlace {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.contains(PRIVATE) {
            return Err("name the file of the key, or `env:NAME`, and never the key itself");
        }
        Ok(Self(text.parse().unwrap_or_else(|_| vault::Source::File(text.into()))))
    }
}

/// Runs the verb.
pub fn run(args: Args, ctx: &Context) -> anyhow::Result<Exit> {
    match args.verb {
        Verb::Key { file, name } => key(&file, name.as_deref(), ctx),
        Verb::Sign { dir, keys, as_version } => signed(&dir, &keys, as_version, ctx),
        Verb::Verify { dir, keys } => verify(dir, keys, ctx),
    }
}

fn key(file: &Path, name: Option<&str>, ctx: &Context) -> anyhow::Result<Exit> {
    let signer = match (file.exists(), name) {
        (true, None) => KeyPlace(vault::Source::File(file.to_owned())).read()?,
        (true, Some(name)) => {
            let signer = KeyPlace(vault::Source::File(file.to_owned())).read()?;
            if signer.verifier().name() != name {
                bail!(
                    "{} is there, and is the key `{}`: name another file",
                    file.display(),
                    signer.verifier().name()
                );
            }
            signer
        }
        (false, Some(name)) => make(file, name)?,
        (false, None) => {
            let file = file.display();
            let message =
                format!("{file} is not there: to make a key, say its name, `--name NAME`");
            return Err(Usage(message).into());
        }
    };
    let key = signer.verifier().to_string();
    if ctx.is_json() {
        ctx.json(&json!({ "name": signer.verifier().name(), "key": key }))?;
    } else {
        ctx.line(key)?;
    }
    Ok(Exit::Ok)
}

fn make(file: &Path, name: &str) -> anyhow::Result<Signer> {
    let mut seed = Zeroizing::new([0; 32]);
    getrandom::fill(&mut *seed).context("the operating system gives no random bytes")?;
    let signer = Signer::of(name, &seed).map_err(|error| Usage(error.to_string()))?;
    let write = || -> io::Result<()> {
        // One that is there is never overwritten.
        let mut to = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(file)?;
        to.write_all(signer.text().as_bytes())?;
        to.write_all(b"\n")?;
        to.sync_all()
    };
    write().with_context(|| format!("cannot write {}", file.display()))?;
    Ok(signer)
}

impl KeyPlace {
    fn read(&self) -> anyhow::Result<Signer> {
        if let vault::Source::File(file) = &self.0 {
            let meta = fs::metadata(file)
                .with_context(|| format!("cannot read the key {}", file.display()))?;
            if meta.is_file() && meta.mode() & 0o077 != 0 {
                bail!(
                    "the key {} can be read or written by others: make another, or `chmod 600` it \
                     if you know that nobody did",
                    file.display()
                );
            }
        }
        let text = self.0.resolve()?;
        Signer::parse(text.expose().trim_end())
            .with_context(|| format!("{} holds no key of `portcullis policy bundle key`", self.0))
    }
}

fn signed(
    dir: &Path,
    keys: &[KeyPlace],
    version: Option<u64>,
    ctx: &Context,
) -> anyhow::Result<Exit> {
    let keys = keys.iter().map(KeyPlace::read).collect::<anyhow::Result<Vec<_>>>()?;
    // A set that cannot be loaded would be refused wherever it is brought.
    load(Source::Paths(vec![dir.to_owned()])).map_err(reports)?;
    let signed = sign(dir, &keys, version, Timestamp::now())?;
    if ctx.is_json() {
        ctx.json(&json!({
            "name": signed.name,
            "version": signed.version,
            "files": signed.files,
            "again": signed.again,
        }))?;
    } else {
        for file in &signed.files {
            ctx.line(file)?;
        }
        let files = count(signed.files.len(), "file", "files");
        let what = if signed.again { "signed again" } else { "signed" };
        ctx.line(format!("{what}: {} version {}, {files}", signed.name, signed.version))?;
    }
    Ok(Exit::Ok)
}

fn verify(dir: Option<PathBuf>, keys: Vec<Verifier>, ctx: &Context) -> anyhow::Result<Exit> {
    let source = match (dir, keys.is_empty()) {
        (Some(dir), false) => Source::Bundle(Bundle { dir, keys, state: None }),
        (dir, without) => {
            let loaded = ctx.load()?;
            let Source::Bundle(bundle) = Source::of(&loaded.config).from_base(&loaded.base) else {
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
