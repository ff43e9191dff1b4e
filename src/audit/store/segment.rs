//! One segment: an ordered map of bytes whose commits are atomic and durable.

use std::{
    fs::{self, File, OpenOptions},
    io,
    ops::ControlFlow,
    os::unix::fs::FileExt as _,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};

use super::keys::{self, Span};

/// Bytes of pages that one open segment keeps in memory.
const CACHE: u64 = 32 << 20;

/// How long a store that was just closed may still be locked.
const LINGERING: Duration = Duration::from_secs(2);
/// Between two tries to open it.
const PAUSE: Duration = Duration::from_millis(5);

/// Why a segment did not do what was asked.
#[derive(Debug, Clone, thiserror::Error)]
pub(in crate::audit) enum Fault {
    /// Its files are not what they should be.
    #[error("damaged: {0}")]
    Damaged(String),
    /// Something else has it open.
    #[error("in use: {0}")]
    InUse(String),
    /// No room on the disk.
    #[error("no space left on the disk")]
    Full,
    /// The system failed.
    #[error("{0}")]
    Io(String),
}

impl Fault {
    pub(super) fn io(doing: &str, path: &Path, error: &io::Error) -> Self {
        if is_full(error.kind()) {
            return Self::Full;
        }
        Self::Io(format!("{doing} {}: {error}", path.display()))
    }
}

fn is_full(kind: io::ErrorKind) -> bool {
    matches!(kind, io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

impl From<sled::Error> for Fault {
    fn from(error: sled::Error) -> Self {
        match &error {
            sled::Error::Io(io) if is_full(io.kind()) => Self::Full,
            sled::Error::Io(io) if io.to_string().contains("could not acquire lock") => {
                Self::InUse(
                    "a query that is still running has it; it is free again in a moment".into(),
                )
            }
            sled::Error::Io(io)
                if matches!(
                    io.kind(),
                    io::ErrorKind::UnexpectedEof | io::ErrorKind::InvalidData
                ) =>
            {
                Self::Damaged(error.to_string())
            }
            sled::Error::Io(_) => Self::Io(error.to_string()),
            _ => Self::Damaged(error.to_string()),
        }
    }
}

/// Which records come first.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Order {
    #[default]
    NewestFirst,
    OldestFirst,
}

/// A record to be committed.
#[derive(Debug)]
pub(in crate::audit) struct Write {
    pub stamp: u64,
    pub text: Vec<u8>,
    pub index: Vec<Span>,
}

/// Records that were acknowledged and are gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::audit) struct Loss {
    /// The last stamp that is left; 0 where none is.
    pub after: u64,
    /// The last stamp that was acknowledged.
    pub until: u64,
}

/// What the log needs of a store, so that another can take sled's place.
pub(in crate::audit) trait Segment: Send + Sync {
    /// Puts these records and their index entries on disk, all or none. They are durable when it
    /// returns.
    fn commit(&self, writes: &[Write]) -> Result<(), Fault>;

    /// The text of the record with this stamp.
    fn record(&self, stamp: u64) -> Result<Option<Vec<u8>>, Fault>;

    /// The stamp of the newest record.
    fn last(&self) -> Result<Option<u64>, Fault>;

    /// What was missing when it was opened.
    fn loss(&self) -> Option<Loss>;

    /// Shows `each` the stamps of a span from `first` to `last`, both included, until it breaks.
    fn scan(
        &self,
        span: &Span,
        first: u64,
        last: u64,
        order: Order,
        each: &mut dyn FnMut(u64) -> Result<ControlFlow<()>, Fault>,
    ) -> Result<ControlFlow<()>, Fault>;
}

/// A segment on sled 0.34.
pub(super) struct SledSegment {
    db: sled::Db,
    log: File,
    mark: Mark,
    loss: Option<Loss>,
    path: PathBuf,
}

/// The last stamp that was acknowledged, in a file beside sled's. sled opens a log that is damaged
/// in the middle without a word, cut off at the damage; this tells. It is written after the log
/// was synced and is not synced itself, so it can be behind the log and never before it.
struct Mark(File);

impl Mark {
    fn open(path: &Path) -> io::Result<Self> {
        let file =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
        Ok(Self(file))
    }

    fn get(&self) -> u64 {
        let mut bytes = [0; 8];
        match self.0.read_exact_at(&mut bytes, 0) {
            Ok(()) => u64::from_be_bytes(bytes),
            // A segment that nothing was written to yet.
            Err(_) => 0,
        }
    }

