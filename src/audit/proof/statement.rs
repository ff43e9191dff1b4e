//! Proofs that can be checked without the store: of records in the log, and of an earlier log that
//! is a prefix of a later one.

use std::{fs, io, path::Path};

use serde::{Deserialize, Serialize};
use tlog_tiles::{check_record, check_tree, prove_record, prove_tree};

use super::{
    Hash, Part, PrunedSegmentProof, SignedSize, Signer, Verifier,
    checkpoint::{NoCheckpoint, Signed},
    node_hashes::NodeHashes,
    note_file,
    verify::{CHECKPOINTS, closed},
};
use crate::{
    line::{Line, LineHead},
    store::{Fault, SegmentInfo, View},
};

/// Version of the proof format.
const VERSION: u8 = 1;

/// Proof, complete except for the verifier key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "proof", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Proof {
    /// Proof that records are in the log.
    Inclusion {
        v: u8,
        /// Signed note of the tree that contains the records.
        checkpoint: String,
        records: Vec<Included>,
    },
    /// Proof that one log is a prefix of another.
    Consistency {
        v: u8,
        /// Signed note of the smaller tree.
        from: String,
        /// Signed note of the larger tree.
        to: String,
        /// Consistency path, RFC 9162, section 2.1.4.
        path: Vec<Hash>,
    },
}

/// A record with its path to the root.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Included {
    /// `seq` of the record.
    pub seq: u64,
    /// Line of the record, byte for byte.
    pub line: String,
    /// Inclusion path, RFC 9162, section 2.1.3.
    pub path: Vec<Hash>,
}

/// Result of a valid proof.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "proves", rename_all = "kebab-case")]
pub enum Proven {
    /// These lines are in the signed log.
    Inclusion { origin: String, signed: SignedSize, lines: Vec<String> },
    /// The log `from` is a prefix of the log `to`.
    Consistency { origin: String, from: SignedSize, to: SignedSize },
}

/// Reasons why a proof is invalid.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProofFault {
    #[error("it is not a proof: {0}")]
    Malformed(String),
    #[error(
        "it is a proof of version {0}, and this version of portcullis checks version {VERSION}"
    )]
    Version(u8),
    #[error("its checkpoint is not valid: {0}")]
    Checkpoint(String),
    #[error("record {0} is not in the log that was signed, or not as it stands here")]
    NotIncluded(u64),
    #[error("the log that was signed first is not the beginning of the other one")]
    Inconsistent,
}

impl From<NoCheckpoint> for ProofFault {
    fn from(fault: NoCheckpoint) -> Self {
        Self::Checkpoint(fault.to_string())
    }
}

fn size(signed: &Signed) -> SignedSize {
    SignedSize { size: signed.checkpoint.size, time: signed.checkpoint.time }
}

fn theirs(path: &[Hash]) -> Vec<tlog_tiles::Hash> {
    path.iter().map(|hash| tlog_tiles::Hash(hash.0)).collect()
}

fn ours(path: Vec<tlog_tiles::Hash>) -> Vec<Hash> {
    path.into_iter().map(|hash| Hash(hash.0)).collect()
}

impl Proof {
    /// Parses a proof.
    ///
    /// # Errors
    /// If the text is not a proof.
    pub fn parse(text: &[u8]) -> Result<Self, ProofFault> {
        serde_json::from_slice(text).map_err(|e| ProofFault::Malformed(e.to_string()))
    }

    /// Checks the proof with this key only.
    ///
    /// # Errors
    /// [`ProofFault`], if the proof is invalid.
    pub fn check(&self, key: &Verifier) -> Result<Proven, ProofFault> {
        match self {
            Self::Inclusion { v: VERSION, checkpoint, records } => {
                let signed = Signed::open(checkpoint, key)?;
                let root = tlog_tiles::Hash(signed.checkpoint.root.0);
                let mut lines = Vec::new();
                for Included { seq, line, path } in records {
                    let leaf = tlog_tiles::Hash(Hash::leaf(line.as_bytes()).0);
                    let head = LineHead::read(line.as_bytes());
                    check_record(&theirs(path), signed.checkpoint.size, root, *seq, leaf)
                        .ok()
                        .filter(|()| head.is_some_and(|head| head.seq.0 == *seq))
                        .ok_or(ProofFault::NotIncluded(*seq))?;
                    lines.push(line.clone());
                }
                if lines.is_empty() {
                    return Err(ProofFault::Malformed("it has no records".into()));
                }
                let origin = signed.checkpoint.origin.clone();
                Ok(Proven::Inclusion { origin, signed: size(&signed), lines })
            }
            Self::Consistency { v: VERSION, from, to, path } => {
                let (from, to) = (Signed::open(from, key)?, Signed::open(to, key)?);
                let (a, b) = (&from.checkpoint, &to.checkpoint);
                let root = |hash: Hash| tlog_tiles::Hash(hash.0);
                let holds = if a.size == 0 {
                    path.is_empty() && a.root == Hash::empty()
                } else {
                    check_tree(&theirs(path), b.size, root(b.root), a.size, root(a.root)).is_ok()
                };
                if !holds {
                    return Err(ProofFault::Inconsistent);
                }
                let origin = a.origin.clone();
                Ok(Proven::Consistency { origin, from: size(&from), to: size(&to) })
            }
            Self::Inclusion { v, .. } | Self::Consistency { v, .. } => Err(ProofFault::Version(*v)),
        }
    }
}

/// All checkpoints of a store that parse, in order. Does not check signatures.
fn checkpoints(dir: &Path) -> Result<Vec<Signed>, Fault> {
    let path = dir.join(CHECKPOINTS);
    let bytes = match fs::read(&path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        Err(error) => return Err(Fault::io("reading", &path, &error)),
    };
    let notes = note_file::split(&bytes).notes.into_iter();
    let texts = notes.filter_map(|(_, note)| std::str::from_utf8(note).ok());
    Ok(texts.filter_map(Signed::unchecked).collect())
}

