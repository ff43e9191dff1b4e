//! Secrets that are divided between strings: between the members of an object, the elements of a
//! list, or the text blocks of an answer.
//!
//! Strings are joined at their ends, up to the next blank. A chain of joined strings begins with one
//! that has a keyword, or with two between which a keyword can be divided. It is searched once, when
//! it ends. So ordinary messages cost a look at the ends of each string.

use std::{borrow::Cow, ops::Range};

use super::{calls::MAX_BEGINNING_BYTES, json_strings::decode};

/// Limit in bytes of a chain, and of what a string adds to it.
const MAX_CHAIN_BYTES: usize = 64 << 10;
const MAX_END_BYTES: usize = 4 << 10;
/// Bytes in front of a secret that can have its name.
const MAX_NAME_BYTES: usize = 256;
/// Limit of the strings of a chain.
const MAX_PIECES: usize = 4 << 10;
/// Minimum length in bytes of a divided secret.
const MIN_BYTES: usize = 16;
/// Number of bits of a set of characters, as a power of two.
const SET_BITS: u32 = 16;

/// Texts by the characters around each position at which they can be divided.
pub(super) struct Divisions {
    /// The two characters beside a position: a bit for each second one, by the first.
    beside: Vec<[u64; 4]>,
    /// Hashes of one to three characters in front of a position, and those behind it: of four in
    /// total, or of three of a shorter text.
    around: Vec<u64>,
}

/// Position of a number of characters in a set.
fn bit(of: &[u8], before: usize) -> (usize, u64) {
    let hash = of.iter().fold(before as u32, |hash, byte| hash << 8 ^ u32::from(*byte));
    let hash = hash.wrapping_mul(0x9e37_79b1) >> (32 - SET_BITS);
    ((hash / 64) as usize, 1 << (hash % 64))
}

/// Number of characters around a position, and of shorter texts.
const AROUND: usize = 4;
const AROUND_SHORT: usize = 3;

impl Divisions {
    /// Divisions of these texts.
    pub(super) fn of(texts: impl Iterator<Item = Vec<u8>>) -> Self {
        let mut all = Self { beside: vec![[0; 4]; 256], around: vec![0; 1 << (SET_BITS - 6)] };
        for text in texts {
            let size = text.len().min(AROUND);
            for at in 1..text.len() {
                if let Some([a, b]) = text.get(at - 1..=at) {
                    all.beside[usize::from(*a)][usize::from(b / 64)] |= 1 << (b % 64);
                }
                // Half of them in front, if there are as many on both sides.
                let least = (at + size).saturating_sub(text.len()).max(1);
                let before = at.min(size / 2).max(least);
                let part = text.get(at - before..at - before + size).unwrap_or_default();
                let (word, bit) = bit(part, before);
                if let Some(word) = all.around.get_mut(word) {
                    *word |= bit;
                }
            }
        }
        all
    }

    /// Whether a text may be divided between the ends of two strings.
    #[inline]
    pub(super) fn may_be_between(&self, before: &[u8], after: &[u8]) -> bool {
        let (Some(a), Some(b)) = (before.last(), after.first()) else { return false };
        let is_beside = self.beside[usize::from(*a)][usize::from(b / 64)] >> (b % 64) & 1 == 1;
        is_beside && self.has_around(before, after)
    }

    fn has_around(&self, before: &[u8], after: &[u8]) -> bool {
        let has = |count: usize, size: usize| {
            let mut of = [0; AROUND];
            let ends = before.len().checked_sub(count).and_then(|start| before.get(start..));
            let (Some(ends), Some(begins)) = (ends, after.get(..size - count)) else {
                return false;
            };
            of[..count].copy_from_slice(ends);
            of[count..size].copy_from_slice(begins);
            let (word, bit) = bit(&of[..size], count);
            self.around.get(word).is_some_and(|word| word & bit != 0)
        };
        (1..AROUND).any(|count| has(count, AROUND))
            || (1..AROUND_SHORT).any(|count| has(count, AROUND_SHORT))
            || has(1, 2)
    }
}

/// Strings that continue each other, in the order of the text, and may have a secret.
#[derive(Default)]
pub(super) struct Chain {
    /// Position of the last string, which may be in no chain. Empty if it has a secret of its own.
    last: Range<usize>,
    pieces: Vec<Piece>,
    bytes: usize,
    /// Whether a key in several lines begins in it.
    is_in_key: bool,
    /// End of the message before.
    before: Vec<u8>,
}

