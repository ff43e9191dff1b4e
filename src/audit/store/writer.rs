//! The writer. It commits records as one frame with one sync of the disk.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::{Duration, Instant},
};

use jiff::SignedDuration;
use tokio::sync::broadcast;

use super::{
    block::{Added, Growing},
    fault::Fault,
    frame::{self, Pack},
    index_terms::Facts,
    sealer::{Sealer, Task},
    segment::{Loss, Segment, Wal, free_bytes},
    segments::{self, Current, Head, HeadFile, Opened, SegmentSet},
    written::StoredRecord,
};
use crate::{
    line::{Line, LineHead, Seq},
    log::Clock,
    record::{Entry, Event, EventRecord, Kind, Record, RecordsLost, VERSION, encode},
};

const MINUTE: u64 = 60_000_000;
/// Number of records in a block after which the next block's commit file is prepared. Stores with
/// few records prepare none.
const PREPARE: u64 = 512;
/// Free bytes of the disk beyond the reserve that this preparation requires.
const PREPARE_FREE: u64 = 64 << 20;
/// Free bytes of the disk beyond the reserve with which the free space is read once in
/// [`SPACE_INTERVAL`], not before each commit: no disk is filled by this much in that time.
const AMPLE: u64 = 1 << 30;
const SPACE_INTERVAL: Duration = Duration::from_millis(100);
/// Maximum bytes of records in memory that wait to be sealed.
const UNSEALED: usize = 64 << 20;

/// Settings of a writer.
pub(crate) struct Settings {
    /// Bytes of the disk that stay free.
    pub reserve: u64,
    /// Period of a segment in microseconds.
    pub period: u64,
    /// Bytes of packed records at which a segment ends. A segment is the least that retention can
    /// drop.
    pub bytes: u64,
    /// Source of record times.
    pub clock: Clock,
}

/// A record, ready to be committed.
#[derive(Debug)]
pub(crate) struct Draft {
    record: Record,
    text: Vec<u8>,
    facts: Facts,
}

impl Draft {
    /// Encodes the record.
    pub(crate) fn new(mut record: Record) -> Result<Self, Fault> {
        let text = encode(&mut record).map_err(|e| Fault::Io(format!("encoding a record: {e}")))?;
        let facts = Facts::of(&record);
        Ok(Self { record, text, facts })
    }

    pub(super) fn kind(&self) -> Kind {
        self.record.kind()
    }

    /// Bytes of the encoded record.
    pub(super) fn len(&self) -> usize {
        self.text.len()
    }
}

/// State of the writer.
/// State of the writing thread.
pub(crate) struct Writer {
    segment_set: Arc<SegmentSet>,
    settings: Settings,
    tail: broadcast::Sender<Arc<StoredRecord>>,
    sealer: Sealer,
    mark: HeadFile,
    current: Option<Current>,
    head: Head,
    /// Events of the store that are not recorded yet.
    pending_events: Vec<Event>,
    /// Until when the free space of the disk counts as ample.
    ample_until: Option<Instant>,
    /// Smoothed duration of the syncs.
    sync_duration: Duration,
}

impl Writer {
    /// Opens the writer of a store, and records what the opening of the store found.
    pub(crate) fn open(
        opened: Opened,
        settings: Settings,
        tail: broadcast::Sender<Arc<StoredRecord>>,
    ) -> Result<Self, Fault> {
        let Opened { segment_set, current, unsealed, unclosed, loss, .. } = opened;
        let head = segment_set.head();
        let last = head.tree.size().checked_sub(1).map(|seq| (seq, head.last));
        let mark = HeadFile::open(segment_set.dir(), last)?;
        let sealer = Sealer::start(segment_set.clone())?;
        let mut writer = Self {
            segment_set,
            settings,
            tail,
            sealer,
            mark,
            current,
            head,
            pending_events: Vec::new(),
            ample_until: None,
            sync_duration: Duration::ZERO,
        };
        writer.check_space()?;
        for (segment, block) in unsealed {
            writer.sealer.put(Task::Seal { segment, block })?;
        }
        for segment in unclosed {
            writer.sealer.put(Task::Close(segment))?;
        }
        writer.report(loss);
        if !writer.pending_events.is_empty() {
            writer.commit_frame(Vec::new())?;
        }
        Ok(writer)
    }

