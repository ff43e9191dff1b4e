//! Options of a log.

use std::{fmt, sync::Arc, time::Duration};

use jiff::Timestamp;

use crate::{maintenance::Keys, proof};

const DAY: Duration = Duration::from_secs(86_400);

/// Removes secrets from a text, in place.
pub type Scrub = Arc<dyn Fn(&mut String) + Send + Sync>;

/// Clock of a log.
pub type Clock = Arc<dyn Fn() -> Timestamp + Send + Sync>;

/// Options of a log.
#[derive(Clone)]
pub struct Options {
    /// Deadline for a record to become durable, and for the store's lock.
    pub deadline: Duration,
    /// Bytes of the disk that stay free. Default 32 MiB.
    pub reserve: u64,
    /// Maximum number of records that wait for the disk. Default 4096.
    pub queue: usize,
    /// Bytes of packed records at which a segment ends before its day ends. Default 1 GiB.
    pub segment_bytes: u64,
    /// Keys that encrypt records. Without keys, records are not encrypted.
    pub keys: Option<Keys>,
    /// Whether a record that cannot be written is counted and reported later, instead of an error.
    pub pass: bool,
    /// Period of a segment. Default: a day, from midnight UTC.
    pub segment: Duration,
    /// Removes secrets from every text that a client, a server or a fault chose, before storage.
    pub scrub: Option<Scrub>,
    /// Settings of checkpoints.
    pub checkpoints: proof::Settings,
    /// Source of record times. Default: the system's clock. Times of records never decrease,
    /// even if the clock does.
    pub clock: Clock,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            deadline: Duration::from_secs(5),
            reserve: 32 << 20,
            queue: 4096,
            segment_bytes: 1 << 30,
            keys: None,
            pass: false,
            segment: DAY,
            scrub: None,
            checkpoints: proof::Settings::default(),
            clock: Arc::new(Timestamp::now),
        }
    }
}

impl fmt::Debug for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Options")
            .field("deadline", &self.deadline)
            .field("reserve", &self.reserve)
            .field("queue", &self.queue)
            .field("pass", &self.pass)
            .field("segment", &self.segment)
            .finish_non_exhaustive()
    }
}
