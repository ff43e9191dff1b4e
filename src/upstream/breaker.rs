//! Circuit breaker of an instance. It opens for a while when the instance crashes repeatedly soon
//! after its start. Then it admits one trial call at a time, since a call may cause the crashes.

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

/// An instance that ran at least this long before its end does not count as crashing.
pub(super) const STEADY: Duration = Duration::from_secs(30);
/// Number of ends soon after the start, without an answered call in between, that open the
/// circuit.
const FALLS: u32 = 3;
/// Times that the circuit stays open. They are short, because the calls of one client can crash
/// the instance for all clients.
const BACKOFF: Backoff = Backoff::new(Duration::from_millis(500), Duration::from_secs(5));
/// Retry time of other calls during a trial.
const RETRY_INTERVAL: Duration = Duration::from_millis(500);

/// Circuit breaker of one instance.
pub(super) struct Breaker {
    /// Number of ends soon after the start since the last answered call.
    falls: AtomicU32,
    /// Permit of the one trial call or trial start.
    trial: Arc<Semaphore>,
}

/// Time that an opened circuit stays open, and the reason.
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
    /// Records an unexpected end after a run time of `ran`. Returns a pause if the circuit opens.
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

    /// Records an answered call: closes the circuit for all calls.
    pub fn answered(&self) {
        self.falls.store(0, Ordering::Relaxed);
    }

    /// Whether only one trial call at a time is admitted.
    pub fn is_half_open(&self) -> bool {
        self.falls.load(Ordering::Relaxed) >= FALLS
    }

    /// Admits a call. A half-open circuit admits one trial call, which holds the returned permit.
    ///
    /// # Errors
    /// [`CallError::CircuitOpen`] while another call has the trial permit.
    pub fn admit(&self) -> Result<Option<OwnedSemaphorePermit>, CallError> {
        if !self.is_half_open() {
            return Ok(None);
        }
        self.trial.clone().try_acquire_owned().map(Some).map_err(|_| self.tried())
    }

    /// Error of calls that come during another call's trial.
    pub fn tried(&self) -> CallError {
        CallError::CircuitOpen {
            why: "it kept ending soon after its start, and another call tries it".into(),
            remaining: RETRY_INTERVAL,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn after_the_pause_one_trial_call_is_admitted() {
        let breaker = Breaker::default();
        let fell = || breaker.record_failure(Duration::ZERO, "x").map(|rest| rest.pause);
        assert_eq!((fell(), fell()), (None, None));
        assert!(breaker.admit().unwrap().is_none());
        assert_eq!(fell(), Some(BACKOFF.pause(0)));
        let trial = breaker.admit().unwrap();
        assert!(trial.is_some() && matches!(breaker.admit(), Err(CallError::CircuitOpen { .. })));
        // The trial crashed the instance: the next pause is longer, and the next call tries again.
        drop(trial);
        assert_eq!(fell(), Some(BACKOFF.pause(1)));
        let trial = breaker.admit().unwrap();
        assert!(trial.is_some());
        // The trial was answered.
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
