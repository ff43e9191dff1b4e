//! One instance of a server: started at its first use, and ended when idle.
//!
//! Each component owns one part of the state: the [`Starter`] the start, the [`Lifecycle`] the
//! process, [`Replacement`] the draining, [`ActiveCalls`] the calls. None knows the instance.

use std::{
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use bytes::Bytes;

use super::{
    active_calls::ActiveCalls,
    call_error::CallError,
    detached_work::DetachedWork,
    discovery::{Items, ListKind},
    drain::{GRACE, ReplaceOutcome, Replacement},
    event::{LaunchReview, ServerEvent},
    health::HealthCheck,
    instance_key::{InstanceKey, InstanceOwner},
    launch::Starter,
    lifecycle::Lifecycle,
    resource_watches::ResourceWatches,
    running::Running,
    secret_rotation::{RotationOutcome, SecretRotation},
    secret_set::SecretScope,
    server_shared::ServerShared,
    status::InstanceHealth,
    transport::{Call, Reply},
    warm_pool::WarmPool,
};
use portcullis_protocol::{exchange::Revision, identity::PrincipalKind};

/// Longest wait for the resource usage of a process.
const USAGE_TIMEOUT: Duration = Duration::from_secs(2);

/// One instance of a server: shared by all clients, or dedicated to one client, whose capabilities
/// its handshake has.
pub struct Instance {
    starter: Starter,
    pool: Arc<WarmPool>,
    lifecycle: Lifecycle,
    replacement: Replacement,
    calls: ActiveCalls,
    detached: DetachedWork,
    health: HealthCheck,
    watches: ResourceWatches,
    rotation: SecretRotation,
}

impl Instance {
    /// A stopped instance.
    pub(super) fn new(
        server: Arc<ServerShared>,
        pool: Arc<WarmPool>,
        owner: Option<InstanceOwner>,
    ) -> Self {
        let starter = Starter::new(server.clone(), owner);
        Self {
            pool,
            lifecycle: Lifecycle::default(),
            replacement: Replacement::new(server.clone()),
            calls: ActiveCalls::new(server.settings.concurrent, server.settings.queue),
            detached: DetachedWork::default(),
            health: HealthCheck::new(&server.settings),
            watches: ResourceWatches::default(),
            rotation: SecretRotation::new(server, starter.scope.clone()),
            starter,
        }
    }

    /// A shared instance, for clients before 2026-07-28 if `legacy`. Only the first one reports
    /// changes of lists.
    pub(super) fn shared(
        server: Arc<ServerShared>,
        pool: Arc<WarmPool>,
        legacy: bool,
        first: bool,
    ) -> Self {
        let mut shared = Self::new(server, pool, None);
        shared.starter.serves_legacy = legacy;
        shared.starter.reports_lists = first;
        shared
    }

    fn server(&self) -> &Arc<ServerShared> {
        &self.starter.server
    }

    /// Key of the client that owns this dedicated instance.
    pub fn party(&self) -> Option<&InstanceKey> {
        self.owner().map(|owner| &owner.key)
    }

    pub(super) fn owner(&self) -> Option<&InstanceOwner> {
        self.starter.owner.as_ref()
    }

    /// Scope of the instance's secrets.
    pub(super) fn scope(&self) -> &SecretScope {
        &self.starter.scope
    }

    /// The running instance, if it takes calls. Does not start it.
    pub fn peek(&self) -> Option<Arc<Running>> {
        self.lifecycle.peek()
    }

    /// The running instance, started if necessary. Callers that come during a start wait for it.
    ///
    /// # Errors
    /// A [`CallError`] if the start fails, or failed recently.
    pub async fn running(self: &Arc<Self>) -> Result<Arc<Running>, CallError> {
        self.touch();
        if let Some(running) = self.peek() {
            return Ok(running);
        }
        let instance = self.clone();
        let running = self.detached.run(async move { instance.started().await }).await?;
        self.touch();
        Ok(running)
    }

    async fn started(&self) -> Result<Arc<Running>, CallError> {
        let until = Instant::now() + self.server().pull_patience();
        let pull = &self.starter.pull;
        let mut state = loop {
            // A replacement that waits for a pull does not delay callers of the old process.
            if let Some(running) = self.peek() {
                return Ok(running);
            }
            // All callers wait for a pull at the same time.
            pull.finished(until).await?;
            let state = match self.lifecycle.try_lock() {
                Some(state) => state,
                // While one call tries a half-open circuit, the others do not wait for its result.
                None if self.lifecycle.breaker.is_half_open() && self.peek().is_none() => {
                    return Err(self.lifecycle.breaker.tried());
                }
                None => tokio::select! {
                    state = self.lifecycle.lock() => state,
                    overdue = pull.overdue(until) => return Err(overdue),
                },
            };
            if pull.current().is_none() {
                break state;
            }
        };
        if let Some(running) = state.running().cloned() {
            // The connection is dead; the process may live.
            let Some(why) = running.end() else { return Ok(running) };
            running.stop(Duration::ZERO).await;
            state.crashed(&running, &why);
            self.server().emit_end(&running, why).await;
        }
        self.server().ensure_started()?;
        let cooldown = state.begin_start()?;
        match self.launch(until).await {
            Ok(running) => {
                state.started(running.clone());
                self.watches.begin(&running);
                Ok(running)
            }
            Err(failure) => {
                state.start_failed(cooldown, &failure);
                Err(failure)
            }
        }
    }

    async fn launch(&self, until: Instant) -> Result<Arc<Running>, CallError> {
        let warm = async {
            match self.scope() {
                SecretScope::Common => self.pool.take().await,
                SecretScope::Client(_) => None,
            }
        };
        // Boxed: a start is rare, and its future is large. Every call contains the future of one.
        Box::pin(self.starter.launch(warm, until, &self.lifecycle.closing)).await
    }

    /// Makes a call. If a remote server rejects it because its session has ended, the instance does
    /// the handshake again and repeats the call.
    ///
    /// # Errors
    /// A [`CallError`] if no response came.
    pub async fn call(
        self: &Arc<Self>,
        running: &Running,
        mut call: Call,
    ) -> Result<Reply, CallError> {
        let queued = self.calls.admit(call.client.as_ref());
        let _permit = call.clock.bound(queued).await?;
        let breaker = &self.lifecycle.breaker;
        let trial = breaker.admit()?;
        let (mut running, mut counted) = (running, running.calls.token());
        // Counted before the check: a replaced or idle process ends only without calls.
        let newer = match running.calls.is_closed() {
            true => call.clock.bound(self.running()).await.ok(),
            false => None,
        };
        let newer = newer.filter(|now| now.handshake.revision == running.handshake.revision);
        if let Some(newer) = &newer {
            (running, counted) = (newer, newer.calls.token());
        }
        // Last, since everything before may wait. It keeps its permit meanwhile.
        call.ensure_decided().await?;
        let again = running.process.is_none().then(|| call.clone());
        let asks = call.clock.clone();
        let reply = running.unless_revoked(running.link.call(call));
        tokio::pin!(reply);
        // A call that waits for a person has not crashed the instance so far: another trial call
        // may run meanwhile.
        let (mut reply, trial) = tokio::select! {
            biased;
            reply = &mut reply => (reply, trial),
            () = asks.stopped(), if trial.is_some() => {
                drop(trial);
                (reply.await, None)
            }
        };
        if let (Err(CallError::Forgotten), Some(call)) = (&reply, again) {
            reply = self.retry_call(running.handshake.revision, call).await;
        }
        self.touch();
        if reply.is_ok() {
            breaker.answered();
        }
        drop((counted, trial));
        reply.map_err(|failure| match failure {
            CallError::Unavailable(_) if running.process.is_some() => {
                self.server().with_exit(failure, &running.exit)
            }
            failure => self.server().scrubbed(failure),
        })
    }

    /// Whether a call of this client would be refused now, because too many wait.
    ///
    /// # Errors
    /// [`CallError::Overloaded`].
    pub fn ensure_room(&self, client: &PrincipalKind) -> Result<(), CallError> {
        self.calls.ensure_room(client)
    }

    async fn retry_call(
        self: &Arc<Self>,
        revision: Revision,
        mut call: Call,
    ) -> Result<Reply, CallError> {
        let clock = call.clock.clone();
        let running = clock.bound(self.running()).await?;
        // In another revision, the message would differ.
        if running.handshake.revision != revision {
            return Err(CallError::Forgotten);
        }
        call.ensure_decided().await?;
        running.unless_revoked(running.link.call(call)).await
    }

    /// Sends a notification.
    ///
    /// # Errors
    /// A [`CallError`] if it could not be sent.
    pub async fn notify(
        &self,
        running: &Running,
        method: &str,
        params: Bytes,
    ) -> Result<(), CallError> {
        self.touch();
        let sent = running.unless_revoked(running.link.notify(method, params)).await;
        sent.map_err(|failure| self.server().scrubbed(failure))
    }

    /// The fresh cached list, or list failure, of the running instance. Does not start it.
    pub fn fresh_list(&self, offer: ListKind) -> Option<Result<Items, CallError>> {
        let fresh = self.peek()?.definitions.fresh_list(offer)?;
        self.touch();
        Some(fresh)
    }

    /// A list. Starts the instance if necessary.
    ///
    /// # Errors
    /// A [`CallError`] if the server returns no list.
    pub async fn items(self: &Arc<Self>, offer: ListKind) -> Result<Items, CallError> {
        self.touch();
        if let Some(fresh) = self.fresh_list(offer) {
            return fresh;
        }
        let instance = self.clone();
        let listed = async move {
            let listed = match instance.listed_once(offer).await {
                // The session had ended; the next start begins another one.
                Err(CallError::Forgotten) => instance.listed_once(offer).await,
                listed => listed,
            };
            listed.map_err(|failure| instance.server().scrubbed(failure))
        };
        self.detached.run(listed).await
    }

    async fn listed_once(&self, offer: ListKind) -> Result<Items, CallError> {
        let mut running = self.started().await?;
        let mut counted = running.calls.token();
        // The process was just ended as idle, or replaced.
        while running.calls.is_closed() && running.end().is_none() {
            running = self.started().await?;
            counted = running.calls.token();
        }
        let _counted = counted;
        let (handshake, link, server) = (&running.handshake, running.link.as_ref(), self.server());
        let (name, bytes) = (&server.name, server.launcher.caps.bytes);
        let timeout = server.call_timeout();
        let items = running.definitions.items(offer, name, handshake, link, bytes, timeout);
        let items = running.unless_revoked(items).await?;
        // The cache has the lists of the shared instance.
        if self.starter.key().is_none() {
            server.discovery.learn_list(offer, &items);
        }
        Ok(items)
    }

    /// Subscribes one client to changes of a resource. Each start of the instance repeats the
    /// subscription, until each client has [`unwatch`](Self::unwatch)ed.
    ///
    /// # Errors
    /// A [`CallError`] if the server did not answer. Its refusal is a [`Reply::Error`].
    pub async fn watch(self: &Arc<Self>, uri: &str) -> Result<Reply, CallError> {
        let running = self.running().await?;
        let timeout = self.server().call_timeout();
        // Boxed: a call's future is large, and the stack of a worker is not.
        let call = |call: Call| Box::pin(self.call(&running, call));
        self.watches.watch(&running, uri, timeout, call).await
    }

    /// Ends the subscription of one client.
    ///
    /// # Errors
    /// A [`CallError`] if the server did not answer. The subscription has ended nevertheless.
    pub async fn unwatch(self: &Arc<Self>, uri: &str) -> Result<(), CallError> {
        let timeout = self.server().call_timeout();
        let call = |call: Call| async move {
            match self.peek().filter(|running| !running.handshake.revision.is_modern()) {
                Some(running) => Box::pin(self.call(&running, call)).await.map(drop),
                // The next subscription informs a modern server.
                None => Ok(()),
            }
        };
        self.watches.unwatch(uri, timeout, call).await
    }

    /// Notes a use of the instance.
    pub(super) fn touch(&self) {
        self.calls.touch();
    }

    /// Number of calls in flight.
    pub(super) fn active(&self) -> usize {
        self.calls.count()
    }

    /// Whether the instance was unused for `idle-stop-s` and has no watched resources.
    fn is_idle(&self) -> bool {
        let idle = self.idle_stop();
        !idle.is_zero() && self.watches.is_empty() && self.calls.is_idle(idle)
    }

    /// Whether the instance is idle, stopped and not draining, so that it can be removed.
    pub(super) fn is_disposable(&self) -> bool {
        self.is_idle() && self.peek().is_none() && self.replacement.draining().is_none()
    }

    fn idle_stop(&self) -> Duration {
        Duration::from_secs(self.server().settings.idle_stop_s)
    }

    /// Lets the next call start the instance, although the last start failed recently.
    pub(super) async fn retry_now(&self) {
        self.lifecycle.lock().await.forget_failure();
    }

    /// Replaces the running process. If the new process does not start, the old one continues.
    ///
    /// # Errors
    /// A [`CallError`] if the new process did not start.
    pub(super) async fn replace(&self, why: &str) -> Result<ReplaceOutcome, CallError> {
        self.replace_where(why, |_| true).await
    }

    async fn replace_where(
        &self,
        why: &str,
        is_so: impl Fn(&Running) -> bool,
    ) -> Result<ReplaceOutcome, CallError> {
        let _one_at_a_time = self.replacement.turn().await;
        let old = match self.lifecycle.lock().await.running() {
            Some(old) if is_so(old) => old.clone(),
            _ => return Ok(ReplaceOutcome::NotRunning),
        };
        // The state is not locked here: the old process takes calls, and can be ended.
        let new = self.launch(Instant::now() + self.server().pull_patience()).await?;
        let mut state = self.lifecycle.lock().await;
        if !state.is(&old) {
            drop(state);
            new.stop(GRACE).await;
            let why = "the instance that it was to replace ended first".into();
            self.server().emit_end(&new, why).await;
            return Ok(ReplaceOutcome::NotRunning);
        }
        state.started(new.clone());
        self.watches.begin(&new);
        drop(state);
        Ok(ReplaceOutcome::Busy(self.replacement.drain(old, why).await))
    }

    /// Ends the running process after its calls. Returns the number of the calls; `None` if no
    /// process runs. The next call may start another one.
    pub(super) async fn stop(&self, why: &str) -> Option<usize> {
        let _one_at_a_time = self.replacement.turn().await;
        let mut state = self.lifecycle.lock().await;
        let running = state.running()?.clone();
        state.withdraw(None);
        state.stopped();
        drop(state);
        Some(self.replacement.drain(running, why).await)
    }

    /// Ends the instance for good.
    pub(super) async fn close(&self, why: &str) {
        // Ends a start that is in progress.
        self.lifecycle.closing.cancel();
        let mut state = self.lifecycle.lock().await;
        if let Some(running) = state.close() {
            running.stop(GRACE).await;
            state.withdraw(None);
            self.server().emit_end(&running, why.to_owned()).await;
        }
        drop(state);
        self.replacement.end().await;
        // A new process ends by itself, or has just replaced the old one.
        self.replacement.settled().await;
        self.replacement.end().await;
        self.report_lost().await;
    }

    /// Ends an idle instance, detects a dead one, and begins health checks that are due.
    pub(super) async fn sweep(self: &Arc<Self>) {
        self.report_lost().await;
        self.check_health();
        self.retry_restart();
        // An instance that is being started is not idle.
        let Some(mut state) = self.lifecycle.try_lock() else { return };
        let Some(running) = state.running().cloned() else { return };
        let ends = running.process.is_some() || self.owner().is_some();
        let why = if let Some(why) = running.end() {
            running.stop(Duration::ZERO).await;
            state.crashed(&running, &why);
            why
        } else if ends && self.is_idle() && running.close_unused(self.idle_stop()) {
            state.withdraw(None);
            running.stop(GRACE).await;
            state.stopped();
            format!("idle for {} s", self.idle_stop().as_secs())
        } else {
            return;
        };
        // Before the event of the next start.
        self.server().emit_end(&running, why).await;
        drop(state);
    }

    async fn report_lost(&self) {
        let count = self.starter.lost.take_unreported();
        if count > 0 {
            self.server().emit(ServerEvent::Lost { count }).await;
        }
    }

    /// Begins a health check on a task of its own if one is due.
    fn check_health(self: &Arc<Self>) {
        let Some(running) = self.peek().filter(|running| self.health.begin(running)) else {
            return;
        };
        let instance = self.clone();
        tokio::spawn(async move {
            if !instance.health.check(&running, &instance.calls).await {
                instance.restart_unhealthy(&running).await;
            }
        });
    }

    /// Ends a process that did not answer, and starts another one, unless the instance is idle.
    async fn restart_unhealthy(self: &Arc<Self>, running: &Arc<Running>) {
        let why = self.health.failure();
        {
            let mut state = self.lifecycle.lock().await;
            // The process was ended or replaced meanwhile.
            if !state.is(running) {
                return;
            }
            self.server().unwell.fetch_add(1, Ordering::Relaxed);
            self.server().emit(ServerEvent::Unhealthy).await;
            running.stop(Duration::ZERO).await;
            state.crashed(running, &why);
            self.server().emit_end(running, why).await;
        }
        if !self.is_idle()
            && let Err(failure) = self.running().await
        {
            tracing::debug!(%failure, "the next instance did not start");
        }
    }

    /// Ends forbidden processes at once. A starting instance is reviewed after its start.
    pub(super) async fn review(&self, review: &dyn LaunchReview) {
        self.replacement.review(review).await;
        self.review_running(review).await;
        // A replacement was permitted before this review. The process that it replaces may have
        // been neither running nor draining.
        self.replacement.settled().await;
        self.replacement.review(review).await;
        self.review_running(review).await;
    }

    async fn review_running(&self, review: &dyn LaunchReview) {
        let mut state = self.lifecycle.lock().await;
        let Some(running) = state.running().cloned() else { return };
        let Some(refusal) = review.forbids(&self.server().name, &running.cleared).await else {
            return;
        };
        let why = "policies permit it no longer".to_owned();
        // Set first, so that callers get the refusal and not the end of the process.
        let _ = running.revoked.set(refusal);
        state.withdraw(Some(why.clone()));
        running.stop(Duration::ZERO).await;
        state.stopped();
        self.server().emit_end(&running, why).await;
        drop(state);
    }

    /// Delivers the secrets that were read last, also to a process that is about to replace the
    /// running one. Restarts the instance for the others if the config says so.
    ///
    /// # Errors
    /// The reason why the instance keeps its old secrets.
    pub(super) async fn rotate(
        &self,
        review: &dyn LaunchReview,
    ) -> Result<RotationOutcome, String> {
        let first = self.deliver_secrets(review).await;
        self.replacement.settled().await;
        // A delivery that failed the first time is repeated here.
        let mut outcome = self.deliver_secrets(review).await?;
        outcome.files |= first.is_ok_and(|first| first.files);
        self.restart_outdated(outcome).await
    }

    /// [`rotate`](Self::rotate), once for all concurrent callers.
    ///
    /// # Errors
    /// The reason why the instance keeps its old secrets.
    pub async fn rotate_coalesced(
        self: &Arc<Self>,
        review: &dyn LaunchReview,
    ) -> Result<(), String> {
        let SecretRotation { delivering, restarting, .. } = &self.rotation;
        delivering.ask(());
        while let Some(mut turn) = delivering.begin() {
            while turn.take().is_some() {
                // A failure is repeated below.
                let _ = self.deliver_secrets(review).await;
            }
        }
        // Separate from delivery, so that the running process gets new values during a replacement.
        let mut result = Ok(());
        restarting.ask(());
        while let Some(mut turn) = restarting.begin() {
            while turn.take().is_some() {
                self.replacement.settled().await;
                result = match self.deliver_secrets(review).await {
                    Ok(outcome) => self.restart_outdated(outcome).await.map(drop),
                    Err(why) => Err(why),
                };
            }
        }
        result
    }

    async fn deliver_secrets(&self, review: &dyn LaunchReview) -> Result<RotationOutcome, String> {
        let state = self.lifecycle.lock().await;
        match state.running() {
            Some(running) => self.rotation.deliver(running, review).await,
            None => Ok(RotationOutcome::default()),
        }
    }

    async fn restart_outdated(
        &self,
        mut outcome: RotationOutcome,
    ) -> Result<RotationOutcome, String> {
        if self.server().settings.restart_on_rotation && !outcome.outdated.is_empty() {
            let restarted = self.restart_for_secrets().await;
            restarted.map_err(|failure| format!("it was not restarted: {failure}"))?;
            outcome.outdated.clear();
        }
        Ok(outcome)
    }

    /// Replaces the process if it has old secrets in its environment or in headers. A failure is
    /// repeated after a pause.
    async fn restart_for_secrets(&self) -> Result<(), CallError> {
        let is_outdated = |running: &Running| self.rotation.is_outdated(running);
        let replaced = self.replace_where("its secrets changed", is_outdated).await;
        self.rotation.restarted(replaced.is_ok());
        replaced.map(drop)
    }

    /// Repeats a failed restart on a task of its own if it is due.
    fn retry_restart(self: &Arc<Self>) {
        if !self.rotation.take_due() {
            return;
        }
        let instance = self.clone();
        tokio::spawn(async move {
            if let Err(failure) = instance.restart_for_secrets().await {
                let server = instance.server();
                let (server, failure) = (&server.name, server.scrubbed(failure));
                tracing::warn!(%server, %failure, "server was not restarted for its new secrets");
            }
        });
    }

    /// State of the instance, for `portcullis server ls` and the metrics.
    pub(super) async fn standing(&self) -> InstanceHealth {
        let snapshot = self.lifecycle.snapshot();
        let process = snapshot.running.as_ref().and_then(|running| running.process.clone());
        let usage = match &process {
            Some(process) => {
                tokio::time::timeout(USAGE_TIMEOUT, process.usage()).await.unwrap_or_default()
            }
            None => None,
        };
        let draining = self.replacement.draining().map(|running| {
            let calls = running.calls.len();
            (running, calls)
        });
        let pull = self.starter.pull.current();
        let word = match (&snapshot.running, &snapshot.failure) {
            (Some(_), _) if self.health.is_late() => "unhealthy",
            (Some(_), _) if self.health.took().is_some() => "healthy",
            (Some(_), _) => "running",
            (None, _) if pull.is_some() => "pulling",
            (None, _) if self.lifecycle.breaker.is_half_open() => "resting",
            (None, Some(_)) => "failed",
            (None, None) => "stopped",
        };
        let failure = match pull.filter(|_| snapshot.running.is_none()) {
            Some(pull) => Some(CallError::from(&pull).to_string()),
            None => snapshot.failure,
        };
        InstanceHealth {
            word,
            running: snapshot.running,
            process: process.map(|process| process.describe()),
            active: self.active(),
            draining,
            failure,
            usage,
            lost: self.starter.lost.count(),
            health: self.health.took(),
            principal: self.starter.principal(),
        }
    }
}
