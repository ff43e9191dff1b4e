//! The growing tree: only the hashes that its root and its growth need.

use serde::{Deserialize, Serialize};

use super::Hash;

/// Records of a tile: the part of the tree that is kept as one hash after its records are gone.
pub(crate) const TILE: u64 = 1 << TILE_LEVEL;
/// Number of tree levels in a tile.
pub(super) const TILE_LEVEL: u32 = 8;

/// Right edge of the RFC 9162 tree over the first `size` records: the roots of its perfect
/// subtrees, largest first. At most 64 hashes, so clones are cheap.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Parts")]
pub(crate) struct Frontier {
    size: u64,
    /// One hash for each bit that is set in `size`.
    peaks: Vec<Hash>,
}

/// A deserialized frontier before validation.
#[derive(Deserialize)]
struct Parts {
    size: u64,
    peaks: Vec<Hash>,
}

impl TryFrom<Parts> for Frontier {
    type Error = String;

    fn try_from(Parts { size, peaks }: Parts) -> Result<Self, String> {
        let wanted = size.count_ones();
        if peaks.len() != wanted as usize {
            return Err(format!(
                "a tree of {size} records has {wanted} peaks, not {}",
                peaks.len()
            ));
        }
        Ok(Self { size, peaks })
    }
}

/// Error: a tile cannot begin at this size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a tile of {TILE} records cannot begin at record {0}")]
pub(crate) struct Unaligned(u64);

impl std::fmt::Debug for Frontier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Frontier({}, {})", self.size, self.root())
    }
}

impl Frontier {
    /// Tree over whole tiles, given by their roots, followed by records, given by their hashes.
    pub(crate) fn of_tiles(
        tiles: impl IntoIterator<Item = Hash>,
        rest: impl IntoIterator<Item = Hash>,
    ) -> Self {
        let mut tree = Self::default();
        for tile in tiles {
            tree.push(TILE_LEVEL, tile);
        }
        rest.into_iter().for_each(|leaf| tree.append(leaf));
        tree
    }

    /// Appends a record by its hash.
    pub(crate) fn append(&mut self, leaf: Hash) {
        self.push(0, leaf);
    }

    /// Appends a tile by its root.
    ///
    /// # Errors
    /// If the size is not a multiple of a tile.
    pub(crate) fn append_tile(&mut self, root: Hash) -> Result<(), Unaligned> {
        if !self.size.is_multiple_of(TILE) {
            return Err(Unaligned(self.size));
        }
        self.push(TILE_LEVEL, root);
        Ok(())
    }

    /// Fills the positions up to the record `size`, whose hashes are unknown, with zeros. The
    /// number of steps is logarithmic, since a damaged file may name any size.
    pub(crate) fn pad(&mut self, size: u64) {
        let mut zeros = vec![Hash::ZERO];
        while self.size < size {
            // The largest tree that may begin here and fits.
            let level = self.size.trailing_zeros().min((size - self.size).ilog2());
            while zeros.len() <= level as usize {
                zeros.extend(zeros.last().map(|below| Hash::node(below, below)));
            }
            if let Some(root) = zeros.get(level as usize) {
                self.push(level, *root);
            }
        }
    }

    /// Appends a perfect tree of 2^level records. `size` must be a multiple of 2^level.
    fn push(&mut self, level: u32, mut hash: Hash) {
        let mut trees = self.size >> level;
        while trees & 1 == 1
            && let Some(left) = self.peaks.pop()
        {
            hash = Hash::node(&left, &hash);
            trees >>= 1;
        }
        self.peaks.push(hash);
        self.size += 1 << level;
    }

    /// Root of the `at`-th perfect tree over 2^level records, if it is one of this tree's peaks.
    pub(super) fn peak(&self, level: u32, at: u64) -> Option<Hash> {
        let bit = 1_u64.checked_shl(level)?;
        // Larger peaks precede it.
        let before = self.size & !(bit | (bit - 1));
        let is_one = self.size & bit != 0 && at.checked_mul(bit) == Some(before);
        self.peaks.get(before.count_ones() as usize).copied().filter(|_| is_one)
    }

    /// Number of records in the tree.
    pub(crate) fn size(&self) -> u64 {
        self.size
    }

