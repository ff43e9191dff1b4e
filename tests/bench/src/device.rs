//! The time that the disk takes to make a write durable.

use std::{
    fs::File,
    os::unix::fs::FileExt as _,
    path::Path,
    time::{Duration, Instant},
};

/// Bytes of a write: about those of a record.
const BYTES: usize = 700;
const FILE_BYTES: usize = 4 << 20;

/// A file like that of the audit log: its size is fixed before the writes, so a sync writes data only.
pub struct Device {
    file: File,
    at: usize,
}

impl Device {
    pub fn new(dir: &Path) -> std::io::Result<Self> {
        let file = File::create(dir.join("device"))?;
        file.write_all_at(&vec![0; FILE_BYTES], 0)?;
        file.sync_all()?;
        Ok(Self { file, at: 0 })
    }

    /// Median time of a write with `fdatasync`, of 100.
    pub fn sync(&mut self) -> std::io::Result<Duration> {
        let mut took = Vec::new();
        for _ in 0..100 {
            let began = Instant::now();
            self.file.write_all_at(&[7; BYTES], self.at as u64)?;
            self.file.sync_data()?;
            took.push(began.elapsed());
            self.at = (self.at + BYTES) % (FILE_BYTES - BYTES);
        }
        took.sort_unstable();
        Ok(took[took.len() / 2])
    }
}
