//! Logs on standard error and metrics of a running proxy.
//!
//! # Invariants
//!
//! - Neither logs nor metrics contain arguments, results or secrets.
//! - Text of a client or a server cannot forge a log line or grow the metrics without limit.

mod config;
mod logs;
mod metrics;

pub use config::{LogFormat, Telemetry};
pub use logs::{IllegalFilter, init};
pub use metrics::{ActiveRequest, CONTENT_TYPE, Metrics, Outcome, ToolCall};
