//! Pool of prepared instances; also removes used ones.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Instant,
};

use parking_lot::Mutex;

use super::{
    limits::START_TIMEOUT,
    quotas::{CallerQuota, Evictable},
    template::{Prepared, Template},
};

/// Number of prepared instances at first, and its limit.
const INITIAL_READY: usize = 4;
const MAX_READY: usize = 32;
/// Limit in bytes of one plugin's prepared instances together, beyond the first two; and of used
/// instances before they are removed immediately.
const MAX_READY_BYTES: usize = 32 << 20;
/// Number of messages after which fewer instances are prepared, if many were always unused.
const SHRINK_WINDOW: usize = 1_024;

/// Prepared instances of one plugin. Separate threads create and remove instances, once for several
/// messages: waking another thread costs a message more than a short verdict.
pub struct Pool {
    template: Arc<Template>,
    ready: Mutex<Ready>,
    /// Used instances.
    done: Mutex<Done>,
    /// Held while one of those is removed: its memory still counts.
    clearing: Mutex<()>,
    /// Wanted number of prepared instances; grows whenever a message found none.
    wanted: AtomicUsize,
    refilling: AtomicBool,
}

#[derive(Default)]
struct Done {
    all: Vec<Prepared>,
    bytes: usize,
}

/// Prepared instances.
struct Ready {
    all: Vec<Prepared>,
    /// Minimum left over by a message, and the number of messages.
    least: usize,
    messages: usize,
}

impl Pool {
    pub fn of(template: Arc<Template>) -> Arc<Self> {
        Arc::new(Self {
            template,
            ready: Mutex::new(Ready { all: Vec::new(), least: usize::MAX, messages: 0 }),
            done: Mutex::default(),
            clearing: Mutex::default(),
            wanted: AtomicUsize::new(INITIAL_READY),
            refilling: AtomicBool::new(false),
        })
    }

    /// Takes a prepared instance.
    pub fn take(&self) -> Option<Prepared> {
        let mut ready = self.ready.lock();
        let taken = ready.all.pop();
        let remaining = ready.all.len();
        ready.least = ready.least.min(remaining);
        ready.messages += 1;
        let window = (ready.messages >= SHRINK_WINDOW).then(|| {
            ready.messages = 0;
            std::mem::replace(&mut ready.least, usize::MAX)
        });
        drop(ready);
        let wanted = |wanted: usize| match (&taken, window) {
            (None, _) => Some((wanted * 2).min(MAX_READY)),
            (Some(_), Some(least)) if least > wanted / 4 => Some((wanted / 2).max(INITIAL_READY)),
            _ => None,
        };
        let _ = self.wanted.fetch_update(Ordering::Relaxed, Ordering::Relaxed, wanted);
        taken
    }

    /// Removes a used instance, and prepares others if few are left.
    pub fn done(self: &Arc<Self>, mut instance: Prepared) {
        instance.leave();
        let (spent, bytes) = {
            let mut done = self.done.lock();
            done.bytes += instance.memory();
            done.all.push(instance);
            (done.all.len(), done.bytes)
        };
        let low = self.wanted.load(Ordering::Relaxed) / 2;
        if spent >= low.max(1) || bytes > MAX_READY_BYTES || self.ready.lock().all.len() < low {
            self.refill();
        }
    }

    /// Prepares instances up to the wanted number.
    pub fn refill(self: &Arc<Self>) {
        if self.refilling.swap(true, Ordering::AcqRel) {
            return;
        }
        let pool = self.clone();
        self.template.host.slow.spawn(async move {
            let _refilling = Refilling(&pool.refilling);
            loop {
                // One at a time: the remaining ones still count their memory.
                while pool.clear_one() {}
                if pool.has_enough() {
                    return;
                }
                // If this fails, the next message creates an instance itself and reports the
                // reason.
                match pool.template.prepare(Instant::now() + START_TIMEOUT, None).await {
                    Ok(next) => pool.ready.lock().all.push(next),
                    Err(_) => return,
                }
            }
        });
    }

    fn clear_one(&self) -> bool {
        let _clearing = self.clearing.lock();
        let mut done = self.done.lock();
        let Some(one) = done.all.pop() else { return false };
        done.bytes -= one.memory();
        drop(done);
        drop(one);
        true
    }

    fn has_enough(&self) -> bool {
        let ready = self.ready.lock();
        let bytes: usize = ready.all.iter().map(Prepared::memory).sum();
        ready.all.len() >= self.wanted.load(Ordering::Relaxed)
            || (ready.all.len() >= 2 && bytes >= MAX_READY_BYTES)
    }
}

impl Evictable for Pool {
    fn give(&self, of: Option<&Arc<CallerQuota>>) -> bool {
        // None of these belongs to a caller.
        if of.is_some() {
            return false;
        }
        // After the one that is being removed.
        if self.clear_one() {
            return true;
        }
        let ready = self.ready.lock().all.pop();
        ready.is_some()
    }
}

/// Marks a running refill until it is dropped.
struct Refilling<'a>(&'a AtomicBool);

impl Drop for Refilling<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}
