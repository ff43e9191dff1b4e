//! Parser of server-sent events by the HTML standard: bytes in, events out.
//!
//! The data of an event is a message in transit, so it is returned as the received bytes, without a
//! copy. What the standard ignores (unknown fields, lines without a colon) is ignored; what it
//! repairs (bad UTF-8) is left to the strict parser, which refuses it.

use std::ops::Range;

use bytes::{BufMut, Bytes, BytesMut};
use futures_util::{Stream, StreamExt as _, stream};

/// One event. A block with any known field is one, with or without data: an `id` alone states where
/// a stream can be resumed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Event {
    /// Type, if it has one.
    pub name: Option<Bytes>,
    /// Lines of its data, joined by line feeds; empty without data.
    pub data: Bytes,
    pub id: Option<Bytes>,
    /// Milliseconds to wait before reconnecting.
    pub retry: Option<u64>,
}

/// Reason why a stream of events ends early.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Broken<E> {
    #[error("{0}")]
    Source(E),
    #[error("an event has more than {0} bytes")]
    TooLarge(usize),
}

/// Events of a stream of bytes, each of at most `most` bytes. A block cut off by the end of the
/// stream is not an event.
pub fn events<S, E>(chunks: S, most: usize) -> impl Stream<Item = Result<Event, Broken<E>>>
where
    S: Stream<Item = Result<Bytes, E>>,
{
    let state = (EventReader::new(most), Box::pin(chunks));
    stream::try_unfold(state, move |(mut reader, mut chunks)| async move {
        loop {
            match reader.next() {
                Ok(Some(event)) => return Ok(Some((event, (reader, chunks)))),
                Ok(None) => match chunks.next().await {
                    Some(Ok(chunk)) => reader.push(&chunk),
                    Some(Err(error)) => return Err(Broken::Source(error)),
                    None => return Ok(None),
                },
                Err(TooLarge) => return Err(Broken::TooLarge(most)),
            }
        }
    })
}

/// Error: an event exceeds the limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TooLarge;

/// Parses events from chunks of bytes.
pub struct EventReader {
    most: usize,
    /// Received bytes that belong to no returned event.
    buffer: BytesMut,
    /// Start of the current line in the buffer.
    line: usize,
    /// Position up to which no end of that line was found.
    searched: usize,
    /// Whether the last line ended with a carriage return: a line feed directly after it ends no
    /// other line.
    after_return: bool,
    /// Whether no line was read yet: a byte order mark may precede the first.
    first: bool,
    block: Block,
}

/// Fields of the current block, by their positions in the buffer.
#[derive(Default)]
struct Block {
    begun: bool,
    name: Option<Range<usize>>,
    id: Option<Range<usize>>,
    retry: Option<u64>,
    data: Data,
}

#[derive(Default)]
enum Data {
    #[default]
    None,
    /// A single line, the usual case: no copy is made.
    Line(Range<usize>),
    Lines(BytesMut),
}

impl EventReader {
    /// Reader of events of at most `most` bytes, including line ends except the last.
    pub fn new(most: usize) -> Self {
        Self {
            most,
            buffer: BytesMut::new(),
            line: 0,
            searched: 0,
            after_return: false,
            first: true,
            block: Block::default(),
        }
    }

    /// Adds bytes. [`next`](Self::next) must have returned `None` before: only it frees memory and
    /// enforces the limit.
    pub fn push(&mut self, chunk: &[u8]) {
        self.buffer.extend_from_slice(chunk);
    }

    /// Next complete event.
    ///
    /// # Errors
    /// If it is too large. The stream is unusable after that.
    #[expect(clippy::should_implement_trait, reason = "`None` is not the end: more may come")]
    pub fn next(&mut self) -> Result<Option<Event>, TooLarge> {
        loop {
            if self.after_return && self.line < self.buffer.len() {
                self.after_return = false;
                if self.buffer[self.line] == b'\n' {
                    self.line += 1;
                    self.searched = self.line;
                }
            }
            let Some(at) = memchr::memchr2(b'\n', b'\r', &self.buffer[self.searched..]) else {
                self.searched = self.buffer.len();
                return if self.searched > self.most { Err(TooLarge) } else { Ok(None) };
            };
            let mut line = self.line..self.searched + at;
            let after = line.end + 1;
            if line.end > self.most {
                return Err(TooLarge);
            }
            self.after_return = self.buffer[line.end] == b'\r';
            (self.line, self.searched) = (after, after);
            if std::mem::take(&mut self.first) && self.buffer[line.clone()].starts_with(BOM) {
                line.start += BOM.len();
            }
            if line.is_empty() {
                let event = self.dispatch(after);
                if event.is_some() {
                    return Ok(event);
                }
            } else {
                self.field(line);
                if !self.block.begun {
                    // Comments between two events do not accumulate.
                    self.forget(after);
                }
            }
        }
    }

