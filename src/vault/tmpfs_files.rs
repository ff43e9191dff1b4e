//! Files by which secrets are handed over: on a tmpfs, so that no disk ever has them, in a folder
//! that only the proxy's own user may enter. What is mounted of it into a server is one folder in
//! there, which is the server's alone.
//!
//! Invariants: a file is whole whenever it is looked at, the old one or the new one; nothing of a
//! folder outlives its server, nor of a run its proxy by more than the next start.

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

use crate::{Secret, error::Why};

/// What the names of our folders begin with.
const PREFIX: &str = "portcullis-secrets-";
/// Tries to make a folder that another process does not take for an abandoned one.
const TRIES: usize = 5;

/// The folder of one run of the proxy, in memory.
#[derive(Debug)]
pub struct Runtime {
    dir: TempDir,
    /// Locked as long as the proxy lives, however it ends.
    _held: File,
}

impl Runtime {
    /// Makes it on the first of `RUNTIME_DIRECTORY`, `XDG_RUNTIME_DIR`, `/run` and `/dev/shm` that
    /// is a tmpfs, and removes what was left there by a proxy that was killed.
    ///
    /// # Errors
    /// Where there is no such place.
    pub fn make() -> Result<Self, Why> {
        let mut why = Vec::new();
        for place in places() {
            match Self::make_in(&place) {
                Ok(made) => return Ok(made),
                Err(error) => why.push(format!("{}: {error}", place.display())),
            }
        }
        Err(Why::new(format!("no folder in memory can be made ({})", why.join("; "))))
    }

    fn make_in(place: &Path) -> io::Result<Self> {
        if statfs(place)?.filesystem_type() != TMPFS_MAGIC {
            return Err(io::Error::other("this is no tmpfs"));
        }
        // Whoever may rename it could put another in its place.
        let meta = fs::metadata(place)?;
        let trusted = [0, geteuid().as_raw()].contains(&meta.uid())
            && (meta.mode() & 0o022 == 0 || meta.mode() & 0o1000 != 0);
        if !trusted {
            return Err(io::Error::other("others may change it"));
        }
        sweep(place);
        for _ in 0..TRIES {
            let dir = tempfile::Builder::new()
                .prefix(PREFIX)
                .permissions(fs::Permissions::from_mode(0o700))
                .tempdir_in(place)?;
            // Another proxy's sweep may remove the folder before it is locked.
            let held = match File::open(dir.path()) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                opened => opened?,
            };
            held.lock()?;
            if dir.path().is_dir() {
                return Ok(Self { dir, _held: held });
            }
        }
        Err(io::Error::other("it is removed as soon as it is made"))
    }

    /// A folder for one server. Its files are their reader's alone, where that is known; else, all
    /// may read them who can reach them, which on this machine is nobody but the proxy's own user.
    ///
    /// # Errors
    /// Where it can't be made.
    pub fn folder(&self, reader: Option<Reader>) -> Result<Folder, Why> {
        let made = || -> io::Result<TempDir> {
            let dir = tempfile::Builder::new().prefix("s-").tempdir_in(self.dir.path())?;
            // Whatever the umask is.
            fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755))?;
            Ok(dir)
        };
        let dir = made().map_err(|error| Why::new(format!("a folder can't be made: {error}")))?;
        Ok(Folder { dir, reader })
    }
}

/// Who reads the files of a folder, by what they are on this machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reader {
    /// The proxy's own user.
    Ourselves,
    /// That user and group, to whom the proxy may give files.
    Other(u32, u32),
}

/// Where folders of secrets may be, the best first.
fn places() -> impl Iterator<Item = PathBuf> {
    let named = ["RUNTIME_DIRECTORY", "XDG_RUNTIME_DIR"].map(|name| {
        // systemd may name several, with colons between.
        let all = std::env::var(name).unwrap_or_default();
        PathBuf::from(all.split(':').next().unwrap_or_default())
    });
    let usual = ["/run", "/dev/shm"].map(PathBuf::from);
    named.into_iter().chain(usual).filter(|place| place.is_absolute())
}

