//! Signed bundles: a folder of policies with a manifest of its files, signed with a key that may
//! change policies.
//!
//! Invariants:
//! - The loaded bytes are those that were verified against the manifest: each file is read once.
//! - A bundle is used as a whole or not at all. Files missing in the manifest are not allowed.
//! - A bundle that was in force is never followed by an older one of its name, nor by another one
//!   with the same version.

mod rollback_guard;
mod sign;
#[cfg(test)]
mod tests;

use std::{
    collections::HashSet,
    fs::{self, OpenOptions},
    io::{self, Read as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use jiff::Timestamp;
use nix::libc::{O_NOFOLLOW, O_NONBLOCK};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

pub(super) use rollback_guard::Memory;
pub use sign::sign;
pub use sign::{SignFault, Signed};

use super::diagnostics::{File, Finding};
use portcullis_foundation::note_key::{self, NotSigned, Verifier};

/// Name of the manifest in the folder of its bundle: a signed note with a JSON text.
pub const MANIFEST: &str = "bundle.note";
/// Format of a manifest's text; a key may sign other texts too.
const FORMAT: &str = "portcullis-policies/1";
/// Maximum size of a manifest: that of a signed note.
const MANIFEST_BYTES: u64 = 1_000_000;
/// Maximum number of invalid files of each kind in a finding. Their number is chosen by the author
/// of the bundle, and findings are recorded.
const MAX_LISTED: usize = 20;
/// Maximum size of all files of a bundle.
const BYTES: u64 = 64 << 20;

/// Location of a bundle, its allowed signers, and the memory of bundles that were in force.
#[derive(Debug, Clone)]
pub struct Bundle {
    /// The folder, or a link to it.
    pub dir: PathBuf,
    /// Allowed signers, one of which must have signed it. A bundle has the name of its key.
    pub keys: Vec<Verifier>,
    /// The state folder of the proxy, if there is one.
    pub state: Option<PathBuf>,
}

/// Content of a manifest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Manifest {
    format: String,
    name: String,
    version: u64,
    time: Timestamp,
    files: Vec<Listed>,
}

/// A file in the manifest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Listed {
    name: String,
    sha256: String,
}

/// The bundle that policies are from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Origin {
    pub name: String,
    pub version: u64,
    /// Time of signing, as stated by the signer.
    pub time: Timestamp,
    /// Names of the allowed keys that signed it.
    pub signed_by: Vec<String>,
    /// The SHA-256 of the manifest's text in hex.
    pub sha256: String,
}

/// A verified bundle.
pub(super) struct Opened {
    pub origin: Origin,
    /// All its text files. Their names begin with the folder as the config names it.
    pub files: Vec<File>,
}

impl Bundle {
    /// Reads and verifies the bundle. Files below `base` are named relative to it.
    ///
    /// # Errors
    /// All faults of the bundle.
    pub(super) fn open(&self, base: &Path) -> Result<Opened, Vec<Finding>> {
        let opened = self.read(base).map_err(|error| error.into_findings())?;
        if let Some(state) = &self.state {
            Memory::read(state)
                .and_then(|memory| memory.permits(&opened.origin))
                .map_err(|finding| vec![finding.file(self.shown(base, MANIFEST))])?;
        }
        Ok(opened)
    }

    /// Records that the bundle is in force from now on. Older ones are then rejected.
    ///
    /// # Errors
    /// If it is older than a bundle that was in force, or cannot be recorded.
    pub(super) fn remember(&self, origin: &Origin) -> Result<(), Finding> {
        match &self.state {
            Some(state) => Memory::read(state)?.keep(state, origin),
            None => Ok(()),
        }
    }

    /// The name of a file as the operator knows it.
    fn shown(&self, base: &Path, name: &str) -> PathBuf {
        self.dir.strip_prefix(base).unwrap_or(&self.dir).join(name)
    }

