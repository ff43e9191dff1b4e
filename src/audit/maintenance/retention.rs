//! Selects the segments to drop: whole ones, the oldest first, and no more than the limits require.

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use crate::config;

/// Limits of retention. Without limits, records are kept indefinitely.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Limits {
    /// Maximum age of a segment's last record.
    pub age: Option<SignedDuration>,
    /// Maximum bytes of all segments; the oldest are dropped first.
    pub size: Option<u64>,
}

impl From<&config::Retention> for Limits {
    fn from(retention: &config::Retention) -> Self {
        Self {
            age: retention.max_age.map(|age| age.0),
            size: retention.max_size.map(|size| size.0),
        }
    }
}

/// Segment that retention may drop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Candidate {
    pub first: u64,
    /// `seq` after its last record.
    pub end: u64,
    pub ended: Timestamp,
    pub closed: bool,
    pub bytes: u64,
}

/// Reason why a segment is dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RetentionReason {
    /// `max-age`.
    Age,
    /// `max-size`.
    Size,
    /// `max-size`, although a stream has not delivered its records yet.
    SizeUndelivered,
}

impl RetentionReason {
    /// Reason as text, for a record.
    pub(super) fn words(self) -> &'static str {
        match self {
            Self::Age => "older than `max-age`",
            Self::Size => "more than `max-size`",
            Self::SizeUndelivered => "more than `max-size`, though not yet exported everywhere",
        }
    }
}

/// Plan of retention.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Plan {
    /// Segments to drop, in order.
    pub drop: Vec<(Candidate, RetentionReason)>,
    /// First segment that exceeds the age but is kept, because a stream has not delivered its
    /// records.
    pub held: Option<u64>,
}

/// Plans retention for all segments of a store in order. `delivered` is the first record that a
/// stream has not delivered. The last closed segment is always kept: the next one needs its tree.
pub(super) fn plan(
    segments: &[Candidate],
    limits: Limits,
    delivered: Option<u64>,
    now: Timestamp,
) -> Plan {
    let mut plan = Plan::default();
    let mut bytes: u64 = segments.iter().map(|segment| segment.bytes).sum();
    for pair in segments.windows(2) {
        let [segment, next] = pair else { break };
        if !segment.closed || !next.closed {
            break;
        }
        let old = limits
            .age
            .is_some_and(|age| now.checked_sub(age).is_ok_and(|oldest| segment.ended < oldest));
        let large = limits.size.is_some_and(|size| bytes > size);
        let undelivered = delivered.is_some_and(|delivered| delivered < segment.end);
        let why = match (old, large, undelivered) {
            (_, true, true) => RetentionReason::SizeUndelivered,
            (true, _, false) => RetentionReason::Age,
            (false, true, false) => RetentionReason::Size,
            (true, false, true) => {
                plan.held = Some(segment.first);
                break;
            }
            (false, false, _) => break,
        };
        bytes -= segment.bytes;
        plan.drop.push((*segment, why));
    }
    plan
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: i64 = 86_400;

    /// Segments of ten records and a hundred bytes that end a day apart; the last is open.
    fn segments(count: u64) -> Vec<Candidate> {
        (0..count)
            .map(|at| Candidate {
                first: at * 10,
                end: at * 10 + 10,
                ended: Timestamp::from_second(at as i64 * DAY).unwrap(),
                closed: at + 1 < count,
                bytes: 100,
            })
            .collect()
    }

    fn dropped(count: u64, age: Option<i64>, size: Option<u64>, delivered: Option<u64>) -> Plan {
        let limits = Limits { age: age.map(|days| SignedDuration::from_secs(days * DAY)), size };
        let now = Timestamp::from_second((count as i64 - 1) * DAY + 1).unwrap();
        plan(&segments(count), limits, delivered, now)
    }

    fn firsts(plan: &Plan) -> Vec<(u64, RetentionReason)> {
        plan.drop.iter().map(|(segment, why)| (segment.first, *why)).collect()
    }

    #[test]
    fn oldest_segments_are_pruned_down_to_the_limits() {
        assert_eq!(dropped(9, None, None, None), Plan::default());
        assert_eq!(
            firsts(&dropped(9, Some(7), None, None)),
            [(0, RetentionReason::Age), (10, RetentionReason::Age)]
        );
        assert_eq!(
            firsts(&dropped(9, None, Some(700), None)),
            [(0, RetentionReason::Size), (10, RetentionReason::Size)]
        );
        assert!(dropped(9, None, Some(900), None).drop.is_empty());
        assert_eq!(
            firsts(&dropped(9, Some(7), Some(650), None)),
            [(0, RetentionReason::Age), (10, RetentionReason::Age), (20, RetentionReason::Size)]
        );
    }

    #[test]
    fn open_segment_and_its_predecessor_are_never_pruned() {
        assert_eq!(
            firsts(&dropped(4, Some(0), Some(1), None)),
            [(0, RetentionReason::Age), (10, RetentionReason::Age)]
        );
        for few in 0..3 {
            assert!(dropped(few, Some(0), Some(1), None).drop.is_empty(), "{few}");
        }
        let mut all = segments(5);
        all[1].closed = false;
        let limits = Limits { age: None, size: Some(1) };
        assert!(plan(&all, limits, None, Timestamp::MAX).drop.is_empty());
    }

    #[test]
    fn unexported_segments_are_pruned_only_by_size() {
        let held = dropped(9, Some(4), None, Some(15));
        assert_eq!((firsts(&held), held.held), (vec![(0, RetentionReason::Age)], Some(10)));
        assert_eq!(dropped(9, Some(4), None, Some(1_000)).held, None);
        let forced = dropped(9, Some(4), Some(700), Some(15));
        assert_eq!(
            firsts(&forced),
            [(0, RetentionReason::Age), (10, RetentionReason::SizeUndelivered)]
        );
        assert_eq!(forced.held, Some(20));
    }
}
