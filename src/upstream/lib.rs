//! Servers: how they are started, called, watched and ended.
//!
//! # Invariants
//! - A server that hangs, dies, floods or lies affects only its own calls: every queue to and from
//!   it is bounded, every wait has a deadline, and its failure is a [`CallError`] of that call.

mod batch;
mod breaker;
mod change_subscription;
mod coalesce;
pub mod config;
mod deadline;
mod discovery;
mod discovery_cache;
mod drain;
mod engine_handle;
mod event;
mod handshake;
mod health;
mod http;
pub mod images;
mod instance;
mod instance_key;
mod launcher;
mod message_sink;
mod multiplexer;
mod orphans;
mod pending_requests;
mod server_secrets;
mod stderr_log;
mod stdio;
mod transport;

mod image_signatures;
mod launch;
mod maintenance;
mod resource_watches;
mod running;
mod server;
mod signature_cache;
mod warm_pool;

pub use deadline::{Deadline, PauseGuard};
pub use discovery::{Items, List, ListKind, Notices};
pub use discovery_cache::{KNOWN_FOLDER, kept_tools};
pub use engine_handle::Engines;
pub use event::{
    DeliveryMethod, LaunchDenied, LaunchRequest, LaunchReview, Program, Pulling, SecretDelivery,
    ServerEvent, Started,
};
pub use handshake::{Handshake, claims};
pub use image_signatures::{SignatureVerifier, SignedBy};
pub use images::{Images, Pinned};
pub use instance::Instance;
pub use instance_key::{InstanceKey, InstanceOwner};
pub use launcher::{Launcher, Placement};
pub use orphans::Orphans;
pub use running::Running;
pub use server::{InstanceStatus, RestartReport, RotationReport, Server, Status};
pub use server_secrets::{
    DeliveredSecret, LoadedSecrets, RegisterForRedaction, ReloadScope, SecretBroker, SecretError,
    SecretHolder, SecretScope, SecretSet,
};
pub use stderr_log::Scrub;
pub use transport::{Call, CallError, Reply, ServerMessage, ServerTransport, UnroutedMessage};
