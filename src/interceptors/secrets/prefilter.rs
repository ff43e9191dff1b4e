//! Finds the parts of a message that can contain a secret, in one pass over its JSON text.
//!
//! Most strings of most messages have nothing that any rule, known secret or decoder starts from: no
//! keyword, no escape, no run of digits, no list of numbers, no encoded character. They need no scan
//! of their own.
//!
//! INVARIANT: each text that is not suspicious here is clean in [`super::scan`]. Its test compares
//! both.

use std::ops::Range;

use aho_corasick::{
    Anchored, MatchKind,
    automaton::{Automaton as _, StateID},
    dfa::DFA,
};

use super::{
    assigned::{is_assigned, is_in_name},
    encodings::{mark_units, may_encode},
    names::stems,
    rules::IllegalRules,
};

/// Number of parts of a text that are searched at the same time. The steps of one automaton wait for
/// each other.
const LANES: usize = 4;
/// Bytes of a text that share a mark.
const BLOCK_BYTES: usize = 64;

/// Keyword of a rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Keyword {
    pub text: Vec<u8>,
    /// Whether its case counts.
    pub exact: bool,
    pub context: Context,
}

/// Text behind a keyword that makes it count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Context {
    Any,
    /// The rest of a URL with a user.
    User,
    /// The rest of a name, and the sign of an assignment.
    Assigned,
    /// The rest of a string of JSON that can be a name.
    Name,
}

impl Context {
    fn has(self, after: &[u8]) -> bool {
        match self {
            Self::Any => true,
            Self::User => has_user(after),
            Self::Assigned => is_assigned(after),
            Self::Name => is_in_name(after),
        }
    }
}

/// Automaton of keywords.
pub(super) struct Keywords {
    /// Finds them in any case.
    automaton: DFA,
    longest: usize,
    /// For each keyword, its text if the case counts, and what must follow.
    conditions: Vec<(Option<Vec<u8>>, Context)>,
}

/// Limit in bytes of the part of a URL in front of its host.
const MAX_USER_BYTES: usize = 512;

/// Whether a URL has a user, by the text behind its scheme.
fn has_user(text: &[u8]) -> bool {
    let is_end = |b: &u8| b.is_ascii_whitespace() || b"/?#\"'<>\\".contains(b);
    let mut user = text.iter().take(MAX_USER_BYTES + 1).take_while(|b| !is_end(b));
    user.any(|b| *b == b'@')
}

impl Keywords {
    pub(super) fn new(keywords: &[Keyword]) -> Result<Self, IllegalRules> {
        // A name with such a keyword stands before a quote and a colon.
        let names = keywords.iter().filter_map(|keyword| {
            Some((keyword, [keyword.text.strip_suffix(b"=")?, b"\""].concat()))
        });
        let all = keywords.iter().map(|keyword| (keyword, keyword.text.clone())).chain(names);
        let all = all
            .map(|(keyword, text)| ((keyword.exact.then(|| text.clone()), keyword.context), text));
        let stems = stems().iter().map(|stem| ((None, Context::Name), stem.as_bytes().to_vec()));
        let (conditions, texts): (Vec<_>, Vec<_>) = all.chain(stems).unzip();
        let automaton = DFA::builder()
            .ascii_case_insensitive(true)
            .match_kind(MatchKind::Standard)
            .prefilter(false)
            .build(&texts)
            .map_err(|error| IllegalRules::Unreadable(error.to_string()))?;
        Ok(Self { longest: automaton.max_pattern_len(), automaton, conditions })
    }

    /// Context of a keyword that ends at a position, by the automaton's state behind it. Of several, one
    /// of a rule precedes that of a name.
    fn context(&self, state: StateID, text: &[u8], at: usize) -> Option<Context> {
        let (before, after) = text.split_at((at + 1).min(text.len()));
        let mut found = None;
        for index in 0..self.automaton.match_len(state) {
            let pattern = self.automaton.match_pattern(state, index);
            let (exact, context) = self.conditions.get(pattern.as_usize())?;
            if exact.as_ref().is_none_or(|exact| before.ends_with(exact)) && context.has(after) {
                found = Some(*context);
                if *context != Context::Name {
                    break;
                }
            }
        }
        found
    }

    /// Ranges of a text that have all keywords, in order and disjoint, and for each the position from
    /// which a keyword in it can begin.
    pub(super) fn ranges(&self, text: &[u8]) -> Vec<(usize, Range<usize>)> {
        let mut suspects = Suspects::none(text);
        self.each(text, |at, context| {
            if context != Context::Name {
                suspects.blocks.mark(at..at + 1);
            }
        });
        let mut ranges: Vec<(usize, Range<usize>)> = Vec::new();
        for block in suspects.blocks.marked() {
            let (start, end) = (block * BLOCK_BYTES, text.len().min((block + 1) * BLOCK_BYTES));
            match ranges.last_mut() {
                Some((_, last)) if last.end == start => last.end = end,
                _ => ranges.push((start.saturating_sub(self.longest), start..end)),
            }
        }
        ranges
    }

