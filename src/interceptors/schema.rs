//! schema

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Settings of `schema`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Config {
    /// Check arguments against `inputSchema`.
    pub arguments: bool,
    /// Check structured results against `outputSchema`.
    pub results: bool,
    /// What happens to calls of a tool whose schema is missing, invalid, too complex or refers
    /// beyond itself.
    pub unusable: Unusable,
}

impl Default for Config {
    fn default() -> Self {
        Self { arguments: true, results: true, unusable: Unusable::Refuse }
    }
}

/// What becomes of a call that no schema can vouch for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Unusable {
    /// Refuse with `server-misbehaved`.
    #[default]
    Refuse,
    /// Let it pass unchecked, with a finding.
    Pass,
}
