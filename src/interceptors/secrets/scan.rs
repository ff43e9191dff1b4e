//! Finds secrets in one text: keywords by Aho-Corasick first, then the rule's regex around each of
//! them.

use std::{collections::HashSet, ops::Range};

use aho_corasick::{AhoCorasick, AhoCorasickKind, MatchKind};

use super::{
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

/// Remaining budget of a scan: bytes that regexes read.
pub(super) struct Budget(pub usize);

/// Cost of a byte of a rejected match, whose groups and entropy were checked too.
const REJECTED_BYTE_COST: usize = 16;

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

    /// All secrets in the UTF-8 text, including those behind escapes (see [`Layers`]). Ranges begin
    /// and end between characters and between escapes; they may overlap.
    pub(super) fn scan(&self, text: &[u8], budget: &mut Budget) -> Result<Vec<Hit>, Spent> {
        let mut hits = Vec::new();
        if text.len() < self.shortest {
            return Ok(hits);
        }
        let layers = Layers::of(text);
        for (depth, text) in layers.texts().enumerate() {
            let found = self.scan_layer(text, budget)?;
            let mut ranges: Vec<_> = found.iter().map(|hit| hit.range.clone()).collect();
            layers.locate(depth, &mut ranges);
            hits.extend(found.into_iter().zip(ranges).map(|(hit, range)| Hit { range, ..hit }));
        }
        hits.sort_unstable_by_key(|hit| (hit.range.start, hit.range.end, hit.id));
        hits.dedup();
        Ok(hits)
    }

    /// All secrets in the text without resolving escapes.
    fn scan_layer(&self, text: &[u8], budget: &mut Budget) -> Result<Vec<Hit>, Spent> {
        let mut hits = Vec::new();
        if let Some(known) = &self.known {
            hits.extend(known.find_iter(text).map(|found| Hit {
                id: self.rules.len() + found.pattern().as_usize(),
                range: found.range(),
            }));
        }
        for window in self.windows(text) {
            let Some(rule) = self.rules.get(window.rule) else { continue };
            budget.0 = budget.0.checked_sub(window.end - window.start).ok_or(Spent)?;
            search(rule, text, &window, budget, &mut hits)?;
        }
        for hit in &mut hits {
            widen(text, &mut hit.range);
        }
        Ok(hits)
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
fn search(
    rule: &Rule,
    text: &[u8],
    window: &Window,
    budget: &mut Budget,
    hits: &mut Vec<Hit>,
) -> Result<(), Spent> {
    let seen = text.get(..window.end).unwrap_or(text);
    let mut at = window.start;
    while let Some(found) = rule.regex.find_at(seen, at) {
        let matched = found.range();
        let secret = rule
            .regex
            .captures_at(seen, matched.start)
            .and_then(|groups| groups.get(1).map(|group| group.range()))
            .unwrap_or_else(|| matched.clone());
        if seen.get(secret.clone()).is_some_and(|secret| rule.accepts(secret)) {
            // The character after a secret may be the one before the next.
            at = secret.end.max(matched.start + 1);
            hits.push(Hit { id: window.rule, range: secret });
        } else {
            // A rejected match may hide one that begins within it.
            budget.0 = budget.0.checked_sub(REJECTED_BYTE_COST * matched.len()).ok_or(Spent)?;
            at = matched.start + 1;
        }
        if at > seen.len() {
            break;
        }
    }
    Ok(())
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
