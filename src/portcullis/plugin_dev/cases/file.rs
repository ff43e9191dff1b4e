//! Format of a case file: YAML. Unknown keys are errors.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    path::PathBuf,
};

use indexmap::IndexMap;
use serde::{Deserialize, Deserializer, de};
use serde_json::{Map, Value};
use serde_saphyr::Spanned;

use portcullis_plugin_host::Grants;
use portcullis_policy_tools::CasePrincipal;

/// Content of a file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Document {
    /// Path of the component, relative to this file.
    pub plugin: Option<Spanned<PathBuf>>,
    /// Config of all cases that have no config.
    pub config: Option<Map<String, Value>>,
    pub grants: Option<Grants>,
    pub secrets: Option<BTreeMap<String, String>>,
    /// Deadline of one verdict, as in the config of the proxy.
    pub deadline_ms: Option<u64>,
    /// Memory of one instance, as in the config of the proxy.
    pub memory_mib: Option<u64>,
    /// Principals, by a name of this file.
    #[serde(default)]
    pub principals: IndexMap<String, Spanned<CasePrincipal>>,
    pub cases: Vec<Spanned<Case>>,
}

/// A case, or one row of its `each` or `steps`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Case {
    pub name: Option<String>,

    // The message.
    #[serde(rename = "as")]
    pub who: Option<Spanned<String>>,
    pub call: Option<Spanned<String>>,
    pub get: Option<Spanned<String>>,
    pub read: Option<Spanned<String>>,
    #[serde(rename = "do")]
    pub method: Option<Spanned<String>>,
    pub on: Option<Spanned<String>>,
    pub args: Option<Map<String, Value>>,
    pub params: Option<Map<String, Value>>,
    pub result: Option<Map<String, Value>>,
    pub text: Option<String>,
    pub error: Option<Map<String, Value>>,
    pub payload: Option<Spanned<String>>,
    pub phase: Option<Spanned<PayloadKind>>,
    pub from: Option<From>,
    pub labels: Option<Vec<String>>,
    pub exchange: Option<String>,
    pub session: Option<String>,

    // The environment of the plugin.
    pub config: Option<Map<String, Value>>,
    pub grants: Option<Grants>,
    pub secrets: Option<BTreeMap<String, String>>,
    pub now: Option<jiff::Timestamp>,
    pub state: Option<Spanned<BTreeMap<String, StateValue>>>,
    pub http: Option<Vec<Reply>>,

    // The expected result.
    pub expect: Option<Spanned<Expect>>,
    pub code: Option<Spanned<String>>,
    pub says: Option<Spanned<String>>,
    pub becomes: Option<Spanned<Map<String, Value>>>,
    pub becomes_text: Option<Spanned<String>>,
    pub becomes_payload: Option<Spanned<String>>,
    pub gives: Option<Spanned<BTreeSet<String>>>,
    pub reports: Option<Spanned<Vec<String>>>,
    pub leaves: Option<Spanned<BTreeMap<String, Option<StateValue>>>>,
    pub counts: Option<Spanned<BTreeMap<String, u64>>>,
    pub logs: Option<Spanned<String>>,

    /// Rows: the case runs once for each, with the values of the row over those of the case.
    pub each: Option<Vec<Spanned<Case>>>,
    /// Messages in order; each finds the state that the earlier ones left.
    pub steps: Option<Vec<Spanned<Case>>>,
}

/// Kind of a payload that is given as text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PayloadKind {
    Request,
    Response,
    Error,
}

/// Sender of the first message of the exchange.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum From {
    Client,
    Server,
}

/// Expected result of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Expect {
    Pass,
    Refuse,
    Replace,
    /// A trap, an error, a missed deadline or an invalid verdict.
    Fault,
    /// The plugin does not start with these settings.
    Unusable,
    /// No hook of the plugin matches the message.
    Unasked,
}

impl Expect {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pass => "pass",
            Self::Refuse => "refuse",
            Self::Replace => "replace",
            Self::Fault => "fault",
            Self::Unusable => "unusable",
            Self::Unasked => "unasked",
        }
    }
}

/// A value of `state`: text, or a whole number for a counter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StateValue(pub String);

impl<'de> Deserialize<'de> for StateValue {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;

        impl de::Visitor<'_> for Visitor {
            type Value = StateValue;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a text, or a whole number for a counter")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<StateValue, E> {
                Ok(StateValue(text.to_owned()))
            }

            fn visit_i64<E: de::Error>(self, number: i64) -> Result<StateValue, E> {
                Ok(StateValue(number.to_string()))
            }

            fn visit_u64<E: de::Error>(self, number: u64) -> Result<StateValue, E> {
                Ok(StateValue(number.to_string()))
            }
        }

        deserializer.deserialize_any(Visitor)
    }
}

/// Reply of a host.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Reply {
    pub url: String,
    #[serde(default = "ok")]
    pub status: u16,
    #[serde(default)]
    pub headers: BTreeMap<String, String>,
    #[serde(default)]
    pub body: String,
}

fn ok() -> u16 {
    200
}
