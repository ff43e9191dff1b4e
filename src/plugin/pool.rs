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
    template::{Prepared, Template},
};

/// Instances that are ready at first, and at most.
const FIRST: usize = 4;
const MOST: usize = 32;
/// Bytes that those of one plugin may take together, beyond the first two.
const BYTES: usize = 32 << 20;

/// The ready instances of one plugin. What it costs to make one and to clear one away is paid in
/// threads of their own, once for several messages: to wake another thread costs a message more than
/// a short verdict does.
pub struct Pool {
    template: Arc<Template>,
    ready: Mutex<Vec<Prepared>>,
    /// What messages have done with.
    done: Mutex<Vec<Prepared>>,
    /// How many are to be ready; grows whenever a message found none.
    wanted: AtomicUsize,
    refilling: AtomicBool,
}

impl Pool {
    pub fn of(template: Arc<Template>) -> Arc<Self> {
        Arc::new(Self {
            template,
            ready: Mutex::default(),
            done: Mutex::default(),
            wanted: AtomicUsize::new(FIRST),
            refilling: AtomicBool::new(false),
        })
    }

    /// One that is ready.
    pub fn take(&self) -> Option<Prepared> {
        let ready = self.ready.lock().pop();
        if ready.is_none() {
            let more = |wanted: usize| Some((wanted * 2).min(MOST));
            let _ = self.wanted.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more);
        }
        ready
    }

    /// Clears an instance away, and makes others ready where few are left.
    pub fn done(self: &Arc<Self>, instance: Prepared) {
        let spent = {
            let mut done = self.done.lock();
            done.push(instance);
            done.len()
        };
        let low = self.wanted.load(Ordering::Relaxed) / 2;
        if spent >= low.max(1) || self.ready.lock().len() < low {
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
                while let Some(instance) = pool.next_done() {
                    drop(instance);
                }
                if pool.has_enough() {
                    return;
                }
                // Should this fail, the next message makes its own and says why.
                match pool.template.prepare(Instant::now() + START).await {
                    Ok(next) => pool.ready.lock().push(next),
                    Err(_) => return,
                }
            }
        });
    }

    fn next_done(&self) -> Option<Prepared> {
        self.done.lock().pop()
    }

    fn has_enough(&self) -> bool {
        let ready = self.ready.lock();
        let bytes: usize = ready.iter().map(Prepared::memory).sum();
        ready.len() >= self.wanted.load(Ordering::Relaxed) || (ready.len() >= 2 && bytes >= BYTES)
    }
}

/// Somebody refills as long as this lives.
struct Refilling<'a>(&'a AtomicBool);

impl Drop for Refilling<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}
