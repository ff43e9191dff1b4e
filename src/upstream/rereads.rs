//! Readings of one server's secrets that somebody wants: one at a time, and those that are asked for
//! meanwhile are one.

use parking_lot::Mutex;

use super::hands::Reread;

/// What is still to be done.
#[derive(Debug, Default)]
pub struct Rereads {
    asked: Mutex<Option<Reread>>,
    turn: tokio::sync::Mutex<()>,
}

/// Held by whoever does it.
pub struct Turn<'a> {
    of: &'a Rereads,
    _held: tokio::sync::MutexGuard<'a, ()>,
}

impl Rereads {
    /// Asks for one.
    pub fn ask(&self, which: Reread) {
        let mut asked = self.asked.lock();
        *asked = (*asked).max(Some(which));
    }

    /// Whether one is asked for that nobody has begun.
    pub fn is_asked(&self) -> bool {
        self.asked.lock().is_some()
    }

    /// The turn to do what is asked for; nothing where somebody else has it.
    pub fn turn(&self) -> Option<Turn<'_>> {
        self.turn.try_lock().ok().map(|held| Turn { of: self, _held: held })
    }
}

impl Turn<'_> {
    /// What is to be done next.
    pub fn take(&mut self) -> Option<Reread> {
        self.of.asked.lock().take()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_for_meanwhile_is_done_once_and_as_a_whole() {
        let rereads = Rereads::default();
        assert!(!rereads.is_asked());
        rereads.ask(Reread::Files);
        let mut turn = rereads.turn().unwrap();
        assert!(rereads.turn().is_none(), "two at a time");
        assert_eq!(turn.take(), Some(Reread::Files));
        for which in [Reread::Files, Reread::All, Reread::Files] {
            rereads.ask(which);
        }
        assert_eq!(turn.take(), Some(Reread::All));
        assert_eq!(turn.take(), None);
        rereads.ask(Reread::Files);
        drop(turn);
        assert!(rereads.is_asked());
        assert_eq!(rereads.turn().unwrap().take(), Some(Reread::Files));
    }
}
