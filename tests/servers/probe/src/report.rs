//! What is told. Outcomes are `ok`, or the name of the error: `EPERM`.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Serialize;

use crate::{attempts, surroundings};

/// What a process could do where it runs.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Report {
    pub uid: u32,
    pub gid: u32,
    pub groups: Vec<u32>,
    pub capabilities: Capabilities,
    /// `NoNewPrivs` of proc_pid_status(5).
    pub no_new_privs: bool,
    /// `Seccomp` of proc_pid_status(5): 0 none, 1 strict, 2 filter.
    pub seccomp: u8,
    /// Folders in which a file was made, of those tried.
    pub writable: Vec<String>,
    /// Every folder tried.
    pub writes: BTreeMap<String, String>,
    /// Executing a file put in /tmp: `ok` where only its content stood against it.
    pub exec_from_tmp: String,
    /// Network interfaces other than `lo`.
    pub interfaces: Vec<String>,
    /// Connecting, by address. `ECONNREFUSED` and `ok` both mean that the address was reached.
    pub connects: BTreeMap<String, String>,
    /// Making a socket, by family.
    pub sockets: BTreeMap<String, String>,
    /// System calls that reach beyond a process.
    pub calls: BTreeMap<String, String>,
    /// Opening the whole system's settings below /proc for writing.
    pub proc_writes: BTreeMap<String, String>,
    /// Names in /dev.
    pub devices: Vec<String>,
    pub limits: Limits,
    /// Files that belong to a host, of those looked for.
    pub host_files: Vec<String>,
    /// Names in the root folder.
    pub root: Vec<String>,
    /// Processes that are seen, by number and name.
    pub processes: Vec<String>,
    pub env: BTreeMap<String, String>,
    /// The kernel's release, as uname(2) has it.
    pub kernel: String,
    /// The first line of /proc/self/uid_map: users inside, outside, and how many.
    pub user_map: String,
}

/// The five sets of capabilities(7).
#[derive(Debug, Serialize, JsonSchema)]
pub struct Capabilities {
    pub effective: Vec<String>,
    pub permitted: Vec<String>,
    pub inheritable: Vec<String>,
    pub bounding: Vec<String>,
    pub ambient: Vec<String>,
}

/// Ceilings; absent where none was found.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Limits {
    /// Processes of the control group.
    pub pids: Option<u64>,
    /// Bytes of the control group.
    pub memory: Option<u64>,
    /// Open files, soft and hard.
    pub open_files: Option<String>,
    /// Bytes of a core dump, soft and hard.
    pub core: Option<String>,
}

impl Report {
    pub fn take() -> Self {
        let writes = attempts::writes();
        let status = surroundings::status();
        Self {
            uid: status.uid,
            gid: status.gid,
            groups: status.groups,
            capabilities: surroundings::capabilities(),
            no_new_privs: status.no_new_privs,
            seccomp: status.seccomp,
            writable: writes
                .iter()
                .filter(|(_, outcome)| *outcome == "ok")
                .map(|(folder, _)| folder.clone())
                .collect(),
            writes,
            exec_from_tmp: attempts::exec_from_tmp(),
            interfaces: surroundings::interfaces(),
            connects: attempts::connects(),
            sockets: attempts::sockets(),
            calls: attempts::calls(),
            proc_writes: attempts::proc_writes(),
            devices: surroundings::names("/dev"),
            limits: surroundings::limits(),
            host_files: surroundings::host_files(),
            root: surroundings::names("/"),
            processes: surroundings::processes(),
            env: std::env::vars_os()
                .map(|(name, value)| {
                    (name.to_string_lossy().into_owned(), value.to_string_lossy().into_owned())
                })
                .collect(),
            kernel: surroundings::line("/proc/sys/kernel/osrelease"),
            user_map: surroundings::line("/proc/self/uid_map"),
        }
    }
}
