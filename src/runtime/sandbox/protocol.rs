//! What the proxy and the launcher say to each other over the control socket.
//!
//! The proxy sends four bytes (big endian: the plan's length) together with the program's three
//! streams, then the plan as JSON, then orders of one byte each. The launcher answers in lines of
//! JSON. The end of the proxy's side, however it comes about, ends the whole tree.
//!
//! A program that has a way out has a fourth descriptor with its streams: a socket by which the
//! launcher hands out the listening sockets of it, in the order of the plan, before it answers.

use std::{net::SocketAddrV4, path::PathBuf};

use serde::{Deserialize, Serialize};
use zeroize::Zeroize;

/// Bytes that a plan may have: arguments and environment are limited by the kernel far below.
pub(super) const MAX_PLAN: usize = 16 << 20;

/// The order to tell the program to end.
pub(super) const TERMINATE: u8 = b'T';
/// The order to report usage.
pub(super) const USAGE: u8 = b'U';

/// Everything that the launcher needs to know. It looks nothing up by itself.
#[derive(Serialize, Deserialize)]
pub(super) struct Plan {
    /// The host name inside.
    pub hostname: String,
    /// The program, as a path inside. None: set everything up, report and end.
    pub program: Option<PathBuf>,
    /// Its arguments, the zeroth among them.
    pub arguments: Vec<String>,
    /// Its whole environment, secrets among it.
    pub environment: Vec<(String, String)>,
    /// Host folders and files, parents before what is mounted within them.
    pub binds: Vec<Bind>,
    /// Symbolic links in the root: place, and what it points to.
    pub links: Vec<(PathBuf, PathBuf)>,
    /// Files of our own: place and contents.
    pub files: Vec<(PathBuf, String)>,
    /// Stay in the host's network.
    pub network: bool,
    /// Where the sockets of its way out are. None: it has no way out.
    pub door: Vec<SocketAddrV4>,
    pub writable_root: bool,
    pub exec_tmp: bool,
    /// The user and the group inside; outside too, where the proxy may choose.
    pub user: (u32, u32),
    /// Bytes of memory.
    pub memory: u64,
    /// Whether a control group bounds that, so that nobody need look at the tree.
    pub memory_is_held: bool,
    /// Processes and threads.
    pub pids: u32,
    /// Processors, rounded up.
    pub cpus: usize,
    /// Bytes of /tmp.
    pub tmp: u64,
    /// Folders of the control groups that it enters.
    pub groups: Vec<PathBuf>,
    /// Open files of a process.
    pub open_files: u64,
}

/// A host folder or file, and its place inside.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Bind {
    /// Absolute, free of symbolic links.
    pub source: PathBuf,
    pub target: PathBuf,
    pub writable: bool,
    /// With what is mounted below it on the host. Else that is not seen.
    pub whole: bool,
}

impl Bind {
    pub(super) fn read_only(source: impl Into<PathBuf>, target: impl Into<PathBuf>) -> Self {
        Self { source: source.into(), target: target.into(), writable: false, whole: false }
    }
}

impl Drop for Plan {
    fn drop(&mut self) {
        self.environment.iter_mut().for_each(|(_, value)| value.zeroize());
    }
}

/// What the launcher reports.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Report {
    /// The program runs. `landlock` says whether the kernel has it.
    Started {
        landlock: bool,
    },
    /// It doesn't, and nothing of it is left.
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

/// Why a sandbox could not be set up.
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
