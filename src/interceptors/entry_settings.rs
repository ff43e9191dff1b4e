//! Keys that every entry of the chain has.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use portcullis_chain::Mode;

/// Keys of every entry of the chain.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct EntrySettings {
    /// Name in records and refusals. Default: the value of `use`.
    pub name: Option<String>,
    pub mode: Mode,
    /// Let a message pass when this interceptor fails.
    pub fail_open: bool,
    /// Timeout of one verdict in milliseconds. Default: 1000.
    #[schemars(range(min = 1))]
    pub deadline_ms: Option<u64>,
    /// Apply only to these methods. The interceptor's own hooks still limit the methods.
    pub events: Option<Vec<String>>,
}