/// Part of a string.
struct Piece {
    /// Position of the string in the message. Empty for the end of the message before.
    span: Range<usize>,
    /// Part of the decoded string.
    part: Range<usize>,
}

/// A chain that ended.
pub(super) struct Joined {
    pub text: Vec<u8>,
    pieces: Vec<(usize, Piece)>,
}

impl Joined {
    /// Length in bytes of the end of the message before.
    pub(super) fn before(&self) -> usize {
        let first = self.pieces.first().filter(|(_, piece)| piece.span.is_empty());
        first.map_or(0, |(_, piece)| piece.part.len())
    }

    /// Whether a range of the text is in more than one string.
    pub(super) fn is_divided(&self, range: &Range<usize>) -> bool {
        let at = |offset: usize| self.pieces.partition_point(|(start, _)| *start <= offset);
        at(range.start) != at(range.end.saturating_sub(1))
    }

    /// Strings that have parts of a range, and these parts, decoded.
    pub(super) fn parts(&self, range: &Range<usize>) -> Vec<(Range<usize>, Range<usize>)> {
        let overlap = |(start, piece): &(usize, Piece)| {
            let end = start + piece.part.len();
            let (from, to) = (range.start.max(*start), range.end.min(end));
            let moved = |at: usize| at - start + piece.part.start;
            (from < to && !piece.span.is_empty())
                .then(|| (piece.span.clone(), moved(from)..moved(to)))
        };
        self.pieces.iter().filter_map(overlap).collect()
    }
}

/// String to add to a chain.
pub(super) struct Next<'a> {
    pub span: &'a Range<usize>,
    pub decoded: &'a [u8],
    /// Whether it has a keyword.
    pub has_keyword: bool,
    /// Whether it has a secret of its own, found by its format.
    pub has_secret: bool,
}

impl Chain {
    /// Chain that begins with the end of the message before.
    pub(super) fn behind(before: &[u8]) -> Self {
        let mut chain = Self { before: before.to_vec(), ..Self::default() };
        if !before.is_empty() {
            chain.push(&(0..0), 0..before.len());
        }
        chain
    }

    /// Text at the end of a message that may be the beginning of a secret.
    pub(super) fn beginning(&self, raw: &[u8]) -> Option<String> {
        if self.pieces.is_empty() || self.bytes > MAX_BEGINNING_BYTES {
            return None;
        }
        let parts = self.pieces.iter().map(|piece| self.text_of(raw, piece));
        String::from_utf8(parts.collect::<Vec<_>>().concat()).ok()
    }

    fn text_of(&self, raw: &[u8], piece: &Piece) -> Vec<u8> {
        let text = match piece.span.is_empty() {
            true => Cow::Borrowed(&self.before[..]),
            false => decode(raw.get(piece.span.clone()).unwrap_or_default()),
        };
        text.get(piece.part.clone()).unwrap_or_default().to_vec()
    }

    /// Whether a string without keywords is in no chain. Then it becomes the last one.
    pub(super) fn passes(
        &mut self,
        raw: &[u8],
        span: &Range<usize>,
        is_divided: impl Fn(&[u8], &[u8]) -> bool,
    ) -> bool {
        let string = |span: &Range<usize>| raw.get(span.clone()).unwrap_or_default();
        let passes = self.pieces.is_empty() && !is_divided(string(&self.last), string(span));
        if passes {
            self.last = span.clone();
        }
        passes
    }

    /// Adds a string. Returns the chain that ends in it, if that needs a search. `is_divided` says
    /// whether a keyword or a known secret may be divided between two strings.
    pub(super) fn add(
        &mut self,
        raw: &[u8],
        is_divided: impl Fn(&[u8], &[u8]) -> bool,
        next: &Next<'_>,
    ) -> Option<Joined> {
        let last = std::mem::replace(&mut self.last, next.span.clone());
        if next.has_secret {
            self.last = 0..0;
        }
        if self.pieces.is_empty() {
            let string = |span: &Range<usize>| raw.get(span.clone()).unwrap_or_default();
            if !next.has_keyword && !is_divided(string(&last), string(next.span)) {
                return None;
            }
            let text = decode(string(&last));
            self.push(&last, last_word(&text)..text.len());
        }
        self.add_suspicious(raw, next)
    }

