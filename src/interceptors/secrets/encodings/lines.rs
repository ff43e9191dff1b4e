//! Words that a line break divides.

use super::{
    digits::{BASE64, class},
    view::{Builder, View},
};

/// Minimum length in bytes of a word that line breaks may divide.
const MIN_DIVIDED_BYTES: usize = 20;

/// View with words joined that a line break divides, also in string literals (`"…" +`), comments
/// and quotations.
pub(super) fn lines(text: &[u8]) -> Option<View> {
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
