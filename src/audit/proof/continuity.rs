//! Check that an opened log continues what was signed last. Its tree comes from `segment.json` and
//! indexes, which are unsigned. Before anything is signed, the tree is compared with the newest
//! checkpoint and the later records.

use std::{fs, path::Path};

use super::{
    Frontier, Hash, TILE, Verifier,
    checkpoint::{Checkpoint, Signed},
    checkpoint_file::CheckpointFile,
    node_hashes::dropped_before,
    verify::NEWEST,
};
use crate::store::{Fault, SegmentSet, View};

/// Records read in one step.
const CHUNK: u64 = 4096;

/// Relation of the log to the newest checkpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Continuity {
    /// The log has all signed records, and its tree matches the later records.
    Yes,
    /// The log ends before the checkpoint.
    Shorter,
    /// The log is another one, according to its files. Contains the reason.
    No(String),
}

/// Compares the log with the newest checkpoint of the store in `dir`, or else of the state folder.
pub(crate) fn goes_on(
    dir: &Path,
    keys: &[Verifier],
    state: &Path,
    segment_set: &SegmentSet,
    view: &View,
) -> Continuity {
    let checkpoint = match newest(dir, keys, state) {
        Ok(Some(checkpoint)) => checkpoint,
        Ok(None) => return Continuity::Yes,
        Err(error) => {
            return Continuity::No(format!(
                "the checkpoints that it is held against can't be read: {error}"
            ));
        }
    };
    let Checkpoint { size, root, number, time, last, .. } = checkpoint;
    let head = segment_set.head();
    let tree = &head.tree;
    if size > tree.size() {
        return Continuity::Shorter;
    }
    if size == tree.size() && tree.root() == root && head.last == last {
        return Continuity::Yes;
    }
    let signed = match retraced(dir, keys, segment_set, view, size) {
        Ok(signed) if signed.root() == root => signed,
        Ok(_) => {
            return Continuity::No(format!(
                "its first {size} records are not those that checkpoint {number} was signed for at \
                 {time}"
            ));
        }
        Err(fault) => {
            return Continuity::No(format!(
                "its first {size} records can't be held against checkpoint {number}: {fault}"
            ));
        }
    };
    if followed(view, signed, last, tree.size()) == (tree.clone(), head.last) {
        Continuity::Yes
    } else {
        Continuity::No(format!(
            "the hashes of the records since checkpoint {number} of {size} records do not match \
             the records"
        ))
    }
}

/// Verifier keys of the state folder, or else of the store.
pub(crate) fn known_keys(state: &Path, dir: &Path) -> Vec<Verifier> {
    let own = || crate::proof::key::read_verifiers(dir).unwrap_or_default();
    crate::proof::key::read_verifiers(state)
        .ok()
        .filter(|keys| !keys.is_empty())
        .unwrap_or_else(own)
}

/// Fingerprint of the digest key in the newest checkpoint of the store in `dir`.
pub(crate) fn signed_digest_key(dir: &Path, state: &Path) -> Option<Hash> {
    // `goes_on` reports checkpoints that can't be read.
    let newest = newest(dir, &known_keys(state, dir), state).ok().flatten();
    newest.map(|checkpoint| checkpoint.companions.digest_key)
}

fn newest(dir: &Path, keys: &[Verifier], state: &Path) -> std::io::Result<Option<Checkpoint>> {
    let ledger = CheckpointFile::open(dir, keys)?;
    if let Some(signed) = ledger.newest() {
        return Ok(Some(signed.checkpoint.clone()));
    }
    // The store has no checkpoints: they were removed.
    let note = fs::read_to_string(state.join(NEWEST)).unwrap_or_default();
    let signed = keys.iter().find_map(|key| Signed::open(&note, key).ok());
    Ok(signed.map(|signed| signed.checkpoint))
}

/// Tree over the first `size` records, according to segments and indexes.
fn retraced(
    dir: &Path,
    keys: &[Verifier],
    segment_set: &SegmentSet,
    view: &View,
    size: u64,
) -> Result<Frontier, Fault> {
    let first = view.first();
    let tree = match segment_set.closed_before(size) {
        Some(tree) => tree,
        None if first == 0 => Frontier::default(),
        None => dropped_before(dir, keys, first).map(|before| before.tree).ok_or_else(|| {
            Fault::Damaged(format!(
                "the state before the first {first} records is \
                                                   unknown"
            ))
        })?,
    };
    retrace(view, tree, size)
}

/// Appends the records up to `until` to a tree, according to the blocks.
fn retrace(view: &View, mut tree: Frontier, until: u64) -> Result<Frontier, Fault> {
    if tree.size() >= until {
        return Ok(tree);
    }
    let (blocks, unreadable) = view.blocks(tree.size(), until - 1, None, None);
    if let Some(what) = unreadable.into_iter().next() {
        return Err(Fault::Damaged(what));
    }
    for block in blocks {
        tree.pad(block.first());
        let (lead, tiles, trail) = block.hashes();
        let mut seq = block.first();
        let is_next = |seq: u64, tree: &Frontier| seq == tree.size() && seq < until;
        for leaf in lead {
            if is_next(seq, &tree) {
                tree.append(leaf);
            }
            seq += 1;
        }
        for root in tiles {
            if is_next(seq, &tree) && seq + TILE <= until {
                tree.append_tile(root).map_err(|e| Fault::Damaged(e.to_string()))?;
            } else if is_next(seq, &tree) {
                let count = usize::try_from(until - seq).unwrap_or(usize::MAX);
                for line in view.lines(seq, count)? {
                    if line.seq().0 == tree.size() {
                        tree.append(line.hash());
                    }
                }
            }
            seq += TILE;
        }
        for leaf in trail {
            if is_next(seq, &tree) {
                tree.append(leaf);
            }
            seq += 1;
        }
    }
    tree.pad(until);
    Ok(tree)
}

/// Appends the records up to `until` to a tree from their lines or, for unreadable records, from
/// the blocks. Also returns the hash of the last readable record.
fn followed(view: &View, mut tree: Frontier, mut last: Hash, until: u64) -> (Frontier, Hash) {
    while tree.size() < until {
        let from = tree.size();
        let count = usize::try_from(CHUNK.min(until - from)).unwrap_or(usize::MAX);
        for line in view.lines(from, count).unwrap_or_default() {
            if line.seq().0 != tree.size() {
                break;
            }
            last = line.hash();
            tree.append(last);
        }
        if tree.size() == from {
            let next = (from - from % TILE).saturating_add(TILE).min(until);
            tree = retrace(view, tree.clone(), next).unwrap_or(tree);
            tree.pad(next);
        }
    }
    (tree, last)
}
