//! The audit log under abrupt stops, full disks, damage, other processes and concurrent producers;
//! and the data that it must never contain.

#![expect(clippy::unwrap_used, reason = "a test that panics has failed")]

mod clock;
mod command;
mod common;
mod crash;
mod maintenance;
mod paging;
mod queries;
mod query_properties;
mod recovery;
mod secrecy;
mod store;
mod tampering;
mod tree;
mod witnesses;
