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

/// Labels of containers. Portcullis has them from here.
pub mod label {
    /// The instance of the proxy that launched it.
    pub const INSTANCE: &str = "dev.portcullis.instance";
    /// The server, by the operator's name.
    pub const SERVER: &str = "dev.portcullis.server";
    /// The hash of the profile that it was made from.
    pub const PROFILE: &str = "dev.portcullis.profile";
    /// The process that launched it.
    pub const OWNER: &str = "dev.portcullis.owner";
    /// The guard through which it was created, by the name of its [`Rules`](crate::Rules). Empty
    /// without a guard.
    pub const GUARD: &str = "dev.portcullis.guard";
    /// On a container that holds a network namespace: the name of the one that is to join it.
    pub const HOLDS: &str = "dev.portcullis.holds";
    /// The name that the guard created it by, which the labels of an image cannot know.
    pub const CONTAINER: &str = "dev.portcullis.container";
}

/// When a container is asked whether it can still start a process. All of it is named in the request,
/// and nothing is zero: what is not named, the engine takes from the image.
pub mod health {
    /// Nanoseconds from one question to the next.
    pub const INTERVAL: i64 = 30_000_000_000;
    /// Nanoseconds for the answer.
    pub const TIMEOUT: i64 = 5_000_000_000;
    /// Questions without an answer until it counts as unwell.
    pub const RETRIES: i64 = 3;
    /// Nanoseconds at its start for which an image may name another interval: as few as there can be.
    pub const START_PERIOD: i64 = 1_000_000;
}

/// What the names of Portcullis' containers begin with.
pub const NAME: &str = "portcullis-";
/// What the names of packed images begin with.
pub const PACKED: &str = "portcullis.invalid/packed/";
