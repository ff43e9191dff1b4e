//! Scan over all records in order: checks the chain, the tree, and every checkpoint.

use std::{io, path::Path};

use jiff::Timestamp;
use rayon::prelude::*;

use super::{
    Fault, Head, ScanAborted,
    checkpoint_set::{CheckpointSet, StoredCheckpoint},
    failed,
    files::{self, Segment},
    finding::{Finding, FindingKind, Findings, SignedSize},
    frame_summary::{self, Digest, Leaves, Unread},
    frames::{FilePart, Unit},
};
use crate::{
    maintenance::Cipher,
    proof::{
        Frontier, Hash, TILE, Verifier,
        checkpoint::Checkpoint,
        pruned_segment::{Part, PrunedSegmentProof},
    },
};

/// Frames that are read in parallel in one step.
const BATCH: usize = 512;
/// Tolerated delay of a checkpoint in seconds: disks are slow and machines sleep.
const GRACE: i64 = 600;

/// Result of a scan.
pub(super) struct ScanResult {
    pub first: u64,
    pub end: u64,
    pub records: u64,
    pub checkpoints: u64,
    pub signed: Option<SignedSize>,
    pub findings: Findings,
    pub notes: Vec<String>,
}

/// State of a scan.
pub(super) struct Scan<'a> {
    dir: &'a Path,
    keys: &'a [Verifier],
    stored: &'a [StoredCheckpoint],
    newest: Option<&'a Checkpoint>,
    head: Option<(u64, Hash)>,
    /// Whether `head` is missing or empty.
    headless: bool,
    cipher: Option<&'a Cipher>,
    /// Sizes of trees that end within a frame, sorted.
    wanted: Vec<u64>,
    /// `seq` of the next record.
    next: u64,
    /// Hash of the preceding record, if known.
    prev: Option<Hash>,
    /// Latest time of all records so far.
    recorded: Timestamp,
    /// Tree over all preceding records, if known.
    tree: Option<Frontier>,
    /// Whether the tree comes from records or from a valid checkpoint.
    trusted: bool,
    /// Size of the checkpoint to begin at.
    anchor: Option<u64>,
    /// Index of the next checkpoint in `kept`.
    at: usize,
    /// Whether a finding already explains why records are missing here.
    explained: bool,
    /// The newest valid checkpoint, and whether the one before the next was invalid.
    signed: Option<SignedSize>,
    mismatched: bool,
    /// Lower bound for the time of the first record after the newest checkpoint.
    uncovered: Option<Timestamp>,
    records: u64,
    checkpoints: u64,
    /// Checkpoints that could not be compared, and those that a finding already covers.
    unchecked: u64,
    also: u64,
    findings: Findings,
    notes: Vec<String>,
}

impl<'a> Scan<'a> {
    pub fn new(
        dir: &'a Path,
        keys: &'a [Verifier],
        checkpoints: &'a CheckpointSet,
        head: Head,
        cipher: Option<&'a Cipher>,
        findings: Findings,
    ) -> Self {
        let headless = matches!(head, Head::Missing);
        let head = match head {
            Head::At(seq, hash) => Some((seq, hash)),
            Head::Start | Head::Damaged | Head::Missing => None,
        };
        let sizes = checkpoints.stored.iter().map(|stored| stored.signed.checkpoint.size);
        let mut wanted: Vec<_> = sizes.chain(head.map(|(seq, _)| seq.saturating_add(1))).collect();
        wanted.sort_unstable();
        wanted.dedup();
        Self {
            dir,
            keys,
            stored: &checkpoints.stored,
            newest: checkpoints.newest.as_ref().map(|signed| &signed.checkpoint),
            head,
            headless,
            cipher,
            wanted,
            next: 0,
            prev: Some(Hash::ZERO),
            recorded: Timestamp::MIN,
            tree: Some(Frontier::default()),
            trusted: true,
            anchor: None,
            at: 0,
            explained: false,
            signed: None,
            mismatched: false,
            uncovered: None,
            records: 0,
            checkpoints: 0,
            unchecked: 0,
            also: 0,
            findings,
            notes: Vec::new(),
        }
    }

