//! Blocks of a view, in memory or in a segment.

use std::sync::Arc;

use bytes::Bytes;
use jiff::Timestamp;
use smol_str::SmolStr;

use super::{
    bitmap::Bits,
    block::{ANSWERED, BlockMeta, Growing},
    fault::Fault,
    index_terms::{Facts, Field},
    segment::Segment,
    time,
};
use crate::{
    line::Line,
    proof::{Frontier, Hash, TILE},
    query::Aggregates,
};

/// A block of a view.
#[derive(Clone)]
pub(crate) struct Block(pub(super) BlockPosition);

#[derive(Clone)]
pub(super) enum BlockPosition {
    /// A block in memory; records beyond `count` were added after the view was created.
    Memory {
        block: Arc<Growing>,
        count: usize,
    },
    Segment {
        segment: Arc<Segment>,
        meta: Arc<BlockMeta>,
    },
}

impl Block {
    /// `seq` of its first record.
    pub fn first(&self) -> u64 {
        match &self.0 {
            BlockPosition::Memory { block, .. } => block.first,
            BlockPosition::Segment { meta, .. } => meta.first,
        }
    }

    /// Number of records.
    pub fn count(&self) -> usize {
        match &self.0 {
            BlockPosition::Memory { count, .. } => *count,
            BlockPosition::Segment { meta, .. } => meta.count as usize,
        }
    }

    /// Time of its first record.
    pub fn begin(&self) -> Timestamp {
        time(match &self.0 {
            BlockPosition::Memory { block, .. } => block.inner.read().begin,
            BlockPosition::Segment { meta, .. } => meta.begin,
        })
    }

    /// Latest time of its records.
    pub fn end(&self) -> Timestamp {
        time(match &self.0 {
            BlockPosition::Memory { block, .. } => block.inner.read().end,
            BlockPosition::Segment { meta, .. } => meta.end,
        })
    }

    /// Positions of all records with this value in this field, and of no others.
    ///
    /// # Errors
    /// If the index or the records cannot be read.
    pub fn term(&self, field: Field, value: &str) -> Result<Bits, Fault> {
        match &self.0 {
            BlockPosition::Memory { block, count } => {
                let inner = block.inner.read();
                let positions = inner.terms.get(&field).and_then(|values| values.get(value));
                let in_range = |at: &usize| at < count;
                Ok(positions
                    .into_iter()
                    .flatten()
                    .map(|at| usize::from(*at))
                    .filter(in_range)
                    .collect())
            }
            BlockPosition::Segment { segment, meta } => {
                if let Some(sealing) = segment.unindexed(meta)? {
                    return Ok(sealing.positions(field, value));
                }
                let found = segment.index().term(meta.first, field, value)?;
                if !field.is_rare() {
                    return Ok(found);
                }
                // For these fields, the index has truncated digests: compare the records.
                let mut bits = Bits::default();
                for line in self.lines(&found)? {
                    let facts = line.entry().map(|entry| Facts::of(&entry.record));
                    let has = |(f, v): &(Field, SmolStr)| *f == field && v == value;
                    if facts.is_ok_and(|facts| facts.terms.iter().any(has)) {
                        bits.insert(
                            usize::try_from(line.seq().0 - meta.first).unwrap_or(usize::MAX),
                        );
                    }
                }
                Ok(bits)
            }
        }
    }

    /// Positions of intents with an outcome in the same block.
    ///
    /// # Errors
    /// If the index cannot be read.
    pub fn answered(&self) -> Result<Bits, Fault> {
        match &self.0 {
            BlockPosition::Memory { block, count } => {
                let inner = block.inner.read();
                let in_range = inner.answered.iter().filter(|(_, at)| usize::from(*at) < *count);
                Ok(in_range.map(|(intent, _)| usize::from(*intent)).collect())
            }
            BlockPosition::Segment { segment, meta } => match segment.unindexed(meta)? {
                Some(sealing) => Ok(sealing.positions(Field::Kind, ANSWERED)),
                None => segment.index().term(meta.first, Field::Kind, ANSWERED),
            },
        }
    }

    /// Records at these positions, in order.
    ///
    /// # Errors
    /// If they cannot be read.
    pub fn lines(&self, positions: &Bits) -> Result<Vec<Line>, Fault> {
        let read = |text: Bytes| {
            Line::read(text).ok_or_else(|| Fault::Damaged("a line is not a record's".into()))
        };
        match &self.0 {
            BlockPosition::Memory { block, count } => {
                let inner = block.inner.read();
                let lines = positions.iter().filter(|at| at < count);
                lines.filter_map(|at| inner.lines.get(at)).cloned().map(read).collect()
            }
            BlockPosition::Segment { segment, meta } => {
                let mut lines = Vec::new();
                for (at, frame) in meta.frames.iter().enumerate() {
                    let end = meta.frames.get(at + 1).map_or(meta.after(), |next| next.first);
                    let wanted = |seq: u64| {
                        usize::try_from(seq - meta.first).is_ok_and(|at| positions.contains(at))
                    };
                    if !(frame.first..end).any(wanted) {
                        continue;
                    }
                    let all = segment.frame(frame)?;
                    for (seq, text) in (frame.first..).zip(all.iter()) {
                        if wanted(seq) {
                            lines.push(read(text.clone())?);
                        }
                    }
                }
                Ok(lines)
            }
        }
    }

    /// Aggregates of all its records.
    ///
    /// # Errors
    /// If the index cannot be read.
    pub fn tally(&self) -> Result<Arc<Aggregates>, Fault> {
        match &self.0 {
            BlockPosition::Memory { block, count } => {
                let inner = block.inner.read();
                let mut tally = Aggregates::default();
                for (recorded, facts) in inner.facts.iter().take(*count) {
                    tally.add(time(*recorded), facts);
                }
                Ok(Arc::new(tally))
            }
            BlockPosition::Segment { segment, meta } => match segment.unindexed(meta)? {
                Some(sealing) => Ok(Arc::new(sealing.tally)),
                None => segment.index().tally(meta.first),
            },
        }
    }

    /// Hashes of its records before the first whole tile, roots of its whole tiles, and hashes of
    /// the records after them.
    pub fn hashes(&self) -> (Vec<Hash>, Vec<Hash>, Vec<Hash>) {
        match &self.0 {
            BlockPosition::Memory { block, count } => {
                let inner = block.inner.read();
                let leaves = inner.hashes.get(..*count).unwrap_or(&inner.hashes);
                let ragged = (TILE - block.first % TILE) % TILE;
                let (lead, rest) =
                    leaves.split_at(usize::try_from(ragged).unwrap_or(0).min(leaves.len()));
                let (complete, trail) = rest.as_chunks::<{ TILE as usize }>();
                let root = |tile: &[Hash; TILE as usize]| {
                    Frontier::of_tiles([], tile.iter().copied()).root()
                };
                (lead.to_vec(), complete.iter().map(root).collect(), trail.to_vec())
            }
            BlockPosition::Segment { meta, .. } => {
                (meta.lead.clone(), meta.tiles.clone(), meta.trail.clone())
            }
        }
    }
}
