//! The whole proxy end: real sockets, real programs, and all the ways round it that we know of.

#![allow(clippy::unwrap_used)]

mod any_bytes;
mod hellos;
mod limits;
mod programs;
mod refusals;
mod retries;
mod support;
