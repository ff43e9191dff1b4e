//! Local programs in a sandbox: the default if there is no container engine.
//!
//! A server gets its own root (read-only parts of the host's programs and libraries, the mounts of
//! the config, a private /tmp), its own namespaces, no capability, a list of allowed system calls,
//! limits, and only its own environment. [`facts`] lists all of it.
//!
//! Why not a crate: `hakoniwa` is the closest, but it forks the calling process (the proxy has
//! threads, so only async-signal-safe code may run in the child), needs the C library libseccomp
//! for its filters, binds the life of a tree to the *thread* that made it, and has no limits
//! without cgroups. OCI runtimes as libraries need root or systemd. So the parts come from crates
//! (`nix`, `landlock`, `seccompiler`, `caps`) and are combined here: the executable starts itself
//! again as `portcullis sandbox-exec`, single-threaded, which does the rest.
//!
//! As an ordinary user, the launcher first creates a user namespace, which owns all others. As root
//! it builds the root with the host's own privileges, then becomes 65534 for the host too, and only
//! then creates a user namespace: processes inside have no privileges over their mounts, and a
//! folder that only root may read is not readable inside.
//!
//! In a pod of Kubernetes, where user namespaces are not available, a server has its own container,
//! and `pod-exec` starts the program in it ([`launch_in_pod`]).
//!
//! Invariants:
//!
//! - A program runs with all parts or not at all. Only two may be missing: landlock on a kernel
//!   without it, and control groups if the proxy may not create them.
//! - The plan, which contains secrets, is never in an argument list, the launcher's environment or
//!   a file.
//! - The tree lives no longer than the control socket that the proxy holds; a `kill -9` of the
//!   proxy closes it. The end of a thread does not.

mod availability;
mod cgroups;
mod control;
mod exec;
mod fd_passing;
mod launch;
mod mounts;
mod plan;
mod pod_client;
mod program;
mod protocol;

pub use availability::{Availability, Outside, Part, available, facts, outside};
pub use cgroups::{groups_left, remove_group};
pub use exec::{exec_main, pod_main};
pub use launch::{launch, launch_by};
pub use pod_client::launch_in_pod;

/// Finds available control groups. Call it before starting any process: if systemd delegated the
/// proxy's own group, the proxy moves into a group within it, which is impossible once other
/// processes are in it.
pub fn prepare_cgroups() {
    cgroups::parents();
}
