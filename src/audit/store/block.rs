//! Blocks: up to 4096 records and their index data. The growing block is in memory; the others are
//! in their segments' files.

use std::collections::{BTreeMap, HashMap};

use bytes::Bytes;
use parking_lot::RwLock;
use serde::{Deserialize, Serialize};
use smol_str::SmolStr;

use super::{
    BLOCK,
    bitmap::Bits,
    fault::Fault,
    index_terms::{Facts, Field, kind},
    time,
};
use crate::{
    proof::{Frontier, Hash, TILE},
    query::Aggregates,
    record::Kind,
};

/// Bytes of lines at which a block ends early, to bound memory.
const BYTES: usize = 8 << 20;
/// Index term of intents with an outcome in the same block. No record has this kind.
pub(super) const ANSWERED: &str = "answered intent";
/// Records of a frame in a segment's `records`: as many as a tile has.
const FRAME: u64 = TILE;

/// A block that still grows, or that waits to be sealed.
#[derive(Debug)]
pub(super) struct Growing {
    pub first: u64,
    pub(super) inner: RwLock<Inner>,
}

#[derive(Debug, Default)]
pub(super) struct Inner {
    pub lines: Vec<Bytes>,
    pub hashes: Vec<Hash>,
    /// Facts of each record, with its time of writing in microseconds since 1970.
    pub facts: Vec<(u64, Facts)>,
    pub terms: BTreeMap<Field, HashMap<SmolStr, Vec<u16>>>,
    /// Intents and their outcomes in this block.
    pub answered: Vec<(u16, u16)>,
    pub begin: u64,
    pub end: u64,
    bytes: usize,
}

/// A record to add to a block.
#[derive(Debug)]
pub(super) struct Added {
    pub text: Bytes,
    pub hash: Hash,
    pub facts: Facts,
    /// Microseconds since 1970.
    pub recorded: u64,
}

impl Inner {
    /// Pairs an outcome with its intent.
    fn answer(&mut self, at: u16, facts: &Facts) {
        if facts.term(Field::Kind) != Some(kind(Kind::Outcome)) {
            return;
        }
        let same = facts.term(Field::Id).and_then(|id| self.terms.get(&Field::Id)?.get(id));
        let intents = same.into_iter().flatten().filter(|at| {
            let facts = self.facts.get(usize::from(**at)).map(|(_, facts)| facts);
            facts.and_then(|facts| facts.term(Field::Kind)) == Some(kind(Kind::Intent))
        });
        let pairs: Vec<_> = intents.map(|intent| (*intent, at)).collect();
        self.answered.extend(pairs);
    }
}

impl Growing {
    pub fn new(first: u64) -> Self {
        Self { first, inner: RwLock::default() }
    }

    /// `seq` after its last record.
    pub fn end(&self) -> u64 {
        self.first + self.inner.read().lines.len() as u64
    }

    /// Bytes of the lines.
    pub fn bytes(&self) -> usize {
        self.inner.read().bytes
    }

    pub fn is_empty(&self) -> bool {
        self.inner.read().lines.is_empty()
    }

    pub fn is_full(&self) -> bool {
        let inner = self.inner.read();
        let end = self.first + inner.lines.len() as u64;
        !inner.lines.is_empty() && (end.is_multiple_of(BLOCK) || inner.bytes >= BYTES)
    }

    /// Number of records that still fit.
    pub fn room(&self) -> u64 {
        BLOCK - self.end() % BLOCK
    }

    pub fn extend(&self, records: impl IntoIterator<Item = Added>) {
        let mut inner = self.inner.write();
        for Added { text, hash, facts, recorded } in records {
            if inner.lines.is_empty() {
                inner.begin = recorded;
            }
            inner.end = recorded;
            inner.bytes += text.len();
            let at = u16::try_from(inner.lines.len()).unwrap_or(u16::MAX);
            inner.answer(at, &facts);
            for (field, value) in &facts.terms {
                let values = inner.terms.entry(*field).or_default();
                match values.get_mut(value) {
                    Some(positions) => positions.push(at),
                    None => {
                        values.insert(value.clone(), vec![at]);
                    }
                }
            }
            inner.lines.push(text);
            inner.hashes.push(hash);
            inner.facts.push((recorded, facts));
        }
    }

    /// Appends its records to the tree.
    pub fn append_to(&self, tree: &mut Frontier) {
        tree.pad(self.first);
        self.inner.read().hashes.iter().for_each(|leaf| tree.append(*leaf));
    }

    /// Time of its first record, in microseconds since 1970.
    pub fn begin(&self) -> Option<u64> {
        let inner = self.inner.read();
        (!inner.lines.is_empty()).then_some(inner.begin)
    }

    /// Hash of its last record, and the time of that record in microseconds since 1970.
    pub fn last(&self) -> Option<(Hash, u64)> {
        let inner = self.inner.read();
        inner.hashes.last().map(|hash| (*hash, inner.end))
    }

