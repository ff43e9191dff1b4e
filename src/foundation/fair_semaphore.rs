//! Semaphore for long work with fairness between principals: one with much work delays others by at
//! most one piece, and uses all permits if nobody else needs them.

use std::{collections::HashMap, hash::Hash, sync::Arc};

use parking_lot::Mutex;
use tokio::sync::{AcquireError, OwnedSemaphorePermit, Semaphore};

/// Unused semaphores of principals that are kept at least, so that a principal's next piece needs no
/// new one.
const KEPT: usize = 64;

/// Semaphore with a queue for each key.
#[derive(Debug)]
pub struct FairSemaphore<K> {
    each: usize,
    all: Arc<Semaphore>,
    own: Mutex<Own<K>>,
}

/// The semaphores of the principals.
#[derive(Debug)]
struct Own<K> {
    by_key: HashMap<K, Arc<Semaphore>>,
    /// Number of them at which the unused ones are dropped.
    full: usize,
}

impl<K> Default for Own<K> {
    fn default() -> Self {
        Self { by_key: HashMap::new(), full: KEPT }
    }
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

    /// Semaphore with this number of permits. An eighth of them is for principals other than the one
    /// with the most: so that its work delays none of theirs.
    pub fn with_reserve(at_once: usize) -> Self {
        Self { each: at_once - at_once / 8, ..Self::new(at_once) }
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

    /// Whether a permit is free for this principal.
    pub fn has_free(&self, who: &K) -> bool {
        self.all.available_permits() > 0 && self.own(who).available_permits() > 0
    }

    fn own(&self, who: &K) -> Arc<Semaphore> {
        let mut own = self.own.lock();
        if let Some(own) = own.by_key.get(who) {
            return own.clone();
        }
        if own.by_key.len() >= own.full {
            own.by_key.retain(|_, own| Arc::strong_count(own) > 1);
            // At twice the used ones, so that a drop costs little per new principal.
            own.full = KEPT.max(2 * own.by_key.len());
        }
        let new = Arc::new(Semaphore::new(self.each));
        own.by_key.insert(who.clone(), new.clone());
        new
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
    }

    #[test]
    fn reserve_is_for_others() {
        let turns = FairSemaphore::with_reserve(16);
        let all: Vec<_> = std::iter::from_fn(|| turns.try_next(&"busy")).collect();
        assert_eq!(all.len(), 14);
        assert!(!turns.has_free(&"busy") && turns.has_free(&"a"));
        assert!(turns.try_next(&"a").is_some());
        // Few permits have no reserve.
        let turns = FairSemaphore::with_reserve(7);
        let all: Vec<_> = std::iter::from_fn(|| turns.try_next(&"a")).collect();
        assert_eq!(all.len(), 7);
    }

    #[test]
    fn free_permit_is_taken_at_once() {
        let turns = FairSemaphore::new(2);
        let all = [turns.try_next(&"a").unwrap(), turns.try_next(&"a").unwrap()];
        assert!(turns.try_next(&"b").is_none() && !turns.has_free(&"b"));
        drop(all);
        assert!(turns.has_free(&"b"));
        assert!(turns.try_next(&"b").is_some());
    }

    #[test]
    fn unused_semaphores_of_principals_are_dropped() {
        let turns = FairSemaphore::new(2);
        let held = turns.try_next(&0).unwrap();
        let first = turns.own(&1);
        assert!(Arc::ptr_eq(&first, &turns.own(&1)));
        drop(first);
        for principal in 0..100 * KEPT {
            drop(turns.try_next(&principal));
            assert!(turns.own.lock().by_key.len() <= KEPT);
        }
        drop(turns.try_next(&0).unwrap());
        drop(held);
        // Many principals at once are not dropped one by one.
        let each = FairSemaphore::one_each();
        let all: Vec<_> = (0..3 * KEPT).filter_map(|principal| each.try_next(&principal)).collect();
        assert_eq!((all.len(), each.own.lock().by_key.len()), (3 * KEPT, 3 * KEPT));
        assert!(each.try_next(&0).is_none());
    }
}
