//! One stream: reads new records, delivers them in batches, and moves its cursor past acknowledged
//! records.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use prometheus_client::metrics::{counter::Counter, gauge::Gauge};
use tokio::{sync::watch, time::Instant};

use super::{
    Item,
    cursor::{Cursor, CursorFile},
    target::{Sink, Undelivered},
};
use crate::{line::Line, proof::Hash};
use portcullis_foundation::backoff::Backoff;

/// Source of the durable records of a log.
pub(super) trait Source: Send + Sync + 'static {
    /// Number of durable records, which is the `seq` of the next record.
    fn ends(&self) -> watch::Receiver<u64>;
    /// `seq` of the first record that was not dropped.
    fn first(&self) -> u64;
    /// Records from `from` on, or from the first later one that was not dropped. Blocks.
    ///
    /// # Errors
    /// The reason why records cannot be read.
    fn lines(&self, from: u64, most: usize) -> Result<Vec<Line>, String>;
    /// `seq` of the first readable record after an unreadable `from`. Blocks.
    fn behind(&self, from: u64) -> Option<u64>;
}

/// Attempts to read a record before it counts as lost. A lack of memory or of descriptors can be
/// temporary.
const ATTEMPTS: u32 = 5;

/// Filter for the records of a stream.
pub(super) type RecordFilter = Arc<dyn Fn(&Item) -> bool + Send + Sync>;

/// Timing of a stream.
#[derive(Debug, Clone, Copy)]
pub(super) struct Timing {
    /// How long a record waits for others in its batch.
    pub linger: Duration,
    /// Delay after the first failure. It doubles with each further failure.
    pub least: Duration,
    /// Maximum delay after a failure.
    pub most: Duration,
    /// Minimum interval between writes of the cursor. Each write is a sync on the log's own disk.
    pub keep: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            linger: Duration::from_millis(100),
            least: Duration::from_millis(500),
            most: Duration::from_secs(60),
            keep: Duration::from_secs(1),
        }
    }
}

/// Metrics of one stream.
#[derive(Debug, Clone, Default)]
pub struct Meters {
    /// Delivered records.
    pub records: Counter,
    /// Batches that could not be delivered, and cursors that could not be written.
    pub failures: Counter,
    /// Records that were dropped before they were delivered.
    pub lost: Counter,
    /// Records that are not delivered yet.
    pub lag: Gauge,
}

/// Parts of a stream.
pub(super) struct Parts {
    pub name: String,
    /// Target as logs show it.
    pub target: String,
    pub log: String,
    pub source: Arc<dyn Source>,
    pub sink: Box<dyn Sink>,
    pub wanted: Option<RecordFilter>,
    /// Maximum number of records in a batch.
    pub batch: usize,
    /// Whether a stream without a cursor skips existing records.
    pub from_now: bool,
    pub cursor_file: CursorFile,
    pub pace: Timing,
    pub meters: Meters,
    /// `seq` of the first record that is not delivered, for the metrics.
    pub next: Arc<AtomicU64>,
    /// Set to make the stream deliver the remaining records and end.
    pub stop: watch::Receiver<bool>,
}

/// A running stream.
pub(super) struct Stream {
    parts: Parts,
    next: u64,
    /// Hash of the record before `next`, if known.
    hash: Option<Hash>,
    /// Whether the position is from the cursor file and no record was compared with it yet.
    unproven: bool,
    /// Records in a batch; reduced when a target reports a batch as too large.
    size: usize,
    failures: u32,
    /// Attempts to read the current unreadable record.
    unread: u32,
    /// `seq` from which to read on after an unreadable record.
    read_on: Option<u64>,
    unsaved: bool,
    saved_at: Instant,
}

impl Stream {
    /// Opens a stream at the position of its cursor.
    pub async fn open(parts: Parts) -> Self {
        let cursor_file = parts.cursor_file.clone();
        let read = tokio::task::spawn_blocking(move || cursor_file.read()).await;
        let read = read.map_err(std::io::Error::other).and_then(|read| read);
        let size = parts.batch;
        let mut stream = Self {
            parts,
            next: 0,
            hash: None,
            unproven: false,
            size,
            failures: 0,
            unread: 0,
            read_on: None,
            unsaved: false,
            saved_at: Instant::now(),
        };
        stream.begin(read);
        stream.parts.next.store(stream.next, Ordering::Relaxed);
        stream
    }

