//! Records in files of frames. A commit is one frame at the end of `wal-FIRST`, synced. When it
//! has a block of records, another thread writes them compressed to `records`, syncs that, writes
//! the index and deletes the file.

use std::{
    fs::{self, File, OpenOptions},
    io::{Read as _, Write as _},
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    sync::mpsc,
    thread::JoinHandle,
};

use anyhow::Context as _;

use crate::{
    record::{self, Record},
    stores::{Block, Old, Store, sync_dir},
};

const HEADER: usize = 20;
/// Records of one compressed frame.
const FRAME: usize = 256;
/// Bytes of a file that is filled beforehand: a block of records and some.
const FILLED: usize = 5 << 20;

fn frame(first: u64, count: usize, body: &[u8]) -> Vec<u8> {
    let mut frame = vec![0; 8];
    frame.extend(first.to_le_bytes());
    frame.extend((count as u32).to_le_bytes());
    frame.extend_from_slice(body);
    let crc = crc32fast::hash(&frame[8..]);
    frame[..4].copy_from_slice(&(body.len() as u32).to_le_bytes());
    frame[4..8].copy_from_slice(&crc.to_le_bytes());
    frame
}

/// The number of the first record, how many there are, and their lines.
type Frame<'a> = (u64, usize, &'a [u8]);

/// The whole frames at the beginning, the first of which begins with record `next` (or any), and
/// where they end.
fn frames(bytes: &[u8], mut next: Option<u64>) -> (Vec<Frame<'_>>, usize) {
    let (mut found, mut at) = (Vec::new(), 0);
    while let Some(header) = bytes.get(at..at + HEADER) {
        let word =
            |i: usize| u32::from_le_bytes([header[i], header[i + 1], header[i + 2], header[i + 3]]);
        let first = u64::from(word(8)) | u64::from(word(12)) << 32;
        let (len, count) = (word(0) as usize, word(16) as usize);
        let whole = bytes
            .get(at + 8..at + HEADER + len)
            .is_some_and(|covered| len > 0 && crc32fast::hash(covered) == word(4));
        // A frame of another number is what a file held before it was used again.
        if !whole || next.is_some_and(|next| next != first) {
            break;
        }
        found.push((first, count, &bytes[at + HEADER..at + HEADER + len]));
        at += HEADER + len;
        next = Some(first + count as u64);
    }
    (found, at)
}

struct Full {
    path: PathBuf,
    block: Block,
    lines: Vec<Vec<u8>>,
}

pub struct Files {
    dir: PathBuf,
    filled: bool,
    wal: Option<(File, PathBuf, u64)>,
    block: Block,
    lines: Vec<Vec<u8>>,
    sealer: Option<(mpsc::SyncSender<Full>, JoinHandle<anyhow::Result<()>>)>,
}

impl Files {
    pub fn open(dir: &Path, filled: bool) -> anyhow::Result<Self> {
        let mut files = Self {
            dir: dir.to_owned(),
            filled,
            wal: None,
            block: Block::default(),
            lines: Vec::new(),
            sealer: None,
        };
        files.start()?;
        Ok(files)
    }

    fn start(&mut self) -> anyhow::Result<()> {
        let (full, queue) = mpsc::sync_channel::<Full>(4);
        let (dir, filled) = (self.dir.clone(), self.filled);
        let index = Old::open(&dir.join("index"))?;
        let mut out =
            OpenOptions::new().read(true).append(true).create(true).open(dir.join("records"))?;
        recover(&dir, &mut out)?;
        if filled {
            fill(&dir)?;
        }
        let thread = std::thread::spawn(move || {
            for full in queue {
                let mut first = full.block.first;
                for lines in full.lines.chunks(FRAME) {
                    let body = zstd::bulk::compress(&lines.concat(), 3)?;
                    out.write_all(&frame(first, lines.len(), &body))?;
                    first += lines.len() as u64;
                }
                out.sync_data()?;
                let mut batch = sled::Batch::default();
                for (key, value) in full.block.entries() {
                    batch.insert(key, value);
                }
                index.db.apply_batch(batch)?;
                index.sync()?;
                let spare = dir.join("spare");
                if filled && !spare.exists() {
                    fs::rename(&full.path, &spare)?;
                } else {
                    fs::remove_file(&full.path)?;
                }
            }
            Ok(())
        });
        self.sealer = Some((full, thread));
        Ok(())
    }

    fn begin(&self, first: u64) -> anyhow::Result<(File, PathBuf, u64)> {
        let path = self.dir.join(format!("wal-{first:016}"));
        if self.filled {
            if !self.dir.join("spare").exists() {
                fill(&self.dir)?;
            }
            fs::rename(self.dir.join("spare"), &path)?;
        }
        let file = OpenOptions::new().write(true).create(true).truncate(false).open(&path)?;
        sync_dir(&self.dir)?;
        Ok((file, path, 0))
    }
}

