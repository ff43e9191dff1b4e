//! Restrictions that the process puts on itself: identity, capabilities, resources, and landlock
//! for the rest of the file system.

use std::fs;

use caps::CapSet;
use landlock::{
    ABI, Access, AccessFs, CompatLevel, Compatible, PathBeneath, PathFd, Ruleset, RulesetAttr,
    RulesetCreatedAttr, RulesetError, RulesetStatus, Scope,
};
use nix::{
    errno::Errno,
    sched::{CloneFlags, CpuSet, sched_getaffinity, sched_setaffinity, unshare},
    sys::{
        prctl,
        resource::{Resource, getrlimit, setrlimit},
    },
    unistd::{Gid, Pid, Uid, setgroups, setresgid, setresuid},
};

use crate::sandbox::protocol::{Failure, Plan};

/// Newest landlock version to request; an older kernel provides what it supports.
const LANDLOCK: ABI = ABI::V6;

/// Enters a user namespace with one user: `inside`, who is `outside` for the host.
pub(super) fn user_namespace(inside: (u32, u32), outside: (u32, u32)) -> Result<(), Failure> {
    unshare(CloneFlags::CLONE_NEWUSER).map_err(|errno| {
        Failure::new(format!(
            "the sandbox needs a user namespace, and this machine refuses one ({})",
            errno.desc()
        ))
        .remedy(super::USER_NAMESPACES)
    })?;
    // A process that is not dumpable does not own its files in /proc.
    prctl::set_dumpable(true).map_err(at("be dumpable for its maps"))?;
    let (uid, gid) = inside;
    for (file, map) in [
        ("setgroups", "deny".to_owned()),
        ("uid_map", format!("{uid} {} 1", outside.0)),
        ("gid_map", format!("{gid} {} 1", outside.1)),
    ] {
        fs::write(format!("/proc/self/{file}"), map).map_err(|error| {
            Failure::new(format!("the sandbox can't write its {file}: {error}"))
                .remedy(super::USER_NAMESPACES)
        })?;
    }
    prctl::set_dumpable(false).map_err(at("hide its memory"))
}

/// Becomes another user for the host, too. Needs the privilege.
pub(super) fn become_user((uid, gid): (u32, u32)) -> Result<(), Failure> {
    let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
    setgroups(&[]).map_err(at("leave its groups"))?;
    setresgid(gid, gid, gid).map_err(at("change its group"))?;
    setresuid(uid, uid, uid).map_err(at("change its user"))
}

/// Drops every capability in every set, permanently.
pub(super) fn drop_capabilities() -> Result<(), Failure> {
    let all = caps::runtime::thread_all_supported();
    let dropped = all
        .iter()
        .try_for_each(|capability| caps::drop(None, CapSet::Bounding, *capability))
        .and_then(|()| caps::clear(None, CapSet::Ambient))
        .and_then(|()| caps::clear(None, CapSet::Inheritable))
        .and_then(|()| caps::clear(None, CapSet::Effective))
        .and_then(|()| caps::clear(None, CapSet::Permitted));
    dropped.map_err(|error| {
        Failure::new(format!("the sandbox can't give up its capabilities: {error}"))
            .remedy(super::USER_NAMESPACES)
    })?;
    prctl::set_no_new_privs().map_err(at("renounce new privileges"))
}

/// Restricts the process to some processors. If the machine has too few, or the kernel refuses,
/// nothing changes: this limit is about fairness.
pub(super) fn limit_processors(cpus: usize) {
    let Ok(allowed) = sched_getaffinity(Pid::this()) else { return };
    let available: Vec<_> =
        (0..CpuSet::count()).filter(|cpu| allowed.is_set(*cpu).unwrap_or(false)).collect();
    if cpus == 0 || available.len() <= cpus {
        return;
    }
    // Adjacent processors by process id, so that many servers do not share one.
    let first = Pid::this().as_raw().unsigned_abs() as usize;
    let mut chosen = CpuSet::new();
    for cpu in available.iter().cycle().skip(first % available.len()).take(cpus) {
        if chosen.set(*cpu).is_err() {
            return;
        }
    }
    let _ = sched_setaffinity(Pid::this(), &chosen);
}

