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
//! The caller decodes views again, up to a depth. [`Allowance`] bounds what archives expand to, and
//! the bytes of all views; what would exceed it is an error. Views are made one after the other, none
//! much longer than [`PART_BYTES`], so that a large message needs little memory.

use std::{
    borrow::Cow,
    cell::Cell,
    io::{self, BufRead, BufReader, Cursor, Read},
    ops::Range,
    sync::LazyLock,
};

use super::scan::{Budget, Spent};
use base64::{Engine as _, engine::general_purpose::STANDARD_NO_PAD};

mod byte_lists;
mod characters;

pub(super) use byte_lists::{MIN_LIST, byte_lists};
use characters::characters;

/// Minimum length in bytes of a base64 run: 15 encoded bytes.
const MIN_BASE64_BYTES: usize = 20;
/// Minimum length in bytes of a base32 or hex run.
const MIN_DIGITS_BYTES: usize = 24;
/// Length in bytes from which a base64 run is scanned although it does not look like text.
const LONG_RUN_BYTES: usize = 200;
/// Minimum length in bytes of a line of base64 that continues on the next line.
const MIN_WRAPPED_BYTES: usize = 40;
/// Text between two parts of a view that are not adjacent. No rule matches across it. It is no unit
/// itself, such as a zero byte: that would make another view of each.
const GAP: &[u8] = b"\x01\n";
/// Maximum length in bytes of a text that is scanned at once. A longer one is scanned in parts.
pub(super) const PART_BYTES: usize = 512 << 10;
/// Bytes that a part has in common with the next one.
pub(super) const OVERLAP_BYTES: usize = 64 << 10;
/// Minimum length in bytes of a text among other decoded bytes.
const MIN_TEXT_BYTES: usize = 8;
/// Limit in bytes of a name in front of a run.
const MAX_NAME_BYTES: usize = 80;
/// Limit in bytes of a decoded text that can be the value of a name in front of it.
const MAX_NAMED_BYTES: usize = 256;
/// Limit of archives within each other.
const MAX_ARCHIVES: usize = 3;

/// Decoded bytes that a message may cost. Every text of the message earns its share when its scan
/// begins.
pub(super) struct Allowance {
    /// Bytes that archives may yield: only they can expand without end.
    inflated: usize,
    /// Bytes of views and of their layers. An ordinary text has some of each kind, and these of
    /// each other.
    viewed: usize,
}

/// Bytes that the archives of a message may yield, in addition to [`INFLATED_FACTOR`] times its
/// texts.
const BASE_INFLATED_BYTES: usize = 256 << 10;
const INFLATED_FACTOR: usize = 16;
/// The same for views.
pub(super) const BASE_VIEWED_BYTES: usize = 1 << 20;
pub(super) const VIEWED_FACTOR: usize = 64;
/// Cost in bytes of opening an archive, whatever it yields.
const UNPACK_BYTES: usize = 1 << 10;

impl Allowance {
    pub(super) fn new() -> Self {
        Self { inflated: BASE_INFLATED_BYTES, viewed: BASE_VIEWED_BYTES }
    }

    /// Adds the share of a text of the message.
    pub(super) fn earn(&mut self, bytes: usize) {
        let add = |left: &mut usize, factor| {
            *left = left.saturating_add(bytes.saturating_mul(factor));
        };
        add(&mut self.inflated, INFLATED_FACTOR);
        add(&mut self.viewed, VIEWED_FACTOR);
    }

    /// Takes the bytes of a view.
    pub(super) fn take(&mut self, bytes: usize) -> Result<(), Spent> {
        self.viewed = self.viewed.checked_sub(bytes).ok_or(Spent)?;
        Ok(())
    }
}

/// Text with parts decoded.
#[derive(Default)]
pub(super) struct View {
    /// UTF-8, unless units encode other bytes.
    pub text: Vec<u8>,
    /// Whether lines were joined.
    pub is_joined: bool,
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

