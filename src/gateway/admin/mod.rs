//! The operator's access to a running proxy: HTTP over `admin.sock` in the state folder.
//!
//! - Only the owner can use that socket (mode 0600, in a folder of mode 0700). With `admin.socket`
//!   in the config there is a second socket, for users with a role.
//! - [`Server`] serves any [`axum::Router`]: [`audit_routes`] belongs to this module, and the
//!   caller merges the others. Handlers that need the peer take `ConnectInfo<Peer>`.
//! - Errors are [`Problem`]s, on both ends.
//!
//! # Invariants
//! - The kernel provides each peer's user and group.
//! - Responses contain only what the peer's roles allow (`authorize`): root and the proxy's own
//!   user may do everything, others what `admin.roles` lists.
//! - Refusals and readers of records are on record.

mod approvals;
mod audit;
mod authorize;
mod client;
mod clients;
mod images;
mod maintenance;
mod orphans;
mod problem;
mod proof;
mod proxy;
mod socket;
mod stop;
#[cfg(test)]
mod tests;

pub use approvals::{ResolveRequest, routes as approval_routes};
pub use audit::{TailLine, TailRequest, routes as audit_routes};
pub use authorize::Recorder;
pub use client::{Client, Failure, Lines};
pub use clients::{ClientChange, routes as client_routes};
pub use images::routes as image_routes;
pub use maintenance::{BackupRequest, PruneRequest, routes as keeping_routes};
pub use orphans::routes as leftover_routes;
pub use problem::Problem;
pub use proof::{ConsistencyRequest, ProveRequest, VerifyRequest, routes as proof_routes};
pub use proxy::routes as proxy_routes;
pub use socket::{Address, BindFailure, Peer, SOCKET, Server};
pub use stop::{Stopping, routes as stop_routes};
