//! The files of a store as they are now. Nothing is locked: what the proxy writes meanwhile is not
//! looked at, and what it moves is found where it stood or where it stands.

use std::{
    fs::{self, File},
    io,
    path::Path,
    sync::Arc,
};

use jiff::Timestamp;
use serde::Deserialize;

use super::frames::{self, Fill, Piece, Source, Unit};
use crate::proof::{Frontier, Hash};

/// The file in which a closed segment says what it is.
pub(super) const CLOSED: &str = "segment.json";

/// What a segment that takes no more records says of itself.
#[derive(Debug, Deserialize)]
pub(in crate::proof) struct Closed {
    /// `seq` after its last record.
    pub end: u64,
    pub ended: Timestamp,
    pub last: Hash,
    /// The tree over all records of the log up to there.
    pub tree: Frontier,
}

/// What the segment that begins with `first` says of itself. Nobody has signed it.
pub(in crate::proof) fn closed(dir: &Path, first: u64) -> io::Result<Option<Closed>> {
    match fs::read(dir.join(format!("segments/{first:016}/{CLOSED}"))) {
        Ok(text) => Ok(Some(serde_json::from_slice(&text)?)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// A segment's folder.
#[derive(Debug)]
pub(super) struct Segment {
    /// `seq` of the first record, by the folder's name.
    pub first: u64,
    /// Files of commits, opened before the sealed records are looked at.
    wals: Vec<(u64, Arc<Source>)>,
    records: Option<Arc<Source>>,
}

/// What stands in a segment, in order.
pub(super) struct Content {
    pub pieces: Vec<Piece>,
    /// A commit that was being written when the writing ended, or is being written now.
    pub unfinished: Option<Piece>,
}

fn open(dir: &Path, name: String) -> io::Result<Option<Arc<Source>>> {
    match File::open(dir.join(&name)) {
        Ok(file) => Ok(Some(Arc::new(Source { file, name }))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// The first records of all segments, in order.
pub(in crate::proof) fn segments(dir: &Path) -> io::Result<Vec<u64>> {
    numbered(&dir.join("segments"), |name| Some(name).filter(|name| name.len() == 16))
}

/// The first records of all segments that were dropped, in order.
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
    /// Opens a segment's files. `None` where the folder is gone.
    pub fn open(dir: &Path, first: u64) -> io::Result<Option<Self>> {
        let folder = format!("segments/{first:016}");
        if !dir.join(&folder).is_dir() {
            return Ok(None);
        }
        // Commits first: a block that is sealed meanwhile is then in both, and never in neither.
        let mut wals = Vec::new();
        for begin in numbered(&dir.join(&folder), |name| name.strip_prefix("wal-"))? {
            let name = format!("{folder}/wal-{begin:016}");
            wals.extend(open(dir, name)?.map(|source| (begin, source)));
        }
        let records = open(dir, format!("{folder}/records"))?;
        Ok(Some(Self { first, wals, records }))
    }

    /// What stands in it: sealed frames, then commits that are not sealed.
    pub fn content(&self) -> io::Result<Content> {
        let mut content = Content { pieces: Vec::new(), unfinished: None };
        if let Some(records) = &self.records {
            content.pieces = frames::pieces(records, self.first, Fill::None)?;
        }
        let end = |pieces: &[Piece]| {
            pieces.iter().rev().find_map(|piece| match piece {
                Piece::Frame(unit) => Some(unit.records().end),
                Piece::Damage { .. } => None,
            })
        };
        let mut next = end(&content.pieces).unwrap_or(self.first);
        // A block that is being sealed, or was when the writing ended, still has its commits.
        if self.wals.iter().any(|(begin, _)| *begin <= next) {
            content.pieces.pop_if(|piece| matches!(piece, Piece::Damage { last: true, .. }));
        }
        let mut wals = self.wals.iter().peekable();
        while let Some((begin, source)) = wals.next() {
            // A commit that failed was made again in the next file.
            let until = wals.peek().map(|(begin, _)| *begin);
            let mut pieces = frames::pieces(source, *begin, Fill::Zeros)?;
            for piece in &mut pieces {
                if let Piece::Frame(unit) = piece
                    && !frames::sound(unit)?
                {
                    let bytes = unit.offset..unit.offset + unit.length as u64;
                    let source = source.clone();
                    *piece = Piece::Damage { source, bytes, last: false };
                }
            }
            let trailing = pieces.pop_if(|piece| matches!(piece, Piece::Damage { .. }));
            for piece in pieces {
                match piece {
                    Piece::Frame(unit) if unit.records().end <= next => {}
                    Piece::Frame(unit) if until.is_some_and(|until| unit.first >= until) => break,
                    Piece::Frame(unit) => {
                        next = unit.records().end;
                        content.pieces.push(Piece::Frame(unit));
                    }
                    damage @ Piece::Damage { .. } => content.pieces.push(damage),
                }
            }
            match trailing {
                Some(damage) if until.is_none() => content.unfinished = Some(damage),
                // Only where the next file does not go on from here was something lost.
                Some(damage) if until != Some(next) => content.pieces.push(damage),
                _ => {}
            }
        }
        Ok(content)
    }
}

impl Piece {
    /// The frame, if it is one.
    pub fn unit(&self) -> Option<&Unit> {
        match self {
            Self::Frame(unit) => Some(unit),
            Self::Damage { .. } => None,
        }
    }
}
