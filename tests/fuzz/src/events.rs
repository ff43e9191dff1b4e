//! Server-sent events: the same ones come out in whatever pieces the bytes came, and they are those
//! that a plain reader of the standard sees.

use bytes::Bytes;
use portcullis_protocol::codec::{Event, EventReader, TooLarge};

/// The first byte tells how the rest is cut into pieces.
pub fn target(bytes: &[u8]) {
    let Some((&cut, text)) = bytes.split_first() else { return };
    let whole = read([text].into_iter(), usize::MAX).expect("no bound");
    assert_eq!(whole, plain(text), "other events than a plain reader sees");

    let size = usize::from(cut >> 3) + 1;
    assert_eq!(read(text.chunks(size), usize::MAX).as_ref(), Ok(&whole), "in equal pieces");
    // Pieces of growing size, with empty ones between.
    let mut rest = text;
    let mut pieces: Vec<&[u8]> = Vec::new();
    for size in (usize::from(cut & 7)..).step_by(3) {
        let (piece, after) = rest.split_at(size.min(rest.len()));
        pieces.extend([piece, &[]]);
        rest = after;
        if rest.is_empty() {
            break;
        }
    }
    assert_eq!(read(pieces.into_iter(), usize::MAX).as_ref(), Ok(&whole), "in unequal pieces");

    // With a bound, whatever came before the one that is too large is the same, in any pieces.
    let most = usize::from(cut);
    let mut before = Vec::new();
    let bound = collect([text].into_iter(), most, &mut before);
    assert!(whole.starts_with(&before));
    assert!(before.iter().all(|event| event.data.len() <= most), "larger than it may be");
    let mut after = Vec::new();
    assert_eq!(collect(text.chunks(size), most, &mut after), bound, "the bound is another");
    assert_eq!(before, after);
    if bound.is_ok() {
        assert_eq!(before, whole);
    }
}

fn read<'a>(pieces: impl Iterator<Item = &'a [u8]>, most: usize) -> Result<Vec<Event>, TooLarge> {
    let mut all = Vec::new();
    collect(pieces, most, &mut all).map(|()| all)
}

fn collect<'a>(
    pieces: impl Iterator<Item = &'a [u8]>,
    most: usize,
    all: &mut Vec<Event>,
) -> Result<(), TooLarge> {
    let mut reader = EventReader::new(most);
    for piece in pieces {
        reader.push(piece);
        while let Some(event) = reader.next()? {
            all.push(event);
        }
    }
    Ok(())
}

/// The standard's own words, over the whole text at once.
fn plain(text: &[u8]) -> Vec<Event> {
    let text = text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(text);
    let mut lines: Vec<Vec<u8>> = vec![Vec::new()];
    let mut at = 0;
    while at < text.len() {
        match text[at] {
            b'\r' | b'\n' => {
                if text[at..].starts_with(b"\r\n") {
                    at += 1;
                }
                lines.push(Vec::new());
            }
            byte => lines.last_mut().expect("one at least").push(byte),
        }
        at += 1;
    }
    // What has no end is no line.
    lines.pop();

    let mut events = Vec::new();
    let mut event = Event::default();
    let (mut data, mut begun) = (None::<Vec<u8>>, false);
    for line in lines {
        if line.is_empty() {
            let data = data.take().unwrap_or_default();
            let done = Event { data: Bytes::from(data), ..std::mem::take(&mut event) };
            if std::mem::take(&mut begun) {
                events.push(done);
            }
            continue;
        }
        let mut parts = line.splitn(2, |&byte| byte == b':');
        let name = parts.next().unwrap_or_default();
        let value = parts.next().unwrap_or_default();
        let value = value.strip_prefix(b" ").unwrap_or(value);
        match name {
            b"data" => match &mut data {
                Some(data) => {
                    data.push(b'\n');
                    data.extend_from_slice(value);
                }
                None => data = Some(value.to_vec()),
            },
            b"event" => event.name = Some(Bytes::copy_from_slice(value)),
            b"id" if !value.contains(&0) => event.id = Some(Bytes::copy_from_slice(value)),
            b"retry" if !value.is_empty() && value.iter().all(u8::is_ascii_digit) => {
                let number = value.iter().try_fold(0u64, |all, digit| {
                    all.checked_mul(10)?.checked_add(u64::from(digit - b'0'))
                });
                match number {
                    Some(number) => event.retry = Some(number),
                    None => continue,
                }
            }
            _ => continue,
        }
        begun = true;
    }
    events
}