    /// Scans from the beginning, or from a trusted checkpoint.
    pub fn run(mut self, since: Option<&Checkpoint>) -> Result<ScanResult, ScanAborted> {
        let segments = files::segments(self.dir).map_err(failed(self.dir))?;
        let dropped = files::dropped(self.dir).map_err(failed(self.dir))?;
        // A segment that is being dropped is in both lists.
        let stubs = dropped.into_iter().filter(|first| segments.binary_search(first).is_err());
        let mut all: Vec<_> = stubs.map(|first| (first, true)).collect();
        all.extend(segments.iter().map(|first| (*first, false)));
        all.sort_unstable();
        let begin = since.map_or(0, |since| self.begin(since, &all));
        self.pass();
        let newest = segments.last().copied();
        for (at, (first, stub)) in all.iter().enumerate() {
            let end = all.get(at + 1).map_or(u64::MAX, |(next, _)| *next);
            if end <= begin {
                continue;
            }
            self.gap(*first, None);
            if *stub {
                self.stub(*first)?;
            } else {
                self.resume(*first);
                self.segment(*first, newest == Some(*first))?;
            }
        }
        self.finish();
        let first = since.map_or_else(|| segments.first().copied().unwrap_or(0), |c| c.size);
        Ok(ScanResult {
            first: first.min(self.next),
            end: self.next,
            records: self.records,
            checkpoints: self.checkpoints,
            signed: self.signed,
            findings: self.findings,
            notes: self.notes,
        })
    }

    /// Skips to the last known tree before a checkpoint. The tree need not be trusted: the
    /// checkpoint's root confirms it.
    fn begin(&mut self, since: &Checkpoint, all: &[(u64, bool)]) -> u64 {
        self.anchor = Some(since.size);
        self.at = self.stored.partition_point(|stored| stored.signed.checkpoint.size < since.size);
        for (first, _) in all.iter().rev() {
            let Ok(Some(closed)) = files::closed(self.dir, *first) else { continue };
            if closed.end <= since.size && closed.tree.size() == closed.end {
                self.next = closed.end;
                self.prev = Some(closed.last);
                self.recorded = closed.ended;
                self.tree = Some(closed.tree);
                self.trusted = false;
                return closed.end;
            }
        }
        0
    }

    /// Reports the records up to `first` as missing.
    fn gap(&mut self, first: u64, unit: Option<&Unit>) {
        if first <= self.next {
            return;
        }
        if !self.explained {
            let message = if unit.is_some() {
                format!("the records {} to {} are not there", self.next, first - 1)
            } else {
                format!(
                    "the records {} to {} are not there: no segment has them, and there is no \
                     proof that retention dropped them",
                    self.next,
                    first - 1
                )
            };
            let finding = Finding::new(FindingKind::RecordMissing, message).seq(self.next);
            self.findings.add(match unit {
                Some(unit) => frame_summary::locate(finding, unit),
                None => finding.file("segments"),
            });
        }
        self.next = first;
        self.prev = None;
        self.tree = None;
        self.explained = false;
        self.pass();
    }

    /// After damage, continues with the tree at the end of the preceding segment's summary.
    fn resume(&mut self, first: u64) {
        if self.tree.is_some() {
            return;
        }
        let before = files::segments(self.dir).unwrap_or_default();
        let before = before.iter().rev().find(|begin| **begin < first);
        let closed = before.and_then(|before| files::closed(self.dir, *before).ok().flatten());
        if let Some(closed) = closed.filter(|c| c.end == first && c.tree.size() == first) {
            self.tree = Some(closed.tree);
            self.trusted = false;
        }
    }

    fn stub(&mut self, first: u64) -> Result<(), ScanAborted> {
        let path = PrunedSegmentProof::path(self.dir, first);
        let name = format!("dropped/{first:016}.proof");
        let stub = match PrunedSegmentProof::read(self.dir, first, self.keys) {
            Ok(Ok(stub)) => stub,
            Ok(Err(fault)) => {
                self.findings.add(
                    Finding::new(FindingKind::ProofDamaged, fault.to_string())
                        .file(name)
                        .seq(first),
                );
                self.explained = true;
                return Ok(());
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(ScanAborted::Moved);
            }
            Err(error) => return Err(failed(&path)(error).into()),
        };
        for part in &stub.parts {
            match (part, &mut self.tree) {
                (Part::Leaf(leaf), Some(tree)) => {
                    tree.append(*leaf);
                    self.prev = Some(*leaf);
                }
                (Part::Tile(root), Some(tree)) => {
                    if tree.append_tile(*root).is_err() {
                        let message = "a tile stands where none can begin";
                        let finding = Finding::new(FindingKind::ProofMismatch, message);
                        self.findings.add(finding.file(name.as_str()).seq(self.next));
                        self.tree = None;
                    }
                }
                (_, None) => {}
            }
            self.next += match part {
                Part::Leaf(_) => 1,
                Part::Tile(_) => TILE,
            };
            self.pass();
        }
        self.prev = Some(stub.last);
        self.recorded = self.recorded.max(stub.ended);
        Ok(())
    }

