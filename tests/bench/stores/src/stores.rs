//! The four (five) shapes. All are durable when `commit` returns, and all have the same index.

use std::{
    fs::{self, File},
    io,
    path::Path,
    time::{Duration, Instant},
};

use crate::{
    files::Files,
    record::{Record, TERMS},
};

/// Records that one entry of the index covers.
pub const BLOCK: usize = 4096;

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Kind {
    /// sled 0.34.7, a key for each record and each term
    SledKeys,
    /// sled 0.34.7, one value for all records of a commit
    SledCommit,
    /// sled 1.0.0-alpha.124, one value for all records of a commit
    AlphaCommit,
    /// A file that grows, one fdatasync a commit; sled 0.34.7 for the index
    File,
    /// The same with files that were filled with zeros before
    FileFilled,
}

pub const ALL: [Kind; 5] =
    [Kind::SledKeys, Kind::SledCommit, Kind::AlphaCommit, Kind::File, Kind::FileFilled];

pub trait Store: Send {
    fn commit(&mut self, records: &[Record]) -> anyhow::Result<()>;
    /// Shows all records in their order.
    fn scan(&self, each: &mut dyn FnMut(&[u8])) -> anyhow::Result<()>;
    /// Takes out all records before this number, where that can be done by keys.
    fn drop_before(&mut self, seq: u64) -> anyhow::Result<bool>;
    /// Waits for what is done in the background.
    fn settle(&mut self) -> anyhow::Result<()> {
        Ok(())
    }
}

pub fn open(kind: Kind, dir: &Path) -> anyhow::Result<Box<dyn Store>> {
    fs::create_dir_all(dir)?;
    Ok(match kind {
        Kind::SledKeys => Box::new(Keys(Old::open(dir)?)),
        Kind::SledCommit => Box::new(Commits { db: Old::open(dir)?, block: Block::default() }),
        Kind::AlphaCommit => Box::new(Alpha {
            db: sled_alpha::Config::new().path(dir).flush_every_ms(None).open()?,
            block: Block::default(),
        }),
        Kind::File => Box::new(Files::open(dir, false)?),
        Kind::FileFilled => Box::new(Files::open(dir, true)?),
    })
}

/// sled 0.34.7 as it has to be used: its flush leaves the log to the system, so it is synced here.
pub struct Old {
    pub db: sled::Db,
    log: File,
}

impl Old {
    pub fn open(dir: &Path) -> anyhow::Result<Self> {
        let config = sled::Config::new().path(dir).flush_every_ms(None).cache_capacity(32 << 20);
        let until = Instant::now() + Duration::from_secs(2);
        let db = loop {
            match config.open() {
                // Threads of sled's own give the lock up a moment after a store was dropped.
                Err(sled::Error::Io(error))
                    if error.to_string().contains("lock") && Instant::now() < until =>
                {
                    std::thread::sleep(Duration::from_millis(5));
                }
                opened => break opened?,
            }
        };
        Ok(Self { db, log: File::open(dir.join("db"))? })
    }

    pub fn sync(&self) -> anyhow::Result<()> {
        self.db.flush()?;
        Ok(self.log.sync_data()?)
    }
}

fn hash(term: &str) -> u64 {
    // FNV-1a: good enough where only the size and the order of keys matter.
    term.bytes()
        .fold(0xcbf2_9ce4_8422_2325, |h, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3))
}

fn key(tag: u8, seq: u64) -> Vec<u8> {
    let mut key = vec![tag];
    key.extend(seq.to_be_bytes());
    key
}

/// What the index has of a block: for each field the terms' hashes with the record's place.
#[derive(Default, Clone)]
pub struct Block {
    pub first: u64,
    pub count: usize,
    terms: [Vec<(u64, u16)>; TERMS],
}

impl Block {
    /// Takes a record in. Gives the full block back.
    pub fn add(&mut self, record: &Record) -> Option<Block> {
        if self.count == 0 {
            self.first = record.seq;
        }
        for (field, term) in self.terms.iter_mut().zip(&record.terms) {
            field.push((hash(term), self.count as u16));
        }
        self.count += 1;
        (self.count == BLOCK).then(|| std::mem::take(self))
    }

