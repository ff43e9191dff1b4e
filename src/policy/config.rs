//! The section `[policy]` of the config, and what a server's section says of its tools.

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Where the Cedar policies are.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Policy {
    /// Files, and folders whose `*.cedar` and `*.tools.json` files are read (not those in folders
    /// within).
    pub paths: Vec<PathBuf>,
    /// A folder that `portcullis policy bundle sign` signed, instead of `paths`: policies are taken
    /// from it as they were signed, or not at all.
    pub bundle: Option<PathBuf>,
    /// Verifier keys, `NAME+HASH+BASE64`, as `portcullis policy bundle key` prints them. One of them
    /// must have signed the bundle, whose name is the key's.
    pub bundle_keys: Vec<String>,
}

impl Default for Policy {
    fn default() -> Self {
        Self { paths: vec!["policies".into()], bundle: None, bundle_keys: Vec::new() }
    }
}

/// What the operator says of a tool, in the place of all that the server claims of it
/// (`resource.claims` in policies, then with `by == "operator"`). What is left out has MCP's
/// default: not read-only, destructive unless it is read-only, not idempotent, open world.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Tool {
    /// It changes nothing.
    pub read_only: Option<bool>,
    /// It can destroy something.
    pub destructive: Option<bool>,
    /// Calling it again with the same arguments changes nothing more.
    pub idempotent: Option<bool>,
    /// It deals with a world that is open: the web, mail, other people.
    pub open_world: Option<bool>,
}
