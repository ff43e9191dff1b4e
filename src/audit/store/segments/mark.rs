//! The file that says which record was acknowledged last.

use std::{fs, os::unix::fs::FileExt as _, path::Path};

use super::super::fault::Fault;
use crate::proof::Hash;
use portcullis_foundation::atomic_file;

/// Its name.
const HEAD: &str = "head";

/// What the file says before there is a record.
const START: (u64, Hash) = (0, Hash::ZERO);

/// The record that was acknowledged last, and its hash.
pub(super) fn read_head(dir: &Path) -> Option<(u64, Hash)> {
    read(dir).filter(|head| *head != START)
}

fn read(dir: &Path) -> Option<(u64, Hash)> {
    let text = fs::read_to_string(dir.join(HEAD)).ok()?;
    let (seq, hash) = text.trim_end().split_once(' ')?;
    Some((seq.parse().ok()?, Hash::from_hex(hash.as_bytes())?))
}

fn text((seq, hash): (u64, Hash)) -> String {
    format!("{seq:020} {hash}\n")
}

/// The file with the record that was acknowledged last. It is made durably, before the store takes
/// records: so a store without it has lost it. Later it is written in its place, after a record was
/// synced, and not synced itself: it can be behind the log, and never before it.
pub(in crate::store) struct HeadFile(fs::File);

impl HeadFile {
    /// Opens the file in `dir`. Where it says nothing, makes it: `last` is the last record of the
    /// log.
    pub fn open(dir: &Path, last: Option<(u64, Hash)>) -> Result<Self, Fault> {
        let path = dir.join(HEAD);
        if read(dir).is_none() {
            if last.is_some() {
                tracing::error!(
                    "the audit log's `head` is gone: whether its last records were cut off while \
                     it was closed can't be told"
                );
            }
            atomic_file::write(&dir.join(HEAD), text(last.unwrap_or(START)).as_bytes())
                .map_err(|e| Fault::io("making", &path, &e))?;
        }
        let opened = fs::OpenOptions::new().write(true).open(&path);
        opened.map(Self).map_err(|e| Fault::io("opening", &path, &e))
    }

    pub fn set(&self, seq: u64, hash: Hash) {
        if let Err(error) = self.0.write_all_at(text((seq, hash)).as_bytes(), 0) {
            // The records are safe; only a later loss of these last ones would go unnoticed.
            tracing::warn!(%error, "the head of the audit log was not written");
        }
    }
}
