//! The only thread that writes. It commits all queued records as one frame and replies to each
//! producer, so that one sync of the disk serves all records that arrived during the sync before.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use jiff::SignedDuration;
use tokio::sync::{broadcast, mpsc, oneshot};

use super::{
    block::{Added, Growing},
    fault::Fault,
    frame::{self, Pack},
    index_terms::Facts,
    sealer::{Sealer, Task},
    segment::{Loss, Segment, Wal, free_bytes},
    segments::{self, Current, Head, HeadFile, Opened, SegmentSet},
};
use crate::{
    line::{Line, LineHead, Seq},
    log::Clock,
    record::{Event, EventRecord, Kind, Record, RecordsLost, encode},
};

/// Maximum number of records in one commit.
const BATCH: usize = 512;
/// Maximum bytes of records in one commit.
const BATCH_BYTES: usize = 4 << 20;
const MINUTE: u64 = 60_000_000;
/// Number of records in a block after which the next block's commit file is prepared. Stores with
/// few records prepare none.
const PREPARE: u64 = 512;
/// Free bytes of the disk beyond the reserve that this preparation requires.
const PREPARE_FREE: u64 = 64 << 20;
/// Free bytes of the disk beyond the reserve with which the free space is read once in
/// [`SPACE_INTERVAL`], not before each commit. A disk that others fill faster is noticed that much
/// later, or by a failed write.
const AMPLE: u64 = 1 << 30;
const SPACE_INTERVAL: Duration = Duration::from_millis(100);
/// Maximum bytes of records in memory that wait to be sealed.
const UNSEALED: usize = 64 << 20;

