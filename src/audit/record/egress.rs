//! What servers reach through the proxy's own end, as records of kind `event` have it: version 1.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Rule;
use portcullis_protocol::names::DecisionId;

/// A connection that a server is about to have.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct EgressConnecting {
    /// As in its `server-launching`.
    #[schemars(with = "String", extend("format" = "uuid"))]
    pub launch: DecisionId,
    pub server: String,
    /// The one client for which alone the server runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub principal: Option<String>,
    /// Which one of that launch.
    pub connection: u64,
    pub host: String,
    pub port: u16,
    /// How it asked: `connect`, `http`, `socks5`, or `direct`, as if the host were there.
    pub protocol: String,
    /// The policies that permit it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rules: Vec<Rule>,
    /// The revision of the policies that decided.
    pub policy_revision: String,
}

/// What became of a connection that a server wanted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct EgressClosed {
    /// As in its `server-launching`.
    #[schemars(with = "String", extend("format" = "uuid"))]
    pub launch: DecisionId,
    pub server: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub principal: Option<String>,
    /// As in its `egress-connecting`, where there was one. This and what is asked for are absent where it
    /// could not be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connection: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protocol: Option<String>,
    /// The address and port that it led to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    /// Bytes from the server.
    pub up: u64,
    /// Bytes to it.
    pub down: u64,
    /// Microseconds that it took.
    pub took_us: u64,
    pub end: EgressEnd,
    /// Why it was refused or ended, in one word.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<String>,
    /// The same in words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The policies that forbid it; none where nothing permits it, or something else refused it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rules: Vec<Rule>,
    /// The revision of the policies that forbid it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy_revision: Option<String>,
}

/// How a connection ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum EgressEnd {
    /// It was not allowed, came to nothing, or went on in a way that is not allowed.
    Refused,
    /// Both sides had said all.
    Closed,
    /// One of the sides broke off.
    Broken,
    /// Nothing was said for too long.
    Idle,
    /// Policies came to forbid it.
    Revoked,
    /// The server was stopped.
    Stopped,
}
