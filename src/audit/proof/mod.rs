//! Proofs of the log: the Merkle tree over its records (RFC 9162), signed checkpoints of it (C2SP
//! tlog-checkpoint), and their verification.
//!
//! - `checkpointer` signs the store's tree on a background thread, and witnesses receive the
//!   checkpoints.
//! - `verify` needs the plain files of a store, or a copy of them, and a verifier key.
//!
//! INVARIANT: no failure here stops a call; it is logged, counted and shown in the status.

mod checkpoint;
mod checkpoint_file;
mod checkpointer;
mod companions;
mod continuity;
mod hash;
mod key;
mod live_prover;
mod live_verify;
mod node_hashes;
mod note_file;
mod pruned_segment;
mod statement;
mod tree;
pub mod verify;
mod witness;

pub(crate) use checkpointer::Checkpointer;
pub use checkpointer::{CheckpointFault, Settings, Status};
pub(crate) use companions::Companions;
pub(crate) use continuity::{Continuity, goes_on, known_keys, signed_digest_key};
pub use hash::Hash;
pub(crate) use key::Signer;
pub use key::{IllegalVerifier, KeyFault, Verifier, read_verifiers};
pub use live_prover::ProveFault;
pub(crate) use live_prover::Prover;
pub use live_verify::Verification;
pub(crate) use node_hashes::dropped_before;
use pruned_segment::{Part, PrunedSegmentProof};
pub use statement::{Included, Proof, ProofFault, Proven};
pub(crate) use tree::{Frontier, TILE};
pub use verify::SignedSize;
pub use witness::{Status as WitnessStatus, Witness};
