//! Compiled plugins, stored between starts.
//!
//! An entry is native code that will run with the proxy's rights, so only entries that this proxy
//! wrote are used. Each is sealed with a key of the state folder, over its content, the digest of
//! its component, and all settings of the engine that it depends on. An entry with an invalid seal
//! is deleted, and the component compiled again.

use portcullis_foundation::atomic_file;
use std::{
    fs::{self, DirBuilder, File},
    hash::{Hash, Hasher},
    io::{self, Read as _},
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
    time::SystemTime,
};

use hkdf::Hkdf;
use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::{Digest as _, Sha256};
use wasmtime::{Engine, component::Component};
use zeroize::Zeroizing;

use portcullis_foundation::key_file;

/// Limit of all entries together in bytes.
const MAX_TOTAL_BYTES: u64 = 1 << 30;
/// Limit of one entry in bytes.
const MAX_ENTRY_BYTES: u64 = 512 << 20;
/// Length in bytes of an entry's seal, at its beginning.
const SEAL_BYTES: usize = 32;
/// Purpose for which the key is derived.
const PURPOSE: &[u8] = b"portcullis plugin cache v1";
/// Extension of the files of entries.
const EXTENSION: &str = ".cwasm";

/// Folder of the entries, and the key of their seals.
pub struct Cache {
    dir: PathBuf,
    key: Zeroizing<[u8; 32]>,
    most: u64,
}

impl Cache {
    /// Cache of a state folder. `None` if there is no key; the start of the proxy reports the
    /// reason.
    pub fn of(state_dir: &Path) -> Option<Self> {
        let secret = key_file::load(state_dir, "seal.key").ok()?;
        let mut key = Zeroizing::new([0; 32]);
        Hkdf::<Sha256>::new(None, &*secret).expand(PURPOSE, &mut *key).ok()?;
        let dir = state_dir.join("plugins/cache");
        DirBuilder::new().recursive(true).mode(0o700).create(&dir).ok()?;
        Some(Self { dir, key, most: MAX_TOTAL_BYTES })
    }

    /// Compiled component with that digest for this engine.
    pub fn find(&self, engine: &Engine, sha256: &str) -> Option<Component> {
        let path = self.path(engine, sha256);
        let opened = match self.open(&path, sha256) {
            Ok(Some(opened)) => opened,
            Ok(None) => return None,
            Err(why) => {
                self.discard(&path, &why.to_string());
                return None;
            }
        };
        match trusted(engine, &opened[SEAL_BYTES..]) {
            Ok(component) => {
                // The least recently used entries are deleted when there is no more room.
                let touched = File::options().append(true).open(&path);
                let _ = touched.and_then(|file| file.set_modified(SystemTime::now()));
                Some(component)
            }
            Err(error) => {
                self.discard(&path, &format!("{error:#}"));
                None
            }
        }
    }

    /// Stores a compiled component. If that fails, it is compiled again at the next start.
    pub fn keep(&self, engine: &Engine, sha256: &str, component: &Component) {
        let path = self.path(engine, sha256);
        let saved = component
            .serialize()
            .map_err(|error| format!("{error:#}"))
            .and_then(|bytes| self.write(&path, sha256, &bytes).map_err(|e| e.to_string()))
            .and_then(|()| self.make_room().map_err(|error| error.to_string()));
        if let Err(error) = saved {
            tracing::warn!(%error, "a compiled plugin could not be cached");
        }
    }

    /// Path with a name that depends on everything that the entry depends on.
    fn path(&self, engine: &Engine, sha256: &str) -> PathBuf {
        let mut hasher = Engines(Sha256::new());
        engine.precompile_compatibility_hash().hash(&mut hasher);
        let engine = hex::encode(&hasher.0.finalize()[..16]);
        self.dir.join(format!("{sha256}-{engine}{EXTENSION}"))
    }

    /// Seal of the entry at that path.
    fn seal(&self, path: &Path, sha256: &str, code: &[u8]) -> Option<Hmac<Sha256>> {
        let mut mac = Hmac::<Sha256>::new_from_slice(&*self.key).ok()?;
        // Two texts of fixed length and the rest, so the input is unambiguous.
        mac.update(sha256.as_bytes());
        mac.update(path.file_name()?.as_encoded_bytes());
        mac.update(code);
        Some(mac)
    }

    /// Content of an entry with a valid seal.
    fn open(&self, path: &Path, sha256: &str) -> io::Result<Option<Vec<u8>>> {
        let file = match File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let mut bytes = Vec::new();
        file.take(MAX_ENTRY_BYTES + 1).read_to_end(&mut bytes)?;
        let sealed = bytes
            .split_at_checked(SEAL_BYTES)
            .filter(|(_, code)| code.len() as u64 <= MAX_ENTRY_BYTES)
            .and_then(|(seal, code)| Some((seal, self.seal(path, sha256, code)?)))
            .is_some_and(|(seal, mac)| mac.verify_slice(seal).is_ok());
        if sealed { Ok(Some(bytes)) } else { Err(io::Error::other("its seal is invalid")) }
    }

