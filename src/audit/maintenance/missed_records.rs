//! Records that the log misses: records of past events that the store did not accept, and, if the
//! operator lets calls go on (`on-failure = "pass"`), all others.
//!
//! After the first such record that the store did not accept, no other waits: each is counted, and
//! once a second the store is probed with the record that reports them. Then the log is complete
//! again, except for the reported gap.

use std::time::{Duration, Instant};

use jiff::Timestamp;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::record::{Event, Kind, RecordsDropped};

/// Interval between probes of the store.
pub(crate) const PROBE: Duration = Duration::from_secs(1);
/// Minimum interval between log lines about missed records.
const REMIND: Duration = Duration::from_secs(10);

/// Records that the log misses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct MissedRecords {
    /// Time of the first of them.
    pub since: Timestamp,
    /// Time of the last of them.
    pub until: Timestamp,
    /// Messages that left.
    pub intents: u64,
    /// Ends of messages.
    pub outcomes: u64,
    /// Refused messages.
    pub refusals: u64,
    /// Events of the proxy.
    pub events: u64,
}

impl MissedRecords {
    fn new(at: Timestamp) -> Self {
        Self { since: at, until: at, intents: 0, outcomes: 0, refusals: 0, events: 0 }
    }

    /// Number of missed records.
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

    fn less(&self, reported: &Self) -> Self {
        Self {
            since: self.since,
            until: self.until,
            intents: self.intents.saturating_sub(reported.intents),
            outcomes: self.outcomes.saturating_sub(reported.outcomes),
            refusals: self.refusals.saturating_sub(reported.refusals),
            events: self.events.saturating_sub(reported.events),
        }
    }
}

impl From<MissedRecords> for Event {
    fn from(missed: MissedRecords) -> Self {
        let MissedRecords { since, until, intents, outcomes, refusals, events } = missed;
        RecordsDropped { since, until, intents, outcomes, refusals, events }.into()
    }
}

/// Missed records: the current gap, and the total since the log was opened.
#[derive(Debug, Default)]
pub(crate) struct Gap {
    /// Whether calls go on during a gap.
    pass: bool,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    open: Option<MissedRecords>,
    total: u64,
    logged: Option<Instant>,
}

impl Gap {
    /// State without missed records. `pass` is whether calls go on during a gap.
    pub(crate) fn new(pass: bool) -> Self {
        Self { pass, state: Mutex::default() }
    }

    /// Counts a record that a failed store did not accept or was not sent. Returns whether this
    /// begins a gap: then the caller must start to [probe](PROBE) the store until the gap ends.
    pub(crate) fn miss(&self, kind: Kind, why: &dyn std::fmt::Display) -> bool {
        let mut state = self.state.lock();
        let now = Timestamp::now();
        let begins = state.open.is_none();
        let missed = state.open.get_or_insert_with(|| MissedRecords::new(now));
        missed.add(kind, now);
        let (since, count) = (missed.since, missed.count());
        state.total += 1;
        if state.logged.is_none_or(|logged| logged.elapsed() >= REMIND) {
            state.logged = Some(Instant::now());
            drop(state);
            if self.pass {
                tracing::error!(
                    %since, count, "calls continue without an audit record (`audit.on-failure` is \
                     \"pass\"): {why}"
                );
            } else {
                tracing::error!(%since, count, "audit records dropped: {why}");
            }
        }
        begins
    }

    /// The current gap, while the store accepts no records.
    pub(crate) fn open(&self) -> Option<MissedRecords> {
        self.state.lock().open
    }

    /// Number of records missed since the log was opened.
    pub(crate) fn total(&self) -> u64 {
        self.state.lock().total
    }

    /// Subtracts records that the log reported. Returns whether the gap ended: records missed
    /// during the write need another report.
    pub(crate) fn reported(&self, reported: &MissedRecords) -> bool {
        let mut state = self.state.lock();
        let rest = state.open.map(|open| open.less(reported)).filter(|rest| rest.count() > 0);
        state.open = rest.map(|rest| MissedRecords { since: reported.until, ..rest });
        if state.open.is_none() {
            state.logged = None;
        }
        state.open.is_none()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missed_records_are_reported_exactly_once() {
        let gap = Gap::default();
        assert_eq!((gap.open(), gap.total()), (None, 0));
        assert!(gap.miss(Kind::Intent, &"full"), "it begins");
        assert!(!gap.miss(Kind::Outcome, &"full"));
        let reported = gap.open().unwrap();
        assert_eq!((reported.intents, reported.outcomes, reported.count()), (1, 1, 2));
        // During this write, one more record is missed.
        assert!(!gap.miss(Kind::Refused, &"full"));
        assert!(!gap.reported(&reported));
        let rest = gap.open().unwrap();
        assert_eq!((rest.refusals, rest.count(), rest.since), (1, 1, reported.until));
        assert!(gap.reported(&rest));
        assert_eq!((gap.open(), gap.total()), (None, 3));
        assert!(gap.miss(Kind::Event, &"full"), "another one begins");
    }
}
