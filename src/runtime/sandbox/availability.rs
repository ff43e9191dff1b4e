//! The sandbox in words, for people.

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

/// What of the sandbox this machine offers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Availability {
    /// Each part, for `portcullis doctor`.
    pub parts: Vec<Part>,
}

/// One part of the sandbox on this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    pub name: &'static str,
    /// What there is of it.
    pub detail: String,
    /// What to do, where the kernel or the machine lacks it.
    pub remedy: Option<&'static str>,
}

/// Who a server in a sandbox is to this machine, beneath the user that it is inside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outside {
    /// The same user and group, and in no other group.
    Same,
    /// Whoever runs the proxy, with all of that user's groups: an ordinary user can become nobody
    /// else, and can't leave a group in a user namespace.
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

/// Who a server with this `hardening.user` is to this machine.
pub fn outside(wanted: Option<&str>) -> Outside {
    // What is no user is refused at the launch.
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
/// Deviations are the server's own `hardening`.
pub fn facts(resources: &Resources, hardening: &Hardening) -> Vec<(String, String)> {
    let Resources { memory_mib, cpus, pids, tmp_mib, files } = resources;
    let outside = outside(hardening.user.as_deref());
    [
        ("namespaces", NAMESPACES.to_owned()),
        ("user", format!("65534:65534, no capability in any set, no new privileges; {outside}")),
        ("root", "read-only; of the host: programs, libraries, certificates; no /sys".into()),
        ("/tmp", format!("private, {tmp_mib} MiB, noexec, nosuid, nodev")),
        ("writable mounts", "noexec, nosuid, nodev".into()),
        ("network", "loopback of its own".into()),
        (
            "system calls",
            "a list of what is allowed, without set-user-ID and set-group-ID bits; sockets UNIX, TCP \
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

/// Where control groups are available.
const GROUPS: &str = "run the proxy as a service of systemd with `Delegate=yes`, as root or with \
     cgroup v2 (a user's own services have memory and pids; for cpu, root writes `Delegate=cpu memory \
     pids` below [Service] in `systemctl edit user@.service`)";

fn landlock(version: Option<u32>) -> String {
    match version {
        Some(version @ 6..) => format!("version {version}: files, signals, abstract sockets"),
        Some(version) => format!("version {version}: files"),
        None => "not in this kernel (5.13 and later can have it)".into(),
    }
}

/// What holds a limit: the kernel's control group, or what stands in for it.
fn limited(controller: Controller, otherwise: &str) -> (String, bool) {
    match cgroups::parents().limits(controller) {
        Ok(Version::V1) => ("by a control group (cgroup v1)".into(), true),
        Ok(Version::V2) => ("by a control group (cgroup v2)".into(), true),
        Err(why) => (format!("{otherwise}; no control group: {why}"), false),
    }
}

fn memory() -> (String, bool) {
    limited(Controller::Memory, "by looking at the tree four times a second")
}

fn processes() -> (String, bool) {
    limited(Controller::Pids, "by the user namespace's RLIMIT_NPROC")
}

fn processors() -> (String, bool) {
    limited(Controller::Cpu, "by affinity, in whole processors")
}

/// Sets a sandbox up and takes it down again, to see whether this machine offers all that it
/// needs. Blocks for some milliseconds. Works in the `portcullis` executable only.
///
/// # Errors
/// What is missing, and the remedy.
pub fn available() -> Result<Availability, LaunchFailure> {
    let enforced = launch::attempt()?;
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let version = exec::landlock_version().filter(|_| enforced);
    let ok = |name, detail: &str| Part { name, detail: detail.to_owned(), remedy: None };
    let limit = |name, (detail, held): (String, bool)| Part {
        name,
        detail,
        remedy: (!held).then_some(GROUPS),
    };
    let wall = "the sandbox stands on everything else; a kernel with landlock 6 (6.12) has it all";
    Ok(Availability {
        parts: vec![
            ok("kernel", kernel.trim()),
            ok("namespaces", NAMESPACES),
            ok("privileges", "none: no capability in any set, no new privileges"),
            ok("files", "a read-only root of its own, a private /tmp, /proc with parts hidden"),
            ok("network", "loopback of its own, and nothing else"),
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
