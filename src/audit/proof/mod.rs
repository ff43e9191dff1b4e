//! What proves the log: the Merkle tree over its records (RFC 9162).

mod hash;
mod tree;

pub use hash::Hash;
pub(in crate::audit) use tree::{Frontier, TILE, Unaligned};
