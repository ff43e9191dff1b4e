//! Quoted-printable.

use std::sync::LazyLock;

use super::{
    digits::hex_byte,
    view::{Builder, View},
};

/// Text that only quoted-printable has.
static QUOTED_PRINTABLE: LazyLock<Option<regex::bytes::Regex>> = LazyLock::new(|| {
    // Literal: it compiles, as its test shows.
    regex::bytes::Regex::new(r"=3D|=[ \t]*\r?\n|(?:=[0-9A-Fa-f]{2}){2}").ok()
});

/// View with quoted-printable decoded.
pub(super) fn quoted_printable(text: &[u8]) -> Option<View> {
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