    /// A key and a value for each field.
    pub fn entries(mut self) -> Vec<(Vec<u8>, Vec<u8>)> {
        let mut entries = Vec::new();
        for (field, terms) in self.terms.iter_mut().enumerate() {
            terms.sort_unstable();
            let mut value = Vec::with_capacity(terms.len() * 10);
            for (hash, place) in terms {
                value.extend(hash.to_be_bytes());
                value.extend(place.to_be_bytes());
            }
            let mut key = key(b'i', self.first);
            key.push(field as u8);
            entries.push((key, value));
        }
        entries
    }
}

struct Keys(Old);

impl Store for Keys {
    fn commit(&mut self, records: &[Record]) -> anyhow::Result<()> {
        let mut batch = sled::Batch::default();
        for record in records {
            let mut line = Vec::with_capacity(900);
            record.line(&mut line);
            batch.insert(key(b'r', record.seq), line);
            for (field, term) in record.terms.iter().enumerate() {
                let mut key = vec![b'i', field as u8];
                key.extend(hash(term).to_be_bytes());
                key.extend(record.seq.to_be_bytes());
                batch.insert(key, &[]);
            }
        }
        self.0.db.apply_batch(batch)?;
        self.0.sync()
    }

    fn scan(&self, each: &mut dyn FnMut(&[u8])) -> anyhow::Result<()> {
        for entry in self.0.db.scan_prefix(b"r") {
            each(entry?.1.trim_ascii_end());
        }
        Ok(())
    }

    fn drop_before(&mut self, seq: u64) -> anyhow::Result<bool> {
        for entry in self.0.db.range(key(b'r', 0)..key(b'r', seq)) {
            self.0.db.remove(entry?.0)?;
        }
        for entry in self.0.db.scan_prefix(b"i") {
            let (key, _) = entry?;
            let at = key.len().saturating_sub(8);
            if u64::from_be_bytes(key[at..].try_into()?) < seq {
                self.0.db.remove(key)?;
            }
        }
        self.0.sync()?;
        Ok(true)
    }
}

fn body(records: &[Record]) -> Vec<u8> {
    let mut body = Vec::with_capacity(records.len() * 900);
    for record in records {
        record.line(&mut body);
    }
    body
}

fn lines(body: &[u8], each: &mut dyn FnMut(&[u8])) {
    body.split(|b| *b == b'\n').filter(|line| !line.is_empty()).for_each(each);
}

struct Commits {
    db: Old,
    block: Block,
}

impl Store for Commits {
    fn commit(&mut self, records: &[Record]) -> anyhow::Result<()> {
        let Some(first) = records.first() else { return Ok(()) };
        self.db.db.insert(key(b'r', first.seq), body(records))?;
        for block in records.iter().filter_map(|r| self.block.add(r)) {
            for (key, value) in block.entries() {
                self.db.db.insert(key, value)?;
            }
        }
        self.db.sync()
    }

    fn scan(&self, each: &mut dyn FnMut(&[u8])) -> anyhow::Result<()> {
        for entry in self.db.db.scan_prefix(b"r") {
            lines(&entry?.1, each);
        }
        Ok(())
    }

    fn drop_before(&mut self, seq: u64) -> anyhow::Result<bool> {
        for tag in [b'r', b'i'] {
            for entry in self.db.db.range(key(tag, 0)..key(tag, seq)) {
                self.db.db.remove(entry?.0)?;
            }
        }
        self.db.sync()?;
        Ok(true)
    }
}

struct Alpha {
    /// Leaves of 4 entries: the whole leaf is written again with each flush, and the default of
    /// 1024 with values of 100 KB made that ten times slower.
    db: sled_alpha::Db<4>,
    block: Block,
}

impl Store for Alpha {
    fn commit(&mut self, records: &[Record]) -> anyhow::Result<()> {
        let Some(first) = records.first() else { return Ok(()) };
        self.db.insert(key(b'r', first.seq), body(records))?;
        for block in records.iter().filter_map(|r| self.block.add(r)) {
            for (key, value) in block.entries() {
                self.db.insert(key, value)?;
            }
        }
        self.db.flush()?;
        Ok(())
    }

    fn scan(&self, each: &mut dyn FnMut(&[u8])) -> anyhow::Result<()> {
        for entry in self.db.scan_prefix(b"r") {
            lines(&entry?.1, each);
        }
        Ok(())
    }

    fn drop_before(&mut self, seq: u64) -> anyhow::Result<bool> {
        for tag in [b'r', b'i'] {
            for entry in self.db.range(key(tag, 0)..key(tag, seq)) {
                self.db.remove(entry?.0)?;
            }
        }
        self.db.flush()?;
        Ok(true)
    }
}

/// Names of files are as durable as what is in them.
pub fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}
