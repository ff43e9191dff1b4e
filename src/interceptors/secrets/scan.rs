//! Finds secrets in one text: keywords by Aho-Corasick first, then the rule's regex around each of
//! them; the same in what the text encodes, and in what that encodes.

use std::{collections::HashSet, ops::Range};

use aho_corasick::{AhoCorasick, AhoCorasickKind, MatchKind};

use super::{
    encodings::{Allowance, View, lines, views},
    layers::{Layers, MAX_LAYERS},
    rules::{IllegalRules, Rule},
};

/// A secret in a text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Hit {
    /// Index in [`Scanner::ids`].
    pub id: usize,
    pub range: Range<usize>,
}

/// Remaining budget of the scan of a message, and its work so far. A scan never fails for want of
/// it: it looks less closely.
pub(super) struct Budget {
    /// Bytes of rejected matches in which another match is searched. Beyond them, the search
    /// continues after a rejected match.
    rejected: usize,
    /// Bytes that may be decoded.
    pub decoded: Allowance,
    /// Bytes of JSON documents within strings, and of joined lines, for [`Budget::spend`].
    work: usize,
    /// Bytes searched for keywords and known secrets so far.
    pub scanned: usize,
    /// Bytes searched by the rules' expressions so far.
    pub matched: usize,
    /// Bytes of views that the rules' expressions may search.
    matched_in_views: usize,
}

/// Limit in bytes for a short text, in addition to a multiple of its length.
const BASE_REJECTED_BYTES: usize = 64 << 10;
const REJECTED_FACTOR: usize = 2;
/// The same for views. A text has few keywords, unless they are there for the work that they cause.
const BASE_MATCHED_BYTES: usize = 128 << 10;
const MATCHED_FACTOR: usize = 6;
const BASE_WORK_BYTES: usize = 16 << 20;
const WORK_FACTOR: usize = 4;
/// Limits of a member that is scanned together with its name.
const MAX_NAME_BYTES: usize = 128;
const MAX_VALUE_BYTES: usize = 1 << 10;
/// Limit of encodings within each other.
const MAX_DEPTH: usize = 3;

