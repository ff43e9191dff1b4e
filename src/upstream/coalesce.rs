//! Coalescing of requests: one run at a time, and all requests during a run share the next run.

use parking_lot::Mutex;

/// Pending request for work of one kind. Of two requests, the greater includes the lesser.
#[derive(Debug)]
pub struct Coalescing<T> {
    pending: Mutex<Option<T>>,
    turn: tokio::sync::Mutex<()>,
}

/// Exclusive right to do the work.
pub struct Slot<'a, T> {
    of: &'a Coalescing<T>,
    _held: tokio::sync::MutexGuard<'a, ()>,
}

impl<T> Default for Coalescing<T> {
    fn default() -> Self {
        Self { pending: Mutex::new(None), turn: tokio::sync::Mutex::default() }
    }
}

impl<T: Copy + Ord> Coalescing<T> {
    /// Requests a run.
    pub fn ask(&self, what: T) {
        let mut pending = self.pending.lock();
        *pending = (*pending).max(Some(what));
    }

    /// Whether a request is pending. Check it again after each turn: a request can come at the very
    /// moment at which the turn ends.
    pub fn is_pending(&self) -> bool {
        self.pending.lock().is_some()
    }

    /// The turn to do the pending work. `None` if no request is pending, or if another holder has
    /// the turn, which does the work.
    pub fn begin(&self) -> Option<Slot<'_, T>> {
        self.is_pending().then(|| self.turn()).flatten()
    }

    /// The turn to do the work. `None` if another holder has it, which does the pending work.
    pub fn turn(&self) -> Option<Slot<'_, T>> {
        self.turn.try_lock().ok().map(|held| Slot { of: self, _held: held })
    }
}

impl<T> Slot<'_, T> {
    /// Takes the pending request.
    pub fn take(&mut self) -> Option<T> {
        self.of.pending.lock().take()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ReloadScope;

    #[test]
    fn requests_during_a_run_are_combined_into_one() {
        let rereads = Coalescing::default();
        assert!(!rereads.is_pending());
        rereads.ask(ReloadScope::Files);
        let mut turn = rereads.turn().unwrap();
        assert!(rereads.turn().is_none(), "two at a time");
        assert_eq!(turn.take(), Some(ReloadScope::Files));
        for which in [ReloadScope::Files, ReloadScope::All, ReloadScope::Files] {
            rereads.ask(which);
        }
        assert_eq!(turn.take(), Some(ReloadScope::All));
        assert_eq!(turn.take(), None);
        rereads.ask(ReloadScope::Files);
        assert!(rereads.begin().is_none(), "two at a time");
        drop(turn);
        assert!(rereads.is_pending());
        assert_eq!(rereads.begin().unwrap().take(), Some(ReloadScope::Files));
        assert!(rereads.begin().is_none(), "nothing is asked for");
    }
}
