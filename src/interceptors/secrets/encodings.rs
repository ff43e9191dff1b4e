//! Decodes the encoded parts of a text.
//!
//! A [`View`] is a text with parts decoded, and it maps a range of it back to the original text.
//! Two kinds of encodings exist:
//! - A run encodes bytes as a block: base64, base32 and hex, also with gzip, zlib or UTF-16 within.
//!   A hit in it covers the whole run.
//! - A unit encodes one character: `%67`, `&#103;`, `=67`, a fullwidth letter, a homoglyph, a
//!   zero-width space. The view has the whole text, because a secret may be of any length. A hit
//!   covers the units that it touches, and the plain text between them.
//!
//! The caller decodes views again, up to a depth. [`Allowance`] bounds the decoded bytes of a
//! message.

use std::{
    borrow::Cow,
    io::Read,
    ops::Range,
    sync::{LazyLock, OnceLock},
};

use base64::{Engine as _, engine::general_purpose::STANDARD_NO_PAD};
use unicode_normalization::UnicodeNormalization;
use unicode_security::skeleton;

/// Minimum length in bytes of a base64 run: 15 encoded bytes.
const MIN_BASE64_BYTES: usize = 20;
/// Minimum length in bytes of a base32 or hex run.
const MIN_DIGITS_BYTES: usize = 24;
/// Length in bytes from which a base64 run is scanned although it does not look like text.
const LONG_RUN_BYTES: usize = 200;
/// Minimum length in bytes of a line of base64 that continues on the next line.
const MIN_WRAPPED_BYTES: usize = 40;
/// Text between two parts of a view that are not adjacent. No rule matches across it.
const GAP: &[u8] = b"\0\n";

/// Decoded bytes that a message may cost. Every text of the message earns its share when its scan
/// begins, so no text uses up the share of a later one.
#[derive(Default)]
pub(super) struct Allowance {
    left: usize,
    /// Bytes decoded so far.
    pub spent: usize,
}

/// Decoded bytes of a message, in addition to [`DECODED_FACTOR`] times its texts.
const BASE_DECODED_BYTES: usize = 64 << 10;
const DECODED_FACTOR: usize = 6;
/// Decoded bytes for each byte of a text that one run cannot take from the runs behind it.
const RESERVED_FACTOR: usize = 3;
/// Cost in bytes of a decompression, whatever it yields, or [`UNPACK_FACTOR`] times the run if that is
/// less: what a run earns is enough for a short content.
const UNPACK_BYTES: usize = 1 << 10;
const UNPACK_FACTOR: usize = 4;

impl Allowance {
    pub(super) fn new() -> Self {
        Self { left: BASE_DECODED_BYTES, spent: 0 }
    }

    /// Adds the share of a text of the message.
    pub(super) fn earn(&mut self, bytes: usize) {
        self.left = self.left.saturating_add(bytes.saturating_mul(DECODED_FACTOR));
    }

    /// Takes up to `wanted` bytes.
    pub(super) fn take(&mut self, wanted: usize) -> usize {
        let taken = wanted.min(self.left);
        self.left -= taken;
        self.spent += taken;
        taken
    }

    /// How often a text of that size can be decoded.
    pub(super) fn times(&self, bytes: usize) -> usize {
        self.left / bytes.max(1)
    }

    /// Does some work with an equal share of what is left for `parts` such works.
    pub(super) fn share<T>(&mut self, parts: usize, work: impl FnOnce(&mut Self) -> T) -> T {
        let aside = self.left - self.left / parts.max(1);
        self.left -= aside;
        let done = work(self);
        self.left += aside;
        done
    }
}

/// Text with parts decoded.
pub(super) struct View {
    /// UTF-8, unless a run encodes other bytes.
    pub text: Vec<u8>,
    parts: Vec<Part>,
}

/// Part of a view, up to the next part.
struct Part {
    start: usize,
    raw: Range<usize>,
    kind: Kind,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Plain text, as in the original.
    Plain,
    Decoded,
    Gap,
}

impl View {
    /// Whether a range of the view has or touches a decoded part.
    pub(super) fn is_decoded(&self, range: &Range<usize>) -> bool {
        let first = self.parts.partition_point(|part| part.start < range.start).saturating_sub(1);
        let touching = self.parts.get(first..).unwrap_or_default().iter();
        let mut touching = touching.take_while(|part| part.start <= range.end);
        touching.any(|part| part.kind == Kind::Decoded)
    }