    /// Merkle tree hash.
    pub(crate) fn root(&self) -> Hash {
        let mut peaks = self.peaks.iter().rev();
        match peaks.next() {
            Some(&last) => peaks.fold(last, |right, left| Hash::node(left, &right)),
            None => Hash::empty(),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Definition of RFC 9162, section 2.1.1.
    fn naive(leaves: &[Hash]) -> Hash {
        match leaves {
            [] => Hash::empty(),
            [leaf] => *leaf,
            _ => {
                let (left, right) = leaves.split_at(leaves.len().next_power_of_two() / 2);
                Hash::node(&naive(left), &naive(right))
            }
        }
    }

    fn leaves(count: usize) -> Vec<Hash> {
        (0..count).map(|at| Hash::leaf(&at.to_le_bytes())).collect()
    }

    #[test]
    fn roots_match_certificate_transparency_test_vectors() {
        let inputs = [
            "",
            "00",
            "10",
            "2021",
            "3031",
            "40414243",
            "5051525354555657",
            "606162636465666768696a6b6c6d6e6f",
        ];
        let roots = [
            "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
            "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
            "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
            "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
            "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
            "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
            "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
            "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
        ];
        let mut tree = Frontier::default();
        assert_eq!(
            tree.root().to_string(),
            "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
        );
        for (at, (input, root)) in inputs.iter().zip(roots).enumerate() {
            tree.append(Hash::leaf(&hex::decode(input).unwrap()));
            assert_eq!((tree.size(), tree.root().to_string()), (at as u64 + 1, root.to_owned()));
        }
    }

    #[test]
    fn tiles_are_appended_only_at_tile_boundaries() {
        let mut tree = Frontier::of_tiles([naive(&leaves(256))], []);
        assert_eq!(tree, leaves(256).into_iter().fold(Frontier::default(), append));
        tree.append(Hash::ZERO);
        assert_eq!(tree.append_tile(Hash::ZERO), Err(Unaligned(257)));
        assert_eq!(tree.size(), 257);
    }

    #[test]
    fn padding_appends_zero_hashes() {
        let one = Hash::leaf(b"1");
        for (before, after) in [(0, 0), (0, 1), (0, 700), (3, 3), (3, 4), (5, 300), (256, 1024)] {
            let leaves = vec![one; before].into_iter();
            let mut padded = Frontier::of_tiles([], leaves.clone());
            padded.pad(after as u64);
            let all = leaves.chain(vec![Hash::ZERO; after - before]);
            assert_eq!(padded, Frontier::of_tiles([], all), "{before} {after}");
        }
        let mut tree = Frontier::default();
        tree.pad(u64::MAX);
        assert_eq!(tree.size(), u64::MAX);
    }

    #[test]
    fn peaks_are_found_by_level_and_index() {
        let leaves = leaves(0b1011);
        let tree = Frontier::of_tiles([], leaves.iter().copied());
        for level in 0..70 {
            for at in [0, 1, 2, 3, 4, 5, 9, 10, 11, u64::MAX] {
                let root = match (level, at) {
                    (3, 0) => Some(naive(&leaves[..8])),
                    (1, 4) => Some(naive(&leaves[8..10])),
                    (0, 10) => Some(leaves[10]),
                    _ => None,
                };
                assert_eq!(tree.peak(level, at), root, "{level} {at}");
            }
        }
    }

    #[test]
    fn inconsistent_frontier_is_not_deserialized() {
        let tree = Frontier::of_tiles([], leaves(11));
        let text = serde_json::to_string(&tree).unwrap();
        assert_eq!(serde_json::from_str::<Frontier>(&text).unwrap(), tree);
        let wrong = text.replace("\"size\":11", "\"size\":12");
        assert!(serde_json::from_str::<Frontier>(&wrong).is_err(), "{wrong}");
    }

    fn append(mut tree: Frontier, leaf: Hash) -> Frontier {
        tree.append(leaf);
        tree
    }

    proptest! {
        #[test]
        fn appended_and_tiled_trees_match_the_definition(count in 0_usize..1500, tiles in 0_usize..6) {
            let leaves = leaves(count);
            let tree = leaves.iter().copied().fold(Frontier::default(), append);
            prop_assert_eq!(tree.size(), count as u64);
            prop_assert_eq!(tree.root(), naive(&leaves));
            let (whole, rest) = leaves.split_at(tiles.min(count / 256) * 256);
            let roots = whole.chunks(256).map(naive);
            prop_assert_eq!(Frontier::of_tiles(roots, rest.iter().copied()), tree);
        }
    }
}
