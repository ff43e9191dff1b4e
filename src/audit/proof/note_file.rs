//! Files of signed notes. An empty line follows each note.

/// Notes of a file, and its tail.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Notes<'a> {
    /// Notes with their offsets.
    pub notes: Vec<(usize, &'a [u8])>,
    pub tail: Tail,
}

/// Data after the last whole note.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Tail {
    None,
    /// Incomplete note of an interrupted write, from this offset on.
    Torn(usize),
    /// Data that is not the start of a note, from this offset on.
    Damaged(usize),
}

const SIGNATURE: &[u8] = "\u{2014} ".as_bytes();

/// Splits a file into notes. Damaged data in the middle becomes a note of its own, without a valid
/// signature.
pub(super) fn split(bytes: &[u8]) -> Notes<'_> {
    let mut notes = Vec::new();
    // Offset of a text whose signatures were not found yet.
    let mut text = None;
    let mut at = 0;
    while let Some(end) = memchr::memmem::find(bytes.get(at..).unwrap_or_default(), b"\n\n") {
        let next = at + end + 2;
        let signed = bytes[at..].starts_with(SIGNATURE);
        match text.take() {
            Some(begin) if signed => notes.push((begin, &bytes[begin..next - 1])),
            Some(begin) => {
                notes.push((begin, &bytes[begin..at]));
                text = Some(at);
            }
            None if signed => notes.push((at, &bytes[at..next])),
            None => text = Some(at),
        }
        at = next;
    }
    let tail = tail(bytes, text, at, &mut notes);
    Notes { notes, tail }
}

fn tail<'a>(
    bytes: &'a [u8],
    text: Option<usize>,
    at: usize,
    notes: &mut Vec<(usize, &'a [u8])>,
) -> Tail {
    let rest = &bytes[at..];
    // A signature within a text means that the empty line before it was changed.
    let swallowed = |part: &[u8]| memchr::memmem::find(part, SIGNATURE).is_some();
    match text {
        None if rest.is_empty() => Tail::None,
        None if swallowed(rest) => Tail::Damaged(at),
        None => Tail::Torn(at),
        // A complete note that only lacks the empty line after it.
        Some(begin) if rest.ends_with(b"\n") => {
            notes.push((begin, &bytes[begin..]));
            Tail::None
        }
        Some(begin) if swallowed(&bytes[begin..at]) || rest.contains(&b'\n') => {
            Tail::Damaged(begin)
        }
        Some(begin) if rest.starts_with(SIGNATURE) || SIGNATURE.starts_with(rest) => {
            Tail::Torn(begin)
        }
        Some(begin) => Tail::Damaged(begin),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: &str = "one\n1\n\n\u{2014} name c2ln\n";
    const TWO: &str = "two\n2\nmore\n\n\u{2014} name c2ln\n\u{2014} other c2ln\n";

    #[test]
    fn notes_are_split_at_their_offsets() {
        let file = format!("{ONE}\n{TWO}\n");
        let all = vec![(0, ONE.as_bytes()), (ONE.len() + 1, TWO.as_bytes())];
        assert_eq!(split(file.as_bytes()), Notes { notes: all.clone(), tail: Tail::None });
        let unended = &file.as_bytes()[..file.len() - 1];
        assert_eq!(split(unended), Notes { notes: all, tail: Tail::None });
        assert_eq!(split(b""), Notes { notes: vec![], tail: Tail::None });
    }

    #[test]
    fn truncated_note_is_torn_and_not_damaged() {
        let file = format!("{ONE}\n{ONE}\n");
        let second = ONE.len() + 1;
        for cut in second + 1..file.len() - 1 {
            let found = split(&file.as_bytes()[..cut]);
            assert_eq!(found.notes, [(0, ONE.as_bytes())], "{cut}");
            assert_eq!(found.tail, Tail::Torn(second), "{cut}");
        }
    }

    #[test]
    fn every_flipped_bit_damages_a_note_or_the_tail() {
        let file = format!("{ONE}\n{TWO}\n");
        let good = split(file.as_bytes());
        for at in 0..file.len() {
            for bit in 0..8 {
                let mut bytes = file.clone().into_bytes();
                bytes[at] ^= 1 << bit;
                let found = split(&bytes);
                let torn = matches!(found.tail, Tail::Torn(_));
                let same = found.notes.iter().map(|n| n.1).eq(good.notes.iter().map(|n| n.1));
                assert!(!torn && (!same || found.tail != Tail::None), "bit {bit} of {at}");
            }
        }
    }
}
