//! A plugin that fails repeatedly gets an open circuit for a while: what it would fail on is refused at
//! once, and costs nothing.
//!
//! It is counted for each who calls and each server apart: messages of one, made so that the plugin
//! fails, must not have those of others refused.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use parking_lot::Mutex;

/// Faults in a row.
const FAULTS: u32 = 5;
/// The first and the longest time that the circuit stays open.
const FIRST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(60);
/// Parties that faults are remembered of.
const PARTIES: usize = 1_024;

/// Whose messages are counted together.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct BreakerKey {
    /// Who calls.
    pub principal: String,
    pub server: Option<String>,
}

#[derive(Debug, Clone, Copy)]
struct Count {
    faults: u32,
    /// How long the circuit was open last; nothing before the first time.
    pause: Duration,
    /// When the circuit closes.
    until: Option<Instant>,
    /// A message is under way that says how it goes on.
    trying: bool,
    last: Instant,
}

/// Counts the faults of one plugin.
#[derive(Default)]
pub struct Breaker(Mutex<HashMap<BreakerKey, Count>>);

/// A message that may be shown to the plugin. Dropped without a word, it says nothing.
pub struct Admitted {
    breaker: Arc<Breaker>,
    between: BreakerKey,
    trial: bool,
}

/// The time that a message has, and whether the plugin had enough of it: what a message fails by of
/// which most went by in a queue is others' doing.
pub struct Time {
    all: Duration,
    until: Instant,
    /// An instance was at work on it in good time.
    begun: AtomicBool,
}

impl Time {
    pub fn from(now: Instant, all: Duration) -> Self {
        Self { all, until: now + all, begun: AtomicBool::new(false) }
    }

    /// When it is over.
    pub fn until(&self) -> Instant {
        self.until
    }

    /// The message waits for nobody else any more.
    pub fn begin(&self, now: Instant) {
        let left = self.until.saturating_duration_since(now);
        self.begun.store(left >= self.all / 2, Ordering::Relaxed);
    }

    /// Whether it began, and with half of its time left.
    pub fn was_enough(&self) -> bool {
        self.begun.load(Ordering::Relaxed)
    }
}

/// What became of it, where that is news.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum News {
    /// The circuit is open, for this long.
    Opened(Duration),
    /// It works again.
    Closed,
}

impl Breaker {
    /// Whether a message may be shown to the plugin now; where not, for how long.
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

    /// The number of caller and server pairs with an open circuit.
    pub fn open(&self, now: Instant) -> usize {
        self.0.lock().values().filter(|count| count.until.is_some_and(|until| now < until)).count()
    }
}

impl Admitted {
    /// Whoever waited for it gave it up. That is a fault if the plugin had its time.
    pub fn given_up(self, time: &Time, now: Instant) -> Option<News> {
        if now >= time.until && time.was_enough() { self.failed(now) } else { None }
    }

    /// The plugin reached a verdict.
    pub fn succeeded(mut self, now: Instant) -> Option<News> {
        let trial = std::mem::take(&mut self.trial);
        let mut counts = self.breaker.0.lock();
        let count = counts.get_mut(&self.between)?;
        // Messages that were under way when it was let alone change nothing.
        if count.until.is_some() && !trial {
            return None;
        }
        let closed = count.until.take().is_some();
        (count.faults, count.trying) = (0, false);
        if closed {
            // Not forgotten at once: one good message among many bad ones would have it begin anew.
            count.pause /= 2;
            count.last = now;
        }
        if count.pause < FIRST || now.saturating_duration_since(count.last) > LONGEST {
            counts.remove(&self.between);
        }
        closed.then_some(News::Closed)
    }

