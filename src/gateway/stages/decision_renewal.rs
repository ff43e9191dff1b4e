//! Renewal of a decision: a message that waits after its decision is decided again before it is
//! sent, if policies, its server's entry or its client changed meanwhile.
//!
//! Only the policies decide again:
//! - The other interceptors cannot change while the proxy runs, and they inspected the message that
//!   is sent. Running them again would count it twice under rate limits, and plugins would repeat
//!   their effects.
//! - A message counts once under `@rate`, and its labels are added once. New policies with another
//!   obligation refuse it.
//!
//! INVARIANT: what is sent was permitted by the policies in use, to a client that has its key and
//! groups, and each such decision is on record before the message is sent.

use std::sync::Arc;

use super::{Stages, obligations::Obligations};
use crate::recorder::ExchangeRecord;
use portcullis_chain::{Decision, Interceptor as _};
use portcullis_protocol::{
    exchange::{Exchange, Phase},
    obligations::Obligations as Required,
    refusal::{Code, Refusal, Rule},
};
use portcullis_upstream::{SendCheck, Server};

/// Cause of ending what a client has open after its key or groups changed.
pub const CLIENT_CHANGED: &str = "the client was removed, or its groups changed";

impl Stages {
    /// A check whether the decision on a client's message still holds.
    pub fn send_check(
        &self,
        exchange: &Exchange,
        record: &ExchangeRecord,
        server: &Arc<Server>,
    ) -> SendCheck {
        let (engine, keyring) = (self.gate.engine().clone(), self.keyring.clone());
        let (principal, server) = (exchange.principal.clone(), server.clone());
        let generation = record.generation;
        SendCheck::new(move || {
            engine.generation() == generation
                && keyring.is_unchanged(&principal)
                && server.ensure_started().is_ok()
        })
    }

    /// Decides a client's message again and records it again, if its decision no longer holds.
    ///
    /// # Errors
    /// A [`Refusal`] if the message must not be sent any more.
    pub async fn renew_decision(
        &self,
        exchange: &Exchange,
        record: &mut ExchangeRecord,
        server: &Server,
    ) -> Result<(), Refusal> {
        if !self.keyring.is_unchanged(&exchange.principal) {
            return Err(Refusal::new(Code::Unauthenticated, CLIENT_CHANGED));
        }
        server.ensure_started()?;
        if record.generation == self.gate.engine().generation() {
            return Ok(());
        }
        self.obligations.decide_again(exchange, record).await?;
        self.record_intent(exchange, record).await
    }
}

impl Obligations {
    /// Evaluates the policies again, for a message whose obligations are fulfilled. In the record,
    /// the rules and findings of this decision replace those of the earlier one.
    ///
    /// # Errors
    /// A [`Refusal`] if the policies no longer permit the message, or only with other obligations.
    pub(super) async fn decide_again(
        &self,
        exchange: &Exchange,
        record: &mut ExchangeRecord,
    ) -> Result<(), Refusal> {
        // Before the decision: a set that comes meanwhile has another number.
        let generation = self.gate.engine().generation();
        let trail = &mut record.trail;
        // Without the labels that the first decision added.
        let labels = trail.labels.clone().unwrap_or_else(|| exchange.labels.clone());
        let exchange = Exchange { labels, ..exchange.clone() };
        let verdict = self.gate.inspect(&exchange, Phase::Request).await.map_err(|fault| {
            let words = "a check on this message could not be completed";
            Refusal::new(Code::InterceptorFault, words).detail(fault.to_string())
        })?;
        trail.revision = verdict.revision.or(trail.revision.take());
        trail.findings.retain(|finding| finding.interceptor != self.gate.name());
        trail.findings.extend(verdict.findings);
        let first = std::mem::replace(&mut trail.rules, verdict.rules);
        match verdict.decision {
            Decision::Refuse(refusal) => return Err(refusal),
            Decision::Pass if trail.rules.iter().all(|rule| is_met(rule, &first)) => {}
            _ => {
                let words = "the policies changed while the call waited: call again";
                return Err(Refusal::new(Code::PolicyDenied, words)
                    .detail("they permit it with other obligations than before"));
            }
        }
        record.generation = generation;
        Ok(())
    }
}

/// Whether a rule requires nothing that the rules of the first decision did not require.
fn is_met(rule: &Rule, first: &[Rule]) -> bool {
    *rule.obligations == Required::default()
        || first.iter().any(|known| known.id == rule.id && known.obligations == rule.obligations)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rule_is_met_by_the_same_obligations_at_any_line() {
        let rule = |id: &str, line, annotation: Option<(&str, &str)>| {
            let mut obligations = Required::default();
            if let Some((name, text)) = annotation {
                obligations.take(name, text).unwrap();
            }
            Rule { line: Some(line), obligations: Arc::new(obligations), ..Rule::named(id) }
        };
        let first = [rule("a", 1, Some(("approve", "why"))), rule("b", 2, None)];
        for (again, met) in [
            (rule("a", 7, Some(("approve", "why"))), true),
            (rule("a", 1, Some(("approve", "another reason"))), false),
            (rule("c", 1, Some(("approve", "why"))), false),
            (rule("a", 1, None), true),
            (rule("c", 1, None), true),
            (rule("b", 2, Some(("rate", "1/1m"))), false),
        ] {
            assert_eq!(is_met(&again, &first), met, "{again:?}");
        }
    }
}
