//! Runs of digits: base64, base32 and hex, and what they encode.

use std::{borrow::Cow, io::Read as _, ops::Range, sync::LazyLock};

use memchr::memmem::Finder;

use super::{
    super::scan::{Budget, Spent},
    Each, OVERLAP_BYTES, PART_BYTES,
    archives::is_archive,
    decoded::{is_worth, utf16},
    digits::{
        ALPHABETS, Alphabet, BASE32, BASE32_DIGITS, BASE64, BASE64_DIGITS, BLANK, Digits, HEX,
        HEX_DIGITS, LOWER, LOWER_BASE32, UPPER, class, next_of, run_end,
    },
    view::Builder,
};

/// Minimum length in bytes of a base64 run: 15 encoded bytes.
pub(super) const MIN_BASE64_BYTES: usize = 20;

/// Minimum length in bytes of a base32 or hex run.
const MIN_DIGITS_BYTES: usize = 24;

/// Length in bytes from which a base64 run is scanned although it does not look like text.
const LONG_RUN_BYTES: usize = 200;

/// Minimum length in bytes of a line of base64 that continues on the next line.
const MIN_WRAPPED_BYTES: usize = 40;

/// Minimum length in bytes of a text among other decoded bytes.
const MIN_TEXT_BYTES: usize = 8;

/// Limit in bytes of a name in front of a run.
const MAX_NAME_BYTES: usize = 80;

/// Limit in bytes of a decoded text that can be the value of a name in front of it.
const MAX_NAMED_BYTES: usize = 256;

/// Views of runs under construction.
pub(super) struct Runs<'a, 'b> {
    pub(super) builder: Builder<'a>,
    pub(super) budget: &'b mut Budget,
    pub(super) each: &'b mut Each<'b>,
}

/// Makes the views of all runs.
pub(in super::super) fn runs<'a>(
    text: &[u8],
    budget: &'a mut Budget,
    each: &'a mut Each<'a>,
) -> Result<(), Spent> {
    let mut runs = Runs { builder: Builder::new(text), budget, each };
    let mut from = 0;
    let mut buffer = Vec::new();
    while let Some(run) = next_run(text, from) {
        from = run.end;
        for piece in pieces(text, &run) {
            let raw = text.get(piece.clone()).unwrap_or_default();
            let joined: Cow<'_, [u8]> = match memchr::memchr(b'\n', raw) {
                Some(_) => raw.iter().copied().filter(|b| !b.is_ascii_whitespace()).collect(),
                None => raw.into(),
            };
            run_of(&joined, &mut buffer, &mut |decoded| runs.add(&piece, decoded))?;
        }
    }
    runs.flush()
}

/// Makes the views of archives in runs of which each of these parts of the text has only a piece.
pub(in super::super) fn long_archives<'a>(
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
            for alphabet in ALPHABETS {
                runs.long_archives_in(&piece, alphabet)?;
            }
        }
    }
    runs.flush()
}

impl Runs<'_, '_> {
    /// Adds the bytes that a range encodes.
    pub(super) fn add(&mut self, raw: &Range<usize>, bytes: &[u8]) -> Result<(), Spent> {
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
    pub(super) fn texts(&mut self, raw: &Range<usize>, bytes: &[u8]) -> Result<(), Spent> {
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
    pub(super) fn flush(&mut self) -> Result<(), Spent> {
        let view = std::mem::take(&mut self.builder.view);
        if view.is_empty() { Ok(()) } else { (self.each)(&view, self.budget) }
    }
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

/// Start of the next line if the text at this position ends a line.
fn next_line(text: &[u8], at: usize) -> Option<usize> {
    let rest = text.get(at..)?;
    let rest = rest.strip_prefix(b"\r").unwrap_or(rest).strip_prefix(b"\n")?;
    Some(text.len() - rest.trim_ascii_start().len())
}

/// Ranges of a run that may be encoded each: all of it, and the parts between lines of different
/// alphabets and before each archive.
fn pieces(text: &[u8], run: &Range<usize>) -> Vec<Range<usize>> {
    let body = text.get(run.clone()).unwrap_or_default();
    let mut cuts: Vec<usize> = GZIP.find_iter(body).collect();
    if cuts.iter().all(|cut| *cut == 0) && memchr::memchr(b'\n', body).is_none() {
        return vec![run.clone()];
    }
    let mut at = 0;
    let mut last = None;
    let mut head = Vec::new();
    for line in body.split_inclusive(|b| *b == b'\n') {
        let digits = line.trim_ascii();
        let kind =
            [HEX, BASE32].into_iter().find(|bit| digits.iter().all(|b| class(*b) & bit != 0));
        BASE64_DIGITS.decode(digits.get(..4).unwrap_or_default(), &mut head);
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
static GZIP: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new("H4sI"));

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

/// Calls `each` with everything that a run may encode.
fn run_of(
    run: &[u8],
    decoded: &mut Vec<u8>,
    each: &mut dyn FnMut(&[u8]) -> Result<(), Spent>,
) -> Result<(), Spent> {
    let body = run.trim_ascii_end();
    let padding = body.iter().rev().take_while(|b| **b == b'=').count();
    let body = body.get(..body.len() - padding).unwrap_or_default();
    for digits in parts_of(body, HEX) {
        // Letters in front of hex digits, such as `0x` or a name, can look like one more digit.
        for shift in 0..2 {
            HEX_DIGITS.decode(digits.get(shift..).unwrap_or_default(), decoded);
            if digits.len() >= LONG_RUN_BYTES || is_worth(decoded) {
                each(decoded)?;
            }
        }
        // A digest is not base64.
        if digits.len() == body.len() {
            return Ok(());
        }
    }
    // Words in small letters have no digits.
    let lower = parts_of(body, LOWER_BASE32);
    let lower = lower.filter(|digits| digits.iter().any(u8::is_ascii_digit));
    for digits in parts_of(body, BASE32).chain(lower) {
        // Other text in front of the encoded one shifts its groups of eight.
        for shift in 0..8 {
            BASE32_DIGITS.decode(digits.get(shift..).unwrap_or_default(), decoded);
            if shift == 0 || is_worth(decoded) {
                each(decoded)?;
            }
        }
    }
    let has = |bit: u8| body.iter().any(|b| class(*b) & bit != 0);
    if body.len() < MIN_BASE64_BYTES || !has(UPPER) || !has(LOWER) {
        return Ok(());
    }
    // Other text in front of the encoded one shifts its groups of four.
    for shift in 0..4 {
        let body = body.get(shift..).unwrap_or_default();
        BASE64_DIGITS.decode(body, decoded);
        if body.len() >= LONG_RUN_BYTES || is_worth(decoded) {
            each(decoded)?;
        }
    }
    Ok(())
}

/// Parts of a run with digits of this class only.
fn parts_of(body: &[u8], class: u8) -> impl Iterator<Item = &[u8]> {
    let mut from = 0;
    std::iter::from_fn(move || {
        let part = next_of(body, from, class, MIN_DIGITS_BYTES)?;
        from = part.end;
        body.get(part)
    })
}

/// Whether a run on one line may encode a text.
pub(super) fn run_may_encode(run: &[u8], decoded: &mut Vec<u8>) -> bool {
    GZIP.find(run).is_some() || run_of(run, decoded, &mut |_| Err(Spent)).is_err()
}
