//! An encrypted store of secrets: one file in the format of age (which the program `age` opens,
//! too), and beside it, or better elsewhere, the identity that decrypts it.
//!
//! Invariants: what is in place is whole, whenever the machine stops; who reads while another
//! writes sees all of the old or all of the new; the identity on disk opens the store on disk at
//! any time, in the middle of a change of keys too.

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

use crate::{Secret, error::Why, is_secret_name};
use portcullis_foundation::atomic_file;

/// The variable of the environment that says where the identity is.
const IDENTITY: &str = "PORTCULLIS_AGE_IDENTITY";
/// Bytes that a store may have.
const MAX_STORE: u64 = 4 << 20;
/// How long a store is waited for that another process changes.
const LOCK: Duration = Duration::from_secs(10);
/// How often it is looked for meanwhile.
const LOOK: Duration = Duration::from_millis(20);

/// An encrypted store.
#[derive(Debug, Clone)]
pub struct Store {
    path: PathBuf,
    identity: PathBuf,
}

/// What is in it.
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
    /// The store in that file. Its identity is in the file that `PORTCULLIS_AGE_IDENTITY` names,
    /// else beside it, with `.key` behind its name.
    pub fn at(path: &Path) -> Self {
        let beside = || {
            let mut name = path.as_os_str().to_owned();
            name.push(".key");
            name.into()
        };
        let named = env::var_os(IDENTITY).filter(|name| !name.is_empty());
        Self { path: path.to_owned(), identity: named.map_or_else(beside, PathBuf::from) }
    }

    /// The same store with its identity elsewhere.
    #[must_use]
    pub fn with_identity(self, identity: PathBuf) -> Self {
        Self { identity, ..self }
    }

    /// Where its identity is.
    pub fn identity(&self) -> &Path {
        &self.identity
    }

    /// The value of a secret.
    ///
    /// # Errors
    /// Where there is none, or the store can't be opened.
    pub fn get(&self, name: &str) -> Result<Zeroizing<String>, Why> {
        let _locked = self.lock(false)?;
        let content = self.open(&self.identities()?)?;
        let value = content.secrets.get(name);
        value.cloned().map(Zeroizing::new).ok_or_else(|| Why::new("the store has no such secret"))
    }

    /// The names of its secrets.
    ///
    /// # Errors
    /// Where the store can't be opened.
    pub fn names(&self) -> Result<Vec<String>, Why> {
        let _locked = self.lock(false)?;
        Ok(self.open(&self.identities()?)?.secrets.keys().cloned().collect())
    }

    /// Keeps a secret under a name, and tells whether there was none before. The first makes the
    /// store, and its identity where there is none.
    ///
    /// # Errors
    /// Where the name is not legal, or the store can't be opened or written.
    pub fn set(&self, name: &str, value: &Secret) -> Result<bool, Why> {
        if !is_secret_name(name) {
            return Err(Why::new(
                "a secret's name has letters, digits, `.`, `_` and `-`, begins with a letter or a \
                 digit, and has 128 characters at most",
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

    /// Takes a secret out, and tells whether there was one.
    ///
    /// # Errors
    /// Where the store can't be opened or written.
    pub fn remove(&self, name: &str) -> Result<bool, Why> {
        let _locked = self.lock(true)?;
        let identities = self.identities()?;
        let mut content = self.open(&identities)?;
        let Some(mut old) = content.secrets.remove(name) else { return Ok(false) };
        old.zeroize();
        self.save(&content, &recipient(&identities)?)?;
        Ok(true)
    }

    /// Encrypts all of it to a new identity, and forgets the old one. Copies of the old store are
    /// still opened by copies of the old identity.
    ///
    /// # Errors
    /// Where the store can't be opened or written.
    pub fn rotate_key(&self) -> Result<(), Why> {
        let _locked = self.lock(true)?;
        let old = self.identities()?;
        let content = self.open(&old)?;
        // Both are known until the store is encrypted to the new one.
        let mut all = vec![Identity::generate()];
        all.extend(old);
        write(&self.identity, &listed(&all))?;
        self.save(&content, &recipient(&all)?)?;
        write(&self.identity, &listed(&all[..1]))
    }

    /// Holds the folder: its files are replaced, which no lock on a file survives.
    fn lock(&self, alone: bool) -> Result<File, Why> {
        let folder = folder(&self.path);
        let failed = |error: io::Error| Why::new(format!("`{}`: {error}", folder.display()));
        let held = File::open(folder).map_err(failed)?;
        let begin = Instant::now();
        loop {
            match if alone { held.try_lock() } else { held.try_lock_shared() } {
                Ok(()) => return Ok(held),
                Err(TryLockError::WouldBlock) if begin.elapsed() < LOCK => thread::sleep(LOOK),
                Err(TryLockError::WouldBlock) => {
                    return Err(Why::new("another process holds the store: try again"));
                }
                Err(TryLockError::Error(error)) => return Err(failed(error)),
            }
        }
    }

    fn identities(&self) -> Result<Vec<Identity>, Why> {
        let shown = self.identity.display();
        let bad = |why: &str| Why::new(format!("the identity `{shown}` {why}"));
        let file = File::open(&self.identity).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => {
                bad("is not there: put it there, or name its place in `PORTCULLIS_AGE_IDENTITY`")
            }
            _ => bad(&format!("cannot be read: {error}")),
        })?;
        let meta = file.metadata().map_err(|error| bad(&format!("cannot be read: {error}")))?;
        if meta.is_file() && meta.mode() & 0o077 != 0 {
            return Err(bad("can be read or written by others: `chmod 600` it, and \
                            `portcullis secret rotate-key` if somebody may have read it"));
        }
        let text = text(file).map_err(|why| bad(&why))?;
        let lines = text.lines().map(str::trim).filter(|l| !l.is_empty() && !l.starts_with('#'));
        let all: Vec<Identity> = lines
            .map(|line| line.parse().map_err(|_| bad("has a line that is not an age identity")))
            .collect::<Result<_, _>>()?;
        if all.is_empty() { Err(bad("holds no identity")) } else { Ok(all) }
    }

    fn open(&self, identities: &[Identity]) -> Result<Content, Why> {
        let bad = |why: &str| Why::new(format!("the store `{}` {why}", self.path.display()));
        let file = File::open(&self.path).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => bad("is not there: `portcullis secret set` makes it"),
            _ => bad(&format!("cannot be read: {error}")),
        })?;
        let sealed = io::BufReader::new(file.take(MAX_STORE));
        let identities = identities.iter().map(|one| one as &dyn age::Identity);
        let plain = Decryptor::new_buffered(sealed)
            .and_then(|sealed| sealed.decrypt(identities))
            .map_err(|error| match error {
            age::DecryptError::NoMatchingKeys => bad("is encrypted to another identity"),
            _ => bad("is damaged, or no file of age"),
        })?;
        let text = text(plain).map_err(|why| bad(&why))?;
        serde_json::from_str(&text).map_err(|_| bad("holds something else than secrets"))
    }

    fn save(&self, content: &Content, to: &Recipient) -> Result<(), Why> {
        let failed = |error: &dyn std::fmt::Display| {
            Why::new(format!("the store could not be encrypted: {error}"))
        };
        let size: usize =
            content.secrets.iter().map(|(name, value)| name.len() + value.len()).sum();
        let mut plain =
            Zeroizing::new(Vec::with_capacity(6 * size + 64 * content.secrets.len() + 64));
        serde_json::to_writer(&mut *plain, content).map_err(|error| failed(&error))?;
        let sealed = age::encrypt(to, &plain).map_err(|error| failed(&error))?;
        if sealed.len() as u64 > MAX_STORE {
            return Err(Why::new(format!("a store has {} MiB at most", MAX_STORE >> 20)));
        }
        write(&self.path, &sealed)
    }
}

