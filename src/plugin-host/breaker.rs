//! Circuit breaker of a plugin: after repeated faults, messages are refused immediately for a
//! while.
//!
//! Faults are counted for each pair of caller and server: messages of one caller that make the
//! plugin fail must not cause refusals for others.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use parking_lot::Mutex;

/// Number of consecutive faults that open the circuit.
const MAX_FAULTS: u32 = 5;
/// Shortest and longest time for which the circuit stays open.
const MIN_PAUSE: Duration = Duration::from_secs(1);
const MAX_PAUSE: Duration = Duration::from_secs(60);
/// Limit of the pairs whose faults are remembered.
const MAX_PAIRS: usize = 1_024;

/// Pair of caller and server whose messages are counted together.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct BreakerKey {
    /// Caller.
    pub principal: String,
    pub server: Option<String>,
}

#[derive(Debug, Clone, Copy)]
struct Count {
    faults: u32,
    /// Last time for which the circuit was open; zero before the first time.
    pause: Duration,
    /// When the circuit closes.
    until: Option<Instant>,
    /// Whether a trial message is in flight.
    trying: bool,
    last: Instant,
}

/// Counts the faults of one plugin.
#[derive(Default)]
pub struct Breaker(Mutex<HashMap<BreakerKey, Count>>);

/// Permission to send a message to the plugin. Dropping it without a result counts as nothing.
pub struct Admitted {
    breaker: Arc<Breaker>,
    between: BreakerKey,
    trial: bool,
}

/// Time limit of a message, and whether the plugin had enough of it. If most of the time passed in
/// a queue, a timeout is caused by other messages.
pub struct Time {
    all: Duration,
    until: Instant,
    /// Whether an instance began work on it early enough.
    begun: AtomicBool,
}

impl Time {
    pub fn from(now: Instant, all: Duration) -> Self {
        Self { all, until: now + all, begun: AtomicBool::new(false) }
    }

    /// Deadline.
    pub fn until(&self) -> Instant {
        self.until
    }

    /// The message no longer waits for others.
    pub fn begin(&self, now: Instant) {
        let remaining = self.until.saturating_duration_since(now);
        self.begun.store(remaining >= self.all / 2, Ordering::Relaxed);
    }

    /// Whether work began, with half of the time left.
    pub fn was_enough(&self) -> bool {
        self.begun.load(Ordering::Relaxed)
    }
}

/// Change of the circuit's state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transition {
    /// The circuit opened, for this long.
    Opened(Duration),
    /// The circuit closed.
    Closed,
}

impl Breaker {
    /// Permission to send a message now, or the time until the circuit closes.
    pub fn admit(
        self: &Arc<Self>,
        between: BreakerKey,
        now: Instant,
    ) -> Result<Admitted, Duration> {
        let mut counts = self.0.lock();
        let mut trial = false;
        if let Some(count) = counts.get_mut(&between)
            && let Some(until) = count.until
        {
            if count.trying || now < until {
                return Err(until.saturating_duration_since(now));
            }
            count.trying = true;
            trial = true;
        }
        drop(counts);
        Ok(Admitted { breaker: self.clone(), between, trial })
    }

    /// Number of caller and server pairs with an open circuit.
    pub fn open(&self, now: Instant) -> usize {
        self.0.lock().values().filter(|count| count.until.is_some_and(|until| now < until)).count()
    }
}

impl Admitted {
    /// The caller stopped waiting. That is a fault if the plugin had enough time.
    pub fn given_up(self, time: &Time, now: Instant) -> Option<Transition> {
        if now >= time.until && time.was_enough() { self.failed(now) } else { None }
    }

    /// The plugin reached a verdict.
    pub fn succeeded(mut self, now: Instant) -> Option<Transition> {
        let trial = std::mem::take(&mut self.trial);
        let mut counts = self.breaker.0.lock();
        let count = counts.get_mut(&self.between)?;
        // Messages that were in flight when the circuit opened change nothing.
        if count.until.is_some() && !trial {
            return None;
        }
        let closed = count.until.take().is_some();
        (count.faults, count.trying) = (0, false);
        if closed {
            // Reduced step by step: one success among many faults must not reset it.
            count.pause /= 2;
            count.last = now;
        }
        if count.pause < MIN_PAUSE || now.saturating_duration_since(count.last) > MAX_PAUSE {
            counts.remove(&self.between);
        }
        closed.then_some(Transition::Closed)
    }

