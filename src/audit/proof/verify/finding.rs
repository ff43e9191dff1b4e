//! What verification says.

use std::fmt;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// Findings that a report lists; more are counted.
pub(super) const MOST: usize = 200;

/// What can be wrong with a log. The words are stable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum What {
    /// Bytes of a file are not what was written.
    FrameDamaged,
    /// A line does not begin as the line of a record does.
    LineMalformed,
    /// Records are not there.
    RecordMissing,
    /// A record stands where another one belongs.
    RecordMisplaced,
    /// A record does not name the one before it.
    ChainBroken,
    /// A record is older than the one before it.
    TimeBack,
    /// The records are not those that a checkpoint was signed for.
    RootMismatch,
    /// The log ends before records that it had.
    TailCut,
    /// The last record is not the one that was acknowledged last.
    HeadMismatch,
    /// `head` can't be read.
    HeadDamaged,
    /// `head` is not there, or empty.
    HeadMissing,
    /// A checkpoint can't be read.
    CheckpointMalformed,
    /// A checkpoint was changed after it was signed.
    CheckpointForged,
    /// A checkpoint was signed by another key.
    CheckpointOtherKey,
    /// A checkpoint is of another store.
    CheckpointOtherStore,
    /// Checkpoints are not there.
    CheckpointMissing,
    /// A checkpoint does not name the one before it.
    CheckpointMisplaced,
    /// There is no checkpoint where one was due.
    CheckpointOverdue,
    /// The key is for another store.
    StoreSwapped,
    /// What retention kept of a segment can't be read, or was not signed.
    ProofDamaged,
    /// What retention kept of a segment is not what was there.
    ProofMismatch,
    /// What a segment or its index says is not what its records say.
    IndexMismatch,
    /// `digest.key` is not the key that digests were made with, or not there.
    DigestKeyChanged,
    /// Another file that checkpoints name was changed or removed.
    FileChanged,
}

impl fmt::Display for What {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Serde has the words; a unit variant can't fail.
        self.serialize(f)
    }
}

/// One thing that is wrong, and where.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    pub what: What,
    /// In words, for a person.
    pub message: String,
    /// The file, within the store's folder unless it begins with `/`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<String>,
    /// The byte of the file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub offset: Option<u64>,
    /// The record.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seq: Option<u64>,
}

impl Finding {
    pub(in crate::proof) fn new(what: What, message: impl Into<String>) -> Self {
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

/// Findings as they come, so many and no more.
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

/// Where the key came from that checkpoints were checked with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum KeySource {
    /// It was given.
    Given,
    /// The state folder of the proxy.
    State,
    /// The store itself: that proves nothing if all of it was replaced.
    Store,
    /// There is none.
    None,
}

/// A checkpoint in a report.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SignedSize {
    /// Records that it proves.
    pub size: u64,
    /// When it was signed.
    pub time: Timestamp,
}

/// What was looked at and what was found.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Report {
    /// The store's id.
    pub store: String,
    /// The verifier keys.
    pub keys: Vec<String>,
    pub key_source: KeySource,
    /// `seq` from which on records were read: those before are proven by checkpoints alone.
    pub first: u64,
    /// `seq` after the last record.
    pub end: u64,
    /// Records that were read.
    pub records: u64,
    /// Checkpoints that were held against the records.
    pub checkpoints: u64,
    /// The newest checkpoint that holds. Records after it are only chained.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signed: Option<SignedSize>,
    /// What is wrong.
    pub findings: Vec<Finding>,
    /// Findings that are not listed.
    pub omitted: u64,
    /// What is not wrong, but worth knowing.
    pub notes: Vec<String>,
}

impl Report {
    /// Whether nothing is wrong.
    pub fn is_good(&self) -> bool {
        self.findings.is_empty()
    }
}
