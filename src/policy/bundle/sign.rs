//! Signing a folder as a bundle.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use jiff::Timestamp;
use sha2::{Digest as _, Sha256};

use super::{BYTES, FORMAT, Listed, MANIFEST, MANIFEST_BYTES, Manifest, is_plain, names, read};
use portcullis_foundation::{
    atomic_file,
    note_key::{self, Signer},
};

/// Result of signing.
#[derive(Debug)]
pub struct Signed {
    pub name: String,
    pub version: u64,
    pub files: Vec<String>,
    /// Whether the same content was signed before. The signatures are then added to it.
    pub unchanged: bool,
}

/// Why a folder cannot be signed.
#[derive(Debug, thiserror::Error)]
pub enum SignFault {
    #[error("{}: {problem}", path.display())]
    File { path: PathBuf, problem: String },
    #[error(
        "{}: the manifest there is not signed by this key, so the next version is unknown: set it \
         with `--as-version`", .0.display()
    )]
    Unknown(PathBuf),
    #[error(
        "version {version} is signed already, with other content: the next is {}", version + 1
    )]
    Taken { version: u64 },
    #[error("the keys have different names, `{0}` and `{1}`, and a bundle has the name of its key")]
    Names(String, String),
    #[error("there is no key to sign with")]
    NoKey,
    #[error("the manifest would be too large for a signed note")]
    TooLarge,
    #[error("cannot write {}: {source}", path.display())]
    Write { path: PathBuf, source: io::Error },
}

/// Signs all files of a folder, as the given version or the next one.
///
/// # Errors
/// [`SignFault`]. The manifest is then unchanged.
pub fn sign(
    dir: &Path,
    keys: &[Signer],
    version: Option<u64>,
    now: Timestamp,
) -> Result<Signed, SignFault> {
    let Some(first) = keys.first() else { return Err(SignFault::NoKey) };
    let name = first.verifier().name();
    if let Some(other) = keys.iter().map(|key| key.verifier().name()).find(|other| *other != name) {
        return Err(SignFault::Names(name.to_owned(), other.to_owned()));
    }
    let files = list(dir)?;
    let before = before(dir, keys, version.is_some())?;
    let (existing, version) = match before {
        Some((note, text, manifest))
            if manifest.files == files && version.is_none_or(|v| v == manifest.version) =>
        {
            (Some((note, text)), manifest.version)
        }
        Some((.., manifest)) => {
            let version = version.unwrap_or(manifest.version.saturating_add(1));
            if version == manifest.version {
                return Err(SignFault::Taken { version });
            }
            (None, version)
        }
        None => (None, version.unwrap_or(1)),
    };
    let manifest = Manifest {
        format: FORMAT.to_owned(),
        name: name.to_owned(),
        version,
        // Seconds are precise enough for readers with other clocks.
        time: now.round(jiff::Unit::Second).unwrap_or(now),
        files,
    };
    let unchanged = existing.is_some();
    let (note, text) = match existing {
        Some((note, text)) => (Some(note), text),
        None => (None, text(&manifest)?),
    };
    let note = note_key::sign(&text, keys, note.as_deref()).ok();
    let note = note.filter(|note| note.len() as u64 <= MANIFEST_BYTES);
    let note = note.ok_or(SignFault::TooLarge)?;
    // Everybody may read it, so that everybody can verify it.
    atomic_file::write_as(&dir.join(MANIFEST), note.as_bytes(), 0o644)
        .map_err(|source| SignFault::Write { path: dir.join(MANIFEST), source })?;
    let files = manifest.files.into_iter().map(|file| file.name).collect();
    Ok(Signed { name: manifest.name, version, files, unchanged })
}

fn text(manifest: &Manifest) -> Result<String, SignFault> {
    let text = serde_json::to_string_pretty(manifest).map_err(|_| SignFault::TooLarge)?;
    Ok(format!("{text}\n"))
}

/// All files of a folder with their digests, sorted.
fn list(dir: &Path) -> Result<Vec<Listed>, SignFault> {
    let fault = |path: PathBuf, problem: String| SignFault::File { path, problem };
    let mut listed = Vec::new();
    let mut room = BYTES;
    let names = names(dir).and_then(Iterator::collect::<io::Result<Vec<_>>>);
    let mut names = names.map_err(|error| fault(dir.to_owned(), error.to_string()))?;
    names.sort_unstable();
    for name in names {
        let path = dir.join(&name);
        if !is_plain(&name) {
            let problem = "a bundle has no hidden files: move it away".to_owned();
            return Err(fault(path, problem));
        }
        let bytes = read(dir, &name, &mut room).map_err(|problem| fault(path, problem))?;
        listed.push(Listed { name, sha256: hex::encode(Sha256::digest(bytes)) });
    }
    Ok(listed)
}

/// Note and text of the existing manifest, if one of the keys signed it.
fn before(
    dir: &Path,
    keys: &[Signer],
    failed: bool,
) -> Result<Option<(String, String, Manifest)>, SignFault> {
    let path = dir.join(MANIFEST);
    match fs::symlink_metadata(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        _ => {}
    }
    let note = read(dir, MANIFEST, &mut { MANIFEST_BYTES })
        .map_err(|problem| SignFault::File { path: path.clone(), problem })?;
    let note = String::from_utf8(note).unwrap_or_default();
    let text = keys.iter().find_map(|key| key.verifier().open(&note).ok());
    match text.and_then(|text| Manifest::parse(&text).ok().zip(Some(text))) {
        Some((manifest, text)) => Ok(Some((note, text, manifest))),
        // An explicit version needs no predecessor.
        None if failed => Ok(None),
        None => Err(SignFault::Unknown(path)),
    }
}
