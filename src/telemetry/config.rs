//! The section `[telemetry]` of the config.

use portcullis_protocol::names::ClientName;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Logs and metrics.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Telemetry {
    pub log_format: LogFormat,
    /// Log filter, such as `info` or `portcullis=debug`. `PORTCULLIS_LOG` overrides it.
    pub log: Option<String>,
    /// Clients that may read `/metrics` over TCP, with their key as a bearer token (`portcullis
    /// client add prometheus`). Default: none; only the local socket serves `/metrics`.
    pub metrics_clients: Vec<ClientName>,
}

/// Format of log lines.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum LogFormat {
    /// Text if standard error is a terminal, else JSON.
    #[default]
    Auto,
    Text,
    Json,
}
