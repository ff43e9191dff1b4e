//! Resolves nested escapes in a text.
//!
//! JSON within a string, a Python repr, a log line or Markdown writes a line break as `\n`, a quote
//! as `\"` and a letter as `\u0067`. A token after such an escape is not found in the raw text: to
//! a rule, the `n` of `\n` is a letter in front of the token. [`Layers`] has the text with its
//! escapes resolved once, twice and so on, and maps a range of any of these texts back to the
//! original one.

use std::ops::Range;

/// Limit of the resolved levels of escapes. Deeper ones stay.
pub(super) const MAX_LAYERS: usize = 4;

/// Texts with escapes resolved. Each is shorter than the one before, so work and memory are at most
/// [`MAX_LAYERS`] times those of the text.
pub(super) struct Layers<'a> {
    base: &'a [u8],
    resolved: Vec<Vec<u8>>,
}

impl<'a> Layers<'a> {
    /// Layers of a UTF-8 text. A text without escapes has none.
    pub(super) fn of(base: &'a [u8]) -> Self {
        let mut resolved: Vec<Vec<u8>> = Vec::new();
        while resolved.len() < MAX_LAYERS
            && let Some(next) = resolve(resolved.last().map_or(base, Vec::as_slice))
        {
            resolved.push(next);
        }
        Self { base, resolved }
    }

    /// The text itself, then the text of each layer. All are UTF-8.
    pub(super) fn texts(&self) -> impl Iterator<Item = &[u8]> {
        std::iter::once(self.base).chain(self.resolved.iter().map(Vec::as_slice))
    }

    /// Replaces ranges of the text at `depth` (0 is the original) by those of the original that
    /// cover them. Each begins and ends between characters and escapes of every layer: a cut there
    /// leaves each nested text well-formed.
    pub(super) fn locate(&self, depth: usize, ranges: &mut [Range<usize>]) {
        if ranges.is_empty() {
            return;
        }
        for layer in depth..self.resolved.len() {
            translate(self.text(layer), ranges, Side::Raw);
        }
        for layer in (0..self.resolved.len()).rev() {
            translate(self.text(layer), ranges, Side::Resolved);
        }
    }

    fn text(&self, depth: usize) -> &[u8] {
        match depth.checked_sub(1) {
            None => self.base,
            Some(layer) => self.resolved.get(layer).map_or(&[], Vec::as_slice),
        }
    }
}

/// Side on which a range is known.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Side {
    Raw,
    Resolved,
}

/// Escape: its bytes in the text, and its value.
struct Escape {
    len: usize,
    decoded: [u8; 4],
    decoded_len: usize,
}

/// Escape at the start of a text that begins with a backslash. `None` if JSON, Python and Markdown
/// do not have this escape, such as `\d`: then the backslash is plain text.
fn escape(raw: &[u8]) -> Option<Escape> {
    let one = |len, byte| Some(Escape { len, decoded: [byte, 0, 0, 0], decoded_len: 1 });
    match *raw.get(1)? {
        b'n' => one(2, b'\n'),
        b't' => one(2, b'\t'),
        b'r' => one(2, b'\r'),
        b'b' => one(2, 8),
        b'f' => one(2, 12),
        b'x' => one(4, u8::try_from(hex(raw.get(2..4)?)?).ok().filter(u8::is_ascii)?),
        // Three octal digits. C and Python also have escapes of fewer.
        b'0' | b'1' => {
            let digits = std::str::from_utf8(raw.get(1..4)?).ok()?;
            one(4, u8::from_str_radix(digits, 8).ok().filter(u8::is_ascii)?)
        }
        b'u' => {
            let first = hex(raw.get(2..6)?)?;
            let second = || match raw.get(6..12)? {
                [b'\\', b'u', digits @ ..] => {
                    hex(digits).filter(|low| (0xdc00..=0xdfff).contains(low))
                }
                _ => None,
            };
            let (len, code) = match first {
                0xd800..=0xdbff => (12, 0x1_0000 + ((first - 0xd800) << 10) + (second()? - 0xdc00)),
                _ => (6, first),
            };
            let mut decoded = [0; 4];
            let decoded_len = char::from_u32(code)?.encode_utf8(&mut decoded).len();
            Some(Escape { len, decoded, decoded_len })
        }
        byte if byte.is_ascii_punctuation() => one(2, byte),
        _ => None,
    }
}

fn hex(digits: &[u8]) -> Option<u32> {
    let text = std::str::from_utf8(digits).ok()?;
    if !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    u32::from_str_radix(text, 16).ok()
}

/// Calls `each` with every escape and its position, until that returns false.
fn each_escape(raw: &[u8], mut each: impl FnMut(usize, &Escape) -> bool) {
    let mut at = 0;
    while let Some(next) = raw.get(at..).and_then(|rest| memchr::memchr(b'\\', rest)) {
        at += next;
        match escape(raw.get(at..).unwrap_or_default()) {
            Some(escape) => {
                if !each(at, &escape) {
                    return;
                }
                at += escape.len;
            }
            None => at += 1,
        }
    }
}

/// Text with its escapes resolved once. `None` without escapes.
fn resolve(raw: &[u8]) -> Option<Vec<u8>> {
    let mut out: Option<Vec<u8>> = None;
    let mut copied = 0;
    each_escape(raw, |at, escape| {
        let out = out.get_or_insert_with(|| Vec::with_capacity(raw.len()));
        out.extend_from_slice(raw.get(copied..at).unwrap_or_default());
        out.extend_from_slice(escape.decoded.get(..escape.decoded_len).unwrap_or_default());
        copied = at + escape.len;
        true
    });
    let mut out = out?;
    out.extend_from_slice(raw.get(copied..).unwrap_or_default());
    Some(out)
}

