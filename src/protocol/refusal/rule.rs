//! The rule that decided a refusal.

use std::{path::PathBuf, sync::Arc};

use serde::{Deserialize, Serialize};

use crate::obligations::{Keep, Obligations};

/// The rule that decided, for the operator.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rule {
    /// The rule's id: a policy's `@id`, a secret rule's id, an interceptor's name.
    pub id: String,
    /// The file that holds it, as the operator named it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<PathBuf>,
    /// The line on which it begins, from 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub line: Option<u32>,
    /// Its `@reason`, as its author wrote it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The policy's obligations.
    #[serde(skip)]
    pub obligations: Arc<Obligations>,
}

impl Keep {
    /// The union of what these rules keep.
    pub fn of<'a>(rules: impl IntoIterator<Item = &'a Rule>) -> Self {
        rules.into_iter().fold(Self::default(), |all, rule| Self {
            arguments: all.arguments || rule.obligations.keep.arguments,
            result: all.result || rule.obligations.keep.result,
        })
    }
}

impl Rule {
    /// A rule without a file. The chain adds the position of its interceptor in the config.
    pub fn named(id: impl Into<String>) -> Self {
        Self { id: id.into(), file: None, line: None, reason: None, obligations: Arc::default() }
    }
}
