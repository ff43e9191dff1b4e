//! Policies for actions of the proxy itself: starting servers, connecting to them, and delivering
//! secrets to them. These are decided before they happen.

use std::sync::Arc;

use async_trait::async_trait;

use super::Servers;
use crate::recorder::launch_events;
use portcullis_audit::record::ServerLaunchRefused;
use portcullis_policy::{Action, DeliveredAs, LaunchSecret, Outcome, Part, Start};
use portcullis_protocol::{
    names::ServerName,
    refusal::{Code, Refusal, Rule},
};
use portcullis_upstream::{DeliveryMethod, LaunchDenied, LaunchRequest, LaunchReview, Server};

/// The permits of a launch.
pub(crate) struct LaunchPermits {
    /// The permits, each once.
    pub rules: Vec<Rule>,
    /// The policies that decided.
    pub revision: String,
}

impl Servers {
    /// Decides about the start of a server and records it. The server is not started if either
    /// fails.
    pub(crate) async fn authorize_launch(
        &self,
        server: &ServerName,
        launching: &LaunchRequest,
    ) -> Result<(), LaunchDenied> {
        let permitted = match self.may_launch(server, launching) {
            Ok(permitted) => permitted,
            Err(forbidden) => {
                let (happening, refusal) = *forbidden;
                tracing::warn!(%server, detail = refusal.detail, "policy denied the start of a server");
                self.recorder.audit.record_best_effort(happening).await;
                return Err(LaunchDenied::Forbidden(Box::new(refusal)));
            }
        };
        let all =
            launch_events::launching(server, launching, &permitted.rules, &permitted.revision);
        // Concurrently, so that they wait for one commit. The order is kept.
        let all = all.into_iter().map(|happening| self.recorder.audit.record_event(happening));
        futures_util::future::try_join_all(all).await.map(drop).map_err(|error| {
            tracing::error!(%server, %error, "server not started: the start could not be recorded");
            LaunchDenied::Unrecorded(format!("{error}: {}", error.remedy()))
        })
    }

    /// Reviews a server's running instances after each change of policies, until the proxy stops or
    /// the server is gone. Requests lists that policies refused before.
    pub(crate) async fn review(self: Arc<Self>, server: Arc<Server>) {
        let mut status = self.recorder.policies.status();
        let mut checked_revision = status.borrow_and_update().revision;
        loop {
            tokio::select! {
                changed = status.changed() => if changed.is_err() { return },
                () = self.closing.cancelled() => return,
                () = server.gone().cancelled() => return,
            }
            let revision = status.borrow_and_update().revision;
            if revision != checked_revision {
                checked_revision = revision;
                let (proxy, server) = (self.clone(), server.clone());
                // On a task of its own: an instance that is starting is reviewed after its start,
                // and policies may change again before that.
                tokio::spawn(async move {
                    server.review(proxy.as_ref()).await;
                    proxy.router.refetch_refused(&server.name);
                });
            }
        }
    }

    /// The permits of everything that a start needs, or the event and refusal of it.
    fn may_launch(
        &self,
        server: &ServerName,
        launching: &LaunchRequest,
    ) -> Result<LaunchPermits, Box<(ServerLaunchRefused, Refusal)>> {
        let program = launching.program.for_policies(&launching.placement);
        let secrets = launching.deliveries.iter().map(|delivery| LaunchSecret {
            name: &delivery.secret,
            source: delivery.source.kind(),
            delivery: match delivery.by {
                DeliveryMethod::Environment => DeliveredAs::Env,
                DeliveryMethod::File => DeliveredAs::File,
                DeliveryMethod::Header => DeliveredAs::Header,
            },
            client: delivery.client.as_deref(),
        });
        let url = launching.connecting.as_ref().map(|remote| remote.url.as_str());
        let start = Start { server, program: &program, url, secrets: secrets.collect() };
        let mut permitted = LaunchPermits { rules: Vec::new(), revision: String::new() };
        for Part { action, target, outcome } in self.recorder.policies.decide_start(&start) {
            permitted.revision = outcome.revision.to_string();
            if let Some(refusal) = refused(server, action, &target, &outcome) {
                let happening = launch_events::launch_refused(
                    server,
                    launching,
                    (action.as_str(), &target),
                    &outcome.rules,
                    &permitted.revision,
                );
                return Err(Box::new((happening, refusal)));
            }
            for rule in outcome.rules {
                if !permitted.rules.contains(&rule) {
                    permitted.rules.push(rule);
                }
            }
        }
        Ok(permitted)
    }
}

#[async_trait]
impl LaunchReview for Servers {
    async fn forbids(
        &self,
        server: &ServerName,
        launching: &LaunchRequest,
    ) -> Option<Box<Refusal>> {
        let (happening, refusal) = *self.may_launch(server, launching).err()?;
        tracing::warn!(%server, detail = refusal.detail, "policy revoked; stopping server");
        self.recorder.audit.record_best_effort(happening).await;
        let message = format!("policy no longer permits server `{server}` to run");
        Some(Box::new(Refusal { message, ..refusal }))
    }

    async fn review_redelivery(
        &self,
        server: &ServerName,
        launching: &LaunchRequest,
        secrets: &[String],
    ) -> Result<(), String> {
        let recorded = self
            .recorder
            .audit
            .record_event(launch_events::redelivered(server, launching, secrets))
            .await;
        recorded.map(drop).map_err(|error| format!("{error}: {}", error.remedy()))
    }
}

/// The refusal of an action that is not permitted, or only with obligations such as an approval.
fn refused(
    server: &ServerName,
    action: Action,
    target: &str,
    outcome: &Outcome,
) -> Option<Refusal> {
    if outcome.permits_alone() {
        return None;
    }
    let why = outcome.explain_alone();
    let detail = format!("{} {target}: {why} (policies {})", action.as_str(), outcome.revision);
    let words = format!("policy does not permit the start of server `{server}`");
    let refusal = Refusal::new(Code::PolicyDenied, words).detail(detail);
    Some(Refusal { rules: outcome.rules.clone(), ..refusal })
}
