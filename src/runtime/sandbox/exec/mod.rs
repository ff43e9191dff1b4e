//! The launcher's process: `portcullis sandbox-exec`, which only the proxy starts.
//!
//! It is single-threaded from start to end, and has two processes: the outer one enters the
//! namespaces and waits; the inner one is their first process and drops its identity before it
//! starts the program.

mod confine;
mod init;
mod pod;
mod process_tree;
mod root;
mod seccomp;
mod submounts;
mod sys;

use std::{
    fs,
    io::{self, Read},
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::UnixStream,
    },
    process::ExitCode,
};

use caps::{CapSet, Capability};
use nix::{
    errno::Errno,
    sched::{CloneFlags, unshare},
    sys::{
        prctl,
        signal::Signal,
        socket::MsgFlags,
        wait::{WaitStatus, waitpid},
    },
    unistd::{ForkResult, Pid, getgid, getuid, sethostname, setsid},
};
use zeroize::Zeroizing;

pub(super) use confine::landlock_version;
pub use pod::pod_main;

use super::{
    fd_passing,
    protocol::{Failure, MAX_PLAN_BYTES, Plan, Report},
};
use crate::egress_netns;

/// Remedy if user namespaces are refused.
const USER_NAMESPACES: &str = "allow ordinary users to create user namespaces (sysctl \
     user.max_user_namespaces above 0, kernel.unprivileged_userns_clone=1 and \
     kernel.apparmor_restrict_unprivileged_userns=0 where these exist), or install a \
     container engine for the proxy";

/// Runs the launcher. The exit code is the program's, or 125 if it could not be started.
pub fn exec_main() -> ExitCode {
    let code = match control() {
        Ok(control) => outer(control),
        Err(error) => {
            eprintln!("portcullis sandbox-exec is started by the proxy itself: {error}");
            125
        }
    };
    ExitCode::from(u8::try_from(code).unwrap_or(125))
}

fn control() -> io::Result<UnixStream> {
    let control = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
    control.peer_addr().map(|_| control)
}

/// The process that the proxy started. Returns the exit code.
fn outer(mut control: UnixStream) -> i64 {
    let child = match start(&mut control) {
        Ok(child) => child,
        Err(failure) => {
            init::report(&mut control, &Report::Failed(failure));
            return 125;
        }
    };
    // From here on, the first process inside communicates with the proxy.
    drop(control);
    loop {
        match waitpid(child, None) {
            Ok(WaitStatus::Exited(_, code)) => return code.into(),
            Ok(WaitStatus::Signaled(_, signal, _)) => return 128 + i64::from(signal as i32),
            Ok(_) | Err(Errno::EINTR) => {}
            Err(_) => return 125,
        }
    }
}

/// Enters the namespaces and forks their first process.
fn start(control: &mut UnixStream) -> Result<Pid, Failure> {
    let LaunchInput { plan, streams, egress_sockets } = receive(control)?;
    let privileged = enter(&plan)?;
    match sys::fork().map_err(at("start its first process"))? {
        ForkResult::Child => {
            let code = inner(plan, streams, egress_sockets, control, privileged);
            std::process::exit(i32::try_from(code).unwrap_or(125))
        }
        ForkResult::Parent { child } => {
            if privileged {
                // A process that only waits needs no privileges.
                confine::become_user(plan.user)?;
            }
            Ok(child)
        }
    }
}

/// Input of the launcher from the proxy.
struct LaunchInput {
    plan: Plan,
    /// Standard streams of the program.
    streams: [OwnedFd; 3],
    /// Socket that passes the egress sockets to the proxy.
    egress_sockets: Option<UnixStream>,
}

/// Receives the input.
fn receive(control: &mut UnixStream) -> Result<LaunchInput, Failure> {
    let failed = |error: &dyn std::fmt::Display| {
        Failure::new(format!("the sandbox's launcher got no plan: {error}"))
    };
    let mut length = [0; 4];
    let mut streams = fd_passing::receive(control, &mut length, MsgFlags::MSG_WAITALL)
        .map_err(|error| failed(&error))?;
    let egress_sockets =
        (streams.len() == 4).then(|| streams.pop()).flatten().map(UnixStream::from);
    let streams = streams.try_into().map_err(|_| failed(&"it needs three streams"))?;
    let length = u32::from_be_bytes(length) as usize;
    if length > MAX_PLAN_BYTES {
        return Err(failed(&"it is too large"));
    }
    let mut plan = Zeroizing::new(vec![0; length]);
    control.read_exact(&mut plan).map_err(|error| failed(&error))?;
    let plan = serde_json::from_slice(&plan)
        // The error's text could contain a part of it.
        .map_err(|_| failed(&"this version does not understand it"))?;
    Ok(LaunchInput { plan, streams, egress_sockets })
}