    /// Range of the original text that covers a range of the view. `None` if the range spans a gap:
    /// then the original text has no such text.
    pub(super) fn locate(&self, range: &Range<usize>) -> Option<Range<usize>> {
        let first = self.parts.partition_point(|part| part.start <= range.start).checked_sub(1)?;
        let mut covered: Option<Range<usize>> = None;
        for (at, part) in self.parts.iter().enumerate().skip(first) {
            if part.start >= range.end {
                break;
            }
            let end = self.parts.get(at + 1).map_or(self.text.len(), |next| next.start);
            let raw = match part.kind {
                Kind::Gap => return None,
                Kind::Decoded => part.raw.clone(),
                Kind::Plain => {
                    let (from, to) = (range.start.max(part.start), range.end.min(end));
                    part.raw.start + (from - part.start)..part.raw.start + (to - part.start)
                }
            };
            covered = Some(match covered {
                Some(all) => all.start.min(raw.start)..all.end.max(raw.end),
                None => raw,
            });
        }
        covered
    }
}

/// View under construction.
struct Builder<'a> {
    raw: &'a [u8],
    view: View,
    /// Position in the original after the last part.
    at: usize,
}

impl<'a> Builder<'a> {
    fn new(raw: &'a [u8]) -> Self {
        Self { raw, view: View { text: Vec::new(), parts: Vec::new() }, at: 0 }
    }

    fn push(&mut self, raw: Range<usize>, text: &[u8], kind: Kind) {
        self.view.parts.push(Part { start: self.view.text.len(), raw, kind });
        self.view.text.extend_from_slice(text);
    }

    fn plain(&mut self, raw: Range<usize>) {
        if let Some(text) = self.raw.get(raw.clone()).filter(|text| !text.is_empty()) {
            self.push(raw, text, Kind::Plain);
        }
    }

    /// Adds a unit, and the plain text between it and the last one.
    fn unit(&mut self, raw: Range<usize>, text: &[u8]) {
        self.plain(self.at.min(raw.start)..raw.start);
        self.at = raw.end;
        self.push(raw, text, Kind::Decoded);
    }

    /// Adds a run.
    fn run(&mut self, raw: Range<usize>, text: &[u8]) {
        self.push(raw.clone(), text, Kind::Decoded);
        self.push(raw.end..raw.end, GAP, Kind::Gap);
    }

    /// View of runs, if there are any.
    fn runs(self) -> Option<View> {
        (!self.view.parts.is_empty()).then_some(self.view)
    }

    /// View of the whole text, if it has units. It is as long as the text because a secret can be.
    fn units(mut self, left: &mut Allowance) -> Option<View> {
        if self.view.parts.is_empty() {
            return None;
        }
        self.plain(self.at..self.raw.len());
        let length = left.take(self.view.text.len());
        self.view.text.truncate(length);
        Some(self.view)
    }
}

/// Every view of a text, except [`lines`].
pub(super) fn views(text: &[u8], depth: usize, left: &mut Allowance) -> Vec<View> {
    let factor = if depth == 0 { RESERVED_FACTOR } else { 1 };
    let units = [characters, quoted_printable, byte_lists].map(|view| view(text, left));
    units.into_iter().chain([runs(text, factor, left)]).flatten().collect()
}

/// Base64 and hex of a secret that is too short for a run: at each of the three places that its
/// first byte can have in a group, without the digits that it shares with its neighbours.
pub(super) fn encoded(secret: &str) -> Vec<String> {
    if secret.len() > MIN_BASE64_BYTES {
        return Vec::new();
    }
    let hex: String = secret.bytes().map(|byte| format!("{byte:02x}")).collect();
    let mut all = vec![STANDARD_NO_PAD.encode(secret), hex.to_uppercase(), hex];
    for shift in 0..3 {
        let digits = STANDARD_NO_PAD.encode([&vec![0; shift], secret.as_bytes()].concat());
        let whole = (shift + secret.len()) * 8 / 6;
        all.extend(digits.get((shift * 8).div_ceil(6)..whole).map(str::to_owned));
    }
    let url = |text: &String| text.replace('+', "-").replace('/', "_");
    all.extend(all.iter().map(url).collect::<Vec<_>>());
    all.sort_unstable();
    all.dedup();
    all
}