impl Budget {
    /// Budget for a message of that size.
    pub(super) fn of(bytes: usize) -> Self {
        let limit = |base: usize, factor: usize| base.saturating_add(bytes.saturating_mul(factor));
        Self {
            rejected: limit(BASE_REJECTED_BYTES, REJECTED_FACTOR),
            decoded: Allowance::new(),
            work: limit(BASE_WORK_BYTES, WORK_FACTOR),
            scanned: 0,
            matched: 0,
            matched_in_views: limit(BASE_MATCHED_BYTES, MATCHED_FACTOR),
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
        budget.decoded.earn(text.len());
        let mut hits = self.scan_to_depth(text, None, 0, budget);
        hits.sort_unstable_by_key(|hit| (hit.range.start, hit.range.end, hit.id));
        hits.dedup();
        hits
    }

    /// Secrets in the value of a member that only a rule for `NAME=value` recognizes.
    pub(super) fn scan_member(&self, name: &[u8], value: &[u8], budget: &mut Budget) -> Vec<Hit> {
        let is_short = name.len() <= MAX_NAME_BYTES && value.len() <= MAX_VALUE_BYTES;
        if !is_short || value.len() < self.shortest || !self.keywords.is_match(name) {
            return Vec::new();
        }
        let start = name.len() + 1;
        let mut hits = self.scan_layer(&[name, b"=", value].concat(), None, 0, budget);
        hits.retain_mut(|hit| {
            let is_value = hit.range.start >= start;
            hit.range = hit.range.start.saturating_sub(start)..hit.range.end.saturating_sub(start);
            is_value
        });
        hits
    }

    fn scan_to_depth(
        &self,
        text: &[u8],
        view: Option<&View>,
        depth: usize,
        budget: &mut Budget,
    ) -> Vec<Hit> {
        let levels = match depth {
            0 => MAX_LAYERS,
            _ => budget.decoded.times(text.len()).min(MAX_LAYERS),
        };
        let layers = Layers::up_to(text, levels);
        if depth > 0 {
            budget.decoded.take(layers.texts().skip(1).map(<[u8]>::len).sum());
        }
        let mut hits = Vec::new();
        let last = layers.texts().count() - 1;
        for (layer, text) in layers.texts().enumerate() {
            let mut found = self.scan_layer(text, view.filter(|_| layer == 0), depth, budget);
            // No encoded text contains a backslash: the last layer has all of them.
            if layer == last && depth < MAX_DEPTH {
                self.scan_views(text, depth, budget, &mut found);
            }
            let mut ranges: Vec<_> = found.iter().map(|hit| hit.range.clone()).collect();
            layers.locate(layer, &mut ranges);
            hits.extend(found.into_iter().zip(ranges).map(|(hit, range)| Hit { range, ..hit }));
        }
        hits
    }

    /// Adds the secrets in everything that a text encodes.
    fn scan_views(&self, text: &[u8], depth: usize, budget: &mut Budget, found: &mut Vec<Hit>) {
        let views = views(text, depth, &mut budget.decoded);
        let joined = lines(text, &mut budget.decoded);
        // The texts behind this one get a share, too.
        let mut parts = 1 + views.len() + usize::from(joined.is_some());
        let mut in_view = |view: &View, budget: &mut Budget| {
            let mut allowance = std::mem::take(&mut budget.decoded);
            let mut inner = allowance.share(parts, |allowance| {
                std::mem::swap(allowance, &mut budget.decoded);
                let inner = self.scan_to_depth(&view.text, Some(view), depth + 1, budget);
                std::mem::swap(allowance, &mut budget.decoded);
                inner
            });
            budget.decoded = allowance;
            parts -= 1;
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
        for view in &views {
            found.extend(in_view(view, budget));
        }
        if let Some(view) = joined {
            // A secret that ends with its line does not continue on the next one, unless its format
            // has an end.
            let known = merged(found);
            let mut more = in_view(&view, budget);
            more.retain(|hit| {
                let has_end = self.rules.get(hit.id).is_some_and(|rule| rule.has_end);
                has_end || !overlaps(&known, &hit.range)
            });
            found.extend(more);
        }
    }

    /// All secrets in the text without resolving anything. Of a view, only what is beside a decoded
    /// part: the rest is in the text.
    fn scan_layer(
        &self,
        text: &[u8],
        view: Option<&View>,
        depth: usize,
        budget: &mut Budget,
    ) -> Vec<Hit> {
        let mut hits = Vec::new();
        budget.scanned += text.len();
        if let Some(known) = &self.known {
            hits.extend(known.find_iter(text).map(|found| Hit {
                id: self.rules.len() + found.pattern().as_usize(),
                range: found.range(),
            }));
        }
        for window in self.windows(text) {
            let Some(rule) = self.rules.get(window.rule) else { continue };
            if view.is_some_and(|view| !view.is_decoded(&(window.start..window.end))) {
                continue;
            }
            if depth > 0 {
                let length = window.end - window.start;
                let Some(left) = budget.matched_in_views.checked_sub(length) else { continue };
                budget.matched_in_views = left;
            }
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
        // Last window of each rule.
        let mut lasts: Vec<Option<usize>> = Vec::new();
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
            if lasts.is_empty() {
                lasts.resize(self.rules.len(), None);
            }
            let Some(last) = lasts.get_mut(*owner) else { continue };
            // Keywords come in the order of their ends: each joins the last window or is behind it.
            match last.and_then(|last| windows.get_mut(last)) {
                Some(window) if start <= window.end => {
                    window.start = window.start.min(start);
                    window.end = window.end.max(end);
                }
                _ => {
                    *last = Some(windows.len());
                    windows.push(Window { rule: *owner, start, end });
                }
            }
        }
        windows
    }
}

/// Tries one rule in one window.
fn search(rule: &Rule, text: &[u8], window: &Window, budget: &mut Budget, hits: &mut Vec<Hit>) {
    let seen = text.get(..window.end).unwrap_or(text);
    budget.matched += window.end - window.start;
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
                budget.matched += whole.len();
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