    fn read(&self, base: &Path) -> Result<Opened, BundleFault> {
        let manifest_name = self.shown(base, MANIFEST);
        let wrong = |code, message: String, help: &str| {
            BundleFault::One(Box::new(
                Finding::error(code, message).file(manifest_name.clone()).help(help),
            ))
        };
        // A link is resolved once: everything is read from one folder, even if the link changes.
        let dir = fs::canonicalize(base.join(&self.dir)).map_err(|error| {
            let shown = self.shown(base, "");
            let message = format!("cannot read the bundle {}: {error}", shown.display());
            let help = "make the folder, or correct `bundle` under `[policy]`";
            BundleFault::One(Box::new(
                Finding::error("policy-bundle-unreadable", message).file(shown).help(help),
            ))
        })?;
        let mut room = MANIFEST_BYTES;
        let note = read(&dir, MANIFEST, &mut room).map_err(|problem| {
            wrong(
                "policy-bundle-unsigned",
                format!("the manifest cannot be read: {problem}"),
                "`portcullis policy bundle sign` makes it; what has none is not taken",
            )
        })?;
        let note = String::from_utf8(note).map_err(|_| {
            let message = "the manifest is not a signed note".to_owned();
            wrong("policy-bundle-unsigned", message, "sign the bundle again")
        })?;
        let (text, keys) = self
            .signed(&note)
            .map_err(|(message, help)| wrong("policy-bundle-unsigned", message, help))?;
        let manifest = Manifest::parse(&text).map_err(|problem| {
            let message = format!("the manifest is signed, and {problem}");
            wrong("policy-bundle-manifest", message, "sign the bundle again with this version")
        })?;
        let own = keys.iter().filter(|key| key.name() == manifest.name);
        let signed_by: Vec<_> = own.map(ToString::to_string).collect();
        if signed_by.is_empty() {
            let message = format!(
                "the bundle calls itself `{}`, and no key of that name has signed it",
                manifest.name
            );
            return Err(wrong(
                "policy-bundle-unsigned",
                message,
                "a bundle has the name of its key: sign it with the right one",
            ));
        }
        let files = self.files(base, &dir, &manifest).map_err(BundleFault::Many)?;
        let origin = Origin {
            name: manifest.name,
            version: manifest.version,
            time: manifest.time,
            signed_by,
            sha256: hex::encode(Sha256::digest(text.as_bytes())),
        };
        Ok(Opened { origin, files })
    }

    /// The text of the manifest, and the allowed keys that signed it.
    fn signed(&self, note: &str) -> Result<(String, Vec<&Verifier>), (String, &'static str)> {
        note_key::open(note, &self.keys).map_err(|why| match why {
            NotSigned::OtherKey => (
                "none of the keys that may has signed the manifest".to_owned(),
                "sign it with the key of one of `bundle-keys`, or add the signer's verifier key \
                 there",
            ),
            NotSigned::Forged => (
                "the manifest is not what was signed: its signature is wrong".to_owned(),
                "restore the complete, unchanged bundle; find out who changed it",
            ),
            NotSigned::Malformed => {
                ("the manifest is not a signed note".to_owned(), "sign the bundle again")
            }
        })
    }

    /// Reads every listed file once and verifies it against the list.
    fn files(
        &self,
        base: &Path,
        dir: &Path,
        manifest: &Manifest,
    ) -> Result<Vec<File>, Vec<Finding>> {
        let mut findings = Vec::new();
        let mut more = 0;
        let mut add = |name: &str, message: String, help: &str| {
            if findings.len() >= 2 * MAX_LISTED {
                more += 1;
                return;
            }
            let finding = Finding::error("policy-bundle-file", message);
            findings.push(finding.file(self.shown(base, name)).help(help));
        };
        let restore = "restore the complete, unchanged bundle";
        let remove = "remove it, or sign the bundle again";
        match unlisted(dir, manifest) {
            Ok((names, others)) => {
                for name in &names {
                    add(name, format!("the manifest does not list `{name}`"), remove);
                }
                if others > 0 {
                    add("", format!("nor does it list {others} more"), remove);
                }
            }
            Err(error) => add("", format!("the folder cannot be listed: {error}"), restore),
        }
        let mut files = Vec::new();
        let mut room = BYTES;
        for Listed { name, sha256 } in &manifest.files {
            let bytes = match read(dir, name, &mut room) {
                Ok(bytes) => bytes,
                Err(problem) => {
                    add(name, format!("`{name}` is listed and cannot be read: {problem}"), restore);
                    continue;
                }
            };
            if hex::encode(Sha256::digest(&bytes)) != *sha256 {
                add(name, format!("`{name}` is not what was signed"), restore);
                continue;
            }
            match String::from_utf8(bytes) {
                Ok(text) => files.push(File { name: self.shown(base, name), text: text.into() }),
                Err(_) if super::files::belongs(Path::new(name)) => {
                    add(name, format!("`{name}` is not UTF-8 text"), "policies are UTF-8 text");
                }
                // Not a file that is loaded.
                Err(_) => {}
            }
        }
        if more > 0 {
            let finding = Finding::error("policy-bundle-file", format!("{more} more do not hold"));
            findings.push(finding.file(self.shown(base, "")).help(restore));
        }
        if findings.is_empty() { Ok(files) } else { Err(findings) }
    }
}

