//! Encrypted store of secrets: one file in the format of age (the program `age` opens it, too), and
//! the identity that decrypts it, beside it or, better, elsewhere.
//!
//! Invariants:
//!
//! - A file on disk is always complete, even if the machine stops.
//! - A reader sees all of the old or all of the new state while another process writes.
//! - The identity on disk opens the store on disk at any time, also during a change of keys.

use std::{
    collections::BTreeMap,
    env,
    fs::{File, TryLockError},
    io::{self, Read as _},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use age::{
    Decryptor,
    secrecy::ExposeSecret as _,
    x25519::{Identity, Recipient},
};
use serde::{Deserialize, Serialize};
use zeroize::{Zeroize as _, Zeroizing};

use crate::{Secret, error::BackendError, is_secret_name};
use portcullis_foundation::atomic_file;

/// Environment variable with the path of the identity.
const IDENTITY_VARIABLE: &str = "PORTCULLIS_AGE_IDENTITY";
/// Limit of a store in bytes.
const MAX_STORE_BYTES: u64 = 4 << 20;
/// Time limit for waiting for a store that another process changes.
const LOCK_TIMEOUT: Duration = Duration::from_secs(10);
/// Interval between attempts to lock the store.
const LOCK_RETRY_INTERVAL: Duration = Duration::from_millis(20);

/// Encrypted store.
#[derive(Debug, Clone)]
pub struct Store {
    path: PathBuf,
    identity: PathBuf,
}

/// Content of a store.
#[derive(Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Content {
    secrets: BTreeMap<String, String>,
}

impl Drop for Content {
    fn drop(&mut self) {
        self.secrets.values_mut().for_each(String::zeroize);
    }
}

impl Store {
    /// Store in that file. Its identity is the file of `PORTCULLIS_AGE_IDENTITY`, otherwise beside
    /// the store, with `.key` appended to its name.
    pub fn at(path: &Path) -> Self {
        let beside = || {
            let mut name = path.as_os_str().to_owned();
            name.push(".key");
            name.into()
        };
        let named = env::var_os(IDENTITY_VARIABLE).filter(|name| !name.is_empty());
        Self { path: path.to_owned(), identity: named.map_or_else(beside, PathBuf::from) }
    }

    /// This store with another identity file.
    #[must_use]
    pub fn with_identity(self, identity: PathBuf) -> Self {
        Self { identity, ..self }
    }

    /// Path of the identity.
    pub fn identity(&self) -> &Path {
        &self.identity
    }

    /// Value of a secret.
    ///
    /// # Errors
    /// If the secret does not exist, or the store cannot be opened.
    pub fn get(&self, name: &str) -> Result<Zeroizing<String>, BackendError> {
        let _locked = self.lock(false)?;
        let content = self.open(&self.identities()?)?;
        let value = content.secrets.get(name);
        value.cloned().map(Zeroizing::new).ok_or_else(|| {
            BackendError::new(
                "the store does not have this \
            secret",
            )
        })
    }

    /// Names of the store's secrets.
    ///
    /// # Errors
    /// If the store cannot be opened.
    pub fn names(&self) -> Result<Vec<String>, BackendError> {
        let _locked = self.lock(false)?;
        Ok(self.open(&self.identities()?)?.secrets.keys().cloned().collect())
    }

    /// Stores a secret under a name. Returns whether the name is new. The first secret creates the
    /// store, and its identity if there is none.
    ///
    /// # Errors
    /// If the name is not legal, or the store cannot be opened or written.
    pub fn set(&self, name: &str, value: &Secret) -> Result<bool, BackendError> {
        if !is_secret_name(name) {
            return Err(BackendError::new(
                "a secret's name has letters, digits, `.`, `_` and `-`, begins with a letter or a \
                 digit, and has at most 128 characters",
            ));
        }
        let _locked = self.lock(true)?;
        if !self.path.exists() && !self.identity.exists() {
            write(&self.identity, &listed(&[Identity::generate()]))?;
        }
        let identities = self.identities()?;
        let mut content =
            if self.path.exists() { self.open(&identities)? } else { Content::default() };
        let old = content.secrets.insert(name.to_owned(), value.expose().to_owned());
        let is_new = old.map(Zeroizing::new).is_none();
        self.save(&content, &recipient(&identities)?)?;
        Ok(is_new)
    }

