//! Servers in containers: the engine, the hardened default profile, images, and the start,
//! supervision, end and removal of containers.
//!
//! Invariants:
//!
//! - A container is created from a [`Profile`] only. An image's labels, user, health check and
//!   volumes never affect the run.
//! - A mount is the one that was checked, or the launch fails.
//! - An image runs by its digest or its local id only.
//! - A failed or cancelled launch leaves no container, and neither does a dropped process.
//! - A server with `egress` starts in a network namespace that already has the egress sockets. The
//!   pause container that holds the namespace ends with the server.
//! - Secrets reach the engine only in the create request: never in labels, errors or names.
//! - Only containers with Portcullis's name *and* labels are ever removed.

mod cgroup_check;
mod engine;
mod engine_errors;
mod facts;
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
mod pause_program;
mod podman;
mod profile;
mod pull;
mod reap;
mod running;
mod seccomp;
mod stdio;

pub use engine::sockets;
pub use engine::{AttemptedAddress, Engine, NoEngine};
pub use facts::Version;
pub use image::{IllegalImage, Image};
pub use inspect::{Inspection, Running};
pub use profile::{Deviation, Profile};
pub use pull::Progress;

use crate::{egress_netns, process::LaunchFailure};
use portcullis_guard::Rules;

/// Labels of Portcullis's containers and of packed images.
pub mod label {
    pub use portcullis_guard::label::{GUARD, HOLDS, INSTANCE, OWNER, PROFILE, SERVER};

    /// On images: digest of the packed program.
    pub const PACKED: &str = "dev.portcullis.packed";
}

/// Rules of a guard with that name before its operator allows more: what [`Profile`] makes of a
/// server with default settings.
pub fn guard_rules(name: &str) -> Rules {
    let mut rules = Rules::new(name, portcullis_syscalls::container_profile(), egress_netns::NET);
    rules.holders = pause_container::LAYERS.iter().cloned().collect();
    rules
}

/// Failure of a request to the engine.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the container engine did not {action}: {why}")]
pub struct Fault {
    pub action: &'static str,
    pub why: String,
}

impl Fault {
    fn of(action: &'static str) -> impl Fn(bollard::errors::Error) -> Self {
        move |error| Self { action, why: engine_errors::words(&error) }
    }
}

fn failure(what: impl Into<String>, remedy: impl Into<String>) -> LaunchFailure {
    LaunchFailure { what: what.into(), remedy: Some(remedy.into()) }
}
