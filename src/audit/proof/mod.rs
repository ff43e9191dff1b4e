//! What proves the log: the Merkle tree over its records (RFC 9162), signed checkpoints of it
//! (C2SP tlog-checkpoint), and what is checked with them.

mod checkpoint;
mod hash;
mod key;
mod notes;
mod tree;

pub use hash::Hash;
pub use key::{IllegalVerifier, KeyFault, Verifier};
pub(in crate::audit) use tree::{Frontier, TILE, Unaligned};