/// Replaces each range of one side by the covering range of the other side. Escapes are covered
/// whole. One pass over the text for any number of ranges.
fn translate(raw: &[u8], ranges: &mut [Range<usize>], from: Side) {
    // First and last byte of each range, in the order of the text.
    let mut bytes: Vec<(usize, usize, bool)> = Vec::with_capacity(2 * ranges.len());
    for (i, range) in ranges.iter().enumerate() {
        bytes.push((range.start, i, false));
        bytes.push((range.end.saturating_sub(1).max(range.start), i, true));
    }
    bytes.sort_unstable();
    let mut pending = bytes.into_iter().peekable();
    let mut set = |(_, i, is_end): (usize, usize, bool), found: Range<usize>| {
        if let Some(range) = ranges.get_mut(i) {
            match is_end {
                true => range.end = found.end,
                false => range.start = found.start,
            }
        }
    };
    // Ends of the last escape on this side and on the other.
    let (mut this_end, mut other_end) = (0, 0);
    each_escape(raw, |at, escape| {
        let (len, other_len) = match from {
            Side::Raw => (escape.len, escape.decoded_len),
            Side::Resolved => (escape.decoded_len, escape.len),
        };
        let this = match from {
            Side::Raw => at,
            Side::Resolved => this_end + (at - other_end),
        };
        let other = other_end + (this - this_end);
        while let Some(byte) = pending.next_if(|byte| byte.0 < this + len) {
            set(
                byte,
                match byte.0.checked_sub(this) {
                    None => {
                        let place = other_end + (byte.0 - this_end);
                        place..place + 1
                    }
                    Some(_) => other..other + other_len,
                },
            );
        }
        (this_end, other_end) = (this + len, other + other_len);
        pending.peek().is_some()
    });
    for byte in pending {
        let place = other_end + (byte.0 - this_end);
        set(byte, place..place + 1);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn texts(raw: &str) -> Vec<String> {
        let layers = Layers::of(raw.as_bytes());
        layers.texts().map(|text| String::from_utf8(text.to_vec()).unwrap()).collect()
    }

    fn located(layers: &Layers<'_>, depth: usize, range: Range<usize>) -> Range<usize> {
        let mut ranges = [range];
        layers.locate(depth, &mut ranges);
        let [range] = ranges;
        range
    }

    #[test]
    fn escapes_are_resolved_level_by_level() {
        for (raw, expected) in [
            ("plain", vec!["plain"]),
            ("a\\nb", vec!["a\\nb", "a\nb"]),
            ("a\\\\nb", vec!["a\\\\nb", "a\\nb", "a\nb"]),
            ("\\u0067h\\x70\\_x", vec!["\\u0067h\\x70\\_x", "ghp_x"]),
            ("\\147\\150p\\060", vec!["\\147\\150p\\060", "ghp0"]),
            ("\\18 \\1 \\0 \\200 \\148", vec!["\\18 \\1 \\0 \\200 \\148"]),
            ("\\ud83d\\ude00", vec!["\\ud83d\\ude00", "\u{1f600}"]),
            // Text without escapes stays.
            ("\\d+ \\ud800 \\xff C:\\", vec!["\\d+ \\ud800 \\xff C:\\"]),
        ] {
            assert_eq!(texts(raw), expected);
        }
        assert_eq!(texts(&"\\".repeat(64)).len(), 1 + MAX_LAYERS);
    }

    #[test]
    fn range_is_located_in_the_original() {
        let raw = r#"x\\nghp_1\\"y"#;
        let layers = Layers::of(raw.as_bytes());
        let deep: Vec<_> = layers.texts().map(<[u8]>::to_vec).collect();
        let at = deep[2].windows(5).position(|part| part == b"ghp_1").unwrap();
        assert_eq!(&raw[located(&layers, 2, at..at + 5)], "ghp_1");
        // The `n` in front belongs to an escape of two levels, and is included.
        let at = raw.find("nghp").unwrap();
        assert_eq!(&raw[located(&layers, 0, at..at + 6)], "\\\\nghp_1");
    }

    proptest! {
        #[test]
        fn redacted_nested_json_is_still_json(
            text in "[a-z\"\\\\\n\u{e9}\u{1f600}]{1,12}",
            depth in 0_usize..3,
            from: prop::sample::Index,
            len in 1_usize..4,
        ) {
            let mut raw = serde_json::to_string(&text).unwrap();
            for _ in 0..depth {
                raw = serde_json::to_string(&raw).unwrap();
            }
            let body = &raw[1..raw.len() - 1];
            let layers = Layers::of(body.as_bytes());
            let cuts: Vec<usize> = body.char_indices().map(|(at, _)| at).collect();
            let start = *from.get(&cuts);
            let end = cuts.iter().copied().find(|at| *at >= start + len).unwrap_or(body.len());
            let place = located(&layers, 0, start..end);
            prop_assert!(place.start <= start && place.end >= end);
            let mut value = format!("\"{}mark{}\"", &body[..place.start], &body[place.end..]);
            // The outermost text is complete. Inner ones are, unless their own quotes were cut.
            for _ in 0..=depth {
                let inner: String = serde_json::from_str(&value).unwrap();
                if !(inner.starts_with('"') && inner.len() > 1 && inner.ends_with('"')) {
                    break;
                }
                value = inner;
            }
        }
    }
}
