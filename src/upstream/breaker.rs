//! The circuit of an instance that ends repeatedly soon after its start opens for a while. Then one
//! call tries it: that call may be the cause, and the others need not end with it.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::call_error::CallError;
use portcullis_foundation::backoff::Backoff;

/// An instance that ran for so long before it ended is no failing one.
pub(super) const STEADY: Duration = Duration::from_secs(30);
/// How often an instance may end soon after its start, with no call answered since, before its
/// circuit opens for a while.
const FALLS: u32 = 3;
/// Times that the circuit stays open. They are short, because the calls of one client may be what ends
/// the instance for all.
const BACKOFF: Backoff = Backoff::new(Duration::from_millis(500), Duration::from_secs(5));
/// When others may ask again while one call tries it.
const AGAIN: Duration = Duration::from_millis(500);

/// How often an instance fell, and who tries it.
pub(super) struct Breaker {
    /// How often it ended soon after its start since it last answered a call.
    falls: AtomicU32,
    /// Held by the one call, or the one start, that tries it.
    trial: Arc<Semaphore>,
}

/// How long a circuit stays open, and why.
#[derive(Debug)]
pub(super) struct OpenUntil {
    pub pause: Duration,
    pub why: String,
}

impl Default for Breaker {
    fn default() -> Self {
        Self { falls: AtomicU32::new(0), trial: Arc::new(Semaphore::new(1)) }
    }
}

impl Breaker {
    /// Records an unexpected end after this time. Returns whether the circuit opens.
    pub fn record_failure(&self, ran: Duration, why: &str) -> Option<OpenUntil> {
        if ran >= STEADY {
            self.answered();
            return None;
        }
        let falls = self.falls.fetch_add(1, Ordering::Relaxed).saturating_add(1);
        let over = falls.checked_sub(FALLS)?;
        Some(OpenUntil {
            pause: BACKOFF.pause(over),
            why: format!("it ended {falls} times soon after its start; at last: {why}"),
        })
    }

    /// It answered a call: all may call it.
    pub fn answered(&self) {
        self.falls.store(0, Ordering::Relaxed);
    }

    /// Whether one call at a time tries it.
    pub fn is_half_open(&self) -> bool {
        self.falls.load(Ordering::Relaxed) >= FALLS
    }

    /// Lets a call pass: any, or the one that tries it, which holds what it gets.
    ///
    /// # Errors
    /// [`CallError::CircuitOpen`] where another tries it.
    pub fn admit(&self) -> Result<Option<OwnedSemaphorePermit>, CallError> {
        if !self.is_half_open() {
            return Ok(None);
        }
        self.trial.clone().try_acquire_owned().map(Some).map_err(|_| self.tried())
    }

    /// What is said of one that another tries.
    pub fn tried(&self) -> CallError {
        CallError::CircuitOpen {
            why: "it kept ending soon after its start, and another call tries it".into(),
            left: AGAIN,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn after_a_rest_one_call_tries_it() {
        let breaker = Breaker::default();
        let fell = || breaker.record_failure(Duration::ZERO, "x").map(|rest| rest.pause);
        assert_eq!((fell(), fell()), (None, None));
        assert!(breaker.admit().unwrap().is_none());
        assert_eq!(fell(), Some(BACKOFF.pause(0)));
        let trial = breaker.admit().unwrap();
        assert!(trial.is_some() && matches!(breaker.admit(), Err(CallError::CircuitOpen { .. })));
        // It ended it: the next rest is longer, and the next call tries again.
        drop(trial);
        assert_eq!(fell(), Some(BACKOFF.pause(1)));
        let trial = breaker.admit().unwrap();
        assert!(trial.is_some());
        // It was answered.
        breaker.answered();
        assert!(breaker.admit().unwrap().is_none());
        for _ in 0..100 {
            fell();
        }
        assert_eq!(fell(), Some(BACKOFF.pause(u32::MAX)));
        assert_eq!(breaker.record_failure(STEADY, "x").map(|rest| rest.pause), None);
        assert!(!breaker.is_half_open());
    }
}
