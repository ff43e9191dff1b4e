//! Digests of programs of this machine, so that policies can pin them.

use std::{
    collections::HashMap,
    fs::{self, OpenOptions},
    io,
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use nix::libc::O_NONBLOCK;
use parking_lot::Mutex;
use sha2::{Digest as _, Sha256};

/// Metadata that changes when a file changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp([i64; 7]);

impl Stamp {
    /// Stamp of the present file.
    ///
    /// # Errors
    /// If the metadata cannot be read.
    pub fn of(path: &Path) -> io::Result<Self> {
        let m = fs::metadata(path)?;
        Ok(Self([
            m.dev().cast_signed(),
            m.ino().cast_signed(),
            m.size().cast_signed(),
            m.mtime(),
            m.mtime_nsec(),
            m.ctime(),
            m.ctime_nsec(),
        ]))
    }
}

/// A program with the digest of its file.
#[derive(Debug, Clone)]
pub struct Hashed {
    /// Path by which it is started, possibly a link.
    program: PathBuf,
    /// File that this path resolved to.
    path: PathBuf,
    stamp: Stamp,
    /// `sha256:` and the digest of the file in hex.
    pub digest: String,
}

impl Hashed {
    /// Whether the file to start is still the hashed one.
    pub fn is_still(&self) -> bool {
        fs::canonicalize(&self.program).is_ok_and(|path| path == self.path)
            && Stamp::of(&self.path).is_ok_and(|stamp| stamp == self.stamp)
    }
}

/// Digests of hashed programs, one for each program of the config. Reading a large program again
/// for each start would cost more than the start.
#[derive(Debug, Default)]
pub struct Digests(Mutex<HashMap<PathBuf, Hashed>>);

impl Digests {
    /// Hashes a program, or returns the digest if the file has not changed since. Reads the whole
    /// file: call it outside the async threads.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn of(&self, program: &Path) -> io::Result<Hashed> {
        let cached = self.0.lock().get(program).cloned();
        if let Some(cached) = cached.filter(Hashed::is_still) {
            return Ok(cached);
        }
        // Links are followed, as at the start of the program.
        let path = fs::canonicalize(program)?;
        // Stamped before it is read: a change in between makes the entry stale, not wrong.
        let stamp = Stamp::of(&path)?;
        let mut hash = Sha256::new();
        // A pipe without a writer does not block.
        let mut file = OpenOptions::new().read(true).custom_flags(O_NONBLOCK).open(&path)?;
        if !file.metadata()?.is_file() {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        io::copy(&mut file, &mut HashWriter(&mut hash))?;
        let digest = format!("sha256:{}", hex::encode(hash.finalize()));
        let hashed = Hashed { program: program.to_owned(), path, stamp, digest };
        self.0.lock().insert(program.to_owned(), hashed.clone());
        Ok(hashed)
    }
}

struct HashWriter<'a>(&'a mut Sha256);

impl io::Write for HashWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use nix::{sys::stat::Mode, unistd::mkfifo};

    use super::*;

    #[test]
    fn changed_link_is_another_program() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::write(at("one"), "abc").unwrap();
        fs::write(at("two"), "abd").unwrap();
        symlink(at("one"), at("current")).unwrap();
        let digests = Digests::default();
        let first = digests.of(&at("current")).unwrap();
        assert!(first.is_still());
        symlink(at("two"), at("next")).unwrap();
        fs::rename(at("next"), at("current")).unwrap();
        assert!(!first.is_still());
        assert_ne!(digests.of(&at("current")).unwrap().digest, first.digest);
    }

    #[test]
    fn pipe_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let pipe = dir.path().join("pipe");
        mkfifo(&pipe, Mode::S_IRWXU).unwrap();
        assert!(Digests::default().of(&pipe).is_err());
    }

    #[test]
    fn changed_program_is_hashed_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("program");
        let digests = Digests::default();
        assert!(digests.of(&path).is_err());
        assert!(digests.of(dir.path()).is_err());
        fs::write(&path, "abc").unwrap();
        let first = digests.of(&path).unwrap();
        // Example of FIPS 180-2.
        assert_eq!(
            first.digest,
            "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
        assert!(first.is_still());
        assert_eq!(digests.of(&path).unwrap().digest, first.digest);
        // Another file of the same size in its place.
        fs::write(dir.path().join("other"), "abd").unwrap();
        fs::rename(dir.path().join("other"), &path).unwrap();
        assert!(!first.is_still());
        assert_ne!(digests.of(&path).unwrap().digest, first.digest);
    }
}
