//! Servers behind the proxy: start, calls, supervision and end.
//!
//! [`Server`] has an `InstanceSet` and a `WarmPool`. Components of an [`Instance`]: `Starter`,
//! `Lifecycle`, `Replacement`, `ActiveCalls`, `HealthCheck`, `ResourceWatches`, `SecretRotation`.
//!
//! # Invariants
//! - A server that hangs, dies, floods or lies affects only its own calls: every queue to and from
//!   it is bounded, every wait has a deadline, and its failure is a [`CallError`] of that call.
//! - No component of an instance or a server knows the instance or the server.

mod active_calls;
mod batch;
mod breaker;
mod call_error;
mod change_subscription;
mod coalesce;
pub mod config;
mod deadline;
mod detached_work;
mod discovery;
mod discovery_cache;
mod drain;
mod engine_handle;
mod event;
mod handshake;
mod health;
mod http;
mod image_pull;
mod image_signatures;
pub mod images;
mod instance;
mod instance_key;
mod instance_set;
mod launch;
mod launcher;
mod lifecycle;
mod message_sink;
mod multiplexer;
mod orphans;
mod pending_requests;
mod placement;
mod resource_watches;
mod running;
mod secret_broker;
mod secret_rotation;
mod secret_set;
mod server;
mod server_secrets;
mod server_shared;
mod signature_cache;
mod status;
mod stderr_log;
mod stdio;
mod transport;
mod warm_pool;

pub use call_error::CallError;
pub use deadline::{Deadline, PauseGuard};
pub use discovery::{Items, List, ListKind, ListMembers, Notices};
pub use discovery_cache::{KNOWN_FOLDER, kept_tools};
pub use engine_handle::Engines;
pub use event::{
    LaunchDenied, LaunchRequest, LaunchReview, Pulling, SecretDelivery, ServerEvent, Started,
};
pub use handshake::{Eras, Handshake, claims};
pub use image_signatures::{SignatureVerifier, SignedBy};
pub use images::{Images, Pinned};
pub use instance::Instance;
pub use instance_key::{InstanceKey, InstanceOwner};
pub use launcher::Launcher;
pub use orphans::Orphans;
pub use placement::{Placement, Program};
pub use running::Running;
pub use secret_broker::{RegisterForRedaction, SecretBroker, SecretHolder};
pub use secret_set::{
    DeliveredSecret, DeliveryMethod, LoadedSecrets, ReloadScope, SecretError, SecretScope,
    SecretSet,
};
pub use server::{RestartReport, RotationReport, Server};
pub use status::{InstanceStatus, Status};
pub use stderr_log::Scrub;
pub use transport::{Call, Reply, SendCheck, ServerMessage, ServerTransport, UnroutedMessage};
