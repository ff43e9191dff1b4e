//! Current files of a store, without locks. Concurrent writes of the proxy are ignored, and files
//! that it moves are found at the old or the new path.

use std::{
    fs::{self, File},
    io,
    path::Path,
    sync::Arc,
};

use jiff::Timestamp;
use serde::Deserialize;

use super::frames::{self, FilePart, Fill, Source, Unit};
use crate::proof::{Frontier, Hash};

/// File with the summary of a closed segment.
pub(super) const CLOSED: &str = "segment.json";

/// Summary of a closed segment.
#[derive(Debug, Deserialize)]
pub(in crate::proof) struct Closed {
    /// `seq` after its last record.
    pub end: u64,
    pub ended: Timestamp,
    pub last: Hash,
    /// Tree over all records of the log up to `end`.
    pub tree: Frontier,
}

/// Summary of the segment that begins with `first`. It is not signed.
pub(in crate::proof) fn closed(dir: &Path, first: u64) -> io::Result<Option<Closed>> {
    match fs::read(dir.join(format!("segments/{first:016}/{CLOSED}"))) {
        Ok(text) => Ok(Some(serde_json::from_slice(&text)?)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Folder of a segment.
#[derive(Debug)]
pub(super) struct Segment {
    /// `seq` of the first record, from the folder's name.
    pub first: u64,
    /// Files of commits, opened before the sealed records.
    wals: Vec<(u64, Arc<Source>)>,
    records: Option<Arc<Source>>,
}

/// Content of a segment, in order.
pub(super) struct Content {
    pub pieces: Vec<FilePart>,
    /// Incomplete commit of an interrupted or concurrent write.
    pub unfinished: Option<FilePart>,
}

fn open(dir: &Path, name: String) -> io::Result<Option<Arc<Source>>> {
    match File::open(dir.join(&name)) {
        Ok(file) => Ok(Some(Arc::new(Source { file, name }))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// First records of all segments, in order.
pub(in crate::proof) fn segments(dir: &Path) -> io::Result<Vec<u64>> {
    numbered(&dir.join("segments"), |name| Some(name).filter(|name| name.len() == 16))
}

/// First records of all dropped segments, in order.
pub(in crate::proof) fn dropped(dir: &Path) -> io::Result<Vec<u64>> {
    numbered(&dir.join("dropped"), |name| name.strip_suffix(".proof"))
}

fn numbered(dir: &Path, digits: impl Fn(&str) -> Option<&str>) -> io::Result<Vec<u64>> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut numbers = Vec::new();
    for entry in entries {
        let name = entry?.file_name();
        numbers.extend(name.to_str().and_then(&digits).and_then(|d| d.parse::<u64>().ok()));
    }
    numbers.sort_unstable();
    Ok(numbers)
}

impl Segment {
    /// Opens a segment's files. `None` if the folder does not exist.
    pub fn open(dir: &Path, first: u64) -> io::Result<Option<Self>> {
        let folder = format!("segments/{first:016}");
        if !dir.join(&folder).is_dir() {
            return Ok(None);
        }
        // Commits first: a block that is sealed concurrently is then in both, and never in neither.
        let mut wals = Vec::new();
        for begin in numbered(&dir.join(&folder), |name| name.strip_prefix("wal-"))? {
            let name = format!("{folder}/wal-{begin:016}");
            wals.extend(open(dir, name)?.map(|source| (begin, source)));
        }
        let records = open(dir, format!("{folder}/records"))?;
        Ok(Some(Self { first, wals, records }))
    }

    /// Content of the segment: sealed frames, then unsealed commits.
    pub fn content(&self) -> io::Result<Content> {
        let mut content = Content { pieces: Vec::new(), unfinished: None };
        if let Some(records) = &self.records {
            content.pieces = frames::pieces(records, self.first, Fill::None)?;
        }
        let end = |pieces: &[FilePart]| {
            pieces.iter().rev().find_map(|piece| match piece {
                FilePart::Frame(unit) => Some(unit.records().end),
                FilePart::Damage { .. } => None,
            })
        };
        let mut next = end(&content.pieces).unwrap_or(self.first);
        // A block whose sealing is running or was interrupted still has its commits.
        if self.wals.iter().any(|(begin, _)| *begin <= next) {
            content.pieces.pop_if(|piece| matches!(piece, FilePart::Damage { last: true, .. }));
        }
        let mut wals = self.wals.iter().peekable();
        while let Some((begin, source)) = wals.next() {
            // A failed commit was repeated in the next file.
            let until = wals.peek().map(|(begin, _)| *begin);
            let mut pieces = frames::pieces(source, *begin, Fill::Zeros)?;
            for piece in &mut pieces {
                if let FilePart::Frame(unit) = piece
                    && !frames::sound(unit)?
                {
                    let bytes = unit.offset..unit.offset + unit.length as u64;
                    let source = source.clone();
                    *piece = FilePart::Damage { source, bytes, last: false };
                }
            }
            let trailing = pieces.pop_if(|piece| matches!(piece, FilePart::Damage { .. }));
            for piece in pieces {
                match piece {
                    FilePart::Frame(unit) if unit.records().end <= next => {}
                    FilePart::Frame(unit) if until.is_some_and(|until| unit.first >= until) => {
                        break;
                    }
                    FilePart::Frame(unit) => {
                        next = unit.records().end;
                        content.pieces.push(FilePart::Frame(unit));
                    }
                    damage @ FilePart::Damage { .. } => content.pieces.push(damage),
                }
            }
            match trailing {
                Some(damage) if until.is_none() => content.unfinished = Some(damage),
                // Records are lost only if the next file does not continue here.
                Some(damage) if until != Some(next) => content.pieces.push(damage),
                _ => {}
            }
        }
        Ok(content)
    }
}

impl FilePart {
    /// The frame, unless the piece is damage.
    pub fn unit(&self) -> Option<&Unit> {
        match self {
            Self::Frame(unit) => Some(unit),
            Self::Damage { .. } => None,
        }
    }
}
