//! Policies that were added, removed or changed from one set to another.

use std::{collections::BTreeMap, path::PathBuf};

use cedar_policy::{Effect, Policy, PolicySet};
use serde::Serialize;
use serde_json::Value;

use super::format::pretty;
use portcullis_policy::Engine;
use portcullis_protocol::refusal::Rule;

/// Kind of a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum ChangeKind {
    Added,
    Removed,
    Changed,
}

impl ChangeKind {
    /// The change as a word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Added => "added",
            Self::Removed => "removed",
            Self::Changed => "changed",
        }
    }
}

/// Policy that differs between two sets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PolicyChange {
    pub kind: ChangeKind,
    /// `permit` or `forbid`, in the second set if it has the policy.
    pub effect: &'static str,
    pub id: String,
    /// Place in the first set.
    pub before: Option<Place>,
    /// Place in the second set.
    pub after: Option<Place>,
}

/// Place of a policy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Place {
    pub file: PathBuf,
    pub line: u32,
    /// The policy in the common layout.
    pub text: String,
}

/// One policy of a set.
struct Entry {
    rule: Rule,
    named: bool,
    effect: &'static str,
    /// Meaning without layout and comments.
    meaning: Value,
    text: String,
}

impl Entry {
    fn read((rule, text): (Rule, String)) -> Option<Self> {
        let parsed: PolicySet = text.parse().ok()?;
        let policy: &Policy = parsed.policies().next()?;
        let effect = match policy.effect() {
            Effect::Permit => "permit",
            Effect::Forbid => "forbid",
        };
        let named = policy.annotation("id").is_some_and(|id| !id.is_empty());
        let meaning = policy.to_json().ok()?;
        let text = pretty(&text).unwrap_or(text);
        Some(Self { rule, named, effect, meaning, text })
    }

    fn place(&self) -> Option<Place> {
        let file = self.rule.file.clone()?;
        Some(Place { file, line: self.rule.line?, text: self.text.clone() })
    }
}

/// The policies that differ, by kind, file and line. Policies with an `@id` are compared with the
/// policy of that id in the other set, other policies with an equal one. Layout, comments and the
/// place of a policy are not compared.
pub fn changes(before: &Engine, after: &Engine) -> Vec<PolicyChange> {
    let entries = |engine: &Engine| engine.texts().into_iter().filter_map(Entry::read);
    let mut named: BTreeMap<String, Entry> = BTreeMap::new();
    let mut unnamed: Vec<(Entry, bool)> = Vec::new();
    for entry in entries(before) {
        if entry.named {
            named.insert(entry.rule.id.clone(), entry);
        } else {
            unnamed.push((entry, false));
        }
    }
    let mut changes = Vec::new();
    let mut change = |kind, before: Option<&Entry>, after: Option<&Entry>| {
        let Some(entry) = after.or(before) else { return };
        changes.push(PolicyChange {
            kind,
            effect: entry.effect,
            id: entry.rule.id.clone(),
            before: before.and_then(Entry::place),
            after: after.and_then(Entry::place),
        });
    };
    for entry in entries(after) {
        if entry.named {
            match named.remove(&entry.rule.id) {
                Some(old) if old.meaning == entry.meaning => {}
                Some(old) => change(ChangeKind::Changed, Some(&old), Some(&entry)),
                None => change(ChangeKind::Added, None, Some(&entry)),
            }
            continue;
        }
        let same = unnamed.iter_mut().find(|(old, met)| !met && old.meaning == entry.meaning);
        match same {
            Some((_, met)) => *met = true,
            None => change(ChangeKind::Added, None, Some(&entry)),
        }
    }
    let removed = unnamed.iter().filter(|(_, met)| !met).map(|(old, _)| old);
    for old in removed.chain(named.values()) {
        change(ChangeKind::Removed, Some(old), None);
    }
    changes.sort_by(|a, b| {
        let place = |change: &PolicyChange| {
            let place = change.after.as_ref().or(change.before.as_ref());
            place.map(|place| (place.file.clone(), place.line))
        };
        (a.kind, place(a)).cmp(&(b.kind, place(b)))
    });
    changes
}
