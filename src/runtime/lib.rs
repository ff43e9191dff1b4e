//! Runtimes of servers: containers and sandboxes, and their confinement.
//!
//! `process` is the contract of both runtimes, and `started` is the result of a start. `mount_policy` decides which paths of the host a
//! server may see, and `egress_netns` opens sockets in network namespaces without a route.
//!
//! # Invariants
//!
//! - A server runs with its whole confinement or not at all.

pub mod config;
pub mod container;
pub mod egress_netns;
pub mod mount;
mod mount_policy;
mod path_identity;
pub mod process;
mod program_digest;
mod protected_paths;
pub mod sandbox;
pub mod started;

pub use mount_policy::MountPolicy;
pub use path_identity::ResolvedPath;
pub use program_digest::{Digests, Hashed, Stamp};
pub use protected_paths::{ProtectedPath, ProtectedPaths, Protection};
