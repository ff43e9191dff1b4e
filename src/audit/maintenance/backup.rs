//! Copies a store's files while records are written. The copy can be verified, opened as a store
//! and continued.
//!
//! The order of copying leaves no gap under concurrent writes: first the files that name the end of
//! the log (checkpoints, `head`), then commits, and the packed records last, since a file of
//! commits is only removed when its block is packed. Files are replaced atomically. Indexes are not
//! copied: they are rebuilt.

use std::{
    fs::{self, DirBuilder, File, Permissions},
    io::{self, Read as _, Write as _},
    os::unix::fs::{DirBuilderExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use tempfile::NamedTempFile;

use super::{Manifest, ManifestFault};
use portcullis_foundation::atomic_file;

/// Marker file of an unfinished copy.
const UNFINISHED: &str = "backup-unfinished";
const HEAD: &str = "head";
const CHECKPOINTS: &str = "checkpoints";
/// Small files that identify the store.
const OWN: [&str; 3] = ["store.json", "digest.key", "audit-verifier"];
/// Folders whose files are copied whole.
const FOLDERS: [&str; 3] = ["dropped", "exports", "quarantine"];

/// Result of a backup.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Backup {
    /// Folder of the backup.
    pub to: PathBuf,
    /// `seq` of the first record in the backup.
    pub first: Option<u64>,
    /// `seq` of the last record that is certainly in the backup.
    pub last: Option<u64>,
    /// Number of segments copied by this run.
    pub copied: u64,
    /// Number of segments that an earlier backup to this folder had copied.
    pub kept: u64,
    /// Bytes copied by this run.
    pub bytes: u64,
}

/// Reasons why a backup failed.
#[derive(Debug, thiserror::Error)]
pub enum BackupFault {
    #[error("{doing} {}: {source}", path.display())]
    Io { doing: &'static str, path: PathBuf, source: io::Error },
    /// The folder contains something else.
    #[error(
        "{} is neither empty nor a backup of this store: name an empty folder, or one that an \
         earlier backup of this store was made to", .0.display()
    )]
    Occupied(PathBuf),
    /// One of the two folders contains the other.
    #[error("{} is in the store, or the store in it: name a folder elsewhere", .0.display())]
    Within(PathBuf),
    #[error("the store can't be backed up: {0}")]
    Store(String),
}

impl From<ManifestFault> for BackupFault {
    fn from(fault: ManifestFault) -> Self {
        Self::Store(fault.to_string())
    }
}

fn failed<'a>(doing: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> BackupFault + 'a {
    move |source| BackupFault::Io { doing, path: path.to_owned(), source }
}

/// Whether the folder is an unfinished backup.
pub(crate) fn is_unfinished(dir: &Path) -> bool {
    dir.join(UNFINISHED).exists()
}

/// Copies the store in `dir` to the folder `to`. No segment may be dropped concurrently.
pub(super) fn copy(dir: &Path, to: &Path) -> Result<Backup, BackupFault> {
    let manifest = Manifest::read(dir)?
        .ok_or_else(|| BackupFault::Store(format!("{} has no store", dir.display())))?;
    let (from, here) = (real(dir)?, real(to)?);
    if from.starts_with(&here) || here.starts_with(&from) {
        return Err(BackupFault::Within(to.to_owned()));
    }
    make(to)?;
    match Manifest::read(to) {
        Ok(Some(other)) if other.id == manifest.id => {}
        Ok(None) if is_empty(to)? || is_unfinished(to) => {}
        _ => return Err(BackupFault::Occupied(to.to_owned())),
    }
    fs::set_permissions(to, Permissions::from_mode(0o700))
        .map_err(failed("cannot make private", to))?;
    write(to, UNFINISHED, b"This backup was interrupted: run it again.\n")?;

    let mut backup = Backup { to: to.to_owned(), ..Backup::default() };
    let mut copying = Copying { backup: &mut backup };
    // Before the files that they describe.
    for name in OWN.into_iter().chain([CHECKPOINTS]) {
        copying.small(dir, to, name)?;
    }
    let head = match fs::read(dir.join(HEAD)) {
        Ok(head) => head,
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        Err(error) => return Err(failed("cannot read", &dir.join(HEAD))(error)),
    };
    for folder in FOLDERS {
        copying.folder(&dir.join(folder), &to.join(folder))?;
    }
    let segments = dir.join("segments");
    for name in names(&segments)? {
        if let Ok(first) = name.parse::<u64>()
            && name.len() == 16
        {
            copying.backup.first.get_or_insert(first);
            copying.segment(&segments.join(&name), &to.join("segments").join(&name))?;
        }
    }
    if !head.is_empty() {
        write(to, HEAD, &head)?;
    }
    backup.last =
        std::str::from_utf8(&head).ok().and_then(|text| text.split(' ').next()?.parse().ok());
    let unfinished = to.join(UNFINISHED);
    fs::remove_file(&unfinished).map_err(failed("cannot remove", &unfinished))?;
    sync(to)?;
    Ok(backup)
}

