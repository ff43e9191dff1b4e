//! What somebody wants done of one kind: one at a time, and what is asked for meanwhile is done once.

use parking_lot::Mutex;

/// What is still to be done. The greater includes the lesser.
#[derive(Debug)]
pub struct Coalescing<T> {
    asked: Mutex<Option<T>>,
    turn: tokio::sync::Mutex<()>,
}

/// Held by whoever does it.
pub struct Slot<'a, T> {
    of: &'a Coalescing<T>,
    _held: tokio::sync::MutexGuard<'a, ()>,
}

impl<T> Default for Coalescing<T> {
    fn default() -> Self {
        Self { asked: Mutex::new(None), turn: tokio::sync::Mutex::default() }
    }
}

impl<T: Copy + Ord> Coalescing<T> {
    /// Asks for one.
    pub fn ask(&self, what: T) {
        let mut asked = self.asked.lock();
        *asked = (*asked).max(Some(what));
    }

    /// Whether one is asked for that nobody has begun. To be looked at again after each turn: it may be
    /// asked for in the very moment in which all else is done.
    pub fn is_asked(&self) -> bool {
        self.asked.lock().is_some()
    }

    /// The turn to do what is asked for. `None` where nothing is asked for, or somebody else has the turn,
    /// who does that, too.
    pub fn begin(&self) -> Option<Slot<'_, T>> {
        self.is_asked().then(|| self.turn()).flatten()
    }

    /// The turn to do what is asked for; nothing where somebody else has it, who does that, too.
    pub fn turn(&self) -> Option<Slot<'_, T>> {
        self.turn.try_lock().ok().map(|held| Slot { of: self, _held: held })
    }
}

impl<T> Slot<'_, T> {
    /// What is to be done next.
    pub fn take(&mut self) -> Option<T> {
        self.of.asked.lock().take()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ReloadScope;

    #[test]
    fn what_is_asked_for_meanwhile_is_done_once_and_as_a_whole() {
        let rereads = Coalescing::default();
        assert!(!rereads.is_asked());
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
        assert!(rereads.is_asked());
        assert_eq!(rereads.begin().unwrap().take(), Some(ReloadScope::Files));
        assert!(rereads.begin().is_none(), "nothing is asked for");
    }
}