    /// The plugin failed.
    pub fn failed(mut self, now: Instant) -> Option<Transition> {
        let trial = std::mem::take(&mut self.trial);
        let mut counts = self.breaker.0.lock();
        if counts.len() >= MAX_PAIRS && !counts.contains_key(&self.between) {
            let oldest = counts.iter().min_by_key(|(_, count)| count.last);
            if let Some(oldest) = oldest.map(|(between, _)| between.clone()) {
                counts.remove(&oldest);
            }
        }
        let count = counts.entry(self.between.clone()).or_insert(Count {
            faults: 0,
            pause: Duration::ZERO,
            until: None,
            trying: false,
            last: now,
        });
        count.last = now;
        count.faults = count.faults.saturating_add(1);
        // Messages that were in flight when the circuit opened change nothing.
        if count.faults < MAX_FAULTS || (count.until.is_some() && !trial) {
            return None;
        }
        count.pause = (count.pause * 2).clamp(MIN_PAUSE, MAX_PAUSE);
        count.until = Some(now + count.pause);
        count.trying = false;
        Some(Transition::Opened(count.pause))
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        // For example, its client disconnected: the next message is the trial.
        if self.trial
            && let Some(count) = self.breaker.0.lock().get_mut(&self.between)
        {
            count.trying = false;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn between(principal: &str) -> BreakerKey {
        BreakerKey { principal: principal.into(), server: Some("notes".into()) }
    }

    fn fail(breaker: &Arc<Breaker>, who: &str, now: Instant) -> Option<Transition> {
        breaker.admit(between(who), now).ok().unwrap().failed(now)
    }

    #[test]
    fn consecutive_faults_open_the_circuit_for_their_pair() {
        let (breaker, now) = (Arc::new(Breaker::default()), Instant::now());
        for _ in 1..MAX_FAULTS {
            assert_eq!(fail(&breaker, "a", now), None);
        }
        // One success resets the count.
        assert_eq!(breaker.admit(between("a"), now).ok().unwrap().succeeded(now), None);
        for _ in 1..MAX_FAULTS {
            assert_eq!(fail(&breaker, "a", now), None);
        }
        assert_eq!(fail(&breaker, "a", now), Some(Transition::Opened(MIN_PAUSE)));
        assert_eq!(breaker.admit(between("a"), now).err(), Some(MIN_PAUSE));
        assert!(breaker.admit(between("b"), now).is_ok());
        let other = BreakerKey { server: None, ..between("a") };
        assert!(breaker.admit(other, now).is_ok());
        assert_eq!(breaker.open(now), 1);
    }

    #[test]
    fn one_trial_message_decides() {
        let (breaker, mut now) = (Arc::new(Breaker::default()), Instant::now());
        for _ in 0..MAX_FAULTS {
            fail(&breaker, "a", now);
        }
        for pause in [2, 4, 8, 16, 32, 60, 60] {
            now += MAX_PAUSE;
            let trial = breaker.admit(between("a"), now).ok().unwrap();
            assert!(breaker.admit(between("a"), now).is_err(), "one at a time");
            assert_eq!(trial.failed(now), Some(Transition::Opened(Duration::from_secs(pause))));
        }
        now += MAX_PAUSE;
        // An abandoned trial decides nothing.
        drop(breaker.admit(between("a"), now).ok().unwrap());
        let trial = breaker.admit(between("a"), now).ok().unwrap();
        assert_eq!(trial.succeeded(now), Some(Transition::Closed));
        assert_eq!((breaker.open(now), fail(&breaker, "a", now)), (0, None));
    }

    #[test]
    fn in_flight_faults_do_not_extend_the_pause() {
        let (breaker, now) = (Arc::new(Breaker::default()), Instant::now());
        let in_flight: Vec<_> =
            (0..20).map(|_| breaker.admit(between("a"), now).ok().unwrap()).collect();
        let transition: Vec<_> = in_flight.into_iter().filter_map(|one| one.failed(now)).collect();
        assert_eq!(transition, [Transition::Opened(MIN_PAUSE)]);
    }

    #[test]
    fn in_flight_success_does_not_close_the_circuit() {
        let (breaker, now) = (Arc::new(Breaker::default()), Instant::now());
        let slow = breaker.admit(between("a"), now).ok().unwrap();
        for _ in 0..MAX_FAULTS {
            fail(&breaker, "a", now);
        }
        assert_eq!(slow.succeeded(now), None);
        assert_eq!(breaker.admit(between("a"), now).err(), Some(MIN_PAUSE));
    }

    #[test]
    fn one_success_does_not_reset_the_pause() {
        let (breaker, mut now) = (Arc::new(Breaker::default()), Instant::now());
        for _ in 0..MAX_FAULTS {
            fail(&breaker, "a", now);
        }
        for pause in [2, 4, 8] {
            now += MAX_PAUSE;
            let transition = fail(&breaker, "a", now);
            assert_eq!(transition, Some(Transition::Opened(Duration::from_secs(pause))));
        }
        now += MAX_PAUSE;
        let trial = breaker.admit(between("a"), now).ok().unwrap();
        assert_eq!(trial.succeeded(now), Some(Transition::Closed));
        let transition: Vec<_> = (0..MAX_FAULTS).filter_map(|_| fail(&breaker, "a", now)).collect();
        assert_eq!(transition, [Transition::Opened(Duration::from_secs(8))]);
    }

    #[test]
    fn timeout_is_a_fault_if_the_plugin_had_enough_time() {
        const ALL: Duration = Duration::from_secs(2);
        let (breaker, now) = (Arc::new(Breaker::default()), Instant::now());
        let admitted = || breaker.admit(between("a"), now).ok().unwrap();
        let (queued, late, good) =
            (Time::from(now, ALL), Time::from(now, ALL), Time::from(now, ALL));
        late.begin(now + ALL / 2 + Duration::from_millis(1));
        good.begin(now + ALL / 2);
        for _ in 0..MAX_FAULTS {
            drop(admitted());
            // Its client disconnected.
            assert_eq!(admitted().given_up(&good, now + ALL / 2), None);
            // It waited in a queue.
            assert_eq!(admitted().given_up(&queued, now + ALL), None);
            assert_eq!(admitted().given_up(&late, now + ALL), None);
        }
        assert_eq!(breaker.open(now), 0);
        let transition = (0..MAX_FAULTS).filter_map(|_| admitted().given_up(&good, now + ALL));
        assert_eq!(transition.collect::<Vec<_>>(), [Transition::Opened(MIN_PAUSE)]);
        assert_eq!(breaker.open(now), 1);
        assert_eq!(breaker.open(now + 2 * MAX_PAUSE), 0, "no message came");
    }

    #[test]
    fn number_of_counted_pairs_is_limited() {
        let (breaker, now) = (Arc::new(Breaker::default()), Instant::now());
        for at in 0..2 * MAX_PAIRS {
            fail(&breaker, &at.to_string(), now);
        }
        assert_eq!(breaker.0.lock().len(), MAX_PAIRS);
    }
}
