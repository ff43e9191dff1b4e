//! A segment: a folder with the records of a day, as frames, and their index.
//!
//! `records` has the frames of whole blocks. Later commits are in `wal-…`, one file per block,
//! until the block is sealed: compressed, appended to `records`, synced, indexed. A file of commits
//! is removed only when its block is in `records`.

mod open;
mod wal;

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read as _},
    os::unix::fs::{FileExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use bytes::Bytes;
use jiff::Timestamp;
use nix::sys::statvfs::statvfs;
use parking_lot::{Mutex, RwLock};
use quick_cache::{Weighter, sync::Cache};
use serde::{Deserialize, Serialize};

use super::{
    block::{Added, BlockMeta, FrameAt, Growing, Sealing},
    fault::Fault,
    frame::{self, BadFrame, Frame, Frames, Pack},
    index::Index,
    index_terms::Facts,
    private_dir, stamp,
};
use crate::{
    digest::DigestKey,
    line::Line,
    maintenance::Cipher,
    proof::{Frontier, Hash},
};
use portcullis_foundation::atomic_file;

pub(super) use open::{Loss, OpenedSegment};
pub(super) use wal::Wal;

/// Bytes of unpacked frames that are cached for queries.
const CACHE: u64 = 32 << 20;
/// Free bytes of the disk that an index update requires: sled is not reliable on a full disk.
const INDEX_FREE: u64 = 16 << 20;
const CLOSED: &str = "segment.json";

/// Shared dependencies of all segments of a store.
pub(super) struct SegmentEnv {
    pub dir: PathBuf,
    pub key: DigestKey,
    pub cipher: Option<Arc<Cipher>>,
    cache: Cache<(u64, u64), Arc<Vec<Bytes>>, ByLength>,
}

#[derive(Clone)]
struct ByLength;

impl Weighter<(u64, u64), Arc<Vec<Bytes>>> for ByLength {
    fn weight(&self, _: &(u64, u64), lines: &Arc<Vec<Bytes>>) -> u64 {
        lines.iter().map(|line| line.len() as u64 + 48).sum::<u64>().max(1)
    }
}

impl SegmentEnv {
    pub fn new(dir: &Path, key: DigestKey, cipher: Option<Arc<Cipher>>) -> Self {
        let cache = Cache::with_weighter(4096, CACHE, ByLength);
        Self { dir: dir.to_owned(), key, cipher, cache }
    }

    /// Folder of the segment that begins with this record.
    pub fn path(&self, first: u64) -> PathBuf {
        self.dir.join("segments").join(format!("{first:016}"))
    }
}

/// Summary of a closed segment, so that it need not be opened.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Closed {
    /// `seq` of its first record.
    pub first: u64,
    /// `seq` after its last record.
    pub end: u64,
    /// Time of its first record.
    pub begin: Timestamp,
    /// Time of its last record.
    pub ended: Timestamp,
    /// Hash of its last record.
    pub last: Hash,
    /// Tree over all records of the log up to the segment's end.
    pub tree: Frontier,
}

/// Free bytes of the disk that contains `dir`.
pub(super) fn free_bytes(dir: &Path) -> Result<u64, Fault> {
    let disk = statvfs(dir).map_err(|e| Fault::io("asking for free space in", dir, &e.into()))?;
    Ok(disk.blocks_available().saturating_mul(disk.fragment_size()))
}

pub(super) fn sync_dir(dir: &Path) -> Result<(), Fault> {
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(|e| Fault::io("syncing", dir, &e))
}

fn private() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).mode(0o600);
    options
}

/// Whether a segment is opened for writing, or for reading without changes to files of records.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    Write,
    Read,
}

/// Whether stored summaries of records are trusted without reading the records.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum IndexTrust {
    Believe,
    Doubt,
}

