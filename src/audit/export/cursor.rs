//! Position of a stream, in a file that survives restarts.

use std::{
    fs,
    io::{self, ErrorKind},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use crate::proof::Hash;
use portcullis_foundation::atomic_file;

/// Version of the file format.
const VERSION: u8 = 1;

/// Position in one log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Cursor {
    v: u8,
    /// Id of the log.
    pub log: String,
    /// `seq` of the first record that is not delivered.
    pub next: u64,
    /// Hash of the record before `next`, which `next` must name in `prev`. Absent if no record was
    /// delivered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hash: Option<Hash>,
}

impl Cursor {
    pub fn new(log: String, next: u64, hash: Option<Hash>) -> Self {
        Self { v: VERSION, log, next, hash }
    }
}

/// Cursor file of one stream: `exports/NAME.cursor` in the store's folder.
#[derive(Debug, Clone)]
pub(super) struct CursorFile {
    folder: PathBuf,
    name: String,
}

impl CursorFile {
    pub fn new(store: &Path, stream: &str) -> Self {
        Self { folder: store.join("exports"), name: format!("{stream}.cursor") }
    }

    /// Reads the cursor; `None` if there is none.
    ///
    /// # Errors
    /// If the file cannot be read or is not a cursor file of this version.
    pub fn read(&self) -> io::Result<Option<Cursor>> {
        let text = match fs::read(self.folder.join(&self.name)) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            other => other?,
        };
        let cursor: Cursor = serde_json::from_slice(&text)?;
        if cursor.v == VERSION {
            Ok(Some(cursor))
        } else {
            Err(io::Error::other(format!("it is of version {}", cursor.v)))
        }
    }

    /// Writes the cursor. It is durable when this returns.
    pub fn write(&self, cursor: &Cursor) -> io::Result<()> {
        use fs::DirBuilder;
        use std::os::unix::fs::DirBuilderExt as _;
        DirBuilder::new().recursive(true).mode(0o700).create(&self.folder)?;
        atomic_file::write(&self.folder.join(&self.name), &serde_json::to_vec(cursor)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cursor_round_trips() {
        let dir = tempfile::tempdir().unwrap();
        let cursor_file = CursorFile::new(dir.path(), "siem");
        assert_eq!(cursor_file.read().unwrap(), None);
        for cursor in [
            Cursor::new("a".into(), 0, None),
            Cursor::new("a".into(), u64::MAX, Some(Hash([7; 32]))),
        ] {
            cursor_file.write(&cursor).unwrap();
            assert_eq!(cursor_file.read().unwrap(), Some(cursor));
        }
        let file = dir.path().join("exports/siem.cursor");
        for broken in ["", "{", r#"{"v":2,"log":"a","next":1}"#, r#"{"v":1,"next":1}"#] {
            fs::write(&file, broken).unwrap();
            assert!(cursor_file.read().is_err(), "{broken}");
        }
    }
}
