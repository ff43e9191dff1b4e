//! Hashes of a dropped segment that retention keeps: enough to check all checkpoints, all remaining
//! records and all proofs between them. A signature proves that an authorized process dropped the
//! segment.
//!
//! ```text
//! portcullis/STORE/dropped
//! first 0
//! end 4711
//! began TIME OF ITS FIRST RECORD
//! ended TIME OF ITS LAST RECORD
//! last HASH OF ITS LAST RECORD
//! hashes SHA-256 OF ALL THAT FOLLOWS THE EMPTY LINE BEHIND THE SIGNATURE
//!
//! — portcullis/STORE SIGNATURE
//!
//! tile ROOT OF 256 RECORDS
//! leaf HASH OF ONE RECORD
//! ```

use std::{
    fmt::Write as _,
    fs, io,
    ops::Range,
    path::{Path, PathBuf},
};

use jiff::Timestamp;
use sha2::{Digest as _, Sha256};

use super::{
    Hash, TILE,
    key::{Signer, Verifier},
};
use portcullis_foundation::atomic_file;

/// Part of a segment's tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    /// Root of a whole tile.
    Tile(Hash),
    /// Hash of a record.
    Leaf(Hash),
}

impl Part {
    fn size(self) -> u64 {
        match self {
            Self::Tile(_) => TILE,
            Self::Leaf(_) => 1,
        }
    }
}

/// Hashes that retention keeps of a segment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PrunedSegmentProof {
    /// `seq` of its first record.
    pub first: u64,
    /// `seq` after its last record.
    pub end: u64,
    /// Time of its first record.
    pub began: Timestamp,
    /// Time of its last record.
    pub ended: Timestamp,
    /// Hash of its last record.
    pub last: Hash,
    /// Tiles and records, in order.
    pub parts: Vec<Part>,
}

/// Reasons why a file is not a saved proof.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NoStub {
    #[error("it is not what was kept of a segment")]
    Malformed,
    #[error("it was not signed by this store's key: the segment was not dropped by retention")]
    Unsigned,
}

impl PrunedSegmentProof {
    /// Path of the proof of the segment that began with `first`.
    pub fn path(dir: &Path, first: u64) -> PathBuf {
        dir.join("dropped").join(format!("{first:016}.proof"))
    }

    /// Replaces tiles within which a tree of one of these sizes ends by their records' hashes.
    ///
    /// # Errors
    /// Errors of `leaves`.
    pub fn split<E>(
        &mut self,
        sizes: &[u64],
        mut leaves: impl FnMut(Range<u64>) -> Result<Vec<Hash>, E>,
    ) -> Result<(), E> {
        let mut parts = Vec::with_capacity(self.parts.len());
        let mut at = self.first;
        for part in &self.parts {
            let range = at..at + part.size();
            if part.size() > 1 && sizes.iter().any(|size| *size > at && *size < range.end) {
                parts.extend(leaves(range.clone())?.into_iter().map(Part::Leaf));
            } else {
                parts.push(*part);
            }
            at = range.end;
        }
        self.parts = parts;
        Ok(())
    }

    fn body(&self) -> String {
        let mut body = String::with_capacity(self.parts.len() * 70);
        for part in &self.parts {
            // Writing to memory cannot fail.
            let _ = match part {
                Part::Tile(root) => writeln!(body, "tile {root}"),
                Part::Leaf(hash) => writeln!(body, "leaf {hash}"),
            };
        }
        body
    }

    fn text(&self, origin: &str, body: &str) -> String {
        let Self { first, end, began, ended, last, .. } = self;
        let hashes = Hash(Sha256::digest(body).into());
        format!(
            "{origin}/dropped\nfirst {first}\nend {end}\nbegan {began:.6}\nended {ended:.6}\n\
             last {last}\nhashes {hashes}\n"
        )
    }

    /// Writes the proof into the store in `dir`. Durable when it returns.
    ///
    /// # Errors
    /// If it cannot be signed or written.
    pub fn write(&self, dir: &Path, signer: &Signer) -> io::Result<()> {
        let body = self.body();
        let note = signer.sign(&self.text(signer.origin(), &body)).map_err(io::Error::other)?;
        let path = Self::path(dir, self.first);
        fs::create_dir_all(path.parent().unwrap_or(dir))?;
        atomic_file::write(&path, format!("{note}\n{body}").as_bytes())
    }

