//! What the log misses: records of what had happened already when the store did not take them, and,
//! where the operator chose that calls go on without it (`on-failure = "pass"`), all others.
//!
//! From the first such record that the store did not take, none waits for it any more: each is
//! counted, and once a second it is tried whether the store takes the record that tells of them.
//! Then the log is whole again, except for the gap that it reports.

use std::time::{Duration, Instant};

use jiff::Timestamp;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::record::{Event, Kind, RecordsDropped};

/// How often it is tried whether the store takes records again.
pub(crate) const PROBE: Duration = Duration::from_secs(1);
/// How often it is said that records are missed.
const REMIND: Duration = Duration::from_secs(10);

/// Records that the log misses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Missed {
    /// When the first of them came.
    pub since: Timestamp,
    /// When the last of them came.
    pub until: Timestamp,
    /// Messages that left.
    pub intents: u64,
    /// What came of messages.
    pub outcomes: u64,
    /// Messages that were refused.
    pub refusals: u64,
    /// What happened to the proxy.
    pub events: u64,
}

impl Missed {
    fn new(at: Timestamp) -> Self {
        Self { since: at, until: at, intents: 0, outcomes: 0, refusals: 0, events: 0 }
    }

    /// How many records they are.
    pub fn count(&self) -> u64 {
        self.intents + self.outcomes + self.refusals + self.events
    }

    fn add(&mut self, kind: Kind, at: Timestamp) {
        self.until = self.until.max(at);
        *match kind {
            Kind::Intent => &mut self.intents,
            Kind::Outcome => &mut self.outcomes,
            Kind::Refused => &mut self.refusals,
            Kind::Event => &mut self.events,
        } += 1;
    }

    fn less(&self, told: &Self) -> Self {
        Self {
            since: self.since,
            until: self.until,
            intents: self.intents.saturating_sub(told.intents),
            outcomes: self.outcomes.saturating_sub(told.outcomes),
            refusals: self.refusals.saturating_sub(told.refusals),
            events: self.events.saturating_sub(told.events),
        }
    }
}

impl From<Missed> for Event {
    fn from(missed: Missed) -> Self {
        let Missed { since, until, intents, outcomes, refusals, events } = missed;
        RecordsDropped { since, until, intents, outcomes, refusals, events }.into()
    }
}

/// What is missed now, and all that was since the log was opened.
#[derive(Debug, Default)]
pub(crate) struct Gap {
    /// Whether calls go on.
    pass: bool,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    open: Option<Missed>,
    total: u64,
    said: Option<Instant>,
}

impl Gap {
    /// Nothing is missed yet. `pass` says whether calls go on where something is.
    pub(crate) fn new(pass: bool) -> Self {
        Self { pass, state: Mutex::default() }
    }

    /// The store did not take a record of this kind, or was not asked, because it does not work.
    /// Whether that begins a gap: then somebody has to [probe](PROBE) the store until it ends.
    pub(crate) fn miss(&self, kind: Kind, why: &dyn std::fmt::Display) -> bool {
        let mut state = self.state.lock();
        let now = Timestamp::now();
        let begins = state.open.is_none();
        let missed = state.open.get_or_insert_with(|| Missed::new(now));
        missed.add(kind, now);
        let (since, count) = (missed.since, missed.count());
        state.total += 1;
        if state.said.is_none_or(|said| said.elapsed() >= REMIND) {
            state.said = Some(Instant::now());
            drop(state);
            if self.pass {
                tracing::error!(
                    %since, count, "CALLS GO ON WITHOUT AN AUDIT RECORD (`audit.on-failure` is \
                     \"pass\"): {why}"
                );
            } else {
                tracing::error!(%since, count, "THE AUDIT LOG MISSES RECORDS of what happened: {why}");
            }
        }
        begins
    }

    /// What is missed, while the store takes no records.
    pub(crate) fn open(&self) -> Option<Missed> {
        self.state.lock().open
    }

    /// How many records were missed since the log was opened.
    pub(crate) fn total(&self) -> u64 {
        self.state.lock().total
    }

    /// The log tells of these now. Returns whether that is all: more may have been missed while
    /// it was written, and are told of by another record.
    pub(crate) fn told(&self, told: &Missed) -> bool {
        let mut state = self.state.lock();
        let rest = state.open.map(|open| open.less(told)).filter(|rest| rest.count() > 0);
        state.open = rest.map(|rest| Missed { since: told.until, ..rest });
        if state.open.is_none() {
            state.said = None;
        }
        state.open.is_none()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missed_is_told_once_and_wholly() {
        let gap = Gap::default();
        assert_eq!((gap.open(), gap.total()), (None, 0));
        assert!(gap.miss(Kind::Intent, &"full"), "it begins");
        assert!(!gap.miss(Kind::Outcome, &"full"));
        let told = gap.open().unwrap();
        assert_eq!((told.intents, told.outcomes, told.count()), (1, 1, 2));
        // While that is written, one more is missed.
        assert!(!gap.miss(Kind::Refused, &"full"));
        assert!(!gap.told(&told));
        let rest = gap.open().unwrap();
        assert_eq!((rest.refusals, rest.count(), rest.since), (1, 1, told.until));
        assert!(gap.told(&rest));
        assert_eq!((gap.open(), gap.total()), (None, 3));
        assert!(gap.miss(Kind::Event, &"full"), "another one begins");
    }
}
