//! `portcullis.lock`: what was resolved once, so that it stays the same.
//!
//! It says of each server whence it came and what its image's tag meant, and of each catalog what
//! was in it. Written by commands, read by people and held by `check` and `run`.

use std::{collections::BTreeMap, io::Write as _, path::Path};

use serde::{Deserialize, Serialize};

/// The file beside the config.
pub const FILE: &str = "portcullis.lock";
/// Bytes of it.
const LONGEST: u64 = 8 << 20;

/// The whole file.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Lock {
    pub version: u32,
    /// Servers, by our names.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub servers: BTreeMap<String, Locked>,
    /// Catalogs that were added, by our names.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub catalogs: BTreeMap<String, Kept>,
}

/// Where a server came from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Locked {
    /// The reference that was added.
    pub source: String,
    /// `sha256:` of what stood there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source_digest: Option<String>,
    /// The image as it was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// What that meant.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image_digest: Option<String>,
    /// `sha256:` of its tools' definitions, as `server tools --save` wrote them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tools_digest: Option<String>,
}

/// A catalog of which we have a copy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Kept {
    pub source: String,
    /// `sha256:` of the copy.
    pub digest: String,
    /// The manifest's digest, where it came from a registry.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub manifest: Option<String>,
}

/// A lock file that can't be used.
#[derive(Debug, thiserror::Error)]
pub enum Unlocked {
    #[error("cannot read {path}: {why}")]
    Read { path: String, why: String },
    #[error("cannot write {path}: {why}")]
    Write { path: String, why: String },
    #[error("{path} is of version {version}, which this program does not know")]
    Version { path: String, version: u32 },
    #[error(
        "the image of `{server}` is {config} in the config and {lock} in the lock file: if the change is \
         meant, add it again with `--replace`"
    )]
    Image { server: String, config: String, lock: String },
}

const VERSION: u32 = 1;

impl Lock {
    /// Reads the lock file beside a config. One that is not there is empty.
    ///
    /// # Errors
    /// Where it is there and can't be read.
    pub fn read(folder: &Path) -> Result<Self, Unlocked> {
        let path = folder.join(FILE);
        let shown = || path.display().to_string();
        let text = match std::fs::metadata(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Ok(Self { version: VERSION, ..Self::default() });
            }
            Ok(meta) if meta.len() > LONGEST => {
                return Err(Unlocked::Read { path: shown(), why: "it is too large".into() });
            }
            _ => std::fs::read_to_string(&path)
                .map_err(|error| Unlocked::Read { path: shown(), why: error.to_string() })?,
        };
        let lock: Self = toml::from_str(&text).map_err(|error| Unlocked::Read {
            path: shown(),
            why: error.to_string().trim().to_owned(),
        })?;
        if lock.version != VERSION {
            return Err(Unlocked::Version { path: shown(), version: lock.version });
        }
        Ok(lock)
    }

    /// Writes it, whole or not at all.
    ///
    /// # Errors
    /// Where that fails.
    pub fn write(&self, folder: &Path) -> Result<(), Unlocked> {
        let path = folder.join(FILE);
        let body = toml::to_string(self).map_err(|error| Unlocked::Write {
            path: path.display().to_string(),
            why: error.to_string(),
        })?;
        let text = format!(
            "# Written by `portcullis server` and `portcullis catalog`. Keep it with the config.\n{body}"
        );
        replace(&path, text.as_bytes()).map_err(|error| Unlocked::Write {
            path: path.display().to_string(),
            why: error.to_string(),
        })
    }

    /// Holds an image of the config against what was locked.
    ///
    /// # Errors
    /// Where the lock has another digest for the server.
    pub fn hold(&self, server: &str, image: &str) -> Result<(), Unlocked> {
        let Some(lock) = self.servers.get(server).and_then(|locked| locked.image_digest.as_deref())
        else {
            return Ok(());
        };
        let config = image.rsplit_once('@').map_or(image, |(_, digest)| digest);
        if config == lock {
            return Ok(());
        }
        let (config, lock) = (config.to_owned(), lock.to_owned());
        Err(Unlocked::Image { server: server.to_owned(), config, lock })
    }
}

/// Writes a file in one step, with the rights that it had.
///
/// # Errors
/// Where that fails; then the file is as it was.
pub fn replace(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    // A link is written through, and not replaced.
    let path = std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let folder = path.parent().filter(|folder| *folder != Path::new("")).unwrap_or(Path::new("."));
    let mode = std::fs::metadata(&path).map_or(0o644, |meta| meta.permissions().mode() & 0o777);
    let mut new = tempfile::Builder::new()
        .prefix(".new-")
        .permissions(std::fs::Permissions::from_mode(mode))
        .tempfile_in(folder)?;
    new.write_all(bytes)?;
    new.as_file().set_permissions(std::fs::Permissions::from_mode(mode))?;
    new.as_file().sync_all()?;
    new.persist(&path).map_err(|failed| failed.error)?;
    std::fs::File::open(folder)?.sync_all()
}

/// `sha256:` and the digest of some bytes.
#[must_use]
pub fn digest(bytes: &[u8]) -> String {
    use sha2::{Digest as _, Sha256};
    format!("sha256:{}", hex::encode(Sha256::digest(bytes)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_is_read_as_it_was_written() {
        let folder = tempfile::tempdir().unwrap();
        let mut lock = Lock::read(folder.path()).unwrap();
        assert!(lock.servers.is_empty());
        let locked = Locked {
            source: "docker://a/b:1".into(),
            source_digest: Some(digest(b"x")),
            image: Some("a/b:1".into()),
            image_digest: Some(digest(b"y")),
            tools_digest: None,
        };
        lock.servers.insert("b".into(), locked);
        lock.catalogs
            .insert("c".into(), Kept { source: "x".into(), digest: digest(b"z"), manifest: None });
        lock.write(folder.path()).unwrap();
        assert_eq!(Lock::read(folder.path()).unwrap(), lock);

        lock.hold("b", &format!("a/b:1@{}", digest(b"y"))).unwrap();
        lock.hold("other", "a/b:1").unwrap();
        lock.hold("b", "a/b:1").unwrap_err();
        lock.hold("b", &format!("a/b@{}", digest(b"n"))).unwrap_err();

        for broken in ["version = 2\n", "version = 1\nother = 2\n", "servers = 1", "\u{0}"] {
            std::fs::write(folder.path().join(FILE), broken).unwrap();
            Lock::read(folder.path()).unwrap_err();
        }
    }
}