    /// Reads the proof of the segment that began with `first`.
    ///
    /// # Errors
    /// If it cannot be read. The inner error: it is malformed, or none of these keys signed it.
    pub fn read(dir: &Path, first: u64, keys: &[Verifier]) -> io::Result<Result<Self, NoStub>> {
        let bytes = fs::read(Self::path(dir, first))?;
        let text = String::from_utf8(bytes).map_err(|_| NoStub::Malformed);
        Ok(text
            .and_then(|text| Self::parse(&text, keys))
            .and_then(|stub| if stub.first == first { Ok(stub) } else { Err(NoStub::Malformed) }))
    }

    fn parse(text: &str, keys: &[Verifier]) -> Result<Self, NoStub> {
        let end = text.find("\n\n").ok_or(NoStub::Malformed)? + 2;
        let signed = text.get(end..).and_then(|rest| rest.find("\n\n")).ok_or(NoStub::Malformed)?;
        let (note, body) = text.split_at_checked(end + signed + 1).ok_or(NoStub::Malformed)?;
        let body = body.strip_prefix('\n').ok_or(NoStub::Malformed)?;
        let opened = keys.iter().find_map(|key| Some((key.name(), key.open(note).ok()?)));
        let (origin, text) = opened.ok_or(NoStub::Unsigned)?;
        let stub = Self::fields(&text, body).ok_or(NoStub::Malformed)?;
        // Only the canonical form is accepted, with exactly the named records.
        let total = stub.parts.iter().map(|part| part.size()).sum::<u64>();
        let right =
            stub.text(origin, body) == text && stub.end.checked_sub(stub.first) == Some(total);
        if right { Ok(stub) } else { Err(NoStub::Malformed) }
    }

    fn fields(text: &str, body: &str) -> Option<Self> {
        let mut lines = text.lines().skip(1);
        let mut value = |key: &str| lines.next()?.strip_prefix(key)?.strip_prefix(' ');
        Some(Self {
            first: value("first")?.parse().ok()?,
            end: value("end")?.parse().ok()?,
            began: value("began")?.parse().ok()?,
            ended: value("ended")?.parse().ok()?,
            last: value("last")?.parse().ok()?,
            parts: body
                .lines()
                .map(|line| match line.split_once(' ')? {
                    ("tile", root) => Some(Part::Tile(root.parse().ok()?)),
                    ("leaf", hash) => Some(Part::Leaf(hash.parse().ok()?)),
                    _ => None,
                })
                .collect::<Option<_>>()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proof::Frontier;

    fn stub() -> PrunedSegmentProof {
        let tile = |at: u64| Part::Tile(tile(at));
        PrunedSegmentProof {
            first: 256,
            end: 256 * 3 + 2,
            began: Timestamp::UNIX_EPOCH,
            ended: Timestamp::UNIX_EPOCH,
            last: leaf(256 * 3 + 1),
            parts: vec![tile(256), tile(512), Part::Leaf(leaf(768)), Part::Leaf(leaf(769))],
        }
    }

    fn leaf(seq: u64) -> Hash {
        Hash::leaf(&seq.to_le_bytes())
    }

    fn tile(first: u64) -> Hash {
        Frontier::of_tiles([], (first..first + 256).map(leaf)).root()
    }

    #[test]
    fn only_a_signed_unchanged_proof_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let signer = Signer::for_tests("ab", 1);
        let keys = [Signer::for_tests("cd", 2).verifier().clone(), signer.verifier().clone()];
        stub().write(dir.path(), &signer).unwrap();
        assert_eq!(PrunedSegmentProof::read(dir.path(), 256, &keys).unwrap(), Ok(stub()));
        assert_eq!(
            PrunedSegmentProof::read(dir.path(), 256, &keys[..1]).unwrap(),
            Err(NoStub::Unsigned)
        );
        let path = PrunedSegmentProof::path(dir.path(), 256);
        let good = fs::read(&path).unwrap();
        for at in 0..good.len() {
            let mut bytes = good.clone();
            bytes[at] ^= 1;
            fs::write(&path, bytes).unwrap();
            assert!(
                PrunedSegmentProof::read(dir.path(), 256, &keys).unwrap().is_err(),
                "byte {at}"
            );
        }
        fs::write(PrunedSegmentProof::path(dir.path(), 512), good).unwrap();
        assert_eq!(
            PrunedSegmentProof::read(dir.path(), 512, &keys).unwrap(),
            Err(NoStub::Malformed)
        );
    }

    #[test]
    fn tiles_with_a_checkpoint_are_stored_as_leaves() {
        let mut pruned = stub();
        pruned
            .split::<()>(&[1, 256, 512, 600, 769, 5000], |range| Ok(range.map(leaf).collect()))
            .unwrap();
        let leaves: Vec<_> = (512..770).map(leaf).map(Part::Leaf).collect();
        assert_eq!(pruned.parts[0], Part::Tile(tile(256)));
        assert_eq!(pruned.parts[1..], leaves);
    }
}
