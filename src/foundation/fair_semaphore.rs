//! Semaphore for long work with fairness between principals: one with much work delays others by at
//! most one piece, and uses all permits if nobody else needs them.

use std::{
    collections::HashMap,
    hash::Hash,
    sync::{Arc, Weak},
};

use parking_lot::Mutex;
use tokio::sync::{AcquireError, OwnedSemaphorePermit, Semaphore};

/// Semaphore with a queue for each key.
#[derive(Debug)]
pub struct FairSemaphore<K> {
    each: usize,
    all: Arc<Semaphore>,
    own: Mutex<HashMap<K, Weak<Semaphore>>>,
}

/// Permit, held until the work ends.
#[derive(Debug)]
pub struct FairPermit {
    // In this order: a principal's next piece queues behind those of others.
    _own: OwnedSemaphorePermit,
    _all: OwnedSemaphorePermit,
}

impl<K: Clone + Eq + Hash> FairSemaphore<K> {
    /// Semaphore with this number of permits.
    pub fn new(at_once: usize) -> Self {
        Self { each: at_once, all: Arc::new(Semaphore::new(at_once)), own: Mutex::default() }
    }

    /// One permit for each principal, without a common limit.
    pub fn one_each() -> Self {
        Self::for_each(1)
    }

    /// This number of permits for each principal, without a common limit.
    pub fn for_each(at_once: usize) -> Self {
        let all = Arc::new(Semaphore::new(Semaphore::MAX_PERMITS));
        Self { each: at_once, all, own: Mutex::default() }
    }

    /// Waits for this principal's turn, and then for a permit.
    ///
    /// # Errors
    /// None in practice: the semaphore is never closed.
    pub async fn next(&self, who: &K) -> Result<FairPermit, AcquireError> {
        let own = self.own(who).acquire_owned().await?;
        // A principal that holds all permits has no other waiting piece here.
        let all = self.all.clone().acquire_owned().await?;
        Ok(FairPermit { _own: own, _all: all })
    }

    /// A permit, if one is free at once.
    pub fn try_next(&self, who: &K) -> Option<FairPermit> {
        let own = self.own(who).try_acquire_owned().ok()?;
        let all = self.all.clone().try_acquire_owned().ok()?;
        Some(FairPermit { _own: own, _all: all })
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
    async fn principal_with_much_work_does_not_delay_others() {
        let turns = FairSemaphore::new(2);
        let [one, two] = ["a", "b"];
        let all: Vec<_> =
            (0..2).map(|_| turns.next(&one).now_or_never().unwrap().unwrap()).collect();
        let mut second = Box::pin(turns.next(&one));
        assert!((&mut second).now_or_never().is_none());
        let mut other = Box::pin(turns.next(&two));
        assert!((&mut other).now_or_never().is_none());
        // The principal with most work comes last, although it has waited longest.
        let mut all = all.into_iter();
        drop(all.next());
        assert!((&mut second).now_or_never().is_none());
        let other = other.now_or_never().unwrap().unwrap();
        drop(all.next());
        let second = second.now_or_never().unwrap().unwrap();
        drop((other, second));
        turns.next(&two).now_or_never().unwrap().unwrap();
        assert_eq!(turns.own.lock().len(), 1);
    }

    #[test]
    fn free_permit_is_taken_at_once() {
        let turns = FairSemaphore::new(2);
        let all = [turns.try_next(&"a").unwrap(), turns.try_next(&"a").unwrap()];
        assert!(turns.try_next(&"b").is_none());
        drop(all);
        assert!(turns.try_next(&"b").is_some());
    }
}