/// Makes a file whose blocks are all written, so that a sync of it has no sizes to write.
fn fill(dir: &Path) -> anyhow::Result<()> {
    let path = dir.join("spare");
    if !path.exists() {
        let mut file = File::create(dir.join("filling"))?;
        file.write_all(&vec![0; FILLED])?;
        file.sync_all()?;
        fs::rename(dir.join("filling"), path)?;
    }
    Ok(())
}

/// Cuts a torn end off, and seals what the process before this one left.
fn recover(dir: &Path, out: &mut File) -> anyhow::Result<()> {
    let mut sealed = Vec::new();
    out.read_to_end(&mut sealed)?;
    let (found, whole) = frames(&sealed, None);
    let mut next = found.last().map_or(0, |(first, count, _)| first + *count as u64);
    out.set_len(whole as u64)?;
    for (path, first) in wals(dir)? {
        let bytes = fs::read(&path)?;
        for (first, _, body) in frames(&bytes, Some(first)).0 {
            let all: Vec<&[u8]> = body.split_inclusive(|b| *b == b'\n').collect();
            let fresh =
                all.get((next.saturating_sub(first) as usize).min(all.len())..).unwrap_or_default();
            if !fresh.is_empty() {
                out.write_all(&frame(
                    next,
                    fresh.len(),
                    &zstd::bulk::compress(&fresh.concat(), 3)?,
                ))?;
                next += fresh.len() as u64;
            }
        }
        out.sync_data()?;
        fs::remove_file(path)?;
    }
    Ok(())
}

fn wals(dir: &Path) -> anyhow::Result<Vec<(PathBuf, u64)>> {
    let mut wals = Vec::new();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if let Some(first) = entry.file_name().to_str().and_then(|n| n.strip_prefix("wal-")) {
            wals.push((entry.path(), first.parse()?));
        }
    }
    wals.sort();
    Ok(wals)
}

impl Store for Files {
    fn commit(&mut self, records: &[Record]) -> anyhow::Result<()> {
        let Some(first) = records.first() else { return Ok(()) };
        let mut rest = records;
        let mut body = Vec::with_capacity(records.len() * 900);
        if self.wal.is_none() {
            self.wal = Some(self.begin(first.seq)?);
        }
        while !rest.is_empty() {
            let (mut full, mut taken) = (None, 0);
            body.clear();
            for record in rest {
                let begins = body.len();
                record.line(&mut body);
                self.lines.push(body[begins..].to_vec());
                taken += 1;
                full = self.block.add(record);
                if full.is_some() {
                    break;
                }
            }
            let (file, _, at) = self.wal.as_mut().context("no file is open")?;
            let frame = frame(rest[0].seq, taken, &body);
            file.write_all_at(&frame, *at)?;
            *at += frame.len() as u64;
            file.sync_data()?;
            rest = &rest[taken..];
            if let (Some(block), Some((_, path, _))) =
                (full, self.wal.take_if(|_| self.lines.len() >= crate::stores::BLOCK))
            {
                let next = block.first + block.count as u64;
                let lines = std::mem::take(&mut self.lines);
                if let Some((sealer, _)) = &self.sealer {
                    sealer.send(Full { path, block, lines })?;
                }
                self.wal = Some(self.begin(next)?);
            }
        }
        Ok(())
    }

    fn scan(&self, each: &mut dyn FnMut(&[u8])) -> anyhow::Result<()> {
        let mut next = 0;
        let mut show = |body: &[u8]| {
            body.split(|b| *b == b'\n').filter(|l| !l.is_empty()).for_each(|line| {
                // A block can stand in both places, where the process died between the two.
                if record::seq(line).is_some_and(|seq| seq >= next) {
                    next += 1;
                    each(line);
                }
            });
        };
        let mut sealed = Vec::new();
        File::open(self.dir.join("records"))?.read_to_end(&mut sealed)?;
        for (_, _, body) in frames(&sealed, None).0 {
            show(&zstd::stream::decode_all(body)?);
        }
        for (wal, first) in wals(&self.dir)? {
            for (_, _, body) in frames(&fs::read(&wal)?, Some(first)).0 {
                show(body);
            }
        }
        Ok(())
    }

    fn drop_before(&mut self, _: u64) -> anyhow::Result<bool> {
        Ok(false)
    }

    fn settle(&mut self) -> anyhow::Result<()> {
        if let Some((sender, thread)) = self.sealer.take() {
            drop(sender);
            thread.join().map_err(|_| anyhow::anyhow!("the sealing thread panicked"))??;
            self.start()?;
        }
        Ok(())
    }
}