/// Minimum length in bytes of a word that line breaks may divide.
const MIN_DIVIDED_BYTES: usize = 20;

/// View with words joined that a line break divides, also in string literals (`"…" +`), comments
/// and quotations.
pub(super) fn lines(text: &[u8], left: &mut Allowance) -> Option<View> {
    let mut builder = Builder::new(text);
    let mut from = 0;
    for at in memchr::memchr_iter(b'\n', text) {
        let before = end_of_line(text.get(from..at).unwrap_or_default());
        let after = start_of_line(text.get(at + 1..).unwrap_or_default());
        let of_word = |b: &&u8| class(**b) & BASE64 != 0 || matches!(**b, b'.' | b'=' | b'~');
        let limit = MIN_DIVIDED_BYTES;
        let tail = before.iter().rev().take(limit).take_while(of_word).count();
        let head = after.iter().take(limit).take_while(of_word).count();
        if tail > 0 && head > 0 && tail + head >= limit {
            let start = from + before.len();
            from = text.len() - after.len();
            builder.unit(start..from, &[]);
        } else {
            from = at + 1;
        }
    }
    builder.units(left)
}

/// Line without what ends it beside its text: blanks, a sign of continuation, a quote.
fn end_of_line(line: &[u8]) -> &[u8] {
    let line = line.trim_ascii_end();
    let more = |line: &[u8]| line.last().is_some_and(|b| matches!(b, b'"' | b'\'' | b'`' | b' '));
    let line = match line {
        [rest @ .., b'\\'] => rest.trim_ascii_end(),
        [rest @ .., b'+' | b'.'] if more(rest) => rest.trim_ascii_end(),
        _ => line,
    };
    match line {
        [rest @ .., b'"' | b'\'' | b'`'] => rest,
        _ => line,
    }
}

/// Text without what begins its first line beside its words: blanks, a sign of a comment, a
/// quotation or a continuation, a quote.
fn start_of_line(text: &[u8]) -> &[u8] {
    let blanks = |text: &[u8]| text.iter().take_while(|b| matches!(b, b' ' | b'\t')).count();
    let text = text.get(blanks(text)..).unwrap_or_default();
    let sign = text.iter().take(3).take_while(|b| b"#>/*|+.".contains(b)).count();
    let rest = text.get(sign..).unwrap_or_default();
    let text = match blanks(rest) {
        0 => text,
        blanks => rest.get(blanks..).unwrap_or_default(),
    };
    match text {
        [b'"' | b'\'' | b'`', rest @ ..] => rest,
        _ => text,
    }
}

/// Class of a byte in encoded text, as bits.
const BASE64: u8 = 1;
const HEX: u8 = 2;
const BASE32: u8 = 4;
const UPPER: u8 = 8;
const LOWER: u8 = 16;

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
        byte += 1;
    }
    classes
};

fn class(byte: u8) -> u8 {
    CLASSES.get(usize::from(byte)).copied().unwrap_or(0)
}

/// Position of the first byte from `at` that base64 does not have.
fn run_end(text: &[u8], at: usize) -> usize {
    let rest = text.get(at..).unwrap_or_default();
    at + rest.iter().position(|b| class(*b) & BASE64 == 0).unwrap_or(rest.len())
}

