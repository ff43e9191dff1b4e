//! Decides recorded calls again, under other policies.
//!
//! INVARIANT: a record with too little data for a decision is counted as unknown, never guessed.

mod recorded;

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

pub use self::recorded::{Recorded, SkipReason};
use portcullis_audit::record::Entry;
use portcullis_policy::{Inspector, Target, Verdict};
use portcullis_protocol::names::DecisionId;

/// Maximum number of separate changes; further ones are only counted.
const CHANGES: usize = 10_000;
/// Maximum number of policies listed for one change.
const RULES: usize = 8;

/// A replay in progress.
pub struct Replay {
    inspector: Inspector,
    changes: BTreeMap<Key, Change>,
    replayed: Replayed,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    now: Verdict,
    was: Verdict,
    principal: String,
    action: &'static str,
    target: String,
}

/// Result of a replay.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Replayed {
    /// Number of calls that policies had decided.
    pub calls: u64,
    /// Number of calls with the same decision.
    pub same: u64,
    /// Number of allowed calls that would be refused.
    pub refused: u64,
    /// Number of refused calls that would be allowed.
    pub allowed: u64,
    /// Number of calls with too little data on record.
    pub unknown: u64,
    /// Number of unknown calls that lack more than arguments, by the missing data.
    pub lacking: BTreeMap<&'static str, u64>,
    /// Number of messages that policies had not decided.
    pub others: u64,
    /// Changed and unknown decisions, by principal, action and target.
    pub changes: Vec<Change>,
    /// Number of changed or unknown calls that are not in `changes`.
    pub beyond: u64,
}

/// Calls of one principal with the same change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Change {
    pub principal: String,
    pub action: &'static str,
    pub target: String,
    pub was: Verdict,
    pub now: Verdict,
    pub calls: u64,
    /// Ids of the policies that would decide; if unknown, those that the decision depends on.
    pub rules: BTreeSet<String>,
    /// Id of one of these decisions.
    pub example: DecisionId,
}

impl Replay {
    /// Starts a replay under these policies.
    pub fn new(inspector: Inspector) -> Self {
        Self { inspector, changes: BTreeMap::new(), replayed: Replayed::default() }
    }

    /// Decides a recorded call again.
    pub fn take(&mut self, entry: &Entry) {
        let recorded = match Recorded::read(entry) {
            Ok(recorded) => recorded,
            Err(SkipReason::NotDecided) => {
                self.replayed.others += 1;
                return;
            }
            Err(skipped @ (SkipReason::Missing(_) | SkipReason::LaunchRefused)) => {
                let what = match skipped {
                    SkipReason::Missing(what) => what,
                    SkipReason::NotDecided | SkipReason::LaunchRefused => "decision",
                };
                self.replayed.calls += 1;
                self.replayed.unknown += 1;
                *self.replayed.lacking.entry(what).or_default() += 1;
                return;
            }
        };
        let judgement = recorded.judge(&mut self.inspector);
        self.replayed.calls += 1;
        match (recorded.was, judgement.verdict) {
            (was, now) if was == now => {
                self.replayed.same += 1;
                return;
            }
            (_, Verdict::Refused) => self.replayed.refused += 1,
            (_, Verdict::Allowed) => self.replayed.allowed += 1,
            (_, Verdict::Unknown) => self.replayed.unknown += 1,
        }
        let key = Key {
            now: judgement.verdict,
            was: recorded.was,
            principal: recorded.principal.name(),
            action: recorded.action.as_str(),
            target: named(&recorded.target),
        };
        if self.changes.len() >= CHANGES && !self.changes.contains_key(&key) {
            self.replayed.beyond += 1;
            return;
        }
        let change = self.changes.entry(key).or_insert_with_key(|key| Change {
            principal: key.principal.clone(),
            action: key.action,
            target: key.target.clone(),
            was: key.was,
            now: key.now,
            calls: 0,
            rules: BTreeSet::new(),
            example: recorded.id,
        });
        change.calls += 1;
        for rule in judgement.rules {
            if change.rules.len() < RULES {
                change.rules.insert(rule.id);
            }
        }
    }

    /// The result: new refusals first, then by frequency.
    pub fn finish(self) -> Replayed {
        let mut replayed = self.replayed;
        replayed.changes = self.changes.into_values().collect();
        let order = |now| match now {
            Verdict::Refused => 0,
            Verdict::Allowed => 1,
            Verdict::Unknown => 2,
        };
        replayed.changes.sort_by_key(|change| (order(change.now), u64::MAX - change.calls));
        replayed
    }
}

/// A short name of a target.
pub(super) fn named(target: &Target) -> String {
    match target {
        Target::Proxy => "all servers".to_owned(),
        Target::Server(server) | Target::Requester(server) => server.to_string(),
        Target::Tool(server, name)
        | Target::Prompt(server, name)
        | Target::Resource(server, name)
        | Target::Template(server, name) => format!("{server}/{name}"),
    }
}
