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
    encodings::{mark_units, may_encode},
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
    /// Whether it begins a URL, which must have a user.
    pub needs_user: bool,
}

/// Automaton of keywords.
pub(super) struct Keywords {
    /// Finds them in any case.
    automaton: DFA,
    longest: usize,
    /// For each keyword, its text if the case counts, and whether a user must follow.
    conditions: Vec<(Option<Vec<u8>>, bool)>,
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
        let (conditions, texts): (Vec<_>, Vec<_>) = all
            .map(|(keyword, text)| {
                ((keyword.exact.then(|| text.clone()), keyword.needs_user), text)
            })
            .unzip();
        let automaton = DFA::builder()
            .ascii_case_insensitive(true)
            .match_kind(MatchKind::Standard)
            .prefilter(false)
            .build(&texts)
            .map_err(|error| IllegalRules::Unreadable(error.to_string()))?;
        Ok(Self { longest: automaton.max_pattern_len(), automaton, conditions })
    }

    /// Whether a keyword ends at a position, by the automaton's state behind it.
    fn has_keyword(&self, state: StateID, text: &[u8], at: usize) -> bool {
        let patterns = 0..self.automaton.match_len(state);
        patterns.map(|index| self.automaton.match_pattern(state, index)).any(|pattern| {
            let (exact, needs_user) = match self.conditions.get(pattern.as_usize()) {
                Some((exact, needs_user)) => (exact.as_deref(), *needs_user),
                None => (None, false),
            };
            let (before, after) = text.split_at((at + 1).min(text.len()));
            exact.is_none_or(|exact| before.ends_with(exact)) && (!needs_user || has_user(after))
        })
    }

    /// Ranges of a text that have all keywords, in order and disjoint, and for each the position from
    /// which a keyword in it can begin.
    pub(super) fn ranges(&self, text: &[u8]) -> Vec<(usize, Range<usize>)> {
        let mut suspects = Suspects::none(text);
        self.each(text, |at| suspects.mark(at..at + 1));
        let mut ranges: Vec<(usize, Range<usize>)> = Vec::new();
        for block in suspects.marked() {
            let (start, end) = (block * BLOCK_BYTES, text.len().min((block + 1) * BLOCK_BYTES));
            match ranges.last_mut() {
                Some((_, last)) if last.end == start => last.end = end,
                _ => ranges.push((start.saturating_sub(self.longest), start..end)),
            }
        }
        ranges
    }

    /// Calls `each` with the position of the last byte of each keyword, in any order.
    fn each(&self, text: &[u8], mut each: impl FnMut(usize)) {
        let Ok(start) = self.automaton.start_state(Anchored::No) else { return };
        let part = text.len() / LANES;
        // Each part begins with the bytes that a keyword at its start can have in those before.
        let mut lanes: [(StateID, &[u8], usize); LANES] = std::array::from_fn(|lane| {
            let first = (lane * part).saturating_sub(self.longest);
            let last = if lane + 1 == LANES { text.len() } else { (lane + 1) * part };
            (start, text.get(first..last).unwrap_or_default(), first)
        });
        let together = lanes.iter().map(|(_, text, _)| text.len()).min().unwrap_or(0);
        let [(a, at, ai), (b, bt, bi), (c, ct, ci), (d, dt, di)] = &mut lanes;
        let (ah, bh, ch, dh) =
            (split(at, together), split(bt, together), split(ct, together), split(dt, together));
        for (i, (((x, y), z), w)) in ah.iter().zip(bh).zip(ch).zip(dh).enumerate() {
            *a = self.automaton.next_state(Anchored::No, *a, *x);
            *b = self.automaton.next_state(Anchored::No, *b, *y);
            *c = self.automaton.next_state(Anchored::No, *c, *z);
            *d = self.automaton.next_state(Anchored::No, *d, *w);
            let states = [*a, *b, *c, *d];
            if states.map(|state| self.automaton.is_match(state)) != [false; LANES] {
                for (state, first) in states.into_iter().zip([*ai, *bi, *ci, *di]) {
                    if self.automaton.is_match(state) && self.has_keyword(state, text, first + i) {
                        each(first + i);
                    }
                }
            }
        }
        for (mut state, part, first) in lanes {
            for (i, byte) in part.iter().enumerate().skip(together) {
                state = self.automaton.next_state(Anchored::No, state, *byte);
                if self.automaton.is_match(state) && self.has_keyword(state, text, first + i) {
                    each(first + i);
                }
            }
        }
    }
}

