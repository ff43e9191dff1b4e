//! One segment: a folder with the records of a day, as frames, and their index.
//!
//! `records` has the frames of whole blocks. What was committed since is in `wal-…`, a file for
//! each block, until the block is sealed: compressed, appended to `records`, synced, indexed. A
//! file of commits is removed only when its block is in `records`.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read as _},
    ops::Range,
    os::unix::fs::{FileExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use bytes::Bytes;
use jiff::Timestamp;
use parking_lot::{Mutex, RwLock};
use quick_cache::{Weighter, sync::Cache};
use serde::{Deserialize, Serialize};

use super::{
    block::{Added, BlockMeta, FrameAt, Growing, Sealing},
    facts::Facts,
    fault::Fault,
    frame::{self, BadFrame, Frame, Frames, Pack},
    index::Index,
    private_dir, stamp,
};
use crate::audit::{
    digest::DigestKey,
    life::{Cipher, write_durably},
    line::Line,
    proof::{Frontier, Hash},
};

/// Bytes of unpacked frames that are kept for queries.
const CACHE: u64 = 32 << 20;
const CLOSED: &str = "segment.json";
/// A file of zeros in the store's folder, which the next file of commits is made of.
const SPARE: &str = "spare";
/// Its bytes: about as many as the commits of a block take.
const FILL: usize = 4 << 20;

/// What all segments of a store need.
pub(super) struct Tools {
    pub dir: PathBuf,
    pub key: DigestKey,
    pub cipher: Option<Arc<Cipher>>,
    cache: Cache<(u64, u64), Arc<Vec<Bytes>>, Bytewise>,
}

#[derive(Clone)]
struct Bytewise;

impl Weighter<(u64, u64), Arc<Vec<Bytes>>> for Bytewise {
    fn weight(&self, _: &(u64, u64), lines: &Arc<Vec<Bytes>>) -> u64 {
        lines.iter().map(|line| line.len() as u64 + 48).sum::<u64>().max(1)
    }
}

impl Tools {
    pub fn new(dir: &Path, key: DigestKey, cipher: Option<Arc<Cipher>>) -> Self {
        let cache = Cache::with_weighter(4096, CACHE, Bytewise);
        Self { dir: dir.to_owned(), key, cipher, cache }
    }

    /// The folder of the segment that begins with this record.
    pub fn path(&self, first: u64) -> PathBuf {
        self.dir.join("segments").join(format!("{first:016}"))
    }
}

/// What a closed segment says of itself, so that it need not be opened.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(in crate::audit) struct Closed {
    /// `seq` of its first record.
    pub first: u64,
    /// `seq` after its last.
    pub end: u64,
    /// When its first record was written.
    pub begin: Timestamp,
    /// When its last record was written.
    pub ended: Timestamp,
    /// The hash of its last record.
    pub last: Hash,
    /// The tree over all records of the log up to its end.
    pub tree: Frontier,
}

/// Records that were acknowledged and are gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::audit) struct Loss {
    /// `seq` of the first lost one: the next record takes it.
    pub from: u64,
    /// `seq` after the last lost one.
    pub until: u64,
}

pub(super) fn sync_dir(dir: &Path) -> Result<(), Fault> {
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(|e| Fault::io("syncing", dir, &e))
}

fn private() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).mode(0o600);
    options
}

/// Commits of one block.
#[derive(Debug)]
pub(super) struct Wal {
    file: File,
    path: PathBuf,
    /// Bytes of it that are acknowledged.
    length: u64,
}

impl Wal {
    fn path(segment: &Path, first: u64) -> PathBuf {
        segment.join(format!("wal-{first:016}"))
    }

    /// Begins the commits of the block that begins with this record. What is there under its name
    /// was never acknowledged.
    pub fn begin(segment: &Path, first: u64) -> Result<Self, Fault> {
        let path = Self::path(segment, first);
        let spare = segment.ancestors().nth(2).map(|store| store.join(SPARE));
        let filled = spare.is_some_and(|spare| fs::rename(spare, &path).is_ok());
        let opened = private().truncate(!filled).open(&path);
        let file = opened.map_err(|e| Fault::io("making", &path, &e))?;
        // The name must be as durable as what is written under it.
        sync_dir(segment)?;
        Ok(Self { file, path, length: 0 })
    }

