//! The whole egress proxy: real sockets, real programs, and all known ways around it.

#![allow(clippy::unwrap_used)]

mod any_bytes;
mod hellos;
mod limits;
mod programs;
mod refusals;
mod retries;
mod support;
