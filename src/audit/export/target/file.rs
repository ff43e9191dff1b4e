//! Targets that append to a file or write to standard output.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read as _, Seek as _, SeekFrom, Write as _},
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::Arc,
};

use async_trait::async_trait;

use super::{
    super::{Format, Item, Origin, format},
    Sink, Undelivered,
};

/// A file. After a rotation by renaming, the next batch goes to a new file. A batch is
/// acknowledged once the file is synced.
pub(super) struct Appended {
    path: PathBuf,
    format: Format,
    origin: Origin,
    file: Option<File>,
}

impl Appended {
    pub fn new(path: PathBuf, format: Format, origin: Origin) -> Self {
        Self { path, format, origin, file: None }
    }
}

#[async_trait]
impl Sink for Appended {
    async fn deliver(&mut self, items: Arc<Vec<Item>>) -> Result<(), Undelivered> {
        let (path, format, origin) = (self.path.clone(), self.format, self.origin.clone());
        // Put back only after success: after a failure, the next batch opens the file again and
        // checks its end.
        let file = self.file.take();
        let written = tokio::task::spawn_blocking(move || {
            let mut file = match file {
                Some(file) if is_at(&file, &path) => file,
                _ => open(&path)?,
            };
            let first = file.metadata()?.len() == 0;
            let text = format::lines(format, &items, &origin, first).map_err(io::Error::other)?;
            file.write_all(&text)?;
            file.sync_data()?;
            Ok(file)
        });
        let failed = |error: io::Error| {
            Undelivered::Failed(format!("cannot append to {}: {error}", self.path.display()))
        };
        self.file = Some(written.await.map_err(io::Error::other).and_then(|w| w).map_err(failed)?);
        Ok(())
    }
}

/// Whether the path still names this file.
fn is_at(file: &File, path: &Path) -> bool {
    match (file.metadata(), path.metadata()) {
        (Ok(ours), Ok(there)) => (ours.dev(), ours.ino()) == (there.dev(), there.ino()),
        _ => false,
    }
}

/// Opens the file, or creates it for its owner only, and removes an incomplete last line. That line
/// was not acknowledged, so it is sent again.
fn open(path: &Path) -> io::Result<File> {
    if let Ok(there) = path.metadata()
        && !there.is_file()
    {
        return Err(io::Error::other("it is not a regular file"));
    }
    let fresh = !path.exists();
    let mut file =
        OpenOptions::new().read(true).append(true).create(true).mode(0o600).open(path)?;
    if fresh && let Some(folder) = path.parent() {
        // Makes the new file's name survive a power cut.
        File::open(folder)?.sync_all()?;
    }
    let length = file.metadata()?.len();
    let whole = whole_lines(&mut file, length)?;
    if whole < length {
        tracing::warn!(
            file = %path.display(),
            bytes = length - whole,
            "removed an incomplete line; it will be written again"
        );
        file.set_len(whole)?;
    }
    Ok(file)
}

/// Length of the file up to its last line feed.
fn whole_lines(file: &mut File, length: u64) -> io::Result<u64> {
    let mut end = length;
    let mut block = [0; 4096];
    while end > 0 {
        let start = end.saturating_sub(block.len() as u64);
        let part = usize::try_from(end - start).unwrap_or(block.len());
        let Some(part) = block.get_mut(..part) else { break };
        file.seek(SeekFrom::Start(start))?;
        file.read_exact(part)?;
        if let Some(at) = memchr::memrchr(b'\n', part) {
            return Ok(start + at as u64 + 1);
        }
        end = start;
    }
    Ok(0)
}

/// Standard output. A batch is acknowledged once it is written.
pub(super) struct Stdout {
    format: Format,
    origin: Origin,
    first: bool,
}

impl Stdout {
    pub fn new(format: Format, origin: Origin) -> Self {
        Self { format, origin, first: true }
    }
}

#[async_trait]
impl Sink for Stdout {
    async fn deliver(&mut self, items: Arc<Vec<Item>>) -> Result<(), Undelivered> {
        let text = format::lines(self.format, &items, &self.origin, self.first)?;
        let written = tokio::task::spawn_blocking(move || {
            let mut out = io::stdout().lock();
            out.write_all(&text)?;
            out.flush()
        });
        written.await.map_err(io::Error::other).and_then(|w| w).map_err(|error| {
            Undelivered::Failed(format!("cannot write to standard output: {error}"))
        })?;
        self.first = false;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn torn_last_line_is_truncated() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let long = "x".repeat(10_000);
        for (written, left) in [
            (String::new(), String::new()),
            ("a\n".into(), "a\n".into()),
            ("a\nb".into(), "a\n".into()),
            ("torn".into(), String::new()),
            (format!("{long}\n{long}"), format!("{long}\n")),
            (format!("{long}{long}\n"), format!("{long}{long}\n")),
        ] {
            std::fs::write(&path, &written).unwrap();
            open(&path).unwrap();
            assert_eq!(std::fs::read_to_string(&path).unwrap(), left);
        }
        assert!(open(dir.path()).is_err());
    }
}
