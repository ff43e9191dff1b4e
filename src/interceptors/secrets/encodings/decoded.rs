//! Tells texts among decoded bytes from other data.

use super::{archives::is_archive, digits::base64_digit};

/// Number of bytes that are tested for text at once.
const SAMPLE_BYTES: usize = 24;

/// Positions of samples of `size` in a text: each begins in the middle of the one before.
fn samples(length: usize, size: usize) -> impl Iterator<Item = usize> {
    let last = length.saturating_sub(size);
    (0..last).step_by(size / 2).chain([last])
}

/// Whether decoded bytes have text, or have a known format.
pub(super) fn is_worth(bytes: &[u8]) -> bool {
    let part = |from: usize| bytes.get(from..bytes.len().min(from + SAMPLE_BYTES));
    is_packed(bytes)
        || samples(bytes.len(), SAMPLE_BYTES)
            .any(|from| looks_like_text(part(from).unwrap_or_default()))
}

/// Whether a base64 text decodes to bytes that have text, or have a known format.
pub(super) fn sampled(body: &[u8]) -> bool {
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

/// Text of bytes in UTF-16, with a byte order mark or without.
pub(super) fn utf16(bytes: &[u8]) -> Option<String> {
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
