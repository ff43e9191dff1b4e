//! Views: the durable state at one moment.

use std::sync::Arc;

use jiff::Timestamp;

use super::{
    super::{
        bitmap::Bits,
        block::Growing,
        fault::Fault,
        segment::Segment,
        view_block::{Block, BlockPosition},
    },
    SegmentSet, Slot,
};
use crate::line::Line;

/// Durable state at one moment.
#[derive(Clone)]
pub(crate) struct View {
    pub(super) segment_set: Arc<SegmentSet>,
    pub(super) slots: Arc<Vec<Arc<Slot>>>,
    /// `seq` after the last record that was sealed at that moment.
    pub(super) sealed: u64,
    pub(super) memory: Vec<(Arc<Growing>, usize)>,
    pub(super) end: u64,
}

impl View {
    /// `seq` of the first record of the store.
    pub fn first(&self) -> u64 {
        let memory = self.memory.first().map(|(block, _)| block.first);
        self.slots.first().map(|slot| slot.first).or(memory).unwrap_or(self.end)
    }

    /// `seq` after the last record.
    pub fn end(&self) -> u64 {
        self.end
    }

    /// `seq` after the last record in a segment's `records`.
    pub(in crate::store) fn sealed(&self) -> u64 {
        self.sealed
    }

    /// All segments. The iterator opens each one in its turn.
    pub(in crate::store) fn open_segments(
        &self,
    ) -> impl Iterator<Item = (u64, Result<Arc<Segment>, Fault>)> + '_ {
        self.slots.iter().map(|slot| (slot.first, self.segment_set.open_slot(slot)))
    }

    /// First records of the segments with a `seq` from `first` to `last`.
    pub fn segments(&self, first: u64, last: u64) -> Vec<u64> {
        let nexts = self.slots.iter().skip(1).map(|slot| slot.first).chain([u64::MAX]);
        let both = self.slots.iter().map(|slot| slot.first).zip(nexts);
        both.filter(|(begin, next)| *begin <= last && *next > first)
            .map(|(begin, _)| begin)
            .collect()
    }

    /// Blocks that can hold records with a `seq` from `first` to `last` (inclusive), written from
    /// `since` (inclusive) until `until` (exclusive), in order. Also the parts that cannot be read.
    pub fn blocks(
        &self,
        first: u64,
        last: u64,
        since: Option<Timestamp>,
        until: Option<Timestamp>,
    ) -> (Vec<Block>, Vec<String>) {
        let (mut blocks, mut unreadable) = (Vec::new(), Vec::new());
        for (at, slot) in self.slots.iter().enumerate() {
            let next = self.slots.get(at + 1).map_or(self.sealed, |next| next.first);
            if slot.first > last || next <= first || slot.first >= self.sealed {
                continue;
            }
            let outside = slot.closed.lock().as_ref().is_some_and(|closed| {
                since.is_some_and(|since| closed.ended < since)
                    || until.is_some_and(|until| closed.begin >= until)
            });
            if outside {
                continue;
            }
            match self.segment_set.open_slot(slot) {
                Ok(segment) => {
                    for meta in segment.blocks().iter().filter(|meta| meta.first < self.sealed) {
                        let (segment, meta) = (segment.clone(), meta.clone());
                        blocks.push(Block(BlockPosition::Segment { segment, meta }));
                    }
                }
                Err(fault) => {
                    let path = self.segment_set.env.path(slot.first);
                    unreadable.push(format!("{}: {fault}", path.display()));
                }
            }
        }
        let memory = self.memory.iter().filter(|(_, count)| *count > 0);
        blocks.extend(memory.map(|(block, count)| {
            Block(BlockPosition::Memory { block: block.clone(), count: *count })
        }));
        blocks.retain(|block| {
            block.first() <= last
                && block.first() + block.count() as u64 > first
                && since.is_none_or(|since| block.end() >= since)
                && until.is_none_or(|until| block.begin() < until)
        });
        (blocks, unreadable)
    }

    /// Records from `from` on, in order, at most `most`. Fewer only at the end of the view or
    /// before unreadable records.
    ///
    /// # Errors
    /// If the first of them cannot be read.
    pub fn lines(&self, from: u64, most: usize) -> Result<Vec<Line>, Fault> {
        let last = from.saturating_add(most.saturating_sub(1) as u64);
        let (blocks, unreadable) = self.blocks(from, last, None, None);
        let mut lines: Vec<Line> = Vec::new();
        for block in blocks {
            let count = block.count();
            let begin = usize::try_from(from.saturating_sub(block.first())).unwrap_or(usize::MAX);
            let end = usize::try_from(last - block.first() + 1).map_or(count, |end| end.min(count));
            let positions: Bits = (begin..end).collect();
            match block.lines(&positions) {
                Ok(more) => lines.extend(more),
                Err(fault) if lines.is_empty() => return Err(fault),
                Err(_) => break,
            }
        }
        match unreadable.into_iter().next() {
            Some(what) if lines.is_empty() => Err(Fault::Damaged(what)),
            _ => Ok(lines),
        }
    }
}
