//! The operator's way into a running proxy: HTTP over `admin.sock` in the state folder.
//!
//! - The socket is the user's alone (mode 0600, in a folder of mode 0700), and each peer's user id
//!   is asked of the system: the proxy's own user and root are let in, nobody else.
//! - [`Server`] serves any [`axum::Router`]: [`audit_routes`] is this room's, others are merged
//!   with it where the proxy is assembled. Handlers that need to know who asks take
//!   `ConnectInfo<Peer>`.
//! - Errors are [`Problem`]s, on both ends.

mod audit;
mod client;
mod problem;
mod proxy;
mod socket;
#[cfg(test)]
mod tests;

pub use audit::{TailLine, TailRequest, routes as audit_routes};
pub use client::{Client, Failure, Lines};
pub use problem::Problem;
pub use proxy::routes as proxy_routes;
pub use socket::{Address, BindFailure, Peer, SOCKET, Server};
