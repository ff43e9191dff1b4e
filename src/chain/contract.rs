//! Contract of an interceptor. It gets an exchange that it cannot change and returns a verdict.
//! Only the chain executes verdicts, so an interceptor in `audit` mode cannot have an effect.

use std::collections::BTreeSet;

use async_trait::async_trait;
use bytes::Bytes;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use portcullis_protocol::{
    exchange::{Exchange, Finding, Method, Phase},
    refusal::{Refusal, Rule},
};

/// Whether verdicts have an effect (after SEP-2624).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// A refusal refuses, a replacement replaces.
    #[default]
    Enforce,
    /// Verdicts are computed and recorded, and change nothing.
    Audit,
    /// Not in the chain: it sees no message.
    Off,
}

/// Events and a phase that an interceptor inspects.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Hook {
    /// Methods, or `*` for all.
    pub events: Vec<String>,
    pub phase: Phase,
}

/// All hooks of an interceptor.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Hooks(pub Vec<Hook>);

impl Hooks {
    /// All events in these phases.
    pub fn every(phases: &[Phase]) -> Self {
        Self(phases.iter().map(|&phase| Hook { events: vec!["*".into()], phase }).collect())
    }

    /// These events in one phase.
    pub fn on(events: &[&str], phase: Phase) -> Self {
        Self(vec![Hook { events: events.iter().map(|e| (*e).to_owned()).collect(), phase }])
    }

    /// These hooks and others.
    pub fn and(mut self, others: Hooks) -> Self {
        self.0.extend(others.0);
        self
    }

    /// Whether the interceptor inspects this method and phase.
    pub fn wants(&self, method: &Method, phase: Phase) -> bool {
        self.0.iter().any(|hook| {
            hook.phase == phase && hook.events.iter().any(|e| e == "*" || e == method.as_str())
        })
    }
}

/// Decision of an interceptor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    Pass,
    /// Replace `params`, `result` or `error` by this JSON text.
    Replace(Bytes),
    Refuse(Refusal),
}

/// Answer of an interceptor about a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    pub decision: Decision,
    /// Rules that permitted the message, for the record.
    pub rules: Vec<Rule>,
    /// Revision of the policies that decided, if policies did.
    pub revision: Option<String>,
    pub findings: Vec<Finding>,
    /// Labels for the rest of the exchange.
    pub labels: BTreeSet<String>,
}

impl Verdict {
    /// Verdict that passes the message.
    pub fn pass() -> Self {
        Self::of(Decision::Pass)
    }

    /// Verdict with only a refusal.
    pub fn refuse(refusal: Refusal) -> Self {
        Self::of(Decision::Refuse(refusal))
    }

    /// Verdict with only a replacement.
    pub fn replace(raw: Bytes) -> Self {
        Self::of(Decision::Replace(raw))
    }

    fn of(decision: Decision) -> Self {
        Self {
            decision,
            rules: Vec::new(),
            revision: None,
            findings: Vec::new(),
            labels: BTreeSet::new(),
        }
    }

    /// Adds the revision of the policies that decided.
    pub fn by(mut self, revision: impl ToString) -> Self {
        self.revision = Some(revision.to_string());
        self
    }

    /// Adds a finding.
    pub fn finding(mut self, finding: Finding) -> Self {
        self.findings.push(finding);
        self
    }
}

/// Failure of an interceptor. The chain refuses with `interceptor-fault`, or passes the message if
/// the operator set `fail-open = true`. The text is for the operator.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Fault(pub String);

/// Member of the chain.
#[async_trait]
pub trait Interceptor: Send + Sync {
    /// Name in findings, records and refusals: the config's `name`, or its `use`.
    fn name(&self) -> &str;

    /// Whether it inspects this method and phase.
    fn wants(&self, method: &Method, phase: Phase) -> bool;

    /// Whether it can inspect a message again after another interceptor replaced it. An interceptor
    /// that counts messages inspects each once.
    fn repeatable(&self) -> bool {
        true
    }

    /// Whether its decision depends on the exchange's labels, so that it must inspect a message
    /// again after another interceptor added labels.
    fn reads_labels(&self) -> bool {
        false
    }

    /// Verdict on one half of an exchange.
    ///
    /// # Errors
    /// A [`Fault`] if no verdict was reached.
    async fn inspect(&self, exchange: &Exchange, phase: Phase) -> Result<Verdict, Fault>;
}