/// Enters the namespaces. The process namespace applies from the next child on. Returns whether the
/// proxy is fully privileged on this host, and so needs no user namespace for it.
fn enter(plan: &Plan) -> Result<bool, Failure> {
    // Not in the proxy's session, so that a terminal's Ctrl-C reaches only the proxy.
    let _ = setsid();
    // When the host runs out of memory, servers are killed first. Set while the file is still
    // writable.
    let _ = fs::write("/proc/self/oom_score_adj", "1000");
    // Before the cgroup namespace is created, so that its root is the tree's own group.
    for folder in &plan.groups {
        fs::write(folder.join("cgroup.procs"), "0").map_err(|error| {
            let folder = folder.display();
            Failure::new(format!("the sandbox can't enter its control group {folder}: {error}"))
        })?;
    }
    prctl::set_dumpable(false).map_err(at("hide its memory"))?;
    confine::limit_processors(plan.cpus);
    let privileged = is_privileged(plan.user);
    if !privileged {
        confine::user_namespace(plan.user, (getuid().as_raw(), getgid().as_raw()))?;
    }
    let mut namespaces = CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWPID
        | CloneFlags::CLONE_NEWIPC
        | CloneFlags::CLONE_NEWUTS
        | CloneFlags::CLONE_NEWCGROUP;
    if !plan.network {
        namespaces |= CloneFlags::CLONE_NEWNET;
    }
    unshare(namespaces).map_err(|errno| {
        Failure::new(format!("the sandbox can't have namespaces of its own ({})", errno.desc()))
            .remedy(USER_NAMESPACES)
    })?;
    Ok(privileged)
}

/// Whether the launcher may mount and become any user, and this user exists. A surrounding
/// container or user namespace may have few users.
pub(super) fn is_privileged((uid, gid): (u32, u32)) -> bool {
    let needed = [Capability::CAP_SYS_ADMIN, Capability::CAP_SETUID, Capability::CAP_SETGID];
    let able = |capability| caps::has_cap(None, CapSet::Effective, capability).unwrap_or(false);
    let exists = |file: &str, id: u32| {
        let map = fs::read_to_string(format!("/proc/self/{file}")).unwrap_or_default();
        map.lines().any(|line| {
            let mut fields = line.split_whitespace().map(|field| field.parse::<u64>().unwrap_or(0));
            let (first, _, count) = (fields.next(), fields.next(), fields.next());
            let first = first.unwrap_or(0);
            (first..first + count.unwrap_or(0)).contains(&u64::from(id))
        })
    };
    needed.into_iter().all(able) && exists("uid_map", uid) && exists("gid_map", gid)
}

/// First process inside. Returns the exit code.
fn inner(
    plan: Plan,
    streams: [OwnedFd; 3],
    egress_sockets: Option<UnixStream>,
    control: &mut UnixStream,
    privileged: bool,
) -> i64 {
    let ended = confine(&plan, egress_sockets, privileged).and_then(|landlock| {
        init::run(plan, control, streams, landlock, process_tree::Tree::Namespace)
    });
    ended.unwrap_or_else(|failure| {
        init::report(control, &Report::Failed(failure));
        125
    })
}

/// Applies everything that confines the program and this process. Returns whether that includes
/// landlock.
fn confine(
    plan: &Plan,
    egress_sockets: Option<UnixStream>,
    privileged: bool,
) -> Result<bool, Failure> {
    if !plan.network {
        sys::loopback_up().map_err(|error| {
            Failure::new(format!("the sandbox can't bring up its loopback interface: {error}"))
        })?;
    }
    // While this process can still configure the network namespace and read the host's /proc.
    open(plan, egress_sockets)?;
    sethostname(&plan.hostname).map_err(at("set its host name"))?;
    root::enter(plan)?;
    if privileged {
        confine::become_user(plan.user)?;
        confine::user_namespace(plan.user, plan.user)?;
    }
    confine::drop_capabilities()?;
    // In case the outer process is killed. Every change of identity above would have cleared it.
    prctl::set_pdeathsig(Signal::SIGKILL).map_err(at("tie itself to its parent"))?;
    // The outer process is in the user namespace if that was created first.
    confine::limit_resources(plan, if privileged { 1 } else { 2 })?;
    let landlock = confine::landlock(plan)?;
    seccomp::confine()?;
    Ok(landlock)
}

/// Creates the egress sockets and passes them to the proxy, which serves them. They exist, and
/// nothing else is reachable, before the program starts.
fn open(plan: &Plan, egress_sockets: Option<UnixStream>) -> Result<(), Failure> {
    if plan.egress_sockets.is_empty() {
        return Ok(());
    }
    let Some(egress_sockets) = egress_sockets else {
        return Err(Failure::new("the sandbox's launcher can't pass the egress sockets on"));
    };
    let sockets = egress_netns::bind_sockets(&plan.egress_sockets)
        .map_err(|failure| Failure { what: failure.what, remedy: failure.remedy })?;
    fd_passing::give(&egress_sockets, &sockets).map_err(|error| {
        Failure::new(format!("the sandbox can't pass its egress sockets on: {error}")).remedy(
            "list fewer names and ports in `egress`, or raise the proxy's limit of open files",
        )
    })
}

fn at(what: &'static str) -> impl Fn(Errno) -> Failure {
    move |errno| Failure::new(format!("the sandbox can't {what}: {}", errno.desc()))
}
