//! Frames: the format of lines in a file.
//!
//! | bytes | what |
//! |---|---|
//! | 4 | length of the data after the checksum, little-endian |
//! | 4 | CRC-32 (IEEE) of the data after it |
//! | 1 | flags: 1 the body is compressed by zstd, 2 the body is encrypted |
//! | 8 | `seq` of the first line, little-endian |
//! | 4 | number of lines, little-endian |
//! | … | the body: the lines, each ended by a line feed; compressed first, then encrypted |
//!
//! Eight zeros instead of a header mark the end. Files of commits are filled with zeros in advance:
//! if the file grew, each commit would also have to sync its size.
//!
//! The checksum detects faults of a disk and interrupted writes. The hashes detect manipulation.

use std::io::{self, Read};

use bytes::Bytes;

use crate::maintenance::{Cipher, CipherFault};

/// Bytes before the body.
pub(crate) const HEADER: usize = 21;
const ZSTD: u8 = 1;
const ENCRYPTED: u8 = 2;
/// Maximum bytes of a body, compressed or not. A larger length is not that of a frame.
pub const BODY_MAX: usize = 64 << 20;
/// Bytes per read, so that a wrong length allocates no more memory than the file has bytes.
const CHUNK: usize = 1 << 20;
/// Records repeat so much that higher levels are slower without smaller results.
const LEVEL: i32 = 1;

/// Reasons why bytes are not a frame.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadFrame {
    /// The file ends within the frame.
    #[error("the file ends in the middle of a frame")]
    Torn,
    /// The bytes were changed after they were written.
    #[error("{0}")]
    Damaged(&'static str),
    /// The frame is encrypted and its key is missing.
    #[error("the frame is encrypted: {0}")]
    Sealed(String),
    /// The file could not be read.
    #[error("{0}")]
    Io(String),
}

/// Lines of one frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// `seq` of the first line.
    pub first: u64,
    /// Number of lines that the header names.
    pub count: u32,
    /// The lines, each ended by a line feed.
    pub body: Bytes,
}

impl Frame {
    /// Lines without their line feeds.
    pub fn lines(&self) -> impl Iterator<Item = Bytes> + '_ {
        let mut from = 0;
        memchr::memchr_iter(b'\n', &self.body).map(move |end| {
            let line = self.body.slice(from..end);
            from = end + 1;
            line
        })
    }
}

/// Whether to compress a body. Commits are not compressed, since they are packed soon.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pack {
    Plain,
    Zstd,
}

/// Appends the frame of these lines to `out`.
///
/// # Errors
/// If compression or encryption fails.
pub(crate) fn write(
    out: &mut Vec<u8>,
    first: u64,
    lines: &[Bytes],
    pack: Pack,
    cipher: Option<&Cipher>,
) -> io::Result<()> {
    let size: usize = lines.iter().map(|line| line.len() + 1).sum();
    if size > BODY_MAX {
        return Err(io::Error::other("too much for one frame"));
    }
    let count = u32::try_from(lines.len()).map_err(io::Error::other)?;
    let mut flags = 0;
    let mut body = Vec::new();
    if pack == Pack::Zstd {
        flags |= ZSTD;
        body = zstd::bulk::compress(&joined(lines, size), LEVEL)?;
    }
    if let Some(cipher) = cipher {
        flags |= ENCRYPTED;
        let plain = if pack == Pack::Zstd { body } else { joined(lines, size) };
        body = cipher.seal(&covered(flags, first, count), &plain).map_err(io::Error::other)?;
    }
    // Most commits are plain: their lines are copied once, into `out`.
    let is_plain = flags == 0;
    let size = if is_plain { size } else { body.len() };
    let length = u32::try_from(size + HEADER - 8).map_err(io::Error::other)?;
    let mut checksum = crc32fast::Hasher::new();
    checksum.update(&covered(flags, first, count));
    if is_plain {
        for line in lines {
            checksum.update(line);
            checksum.update(b"\n");
        }
    } else {
        checksum.update(&body);
    }
    out.reserve(HEADER + size);
    out.extend_from_slice(&length.to_le_bytes());
    out.extend_from_slice(&checksum.finalize().to_le_bytes());
    out.extend_from_slice(&covered(flags, first, count));
    if is_plain {
        join(lines, out);
    } else {
        out.extend_from_slice(&body);
    }
    Ok(())
}

fn joined(lines: &[Bytes], size: usize) -> Vec<u8> {
    let mut text = Vec::with_capacity(size);
    join(lines, &mut text);
    text
}

/// Appends the lines, each with its line feed.
fn join(lines: &[Bytes], text: &mut Vec<u8>) {
    for line in lines {
        text.extend_from_slice(line);
        text.push(b'\n');
    }
}

