//! A loaded plugin, and the processing of one message.

use std::{sync::Arc, task::Poll, time::Instant};

use futures_util::poll;
use tokio_util::task::AbortOnDropHandle;

use super::{
    Failure, Inspection, Lifetime, LoadError, Manifest, Message, Pin, PluginHost, PrincipalKind,
    Settings, Verdict,
    artifact::Artifact,
    breaker::{Admitted, Breaker, BreakerKey, Time, Transition},
    functions::Values,
    load::Compiled,
    pool::Pool,
    quotas::{CallerQuota, Evictable},
    sessions::{AllBusy, Party, Sessions},
    template::Template,
};

/// Method that begins a session.
const INITIALIZE: &str = "initialize";

/// A loaded plugin.
pub struct Plugin {
    inner: Arc<Inner>,
    manifest: Manifest,
    sha256: String,
    signed_by: Option<String>,
}

struct Inner {
    template: Arc<Template>,
    breaker: Arc<Breaker>,
    instances: Instances,
}

/// Source of a message's instance.
enum Instances {
    /// One for each message.
    Fresh(Arc<Pool>),
    /// One for each session.
    Kept(Arc<Sessions>),
}

impl Plugin {
    /// Loads a component. Blocks while compiling: call it outside the async threads.
    ///
    /// # Errors
    /// One [`LoadError`] for any problem of the file, its digest, its imports and exports, its
    /// manifest, or its configuration.
    pub fn load(
        found: &Artifact,
        pin: Pin<'_>,
        settings: Settings,
        plugin_host: &PluginHost,
    ) -> Result<Self, LoadError> {
        Compiled::of(found, pin, plugin_host.cache.as_deref())?.plugin(settings, plugin_host)
    }

    pub(super) fn new(
        template: Template,
        manifest: Manifest,
        sha256: String,
        signed_by: Option<String>,
    ) -> Self {
        let template = Arc::new(template);
        let (instances, room): (_, Arc<dyn Evictable>) = match manifest.lifetime {
            Lifetime::Message => {
                let pool = Pool::of(template.clone());
                (Instances::Fresh(pool.clone()), pool)
            }
            Lifetime::Session => {
                let sessions = Sessions::swept(template.host);
                (Instances::Kept(sessions.clone()), sessions)
            }
        };
        template.shares.register_evictable(Arc::downgrade(&room));
        let inner = Inner { template, breaker: Arc::default(), instances };
        Self { inner: Arc::new(inner), manifest, sha256, signed_by }
    }

    /// Manifest of the plugin.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Stored values, if that is granted.
    pub fn values(&self) -> Option<&Values> {
        self.inner.template.shared.state.as_ref()
    }

    /// Digest of its file, in hex.
    pub fn sha256(&self) -> &str {
        &self.sha256
    }

    /// Name of the key whose signature was accepted, if the operator requires one.
    pub fn signed_by(&self) -> Option<&str> {
        self.signed_by.as_deref()
    }

    /// Prepares instances, so that the first message need not wait, and resets the reported faults.
    pub fn warm(&self) {
        self.inner.report_open_circuits();
        if let Instances::Fresh(pool) = &self.inner.instances {
            pool.refill();
        }
    }

    /// Checked verdict of the plugin, from an instance that has seen no other message, or, if the
    /// plugin requests that, only those of this session. Must be called within a tokio runtime;
    /// dropping the future ends the guest.
    pub async fn inspect(&self, message: Message, session: Option<&str>) -> Inspection {
        let template = &self.inner.template;
        let now = Instant::now();
        let time = Arc::new(Time::from(now, template.deadline));
        let kind = match message.principal.kind {
            PrincipalKind::Client => "client",
            PrincipalKind::Local => "local",
            PrincipalKind::Anonymous => "anonymous",
        };
        let principal = format!("{kind}:{}", message.principal.name);
        let between = BreakerKey { principal: principal.clone(), server: message.server.clone() };
        let admitted = match self.inner.breaker.admit(between.clone(), now) {
            Ok(admitted) => Some(admitted),
            Err(_) if template.fail_open => None,
            Err(pause) => return Failure::CircuitOpen(pause).into(),
        };
        let mut attempt =
            RunningCall { inner: self.inner.clone(), between, admitted, time: time.clone() };
        // A caller without key and session is indistinguishable from the next one; and there is no
        // session before it began.
        let nobody = session.is_none()
            && (message.principal.kind == PrincipalKind::Anonymous || message.event == INITIALIZE);
        let part = template.shares.part(&principal);
        let party = (!nobody).then(|| Party { principal, session: session.map(str::to_owned) });
        let inner = self.inner.clone();
        let mut work =
            Box::pin(async move { inner.work(&message, party.as_ref(), &part, &time).await });
        let inspection = match poll!(work.as_mut()) {
            Poll::Ready(inspection) => inspection,
            // Not finished within a tick or two, or no permit: continue where it blocks no message.
            Poll::Pending => match AbortOnDropHandle::new(template.host.slow.spawn(work)).await {
                Ok(inspection) => inspection,
                Err(error) => Failure::Trap(error.to_string()).into(),
            },
        };
        attempt.ended(&inspection.verdict);
        inspection
    }
}