    fn begin(&mut self, read: std::io::Result<Option<Cursor>>) {
        let Parts { name, log, source, .. } = &self.parts;
        let (first, end) = (source.first(), *source.ends().borrow());
        let from_the_oldest = "the stream restarts at the oldest record";
        match read {
            Ok(None) => {
                self.next = if self.parts.from_now { end } else { first };
                // A stop before the first delivery must not move the beginning.
                self.unsaved = true;
            }
            Ok(Some(cursor)) if cursor.log != *log => {
                tracing::error!(
                    export = name,
                    was = cursor.log,
                    is = log,
                    "the cursor of this export belongs to another log; {from_the_oldest}"
                );
                self.next = first;
            }
            Ok(Some(cursor)) if cursor.next > end => {
                tracing::error!(
                    export = name,
                    delivered = cursor.next,
                    on_record = end,
                    "the log has fewer records than this export has delivered: it was set back, \
                     or lost records; {from_the_oldest}"
                );
                self.next = first;
            }
            Ok(Some(cursor)) => {
                self.next = cursor.next;
                self.hash = cursor.hash;
                self.unproven = true;
            }
            Err(error) => {
                tracing::error!(
                    export = name,
                    %error,
                    "the cursor of this export can't be read; {from_the_oldest}"
                );
                self.next = first;
            }
        }
        tracing::info!(export = name, to = self.parts.target, next = self.next, "exporting");
    }

    /// Delivers records until `stop` is set or the log is closed.
    pub async fn run(mut self) {
        let mut ends = self.parts.source.ends();
        let mut stop = self.parts.stop.clone();
        loop {
            let stopping = *stop.borrow_and_update();
            let end = *ends.borrow_and_update();
            if self.next >= end {
                if stopping {
                    return self.keep().await;
                }
                tokio::select! {
                    changed = ends.changed() => if changed.is_err() {
                        return self.keep().await;
                    },
                    changed = stop.changed() => if changed.is_err() {
                        return self.keep().await;
                    },
                    () = tokio::time::sleep_until(self.saved_at + self.parts.pace.keep),
                        if self.unsaved => self.keep().await,
                }
                let waiting = ends.borrow().saturating_sub(self.next);
                if waiting > 0 && waiting < self.size as u64 && !*stop.borrow() {
                    tokio::select! {
                        () = tokio::time::sleep(self.parts.pace.linger) => {}
                        _ = stop.changed() => {}
                    }
                }
                continue;
            }
            match self.step().await {
                Ok(()) if self.failures > 0 => {
                    tracing::info!(export = self.parts.name, "export recovered");
                    self.failures = 0;
                }
                Ok(()) => {}
                Err(undelivered) => {
                    let wait = self.failed(&undelivered, end);
                    if stopping {
                        return self.keep().await;
                    }
                    tokio::select! {
                        () = tokio::time::sleep(wait) => {}
                        _ = stop.changed() => {}
                    }
                }
            }
            if self.unsaved && self.saved_at.elapsed() >= self.parts.pace.keep {
                self.keep().await;
            }
        }
    }

    /// Delivers one batch.
    async fn step(&mut self) -> Result<(), Undelivered> {
        let Read { chain, items, illegible } = self.read().await?;
        let Some(chain) = chain else { return Ok(()) };
        if !self.fits(&chain) {
            return Ok(());
        }
        for why in &illegible {
            self.parts.meters.lost.inc();
            tracing::error!(export = self.parts.name, why, "a record can't be exported");
        }
        let count = items.len() as u64;
        if !items.is_empty() {
            self.parts.sink.deliver(Arc::new(items)).await?;
        }
        self.parts.meters.records.inc_by(count);
        self.next = chain.next;
        self.hash = Some(chain.hash);
        self.unsaved = true;
        self.parts.next.store(self.next, Ordering::Relaxed);
        Ok(())
    }

    async fn read(&mut self) -> Result<Read, Undelivered> {
        let (source, wanted) = (self.parts.source.clone(), self.parts.wanted.clone());
        let (from, most) = (self.read_on.unwrap_or(self.next), self.size);
        let look_behind = self.unread >= ATTEMPTS;
        let read = tokio::task::spawn_blocking(move || match read(&*source, from, most, wanted) {
            Err(why) if look_behind => Err((why, source.behind(from))),
            other => other.map_err(|why| (why, None)),
        });
        let read = read.await.unwrap_or_else(|error| Err((error.to_string(), None)));
        read.inspect(|_| (self.unread, self.read_on) = (0, None)).map_err(|(why, behind)| {
            self.unread = self.unread.saturating_add(1);
            self.read_on = behind.or(self.read_on);
            Undelivered::Failed(format!("records can't be read: {why}"))
        })
    }

