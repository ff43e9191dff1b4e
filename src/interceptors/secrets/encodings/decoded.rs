//! Tells texts among decoded bytes from other data.

use super::archives::is_archive;

/// Number of bytes that are tested for text at once.
const SAMPLE_BYTES: usize = 24;

/// Whether decoded bytes have text, or have a known format: at least two of three bytes of a sample
/// are printable, or every second one is zero. Each sample begins in the middle of the one before.
pub(super) fn is_worth(bytes: &[u8]) -> bool {
    if is_packed(bytes) {
        return true;
    }
    if bytes.len() <= SAMPLE_BYTES {
        return looks_like_text(bytes.len(), counts(bytes));
    }
    let (halves, rest) = bytes.as_chunks::<{ SAMPLE_BYTES / 2 }>();
    let mut before = (0, 0);
    for (at, half) in halves.iter().enumerate() {
        let here = counts(half);
        if at > 0 && looks_like_text(SAMPLE_BYTES, (before.0 + here.0, before.1 + here.1)) {
            return true;
        }
        before = here;
    }
    let last = bytes.last_chunk::<SAMPLE_BYTES>().filter(|_| !rest.is_empty());
    last.is_some_and(|last| looks_like_text(SAMPLE_BYTES, counts(last)))
}

/// For each byte, whether it is printable, and [`ZERO`] for a zero.
static KINDS: [u16; 256] = {
    let mut kinds = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        if matches!(byte as u8, b' '..=b'~' | b'\n' | b'\r' | b'\t') {
            kinds[byte] = 1;
        }
        byte += 1;
    }
    kinds[0] = ZERO;
    kinds
};
/// More than the number of bytes that are counted at once.
const ZERO: u16 = 1 << 8;

/// Numbers of printable bytes and of zeros among few bytes.
fn counts(bytes: &[u8]) -> (usize, usize) {
    let kind = |b: &u8| KINDS.get(usize::from(*b)).copied().unwrap_or(0);
    let sum: u16 = bytes.iter().map(kind).sum();
    (usize::from(sum % ZERO), usize::from(sum / ZERO))
}

fn looks_like_text(length: usize, (printable, zeros): (usize, usize)) -> bool {
    3 * printable >= 2 * length || is_utf16(length, zeros)
}

fn is_packed(bytes: &[u8]) -> bool {
    is_archive(bytes) || matches!(bytes, [0xff, 0xfe, ..] | [0xfe, 0xff, ..])
}

fn is_utf16(length: usize, zeros: usize) -> bool {
    length >= 8 && 5 * zeros >= 2 * length
}

/// Text of bytes in UTF-16, with a byte order mark or without.
pub(super) fn utf16(bytes: &[u8]) -> Option<String> {
    let (big, body) = match bytes {
        [0xfe, 0xff, body @ ..] => (true, body),
        [0xff, 0xfe, body @ ..] => (false, body),
        _ => {
            let zeros = bytes
                .get(..bytes.len().min(64))
                .filter(|start| is_utf16(start.len(), counts(start).1))?;
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
