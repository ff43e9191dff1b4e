//! Digits of base64, base32 and hex, and the bytes that they encode.

use std::{
    io::{self, Read},
    ops::Range,
};

/// Class of a byte in encoded text, as bits.
pub(super) const BASE64: u8 = 1;
pub(super) const HEX: u8 = 2;
pub(super) const BASE32: u8 = 4;
pub(super) const UPPER: u8 = 8;
pub(super) const LOWER: u8 = 16;
pub(super) const LOWER_BASE32: u8 = 32;
pub(super) const BLANK: u8 = 64;
/// Of a list of numbers.
pub(super) const LIST: u8 = 128;

/// Classes of all bytes.
static CLASSES: [u8; 256] = {
    let mut classes = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        let b = byte as u8;
        if b.is_ascii_alphanumeric() || matches!(b, b'+' | b'/' | b'-' | b'_') {
            classes[byte] |= BASE64;
        }
        if b.is_ascii_hexdigit() {
            classes[byte] |= HEX;
        }
        if b.is_ascii_uppercase() {
            classes[byte] |= UPPER;
        }
        if b.is_ascii_lowercase() {
            classes[byte] |= LOWER;
        }
        if b.is_ascii_uppercase() || matches!(b, b'2'..=b'7') {
            classes[byte] |= BASE32;
        }
        if b.is_ascii_lowercase() || matches!(b, b'2'..=b'7') {
            classes[byte] |= LOWER_BASE32;
        }
        if b.is_ascii_whitespace() {
            classes[byte] |= BLANK;
        }
        if b.is_ascii_hexdigit()
            || matches!(
                b,
                b'x' | b'X' | b' ' | b',' | b':' | b';' | b'.' | b'\t' | b'\r' | b'\n' | b'-'
            )
        {
            classes[byte] |= LIST;
        }
        byte += 1;
    }
    classes
};

pub(super) fn class(byte: u8) -> u8 {
    CLASSES.get(usize::from(byte)).copied().unwrap_or(0)
}

/// Position of the first byte of the run that ends before `at`, at or behind `from`.
pub(in super::super) fn run_start(text: &[u8], from: usize, at: usize) -> usize {
    let before = text.get(from..at).unwrap_or_default();
    from + before.iter().rposition(|b| class(*b) & BASE64 == 0).map_or(0, |last| last + 1)
}

/// Position of the first byte from `at` that base64 does not have.
pub(super) fn run_end(text: &[u8], at: usize) -> usize {
    let rest = text.get(at..).unwrap_or_default();
    at + rest.iter().position(|b| class(*b) & BASE64 == 0).unwrap_or(rest.len())
}

/// Finds the next range from a position of at least `least` bytes of these classes. Looks at every
/// byte at that distance first: text of short words costs little.
pub(super) fn next_of(
    text: &[u8],
    mut from: usize,
    classes: u8,
    least: usize,
) -> Option<Range<usize>> {
    let is_other = |b: &u8| class(*b) & classes == 0;
    while let Some(probe) = text.get(from + least - 1) {
        let last = from + least - 1;
        if is_other(probe) {
            from = last + 1;
        } else if let Some(stop) =
            text.get(from..last).unwrap_or_default().iter().rposition(is_other)
        {
            from += stop + 1;
        } else {
            let rest = text.get(last..).unwrap_or_default();
            return Some(from..last + rest.iter().position(is_other).unwrap_or(rest.len()));
        }
    }
    None
}

/// An encoding of bytes as digits.
pub(super) struct Alphabet {
    pub(super) class: u8,
    /// Bits of a digit.
    width: u32,
    /// Digits of a group, which begins with the first bit of a byte.
    pub(super) group: usize,
    /// Value of each byte, or [`NO_DIGIT`].
    values: [u8; 256],
}

/// Value of a byte that is not a digit.
const NO_DIGIT: u8 = u8::MAX;
/// Bits that no digit of base64 has, and no digit of hex.
const NOT_BASE64: u8 = 0xc0;
const NOT_HEX: u8 = 0xf0;

/// Values of bytes by a function.
macro_rules! values {
    ($of:path) => {{
        let mut values = [NO_DIGIT; 256];
        let mut byte = 0;
        while byte < 256 {
            if let Some(value) = $of(byte as u8) {
                values[byte] = value;
            }
            byte += 1;
        }
        values
    }};
}

pub(super) static HEX_DIGITS: Alphabet =
    Alphabet { class: HEX, width: 4, group: 2, values: values!(hex_digit) };
