//! Instances that are made before they are needed, and cleared away after they were.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Instant,
};

use parking_lot::Mutex;

use super::{
    load::START,
    quotas::{CallerQuota, Evictable},
    template::{Prepared, Template},
};

/// Instances that are ready at first, and at most.
const FIRST: usize = 4;
const MOST: usize = 32;
/// Bytes that those of one plugin may take together, beyond the first two; and those that messages
/// have done with, before they are cleared away at once.
const BYTES: usize = 32 << 20;
/// Messages after which fewer are made ready, where many were always left.
const WINDOW: usize = 1_024;

/// The ready instances of one plugin. What it costs to make one and to clear one away is paid in
/// threads of their own, once for several messages: to wake another thread costs a message more than
/// a short verdict does.
pub struct Pool {
    template: Arc<Template>,
    ready: Mutex<Ready>,
    /// What messages have done with.
    done: Mutex<Done>,
    /// Held while one of those is cleared away: its memory is still counted.
    clearing: Mutex<()>,
    /// How many are to be ready; grows whenever a message found none.
    wanted: AtomicUsize,
    refilling: AtomicBool,
}

#[derive(Default)]
struct Done {
    all: Vec<Prepared>,
    bytes: usize,
}

/// The ready ones.
struct Ready {
    all: Vec<Prepared>,
    /// The fewest that were left to a message, of so many messages.
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
            wanted: AtomicUsize::new(FIRST),
            refilling: AtomicBool::new(false),
        })
    }

    /// One that is ready.
    pub fn take(&self) -> Option<Prepared> {
        let mut ready = self.ready.lock();
        let taken = ready.all.pop();
        let left = ready.all.len();
        ready.least = ready.least.min(left);
        ready.messages += 1;
        let window = (ready.messages >= WINDOW).then(|| {
            ready.messages = 0;
            std::mem::replace(&mut ready.least, usize::MAX)
        });
        drop(ready);
        let wanted = |wanted: usize| match (&taken, window) {
            (None, _) => Some((wanted * 2).min(MOST)),
            (Some(_), Some(least)) if least > wanted / 4 => Some((wanted / 2).max(FIRST)),
            _ => None,
        };
        let _ = self.wanted.fetch_update(Ordering::Relaxed, Ordering::Relaxed, wanted);
        taken
    }

    /// Clears an instance away, and makes others ready where few are left.
    pub fn done(self: &Arc<Self>, mut instance: Prepared) {
        instance.leave();
        let (spent, bytes) = {
            let mut done = self.done.lock();
            done.bytes += instance.memory();
            done.all.push(instance);
            (done.all.len(), done.bytes)
        };
        let low = self.wanted.load(Ordering::Relaxed) / 2;
        if spent >= low.max(1) || bytes > BYTES || self.ready.lock().all.len() < low {
            self.refill();
        }
    }

    /// Makes as many ready as there should be.
    pub fn refill(self: &Arc<Self>) {
        if self.refilling.swap(true, Ordering::AcqRel) {
            return;
        }
        let pool = self.clone();
        self.template.host.slow.spawn(async move {
            let _refilling = Refilling(&pool.refilling);
            loop {
                // One at a time: those that are left keep their memory counted.
                while pool.clear_one() {}
                if pool.has_enough() {
                    return;
                }
                // Should this fail, the next message makes its own and says why.
                match pool.template.prepare(Instant::now() + START, None).await {
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
            || (ready.all.len() >= 2 && bytes >= BYTES)
    }
}

impl Evictable for Pool {
    fn give(&self, of: Option<&Arc<CallerQuota>>) -> bool {
        // None of these is anybody's.
        if of.is_some() {
            return false;
        }
        // Behind the one that is cleared away at the moment.
        if self.clear_one() {
            return true;
        }
        let ready = self.ready.lock().all.pop();
        ready.is_some()
    }
}

/// Somebody refills as long as this lives.
struct Refilling<'a>(&'a AtomicBool);

impl Drop for Refilling<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}
