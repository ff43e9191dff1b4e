//! Finds JSON documents in a text: as the whole text, on separate lines (NDJSON), in a Markdown
//! fence, after `data:` of server-sent events, or anywhere in a log line.

use std::ops::Range;

use serde::de::IgnoredAny;
use serde_json::{Deserializer, error::Category};

use super::scan::Spent;

/// Limit in bytes of unsuccessful attempts, in addition to [`WASTE_FACTOR`] times the body.
const BASE_WASTE_BYTES: usize = 1 << 20;
const WASTE_FACTOR: usize = 8;

/// Limit in bytes of unsuccessful attempts in all strings of a body of that size.
pub(super) fn waste_of(bytes: usize) -> usize {
    BASE_WASTE_BYTES.saturating_add(bytes.saturating_mul(WASTE_FACTOR))
}

/// Outermost objects and arrays in a text, in order. An error if `waste` is used up: then the rest
/// of the text is unknown, and must not be shown.
pub(super) fn documents(text: &str, waste: &mut usize) -> Result<Vec<Range<usize>>, Spent> {
    let bytes = text.as_bytes();
    let mut found = Vec::new();
    let mut at = 0;
    while let Some(next) = bytes.get(at..).and_then(|rest| memchr::memchr2(b'{', b'[', rest)) {
        at += next;
        let rest = bytes.get(at..).unwrap_or_default();
        if !can_begin(rest) {
            at += 1;
            continue;
        }
        let mut stream = Deserializer::from_slice(rest).into_iter::<IgnoredAny>();
        match stream.next() {
            Some(Ok(IgnoredAny)) => {
                let end = at + stream.byte_offset();
                found.push(at..end);
                at = end;
            }
            Some(Err(error)) => {
                let read = match error.classify() {
                    Category::Eof => rest.len(),
                    _ => offset(rest, error.line(), error.column()),
                };
                *waste = waste.checked_sub(read.max(16)).ok_or(Spent)?;
                at += 1;
            }
            None => break,
        }
    }
    Ok(found)
}

/// Whether a text that begins with a bracket can be JSON, by its next character.
fn can_begin(text: &[u8]) -> bool {
    let next = text.get(1..).unwrap_or_default().trim_ascii_start().first().copied();
    match text.first() {
        Some(b'{') => matches!(next, Some(b'"')),
        _ => matches!(next, Some(b'"' | b'{' | b'[' | b'-' | b'0'..=b'9' | b't' | b'f' | b'n')),
    }
}

/// Offset of a line and a column, both from 1.
fn offset(text: &[u8], line: usize, column: usize) -> usize {
    let breaks = memchr::memchr_iter(b'\n', text);
    let start = line.checked_sub(2).and_then(|skip| breaks.into_iter().nth(skip));
    start.map_or(0, |at| at + 1).saturating_add(column).min(text.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_are_found_anywhere() {
        for (text, expected) in [
            ("", vec![]),
            ("no [brackets] {here}", vec![]),
            (r#" {"a":[1,{"b":2}]} "#, vec![r#"{"a":[1,{"b":2}]}"#]),
            ("{\"a\":1}\n{\"b\":2}\n", vec!["{\"a\":1}", "{\"b\":2}"]),
            ("see\n```json\n[\n 1\n]\n```\n", vec!["[\n 1\n]"]),
            ("event: x\ndata: {\"a\":1}\n\ndata: {\"a\":2}\n", vec!["{\"a\":1}", "{\"a\":2}"]),
            ("[2026-01-01] got {\"a\":\"}\"}, done", vec!["{\"a\":\"}\"}"]),
            ("{\"a\": {\"b\":1}", vec!["{\"b\":1}"]),
        ] {
            let found = documents(text, &mut waste_of(text.len())).unwrap();
            let found: Vec<_> = found.into_iter().map(|range| &text[range]).collect();
            assert_eq!(found, expected, "{text}");
        }
    }

    #[test]
    fn work_for_text_without_json_is_limited() {
        let text = "{\"a\":".repeat(200_000);
        assert!(documents(&text, &mut waste_of(text.len())).is_err());
        let text = format!("{}{{\"a\":1}}", "[1,x ".repeat(100_000));
        assert_eq!(documents(&text, &mut waste_of(text.len())).unwrap().len(), 1);
        // All strings of a body share the limit.
        let text = "[1,".repeat(213);
        let mut waste = waste_of(400 * text.len());
        assert!((0..400).any(|_| documents(&text, &mut waste).is_err()));
    }
}