/// View of all runs. Looks at every twentieth byte first: text of short words costs little.
/// Each run can be decoded to `factor` times its length, and to a part of what is left beyond that.
fn runs(text: &[u8], factor: usize, left: &mut Allowance) -> Option<View> {
    let mut builder = Builder::new(text);
    let reserved = left.times(text.len()).min(RESERVED_FACTOR);
    let mut from = 0;
    while let Some(&probe) = text.get(from + MIN_BASE64_BYTES - 1) {
        let last = from + MIN_BASE64_BYTES - 1;
        if class(probe) & BASE64 == 0 {
            from = last + 1;
            continue;
        }
        let before = text.get(from..last).unwrap_or_default();
        if let Some(stop) = before.iter().rposition(|b| class(*b) & BASE64 == 0) {
            from += stop + 1;
            continue;
        }
        let mut run = from..run_end(text, last);
        let first = run.len();
        // Lines of one length belong together, and a shorter one after them.
        let mut wrapped = false;
        while first >= MIN_WRAPPED_BYTES
            && let Some(next) = next_line(text, run.end)
        {
            let end = run_end(text, next);
            if end == next || end - next > first {
                break;
            }
            wrapped = true;
            run.end = end;
            if end - next < first {
                break;
            }
        }
        from = run.end;
        while text.get(run.end) == Some(&b'=') && run.end - from < 6 {
            run.end += 1;
        }
        from = run.end;
        // What the runs behind this one need stays.
        let aside = ((text.len() - run.end) * reserved).min(left.left);
        left.left -= aside;
        let raw = text.get(run.clone()).unwrap_or_default();
        let joined: Cow<'_, [u8]> = match wrapped {
            true => raw.iter().copied().filter(|b| !b.is_ascii_whitespace()).collect(),
            false => raw.into(),
        };
        run_of(&joined, |decoded| {
            let decoded = unpack(decoded, &run, factor, left);
            let length = left.take(decoded.len());
            builder.run(run.clone(), decoded.get(..length).unwrap_or_default());
        });
        left.left += aside;
    }
    builder.runs()
}

/// Start of the next line if the text at this position ends a line.
fn next_line(text: &[u8], at: usize) -> Option<usize> {
    let rest = text.get(at..)?;
    let rest = rest.strip_prefix(b"\r").unwrap_or(rest).strip_prefix(b"\n")?;
    Some(text.len() - rest.trim_ascii_start().len())
}

/// Calls `each` with everything that a run may encode.
fn run_of(run: &[u8], mut each: impl FnMut(&[u8])) {
    let body = run.trim_ascii_end();
    let padding = body.iter().rev().take_while(|b| **b == b'=').count();
    let body = body.get(..body.len() - padding).unwrap_or_default();
    let all = |text: &[u8], bit: u8| text.iter().all(|b| class(*b) & bit != 0);
    // Letters in front of hex digits, such as `0x` or a name, can look like one more digit.
    let mut at = 0;
    for digits in body.split(|b| class(*b) & HEX == 0) {
        let shifts = if at == 0 { 0..1 } else { 0..2 };
        at += digits.len() + 1;
        if digits.len() < MIN_DIGITS_BYTES {
            continue;
        }
        for shift in shifts {
            let decoded = bits(digits.get(shift..).unwrap_or_default(), 4, hex_digit);
            if digits.len() >= LONG_RUN_BYTES || is_worth(&decoded) {
                each(&decoded);
            }
        }
        // A digest is not base64.
        if digits.len() == body.len() {
            return;
        }
    }
    if let Some(digits) = body.split(|b| matches!(b, b'-' | b'_' | b'/')).max_by_key(|p| p.len())
        && digits.len() >= MIN_DIGITS_BYTES
        && (all(digits, BASE32) || all_lower_base32(digits))
    {
        each(&bits(digits, 5, |b| match b.to_ascii_uppercase() {
            b @ b'A'..=b'Z' => Some(b - b'A'),
            b @ b'2'..=b'7' => Some(b - b'2' + 26),
            _ => None,
        }));
    }
    let seen = body.iter().fold(0, |seen, b| seen | class(*b));
    if body.len() < MIN_BASE64_BYTES || seen & UPPER == 0 || seen & LOWER == 0 {
        return;
    }
    // Other text in front of the encoded one shifts its groups of four.
    for shift in 0..4 {
        let body = body.get(shift..).unwrap_or_default();
        let is_long = shift == 0 && body.len() >= LONG_RUN_BYTES;
        if !is_long && !sampled(body) {
            continue;
        }
        each(&bits(body, 6, base64_digit));
    }
}

fn hex_digit(byte: u8) -> Option<u8> {
    char::from(byte).to_digit(16).and_then(|value| u8::try_from(value).ok())
}

/// Whether the start, the middle or the end of decoded bytes is text, or they have a known format.
fn is_worth(bytes: &[u8]) -> bool {
    let part = |from: usize| bytes.get(from..bytes.len().min(from + 24)).unwrap_or_default();
    is_packed(bytes)
        || [0, bytes.len() / 2, bytes.len().saturating_sub(24)]
            .into_iter()
            .any(|from| looks_like_text(part(from)))
}

