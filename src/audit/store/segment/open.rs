//! Opening of a segment: indexes records that the index lacks, and reads commits that are not
//! sealed yet.

use std::{
    fs::{self, File},
    io,
    ops::Range,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use jiff::Timestamp;

use super::{
    super::{
        block::{FrameAt, Growing},
        fault::Fault,
        frame::{self, BadFrame, Frames},
        private_dir, stamp,
    },
    IndexTrust, Mode, Positioned, Segment, SegmentEnv, Wal, added,
};
use crate::maintenance::Cipher;

/// Acknowledged records that are lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Loss {
    /// `seq` of the first lost record. The next new record gets it.
    pub from: u64,
    /// `seq` after the last lost record.
    pub until: u64,
}

/// Result of opening a segment.
pub(in crate::store) struct OpenedSegment {
    pub segment: Arc<Segment>,
    /// Blocks that are not in `records` yet, in order.
    pub growing: Vec<Arc<Growing>>,
    /// File of commits of the last block.
    pub wal: Option<Wal>,
    /// `seq` after the last record.
    pub end: u64,
    /// Descriptions of parts that cannot be read.
    pub damage: Vec<String>,
}

impl Segment {
    /// Opens a segment and indexes records that the index lacks. `acknowledged` is the `seq` after
    /// the last acknowledged record: unreadable data beyond it is a commit that a stop
    /// interrupted.
    pub fn open(
        env: &Arc<SegmentEnv>,
        first: u64,
        mode: Mode,
        acknowledged: u64,
        index: IndexTrust,
    ) -> Result<OpenedSegment, Fault> {
        let segment = Self::bare(env, first)?;
        let mut damage = Vec::new();
        match index {
            IndexTrust::Believe => segment.load()?,
            IndexTrust::Doubt => drop(segment.renewed("it is in doubt")?),
        }
        let sealed = segment.end();
        let mut wals = segment.wals()?;
        if mode == Mode::Write {
            for (_, path) in wals.iter().filter(|(first, _)| *first < sealed) {
                fs::remove_file(path).map_err(|e| Fault::io("removing", path, &e))?;
            }
        }
        wals.retain(|(first, _)| *first >= sealed);
        segment.drop_stale(&mut wals, mode)?;
        let limit = wals.first().map_or(u64::MAX, |(first, _)| *first);
        segment.catch_up(limit, mode, &mut damage)?;
        let mut end = segment.end();
        let mut growing: Vec<Arc<Growing>> = Vec::new();
        let mut wal = None;
        for (at, (first, path)) in wals.iter().enumerate() {
            if *first != end {
                // Commits after lost ones: new records get their `seq`.
                damage.push(format!("{}: does not go on from record {end}", path.display()));
                segment.set_aside(path, mode)?;
                continue;
            }
            let next = wals.get(at + 1).map_or(u64::MAX, |(first, _)| *first);
            let (block, length, bad) = segment.commits(*first, path, next)?;
            end = block.end();
            if let Some(bad @ BadFrame::Sealed(_)) = bad {
                return Err(Fault::Io(format!("{}: {bad}", path.display())));
            }
            let more = segment.goes_on(path, length, end..next)?;
            if more || (at + 1 == wals.len() && end < acknowledged) {
                let bad = bad.as_ref().map_or("commits are missing".into(), ToString::to_string);
                damage.push(format!("{} at byte {length}: {bad}", path.display()));
                segment.copy_aside(path, mode)?;
            }
            wal = (mode == Mode::Write).then(|| Wal::resume(path.clone(), length)).transpose()?;
            growing.push(Arc::new(block));
        }
        Ok(OpenedSegment { segment: Arc::new(segment), growing, wal, end, damage })
    }