    /// Whether the view leaves out text from this position of the original.
    pub(super) fn has_break(&self, at: usize) -> bool {
        let first = self.parts.partition_point(|part| part.raw.start < at);
        self.parts.get(first).is_some_and(|part| part.raw.start == at && part.kind == Kind::Decoded)
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
        Self { raw, view: View::default(), at: 0 }
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

    /// View of the whole text, if it has units. It is as long as the text because a secret can be.
    fn units(mut self) -> Option<View> {
        if self.view.parts.is_empty() {
            return None;
        }
        self.plain(self.at..self.raw.len());
        Some(self.view)
    }
}

/// Function for each view.
pub(super) type Each<'a> = dyn FnMut(&View, &mut Budget) -> Result<(), Spent> + 'a;

/// Views to make of a text.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Of {
    All,
    /// Runs of digits. Of joined lines, only these are new.
    Runs,
}

/// Makes the views of a text. Views of joined lines come last.
pub(super) fn views(
    text: &[u8],
    of: Of,
    budget: &mut Budget,
    each: &mut Each<'_>,
) -> Result<(), Spent> {
    runs(text, budget, each)?;
    if of == Of::Runs {
        return Ok(());
    }
    byte_lists(text, budget, each)?;
    for make in [characters, quoted_printable, lines] {
        if let Some(view) = make(text) {
            each(&view, budget)?;
        }
    }
    Ok(())
}