pub(super) static BASE32_DIGITS: Alphabet =
    Alphabet { class: BASE32, width: 5, group: 8, values: values!(base32_digit) };
static LOWER_BASE32_DIGITS: Alphabet =
    Alphabet { class: LOWER_BASE32, width: 5, group: 8, values: values!(base32_digit) };
pub(super) static BASE64_DIGITS: Alphabet =
    Alphabet { class: BASE64, width: 6, group: 4, values: values!(base64_digit) };

pub(super) static ALPHABETS: [&Alphabet; 4] =
    [&HEX_DIGITS, &BASE32_DIGITS, &LOWER_BASE32_DIGITS, &BASE64_DIGITS];

impl Alphabet {
    fn value(&self, byte: u8) -> u8 {
        self.values.get(usize::from(byte)).copied().unwrap_or(NO_DIGIT)
    }

    /// Replaces the content of `out` by the bytes that digits encode, up to the first other byte.
    /// Unlike a strict decoder, accepts both alphabets of base64 in one text, and bits after the last
    /// byte.
    pub(super) fn decode(&self, digits: &[u8], out: &mut Vec<u8>) {
        out.clear();
        out.reserve(digits.len());
        // Groups of four digits of base64, and of two of hex, are whole bytes.
        let mut rest = digits;
        if self.width == 6 {
            while let Some((&[a, b, c, d], after)) = rest.split_first_chunk::<4>() {
                let [a, b, c, d] = [a, b, c, d].map(|byte| self.value(byte));
                if (a | b | c | d) & NOT_BASE64 != 0 {
                    break;
                }
                out.extend_from_slice(&[a << 2 | b >> 4, b << 4 | c >> 2, c << 6 | d]);
                rest = after;
            }
        }
        if self.width == 4 {
            while let Some((&[a, b], after)) = rest.split_first_chunk::<2>() {
                let (a, b) = (self.value(a), self.value(b));
                if (a | b) & NOT_HEX != 0 {
                    break;
                }
                out.push(a << 4 | b);
                rest = after;
            }
        }
        let (mut bits, mut held) = (0_u32, 0_u32);
        for &byte in rest {
            let value = self.value(byte);
            if value == NO_DIGIT {
                break;
            }
            bits = bits << self.width | u32::from(value);
            held += self.width;
            if held >= 8 {
                held -= 8;
                out.push((bits >> held) as u8);
            }
        }
    }
}

/// Reader of the bytes that digits encode, in lines or not.
#[derive(Clone)]
pub(super) struct Digits<'a> {
    pub(super) text: &'a [u8],
    pub(super) alphabet: &'a Alphabet,
    pub(super) bits: u32,
    pub(super) held: u32,
}

impl Read for Digits<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let mut length = 0;
        while let (Some(place), [first, rest @ ..]) = (out.get_mut(length), self.text) {
            self.text = rest;
            if first.is_ascii_whitespace() {
                continue;
            }
            let value = self.alphabet.value(*first);
            if value == NO_DIGIT {
                self.text = &[];
                break;
            }
            self.bits = self.bits << self.alphabet.width | u32::from(value);
            self.held += self.alphabet.width;
            if self.held >= 8 {
                self.held -= 8;
                *place = (self.bits >> self.held) as u8;
                length += 1;
            }
        }
        Ok(length)
    }
}

const fn hex_digit(byte: u8) -> Option<u8> {
    match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        b'A'..=b'F' => Some(byte - b'A' + 10),
        _ => None,
    }
}

const fn base32_digit(byte: u8) -> Option<u8> {
    match byte.to_ascii_uppercase() {
        b @ b'A'..=b'Z' => Some(b - b'A'),
        b @ b'2'..=b'7' => Some(b - b'2' + 26),
        _ => None,
    }
}

const fn base64_digit(byte: u8) -> Option<u8> {
    Some(match byte {
        b'A'..=b'Z' => byte - b'A',
        b'a'..=b'z' => byte - b'a' + 26,
        b'0'..=b'9' => byte - b'0' + 52,
        b'+' | b'-' => 62,
        b'/' | b'_' => 63,
        _ => return None,
    })
}

pub(super) fn hex_byte(digits: &[u8]) -> Option<u8> {
    let digit = |at: usize| digits.get(at).and_then(|b| hex_digit(*b));
    Some(digit(0)? * 16 + digit(1)?)
}
