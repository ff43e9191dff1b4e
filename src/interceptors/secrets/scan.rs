//! Finds secrets in one text: keywords by Aho-Corasick first, then the rule's regex around each of
//! them; the same in what the text encodes, and in what that encodes.

use std::{collections::HashSet, ops::Range};

use aho_corasick::{AhoCorasick, AhoCorasickKind, MatchKind};

use super::{
    encodings::{
        Allowance, OVERLAP_BYTES, PART_BYTES, View, long_archives, run_start, runs, views,
    },
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

/// Remaining budget of the scan of a message, and its work so far. A scan that exceeds it fails, so
/// that nothing unscanned passes.
pub(super) struct Budget {
    /// Bytes of rejected matches. Another match is searched within each.
    rejected: usize,
    /// Bytes that may be decoded.
    pub decoded: Allowance,
    /// Bytes of members with their names, of JSON documents within strings, and of joined lines, for
    /// [`Budget::spend`].
    work: usize,
    /// Bytes searched for keywords and known secrets so far.
    pub scanned: usize,
    /// Bytes searched by the rules' expressions so far.
    pub matched: usize,
    /// Bytes of views that the rules' expressions may search.
    matched_in_views: usize,
}

/// Limit in bytes for a short text, in addition to a multiple of its length.
const BASE_REJECTED_BYTES: usize = 1 << 20;
const REJECTED_FACTOR: usize = 2;
/// The same for views. A text has few keywords, unless they are there for the work that they cause.
const BASE_MATCHED_BYTES: usize = 1 << 20;
const MATCHED_FACTOR: usize = 16;
const BASE_WORK_BYTES: usize = 16 << 20;
const WORK_FACTOR: usize = 4;
/// Limits of a member that is scanned together with its name.
pub(super) const MAX_NAME_BYTES: usize = 128;
const MIN_VALUE_BYTES: usize = 14;
const MAX_VALUE_BYTES: usize = 1 << 10;
/// Limit of encodings within each other.
const MAX_DEPTH: usize = 3;
/// Bytes at an end of a part of a text whose secrets the part beside it has, too.
const MARGIN_BYTES: usize = OVERLAP_BYTES / 2;
/// Bytes before a position in which a line break is searched, to divide a text there.
const MAX_LINE_BYTES: usize = 1 << 10;

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
    /// overlap. A long text is scanned in parts, so that its copies need little memory.
    pub(super) fn scan(&self, text: &[u8], budget: &mut Budget) -> Result<Vec<Hit>, Spent> {
        if text.len() < self.shortest {
            return Ok(Vec::new());
        }
        budget.decoded.earn(text.len());
        let mut hits = Vec::new();
        let mut start = 0;
        loop {
            let end = part_end(text, start);
            let part = text.get(start..end).unwrap_or_default();
            let mut found = self.scan_to_depth(part, None, 0, budget)?;
            found.retain_mut(|hit| {
                hit.range = hit.range.start + start..hit.range.end + start;
                let is_in_last = start > 0 && hit.range.end <= start + MARGIN_BYTES;
                let is_in_next = end < text.len() && hit.range.start + MARGIN_BYTES >= end;
                !is_in_last && !is_in_next
            });
            hits.append(&mut found);
            if end == text.len() {
                break;
            }
            start = divide(text, start, end - OVERLAP_BYTES);
        }
        if start > 0 {
            long_archives(text, budget, &mut |view, budget| {
                hits.append(&mut self.scan_view(text, view, 0, budget)?);
                Ok(())
            })?;
        }
        hits.sort_unstable_by_key(|hit| (hit.range.start, hit.range.end, hit.id));
        hits.dedup();
        Ok(hits)
    }

    /// Whether a rule may recognize a value by this name.
    pub(super) fn has_keyword(&self, name: &[u8]) -> bool {
        // Some keywords end with the sign.
        name.len() <= MAX_NAME_BYTES && self.keywords.is_match(&[name, b"="].concat())
    }

    /// Whether a value is as long as one that its name can make a secret.
    pub(super) fn may_be_named(value: &[u8]) -> bool {
        (MIN_VALUE_BYTES..=MAX_VALUE_BYTES).contains(&value.len())
    }

    /// Secrets in the value of a member, or in what it encodes, that only a rule for `NAME=value`
    /// recognizes.
    pub(super) fn scan_member(
        &self,
        name: &[u8],
        value: &[u8],
        budget: &mut Budget,
    ) -> Result<Vec<Hit>, Spent> {
        if !Self::may_be_named(value) || !self.has_keyword(name) {
            return Ok(Vec::new());
        }
        let start = name.len() + 1;
        let text = [name, b"=", value].concat();
        budget.spend(text.len())?;
        let mut hits = self.scan_layer(&text, None, 0, budget)?;
        runs(&text, budget, &mut |view, budget| {
            let mut found = self.scan_layer(&view.text, Some(view), 1, budget)?;
            found.retain_mut(|hit| move_to(&text, view, hit));
            hits.append(&mut found);
            Ok(())
        })?;
        hits.retain_mut(|hit| {
            let is_value = hit.range.start >= start;
            hit.range = hit.range.start.saturating_sub(start)..hit.range.end.saturating_sub(start);
            is_value
        });
        Ok(hits)
    }

    fn scan_to_depth(
        &self,
        text: &[u8],
        view: Option<&View>,
        depth: usize,
        budget: &mut Budget,
    ) -> Result<Vec<Hit>, Spent> {
        let layers = Layers::of(text);
        if depth > 0 {
            budget.decoded.take(layers.texts().skip(1).map(<[u8]>::len).sum())?;
        }
        let is_joined = view.is_some_and(|view| view.is_joined);
        let mut hits = Vec::new();
        let last = layers.texts().count() - 1;
        for (layer, text) in layers.texts().enumerate() {
            let view = view.filter(|_| layer == 0);
            let mut found = self.scan_layer(text, view, depth, budget)?;
            if is_joined {
                found.retain(|hit| self.rules.get(hit.id).is_none_or(|rule| !rule.one_line));
            }
            // A backslash is in no encoded text, and in front of some: `\x` before hex digits. So
            // the text as it is has all, except those that an escape divides, and the last layer
            // has these.
            if (layer == 0 || layer == last) && depth < MAX_DEPTH {
                self.scan_views(text, is_joined, depth, budget, &mut found)?;
            }
            let mut ranges: Vec<_> = found.iter().map(|hit| hit.range.clone()).collect();
            layers.locate(layer, &mut ranges);
            hits.extend(found.into_iter().zip(ranges).map(|(hit, range)| Hit { range, ..hit }));
        }
        Ok(hits)
    }

    /// Adds the secrets in everything that a text encodes.
    fn scan_views(
        &self,
        text: &[u8],
        is_joined: bool,
        depth: usize,
        budget: &mut Budget,
        found: &mut Vec<Hit>,
    ) -> Result<(), Spent> {
        views(text, is_joined, budget, &mut |view, budget| {
            let mut inner = self.scan_view(text, view, depth, budget)?;
            if view.is_joined {
                // A secret that ends with its line does not continue on the next one, unless its
                // format has an end.
                let known = merged(found);
                inner.retain(|hit| {
                    let has_end = self.rules.get(hit.id).is_some_and(|rule| rule.has_end);
                    has_end || !overlaps(&known, &hit.range)
                });
            }
            found.append(&mut inner);
            Ok(())
        })
    }

    /// Secrets in a view of a text.
    fn scan_view(
        &self,
        text: &[u8],
        view: &View,
        depth: usize,
        budget: &mut Budget,
    ) -> Result<Vec<Hit>, Spent> {
        let mut hits = self.scan_to_depth(&view.text, Some(view), depth + 1, budget)?;
        hits.retain_mut(|hit| move_to(text, view, hit));
        Ok(hits)
    }

    /// All secrets in the text without resolving anything. Of a view, only what is beside a decoded
    /// part: the rest is in the text.
    fn scan_layer(
        &self,
        text: &[u8],
        view: Option<&View>,
        depth: usize,
        budget: &mut Budget,
    ) -> Result<Vec<Hit>, Spent> {
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
                budget.matched_in_views =
                    budget.matched_in_views.checked_sub(length).ok_or(Spent)?;
            }
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
fn search(
    rule: &Rule,
    text: &[u8],
    window: &Window,
    budget: &mut Budget,
    hits: &mut Vec<Hit>,
) -> Result<(), Spent> {
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
        let before = seen.get(..whole.start).unwrap_or_default();
        if seen.get(secret.clone()).is_some_and(|secret| rule.accepts(before, secret)) {
            // The character after a secret may be the one before the next.
            at = secret.end.max(whole.start + 1);
            hits.push(Hit { id: window.rule, range: secret });
            continue;
        }
        // A rejected match may hide one that begins within it.
        budget.rejected = budget.rejected.checked_sub(whole.len()).ok_or(Spent)?;
        budget.matched += whole.len();
        at = whole.start + 1;
    }
    Ok(())
}

