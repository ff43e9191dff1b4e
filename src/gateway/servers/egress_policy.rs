//! Policies of servers' egress: each connection through the proxy is decided and recorded
//! separately.

use std::sync::Arc;

use async_trait::async_trait;
use tokio::sync::{Mutex, watch};

use crate::{plugins::PluginServices, recorder::egress_events};
use portcullis_egress::{Attempt, End, Forbidden, Gate, GateContext, Outcome, Verdict};
use portcullis_policy::{Action, Resource, Revision, Subject};
use portcullis_protocol::refusal::Rule;
use portcullis_runtime::egress_netns::{EgressContext, EgressGates};

/// Creates the policy gates of servers' egress.
pub(crate) struct EgressPolicy(pub(crate) Arc<PluginServices>);

impl EgressGates for EgressPolicy {
    fn gate(&self, egress_context: EgressContext) -> Arc<dyn Gate> {
        let mut status = self.0.policies.status();
        let checked_revision = status.borrow_and_update().revision;
        Arc::new(ConnectionGate {
            plugin_services: self.0.clone(),
            egress_context,
            policies: Mutex::new((status, checked_revision)),
        })
    }
}

/// Decides about the connections of one start of a server.
struct ConnectionGate {
    plugin_services: Arc<PluginServices>,
    egress_context: EgressContext,
    /// The state of the policies, and the revision that was last evaluated.
    policies: Mutex<(watch::Receiver<portcullis_policy::Status>, Revision)>,
}

/// The policies against a connection attempt, with their revision.
struct Denial {
    rules: Vec<Rule>,
    revision: String,
}

impl ConnectionGate {
    fn ask(&self, attempt: &Attempt) -> portcullis_policy::Outcome {
        let host = attempt.host.plain();
        let resource = Resource::Host { name: &host, port: attempt.port };
        let server = Subject::Server(&self.egress_context.server);
        self.plugin_services.policies.decide_own(server, Action::Egress, resource)
    }
}

/// The refusal for the server's program, with the policies for the record.
fn forbidden(attempt: &Attempt, outcome: portcullis_policy::Outcome) -> Verdict {
    let Attempt { host, port, .. } = attempt;
    let why = format!("policy does not permit `{}:{port}`", host.plain());
    let against = Denial { rules: outcome.rules, revision: outcome.revision.to_string() };
    let grounds: GateContext = Arc::new(against);
    Verdict::Refuse(Forbidden { why, grounds: Some(grounds) })
}

#[async_trait]
impl Gate for ConnectionGate {
    async fn decide(&self, attempt: &Attempt) -> Verdict {
        let server = &self.egress_context.server;
        let Some(recorder) = self.plugin_services.recorder() else {
            return Verdict::Refuse("the proxy is not there any more".into());
        };
        let outcome = self.ask(attempt);
        if !outcome.permits_alone() {
            return forbidden(attempt, outcome);
        }
        let revision = outcome.revision.to_string();
        let happening =
            egress_events::reaching(&self.egress_context, attempt, &outcome.rules, &revision);
        match recorder.audit.record_event(happening).await {
            Ok(()) => {
                self.plugin_services.metrics.egress_opened(server);
                Verdict::Allow
            }
            Err(error) => {
                // The server chose the host, so it could contain a secret.
                let host = recorder.shown(&attempt.host.plain());
                let port = attempt.port;
                tracing::error!(%server, host, port, %error, "egress connection refused: it could not be recorded");
                Verdict::Refuse("egress is refused while the audit log accepts no records".into())
            }
        }
    }

    async fn changed(&self) {
        let mut policies = self.policies.lock().await;
        let (status, checked_revision) = &mut *policies;
        loop {
            if status.changed().await.is_err() {
                // The proxy stops, which ends all connections.
                return std::future::pending().await;
            }
            let revision = status.borrow_and_update().revision;
            if revision != *checked_revision {
                *checked_revision = revision;
                return;
            }
        }
    }

    fn still(&self, attempt: &Attempt) -> Verdict {
        let outcome = self.ask(attempt);
        if outcome.permits_alone() { Verdict::Allow } else { forbidden(attempt, outcome) }
    }

    fn report(&self, outcome: Outcome) {
        let server = &self.egress_context.server;
        self.plugin_services.metrics.egress_ended(server, &outcome);
        let Some(recorder) = self.plugin_services.recorder() else { return };
        let to = || {
            let to = outcome.attempt.as_ref().map(|to| format!("{}:{}", to.host, to.port));
            to.map(|to| recorder.shown(&to))
        };
        match &outcome.end {
            End::Refused(refusal) => {
                // Each refusal is recorded and logged, so they are limited like other refusals.
                if recorder.refusals.of_server(server, refusal.code()).is_some() {
                    return;
                }
                let advice = refusal.operator_advice(server.as_str());
                let advice = advice.map(|advice| recorder.shown(&advice));
                tracing::info!(%server, to = to(), code = refusal.code(), advice, "egress connection refused");
            }
            End::Revoked(_) => {
                tracing::warn!(%server, to = to(), "policy revoked; egress connection closed");
            }
            _ => {}
        }
        let against = outcome.grounds.as_ref().and_then(|grounds| grounds.downcast_ref());
        let against = against.map(|Denial { rules, revision }| (&rules[..], &revision[..]));
        let happening = egress_events::reached(&self.egress_context, &outcome, against);
        // Without the runtime, the log is gone, too.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move { recorder.audit.record_best_effort(happening).await });
        }
    }
}
