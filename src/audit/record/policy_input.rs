//! What policies were shown of a message beside what is on record anyway: with it, a decision can be
//! made again under other policies.

use std::collections::BTreeSet;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    from_exchange::{LABELS, Ruling},
    limits::{LABEL, bare_uri, bound},
};
use portcullis_protocol::arguments;
use portcullis_protocol::claims::Claims;
use portcullis_protocol::exchange::{Exchange, Target};

/// What policies were shown beside the rest of the record.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PolicyInput {
    /// What was claimed of the tool.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub claims: Option<Claimed>,
    /// Calls made in the session before.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub session_calls: u64,
    /// Labels that there were when policies decided.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub labels: BTreeSet<String>,
    /// What policies saw otherwise than it is on record: `groups`, `labels`, `method`, `target`,
    /// cut or without what may be secret; `arguments`, which were more than policies are shown.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub lacks: BTreeSet<Omission>,
}

/// What is claimed of a tool.
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
    /// `server` or `operator`.
    pub by: String,
}

/// What a record can lack.
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

impl PolicyInput {
    /// What policies were shown of this exchange. `groups` is how many of its groups are on record.
    pub(super) fn of(exchange: &Exchange, ruling: Ruling<'_>, groups: usize) -> Self {
        let claims = match &exchange.target {
            Target::Tool { tool, .. } => {
                Some(tool.as_deref().map(Claims::from).unwrap_or_default())
            }
            _ => None,
        };
        let labels = ruling.labels.unwrap_or(&exchange.labels);
        let cut_uri = match &exchange.target {
            Target::Resource { uri } => bare_uri(uri) != *uri,
            _ => false,
        };
        let request = &exchange.request;
        let lacks = [
            (!arguments::are_showable(request.value(), request.raw()), Omission::Arguments),
            (exchange.principal.groups.len() > groups, Omission::Groups),
            (labels.len() > LABELS, Omission::Labels),
            (cut_uri, Omission::Target),
        ];
        Self {
            claims: claims.map(Claimed::from),
            session_calls: exchange.session_calls,
            labels: labels.iter().take(LABELS).map(|label| bound(label, LABEL)).collect(),
            lacks: lacks.into_iter().filter_map(|(lacks, what)| lacks.then_some(what)).collect(),
        }
    }
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
