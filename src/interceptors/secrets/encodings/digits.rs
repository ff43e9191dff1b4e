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
    digit: fn(u8) -> Option<u8>,
}

pub(super) const ALPHABETS: [Alphabet; 4] = [
    Alphabet { class: HEX, width: 4, group: 2, digit: hex_digit },
    Alphabet { class: BASE32, width: 5, group: 8, digit: base32_digit },
    Alphabet { class: LOWER_BASE32, width: 5, group: 8, digit: base32_digit },
    Alphabet { class: BASE64, width: 6, group: 4, digit: base64_digit },
];

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
            let Some(value) = (self.alphabet.digit)(*first) else {
                self.text = &[];
                break;
            };
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

pub(super) fn hex_digit(byte: u8) -> Option<u8> {
    char::from(byte).to_digit(16).and_then(|value| u8::try_from(value).ok())
}

pub(super) fn base32_digit(byte: u8) -> Option<u8> {
    match byte.to_ascii_uppercase() {
        b @ b'A'..=b'Z' => Some(b - b'A'),
        b @ b'2'..=b'7' => Some(b - b'2' + 26),
        _ => None,
    }
}

pub(super) fn base64_digit(byte: u8) -> Option<u8> {
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
    let digit = |at: usize| digits.get(at).and_then(|b| (*b as char).to_digit(16));
    u8::try_from(digit(0)? * 16 + digit(1)?).ok()
}

/// Bytes of a text whose characters are digits of `width` bits. Unlike a strict decoder, accepts
/// both alphabets of base64 in one text, and bits after the last byte.
pub(super) fn bits(text: &[u8], width: u32, digit: impl Fn(u8) -> Option<u8>) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    let (mut bits, mut held) = (0_u32, 0_u32);
    for &byte in text {
        let Some(value) = digit(byte) else { break };
        bits = bits << width | u32::from(value);
        held += width;
        if held >= 8 {
            held -= 8;
            out.push((bits >> held) as u8);
        }
    }
    out
}