struct Copying<'a> {
    backup: &'a mut Backup,
}

impl Copying<'_> {
    /// Copies a file that may be missing.
    fn small(&mut self, from: &Path, to: &Path, name: &str) -> Result<(), BackupFault> {
        let path = from.join(name);
        match fs::read(&path) {
            Ok(bytes) => {
                self.backup.bytes += bytes.len() as u64;
                write(to, name, &bytes)
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(failed("cannot read", &path)(error)),
        }
    }

    fn folder(&mut self, from: &Path, to: &Path) -> Result<(), BackupFault> {
        if !from.is_dir() {
            return Ok(());
        }
        make(to)?;
        for name in names(from)? {
            let (from, to) = (from.join(&name), to.join(&name));
            if from.is_dir() {
                self.folder(&from, &to)?;
            } else if !name.starts_with('.') {
                self.replace(&from, &to)?;
            }
        }
        sync(to)
    }

    fn segment(&mut self, from: &Path, to: &Path) -> Result<(), BackupFault> {
        const CLOSED: &str = "segment.json";
        let closed = fs::read(from.join(CLOSED)).ok();
        if closed.is_some() && closed == fs::read(to.join(CLOSED)).ok() {
            let size = |dir: &Path| fs::metadata(dir.join("records")).map(|meta| meta.len()).ok();
            if size(from).is_some() && size(from) == size(to) {
                self.backup.kept += 1;
                return Ok(());
            }
        }
        make(to)?;
        let commits: Vec<String> =
            names(from)?.into_iter().filter(|name| name.starts_with("wal-")).collect();
        let mut fresh = Vec::new();
        for name in &commits {
            fresh.extend(self.fetch(&from.join(name), to)?.map(|file| (file, name.as_str())));
        }
        fresh.extend(self.fetch(&from.join("records"), to)?.map(|file| (file, "records")));
        // The packed records first: then no block is missing at any moment.
        for (file, name) in fresh.into_iter().rev() {
            file.persist(to.join(name))
                .map_err(|lost| failed("cannot write", &to.join(name))(lost.error))?;
        }
        for name in names(to)?.iter().filter(|name| name.starts_with("wal-")) {
            if !commits.contains(name) {
                let stale = to.join(name);
                fs::remove_file(&stale).map_err(failed("cannot remove", &stale))?;
            }
        }
        if let Some(closed) = closed {
            write(to, CLOSED, &closed)?;
        }
        sync(to)?;
        sync(to.parent().unwrap_or(to))?;
        self.backup.copied += 1;
        Ok(())
    }

    fn replace(&mut self, from: &Path, to: &Path) -> Result<(), BackupFault> {
        let parent = to.parent().unwrap_or(to);
        if let Some(file) = self.fetch(from, parent)? {
            file.persist(to).map_err(|lost| failed("cannot write", to)(lost.error))?;
        }
        Ok(())
    }

    /// Synced copy under a temporary name. `None` if the file no longer exists.
    fn fetch(&mut self, from: &Path, to: &Path) -> Result<Option<NamedTempFile>, BackupFault> {
        let source = match File::open(from) {
            Ok(source) => source,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed("cannot read", from)(error)),
        };
        // Copy the current size only: the file may grow.
        let size = source.metadata().map_err(failed("cannot read", from))?.len();
        let mut file = tempfile::Builder::new()
            .prefix(".new-")
            .permissions(Permissions::from_mode(0o600))
            .tempfile_in(to)
            .map_err(failed("cannot write to", to))?;
        let copied = io::copy(&mut source.take(size), file.as_file_mut())
            .and_then(|copied| {
                file.as_file_mut().flush()?;
                file.as_file().sync_all()?;
                Ok(copied)
            })
            .map_err(failed("cannot copy", from))?;
        self.backup.bytes += copied;
        Ok(Some(file))
    }
}

/// Canonical path; its last component may not exist yet.
fn real(path: &Path) -> Result<PathBuf, BackupFault> {
    let path = std::path::absolute(path).map_err(failed("cannot look at", path))?;
    let missing = |error: &io::Error| error.kind() == io::ErrorKind::NotFound;
    match (path.canonicalize(), path.parent(), path.file_name()) {
        (Err(error), Some(parent), Some(name)) if missing(&error) => Ok(real(parent)?.join(name)),
        (found, ..) => found.map_err(failed("cannot look at", &path)),
    }
}

fn make(dir: &Path) -> Result<(), BackupFault> {
    DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(failed("cannot make", dir))
}

fn write(dir: &Path, name: &str, bytes: &[u8]) -> Result<(), BackupFault> {
    atomic_file::write(&dir.join(name), bytes).map_err(failed("cannot write to", dir))
}

