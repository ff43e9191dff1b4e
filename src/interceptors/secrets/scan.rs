//! Finds secrets in one text: keywords by Aho-Corasick first, then the rule's regex around each of
//! them; the same in what the text encodes, and in what that encodes.

use std::{
    collections::{HashMap, HashSet, hash_map::Entry},
    hash::{BuildHasher as _, RandomState},
    ops::Range,
    sync::Arc,
};

use aho_corasick::{AhoCorasick, AhoCorasickKind, MatchKind};

use super::{
    assigned,
    baseline::Baseline,
    encodings::{
        Allowance, OVERLAP_BYTES, Of, PART_BYTES, View, byte_lists, long_archives, run_start, runs,
        views,
    },
    json_strings::is_of_number,
    layers::Layers,
    prefilter::{Context, Keyword, Keywords, Suspects},
    rules::{Group, IllegalRules, Kind, Rule, Severity},
    split::Divisions,
};

/// A secret in a text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Hit {
    /// Index in [`Scanner::ids`].
    pub id: usize,
    pub range: Range<usize>,
}

/// Remaining budget of the scan of a message. A scan that exceeds it fails, so that nothing
/// unscanned passes.
pub(super) struct Budget {
    /// Bytes of rejected matches. Another match is searched within each.
    rejected: usize,
    /// Bytes that may be decoded.
    pub decoded: Allowance,
    /// Views of the current part that need no other scan.
    clean: Clean,
    /// Bytes of members with their names, of JSON documents within strings, and of joined lines, for
    /// [`Budget::spend`].
    work: usize,
    /// Bytes that the rules' expressions may search in the texts of the message, with their layers.
    matched_plain: usize,
    /// Bytes of views that the rules' expressions may search.
    matched_in_views: usize,
    /// Bytes that the rules without keywords may search, each.
    matched_everywhere: usize,
    /// Bytes searched for keywords and known secrets so far.
    #[cfg(test)]
    pub scanned: usize,
}

/// Views without a secret. The same view can result from several orders of decoding.
#[derive(Default)]
struct Clean {
    /// Least depth at which each view was scanned, by a hash with a random key. At a greater depth,
    /// less of it is decoded.
    depths: HashMap<u64, usize>,
    keys: RandomState,
    /// Whether the part has a secret. Then its other views may have it at other places.
    is_over: bool,
}

impl Clean {
    /// Begins a part.
    fn begin(&mut self) {
        self.depths.clear();
        self.is_over = false;
    }

    /// Whether the same view was scanned and had no secret. If not, it is about to be scanned.
    fn has(&mut self, view: &View, depth: usize) -> bool {
        if self.is_over {
            return false;
        }
        match self.depths.entry(self.keys.hash_one((view.is_joined, &view.text))) {
            Entry::Occupied(known) if *known.get() <= depth => true,
            entry => {
                entry.insert_entry(depth);
                false
            }
        }
    }
}

/// Limit in bytes for a short text, in addition to a multiple of its length.
const BASE_REJECTED_BYTES: usize = 1 << 20;
const REJECTED_FACTOR: usize = 16;
/// The same for the bytes near keywords, in the texts of the message and in views. A text has few
/// keywords, unless they are there for the work that they cause.
const BASE_MATCHED_BYTES: usize = 16 << 20;
const BASE_MATCHED_IN_VIEWS: usize = 8 << 20;
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
/// Limit in bytes of an ordinary word.
const MAX_WORD_BYTES: usize = 16;
/// Number of hits up to which duplicates stay until the end.
const MAX_DUPLICATES: usize = 1 << 10;