/// Sets the kernel's limits for each process, and for the number of processes in this user
/// namespace, of which `own` are the launcher's.
pub(super) fn limit_resources(plan: &Plan, own: u64) -> Result<(), Failure> {
    // The kernel counts address space, not use, and runtimes reserve more than they touch. The
    // first process checks the use of the whole tree; this limit stops a single large process
    // immediately.
    let data = plan.memory.saturating_mul(2);
    let processes = u64::from(plan.pids) + own;
    for (resource, limit) in [
        (Resource::RLIMIT_NOFILE, plan.open_files),
        (Resource::RLIMIT_CORE, 0),
        (Resource::RLIMIT_NPROC, processes),
        (Resource::RLIMIT_DATA, data),
        (Resource::RLIMIT_MSGQUEUE, 0),
        (Resource::RLIMIT_MEMLOCK, 64 << 10),
        (Resource::RLIMIT_NICE, 0),
        (Resource::RLIMIT_RTPRIO, 0),
    ] {
        // A hard limit that is already lower cannot be raised.
        let limit = getrlimit(resource).map_or(limit, |(_, hard)| hard.min(limit));
        setrlimit(resource, limit, limit)
            .map_err(|errno| failed(&format!("set {resource:?} to {limit}"), errno))?;
    }
    Ok(())
}

/// Restricts the file system again by landlock, and signals and abstract sockets too. Returns
/// whether the kernel supports landlock.
pub(super) fn landlock(plan: &Plan) -> Result<bool, Failure> {
    restrict(plan).map_err(|error| {
        Failure::new(format!("the sandbox can't restrict itself by landlock: {error}"))
    })
}

fn restrict(plan: &Plan) -> Result<bool, Box<dyn std::error::Error>> {
    let all = AccessFs::from_all(LANDLOCK);
    let write = all & !(AccessFs::MakeChar | AccessFs::MakeBlock | AccessFs::Execute);
    let read = AccessFs::ReadFile | AccessFs::ReadDir;
    let mut rules = vec![("/".into(), read), ("/tmp".into(), write)];
    for device in ["null", "zero", "full", "random", "urandom"] {
        rules.push((format!("/dev/{device}").into(), AccessFs::ReadFile | AccessFs::WriteFile));
    }
    for bind in &plan.binds {
        let access = if bind.writable { write } else { read | AccessFs::Execute };
        rules.push((bind.target.clone(), access));
    }
    if plan.writable_root {
        rules.push(("/".into(), write));
    }
    if plan.exec_tmp {
        let writable = plan.binds.iter().filter(|bind| bind.writable);
        let paths = writable.map(|bind| bind.target.clone()).chain(["/tmp".into()]);
        rules.extend(paths.map(|path| (path, AccessFs::Execute.into())));
    }
    let mut ruleset = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(all)?
        .scope(Scope::from_all(LANDLOCK))?
        .create()?;
    for (path, access) in rules {
        let file = fs::metadata(&path)?.is_file() || path.starts_with("/dev");
        let access = if file { access & AccessFs::from_file(LANDLOCK) } else { access };
        ruleset = ruleset.add_rule(PathBeneath::new(PathFd::new(&path)?, access))?;
    }
    let status = ruleset.restrict_self()?;
    Ok(status.ruleset != RulesetStatus::NotEnforced)
}

/// The kernel's landlock version, at most the newest one known here.
pub(in crate::sandbox) fn landlock_version() -> Option<u32> {
    let has = |abi: ABI| -> Result<(), RulesetError> {
        let ruleset = Ruleset::default().set_compatibility(CompatLevel::HardRequirement);
        let ruleset = ruleset.handle_access(AccessFs::from_all(abi))?;
        let ruleset = if abi >= ABI::V6 { ruleset.scope(Scope::from_all(abi))? } else { ruleset };
        ruleset.create().map(drop)
    };
    let versions = [ABI::V1, ABI::V2, ABI::V3, ABI::V5, ABI::V6];
    versions.into_iter().rev().find(|abi| has(*abi).is_ok()).map(|abi| abi as u32)
}

fn at(what: &'static str) -> impl Fn(Errno) -> Failure {
    move |errno| failed(what, errno)
}

fn failed(what: &str, errno: Errno) -> Failure {
    Failure::new(format!("the sandbox can't {what}: {}", errno.desc()))
}
