//! Where personal data is in a text. What has a checksum must fit it; what has none must be written as
//! people write it.

use std::{net::IpAddr, ops::Range};

use iban::Iban;
use memchr::memchr_iter;
use serde::Deserialize;

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    Email,
    Iban,
    Card,
    Phone,
    Ip,
}

impl Kind {
    pub fn name(self) -> &'static str {
        match self {
            Self::Email => "email",
            Self::Iban => "iban",
            Self::Card => "card",
            Self::Phone => "phone",
            Self::Ip => "ip",
        }
    }
}

type Place = Range<usize>;

/// All that is in the text of these kinds, in order, none within another.
pub fn all(text: &str, kinds: &[Kind]) -> Vec<(Place, Kind)> {
    let mut found = Vec::new();
    for &kind in kinds {
        let places = match kind {
            Kind::Email => emails(text),
            Kind::Iban => ibans(text),
            Kind::Card => cards(text),
            Kind::Phone => phones(text),
            Kind::Ip => ips(text),
        };
        found.extend(places.into_iter().map(|place| (place, kind)));
    }
    // Of two that overlap, the one that begins first, then the longer, then the surer counts.
    found.sort_by_key(|(place, kind)| (place.start, usize::MAX - place.end, *kind));
    let mut done = 0;
    found.retain(|(place, _)| {
        let apart = place.start >= done;
        if apart {
            done = place.end;
        }
        apart
    });
    found
}

/// `name@host.tld`
fn emails(text: &str) -> Vec<Place> {
    let local = |byte: &u8| byte.is_ascii_alphanumeric() || b"._%+-".contains(byte);
    let host = |byte: &u8| byte.is_ascii_alphanumeric() || b".-".contains(byte);
    let bytes = text.as_bytes();
    let mut found: Vec<Place> = Vec::new();
    for at in memchr_iter(b'@', bytes) {
        let since = found.last().map_or(0, |last| last.end);
        let Some(before) = bytes.get(since..at) else { continue };
        let name = before.iter().rev().take_while(|byte| local(byte)).count();
        let after = &text[at + 1..];
        let domain = after.bytes().take_while(host).count();
        let domain = after[..domain].trim_end_matches(['.', '-']);
        if name > 0 && domain.contains('.') {
            found.push(at - name..at + 1 + domain.len());
        }
    }
    found
}

/// Two letters, two digits and what their country's format asks for, in groups of four or none.
fn ibans(text: &str) -> Vec<Place> {
    let bytes = text.as_bytes();
    let mut found: Vec<Place> = Vec::new();
    for start in words(bytes) {
        let head = bytes.get(start..start + 4);
        let is_head = head.is_some_and(|head| {
            head[..2].iter().all(u8::is_ascii_uppercase) && head[2..].iter().all(u8::is_ascii_digit)
        });
        if !is_head || found.last().is_some_and(|last| start < last.end) {
            continue;
        }
        // Every end of a word within reach could be its end: the last that fits is.
        let (mut plain, mut end) = (String::new(), None);
        for (at, &byte) in bytes.iter().enumerate().skip(start) {
            match byte {
                b' ' if bytes.get(at + 1).is_some_and(u8::is_ascii_alphanumeric) => continue,
                byte if byte.is_ascii_alphanumeric() && plain.len() < 34 => plain.push(byte.into()),
                _ => break,
            }
            if ends(bytes, at + 1) && plain.parse::<Iban>().is_ok() {
                end = Some(at + 1);
            }
        }
        found.extend(end.map(|end| start..end));
    }
    found
}

/// 13 to 19 digits that fit Luhn's checksum, with a blank or a dash between groups.
fn cards(text: &str) -> Vec<Place> {
    let bytes = text.as_bytes();
    let mut found: Vec<Place> = Vec::new();
    for start in words(bytes) {
        // Networks number from 2 to 6.
        if !(b'2'..=b'6').contains(&bytes[start])
            || found.last().is_some_and(|last| start < last.end)
        {
            continue;
        }
        let (mut digits, mut end) = (Vec::with_capacity(19), None);
        for (at, &byte) in bytes.iter().enumerate().skip(start) {
            match byte {
                b' ' | b'-' if bytes.get(at + 1).is_some_and(u8::is_ascii_digit) => continue,
                byte if byte.is_ascii_digit() && digits.len() < 19 => digits.push(byte - b'0'),
                _ => break,
            }
            if digits.len() >= 13 && ends(bytes, at + 1) && luhn(&digits) {
                end = Some(at + 1);
            }
        }
        found.extend(end.map(|end| start..end));
    }
    found
}

