//! Lists of bytes as numbers: `67 68`, `67:68`, `0x67, 0x68`, `103, 104`.

use std::{ops::Range, sync::LazyLock};

use super::{
    super::scan::{Budget, Spent},
    Each, OVERLAP_BYTES, PART_BYTES,
    decoded::is_worth,
    digits::{LIST, hex_byte, next_of},
    runs::Runs,
    view::Builder,
};

/// Minimum number of bytes of a list.
pub(in super::super) const MIN_LIST: usize = 12;

/// Minimum length in bytes of a list.
const MIN_LIST_BYTES: usize = 2 * MIN_LIST - 1;

/// At least [`MIN_LIST`] numbers, with something between them.
static NUMBERS: LazyLock<Option<regex::bytes::Regex>> = LazyLock::new(|| {
    // Literal: it compiles, as its test shows.
    regex::bytes::RegexBuilder::new(r"(?:[0-9A-Fa-fxX]{1,4}[ ,:;.\t\r\n-]+){11,}[0-9A-Fa-fxX]{1,4}")
        .unicode(false)
        .build()
        .ok()
});

/// Makes the views of all lists of bytes.
pub(in super::super) fn byte_lists<'a>(
    text: &[u8],
    budget: &'a mut Budget,
    each: &'a mut Each<'a>,
) -> Result<(), Spent> {
    let mut runs = Runs { builder: Builder::new(text), budget, each };
    for numbers in ranges(text) {
        for number in [hex_number, decimal_number] {
            let mut list = List { runs: &mut runs, range: 0..0, bytes: Vec::new() };
            list.read(text.get(numbers.clone()).unwrap_or_default(), numbers.start, number)?;
        }
    }
    runs.flush()
}

/// Ranges of the lists of a text. Most texts have no long part that could be one.
pub(super) fn ranges(text: &[u8]) -> impl Iterator<Item = Range<usize>> {
    let mut from = 0;
    let parts = std::iter::from_fn(move || {
        let part = next_of(text, from, LIST, MIN_LIST_BYTES)?;
        from = part.end;
        Some(part)
    });
    parts.flat_map(move |part| {
        let start = part.start;
        let found = NUMBERS
            .iter()
            .flat_map(move |regex| regex.find_iter(text.get(part.clone()).unwrap_or_default()));
        found.map(move |found| start + found.start()..start + found.end())
    })
}

/// A list under construction.
struct List<'a, 'b, 'c> {
    runs: &'a mut Runs<'b, 'c>,
    /// Its range in the text.
    range: Range<usize>,
    bytes: Vec<u8>,
}

impl List<'_, '_, '_> {
    /// Adds the lists of a text of numbers that begins at `at`. Letters before the first number of a
    /// list and behind the last one may adhere to it.
    fn read(
        &mut self,
        text: &[u8],
        mut at: usize,
        number: fn(&[u8]) -> Option<u8>,
    ) -> Result<(), Spent> {
        let separated = text.split(|b| !b.is_ascii_alphanumeric());
        for item in separated {
            let (start, end) = (at, at + item.len());
            at = end + 1;
            if item.is_empty() {
                continue;
            }
            if let Some(byte) = number(item) {
                self.push(byte, start..end)?;
                continue;
            }
            let parts = 1..item.len();
            let (first, last) = (
                parts.clone().rev().find_map(|len| Some((len, number(item.get(..len)?)?))),
                parts.into_iter().find_map(|from| Some((from, number(item.get(from..)?)?))),
            );
            if let Some((len, byte)) = first {
                self.push(byte, start..start + len)?;
            }
            self.end()?;
            if let Some((from, byte)) = last {
                self.push(byte, start + from..end)?;
            }
        }
        self.end()
    }

    fn push(&mut self, byte: u8, range: Range<usize>) -> Result<(), Spent> {
        if self.bytes.is_empty() {
            self.range.start = range.start;
        }
        self.range.end = range.end;
        self.bytes.push(byte);
        if self.bytes.len() >= PART_BYTES {
            self.runs.add(&self.range, &self.bytes)?;
            self.bytes.drain(..PART_BYTES - OVERLAP_BYTES);
        }
        Ok(())
    }

    fn end(&mut self) -> Result<(), Spent> {
        if self.bytes.len() >= MIN_LIST && is_worth(&self.bytes) {
            self.runs.add(&self.range, &self.bytes)?;
        }
        self.bytes.clear();
        Ok(())
    }
}

/// Value of two hex digits, with `0x` or without.
fn hex_number(item: &[u8]) -> Option<u8> {
    match item {
        [_, _] | [b'0', b'x' | b'X', _, _] => hex_byte(item.get(item.len() - 2..)?),
        _ => None,
    }
}

/// Value of one to three decimal digits.
fn decimal_number(item: &[u8]) -> Option<u8> {
    let text = std::str::from_utf8(item).ok()?;
    if text.len() > 3 || text.starts_with('+') { None } else { text.parse().ok() }
}