    /// Skips commits that `records` contains completely: their blocks were sealed, but the file
    /// could not be removed, or the index was lost. If they were kept, later sealed blocks would be
    /// cut off.
    fn drop_stale(&self, wals: &mut Vec<(u64, PathBuf)>, mode: Mode) -> Result<(), Fault> {
        let (size, mut offset, mut next) = (self.size()?, *self.length.lock(), self.end());
        if wals.is_empty() || offset >= size {
            return Ok(());
        }
        while offset < size
            && let Ok((frame, length)) = self.frame_at(offset)
            && frame.first == next
        {
            offset += length;
            next += u64::from(frame.count);
        }
        while let Some((first, path)) = wals.first()
            && *first < next
        {
            let until = wals.get(1).map_or(u64::MAX, |(first, _)| *first);
            let (block, _, bad) = self.commits(*first, path, until)?;
            if bad.is_some() || block.end() > next {
                break;
            }
            if mode == Mode::Write {
                // The sealing process may have stopped before its sync.
                self.records
                    .sync_all()
                    .and_then(|()| fs::remove_file(path))
                    .map_err(|e| Fault::io("removing", path, &e))?;
            }
            wals.remove(0);
        }
        Ok(())
    }

    /// Indexes the frames of `records` that the index lacks, up to the record `limit`. Later frames
    /// are also in commits; they are cut off and sealed again.
    fn catch_up(&self, limit: u64, mode: Mode, damage: &mut Vec<String>) -> Result<(), Fault> {
        let size = self.size()?;
        let mut offset = *self.length.lock();
        let mut next = self.end();
        let mut block: Option<(Growing, Vec<FrameAt>)> = None;
        while offset < size {
            let (frame, length) = match self.frame_at(offset) {
                Ok(found) => found,
                Err(BadFrame::Sealed(why)) => return Err(Fault::Io(why)),
                // A block that was being sealed: its commits still exist.
                Err(_) if limit == next => break,
                Err(bad) => {
                    let file = self.path.join("records");
                    damage.push(format!("{} at byte {offset}: {bad}", file.display()));
                    match self.skip(offset, size, next..limit) {
                        Some(readable) => {
                            self.index_block(block.take())?;
                            offset = readable;
                            continue;
                        }
                        None => break,
                    }
                }
            };
            if frame.first >= limit {
                break;
            }
            let fits =
                |(growing, _): &(Growing, _)| growing.end() == frame.first && !growing.is_full();
            if !block.as_ref().is_some_and(fits) {
                self.index_block(block.take())?;
            }
            let (growing, frames) =
                block.get_or_insert_with(|| (Growing::new(frame.first), Vec::new()));
            growing.extend(added(&frame)?);
            frames.push(FrameAt {
                first: frame.first,
                offset,
                length: u32::try_from(length).unwrap_or(u32::MAX),
            });
            offset += length;
            next = frame.first + u64::from(frame.count);
        }
        self.index_block(block)?;
        if next == limit && mode == Mode::Write {
            let length = *self.length.lock();
            self.records.set_len(length).map_err(|e| Fault::io("cutting", &self.path, &e))?;
        } else if next != limit {
            // Unreadable data stays, for a manual recovery.
            *self.length.lock() = size;
        }
        Ok(())
    }

    /// Offset of the next readable frame with records in this range, after an unreadable one.
    fn skip(&self, offset: u64, size: u64, records: Range<u64>) -> Option<u64> {
        find(&self.records, self.env.cipher.as_deref(), offset + 1..size, &records)
    }

    /// Whether a file has commits of these records after this offset. A partial commit that was not
    /// acknowledged does not count.
    fn goes_on(&self, path: &Path, from: u64, records: Range<u64>) -> Result<bool, Fault> {
        let failed = |e| Fault::io("reading", path, &e);
        let file = File::open(path).map_err(failed)?;
        let size = file.metadata().map_err(failed)?.len();
        Ok(find(&file, self.env.cipher.as_deref(), from..size, &records).is_some())
    }

    fn index_block(&self, block: Option<(Growing, Vec<FrameAt>)>) -> Result<(), Fault> {
        let Some((growing, frames)) = block else { return Ok(()) };
        let sealing = growing.sealed(frames);
        self.index().put(&sealing)?;
        self.take(sealing.meta);
        Ok(())
    }