/// A fault of a bundle.
enum BundleFault {
    One(Box<Finding>),
    Many(Vec<Finding>),
}

impl BundleFault {
    fn into_findings(self) -> Vec<Finding> {
        match self {
            Self::One(finding) => vec![*finding],
            Self::Many(findings) => findings,
        }
    }
}

impl Manifest {
    fn parse(text: &str) -> Result<Self, String> {
        let manifest: Self =
            serde_json::from_str(text).map_err(|error| format!("is not a manifest: {error}"))?;
        if manifest.format != FORMAT {
            return Err(format!("is of the format `{}`, not `{FORMAT}`", manifest.format));
        }
        if manifest.version == 0 {
            return Err("has the version 0; the first is 1".to_owned());
        }
        let mut seen = HashSet::new();
        for Listed { name, .. } in &manifest.files {
            if !is_plain(name) {
                return Err(format!("lists `{name}`, which is not a name of a file in the bundle"));
            }
            if !seen.insert(name) {
                return Err(format!("lists `{name}` twice"));
            }
        }
        Ok(manifest)
    }
}

/// Whether it is the name of a file directly in the folder, other than the manifest.
fn is_plain(name: &str) -> bool {
    let plain = !name.is_empty() && !name.starts_with('.') && !name.contains(['/', '\0']);
    plain && name != MANIFEST
}

/// The names in a folder, except the manifest.
fn names(dir: &Path) -> io::Result<impl Iterator<Item = io::Result<String>>> {
    // A name that is not UTF-8 cannot be in a manifest.
    let names = fs::read_dir(dir)?
        .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
        .filter(|name| !matches!(name, Ok(name) if name == MANIFEST));
    Ok(names)
}

/// Names in a folder that are missing in the manifest, sorted, and the number of further ones.
fn unlisted(dir: &Path, manifest: &Manifest) -> io::Result<(Vec<String>, usize)> {
    let listed: HashSet<_> = manifest.files.iter().map(|file| &file.name).collect();
    let (mut listed_names, mut others) = (Vec::new(), 0);
    for name in names(dir)? {
        let name = name?;
        if listed.contains(&name) {
        } else if listed_names.len() < MAX_LISTED {
            listed_names.push(name);
        } else {
            others += 1;
        }
    }
    listed_names.sort_unstable();
    Ok((listed_names, others))
}

/// Reads a file of the folder: a regular one, not a link, and at most `room` bytes.
fn read(dir: &Path, name: &str, room: &mut u64) -> Result<Vec<u8>, String> {
    let mut options = OpenOptions::new();
    // Neither a link nor a pipe without a writer can block.
    let file = options.read(true).custom_flags(O_NOFOLLOW | O_NONBLOCK).open(dir.join(name));
    let file = file.map_err(|error| match error.raw_os_error() {
        Some(nix::libc::ELOOP) => "it is a link, and a bundle has plain files alone".to_owned(),
        _ => error.to_string(),
    })?;
    let meta = file.metadata().map_err(|error| error.to_string())?;
    if !meta.is_file() {
        return Err("a bundle has plain files alone".to_owned());
    }
    let mut bytes = Vec::new();
    file.take(*room + 1).read_to_end(&mut bytes).map_err(|error| error.to_string())?;
    *room = room.checked_sub(bytes.len() as u64).ok_or("there is too much of it")?;
    Ok(bytes)
}