/// Whether the start, the middle or the end of a base64 text decodes to text, or its start to a
/// known format.
fn sampled(body: &[u8]) -> bool {
    let part = |from: usize| {
        let mut bytes = [0; 24];
        let mut length = 0;
        let groups = body.get(from / 4 * 4..).unwrap_or_default().chunks_exact(4).take(8);
        for (group, out) in groups.zip(bytes.chunks_exact_mut(3)) {
            let bits = group
                .iter()
                .fold(0, |bits, b| bits << 6 | u32::from(base64_digit(*b).unwrap_or_default()));
            out.copy_from_slice(bits.to_be_bytes().get(1..).unwrap_or_default());
            length += 3;
        }
        (bytes, length)
    };
    let is_text = |(bytes, length): ([u8; 24], usize)| {
        bytes.get(..length).is_some_and(|bytes| !bytes.is_empty() && looks_like_text(bytes))
    };
    is_packed(&part(0).0)
        || is_text(part(0))
        || is_text(part(body.len() / 2))
        || is_text(part(body.len().saturating_sub(32)))
}

fn is_packed(bytes: &[u8]) -> bool {
    match bytes {
        [0x1f, 0x8b, 8, ..] => true,
        [0x78, flags @ (0x01 | 0x5e | 0x9c | 0xda), ..] => {
            (0x7800 + u32::from(*flags)).is_multiple_of(31)
        }
        [0xff, 0xfe, ..] | [0xfe, 0xff, ..] => true,
        _ => false,
    }
}

/// Whether at least two of three bytes are printable, or every second one is zero.
fn looks_like_text(bytes: &[u8]) -> bool {
    let printable =
        bytes.iter().filter(|b| matches!(b, b' '..=b'~' | b'\n' | b'\r' | b'\t')).count();
    3 * printable >= 2 * bytes.len() || is_utf16(bytes)
}

fn is_utf16(bytes: &[u8]) -> bool {
    let zeros = bytes.iter().filter(|b| **b == 0).count();
    bytes.len() >= 8 && 5 * zeros >= 2 * bytes.len()
}

fn all_lower_base32(text: &[u8]) -> bool {
    text.iter().all(|b| matches!(b, b'a'..=b'z' | b'2'..=b'7'))
        && text.iter().any(u8::is_ascii_digit)
}

fn base64_digit(byte: u8) -> Option<u8> {
    Some(match byte {
        b'A'..=b'Z' => byte - b'A',
        b'a'..=b'z' => byte - b'a' + 26,
        b'0'..=b'9' => byte - b'0' + 52,
        b'+' | b'-' => 62,
        b'/' | b'_' => 63,
        _ => return None,
    })
}

/// Bytes of a text whose characters are digits of `width` bits. Unlike a strict decoder, accepts
/// both alphabets of base64 in one text, and bits after the last byte.
fn bits(text: &[u8], width: u32, digit: impl Fn(u8) -> Option<u8>) -> Vec<u8> {
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

/// Content of gzip, zlib or UTF-16; other bytes as they are. What a broken archive has before its
/// fault counts.
fn unpack<'a>(
    bytes: &'a [u8],
    run: &Range<usize>,
    factor: usize,
    left: &mut Allowance,
) -> Cow<'a, [u8]> {
    let mut out = Vec::new();
    let cost = UNPACK_BYTES.min(UNPACK_FACTOR * run.len());
    if is_packed(bytes) && left.take(cost) < cost {
        return Cow::Borrowed(bytes);
    }
    // A bomb takes a part of what is left, not all.
    let limit = left.left.min(run.len() * factor + left.left / 4) as u64;
    // An error leaves the text before it.
    match bytes {
        [0x1f, 0x8b, ..] if is_packed(bytes) => {
            let _ = flate2::read::MultiGzDecoder::new(bytes).take(limit).read_to_end(&mut out);
        }
        [0x78, ..] if is_packed(bytes) => {
            let _ = flate2::read::ZlibDecoder::new(bytes).take(limit).read_to_end(&mut out);
        }
        _ => {}
    }
    let bytes = if out.is_empty() { Cow::Borrowed(bytes) } else { Cow::Owned(out) };
    match utf16(&bytes) {
        Some(text) => Cow::Owned(text.into_bytes()),
        None => bytes,
    }
}

