//! Quotas of one caller's messages for a plugin's instances and memory, so that the rest is
//! available for others, however many messages it sends and however long they take.

use std::{
    collections::HashMap,
    sync::{
        Arc, OnceLock, Weak,
        atomic::{AtomicUsize, Ordering},
    },
};

use parking_lot::Mutex;
use tokio::sync::{AcquireError, Semaphore, SemaphorePermit};

/// Limit of one plugin's running instances. Guests hardly wait except for HTTP, so more would not
/// make a plugin faster; this number lets quick messages pass slow ones.
const MAX_RUNNING: u32 = 32;
/// Limit of the running instances for one caller.
const MAX_RUNNING_PER_CALLER: u32 = 8;
/// Memory limit of a plugin's instances together, as a multiple of one instance's limit.
const MEMORY_FACTOR: usize = 8;
/// Memory limit of one caller's instances, likewise.
const MEMORY_FACTOR_PER_CALLER: usize = 2;
/// Estimated number of copies of a payload in a guest's memory: parsing JSON needs ten times its
/// size, and the language runtime some more.
const PAYLOAD_COPIES: usize = 16;
/// Limit of idle instances that are evicted, one after the other, for one that needs memory.
const MAX_EVICTIONS: usize = 96;
/// Number of callers above which inactive ones are removed.
const MAX_CALLERS: usize = 64;

/// Used bytes of memory, and their limit.
pub struct MemoryBudget {
    used: AtomicUsize,
    max: usize,
}

impl MemoryBudget {
    fn new(max: usize) -> Self {
        Self { used: AtomicUsize::new(0), max }
    }

    /// Limit in bytes.
    pub fn max(&self) -> usize {
        self.max
    }

    /// Used bytes.
    pub fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }

    fn take(&self, bytes: usize) -> bool {
        let more = |used: usize| used.checked_add(bytes).filter(|used| *used <= self.max);
        self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).is_ok()
    }

    fn release(&self, bytes: usize) {
        self.used.fetch_sub(bytes, Ordering::Relaxed);
    }
}

/// Holder of idle instances.
pub trait Evictable: Send + Sync {
    /// Evicts one: of this caller, or of any. Returns false if there is none.
    fn give(&self, of: Option<&Arc<CallerQuota>>) -> bool;
}

/// Reason why there is no memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exhausted {
    /// The caller's other messages use the caller's quota.
    Part,
    /// All callers together use the whole memory.
    All,
}

/// Quota of one caller. Exists while one of its messages or instances does.
pub struct CallerQuota {
    permits: Semaphore,
    memory: MemoryBudget,
}

impl CallerQuota {
    /// Memory of its instances.
    pub fn memory(&self) -> &MemoryBudget {
        &self.memory
    }
}

/// Quotas of one plugin.
pub struct Quotas {
    parts: Mutex<Parts>,
    permits: Semaphore,
    memory: MemoryBudget,
    part: usize,
    room: OnceLock<Weak<dyn Evictable>>,
}

#[derive(Default)]
struct Parts {
    all: HashMap<String, Weak<CallerQuota>>,
    /// Number of callers at which inactive ones are removed next.
    many: usize,
}

/// Permit of a message to run.
pub struct RunPermit<'a> {
    _own: SemaphorePermit<'a>,
    _common: SemaphorePermit<'a>,
}

impl Quotas {
    /// Quotas of a plugin whose instances may have this number of bytes.
    pub fn of(memory: usize) -> Arc<Self> {
        Arc::new(Self {
            parts: Mutex::default(),
            permits: Semaphore::new(MAX_RUNNING as usize),
            memory: MemoryBudget::new(memory.saturating_mul(MEMORY_FACTOR)),
            part: memory.saturating_mul(MEMORY_FACTOR_PER_CALLER),
            room: OnceLock::new(),
        })
    }

    /// Registers a holder of idle instances.
    pub fn register_evictable(&self, room: Weak<dyn Evictable>) {
        let _ = self.room.set(room);
    }

    /// Memory of all instances.
    pub fn memory(&self) -> &MemoryBudget {
        &self.memory
    }

    /// Memory limit in bytes of one caller's instances.
    pub fn part_of_one(&self) -> usize {
        self.part
    }

    /// Quota of this caller.
    pub fn part(&self, caller: &str) -> Arc<CallerQuota> {
        let mut parts = self.parts.lock();
        if let Some(part) = parts.all.get(caller).and_then(Weak::upgrade) {
            return part;
        }
        if parts.all.len() >= parts.many.max(MAX_CALLERS) {
            parts.all.retain(|_, part| part.strong_count() > 0);
            parts.many = 2 * parts.all.len();
        }
        let permits = Semaphore::new(MAX_RUNNING_PER_CALLER as usize);
        let part = Arc::new(CallerQuota { permits, memory: MemoryBudget::new(self.part) });
        parts.all.insert(caller.to_owned(), Arc::downgrade(&part));
        part
    }

