//! Randomness that nobody can foretell.

use super::bindings::portcullis::interceptor::random as host;

/// Bytes that the host gives at once.
const AT_ONCE: usize = 4096;

/// Fills a buffer.
pub fn fill(buffer: &mut [u8]) {
    for part in buffer.chunks_mut(AT_ONCE) {
        // Where the host gives less than it was asked for, this panics: a fault, not weak bytes.
        part.copy_from_slice(&host::bytes(part.len() as u32));
    }
}

/// An array of random bytes.
pub fn bytes<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    fill(&mut bytes);
    bytes
}
