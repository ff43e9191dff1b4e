//! Index of a segment, on sled 0.34. It can be rebuilt from the records. A damaged index is
//! discarded, so that no fault of sled can cost a record.
//!
//! | key | value |
//! |---|---|
//! | `m`, first `seq` of a block | the block: positions of its frames, its hashes |
//! | `t`, field, keyed digest of a value, first `seq` | positions in the block with that value |
//! | `p`, first `seq` | digests and positions of rare values |
//! | `y`, first `seq` | aggregates of the block |
//! | `k` | digest that identifies the key of the other digests |

use std::{
    collections::HashMap,
    fs,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::{Arc, mpsc},
    thread,
    time::{Duration, Instant},
};

use parking_lot::Mutex;

use super::{
    bitmap::Bits,
    block::{BlockMeta, Sealing},
    fault::Fault,
    index_terms::Field,
};
use crate::{digest::DigestKey, maintenance::Cipher, query::Aggregates};

/// Page cache of one open index in bytes.
const CACHE: u64 = 8 << 20;
/// Maximum time for which a closed index may stay locked.
const LINGERING: Duration = Duration::from_secs(2);
/// Maximum duration of an operation that waits for sled's threads.
const MAX_WAIT: Duration = Duration::from_secs(60);
/// Delay between attempts to open an index.
const PAUSE: Duration = Duration::from_millis(5);
/// Bytes of a rare value's digest and its position.
const RARE: usize = 6;

impl Field {
    /// Whether nearly every decision has its own value. One key per value would make the index
    /// larger than the records.
    pub(super) fn is_rare(self) -> bool {
        matches!(self, Self::Id | Self::Trace | Self::Session)
    }
}

/// Key and value.
type Entry = (Vec<u8>, Vec<u8>);

/// The index of one segment.
pub(super) struct Index {
    path: PathBuf,
    /// `None` until the first block is added: sled uses 20 MB of memory from its first database on.
    db: Mutex<Option<sled::Db>>,
    key: DigestKey,
    cipher: Option<Arc<Cipher>>,
}

fn at(prefix: &[u8], first: u64) -> Vec<u8> {
    let mut key = prefix.to_vec();
    key.extend(first.to_be_bytes());
    key
}

/// Catches panics. sled 0.34 asserts if it finds unexpected files; such a panic is a fault of the
/// index, not of the proxy.
fn contained<T>(work: impl FnOnce() -> Result<T, Fault>) -> Result<T, Fault> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| {
        let words = panic
            .downcast_ref::<String>()
            .map(String::as_str)
            .or_else(|| panic.downcast_ref::<&str>().copied());
        Err(Fault::Damaged(words.unwrap_or("the index panicked").chars().take(300).collect()))
    })
}

/// Runs `work` on a thread of its own. After a failed write, sled can wait forever for its own
/// threads, also when it is dropped. Then the thread is left behind.
fn bounded<T: Send + 'static>(
    longest: Duration,
    work: impl FnOnce() -> Result<T, Fault> + Send + 'static,
) -> Result<T, Fault> {
    let (reply, done) = mpsc::channel();
    thread::Builder::new()
        .name("audit-index".into())
        // The receiver may have stopped waiting.
        .spawn(move || drop(reply.send(contained(work))))
        .map_err(|e| Fault::Io(format!("starting a thread for the index: {e}")))?;
    done.recv_timeout(longest)
        .unwrap_or_else(|_| Err(damaged(format_args!("no response within {longest:?}"))))
}

fn damaged(error: impl std::fmt::Display) -> Fault {
    Fault::Damaged(format!("the index: {error}"))
}

impl Index {
    /// Opens the index in `path`. If there is none, the first added block creates it.
    pub fn open(path: &Path, key: &DigestKey, cipher: Option<Arc<Cipher>>) -> Result<Self, Fault> {
        let db = Mutex::new(None);
        let index = Self { path: path.to_owned(), db, key: key.clone(), cipher };
        if path.exists() {
            index.made()?;
        }
        Ok(index)
    }

