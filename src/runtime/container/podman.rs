//! Files that Podman reads from the machine it runs on.

use portcullis_foundation::atomic_file;
use std::{
    env, fs, io,
    path::{Path, PathBuf},
};

use sha2::{Digest, Sha256};

/// Path of a file with that text, readable for everybody, in a folder of this user only, so that no
/// other user can replace it. Its name is the digest of its content; it serves every proxy of this
/// user.
///
/// # Errors
/// If there is no such folder, or it is not writable.
pub(super) fn file(kind: &str, text: &str) -> io::Result<PathBuf> {
    let folder = match env::var_os("XDG_RUNTIME_DIR").filter(|folder| !folder.is_empty()) {
        _ if nix::unistd::geteuid().is_root() => PathBuf::from("/run"),
        Some(folder) => folder.into(),
        None => return Err(io::Error::other("XDG_RUNTIME_DIR is not set")),
    };
    write(&folder, kind, text)
}

fn write(folder: &Path, kind: &str, text: &str) -> io::Result<PathBuf> {
    let digest = hex::encode(&Sha256::digest(text.as_bytes())[..8]);
    let file_path = folder.join(format!("portcullis-{kind}-{digest}"));
    if fs::read_to_string(&file_path).is_ok_and(|there| there == text) {
        return Ok(file_path);
    }
    atomic_file::write_as(&file_path, text.as_bytes(), atomic_file::PUBLIC)?;
    Ok(file_path)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn file_is_written_once_and_rewritten_if_changed() {
        let folder = tempfile::tempdir().expect("a folder");
        let file_path = write(folder.path(), "kind", "text").expect("a file");
        assert_eq!(fs::read_to_string(&file_path).expect("its text"), "text");
        assert_ne!(write(folder.path(), "kind", "other").expect("another"), file_path);
        fs::write(&file_path, "tampered").expect("written");
        assert_eq!(write(folder.path(), "kind", "text").expect("a file"), file_path);
        assert_eq!(fs::read_to_string(&file_path).expect("its text"), "text");
        assert_eq!(fs::metadata(&file_path).expect("it").permissions().mode() & 0o777, 0o644);
        assert_eq!(fs::read_dir(folder.path()).expect("it").count(), 2);
    }
}
