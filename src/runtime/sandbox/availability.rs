//! Describes the sandbox to people.

use std::{fmt, fs};

use nix::unistd::{Gid, getegid, geteuid, getgroups};

use super::{
    cgroups::{self, Controller, Version},
    exec, launch, plan,
};
use crate::{
    config::{Hardening, Resources},
    process::LaunchFailure,
};

/// Features of the sandbox that this machine supports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Availability {
    /// Each part, for `portcullis doctor`.
    pub parts: Vec<Part>,
}

/// One part of the sandbox on this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    pub name: &'static str,
    /// What this machine supports of it.
    pub detail: String,
    /// Remedy, if the kernel or the machine lacks it.
    pub remedy: Option<&'static str>,
}

/// Identity of a server in a sandbox outside of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outside {
    /// The same user and group as inside, and no other groups.
    Same,
    /// The user who runs the proxy, with all groups. An ordinary user cannot become another user,
    /// and cannot leave a group in a user namespace.
    Ourselves { user: u32, groups: Vec<u32> },
}

impl fmt::Display for Outside {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Same => f.write_str("the same user outside"),
            Self::Ourselves { user, groups } => {
                let groups: Vec<_> = groups.iter().map(ToString::to_string).collect();
                write!(f, "user {user} outside, in the groups {}", groups.join(", "))
            }
        }
    }
}

/// Identity outside for a server with this `hardening.user`.
pub fn outside(wanted: Option<&str>) -> Outside {
    // A value that is not a user is refused at the launch.
    if plan::user(wanted).is_ok_and(exec::is_privileged) {
        return Outside::Same;
    }
    let mut groups: Vec<u32> =
        getgroups().unwrap_or_default().into_iter().map(Gid::as_raw).collect();
    groups.push(getegid().as_raw());
    groups.sort_unstable();
    groups.dedup();
    Outside::Ourselves { user: geteuid().as_raw(), groups }
}

/// What the sandbox does for a server with these resources, for `portcullis server inspect`.
/// Deviations are in the server's `hardening`.
pub fn facts(resources: &Resources, hardening: &Hardening) -> Vec<(String, String)> {
    let Resources { memory_mib, cpus, pids, tmp_mib, files } = resources;
    let outside = outside(hardening.user.as_deref());
    [
        ("namespaces", NAMESPACES.to_owned()),
        ("user", format!("65534:65534, no capability in any set, no new privileges; {outside}")),
        ("root", "read-only; of the host: programs, libraries, certificates; no /sys".into()),
        ("/tmp", format!("private, {tmp_mib} MiB, noexec, nosuid, nodev")),
        ("writable mounts", "noexec, nosuid, nodev".into()),
        ("network", "only a private loopback".into()),
        (
            "system calls",
            "a list of allowed calls, without set-user-ID and set-group-ID bits; sockets UNIX, TCP \
             and UDP (IPv4, IPv6), NETLINK_ROUTE"
                .into(),
        ),
        ("landlock", landlock(exec::landlock_version())),
        ("memory", format!("{memory_mib} MiB; {}", memory().0)),
        ("processes", format!("{pids}; {}", processes().0)),
        ("processors", format!("{cpus}; {}", processors().0)),
        ("files", format!("{files} open at once in a process, no core dumps")),
        ("environment", "`env`, `secrets`, PATH and HOME".into()),
        ("lifetime", "the whole tree ends with the proxy".into()),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .into()
}

const NAMESPACES: &str = "user, process, network, mount, IPC, UTS, cgroup";

/// Remedy for missing control groups.
const GROUPS: &str = "run the proxy as a service of systemd with `Delegate=yes`, as root or with \
     cgroup v2 (a user's own services have memory and pids; for cpu, root writes `Delegate=cpu memory \
     pids` below [Service] in `systemctl edit user@.service`)";

fn landlock(version: Option<u32>) -> String {
    match version {
        Some(version @ 6..) => format!("version {version}: files, signals, abstract sockets"),
        Some(version) => format!("version {version}: files"),
        None => "not in this kernel (available from 5.13 on)".into(),
    }
}

/// What enforces a limit: the kernel's control group, or its replacement.
fn limited(controller: Controller, otherwise: &str) -> (String, bool) {
    match cgroups::parents().limits(controller) {
        Ok(Version::V1) => ("by a control group (cgroup v1)".into(), true),
        Ok(Version::V2) => ("by a control group (cgroup v2)".into(), true),
        Err(why) => (format!("{otherwise}; no control group: {why}"), false),
    }
}

fn memory() -> (String, bool) {
    limited(Controller::Memory, "by checking the process tree four times a second")
}

fn processes() -> (String, bool) {
    limited(Controller::Pids, "by the user namespace's RLIMIT_NPROC")
}

fn processors() -> (String, bool) {
    limited(Controller::Cpu, "by affinity, in whole processors")
}

/// Sets up a sandbox and removes it, to test whether this machine supports all parts. Blocks for
/// some milliseconds. Works only in the `portcullis` executable.
///
/// # Errors
/// What is missing, and the remedy.
pub fn available() -> Result<Availability, LaunchFailure> {
    let enforced = launch::attempt()?;
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let version = exec::landlock_version().filter(|_| enforced);
    let ok = |name, detail: &str| Part { name, detail: detail.to_owned(), remedy: None };
    let limit = |name, (detail, is_available): (String, bool)| Part {
        name,
        detail,
        remedy: (!is_available).then_some(GROUPS),
    };
    let wall = "the sandbox works without it; a kernel from 6.12 on has landlock 6";
    Ok(Availability {
        parts: vec![
            ok("kernel", kernel.trim()),
            ok("namespaces", NAMESPACES),
            ok("privileges", "none: no capability in any set, no new privileges"),
            ok("files", "a separate read-only root, a private /tmp, parts of /proc hidden"),
            ok("network", "only a private loopback"),
            ok("seccomp", "filters"),
            Part {
                name: "landlock",
                detail: landlock(version),
                remedy: version.is_none_or(|version| version < 6).then_some(wall),
            },
            limit("memory", memory()),
            limit("processes", processes()),
            limit("processors", processors()),
        ],
    })
}
