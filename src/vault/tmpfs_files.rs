//! Files that deliver secrets. They are on a tmpfs, so that no disk ever holds them, in a folder
//! that only the proxy's user can enter. A server gets one folder of it mounted, which belongs only
//! to that server.
//!
//! Invariants:
//!
//! - A file is always complete, with the old or the new value.
//! - A server's folder ends with the server, and a proxy's folder at the latest with the next start
//!   of a proxy.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io::{self, Write as _},
    os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown},
    path::{Path, PathBuf},
};

use nix::{
    sys::statfs::{TMPFS_MAGIC, statfs},
    unistd::geteuid,
};
use tempfile::TempDir;

use crate::{Secret, error::BackendError};

/// Prefix of the names of the folders.
const PREFIX: &str = "portcullis-secrets-";
/// Limit of attempts to create a folder that no other process takes for an orphan.
const MAX_ATTEMPTS: usize = 5;

/// Folder in memory of one run of the proxy.
#[derive(Debug)]
pub struct Runtime {
    dir: TempDir,
    /// Locked until the proxy ends, for any reason.
    _held: File,
}

impl Runtime {
    /// Creates the folder on the first tmpfs among `RUNTIME_DIRECTORY`, `XDG_RUNTIME_DIR`, `/run`
    /// and `/dev/shm`, and removes folders of killed proxies there.
    ///
    /// # Errors
    /// If none of these is a tmpfs.
    pub fn make() -> Result<Self, BackendError> {
        let mut why = Vec::new();
        for parent in candidates() {
            match Self::make_in(&parent) {
                Ok(files) => return Ok(files),
                Err(error) => why.push(format!("{}: {error}", parent.display())),
            }
        }
        Err(BackendError::new(format!("no folder in memory can be created ({})", why.join("; "))))
    }

    fn make_in(parent: &Path) -> io::Result<Self> {
        if statfs(parent)?.filesystem_type() != TMPFS_MAGIC {
            return Err(io::Error::other("this is not a tmpfs"));
        }
        // A user who can rename it could replace it.
        let meta = fs::metadata(parent)?;
        let trusted = [0, geteuid().as_raw()].contains(&meta.uid())
            && (meta.mode() & 0o022 == 0 || meta.mode() & 0o1000 != 0);
        if !trusted {
            return Err(io::Error::other("other users can change it"));
        }
        sweep(parent);
        for _ in 0..MAX_ATTEMPTS {
            let dir = tempfile::Builder::new()
                .prefix(PREFIX)
                .permissions(fs::Permissions::from_mode(0o700))
                .tempdir_in(parent)?;
            // Another proxy's cleanup may remove the folder before it is locked.
            let held = match File::open(dir.path()) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                opened => opened?,
            };
            held.lock()?;
            if dir.path().is_dir() {
                return Ok(Self { dir, _held: held });
            }
        }
        Err(io::Error::other("other processes remove it immediately"))
    }

    /// Folder for one server. If the reader is known, only the reader can read its files. Otherwise
    /// all users who can reach them can, which on this machine is only the proxy's user.
    ///
    /// # Errors
    /// If the folder cannot be created.
    pub fn folder(&self, reader: Option<Reader>) -> Result<Folder, BackendError> {
        let create = || -> io::Result<TempDir> {
            let dir = tempfile::Builder::new().prefix("s-").tempdir_in(self.dir.path())?;
            // Regardless of the umask.
            fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755))?;
            Ok(dir)
        };
        let dir = create()
            .map_err(|error| BackendError::new(format!("a folder can't be created: {error}")))?;
        Ok(Folder { dir, reader })
    }
}

/// User on this machine who reads the files of a folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reader {
    /// The proxy's user.
    Ourselves,
    /// That user and group, to which the proxy may give files.
    Other(u32, u32),
}

/// Possible parents of secret folders, the best first.
fn candidates() -> impl Iterator<Item = PathBuf> {
    let named = ["RUNTIME_DIRECTORY", "XDG_RUNTIME_DIR"].map(|name| {
        // systemd may list several, separated by colons.
        let all = std::env::var(name).unwrap_or_default();
        PathBuf::from(all.split(':').next().unwrap_or_default())
    });
    let usual = ["/run", "/dev/shm"].map(PathBuf::from);
    named.into_iter().chain(usual).filter(|parent| parent.is_absolute())
}

/// Prefixes of the paths of secret folders, for every possible parent.
pub fn folders() -> impl Iterator<Item = PathBuf> {
    candidates().map(|parent| parent.join(PREFIX))
}

/// Removes secrets that killed proxies left, in every possible parent.
pub fn clear() {
    candidates().for_each(|parent| sweep(&parent));
}

/// Secret folders that killed proxies of this user left, in every possible parent.
pub fn abandoned() -> Vec<PathBuf> {
    // The environment of the killed process may have differed.
    let own = PathBuf::from(format!("/run/user/{}", geteuid()));
    let below = fs::read_dir("/run").into_iter().flatten().flatten();
    let below = below.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    let below = below.map(|entry| entry.path());
    let candidates: BTreeSet<_> = candidates().chain([own]).chain(below).collect();
    candidates.iter().flat_map(|parent| abandoned_in(parent)).collect()
}

