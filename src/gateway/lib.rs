//! The gateway: takes messages of clients, decides them, and passes them on to servers.
//!
//! `front` accepts clients, `session` keeps what a client of an older revision said, `router` finds
//! the server of a message, `proxy` takes a message through all stages, `approval` asks people and
//! `admin` serves operators.

pub mod admin;
pub mod approval;
pub mod front;
pub mod proxy;
pub mod router;
pub mod session;