/// Text of bytes in UTF-16, with a byte order mark or without.
fn utf16(bytes: &[u8]) -> Option<String> {
    let (big, body) = match bytes {
        [0xfe, 0xff, body @ ..] => (true, body),
        [0xff, 0xfe, body @ ..] => (false, body),
        _ => {
            let zeros = bytes.get(..bytes.len().min(64)).filter(|start| is_utf16(start))?;
            (zeros.first() == Some(&0), bytes)
        }
    };
    let units = body.chunks_exact(2).map(|pair| match *pair {
        [a, b] if big => u16::from_be_bytes([a, b]),
        [a, b] => u16::from_le_bytes([a, b]),
        _ => 0,
    });
    Some(char::decode_utf16(units).map(|c| c.unwrap_or(char::REPLACEMENT_CHARACTER)).collect())
}

/// View with percent escapes, HTML entities and characters other than ASCII resolved.
fn characters(text: &[u8], left: &mut Allowance) -> Option<View> {
    let is_plain = text.is_ascii() && memchr::memchr(0, text).is_none();
    let unicode = if is_plain { None } else { std::str::from_utf8(text).ok() };
    let mut builder = Builder::new(text);
    let mut at = 0;
    let mut word = Word::default();
    loop {
        let rest = text.get(at..).unwrap_or_default();
        let next = match unicode {
            None => memchr::memchr2(b'%', b'&', rest),
            Some(_) => {
                rest.iter().position(|b| matches!(b, b'%' | b'&') || *b == 0 || !b.is_ascii())
            }
        };
        let Some(next) = next else { break };
        at += next;
        let rest = rest.get(next..).unwrap_or_default();
        let mut buffer = [0; 4];
        match rest {
            [b'%', digits @ ..] => match hex_byte(digits) {
                Some(byte) => {
                    builder.unit(at..at + 3, &[byte]);
                    at += 3;
                }
                None => at += 1,
            },
            [b'&', ..] => match entity(rest) {
                Some((len, c)) => {
                    builder.unit(at..at + len, c.encode_utf8(&mut buffer).as_bytes());
                    at += len;
                }
                None => at += 1,
            },
            [0, ..] => {
                builder.unit(at..at + 1, &[]);
                at += 1;
            }
            _ => {
                let c = unicode.and_then(|text| text.get(at..)).and_then(|t| t.chars().next());
                let Some(c) = c else { break };
                let end = at + c.len_utf8();
                let counts = |form: &&Form| match form.context {
                    Context::Any => true,
                    Context::Token => is_token_beside(text, at, end),
                    Context::Word => word.has_ascii(text, at),
                };
                if let Some(form) = plain_form(c).filter(counts) {
                    builder.unit(at..end, form.text.as_bytes());
                }
                at = end;
            }
        }
    }
    builder.units(left)
}

/// The last word examined, so that each is examined once.
#[derive(Default)]
struct Word {
    end: usize,
    has_ascii: bool,
}

impl Word {
    /// Whether the word at a position has ASCII letters or digits.
    fn has_ascii(&mut self, text: &[u8], at: usize) -> bool {
        if at >= self.end {
            let is_end = |b: &u8| b.is_ascii() && !b.is_ascii_graphic();
            let (before, after) = text.split_at(at.min(text.len()));
            let before = before.iter().rev().take(64).take_while(|b| !is_end(b));
            let length = after.iter().position(is_end).unwrap_or(after.len());
            let mut word = before.chain(after.get(..length).unwrap_or_default());
            *self = Self { end: at + length, has_ascii: word.any(u8::is_ascii_alphanumeric) };
        }
        self.has_ascii
    }
}

/// Whether an ASCII character or a fullwidth one is before or after a range. Chinese and Japanese
/// sentences have fullwidth punctuation beside other letters.
fn is_token_beside(text: &[u8], start: usize, end: usize) -> bool {
    let is_wide = |bytes: &[u8]| matches!(bytes, [0xef, 0xbc | 0xbd, _]);
    let before = text.get(..start).unwrap_or_default();
    let after = text.get(end..).unwrap_or_default();
    before.last().is_some_and(u8::is_ascii)
        || after.first().is_some_and(u8::is_ascii)
        || before.last_chunk::<3>().is_some_and(|last| is_wide(last))
        || after.first_chunk::<3>().is_some_and(|first| is_wide(first))
}

/// ASCII text that a character is shown as, or nothing for one that is not shown.
struct Form {
    text: Box<str>,
    context: Context,
}

