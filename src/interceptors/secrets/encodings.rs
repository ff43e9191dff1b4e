//! Decodes the encoded parts of a text.
//!
//! A [`View`] is a text with parts decoded, and it maps a range of it back to the original text.
//! Two kinds of encodings exist:
//! - A run encodes bytes as a block: base64, base32 and hex, also with gzip, zlib or UTF-16 within.
//!   A hit in it covers the whole run.
//! - A unit encodes one character: `%67`, `&#103;`, `=67`, a fullwidth letter, a homoglyph, a
//!   zero-width space. The view has the text beside each unit, and the rest of its word and of the
//!   lines that continue it, because a secret may be long. A hit covers the units that it touches,
//!   and the plain text between them.
//!
//! The caller decodes views again, up to a depth. [`Allowance`] bounds what archives expand to, and
//! the bytes of all views; what would exceed it is an error. Views are made one after the other, none
//! much longer than [`PART_BYTES`], so that a large message needs little memory.

use std::ops::Range;

use base64::{Engine as _, engine::general_purpose::STANDARD_NO_PAD};

use super::scan::{Budget, Spent};

mod allowance;
mod archives;
mod byte_lists;
mod characters;
mod decoded;
mod digits;
mod lines;
mod quoted_printable;
mod runs;
mod view;

pub(super) use allowance::Allowance;
#[cfg(test)]
pub(super) use allowance::{BASE_VIEWED_BYTES, VIEWED_FACTOR};
pub(super) use byte_lists::{MIN_LIST, byte_lists};
use characters::{characters, is_escape};
pub(super) use digits::run_start;
use digits::{BASE64, hex_byte, next_of};
use lines::lines;
use quoted_printable::quoted_printable;
use runs::{MIN_BASE64_BYTES, run_may_encode};
pub(super) use runs::{long_archives, runs};
pub(super) use view::View;

/// Maximum length in bytes of a text that is scanned at once. A longer one is scanned in parts.
pub(super) const PART_BYTES: usize = 512 << 10;

/// Bytes that a part has in common with the next one.
pub(super) const OVERLAP_BYTES: usize = 64 << 10;

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

/// Calls `mark` with each unit and each escape of a JSON text, except for line breaks, which are
/// escapes there.
pub(super) fn mark_units(raw: &[u8], mark: &mut dyn FnMut(Range<usize>)) {
    for (at, bytes) in raw.chunks(ASCII_BYTES).enumerate() {
        if !bytes.is_ascii() {
            mark(at * ASCII_BYTES..at * ASCII_BYTES + bytes.len());
        }
    }
    for at in memchr::memchr3_iter(b'\\', b'%', b'&', raw) {
        if raw.get(at..).is_some_and(is_escape) {
            mark(at..at + 1);
        }
    }
    for at in memchr::memchr_iter(b'=', raw) {
        if raw.get(at + 1..).is_some_and(|rest| hex_byte(rest).is_some()) {
            mark(at..at + 1);
        }
    }
}

/// Whether a text without line breaks has a run or a list of bytes.
pub(super) fn may_encode(text: &[u8]) -> bool {
    // No list of bytes is shorter either.
    if text.len() < MIN_BASE64_BYTES {
        return false;
    }
    let mut from = 0;
    let mut buffer = Vec::new();
    while let Some(run) = next_of(text, from, BASE64, MIN_BASE64_BYTES) {
        from = run.end;
        if run_may_encode(text.get(run).unwrap_or_default(), &mut buffer) {
            return true;
        }
    }
    byte_lists::ranges(text).next().is_some()
}

/// Number of bytes that are tested for other characters than ASCII at once.
const ASCII_BYTES: usize = 64;

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