    fn segment(&mut self, first: u64, newest: bool) -> Result<(), ScanAborted> {
        let opened = Segment::open(self.dir, first).map_err(failed(self.dir))?;
        let segment = opened.ok_or(ScanAborted::Moved)?;
        let content = segment.content().map_err(failed(self.dir))?;
        let found = self.findings.count();
        for pieces in content.pieces.chunk_by(|a, b| a.unit().is_some() == b.unit().is_some()) {
            for pieces in pieces.chunks(BATCH) {
                self.pieces(pieces)?;
            }
        }
        if found == self.findings.count() {
            self.closed(first);
        }
        if let Some(FilePart::Damage { source, bytes, .. }) = content.unfinished.filter(|_| newest)
        {
            let acknowledged = self.head.is_some_and(|(seq, _)| seq >= self.next);
            if acknowledged {
                let finding =
                    Finding::new(FindingKind::FrameDamaged, "this is not a frame of records");
                self.findings
                    .add(finding.file(source.name.as_str()).at(bytes.start).seq(self.next));
                self.explained = true;
            } else {
                self.notes.push(format!(
                    "{} at byte {}: a commit that was not finished; none of it was acknowledged",
                    source.name, bytes.start
                ));
            }
        }
        Ok(())
    }

    /// Compares the summary of a closed segment with its records, which had no findings: the proxy
    /// uses the summary when it starts.
    fn closed(&mut self, first: u64) {
        let problem = match files::closed(self.dir, first) {
            Ok(None) => return,
            Ok(Some(closed)) => {
                let Some(tree) = self.tree.as_ref().filter(|_| self.trusted) else { return };
                if closed.end == self.next && closed.tree == *tree && Some(closed.last) == self.prev
                {
                    return;
                }
                "it does not match the records"
            }
            Err(_) => "it can't be read",
        };
        let finding = Finding::new(FindingKind::IndexMismatch, problem);
        self.findings.add(finding.file(format!("segments/{first:016}/{}", files::CLOSED)));
    }

    fn pieces(&mut self, pieces: &[FilePart]) -> Result<(), ScanAborted> {
        let mut after = self.next;
        let mut from = Vec::with_capacity(pieces.len());
        for unit in pieces.iter().filter_map(FilePart::unit) {
            from.push((unit, unit.first.max(if unit.first < after { after } else { 0 })));
            after = after.max(unit.records().end);
        }
        let digests: Vec<_> = from
            .par_iter()
            .map(|(unit, from)| {
                let repeated = *from >= unit.records().end;
                (!repeated).then(|| Digest::of(unit, *from, &self.wanted, self.cipher))
            })
            .collect();
        for ((unit, _), digest) in from.iter().zip(digests) {
            match digest {
                Some(Ok(digest)) => self.frame(unit, digest),
                Some(Err(Unread::Damaged(why))) => {
                    let finding = Finding::new(FindingKind::FrameDamaged, why).seq(unit.first);
                    self.findings.add(frame_summary::locate(finding, unit));
                    self.explained = true;
                }
                Some(Err(Unread::Sealed(why))) => return Err(Fault::Sealed(why).into()),
                None => {
                    let records = unit.records();
                    let message = format!(
                        "the records {} to {} are repeated, or behind later ones",
                        records.start,
                        records.end - 1
                    );
                    let finding =
                        Finding::new(FindingKind::RecordMisplaced, message).seq(records.start);
                    self.findings.add(frame_summary::locate(finding, unit));
                }
            }
        }
        for piece in pieces {
            if let FilePart::Damage { source, bytes, last } = piece {
                let message = if *last {
                    "this is not a frame of records, and no frame follows it".to_owned()
                } else {
                    format!("this is not a frame of records, up to byte {}", bytes.end)
                };
                let finding = Finding::new(FindingKind::FrameDamaged, message).seq(self.next);
                self.findings.add(finding.file(source.name.as_str()).at(bytes.start));
                self.explained = true;
            }
        }
        Ok(())
    }

    fn frame(&mut self, unit: &Unit, digest: Digest) {
        self.gap(digest.first, Some(unit));
        self.explained = false;
        let Digest { first, count, prev, last, begin, ended, leaves, findings } = digest;
        findings.into_iter().for_each(|finding| self.findings.add(finding));
        if let (Some(previous), Some(named)) = (self.prev, prev)
            && previous != named
        {
            self.findings.add(frame_summary::locate(frame_summary::broken(first), unit));
        }
        if begin != Timestamp::MIN && begin < self.recorded {
            self.findings
                .add(frame_summary::locate(frame_summary::back(first, begin, self.recorded), unit));
        }
        self.recorded = self.recorded.max(ended);
        self.head_is(first, &leaves, last);
        match leaves {
            Leaves::Tile(root) => {
                let added = self.tree.as_mut().map(|tree| tree.append_tile(root));
                if matches!(added, Some(Err(_))) {
                    self.tree = None;
                }
                self.next += count;
                self.pass();
            }
            Leaves::Each(hashes) => {
                for hash in hashes {
                    if let Some(tree) = &mut self.tree {
                        tree.append(hash);
                    }
                    self.next += 1;
                    self.pass();
                }
            }
        }
        self.records += count;
        self.prev = Some(last);
        if self.uncovered.is_none() && self.newest.is_some_and(|newest| newest.size < self.next) {
            self.uncovered = Some(ended);
        }
    }