    /// Permit for a message with a payload of this size. Taken from the caller's permits first and
    /// then from all, so that nobody waits behind more than a few messages of another caller. Large
    /// messages of one caller wait for each other if they would exceed its memory quota.
    pub async fn permit<'a>(
        &'a self,
        part: &'a CallerQuota,
        payload: usize,
    ) -> Result<RunPermit<'a>, AcquireError> {
        let each = (self.part / MAX_RUNNING_PER_CALLER as usize).max(1);
        let weight = payload.saturating_mul(PAYLOAD_COPIES) / each;
        let weight = u32::try_from(weight).unwrap_or(u32::MAX).clamp(1, MAX_RUNNING_PER_CALLER);
        let own = part.permits.acquire_many(weight).await?;
        Ok(RunPermit { _own: own, _common: self.permits.acquire().await? })
    }

    /// Reserves memory for an instance of that caller; without a caller, for a prepared one. Evicts
    /// idle instances for it, the caller's own if it exceeds its quota.
    pub fn take(&self, part: Option<&Arc<CallerQuota>>, bytes: usize) -> Result<(), Exhausted> {
        if let Some(part) = part {
            self.until_room(Some(part), || part.memory.take(bytes)).ok_or(Exhausted::Part)?;
        }
        // A prepared instance does not use up another caller's memory.
        let all = match part {
            Some(_) => self.until_room(None, || self.memory.take(bytes)),
            None => self.memory.take(bytes).then_some(()),
        };
        if all.is_none() {
            if let Some(part) = part {
                part.memory.release(bytes);
            }
            return Err(Exhausted::All);
        }
        Ok(())
    }

    fn until_room(&self, of: Option<&Arc<CallerQuota>>, take: impl Fn() -> bool) -> Option<()> {
        for _ in 0..MAX_EVICTIONS {
            if take() {
                return Some(());
            }
            let room = self.room.get().and_then(Weak::upgrade)?;
            if !room.give(of) {
                break;
            }
        }
        take().then_some(())
    }

    /// Releases an instance's memory.
    pub fn release(&self, part: Option<&Arc<CallerQuota>>, bytes: usize) {
        self.memory.release(bytes);
        if let Some(part) = part {
            part.memory.release(bytes);
        }
    }

    /// An instance of this size begins to work for a caller.
    pub fn join(&self, part: &Arc<CallerQuota>, bytes: usize) -> Result<(), Exhausted> {
        self.until_room(Some(part), || part.memory.take(bytes)).ok_or(Exhausted::Part)
    }

    /// It has finished, and waits to be removed.
    pub fn leave(&self, part: &CallerQuota, bytes: usize) {
        part.memory.release(bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: usize = 1 << 20;

    #[tokio::test]
    async fn one_caller_gets_a_part_of_the_permits() {
        use futures_util::FutureExt as _;

        let shares = Quotas::of(64 * MIB);
        let (greedy, other) = (shares.part("greedy"), shares.part("other"));
        let mut permits = Vec::new();
        for _ in 0..MAX_RUNNING_PER_CALLER {
            permits.push(shares.permit(&greedy, 100).now_or_never().expect("a permit").unwrap());
        }
        assert!(shares.permit(&greedy, 100).now_or_never().is_none());
        assert!(shares.permit(&other, 100).now_or_never().is_some());
        permits.pop();
        assert!(shares.permit(&greedy, 100).now_or_never().is_some());
    }

    #[tokio::test]
    async fn large_messages_of_one_caller_wait_for_each_other() {
        use futures_util::FutureExt as _;

        let shares = Quotas::of(64 * MIB);
        let part = shares.part("a");
        let large = shares.permit(&part, 3 * MIB).now_or_never().expect("a permit").unwrap();
        let next = shares.permit(&part, 3 * MIB).now_or_never().expect("a permit").unwrap();
        assert!(shares.permit(&part, 3 * MIB).now_or_never().is_none());
        drop((large, next));
        // A message larger than the whole limit still gets its turn.
        assert!(shares.permit(&part, usize::MAX).now_or_never().is_some());
    }

    #[test]
    fn one_caller_gets_a_part_of_the_memory() {
        let shares = Quotas::of(64 * MIB);
        let (greedy, other) = (shares.part("greedy"), shares.part("other"));
        assert_eq!(shares.take(Some(&greedy), 128 * MIB), Ok(()));
        assert_eq!(shares.take(Some(&greedy), 1), Err(Exhausted::Part));
        assert_eq!(shares.take(Some(&other), 128 * MIB), Ok(()));
        assert_eq!(shares.take(None, 256 * MIB), Ok(()));
        let late = shares.part("late");
        assert_eq!(shares.take(Some(&late), 1), Err(Exhausted::All));
        assert_eq!(late.memory.used(), 0);
        shares.release(Some(&greedy), 128 * MIB);
        assert_eq!(shares.take(Some(&late), 1), Ok(()));
        assert_eq!((greedy.memory.used(), shares.memory.used()), (0, 384 * MIB + 1));
    }

    #[test]
    fn inactive_callers_are_removed() {
        let shares = Quotas::of(MIB);
        let active = shares.part("kept");
        for at in 0..10 * MAX_CALLERS {
            shares.part(&at.to_string());
        }
        assert!(shares.parts.lock().all.len() <= MAX_CALLERS);
        assert!(Arc::ptr_eq(&active, &shares.part("kept")));
    }
}
