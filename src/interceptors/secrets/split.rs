//! Secrets that are divided between strings: between the members of an object, the elements of a
//! list, or the text blocks of an answer.
//!
//! Strings are joined at their ends, up to the next blank. A chain of joined strings is searched
//! once, when it ends, and only if one of them has a keyword or one can begin in a string and end in
//! the next. So ordinary messages cost a look at the ends of each string.

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
const SET_BITS: u32 = 15;

/// Keywords and known secrets by three characters around each position at which they can be divided.
pub(super) struct Divisions {
    /// Two characters in front of the position, and one behind it.
    late: Vec<u64>,
    /// One in front, and two behind.
    early: Vec<u64>,
}

/// Position of three characters in a set.
fn bit(of: [u8; 3]) -> (usize, u64) {
    let [a, b, c] = of.map(|byte| u32::from(byte.to_ascii_lowercase()));
    let hash = (a << 16 | b << 8 | c).wrapping_mul(0x9e37_79b1) >> (32 - SET_BITS);
    ((hash / 64) as usize, 1 << (hash % 64))
}

impl Divisions {
    /// Divisions of these texts.
    pub(super) fn of<'a>(texts: impl Iterator<Item = &'a [u8]>) -> Self {
        let empty = || vec![0_u64; 1 << (SET_BITS - 6)];
        let mut all = Self { late: empty(), early: empty() };
        let add = |set: &mut Vec<u64>, of: [u8; 3]| {
            let (at, bit) = bit(of);
            if let Some(word) = set.get_mut(at) {
                *word |= bit;
            }
        };
        for text in texts {
            for of in text.array_windows::<3>() {
                add(&mut all.late, *of);
            }
            text.first_chunk().into_iter().for_each(|of| add(&mut all.early, *of));
        }
        all
    }

    /// Whether a text can be divided between the ends of two strings.
    fn may_be_between(&self, before: &[u8], after: &[u8]) -> bool {
        let has = |set: &[u64], of: [u8; 3]| {
            let (at, bit) = bit(of);
            set.get(at).is_some_and(|word| word & bit != 0)
        };
        let late = before.last_chunk::<2>().zip(after.first());
        let early = before.last().zip(after.first_chunk::<2>());
        late.is_some_and(|([a, b], c)| has(&self.late, [*a, *b, *c]))
            || early.is_some_and(|(a, [b, c])| has(&self.early, [*a, *b, *c]))
    }
}

/// Strings that continue each other, in the order of the text.
#[derive(Default)]
pub(super) struct Chain {
    pieces: Vec<Piece>,
    bytes: usize,
    /// Whether it needs a search.
    is_suspicious: bool,
    /// Whether a key in several lines begins in it.
    is_in_key: bool,
    /// Place of the last string of a chain that needs a search.
    place: String,
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
    pub place: String,
    pieces: Vec<(usize, Piece)>,
}

impl Joined {
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
            chain.is_suspicious = true;
        }
        chain
    }

    /// Text at the end of a message that may be the beginning of a secret.
    pub(super) fn beginning(&self, raw: &[u8]) -> Option<String> {
        if !self.is_suspicious || self.bytes > MAX_BEGINNING_BYTES {
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

    /// Adds a string. Returns the chain that ends in it, if that needs a search.
    pub(super) fn add(
        &mut self,
        raw: &[u8],
        divisions: &Divisions,
        next: &Next<'_>,
        place: impl Fn() -> String,
    ) -> Option<Joined> {
        let text = next.decoded;
        let key = next.has_keyword.then(|| open_key(text)).flatten();
        let blank = memchr::memchr3(b' ', b'\n', b'\t', text);
        let mut first = blank.unwrap_or(text.len()).min(MAX_END_BYTES);
        let mut last = memchr::memrchr3(b' ', b'\n', b'\t', text).map_or(0, |blank| blank + 1);
        if self.is_in_key {
            (first, self.is_in_key) = key_part(text);
        }
        last = last.max(text.len().saturating_sub(MAX_END_BYTES));
        if next.has_keyword {
            // A name can be in front of the secret.
            last = last.min(text.len().saturating_sub(MAX_NAME_BYTES));
            let is_inside = |at: usize| text.get(at).is_some_and(|byte| byte & 0xc0 == 0x80);
            while is_inside(last) {
                last += 1;
            }
        }
        // A secret of its own needs no other string.
        if next.has_secret && key.is_none() {
            (first, last) = (first * usize::from(self.is_in_key), text.len());
        }
        if self.pieces.last().is_some() && first > 0 {
            let before = self.pieces.last().and_then(|piece| raw.get(piece.span.clone()));
            let after = raw.get(next.span.clone()).unwrap_or_default();
            self.is_suspicious |=
                next.has_keyword || divisions.may_be_between(before.unwrap_or_default(), after);
            self.push(next.span, 0..first);
            if self.is_suspicious {
                self.place = place();
            }
        }
        let is_whole = first == text.len()
            && !self.pieces.is_empty()
            && key.is_none()
            && (blank.is_none() || self.is_in_key);
        if is_whole && self.bytes < MAX_CHAIN_BYTES && self.pieces.len() < MAX_PIECES {
            return None;
        }
        let ended = self.end(raw);
        let last = key.unwrap_or(last);
        if last < text.len() {
            self.push(next.span, last..text.len());
            self.is_suspicious = next.has_keyword;
            self.is_in_key = key.is_some();
        }
        ended
    }

    fn push(&mut self, span: &Range<usize>, part: Range<usize>) {
        self.bytes += part.len();
        self.pieces.push(Piece { span: span.clone(), part });
    }

    /// Ends the chain. Returns it if it needs a search.
    pub(super) fn end(&mut self, raw: &[u8]) -> Option<Joined> {
        let is_searched = self.is_suspicious && self.pieces.len() > 1 && self.bytes >= MIN_BYTES;
        if !is_searched {
            self.pieces.clear();
            (self.bytes, self.is_suspicious, self.is_in_key) = (0, false, false);
            return None;
        }
        let mut chain = std::mem::take(self);
        let mut text = Vec::with_capacity(chain.bytes);
        let mut pieces = Vec::with_capacity(chain.pieces.len());
        for piece in std::mem::take(&mut chain.pieces) {
            let start = text.len();
            text.append(&mut chain.text_of(raw, &piece));
            pieces.push((start, piece));
        }
        Some(Joined { text, place: chain.place, pieces })
    }
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