/// Base64 and hex of a secret that is too short for a run, or does not look like text in one: at
/// each of the three places that its first byte can have in a group, without the digits that it
/// shares with its neighbours.
pub(super) fn encoded(secret: &str) -> Vec<String> {
    if secret.len() > MIN_BASE64_BYTES && secret.is_ascii() {
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
fn lines(text: &[u8]) -> Option<View> {
    let mut builder = Builder::new(text);
    builder.view.is_joined = true;
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
    builder.units()
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
const LOWER_BASE32: u8 = 32;
const BLANK: u8 = 64;

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

fn class(byte: u8) -> u8 {
    CLASSES.get(usize::from(byte)).copied().unwrap_or(0)
}

/// Position of the first byte of the run that ends before `at`, at or behind `from`.
pub(super) fn run_start(text: &[u8], from: usize, at: usize) -> usize {
    let before = text.get(from..at).unwrap_or_default();
    from + before.iter().rposition(|b| class(*b) & BASE64 == 0).map_or(0, |last| last + 1)
}

/// Position of the first byte from `at` that base64 does not have.
fn run_end(text: &[u8], at: usize) -> usize {
    let rest = text.get(at..).unwrap_or_default();
    at + rest.iter().position(|b| class(*b) & BASE64 == 0).unwrap_or(rest.len())
}

/// Finds the next range from a position of at least `least` bytes of these classes. Looks at every
/// byte at that distance first: text of short words costs little.
fn next_of(text: &[u8], mut from: usize, classes: u8, least: usize) -> Option<Range<usize>> {
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

/// Finds the next run from a position.
fn next_run(text: &[u8], from: usize) -> Option<Range<usize>> {
    let mut run = next_of(text, from, BASE64, MIN_BASE64_BYTES)?;
    let first = run.len();
    // Lines of one length belong together, and a shorter one after them.
    while first >= MIN_WRAPPED_BYTES
        && let Some(next) = next_line(text, run.end)
    {
        let end = run_end(text, next);
        if end == next || end - next > first {
            break;
        }
        run.end = end;
        if end - next < first {
            break;
        }
    }
    let padding = text.get(run.end..).unwrap_or_default().iter().take(6);
    run.end += padding.take_while(|b| **b == b'=').count();
    Some(run)
}

/// Ranges of a run that may be encoded each: all of it, and the parts between lines of different
/// alphabets and before each archive.
fn pieces(text: &[u8], run: &Range<usize>) -> Vec<Range<usize>> {
    let body = text.get(run.clone()).unwrap_or_default();
    let mut cuts: Vec<usize> = memchr::memmem::find_iter(body, GZIP_IN_BASE64).collect();
    if cuts.iter().all(|cut| *cut == 0) && memchr::memchr(b'\n', body).is_none() {
        return vec![run.clone()];
    }
    let mut at = 0;
    let mut last = None;
    for line in body.split_inclusive(|b| *b == b'\n') {
        let digits = line.trim_ascii();
        let kind =
            [HEX, BASE32].into_iter().find(|bit| digits.iter().all(|b| class(*b) & bit != 0));
        let head = bits(digits.get(..4).unwrap_or_default(), 6, base64_digit);
        if at > 0 && (last != Some(kind) || is_archive(&head)) {
            cuts.push(at);
        }
        last = Some(kind);
        at += line.len();
    }
    cuts.sort_unstable();
    cuts.dedup();
    cuts.retain(|cut| *cut > 0);
    let mut all = vec![run.clone()];
    if cuts.is_empty() {
        return all;
    }
    let mut start = 0;
    for end in cuts.into_iter().chain([body.len()]) {
        if end - start >= MIN_BASE64_BYTES {
            all.push(run.start + start..run.start + end);
        }
        start = end;
    }
    all
}

/// First bytes of a gzip archive in base64.
const GZIP_IN_BASE64: &[u8] = b"H4sI";

/// Name in front of a run that is its value, such as `"api-key": "`; otherwise empty.
fn name_of(text: &[u8], at: usize) -> Range<usize> {
    let before = text.get(at.saturating_sub(MAX_NAME_BYTES)..at).unwrap_or_default();
    let is_between = |b: &u8| matches!(b, b' ' | b'\t' | b'"' | b'\'' | b'\\');
    let name = before.iter().rposition(|b| !is_between(b));
    if !name.is_some_and(|last| matches!(before.get(last), Some(b':' | b'='))) {
        return at..at;
    }
    let is_end = |b: &u8| matches!(b, b'\n' | b'\r' | b',' | b';' | b'{' | b'&');
    let start = before.iter().rposition(is_end).map_or(0, |end| end + 1);
    at - (before.len() - start)..at
}

/// Views of runs under construction.
struct Runs<'a, 'b> {
    builder: Builder<'a>,
    budget: &'b mut Budget,
    each: &'b mut Each<'b>,
}

/// Makes the views of all runs.
pub(super) fn runs<'a>(
    text: &[u8],
    budget: &'a mut Budget,
    each: &'a mut Each<'a>,
) -> Result<(), Spent> {
    let mut runs = Runs { builder: Builder::new(text), budget, each };
    let mut from = 0;
    while let Some(run) = next_run(text, from) {
        from = run.end;
        for piece in pieces(text, &run) {
            let raw = text.get(piece.clone()).unwrap_or_default();
            let joined: Cow<'_, [u8]> = match memchr::memchr(b'\n', raw) {
                Some(_) => raw.iter().copied().filter(|b| !b.is_ascii_whitespace()).collect(),
                None => raw.into(),
            };
            run_of(&joined, &mut |decoded| runs.add(&piece, decoded))?;
        }
    }
    runs.flush()
}

/// Makes the views of archives in runs of which each of these parts of the text has only a piece.
pub(super) fn long_archives<'a>(
    text: &[u8],
    parts: &[Range<usize>],
    budget: &'a mut Budget,
    each: &'a mut Each<'a>,
) -> Result<(), Spent> {
    let mut runs = Runs { builder: Builder::new(text), budget, each };
    let mut from = 0;
    while let Some(run) = next_run(text, from) {
        from = run.end;
        let first = parts.get(parts.partition_point(|part| part.end < run.end));
        if first.is_some_and(|part| part.start <= run.start) {
            continue;
        }
        for piece in pieces(text, &run).into_iter().filter(|piece| piece.len() > OVERLAP_BYTES) {
            for alphabet in &ALPHABETS {
                runs.long_archives_in(&piece, alphabet)?;
            }
        }
    }
    runs.flush()
}

/// An encoding of bytes as digits.
struct Alphabet {
    class: u8,
    /// Bits of a digit.
    width: u32,
    /// Digits of a group, which begins with the first bit of a byte.
    group: usize,
    digit: fn(u8) -> Option<u8>,
}

const ALPHABETS: [Alphabet; 4] = [
    Alphabet { class: HEX, width: 4, group: 2, digit: hex_digit },
    Alphabet { class: BASE32, width: 5, group: 8, digit: base32_digit },
    Alphabet { class: LOWER_BASE32, width: 5, group: 8, digit: base32_digit },
    Alphabet { class: BASE64, width: 6, group: 4, digit: base64_digit },
];

/// Reader of the bytes that digits encode, in lines or not.
#[derive(Clone)]
struct Digits<'a> {
    text: &'a [u8],
    alphabet: &'a Alphabet,
    bits: u32,
    held: u32,
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

impl Runs<'_, '_> {
    /// Adds the bytes that a range encodes.
    fn add(&mut self, raw: &Range<usize>, bytes: &[u8]) -> Result<(), Spent> {
        if is_archive(bytes) {
            self.inflate(raw, bytes)?;
        }
        // Text can follow an archive.
        self.texts(raw, bytes)
    }

    /// Adds the content of long archives in an encoding. Other text in front of one shifts its
    /// groups of digits.
    fn long_archives_in(&mut self, piece: &Range<usize>, alphabet: &Alphabet) -> Result<(), Spent> {
        let raw = self.builder.raw.get(piece.clone()).unwrap_or_default();
        let mut from = 0;
        while let Some(text) = next_of(raw, from, alphabet.class | BLANK, OVERLAP_BYTES + 1) {
            from = text.end;
            for shift in 0..alphabet.group {
                let text = raw.get(text.start + shift..text.end).unwrap_or_default();
                let digits = Digits { text, alphabet, bits: 0, held: 0 };
                let mut head = [0; 3];
                if digits.clone().read_exact(&mut head).is_ok() && is_archive(&head) {
                    self.inflate(piece, digits)?;
                }
            }
        }
        Ok(())
    }

    /// Adds the texts among decoded bytes.
    fn texts(&mut self, raw: &Range<usize>, bytes: &[u8]) -> Result<(), Spent> {
        let name = match bytes.len() {
            ..=MAX_NAMED_BYTES => name_of(self.builder.raw, raw.start),
            _ => raw.start..raw.start,
        };
        // Other bytes can have zeros in front, too.
        if let Some(text) = utf16(bytes) {
            self.push(raw, name.clone(), text.as_bytes())?;
        }
        if std::str::from_utf8(bytes).is_ok() {
            return self.push(raw, name, bytes);
        }
        for chunk in bytes.utf8_chunks() {
            // Pictures and programs have few texts: looking at these alone keeps their cost low.
            let is_other =
                |c: char| c.is_ascii_control() && !matches!(c, '\0' | '\t' | '\n' | '\r');
            for text in chunk.valid().split(is_other).filter(|text| text.len() >= MIN_TEXT_BYTES) {
                self.push(raw, raw.start..raw.start, text.as_bytes())?;
            }
        }
        Ok(())
    }

    fn push(&mut self, raw: &Range<usize>, name: Range<usize>, text: &[u8]) -> Result<(), Spent> {
        self.builder.plain(name);
        self.builder.run(raw.clone(), text);
        if self.builder.view.text.len() >= PART_BYTES { self.flush() } else { Ok(()) }
    }

    /// Hands out the view so far.
    fn flush(&mut self) -> Result<(), Spent> {
        let view = std::mem::take(&mut self.builder.view);
        if view.parts.is_empty() { Ok(()) } else { (self.each)(&view, self.budget) }
    }

    /// Adds the content of an archive, then that of the archive that it begins with, and so on. The
    /// content of the outer one counts too: its text can begin like an archive, or follow one.
    fn inflate(&mut self, raw: &Range<usize>, packed: impl Read + Clone) -> Result<(), Spent> {
        for archives in 1..=MAX_ARCHIVES {
            if !self.unpack(raw, BufReader::new(packed.clone()), archives)? {
                break;
            }
        }
        Ok(())
    }

    /// Adds the content of the last of this many archives within each other. What a broken archive
    /// has before its fault counts. Returns false if there are fewer archives.
    fn unpack(
        &mut self,
        raw: &Range<usize>,
        packed: impl BufRead,
        archives: usize,
    ) -> Result<bool, Spent> {
        let left = Cell::new(self.budget.decoded.inflated);
        let (mut content, missing) = open(Box::new(packed), &left, archives);
        if missing > 0 {
            self.budget.decoded.inflated = left.get();
            return if left.get() == 0 { Err(Spent) } else { Ok(false) };
        }
        let mut part = Vec::new();
        loop {
            let old = part.len();
            let wanted = PART_BYTES - old;
            // A fault leaves the bytes before it.
            let _ = content.by_ref().take(wanted as u64).read_to_end(&mut part);
            let new = part.len() - old;
            self.budget.decoded.inflated = left.get();
            if left.get() == 0 {
                return Err(Spent);
            }
            if new > 0 {
                self.texts(raw, &part)?;
            }
            if new < wanted {
                return Ok(true);
            }
            part.drain(..part.len() - OVERLAP_BYTES);
            self.flush()?;
            left.set(self.budget.decoded.inflated);
        }
    }
}

/// Reader that takes what it reads from a counter. At its end, it fails.
struct Metered<'a, R> {
    inner: R,
    left: &'a Cell<usize>,
}