    /// Compares the last acknowledged record with its hash in `head`.
    fn head_is(&mut self, first: u64, leaves: &Leaves, last: Hash) {
        let Some((seq, hash)) = self.head else { return };
        let Some(at) = seq.checked_sub(first) else { return };
        let found = match leaves {
            Leaves::Tile(_) => (at == TILE - 1).then_some(last),
            Leaves::Each(hashes) => usize::try_from(at).ok().and_then(|at| hashes.get(at)).copied(),
        };
        if found.is_some_and(|found| found != hash) {
            let message =
                "this is not the record that was acknowledged, of which `head` has the hash";
            self.findings
                .add(Finding::new(FindingKind::HeadMismatch, message).file("head").seq(seq));
        }
    }

    /// Compares the checkpoints up to the current position with the tree.
    fn pass(&mut self) {
        while let Some(stored) =
            self.stored.get(self.at).filter(|k| k.signed.checkpoint.size <= self.next)
        {
            self.at += 1;
            let checkpoint = &stored.signed.checkpoint;
            let tree = self.tree.as_ref().filter(|tree| tree.size() == checkpoint.size);
            match tree.map(|tree| tree.root() == checkpoint.root) {
                Some(true) => {
                    self.checkpoints += 1;
                    self.trusted = true;
                    self.mismatched = false;
                    self.signed = Some(SignedSize { size: checkpoint.size, time: checkpoint.time });
                }
                Some(false) if self.trusted || self.anchor == Some(checkpoint.size) => {
                    self.checkpoints += 1;
                    // One finding covers all effects of a change.
                    if std::mem::replace(&mut self.mismatched, true) {
                        self.also += 1;
                    } else {
                        self.findings.add(mismatch(stored, self.signed.as_ref()));
                    }
                }
                Some(false) | None => self.unchecked += 1,
            }
        }
    }

    fn finish(&mut self) {
        let beyond = self.stored.get(self.at..).unwrap_or_default();
        if let Some(stored) = beyond.last() {
            let Checkpoint { size, time, number, .. } = &stored.signed.checkpoint;
            let message = format!(
                "the log ends before record {}, and checkpoint {number} of {size} records was \
                 signed at {time}",
                self.next
            );
            let finding = Finding::new(FindingKind::TailCut, message).seq(self.next);
            self.findings.add(finding.file(stored.file.as_str()).at(stored.offset));
        } else if let Some((seq, _)) = self.head.filter(|(seq, _)| *seq >= self.next)
            && !self.explained
        {
            let message = format!(
                "the log ends before record {}, and record {seq} was acknowledged",
                self.next
            );
            self.findings
                .add(Finding::new(FindingKind::TailCut, message).file("head").seq(self.next));
        }
        if self.headless && self.next > 0 {
            let message = "it is not there, or empty: whether records behind the newest \
                           checkpoint were cut off is unknown";
            self.findings.add(Finding::new(FindingKind::HeadMissing, message).file("head"));
        }
        if self.also > 0 {
            self.notes
                .push(format!("{} more checkpoints do not hold for the same reason", self.also));
        }
        if self.unchecked > 0 {
            self.notes.push(format!(
                "{} checkpoints could not be checked: hashes of records before them are gone",
                self.unchecked
            ));
        }
        self.overdue();
    }

    /// Reports that no checkpoint followed the newest one within the time that it names.
    fn overdue(&mut self) {
        let (Some(newest), Some(since)) = (self.newest, self.uncovered) else { return };
        let since = since.max(newest.time);
        let late = self.recorded.as_second().saturating_sub(since.as_second());
        let due = i64::try_from(newest.next.time.as_secs()).unwrap_or(i64::MAX);
        if late > due.saturating_add(GRACE) {
            let message = format!(
                "no checkpoint was signed after {since}, and records until {}: checkpoints were \
                 removed, or the proxy could not sign any (see its log)",
                self.recorded
            );
            let finding = Finding::new(FindingKind::CheckpointOverdue, message);
            self.findings.add(finding.file(super::CHECKPOINTS).seq(newest.size));
        }
    }
}

fn mismatch(stored: &StoredCheckpoint, good: Option<&SignedSize>) -> Finding {
    let Checkpoint { size, time, number, .. } = &stored.signed.checkpoint;
    let from = good.map_or(0, |good| good.size);
    let message = format!(
        "the first {size} records are not those for which checkpoint {number} was signed at \
         {time}: one of the records {from} to {} was changed",
        size.saturating_sub(1)
    );
    let finding = Finding::new(FindingKind::RootMismatch, message).seq(from);
    finding.file(stored.file.as_str()).at(stored.offset)
}