    /// Frames of its records: the first `seq` of each, and its lines.
    pub fn frames(&self) -> Vec<(u64, Vec<Bytes>)> {
        let inner = self.inner.read();
        let mut frames: Vec<(u64, Vec<Bytes>)> = Vec::new();
        for (seq, line) in (self.first..).zip(&inner.lines) {
            match frames.last_mut() {
                Some((_, lines)) if seq % FRAME != 0 => lines.push(line.clone()),
                _ => frames.push((seq, vec![line.clone()])),
            }
        }
        frames
    }

    /// Index data of the block.
    pub fn sealed(&self, frames: Vec<FrameAt>) -> Sealing {
        let inner = self.inner.read();
        let mut hashes = inner.hashes.iter().copied();
        // A tile that is shared with an adjacent block cannot be folded here.
        let ragged = (TILE - self.first % TILE) % TILE;
        let lead: Vec<Hash> = hashes.by_ref().take(usize::try_from(ragged).unwrap_or(0)).collect();
        let rest: Vec<Hash> = hashes.collect();
        let (complete, trail) = rest.as_chunks::<{ TILE as usize }>();
        let tiles = complete
            .iter()
            .map(|tile| Frontier::of_tiles([], tile.iter().copied()).root())
            .collect();
        let mut tally = Aggregates::default();
        for (recorded, facts) in &inner.facts {
            tally.add(time(*recorded), facts);
        }
        let terms = inner
            .terms
            .iter()
            .flat_map(|(field, values)| values.iter().map(|(v, positions)| (*field, v, positions)));
        let answered = inner.answered.iter().map(|(intent, _)| *intent).collect();
        let answered = (Field::Kind, SmolStr::new_static(ANSWERED), answered);
        Sealing {
            meta: BlockMeta {
                first: self.first,
                count: u32::try_from(inner.lines.len()).unwrap_or(u32::MAX),
                begin: inner.begin,
                end: inner.end,
                frames,
                lead,
                tiles,
                trail: trail.to_vec(),
                last: inner.hashes.last().copied().unwrap_or(Hash::ZERO),
            },
            terms: terms
                .map(|(f, v, positions)| (f, v.clone(), positions.clone()))
                .chain([answered])
                .collect(),
            tally,
        }
    }
}

/// A block's data for the index.
pub(super) struct Sealing {
    pub meta: BlockMeta,
    pub terms: Vec<(Field, SmolStr, Vec<u16>)>,
    pub tally: Aggregates,
}

impl Sealing {
    pub fn positions(&self, field: Field, value: &str) -> Bits {
        let of = |(f, v, _): &&(Field, SmolStr, Vec<u16>)| *f == field && v == value;
        let found = self.terms.iter().filter(of).flat_map(|(_, _, positions)| positions);
        found.map(|at| usize::from(*at)).collect()
    }
}

/// Position of a frame in `records`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct FrameAt {
    /// `seq` of its first record.
    pub first: u64,
    pub offset: u64,
    pub length: u32,
}

/// A sealed block in a segment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct BlockMeta {
    pub first: u64,
    pub count: u32,
    /// Time of its first record, in microseconds since 1970.
    pub begin: u64,
    pub end: u64,
    pub frames: Vec<FrameAt>,
    /// Hashes of the records before its first whole tile.
    pub lead: Vec<Hash>,
    /// Roots of its whole tiles.
    pub tiles: Vec<Hash>,
    /// Hashes of the records after its last whole tile.
    pub trail: Vec<Hash>,
    /// Hash of its last record.
    pub last: Hash,
}

impl BlockMeta {
    /// `seq` after its last record.
    pub fn after(&self) -> u64 {
        self.first + u64::from(self.count)
    }

    /// End of its last frame in `records`.
    pub fn offset_after(&self) -> u64 {
        self.frames.last().map_or(0, |frame| frame.offset + u64::from(frame.length))
    }

    /// Whether the data is consistent. Indexes are not signed, so they are not trusted.
    pub fn is_sound(&self) -> bool {
        let count = u64::from(self.count);
        let ragged = (TILE - self.first % TILE) % TILE;
        let (lead, tiles, trail) = (self.lead.len(), self.tiles.len(), self.trail.len());
        let hashes = lead as u64 + tiles as u64 * TILE + trail as u64;
        let after = self.first.checked_add(count);
        let frames = |pair: &[FrameAt]| match pair {
            [a, b] => {
                a.first < b.first && a.offset.checked_add(u64::from(a.length)) == Some(b.offset)
            }
            _ => true,
        };
        (1..=BLOCK).contains(&count)
            && hashes == count
            && lead as u64 == ragged.min(count)
            && (trail as u64) < TILE
            && self.frames.first().is_some_and(|frame| frame.first == self.first)
            && self.frames.last().is_some_and(|frame| after.is_some_and(|end| frame.first < end))
            && self.frames.windows(2).all(frames)
            && self.frames.iter().all(|at| at.offset.checked_add(u64::from(at.length)).is_some())
    }

    /// Appends its records to the tree.
    pub fn append_to(&self, tree: &mut Frontier) -> Result<(), Fault> {
        tree.pad(self.first);
        self.lead.iter().for_each(|leaf| tree.append(*leaf));
        for tile in &self.tiles {
            tree.append_tile(*tile).map_err(|e| Fault::Damaged(e.to_string()))?;
        }
        self.trail.iter().for_each(|leaf| tree.append(*leaf));
        Ok(())
    }
}
