//! What the disk itself takes, without any store.

use std::{
    fs::File,
    io,
    os::unix::fs::FileExt as _,
    path::Path,
    time::{Duration, Instant},
};

/// Bytes that are written before each sync: about those of a record.
const BYTES: u64 = 900;

pub struct Device {
    file: File,
    end: u64,
    /// Syncs of a file that grows.
    pub grown: Vec<Duration>,
    /// Syncs of what was written before.
    pub written: Vec<Duration>,
}

impl Device {
    pub fn new(dir: &Path) -> io::Result<Self> {
        let file = File::create(dir.join("device"))?;
        Ok(Self { file, end: 0, grown: Vec::new(), written: Vec::new() })
    }

    pub fn measure(&mut self, times: u64) -> io::Result<()> {
        let begin = self.end;
        for turn in 0..times {
            let took = self.sync(begin + turn * BYTES)?;
            self.grown.push(took);
        }
        for turn in 0..times {
            let took = self.sync(begin + turn * BYTES)?;
            self.written.push(took);
        }
        self.end += times * BYTES;
        Ok(())
    }

    fn sync(&self, at: u64) -> io::Result<Duration> {
        let began = Instant::now();
        self.file.write_all_at(&[7; BYTES as usize], at)?;
        self.file.sync_data()?;
        Ok(began.elapsed())
    }
}