/// All of it as text. What is read has a limit of its own.
fn text(from: impl io::Read) -> Result<Zeroizing<String>, String> {
    let mut bytes = Zeroizing::new(Vec::new());
    from.take(MAX_STORE)
        .read_to_end(&mut bytes)
        .map_err(|_| "is damaged, or cut off".to_owned())?;
    crate::resolve::text(bytes).ok_or_else(|| "is not UTF-8 text".to_owned())
}

fn recipient(identities: &[Identity]) -> Result<Recipient, Why> {
    let first = identities.first().ok_or_else(|| Why::new("there is no identity"))?;
    Ok(first.to_public())
}

/// The file of identities, as `age-keygen` writes it.
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

/// Puts a whole, synced file in place, its owner's alone.
fn write(path: &Path, bytes: &[u8]) -> Result<(), Why> {
    atomic_file::write(path, bytes)
        .map_err(|error| Why::new(format!("cannot write `{}`: {error}", path.display())))
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
    fn what_is_kept_is_found_and_nothing_of_it_is_readable() {
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
        assert!(store.get("TOKEN").unwrap_err().to_string().contains("no such secret"));
        for name in ["", "-x", "a b", "a/b", &"x".repeat(129)] {
            assert!(store.set(name, &value("5")).is_err(), "{name}");
        }
    }

    #[test]
    fn the_program_age_opens_it() {
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
    fn a_new_key_opens_what_the_old_one_does_not() {
        let (dir, store) = store();
        store.set("A", &value("2")).unwrap();
        let old = dir.path().join("old");
        fs::copy(&store.identity, &old).unwrap();
        store.rotate_key().unwrap();
        assert_eq!(store.get("A").unwrap().as_str(), value("2").expose());
        assert_eq!(store.identities().unwrap().len(), 1);
        let error = store.clone().with_identity(old.clone()).get("A").unwrap_err().to_string();
        assert!(error.contains("another identity"), "{error}");
        // Interrupted before and after the store was encrypted anew: it opens.
        let new = fs::read_to_string(&store.identity).unwrap();
        let both = format!("{new}{}", fs::read_to_string(&old).unwrap());
        fs::write(&store.identity, &both).unwrap();
        assert_eq!(store.get("A").unwrap().as_str(), value("2").expose());
        store.rotate_key().unwrap();
        assert_eq!(store.identities().unwrap().len(), 1);
    }

    #[test]
    fn an_identity_that_others_may_read_is_refused_and_never_replaced() {
        let (_dir, store) = store();
        store.set("A", &value("2")).unwrap();
        fs::set_permissions(&store.identity, fs::Permissions::from_mode(0o640)).unwrap();
        assert!(store.get("A").unwrap_err().to_string().contains("by others"));
        fs::remove_file(&store.identity).unwrap();
        for outcome in [store.set("B", &value("3")).map(drop), store.rotate_key()] {
            assert!(outcome.unwrap_err().to_string().contains("is not there"));
        }
        assert!(!store.identity.exists());
    }

    #[test]
    fn a_damaged_store_says_so_and_stays_as_it_is() {
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
    fn writers_at_once_lose_nothing() {
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