    /// Calls `each` with the position of the last byte of each keyword and its context, in any order.
    fn each(&self, text: &[u8], mut each: impl FnMut(usize, Context)) {
        let Ok(start) = self.automaton.start_state(Anchored::No) else { return };
        let part = text.len() / LANES;
        // Each part begins with the bytes that a keyword at its start can have in those before.
        let firsts: [usize; LANES] =
            std::array::from_fn(|lane| (lane * part).saturating_sub(self.longest));
        let parts: [&[u8]; LANES] = std::array::from_fn(|lane| {
            let last = if lane + 1 == LANES { text.len() } else { (lane + 1) * part };
            firsts.get(lane).and_then(|first| text.get(*first..last)).unwrap_or_default()
        });
        let mut states = [start; LANES];
        let mut see = |state: StateID, at: usize| {
            if self.automaton.is_match(state)
                && let Some(context) = self.context(state, text, at)
            {
                each(at, context);
            }
        };
        let together = parts.iter().map(|part| part.len()).min().unwrap_or(0);
        let mut at = 0;
        while let Some(length) = self.advance(&mut states, parts.map(|part| part.get(at..together)))
        {
            for (state, first) in states.into_iter().zip(firsts) {
                see(state, first + at + length - 1);
            }
            at += length;
        }
        for ((mut state, part), first) in states.into_iter().zip(parts).zip(firsts) {
            for (i, byte) in part.iter().enumerate().skip(together) {
                state = self.automaton.next_state(Anchored::No, state, *byte);
                see(state, first + i);
            }
        }
    }

    /// Advances all states up to the first byte behind which one is that of a keyword. Returns the
    /// number of bytes, or `None` at the end.
    fn advance(
        &self,
        states: &mut [StateID; LANES],
        [a, b, c, d]: [Option<&[u8]>; LANES],
    ) -> Option<usize> {
        let [mut s, mut t, mut u, mut v] = *states;
        let next = |state: StateID, byte: u8| self.automaton.next_state(Anchored::No, state, byte);
        let mut found = None;
        for (i, (((a, b), c), d)) in a?.iter().zip(b?).zip(c?).zip(d?).enumerate() {
            (s, t, u, v) = (next(s, *a), next(t, *b), next(u, *c), next(v, *d));
            let is_match = |state: StateID| self.automaton.is_match(state);
            if is_match(s) | is_match(t) | is_match(u) | is_match(v) {
                found = Some(i + 1);
                break;
            }
        }
        *states = [s, t, u, v];
        found
    }
}

/// Parts of a text that can contain a secret.
pub(super) struct Suspects {
    blocks: Blocks,
    /// Those of `blocks` that have keywords or known secrets.
    keywords: Blocks,
    /// Parts that can be names of secrets, and those of `blocks`.
    names: Blocks,
    /// Whether any part has a mark.
    has_names: bool,
}

impl Suspects {
    /// Parts of a JSON text. `known` has the ranges of known secrets.
    pub(super) fn of(
        raw: &[u8],
        keywords: &Keywords,
        known: impl Iterator<Item = Range<usize>>,
    ) -> Self {
        let mut suspects = Self::none(raw);
        keywords.each(raw, |at, context| {
            suspects.names.mark(at..at + 1);
            match context {
                Context::Name => suspects.has_names = true,
                _ => {
                    suspects.keywords.mark(at..at + 1);
                    suspects.blocks.mark(at..at + 1);
                }
            }
        });
        let mut mark = |range: Range<usize>| {
            suspects.names.mark(range.clone());
            suspects.blocks.mark(range);
        };
        known.for_each(|range| {
            suspects.keywords.mark(range.clone());
            mark(range);
        });
        mark_units(raw, &mut mark);
        // A keyword of a rule can be a name, too.
        suspects.has_names |= suspects.blocks.marked().next().is_some();
        suspects
    }

    /// Whether a string, a key or numbers of the text can contain a secret.
    pub(super) fn has(&self, raw: &[u8], range: &Range<usize>) -> bool {
        self.blocks.touch(range) || may_encode(raw.get(range.clone()).unwrap_or_default())
    }

    /// Whether a part of the text has a keyword or a known secret.
    pub(super) fn has_keyword(&self, range: &Range<usize>) -> bool {
        self.keywords.touch(range)
    }

    /// Whether any part of the text can be the name of a secret.
    pub(super) fn has_names(&self) -> bool {
        self.has_names
    }

    /// Whether a string or a key of the text can be the name of a secret.
    pub(super) fn may_name(&self, range: &Range<usize>) -> bool {
        self.has_names && self.names.touch(range)
    }

