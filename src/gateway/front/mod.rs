//! Transports for clients: bytes, headers and streams.
//!
//! # Invariants
//! - Policy decisions are made elsewhere.

mod batch;
mod connection;
pub mod http;
mod in_flight;
mod rest;
mod revision;
pub mod stdio;

use std::time::Duration;

/// Time for requests in flight to end when a transport closes.
const DRAIN: Duration = Duration::from_secs(10);
