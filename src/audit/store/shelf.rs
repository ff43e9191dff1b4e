//! All segments of a store: found by name, opened when they are asked for.

use std::{
    fs::{self, DirBuilder, File},
    io,
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use jiff::{Timestamp, civil::DateTime, tz::TimeZone};
use parking_lot::Mutex;

use super::segment::{Fault, Segment, SledSegment};

/// The name of a segment's folder is the time of its first stamp.
const NAME: &str = "%Y%m%dT%H%M%S.%6f";
/// Old segments kept open for queries.
const OPEN: usize = 3;

/// The segments of one store.
pub(in crate::audit) struct Shelf {
    dir: PathBuf,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    /// First stamps of all segments, in order.
    names: Vec<u64>,
    /// Open segments, the one used last at the end.
    open: Vec<(u64, Arc<dyn Segment>)>,
    /// The one that is written.
    current: Option<(u64, Arc<dyn Segment>)>,
}

/// Makes a folder that only its owner can enter, and those above it where they are missing.
pub(in crate::audit) fn private_dir(dir: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(dir)
}

/// The time of a stamp.
pub(in crate::audit) fn time(stamp: u64) -> Timestamp {
    i64::try_from(stamp)
        .ok()
        .and_then(|micros| Timestamp::from_microsecond(micros).ok())
        .unwrap_or(Timestamp::MAX)
}

/// The stamp of a time.
pub(in crate::audit) fn stamp(time: Timestamp) -> u64 {
    u64::try_from(time.as_microsecond()).unwrap_or(0)
}

fn name(first: u64) -> String {
    time(first).strftime(NAME).to_string()
}

fn parse(name: &str) -> Option<u64> {
    let time = DateTime::strptime(NAME, name).ok()?.to_zoned(TimeZone::UTC).ok()?.timestamp();
    // A name that is not written as we write it is not ours.
    Some(stamp(time)).filter(|&first| self::name(first) == name)
}

impl Shelf {
    /// Looks what segments there are in the store in `dir`.
    pub(in crate::audit) fn open(dir: &Path) -> io::Result<Self> {
        let mut names = Vec::new();
        match fs::read_dir(dir.join("segments")) {
            Ok(entries) => {
                for entry in entries {
                    names.extend(entry?.file_name().to_str().and_then(parse));
                }
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        names.sort_unstable();
        Ok(Self { dir: dir.to_owned(), inner: Mutex::new(Inner { names, ..Inner::default() }) })
    }

    /// The folder of the store.
    pub(in crate::audit) fn dir(&self) -> &Path {
        &self.dir
    }

    fn path(&self, first: u64) -> PathBuf {
        self.dir.join("segments").join(name(first))
    }

    /// First stamps of the segments that can hold records with stamps from `first` to `last`, in
    /// order.
    pub(in crate::audit) fn within(&self, first: u64, last: u64) -> Vec<u64> {
        let inner = self.inner.lock();
        let names = &inner.names;
        names
            .iter()
            .enumerate()
            .filter(|&(at, &begin)| {
                begin <= last && names.get(at + 1).is_none_or(|&next| next > first)
            })
            .map(|(_, &begin)| begin)
            .collect()
    }

    /// A segment by its first stamp, opened if it is not.
    pub(in crate::audit) fn segment(&self, first: u64) -> Result<Arc<dyn Segment>, Fault> {
        let mut inner = self.inner.lock();
        if let Some((_, segment)) = inner.current.as_ref().filter(|(begin, _)| *begin == first) {
            return Ok(segment.clone());
        }
        if let Some(at) = inner.open.iter().position(|(begin, _)| *begin == first) {
            let used = inner.open.remove(at);
            let segment = used.1.clone();
            inner.open.push(used);
            return Ok(segment);
        }
        let path = self.path(first);
        if !SledSegment::exists(&path) {
            return Err(Fault::Damaged("its log file is missing".into()));
        }
        let segment: Arc<dyn Segment> = Arc::new(SledSegment::open(&path)?);
        if inner.open.len() >= OPEN {
            inner.open.remove(0);
        }
        inner.open.push((first, segment.clone()));
        Ok(segment)
    }

    /// What a person calls a segment.
    pub(in crate::audit) fn label(&self, first: u64) -> String {
        self.path(first).display().to_string()
    }

    /// The first stamp of the newest segment.
    pub(super) fn newest(&self) -> Option<u64> {
        self.inner.lock().names.last().copied()
    }

    /// Opens this segment for writing, or makes it, in the place of the one written so far.
    pub(super) fn write(&self, first: u64) -> Result<Arc<dyn Segment>, Fault> {
        let mut inner = self.inner.lock();
        if let Some(old) = inner.current.take() {
            // Closed now unless a query still reads it.
            drop(old);
        }
        inner.open.retain(|(begin, _)| *begin != first);
        let path = self.path(first);
        let parent = self.dir.join("segments");
        private_dir(&parent).map_err(|e| Fault::io("making", &parent, &e))?;
        let segment: Arc<dyn Segment> = Arc::new(SledSegment::open(&path)?);
        if let Err(at) = inner.names.binary_search(&first) {
            inner.names.insert(at, first);
        }
        inner.current = Some((first, segment.clone()));
        Ok(segment)
    }

    /// Closes the segment that is written.
    pub(super) fn close(&self) {
        self.inner.lock().current = None;
    }

    /// Moves a segment that does not open out of the way. Returns where it is now.
    pub(super) fn quarantine(&self, first: u64) -> Result<PathBuf, Fault> {
        let mut inner = self.inner.lock();
        inner.current = None;
        inner.open.retain(|(begin, _)| *begin != first);
        let (from, aside) = (self.path(first), self.dir.join("quarantine"));
        private_dir(&aside).map_err(|e| Fault::io("making", &aside, &e))?;
        let mut to = aside.join(name(first));
        for again in 1..1000 {
            if !to.exists() {
                break;
            }
            to = aside.join(format!("{}.{again}", name(first)));
        }
        fs::rename(&from, &to).map_err(|e| Fault::io("moving aside", &from, &e))?;
        for dir in [aside, self.dir.join("segments")] {
            File::open(&dir)
                .and_then(|dir| dir.sync_all())
                .map_err(|e| Fault::io("syncing", &dir, &e))?;
        }
        inner.names.retain(|&begin| begin != first);
        Ok(to)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_segments_are_times_and_sort() {
        let first = 1_700_000_000_123_456;
        assert_eq!(name(first), "20231114T221320.123456");
        assert_eq!(parse("20231114T221320.123456"), Some(first));
        for other in ["", "x", "20231114T221320", "20231114T221320.123456.1", "20231114T221320.1"] {
            assert_eq!(parse(other), None, "{other}");
        }
    }
}