    /// Makes the file of zeros for the next block. Commits into it need not sync its size: one
    /// write of the disk less for each.
    pub fn prepare(store: &Path) -> io::Result<()> {
        let path = store.join(SPARE);
        if path.exists() {
            return Ok(());
        }
        // Whole or not there: a shorter one would only be slower, but why have it.
        let unfinished = store.join("spare.new");
        let file = private().truncate(true).open(&unfinished)?;
        file.write_all_at(&vec![0; FILL], 0)?;
        file.sync_all()?;
        fs::rename(&unfinished, &path)
    }

    /// Goes on after the first `length` bytes, which are whole frames.
    fn resume(path: PathBuf, length: u64) -> Result<Self, Fault> {
        let file = private().open(&path).map_err(|e| Fault::io("opening", &path, &e))?;
        file.set_len(length)
            .and_then(|()| file.sync_all())
            .map_err(|e| Fault::io("cutting", &path, &e))?;
        Ok(Self { file, path, length })
    }

    /// Appends a frame. Durable when it returns `Ok`; else nothing more must be written here.
    pub fn append(&mut self, frame: &[u8]) -> Result<(), Fault> {
        self.file
            .write_all_at(frame, self.length)
            .and_then(|()| self.file.sync_data())
            .map_err(|e| Fault::io("writing", &self.path, &e))?;
        self.length += frame.len() as u64;
        Ok(())
    }
}

/// Whether a segment is opened to be written, or only looked at: then no record's file changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::audit) enum Mode {
    Write,
    Read,
}

/// Whether what was written down of records, to save reading them, is taken as it stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::audit) enum Trust {
    Believe,
    Doubt,
}

/// A segment as it was found.
pub(super) struct Found {
    pub segment: Arc<Segment>,
    /// Blocks that are not in `records` yet, in order.
    pub growing: Vec<Arc<Growing>>,
    /// The commits of the last of them.
    pub wal: Option<Wal>,
    /// `seq` after the last record.
    pub end: u64,
    /// What can't be read, in words.
    pub damage: Vec<String>,
}

/// A segment that is open.
pub(super) struct Segment {
    pub first: u64,
    path: PathBuf,
    records: File,
    /// Bytes of `records` that are indexed.
    length: Mutex<u64>,
    index: RwLock<Arc<Index>>,
    /// Whether the index has not all blocks.
    blind: AtomicBool,
    blocks: RwLock<Arc<Vec<Arc<BlockMeta>>>>,
    tools: Arc<Tools>,
}

impl Segment {
    /// Makes the segment that begins with this record.
    pub fn make(tools: &Arc<Tools>, first: u64) -> Result<Arc<Self>, Fault> {
        let path = tools.path(first);
        private_dir(&path).map_err(|e| Fault::io("making", &path, &e))?;
        let segment = Self::bare(tools, first)?;
        sync_dir(&path)?;
        sync_dir(&tools.dir.join("segments"))?;
        Ok(Arc::new(segment))
    }

    fn bare(tools: &Arc<Tools>, first: u64) -> Result<Self, Fault> {
        let path = tools.path(first);
        let file = path.join("records");
        let records = private().open(&file).map_err(|e| Fault::io("opening", &file, &e))?;
        let index = Index::open_or_renew(&path.join("index"), &tools.key, tools.cipher.clone())?;
        Ok(Self {
            first,
            path,
            records,
            length: Mutex::new(0),
            index: RwLock::new(Arc::new(index)),
            blind: AtomicBool::new(false),
            blocks: RwLock::default(),
            tools: tools.clone(),
        })
    }