fn sync(dir: &Path) -> Result<(), BackupFault> {
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(failed("cannot sync", dir))
}

fn is_empty(dir: &Path) -> Result<bool, BackupFault> {
    Ok(names(dir)?.is_empty())
}

/// Names in a folder, in order; empty if there is no folder.
fn names(dir: &Path) -> Result<Vec<String>, BackupFault> {
    let mut names = Vec::new();
    match fs::read_dir(dir) {
        Ok(entries) => {
            for entry in entries {
                let entry = entry.map_err(failed("cannot read", dir))?;
                names.extend(entry.file_name().into_string());
            }
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(failed("cannot read", dir)(error)),
    }
    names.sort_unstable();
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store(dir: &Path) -> Manifest {
        fs::create_dir_all(dir).unwrap();
        let manifest = Manifest::open(dir).unwrap();
        let first = dir.join("segments/0000000000000000");
        let second = dir.join("segments/0000000000000010");
        for segment in [&first, &second] {
            fs::create_dir_all(segment.join("index")).unwrap();
            fs::write(segment.join("index/db"), "index").unwrap();
            fs::write(segment.join("records"), "packed").unwrap();
        }
        fs::write(first.join("segment.json"), "{}").unwrap();
        fs::write(second.join("wal-0000000000000010"), "commits").unwrap();
        fs::create_dir(dir.join("segments/0000000000000000.dropping")).unwrap();
        fs::create_dir(dir.join("dropped")).unwrap();
        fs::write(dir.join("dropped/x.proof"), "proof").unwrap();
        fs::write(dir.join("store.lock"), "1").unwrap();
        fs::write(dir.join("head"), format!("{:020} {}\n", 12, "0".repeat(64))).unwrap();
        manifest
    }

    fn all(dir: &Path) -> Vec<String> {
        let mut found = Vec::new();
        for name in names(dir).unwrap() {
            let path = dir.join(&name);
            if path.is_dir() {
                found.extend(all(&path).into_iter().map(|below| format!("{name}/{below}")));
            } else {
                found.push(name);
            }
        }
        found
    }

    #[test]
    fn backup_contains_the_log_without_indexes() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("audit"), dir.path().join("a/backup"));
        store(&from);
        let backup = copy(&from, &to).unwrap();
        assert_eq!((backup.first, backup.last), (Some(0), Some(12)));
        assert_eq!((backup.copied, backup.kept), (2, 0));
        let expected = [
            "dropped/x.proof",
            "head",
            "segments/0000000000000000/records",
            "segments/0000000000000000/segment.json",
            "segments/0000000000000010/records",
            "segments/0000000000000010/wal-0000000000000010",
            "store.json",
        ];
        assert_eq!(all(&to), expected);
        assert_eq!(fs::metadata(&to).unwrap().permissions().mode() & 0o777, 0o700);

        // Second run: closed segments are kept, and packed blocks have no commits any more.
        let second = from.join("segments/0000000000000010");
        fs::rename(second.join("wal-0000000000000010"), second.join("wal-0000000000000011"))
            .unwrap();
        let backup = copy(&from, &to).unwrap();
        assert_eq!((backup.copied, backup.kept), (1, 1));
        let commits: Vec<_> = all(&to).into_iter().filter(|name| name.contains("wal")).collect();
        assert_eq!(commits, ["segments/0000000000000010/wal-0000000000000011"]);
    }

    #[test]
    fn occupied_folders_are_refused_as_targets() {
        let dir = tempfile::tempdir().unwrap();
        let from = dir.path().join("audit");
        store(&from);
        let occupied = dir.path().join("home");
        fs::create_dir(&occupied).unwrap();
        fs::write(occupied.join("letter"), "precious").unwrap();
        assert!(matches!(copy(&from, &occupied), Err(BackupFault::Occupied(_))));
        assert_eq!(all(&occupied), ["letter"]);
        let other = dir.path().join("other");
        store(&other);
        assert!(matches!(copy(&from, &other), Err(BackupFault::Occupied(_))));
        for within in [from.join("backup"), dir.path().to_owned(), from.clone()] {
            assert!(matches!(copy(&from, &within), Err(BackupFault::Within(_))), "{within:?}");
        }
        assert!(!from.join("backup").exists());
    }

    #[test]
    fn interrupted_backup_is_marked_and_can_be_repeated() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("audit"), dir.path().join("backup"));
        store(&from);
        let records = from.join("segments/0000000000000010/records");
        fs::remove_file(&records).unwrap();
        fs::create_dir(&records).unwrap();
        copy(&from, &to).unwrap_err();
        assert!(is_unfinished(&to));
        fs::remove_dir(&records).unwrap();
        fs::write(&records, "packed").unwrap();
        copy(&from, &to).unwrap();
        assert!(!is_unfinished(&to));
    }
}