    fn set(&self, stamp: u64) {
        if let Err(error) = self.0.write_all_at(&stamp.to_be_bytes(), 0) {
            // The records are safe; only a later loss of these last ones would go unnoticed.
            tracing::warn!(%error, "the mark of the audit store was not written");
        }
    }
}

/// sled 0.34 asserts where it finds files that it did not expect; those panics are faults of the
/// segment, not of the proxy.
fn contained<T>(work: impl FnOnce() -> Result<T, Fault>) -> Result<T, Fault> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| {
        let words = panic
            .downcast_ref::<String>()
            .map(String::as_str)
            .or_else(|| panic.downcast_ref::<&str>().copied());
        Err(Fault::Damaged(words.unwrap_or("the store panicked").chars().take(300).collect()))
    })
}

impl SledSegment {
    /// Opens the segment in `path`, or makes it.
    pub(super) fn open(path: &Path) -> Result<Self, Fault> {
        let fresh = !path.exists();
        let config = || sled::Config::new().path(path).flush_every_ms(None).cache_capacity(CACHE);
        let began = Instant::now();
        let db = loop {
            match contained(|| config().open().map_err(Fault::from)) {
                // sled's own threads give the lock up a moment after the store was dropped.
                Err(Fault::InUse(_)) if began.elapsed() < LINGERING => thread::sleep(PAUSE),
                opened => break opened?,
            }
        };
        let log = File::open(path.join("db")).map_err(|e| Fault::io("opening", path, &e))?;
        if fresh {
            // The names of the new files must be as durable as their contents.
            let parent = path.parent().unwrap_or(path);
            for dir in [path, parent] {
                File::open(dir)
                    .and_then(|dir| dir.sync_all())
                    .map_err(|e| Fault::io("syncing", dir, &e))?;
            }
        }
        let mark =
            Mark::open(&path.join("acknowledged")).map_err(|e| Fault::io("opening", path, &e))?;
        let mut segment = Self { db, log, mark, loss: None, path: path.to_owned() };
        let (after, until) = (segment.last()?.unwrap_or(0), segment.mark.get());
        segment.loss = (after < until).then_some(Loss { after, until });
        Ok(segment)
    }

    /// Whether there is a segment to open, so that a read makes none.
    pub(super) fn exists(path: &Path) -> bool {
        fs::metadata(path.join("db")).is_ok()
    }
}

impl Segment for SledSegment {
    fn commit(&self, writes: &[Write]) -> Result<(), Fault> {
        contained(|| {
            let mut batch = sled::Batch::default();
            for write in writes {
                batch.insert(Span::records().at(write.stamp), write.text.as_slice());
                for span in &write.index {
                    batch.insert(span.at(write.stamp), &[]);
                }
            }
            self.db.apply_batch(batch)?;
            self.db.flush()?;
            // flush() hands the log to the system by sync_file_range, which a power cut does not
            // respect; this does.
            self.log.sync_data().map_err(|e| Fault::io("syncing", &self.path, &e))?;
            if let Some(last) = writes.last() {
                self.mark.set(last.stamp);
            }
            Ok(())
        })
    }

    fn record(&self, stamp: u64) -> Result<Option<Vec<u8>>, Fault> {
        contained(|| Ok(self.db.get(Span::records().at(stamp))?.map(|text| text.to_vec())))
    }

    fn last(&self) -> Result<Option<u64>, Fault> {
        let mut last = None;
        let span = Span::records();
        let _ = self.scan(&span, 0, u64::MAX, Order::NewestFirst, &mut |stamp| {
            last = Some(stamp);
            Ok(ControlFlow::Break(()))
        })?;
        Ok(last)
    }

    fn loss(&self) -> Option<Loss> {
        self.loss
    }

    fn scan(
        &self,
        span: &Span,
        first: u64,
        last: u64,
        order: Order,
        each: &mut dyn FnMut(u64) -> Result<ControlFlow<()>, Fault>,
    ) -> Result<ControlFlow<()>, Fault> {
        if first > last {
            return Ok(ControlFlow::Continue(()));
        }
        contained(|| {
            let mut keys = self.db.range(span.at(first)..=span.at(last)).keys();
            while let Some(key) = match order {
                Order::NewestFirst => keys.next_back(),
                Order::OldestFirst => keys.next(),
            } {
                let stamp = keys::stamp(&key?)
                    .ok_or_else(|| Fault::Damaged("a key without a stamp".into()))?;
                if each(stamp)?.is_break() {
                    return Ok(ControlFlow::Break(()));
                }
            }
            Ok(ControlFlow::Continue(()))
        })
    }
}
