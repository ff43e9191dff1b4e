//! Sets of positions in a block.

use std::ops::{BitAnd, BitOr};

use super::BLOCK;

const WORDS: usize = BLOCK as usize / 64;
/// Number of members from which a bitmap is shorter than a list of positions.
const DENSE: usize = WORDS * 8 / 2;

/// Set of positions in a block, 0 to 4095.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Bits(Box<[u64; WORDS]>);

impl Default for Bits {
    fn default() -> Self {
        Self(Box::new([0; WORDS]))
    }
}

impl std::fmt::Debug for Bits {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.iter()).finish()
    }
}

impl Bits {
    /// The first `count` positions.
    pub fn first(count: usize) -> Self {
        (0..count.min(BLOCK as usize)).collect()
    }

    /// Adds a position. Positions beyond the block are ignored.
    pub fn insert(&mut self, at: usize) {
        if let Some(word) = self.0.get_mut(at / 64) {
            *word |= 1 << (at % 64);
        }
    }

    /// Whether the set contains this position.
    pub fn contains(&self, at: usize) -> bool {
        self.0.get(at / 64).is_some_and(|word| word >> (at % 64) & 1 == 1)
    }

    /// Number of positions in the set.
    pub fn count(&self) -> usize {
        self.0.iter().map(|word| word.count_ones() as usize).sum()
    }

    /// Whether the set is empty.
    pub fn is_empty(&self) -> bool {
        self.0.iter().all(|word| *word == 0)
    }

    /// Positions of `of` that are not in this set.
    pub fn not_in(&self, of: &Self) -> Self {
        self.with(of, |this, of| of & !this)
    }

    /// Positions, in order.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = usize> + '_ {
        (0..BLOCK as usize).filter(|at| self.contains(*at))
    }

    fn with(&self, other: &Self, join: impl Fn(u64, u64) -> u64) -> Self {
        let mut joined = self.clone();
        for (word, other) in joined.0.iter_mut().zip(other.0.iter()) {
            *word = join(*word, *other);
        }
        joined
    }

    /// Set as the index stores it: a list of positions, or a bitmap if that is shorter.
    pub(super) fn to_bytes(&self) -> Vec<u8> {
        if self.count() < DENSE {
            self.iter().flat_map(|at| u16::try_from(at).unwrap_or(u16::MAX).to_le_bytes()).collect()
        } else {
            self.0.iter().flat_map(|word| word.to_le_bytes()).collect()
        }
    }

    /// Parses the result of [`Bits::to_bytes`].
    pub(super) fn from_bytes(bytes: &[u8]) -> Self {
        if bytes.len() == WORDS * 8 {
            let mut bits = Self::default();
            for (word, bytes) in bits.0.iter_mut().zip(bytes.as_chunks::<8>().0) {
                *word = u64::from_le_bytes(*bytes);
            }
            bits
        } else {
            bytes.as_chunks::<2>().0.iter().map(|at| usize::from(u16::from_le_bytes(*at))).collect()
        }
    }
}

impl FromIterator<usize> for Bits {
    fn from_iter<I: IntoIterator<Item = usize>>(positions: I) -> Self {
        let mut bits = Self::default();
        positions.into_iter().for_each(|at| bits.insert(at));
        bits
    }
}

impl BitAnd for &Bits {
    type Output = Bits;

    fn bitand(self, other: &Bits) -> Bits {
        self.with(other, |a, b| a & b)
    }
}

impl BitOr for &Bits {
    type Output = Bits;

    fn bitor(self, other: &Bits) -> Bits {
        self.with(other, |a, b| a | b)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn positions() -> impl Strategy<Value = BTreeSet<usize>> {
        proptest::collection::btree_set(0..BLOCK as usize, 0..600)
    }

    proptest! {
        #[test]
        fn bitmap_equals_a_set(a in positions(), b in positions()) {
            let (x, y): (Bits, Bits) = (a.iter().copied().collect(), b.iter().copied().collect());
            prop_assert_eq!(x.count(), a.len());
            prop_assert_eq!(x.is_empty(), a.is_empty());
            let members = |bits: &Bits| bits.iter().collect::<BTreeSet<_>>();
            prop_assert_eq!(members(&(&x & &y)), a.intersection(&b).copied().collect());
            prop_assert_eq!(members(&(&x | &y)), a.union(&b).copied().collect());
            prop_assert_eq!(members(&x.not_in(&y)), b.difference(&a).copied().collect());
            prop_assert_eq!(Bits::from_bytes(&x.to_bytes()), x);
        }
    }
}