    fn write(&self, path: &Path, sha256: &str, code: &[u8]) -> io::Result<()> {
        let seal = self.seal(path, sha256, code).ok_or_else(|| io::Error::other("no key"))?;
        atomic_file::write(path, &[&seal.finalize().into_bytes(), code].concat())
    }

    fn discard(&self, path: &Path, why: &str) {
        tracing::warn!(
            file = %path.display(), why,
            "a cached plugin is invalid; compiling it again"
        );
        let _ = fs::remove_file(path);
    }

    /// Deletes the least recently used entries, and files that an abrupt end left.
    fn make_room(&self) -> io::Result<()> {
        let mut all = Vec::new();
        for entry in fs::read_dir(&self.dir)? {
            let entry = entry?;
            let Ok(about) = entry.metadata() else { continue };
            let used = about.modified().unwrap_or(SystemTime::UNIX_EPOCH);
            all.push((used, about.len(), entry.path()));
        }
        all.sort_unstable_by(|one, other| other.cmp(one));
        let mut size = 0_u64;
        for (_, bytes, path) in all {
            size = size.saturating_add(bytes);
            if size > self.most {
                fs::remove_file(path)?;
            }
        }
        Ok(())
    }
}

/// Loads native code whose seal was valid.
fn trusted(engine: &Engine, code: &[u8]) -> wasmtime::Result<Component> {
    #[expect(
        unsafe_code,
        reason = "compiling takes seconds where this takes milliseconds; sound, because `code` is \
                  what `Component::serialize` gave this proxy: its seal, by a key that nobody else \
                  can read, was checked over these very bytes, which nobody else can write to"
    )]
    // SAFETY: as above. An engine with other settings uses other names for its entries, and
    // wasmtime checks its own version and settings again.
    unsafe {
        Component::deserialize(engine, code)
    }
}

/// Hashes an engine's settings deterministically.
struct Engines(Sha256);

impl Hasher for Engines {
    fn write(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    fn finish(&self) -> u64 {
        0
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use super::*;
    use crate::host::Host;

    const SHA256: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn engine() -> &'static Engine {
        &Host::shared().unwrap().engine
    }

    /// A minimal component, cached.
    fn with_entry() -> (tempfile::TempDir, Cache, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::of(folder.path()).unwrap();
        let component = Component::from_binary(engine(), b"\0asm\x0d\0\x01\0").unwrap();
        cache.keep(engine(), SHA256, &component);
        let path = cache.path(engine(), SHA256);
        (folder, cache, path)
    }

    #[test]
    fn cached_entry_is_found_and_private() {
        let (folder, cache, path) = with_entry();
        assert!(cache.find(engine(), SHA256).is_some());
        assert!(Cache::of(folder.path()).unwrap().find(engine(), SHA256).is_some());
        assert!(cache.find(engine(), &SHA256.replace('e', "f")).is_none());
        let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o777;
        assert_eq!((mode(&path), mode(&cache.dir)), (0o600, 0o700));
    }

    #[test]
    fn changed_entry_is_deleted() {
        let changes: [fn(&mut Vec<u8>); 4] = [
            |bytes| bytes[SEAL_BYTES + 100] ^= 1,
            |bytes| bytes[0] ^= 1,
            |bytes| bytes.push(0),
            |bytes| bytes.truncate(SEAL_BYTES - 1),
        ];
        for change in changes {
            let (_folder, cache, path) = with_entry();
            let mut bytes = fs::read(&path).unwrap();
            change(&mut bytes);
            fs::write(&path, bytes).unwrap();
            assert!(cache.find(engine(), SHA256).is_none());
            assert!(!path.exists());
        }
    }

    #[test]
    fn entry_is_valid_only_for_its_component_and_key() {
        let (_folder, cache, path) = with_entry();
        let other = SHA256.replace('e', "f");
        fs::copy(&path, cache.path(engine(), &other)).unwrap();
        assert!(cache.find(engine(), &other).is_none());

        let elsewhere = tempfile::tempdir().unwrap();
        let stranger = Cache::of(elsewhere.path()).unwrap();
        fs::copy(&path, stranger.path(engine(), SHA256)).unwrap();
        assert!(stranger.find(engine(), SHA256).is_none());
    }

    #[test]
    fn oldest_entries_are_deleted_when_full() {
        let (_folder, mut cache, path) = with_entry();
        cache.most = fs::metadata(&path).unwrap().len();
        let old = SystemTime::now() - std::time::Duration::from_secs(60);
        File::options().append(true).open(&path).unwrap().set_modified(old).unwrap();
        let component = Component::from_binary(engine(), b"\0asm\x0d\0\x01\0").unwrap();
        let other = SHA256.replace('e', "f");
        cache.keep(engine(), &other, &component);
        assert!(cache.find(engine(), SHA256).is_none());
        assert!(cache.find(engine(), &other).is_some());
    }
}