    /// Logs damage and loss that the opening of the store found, and queues a record of the loss.
    fn report(&mut self, loss: Option<Loss>) {
        for what in self.segment_set.damage() {
            tracing::error!("the audit log is damaged: {what}");
        }
        if let Some(Loss { from, until }) = loss {
            tracing::error!(
                from,
                until,
                "records of the audit log are lost: what could not be read is in `quarantine`. Check the disk"
            );
            let reason = self.segment_set.damage().first().cloned();
            let (from, until) = (Seq(from), Seq(until));
            self.pending_events.push(RecordsLost { from, until, reason }.into());
        }
        let now = segments::stamp((self.settings.clock)());
        let last = segments::stamp(self.head.recorded);
        if last > now.saturating_add(MINUTE) {
            let ahead = SignedDuration::from_micros(i64::try_from(last - now).unwrap_or(i64::MAX));
            tracing::warn!(
                "the clock is {ahead:#} behind the newest audit record: new records carry its time \
                 until the clock has caught up"
            );
        }
    }

    /// Commits the records, in one frame for each block that they belong to. Calls `done` with the
    /// number of records of each frame, and the result.
    pub(super) fn commit(
        &mut self,
        mut drafts: Vec<Draft>,
        mut done: impl FnMut(usize, Result<(), Fault>),
    ) {
        while !drafts.is_empty() {
            let rest = drafts.split_off(self.room().min(drafts.len()));
            let part = std::mem::replace(&mut drafts, rest);
            let count = part.len();
            // A panic is a fault of these records.
            let written = catch_unwind(AssertUnwindSafe(|| {
                self.check_space()?;
                self.commit_frame(part)
            }));
            let written = written.unwrap_or_else(|_| {
                self.end_block();
                Err(Fault::Io("the store panicked (see the log)".into()))
            });
            if let Err(fault) = &written {
                tracing::error!(%fault, records = count, "audit records not written");
            }
            done(count, written);
        }
    }

    /// Whether the next commit is a write and a sync that take less than this on average: no file
    /// has to be made for it.
    pub(super) fn is_quick(&self, limit: Duration) -> bool {
        let ready = self.current.as_ref().is_some_and(|current| current.wal.is_some());
        ready && self.room() > 1 && self.sync_duration < limit
    }

    fn check_space(&mut self) -> Result<(), Fault> {
        let now = Instant::now();
        if self.ample_until.is_some_and(|until| now < until) {
            return Ok(());
        }
        let free = self.free()?;
        self.ample_until =
            (free > self.settings.reserve.saturating_add(AMPLE)).then(|| now + SPACE_INTERVAL);
        if free < self.settings.reserve { Err(Fault::Full) } else { Ok(()) }
    }

    fn free(&self) -> Result<u64, Fault> {
        free_bytes(self.segment_set.dir())
    }

    /// Maximum number of records of the next commit, which belongs to one block.
    fn room(&self) -> usize {
        let remaining =
            self.current.as_ref().map_or(super::BLOCK, |current| current.growing.room());
        usize::try_from(remaining)
            .unwrap_or(usize::MAX)
            .saturating_sub(self.pending_events.len())
            .max(1)
    }