    fn field(&mut self, line: Range<usize>) {
        let text = &self.buffer[line.clone()];
        let (name, mut from) = match memchr::memchr(b':', text) {
            Some(colon) => (&text[..colon], line.start + colon + 1),
            None => (text, line.end),
        };
        if self.buffer.get(from) == Some(&b' ') && from < line.end {
            from += 1;
        }
        let value = from..line.end;
        let block = &mut self.block;
        match name {
            b"data" => {
                block.data = match std::mem::take(&mut block.data) {
                    Data::None => Data::Line(value),
                    Data::Line(first) => {
                        let mut lines = BytesMut::from(&self.buffer[first]);
                        lines.put_u8(b'\n');
                        lines.put_slice(&self.buffer[value]);
                        Data::Lines(lines)
                    }
                    Data::Lines(mut lines) => {
                        lines.put_u8(b'\n');
                        lines.put_slice(&self.buffer[value]);
                        Data::Lines(lines)
                    }
                };
            }
            b"event" => block.name = Some(value),
            // The standard ignores an id that contains NUL.
            b"id" if !self.buffer[value.clone()].contains(&0) => block.id = Some(value),
            b"retry" => {
                let digits = &self.buffer[value];
                let legal = !digits.is_empty() && digits.iter().all(u8::is_ascii_digit);
                let number =
                    std::str::from_utf8(digits).ok().and_then(|digits| digits.parse().ok());
                match number.filter(|_| legal) {
                    Some(number) => block.retry = Some(number),
                    None => return,
                }
            }
            _ => return,
        }
        block.begun = true;
    }

    /// Ends the current block, whose text ends at `end`.
    fn dispatch(&mut self, end: usize) -> Option<Event> {
        let block = std::mem::take(&mut self.block);
        let text = self.forget(end);
        let text = block.begun.then(|| text.freeze())?;
        Some(Event {
            name: block.name.map(|range| text.slice(range)),
            id: block.id.map(|range| text.slice(range)),
            retry: block.retry,
            data: match block.data {
                Data::None => Bytes::new(),
                Data::Line(range) => text.slice(range),
                Data::Lines(lines) => lines.freeze(),
            },
        })
    }

    /// Removes parsed bytes from the buffer.
    fn forget(&mut self, end: usize) -> BytesMut {
        self.line -= end;
        self.searched -= end;
        self.buffer.split_to(end)
    }
}

const BOM: &[u8] = b"\xef\xbb\xbf";

#[cfg(test)]
mod tests {
    use super::*;

    fn read(pieces: &[&[u8]], most: usize) -> Result<Vec<Event>, TooLarge> {
        let mut reader = EventReader::new(most);
        let mut all = Vec::new();
        for piece in pieces {
            reader.push(piece);
            while let Some(event) = reader.next()? {
                all.push(event);
            }
        }
        Ok(all)
    }

    fn data(text: &str) -> Vec<String> {
        let all = read(&[text.as_bytes()], 1000).unwrap();
        all.into_iter().map(|event| String::from_utf8(event.data.to_vec()).unwrap()).collect()
    }

