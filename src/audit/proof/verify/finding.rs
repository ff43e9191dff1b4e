//! Results of verification.

use std::fmt;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// Maximum number of listed findings; further ones are counted.
pub(super) const MOST: usize = 200;

/// Kinds of findings. Their names are stable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FindingKind {
    /// Bytes of a file differ from those that were written.
    FrameDamaged,
    /// A line does not have the head of a record.
    LineMalformed,
    /// Records are missing.
    RecordMissing,
    /// A record is at another record's position.
    RecordMisplaced,
    /// A record does not have the hash of its predecessor.
    ChainBroken,
    /// A record is older than its predecessor.
    TimeBack,
    /// The records do not match a checkpoint.
    RootMismatch,
    /// The log lacks its last records.
    TailCut,
    /// The last record does not match the last acknowledged one.
    HeadMismatch,
    /// `head` cannot be read.
    HeadDamaged,
    /// `head` is missing or empty.
    HeadMissing,
    /// A checkpoint cannot be read.
    CheckpointMalformed,
    /// A checkpoint was changed after it was signed.
    CheckpointForged,
    /// A checkpoint was signed by another key.
    CheckpointOtherKey,
    /// A checkpoint belongs to another store.
    CheckpointOtherStore,
    /// Checkpoints are missing.
    CheckpointMissing,
    /// A checkpoint does not have the hash of its predecessor.
    CheckpointMisplaced,
    /// A due checkpoint is missing.
    CheckpointOverdue,
    /// The key is for another store.
    StoreSwapped,
    /// The saved proof of a dropped segment cannot be read, or is not signed.
    ProofDamaged,
    /// The saved proof of a dropped segment does not match its records.
    ProofMismatch,
    /// The summary or the index of a segment does not match its records.
    IndexMismatch,
    /// `digest.key` is missing or is not the key of the digests.
    DigestKeyChanged,
    /// Another file with a fingerprint in checkpoints was changed or removed.
    FileChanged,
}

impl fmt::Display for FindingKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Serde has the names; serializing a unit variant cannot fail.
        self.serialize(f)
    }
}

/// A fault of the log, and its position.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    pub what: FindingKind,
    /// Description for people.
    pub message: String,
    /// File, relative to the store's folder unless it begins with `/`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<String>,
    /// Offset in the file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub offset: Option<u64>,
    /// `seq` of the record.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seq: Option<u64>,
}

impl Finding {
    pub(in crate::proof) fn new(what: FindingKind, message: impl Into<String>) -> Self {
        Self { what, message: message.into(), file: None, offset: None, seq: None }
    }

    pub(in crate::proof) fn file(mut self, file: impl Into<String>) -> Self {
        self.file = Some(file.into());
        self
    }

    pub(super) fn at(mut self, offset: u64) -> Self {
        self.offset = Some(offset);
        self
    }

    pub(super) fn seq(mut self, seq: u64) -> Self {
        self.seq = Some(seq);
        self
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.what)?;
        if let Some(file) = &self.file {
            write!(f, " {file}")?;
        }
        if let Some(offset) = self.offset {
            write!(f, " at byte {offset}")?;
        }
        if let Some(seq) = self.seq {
            write!(f, " record {seq}")?;
        }
        write!(f, ": {}", self.message)
    }
}

/// Collected findings, limited to [`MOST`].
#[derive(Debug, Default)]
pub(super) struct Findings {
    pub list: Vec<Finding>,
    pub omitted: u64,
}

impl Findings {
    pub fn count(&self) -> u64 {
        self.list.len() as u64 + self.omitted
    }

    pub fn add(&mut self, finding: Finding) {
        if self.list.len() < MOST {
            self.list.push(finding);
        } else {
            self.omitted += 1;
        }
    }
}

/// Origin of the keys that verified checkpoints.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum KeySource {
    /// The caller gave the keys.
    Given,
    /// The state folder of the proxy.
    State,
    /// The store itself. This proves nothing if the whole store was replaced.
    Store,
    /// There is no key.
    None,
}

/// A checkpoint in a report.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SignedSize {
    /// Number of records that the checkpoint covers.
    pub size: u64,
    /// Time of signing.
    pub time: Timestamp,
}

/// Report of a verification.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Report {
    /// Id of the store.
    pub store: String,
    /// Verifier keys.
    pub keys: Vec<String>,
    pub key_source: KeySource,
    /// First `seq` that was read. Only checkpoints prove the records before it.
    pub first: u64,
    /// `seq` after the last record.
    pub end: u64,
    /// Number of records that were read.
    pub records: u64,
    /// Number of checkpoints that were compared with the records.
    pub checkpoints: u64,
    /// The newest valid checkpoint. Records after it are only chained.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signed: Option<SignedSize>,
    /// Faults of the log.
    pub findings: Vec<Finding>,
    /// Number of findings that are not listed.
    pub omitted: u64,
    /// Notes that are not faults.
    pub notes: Vec<String>,
}

impl Report {
    /// Whether there are no findings.
    pub fn is_good(&self) -> bool {
        self.findings.is_empty()
    }
}
