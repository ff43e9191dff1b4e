//! Literals of filters.

use std::{borrow::Cow, fmt, net::IpAddr};

use jiff::{
    Span, Timestamp, ToSpan as _, Zoned,
    civil::{Date, DateTime},
};
use regex::{Regex, RegexBuilder};

/// Reserved words.
const WORDS: &[&str] = &["and", "or", "not", "in", "has", "contains", "ago"];
/// Maximum bytes of a compiled pattern.
const PATTERN: usize = 1 << 20;

/// Whether a character can be in an unquoted value.
pub(super) fn is_bare(c: char) -> bool {
    !(c.is_whitespace()
        || c.is_control()
        || matches!(c, '(' | ')' | '"' | '\'' | ',' | '=' | '!' | '<' | '>' | '~'))
}

/// Whether the text is a reserved word. Ignores case.
pub(super) fn is_word(text: &str) -> bool {
    WORDS.iter().any(|word| word.eq_ignore_ascii_case(text))
}

/// Literal of a value, with quotes if necessary.
pub(super) fn quoted(text: &str) -> Cow<'_, str> {
    if !text.is_empty() && !is_word(text) && text.chars().all(is_bare) && text.is_ascii() {
        return text.into();
    }
    let mut quoted = String::with_capacity(text.len() + 2);
    quoted.push('"');
    for c in text.chars() {
        match c {
            '\'' => quoted.push(c),
            c => quoted.extend(c.escape_debug()),
        }
    }
    quoted.push('"');
    quoted.into()
}

/// Pattern for texts or parts of texts.
#[derive(Debug, Clone)]
pub(in crate::query) struct Pattern {
    text: String,
    regex: Regex,
}

impl PartialEq for Pattern {
    fn eq(&self, other: &Self) -> bool {
        self.regex.as_str() == other.regex.as_str()
    }
}

impl Pattern {
    /// Pattern for the whole text. `*` stands for any characters and `?` for one.
    pub fn glob(text: &str) -> Option<Self> {
        let mut pattern = String::from(r"\A");
        let mut literal = String::new();
        for c in text.chars() {
            let any = match c {
                '*' => ".*",
                '?' => ".",
                c => {
                    literal.push(c);
                    continue;
                }
            };
            pattern.push_str(&regex::escape(&std::mem::take(&mut literal)));
            pattern.push_str(any);
        }
        pattern.push_str(&regex::escape(&literal));
        pattern.push_str(r"\z");
        Self::compile(text, &pattern, false)
    }

    /// Pattern for this text anywhere. Ignores case.
    pub fn part(text: &str) -> Option<Self> {
        Self::compile(text, &regex::escape(text), true)
    }

    fn compile(text: &str, pattern: &str, any_case: bool) -> Option<Self> {
        let mut builder = RegexBuilder::new(pattern);
        builder.dot_matches_new_line(true).case_insensitive(any_case).size_limit(PATTERN);
        Some(Self { text: text.to_owned(), regex: builder.build().ok()? })
    }

    /// Text of the pattern as written.
    pub fn text(&self) -> &str {
        &self.text
    }

    pub fn fits(&self, text: &str) -> bool {
        self.regex.is_match(text)
    }
}

/// A time or a day.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TimeLiteral {
    At(Timestamp),
    Day { begin: Timestamp, end: Timestamp },
}

/// Parses a time: `24h ago`, `2026-11-21`, `2026-11-21T08:00`, `2026-11-21T08:00:00Z`, `today`.
pub(super) fn time_literal(text: &str, now: &Zoned) -> Option<TimeLiteral> {
    let lower = text.to_ascii_lowercase();
    if let Some(ago) = lower.strip_suffix("ago").map(str::trim_end) {
        let ago: Span = ago.parse().ok()?;
        return Some(TimeLiteral::At(now.checked_sub(ago.abs()).ok()?.timestamp()));
    }
    match lower.as_str() {
        "now" => return Some(TimeLiteral::At(now.timestamp())),
        "today" => return day(now.date(), now),
        "yesterday" => return day(now.date().yesterday().ok()?, now),
        _ => {}
    }
    if let Ok(time) = text.parse::<Timestamp>() {
        return Some(TimeLiteral::At(time));
    }
    // A longer text is not a day: jiff would ignore its time.
    if text.len() == 10
        && let Ok(date) = text.parse::<Date>()
    {
        return day(date, now);
    }
    let local: DateTime = text.parse().ok()?;
    Some(TimeLiteral::At(local.to_zoned(now.time_zone().clone()).ok()?.timestamp()))
}

