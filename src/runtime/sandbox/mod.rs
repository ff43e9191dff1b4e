//! Local programs in a sandbox: the default where no container engine is.
//!
//! A server gets a root of its own (read-only pieces of the host's programs and libraries, the
//! mounts that the operator wrote, a private /tmp), namespaces of its own, no capability, a list
//! of system calls, limits, and an environment of nothing but its own. [`facts`] lists it all.
//!
//! Why not a crate: `hakoniwa` comes closest, but forks the process that calls it (ours has
//! threads, where only async-signal-safe code may run in the child), needs the C library libseccomp
//! for its filters, binds the life of a tree to the *thread* that made it, and has no limit on a
//! tree without cgroups. OCI runtimes as libraries need root or systemd. So the parts come from
//! crates (`nix`, `landlock`, `seccompiler`, `caps`), and their order is ours: the executable
//! starts itself again as `portcullis sandbox-exec`, with one thread, which does the rest.
//!
//! As an ordinary user, the launcher first makes a user namespace, which owns all others. As root
//! it builds the root with the host's own rights, then becomes 65534 for the host too, and only
//! then makes a user namespace: what is inside has no rights over its own mounts, and a folder
//! that only root may read is not readable inside.
//!
//! In a pod of Kubernetes, where user namespaces are not available, a server's container is its own, and
//! `pod-exec` starts the program in it ([`launch_in_pod`]).
//!
//! Invariants:
//! - A program runs with all of it or not at all. Only landlock may be missing, in a kernel
//!   without it, and control groups, where the proxy may make none.
//! - Nothing of the plan, which holds secrets, is ever in an argument list, the launcher's
//!   environment or a file.
//! - The tree lives no longer than the control socket that the proxy holds; a `kill -9` of the
//!   proxy closes it. No thread's end does.

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

/// Finds available control groups. Call it before anything is started: where systemd has
/// delegated the proxy's own group, the proxy moves into one within that, which it can't once others are
/// in it.
pub fn settle() {
    cgroups::parents();
}
