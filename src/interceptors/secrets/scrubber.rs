//! Takes secrets out of what is kept: texts of records and log lines, and whole bodies.

use std::{
    collections::{BTreeSet, HashMap},
    ops::Range,
};

use serde_json::{Map, Value};

use super::{
    Invalid, Known, SHORTEST_KNOWN,
    payload::budget_of,
    rules,
    scan::{Budget, Hit, Scanner, Spent},
};

/// Takes the secrets out of what is kept. Knows every built-in rule, whatever the chain is told of
/// it, and the values that servers are given, each line of them too: what is kept line by line
/// holds a key of many lines in parts.
pub struct Scrubber {
    scanner: Scanner,
}

/// Longest key that is looked at together with its value: longer ones name nothing that a rule
/// knows, and each element of an array is looked at with its key.
const KEY: usize = 128;

/// A body without its secrets.
#[derive(Debug, PartialEq, Eq)]
pub struct Redacted {
    pub body: Value,
    /// How many were taken out.
    pub secrets: usize,
}

impl Scrubber {
    /// A scrubber that knows these values too.
    ///
    /// # Errors
    /// Values by which nothing could be scanned.
    pub fn new(known: &[Known]) -> Result<Self, Invalid> {
        let sources = rules::read(rules::BUILT_IN)?;
        let rules = sources.iter().map(rules::Rule::new).collect::<Result<Vec<_>, _>>()?;
        let mut exact = Vec::new();
        for secret in known {
            let value = secret.value.expose();
            let parts: BTreeSet<_> =
                [value].into_iter().chain(value.lines().map(str::trim)).collect();
            let long = parts.into_iter().filter(|part| part.len() >= SHORTEST_KNOWN);
            exact.extend(long.map(|part| (secret.id(), part)));
        }
        Ok(Self { scanner: Scanner::new(rules, &exact)? })
    }

    /// Puts `[redacted:RULE]` where a secret stands. A text that costs too much to look through is
    /// replaced whole.
    pub fn scrub(&self, text: &mut String) {
        match self.scanner.scan(text.as_bytes(), &mut Budget(1 << 20)) {
            Ok(hits) => drop(self.take_out(text, hits)),
            Err(Spent) => *text = "[redacted]".into(),
        }
    }

    /// A body with `[redacted:RULE]` where a secret stands: in its strings, keys and numbers, and
    /// in a value that is one by what its key says. None where looking through it costs too much.
    pub fn redact(&self, body: &[u8]) -> Option<Redacted> {
        let value = serde_json::from_slice(body).ok()?;
        let mut taking = Taking { scrubber: self, budget: budget_of(body.len()), secrets: 0 };
        let body = taking.value(value, "").ok()?;
        Some(Redacted { body, secrets: taking.secrets })
    }

    /// Puts marks in the place of these hits; how many there were.
    fn take_out(&self, text: &mut String, mut hits: Vec<Hit>) -> usize {
        // From the end, so that earlier places stay where they are; of overlapping hits the one
        // that begins first takes all.
        hits.sort_by_key(|hit| (hit.range.start, std::cmp::Reverse(hit.range.end)));
        let mut whole: Vec<Hit> = Vec::new();
        for hit in hits {
            match whole.last_mut() {
                Some(last) if hit.range.start < last.range.end => {
                    last.range.end = last.range.end.max(hit.range.end);
                }
                _ => whole.push(hit),
            }
        }
        let count = whole.len();
        for hit in whole.into_iter().rev() {
            let id = self.scanner.ids.get(hit.id).map_or("", String::as_str);
            text.replace_range(hit.range, &format!("[redacted:{id}]"));
        }
        count
    }
}

struct Taking<'a> {
    scrubber: &'a Scrubber,
    budget: Budget,
    secrets: usize,
}

impl Taking<'_> {
    /// The value of a member, or of an element or the whole (an empty key).
    fn value(&mut self, value: Value, key: &str) -> Result<Value, Spent> {
        Ok(match value {
            Value::String(text) => Value::String(self.text(text, key)?),
            Value::Array(items) => {
                let items = items.into_iter().map(|item| self.value(item, key));
                Value::Array(items.collect::<Result<_, _>>()?)
            }
            Value::Object(members) => {
                let mut redacted = Map::with_capacity(members.len());
                let mut same: HashMap<String, usize> = HashMap::new();
                for (name, member) in members {
                    let member = self.value(member, &name)?;
                    let mut name = self.text(name, "")?;
                    // Two keys that are secrets can come to the same.
                    if redacted.contains_key(&name) {
                        let times = same.entry(name.clone()).or_insert(1);
                        *times += 1;
                        name = format!("{name}#{times}");
                    }
                    redacted.insert(name, member);
                }
                Value::Object(redacted)
            }
            Value::Number(number) => {
                let text = number.to_string();
                let shown = self.text(text.clone(), key)?;
                if shown == text { Value::Number(number) } else { Value::String(shown) }
            }
            plain => plain,
        })
    }

    fn text(&mut self, mut text: String, key: &str) -> Result<String, Spent> {
        let scanner = &self.scrubber.scanner;
        let mut hits = scanner.scan(text.as_bytes(), &mut self.budget)?;
        if !key.is_empty() && key.len() <= KEY {
            // Some secrets are known by the name before them alone, which here is the key.
            let named = format!("{key}={text}");
            let before = key.len() + 1;
            let found = scanner.scan(named.as_bytes(), &mut self.budget)?;
            hits.extend(found.into_iter().filter(|hit| hit.range.end > before).map(|hit| {
                let Range { start, end } = hit.range;
                Hit { range: start.saturating_sub(before)..end - before, ..hit }
            }));
        }
        self.secrets += self.scrubber.take_out(&mut text, hits);
        Ok(text)
    }
}
