//! Protocol between the proxy and the launcher over the control socket.
//!
//! The proxy sends four bytes (big endian: the plan's length) together with the program's three
//! streams, then the plan as JSON, then orders of one byte each. The launcher answers in lines of
//! JSON. The end of the proxy's side, for any reason, ends the whole tree.
//!
//! A program with egress has a fourth descriptor with its streams: a socket over which the launcher
//! sends the listening sockets, in the order of the plan, before it answers.

use std::{net::SocketAddrV4, path::PathBuf};

use serde::{Deserialize, Serialize};
use zeroize::Zeroize;

/// Limit of a plan in bytes. The kernel's limit for arguments and environment is far below.
pub(super) const MAX_PLAN_BYTES: usize = 16 << 20;

/// Order to terminate the program.
pub(super) const TERMINATE: u8 = b'T';
/// Order to report resource usage.
pub(super) const USAGE: u8 = b'U';

/// Everything that the launcher needs. It resolves nothing itself.
#[derive(Serialize, Deserialize)]
pub(super) struct Plan {
    /// Host name inside.
    pub hostname: String,
    /// Program, as a path inside. `None`: set everything up, report and end.
    pub program: Option<PathBuf>,
    /// Arguments, including the zeroth.
    pub arguments: Vec<String>,
    /// Whole environment, including secrets.
    pub environment: Vec<(String, String)>,
    /// Host folders and files, parents before mounts within them.
    pub binds: Vec<Bind>,
    /// Symbolic links in the root: path and target.
    pub links: Vec<(PathBuf, PathBuf)>,
    /// Files to create: path and contents.
    pub files: Vec<(PathBuf, String)>,
    /// Whether the program stays in the host's network.
    pub network: bool,
    /// Addresses of the egress sockets. Empty without egress.
    pub egress_sockets: Vec<SocketAddrV4>,
    pub writable_root: bool,
    pub exec_tmp: bool,
    /// User and group inside; outside too, if the proxy may choose.
    pub user: (u32, u32),
    /// Memory limit in bytes.
    pub memory: u64,
    /// Whether a control group enforces it, so that no check of the tree is needed.
    pub memory_is_held: bool,
    /// Limit of processes and threads.
    pub pids: u32,
    /// Limit of processors, rounded up.
    pub cpus: usize,
    /// Size of /tmp in bytes.
    pub tmp: u64,
    /// Folders of the control groups to enter.
    pub groups: Vec<PathBuf>,
    /// Limit of open files of a process.
    pub open_files: u64,
}

/// Host folder or file, and its target inside.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Bind {
    /// Absolute, without symbolic links.
    pub source: PathBuf,
    pub target: PathBuf,
    pub writable: bool,
    /// Whether mounts below it on the host are included. Otherwise they are hidden.
    pub recursive: bool,
}

impl Bind {
    pub(super) fn read_only(source: impl Into<PathBuf>, target: impl Into<PathBuf>) -> Self {
        Self { source: source.into(), target: target.into(), writable: false, recursive: false }
    }
}

impl Drop for Plan {
    fn drop(&mut self) {
        self.environment.iter_mut().for_each(|(_, value)| value.zeroize());
    }
}

/// Report of the launcher.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Report {
    /// The program runs. `landlock` says whether the kernel supports it.
    Started {
        landlock: bool,
    },
    /// The program does not run, and no process remains.
    Failed(Failure),
    Usage {
        memory: u64,
        cpu_seconds: f64,
    },
    Ended {
        code: i64,
        reason: Option<String>,
    },
}

/// Failure to set up a sandbox.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Failure {
    pub what: String,
    pub remedy: Option<String>,
}

impl Failure {
    pub(super) fn new(what: impl Into<String>) -> Self {
        Self { what: what.into(), remedy: None }
    }

    pub(super) fn remedy(mut self, remedy: impl Into<String>) -> Self {
        self.remedy = Some(remedy.into());
        self
    }
}
