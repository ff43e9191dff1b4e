//! What the operator sees of a running proxy beside the audit log: logs on standard error and
//! metrics.
//!
//! INVARIANTS: neither logs nor metrics hold arguments, results or secrets. Nothing that a client
//! or a server writes can forge a log line or grow the metrics without bound.

mod config;
mod logs;
mod metrics;

pub use config::{LogFormat, Telemetry};
pub use logs::{IllegalFilter, init};
pub use metrics::{ActiveRequest, CONTENT_TYPE, Metrics, Outcome, ToolCall};
