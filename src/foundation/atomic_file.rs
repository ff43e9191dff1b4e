//! Files that are there whole or not at all.

use std::{
    fs::{File, Permissions},
    io::{self, Write as _},
    os::unix::fs::PermissionsExt as _,
    path::Path,
};

/// Writes a file that only its owner can read: whole or not at all, and on disk when it returns.
pub fn write(dir: &Path, name: &str, bytes: &[u8]) -> io::Result<()> {
    write_as(dir, name, bytes, 0o600)
}

/// The same with this mode.
pub fn write_as(dir: &Path, name: &str, bytes: &[u8], mode: u32) -> io::Result<()> {
    let mut file = tempfile::Builder::new()
        .prefix(".new-")
        .permissions(Permissions::from_mode(mode))
        .tempfile_in(dir)?;
    file.write_all(bytes)?;
    file.as_file().sync_all()?;
    file.persist(dir.join(name)).map_err(|failed| failed.error)?;
    File::open(dir)?.sync_all()
}
