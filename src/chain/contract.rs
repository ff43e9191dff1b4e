//! What an interceptor is. It is shown an exchange that it cannot change and returns a verdict;
//! the chain alone carries verdicts out, so an interceptor in `audit` mode cannot have an effect.

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
    /// It is not in the chain: no message is shown to it.
    Off,
}

/// An event and a phase at which an interceptor wants to be asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Hook {
    /// Methods, or `*` for every one.
    pub events: Vec<String>,
    pub phase: Phase,
}

/// All hooks of an interceptor.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Hooks(pub Vec<Hook>);

impl Hooks {
    /// Every event in these phases.
    pub fn every(phases: &[Phase]) -> Self {
        Self(phases.iter().map(|&phase| Hook { events: vec!["*".into()], phase }).collect())
    }

    /// These events in one phase.
    pub fn on(events: &[&str], phase: Phase) -> Self {
        Self(vec![Hook { events: events.iter().map(|e| (*e).to_owned()).collect(), phase }])
    }

    /// These and others.
    pub fn and(mut self, others: Hooks) -> Self {
        self.0.extend(others.0);
        self
    }

    /// Whether the interceptor wants to see this.
    pub fn wants(&self, method: &Method, phase: Phase) -> bool {
        self.0.iter().any(|hook| {
            hook.phase == phase && hook.events.iter().any(|e| e == "*" || e == method.as_str())
        })
    }
}

/// What an interceptor decides.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    Pass,
    /// Put this JSON text in the place of `params`, `result` or `error`.
    Replace(Bytes),
    Refuse(Refusal),
}

/// What an interceptor says of a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    pub decision: Decision,
    /// Rules that decided for letting it pass (a permit), for the record.
    pub rules: Vec<Rule>,
    /// The revision of the policies that decided, where policies did.
    pub revision: Option<String>,
    pub findings: Vec<Finding>,
    /// Labels for the exchange, from here on.
    pub labels: BTreeSet<String>,
}

impl Verdict {
    /// Nothing to say.
    pub fn pass() -> Self {
        Self::of(Decision::Pass)
    }

    /// A refusal and nothing else.
    pub fn refuse(refusal: Refusal) -> Self {
        Self::of(Decision::Refuse(refusal))
    }

    /// A replacement and nothing else.
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

    /// With the revision of the policies that decided.
    pub fn by(mut self, revision: impl ToString) -> Self {
        self.revision = Some(revision.to_string());
        self
    }

    /// With something seen.
    pub fn finding(mut self, finding: Finding) -> Self {
        self.findings.push(finding);
        self
    }
}

/// An interceptor could not do its work. The chain refuses with `interceptor-fault`, or lets the
/// message pass where the operator wrote `fail-open = true`. The text is for the operator.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Fault(pub String);

/// One member of the chain.
#[async_trait]
pub trait Interceptor: Send + Sync {
    /// The name in findings, records and refusals: the config's `name`, or its `use`.
    fn name(&self) -> &str;

    /// Whether to ask it about this.
    fn wants(&self, method: &Method, phase: Phase) -> bool;

    /// Whether it may be asked again about a message that another interceptor replaced. One that
    /// counts messages is asked once.
    fn repeatable(&self) -> bool {
        true
    }

    /// Whether it decides by the exchange's labels, so that it is asked again about a message that
    /// another interceptor labelled afterwards.
    fn reads_labels(&self) -> bool {
        false
    }

    /// The verdict on one half of an exchange.
    ///
    /// # Errors
    /// A [`Fault`] where no verdict could be reached.
    async fn inspect(&self, exchange: &Exchange, phase: Phase) -> Result<Verdict, Fault>;
}