/// Header without length and checksum. Encryption authenticates it with the body.
fn covered(flags: u8, first: u64, count: u32) -> [u8; HEADER - 8] {
    let mut bytes = [0; HEADER - 8];
    let (flag, rest) = bytes.split_at_mut(1);
    flag.copy_from_slice(&[flags]);
    let (seq, number) = rest.split_at_mut(8);
    seq.copy_from_slice(&first.to_le_bytes());
    number.copy_from_slice(&count.to_le_bytes());
    bytes
}

/// Whether all flags are known.
pub(crate) fn knows(flags: u8) -> bool {
    flags & !(ZSTD | ENCRYPTED) == 0
}

/// Parses a frame after its length and checksum. The checksum has been verified.
fn decode(rest: &[u8], cipher: Option<&Cipher>) -> Result<Frame, BadFrame> {
    const SHORT: BadFrame = BadFrame::Damaged("a frame is too short");
    let (head, body) = rest.split_first_chunk::<{ HEADER - 8 }>().ok_or(SHORT)?;
    let (flags, numbers) = head.split_first().ok_or(SHORT)?;
    let (first, count) = numbers.split_first_chunk::<8>().ok_or(SHORT)?;
    let count = count.first_chunk::<4>().ok_or(SHORT)?;
    let (first, count) = (u64::from_le_bytes(*first), u32::from_le_bytes(*count));
    if !knows(*flags) {
        return Err(BadFrame::Damaged("a frame has flags that this version does not know"));
    }
    let opened;
    let mut body = body;
    if flags & ENCRYPTED != 0 {
        let cipher =
            cipher.ok_or_else(|| BadFrame::Sealed("there is no `audit.encryption` key".into()))?;
        opened =
            cipher.open(&covered(*flags, first, count), body).map_err(|fault| match fault {
                CipherFault::Needs(_) => BadFrame::Sealed(fault.to_string()),
                _ => BadFrame::Damaged("a frame is not what was encrypted"),
            })?;
        body = &opened;
    }
    let body =
        if flags & ZSTD != 0 { Bytes::from(unpack(body)?) } else { Bytes::copy_from_slice(body) };
    if memchr::memchr_iter(b'\n', &body).count() != count as usize
        || body.last().is_some_and(|last| *last != b'\n')
    {
        return Err(BadFrame::Damaged("the number of lines of a frame does not match its header"));
    }
    Ok(Frame { first, count, body })
}

fn unpack(body: &[u8]) -> Result<Vec<u8>, BadFrame> {
    let bad = |_| BadFrame::Damaged("a frame can't be decompressed");
    let size = zstd::zstd_safe::get_frame_content_size(body)
        .map_err(|_| BadFrame::Damaged("a frame can't be decompressed"))?
        .and_then(|size| usize::try_from(size).ok())
        .filter(|size| *size <= BODY_MAX)
        .ok_or(BadFrame::Damaged("a frame is too large"))?;
    let mut plain = Vec::new();
    // Grows on demand: the size in the frame is not trusted.
    zstd::stream::Decoder::with_buffer(body)
        .and_then(|decoder| decoder.take(size as u64 + 1).read_to_end(&mut plain))
        .map_err(bad)?;
    if plain.len() == size {
        Ok(plain)
    } else {
        Err(BadFrame::Damaged("the size of a frame does not match its header"))
    }
}

/// Maximum number of reads of each byte during a search for the next frame: few bytes of a normal
/// file look like a header.
pub(crate) const SEARCH: u64 = 16;

/// Length of the frame according to its header.
pub(crate) fn claims(header: &[u8]) -> u64 {
    header.first_chunk::<4>().map_or(0, |bytes| u64::from(u32::from_le_bytes(*bytes)) + 8)
}

/// Whether these bytes can be the header of a frame whose first record is in `records`.
pub(crate) fn may_begin(header: &[u8], records: &std::ops::Range<u64>) -> bool {
    let seq = header.get(9..17).and_then(|bytes| bytes.first_chunk::<8>());
    let length = header.first_chunk::<4>().map_or(0, |bytes| u32::from_le_bytes(*bytes) as usize);
    if !(HEADER - 8..=BODY_MAX + HEADER).contains(&length) {
        return false;
    }
    header.get(8).is_some_and(|flags| flags & !(ZSTD | ENCRYPTED) == 0)
        && seq.is_some_and(|bytes| records.contains(&u64::from_le_bytes(*bytes)))
}

/// Parses the frame at the start of `bytes`. Returns it with its length.
///
/// # Errors
/// [`BadFrame`], if `bytes` does not start with a valid frame.
pub(crate) fn read(bytes: &[u8], cipher: Option<&Cipher>) -> Result<(Frame, usize), BadFrame> {
    let mut frames = Frames::new(bytes, cipher);
    match frames.next() {
        Some(Ok(frame)) => Ok((frame, usize::try_from(frames.offset()).unwrap_or(usize::MAX))),
        Some(Err(bad)) => Err(bad),
        None => Err(BadFrame::Torn),
    }
}

