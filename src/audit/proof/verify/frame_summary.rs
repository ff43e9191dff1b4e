//! Summary of one frame after reading. Summaries are computed in parallel.

use jiff::Timestamp;

use super::{
    finding::{Finding, FindingKind},
    frames::Unit,
};
use crate::{
    line::LineHead,
    maintenance::Cipher,
    proof::{Frontier, Hash, TILE},
    store::frame::{self, BadFrame},
};

/// Maximum number of findings per frame: a forged file could have one for each line.
const MOST: usize = 3;

/// Summary of a frame.
#[derive(Debug)]
pub(super) struct Digest {
    pub first: u64,
    pub count: u64,
    /// Predecessor hash in its first line; `None` if the head of that line cannot be read.
    pub prev: Option<Hash>,
    /// Hash of its last line.
    pub last: Hash,
    /// Times of its first and last line.
    pub begin: Timestamp,
    pub ended: Timestamp,
    pub leaves: Leaves,
    pub findings: Vec<Finding>,
}

/// Part of the tree of a frame.
#[derive(Debug)]
pub(super) enum Leaves {
    /// A whole tile, within which no tree ends.
    Tile(Hash),
    Each(Vec<Hash>),
}

/// Reasons why a frame has no summary.
#[derive(Debug)]
pub(super) enum Unread {
    Damaged(String),
    /// The frame is encrypted and the key is missing: the store cannot be verified.
    Sealed(String),
}

impl Digest {
    /// Reads and summarizes a frame, without the records before `from`. Keeps hashes of records if
    /// one of the sizes in `wanted`, which is sorted, is within the frame.
    pub fn of(
        unit: &Unit,
        from: u64,
        wanted: &[u64],
        cipher: Option<&Cipher>,
    ) -> Result<Self, Unread> {
        let bytes = unit.read().map_err(|error| Unread::Damaged(error.to_string()))?;
        let (frame, _) = frame::read(&bytes, cipher).map_err(|bad| match bad {
            BadFrame::Sealed(why) => Unread::Sealed(why),
            bad => Unread::Damaged(bad.to_string()),
        })?;
        let skipped = from.saturating_sub(unit.first);
        let mut lines = lines(&frame.body).skip(usize::try_from(skipped).unwrap_or(usize::MAX));
        let mut fold = Fold { first: unit.first + skipped, ..Fold::default() };
        lines.by_ref().for_each(|line| fold.add(line));
        fold.finish(unit, wanted).ok_or_else(|| Unread::Damaged("it has no lines".into()))
    }
}

fn lines(body: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut from = 0;
    memchr::memchr_iter(b'\n', body).map(move |end| {
        let line = body.get(from..end).unwrap_or_default();
        from = end + 1;
        line
    })
}

#[derive(Default)]
struct Fold {
    first: u64,
    prev: Option<Hash>,
    hashes: Vec<Hash>,
    times: Option<(Timestamp, Timestamp)>,
    findings: Vec<Finding>,
}

impl Fold {
    fn add(&mut self, line: &[u8]) {
        let seq = self.first + self.hashes.len() as u64;
        let before = self.hashes.last().copied();
        self.hashes.push(Hash::leaf(line));
        let Some(head) = LineHead::read(line) else {
            let message = "this is not how the line of a record begins";
            return self.find(Finding::new(FindingKind::LineMalformed, message).seq(seq));
        };
        if head.seq.0 != seq {
            let message = format!("the record {} stands where this one belongs", head.seq);
            self.find(Finding::new(FindingKind::RecordMisplaced, message).seq(seq));
        }
        match before {
            Some(before) if before != head.prev => self.find(broken(seq)),
            Some(_) => {}
            None => self.prev = Some(head.prev),
        }
        let (begin, newest) = self.times.unwrap_or((head.recorded, head.recorded));
        if head.recorded < newest {
            self.find(back(seq, head.recorded, newest));
        }
        self.times = Some((begin, newest.max(head.recorded)));
    }

    fn find(&mut self, finding: Finding) {
        if self.findings.len() < MOST {
            self.findings.push(finding);
        }
    }

    fn finish(self, unit: &Unit, wanted: &[u64]) -> Option<Digest> {
        let Self { first, prev, hashes, times, findings } = self;
        let last = *hashes.last()?;
        let (begin, ended) = times.unwrap_or((Timestamp::MIN, Timestamp::MIN));
        let count = hashes.len() as u64;
        let has_wanted = wanted
            .get(wanted.partition_point(|size| *size <= first))
            .is_some_and(|size| *size < first + count);
        let leaves = if count == TILE && first.is_multiple_of(TILE) && !has_wanted {
            Leaves::Tile(Frontier::of_tiles([], hashes).root())
        } else {
            Leaves::Each(hashes)
        };
        let findings = findings.into_iter().map(|finding| locate(finding, unit)).collect();
        Some(Digest { first, count, prev, last, begin, ended, leaves, findings })
    }
}

/// Adds the position of the frame to a finding.
pub(super) fn locate(finding: Finding, unit: &Unit) -> Finding {
    finding.file(unit.source.name.as_str()).at(unit.offset)
}

pub(super) fn broken(seq: u64) -> Finding {
    let message = format!(
        "the record before is not the one that this record names: one of the two was changed, or \
         records between them were removed, put in or moved{}",
        if seq == 0 { " (this is the first record)" } else { "" }
    );
    Finding::new(FindingKind::ChainBroken, message).seq(seq)
}

pub(super) fn back(seq: u64, recorded: Timestamp, newest: Timestamp) -> Finding {
    let message = format!("its time is {recorded:.6}, and an earlier record has {newest:.6}");
    Finding::new(FindingKind::TimeBack, message).seq(seq)
}