    /// Commits these records in one frame, after the queued events.
    fn commit_frame(&mut self, drafts: Vec<Draft>) -> Result<(), Fault> {
        let recorded =
            segments::stamp((self.settings.clock)()).max(segments::stamp(self.head.recorded));
        self.prepare(recorded)?;
        let mut all = Vec::with_capacity(self.pending_events.len() + drafts.len());
        for what in &self.pending_events {
            let mut record = Record::from(EventRecord::now(what.clone()));
            // The store itself wrote these texts: they contain no secrets.
            record.scrub_and_truncate(None);
            all.push(Draft::new(record)?);
        }
        all.extend(drafts);
        let Some(current) = &mut self.current else {
            return Err(Fault::Io("no segment is open".into()));
        };
        let Some(wal) = &mut current.wal else {
            return Err(Fault::Io("no file of commits is open".into()));
        };
        let mut head = self.head.clone();
        head.recorded = segments::time(recorded);
        let first = head.tree.size();
        let (mut lines, mut added, mut records) = (Vec::new(), Vec::new(), Vec::new());
        for Draft { record, text, facts } in all {
            let seq = Seq(head.tree.size());
            let before = LineHead { seq, recorded: head.recorded, prev: head.last };
            let line = Line::write(before, &text);
            head.last = line.hash();
            head.tree.append(head.last);
            lines.push(line.text().clone());
            added.push(Added { text: line.text().clone(), hash: head.last, facts, recorded });
            records.push((before, line, record));
        }
        let mut bytes = Vec::new();
        let cipher = self.segment_set.env().cipher.as_deref();
        frame::write(&mut bytes, first, &lines, Pack::Plain, cipher)
            .map_err(|e| Fault::Io(format!("framing records: {e}")))?;
        let begun = Instant::now();
        if let Err(fault) = wal.append(&bytes) {
            // The content of the file is uncertain: acknowledged records are sealed from memory,
            // and the next commit begins another file.
            self.end_block();
            self.ample_until = None;
            return Err(fault);
        }
        self.sync_duration = (self.sync_duration * 7 + begun.elapsed()) / 8;
        current.growing.extend(added);
        self.mark.set(head.tree.size() - 1, head.last);
        self.segment_set.grown(&current.growing, head.clone());
        self.head = head;
        self.pending_events.clear();
        self.announce(records);
        self.look_ahead(first);
        Ok(())
    }

    /// Ends the block if it is full, and prepares the file of the next one. `before` is the first
    /// record of this commit.
    fn look_ahead(&mut self, before: u64) {
        let Some(current) = &self.current else { return };
        let (begin, end) = (current.growing.first, self.head.tree.size());
        let passed = before - begin < PREPARE && end - begin >= PREPARE;
        if passed
            && self
                .free()
                .is_ok_and(|free| free > self.settings.reserve.saturating_add(PREPARE_FREE))
        {
            // Commits work without it, only slower.
            let _ = self.sealer.put(Task::Prepare);
        }
        if current.growing.is_full() {
            self.end_block();
        }
    }

    fn announce(&self, records: Vec<(LineHead, Line, Record)>) {
        if self.tail.receiver_count() == 0 {
            return;
        }
        for (LineHead { seq, recorded, prev }, line, record) in records {
            let entry = Entry { v: VERSION, seq, recorded, prev, record };
            // Fails if there are no receivers any more.
            let _ = self.tail.send(Arc::new(StoredRecord { line, entry }));
        }
    }

    /// Ensures that there is a segment for today and a file for commits.
    fn prepare(&mut self, now: u64) -> Result<(), Fault> {
        if self.segment_set.unsealed() > UNSEALED {
            return Err(Fault::Io(
                "records can't be packed as fast as they come, or not at all: see the log".into(),
            ));
        }
        let end = self.head.tree.size();
        let begun = self.current.as_ref().and_then(|current| current.begin());
        let period = self.settings.period;
        let large = self
            .current
            .as_ref()
            .is_some_and(|current| current.segment.packed() >= self.settings.bytes);
        if large || begun.is_some_and(|begin| now / period > begin / period) {
            self.end_block();
            if let Some(Current { segment, .. }) = self.current.take() {
                self.sealer.put(Task::Close(segment))?;
            }
        }
        let current = match &mut self.current {
            Some(current) => current,
            none => {
                let segment = Segment::make(self.segment_set.env(), end)?;
                self.segment_set.add(&segment);
                let growing = Arc::new(Growing::new(end));
                none.insert(Current { segment, growing, wal: None })
            }
        };
        if current.wal.is_none() {
            let Current { segment, growing, .. } = &*current;
            current.wal = Some(Wal::begin(segment.path(), growing.first)?);
        }
        Ok(())
    }

    /// Ends the block and queues it for sealing.
    fn end_block(&mut self) {
        let Some(current) = &mut self.current else { return };
        current.wal = None;
        if current.growing.is_empty() {
            return;
        }
        let next = Arc::new(Growing::new(self.head.tree.size()));
        let block = std::mem::replace(&mut current.growing, next);
        let segment = current.segment.clone();
        if let Err(fault) = self.sealer.put(Task::Seal { segment, block }) {
            tracing::error!(%fault, "a block of the audit log is not sealed");
        }
    }
}

impl Current {
    /// Time of the first record of the segment.
    fn begin(&self) -> Option<u64> {
        let sealed = self.segment.blocks().first().map(|block| block.begin);
        sealed.or_else(|| self.growing.begin())
    }
}
