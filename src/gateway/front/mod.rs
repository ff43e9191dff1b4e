//! Where clients connect: everything about bytes, headers and streams.
//!
//! # Invariants
//! - Nothing here is about policy.

mod batch;
mod connection;
pub mod http;
mod in_flight;
mod rest;
pub mod stdio;

use std::time::Duration;

/// How long what is under way may take to end once a front closes.
const DRAIN: Duration = Duration::from_secs(10);
