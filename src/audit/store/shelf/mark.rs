//! The file that says which record was acknowledged last.

use std::{
    fs,
    os::unix::fs::{FileExt as _, OpenOptionsExt as _},
    path::Path,
};

use super::super::fault::Fault;
use crate::audit::proof::Hash;

/// Its name.
const HEAD: &str = "head";

/// The record that was acknowledged last, and its hash.
pub(super) fn read_head(dir: &Path) -> Option<(u64, Hash)> {
    let text = fs::read_to_string(dir.join(HEAD)).ok()?;
    let (seq, hash) = text.trim_end().split_once(' ')?;
    Some((seq.parse().ok()?, Hash::from_hex(hash.as_bytes())?))
}

/// The file with the record that was acknowledged last. It is written after that record was
/// synced and not synced itself: it can be behind the log, and never before it.
pub(in crate::audit::store) struct Mark(fs::File);

impl Mark {
    pub fn open(dir: &Path) -> Result<Self, Fault> {
        let path = dir.join(HEAD);
        let mut options = fs::OpenOptions::new();
        let opened = options.write(true).create(true).truncate(false).mode(0o600).open(&path);
        opened.map(Self).map_err(|e| Fault::io("opening", &path, &e))
    }

    pub fn set(&self, seq: u64, hash: Hash) {
        let text = format!("{seq:020} {hash}\n");
        if let Err(error) = self.0.write_all_at(text.as_bytes(), 0) {
            // The records are safe; only a later loss of these last ones would go unnoticed.
            tracing::warn!(%error, "the head of the audit log was not written");
        }
    }
}
