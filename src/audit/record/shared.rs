//! Types that records of messages and events share: version 1, as in `v1`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Decision about a message.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema, clap::ValueEnum,
)]
#[serde(rename_all = "kebab-case")]
pub enum Decision {
    /// The message may pass. In an outcome: the message and its response passed.
    Allowed,
    /// The message was refused. In an outcome: its response was refused.
    Refused,
    /// The message was allowed, but the server returned no valid response.
    Failed,
    /// The message was allowed, but its sender cancelled it.
    Cancelled,
}

/// Transport between client and proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Transport {
    Http,
    Unix,
    Stdio,
    Cli,
}

/// Protocol eras.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Era {
    /// Up to 2025-11-25: begins with `initialize`, has sessions.
    Legacy,
    /// From 2026-07-28: stateless.
    Modern,
}

/// Rule: a policy, a pattern of secrets, or an interceptor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Rule {
    /// `@id` of a policy, id of a secret rule, or name of an interceptor.
    pub id: String,
    /// File that contains the rule.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<String>,
    /// First line of the rule, counted from 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub line: Option<u32>,
    /// Reason given by the author of the rule.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Obligations of a policy: `redact`, `approve`, `rate`, `note`, `label`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub asks: Vec<String>,
    /// Whether the rule permitted a message that was refused, or failed, for another reason.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub overruled: bool,
}
