//! secrets

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{names::ServerName, vault::Secret};

/// Settings of `secrets`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Config {
    /// What happens to a secret in a request, unless its rule says otherwise.
    pub request: Action,
    /// What happens to a secret in an answer, unless its rule says otherwise.
    pub response: Action,
    /// What happens to the secrets of single rules, by the rule's id, in both phases. `vault`
    /// stands for all secrets that the proxy hands to servers.
    pub rules: BTreeMap<String, Action>,
    /// Bytes of text that are scanned in one message. A longer message is a fault.
    pub max_bytes: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            request: Action::Refuse,
            response: Action::Redact,
            rules: BTreeMap::new(),
            max_bytes: 64 << 20,
        }
    }
}

/// What happens to a secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Action {
    /// Refuse the message with `secret-found`.
    Refuse,
    /// Put `[redacted:RULE]` in its place.
    Redact,
    /// Let it pass, with a finding.
    Report,
    /// Do not look for it.
    Off,
}

/// A secret that the proxy itself hands to a server.
#[derive(Debug, Clone)]
pub struct Known {
    pub server: ServerName,
    /// The name under which the server gets it.
    pub name: String,
    pub value: Secret,
}
