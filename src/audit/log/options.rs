//! How a log is opened.

use std::{fmt, sync::Arc, time::Duration};

use jiff::Timestamp;

use crate::{maintenance::Keys, proof};

const DAY: Duration = Duration::from_secs(86_400);

/// Takes secrets out of a text, in place.
pub type Scrub = Arc<dyn Fn(&mut String) + Send + Sync>;

/// What time it is.
pub type Clock = Arc<dyn Fn() -> Timestamp + Send + Sync>;

/// How a log is opened.
#[derive(Clone)]
pub struct Options {
    /// How long a record may take to be on disk, and how long to wait for the store's lock.
    pub deadline: Duration,
    /// Bytes of the disk that are left free. Default 32 MiB.
    pub reserve: u64,
    /// Records that may wait for the disk. Default 4096.
    pub queue: usize,
    /// Bytes of packed records after which a segment ends, if its day does not end first.
    /// Default 1 GiB.
    pub segment_bytes: u64,
    /// What records are encrypted with. Without it they are not.
    pub keys: Option<Keys>,
    /// Whether a record that can't be written is only counted, and told of later, instead of
    /// being an error.
    pub pass: bool,
    /// The time that a segment is of. Default: a day, from midnight UTC.
    pub segment: Duration,
    /// Passed over every text that a client, a server or a fault chose, before it is stored.
    pub scrub: Option<Scrub>,
    /// How checkpoints are made.
    pub checkpoints: proof::Settings,
    /// What records are stamped with. Default: the system's clock. They never go back, whatever
    /// it says.
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
