//! The gateway: receives messages of clients, decides them, and forwards them to servers.
//!
//! - `front` accepts clients.
//! - `session` keeps the state of clients of older revisions.
//! - `router` finds the server of a message.
//! - `proxy` takes a message through all stages.
//! - `approval` has calls that wait for a person.
//! - `admin` serves operators.
//!
//! The invariants are in the modules.

pub mod admin;
pub mod approval;
pub mod front;
pub mod proxy;
pub mod router;
pub mod session;
