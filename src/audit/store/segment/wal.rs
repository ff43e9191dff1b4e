//! Files of commits that are not sealed yet: one per block.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
};

use super::{super::fault::Fault, private, sync_dir};

/// File of zeros in the store's folder that becomes the next file of commits.
const SPARE: &str = "spare";
/// Size of that file: about the size of a block's commits.
const FILL: usize = 4 << 20;

/// File of commits of one block.
#[derive(Debug)]
pub(in crate::store) struct Wal {
    file: File,
    path: PathBuf,
    /// Acknowledged bytes.
    length: u64,
}

impl Wal {
    pub fn path(segment: &Path, first: u64) -> PathBuf {
        segment.join(format!("wal-{first:016}"))
    }

    /// Begins the commits of the block that begins with this record. The content of an existing
    /// file of that name was never acknowledged.
    pub fn begin(segment: &Path, first: u64) -> Result<Self, Fault> {
        let path = Self::path(segment, first);
        let spare = segment.ancestors().nth(2).map(|store| store.join(SPARE));
        let filled = spare.is_some_and(|spare| fs::rename(spare, &path).is_ok());
        let opened = private().truncate(!filled).open(&path);
        let file = opened.map_err(|e| Fault::io("making", &path, &e))?;
        // The name must be as durable as the content.
        sync_dir(segment)?;
        Ok(Self { file, path, length: 0 })
    }

    /// Creates the file of zeros for the next block. Commits into it need not sync its size, which
    /// saves one disk write each.
    pub fn prepare(store: &Path) -> io::Result<()> {
        let path = store.join(SPARE);
        if path.exists() {
            return Ok(());
        }
        // Renamed when complete, since a shorter file would be slower.
        let unfinished = store.join("spare.new");
        let file = private().truncate(true).open(&unfinished)?;
        file.write_all_at(&vec![0; FILL], 0)?;
        file.sync_all()?;
        fs::rename(&unfinished, &path)
    }

    /// Continues after the first `length` bytes, which are whole frames.
    pub fn resume(path: PathBuf, length: u64) -> Result<Self, Fault> {
        let file = private().open(&path).map_err(|e| Fault::io("opening", &path, &e))?;
        file.set_len(length)
            .and_then(|()| file.sync_all())
            .map_err(|e| Fault::io("cutting", &path, &e))?;
        Ok(Self { file, path, length })
    }

    /// Appends a frame. Durable when it returns `Ok`; after an error, do not append again.
    pub fn append(&mut self, frame: &[u8]) -> Result<(), Fault> {
        self.file
            .write_all_at(frame, self.length)
            .and_then(|()| self.file.sync_data())
            .map_err(|e| Fault::io("writing", &self.path, &e))?;
        self.length += frame.len() as u64;
        Ok(())
    }
}
