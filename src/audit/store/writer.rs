//! The one thread that writes. It takes whatever waits in the queue, commits it as one batch and
//! answers each producer; so a sync of the disk serves all that came in during the one before.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    thread::{self, JoinHandle},
};

use jiff::{SignedDuration, Timestamp};
use nix::sys::statvfs::statvfs;
use tokio::sync::{broadcast, mpsc, oneshot};

use super::{
    keys::{self, Span},
    segment::{Fault, Loss, Segment, Write},
    shelf::{self, Shelf},
};
use crate::audit::record::{Cursor, Entry, Event, Happening, Kind, Record, encode, v1};

/// Records in one commit.
const BATCH: usize = 512;
/// Microseconds of a day: the period of a segment.
const PERIOD: u64 = 86_400_000_000;
const MINUTE: u64 = 60_000_000;
/// Below this much free space, damage that shows up in a write is taken for the full disk it is.
const CRAMPED: u64 = 4 << 20;

/// What a writer goes by.
#[derive(Debug, Clone, Copy)]
pub(in crate::audit) struct Settings {
    /// Records that may wait.
    pub queue: usize,
    /// Bytes of the disk that are left free.
    pub reserve: u64,
}

/// A record on its way to the disk.
#[derive(Debug)]
pub(in crate::audit) struct Job {
    record: Record,
    text: Vec<u8>,
    index: Vec<Span>,
    reply: oneshot::Sender<Result<(), Fault>>,
}

impl Job {
    /// A job for this record, and where the answer to it will be.
    pub(in crate::audit) fn new(
        mut record: Record,
    ) -> Result<(Self, oneshot::Receiver<Result<(), Fault>>), Fault> {
        let text = encode(&mut record).map_err(|e| Fault::Io(format!("encoding a record: {e}")))?;
        let index = keys::index(&record);
        let (reply, answer) = oneshot::channel();
        Ok((Self { record, text, index, reply }, answer))
    }
}

/// The writing thread.
pub(in crate::audit) struct Writer {
    shelf: Arc<Shelf>,
    settings: Settings,
    tail: broadcast::Sender<Arc<Entry>>,
    /// First stamp and segment that is written.
    current: Option<(u64, Arc<dyn Segment>)>,
    /// The last stamp that was given.
    last: u64,
    /// What befell the store and is not yet on record.
    news: Vec<Happening>,
}

impl Writer {
    /// Opens the newest segment and starts the thread. It ends, everything written, when the last
    /// sender is gone.
    pub(in crate::audit) fn start(
        shelf: Arc<Shelf>,
        settings: Settings,
        tail: broadcast::Sender<Arc<Entry>>,
    ) -> Result<(mpsc::Sender<Job>, JoinHandle<()>), Fault> {
        let (jobs, queue) = mpsc::channel(settings.queue);
        let mut writer = Self { shelf, settings, tail, current: None, last: 0, news: Vec::new() };
        writer.check_space()?;
        writer.open()?;
        if !writer.news.is_empty() {
            writer.commit(Vec::new())?;
        }
        let thread = thread::Builder::new()
            .name("audit".into())
            .spawn(move || writer.run(queue))
            .map_err(|e| Fault::Io(format!("starting the writing thread: {e}")))?;
        Ok((jobs, thread))
    }

    fn run(mut self, mut queue: mpsc::Receiver<Job>) {
        while let Some(first) = queue.blocking_recv() {
            let mut jobs = vec![first];
            while jobs.len() < BATCH
                && let Ok(job) = queue.try_recv()
            {
                jobs.push(job);
            }
            // A panic below is a fault of this batch: its producers see their answers gone.
            let done = catch_unwind(AssertUnwindSafe(|| self.batch(jobs)));
            if done.is_err() {
                tracing::error!("the audit store panicked; it is opened again");
                let _ = catch_unwind(AssertUnwindSafe(|| self.forget()));
            }
        }
        let _ = catch_unwind(AssertUnwindSafe(|| self.forget()));
    }

    fn batch(&mut self, jobs: Vec<Job>) {
        let (mut replies, mut records) = (Vec::new(), Vec::new());
        for job in jobs {
            // A call whose producer gave up waiting is not made, so it was never intended. Other
            // records tell of what has happened, whether or not somebody waits for them.
            if job.reply.is_closed() && job.record.kind() == Kind::Intent {
                continue;
            }
            replies.push(job.reply);
            records.push((job.record, job.text, job.index));
        }
        if records.is_empty() {
            return;
        }
        let done = self.check_space().and_then(|()| self.commit(records));
        if let Err(fault) = &done {
            tracing::error!(%fault, records = replies.len(), "audit records not written");
        }
        for reply in replies {
            // A producer that gave up waiting is no longer there to be told.
            let _ = reply.send(done.clone());
        }
    }

    fn check_space(&self) -> Result<(), Fault> {
        if self.free()? < self.settings.reserve { Err(Fault::Full) } else { Ok(()) }
    }

    fn free(&self) -> Result<u64, Fault> {
        let dir = self.shelf.dir();
        let disk =
            statvfs(dir).map_err(|e| Fault::io("asking for free space in", dir, &e.into()))?;
        Ok(disk.blocks_available().saturating_mul(disk.fragment_size()))
    }