/// An open segment.
pub(super) struct Segment {
    pub first: u64,
    path: PathBuf,
    records: File,
    /// Bytes of `records` that are indexed.
    length: Mutex<u64>,
    index: RwLock<Arc<Index>>,
    /// Whether the index lacks some blocks.
    blind: AtomicBool,
    blocks: RwLock<Arc<Vec<Arc<BlockMeta>>>>,
    env: Arc<SegmentEnv>,
}

impl Segment {
    /// Creates the segment that begins with this record.
    pub fn make(env: &Arc<SegmentEnv>, first: u64) -> Result<Arc<Self>, Fault> {
        let path = env.path(first);
        private_dir(&path).map_err(|e| Fault::io("making", &path, &e))?;
        let segment = Self::bare(env, first)?;
        sync_dir(&path)?;
        sync_dir(&env.dir.join("segments"))?;
        Ok(Arc::new(segment))
    }

    fn bare(env: &Arc<SegmentEnv>, first: u64) -> Result<Self, Fault> {
        let path = env.path(first);
        let file = path.join("records");
        let records = private().open(&file).map_err(|e| Fault::io("opening", &file, &e))?;
        let index = Index::open_or_renew(&path.join("index"), &env.key, env.cipher.clone())?;
        Ok(Self {
            first,
            path,
            records,
            length: Mutex::new(0),
            index: RwLock::new(Arc::new(index)),
            blind: AtomicBool::new(false),
            blocks: RwLock::default(),
            env: env.clone(),
        })
    }

    /// Bytes of packed records.
    pub fn packed(&self) -> u64 {
        *self.length.lock()
    }

    /// Loads the blocks of the index. An index that is damaged or has blocks that `records` lacks
    /// is rebuilt: its data about other blocks is equally doubtful.
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