fn split<'a>(text: &&'a [u8], at: usize) -> &'a [u8] {
    text.get(..at).unwrap_or_default()
}

/// Parts of a text that can contain a secret.
pub(super) struct Suspects {
    /// A bit for each block of the text.
    blocks: Vec<u64>,
}

impl Suspects {
    /// Parts of a JSON text. `known` has the ranges of known secrets.
    pub(super) fn of(
        raw: &[u8],
        keywords: &Keywords,
        known: impl Iterator<Item = Range<usize>>,
    ) -> Self {
        let mut suspects = Self::none(raw);
        keywords.each(raw, |at| suspects.mark(at..at + 1));
        known.for_each(|range| suspects.mark(range));
        mark_units(raw, &mut |range| suspects.mark(range));
        suspects
    }

    /// Whether a string, a key or numbers of the text can contain a secret.
    pub(super) fn has(&self, raw: &[u8], range: &Range<usize>) -> bool {
        self.touch(range) || may_encode(raw.get(range.clone()).unwrap_or_default())
    }

    fn none(text: &[u8]) -> Self {
        Self { blocks: vec![0; text.len() / BLOCK_BYTES / 64 + 1] }
    }

    /// Numbers of the marked blocks, in order.
    fn marked(&self) -> impl Iterator<Item = usize> {
        self.blocks.iter().enumerate().flat_map(|(at, blocks)| {
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
            if let Some(blocks) = self.blocks.get_mut(block / 64) {
                *blocks |= 1 << (block % 64);
            }
        }
    }

    /// Whether a part of the text has a mark.
    fn touch(&self, range: &Range<usize>) -> bool {
        (range.start / BLOCK_BYTES..range.end.div_ceil(BLOCK_BYTES)).any(|block| {
            self.blocks.get(block / 64).is_none_or(|blocks| blocks >> (block % 64) & 1 == 1)
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn found(words: &[&[u8]], text: &str) -> Vec<usize> {
        let words: Vec<_> = words
            .iter()
            .map(|text| Keyword { text: text.to_vec(), exact: false, needs_user: false })
            .collect();
        let mut found = Vec::new();
        Keywords::new(&words).unwrap().each(text.as_bytes(), |at| found.push(at));
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
                    Keyword { text: b"long-keyword".to_vec(), exact: true, needs_user: false };
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
        let keyword =
            |text: &str, exact, needs_user| Keyword { text: text.into(), exact, needs_user };
        let all = [keyword("SK", true, false), keyword("ftp://", false, true)];
        let keywords = Keywords::new(&all).unwrap();
        for (text, expected) in [
            ("risk", false),
            ("xSKx", true),
            ("FTP://a:b@c", true),
            ("ftp://a/b@c ftp://d e@f", false),
            ("ftp://@", true),
        ] {
            assert_eq!(!keywords.ranges(text.as_bytes()).is_empty(), expected, "{text}");
        }
    }

    #[test]
    fn only_marked_blocks_are_suspicious() {
        let mut suspects = Suspects { blocks: vec![0; 4] };
        suspects.mark(130..200);
        assert!(!suspects.touch(&(0..128)) && !suspects.touch(&(256..900)));
        assert!(suspects.touch(&(100..129)) && suspects.touch(&(255..256)));
    }
}