fn luhn(digits: &[u8]) -> bool {
    let sum: u32 = (digits.iter().rev().enumerate())
        .map(|(place, &digit)| match (place % 2, u32::from(digit)) {
            (1, digit @ 5..) => digit * 2 - 9,
            (1, digit) => digit * 2,
            (_, digit) => digit,
        })
        .sum();
    sum.is_multiple_of(10)
}

/// `+` and 8 to 15 digits, or three, three and four digits, as in North America.
fn phones(text: &str) -> Vec<Place> {
    let bytes = text.as_bytes();
    let mut found: Vec<Place> = Vec::new();
    for plus in memchr_iter(b'+', bytes) {
        if plus > 0 && bytes[plus - 1].is_ascii_alphanumeric() {
            continue;
        }
        let (mut digits, mut end) = (0, plus);
        for (at, &byte) in bytes.iter().enumerate().skip(plus + 1) {
            match byte {
                b'0'..=b'9' if digits < 16 => (digits, end) = (digits + 1, at + 1),
                // No more than two marks between digits: `(0) 30`.
                b' ' | b'-' | b'.' | b'/' | b'(' | b')' if at < end + 2 && digits > 0 => {}
                _ => break,
            }
        }
        if (8..=15).contains(&digits) && ends(bytes, end) {
            found.push(plus..end);
        }
    }
    for start in words(bytes) {
        let Some(number) = bytes.get(start..start + 12) else { continue };
        let is_mark = |byte: u8| matches!(byte, b'-' | b'.' | b' ');
        let fits = number.iter().enumerate().all(|(at, &byte)| match at {
            3 | 7 => is_mark(byte) && byte == number[3],
            _ => byte.is_ascii_digit(),
        });
        if fits && ends(bytes, start + 12) {
            found.push(start..start + 12);
        }
    }
    found
}

/// Addresses of the internet, both versions.
fn ips(text: &str) -> Vec<Place> {
    let bytes = text.as_bytes();
    let part = |byte: &u8| byte.is_ascii_hexdigit() || b".:".contains(byte);
    let mut found: Vec<Place> = Vec::new();
    let mut at = 0;
    while at < bytes.len() {
        let run = bytes[at..].iter().take_while(|byte| part(byte)).count();
        let word = text[at..at + run].trim_end_matches(['.', ':']);
        let alone = at == 0 || !bytes[at - 1].is_ascii_alphanumeric();
        // `dead::beef` is rather a name in a program.
        let has_digit = word.bytes().any(|byte| byte.is_ascii_digit());
        if has_digit && alone && ends(bytes, at + word.len()) {
            // A port may follow: `127.0.0.1:80`.
            let host = match word.split_once(':') {
                Some((host, port)) if !port.contains(':') => host,
                _ => word,
            };
            if host.parse::<IpAddr>().is_ok() {
                found.push(at..at + host.len());
            }
        }
        at += run.max(1);
        while at < bytes.len() && !text.is_char_boundary(at) {
            at += 1;
        }
    }
    found
}

/// Where words begin.
fn words(bytes: &[u8]) -> impl Iterator<Item = usize> {
    let mut inside = false;
    bytes.iter().enumerate().filter_map(move |(at, byte)| {
        let begins = byte.is_ascii_alphanumeric() && !inside;
        inside = byte.is_ascii_alphanumeric() || !byte.is_ascii();
        begins.then_some(at)
    })
}

/// No word goes on here.
fn ends(bytes: &[u8], at: usize) -> bool {
    bytes.get(at).is_none_or(|byte| !byte.is_ascii_alphanumeric())
}