    /// Replaces the index by an empty one.
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
        // sled keeps its file locked until it is dropped, so the new index gets a new file.
        match fs::remove_dir_all(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(Fault::io("removing", &path, &error));
            }
            _ => {}
        }
        let renewed = Index::open(&path, &self.env.key, self.env.cipher.clone())?;
        let old = std::mem::replace(&mut *index, Arc::new(renewed));
        // Readers do not wait until it is closed.
        drop(index);
        drop(old);
        Ok(())
    }

    fn take(&self, meta: BlockMeta) {
        *self.length.lock() = meta.offset_after();
        Arc::make_mut(&mut self.blocks.write()).push(Arc::new(meta));
    }

    /// Folder of the segment.
    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn index(&self) -> Arc<Index> {
        self.index.read().clone()
    }

    /// Sealed blocks, in order.
    pub fn blocks(&self) -> Arc<Vec<Arc<BlockMeta>>> {
        self.blocks.read().clone()
    }

    /// `seq` after the last sealed record.
    pub fn end(&self) -> u64 {
        self.blocks.read().last().map_or(self.first, |block| block.after())
    }

    fn frame_at(&self, offset: u64) -> Result<(Frame, u64), BadFrame> {
        // A handle has one position, and threads share this handle.
        let mut file = Positioned { file: &self.records, at: offset };
        let mut frames = Frames::new(file.by_ref(), self.env.cipher.as_deref());
        let frame = frames.next().unwrap_or(Err(BadFrame::Torn))?;
        Ok((frame, frames.offset()))
    }

    /// Lines of a frame.
    pub fn frame(&self, at: &FrameAt) -> Result<Arc<Vec<Bytes>>, Fault> {
        let key = (self.first, at.offset);
        self.env.cache.get_or_insert_with(&key, || {
            let about = |what: &dyn std::fmt::Display| {
                let file = self.path.join("records");
                Fault::Damaged(format!("{} at byte {}: {what}", file.display(), at.offset))
            };
            let mut bytes = vec![0; at.length as usize];
            self.records.read_exact_at(&mut bytes, at.offset).map_err(|e| about(&e))?;
            let (frame, _) =
                frame::read(&bytes, self.env.cipher.as_deref()).map_err(|bad| about(&bad))?;
            if frame.first != at.first {
                return Err(about(&"another frame than the index says"));
            }
            Ok(Arc::new(frame.lines().collect()))
        })
    }

    /// Packs a block into `records` and the index, and removes its commits.
    pub fn seal(&self, block: &Growing) -> Result<(), Fault> {
        let file = self.path.join("records");
        let begin = *self.length.lock();
        let mut bytes = Vec::new();
        let mut frames = Vec::new();
        for (first, lines) in block.frames() {
            let from = bytes.len();
            frame::write(&mut bytes, first, &lines, Pack::Zstd, self.env.cipher.as_deref())
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

    /// Adds a block to the index. Ignores failures, since the records are safe: the index is
    /// rebuilt when the segment is opened next.
    fn put(&self, sealing: &Sealing) {
        let segment = self.path.display();
        let put = free_bytes(&self.path).and_then(|free| {
            if free < INDEX_FREE {
                return Err(Fault::Full);
            }
            self.index().put(sealing).or_else(|fault| {
                tracing::warn!(%fault, %segment, "an index of the audit log is rebuilt");
                self.reindex()?;
                self.index().put(sealing)
            })
        });
        if let Err(fault) = put {
            tracing::error!(
                %fault, %segment,
                "an index of the audit log takes nothing: questions read all records of the segment"
            );
            self.blind.store(true, Ordering::Relaxed);
        }
    }

    /// Index data of a block, if the index is unavailable.
    pub fn unindexed(&self, block: &BlockMeta) -> Result<Option<Sealing>, Fault> {
        self.blind.load(Ordering::Relaxed).then(|| self.rebuilt(block)).transpose()
    }

    /// Removes the commits of a sealed block.
    pub fn forget_commits(&self, block: &Growing) {
        let path = Wal::path(&self.path, block.first);
        if let Err(error) = fs::remove_file(&path) {
            // The file is removed when the segment is opened next.
            tracing::debug!(%error, path = %path.display(), "commits that are sealed are still there");
        }
    }

    /// Rebuilds the index: sled accepts no writes after an error.
    fn reindex(&self) -> Result<(), Fault> {
        self.renew_index()?;
        for block in self.blocks().iter() {
            self.index().put(&self.rebuilt(block)?)?;
        }
        Ok(())
    }

    /// Index data of a block, computed from its records.
    pub fn rebuilt(&self, block: &BlockMeta) -> Result<Sealing, Fault> {
        let again = Growing::new(block.first);
        for at in &block.frames {
            let (frame, _) =
                self.frame_at(at.offset).map_err(|bad| Fault::Damaged(bad.to_string()))?;
            again.extend(added(&frame)?);
        }
        Ok(again.sealed(block.frames.clone()))
    }

    /// Writes that all its blocks are sealed. `tree` covers all records before its first.
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
        atomic_file::write(&self.path.join(CLOSED), &text)
            .map_err(|e| Fault::io("closing", &self.path, &e))?;
        Ok(closed)
    }

    /// Summary of a segment, if it is closed.
    pub fn closed(env: &SegmentEnv, first: u64) -> Result<Option<Closed>, Fault> {
        let path = env.path(first).join(CLOSED);
        match fs::read(&path) {
            Ok(text) => serde_json::from_slice(&text)
                .map(Some)
                .map_err(|e| Fault::Damaged(format!("{}: {e}", path.display()))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(Fault::io("reading", &path, &error)),
        }
    }
}

/// Records of a frame, to add to a block.
fn added(frame: &Frame) -> Result<Vec<Added>, Fault> {
    frame
        .lines()
        .map(|text| {
            let line = Line::read(text.clone())
                .ok_or_else(|| Fault::Damaged("a line is not a record's".into()))?;
            let recorded = line.head().map_or(0, |head| stamp(head.recorded));
            // A record that this version cannot parse is kept and is found by its `seq` only.
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