    /// The database, which is created if there is none.
    fn made(&self) -> Result<sled::Db, Fault> {
        let mut db = self.db.lock();
        if let Some(db) = &*db {
            return Ok(db.clone());
        }
        let config =
            sled::Config::new().path(&self.path).flush_every_ms(None).cache_capacity(CACHE);
        let began = Instant::now();
        let opened = loop {
            let config = config.clone();
            match bounded(MAX_WAIT, move || config.open().map_err(Fault::from)) {
                // sled's threads release the lock shortly after the index was dropped.
                Err(Fault::InUse(_)) if began.elapsed() < LINGERING => thread::sleep(PAUSE),
                opened => break opened?,
            }
        };
        self.check_key(opened.clone())?;
        Ok(db.insert(opened).clone())
    }

    /// Opens the index in `path`. Replaces an index that cannot be opened by an empty one.
    pub fn open_or_renew(
        path: &PathBuf,
        key: &DigestKey,
        cipher: Option<Arc<Cipher>>,
    ) -> Result<Self, Fault> {
        match Self::open(path, key, cipher.clone()) {
            Err(Fault::Damaged(why)) => {
                tracing::warn!(index = %path.display(), why, "an index of the audit log is damaged; it is made again");
                fs::remove_dir_all(path).map_err(|e| Fault::io("removing", path, &e))?;
                Self::open(path, key, cipher)
            }
            opened => opened,
        }
    }

    /// Checks the key: with another key, lookups would find nothing and so hide records.
    fn check_key(&self, db: sled::Db) -> Result<(), Fault> {
        let mine = self.key.term(0, "the key of this index");
        bounded(MAX_WAIT, move || match db.get(b"k")? {
            Some(theirs) if *theirs == mine => Ok(()),
            None if db.is_empty() => {
                db.insert(b"k", mine.as_slice())?;
                db.flush()?;
                Ok(())
            }
            _ => Err(damaged("it was made with another `digest.key`")),
        })
    }

    /// The database, if there is one: an index without it has no entries.
    fn db(&self) -> Option<sled::Db> {
        self.db.lock().clone()
    }

    /// Encrypts a value if the store is encrypted: index values contain data of records.
    fn wrap(&self, key: &[u8], value: Vec<u8>) -> Result<Vec<u8>, Fault> {
        match &self.cipher {
            Some(cipher) => cipher.seal(key, &value).map_err(damaged),
            None => Ok(value),
        }
    }

    fn unwrap(&self, key: &[u8], value: &[u8]) -> Result<Vec<u8>, Fault> {
        match &self.cipher {
            Some(cipher) => cipher.open(key, value).map_err(damaged),
            None => Ok(value.to_vec()),
        }
    }

    fn term_key(&self, first: u64, field: Field, value: &str) -> Vec<u8> {
        let mut key = vec![b't', field as u8];
        key.extend(self.key.term(field as u8, value));
        at(&key, first)
    }

    fn rare(&self, field: Field, value: &str) -> [u8; 4] {
        let digest = self.key.term(field as u8, value);
        digest.first_chunk().copied().unwrap_or_default()
    }

    /// Index entries of a block, not encrypted.
    fn entries(&self, sealing: &Sealing) -> Result<Vec<Entry>, Fault> {
        let first = sealing.meta.first;
        let mut entries = Vec::new();
        let mut rare: Vec<[u8; RARE]> = Vec::new();
        for (field, value, places) in &sealing.terms {
            if field.is_rare() {
                let rare_digest = self.rare(*field, value);
                for place in places {
                    let mut entry = [0; RARE];
                    let (digest, at) = entry.split_at_mut(4);
                    digest.copy_from_slice(&rare_digest);
                    at.copy_from_slice(&place.to_le_bytes());
                    rare.push(entry);
                }
            } else {
                let bits: Bits = places.iter().map(|at| usize::from(*at)).collect();
                entries.push((self.term_key(first, *field, value), bits.to_bytes()));
            }
        }
        rare.sort_unstable();
        entries.push((at(b"p", first), rare.concat()));
        let tally = postcard::to_allocvec(&sealing.tally).map_err(damaged)?;
        entries.push((at(b"y", first), tally));
        let meta = postcard::to_allocvec(&sealing.meta).map_err(damaged)?;
        entries.push((at(b"m", first), meta));
        Ok(entries)
    }

