//! Key files: 32 random bytes, created once, complete, and readable by their owner only.

use std::{
    fs::{self, DirBuilder, File},
    io::{self, Read as _, Write as _},
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use zeroize::Zeroizing;

/// A key. Its memory is overwritten on drop.
pub type Key = Zeroizing<[u8; 32]>;

/// Failure to read or create a key file. The caller explains its effect.
#[derive(Debug)]
pub enum Fault {
    /// It cannot be read or created.
    Io { path: PathBuf, source: io::Error },
    /// Other users can read or write it.
    Open(PathBuf),
    /// It does not have 32 bytes.
    Damaged(PathBuf),
    /// The operating system provides no random bytes.
    Random(getrandom::Error),
}

/// Reads the key with that name in a folder, and creates both if they are missing.
pub fn load(dir: &Path, name: &str) -> Result<Key, Fault> {
    let path = dir.join(name);
    if let Some(key) = read(&path)? {
        return Ok(key);
    }
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .map_err(|source| Fault::Io { path: dir.to_owned(), source })?;
    make(dir, &path)?;
    // If two processes create it at once, one wins, and both use its key.
    read(&path)?.ok_or(Fault::Damaged(path))
}

fn read(path: &Path) -> Result<Option<Key>, Fault> {
    let io = |source| Fault::Io { path: path.to_owned(), source };
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(io(error)),
    };
    if file.metadata().map_err(io)?.mode() & 0o077 != 0 {
        return Err(Fault::Open(path.to_owned()));
    }
    // One byte more than a key, to detect a longer file.
    let mut bytes = Zeroizing::new(Vec::with_capacity(33));
    file.take(33).read_to_end(&mut bytes).map_err(io)?;
    let key = <[u8; 32]>::try_from(&bytes[..]).map_err(|_| Fault::Damaged(path.to_owned()))?;
    Ok(Some(Zeroizing::new(key)))
}

/// Creates a complete, synced file, unless one exists already.
fn make(dir: &Path, path: &Path) -> Result<(), Fault> {
    let mut key = Zeroizing::new([0; 32]);
    getrandom::fill(&mut *key).map_err(Fault::Random)?;
    let write = || -> io::Result<()> {
        let mut file = tempfile::Builder::new()
            .prefix(".key-")
            .permissions(fs::Permissions::from_mode(0o600))
            .tempfile_in(dir)?;
        file.write_all(&*key)?;
        file.as_file().sync_all()?;
        match file.persist_noclobber(path) {
            Ok(_) => File::open(dir)?.sync_all(),
            Err(lost) if lost.error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            Err(failed) => Err(failed.error),
        }
    };
    write().map_err(|source| Fault::Io { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAME: &str = "a.key";

    #[test]
    fn key_is_created_once() {
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().join("a/state");
        let key = load(&state, NAME).unwrap();
        assert_ne!(*key, [0; 32]);
        assert_eq!(load(&state, NAME).unwrap(), key);
        let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o777;
        assert_eq!(mode(&state.join(NAME)), 0o600);
        assert_eq!(mode(&state), 0o700);
        let names: Vec<_> = fs::read_dir(&state).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(names, [NAME]);
        assert_ne!(load(&dir.path().join("b"), NAME).unwrap(), key);
    }

    #[test]
    fn concurrent_starts_get_the_same_key() {
        let dir = tempfile::tempdir().unwrap();
        let keys: Vec<Key> = std::thread::scope(|scope| {
            let all: Vec<_> =
                (0..16).map(|_| scope.spawn(|| load(dir.path(), NAME).unwrap())).collect();
            all.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert!(keys.iter().all(|key| *key == keys[0]));
    }

    #[test]
    fn untrustworthy_key_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(NAME);
        let write = |bytes: &[u8], mode| {
            fs::write(&path, bytes).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        };
        for mode in [0o640, 0o604, 0o620, 0o644] {
            write(&[1; 32], mode);
            assert!(matches!(load(dir.path(), NAME), Err(Fault::Open(_))), "{mode:o}");
        }
        for bytes in [&[][..], &[1; 31], &[1; 33]] {
            write(bytes, 0o600);
            assert!(matches!(load(dir.path(), NAME), Err(Fault::Damaged(_))), "{}", bytes.len());
            // The file is left unchanged for inspection.
            assert_eq!(fs::read(&path).unwrap(), bytes);
        }
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        assert!(load(dir.path(), NAME).is_err());
    }
}