    fn none(text: &[u8]) -> Self {
        let none = || Blocks::of(text);
        Self { blocks: none(), keywords: none(), names: none(), has_names: false }
    }
}

/// A bit for each block of a text.
struct Blocks {
    /// Number of words that the bits of the text need.
    words: usize,
    /// Empty while no block is marked, as in most texts.
    bits: Vec<u64>,
}

impl Blocks {
    fn of(text: &[u8]) -> Self {
        Self { words: text.len() / BLOCK_BYTES / 64 + 1, bits: Vec::new() }
    }

    /// Numbers of the marked blocks, in order.
    fn marked(&self) -> impl Iterator<Item = usize> {
        self.bits.iter().enumerate().flat_map(|(at, blocks)| {
            let mut left = *blocks;
            std::iter::from_fn(move || {
                let bit = left.trailing_zeros();
                left &= left.checked_sub(1)?;
                Some(64 * at + bit as usize)
            })
        })
    }

    fn mark(&mut self, range: Range<usize>) {
        for block in range.start / BLOCK_BYTES..range.end.div_ceil(BLOCK_BYTES) {
            self.bits.resize(self.words, 0);
            if let Some(blocks) = self.bits.get_mut(block / 64) {
                *blocks |= 1 << (block % 64);
            }
        }
    }

    /// Whether a part of the text has a mark.
    fn touch(&self, range: &Range<usize>) -> bool {
        let first = range.start / BLOCK_BYTES;
        let last = range.end.saturating_sub(1).max(range.start) / BLOCK_BYTES;
        let has = |block: usize| {
            let marked = self.bits.get(block / 64).map(|blocks| blocks >> (block % 64) & 1 == 1);
            marked.unwrap_or(block / 64 >= self.words)
        };
        // Most strings are in one block or two.
        has(first) || has(last) || last - first > 1 && (first + 1..last).any(has)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn found(words: &[&[u8]], text: &str) -> Vec<usize> {
        let words: Vec<_> = words
            .iter()
            .map(|text| Keyword { text: text.to_vec(), exact: false, context: Context::Any })
            .collect();
        let mut found = Vec::new();
        Keywords::new(&words).unwrap().each(text.as_bytes(), |at, context| {
            if context == Context::Any {
                found.push(at);
            }
        });
        found.sort_unstable();
        found.dedup();
        found
    }

    proptest! {
        #[test]
        fn every_keyword_is_found_in_any_part(text in "[abAB=\"]{0,40}") {
            let lower = text.to_lowercase();
            let words = ["ab", "bab", "aaaa", "b=", "b\""];
            let ends = (0..lower.len())
                .filter(|end| words.iter().any(|word| lower[..=*end].ends_with(word)));
            let found = found(&[b"ab", b"bab", b"aaaa", b"b="], &text);
            prop_assert_eq!(found, ends.collect::<Vec<_>>());
        }
    }

    #[test]
    fn keyword_longer_than_a_part_is_found() {
        for before in 0..40 {
            for after in 0..40 {
                let text = format!("{}long-keyword{}", "x".repeat(before), "y".repeat(after));
                assert_eq!(found(&[b"LONG-keyword"], &text), [before + 11]);
                let keyword =
                    Keyword { text: b"long-keyword".to_vec(), exact: true, context: Context::Any };
                let keywords = Keywords::new(&[keyword]).unwrap();
                let ranges = keywords.ranges(text.as_bytes());
                let has = |(first, range): &(usize, Range<usize>)| {
                    *first <= before && range.contains(&(before + 11))
                };
                assert!(ranges.iter().any(has));
            }
        }
    }

    #[test]
    fn conditions_of_keywords_hold() {
        let keyword = |text: &str, exact, context| Keyword { text: text.into(), exact, context };
        let all = [
            keyword("SK", true, Context::Any),
            keyword("ftp://", false, Context::User),
            keyword("token", false, Context::Assigned),
        ];
        let keywords = Keywords::new(&all).unwrap();
        for (text, expected) in [
            ("risk", false),
            ("xSKx", true),
            ("FTP://a:b@c", true),
            ("ftp://a/b@c ftp://d e@f", false),
            ("ftp://@", true),
            ("MY_TOKENS_2\" : x", true),
            ("a token of ours: x", false),
        ] {
            assert_eq!(!keywords.ranges(text.as_bytes()).is_empty(), expected, "{text}");
        }
    }

    #[test]
    fn only_marked_blocks_are_suspicious() {
        let mut blocks = Blocks { words: 4, bits: Vec::new() };
        blocks.mark(130..200);
        assert!(!blocks.touch(&(0..128)) && !blocks.touch(&(256..900)));
        assert!(blocks.touch(&(100..129)) && blocks.touch(&(255..256)));
        assert_eq!(blocks.marked().collect::<Vec<_>>(), [2, 3]);
    }
}
