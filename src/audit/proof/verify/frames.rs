//! Positions of the frames of a file, including those after a damaged one.

use std::{fs::File, io, ops::Range, os::unix::fs::FileExt as _, sync::Arc};

use crate::store::frame::{self, BODY_MAX, HEADER};

/// Maximum number of records of a frame, which is that of a block.
const COUNT_MAX: u32 = 4096;
/// Bytes per step of a search for the next frame.
const WINDOW: usize = 1 << 20;

/// File of frames.
#[derive(Debug)]
pub(super) struct Source {
    pub file: File,
    /// Name relative to the store's folder.
    pub name: String,
}

/// Frame according to its header.
#[derive(Debug, Clone)]
pub(super) struct Unit {
    pub source: Arc<Source>,
    pub offset: u64,
    /// Length including the header.
    pub length: usize,
    pub first: u64,
    pub count: u32,
}

impl Unit {
    pub fn records(&self) -> Range<u64> {
        self.first..self.first.saturating_add(u64::from(self.count))
    }

    pub fn read(&self) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; self.length];
        self.source.file.read_exact_at(&mut bytes, self.offset)?;
        Ok(bytes)
    }
}

/// Part of a file.
#[derive(Debug, Clone)]
pub(super) enum FilePart {
    Frame(Unit),
    /// Damaged bytes. They are the last piece if no frame was found after them.
    Damage {
        source: Arc<Source>,
        bytes: Range<u64>,
        last: bool,
    },
}

struct Header {
    length: usize,
    checksum: u32,
    flags: u8,
    first: u64,
    count: u32,
}

fn header(bytes: &[u8]) -> Option<Header> {
    let (length, rest) = bytes.split_first_chunk()?;
    let (checksum, rest) = rest.split_first_chunk()?;
    let (flags, rest) = rest.split_first()?;
    let (first, rest) = rest.split_first_chunk()?;
    let header = Header {
        length: 8_usize.checked_add(u32::from_le_bytes(*length) as usize)?,
        checksum: u32::from_le_bytes(*checksum),
        flags: *flags,
        first: u64::from_le_bytes(*first),
        count: u32::from_le_bytes(*rest.first_chunk()?),
    };
    let sound = (HEADER..=HEADER + BODY_MAX + 64).contains(&header.length)
        && frame::knows(header.flags)
        && (1..=COUNT_MAX).contains(&header.count);
    sound.then_some(header)
}

/// Whether a file ends with zeros that were written in advance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fill {
    None,
    Zeros,
}

/// Finds the frames of a file; `next` is the first record of the first frame if nothing is missing.
pub(super) fn pieces(source: &Arc<Source>, mut next: u64, fill: Fill) -> io::Result<Vec<FilePart>> {
    let size = source.file.metadata()?.len();
    let mut pieces = Vec::new();
    let mut offset = 0;
    while offset < size {
        match unit(source, offset, size, next)? {
            Some(unit) => {
                offset += unit.length as u64;
                next = unit.records().end;
                pieces.push(FilePart::Frame(unit));
            }
            None if fill == Fill::Zeros && are_zeros(source, offset, size)? => break,
            None => {
                // A header that only has a wrong length leads to bytes that are not a header.
                let begin = match pieces.last() {
                    Some(FilePart::Frame(unit)) if !sound(unit)? => {
                        let begin = unit.offset;
                        pieces.pop();
                        begin
                    }
                    _ => offset,
                };
                let found = search(source, begin + 1, size, next)?;
                // Frames are written in order: if a later one is whole, this one is now whole too.
                if found.is_some()
                    && let Some(unit) = unit(source, begin, size, next)?
                    && sound(&unit)?
                {
                    offset = begin + unit.length as u64;
                    next = unit.records().end;
                    pieces.push(FilePart::Frame(unit));
                    continue;
                }
                let (source, bytes) = (source.clone(), begin..found.unwrap_or(size));
                pieces.push(FilePart::Damage { source, bytes, last: found.is_none() });
                offset = found.unwrap_or(size);
            }
        }
    }
    Ok(pieces)
}

/// Whether there are only zeros from `offset` on.
fn are_zeros(source: &Arc<Source>, offset: u64, size: u64) -> io::Result<bool> {
    let mut bytes = vec![0; usize::try_from(size - offset).unwrap_or(usize::MAX).min(WINDOW)];
    let mut at = offset;
    while at < size {
        let read = source.file.read_at(&mut bytes, at)?;
        if read == 0 {
            break;
        }
        if bytes.iter().take(read).any(|byte| *byte != 0) {
            return Ok(false);
        }
        at += read as u64;
    }
    Ok(true)
}

/// The frame at `offset`, if any: its header is as expected, or its checksum is right.
fn unit(source: &Arc<Source>, offset: u64, size: u64, next: u64) -> io::Result<Option<Unit>> {
    let mut bytes = [0; HEADER];
    if offset + HEADER as u64 > size {
        return Ok(None);
    }
    source.file.read_exact_at(&mut bytes, offset)?;
    let Some(header) = header(&bytes) else { return Ok(None) };
    if offset + header.length as u64 > size {
        return Ok(None);
    }
    let unit = Unit {
        source: source.clone(),
        offset,
        length: header.length,
        first: header.first,
        count: header.count,
    };
    Ok((header.first == next || sound(&unit)?).then_some(unit))
}

/// Whether a frame's checksum is right.
pub(super) fn sound(unit: &Unit) -> io::Result<bool> {
    let bytes = unit.read()?;
    let rest = bytes.get(8..).unwrap_or_default();
    Ok(header(&bytes).is_some_and(|header| header.checksum == crc32fast::hash(rest)))
}

/// Offset of the next frame with a right checksum.
fn search(source: &Arc<Source>, from: u64, size: u64, next: u64) -> io::Result<Option<u64>> {
    let mut window = from;
    // A file of forged headers must not delay verification.
    let mut budget = (size.saturating_sub(from)).saturating_mul(frame::SEARCH);
    while window + HEADER as u64 <= size {
        let length = usize::try_from(size - window).unwrap_or(usize::MAX).min(WINDOW + HEADER);
        let mut bytes = vec![0; length];
        source.file.read_exact_at(&mut bytes, window)?;
        for (at, head) in bytes.windows(HEADER).enumerate().take(WINDOW) {
            let Some(header) = header(head) else { continue };
            let offset = window + at as u64;
            let near = header.first >= next && header.first - next <= u64::from(u32::MAX);
            if !near || offset + header.length as u64 > size {
                continue;
            }
            let Header { length, first, count, .. } = header;
            budget = budget.saturating_sub(length as u64);
            if budget == 0 {
                return Ok(None);
            }
            if sound(&Unit { source: source.clone(), offset, length, first, count })? {
                return Ok(Some(offset));
            }
        }
        window += WINDOW as u64;
    }
    Ok(None)
}