/// Call of the plugin for a message. If dropped before its end, it was abandoned.
struct RunningCall {
    inner: Arc<Inner>,
    between: BreakerKey,
    /// `None`: its result does not count.
    admitted: Option<Admitted>,
    time: Arc<Time>,
}

impl RunningCall {
    fn ended(&mut self, verdict: &Result<Verdict, Failure>) {
        let Some(admitted) = self.admitted.take() else { return };
        let transition = match verdict {
            Ok(_) => admitted.succeeded(Instant::now()),
            Err(failure) if failure.is_its_own() => admitted.failed(Instant::now()),
            Err(_) => None,
        };
        if let Some(transition) = transition {
            self.inner.log_transition(transition, &self.between);
        }
    }
}

impl Drop for RunningCall {
    fn drop(&mut self) {
        let admitted = self.admitted.take();
        let transition =
            admitted.and_then(|admitted| admitted.given_up(&self.time, Instant::now()));
        if let Some(transition) = transition {
            self.inner.log_transition(transition, &self.between);
        }
    }
}

impl Inner {
    fn log_transition(self: &Arc<Self>, transition: Transition, between: &BreakerKey) {
        let shared = &self.template.shared;
        let (principal, server) = (&between.principal, between.server.as_deref().unwrap_or(""));
        match transition {
            Transition::Opened(pause) => {
                tracing::warn!(
                    interceptor = %shared.entry, principal, server, ?pause,
                    "the plugin fails repeatedly; circuit open"
                );
                // The caller may never return.
                let inner = Arc::downgrade(self);
                self.template.host.slow.spawn(async move {
                    tokio::time::sleep(pause).await;
                    if let Some(inner) = inner.upgrade() {
                        inner.report_open_circuits();
                    }
                });
            }
            Transition::Closed => tracing::info!(
                interceptor = %shared.entry, principal, server, "plugin recovered; circuit closed"
            ),
        }
        self.report_open_circuits();
    }

    /// Reports the number of caller and server pairs with an open circuit.
    fn report_open_circuits(&self) {
        let shared = &self.template.shared;
        shared.services.circuits_open(&shared.entry, self.breaker.open(Instant::now()));
    }

    async fn work(
        &self,
        message: &Message,
        party: Option<&Party>,
        part: &Arc<CallerQuota>,
        time: &Time,
    ) -> Inspection {
        let until = time.until();
        let failed = |failure| Inspection::from(failure);
        let template = &self.template;
        let deadline = tokio::time::Instant::from_std(until);
        let permit = template.shares.permit(part, message.payload.len());
        match &self.instances {
            Instances::Fresh(pool) => {
                let Ok(Ok(_permit)) = tokio::time::timeout_at(deadline, permit).await else {
                    return failed(Failure::Queued(template.deadline));
                };
                time.begin(Instant::now());
                let mut instance = match pool.take() {
                    Some(mut ready) => match ready.join(part) {
                        Ok(()) => ready,
                        Err(spent) => {
                            pool.done(ready);
                            return failed(template.spent(spent));
                        }
                    },
                    None => match template.prepare(until, Some(part)).await {
                        Ok(prepared) => prepared,
                        Err(failure) => return late(failure, time).into(),
                    },
                };
                let mut inspection = template.ask(&mut instance, message, until).await;
                pool.done(instance);
                inspection.verdict = inspection.verdict.map_err(|failure| late(failure, time));
                inspection
            }
            Instances::Kept(sessions) => {
                // Waits for the session's turn first: messages of one session that wait for each
                // other must not hold permits that others need.
                let mut slot = match party {
                    None => None,
                    Some(party) => {
                        match tokio::time::timeout_at(deadline, sessions.turn(party, part)).await {
                            Ok(Ok(slot)) => Some(slot),
                            Ok(Err(AllBusy)) => return failed(Failure::AllBusy),
                            Err(_) => return failed(Failure::Queued(template.deadline)),
                        }
                    }
                };
                let Ok(Ok(_permit)) = tokio::time::timeout_at(deadline, permit).await else {
                    return failed(Failure::Queued(template.deadline));
                };
                time.begin(Instant::now());
                // Taken from the slot, so that dropping this future drops the instance.
                let mut instance = match slot.as_mut().and_then(|slot| slot.take()) {
                    Some(existing) => existing,
                    None => match template.prepare(until, Some(part)).await {
                        Ok(prepared) => prepared,
                        Err(failure) => return late(failure, time).into(),
                    },
                };
                let mut inspection = template.ask(&mut instance, message, until).await;
                inspection.verdict = inspection.verdict.map_err(|failure| late(failure, time));
                if let Some(slot) = &mut slot
                    && inspection.verdict.is_ok()
                {
                    **slot = Some(instance);
                }
                inspection
            }
        }
    }
}

/// Failure of a message; if most of its time passed in a queue, other messages caused it.
fn late(failure: Failure, time: &Time) -> Failure {
    match failure {
        Failure::Deadline(all) if !time.was_enough() => Failure::Queued(all),
        other => other,
    }
}
