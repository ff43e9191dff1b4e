//! Compares indexes with their records.

use std::{collections::HashMap, ops::Range};

use rayon::prelude::*;

use super::{Fault, View, block::BlockMeta, segment::Segment};

/// Difference between an index and its records.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mismatch {
    /// First record of the segment.
    pub segment: u64,
    /// First record of the block, if the difference concerns one block.
    pub block: Option<u64>,
    /// Description of the difference.
    pub what: String,
}

impl View {
    /// Rebuilds the index data from records and returns differences to the indexes. Records that
    /// cannot be read are ignored here: verification of the records reports them.
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
    /// Compares the index data of these records with the records.
    fn check_index(&self, records: Range<u64>) -> Vec<Mismatch> {
        let all = self.blocks();
        let blocks: Vec<_> = all.iter().filter(|meta| records.contains(&meta.first)).collect();
        let checked: Vec<_> = blocks.par_iter().map(|meta| self.check_block(meta)).collect();
        let mut counts = HashMap::new();
        let mut found = Vec::new();
        let mismatch = |block, what| Mismatch { segment: self.first, block, what };
        for (meta, checked) in blocks.iter().zip(checked) {
            match checked {
                // `None`: the records cannot be read.
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

    /// Number of a block's index entries, if all are correct.
    fn check_block(&self, meta: &BlockMeta) -> Result<Option<usize>, Fault> {
        let Ok(sealing) = self.rebuilt(meta) else { return Ok(None) };
        self.index().holds(&sealing).map(Some)
    }
}