    /// It did not.
    pub fn failed(mut self, now: Instant) -> Option<News> {
        let trial = std::mem::take(&mut self.trial);
        let mut counts = self.breaker.0.lock();
        if counts.len() >= PARTIES && !counts.contains_key(&self.between) {
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
        // Messages that were under way when it was let alone change nothing.
        if count.faults < FAULTS || (count.until.is_some() && !trial) {
            return None;
        }
        count.pause = (count.pause * 2).clamp(FIRST, LONGEST);
        count.until = Some(now + count.pause);
        count.trying = false;
        Some(News::Opened(count.pause))
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        // Its client went away, for one: the next message is the one to say.
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

    fn fail(breaker: &Arc<Breaker>, who: &str, now: Instant) -> Option<News> {
        breaker.admit(between(who), now).ok().unwrap().failed(now)
    }

    #[test]
    fn faults_in_a_row_open_it_for_whom_they_are() {
        let (breaker, now) = (Arc::new(Breaker::default()), Instant::now());
        for _ in 1..FAULTS {
            assert_eq!(fail(&breaker, "a", now), None);
        }
        // One that goes well begins anew.
        assert_eq!(breaker.admit(between("a"), now).ok().unwrap().succeeded(now), None);
        for _ in 1..FAULTS {
            assert_eq!(fail(&breaker, "a", now), None);
        }
        assert_eq!(fail(&breaker, "a", now), Some(News::Opened(FIRST)));
        assert_eq!(breaker.admit(between("a"), now).err(), Some(FIRST));
        assert!(breaker.admit(between("b"), now).is_ok());
        let other = BreakerKey { server: None, ..between("a") };
        assert!(breaker.admit(other, now).is_ok());
        assert_eq!(breaker.open(now), 1);
    }

    #[test]
    fn one_message_says_how_it_goes_on() {
        let (breaker, mut now) = (Arc::new(Breaker::default()), Instant::now());
        for _ in 0..FAULTS {
            fail(&breaker, "a", now);
        }
        for pause in [2, 4, 8, 16, 32, 60, 60] {
            now += LONGEST;
            let trial = breaker.admit(between("a"), now).ok().unwrap();
            assert!(breaker.admit(between("a"), now).is_err(), "one at a time");
            assert_eq!(trial.failed(now), Some(News::Opened(Duration::from_secs(pause))));
        }
        now += LONGEST;
        // One that nobody waited for says nothing.
        drop(breaker.admit(between("a"), now).ok().unwrap());
        let trial = breaker.admit(between("a"), now).ok().unwrap();
        assert_eq!(trial.succeeded(now), Some(News::Closed));
        assert_eq!((breaker.open(now), fail(&breaker, "a", now)), (0, None));
    }

    #[test]
    fn what_was_under_way_does_not_lengthen_it() {
        let (breaker, now) = (Arc::new(Breaker::default()), Instant::now());
        let under_way: Vec<_> =
            (0..20).map(|_| breaker.admit(between("a"), now).ok().unwrap()).collect();
        let news: Vec<_> = under_way.into_iter().filter_map(|one| one.failed(now)).collect();
        assert_eq!(news, [News::Opened(FIRST)]);
    }

    #[test]
    fn a_verdict_that_was_under_way_does_not_close_it() {
        let (breaker, now) = (Arc::new(Breaker::default()), Instant::now());
        let slow = breaker.admit(between("a"), now).ok().unwrap();
        for _ in 0..FAULTS {
            fail(&breaker, "a", now);
        }
        assert_eq!(slow.succeeded(now), None);
        assert_eq!(breaker.admit(between("a"), now).err(), Some(FIRST));
    }

    #[test]
    fn one_good_message_does_not_have_it_begin_anew() {
        let (breaker, mut now) = (Arc::new(Breaker::default()), Instant::now());
        for _ in 0..FAULTS {
            fail(&breaker, "a", now);
        }
        for pause in [2, 4, 8] {
            now += LONGEST;
            let news = fail(&breaker, "a", now);
            assert_eq!(news, Some(News::Opened(Duration::from_secs(pause))));
        }
        now += LONGEST;
        let trial = breaker.admit(between("a"), now).ok().unwrap();
        assert_eq!(trial.succeeded(now), Some(News::Closed));
        let news: Vec<_> = (0..FAULTS).filter_map(|_| fail(&breaker, "a", now)).collect();
        assert_eq!(news, [News::Opened(Duration::from_secs(8))]);
    }

    #[test]
    fn one_that_is_given_up_after_its_time_is_a_fault_if_the_plugin_had_it() {
        const ALL: Duration = Duration::from_secs(2);
        let (breaker, now) = (Arc::new(Breaker::default()), Instant::now());
        let admitted = || breaker.admit(between("a"), now).ok().unwrap();
        let (queued, late, good) =
            (Time::from(now, ALL), Time::from(now, ALL), Time::from(now, ALL));
        late.begin(now + ALL / 2 + Duration::from_millis(1));
        good.begin(now + ALL / 2);
        for _ in 0..FAULTS {
            drop(admitted());
            // Its client went away.
            assert_eq!(admitted().given_up(&good, now + ALL / 2), None);
            // It waited for others.
            assert_eq!(admitted().given_up(&queued, now + ALL), None);
            assert_eq!(admitted().given_up(&late, now + ALL), None);
        }
        assert_eq!(breaker.open(now), 0);
        let news = (0..FAULTS).filter_map(|_| admitted().given_up(&good, now + ALL));
        assert_eq!(news.collect::<Vec<_>>(), [News::Opened(FIRST)]);
        assert_eq!(breaker.open(now), 1);
        assert_eq!(breaker.open(now + 2 * LONGEST), 0, "nobody came back");
    }

    #[test]
    fn strangers_do_not_fill_the_memory() {
        let (breaker, now) = (Arc::new(Breaker::default()), Instant::now());
        for at in 0..2 * PARTIES {
            fail(&breaker, &at.to_string(), now);
        }
        assert_eq!(breaker.0.lock().len(), PARTIES);
    }
}
