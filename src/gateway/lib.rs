//! The gateway: receives messages of clients, decides about them, and forwards them to servers.
//!
//! In the order of a message's path:
//! - `front` accepts clients over HTTP and standard input, `session` keeps the state of clients of
//!   older revisions, and `admission` limits what each principal may have in flight.
//! - `pipeline` takes a message through all stages, from its client to its response; its page lists
//!   them. `stages` has the stages that messages of clients and servers share: the chain,
//!   obligations, approval. `router` finds a message's server, and `upstream_call` makes a call.
//! - `server_requests` sends requests of servers to clients, `subscriptions` notifications of
//!   changes, and `tasks` keeps the owners of servers' tasks.
//!
//! Beside the path:
//! - `servers` handles events and replacement of servers, `clients` records connected clients, and
//!   `plugins` checks what policies grant plugins.
//! - `recorder` writes the audit log.
//! - `approval` keeps calls that wait for a person, and `admin` serves operators.
//! - `builder` makes a `Gateway` from a config.
//!
//! The modules document their invariants.

pub mod admin;
mod admission;
mod app_uris;
pub mod approval;
mod builder;
mod client_network;
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
pub use builder::{GatewayBuilder, Purpose, StartFailure, interceptor};
pub use clients::Clients;
pub use file_watcher::Files;
pub use gateway::Gateway;
pub use pipeline::{ExchangeHandle, ExchangeResponse, ExchangeWork};
pub use plugins::{BoxedDiagnostic, PluginSecrets, artifacts, permits, ungranted};
pub use recorder::{
    Recorder, prune_offline, pull_outcome, record_client_offline, record_images_offline,
    record_offline, record_start_failure,
};
pub use servers::Servers;
pub use stages::{CLIENT_CHANGED, Caller};
