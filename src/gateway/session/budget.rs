//! Limit of the bytes that all streams of one principal keep.

use std::sync::atomic::{AtomicUsize, Ordering};

/// Limit in bytes of all streams of one principal's sessions.
const BUDGET: usize = 16 << 20;

/// Bytes kept for one principal.
#[derive(Debug, Default)]
pub struct Budget(AtomicUsize);

impl Budget {
    pub(super) fn take(&self, bytes: usize) -> bool {
        self.0
            .try_update(Ordering::Relaxed, Ordering::Relaxed, |used| {
                used.checked_add(bytes).filter(|used| *used <= BUDGET)
            })
            .is_ok()
    }

    pub(super) fn release(&self, bytes: usize) {
        self.0.fetch_sub(bytes, Ordering::Relaxed);
    }

    #[cfg(test)]
    pub(super) fn used(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }

    #[cfg(test)]
    pub(super) fn is_exceeded(&self) -> bool {
        self.used() > BUDGET
    }
}
