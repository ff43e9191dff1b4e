//! Servers in containers: the engine, the hardened default profile, images, and the way a process
//! in a container is started, watched, ended and cleaned away.
//!
//! Invariants:
//! - A container is made from a [`Profile`] and nothing else; an image's labels, user, health check
//!   and volumes never shape the run.
//! - A mount is what was checked, or the launch fails.
//! - An image runs by its digest or its local id, and by no other name.
//! - A launch that fails or is given up leaves no container, and a dropped process leaves none.
//! - A server that has a way out starts in a network namespace in which that is there already; the
//!   container that holds the namespace ends with the server.
//! - Secrets go to the engine in the create request alone: never into labels, errors or names.
//! - Only containers with our name *and* our labels are ever removed.

mod cgroup_check;
mod engine;
mod image;
mod image_builder;
mod image_program;
mod inspect;
mod launch;
pub(crate) mod lease;
mod mount_verification;
mod mounts;
mod namespace;
mod pause_container;
mod podman;
mod profile;
mod pull;
mod reap;
mod running;
mod seccomp;
mod stdio;

pub use engine::sockets;
pub use engine::{Engine, NoEngine, Tried, Version};
pub use image::{IllegalImage, Image};
pub use inspect::{Inspection, Running};
pub use profile::{Deviation, Profile};
pub use pull::Progress;

use crate::{egress_netns, process::LaunchFailure};
use portcullis_guard::Rules;

/// Labels of our containers, and of the images that we pack.
pub mod label {
    pub use portcullis_guard::label::{GUARD, HOLDS, INSTANCE, OWNER, PROFILE, SERVER};

    /// On images: a digest of the packed program.
    pub const PACKED: &str = "dev.portcullis.packed";
}

/// What a guard of that name holds containers to, before its operator allows more: what
/// [`Profile`] makes of a server with everything at its default.
pub fn guard_rules(name: &str) -> Rules {
    let mut rules = Rules::new(name, portcullis_syscalls::container_profile(), egress_netns::NET);
    rules.holders = pause_container::LAYERS.iter().cloned().collect();
    rules
}

/// The engine did not do what it was asked, or did not answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the container engine did not {asked}: {why}")]
pub struct Fault {
    pub asked: &'static str,
    pub why: String,
}

impl Fault {
    fn of(asked: &'static str) -> impl Fn(bollard::errors::Error) -> Self {
        move |error| Self { asked, why: engine::words(&error) }
    }
}

fn failure(what: impl Into<String>, remedy: impl Into<String>) -> LaunchFailure {
    LaunchFailure { what: what.into(), remedy: Some(remedy.into()) }
}
