//! What proves the log: the Merkle tree over its records (RFC 9162), signed checkpoints of it
//! (C2SP tlog-checkpoint), and what is checked with them.
//!
//! - `checkpointer` signs the tree that the store has, on a thread that nobody waits for; witnesses
//!   get what it signed.
//! - `verify` needs the plain files of a store, or a copy of them, and a verifier key.
//!
//! INVARIANT: what can go wrong here stops no call; it is logged, counted and shown in the status.

mod checkpoint;
mod checkpointer;
mod companions;
mod going_on;
mod hash;
mod key;
mod known;
mod ledger;
mod notes;
mod open;
mod prove;
mod prover;
mod stub;
mod tree;
pub mod verify;
mod witness;

pub(crate) use checkpointer::Checkpointer;
pub use checkpointer::{CheckpointFault, Settings, Status};
pub(crate) use companions::Companions;
pub(crate) use going_on::{GoesOn, goes_on, known_keys, signed_digest_key};
pub use hash::Hash;
pub(crate) use key::Signer;
pub use key::{IllegalVerifier, KeyFault, Verifier, read_verifiers};
pub(crate) use known::dropped_before;
pub use open::Verification;
pub use prove::{Included, Proof, ProofFault, Proven};
pub use prover::ProveFault;
pub(crate) use prover::Prover;
use stub::{Part, Stub};
pub(crate) use tree::{Frontier, TILE};
pub use verify::SignedSize;
pub use witness::{Status as WitnessStatus, Witness};