    /// Reads the commits of one block, up to the record `next`, with which a later file begins.
    fn commits(
        &self,
        first: u64,
        path: &Path,
        next: u64,
    ) -> Result<(Growing, u64, Option<BadFrame>), Fault> {
        let file = File::open(path).map_err(|e| Fault::io("opening", path, &e))?;
        let mut frames = Frames::new(io::BufReader::new(file), self.env.cipher.as_deref());
        let block = Growing::new(first);
        let mut good = 0;
        loop {
            match frames.next() {
                None => return Ok((block, good, None)),
                Some(Err(bad)) => return Ok((block, good, Some(bad))),
                // A failed commit that was repeated in the next file.
                Some(Ok(frame)) if frame.first >= next => return Ok((block, good, None)),
                Some(Ok(frame)) if frame.first != block.end() => {
                    let bad = BadFrame::Damaged("commits are missing before a frame");
                    return Ok((block, good, Some(bad)));
                }
                Some(Ok(frame)) => match added(&frame) {
                    Ok(records) => {
                        block.extend(records);
                        good = frames.offset();
                    }
                    Err(_) => {
                        let bad = BadFrame::Damaged("a line is not a record's");
                        return Ok((block, good, Some(bad)));
                    }
                },
            }
        }
    }

    /// Files of commits, in order.
    fn wals(&self) -> Result<Vec<(u64, PathBuf)>, Fault> {
        let failed = |e: io::Error| Fault::io("reading", &self.path, &e);
        let mut wals = Vec::new();
        for entry in fs::read_dir(&self.path).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let name = entry.file_name();
            let first = name.to_str().and_then(|name| name.strip_prefix("wal-"));
            if let Some(first) = first.and_then(|digits| digits.parse().ok()) {
                wals.push((first, entry.path()));
            }
        }
        wals.sort_unstable();
        Ok(wals)
    }

    /// Keeps a copy of a damaged file for a manual recovery.
    fn copy_aside(&self, path: &Path, mode: Mode) -> Result<(), Fault> {
        if mode == Mode::Read {
            return Ok(());
        }
        let aside = self.env.dir.join("quarantine");
        private_dir(&aside).map_err(|e| Fault::io("making", &aside, &e))?;
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let to = aside.join(format!("{name}.{}", stamp(Timestamp::now())));
        fs::copy(path, &to).map_err(|e| Fault::io("copying", path, &e))?;
        Ok(())
    }

    fn set_aside(&self, path: &Path, mode: Mode) -> Result<(), Fault> {
        if mode == Mode::Write {
            self.copy_aside(path, mode)?;
            fs::remove_file(path).map_err(|e| Fault::io("removing", path, &e))?;
        }
        Ok(())
    }
}

/// First offset in a part of a file with a readable frame of these records.
fn find(
    file: &File,
    cipher: Option<&Cipher>,
    part: Range<u64>,
    records: &Range<u64>,
) -> Option<u64> {
    let mut window = vec![0; 1 << 20];
    let mut from = part.start;
    // A file of forged headers must not delay the start.
    let mut budget = (part.end - part.start).saturating_mul(frame::SEARCH);
    while from + (frame::HEADER as u64) < part.end {
        let remaining = part.end - from;
        let length = usize::try_from(remaining)
            .map_or(window.len(), |remaining| remaining.min(window.len()));
        let bytes = window.get_mut(..length)?;
        file.read_exact_at(bytes, from).ok()?;
        let found = bytes.windows(frame::HEADER).enumerate().find_map(|(at, header)| {
            if !frame::may_begin(header, records) {
                return None;
            }
            let at = from + at as u64;
            budget = budget.saturating_sub(frame::claims(header).min(part.end - at));
            let readable = || Frames::new(Positioned { file, at }, cipher).next();
            (budget > 0 && matches!(readable(), Some(Ok(_)))).then_some(at)
        });
        if found.is_some() || budget == 0 {
            return found;
        }
        from += (length - frame::HEADER + 1) as u64;
    }
    None
}