    #[test]
    fn events_are_parsed_by_the_standard() {
        for (text, expected) in [
            ("data: a\n\n", &["a"][..]),
            ("data:a\n\n", &["a"]),
            ("data:  a\n\n", &[" a"]),
            ("data: a\r\n\r\n", &["a"]),
            ("data: a\r\r", &["a"]),
            ("data: a\r\n\ndata: b\n\r\n", &["a", "b"]),
            ("data: a\ndata: b\n\n", &["a\nb"]),
            ("data\ndata\n\n", &["\n"]),
            ("data: a\ndata\ndata: c\n\n", &["a\n\nc"]),
            ("\u{feff}data: a\n\n", &["a"]),
            ("data: a\n\n\u{feff}data: b\n\n", &["a"]),
            (": comment\n\ndata: a\n:\n\n", &["a"]),
            ("unknown: x\nno colon\ndata: a\n\n", &["a"]),
            ("Data: a\n\ndata : b\n\n", &[]),
            ("data: a\nretry: x\nid: \0\n\n", &["a"]),
            ("retry: x\n\nid: \0\n\n", &[]),
            ("id: 1\n\n", &[""]),
            ("data: cut off\n", &[]),
            ("\n\n\n", &[]),
        ] {
            assert_eq!(data(text), expected, "{text:?}");
        }
    }

    #[test]
    fn all_fields_are_parsed() {
        let text = b"event: x\nevent: message\nid: 7\nretry: 30\ndata: {}\n\nretry: +1\nid\n\n";
        let all = read(&[text], 1000).unwrap();
        let [one, two] = all.as_slice() else { panic!("{all:?}") };
        assert_eq!(one.name.as_deref(), Some(&b"message"[..]));
        assert_eq!(one.id.as_deref(), Some(&b"7"[..]));
        assert_eq!((one.retry, &one.data[..]), (Some(30), &b"{}"[..]));
        assert_eq!(*two, Event { id: Some(Bytes::new()), ..Event::default() });
    }

    #[test]
    fn chunk_boundaries_do_not_matter() {
        let text = b"\xef\xbb\xbfdata: a\r\n\r\nid: 1\rdata: b\rdata: c\r\r: x\n\ndata:\n\n";
        let whole = read(&[text], 1000).unwrap();
        assert_eq!(whole.len(), 3);
        for at in 0..text.len() {
            let (a, b) = text.split_at(at);
            assert_eq!(read(&[a, b], 1000).unwrap(), whole, "{at}");
        }
        let bytes: Vec<&[u8]> = text.chunks(1).collect();
        assert_eq!(read(&bytes, 1000).unwrap(), whole);
    }

    #[test]
    fn events_are_limited_and_comments_do_not_accumulate() {
        let line = format!("data: {}\n\n", "x".repeat(94));
        assert_eq!(read(&[line.as_bytes()], 101).unwrap().len(), 1);
        assert_eq!(read(&[line.as_bytes()], 100), Err(TooLarge));
        for at in 0..line.len() {
            let (a, b) = line.as_bytes().split_at(at);
            assert_eq!(read(&[a, b], 101).unwrap().len(), 1);
            assert_eq!(read(&[a, b], 100), Err(TooLarge));
        }
        assert_eq!(read(&[&[b'x'; 101]], 100), Err(TooLarge));
        let mut pieces = vec![&b": keep alive\n"[..]; 1000];
        pieces.push(b"data: a\n\n");
        assert_eq!(read(&pieces, 100).unwrap().len(), 1);
        assert_eq!(read(&vec![&b"data: a\n"[..]; 20], 100), Err(TooLarge));
        // Many small events in one chunk do not count as a large one.
        let many = "data: a\n\n".repeat(100);
        assert_eq!(read(&[many.as_bytes()], 20).unwrap().len(), 100);
    }

    #[tokio::test]
    async fn stream_ends_like_its_source() {
        let chunks = |last| stream::iter([Ok(Bytes::from_static(b"data: a\n\nda")), last]);
        let all: Vec<_> = events(chunks(Ok(Bytes::from_static(b"ta: b\n\n"))), 20).collect().await;
        assert_eq!(all.iter().flatten().count(), 2);
        let all: Vec<_> = events(chunks(Err("gone")), 20).collect().await;
        assert_eq!(all[1], Err(Broken::Source("gone")));
        assert_eq!(all.len(), 2);
        let long = Bytes::from_static(&[b'x'; 30]);
        let all: Vec<_> = events(chunks(Ok(long)), 20).collect().await;
        assert_eq!(all[1], Err(Broken::TooLarge(20)));
    }
}
