//! Refusals that have no records of their own.

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What refusals that share a decision id have in common.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub struct RefusalGroup {
    /// The code that each of them has.
    pub code: String,
    /// The client's name, `local:USER` or `anonymous`. Absent where nobody was identified.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub principal: Option<String>,
    /// The server, where a server was refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server: Option<String>,
    /// The address that they came from; of an IPv6 address, its /64.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<String>,
    /// Whether they came from more networks, or from more users of this machine, than are counted
    /// apart.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub others: bool,
}

impl RefusalGroup {
    /// Refusals with this code.
    pub fn of(code: &str) -> Self {
        Self { code: code.to_owned(), ..Self::default() }
    }

    /// The group of this one's refusals where there are too many groups: by the code, the server
    /// and, where it is known, the principal.
    pub fn among_others(self, known: bool) -> Self {
        let principal = self.principal.filter(|_| known);
        Self { principal, network: None, others: true, ..self }
    }
}

/// How many refusals share a decision id.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SummarizedRefusals {
    #[serde(flatten)]
    pub group: RefusalGroup,
    /// How many they are.
    pub count: u64,
    /// When the first of them was refused. The last was before this record.
    #[schemars(with = "String", extend("format" = "date-time"))]
    pub since: Timestamp,
}
