//! Host folders that a server may never see, and targets that no mount may have.
//!
//! Visibility follows the rule for containers: a sandbox shows a server no more.

use std::{
    path::{Component, Path},
    sync::Arc,
};

use crate::{MountPolicy, mount::Mount, process::LaunchFailure};

/// Folders inside that hold the system. `/etc` and `/tmp` belong to the sandbox too, but can hold
/// mounts.
const OCCUPIED: &[&str] =
    &["/bin", "/dev", "/lib", "/lib32", "/lib64", "/libx32", "/proc", "/sbin", "/sys", "/usr"];

/// Checks mounts against the rules.
#[derive(Debug)]
pub(super) struct Rules {
    mount_policy: Arc<MountPolicy>,
}

impl Rules {
    /// Rules with what a server may see.
    pub(super) fn of(mount_policy: &Arc<MountPolicy>) -> Self {
        Self { mount_policy: mount_policy.clone() }
    }

    /// Checks source and target of a mount. Returns it with the links of its source resolved.
    pub(super) fn check(&self, mount: &Mount) -> Result<Mount, LaunchFailure> {
        check_target(&mount.target)?;
        let source = self.mount_policy.check(mount)?;
        Ok(Mount { source, target: mount.target.clone(), writable: mount.writable })
    }

    /// Checks that a part of a program may be visible. Its path inside is its path on the host, so
    /// that it finds itself.
    pub(super) fn check_program(&self, source: &Path) -> Result<(), LaunchFailure> {
        let (source, target) = (source.to_owned(), source.to_owned());
        self.mount_policy.check(&Mount { source, target, writable: false }).map(drop)
    }
}

/// Checks that a target is free for a mount.
fn check_target(target: &Path) -> Result<(), LaunchFailure> {
    let plain = target.is_absolute()
        && target.components().skip(1).all(|part| matches!(part, Component::Normal(_)));
    if !plain || target.parent().is_none() {
        return Err(misplaced(target, "it is not an absolute path without `.` and `..` below `/`"));
    }
    let exact = [Path::new("/etc"), Path::new("/tmp")].contains(&target);
    if exact || OCCUPIED.iter().any(|tree| target.starts_with(tree)) {
        return Err(misplaced(target, "the sandbox has its own contents there"));
    }
    Ok(())
}

fn misplaced(target: &Path, why: &str) -> LaunchFailure {
    LaunchFailure {
        what: format!("a mount cannot have the target `{}`: {why}", target.display()),
        remedy: Some("choose another path, such as `/data`".into()),
    }
}