    /// Removes a secret. Returns whether it existed.
    ///
    /// # Errors
    /// If the store cannot be opened or written.
    pub fn remove(&self, name: &str) -> Result<bool, BackendError> {
        let _locked = self.lock(true)?;
        let identities = self.identities()?;
        let mut content = self.open(&identities)?;
        let Some(mut old) = content.secrets.remove(name) else { return Ok(false) };
        old.zeroize();
        self.save(&content, &recipient(&identities)?)?;
        Ok(true)
    }

    /// Encrypts the store to a new identity, and drops the old one. Copies of the old identity
    /// still open copies of the old store.
    ///
    /// # Errors
    /// If the store cannot be opened or written.
    pub fn rotate_key(&self) -> Result<(), BackendError> {
        let _locked = self.lock(true)?;
        let old = self.identities()?;
        let content = self.open(&old)?;
        // Both identities are on disk until the store is encrypted to the new one.
        let mut all = vec![Identity::generate()];
        all.extend(old);
        write(&self.identity, &listed(&all))?;
        self.save(&content, &recipient(&all)?)?;
        write(&self.identity, &listed(&all[..1]))
    }

    /// Locks the folder: its files are replaced, and a lock on a file would not survive that.
    fn lock(&self, alone: bool) -> Result<File, BackendError> {
        let folder = folder(&self.path);
        let failed =
            |error: io::Error| BackendError::new(format!("`{}`: {error}", folder.display()));
        let held = File::open(folder).map_err(failed)?;
        let begin = Instant::now();
        loop {
            match if alone { held.try_lock() } else { held.try_lock_shared() } {
                Ok(()) => return Ok(held),
                Err(TryLockError::WouldBlock) if begin.elapsed() < LOCK_TIMEOUT => {
                    thread::sleep(LOCK_RETRY_INTERVAL)
                }
                Err(TryLockError::WouldBlock) => {
                    return Err(BackendError::new("another process uses the store: try again"));
                }
                Err(TryLockError::Error(error)) => return Err(failed(error)),
            }
        }
    }

    fn identities(&self) -> Result<Vec<Identity>, BackendError> {
        let shown = self.identity.display();
        let bad = |why: &str| BackendError::new(format!("the identity `{shown}` {why}"));
        let file = File::open(&self.identity).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => {
                bad("does not exist: put it there, or set `PORTCULLIS_AGE_IDENTITY` to its path")
            }
            _ => bad(&format!("cannot be read: {error}")),
        })?;
        let meta = file.metadata().map_err(|error| bad(&format!("cannot be read: {error}")))?;
        if meta.is_file() && meta.mode() & 0o077 != 0 {
            return Err(bad("is accessible to other users: `chmod 600` it, and run \
                            `portcullis secret rotate-key` if another user may have read it"));
        }
        let text = text(file).map_err(|why| bad(&why))?;
        let lines = text.lines().map(str::trim).filter(|l| !l.is_empty() && !l.starts_with('#'));
        let all: Vec<Identity> = lines
            .map(|line| line.parse().map_err(|_| bad("has a line that is not an age identity")))
            .collect::<Result<_, _>>()?;
        if all.is_empty() { Err(bad("contains no identity")) } else { Ok(all) }
    }

    fn open(&self, identities: &[Identity]) -> Result<Content, BackendError> {
        let bad =
            |why: &str| BackendError::new(format!("the store `{}` {why}", self.path.display()));
        let file = File::open(&self.path).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => bad("does not exist: `portcullis secret set` creates it"),
            _ => bad(&format!("cannot be read: {error}")),
        })?;
        let sealed = io::BufReader::new(file.take(MAX_STORE_BYTES));
        let identities = identities.iter().map(|one| one as &dyn age::Identity);
        let plain = Decryptor::new_buffered(sealed)
            .and_then(|sealed| sealed.decrypt(identities))
            .map_err(|error| match error {
            age::DecryptError::NoMatchingKeys => bad("is encrypted to another identity"),
            _ => bad("is damaged, or not an age file"),
        })?;
        let text = text(plain).map_err(|why| bad(&why))?;
        serde_json::from_str(&text).map_err(|_| bad("does not contain secrets"))
    }

    fn save(&self, content: &Content, to: &Recipient) -> Result<(), BackendError> {
        let failed = |error: &dyn std::fmt::Display| {
            BackendError::new(format!("the store could not be encrypted: {error}"))
        };
        let size: usize =
            content.secrets.iter().map(|(name, value)| name.len() + value.len()).sum();
        let mut plain =
            Zeroizing::new(Vec::with_capacity(6 * size + 64 * content.secrets.len() + 64));
        serde_json::to_writer(&mut *plain, content).map_err(|error| failed(&error))?;
        let sealed = age::encrypt(to, &plain).map_err(|error| failed(&error))?;
        if sealed.len() as u64 > MAX_STORE_BYTES {
            return Err(BackendError::new(format!(
                "a store has at most {} MiB",
                MAX_STORE_BYTES >> 20
            )));
        }
        write(&self.path, &sealed)
    }
}

