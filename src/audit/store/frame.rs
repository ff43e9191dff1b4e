//! Frames: how lines stand in a file.
//!
//! | bytes | what |
//! |---|---|
//! | 4 | length of all that follows the checksum, little-endian |
//! | 4 | CRC-32 (IEEE) of all that follows |
//! | 1 | flags: 1 the body is compressed by zstd, 2 the body is encrypted |
//! | 8 | `seq` of the first line, little-endian |
//! | 4 | number of lines, little-endian |
//! | … | the body: the lines, each ended by a line feed; compressed first, then encrypted |
//!
//! Eight zeros where a frame would begin are the end: files of commits are filled with zeros ahead
//! of the frames, since the size of a file that grows is one more thing to sync with each commit.
//!
//! The checksum finds what a disk or an interrupted write did. What a person did, the hashes find.

use std::io::{self, Read};

use bytes::Bytes;

use crate::maintenance::{Cipher, CipherFault};

/// Bytes before the body.
pub(crate) const HEADER: usize = 21;
const ZSTD: u8 = 1;
const ENCRYPTED: u8 = 2;
/// Most bytes of a body, compressed or not. What claims more is no frame of ours.
pub const BODY_MAX: usize = 64 << 20;
/// Bytes that are read at once, so that a false length costs no more memory than there is file.
const CHUNK: usize = 1 << 20;
const LEVEL: i32 = 3;

/// Why bytes are not a frame.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadFrame {
    /// The file ends in the middle of it.
    #[error("the file ends in the middle of a frame")]
    Torn,
    /// Its bytes are not those that were written.
    #[error("{0}")]
    Damaged(&'static str),
    /// It is encrypted and there is no key for it.
    #[error("the frame is encrypted: {0}")]
    Sealed(String),
    /// It could not be read.
    #[error("{0}")]
    Io(String),
}

/// Lines as they were read from a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// `seq` of the first line.
    pub first: u64,
    /// How many lines the frame says that it has.
    pub count: u32,
    /// The lines, each ended by a line feed.
    pub body: Bytes,
}

impl Frame {
    /// The lines, without their ends.
    pub fn lines(&self) -> impl Iterator<Item = Bytes> + '_ {
        let mut from = 0;
        memchr::memchr_iter(b'\n', &self.body).map(move |end| {
            let line = self.body.slice(from..end);
            from = end + 1;
            line
        })
    }
}

/// Whether a body is worth compressing: commits are not, since they are packed again soon.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pack {
    Plain,
    Zstd,
}

/// Appends the frame of these lines to `out`.
///
/// # Errors
/// Where compression or encryption fails.
pub(crate) fn write(
    out: &mut Vec<u8>,
    first: u64,
    lines: &[Bytes],
    pack: Pack,
    cipher: Option<&Cipher>,
) -> io::Result<()> {
    let size = lines.iter().map(|line| line.len() + 1).sum();
    let mut body = Vec::with_capacity(size);
    for line in lines {
        body.extend_from_slice(line);
        body.push(b'\n');
    }
    if body.len() > BODY_MAX {
        return Err(io::Error::other("too much for one frame"));
    }
    let count = u32::try_from(lines.len()).map_err(io::Error::other)?;
    let mut flags = 0;
    if pack == Pack::Zstd {
        flags |= ZSTD;
        body = zstd::bulk::compress(&body, LEVEL)?;
    }
    if let Some(cipher) = cipher {
        flags |= ENCRYPTED;
        body = cipher.seal(&covered(flags, first, count), &body).map_err(io::Error::other)?;
    }
    let length = u32::try_from(body.len() + HEADER - 8).map_err(io::Error::other)?;
    let mut checksum = crc32fast::Hasher::new();
    checksum.update(&covered(flags, first, count));
    checksum.update(&body);
    out.reserve(HEADER + body.len());
    out.extend_from_slice(&length.to_le_bytes());
    out.extend_from_slice(&checksum.finalize().to_le_bytes());
    out.extend_from_slice(&covered(flags, first, count));
    out.extend_from_slice(&body);
    Ok(())
}

/// The header without length and checksum. Encryption binds the body to it.
fn covered(flags: u8, first: u64, count: u32) -> [u8; HEADER - 8] {
    let mut bytes = [0; HEADER - 8];
    let (flag, rest) = bytes.split_at_mut(1);
    flag.copy_from_slice(&[flags]);
    let (seq, number) = rest.split_at_mut(8);
    seq.copy_from_slice(&first.to_le_bytes());
    number.copy_from_slice(&count.to_le_bytes());
    bytes
}