fn day(date: Date, now: &Zoned) -> Option<TimeLiteral> {
    let begin = date.to_zoned(now.time_zone().clone()).ok()?;
    let end = begin.checked_add(1.day()).ok()?;
    Some(TimeLiteral::Day { begin: begin.timestamp(), end: end.timestamp() })
}

/// Parses a number with a unit: `1.5s`.
fn number(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let digits = text.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let (_, factor) = units.iter().find(|(name, _)| name.eq_ignore_ascii_case(unit.trim()))?;
    let (whole, part) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() || part.len() > 6 || (part.is_empty() && number.contains('.')) {
        return None;
    }
    let part = match part {
        "" => 0_u128,
        digits => {
            let tens = 10_u64.pow(u32::try_from(digits.len()).ok()?);
            u128::from(digits.parse::<u64>().ok()?) * u128::from(*factor) / u128::from(tens)
        }
    };
    let whole = u128::from(whole.parse::<u64>().ok()?) * u128::from(*factor);
    u64::try_from(whole.checked_add(part)?).ok()
}

/// Parses a duration such as `200ms` into microseconds.
pub(super) fn duration(text: &str) -> Option<u64> {
    const UNITS: &[(&str, u64)] = &[
        ("us", 1),
        ("µs", 1),
        ("ms", 1000),
        ("s", 1_000_000),
        ("m", 60_000_000),
        ("min", 60_000_000),
        ("h", 3_600_000_000),
    ];
    number(text, UNITS)
}

/// Literal of a duration in microseconds.
pub(super) fn micros(micros: u64) -> String {
    match micros {
        whole if whole.is_multiple_of(1_000_000) => format!("{}s", whole / 1_000_000),
        whole if whole.is_multiple_of(1000) => format!("{}ms", whole / 1000),
        micros => format!("{micros}us"),
    }
}

/// Parses a size: `64KiB`.
pub(super) fn bytes(text: &str) -> Option<u64> {
    const UNITS: &[(&str, u64)] = &[
        ("", 1),
        ("b", 1),
        ("kb", 1000),
        ("k", 1000),
        ("mb", 1_000_000),
        ("gb", 1_000_000_000),
        ("kib", 1 << 10),
        ("mib", 1 << 20),
        ("gib", 1 << 30),
    ];
    number(text, UNITS)
}

/// Address, or network of all addresses with the same prefix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::query) struct Network {
    pub address: IpAddr,
    pub bits: u8,
}

impl Network {
    /// Whether an address is in the network. IPv4-mapped IPv6 addresses count as IPv4.
    pub fn has(&self, other: IpAddr) -> bool {
        let shift = |all: u32| all.saturating_sub(u32::from(self.bits));
        match (self.address, other.to_canonical()) {
            (IpAddr::V4(mine), IpAddr::V4(other)) => {
                let differ = mine.to_bits() ^ other.to_bits();
                differ.checked_shr(shift(32)).unwrap_or(0) == 0
            }
            (IpAddr::V6(mine), IpAddr::V6(other)) => {
                let differ = mine.to_bits() ^ other.to_bits();
                differ.checked_shr(shift(128)).unwrap_or(0) == 0
            }
            _ => false,
        }
    }

    /// Prefix length of a single address.
    pub fn most_bits(address: IpAddr) -> u8 {
        if address.is_ipv4() { 32 } else { 128 }
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.address.fmt(f)?;
        if self.bits < Self::most_bits(self.address) { write!(f, "/{}", self.bits) } else { Ok(()) }
    }
}

/// Parses an address or a network: `10.0.0.0/8`.
pub(super) fn network(text: &str) -> Option<Network> {
    let (address, bits) = match text.split_once('/') {
        Some((address, bits)) => (address, Some(bits)),
        None => (text, None),
    };
    let address: IpAddr = address.parse().ok()?;
    let most = Network::most_bits(address);
    let bits = match bits {
        Some(bits) => bits.parse().ok().filter(|bits| *bits <= most)?,
        None => most,
    };
    // An IPv4-mapped IPv6 address is compared as IPv4.
    let (address, bits) = match address.to_canonical() {
        plain if plain != address => (plain, bits.checked_sub(96)?),
        same => (same, bits),
    };
    Some(Network { address, bits })
}
