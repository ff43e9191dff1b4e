//! Modes of a store's files: another user with write access could have changed the log.

use std::{
    fs, io,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

/// Maximum depth of folders in a store.
const DEPTH: usize = 4;

/// A file of the store in `dir` that users other than its owner can write to, and its mode.
pub(crate) fn open_to_others(dir: &Path) -> io::Result<Option<(PathBuf, u32)>> {
    let mode = fs::metadata(dir)?.permissions().mode() & 0o7777;
    if mode & 0o022 != 0 {
        return Ok(Some((dir.to_owned(), mode)));
    }
    // If other users cannot enter the folder, they cannot reach its files.
    if mode & 0o011 == 0 { Ok(None) } else { search(dir, DEPTH) }
}

fn search(dir: &Path, depth: usize) -> io::Result<Option<(PathBuf, u32)>> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let meta = entry.metadata()?;
        let mode = meta.permissions().mode() & 0o7777;
        // A symlink's own mode has no effect.
        if !meta.is_symlink() && mode & 0o022 != 0 {
            return Ok(Some((entry.path(), mode)));
        }
        if meta.is_dir()
            && depth > 0
            && let Some(found) = search(&entry.path(), depth - 1)?
        {
            return Ok(Some(found));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reachable_files_writable_by_others_are_found() {
        let dir = tempfile::tempdir().unwrap();
        let store = dir.path().join("audit");
        let segment = store.join("segments/0000000000000000");
        fs::create_dir_all(&segment).unwrap();
        let records = segment.join("records");
        fs::write(&records, "").unwrap();
        let set = |path: &Path, mode| {
            fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        };
        for path in [&segment, &store.join("segments")] {
            set(path, 0o755);
        }
        for (own, inner, found) in [
            (0o700, 0o600, None),
            (0o700, 0o666, None),
            (0o755, 0o644, None),
            (0o755, 0o664, Some(&records)),
            (0o750, 0o606, Some(&records)),
            (0o770, 0o600, Some(&store)),
            (0o1777, 0o600, Some(&store)),
        ] {
            set(&store, own);
            set(&records, inner);
            let path = open_to_others(&store).unwrap().map(|(path, _)| path);
            assert_eq!(path.as_ref(), found, "{own:o} {inner:o}");
        }
    }
}
