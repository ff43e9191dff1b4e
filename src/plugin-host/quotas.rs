//! What the messages of one caller may take of a plugin's instances and of their memory: a part,
//! however many they are and however long they take, so that the rest is there for others.

use std::{
    collections::HashMap,
    sync::{
        Arc, OnceLock, Weak,
        atomic::{AtomicUsize, Ordering},
    },
};

use parking_lot::Mutex;
use tokio::sync::{AcquireError, Semaphore, SemaphorePermit};

/// Instances of one plugin at work at once. Guests hardly wait for anything but HTTP, so more would
/// not make a plugin faster; this many let quick messages pass slow ones.
const AT_ONCE: u32 = 32;
/// Those that work for one caller.
const AT_ONCE_FOR_ONE: u32 = 8;
/// What the instances of a plugin may have of memory together, as a multiple of what one may have.
const MEMORY: usize = 8;
/// What those of one caller may have.
const MEMORY_FOR_ONE: usize = 2;
/// How often a payload stands in a guest's memory, about: one that parses JSON needs ten times as
/// much, and its language some more.
const COPIES: usize = 16;
/// Idle instances that are let go, one after the other, for one that needs room.
const ROOM: usize = 96;
/// Callers beyond which those who are gone are forgotten.
const CALLERS: usize = 64;

/// Bytes of memory that are had, and that may be had.
pub struct MemoryBudget {
    used: AtomicUsize,
    max: usize,
}

impl MemoryBudget {
    fn new(max: usize) -> Self {
        Self { used: AtomicUsize::new(0), max }
    }

    /// Bytes.
    pub fn max(&self) -> usize {
        self.max
    }

    /// Bytes.
    pub fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }

    fn take(&self, bytes: usize) -> bool {
        let more = |used: usize| used.checked_add(bytes).filter(|used| *used <= self.max);
        self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).is_ok()
    }

    fn give_back(&self, bytes: usize) {
        self.used.fetch_sub(bytes, Ordering::Relaxed);
    }
}

/// Who has instances that nobody needs at the moment.
pub trait Evictable: Send + Sync {
    /// Lets one go: of this caller, or of anybody. False: there is none.
    fn give(&self, of: Option<&Arc<CallerQuota>>) -> bool;
}

/// Why there is no memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exhausted {
    /// The caller's other messages have what one caller may have.
    Part,
    /// All callers together have all that there is.
    All,
}

/// What one caller may have. It lives as long as one of its messages or instances does.
pub struct CallerQuota {
    permits: Semaphore,
    memory: MemoryBudget,
}

impl CallerQuota {
    /// What its instances have of memory.
    pub fn memory(&self) -> &MemoryBudget {
        &self.memory
    }
}

/// What there is of one plugin.
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
    /// How many there are when it is next looked for those who are gone.
    many: usize,
}

/// A message's place at work.
pub struct RunPermit<'a> {
    _own: SemaphorePermit<'a>,
    _common: SemaphorePermit<'a>,
}

impl Quotas {
    /// Of a plugin of which one instance may have so many bytes.
    pub fn of(memory: usize) -> Arc<Self> {
        Arc::new(Self {
            parts: Mutex::default(),
            permits: Semaphore::new(AT_ONCE as usize),
            memory: MemoryBudget::new(memory.saturating_mul(MEMORY)),
            part: memory.saturating_mul(MEMORY_FOR_ONE),
            room: OnceLock::new(),
        })
    }

    /// Who is asked for room.
    pub fn ask_for_room(&self, room: Weak<dyn Evictable>) {
        let _ = self.room.set(room);
    }

    /// What all instances have of memory.
    pub fn memory(&self) -> &MemoryBudget {
        &self.memory
    }

    /// Bytes of memory that one caller's instances may have.
    pub fn part_of_one(&self) -> usize {
        self.part
    }

    /// What this caller may have.
    pub fn part(&self, caller: &str) -> Arc<CallerQuota> {
        let mut parts = self.parts.lock();
        if let Some(part) = parts.all.get(caller).and_then(Weak::upgrade) {
            return part;
        }
        if parts.all.len() >= parts.many.max(CALLERS) {
            parts.all.retain(|_, part| part.strong_count() > 0);
            parts.many = 2 * parts.all.len();
        }
        let permits = Semaphore::new(AT_ONCE_FOR_ONE as usize);
        let part = Arc::new(CallerQuota { permits, memory: MemoryBudget::new(self.part) });
        parts.all.insert(caller.to_owned(), Arc::downgrade(&part));
        part
    }

