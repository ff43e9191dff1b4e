//! The gateway: receives messages of clients, decides them, and forwards them to servers.
//!
//! In the order in which a message meets them:
//! - `front` accepts clients over HTTP and standard input, `session` keeps the state of clients of
//!   older revisions, and `admission` bounds what each principal may have in flight.
//! - `pipeline` takes a message through all stages, from its client to its answer: its page shows them.
//!   `stages` are those of every message, whoever sent it: the chain, obligations, approval. `router`
//!   finds the server of a message, and `upstream_call` is a call at it.
//! - `server_requests` sends requests of servers to clients, `subscriptions` notifications of changes,
//!   and `tasks` knows whose a server's task is.
//!
//! Beside them:
//! - `servers` has what becomes of servers, and what takes their places, `clients` those who are here,
//!   and `plugins` what policies grant plugins.
//! - `recorder` writes all of it to the audit log.
//! - `approval` has calls that wait for a person, and `admin` serves operators.
//! - `builder` makes a `Gateway` of a config.
//!
//! The invariants are in the modules.

pub mod admin;
mod admission;
pub mod approval;
mod builder;
mod clients;
mod file_watcher;
pub mod front;
mod gateway;
mod pipeline;
mod plugins;
mod recorder;
pub mod router;
mod server_requests;
mod servers;
pub mod session;
mod stages;
mod subscriptions;
mod tasks;
mod upstream_call;

pub use admission::{Admission, ConcurrencyPermit, Incoming};
pub use builder::{BoxedDiagnostic, GatewayBuilder, Purpose, StartFailure, interceptor};
pub use clients::{CLIENT_CHANGED, Clients};
pub use file_watcher::Files;
pub use gateway::Gateway;
pub use pipeline::{ExchangeHandle, ExchangeResponse};
pub use plugins::{PluginSecrets, artifacts, permits, ungranted};
pub use recorder::{
    Recorder, prune_offline, pull_outcome, record_client_offline, record_images_offline,
    record_offline, record_start_failure,
};
pub use servers::Servers;
pub use stages::Caller;
