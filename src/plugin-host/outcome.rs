//! Result of one message in a plugin.

use std::time::Duration;

use super::{Verdict, limits::MAX_EXTRA_OUTPUT_BYTES};

/// Reason why a plugin reached no verdict.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    #[error("it did not finish within {0:?}")]
    Deadline(Duration),
    #[error("it needs more than its {0} MiB of memory (`memory-mib`)")]
    Memory(usize),
    #[error("its instances for this caller need more than {0} MiB of memory together")]
    MemoryOfCaller(usize),
    #[error("its instances need more than {0} MiB of memory together")]
    MemoryTogether(usize),
    #[error("it exceeded its stack")]
    Stack,
    #[error("its output exceeds twice the message plus {} MiB", MAX_EXTRA_OUTPUT_BYTES >> 20)]
    Output,
    #[error("it trapped: {0}")]
    Trap(String),
    #[error("it does not start: {0}")]
    Start(String),
    #[error("it failed: {0}")]
    Own(String),
    #[error("its verdict is invalid: {0}")]
    Verdict(String),
    #[error("all of its session instances are busy")]
    AllBusy,
    #[error("other messages kept it busy, and too little of its {0:?} was left")]
    Queued(Duration),
    #[error("it failed repeatedly; circuit open for {0:?}")]
    CircuitOpen(Duration),
}

impl Failure {
    /// Whether this message caused the failure. If others hold the permits, the memory or the
    /// instances, that must not count against this sender.
    pub(super) fn is_its_own(&self) -> bool {
        !matches!(
            self,
            Self::MemoryOfCaller(_)
                | Self::MemoryTogether(_)
                | Self::AllBusy
                | Self::Queued(_)
                | Self::CircuitOpen(_)
        )
    }
}

/// Result of a call of a plugin.
#[derive(Debug)]
pub struct Inspection {
    pub verdict: Result<Verdict, Failure>,
    /// HTTP requests that it made: method, host and status of each.
    pub requests: Vec<String>,
    /// Memory of the instance at the end, in bytes.
    pub memory: usize,
}

impl From<Failure> for Inspection {
    fn from(failure: Failure) -> Self {
        Self { verdict: Err(failure), requests: Vec::new(), memory: 0 }
    }
}
