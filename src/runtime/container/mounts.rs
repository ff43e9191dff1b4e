//! Mounts of a container: checked sources, each with a separate target.

use std::path::{Component, Path, PathBuf};

use crate::{MountPolicy, mount::Mount, process::LaunchFailure};

use super::failure;

/// Targets that the profile or the engine owns.
const NEVER_TARGETS: &[&str] = &["/dev", "/proc", "/run", "/sbin", "/sys", "/tmp"];

/// Mounts with resolved sources, or the first refusal.
pub(super) fn check(
    mounts: &[Mount],
    mount_policy: &MountPolicy,
) -> Result<Vec<Mount>, LaunchFailure> {
    let mut checked: Vec<Mount> = Vec::with_capacity(mounts.len());
    for mount in mounts {
        let source = mount_policy.check(mount)?;
        let target = check_target(&mount.target)?;
        if checked.iter().any(|other| other.target == target) {
            return Err(failure(
                format!("two mounts have the same target, {}", target.display()),
                "give each mount its own target",
            ));
        }
        checked.push(Mount { source, target, writable: mount.writable });
    }
    Ok(checked)
}

fn check_target(target: &Path) -> Result<PathBuf, LaunchFailure> {
    let refused = |why: &str| {
        failure(
            format!("a mount cannot have the target {}: {why}", target.display()),
            "choose another absolute path, such as /data",
        )
    };
    let plain = |c: Component| matches!(c, Component::RootDir | Component::Normal(_));
    if !target.is_absolute() || !target.components().all(plain) || target.to_str().is_none() {
        return Err(refused("it is not a plain absolute path"));
    }
    if target.components().count() < 2 {
        return Err(refused("it is the root"));
    }
    if let Some(taken) = NEVER_TARGETS.iter().find(|taken| target.starts_with(taken)) {
        return Err(refused(&format!("{taken} belongs to the container itself")));
    }
    Ok(target.components().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mount(source: &Path, target: &str) -> Mount {
        Mount { source: source.into(), target: target.into(), writable: false }
    }

    #[test]
    fn illegal_targets_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let mount_policy = MountPolicy::default();
        for target in [
            "/",
            "data",
            "",
            "/proc",
            "/proc/sys",
            "/sys",
            "/dev/x",
            "/tmp",
            "/a/../b",
            "-v",
            "/sbin",
        ] {
            assert!(check(&[mount(folder.path(), target)], &mount_policy).is_err(), "{target}");
        }
        for target in ["/data", "/srv/notes", "/tmpdata"] {
            assert!(check(&[mount(folder.path(), target)], &mount_policy).is_ok(), "{target}");
        }
        let twice = ["/data", "/data/"].map(|target| mount(folder.path(), target));
        assert!(check(&twice, &mount_policy).is_err());
    }
}
