//! `store.json`: id and format of the store, and ids of the keys that its records need.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{Cipher, KeyId};
use portcullis_foundation::atomic_file;

/// Name of the file in the store's folder.
pub(crate) const FILE: &str = "store.json";
/// Format that this version writes, and the only one that it reads. Since format 2, checkpoints
/// include the fingerprints of the files beside the records.
pub(crate) const FORMAT: u32 = 2;
/// Maximum size of the file.
const LARGEST: u64 = 1 << 20;

/// Manifest of a store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Manifest {
    /// Version of the file format.
    pub format: u32,
    /// Permanent id of the store: 32 random hex digits.
    pub id: String,
    /// Time at which the store was created.
    pub created: Timestamp,
    /// Keys that records were encrypted with, in the order of their use.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub keys: Vec<KeyUse>,
}

/// Use of a key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct KeyUse {
    /// Id of the key.
    pub id: KeyId,
    /// `seq` of the first record written with it. Earlier records need other keys or none.
    pub since: u64,
}

/// Reasons why a store is not opened.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ManifestFault {
    #[error("`{}`: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("`{}` is damaged ({why}): restore it from a backup", path.display())]
    Damaged { path: PathBuf, why: String },
    #[error(
        "`{}` is missing beside `segments`: restore it from a backup, or, where the folder is of \
         an early version of portcullis, move the folder away", .0.display()
    )]
    Missing(PathBuf),
    #[error(
        "the store is of format {found}, and this version of portcullis reads format {FORMAT}: \
         use the version that wrote it, also to export or verify it, or move the folder away and \
         keep it: a new log begins (`{}` was not changed)", path.display()
    )]
    OtherFormat { path: PathBuf, found: u64 },
    #[error(
        "records are encrypted with the key {0}: give it as `audit.encryption.key`, or, where a \
         newer one is in use, among `audit.encryption.old-keys`"
    )]
    NeedsKey(KeyId),
    #[error("the operating system gives no random bytes: {0}")]
    Random(getrandom::Error),
}

/// Members of every format.
#[derive(Deserialize)]
struct Versioned {
    format: u64,
}

