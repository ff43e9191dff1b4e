//! A filter in front of a container engine's API: it passes the calls that Portcullis makes, for
//! the containers that Portcullis may have, and nothing else.
//!
//! The engine's socket is root on its machine. A process that holds the guard's socket instead can
//! start only containers that are as confined as [`Rules`] require, and can act on those only.
//!
//! # Invariants
//! - A request is never forwarded: it is parsed into a [`Call`](route::Call), and an allowed call
//!   becomes a new request of known values only. Anything that two readers could read differently
//!   (paths, duplicate keys, case of keys, two lengths) does not reach the engine.
//! - A container is created from what [`create`] has parsed and checked, written again.
//! - Nothing is done to a container that this guard did not create. No container joins a namespace
//!   of another, except the network namespace of a holder that the same client had created for it
//!   only.
//! - A container ends with the connection that is attached to it. None outlives its proxy or the
//!   guard; after a killed guard, its next start removes them. A failed removal is tried again.
//! - Bodies, headers, connections, containers and times are bounded.

mod archive;
mod body;
mod call;
mod create;
mod engine;
mod lease;
mod peer;
mod refusal;
mod route;
mod rules;
mod serve;
mod tunnel;

pub use engine::{Fault, version};
pub use refusal::{Code, Refusal};
pub use rules::{Allow, MountRule, Rules};
pub use serve::Guard;

/// Labels of containers, which Portcullis sets too.
pub mod label {
    /// Instance of the proxy that launched it.
    pub const INSTANCE: &str = "dev.portcullis.instance";
    /// Server's name in the config.
    pub const SERVER: &str = "dev.portcullis.server";
    /// Hash of the profile that it was created from.
    pub const PROFILE: &str = "dev.portcullis.profile";
    /// Process that launched it.
    pub const OWNER: &str = "dev.portcullis.owner";
    /// Guard that created it, by the name of its [`Rules`](crate::Rules). Empty without a guard.
    pub const GUARD: &str = "dev.portcullis.guard";
    /// On a pause container: name of the container that is to join it.
    pub const HOLDS: &str = "dev.portcullis.holds";
    /// Name that the guard created it with, which labels of an image cannot know.
    pub const CONTAINER: &str = "dev.portcullis.container";
}

/// Times of the health check that a container can still start a process. All are set and none is
/// zero, because the engine takes unset ones from the image.
pub mod health {
    /// Nanoseconds between two checks.
    pub const INTERVAL: i64 = 30_000_000_000;
    /// Time limit of a check in nanoseconds.
    pub const TIMEOUT: i64 = 5_000_000_000;
    /// Number of failed checks until the container counts as unhealthy.
    pub const RETRIES: i64 = 3;
    /// Nanoseconds at the start for which an image could set another interval: the minimum.
    pub const START_PERIOD: i64 = 1_000_000;
}

/// Prefix of the names of Portcullis's containers.
pub const NAME: &str = "portcullis-";
/// Prefix of the names of packed images.
pub const PACKED: &str = "portcullis.invalid/packed/";