    /// Writes a batch; once more into a new segment where the old one turns out to be damaged.
    fn commit(&mut self, records: Vec<(Record, Vec<u8>, Vec<Span>)>) -> Result<(), Fault> {
        match self.commit_once(&records) {
            Ok(stamps) => {
                self.announce(records, &stamps);
                return Ok(());
            }
            Err(Fault::Damaged(why)) if self.free()? >= CRAMPED => {
                let first = self.current.as_ref().map(|(first, _)| *first);
                self.forget();
                if let Some(first) = first {
                    self.quarantine(first, &why)?;
                }
            }
            Err(Fault::Damaged(_)) => {
                self.forget();
                return Err(Fault::Full);
            }
            Err(fault) => {
                // sled takes nothing more after an error: it is opened anew with the next batch.
                self.forget();
                return Err(fault);
            }
        }
        let stamps = self.commit_once(&records).inspect_err(|_| self.forget())?;
        self.announce(records, &stamps);
        Ok(())
    }

    fn commit_once(&mut self, records: &[(Record, Vec<u8>, Vec<Span>)]) -> Result<Vec<u64>, Fault> {
        let now = shelf::stamp(Timestamp::now()).max(self.last + 1);
        match &self.current {
            // The first stamp of a later day begins a segment.
            Some((first, _)) if now / PERIOD > first / PERIOD => self.begin(now)?,
            Some(_) => {}
            None => self.open()?,
        }
        let Some((_, segment)) = self.current.clone() else {
            return Err(Fault::Io("no segment is open".into()));
        };
        let mut next = now.max(self.last + 1);
        let mut writes = Vec::with_capacity(records.len() + self.news.len());
        for what in &self.news {
            let mut record = Record::from(Event::now(what.clone()));
            // The words are the store's own, so there is nothing to take out.
            record.settle(None);
            let text = encode(&mut record).map_err(|e| Fault::Io(e.to_string()))?;
            writes.push(Write { stamp: next, text, index: keys::index(&record) });
            next += 1;
        }
        let mut stamps = Vec::with_capacity(records.len());
        for (_, text, index) in records {
            writes.push(Write { stamp: next, text: text.clone(), index: index.clone() });
            stamps.push(next);
            next += 1;
        }
        segment.commit(&writes)?;
        self.last = next - 1;
        self.news.clear();
        Ok(stamps)
    }

    fn announce(&self, records: Vec<(Record, Vec<u8>, Vec<Span>)>, stamps: &[u64]) {
        if self.tail.receiver_count() == 0 {
            return;
        }
        for ((record, ..), &stamp) in records.into_iter().zip(stamps) {
            let entry = Entry {
                v: v1::VERSION,
                cursor: Cursor(stamp),
                recorded: shelf::time(stamp),
                record,
            };
            // Fails where the last listener has just gone.
            let _ = self.tail.send(Arc::new(entry));
        }
    }

    /// Goes on with the newest segment if it is of today (or of a day to come, where the clock was
    /// set back), or begins one.
    fn open(&mut self) -> Result<(), Fault> {
        let now = shelf::stamp(Timestamp::now()).max(self.last + 1);
        if let Some(first) = self.shelf.newest().filter(|first| first / PERIOD >= now / PERIOD) {
            let opened = self.shelf.write(first).and_then(|segment| {
                let last = segment.last()?;
                Ok((segment, last.unwrap_or(first)))
            });
            match opened {
                Ok((segment, last)) => match segment.loss() {
                    None => {
                        self.continue_after(last, now);
                        self.current = Some((first, segment));
                        return Ok(());
                    }
                    Some(loss) => {
                        drop(segment);
                        self.forget();
                        self.lost(first, loss);
                    }
                },
                Err(Fault::Damaged(why)) => {
                    self.forget();
                    if self.free()? < CRAMPED {
                        return Err(Fault::Full);
                    }
                    self.quarantine(first, &why)?;
                    // The lost segment may have given stamps up to now, and after it where the
                    // clock was set back.
                    self.last = self.last.max(first);
                }
                Err(fault) => {
                    self.forget();
                    return Err(fault);
                }
            }
        }
        self.begin(now.max(self.last + 1))
    }

    fn continue_after(&mut self, last: u64, now: u64) {
        self.last = self.last.max(last);
        if last > now.saturating_add(MINUTE) {
            let ahead = SignedDuration::from_micros(i64::try_from(last - now).unwrap_or(i64::MAX));
            tracing::warn!(
                "the clock is {ahead:#} behind the newest audit record: new records are stamped \
                 after it until the clock has caught up"
            );
        }
    }

    /// Records are gone from a segment. What is left of it stays readable; nothing more is
    /// written to it.
    fn lost(&mut self, first: u64, loss: Loss) {
        let segment = self.shelf.label(first);
        let (after, until) = (shelf::time(loss.after.max(first)), shelf::time(loss.until));
        tracing::error!(
            %segment, %after, %until,
            "audit records are lost: the segment is damaged. A new one is begun. Check the disk"
        );
        self.news.push(Happening::RecordsLost { segment, after, until });
        self.last = self.last.max(loss.until);
    }

    fn begin(&mut self, first: u64) -> Result<(), Fault> {
        self.forget();
        let segment = self.shelf.write(first)?;
        self.current = Some((first, segment));
        Ok(())
    }

    fn quarantine(&mut self, first: u64, why: &str) -> Result<(), Fault> {
        let place = self.shelf.quarantine(first)?.display().to_string();
        tracing::error!(
            segment = %place,
            reason = %why,
            "a segment of the audit store does not open; it was put aside and a new one begun. \
             Its records can't be queried. Keep the folder: they may be recovered from it"
        );
        self.news.push(Happening::SegmentQuarantined { segment: place, reason: why.to_owned() });
        Ok(())
    }

    fn forget(&mut self) {
        self.current = None;
        self.shelf.close();
    }
}
