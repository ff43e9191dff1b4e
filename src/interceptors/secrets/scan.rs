//! Finds secrets in one text: keywords by Aho-Corasick first, then the rule's regex around each of
//! them; the same in what the text encodes, and in what that encodes.

use std::{collections::HashSet, ops::Range};

use aho_corasick::{AhoCorasick, AhoCorasickKind, MatchKind};

use super::{
    encodings::{Allowance, View, lines, views},
    layers::Layers,
    rules::{IllegalRules, Rule},
};

/// A secret in a text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Hit {
    /// Index in [`Scanner::ids`].
    pub id: usize,
    pub range: Range<usize>,
}

/// Remaining budget of a scan. A scan never fails for want of it: it looks less closely.
pub(super) struct Budget {
    /// Bytes of rejected matches in which another match is searched. Beyond them, the search
    /// continues after a rejected match.
    rejected: usize,
    /// Bytes that may be decoded.
    decoded: Allowance,
    /// Bytes of JSON documents within strings, and of joined lines, for [`Budget::spend`].
    work: usize,
}

/// Limit in bytes for a short text, in addition to a multiple of its length.
const BASE_BYTES: usize = 1 << 20;
const REJECTED_FACTOR: usize = 4;
const DECODED_FACTOR: usize = 4;
const BASE_WORK_BYTES: usize = 16 << 20;
const WORK_FACTOR: usize = 4;
/// Limit of encodings within each other.
const MAX_DEPTH: usize = 3;

impl Budget {
    /// Budget for a text of that size.
    pub(super) fn of(bytes: usize) -> Self {
        let limit = |base: usize, factor: usize| base.saturating_add(bytes.saturating_mul(factor));
        Self {
            rejected: limit(BASE_BYTES, REJECTED_FACTOR),
            decoded: Allowance(limit(BASE_BYTES, DECODED_FACTOR)),
            work: limit(BASE_WORK_BYTES, WORK_FACTOR),
        }
    }

    /// Takes bytes of work beside the scan itself.
    pub(super) fn spend(&mut self, bytes: usize) -> Result<(), Spent> {
        self.work = self.work.checked_sub(bytes).ok_or(Spent)?;
        Ok(())
    }
}

/// Error: the budget is used up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Spent;

/// Rules and known secrets, ready for scanning.
pub(super) struct Scanner {
    rules: Vec<Rule>,
    keywords: AhoCorasick,
    /// Rule of each keyword, and the keyword's text if its case counts.
    owners: Vec<(usize, Option<Vec<u8>>)>,
    known: Option<AhoCorasick>,
    /// Names: of the rules, then of the known secrets.
    pub ids: Vec<String>,
    /// The same as a set.
    pub set: HashSet<String>,
    /// Length in bytes of the shortest text that can contain a secret.
    shortest: usize,
}

/// Range of the text in which to try a rule.
struct Window {
    rule: usize,
    start: usize,
    end: usize,
}

impl Scanner {
    /// Scanner for these rules, and for these exact texts by name.
    pub(super) fn new(rules: Vec<Rule>, known: &[(String, &str)]) -> Result<Self, IllegalRules> {
        let unusable =
            |error: aho_corasick::BuildError| IllegalRules::Unreadable(error.to_string());
        let mut owners = Vec::new();
        let mut texts = Vec::new();
        for (i, rule) in rules.iter().enumerate() {
            for keyword in &rule.keywords {
                texts.push(keyword.as_bytes());
                owners.push((i, (!rule.ignore_case).then(|| keyword.as_bytes().to_vec())));
            }
        }
        let keywords = AhoCorasick::builder()
            .ascii_case_insensitive(true)
            .kind(Some(AhoCorasickKind::DFA))
            .build(&texts)
            .map_err(unusable)?;
        let exact = (!known.is_empty())
            .then(|| {
                AhoCorasick::builder()
                    .match_kind(MatchKind::LeftmostLongest)
                    .build(known.iter().map(|(_, value)| value))
            })
            .transpose()
            .map_err(unusable)?;
        let ids = rules.iter().map(|rule| &rule.id).chain(known.iter().map(|(name, _)| name));
        let ids: Vec<String> = ids.cloned().collect();
        let shortest = rules.iter().map(|rule| rule.shortest);
        Ok(Self {
            keywords,
            owners,
            known: exact,
            set: ids.iter().cloned().collect(),
            ids,
            shortest: shortest.chain(known.iter().map(|(_, text)| text.len())).min().unwrap_or(0),
            rules,
        })
    }

    /// Action that a rule requires, whatever the default in the settings.
    pub(super) fn action(&self, id: usize) -> Option<super::Action> {
        self.rules.get(id)?.action
    }

    /// Description of a rule.
    pub(super) fn description(&self, id: usize) -> Option<&str> {
        self.rules.get(id).map(|rule| rule.description.as_str())
    }

    /// Whether it is one of the known secrets.
    pub(super) fn is_known(&self, id: usize) -> bool {
        id >= self.rules.len()
    }

    /// All secrets in the UTF-8 text, including those behind escapes (see [`Layers`]) and encodings
    /// (see [`views`]). Ranges begin and end between characters, and between escapes; they may
    /// overlap.
    pub(super) fn scan(&self, text: &[u8], budget: &mut Budget) -> Vec<Hit> {
        if text.len() < self.shortest {
            return Vec::new();
        }
        let mut hits = self.scan_to_depth(text, 0, budget);
        hits.sort_unstable_by_key(|hit| (hit.range.start, hit.range.end, hit.id));
        hits.dedup();
        hits
    }

