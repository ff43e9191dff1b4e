//! All checkpoints for the comparison with records: those of the store and those of witnesses.

use std::{collections::HashSet, fs, io, path::Path};

use rayon::prelude::*;
use serde::Deserialize;

use super::finding::{Finding, FindingKind, Findings};
use crate::{
    digest::DigestKey,
    proof::{
        Hash, Verifier,
        checkpoint::{NoCheckpoint, Signed},
        note_file::{self, Tail},
    },
};

/// File of checkpoints in the store's folder.
pub(in crate::proof) const FILE: &str = "checkpoints";

/// A checkpoint and its origin.
#[derive(Debug, Clone)]
pub(super) struct StoredCheckpoint {
    pub signed: Signed,
    /// Name of the file and position within it.
    pub file: String,
    pub offset: u64,
}

/// Checkpoints by size, without duplicates.
#[derive(Debug, Default)]
pub(super) struct CheckpointSet {
    pub stored: Vec<StoredCheckpoint>,
    /// The newest of the store's own checkpoints.
    pub newest: Option<Signed>,
    /// Notes about replaced files, from the store's own checkpoints.
    pub changes: Vec<String>,
}

/// Line of a log that contains a note.
#[derive(Deserialize)]
struct Logged {
    checkpoint: String,
}

/// Notes with their offsets, from a file of notes or from the lines of a log.
fn found(bytes: &[u8]) -> (Vec<(usize, Vec<u8>)>, Tail) {
    const OPENING: &[u8] = b"{\"checkpoint\":";
    let logged: Vec<_> = memchr::memmem::find_iter(bytes, OPENING)
        .filter_map(|at| {
            let mut rest = serde_json::Deserializer::from_slice(&bytes[at..]).into_iter();
            let Logged { checkpoint } = rest.next()?.ok()?;
            Some((at, checkpoint.into_bytes()))
        })
        .collect();
    if !logged.is_empty() {
        return (logged, Tail::None);
    }
    let found = note_file::split(bytes);
    (found.notes.into_iter().map(|(at, note)| (at, note.to_vec())).collect(), found.tail)
}

fn open(note: &[u8], keys: &[Verifier]) -> Result<Signed, NoCheckpoint> {
    let note = std::str::from_utf8(note).map_err(|_| NoCheckpoint::Malformed)?;
    let mut fault = NoCheckpoint::Malformed;
    for key in keys {
        match Signed::open(note, key) {
            Ok(signed) => return Ok(signed),
            // The error of the note's own key is more specific than that of another key.
            Err(NoCheckpoint::OtherKey | NoCheckpoint::OtherStore)
                if fault != NoCheckpoint::Malformed => {}
            Err(found) => fault = found,
        }
    }
    Err(fault)
}

fn unusable(fault: NoCheckpoint) -> FindingKind {
    match fault {
        NoCheckpoint::Malformed => FindingKind::CheckpointMalformed,
        NoCheckpoint::OtherKey => FindingKind::CheckpointOtherKey,
        NoCheckpoint::Forged => FindingKind::CheckpointForged,
        NoCheckpoint::OtherStore => FindingKind::CheckpointOtherStore,
    }
}

