//! Servers in containers: the engine, the hardened default profile, images, and the way a process
//! in a container is started, watched, ended and cleaned away.
//!
//! Invariants:
//! - A container is made from a [`Profile`] and nothing else; an image's labels, user, health check
//!   and volumes never shape the run.
//! - A launch that fails or is given up leaves no container, and a dropped process leaves none.
//! - Secrets go to the engine in the create request alone: never into labels, errors or names.
//! - Only containers with our name *and* our labels are ever removed.

mod engine;
mod handle;
mod image;
mod inspect;
mod launch;
pub(crate) mod mounts;
mod namespace;
mod owner;
mod pack;
mod profile;
mod reap;
mod seccomp;
mod streams;

pub use engine::{Engine, NoEngine, Tried, Version};
pub use image::{IllegalImage, Image};
pub use inspect::{Inspection, Running};
pub use profile::{Deviation, Profile};

use crate::upstream::process::LaunchFailure;

/// Labels of our containers.
pub mod label {
    /// The instance of the proxy that launched it.
    pub const INSTANCE: &str = "dev.portcullis.instance";
    /// The server, by the operator's name.
    pub const SERVER: &str = "dev.portcullis.server";
    /// The hash of the profile that it was made from.
    pub const PROFILE: &str = "dev.portcullis.profile";
    /// The process that launched it; a container whose owner is gone is an orphan.
    pub const OWNER: &str = "dev.portcullis.owner";
    /// On images: a digest of the packed program.
    pub const PACKED: &str = "dev.portcullis.packed";
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