    /// Opens a segment and brings its index up to its records.
    /// `acknowledged` is after the last record that was: what can't be read beyond it is a commit
    /// that a stop interrupted.
    pub fn open(
        tools: &Arc<Tools>,
        first: u64,
        mode: Mode,
        acknowledged: u64,
        index: Trust,
    ) -> Result<Found, Fault> {
        let segment = Self::bare(tools, first)?;
        let mut damage = Vec::new();
        match index {
            Trust::Believe => segment.load()?,
            Trust::Doubt => drop(segment.renewed("it is in doubt")?),
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
                // Commits after some that are gone: their place in the log is taken anew.
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
        Ok(Found { segment: Arc::new(segment), growing, wal, end, damage })
    }

    /// Leaves out commits of which `records` has all: those of blocks that were sealed, where the
    /// file could not be removed, or the index that knew of it is gone. What is sealed behind them
    /// would be cut off for their sake.
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
                // Who sealed it may have been stopped before it was on disk.
                self.records
                    .sync_all()
                    .and_then(|()| fs::remove_file(path))
                    .map_err(|e| Fault::io("removing", path, &e))?;
            }
            wals.remove(0);
        }
        Ok(())
    }

    /// Bytes of packed records.
    pub fn packed(&self) -> u64 {
        *self.length.lock()
    }

    /// Takes over the blocks of the index. One that is damaged, or has what `records` has not, is
    /// made again: what it knows of other blocks would be as doubtful.
    fn load(&self) -> Result<(), Fault> {
        let size = self.size()?;
        let mut end = self.first;
        let mut fits = |block: &Arc<BlockMeta>| {
            let fits = block.is_sound() && block.first >= end && block.offset_after() <= size;
            end = block.first.saturating_add(u64::from(block.count));
            fits
        };
        let blocks = match self.index().blocks() {
            Ok(blocks) if blocks.iter().all(&mut fits) => blocks,
            Ok(_) => self.renewed("it is not of these records")?,
            Err(Fault::Damaged(why)) => self.renewed(&why)?,
            Err(fault) => return Err(fault),
        };
        *self.length.lock() = blocks.last().map_or(0, |block| block.offset_after());
        *self.blocks.write() = Arc::new(blocks);
        Ok(())
    }

    /// Begins the index anew; it has no blocks then.
    fn renewed(&self, why: &str) -> Result<Vec<Arc<BlockMeta>>, Fault> {
        let segment = self.path.display();
        tracing::warn!(%segment, why, "an index of the audit log is made again");
        self.renew_index()?;
        Ok(Vec::new())
    }

    fn size(&self) -> Result<u64, Fault> {
        let metadata = self.records.metadata().map_err(|e| Fault::io("reading", &self.path, &e))?;
        Ok(metadata.len())
    }

    fn renew_index(&self) -> Result<(), Fault> {
        let path = self.path.join("index");
        let mut index = self.index.write();
        // sled holds a lock on its file until it is dropped, so the new one gets a new file.
        fs::remove_dir_all(&path).map_err(|e| Fault::io("removing", &path, &e))?;
        *index = Arc::new(Index::open(&path, &self.tools.key, self.tools.cipher.clone())?);
        Ok(())
    }

    /// Indexes the frames of `records` that the index does not have, up to the record `limit`;
    /// those from there on are in commits too, and are cut off to be sealed again.
    fn catch_up(&self, limit: u64, mode: Mode, damage: &mut Vec<String>) -> Result<(), Fault> {
        let size = self.size()?;
        let mut offset = *self.length.lock();
        let mut next = self.end();
        let mut block: Option<(Growing, Vec<FrameAt>)> = None;
        while offset < size {
            let (frame, length) = match self.frame_at(offset) {
                Ok(found) => found,
                Err(BadFrame::Sealed(why)) => return Err(Fault::Io(why)),
                // A block that was being sealed: its commits are still there.
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
            // Whatever can't be read stays for whoever may recover something from it.
            *self.length.lock() = size;
        }
        Ok(())
    }

    /// Where the next frame that can be read begins, after one that can't, of those that have
    /// these records.
    fn skip(&self, offset: u64, size: u64, records: Range<u64>) -> Option<u64> {
        find(&self.records, self.tools.cipher.as_deref(), offset + 1..size, &records)
    }

    /// Whether commits of these records follow in a file after this place. What a stop left there
    /// of a commit that was not acknowledged is none.
    fn goes_on(&self, path: &Path, from: u64, records: Range<u64>) -> Result<bool, Fault> {
        let failed = |e| Fault::io("reading", path, &e);
        let file = File::open(path).map_err(failed)?;
        let size = file.metadata().map_err(failed)?.len();
        Ok(find(&file, self.tools.cipher.as_deref(), from..size, &records).is_some())
    }

    fn index_block(&self, block: Option<(Growing, Vec<FrameAt>)>) -> Result<(), Fault> {
        let Some((growing, frames)) = block else { return Ok(()) };
        let sealing = growing.sealed(frames);
        self.index().put(&sealing)?;
        self.take(sealing.meta);
        Ok(())
    }

    fn take(&self, meta: BlockMeta) {
        *self.length.lock() = meta.offset_after();
        Arc::make_mut(&mut self.blocks.write()).push(Arc::new(meta));
    }

    /// Reads the commits of one block, up to the record `next`, which a later file begins with.
    fn commits(
        &self,
        first: u64,
        path: &Path,
        next: u64,
    ) -> Result<(Growing, u64, Option<BadFrame>), Fault> {
        let file = File::open(path).map_err(|e| Fault::io("opening", path, &e))?;
        let mut frames = Frames::new(io::BufReader::new(file), self.tools.cipher.as_deref());
        let block = Growing::new(first);
        let mut good = 0;
        loop {
            match frames.next() {
                None => return Ok((block, good, None)),
                Some(Err(bad)) => return Ok((block, good, Some(bad))),
                // A commit that failed and was made again in the next file.
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

    /// The files of commits, in order.
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

    /// Keeps a file that is damaged for whoever may recover something from it.
    fn copy_aside(&self, path: &Path, mode: Mode) -> Result<(), Fault> {
        if mode == Mode::Read {
            return Ok(());
        }
        let aside = self.tools.dir.join("quarantine");
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

    /// The segment's folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn index(&self) -> Arc<Index> {
        self.index.read().clone()
    }

    /// The blocks that are sealed, in order.
    pub fn blocks(&self) -> Arc<Vec<Arc<BlockMeta>>> {
        self.blocks.read().clone()
    }

    /// `seq` after the last sealed record.
    pub fn end(&self) -> u64 {
        self.blocks.read().last().map_or(self.first, |block| block.after())
    }

    fn frame_at(&self, offset: u64) -> Result<(Frame, u64), BadFrame> {
        // A handle has one place that it stands at, and threads share this one.
        let mut file = Positioned { file: &self.records, at: offset };
        let mut frames = Frames::new(file.by_ref(), self.tools.cipher.as_deref());
        let frame = frames.next().unwrap_or(Err(BadFrame::Torn))?;
        Ok((frame, frames.offset()))
    }

    /// The lines of a frame.
    pub fn frame(&self, at: &FrameAt) -> Result<Arc<Vec<Bytes>>, Fault> {
        let key = (self.first, at.offset);
        self.tools.cache.get_or_insert_with(&key, || {
            let about = |what: &dyn std::fmt::Display| {
                let file = self.path.join("records");
                Fault::Damaged(format!("{} at byte {}: {what}", file.display(), at.offset))
            };
            let mut bytes = vec![0; at.length as usize];
            self.records.read_exact_at(&mut bytes, at.offset).map_err(|e| about(&e))?;
            let (frame, _) =
                frame::read(&bytes, self.tools.cipher.as_deref()).map_err(|bad| about(&bad))?;
            if frame.first != at.first {
                return Err(about(&"another frame than the index says"));
            }
            Ok(Arc::new(frame.lines().collect()))
        })
    }

    /// Puts a block into `records` and the index, and removes its commits.
    pub fn seal(&self, block: &Growing) -> Result<(), Fault> {
        let file = self.path.join("records");
        let begin = *self.length.lock();
        let mut bytes = Vec::new();
        let mut frames = Vec::new();
        for (first, lines) in block.frames() {
            let from = bytes.len();
            frame::write(&mut bytes, first, &lines, Pack::Zstd, self.tools.cipher.as_deref())
                .map_err(|e| Fault::io("packing records for", &file, &e))?;
            frames.push(FrameAt {
                first,
                offset: begin + from as u64,
                length: u32::try_from(bytes.len() - from).unwrap_or(u32::MAX),
            });
        }
        self.records
            .write_all_at(&bytes, begin)
            .and_then(|()| self.records.set_len(begin + bytes.len() as u64))
            .and_then(|()| self.records.sync_all())
            .map_err(|e| Fault::io("writing", &file, &e))?;
        let sealing = block.sealed(frames);
        if !self.blind.load(Ordering::Relaxed) {
            self.put(&sealing);
        }
        self.take(sealing.meta);
        Ok(())
    }

    /// Puts a block into the index. The records are safe, so that nothing waits for an index that
    /// takes nothing: it is made again when the segment is opened next.
    fn put(&self, sealing: &Sealing) {
        let segment = self.path.display();
        let Err(fault) = self.index().put(sealing) else { return };
        tracing::warn!(%fault, %segment, "an index of the audit log is made again");
        if let Err(fault) = self.reindex().and_then(|()| self.index().put(sealing)) {
            tracing::error!(
                %fault, %segment,
                "an index of the audit log takes nothing: questions read all records of the segment"
            );
            self.blind.store(true, Ordering::Relaxed);
        }
    }

    /// What the index should have of a block, where the index can't be asked.
    pub fn unindexed(&self, block: &BlockMeta) -> Result<Option<Sealing>, Fault> {
        self.blind.load(Ordering::Relaxed).then(|| self.rebuilt(block)).transpose()
    }

    /// Removes the commits of a block that is sealed.
    pub fn forget_commits(&self, block: &Growing) {
        let path = Wal::path(&self.path, block.first);
        if let Err(error) = fs::remove_file(&path) {
            // It is removed when the segment is opened next.
            tracing::debug!(%error, path = %path.display(), "commits that are sealed are still there");
        }
    }

    /// Makes the index again: sled takes nothing more after an error.
    fn reindex(&self) -> Result<(), Fault> {
        self.renew_index()?;
        for block in self.blocks().iter() {
            self.index().put(&self.rebuilt(block)?)?;
        }
        Ok(())
    }

    /// What the index should have of a block, from its records.
    pub fn rebuilt(&self, block: &BlockMeta) -> Result<Sealing, Fault> {
        let again = Growing::new(block.first);
        for at in &block.frames {
            let (frame, _) =
                self.frame_at(at.offset).map_err(|bad| Fault::Damaged(bad.to_string()))?;
            again.extend(added(&frame)?);
        }
        Ok(again.sealed(block.frames.clone()))
    }

    /// Says that all its blocks are sealed. `tree` is of all records up to its first.
    pub fn close(&self, mut tree: Frontier) -> Result<Closed, Fault> {
        let blocks = self.blocks();
        let mut last = Hash::ZERO;
        for block in blocks.iter() {
            block.append_to(&mut tree)?;
            last = block.last;
        }
        let closed = Closed {
            first: self.first,
            end: self.end(),
            begin: super::time(blocks.first().map_or(0, |block| block.begin)),
            ended: super::time(blocks.last().map_or(0, |block| block.end)),
            last,
            tree,
        };
        let text = serde_json::to_vec_pretty(&closed).map_err(|e| Fault::Io(e.to_string()))?;
        write_durably(&self.path, CLOSED, &text)
            .map_err(|e| Fault::io("closing", &self.path, &e))?;
        Ok(closed)
    }

    /// What a segment says of itself, if it is closed.
    pub fn closed(tools: &Tools, first: u64) -> Result<Option<Closed>, Fault> {
        let path = tools.path(first).join(CLOSED);
        match fs::read(&path) {
            Ok(text) => serde_json::from_slice(&text)
                .map(Some)
                .map_err(|e| Fault::Damaged(format!("{}: {e}", path.display()))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(Fault::io("reading", &path, &error)),
        }
    }
}

/// The first place in a part of a file where a frame with these records can be read.
fn find(
    file: &File,
    cipher: Option<&Cipher>,
    part: Range<u64>,
    records: &Range<u64>,
) -> Option<u64> {
    let mut window = vec![0; 1 << 20];
    let mut from = part.start;
    // A file of made-up headers must not hold a start up.
    let mut budget = (part.end - part.start).saturating_mul(frame::SEARCH);
    while from + (frame::HEADER as u64) < part.end {
        let left = part.end - from;
        let length = usize::try_from(left).map_or(window.len(), |left| left.min(window.len()));
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

/// The records of a frame, as a block takes them.
fn added(frame: &Frame) -> Result<Vec<Added>, Fault> {
    frame
        .lines()
        .map(|text| {
            let line = Line::read(text.clone())
                .ok_or_else(|| Fault::Damaged("a line is not a record's".into()))?;
            let recorded = line.head().map_or(0, |head| stamp(head.recorded));
            // A record that this version can't read is kept, and found by its place alone.
            let facts = line.entry().map(|entry| Facts::of(&entry.record)).unwrap_or_default();
            Ok(Added { text, hash: line.hash(), facts, recorded })
        })
        .collect()
}

struct Positioned<'a> {
    file: &'a File,
    at: u64,
}

impl io::Read for Positioned<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let read = self.file.read_at(into, self.at)?;
        self.at += read as u64;
        Ok(read)
    }
}