/// End of the part of a text that begins there.
fn part_end(text: &[u8], start: usize) -> usize {
    match text.len() - start {
        ..=PART_BYTES => text.len(),
        _ => divide(text, start, start + PART_BYTES),
    }
}

/// Position at or shortly before `at` at which a text is divided: after a line break, or within a
/// long run between groups of digits, and in no escape. Line breaks and runs before `from` do not
/// count.
fn divide(text: &[u8], from: usize, at: usize) -> usize {
    let line = from.max(at.saturating_sub(MAX_LINE_BYTES));
    let before = text.get(line..at).unwrap_or_default();
    let mut at = if let Some(end) = memchr::memrchr(b'\n', before) {
        line + end + 1
    } else if let Some(escape) = memchr::memmem::rfind(before, b"\\n") {
        line + escape
    } else {
        let start = run_start(text, from, at);
        // The first byte of eight digits of base64, base32 or hex begins a byte.
        start + (at - start) / 8 * 8
    };
    let is_inside = |at: usize| {
        text.get(at).is_some_and(|byte| byte & 0xc0 == 0x80)
            || at.checked_sub(1).and_then(|last| text.get(last)) == Some(&b'\\')
    };
    let least = at.saturating_sub(MAX_LINE_BYTES);
    while at > least && is_inside(at) {
        at -= 1;
    }
    at
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

/// Moves a hit in a view to the text. Returns whether the text has it.
fn move_to(text: &[u8], view: &View, hit: &mut Hit) -> bool {
    match view.locate(&hit.range) {
        Some(range) => {
            hit.range = range;
            widen(text, &mut hit.range);
            true
        }
        None => false,
    }
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