    /// Adds a block atomically.
    pub fn put(&self, sealing: &Sealing) -> Result<(), Fault> {
        let mut batch = sled::Batch::default();
        for (key, value) in self.entries(sealing)? {
            let value = self.wrap(&key, value)?;
            batch.insert(key, value);
        }
        let db = self.made()?;
        bounded(MAX_WAIT, move || {
            db.apply_batch(batch)?;
            db.flush()?;
            Ok(())
        })
    }

    /// Whether the index contains exactly this data of a block. Returns its number of entries.
    pub fn holds(&self, sealing: &Sealing) -> Result<usize, Fault> {
        let entries = self.entries(sealing)?;
        let tally = at(b"y", sealing.meta.first);
        for (key, value) in &entries {
            let same = match self.get(key)? {
                // The aggregates have no fixed serialized order: compare them parsed.
                Some(_) if *key == tally => *self.tally(sealing.meta.first)? == sealing.tally,
                found => found.as_ref() == Some(value),
            };
            if !same {
                return Err(Fault::Damaged("it does not say what the records say".into()));
            }
        }
        Ok(entries.len())
    }

    /// Number of entries of each block.
    pub fn counts(&self) -> Result<HashMap<u64, usize>, Fault> {
        contained(|| {
            let mut counts = HashMap::new();
            let Some(db) = self.db() else { return Ok(counts) };
            for key in db.iter().keys() {
                let key = key?;
                if *key == *b"k" {
                    continue;
                }
                let first = key.last_chunk().map_or(u64::MAX, |first| u64::from_be_bytes(*first));
                *counts.entry(first).or_insert(0) += 1;
            }
            Ok(counts)
        })
    }

    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, Fault> {
        contained(|| {
            let value = self.db().map(|db| db.get(key)).transpose()?.flatten();
            value.map(|value| self.unwrap(key, &value)).transpose()
        })
    }

    /// Positions in a block with this value; a rare field may have false positives.
    pub fn term(&self, first: u64, field: Field, value: &str) -> Result<Bits, Fault> {
        if !field.is_rare() {
            let found = self.get(&self.term_key(first, field, value))?;
            return Ok(found.map(|bytes| Bits::from_bytes(&bytes)).unwrap_or_default());
        }
        let digest = self.rare(field, value);
        let found = self.get(&at(b"p", first))?.unwrap_or_default();
        let entries = found.as_chunks::<RARE>().0;
        let from = entries.partition_point(|entry| entry[..4] < digest[..]);
        let same = entries.iter().skip(from).take_while(|entry| entry[..4] == digest[..]);
        Ok(same.map(|entry| usize::from(u16::from_le_bytes([entry[4], entry[5]]))).collect())
    }

    /// Aggregates of a block's records.
    pub fn tally(&self, first: u64) -> Result<Arc<Aggregates>, Fault> {
        let bytes = self.get(&at(b"y", first))?;
        let bytes = bytes.ok_or_else(|| damaged("a block has no tally"))?;
        Aggregates::decode(&bytes).map(Arc::new).map_err(damaged)
    }

    /// All blocks, in order.
    pub fn blocks(&self) -> Result<Vec<Arc<BlockMeta>>, Fault> {
        contained(|| {
            let Some(db) = self.db() else { return Ok(Vec::new()) };
            db.scan_prefix(b"m")
                .map(|entry| {
                    let (key, value) = entry?;
                    let bytes = self.unwrap(&key, &value)?;
                    postcard::from_bytes(&bytes).map(Arc::new).map_err(damaged)
                })
                .collect()
        })
    }
}

impl Drop for Index {
    fn drop(&mut self) {
        let db = self.db.get_mut().take();
        let closed = bounded(LINGERING, move || {
            drop(db);
            Ok(())
        });
        if let Err(fault) = closed {
            tracing::warn!(%fault, "an index of the audit log was not closed");
        }
    }
}
