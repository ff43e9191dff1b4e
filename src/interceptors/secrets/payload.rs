//! Scans a whole payload, and puts marks in the place of secrets without touching another byte.

use std::ops::Range;

use bytes::Bytes;
use serde::de::IgnoredAny;

use super::{
    Action,
    json_strings::{Malformed, each_string, locate},
    scan::{Budget, Hit, Scanner, Spent},
};

/// Secrets told of one payload; further ones are counted.
const TOLD: usize = 50;
/// Bytes that regexes may look at, beside [`BUDGET_FACTOR`] times the payload.
const BUDGET: usize = 16 << 20;
const BUDGET_FACTOR: usize = 4;

/// What looking through a payload of that size may cost.
pub(super) fn budget_of(bytes: usize) -> Budget {
    Budget(BUDGET.saturating_add(bytes.saturating_mul(BUDGET_FACTOR)))
}

/// What was found in a payload.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Report {
    /// In the order of the text, the first [`TOLD`].
    pub found: Vec<Found>,
    /// Secrets beyond those.
    pub more: usize,
    /// Whether any is to be refused.
    pub refuse: bool,
    /// The text with its secrets redacted, where any is to be and none is to be refused.
    pub redacted: Option<Bytes>,
}

/// One secret.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Found {
    /// Which of the scanner's ids.
    pub id: usize,
    /// A JSON pointer; of a key, to its object's member.
    pub place: String,
    pub is_key: bool,
    pub action: Action,
}

/// Why a payload could not be scanned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Unscanned {
    #[error("the payload is not JSON")]
    Malformed,
    #[error("the payload holds too many keywords of secrets to be scanned in bounded time")]
    Spent,
}

impl From<Malformed> for Unscanned {
    fn from(_: Malformed) -> Self {
        Self::Malformed
    }
}

impl From<Spent> for Unscanned {
    fn from(_: Spent) -> Self {
        Self::Spent
    }
}

/// A part of a payload that is replaced by a mark.
struct Cut {
    range: Range<usize>,
    /// Which of the scanner's ids.
    id: usize,
    /// Whether the mark is a JSON string within the string.
    as_json: bool,
}

/// Looks at every string and key of a JSON text. `actions` has an action for each id.
pub(super) fn inspect(
    scanner: &Scanner,
    actions: &[Action],
    raw: &[u8],
) -> Result<Report, Unscanned> {
    let mut budget = budget_of(raw.len());
    let mut report = Report::default();
    let mut cuts: Vec<Cut> = Vec::new();
    each_string::<Unscanned>(raw, |path, text| {
        let hits = scanner.scan(&text.decoded, &mut budget)?;
        if hits.is_empty() {
            return Ok(false);
        }
        let hits = join(hits, actions);
        let mut redact = Vec::new();
        for (hit, action) in &hits {
            // A key cannot be redacted: another name is another member.
            let action = match action {
                Action::Redact if text.is_key => Action::Refuse,
                action => *action,
            };
            report.refuse |= action == Action::Refuse;
            if action == Action::Redact {
                redact.push(hit);
            }
            if report.found.len() < TOLD {
                let place = path.pointer(raw);
                report.found.push(Found { id: hit.id, place, is_key: text.is_key, action });
            } else {
                report.more += 1;
            }
        }
        let mut ranges: Vec<_> = redact.iter().map(|hit| hit.range.clone()).collect();
        // JSON in a string stays JSON: where it would not, all of it becomes one JSON string.
        let as_json = breaks_json(&text.decoded, &ranges);
        if as_json {
            redact.truncate(1);
            ranges.clear();
            ranges.push(0..text.decoded.len());
        }
        let places = locate(raw.get(text.span.clone()).unwrap_or_default(), &ranges);
        cuts.extend(places.into_iter().zip(redact).map(|(place, hit)| Cut {
            range: place.start + text.span.start..place.end + text.span.start,
            id: hit.id,
            as_json,
        }));
        Ok(true)
    })?;
    if !report.refuse && !cuts.is_empty() {
        report.redacted = Some(splice(scanner, raw, &cuts));
    }
    Ok(report)
}

/// Whether a text is JSON and would no longer be JSON with marks in the place of these ranges: a known
/// secret can be a number there, or span two strings.
fn breaks_json(text: &[u8], ranges: &[Range<usize>]) -> bool {
    let is_json = |text: &[u8]| serde_json::from_slice::<IgnoredAny>(text).is_ok();
    let begins = text.trim_ascii_start().first();
    if ranges.is_empty() || !matches!(begins, Some(b'{' | b'[' | b'"')) || !is_json(text) {
        return false;
    }
    let mut left = Vec::with_capacity(text.len());
    let mut at = 0;
    for range in ranges {
        left.extend_from_slice(text.get(at..range.start).unwrap_or_default());
        // A letter is as good as a mark: neither has anything that JSON would escape.
        left.push(b'x');
        at = range.end;
    }
    left.extend_from_slice(text.get(at..).unwrap_or_default());
    !is_json(&left)
}

/// Hits in order and apart. Of those that overlap, the first that is longest gives its name, and
/// the strictest its action. What is off, or reported beside something stricter, falls away.
fn join(mut hits: Vec<Hit>, actions: &[Action]) -> Vec<(Hit, Action)> {
    hits.sort_by_key(|hit| (hit.range.start, std::cmp::Reverse(hit.range.end), hit.id));
    let mut joined: Vec<(Hit, Action)> = Vec::new();
    for hit in hits {
        let action = actions.get(hit.id).copied().unwrap_or(Action::Refuse);
        if action == Action::Off {
            continue;
        }
        match joined.last_mut() {
            Some((last, strictest)) if hit.range.start < last.range.end => {
                last.range.end = last.range.end.max(hit.range.end);
                *strictest = (*strictest).max(action);
            }
            _ => joined.push((hit, action)),
        }
    }
    joined
}

/// The text with a mark in the place of each cut. Cuts are in order and apart.
fn splice(scanner: &Scanner, raw: &[u8], cuts: &[Cut]) -> Bytes {
    let mut out = Vec::with_capacity(raw.len());
    let mut at = 0;
    for Cut { range, id, as_json } in cuts {
        out.extend_from_slice(raw.get(at..range.start).unwrap_or_default());
        let name = scanner.ids.get(*id).map_or("", String::as_str);
        // Ids hold nothing that JSON would have to escape.
        let quote = if *as_json { "\\\"" } else { "" };
        out.extend_from_slice(format!("{quote}[redacted:{name}]{quote}").as_bytes());
        at = range.end;
    }
    out.extend_from_slice(raw.get(at..).unwrap_or_default());
    out.into()
}