    /// Compares the records read with the hash of the last delivered record. Logs a mismatch, and
    /// returns whether the batch may be sent anyway.
    fn fits(&mut self, read: &Chain) -> bool {
        let name = &self.parts.name;
        let gap = read.first.saturating_sub(self.next);
        if gap > 0 {
            self.parts.meters.lost.inc_by(gap);
            tracing::error!(
                export = name,
                missing = gap,
                from = self.next,
                to = read.first - 1,
                "records were dropped by retention, or can't be read, before this export had \
                 delivered them; it continues behind them"
            );
        } else if self.hash.is_some_and(|hash| hash != read.prev) {
            tracing::error!(
                export = name,
                seq = read.first,
                "this log does not continue what this export has delivered: it was replaced or \
                 altered; run `portcullis audit verify`"
            );
            if self.unproven {
                self.unproven = false;
                self.hash = None;
                self.next = self.parts.source.first();
                tracing::error!(export = name, next = self.next, "the export restarts");
                return false;
            }
        }
        self.unproven = false;
        true
    }

    /// Logs a failure and returns the delay before the next attempt.
    fn failed(&mut self, undelivered: &Undelivered, end: u64) -> Duration {
        self.parts.meters.failures.inc();
        self.failures = self.failures.saturating_add(1);
        let pace = self.parts.pace;
        let backoff = Backoff::new(pace.least, pace.most);
        let mut wait = jittered(backoff.pause(self.failures.saturating_sub(1)));
        match undelivered {
            Undelivered::Later { wait: requested, .. } => wait = wait.max(*requested),
            Undelivered::TooLarge(_) if self.size > 1 => {
                self.size /= 2;
                wait = Duration::ZERO;
            }
            _ => {}
        }
        tracing::warn!(
            export = self.parts.name,
            to = self.parts.target,
            error = %undelivered,
            attempt = self.failures,
            waiting = end.saturating_sub(self.next),
            again_in = ?wait,
            "export delivery failed"
        );
        wait
    }

    /// Writes the cursor file.
    async fn keep(&mut self) {
        if !std::mem::take(&mut self.unsaved) {
            return;
        }
        self.saved_at = Instant::now();
        let cursor = Cursor::new(self.parts.log.clone(), self.next, self.hash);
        let cursor_file = self.parts.cursor_file.clone();
        let written = tokio::task::spawn_blocking(move || cursor_file.write(&cursor)).await;
        if let Err(error) = written.map_err(std::io::Error::other).and_then(|w| w) {
            self.unsaved = true;
            self.parts.meters.failures.inc();
            tracing::warn!(
                export = self.parts.name,
                %error,
                "the cursor of this export can't be kept: after a restart, records come twice"
            );
        }
    }
}

/// First and last record of a batch.
struct Chain {
    first: u64,
    prev: Hash,
    /// `seq` after the last record.
    next: u64,
    hash: Hash,
}

/// Result of one read.
struct Read {
    chain: Option<Chain>,
    items: Vec<Item>,
    /// Why records are missing from the items.
    illegible: Vec<String>,
}

fn read(
    source: &dyn Source,
    from: u64,
    most: usize,
    wanted: Option<RecordFilter>,
) -> Result<Read, String> {
    let lines = source.lines(from, most)?;
    let mut illegible = Vec::new();
    let mut items = Vec::with_capacity(lines.len());
    for line in &lines {
        match Item::of(line) {
            Ok(item) if wanted.as_ref().is_none_or(|wanted| wanted(&item)) => items.push(item),
            Ok(_) => {}
            Err(why) => illegible.push(why),
        }
    }
    let head =
        |line: &Line| line.head().ok_or_else(|| format!("record {} has no head", line.seq()));
    let chain = match (lines.first(), lines.last()) {
        (Some(first), Some(last)) => Some(Chain {
            first: first.seq().0,
            prev: head(first)?.prev,
            next: last.seq().0 + 1,
            hash: last.hash(),
        }),
        _ => None,
    };
    Ok(Read { chain, items, illegible })
}

/// Random delay between half of `wait` and all of it, so that streams do not retry together.
fn jittered(wait: Duration) -> Duration {
    let mut random = [0; 2];
    // Without random numbers, use the whole delay.
    if getrandom::fill(&mut random).is_err() {
        return wait;
    }
    let share = f64::from(u16::from_ne_bytes(random)) / f64::from(u16::MAX);
    wait.mul_f64(0.5 + share / 2.0)
}