impl CheckpointSet {
    /// Reads the store's own checkpoints.
    pub fn read(dir: &Path, keys: &[Verifier], findings: &mut Findings) -> io::Result<Self> {
        let bytes = match fs::read(dir.join(FILE)) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(error),
        };
        let mut checkpoints = Self::default();
        let (notes, tail) = found(&bytes);
        let opened: Vec<_> = notes.par_iter().map(|(_, note)| open(note, keys)).collect();
        // Unreadable notes since the last readable one.
        let mut bad = 0;
        for ((at, _), opened) in notes.iter().zip(opened) {
            let at = *at as u64;
            match opened {
                Ok(signed) => {
                    let missing = checkpoints.follows(&signed, bad);
                    findings_at(findings, missing, at);
                    bad = 0;
                    checkpoints.note_changes(&signed);
                    checkpoints.newest = Some(signed.clone());
                    checkpoints.stored.push(StoredCheckpoint {
                        signed,
                        file: FILE.into(),
                        offset: at,
                    });
                }
                Err(fault) => {
                    bad += 1;
                    findings
                        .add(Finding::new(unusable(fault), fault.to_string()).file(FILE).at(at));
                }
            }
        }
        if let Tail::Damaged(at) = tail {
            let finding =
                Finding::new(FindingKind::CheckpointMalformed, "this is not a checkpoint");
            findings.add(finding.file(FILE).at(at as u64));
        }
        if notes.is_empty() {
            let message = "there are none, and every store has one since it was created";
            findings.add(Finding::new(FindingKind::CheckpointMissing, message).file(FILE));
        }
        Ok(checkpoints)
    }

    /// Notes which files were replaced since the preceding checkpoint.
    fn note_changes(&mut self, next: &Signed) {
        let Some(Signed { checkpoint: before, .. }) = &self.newest else { return };
        let after = &next.checkpoint;
        for file in after.companions.changed_since(&before.companions) {
            let meaning = if file == DigestKey::FILE {
                format!(
                    ": digests of the records before record {} can no longer be compared with \
                     later ones",
                    after.size
                )
            } else {
                String::new()
            };
            self.changes.push(format!(
                "`{file}` was replaced between the checkpoints {} and {}, by {}{meaning}",
                before.number, after.number, after.time
            ));
        }
    }

    /// Finding about the sequence from the newest checkpoint to this one.
    fn follows(&self, next: &Signed, bad: u64) -> Option<Finding> {
        let (number, before) = match &self.newest {
            Some(newest) => (newest.checkpoint.number + 1, newest.hash),
            None => (0, Hash::ZERO),
        };
        let found = &next.checkpoint;
        match found.number.checked_sub(number) {
            Some(0) if found.before == before => None,
            Some(0) => Some(Finding::new(
                FindingKind::CheckpointMisplaced,
                format!("checkpoint {number} does not name the one before it"),
            )),
            // Findings report these already.
            Some(missing) if missing <= bad => None,
            Some(_) => Some(Finding::new(
                FindingKind::CheckpointMissing,
                format!("checkpoints {number} to {} are not there", found.number - 1),
            )),
            None => Some(Finding::new(
                FindingKind::CheckpointMisplaced,
                format!("checkpoint {} stands where {number} belongs", found.number),
            )),
        }
    }

    /// Adds checkpoints of a witness. One that the store lacks was removed from it.
    pub fn witness(
        &mut self,
        path: &Path,
        bytes: &[u8],
        keys: &[Verifier],
        findings: &mut Findings,
    ) {
        let name = path.display().to_string();
        let (notes, _) = found(bytes);
        let own: HashSet<_> = self.stored.iter().map(|stored| stored.signed.hash).collect();
        if notes.is_empty() && !bytes.is_empty() {
            let message = "there is no checkpoint in it";
            findings.add(Finding::new(FindingKind::CheckpointMalformed, message).file(&name));
        }
        for (at, note) in notes {
            let offset = at as u64;
            match open(&note, keys) {
                Ok(signed) => {
                    if !own.contains(&signed.hash) {
                        let message = format!(
                            "the store has no checkpoint {} of {} records, which was signed at {}",
                            signed.checkpoint.number,
                            signed.checkpoint.size,
                            signed.checkpoint.time
                        );
                        let finding = Finding::new(FindingKind::CheckpointMissing, message);
                        findings.add(finding.file(&name).at(offset));
                    }
                    self.stored.push(StoredCheckpoint { signed, file: name.clone(), offset });
                }
                Err(fault) => {
                    let finding = Finding::new(unusable(fault), fault.to_string());
                    findings.add(finding.file(&name).at(offset));
                }
            }
        }
    }

    /// Sorts checkpoints by size, and removes those with the same content.
    pub fn sort_and_dedup(&mut self) {
        self.stored.sort_by_key(|stored| stored.signed.checkpoint.size);
        self.stored.dedup_by(|b, a| {
            let (a, b) = (&a.signed.checkpoint, &b.signed.checkpoint);
            a.size == b.size && a.root == b.root && a.last == b.last
        });
    }
}

fn findings_at(findings: &mut Findings, finding: Option<Finding>, at: u64) {
    if let Some(finding) = finding {
        findings.add(finding.file(FILE).at(at));
    }
}