fn damaged(error: tlog_tiles::Error) -> Fault {
    Fault::Damaged(format!("the tree of the log: {error}"))
}

/// Proves that these records are in the log. `None` if no checkpoint covers all of them yet.
pub(crate) fn include(
    dir: &Path,
    keys: &[Verifier],
    view: &View,
    lines: &[Line],
) -> Result<Option<Proof>, Fault> {
    let seqs: Vec<u64> = lines.iter().map(|line| line.seq().0).collect();
    let (Some(&first), Some(&last)) = (seqs.iter().min(), seqs.iter().max()) else {
        return Ok(None);
    };
    let mut all = checkpoints(dir)?;
    all.retain(|signed| {
        signed.checkpoint.size > last
            && signed.checkpoint.size <= view.end()
            && keys.iter().any(|key| key.name() == signed.checkpoint.origin)
    });
    let smallest = all.into_iter().min_by_key(|signed| signed.checkpoint.size);
    let Some(Signed { checkpoint, note, .. }) = smallest else { return Ok(None) };
    let size = checkpoint.size;
    let split: Vec<u64> = seqs.iter().copied().chain([size - 1]).collect();
    let hashes = NodeHashes::gather(dir, keys, view, (first, size), &split)?;
    let mut records = Vec::new();
    for line in lines {
        let seq = line.seq().0;
        let path = ours(prove_record(size, seq, &hashes).map_err(damaged)?);
        let text = String::from_utf8(line.text().to_vec());
        let line = text.map_err(|_| Fault::Damaged(format!("record {seq} is not UTF-8")))?;
        records.push(Included { seq, line, path });
    }
    Ok(Some(Proof::Inclusion { v: VERSION, checkpoint: note, records }))
}

/// Proves that the log at the checkpoint of size `from` is a prefix of that of size `to`.
/// `Err(Ok(size))` if there is no checkpoint of that size.
pub(crate) fn consist(
    dir: &Path,
    keys: &[Verifier],
    view: &View,
    (from, to): (u64, u64),
) -> Result<Proof, Result<u64, Fault>> {
    let all = checkpoints(dir).map_err(Err)?;
    let of =
        |size: u64| all.iter().rev().find(|signed| signed.checkpoint.size == size).ok_or(Ok(size));
    let (a, b) = (of(from)?, of(to)?);
    let path = if from == 0 {
        Vec::new()
    } else {
        let split: Vec<u64> = [from - 1, to.saturating_sub(1)].into();
        let hashes = NodeHashes::gather(dir, keys, view, (from - 1, to), &split).map_err(Err)?;
        ours(prove_tree(to, from, &hashes).map_err(damaged).map_err(Err)?)
    };
    Ok(Proof::Consistency { v: VERSION, from: a.note.clone(), to: b.note.clone(), path })
}

/// Saves the hashes of a closed segment for proofs durably, so that its folder can be removed.
pub(crate) fn keep(
    dir: &Path,
    signer: &Signer,
    view: &View,
    segment: &SegmentInfo,
) -> Result<(), Fault> {
    let SegmentInfo { first, end, .. } = *segment;
    let (blocks, unreadable) = view.blocks(first, end.saturating_sub(1), None, None);
    if let Some(what) = unreadable.into_iter().next() {
        return Err(Fault::Damaged(what));
    }
    let (Some(begin), Some(last)) = (blocks.first(), blocks.last()) else {
        return Err(Fault::Damaged(format!("the segment {first} has no records")));
    };
    let mut parts = Vec::new();
    for block in &blocks {
        let (lead, tiles, trail) = block.hashes();
        parts.extend(lead.into_iter().map(Part::Leaf));
        parts.extend(tiles.into_iter().map(Part::Tile));
        parts.extend(trail.into_iter().map(Part::Leaf));
    }
    // A changed index or record must not get a signature.
    let key = [signer.verifier().clone()];
    let mut tree = NodeHashes::gather(dir, &key, view, (first, first), &[])?.base().clone();
    for part in &parts {
        match part {
            Part::Leaf(leaf) => tree.append(*leaf),
            Part::Tile(root) => {
                tree.append_tile(*root).map_err(|e| Fault::Damaged(e.to_string()))?;
            }
        }
    }
    if !closed(dir, first).is_ok_and(|closed| closed.is_some_and(|closed| closed.tree == tree)) {
        return Err(Fault::Damaged(format!(
            "the hashes of the segment {first} are not those with which it was closed: it is \
             kept; run `portcullis audit verify`"
        )));
    }
    let final_line = view.lines(end - 1, 1)?.pop();
    let mut stub = PrunedSegmentProof {
        first,
        end,
        began: begin.begin(),
        ended: last.end(),
        last: final_line
            .map(|line| line.hash())
            .ok_or_else(|| Fault::Damaged(format!("record {} is not there", end - 1)))?,
        parts,
    };
    let sizes: Vec<_> = checkpoints(dir)?.iter().map(|signed| signed.checkpoint.size).collect();
    stub.split(&sizes, |range| {
        let count = usize::try_from(range.end - range.start).unwrap_or(usize::MAX);
        let lines = view.lines(range.start, count)?;
        if lines.len() < count {
            return Err(Fault::Damaged(format!("records from {} on are not there", range.start)));
        }
        Ok(lines.iter().map(Line::hash).collect())
    })?;
    stub.write(dir, signer)
        .map_err(|error| Fault::io("writing", &PrunedSegmentProof::path(dir, first), &error))
}
