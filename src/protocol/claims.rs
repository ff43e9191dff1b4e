//! Claims about tools and images that policies match.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::exchange::Definition;

/// Attestation of an image by a signer of the config.
#[derive(
    Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(deny_unknown_fields)]
pub struct Attested {
    /// Name of the signer in the config.
    pub by: String,
    /// Predicate type of in-toto: a URI.
    #[serde(rename = "type")]
    pub of_type: String,
}

/// Claims about a tool. Never trusted, only matched.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Claims {
    pub read_only: bool,
    pub destructive: bool,
    pub idempotent: bool,
    pub open_world: bool,
    pub by: Claimant,
}

/// Author of the claims.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Claimant {
    Server,
    /// The operator, in the config.
    Operator,
}

impl Claimant {
    /// Text that policies see.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Server => "server",
            Self::Operator => "operator",
        }
    }
}

impl Claims {
    /// Claims from these hints (`readOnlyHint` and so on), with MCP's documented defaults for
    /// missing ones (schema of revision 2025-11-25, `ToolAnnotations`). `destructiveHint` is
    /// meaningful only if the tool is not read-only, so its default of `true` applies only then; an
    /// explicit `true` always counts.
    pub fn from_hints(hint: impl Fn(&str) -> Option<bool>) -> Self {
        let read_only = hint("readOnlyHint").unwrap_or(false);
        Self {
            read_only,
            destructive: hint("destructiveHint").unwrap_or(!read_only),
            idempotent: hint("idempotentHint").unwrap_or(false),
            open_world: hint("openWorldHint").unwrap_or(true),
            by: Claimant::Server,
        }
    }
}

impl Default for Claims {
    /// Claims of a tool without annotations.
    fn default() -> Self {
        Self::from_hints(|_| None)
    }
}

impl From<&Definition> for Claims {
    fn from(tool: &Definition) -> Self {
        Self::from_hints(|name| tool.hint(name))
    }
}
