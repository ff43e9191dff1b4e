//! Work that takes long, a few pieces at once: who has much of it keeps others waiting for one piece at
//! most, and has all places where nobody else wants any.

use std::{
    collections::HashMap,
    hash::Hash,
    sync::{Arc, Weak},
};

use parking_lot::Mutex;
use tokio::sync::{AcquireError, OwnedSemaphorePermit, Semaphore};

/// Who waits for which.
#[derive(Debug)]
pub struct FairSemaphore<K> {
    each: usize,
    all: Arc<Semaphore>,
    own: Mutex<HashMap<K, Weak<Semaphore>>>,
}

/// Held to the end of the work.
#[derive(Debug)]
pub struct FairPermit {
    // In this order: a principal's next piece queues up for the place behind those of others.
    _own: OwnedSemaphorePermit,
    _all: OwnedSemaphorePermit,
}

impl<K: Clone + Eq + Hash> FairSemaphore<K> {
    /// So many at once.
    pub fn new(at_once: usize) -> Self {
        Self { each: at_once, all: Arc::new(Semaphore::new(at_once)), own: Mutex::default() }
    }

    /// One at once for each, and as many as there are in all.
    pub fn one_each() -> Self {
        Self::for_each(1)
    }

    /// So many at once for each, and as many as there are in all.
    pub fn for_each(at_once: usize) -> Self {
        let all = Arc::new(Semaphore::new(Semaphore::MAX_PERMITS));
        Self { each: at_once, all, own: Mutex::default() }
    }

    /// Waits for the turn of this one, and then for a place.
    ///
    /// # Errors
    /// None: the places are there for as long as this is.
    pub async fn next(&self, who: &K) -> Result<FairPermit, AcquireError> {
        let own = self.own(who).acquire_owned().await?;
        // Who has all places has nothing that waits here.
        let all = self.all.clone().acquire_owned().await?;
        Ok(FairPermit { _own: own, _all: all })
    }

    fn own(&self, who: &K) -> Arc<Semaphore> {
        let mut all = self.own.lock();
        all.retain(|_, own| own.strong_count() > 0);
        if let Some(own) = all.get(who).and_then(Weak::upgrade) {
            return own;
        }
        let own = Arc::new(Semaphore::new(self.each));
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
        let turns = FairSemaphore::new(2);
        let [one, two] = ["a", "b"];
        let all: Vec<_> =
            (0..2).map(|_| turns.next(&one).now_or_never().unwrap().unwrap()).collect();
        let mut again = Box::pin(turns.next(&one));
        assert!((&mut again).now_or_never().is_none());
        let mut other = Box::pin(turns.next(&two));
        assert!((&mut other).now_or_never().is_none());
        // Whoever has most comes last, though it has waited longest.
        let mut all = all.into_iter();
        drop(all.next());
        assert!((&mut again).now_or_never().is_none());
        let other = other.now_or_never().unwrap().unwrap();
        drop(all.next());
        let again = again.now_or_never().unwrap().unwrap();
        drop((other, again));
        turns.next(&two).now_or_never().unwrap().unwrap();
        assert_eq!(turns.own.lock().len(), 1);
    }
}
