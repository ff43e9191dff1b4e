//! Which host folders a server may never see, and where inside none may be put.
//!
//! What may be seen is the containers' rule: a server sees no more for running here.

use std::{
    path::{Component, Path},
    sync::Arc,
};

use crate::{
    MountPolicy,
    process::{LaunchFailure, Mount},
};

/// Trees inside that hold the system. `/etc` and `/tmp` are the sandbox's too, but have room.
const OCCUPIED: &[&str] =
    &["/bin", "/dev", "/lib", "/lib32", "/lib64", "/libx32", "/proc", "/sbin", "/sys", "/usr"];

/// Holds every mount against the rules.
#[derive(Debug)]
pub(super) struct Rules {
    places: Arc<MountPolicy>,
}

impl Rules {
    /// By what a server may see.
    pub(super) fn of(places: &Arc<MountPolicy>) -> Self {
        Self { places: places.clone() }
    }

    /// Checks what a mount shows and where. Returns it with the links of its source resolved.
    pub(super) fn check(&self, mount: &Mount) -> Result<Mount, LaunchFailure> {
        check_target(&mount.target)?;
        let source = self.places.check(mount)?;
        Ok(Mount { source, target: mount.target.clone(), writable: mount.writable })
    }

    /// Checks that something of a program may be seen. Its place inside is its place on the host,
    /// so that it finds itself.
    pub(super) fn check_program(&self, source: &Path) -> Result<(), LaunchFailure> {
        let (source, target) = (source.to_owned(), source.to_owned());
        self.places.check(&Mount { source, target, writable: false }).map(drop)
    }
}

/// Checks that a place inside is free for a mount.
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
        what: format!("nothing can be mounted at `{}`: {why}", target.display()),
        remedy: Some("choose a place of its own, such as `/data`".into()),
    }
}
