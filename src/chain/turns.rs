//! Work that takes long, a few pieces at once, and for each principal one after the other: who has
//! much of it keeps nobody else waiting.

use std::{
    collections::HashMap,
    sync::{Arc, Weak},
};

use parking_lot::Mutex;
use tokio::sync::{AcquireError, OwnedSemaphorePermit, Semaphore};

use crate::identity::PrincipalKind;

/// Who waits for which.
#[derive(Debug)]
pub struct Turns {
    all: Arc<Semaphore>,
    own: Mutex<HashMap<PrincipalKind, Weak<Semaphore>>>,
}

/// Held to the end of the work.
#[derive(Debug)]
pub struct Turn {
    _own: OwnedSemaphorePermit,
    _all: OwnedSemaphorePermit,
}

impl Turns {
    /// So many at once.
    pub fn new(at_once: usize) -> Self {
        Self { all: Arc::new(Semaphore::new(at_once)), own: Mutex::default() }
    }

    /// Waits for this principal's turn, and then for a place.
    ///
    /// # Errors
    /// None: the places are there for as long as this is.
    pub async fn next(&self, who: &PrincipalKind) -> Result<Turn, AcquireError> {
        let own = self.own(who).acquire_owned().await?;
        // Of each principal one at most waits here, for which places are given in turn.
        let all = self.all.clone().acquire_owned().await?;
        Ok(Turn { _own: own, _all: all })
    }

    fn own(&self, who: &PrincipalKind) -> Arc<Semaphore> {
        let mut all = self.own.lock();
        all.retain(|_, own| own.strong_count() > 0);
        if let Some(own) = all.get(who).and_then(Weak::upgrade) {
            return own;
        }
        let own = Arc::new(Semaphore::new(1));
        all.insert(who.clone(), Arc::downgrade(&own));
        own
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    #[tokio::test]
    async fn who_has_much_keeps_nobody_else_waiting() {
        let turns = Turns::new(2);
        let [one, two, three] =
            ["a", "b", "c"].map(|user| PrincipalKind::Local { user: user.into() });
        let first = turns.next(&one).now_or_never().unwrap().unwrap();
        let mut again: Vec<_> = (0..9).map(|_| Box::pin(turns.next(&one))).collect();
        assert!(again.iter_mut().all(|next| next.now_or_never().is_none()));
        let other = turns.next(&two).now_or_never().unwrap().unwrap();
        let mut last = Box::pin(turns.next(&three));
        assert!((&mut last).now_or_never().is_none());
        drop(first);
        // The next of the first waits behind it.
        assert!((&mut again[0]).now_or_never().is_none());
        let last = last.now_or_never().unwrap().unwrap();
        drop(other);
        let next = (&mut again[0]).now_or_never().unwrap().unwrap();
        drop((last, next, again));
        turns.next(&two).now_or_never().unwrap().unwrap();
        assert_eq!(turns.own.lock().len(), 1);
    }
}
