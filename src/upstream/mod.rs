//! Servers: how one is started, spoken to, watched and ended.
//!
//! INVARIANT: what a server does (hang, die, flood, lie) ends at its own calls: every queue to and
//! from it is bounded, every wait has a deadline, and its failure is a [`Failure`] of that call.

mod definitions;
mod greeting;
mod http;
mod launcher;
mod link;
mod log;
mod pipe;
pub mod process;
mod server;

pub use definitions::{Items, List, Notices, Offer};
pub use greeting::Greeting;
pub use launcher::{Handed, Launcher, Place};
pub use link::{Call, Failure, Link, Notice, Reply, Unsolicited};
pub use log::Scrub;
pub use server::{Event, Running, Server, Status};
