//! Events of connections to remote servers, and of servers to hosts of their `egress`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    super::shared::Rule,
    content::{Content, content},
};
use portcullis_protocol::names::DecisionId;

content! {
    /// The proxy itself is about to open connections to a remote server.
    pub struct EgressOpened {
        /// Same value as in its `server-launching`.
        #[schemars(with = "String", extend("format" = "uuid"))]
        pub launch: DecisionId,
        pub server: String,
        /// Client of the dedicated instance for which they are opened.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub principal: Option<String>,
        /// Scheme, host and port of the URL. The path is omitted, because it can contain a secret.
        pub url: String,
        /// Transport: `streamable-http` or `sse`.
        pub protocol: String,
        /// Whether the connections are encrypted.
        pub encrypted: bool,
    }
    summary("server {server}: connects to {url}");

    /// A server is about to be connected to a host of its `egress`. If this cannot be recorded, the
    /// connection is refused. Network connections of a server with `hardening.network` are not
    /// recorded.
    pub struct EgressConnecting {
        /// Same value as in its `server-launching`.
        #[schemars(with = "String", extend("format" = "uuid"))]
        pub launch: DecisionId,
        pub server: String,
        /// Client of the dedicated instance.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub principal: Option<String>,
        /// Number of the connection within the launch.
        pub connection: u64,
        pub host: String,
        pub port: u16,
        /// Protocol of the request: `connect`, `http`, `socks5`, or `direct` for a connection
        /// without a proxy protocol.
        pub protocol: String,
        /// Policies that permit the connection.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        pub rules: Vec<Rule>,
        /// Revision of the policies that decided.
        pub policy_revision: String,
    }
    summary("server {server} is connected to {host}:{port} ({protocol})");

    /// An egress connection of a server ended or was refused.
    pub struct EgressClosed {
        /// Same value as in its `server-launching`.
        #[schemars(with = "String", extend("format" = "uuid"))]
        pub launch: DecisionId,
        pub server: String,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub principal: Option<String>,
        /// Same value as in its `egress-connecting`, if there is one. `connection`, `host`, `port`
        /// and `protocol` are absent if the request could not be parsed.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub connection: Option<u64>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub host: Option<String>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub port: Option<u16>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub protocol: Option<String>,
        /// Address and port of the connection's other end.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub address: Option<String>,
        /// Bytes from the server.
        pub up: u64,
        /// Bytes to the server.
        pub down: u64,
        /// Duration in microseconds.
        pub took_us: u64,
        pub end: EgressEnd,
        /// Code of the reason for the refusal or the end.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub code: Option<String>,
        /// Description of the reason.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub reason: Option<String>,
        /// Policies that forbid the connection. Empty if no policy permits it, or if it was refused
        /// for another reason.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        pub rules: Vec<Rule>,
        /// Revision of the policies that forbid the connection.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub policy_revision: Option<String>,
    }
    summary(
        "server {server}: its connection{}{}",
        match (host, port) {
            (Some(host), Some(port)) => format!(" to {host}:{port}"),
            _ => String::new(),
        },
        match (end, reason) {
            (EgressEnd::Refused, Some(reason)) => format!(" was refused: {reason}"),
            _ => format!(" ended after {up} bytes out and {down} in"),
        }
    );
}

/// End of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum EgressEnd {
    /// The connection was not allowed, failed, or continued in a way that is not allowed.
    Refused,
    /// Both sides closed the connection.
    Closed,
    /// One side aborted the connection.
    Broken,
    /// The connection was idle for too long.
    Idle,
    /// A policy change forbids the connection.
    Revoked,
    /// The server was stopped.
    Stopped,
}

impl Content for EgressEnd {}