/// What the paths of folders of secrets begin with, wherever one may be made.
pub fn folders() -> impl Iterator<Item = PathBuf> {
    places().map(|place| place.join(PREFIX))
}

/// Removes what proxies that were killed have left of secrets, wherever it may be.
pub fn clear() {
    places().for_each(|place| sweep(&place));
}

/// The folders of secrets that proxies of this user have left that were killed, wherever they may be.
pub fn abandoned() -> Vec<PathBuf> {
    // This process need not have the environment of the one that was killed.
    let own = PathBuf::from(format!("/run/user/{}", geteuid()));
    let below = fs::read_dir("/run").into_iter().flatten().flatten();
    let below = below.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    let below = below.map(|entry| entry.path());
    let places: BTreeSet<_> = places().chain([own]).chain(below).collect();
    places.iter().flat_map(|place| abandoned_in(place)).collect()
}

/// Removes one of [`abandoned`] with all that is in it.
///
/// # Errors
/// Where the system does not, or a proxy holds it after all.
pub fn remove_abandoned(folder: &Path) -> io::Result<()> {
    // Locked, so that nobody else takes it for one that he may remove, too.
    match hold(folder) {
        Some(_held) => fs::remove_dir_all(folder),
        None if !folder.exists() => Ok(()),
        None => Err(io::Error::other("somebody holds it")),
    }
}

/// Removes the folders of proxies that are gone.
fn sweep(place: &Path) {
    for folder in abandoned_in(place) {
        let _ = remove_abandoned(&folder);
    }
}

fn abandoned_in(place: &Path) -> impl Iterator<Item = PathBuf> {
    let entries = fs::read_dir(place).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).filter(|path| hold(path).is_some())
}

/// Locks the folder of a proxy of this user, if it is one and its proxy is gone.
fn hold(path: &Path) -> Option<File> {
    let ours = path.file_name()?.to_string_lossy().starts_with(PREFIX)
        && fs::symlink_metadata(path).is_ok_and(|meta| {
            meta.is_dir() && meta.uid() == geteuid().as_raw() && meta.mode() & 0o077 == 0
        });
    let held = ours.then(|| File::open(path))?.ok()?;
    held.try_lock().ok()?;
    Some(held)
}

/// Whether that is a folder of secrets of some proxy, by its name.
pub fn is_folder(path: &Path) -> bool {
    let above = path.parent().and_then(Path::file_name);
    above.is_some_and(|name| name.to_string_lossy().starts_with(PREFIX))
}

/// The secrets of one server as files. Gone once it is dropped.
#[derive(Debug)]
pub struct Folder {
    dir: TempDir,
    reader: Option<Reader>,
}

impl Folder {
    /// Where it is on this machine.
    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Puts a secret into the file of that name, in the place of an earlier one at once.
    ///
    /// # Errors
    /// Where it can't be written; the earlier one is in place then.
    pub fn put(&self, name: &str, value: &Secret) -> Result<(), Why> {
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
        put().map_err(|error| Why::new(format!("the file of `{name}` can't be written: {error}")))
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
    fn files_are_in_memory_and_the_servers_alone() {
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
    fn what_a_killed_proxy_left_is_removed_and_nothing_else() {
        let left = Path::new("/dev/shm").join(format!("{PREFIX}left-{}", std::process::id()));
        fs::create_dir(&left).unwrap();
        fs::set_permissions(&left, fs::Permissions::from_mode(0o700)).unwrap();
        fs::write(left.join("TOKEN"), "x").unwrap();
        let (one, other) = (shm(), shm());
        assert!(!left.exists());
        assert!(one.dir.path().exists() && other.dir.path().exists());
    }

    #[test]
    fn what_is_no_tmpfs_is_refused() {
        let error = Runtime::make_in(Path::new("/proc")).unwrap_err();
        assert!(error.to_string().contains("no tmpfs"), "{error}");
    }
}
