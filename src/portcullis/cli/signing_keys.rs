//! Signing keys of policy bundles and of plugins.

use std::{
    ffi::OsStr,
    fmt::Display,
    fs,
    io::{self, Write as _},
    marker::PhantomData,
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    path::Path,
    str::FromStr,
};

use anyhow::{Context as _, bail};
use clap::{Arg, Command, builder::TypedValueParser, error::ErrorKind};
use serde_json::json;
use zeroize::Zeroizing;

use super::{Context, Exit, Usage};
use portcullis_foundation::note_key::{PRIVATE, Signer};

/// Location of a signing key. Never the key itself, which the list of processes would show.
#[derive(Debug, Clone)]
pub(super) struct KeyLocation(portcullis_vault::Source);

impl FromStr for KeyLocation {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.contains(PRIVATE) {
            return Err("name the file of the key, or `env:NAME`, and never the key itself");
        }
        Ok(Self(text.parse().unwrap_or_else(|_| portcullis_vault::Source::File(text.into()))))
    }
}

/// Parser of a key or its location. Errors never repeat the argument: it may be a signing key.
#[derive(Debug)]
pub(super) struct RedactingParser<T>(PhantomData<fn() -> T>);

/// Parser of an argument for a key.
pub(super) fn redacting_parser<T>() -> RedactingParser<T> {
    RedactingParser(PhantomData)
}

impl<T> Clone for RedactingParser<T> {
    fn clone(&self) -> Self {
        redacting_parser()
    }
}

impl<T> TypedValueParser for RedactingParser<T>
where
    T: FromStr<Err: Display> + Clone + Send + Sync + 'static,
{
    type Value = T;

    fn parse_ref(
        &self,
        command: &Command,
        arg: Option<&Arg>,
        value: &OsStr,
    ) -> Result<T, clap::Error> {
        let read = value.to_str().ok_or_else(|| "it is not a text".to_owned());
        read.and_then(|text| text.parse().map_err(|why: T::Err| why.to_string())).map_err(|why| {
            let arg = arg.map(ToString::to_string).unwrap_or_default();
            let message = format!("invalid value for '{arg}': {why}\n");
            clap::Error::raw(ErrorKind::ValueValidation, message).with_cmd(command)
        })
    }
}

/// Creates a signing key in a file under a name, and prints its verifier key. For an existing file,
/// it only prints the key.
pub(super) fn key(file: &Path, name: Option<&str>, ctx: &Context) -> anyhow::Result<Exit> {
    let signer = match (file.exists(), name) {
        (true, None) => KeyLocation(portcullis_vault::Source::File(file.to_owned())).read()?,
        (true, Some(name)) => {
            let signer = KeyLocation(portcullis_vault::Source::File(file.to_owned())).read()?;
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
        // An existing file is never overwritten.
        let mut to = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(file)?;
        to.write_all(signer.text().as_bytes())?;
        to.write_all(b"\n")?;
        to.sync_all()
    };
    write().with_context(|| format!("cannot write {}", file.display()))?;
    Ok(signer)
}

impl KeyLocation {
    /// Reads the key.
    pub fn read(&self) -> anyhow::Result<Signer> {
        if let portcullis_vault::Source::File(file) = &self.0 {
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
            .with_context(|| format!("{} holds no signing key", self.0))
    }
}
