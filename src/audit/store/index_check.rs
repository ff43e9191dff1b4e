//! Holds the indexes against the records that they are of.

use std::{collections::HashMap, ops::Range};

use rayon::prelude::*;

use super::{Fault, View, block::BlockMeta, segment::Segment};

/// An index that does not say what the records say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mismatch {
    /// The record that its segment begins with.
    pub segment: u64,
    /// The first record of the block, where it is one block's entries.
    pub block: Option<u64>,
    /// In words.
    pub what: String,
}

impl View {
    /// Makes again from records what the indexes should have, and says where they have something
    /// else. What can't be read is left to who looks at records.
    pub(crate) fn check_indexes(&self) -> Vec<Mismatch> {
        let mut found = Vec::new();
        for (first, opened) in self.open_segments() {
            match opened {
                Ok(segment) => found.extend(segment.check_index(0..self.sealed())),
                Err(fault) => {
                    let what = format!("it can't be opened: {fault}");
                    found.push(Mismatch { segment: first, block: None, what });
                }
            }
        }
        found
    }
}

impl Segment {
    /// Holds what the index has of these records against them.
    fn check_index(&self, records: Range<u64>) -> Vec<Mismatch> {
        let all = self.blocks();
        let blocks: Vec<_> = all.iter().filter(|meta| records.contains(&meta.first)).collect();
        let checked: Vec<_> = blocks.par_iter().map(|meta| self.check_block(meta)).collect();
        let mut counts = HashMap::new();
        let mut found = Vec::new();
        let mismatch = |block, what| Mismatch { segment: self.first, block, what };
        for (meta, checked) in blocks.iter().zip(checked) {
            match checked {
                // `None`: its records can't be read.
                Ok(count) => drop(counts.insert(meta.first, count)),
                Err(fault) => {
                    counts.insert(meta.first, None);
                    found.push(mismatch(Some(meta.first), fault.to_string()));
                }
            }
        }
        match self.index().counts() {
            Err(fault) => found.push(mismatch(None, fault.to_string())),
            Ok(has) => {
                for (block, has) in has.into_iter().filter(|(block, _)| records.contains(block)) {
                    let more = match counts.get(&block) {
                        Some(Some(count)) => has != *count,
                        Some(None) => false,
                        None => true,
                    };
                    if more {
                        let what = "it has entries that no record explains".to_owned();
                        found.push(mismatch(Some(block), what));
                    }
                }
            }
        }
        found
    }

    /// How many entries a block has in the index, all of which are right.
    fn check_block(&self, meta: &BlockMeta) -> Result<Option<usize>, Fault> {
        let Ok(sealing) = self.rebuilt(meta) else { return Ok(None) };
        self.index().holds(&sealing).map(Some)
    }
}
