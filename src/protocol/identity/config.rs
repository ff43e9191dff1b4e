//! The section `[clients]` of the config.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::names::Group;

/// Client with a key.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Client {
    /// `sha256:` and the SHA-256 of the key in hex, as `portcullis client add` prints it.
    pub key_hash: String,
    /// Groups for policies: `principal in Portcullis::Group::"NAME"`.
    #[serde(default)]
    pub groups: Vec<Group>,
}
