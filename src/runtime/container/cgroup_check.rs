//! Checks whether an engine applies a container's resource limits. An engine without the required
//! control groups drops limits: Docker with a warning, Podman silently.

use bollard::{
    Docker,
    models::{SystemInfo, SystemInfoCgroupVersionEnum},
};

use crate::process::LaunchFailure;

use super::{Fault, failure};

/// Names of the limits that an engine cannot apply.
pub(super) fn lacking(info: &SystemInfo, podman: bool) -> Vec<&'static str> {
    let mut options = info.security_options.iter().flatten();
    let rootless = options.any(|option| option.contains("rootless"));
    let unified = info.cgroup_version == Some(SystemInfoCgroupVersionEnum::_2);
    // Podman reports these limits as available there.
    let drops = podman && rootless && !unified;
    // For an ordinary user, Podman reports no limits, whatever systemd delegated. Its runtime does
    // not start a container whose limit cannot be applied.
    let unknown = podman && unified;
    [
        ("memory", info.memory_limit),
        ("processes", info.pids_limit),
        ("processors", info.cpu_cfs_quota.filter(|_| !unknown)),
    ]
    .into_iter()
    .filter(|(_, available)| drops || *available == Some(false))
    .map(|(name, _)| name)
    .collect()
}

/// Refuses an engine that lacks a limit.
pub(super) fn check(lacking: &[&str]) -> Result<(), LaunchFailure> {
    if lacking.is_empty() { Ok(()) } else { Err(unlimited(&lacking.join(", "))) }
}

/// Checks the limits of a created container.
pub(super) async fn verify_limits(docker: &Docker, id: &str) -> Result<(), LaunchFailure> {
    let container = docker.inspect_container(id, None).await.map_err(|error| {
        let fault = Fault::of("report the limits of the container")(error);
        failure(fault.to_string(), "check the engine: `portcullis doctor`")
    })?;
    let host = container.host_config.unwrap_or_default();
    let limits =
        [("memory", host.memory), ("processes", host.pids_limit), ("processors", host.nano_cpus)];
    let lacking: Vec<&str> = limits
        .into_iter()
        .filter(|(_, limit)| limit.is_none_or(|limit| limit <= 0))
        .map(|(name, _)| name)
        .collect();
    check(&lacking)
}

fn unlimited(what: &str) -> LaunchFailure {
    failure(
        format!("the engine does not limit containers ({what})"),
        "run the engine as root; or, with cgroup v2, have systemd delegate these controllers to its \
         user (`systemctl edit user@.service`, below [Service] `Delegate=cpu cpuset io memory pids`); \
         or run the server in the sandbox",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn engines_without_a_limit_are_found() {
        use SystemInfoCgroupVersionEnum::{_1, _2, EMPTY};
        let system = |available, rootless: bool, version| SystemInfo {
            memory_limit: available,
            pids_limit: available,
            cpu_cfs_quota: available,
            security_options: Some(
                ["name=seccomp,profile=default", "name=rootless"][..1 + usize::from(rootless)]
                    .iter()
                    .map(|option| (*option).to_owned())
                    .collect(),
            ),
            cgroup_version: version,
            ..SystemInfo::default()
        };
        for (available, rootless, version, podman, lacks) in [
            (Some(true), false, Some(_1), false, 0),
            (Some(true), false, Some(_1), true, 0),
            (Some(true), true, Some(_2), true, 0),
            (Some(true), true, Some(_2), false, 0),
            // Podman's own report is wrong there.
            (Some(true), true, Some(_1), true, 3),
            (Some(true), true, Some(EMPTY), true, 3),
            (Some(true), true, None, true, 3),
            (Some(false), true, Some(_1), false, 3),
            (Some(false), false, Some(_2), true, 2),
            (Some(false), false, Some(_2), false, 3),
            (None, false, Some(_1), false, 0),
        ] {
            let lacking = lacking(&system(available, rootless, version), podman);
            assert_eq!(lacking.len(), lacks, "{available:?} {rootless} {version:?} {podman}");
            assert_eq!(check(&lacking).is_err(), lacks > 0);
        }
    }
}
