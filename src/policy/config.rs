//! Section `[policy]` of the config, and claims about the tools of a server.

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Location of the Cedar policies.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Policy {
    /// Files and folders. In a folder, `*.cedar` and `*.tools.json` files are read; subfolders are
    /// not.
    pub paths: Vec<PathBuf>,
    /// Folder that `portcullis policy bundle sign` signed, instead of `paths`. If the content
    /// differs from what was signed, no policy is loaded from it.
    pub bundle: Option<PathBuf>,
    /// Verifier keys, `NAME+HASH+BASE64`, as `portcullis policy bundle key` prints them. One of
    /// them must have signed the bundle, and the name of the bundle must be the name of that key.
    pub bundle_keys: Vec<String>,
}

impl Default for Policy {
    fn default() -> Self {
        Self { paths: vec!["policies".into()], bundle: None, bundle_keys: Vec::new() }
    }
}

/// Claims about a tool that replace all claims of the server (`resource.claims` in policies, then
/// with `by == "operator"`). Absent keys have the default of MCP: not read-only, destructive unless
/// read-only, not idempotent, open world.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Tool {
    /// The tool changes nothing.
    pub read_only: Option<bool>,
    /// The tool can make destructive changes.
    pub destructive: Option<bool>,
    /// A repeated call with the same arguments has no further effect.
    pub idempotent: Option<bool>,
    /// The tool interacts with an open world, such as the web, mail or other people.
    pub open_world: Option<bool>,
}
