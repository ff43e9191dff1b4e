//! Policy input that the rest of a record does not contain, so that a replay can decide the message
//! again under other policies.

use std::collections::BTreeSet;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use portcullis_protocol::claims::Claims;

/// Policy input that the rest of the record does not contain.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PolicyInput {
    /// Claims about the tool.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub claims: Option<Claimed>,
    /// Number of earlier calls in the session.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub session_calls: u64,
    /// Labels at the time of the decision.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub labels: BTreeSet<String>,
    /// Values that are recorded incompletely or that policies did not get. `groups`, `labels`,
    /// `method`, `target`: truncated or redacted in the record. `arguments`: too large for
    /// policies.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub lacks: BTreeSet<Omission>,
}

/// Claims about a tool.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Claimed {
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub read_only: bool,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub destructive: bool,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub idempotent: bool,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub open_world: bool,
    /// Author of the claims: `server` or `operator`.
    pub by: String,
}

/// Value that a record can lack.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "kebab-case")]
pub enum Omission {
    Arguments,
    Groups,
    Labels,
    Method,
    Target,
}

fn is_zero(count: &u64) -> bool {
    *count == 0
}

impl From<Claims> for Claimed {
    fn from(claims: Claims) -> Self {
        Self {
            read_only: claims.read_only,
            destructive: claims.destructive,
            idempotent: claims.idempotent,
            open_world: claims.open_world,
            by: claims.by.as_str().to_owned(),
        }
    }
}
