//! What servers reach through the proxy's own end: decided by policies and put on record, each
//! connection for itself.

use std::{collections::HashMap, sync::Arc};

use async_trait::async_trait;
use parking_lot::Mutex;

use super::plugins::{Around, permitted};
use crate::{
    audit::record::Happening,
    egress::{Attempt, End, Gate, Outcome, Verdict},
    policy::{Action, Resource, Subject},
    refusal::Rule,
    upstream::{Outward, Reacher},
};

impl Outward for Arc<Around> {
    fn gate(&self, reacher: Reacher) -> Arc<dyn Gate> {
        Arc::new(Reaching { around: self.clone(), reacher, forbidden: Mutex::default() })
    }
}

/// Decides for one start of a server.
struct Reaching {
    around: Arc<Around>,
    reacher: Reacher,
    /// What policies refused and is about to be told of: by which, and of what revision.
    forbidden: Mutex<HashMap<u64, (Vec<Rule>, String)>>,
}

#[async_trait]
impl Gate for Reaching {
    async fn decide(&self, attempt: &Attempt) -> Verdict {
        let (host, port) = (attempt.host.plain(), attempt.port);
        let server = &self.reacher.server;
        let Some(proxy) = self.around.proxy() else {
            return Verdict::Refuse("the proxy is not there any more".into());
        };
        let resource = Resource::Host { name: &host, port };
        let outcome =
            self.around.policies.decide_own(Subject::Server(server), Action::Reach, resource);
        let revision = outcome.revision.to_string();
        if !permitted(&outcome) {
            self.forbidden.lock().insert(attempt.number, (outcome.rules, revision));
            return Verdict::Refuse(format!("policy does not permit `{host}:{port}`"));
        }
        let happening = Happening::reaching(&self.reacher, attempt, &outcome.rules, &revision);
        match proxy.audit.event(happening).await {
            Ok(()) => Verdict::Allow,
            Err(error) => {
                // The host is the server's word, and could be a secret.
                let host = proxy.shown(&host);
                tracing::error!(%server, host, port, %error, "a connection could not be recorded and is not made");
                Verdict::Refuse("nothing leaves while the audit log takes no records".into())
            }
        }
    }

    fn told(&self, outcome: Outcome) {
        let number = outcome.attempt.as_ref().map(|attempt| attempt.number);
        let forbidden = number.and_then(|number| self.forbidden.lock().remove(&number));
        let Some(proxy) = self.around.proxy() else { return };
        let server = &self.reacher.server;
        if let End::Refused(refusal) = &outcome.end {
            // Each is on record and in the log, so a flood of them is bounded as other refusals are.
            if !proxy.refusals.of_server(server, None) {
                return;
            }
            let to = outcome.attempt.as_ref().map(|to| format!("{}:{}", to.host, to.port));
            let to = to.map(|to| proxy.shown(&to));
            tracing::info!(%server, to, code = refusal.code(), "a connection of a server was refused");
        }
        let forbidden =
            forbidden.as_ref().map(|(rules, revision)| (rules.as_slice(), revision.as_str()));
        let happening = Happening::reached(&self.reacher, &outcome, forbidden);
        // Where the runtime is gone, so is the log.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move { proxy.audit.tell(happening).await });
        }
    }
}