/// Removes one of the [`abandoned`] folders with its content.
///
/// # Errors
/// If the system refuses, or a proxy uses it after all.
pub fn remove_abandoned(folder: &Path) -> io::Result<()> {
    // Locked, so that no other process tries to remove it, too.
    match hold(folder) {
        Some(_held) => fs::remove_dir_all(folder),
        None if !folder.exists() => Ok(()),
        None => Err(io::Error::other("another process uses it")),
    }
}

/// Removes the folders of proxies that have ended.
fn sweep(parent: &Path) {
    for folder in abandoned_in(parent) {
        let _ = remove_abandoned(&folder);
    }
}

fn abandoned_in(parent: &Path) -> impl Iterator<Item = PathBuf> {
    let entries = fs::read_dir(parent).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).filter(|path| hold(path).is_some())
}

/// Locks a folder, if a proxy of this user created it and has ended.
fn hold(path: &Path) -> Option<File> {
    let ours = path.file_name()?.to_string_lossy().starts_with(PREFIX)
        && fs::symlink_metadata(path).is_ok_and(|meta| {
            meta.is_dir() && meta.uid() == geteuid().as_raw() && meta.mode() & 0o077 == 0
        });
    let held = ours.then(|| File::open(path))?.ok()?;
    held.try_lock().ok()?;
    Some(held)
}

/// Whether the name is that of a proxy's secret folder.
pub fn is_folder(path: &Path) -> bool {
    let above = path.parent().and_then(Path::file_name);
    above.is_some_and(|name| name.to_string_lossy().starts_with(PREFIX))
}

/// Secrets of one server as files. Removed on drop.
#[derive(Debug)]
pub struct Folder {
    dir: TempDir,
    reader: Option<Reader>,
}

impl Folder {
    /// Path on this machine.
    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Writes a secret to the file of that name, atomically replacing an earlier value.
    ///
    /// # Errors
    /// If the file cannot be written; the earlier value then stays.
    pub fn put(&self, name: &str, value: &Secret) -> Result<(), BackendError> {
        let put = || -> io::Result<()> {
            let mode = if self.reader.is_some() { 0o400 } else { 0o444 };
            let mut file = tempfile::Builder::new().prefix(".new-").tempfile_in(self.dir.path())?;
            file.write_all(value.expose().as_bytes())?;
            if let Some(Reader::Other(uid, gid)) = self.reader {
                chown(file.path(), Some(uid), Some(gid))?;
            }
            file.as_file().set_permissions(fs::Permissions::from_mode(mode))?;
            file.persist(self.dir.path().join(name)).map(drop).map_err(|failed| failed.error)
        };
        put().map_err(|error| {
            BackendError::new(format!("the file of `{name}` can't be written: {error}"))
        })
    }
}

#[cfg(test)]
mod tests {
    use nix::unistd::getegid;

    use super::*;

    fn shm() -> Runtime {
        Runtime::make_in(Path::new("/dev/shm")).unwrap()
    }

    #[test]
    fn files_are_in_memory_and_belong_to_one_server() {
        let runtime = shm();
        let (reader, owner) = match geteuid().is_root() {
            true => (Reader::Other(65534, 65534), (65534, 65534)),
            false => (Reader::Ourselves, (geteuid().as_raw(), getegid().as_raw())),
        };
        let folder = runtime.folder(Some(reader)).unwrap();
        folder.put("TOKEN", &Secret::new("a".into())).unwrap();
        folder.put("TOKEN", &Secret::new("b\n".into())).unwrap();
        let file = folder.path().join("TOKEN");
        assert_eq!(fs::read_to_string(&file).unwrap(), "b\n");
        let names: Vec<_> =
            fs::read_dir(folder.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(names, ["TOKEN"]);
        let meta = fs::metadata(&file).unwrap();
        assert_eq!((meta.mode() & 0o777, (meta.uid(), meta.gid())), (0o400, owner));
        let other = runtime.folder(None).unwrap();
        other.put("TOKEN", &Secret::new("c".into())).unwrap();
        assert_eq!(fs::metadata(other.path().join("TOKEN")).unwrap().mode() & 0o777, 0o444);
        let above = folder.path().parent().unwrap();
        assert_eq!(fs::metadata(above).unwrap().mode() & 0o777, 0o700);
        assert!(is_folder(folder.path()) && !is_folder(above));
        let gone = folder.path().to_owned();
        drop(folder);
        assert!(!gone.exists());
        let gone = above_of(&other);
        drop((other, runtime));
        assert!(!gone.exists());
    }

    fn above_of(folder: &Folder) -> PathBuf {
        folder.path().parent().unwrap().to_owned()
    }

    #[test]
    fn only_folders_of_killed_proxies_are_removed() {
        let left = Path::new("/dev/shm").join(format!("{PREFIX}left-{}", std::process::id()));
        fs::create_dir(&left).unwrap();
        fs::set_permissions(&left, fs::Permissions::from_mode(0o700)).unwrap();
        fs::write(left.join("TOKEN"), "x").unwrap();
        let (one, other) = (shm(), shm());
        assert!(!left.exists());
        assert!(one.dir.path().exists() && other.dir.path().exists());
    }

    #[test]
    fn folder_outside_a_tmpfs_is_refused() {
        let error = Runtime::make_in(Path::new("/proc")).unwrap_err();
        assert!(error.to_string().contains("not a tmpfs"), "{error}");
    }
}