/// Place where a character counts as its plain form.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Context {
    Any,
    /// Beside ASCII or fullwidth characters.
    Token,
    /// In a word with ASCII letters or digits: other words are words of a language.
    Word,
}

/// Number of characters of a [`BLOCKS`] entry.
const BLOCK_CHARS: usize = 256;

/// Plain forms of the characters of a block.
type Block = Box<[Option<Form>]>;

/// Plain forms of each block of characters, computed at the first character of the block. `None`
/// for a block without any.
static BLOCKS: [OnceLock<Option<Block>>; 0x11_0000 / BLOCK_CHARS] =
    [const { OnceLock::new() }; 0x11_0000 / BLOCK_CHARS];

/// Plain form of a character other than ASCII.
fn plain_form(c: char) -> Option<&'static Form> {
    let code = u32::from(c) as usize;
    let block = BLOCKS.get(code / BLOCK_CHARS)?.get_or_init(|| {
        let first = code - code % BLOCK_CHARS;
        let all = (first..first + BLOCK_CHARS)
            .map(|code| u32::try_from(code).ok().and_then(char::from_u32).and_then(computed_form));
        let all: Block = all.collect();
        all.iter().any(Option::is_some).then_some(all)
    });
    block.as_ref()?.get(code % BLOCK_CHARS)?.as_ref()
}

fn computed_form(c: char) -> Option<Form> {
    let form = |text: String, context| Some(Form { text: text.into(), context });
    if is_invisible(c) {
        return form(String::new(), Context::Any);
    }
    if let tag @ 0xe_0020..=0xe_007e = u32::from(c) {
        return form(char::from_u32(tag - 0xe_0000)?.into(), Context::Any);
    }
    // Typographic quotes and dots are in no token, and in much text.
    let counts = |text: &str| {
        text.is_ascii() && text.contains(|c: char| c.is_ascii_alphanumeric() || "_-".contains(c))
    };
    let folded = std::iter::once(c).nfkc().collect::<String>();
    if counts(&folded) {
        return form(folded, Context::Any);
    }
    if matches!(c, '\u{ff01}'..='\u{ff5e}') {
        return form(folded, Context::Token);
    }
    let mut buffer = [0; 4];
    let shown: String = skeleton(c.encode_utf8(&mut buffer)).collect();
    // To Unicode, a capital I and a small L look alike. Tokens distinguish them.
    let shown = if shown == "l" && c.is_uppercase() { "I".to_owned() } else { shown };
    if counts(&shown) { form(shown, Context::Word) } else { None }
}

/// Whether a character takes no room: zero-width characters, soft hyphens, joiners, marks of
/// direction, variation selectors, fillers.
fn is_invisible(c: char) -> bool {
    matches!(
        c,
        '\u{ad}'
            | '\u{34f}'
            | '\u{61c}'
            | '\u{115f}'
            | '\u{1160}'
            | '\u{17b4}'
            | '\u{17b5}'
            | '\u{180b}'..='\u{180f}'
            | '\u{200b}'..='\u{200f}'
            | '\u{202a}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}'
            | '\u{3164}'
            | '\u{fe00}'..='\u{fe0f}'
            | '\u{feff}'
            | '\u{ffa0}'
            | '\u{fff9}'..='\u{fffb}'
            | '\u{1d173}'..='\u{1d17a}'
            | '\u{e0001}'
            | '\u{e007f}'
            | '\u{e0100}'..='\u{e01ef}'
    )
}

fn hex_byte(digits: &[u8]) -> Option<u8> {
    let digit = |at: usize| digits.get(at).and_then(|b| (*b as char).to_digit(16));
    u8::try_from(digit(0)? * 16 + digit(1)?).ok()
}