impl<R: Read> Read for Metered<'_, R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let length = self.inner.read(out)?;
        let left = self.left.get().saturating_sub(length);
        self.left.set(left);
        if left > 0 || length == 0 { Ok(length) } else { Err(io::ErrorKind::QuotaExceeded.into()) }
    }
}

/// Content of the last of this many archives within each other, and the number of missing ones.
/// Takes the cost of each from a counter.
fn open<'a>(
    mut packed: Box<dyn BufRead + 'a>,
    left: &'a Cell<usize>,
    archives: usize,
) -> (Box<dyn BufRead + 'a>, usize) {
    let mut head = Vec::new();
    // A fault shows again when the rest is read.
    let _ = packed.by_ref().take(3).read_to_end(&mut head);
    let is_gzip = head.first() == Some(&0x1f);
    if archives == 0 || !is_archive(&head) {
        return (Box::new(Cursor::new(head).chain(packed)), archives);
    }
    left.set(left.get().saturating_sub(UNPACK_BYTES));
    let packed = Cursor::new(head).chain(packed);
    let content: Box<dyn Read + 'a> = match is_gzip {
        true => Box::new(flate2::bufread::MultiGzDecoder::new(packed)),
        false => Box::new(flate2::bufread::ZlibDecoder::new(packed)),
    };
    let content = BufReader::with_capacity(4 << 10, Metered { inner: content, left });
    open(Box::new(content), left, archives - 1)
}