    fn scan_to_depth(&self, text: &[u8], depth: usize, budget: &mut Budget) -> Vec<Hit> {
        let mut hits = Vec::new();
        let layers = Layers::of(text);
        let last = layers.texts().count() - 1;
        for (layer, text) in layers.texts().enumerate() {
            let mut found = self.scan_layer(text, budget);
            // No encoded text contains a backslash: the last layer has all of them.
            if layer == last && depth < MAX_DEPTH {
                let in_view = |view: &View, budget: &mut Budget| {
                    let mut inner = self.scan_to_depth(&view.text, depth + 1, budget);
                    inner.retain_mut(|hit| match view.locate(&hit.range) {
                        Some(range) => {
                            hit.range = range;
                            widen(text, &mut hit.range);
                            true
                        }
                        None => false,
                    });
                    inner
                };
                let joined = lines(text, &mut budget.decoded);
                let joined = joined.map(|view| in_view(&view, budget)).unwrap_or_default();
                for view in views(text, &mut budget.decoded) {
                    found.extend(in_view(&view, budget));
                }
                // A secret that ends with its line does not continue on the next one.
                let known = merged(&found);
                found.extend(joined.into_iter().filter(|hit| !overlaps(&known, &hit.range)));
            }
            let mut ranges: Vec<_> = found.iter().map(|hit| hit.range.clone()).collect();
            layers.locate(layer, &mut ranges);
            hits.extend(found.into_iter().zip(ranges).map(|(hit, range)| Hit { range, ..hit }));
        }
        hits
    }

    /// All secrets in the text without resolving anything.
    fn scan_layer(&self, text: &[u8], budget: &mut Budget) -> Vec<Hit> {
        let mut hits = Vec::new();
        if let Some(known) = &self.known {
            hits.extend(known.find_iter(text).map(|found| Hit {
                id: self.rules.len() + found.pattern().as_usize(),
                range: found.range(),
            }));
        }
        for window in self.windows(text) {
            let Some(rule) = self.rules.get(window.rule) else { continue };
            search(rule, text, &window, budget, &mut hits);
        }
        for hit in &mut hits {
            widen(text, &mut hit.range);
        }
        hits
    }

    /// Ranges to try each rule in: around each keyword, with adjacent windows of one rule joined,
    /// so that a rule reads each byte once.
    fn windows(&self, text: &[u8]) -> Vec<Window> {
        let mut windows: Vec<Window> = Vec::new();
        for found in self.keywords.find_overlapping_iter(text) {
            let Some((owner, exact)) = self.owners.get(found.pattern().as_usize()) else {
                continue;
            };
            if exact.as_ref().is_some_and(|keyword| text.get(found.range()) != Some(keyword)) {
                continue;
            }
            let Some(rule) = self.rules.get(*owner) else { continue };
            let start = found.start().saturating_sub(rule.before);
            // One byte more, to see the text that must follow a match.
            let end = (found.end() + rule.after + 1).min(text.len());
            // Keywords come in the order of their ends: most join the last window of their rule.
            match windows.iter_mut().rev().take(8).find(|window| window.rule == *owner) {
                Some(last) if start <= last.end && start >= last.start => {
                    last.end = last.end.max(end);
                }
                _ => windows.push(Window { rule: *owner, start, end }),
            }
        }
        windows.sort_unstable_by_key(|window| (window.rule, window.start));
        windows.dedup_by(|next, last| {
            let joined = next.rule == last.rule && next.start <= last.end;
            if joined {
                last.end = last.end.max(next.end);
            }
            joined
        });
        windows
    }
}

/// Tries one rule in one window.
fn search(rule: &Rule, text: &[u8], window: &Window, budget: &mut Budget, hits: &mut Vec<Hit>) {
    let seen = text.get(..window.end).unwrap_or(text);
    let mut at = window.start;
    while at <= seen.len()
        && let Some(found) = rule.regex.find_at(seen, at)
    {
        let whole = found.range();
        let group = || {
            let groups = rule.regex.captures_at(seen, whole.start)?;
            groups.get(1).map(|group| group.range())
        };
        let secret = if rule.is_whole { None } else { group() }.unwrap_or_else(|| whole.clone());
        if seen.get(secret.clone()).is_some_and(|secret| rule.accepts(secret)) {
            // The character after a secret may be the one before the next.
            at = secret.end.max(whole.start + 1);
            hits.push(Hit { id: window.rule, range: secret });
            continue;
        }
        // A rejected match may hide one that begins within it.
        at = match budget.rejected.checked_sub(whole.len()) {
            Some(left) => {
                budget.rejected = left;
                whole.start + 1
            }
            None => whole.end.max(whole.start + 1),
        };
    }
}

/// Ranges of hits, in order and disjoint.
fn merged(hits: &[Hit]) -> Vec<Range<usize>> {
    let mut ranges: Vec<_> = hits.iter().map(|hit| hit.range.clone()).collect();
    ranges.sort_unstable_by_key(|range| range.start);
    ranges.dedup_by(|next, last| {
        let joined = next.start < last.end;
        if joined {
            last.end = last.end.max(next.end);
        }
        joined
    });
    ranges
}

/// Whether a range overlaps any of these, which are in order and disjoint.
fn overlaps(ranges: &[Range<usize>], range: &Range<usize>) -> bool {
    let next = ranges.get(ranges.partition_point(|known| known.end <= range.start));
    next.is_some_and(|known| known.start < range.end)
}

/// Extends a range to character boundaries.
fn widen(text: &[u8], range: &mut Range<usize>) {
    let inside = |at: usize| text.get(at).is_some_and(|byte| byte & 0xc0 == 0x80);
    while range.start > 0 && inside(range.start) {
        range.start -= 1;
    }
    while inside(range.end) {
        range.end += 1;
    }
}