/// HTML entity at the start of a text: its length, and its character. Numeric ones, and the names
/// of ASCII punctuation.
fn entity(text: &[u8]) -> Option<(usize, char)> {
    const NAMES: [(&str, char); 30] = [
        ("amp", '&'),
        ("lt", '<'),
        ("gt", '>'),
        ("quot", '"'),
        ("apos", '\''),
        ("nbsp", ' '),
        ("lowbar", '_'),
        ("UnderBar", '_'),
        ("hyphen", '-'),
        ("dash", '-'),
        ("shy", '\u{ad}'),
        ("zwnj", '\u{200c}'),
        ("zwj", '\u{200d}'),
        ("colon", ':'),
        ("semi", ';'),
        ("period", '.'),
        ("comma", ','),
        ("sol", '/'),
        ("bsol", '\\'),
        ("plus", '+'),
        ("equals", '='),
        ("commat", '@'),
        ("num", '#'),
        ("percnt", '%'),
        ("dollar", '$'),
        ("excl", '!'),
        ("Tab", '\t'),
        ("NewLine", '\n'),
        ("lpar", '('),
        ("rpar", ')'),
    ];
    // Browsers accept a numeric entity without its semicolon.
    if let Some(number) = text.strip_prefix(b"&#") {
        let (start, radix) = match number.first() {
            Some(b'x' | b'X') => (1, 16),
            _ => (0, 10),
        };
        let digits = number.get(start..)?;
        let length = digits.iter().take(8).take_while(|b| char::from(**b).is_digit(radix)).count();
        let value = std::str::from_utf8(digits.get(..length)?).ok()?;
        let c = char::from_u32(u32::from_str_radix(value, radix).ok()?)?;
        let closed = usize::from(digits.get(length) == Some(&b';'));
        return Some((2 + start + length + closed, c));
    }
    let name = text.get(1..text.len().min(12))?;
    let name = name.get(..memchr::memchr(b';', name)?)?;
    let (_, c) = NAMES.iter().find(|(known, _)| known.as_bytes() == name)?;
    Some((name.len() + 2, *c))
}

/// Bytes in hex with a separator after each: `67 68`, `67:68`, `0x67, 0x68`.
static BYTE_LISTS: LazyLock<Option<regex::bytes::Regex>> = LazyLock::new(|| {
    // Literal: it compiles, as its test shows.
    regex::bytes::RegexBuilder::new(
        r"(?:(?:0[xX])?[0-9A-Fa-f]{2}[ ,:;.\t\r\n-]{1,3}){11,}(?:0[xX])?[0-9A-Fa-f]{2}",
    )
    .unicode(false)
    .build()
    .ok()
});

/// View of all lists of bytes.
fn byte_lists(text: &[u8], left: &mut Allowance) -> Option<View> {
    let mut builder = Builder::new(text);
    for list in BYTE_LISTS.as_ref()?.find_iter(text) {
        let of_digit = |b: &u8| class(*b) & (HEX | UPPER | LOWER) != 0;
        let items = list.as_bytes().split(|b| !of_digit(b)).filter(|item| !item.is_empty());
        let bytes = items.filter_map(|item| hex_byte(item.get(item.len().checked_sub(2)?..)?));
        let decoded: Vec<u8> = bytes.collect();
        if is_worth(&decoded) {
            let length = left.take(decoded.len());
            builder.run(list.range(), decoded.get(..length).unwrap_or_default());
        }
    }
    builder.runs()
}

/// Text that only quoted-printable has.
static QUOTED_PRINTABLE: LazyLock<Option<regex::bytes::Regex>> = LazyLock::new(|| {
    // Literal: it compiles, as its test shows.
    regex::bytes::Regex::new(r"=3D|=[ \t]*\r?\n|(?:=[0-9A-Fa-f]{2}){2}").ok()
});

/// View with quoted-printable decoded.
fn quoted_printable(text: &[u8], left: &mut Allowance) -> Option<View> {
    memchr::memchr(b'=', text)?;
    if !QUOTED_PRINTABLE.as_ref()?.is_match(text) {
        return None;
    }
    let mut builder = Builder::new(text);
    let mut at = 0;
    while let Some(next) = text.get(at..).and_then(|rest| memchr::memchr(b'=', rest)) {
        at += next;
        let rest = text.get(at + 1..).unwrap_or_default();
        let blanks = rest.iter().take(8).take_while(|b| matches!(b, b' ' | b'\t')).count();
        let unit = match (hex_byte(rest), rest.get(blanks..)) {
            (Some(byte), _) => Some((3, vec![byte])),
            (None, Some([b'\r', b'\n', ..])) => Some((blanks + 3, Vec::new())),
            (None, Some([b'\n', ..])) => Some((blanks + 2, Vec::new())),
            _ => None,
        };
        match unit {
            Some((len, value)) => {
                builder.unit(at..at + len, &value);
                at += len;
            }
            None => at += 1,
        }
    }
    builder.units(left)
}