    /// Adds a string to a chain that needs a search, or begins such a chain.
    #[cold]
    fn add_suspicious(&mut self, raw: &[u8], next: &Next<'_>) -> Option<Joined> {
        let text = next.decoded;
        let key = next.has_keyword.then(|| open_key(text)).flatten();
        let blank = memchr::memchr3(b' ', b'\n', b'\t', text);
        let mut first = blank.unwrap_or(text.len()).min(MAX_END_BYTES);
        if self.is_in_key {
            (first, self.is_in_key) = key_part(text);
        } else if next.has_secret && key.is_none() {
            // A secret of its own needs no other string.
            first = 0;
        }
        if !self.pieces.is_empty() && first > 0 {
            self.push(next.span, 0..first);
            let is_whole = first == text.len() && key.is_none();
            let has_room = self.bytes < MAX_CHAIN_BYTES && self.pieces.len() < MAX_PIECES;
            if is_whole && has_room && (blank.is_none() || self.is_in_key) {
                return None;
            }
        }
        let ended = self.end(raw);
        if let Some(start) = key {
            self.push(next.span, start..text.len());
            self.is_in_key = true;
        } else if next.has_keyword && !next.has_secret {
            // A name can be in front of the secret.
            let start = between_characters(text, text.len().saturating_sub(MAX_NAME_BYTES));
            self.push(next.span, last_word(text).min(start)..text.len());
        }
        ended
    }

    fn push(&mut self, span: &Range<usize>, part: Range<usize>) {
        if part.is_empty() {
            return;
        }
        self.bytes += part.len();
        self.pieces.push(Piece { span: span.clone(), part });
    }

    /// Ends the chain. Returns it if it needs a search.
    pub(super) fn end(&mut self, raw: &[u8]) -> Option<Joined> {
        self.is_in_key = false;
        if self.pieces.len() < 2 || self.bytes < MIN_BYTES {
            self.pieces.clear();
            self.bytes = 0;
            return None;
        }
        let last = self.last.clone();
        let mut chain = std::mem::replace(self, Self { last, ..Self::default() });
        let mut text = Vec::with_capacity(chain.bytes);
        let mut pieces = Vec::with_capacity(chain.pieces.len());
        for piece in std::mem::take(&mut chain.pieces) {
            let start = text.len();
            text.append(&mut chain.text_of(raw, &piece));
            pieces.push((start, piece));
        }
        Some(Joined { text, pieces })
    }
}

/// Start of the last word of a text, of limited length and between characters.
fn last_word(text: &[u8]) -> usize {
    let blank = memchr::memrchr3(b' ', b'\n', b'\t', text).map_or(0, |blank| blank + 1);
    between_characters(text, blank.max(text.len().saturating_sub(MAX_END_BYTES)))
}

/// First position between characters, from there.
fn between_characters(text: &[u8], from: usize) -> usize {
    let rest = text.get(from..).unwrap_or_default();
    from + rest.iter().take_while(|byte| **byte & 0xc0 == 0x80).count()
}

/// Position of a private key that does not end in the text.
fn open_key(text: &[u8]) -> Option<usize> {
    let start = memchr::memmem::rfind(text, b"-----BEGIN ")?;
    let key = text.get(start..)?;
    let is_private = memchr::memmem::find(key.get(..64.min(key.len()))?, b"PRIVATE KEY").is_some();
    let is_open = is_private && memchr::memmem::find(key, b"-----END").is_none();
    (is_open && key.len() <= MAX_CHAIN_BYTES).then_some(start)
}

/// Minimum length in bytes of the longest line of a part of a private key.
const MIN_KEY_LINE: usize = 40;

/// Number of bytes of a text that continue a private key, and whether the key continues in the next
/// string.
fn key_part(text: &[u8]) -> (usize, bool) {
    let of_key = |b: &u8| b.is_ascii_alphanumeric() || b"+/=\r\n".contains(b);
    let length = text.iter().take(MAX_CHAIN_BYTES).take_while(|b| of_key(b)).count();
    let (body, rest) = text.split_at(length);
    let end = rest.strip_prefix(b"-----END").and_then(|rest| memchr::memmem::find(rest, b"-----"));
    if let Some(end) = end {
        return (length + 8 + end + 5, false);
    }
    let is_body = body.split(|b| *b == b'\n').any(|line| line.len() >= MIN_KEY_LINE);
    if is_body { (length, length == text.len()) } else { (0, false) }
}