/// Frames of an unencrypted file, in order. Ends after the first invalid one.
pub fn frames(file: impl Read) -> impl Iterator<Item = Result<Frame, BadFrame>> {
    Frames::new(file, None)
}

/// Frames of a file, in order. Ends after the first invalid one.
pub(crate) struct Frames<'a, R> {
    file: R,
    cipher: Option<&'a Cipher>,
    /// Offset of the next frame.
    offset: u64,
    ended: bool,
}

impl<'a, R: Read> Frames<'a, R> {
    /// Reads from the current position of `file`.
    pub fn new(file: R, cipher: Option<&'a Cipher>) -> Self {
        Self { file, cipher, offset: 0, ended: false }
    }

    /// Bytes of all frames read so far: the offset of the next frame or of the invalid one.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// The next `most` bytes, or fewer at the end of the file.
    fn bytes(&mut self, most: usize) -> Result<Vec<u8>, BadFrame> {
        let mut bytes = Vec::with_capacity(most.min(CHUNK));
        self.file
            .by_ref()
            .take(most as u64)
            .read_to_end(&mut bytes)
            .map_err(|error| BadFrame::Io(error.to_string()))?;
        Ok(bytes)
    }

    fn frame(&mut self) -> Result<Option<Frame>, BadFrame> {
        let head = self.bytes(8)?;
        if head.is_empty() {
            return Ok(None);
        }
        let (length, checksum) = head.split_first_chunk::<4>().ok_or(BadFrame::Torn)?;
        let checksum = checksum.first_chunk::<4>().ok_or(BadFrame::Torn)?;
        let length = u32::from_le_bytes(*length) as usize;
        if head == [0; 8] {
            return Ok(None);
        }
        if !(HEADER - 8..=BODY_MAX + HEADER).contains(&length) {
            return Err(BadFrame::Damaged("a frame's length can't be right"));
        }
        let rest = self.bytes(length)?;
        if rest.len() < length {
            return Err(BadFrame::Torn);
        }
        if crc32fast::hash(&rest) != u32::from_le_bytes(*checksum) {
            return Err(BadFrame::Damaged("a frame's checksum is wrong"));
        }
        let frame = decode(&rest, self.cipher)?;
        self.offset += 8 + length as u64;
        Ok(Some(frame))
    }
}

impl<R: Read> Iterator for Frames<'_, R> {
    type Item = Result<Frame, BadFrame>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        let next = self.frame().transpose();
        self.ended = !matches!(next, Some(Ok(_)));
        next
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn lines(count: usize) -> Vec<Bytes> {
        (0..count).map(|i| Bytes::from(format!("line {i} of several"))).collect()
    }

    #[test]
    fn frames_round_trip() {
        let mut file = Vec::new();
        write(&mut file, 7, &lines(3), Pack::Plain, None).unwrap();
        write(&mut file, 10, &lines(300), Pack::Zstd, None).unwrap();
        let read: Vec<_> = Frames::new(file.as_slice(), None).map(Result::unwrap).collect();
        assert_eq!(
            read.iter().map(|f| (f.first, f.count)).collect::<Vec<_>>(),
            [(7, 3), (10, 300)]
        );
        assert_eq!(read[1].lines().collect::<Vec<_>>(), lines(300));
    }

    #[test]
    fn flipped_bits_and_truncations_are_detected() {
        for pack in [Pack::Plain, Pack::Zstd] {
            let mut file = Vec::new();
            write(&mut file, 7, &lines(3), pack, None).unwrap();
            for at in 0..file.len() {
                assert_eq!(read(&file[..at], None), Err(BadFrame::Torn), "cut at {at}");
                for bit in 0..8 {
                    let mut other = file.clone();
                    other[at] ^= 1 << bit;
                    assert!(read(&other, None).is_err(), "bit {bit} of byte {at}");
                }
            }
        }
    }

    #[test]
    fn zeros_end_the_file() {
        let mut file = Vec::new();
        write(&mut file, 7, &lines(3), Pack::Plain, None).unwrap();
        let end = file.len() as u64;
        file.resize(file.len() + 100, 0);
        let mut frames = Frames::new(file.as_slice(), None);
        assert_eq!((frames.by_ref().map(Result::unwrap).count(), frames.offset()), (1, end));
    }

    #[test]
    fn decompression_bomb_is_refused() {
        let bomb = zstd::bulk::compress(&vec![b'\n'; BODY_MAX + 1], LEVEL).unwrap();
        assert!(matches!(unpack(&bomb), Err(BadFrame::Damaged("a frame is too large"))));
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_cause_no_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            for frame in Frames::new(bytes.as_slice(), None) {
                let _ = frame;
            }
        }
    }
}
