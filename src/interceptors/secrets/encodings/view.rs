//! Text with parts decoded, and its construction.

use std::ops::Range;

use super::OVERLAP_BYTES;

/// Text between two parts of a view that are not adjacent. No rule matches across it. It is not a
/// unit itself, as a zero byte is: each of those would make another view.
const GAP: &[u8] = b"\x01\n";

/// Text with parts decoded.
#[derive(Default)]
pub(in super::super) struct View {
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
    /// Whether it has no text.
    pub(super) fn is_empty(&self) -> bool {
        self.parts.is_empty()
    }

    /// Whether a range of the view has or touches a decoded part.
    pub(in super::super) fn is_decoded(&self, range: &Range<usize>) -> bool {
        let first = self.parts.partition_point(|part| part.start < range.start).saturating_sub(1);
        let touching = self.parts.get(first..).unwrap_or_default().iter();
        let mut touching = touching.take_while(|part| part.start <= range.end);
        touching.any(|part| part.kind == Kind::Decoded)
    }

    /// Whether the view leaves out text from this position of the original.
    pub(in super::super) fn has_break(&self, at: usize) -> bool {
        let first = self.parts.partition_point(|part| part.raw.start < at);
        self.parts.get(first).is_some_and(|part| part.raw.start == at && part.kind == Kind::Decoded)
    }

    /// Range of the original text that covers a range of the view. `None` if the range spans a gap:
    /// then the original text has no such text.
    pub(in super::super) fn locate(&self, range: &Range<usize>) -> Option<Range<usize>> {
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

/// Bytes beside a unit that its view has at least.
const MIN_CONTEXT_BYTES: usize = 512;
/// Length in bytes from which a word at a line break continues that of the other line, as in a key.
const MIN_LINE_BYTES: usize = 40;
/// Number of blanks that a line break can have.
const MAX_BLANKS: usize = 64;

/// Number of the bytes that belong to a unit beside them: some text, the rest of the word, and the
/// lines that continue it.
fn context<'a>(mut bytes: impl Iterator<Item = &'a u8> + Clone) -> usize {
    let mut length = bytes.by_ref().take(MIN_CONTEXT_BYTES).count();
    if length < MIN_CONTEXT_BYTES {
        return length;
    }
    let is_blank = |b: &&u8| b.is_ascii_whitespace();
    while length < OVERLAP_BYTES {
        let rest = OVERLAP_BYTES - length;
        let word = bytes.clone().take(rest).take_while(|b| !is_blank(b)).count();
        let mut after = bytes.clone().skip(word);
        let blanks = after.by_ref().take(MAX_BLANKS).take_while(is_blank).count();
        // The iterator has consumed the byte behind the blanks.
        let next = 1 + after.take(MIN_LINE_BYTES - 1).take_while(|b| !is_blank(b)).count();
        if word < MIN_LINE_BYTES && length > MIN_CONTEXT_BYTES || next < MIN_LINE_BYTES {
            // The last line of a key is short, and the line after it has its end.
            return length + bytes.take(word + MIN_CONTEXT_BYTES / 2).count();
        }
        length += bytes.by_ref().take(word + blanks).count();
    }
    length
}

/// View under construction.
pub(super) struct Builder<'a> {
    pub(super) raw: &'a [u8],
    pub(super) view: View,
    /// Position in the original after the last part.
    at: usize,
}

impl<'a> Builder<'a> {
    pub(super) fn new(raw: &'a [u8]) -> Self {
        Self { raw, view: View::default(), at: 0 }
    }

    fn push(&mut self, raw: Range<usize>, text: &[u8], kind: Kind) {
        self.view.parts.push(Part { start: self.view.text.len(), raw, kind });
        self.view.text.extend_from_slice(text);
    }

    pub(super) fn plain(&mut self, raw: Range<usize>) {
        if let Some(text) = self.raw.get(raw.clone()).filter(|text| !text.is_empty()) {
            self.push(raw, text, Kind::Plain);
        }
    }

    /// Adds a unit, and the plain text beside it.
    pub(super) fn unit(&mut self, raw: Range<usize>, text: &[u8]) {
        self.between(self.at.min(raw.start)..raw.start);
        self.at = raw.end;
        self.push(raw, text, Kind::Decoded);
    }

    /// Adds a run.
    pub(super) fn run(&mut self, raw: Range<usize>, text: &[u8]) {
        self.push(raw.clone(), text, Kind::Decoded);
        self.push(raw.end..raw.end, GAP, Kind::Gap);
    }

    /// Adds the text between two units, or a part of it beside each.
    fn between(&mut self, raw: Range<usize>) {
        let text = self.raw.get(raw.clone()).unwrap_or_default();
        if text.len() <= 2 * MIN_CONTEXT_BYTES {
            return self.plain(raw);
        }
        let after = if self.view.parts.is_empty() { 0 } else { context(text.iter()) };
        let before = if raw.end == self.raw.len() { 0 } else { context(text.iter().rev()) };
        if after + before >= text.len() {
            return self.plain(raw);
        }
        self.plain(raw.start..raw.start + after);
        if after > 0 && before > 0 {
            self.push(raw.start + after..raw.start + after, GAP, Kind::Gap);
        }
        self.plain(raw.end - before..raw.end);
    }

    /// View of the text beside its units, if it has units. Any secret with a unit is whole.
    pub(super) fn units(mut self) -> Option<View> {
        if self.view.parts.is_empty() {
            return None;
        }
        self.between(self.at..self.raw.len());
        Some(self.view)
    }
}