/// Start of the next line if the text at this position ends a line.
fn next_line(text: &[u8], at: usize) -> Option<usize> {
    let rest = text.get(at..)?;
    let rest = rest.strip_prefix(b"\r").unwrap_or(rest).strip_prefix(b"\n")?;
    Some(text.len() - rest.trim_ascii_start().len())
}

/// Calls `each` with everything that a run may encode.
fn run_of(run: &[u8], each: &mut dyn FnMut(&[u8]) -> Result<(), Spent>) -> Result<(), Spent> {
    let body = run.trim_ascii_end();
    let padding = body.iter().rev().take_while(|b| **b == b'=').count();
    let body = body.get(..body.len() - padding).unwrap_or_default();
    for digits in body.split(|b| class(*b) & HEX == 0) {
        if digits.len() < MIN_DIGITS_BYTES {
            continue;
        }
        // Letters in front of hex digits, such as `0x` or a name, can look like one more digit.
        for shift in 0..2 {
            let decoded = bits(digits.get(shift..).unwrap_or_default(), 4, hex_digit);
            if digits.len() >= LONG_RUN_BYTES || is_worth(&decoded) {
                each(&decoded)?;
            }
        }
        // A digest is not base64.
        if digits.len() == body.len() {
            return Ok(());
        }
    }
    let upper = body.split(|b| class(*b) & BASE32 == 0);
    let lower = body.split(|b| class(*b) & LOWER_BASE32 == 0);
    // Words in small letters have no digits.
    let lower = lower.filter(|digits| digits.iter().any(u8::is_ascii_digit));
    for digits in upper.chain(lower).filter(|digits| digits.len() >= MIN_DIGITS_BYTES) {
        // Other text in front of the encoded one shifts its groups of eight.
        for shift in 0..8 {
            let decoded = bits(digits.get(shift..).unwrap_or_default(), 5, base32_digit);
            if shift == 0 || is_worth(&decoded) {
                each(&decoded)?;
            }
        }
    }
    let seen = body.iter().fold(0, |seen, b| seen | class(*b));
    if body.len() < MIN_BASE64_BYTES || seen & UPPER == 0 || seen & LOWER == 0 {
        return Ok(());
    }
    // Other text in front of the encoded one shifts its groups of four.
    for shift in 0..4 {
        let body = body.get(shift..).unwrap_or_default();
        if body.len() >= LONG_RUN_BYTES || sampled(body) {
            each(&bits(body, 6, base64_digit))?;
        }
    }
    Ok(())
}

