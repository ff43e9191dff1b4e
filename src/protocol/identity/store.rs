//! `clients.toml` in the state folder: the clients of `portcullis client add`.
//!
//! INVARIANT: readers see the file before or after a change, never in between; concurrent writers
//! wait for each other.

use std::{
    collections::BTreeMap,
    fs::{DirBuilder, File, OpenOptions},
    io::{self, Read},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{Key, KeyHash, NoRandomness};
use crate::names::{ClientName, Group};
use portcullis_foundation::atomic_file;

/// Limit of the file in bytes: room for about ten thousand clients.
const MAX_BYTES: u64 = 4 << 20;

const HEADER: &str = "# Written by `portcullis client`. Keys are stored as hashes.\n";

/// One client.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Stored {
    pub key_hash: KeyHash,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub groups: Vec<Group>,
    /// Time at which the client was added.
    pub added: Timestamp,
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Content {
    #[serde(default)]
    clients: BTreeMap<ClientName, Stored>,
}

/// The file and its folder.
#[derive(Debug, Clone)]
pub struct Store {
    dir: PathBuf,
    path: PathBuf,
}

/// Failure to read or write the file of clients.
#[derive(Debug, thiserror::Error)]
pub enum StoreFault {
    #[error("`{}`: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("`{}` is writable by other users, who could add keys: `chmod 600` it", .0.display())]
    Writable(PathBuf),
    #[error("`{}` is larger than {} MiB", .0.display(), MAX_BYTES >> 20)]
    TooLarge(PathBuf),
    #[error("`{}`, line {line}: {message}", path.display())]
    Broken { path: PathBuf, line: usize, message: String },
    #[error("client `{0}` already exists: for a new key, run `portcullis client rm {0}` first")]
    Exists(ClientName),
    #[error("client `{0}` does not exist: `portcullis client ls` lists the clients")]
    Missing(ClientName),
    #[error("`{}` cannot be watched for changes: {source}", path.display())]
    Watch { path: PathBuf, source: notify::Error },
    #[error(transparent)]
    Random(#[from] NoRandomness),
}

impl Store {
    /// Store in a state folder. Accesses no file yet.
    pub fn in_state_dir(state_dir: &Path) -> Self {
        Self { dir: state_dir.to_owned(), path: state_dir.join("clients.toml") }
    }

    /// Path of the file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Creates the folder, for its owner only, if it does not exist.
    ///
    /// # Errors
    /// If it cannot be created.
    pub fn prepare(&self) -> Result<(), StoreFault> {
        let created = DirBuilder::new().recursive(true).mode(0o700).create(&self.dir);
        created.map_err(|source| StoreFault::Io { path: self.dir.clone(), source })
    }

    /// All clients. Empty if the file does not exist.
    ///
    /// # Errors
    /// If the file is invalid, or users other than its owner could have written it.
    pub fn read(&self) -> Result<BTreeMap<ClientName, Stored>, StoreFault> {
        let mut text = String::new();
        let file = match File::open(&self.path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BTreeMap::new()),
            Err(error) => return Err(self.io(error)),
        };
        let meta = file.metadata().map_err(|error| self.io(error))?;
        if meta.mode() & 0o022 != 0 {
            return Err(StoreFault::Writable(self.path.clone()));
        }
        file.take(MAX_BYTES + 1).read_to_string(&mut text).map_err(|error| self.io(error))?;
        if text.len() as u64 > MAX_BYTES {
            return Err(StoreFault::TooLarge(self.path.clone()));
        }
        let content: Content = toml::from_str(&text).map_err(|error| {
            let start = error.span().map_or(0, |span| span.start);
            let before = text.get(..start).unwrap_or_default();
            StoreFault::Broken {
                path: self.path.clone(),
                line: before.bytes().filter(|&b| b == b'\n').count() + 1,
                message: error.message().to_owned(),
            }
        })?;
        Ok(content.clients)
    }

    /// Adds a client with a new key, and returns the key, which is not stored.
    ///
    /// # Errors
    /// As [`Store::add_with`], and if there are no random bytes.
    pub fn add(&self, name: &ClientName, groups: Vec<Group>) -> Result<Key, StoreFault> {
        let key = Key::generate()?;
        self.add_with(name, &key, groups)?;
        Ok(key)
    }

    /// Adds a client with this key.
    ///
    /// # Errors
    /// If the name exists, or the file cannot be read or written.
    pub fn add_with(
        &self,
        name: &ClientName,
        key: &Key,
        groups: Vec<Group>,
    ) -> Result<(), StoreFault> {
        self.change(|clients| {
            if clients.contains_key(name) {
                return Err(StoreFault::Exists(name.clone()));
            }
            let added = Timestamp::from_second(Timestamp::now().as_second()).unwrap_or_default();
            clients.insert(name.clone(), Stored { key_hash: key.hash(), groups, added });
            Ok(())
        })
    }

    /// Removes a client and returns it.
    ///
    /// # Errors
    /// If the name does not exist, or the file cannot be read or written.
    pub fn remove(&self, name: &ClientName) -> Result<Stored, StoreFault> {
        self.change(|clients| clients.remove(name).ok_or_else(|| StoreFault::Missing(name.clone())))
    }

    fn change<T>(
        &self,
        change: impl FnOnce(&mut BTreeMap<ClientName, Stored>) -> Result<T, StoreFault>,
    ) -> Result<T, StoreFault> {
        self.prepare()?;
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(self.dir.join("clients.lock"))
            .and_then(|lock| lock.lock().map(|()| lock))
            .map_err(|error| self.io(error))?;
        let mut clients = self.read()?;
        let outcome = change(&mut clients)?;
        self.write(Content { clients }).map_err(|error| self.io(error))?;
        drop(lock);
        Ok(outcome)
    }

    fn write(&self, content: Content) -> io::Result<()> {
        let text = toml::to_string(&content).map_err(io::Error::other)?;
        atomic_file::write(&self.path, [HEADER, &text].concat().as_bytes())
    }

    fn io(&self, source: io::Error) -> StoreFault {
        StoreFault::Io { path: self.path.clone(), source }
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt as _};

    use super::*;

    fn name(name: &str) -> ClientName {
        name.parse().unwrap()
    }

    #[test]
    fn clients_are_added_and_removed() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::in_state_dir(&dir.path().join("state"));
        assert!(store.read().unwrap().is_empty());
        let key = store.add(&name("a"), vec!["ops".parse().unwrap()]).unwrap();
        store.add(&name("b"), vec![]).unwrap();
        assert!(matches!(store.add(&name("a"), vec![]), Err(StoreFault::Exists(_))));
        let clients = store.read().unwrap();
        assert_eq!(clients[&name("a")].key_hash, key.hash());
        let text = fs::read_to_string(store.path()).unwrap();
        assert!(!text.contains(key.expose()));
        let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o777;
        assert_eq!(mode(store.path()), 0o600);
        assert_eq!(mode(&dir.path().join("state")), 0o700);
        store.remove(&name("a")).unwrap();
        assert!(matches!(store.remove(&name("a")), Err(StoreFault::Missing(_))));
        assert_eq!(store.read().unwrap().into_keys().collect::<Vec<_>>(), [name("b")]);
    }

    #[test]
    fn concurrent_writers_lose_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::in_state_dir(dir.path());
        std::thread::scope(|scope| {
            for thread in 0..8 {
                let store = &store;
                scope.spawn(move || {
                    for at in 0..5 {
                        store.add(&name(&format!("c{thread}-{at}")), vec![]).unwrap();
                    }
                });
            }
        });
        assert_eq!(store.read().unwrap().len(), 40);
    }

    #[test]
    fn untrustworthy_file_is_not_read() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::in_state_dir(dir.path());
        store.add(&name("a"), vec![]).unwrap();
        fs::set_permissions(store.path(), fs::Permissions::from_mode(0o660)).unwrap();
        assert!(matches!(store.read(), Err(StoreFault::Writable(_))));
        fs::set_permissions(store.path(), fs::Permissions::from_mode(0o600)).unwrap();
        for (text, line) in [
            ("x = 1\n", 1),
            ("[clients.a]\nkey-hash = 'x'\nadded = '2026-01-01T00:00:00Z'\n", 2),
            ("[clients\n", 1),
            ("[clients.'A b']\n", 1),
        ] {
            fs::write(store.path(), text).unwrap();
            let Err(StoreFault::Broken { line: found, .. }) = store.read() else {
                panic!("{text}")
            };
            assert_eq!(found, line, "{text}");
            // Nor is it overwritten, so that it can be repaired.
            assert!(store.add(&name("b"), vec![]).is_err());
            assert_eq!(fs::read_to_string(store.path()).unwrap(), text);
        }
    }
}
