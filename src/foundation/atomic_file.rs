//! Files that are replaced as a whole: readers see the old content or the new content, also after
//! a crash.

use std::{
    fs::{self, File, Permissions},
    io::{self, Write as _},
    os::unix::fs::PermissionsExt as _,
    path::Path,
};

use tempfile::NamedTempFile;

/// Mode of a new file that everybody may read.
pub const PUBLIC: u32 = 0o644;

/// Writes a file that only its owner can read (mode 0600). The content is on disk when this returns.
/// A symbolic link is replaced by the file.
///
/// # Errors
/// An error of the file system. The file then has its old content, unless only the sync of the folder
/// failed.
pub fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    write_as(path, bytes, 0o600)
}

/// Writes a file with this mode. The content is on disk when this returns.
///
/// # Errors
/// As [`write`].
pub fn write_as(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let (file, folder) = prepared(path, bytes, mode)?;
    file.persist(path).map_err(|failed| failed.error)?;
    File::open(folder)?.sync_all()
}

/// Creates a file that only its owner can read (mode 0600). Of several that create it at once, one
/// succeeds. The content is on disk when this returns.
///
/// # Errors
/// The file exists, or an error of the file system.
pub fn create(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let (file, folder) = prepared(path, bytes, 0o600)?;
    file.persist_noclobber(path).map_err(|failed| failed.error)?;
    File::open(folder)?.sync_all()
}

/// Temporary file with this content, and the folder of `path`, in which it is.
fn prepared<'a>(path: &'a Path, bytes: &[u8], mode: u32) -> io::Result<(NamedTempFile, &'a Path)> {
    let folder = match path.parent() {
        Some(folder) if folder != Path::new("") => folder,
        _ => Path::new("."),
    };
    let mut file = tempfile::Builder::new()
        .prefix(".new-")
        .permissions(Permissions::from_mode(mode))
        .tempfile_in(folder)?;
    file.write_all(bytes)?;
    // The umask may have removed bits from the mode.
    file.as_file().set_permissions(Permissions::from_mode(mode))?;
    file.as_file().sync_all()?;
    Ok((file, folder))
}

/// Replaces the content of a file and keeps its mode. A symbolic link stays: its target is replaced.
/// A new file has the mode [`PUBLIC`].
///
/// # Errors
/// As [`write`].
pub fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let path = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let mode = fs::metadata(&path).map_or(PUBLIC, |meta| meta.permissions().mode() & 0o777);
    write_as(&path, bytes, mode)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn replaced_file_keeps_its_mode_and_links() {
        let folder = tempfile::tempdir().unwrap();
        let (file, link) = (folder.path().join("file"), folder.path().join("link"));
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        write_as(&file, b"one", 0o640).unwrap();
        symlink(&file, &link).unwrap();
        replace(&link, b"two").unwrap();
        assert_eq!((fs::read(&file).unwrap(), mode(&file)), (b"two".to_vec(), 0o640));
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        write(&file, b"three").unwrap();
        assert_eq!((fs::read(&link).unwrap(), mode(&file)), (b"three".to_vec(), 0o600));
        replace(&folder.path().join("new"), b"").unwrap();
        assert_eq!(mode(&folder.path().join("new")), PUBLIC);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 3);
        assert!(write(&folder.path().join("absent/file"), b"").is_err());
    }
}
