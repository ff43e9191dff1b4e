//! The section `[telemetry]` of the config.

use portcullis_protocol::names::ClientName;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Logs and metrics.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Telemetry {
    pub log_format: LogFormat,
    /// A filter such as `info` or `portcullis=debug`. `PORTCULLIS_LOG` overrides it.
    pub log: Option<String>,
    /// Clients that may read `/metrics` over TCP, each with its key as a bearer token (`portcullis
    /// client add prometheus`). None by default: then only the local socket serves it.
    pub metrics_clients: Vec<ClientName>,
}

/// How log lines are written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum LogFormat {
    /// JSON unless standard error is a terminal.
    #[default]
    Auto,
    Text,
    Json,
}
