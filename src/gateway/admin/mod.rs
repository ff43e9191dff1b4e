//! The operator's way into a running proxy: HTTP over `admin.sock` in the state folder.
//!
//! - That socket is its owner's alone (mode 0600, in a folder of mode 0700). Where the config says
//!   `admin.socket` there is a second one, a door for those who have a role. Each peer's user and
//!   group are asked of the kernel.
//! - Nothing is answered that the peer's roles do not allow (`guard`): root and the proxy's own
//!   user may do everything, others what `admin.roles` names. Refusals, and who reads records, are
//!   on record.
//! - [`Server`] serves any [`axum::Router`]: [`audit_routes`] is this room's, others are merged
//!   with it where the proxy is assembled. Handlers that need to know who asks take
//!   `ConnectInfo<Peer>`.
//! - Errors are [`Problem`]s, on both ends.

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
