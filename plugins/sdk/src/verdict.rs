//! Giving a verdict.

use super::{Decision, Finding, Refusal, Verdict};

impl Verdict {
    /// The message goes on.
    pub fn pass() -> Self {
        Decision::Pass.into()
    }

    /// The message is refused: `code` is which of the plugin's rules does (a-z, 0-9, `-`, `_`, `.`
    /// and `:`; stable), `reason` is for the agent. Nothing of the message belongs into either.
    pub fn refuse(code: &str, reason: &str) -> Self {
        Decision::Refuse(Refusal { code: code.into(), reason: reason.into(), detail: None }).into()
    }

    /// Other JSON text takes the payload's place: see [`crate::json::rewrite`].
    pub fn replace(payload: impl Into<String>) -> Self {
        Decision::Replace(payload.into()).into()
    }

    /// The payload is replaced if there is another: for what [`crate::json::rewrite`] gives.
    pub fn replace_if(payload: Option<String>) -> Self {
        payload.map_or_else(Self::pass, Self::replace)
    }

    /// What else the operator should know of a refusal. Of other verdicts it says nothing.
    pub fn detail(mut self, detail: &str) -> Self {
        if let Decision::Refuse(refusal) = &mut self.decision {
            refusal.detail = Some(detail.into());
        }
        self
    }

    /// Labels the exchange, for policies and later interceptors: 1 to 64 of a-z, 0-9, `-`, `_`, `.`
    /// and `:`. A label is given once.
    pub fn label(mut self, label: &str) -> Self {
        if !self.labels.iter().any(|given| given == label) {
            self.labels.push(label.into());
        }
        self
    }

    /// Reports something for the audit record: by which of the plugin's rules, and what. Never what
    /// was seen itself.
    pub fn report(mut self, code: &str, message: &str) -> Self {
        self.findings.push(Finding { code: code.into(), message: message.into() });
        self
    }
}

impl From<Decision> for Verdict {
    fn from(decision: Decision) -> Self {
        Self { decision, labels: Vec::new(), findings: Vec::new() }
    }
}
