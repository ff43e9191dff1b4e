//! The file that names the last acknowledged record.

use std::{fs, io::Write as _, os::unix::fs::FileExt as _, path::Path};

use super::super::fault::Fault;
use crate::proof::Hash;
use portcullis_foundation::atomic_file;

/// Name of the file.
const HEAD: &str = "head";

/// Content of the file before the first record.
const START: (u64, Hash) = (0, Hash::ZERO);

/// The last acknowledged record and its hash.
pub(super) fn read_head(dir: &Path) -> Option<(u64, Hash)> {
    read(dir).filter(|head| *head != START)
}

fn read(dir: &Path) -> Option<(u64, Hash)> {
    let text = fs::read_to_string(dir.join(HEAD)).ok()?;
    let (seq, hash) = text.trim_end().split_once(' ')?;
    Some((seq.parse().ok()?, Hash::from_hex(hash.as_bytes())?))
}

/// Bytes of the file.
const BYTES: usize = 20 + 1 + 64 + 1;

fn text((seq, hash): (u64, Hash)) -> Vec<u8> {
    let mut text = Vec::with_capacity(BYTES);
    // Writing to memory cannot fail.
    let _ = writeln!(text, "{seq:020} {hash}");
    text
}

/// File that names the last acknowledged record. It is created durably before the store accepts
/// records: if it is missing later, it was lost. Updates happen in place after the sync of a
/// record, and are not synced: the file can lag behind the log, but is never ahead of it.
pub(in crate::store) struct HeadFile(fs::File);

impl HeadFile {
    /// Opens the file in `dir`. Creates it if it has no content: `last` is the last record of the
    /// log.
    pub fn open(dir: &Path, last: Option<(u64, Hash)>) -> Result<Self, Fault> {
        let path = dir.join(HEAD);
        if read(dir).is_none() {
            if last.is_some() {
                tracing::error!(
                    "the audit log's `head` is missing: whether its last records were cut off \
                     while it was closed can't be told"
                );
            }
            atomic_file::write(&dir.join(HEAD), &text(last.unwrap_or(START)))
                .map_err(|e| Fault::io("making", &path, &e))?;
        }
        let opened = fs::OpenOptions::new().write(true).open(&path);
        opened.map(Self).map_err(|e| Fault::io("opening", &path, &e))
    }

    pub fn set(&self, seq: u64, hash: Hash) {
        if let Err(error) = self.0.write_all_at(&text((seq, hash)), 0) {
            // The records are safe. Only a later loss of these records would stay undetected.
            tracing::warn!(%error, "the head of the audit log was not written");
        }
    }
}