impl Budget {
    /// Budget for a message of that size.
    pub(super) fn of(bytes: usize) -> Self {
        let limit = |base: usize, factor: usize| base.saturating_add(bytes.saturating_mul(factor));
        Self {
            rejected: limit(BASE_REJECTED_BYTES, REJECTED_FACTOR),
            decoded: Allowance::new(),
            clean: Clean::default(),
            work: limit(BASE_WORK_BYTES, WORK_FACTOR),
            matched_plain: limit(BASE_MATCHED_BYTES, MATCHED_FACTOR),
            matched_in_views: limit(BASE_MATCHED_IN_VIEWS, MATCHED_FACTOR),
            matched_everywhere: limit(BASE_MATCHED_BYTES, MATCHED_FACTOR),
            #[cfg(test)]
            scanned: 0,
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
    prefilter: Keywords,
    /// Rule of each keyword, and the keyword's text if its case counts.
    owners: Vec<(usize, Option<Vec<u8>>)>,
    /// Rule for members.
    members: Option<usize>,
    /// Rules without keywords.
    everywhere: Vec<usize>,
    known: Option<AhoCorasick>,
    /// Keywords, and known secrets, as strings can divide them.
    divided_keywords: Divisions,
    divided_known: Divisions,
    /// Texts that are not secrets, except known ones.
    allowed: Arc<Baseline>,
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
        let mut everywhere = Vec::new();
        for (i, rule) in rules.iter().enumerate() {
            if rule.keywords.is_empty() && rule.kind == Kind::Pattern {
                everywhere.push(i);
            }
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
        let all = rules.iter().flat_map(|rule| {
            let keyword = |text: &'_ String| Keyword {
                text: text.clone().into_bytes(),
                exact: !rule.ignore_case,
                context: match rule.kind {
                    Kind::AnyName => Context::Assigned,
                    _ if rule.needs_user => Context::User,
                    _ => Context::Any,
                },
            };
            rule.keywords.iter().map(keyword)
        });
        let prefilter = Keywords::new(&all.collect::<Vec<_>>())?;
        let ids = rules.iter().map(|rule| &rule.id).chain(known.iter().map(|(name, _)| name));
        let ids: Vec<String> = ids.cloned().collect();
        let shortest = rules.iter().map(|rule| rule.shortest);
        let divisible = rules.iter().filter(|rule| is_divisible(rule));
        let keywords_in_cases = divisible.flat_map(|rule| {
            let cases = |text: &String| match rule.ignore_case {
                false => vec![text.clone()],
                true => in_cases(text),
            };
            rule.keywords.iter().flat_map(cases).map(String::into_bytes)
        });
        Ok(Self {
            divided_keywords: Divisions::of(keywords_in_cases),
            divided_known: Divisions::of(known.iter().map(|(_, text)| text.as_bytes().to_vec())),
            keywords,
            prefilter,
            owners,
            members: rules.iter().position(|rule| rule.kind == Kind::Member),
            everywhere,
            known: exact,
            allowed: Arc::default(),
            set: ids.iter().cloned().collect(),
            ids,
            shortest: shortest.chain(known.iter().map(|(_, text)| text.len())).min().unwrap_or(0),
            rules,
        })
    }

    /// The same, except for the secrets of this baseline.
    pub(super) fn without(self, allowed: Arc<Baseline>) -> Self {
        Self { allowed, ..self }
    }

    /// Severity of the secrets of a rule. Known secrets are of a server, whatever they permit.
    pub(super) fn severity(&self, id: usize) -> Severity {
        self.rules.get(id).map_or(Severity::Critical, |rule| rule.severity)
    }

    /// Action that a rule requires, whatever the default in the settings.
    pub(super) fn action(&self, id: usize) -> Option<super::Action> {
        self.rules.get(id)?.action
    }

    /// Group of a rule that the settings switched on.
    pub(super) fn group(&self, id: usize) -> Option<Group> {
        self.rules.get(id)?.optional
    }

    /// Index of the rule for members with the name of a secret.
    pub(super) fn of_members(&self) -> Option<usize> {
        self.members
    }

    /// Whether a text is not a secret, except if it is a known one.
    pub(super) fn is_allowed(&self, text: &[u8]) -> bool {
        self.allowed.has(text)
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
        let mut parts = Vec::new();
        let mut start = 0;
        loop {
            budget.clean.begin();
            let end = part_end(text, start);
            parts.push(start..end);
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
            budget.clean.begin();
            let mut limit = 0;
            long_archives(text, &parts, budget, &mut |view, budget| {
                append(&mut hits, self.scan_view(text, view, 0, budget)?, &mut limit);
                Ok(())
            })?;
        }
        dedup(&mut hits);
        Ok(hits)
    }

    /// Parts of a JSON text that can contain secrets. The others need no scan. `None` if all can.
    pub(super) fn suspects(&self, raw: &[u8]) -> Option<Suspects> {
        if !self.everywhere.is_empty() {
            return None;
        }
        let known = self.known.iter().flat_map(|known| known.find_iter(raw));
        Some(Suspects::of(raw, &self.prefilter, known.map(|found| found.range())))
    }

    /// All secrets in the numbers of a JSON text: known ones, and those in lists of bytes. Ranges
    /// begin and end between numbers.
    pub(super) fn scan_numbers(&self, text: &[u8], budget: &mut Budget) -> Result<Vec<Hit>, Spent> {
        if text.len() < self.shortest {
            return Ok(Vec::new());
        }
        budget.decoded.earn(text.len());
        let mut hits = self.known_in(text);
        budget.clean.begin();
        let mut limit = 0;
        byte_lists(text, budget, &mut |view, budget| {
            append(&mut hits, self.scan_view(text, view, 0, budget)?, &mut limit);
            Ok(())
        })?;
        // A number of a card is a number.
        if self.everywhere.iter().any(|rule| self.group(*rule).is_some()) {
            let mut of_groups = self.scan_layer(text, None, 0, budget)?;
            of_groups.retain(|hit| self.group(hit.id).is_some());
            hits.append(&mut of_groups);
        }
        to_numbers(text, &mut hits);
        Ok(hits)
    }

    /// Whether a keyword or a known secret may be divided between the ends of two strings.
    pub(super) fn is_divided(&self, before: &[u8], after: &[u8]) -> bool {
        self.divided_known.may_be_between(before, after)
            || self.divided_keywords.may_be_between(before, after)
                && self.has_keyword_between(before, after)
    }

    fn has_keyword_between(&self, before: &[u8], after: &[u8]) -> bool {
        let start = before.len().saturating_sub(self.keywords.max_pattern_len());
        let before = before.get(start..).unwrap_or_default();
        let after = after.get(..after.len().min(self.keywords.max_pattern_len()));
        let text = [before, after.unwrap_or_default()].concat();
        self.keywords.find_overlapping_iter(&text).any(|found| {
            let Some((owner, exact)) = self.owners.get(found.pattern().as_usize()) else {
                return false;
            };
            found.start() < before.len()
                && found.end() > before.len()
                && exact.as_ref().is_none_or(|exact| text.get(found.range()) == Some(exact))
                && self.rules.get(*owner).is_some_and(is_divisible)
        })
    }

    /// Whether a hit is a known secret, or has a format of its own.
    pub(super) fn is_of_format(&self, hit: &Hit) -> bool {
        self.rules.get(hit.id).is_none_or(|rule| rule.kind == Kind::Pattern && !rule.named)
    }

    /// Known secrets, and those with a format of their own, in joined strings.
    pub(super) fn scan_joined(&self, text: &[u8], budget: &mut Budget) -> Result<Vec<Hit>, Spent> {
        budget.decoded.take(text.len())?;
        let mut hits = self.scan_layer(text, None, 0, budget)?;
        hits.retain(|hit| self.rules.get(hit.id).is_none_or(is_divisible));
        dedup(&mut hits);
        Ok(hits)
    }

    /// Known secrets in a text.
    fn known_in(&self, text: &[u8]) -> Vec<Hit> {
        let Some(known) = &self.known else { return Vec::new() };
        let hit = |found: aho_corasick::Match| Hit {
            id: self.rules.len() + found.pattern().as_usize(),
            range: found.range(),
        };
        known.find_iter(text).map(hit).collect()
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
            budget.decoded.take(view.text.len())?;
            let mut found = self.scan_layer(&view.text, Some(view), 1, budget)?;
            found.retain_mut(|hit| move_to(&text, view, hit));
            hits.append(&mut found);
            Ok(())
        })?;
        hits.retain_mut(|hit| {
            // The rule for members is for other names.
            let of_any_name = self.rules.get(hit.id).is_some_and(|rule| rule.kind == Kind::AnyName);
            let is_value = hit.range.start >= start && !of_any_name;
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
            // the text as it is has all runs, except those that an escape divides, and the last
            // layer has these. Units are cheap to hide in each other, so those of a view are those
            // of its last layer.
            let of = match layer {
                _ if depth >= MAX_DEPTH => None,
                _ if layer == last && !is_joined => Some(Of::All),
                0 if depth == 0 => Some(Of::All),
                _ if layer == 0 || layer == last => Some(Of::Runs),
                _ => None,
            };
            if let Some(of) = of {
                self.scan_views(text, of, depth, budget, &mut found)?;
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
        of: Of,
        depth: usize,
        budget: &mut Budget,
        found: &mut Vec<Hit>,
    ) -> Result<(), Spent> {
        let mut limit = 0;
        views(text, of, budget, &mut |view, budget| {
            let mut inner = self.scan_view(text, view, depth, budget)?;
            if view.is_joined {
                // A value that only its name marks may be the first part of one with a format.
                let known = merged(found.iter().filter(|hit| self.is_of_format(hit)));
                inner.retain(|hit| {
                    let has_end = self.rules.get(hit.id).is_some_and(|rule| rule.has_end);
                    has_end || is_new(&known, &hit.range, text, view)
                });
            }
            append(found, inner, &mut limit);
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
        if budget.clean.has(view, depth) {
            return Ok(Vec::new());
        }
        budget.decoded.take(view.text.len())?;
        let mut hits = self.scan_to_depth(&view.text, Some(view), depth + 1, budget)?;
        hits.retain_mut(|hit| move_to(text, view, hit));
        // All secrets in an archive have its place.
        dedup(&mut hits);
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
        #[cfg(test)]
        {
            budget.scanned += text.len();
        }
        let mut hits = self.known_in(text);
        if !self.everywhere.is_empty() {
            budget.matched_everywhere =
                budget.matched_everywhere.checked_sub(text.len()).ok_or(Spent)?;
        }
        for window in self.windows(text) {
            let Some(rule) = self.rules.get(window.rule) else { continue };
            if view.is_some_and(|view| !view.is_decoded(&(window.start..window.end))) {
                continue;
            }
            let left = match depth {
                _ if rule.keywords.is_empty() => None,
                0 => Some(&mut budget.matched_plain),
                _ => Some(&mut budget.matched_in_views),
            };
            if let Some(left) = left {
                *left = left.checked_sub(window.end - window.start).ok_or(Spent)?;
            }
            search(rule, text, &window, &self.allowed, &mut budget.rejected, &mut hits)?;
        }
        budget.clean.is_over |= !hits.is_empty();
        for hit in &mut hits {
            widen(text, &mut hit.range);
        }
        Ok(hits)
    }

    /// Numbers and ranges of the keywords in a text, in the order of their ends.
    fn keywords_in(&self, text: &[u8]) -> impl Iterator<Item = (usize, Range<usize>)> {
        self.prefilter.ranges(text).into_iter().flat_map(move |(first, range)| {
            let part = text.get(first..range.end).unwrap_or_default();
            let all = self.keywords.find_overlapping_iter(part);
            let all = all.map(move |found| {
                let range = first + found.start()..first + found.end();
                (found.pattern().as_usize(), range)
            });
            // Those that end before are in the range before.
            all.filter(move |(_, found)| found.end > range.start)
        })
    }

    /// Ranges to try each rule in: around each keyword, with adjacent windows of one rule joined,
    /// so that a rule reads each byte once.
    fn windows(&self, text: &[u8]) -> Vec<Window> {
        let all = self.everywhere.iter();
        let mut windows: Vec<Window> =
            all.map(|rule| Window { rule: *rule, start: 0, end: text.len() }).collect();
        // Last window of each rule.
        let mut lasts: Vec<Option<usize>> = Vec::new();
        for (keyword, found) in self.keywords_in(text) {
            let Some((owner, exact)) = self.owners.get(keyword) else {
                continue;
            };
            if exact.as_ref().is_some_and(|keyword| text.get(found.clone()) != Some(keyword)) {
                continue;
            }
            let Some(rule) = self.rules.get(*owner) else { continue };
            let start = found.start.saturating_sub(rule.before);
            // One byte more, to see the text that must follow a match.
            let end = (found.end + rule.after + 1).min(text.len());
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

/// A keyword in small letters, in capitals, and with a capital in front.
fn in_cases(text: &str) -> Vec<String> {
    let (small, capitals) = (text.to_ascii_lowercase(), text.to_ascii_uppercase());
    let first = capitals.get(..1).unwrap_or_default();
    let mixed = format!("{first}{}", small.get(1..).unwrap_or_default());
    vec![text.to_owned(), small, capitals, mixed]
}

/// Whether a secret of a rule is found if strings divide it. The code of a country or the address of
/// a host, with what is in the next string, is none.
fn is_divisible(rule: &Rule) -> bool {
    let is_plain = |text: &String| text.len() == 2 && text.bytes().all(|b| b.is_ascii_alphabetic());
    rule.kind == Kind::Pattern
        && rule.optional.is_none()
        && !rule.named
        && !rule.needs_user
        && !rule.keywords.iter().any(is_plain)
}

/// Tries one rule in one window.
fn search(
    rule: &Rule,
    text: &[u8],
    window: &Window,
    allowed: &Baseline,
    rejected: &mut usize,
    hits: &mut Vec<Hit>,
) -> Result<(), Spent> {
    let seen = text.get(..window.end).unwrap_or(text);
    if rule.kind == Kind::AnyName {
        let signs = seen.get(window.start..).unwrap_or_default();
        let signs = memchr::memchr2_iter(b'=', b':', signs).map(|at| window.start + at);
        let found = signs.filter_map(|sign| assigned::secret_at(text, sign));
        let found =
            found.filter(|value| !text.get(value.clone()).is_some_and(|text| allowed.has(text)));
        hits.extend(found.map(|range| Hit { id: window.rule, range }));
        return Ok(());
    }
    // A rule that cannot be applied refuses the text.
    let regex = rule.regex.get().map_err(|_| Spent)?;
    let mut at = window.start;
    while at <= seen.len()
        && let Some(found) = regex.find_at(seen, at)
    {
        let matched = found.range();
        let secret = rule.secret(seen, &matched);
        let accepted =
            seen.get(secret.clone()).is_some_and(|text| rule.accepts(text) && !allowed.has(text));
        if accepted && !rule.is_allowed(text, &matched, &secret) {
            // The character after a secret may be the one before the next.
            at = secret.end.max(matched.start + 1);
            hits.push(Hit { id: window.rule, range: secret });
            continue;
        }
        if !rule.retries_within {
            at = matched.end.max(matched.start + 1);
            continue;
        }
        // A rejected match may hide one that begins within it.
        *rejected = rejected.checked_sub(matched.len()).ok_or(Spent)?;
        at = rule.next_start(seen, &matched);
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
/// long run between groups of digits, and neither in a character nor behind a backslash. Line breaks
/// and runs before `from` do not count. It can be in an escape or an entity: the part beside it has
/// this one whole.
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
fn merged<'a>(hits: impl Iterator<Item = &'a Hit>) -> Vec<Range<usize>> {
    let mut ranges: Vec<_> = hits.map(|hit| hit.range.clone()).collect();
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

/// Whether a hit in joined lines is another secret than these, which are in order and disjoint, or
/// more of one: then the known part ends with its line, and the rest is neither a secret of its own,
/// nor the name of a value, nor an ordinary word.
fn is_new(known: &[Range<usize>], range: &Range<usize>, text: &[u8], view: &View) -> bool {
    let at = known.partition_point(|known| known.end <= range.start);
    let mut touching = known.iter().skip(at).take_while(|known| known.start < range.end);
    match (touching.next(), touching.next()) {
        (None, _) => true,
        (Some(first), None) => {
            let after = text.get(range.end..).unwrap_or_default().trim_ascii_start();
            first.start == range.start
                && first.end < range.end
                && view.has_break(first.end)
                && !matches!(after.first(), Some(b':' | b'='))
                && !ends_with_words(text.get(first.end..range.end).unwrap_or_default())
        }
        _ => false,
    }
}

/// Whether a text ends with ordinary words that dashes join: short, of letters, of one case after
/// their first letter.
fn ends_with_words(text: &[u8]) -> bool {
    let of_word = |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    let start = text.iter().rposition(|b| !of_word(b)).map_or(0, |last| last + 1);
    let mut words = text.get(start..).unwrap_or_default().split(|b| !b.is_ascii_alphanumeric());
    words.all(|word| {
        let rest = word.get(1..).unwrap_or_default();
        word.len() <= MAX_WORD_BYTES
            && word.iter().all(u8::is_ascii_alphabetic)
            && (rest.iter().all(u8::is_ascii_lowercase) || word.iter().all(u8::is_ascii_uppercase))
    })
}

/// Extends hits to whole numbers. Visits each number once, however many hits it has.
fn to_numbers(text: &[u8], hits: &mut Vec<Hit>) {
    hits.sort_unstable_by_key(|hit| (hit.range.start, hit.range.end));
    let mut last = 0..0;
    for hit in hits.iter_mut() {
        let within = text.get(hit.range.clone()).unwrap_or_default();
        // A known secret can begin or end with what is between numbers.
        let before = within.iter().take_while(|b| !is_of_number(**b)).count();
        let after = within.iter().rev().take_while(|b| !is_of_number(**b)).count();
        let (mut start, mut end) = (hit.range.start + before, hit.range.end - after);
        if start >= end {
            hit.range.end = hit.range.start;
            continue;
        }
        if start < last.end {
            start = last.start;
        } else {
            let before = text.get(last.end..start).unwrap_or_default();
            start -= before.iter().rev().take_while(|b| is_of_number(**b)).count();
        }
        if end <= last.end {
            end = last.end;
        } else {
            let after = text.get(end..).unwrap_or_default();
            end += after.iter().take_while(|b| is_of_number(**b)).count();
        }
        hit.range = start..end;
        last = start..end;
    }
    hits.retain(|hit| !hit.range.is_empty());
    dedup(hits);
}

/// Sorts hits, and removes duplicates.
fn dedup(hits: &mut Vec<Hit>) {
    hits.sort_unstable_by_key(|hit| (hit.range.start, hit.range.end, hit.id));
    hits.dedup();
}

/// Adds hits, and removes duplicates when there are more than `limit`, which then becomes twice
/// their number.
fn append(hits: &mut Vec<Hit>, mut more: Vec<Hit>, limit: &mut usize) {
    hits.append(&mut more);
    if hits.len() > MAX_DUPLICATES.max(*limit) {
        dedup(hits);
        *limit = 2 * hits.len();
    }
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