/// Whether these are flags that a frame can have.
pub(crate) fn knows(flags: u8) -> bool {
    flags & !(ZSTD | ENCRYPTED) == 0
}

/// The bytes of a frame after its length and checksum, the checksum found right.
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
        return Err(BadFrame::Damaged("a frame does not have the number of lines that it says"));
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
    // Grown as it comes, since the size is only what the frame says.
    zstd::stream::Decoder::with_buffer(body)
        .and_then(|decoder| decoder.take(size as u64 + 1).read_to_end(&mut plain))
        .map_err(bad)?;
    if plain.len() == size {
        Ok(plain)
    } else {
        Err(BadFrame::Damaged("a frame is not as large as it says"))
    }
}

/// How often each byte may be looked at while the next frame is searched for: honest files have few
/// bytes that look like a header.
pub(crate) const SEARCH: u64 = 16;

/// The bytes that a frame has by its header.
pub(crate) fn claims(header: &[u8]) -> u64 {
    header.first_chunk::<4>().map_or(0, |bytes| u64::from(u32::from_le_bytes(*bytes)) + 8)
}

/// Whether these bytes can be the header of a frame whose first record is one of `records`.
pub(crate) fn may_begin(header: &[u8], records: &std::ops::Range<u64>) -> bool {
    let seq = header.get(9..17).and_then(|bytes| bytes.first_chunk::<8>());
    let length = header.first_chunk::<4>().map_or(0, |bytes| u32::from_le_bytes(*bytes) as usize);
    if !(HEADER - 8..=BODY_MAX + HEADER).contains(&length) {
        return false;
    }
    header.get(8).is_some_and(|flags| flags & !(ZSTD | ENCRYPTED) == 0)
        && seq.is_some_and(|bytes| records.contains(&u64::from_le_bytes(*bytes)))
}

/// Reads the frame at the beginning of `bytes`, and how long it is.
///
/// # Errors
/// [`BadFrame`].
pub(crate) fn read(bytes: &[u8], cipher: Option<&Cipher>) -> Result<(Frame, usize), BadFrame> {
    let mut frames = Frames::new(bytes, cipher);
    match frames.next() {
        Some(Ok(frame)) => Ok((frame, usize::try_from(frames.offset()).unwrap_or(usize::MAX))),
        Some(Err(bad)) => Err(bad),
        None => Err(BadFrame::Torn),
    }
}

/// The frames of a file that is not encrypted, in order. Ends after the first bad one.
pub fn frames(file: impl Read) -> impl Iterator<Item = Result<Frame, BadFrame>> {
    Frames::new(file, None)
}

/// The frames of a file, in order. Ends after the first bad one.
pub(crate) struct Frames<'a, R> {
    file: R,
    cipher: Option<&'a Cipher>,
    /// Where the next frame begins.
    offset: u64,
    ended: bool,
}

impl<'a, R: Read> Frames<'a, R> {
    /// Reads from where `file` stands.
    pub fn new(file: R, cipher: Option<&'a Cipher>) -> Self {
        Self { file, cipher, offset: 0, ended: false }
    }

    /// Bytes of all frames read so far: where the next one begins, or the bad one.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// The bytes that are left, at most `most`: fewer at the end of the file.
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
    fn frames_are_read_as_they_were_written() {
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
    fn every_flipped_bit_and_every_cut_is_seen() {
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
    fn zeros_are_the_end() {
        let mut file = Vec::new();
        write(&mut file, 7, &lines(3), Pack::Plain, None).unwrap();
        let end = file.len() as u64;
        file.resize(file.len() + 100, 0);
        let mut frames = Frames::new(file.as_slice(), None);
        assert_eq!((frames.by_ref().map(Result::unwrap).count(), frames.offset()), (1, end));
    }

    #[test]
    fn a_bomb_is_not_unpacked() {
        let bomb = zstd::bulk::compress(&vec![b'\n'; BODY_MAX + 1], LEVEL).unwrap();
        assert!(matches!(unpack(&bomb), Err(BadFrame::Damaged("a frame is too large"))));
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_harm(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            for frame in Frames::new(bytes.as_slice(), None) {
                let _ = frame;
            }
        }
    }
}
