//! The sandbox in words, for people.

use std::fs;

use super::{exec, launch};
use crate::upstream::process::LaunchFailure;

/// What of the sandbox this machine offers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Availability {
    /// Each part and what there is of it, for `portcullis doctor`.
    pub parts: Vec<(String, String)>,
    /// Whether the kernel has landlock. Without it, the sandbox stands on everything else.
    pub landlock: bool,
}

/// What the sandbox does for every server, for `portcullis server inspect`. Deviations are the
/// server's own `hardening`.
pub fn facts() -> Vec<(String, String)> {
    let landlock = match exec::landlock_version() {
        Some(version) => format!("version {version}: files, signals, abstract sockets"),
        None => "not in this kernel".into(),
    };
    [
        ("namespaces", "user, process, network, mount, IPC, UTS, cgroup".to_owned()),
        ("user", "65534:65534, no capability in any set, no new privileges".into()),
        ("root", "read-only; of the host: programs, libraries, certificates; no /sys".into()),
        ("/tmp", "private, 64 MiB, noexec, nosuid, nodev".into()),
        ("writable mounts", "noexec, nosuid, nodev".into()),
        ("network", "loopback of its own".into()),
        ("system calls", "a list of what is allowed; sockets UNIX, INET, INET6, NETLINK_ROUTE".into()),
        ("landlock", landlock),
        ("limits", "1024 files, no core dumps; memory of the whole tree, processes and processors by `resources`".into()),
        ("environment", "`env`, `secrets`, PATH and HOME".into()),
        ("lifetime", "the whole tree ends with the proxy".into()),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .into()
}

/// Sets a sandbox up and takes it down again, to see whether this machine offers all that it
/// needs. Blocks for some milliseconds. Works in the `portcullis` executable only.
///
/// # Errors
/// What is missing, and the remedy.
pub fn available() -> Result<Availability, LaunchFailure> {
    let landlock = launch::attempt()?;
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let landlock_version = match exec::landlock_version().filter(|_| landlock) {
        Some(version) => format!("version {version}"),
        None => "not in this kernel (5.13 and later can have it)".into(),
    };
    let parts = [
        ("kernel", kernel.trim().to_owned()),
        ("namespaces", "user, process, network, mount, IPC, UTS, cgroup".into()),
        ("seccomp", "filters".into()),
        ("landlock", landlock_version),
    ];
    let parts = parts.map(|(name, value)| (name.to_owned(), value)).into();
    Ok(Availability { parts, landlock })
}