impl Manifest {
    /// Reads the manifest of the store in `dir`. `None` if there is none.
    pub(crate) fn read(dir: &Path) -> Result<Option<Self>, ManifestFault> {
        let path = dir.join(FILE);
        let io = |source| ManifestFault::Io { path: path.clone(), source };
        let size = match fs::metadata(&path) {
            Ok(meta) => meta.len(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(io(error)),
        };
        let damaged = |why: String| ManifestFault::Damaged { path: path.clone(), why };
        if size > LARGEST {
            return Err(damaged(format!("{size} bytes")));
        }
        let text = fs::read(&path).map_err(io)?;
        // The version first: other members of a newer format are unknown.
        let Versioned { format } =
            serde_json::from_slice(&text).map_err(|error| damaged(error.to_string()))?;
        if format != u64::from(FORMAT) {
            return Err(ManifestFault::OtherFormat { path, found: format });
        }
        let manifest: Self =
            serde_json::from_slice(&text).map_err(|error| damaged(error.to_string()))?;
        let legal = manifest.id.len() == 32 && manifest.id.bytes().all(|b| b.is_ascii_hexdigit());
        if !legal {
            return Err(damaged("the id is not 32 hexadecimal digits".into()));
        }
        Ok(Some(manifest))
    }

    /// Reads the manifest, or creates it for a new store.
    pub(crate) fn open(dir: &Path) -> Result<Self, ManifestFault> {
        if let Some(manifest) = Self::read(dir)? {
            return Ok(manifest);
        }
        // A new id would turn the existing records into another store.
        if dir.join("segments").exists() {
            return Err(ManifestFault::Missing(dir.join(FILE)));
        }
        let mut id = [0; 16];
        getrandom::fill(&mut id).map_err(ManifestFault::Random)?;
        let manifest = Self {
            format: FORMAT,
            id: hex::encode(id),
            created: Timestamp::now(),
            keys: Vec::new(),
        };
        manifest.write(dir)?;
        Ok(manifest)
    }

    /// Whether these keys are enough to read the records from `first` on.
    pub(crate) fn admit(&self, cipher: Option<&Cipher>, first: u64) -> Result<(), ManifestFault> {
        let next = self.keys.iter().skip(1).map(|key| Some(key.since)).chain([None]);
        for (KeyUse { id, .. }, until) in self.keys.iter().zip(next) {
            // A key is not needed if all its records were dropped.
            let needed = until.is_none_or(|until| until > first);
            if needed && !cipher.is_some_and(|cipher| cipher.has(*id)) {
                return Err(ManifestFault::NeedsKey(*id));
            }
        }
        Ok(())
    }

    /// Saves that records from `since` on are encrypted with this key. Durable when it returns, so
    /// that every encrypted record has a listed key. Returns the key if it is new.
    pub(crate) fn uses(
        &mut self,
        dir: &Path,
        id: KeyId,
        since: u64,
    ) -> Result<Option<KeyId>, ManifestFault> {
        if self.keys.last().is_some_and(|last| last.id == id) {
            return Ok(None);
        }
        let mut next = self.clone();
        next.keys.push(KeyUse { id, since });
        next.write(dir)?;
        *self = next;
        Ok(Some(id))
    }

    fn write(&self, dir: &Path) -> Result<(), ManifestFault> {
        let text = serde_json::to_vec_pretty(self)
            .map_err(|error| self.damaged(dir, error.to_string()))?;
        atomic_file::write(&dir.join(FILE), &[&text, &b"\n"[..]].concat())
            .map_err(|source| ManifestFault::Io { path: dir.join(FILE), source })
    }

    fn damaged(&self, dir: &Path, why: String) -> ManifestFault {
        ManifestFault::Damaged { path: dir.join(FILE), why }
    }
}

/// Whether the manifest of the store in `dir` lists encryption keys.
pub fn is_encrypted(dir: &Path) -> bool {
    Manifest::read(dir).is_ok_and(|found| found.is_some_and(|manifest| !manifest.keys.is_empty()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;
    use crate::maintenance::Key;
    use portcullis_vault::Secret;

    fn cipher(store: &str, current: u8, old: &[u8]) -> Cipher {
        let key = |byte: &u8| Key::parse(&Secret::new(hex::encode([*byte; 32]))).unwrap();
        let old: Vec<Key> = old.iter().map(key).collect();
        Cipher::new(store, &key(&current), &old).unwrap()
    }

    #[test]
    fn manifest_is_created_once_and_private() {
        let dir = tempfile::tempdir().unwrap();
        let created = Manifest::open(dir.path()).unwrap();
        assert_eq!(Manifest::open(dir.path()).unwrap(), created);
        let mode = fs::metadata(dir.path().join(FILE)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let names: Vec<_> =
            fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(names, [FILE]);
        let other = tempfile::tempdir().unwrap();
        assert_ne!(Manifest::open(other.path()).unwrap().id, created.id);
    }

    #[test]
    fn other_format_is_refused_unchanged() {
        for format in [1, 3] {
            let dir = tempfile::tempdir().unwrap();
            let text = format!(r#"{{"format":{format},"identity":{{"of":"another kind"}}}}"#);
            fs::write(dir.path().join(FILE), &text).unwrap();
            let fault = Manifest::open(dir.path()).unwrap_err();
            assert!(matches!(fault, ManifestFault::OtherFormat { found, .. } if found == format));
            assert!(fault.to_string().contains("use the version that wrote it"), "{fault}");
            assert_eq!(fs::read_to_string(dir.path().join(FILE)).unwrap(), text);
        }
    }

    #[test]
    fn damaged_or_missing_manifest_is_reported() {
        let dir = tempfile::tempdir().unwrap();
        let id = "0".repeat(32);
        for text in [
            "".into(),
            "{".into(),
            format!(r#"{{"format":-1,"id":"{id}","created":"2026-11-21T08:00:00Z"}}"#),
            r#"{"format":2,"id":"x","created":"2026-11-21T08:00:00Z"}"#.into(),
            format!(r#"{{"format":2,"id":"{id}","created":"2026-11-21T08:00:00Z","more":1}}"#),
            " ".repeat(2 << 20),
        ] {
            fs::write(dir.path().join(FILE), &text).unwrap();
            let fault = Manifest::open(dir.path()).unwrap_err();
            assert!(matches!(fault, ManifestFault::Damaged { .. }), "{fault}");
        }
        fs::remove_file(dir.path().join(FILE)).unwrap();
        fs::create_dir(dir.path().join("segments")).unwrap();
        assert!(matches!(Manifest::open(dir.path()).unwrap_err(), ManifestFault::Missing(_)));
    }

    #[test]
    fn wrong_key_is_reported_on_open() {
        let dir = tempfile::tempdir().unwrap();
        let mut manifest = Manifest::open(dir.path()).unwrap();
        manifest.admit(None, 0).unwrap();
        let (first, second) = (cipher(&manifest.id, 1, &[]), cipher(&manifest.id, 2, &[]));
        let both = cipher(&manifest.id, 2, &[1]);
        // The first ten records were written without a key.
        manifest.uses(dir.path(), first.id(), 10).unwrap();
        assert_eq!(manifest.uses(dir.path(), first.id(), 20).unwrap(), None);
        manifest.uses(dir.path(), second.id(), 30).unwrap();
        let manifest = Manifest::open(dir.path()).unwrap();
        assert_eq!(manifest.keys.iter().map(|key| key.since).collect::<Vec<_>>(), [10, 30]);

        for (cipher, first, missing) in [
            (Some(&both), 0, None),
            (Some(&first), 0, Some(second.id())),
            (Some(&second), 0, Some(first.id())),
            (Some(&second), 29, Some(first.id())),
            (Some(&second), 30, None),
            (None, 30, Some(second.id())),
        ] {
            let found = match manifest.admit(cipher, first) {
                Err(ManifestFault::NeedsKey(id)) => Some(id),
                other => other.map(|()| None).unwrap(),
            };
            assert_eq!(found, missing);
        }
    }
}