/// Settings of a writer.
pub(crate) struct Settings {
    /// Maximum number of queued records.
    pub queue: usize,
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

/// A queued record.
#[derive(Debug)]
pub(crate) struct Job {
    kind: Kind,
    text: Vec<u8>,
    facts: Facts,
    reply: oneshot::Sender<Result<(), Fault>>,
}

impl Job {
    /// Job for this record, and the receiver of its reply.
    pub(crate) fn new(
        mut record: Record,
    ) -> Result<(Self, oneshot::Receiver<Result<(), Fault>>), Fault> {
        let text = encode(&mut record).map_err(|e| Fault::Io(format!("encoding a record: {e}")))?;
        let (kind, facts) = (record.kind(), Facts::of(&record));
        let (reply, answer) = oneshot::channel();
        Ok((Self { kind, text, facts, reply }, answer))
    }
}

/// A record of the current commit.
struct Draft {
    text: Vec<u8>,
    facts: Facts,
}

/// State of the writing thread.
pub(crate) struct Writer {
    segment_set: Arc<SegmentSet>,
    settings: Settings,
    tail: broadcast::Sender<Line>,
    sealer: Sealer,
    mark: HeadFile,
    current: Option<Current>,
    head: Head,
    /// Events of the store that are not recorded yet.
    pending_events: Vec<Event>,
    /// Until when the free space of the disk counts as ample.
    ample_until: Option<Instant>,
}

impl Writer {
    /// Starts the thread. It writes all records and ends when the last sender is dropped.
    pub(crate) fn start(
        opened: Opened,
        settings: Settings,
        tail: broadcast::Sender<Line>,
    ) -> Result<(mpsc::Sender<Job>, JoinHandle<()>), Fault> {
        let Opened { segment_set, current, unsealed, unclosed, loss, .. } = opened;
        let head = segment_set.head();
        let last = head.tree.size().checked_sub(1).map(|seq| (seq, head.last));
        let mark = HeadFile::open(segment_set.dir(), last)?;
        let sealer = Sealer::start(segment_set.clone())?;
        let (jobs, queue) = mpsc::channel(settings.queue);
        let pending_events = Vec::new();
        let mut writer = Self {
            segment_set,
            settings,
            tail,
            sealer,
            mark,
            current,
            head,
            pending_events,
            ample_until: None,
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
            writer.commit(Vec::new())?;
        }
        let thread = thread::Builder::new()
            .name("audit".into())
            .spawn(move || writer.run(queue))
            .map_err(|e| Fault::Io(format!("starting the writing thread: {e}")))?;
        Ok((jobs, thread))
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

    fn run(mut self, mut queue: mpsc::Receiver<Job>) {
        while let Some(first) = queue.blocking_recv() {
            let mut bytes = first.text.len();
            let mut jobs = vec![first];
            while jobs.len() < BATCH
                && bytes < BATCH_BYTES
                && let Ok(job) = queue.try_recv()
            {
                bytes += job.text.len();
                jobs.push(job);
            }
            // A panic is a fault of this batch: its producers see a closed reply channel.
            let done = catch_unwind(AssertUnwindSafe(|| self.batch(jobs)));
            if done.is_err() {
                tracing::error!("the audit store panicked");
                self.end_block();
            }
        }
    }

    fn batch(&mut self, jobs: Vec<Job>) {
        let (mut replies, mut drafts) = (Vec::new(), Vec::new());
        for Job { kind, text, facts, reply } in jobs {
            // If the producer stopped waiting, its call is not made, so its intent is skipped.
            // Other records describe past events and are written in any case.
            if reply.is_closed() && kind == Kind::Intent {
                continue;
            }
            replies.push(reply);
            drafts.push(Draft { text, facts });
        }
        let mut answers = replies.into_iter();
        while !drafts.is_empty() {
            let most = self.room().min(drafts.len());
            let part: Vec<Draft> = drafts.drain(..most).collect();
            let count = part.len();
            let done = self.check_space().and_then(|()| self.commit(part));
            if let Err(fault) = &done {
                tracing::error!(%fault, records = count, "audit records not written");
            }
            for reply in answers.by_ref().take(count) {
                // The producer may have stopped waiting.
                let _ = reply.send(done.clone());
            }
        }
    }

    fn check_space(&mut self) -> Result<(), Fault> {
        let now = Instant::now();
        if self.ample_until.is_some_and(|until| now < until) {
            return Ok(());
        }
        let free = self.free()?;
        let ample = self.settings.reserve.saturating_add(AMPLE);
        self.ample_until = (free > ample).then(|| now + SPACE_INTERVAL);
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
    fn commit(&mut self, drafts: Vec<Draft>) -> Result<(), Fault> {
        let recorded =
            segments::stamp((self.settings.clock)()).max(segments::stamp(self.head.recorded));
        self.prepare(recorded)?;
        let mut all = Vec::with_capacity(self.pending_events.len() + drafts.len());
        for what in &self.pending_events {
            let mut record = Record::from(EventRecord::now(what.clone()));
            // The store itself wrote these texts: they contain no secrets.
            record.scrub_and_truncate(None);
            let text = encode(&mut record).map_err(|e| Fault::Io(e.to_string()))?;
            let facts = Facts::of(&record);
            all.push(Draft { text, facts });
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
        let (mut texts, mut added, mut lines) = (Vec::new(), Vec::new(), Vec::new());
        for Draft { text, facts } in all {
            let seq = Seq(head.tree.size());
            let before = LineHead { seq, recorded: head.recorded, prev: head.last };
            let line = Line::write(before, &text);
            head.last = line.hash();
            head.tree.append(head.last);
            texts.push(line.text().clone());
            added.push(Added { text: line.text().clone(), hash: head.last, facts, recorded });
            lines.push(line);
        }
        let mut bytes = Vec::new();
        let cipher = self.segment_set.env().cipher.as_deref();
        frame::write(&mut bytes, first, &texts, Pack::Plain, cipher)
            .map_err(|e| Fault::Io(format!("framing records: {e}")))?;
        if let Err(fault) = wal.append(&bytes) {
            // The content of the file is uncertain: acknowledged records are sealed from memory,
            // and the next commit begins another file.
            self.end_block();
            self.ample_until = None;
            return Err(fault);
        }
        current.growing.extend(added);
        self.mark.set(head.tree.size() - 1, head.last);
        self.segment_set.grown(&current.growing, head.clone());
        self.head = head;
        self.pending_events.clear();
        self.announce(lines);
        self.look_ahead(first);
        Ok(())
    }

    /// Ends the block if it is full, and prepares the file of the next one. `before` is the first
    /// record of this commit.
    fn look_ahead(&mut self, before: u64) {
        let Some(current) = &self.current else { return };
        let (begin, end) = (current.growing.first, self.head.tree.size());
        let passed = before - begin < PREPARE && end - begin >= PREPARE;
        if passed && self.free().is_ok_and(|free| free > self.settings.reserve + PREPARE_FREE) {
            // Commits work without it, only slower.
            let _ = self.sealer.put(Task::Prepare);
        }
        if current.growing.is_full() {
            self.end_block();
        }
    }

    /// Hands the records to followers.
    fn announce(&self, lines: Vec<Line>) {
        if self.tail.receiver_count() == 0 {
            return;
        }
        for line in lines {
            // Fails if there are no receivers any more.
            let _ = self.tail.send(line);
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