    /// A place for a message with a payload of so many bytes. First of those that are the caller's
    /// and only then of all, so that nobody waits behind more than a few of another's. Large messages
    /// of one caller wait for each other, where they would not fit into its part of the memory.
    pub async fn place<'a>(
        &'a self,
        part: &'a CallerQuota,
        payload: usize,
    ) -> Result<RunPermit<'a>, AcquireError> {
        let each = (self.part / AT_ONCE_FOR_ONE as usize).max(1);
        let weight = payload.saturating_mul(COPIES) / each;
        let weight = u32::try_from(weight).unwrap_or(u32::MAX).clamp(1, AT_ONCE_FOR_ONE);
        let own = part.permits.acquire_many(weight).await?;
        Ok(RunPermit { _own: own, _common: self.permits.acquire().await? })
    }

    /// Takes memory for an instance that works for that caller; for nobody: is made ready. Idle
    /// instances are let go for it, the caller's own where it has too much.
    pub fn take(&self, part: Option<&Arc<CallerQuota>>, bytes: usize) -> Result<(), Exhausted> {
        if let Some(part) = part {
            self.until_room(Some(part), || part.memory.take(bytes)).ok_or(Exhausted::Part)?;
        }
        // What is only made ready takes nobody's place.
        let all = match part {
            Some(_) => self.until_room(None, || self.memory.take(bytes)),
            None => self.memory.take(bytes).then_some(()),
        };
        if all.is_none() {
            if let Some(part) = part {
                part.memory.give_back(bytes);
            }
            return Err(Exhausted::All);
        }
        Ok(())
    }

    fn until_room(&self, of: Option<&Arc<CallerQuota>>, take: impl Fn() -> bool) -> Option<()> {
        for _ in 0..ROOM {
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

    /// Gives back what an instance had.
    pub fn give_back(&self, part: Option<&Arc<CallerQuota>>, bytes: usize) {
        self.memory.give_back(bytes);
        if let Some(part) = part {
            part.memory.give_back(bytes);
        }
    }

    /// An instance that has so much begins to work for a caller.
    pub fn join(&self, part: &Arc<CallerQuota>, bytes: usize) -> Result<(), Exhausted> {
        self.until_room(Some(part), || part.memory.take(bytes)).ok_or(Exhausted::Part)
    }

    /// It has done so, and waits to be cleared away.
    pub fn leave(&self, part: &CallerQuota, bytes: usize) {
        part.memory.give_back(bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: usize = 1 << 20;

    #[tokio::test]
    async fn one_caller_has_a_part_of_the_places() {
        use futures_util::FutureExt as _;

        let shares = Quotas::of(64 * MIB);
        let (greedy, other) = (shares.part("greedy"), shares.part("other"));
        let mut held = Vec::new();
        for _ in 0..AT_ONCE_FOR_ONE {
            held.push(shares.place(&greedy, 100).now_or_never().expect("a place").unwrap());
        }
        assert!(shares.place(&greedy, 100).now_or_never().is_none());
        assert!(shares.place(&other, 100).now_or_never().is_some());
        held.pop();
        assert!(shares.place(&greedy, 100).now_or_never().is_some());
    }

    #[tokio::test]
    async fn large_messages_of_one_caller_wait_for_each_other() {
        use futures_util::FutureExt as _;

        let shares = Quotas::of(64 * MIB);
        let part = shares.part("a");
        let large = shares.place(&part, 3 * MIB).now_or_never().expect("a place").unwrap();
        let next = shares.place(&part, 3 * MIB).now_or_never().expect("a place").unwrap();
        assert!(shares.place(&part, 3 * MIB).now_or_never().is_none());
        drop((large, next));
        // One that is larger than all that there is still gets its turn.
        assert!(shares.place(&part, usize::MAX).now_or_never().is_some());
    }

    #[test]
    fn one_caller_has_a_part_of_the_memory() {
        let shares = Quotas::of(64 * MIB);
        let (greedy, other) = (shares.part("greedy"), shares.part("other"));
        assert_eq!(shares.take(Some(&greedy), 128 * MIB), Ok(()));
        assert_eq!(shares.take(Some(&greedy), 1), Err(Exhausted::Part));
        assert_eq!(shares.take(Some(&other), 128 * MIB), Ok(()));
        assert_eq!(shares.take(None, 256 * MIB), Ok(()));
        let late = shares.part("late");
        assert_eq!(shares.take(Some(&late), 1), Err(Exhausted::All));
        assert_eq!(late.memory.used(), 0);
        shares.give_back(Some(&greedy), 128 * MIB);
        assert_eq!(shares.take(Some(&late), 1), Ok(()));
        assert_eq!((greedy.memory.used(), shares.memory.used()), (0, 384 * MIB + 1));
    }

    #[test]
    fn who_is_gone_is_forgotten() {
        let shares = Quotas::of(MIB);
        let kept = shares.part("kept");
        for at in 0..10 * CALLERS {
            shares.part(&at.to_string());
        }
        assert!(shares.parts.lock().all.len() <= CALLERS);
        assert!(Arc::ptr_eq(&kept, &shares.part("kept")));
    }
}