fn hex_digit(byte: u8) -> Option<u8> {
    char::from(byte).to_digit(16).and_then(|value| u8::try_from(value).ok())
}

fn base32_digit(byte: u8) -> Option<u8> {
    match byte.to_ascii_uppercase() {
        b @ b'A'..=b'Z' => Some(b - b'A'),
        b @ b'2'..=b'7' => Some(b - b'2' + 26),
        _ => None,
    }
}

/// Number of bytes that are tested for text at once.
const SAMPLE_BYTES: usize = 24;

/// Positions of samples of `size` in a text: each begins in the middle of the one before.
fn samples(length: usize, size: usize) -> impl Iterator<Item = usize> {
    let last = length.saturating_sub(size);
    (0..last).step_by(size / 2).chain([last])
}

/// Whether decoded bytes have text, or have a known format.
fn is_worth(bytes: &[u8]) -> bool {
    let part = |from: usize| bytes.get(from..bytes.len().min(from + SAMPLE_BYTES));
    is_packed(bytes)
        || samples(bytes.len(), SAMPLE_BYTES)
            .any(|from| looks_like_text(part(from).unwrap_or_default()))
}

/// Whether a base64 text decodes to bytes that have text, or have a known format.
fn sampled(body: &[u8]) -> bool {
    let part = |from: usize| {
        let mut bytes = [0; SAMPLE_BYTES];
        let mut length = 0;
        let groups = body.get(from / 4 * 4..).unwrap_or_default().chunks_exact(4);
        for (group, out) in groups.zip(bytes.chunks_exact_mut(3)) {
            let bits = group
                .iter()
                .fold(0, |bits, b| bits << 6 | u32::from(base64_digit(*b).unwrap_or_default()));
            out.copy_from_slice(bits.to_be_bytes().get(1..).unwrap_or_default());
            length += 3;
        }
        (bytes, length)
    };
    let is_text = |(bytes, length): ([u8; SAMPLE_BYTES], usize)| {
        bytes.get(..length).is_some_and(|bytes| !bytes.is_empty() && looks_like_text(bytes))
    };
    is_packed(&part(0).0)
        || samples(body.len(), SAMPLE_BYTES / 3 * 4).any(|from| is_text(part(from)))
}

fn is_packed(bytes: &[u8]) -> bool {
    is_archive(bytes) || matches!(bytes, [0xff, 0xfe, ..] | [0xfe, 0xff, ..])
}

/// Whether bytes begin as gzip or zlib does.
fn is_archive(bytes: &[u8]) -> bool {
    matches!(bytes, [0x1f, 0x8b, 8, ..] | [0x78, 0x01 | 0x5e | 0x9c | 0xda, ..])
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

fn hex_byte(digits: &[u8]) -> Option<u8> {
    let digit = |at: usize| digits.get(at).and_then(|b| (*b as char).to_digit(16));
    u8::try_from(digit(0)? * 16 + digit(1)?).ok()
}

/// Text that only quoted-printable has.
static QUOTED_PRINTABLE: LazyLock<Option<regex::bytes::Regex>> = LazyLock::new(|| {
    // Literal: it compiles, as its test shows.
    regex::bytes::Regex::new(r"=3D|=[ \t]*\r?\n|(?:=[0-9A-Fa-f]{2}){2}").ok()
});

/// View with quoted-printable decoded.
fn quoted_printable(text: &[u8]) -> Option<View> {
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
    builder.units()
}
