//! Where servers run: containers, sandboxes, and what confines both.
//!
//! `process` is the contract that both runtimes fulfil. `mount_policy` says which paths of the host a
//! server may see, `egress_netns` opens sockets in network namespaces without a route.
//!
//! INVARIANT: a server runs with all of its confinement or not at all.

pub mod config;
pub mod container;
pub mod egress_netns;
mod mount_policy;
mod path_identity;
pub mod process;
mod program_digest;
mod protected_paths;
pub mod sandbox;

pub use mount_policy::MountPolicy;
pub use path_identity::ResolvedPath;
pub use program_digest::{Digests, Hashed, Stamp};
pub use protected_paths::{ProtectedPath, ProtectedPaths, Protection};
