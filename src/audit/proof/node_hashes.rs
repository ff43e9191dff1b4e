//! Tree hashes that proofs need: from the store's blocks, from the saved hashes of dropped
//! segments, and from the tree that a closed segment has for the next one.

use std::{collections::BTreeMap, path::Path};

use tlog_tiles::{Error as TreeError, HashReader, split_stored_hash_index};

use super::{
    Frontier, Hash, Part, PrunedSegmentProof, TILE, Verifier,
    tree::TILE_LEVEL,
    verify::{closed, dropped, segments},
};
use crate::store::{Block, Fault, Head, View};

/// Part of the tree between two positions, and the roots of the remaining parts.
#[derive(Debug, Default)]
pub(super) struct NodeHashes {
    /// Tree before the known part; only its frontier is known.
    base: Frontier,
    tiles: BTreeMap<u64, Hash>,
    leaves: BTreeMap<u64, Hash>,
}

/// State of the log before the record `first`, according to signed proofs of dropped segments.
pub(crate) fn dropped_before(dir: &Path, keys: &[Verifier], first: u64) -> Option<Head> {
    let mut hashes = NodeHashes::default();
    hashes.stubs(dir, keys, first).ok()?;
    let last = dropped(dir).ok()?.into_iter().rfind(|begin| *begin < first)?;
    let PrunedSegmentProof { last, ended, .. } =
        PrunedSegmentProof::read(dir, last, keys).ok()?.ok()?;
    (hashes.base.size() == first).then_some(Head { tree: hashes.base, last, recorded: ended })
}

impl NodeHashes {
    /// Collects the hashes for proofs about the records from `from` on, in trees of at most `to`
    /// records. Tiles with a record of `split` are split into hashes of records.
    pub fn gather(
        dir: &Path,
        keys: &[Verifier],
        view: &View,
        (from, to): (u64, u64),
        split: &[u64],
    ) -> Result<Self, Fault> {
        let mut hashes = Self::default();
        hashes.stubs(dir, keys, from)?;
        let base_size = hashes.base.size();
        if base_size <= from {
            hashes.skip(dir, from)?;
        }
        let begin = hashes.end().max(view.first());
        if begin >= to {
            return Ok(hashes);
        }
        let (blocks, unreadable) = view.blocks(begin, to.saturating_sub(1), None, None);
        if let Some(what) = unreadable.into_iter().next() {
            return Err(Fault::Damaged(what));
        }
        for block in blocks.iter().filter(|block| block.first() + block.count() as u64 > begin) {
            hashes.block(block);
        }
        for seq in split {
            let first = seq - seq % TILE;
            if hashes.leaves.contains_key(&first) && hashes.leaves.contains_key(seq) {
                continue;
            }
            for line in view.lines(first, TILE as usize)? {
                hashes.leaves.insert(line.seq().0, line.hash());
            }
        }
        Ok(hashes)
    }

    /// Tree before the known part.
    pub fn base(&self) -> &Frontier {
        &self.base
    }

    /// Loads the saved hashes of dropped segments; those before `from` go into the base.
    fn stubs(&mut self, dir: &Path, keys: &[Verifier], from: u64) -> Result<(), Fault> {
        let failed = |e: std::io::Error| Fault::io("reading", dir, &e);
        let firsts = dropped(dir).map_err(failed)?;
        for (at, first) in firsts.iter().enumerate() {
            let ends = firsts.get(at + 1).copied().unwrap_or(u64::MAX);
            let stub = PrunedSegmentProof::read(dir, *first, keys).map_err(failed)?;
            let stub = stub.map_err(|fault| {
                Fault::Damaged(format!(
                    "{}: {fault}",
                    PrunedSegmentProof::path(dir, *first).display()
                ))
            })?;
            if *first != self.end() {
                break;
            }
            let fold =
                stub.end.min(ends) <= from && self.tiles.is_empty() && self.leaves.is_empty();
            let mut seq = stub.first;
            for part in stub.parts {
                let damaged = |e: super::tree::Unaligned| Fault::Damaged(e.to_string());
                seq += match (part, fold) {
                    (Part::Leaf(leaf), true) => {
                        self.base.append(leaf);
                        1
                    }
                    (Part::Tile(root), true) => {
                        self.base.append_tile(root).map_err(damaged)?;
                        TILE
                    }
                    (Part::Leaf(leaf), false) => {
                        self.leaves.insert(seq, leaf);
                        1
                    }
                    (Part::Tile(root), false) => {
                        self.tiles.insert(seq / TILE, root);
                        TILE
                    }
                };
            }
        }
        Ok(())
    }

    /// Skips to the segment with the record `from`, if the closed segment before it has the tree
    /// there.
    fn skip(&mut self, dir: &Path, from: u64) -> Result<(), Fault> {
        let firsts = segments(dir).map_err(|e| Fault::io("reading", dir, &e))?;
        for first in firsts.iter().rev() {
            if let Ok(Some(closed)) = closed(dir, *first)
                && closed.end <= from
                && closed.tree.size() == closed.end
            {
                self.base = closed.tree;
                return Ok(());
            }
        }
        Ok(())
    }

    /// `seq` after the known part.
    fn end(&self) -> u64 {
        let tile = self.tiles.last_key_value().map_or(0, |(tile, _)| (tile + 1) * TILE);
        let leaf = self.leaves.last_key_value().map_or(0, |(seq, _)| seq + 1);
        self.base.size().max(tile).max(leaf)
    }

    fn block(&mut self, block: &Block) {
        let (lead, tiles, trail) = block.hashes();
        let mut seq = block.first();
        for leaf in lead {
            self.leaves.insert(seq, leaf);
            seq += 1;
        }
        for root in tiles {
            self.tiles.insert(seq / TILE, root);
            seq += TILE;
        }
        for leaf in trail {
            self.leaves.insert(seq, leaf);
            seq += 1;
        }
    }

    /// Root of the `at`-th perfect tree over 2^level records.
    fn node(&self, level: u32, at: u64) -> Option<Hash> {
        let after = at.checked_add(1)?.checked_mul(1_u64.checked_shl(level)?)?;
        if after <= self.base.size() {
            return self.base.peak(level, at);
        }
        let tile_root = if level == TILE_LEVEL { self.tiles.get(&at) } else { None };
        if let Some(root) = tile_root {
            return Some(*root);
        }
        let Some(below) = level.checked_sub(1) else { return self.leaves.get(&at).copied() };
        Some(Hash::node(&self.node(below, at * 2)?, &self.node(below, at * 2 + 1)?))
    }
}

impl HashReader for NodeHashes {
    fn read_hashes(&self, indexes: &[u64]) -> Result<Vec<tlog_tiles::Hash>, TreeError> {
        indexes
            .iter()
            .map(|index| {
                let (level, at) = split_stored_hash_index(*index);
                let hash = self.node(u32::from(level), at).ok_or(TreeError::IndexesNotInTree)?;
                Ok(tlog_tiles::Hash(hash.0))
            })
            .collect()
    }
}
