//! The audit log against what it must withstand: abrupt stops, full disks, damage, other
//! processes, many producers; and what must never be found in it.

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
