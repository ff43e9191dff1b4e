//! Calls in flight at one instance.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use parking_lot::Mutex;

use super::call_error::CallError;

/// Calls in flight at one instance, and the time of its last use.
pub(super) struct ActiveCalls {
    most: usize,
    calls: Mutex<Calls>,
    last_used: Mutex<Instant>,
}

#[derive(Default)]
struct Calls {
    /// Number of calls that were ever admitted. Each call has its own number.
    begun: u64,
    active: BTreeSet<u64>,
}

impl ActiveCalls {
    /// Admits at most `most` calls at a time.
    pub fn new(most: usize) -> Self {
        Self { most, calls: Mutex::default(), last_used: Mutex::new(Instant::now()) }
    }

    /// Counts a call until the permit is dropped.
    ///
    /// # Errors
    /// [`CallError::Overloaded`] at the limit.
    pub fn admit(&self) -> Result<CallPermit<'_>, CallError> {
        let mut calls = self.calls.lock();
        if calls.active.len() >= self.most {
            return Err(CallError::Overloaded { what: "calls in flight", most: self.most });
        }
        let number = calls.begun;
        calls.begun += 1;
        calls.active.insert(number);
        drop(calls);
        self.touch();
        Ok(CallPermit { number, of: self })
    }

    /// Number of calls in flight.
    pub fn count(&self) -> usize {
        self.calls.lock().active.len()
    }

    /// Number of calls that were ever admitted.
    pub fn begun(&self) -> u64 {
        self.calls.lock().begun
    }

    /// Whether one of the first `begun` calls is still in flight.
    pub fn has_older(&self, begun: u64) -> bool {
        self.calls.lock().active.first().is_some_and(|first| *first < begun)
    }

    /// Notes a use of the instance.
    pub fn touch(&self) {
        *self.last_used.lock() = Instant::now();
    }

    /// Whether no call is in flight, and the last use is at least `idle` ago.
    pub fn is_idle(&self, idle: Duration) -> bool {
        self.count() == 0 && self.last_used.lock().elapsed() >= idle
    }
}

/// A call in flight.
pub(super) struct CallPermit<'a> {
    number: u64,
    of: &'a ActiveCalls,
}

impl Drop for CallPermit<'_> {
    fn drop(&mut self) {
        self.of.calls.lock().active.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_limited_and_numbered() {
        let calls = ActiveCalls::new(2);
        let first = calls.admit().unwrap();
        let second = calls.admit().unwrap();
        let full = CallError::Overloaded { what: "calls in flight", most: 2 };
        assert_eq!(calls.admit().err(), Some(full));
        assert_eq!((calls.count(), calls.begun()), (2, 2));
        drop(first);
        let third = calls.admit().unwrap();
        assert!(calls.has_older(2) && !calls.has_older(1));
        drop(second);
        assert!(!calls.has_older(2) && calls.has_older(3));
        drop(third);
        assert_eq!((calls.count(), calls.begun()), (0, 3));
    }

    #[test]
    fn instance_with_calls_is_not_idle() {
        let calls = ActiveCalls::new(1);
        assert!(calls.is_idle(Duration::ZERO));
        assert!(!calls.is_idle(Duration::from_secs(100)));
        let call = calls.admit().unwrap();
        assert!(!calls.is_idle(Duration::ZERO));
        drop(call);
        assert!(calls.is_idle(Duration::ZERO));
    }
}