/// Decrypted text, limited in size.
fn text(from: impl io::Read) -> Result<Zeroizing<String>, String> {
    let mut bytes = Zeroizing::new(Vec::new());
    from.take(MAX_STORE_BYTES)
        .read_to_end(&mut bytes)
        .map_err(|_| "is damaged or truncated".to_owned())?;
    crate::utf8::text(bytes).ok_or_else(|| "is not UTF-8 text".to_owned())
}

fn recipient(identities: &[Identity]) -> Result<Recipient, BackendError> {
    let first = identities.first().ok_or_else(|| BackendError::new("there is no identity"))?;
    Ok(first.to_public())
}

/// Identity file in the format of `age-keygen`.
fn listed(identities: &[Identity]) -> Zeroizing<Vec<u8>> {
    let mut text = Zeroizing::new(Vec::with_capacity(256 * identities.len()));
    for identity in identities {
        text.extend_from_slice(format!("# public key: {}\n", identity.to_public()).as_bytes());
        text.extend_from_slice(identity.to_string().expose_secret().as_bytes());
        text.push(b'\n');
    }
    text
}

fn folder(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Replaces a file by a complete, synced one that only its owner can access.
fn write(path: &Path, bytes: &[u8]) -> Result<(), BackendError> {
    atomic_file::write(path, bytes)
        .map_err(|error| BackendError::new(format!("cannot write `{}`: {error}", path.display())))
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt as _};

    use super::*;

    fn store() -> (tempfile::TempDir, Store) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s.age");
        let identity = dir.path().join("s.age.key");
        (dir, Store::at(&path).with_identity(identity))
    }

    fn value(text: &str) -> Secret {
        Secret::new(["hunter", text].concat())
    }

    #[test]
    fn stored_secrets_are_found_and_unreadable_on_disk() {
        let (dir, store) = store();
        assert!(store.names().is_err());
        assert!(store.set("TOKEN", &value("2")).unwrap());
        assert!(store.set("other.key", &value("3\nmore")).unwrap());
        assert!(!store.set("TOKEN", &value("4")).unwrap());
        assert_eq!(store.get("TOKEN").unwrap().as_str(), value("4").expose());
        assert_eq!(store.names().unwrap(), ["TOKEN", "other.key"]);
        for entry in fs::read_dir(dir.path()).unwrap() {
            let entry = entry.unwrap();
            assert_eq!(entry.metadata().unwrap().mode() & 0o777, 0o600);
            let bytes = fs::read(entry.path()).unwrap();
            let text = String::from_utf8_lossy(&bytes);
            assert!(!text.contains("hunter") && !text.contains("TOKEN"), "{:?}", entry.path());
        }
        assert!(store.remove("TOKEN").unwrap());
        assert!(!store.remove("TOKEN").unwrap());
        assert!(store.get("TOKEN").unwrap_err().to_string().contains("does not have this secret"));
        for name in ["", "-x", "a b", "a/b", &"x".repeat(129)] {
            assert!(store.set(name, &value("5")).is_err(), "{name}");
        }
    }

    #[test]
    fn program_age_opens_a_store() {
        let (_dir, store) = store();
        store.set("A", &value("2")).unwrap();
        let opened = std::process::Command::new("age")
            .arg("--decrypt")
            .arg("-i")
            .arg(&store.identity)
            .arg(&store.path)
            .output()
            .expect("Debian's package `age`");
        let text = String::from_utf8(opened.stdout).unwrap();
        assert_eq!(text, format!("{{\"secrets\":{{\"A\":\"{}\"}}}}", value("2").expose()));
    }

    #[test]
    fn only_the_new_key_opens_the_store_after_a_rotation() {
        let (dir, store) = store();
        store.set("A", &value("2")).unwrap();
        let old = dir.path().join("old");
        fs::copy(&store.identity, &old).unwrap();
        store.rotate_key().unwrap();
        assert_eq!(store.get("A").unwrap().as_str(), value("2").expose());
        assert_eq!(store.identities().unwrap().len(), 1);
        let error = store.clone().with_identity(old.clone()).get("A").unwrap_err().to_string();
        assert!(error.contains("another identity"), "{error}");
        // Interrupted before or after the store was encrypted to the new identity, it opens.
        let new = fs::read_to_string(&store.identity).unwrap();
        let both = format!("{new}{}", fs::read_to_string(&old).unwrap());
        fs::write(&store.identity, &both).unwrap();
        assert_eq!(store.get("A").unwrap().as_str(), value("2").expose());
        store.rotate_key().unwrap();
        assert_eq!(store.identities().unwrap().len(), 1);
    }

    #[test]
    fn identity_readable_by_others_is_refused_and_never_replaced() {
        let (_dir, store) = store();
        store.set("A", &value("2")).unwrap();
        fs::set_permissions(&store.identity, fs::Permissions::from_mode(0o640)).unwrap();
        assert!(store.get("A").unwrap_err().to_string().contains("other users"));
        fs::remove_file(&store.identity).unwrap();
        for outcome in [store.set("B", &value("3")).map(drop), store.rotate_key()] {
            assert!(outcome.unwrap_err().to_string().contains("does not exist"));
        }
        assert!(!store.identity.exists());
    }

    #[test]
    fn damaged_store_is_reported_and_left_unchanged() {
        let (_dir, store) = store();
        store.set("A", &value("2")).unwrap();
        let whole = fs::read(&store.path).unwrap();
        for at in [0, 40, whole.len() - 1] {
            let mut bytes = whole.clone();
            bytes[at] ^= 1;
            fs::write(&store.path, &bytes).unwrap();
            assert!(store.get("A").is_err(), "{at}");
            assert!(store.set("B", &value("3")).is_err(), "{at}");
            assert_eq!(fs::read(&store.path).unwrap(), bytes, "{at}");
        }
        fs::write(&store.path, &whole[..whole.len() - 10]).unwrap();
        assert!(store.get("A").is_err());
    }

    #[test]
    fn concurrent_writers_lose_nothing() {
        let (_dir, store) = store();
        store.set("first", &value("2")).unwrap();
        thread::scope(|scope| {
            for n in 0..8 {
                let store = &store;
                scope.spawn(move || store.set(&format!("n{n}"), &value("3")).unwrap());
                scope.spawn(move || store.rotate_key().unwrap());
                scope.spawn(move || store.get("first").unwrap());
            }
        });
        assert_eq!(store.names().unwrap().len(), 9);
    }
}
