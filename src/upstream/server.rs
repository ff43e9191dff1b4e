//! One configured server. Calls and lists go to one of its instances; restarts, reviews and the
//! rotation of secrets go to all of them.

use std::{
    collections::BTreeSet,
    hash::{BuildHasher as _, Hasher as _, RandomState},
    path::PathBuf,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use futures_util::{StreamExt as _, future::join_all};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tokio::sync::{mpsc, oneshot};
use tokio_util::{
    sync::CancellationToken,
    task::{TaskTracker, task_tracker::TaskTrackerToken},
};

use super::{
    call_error::CallError,
    coalesce::Coalescing,
    discovery::{Items, ListKind},
    drain::ReplaceOutcome,
    event::{LaunchReview, ServerEvent},
    handshake::{Eras, Handshake},
    instance::Instance,
    instance_key::{InstanceKey, InstanceOwner},
    instance_set::InstanceSet,
    launcher::Launcher,
    running::{NUMBERS, Running},
    secret_set::{LoadedSecrets, ReloadScope, SecretScope},
    server_secrets::Reload,
    server_shared::ServerShared,
    status::Status,
    stderr_log::Scrub,
    transport::{ServerMessage, UnroutedMessage},
    warm_pool::WarmPool,
};
use crate::config::{self, SecretBinding};
use portcullis_protocol::{
    exchange::{Method, Revision},
    identity::PrincipalKind,
    names::ServerName,
    refusal::{Code, Refusal},
};
use portcullis_vault::Source;

/// Maximum number of concurrent replacements of instances.
const REPLACED_AT_ONCE: usize = 4;

/// One server of the config. A changed entry of the config has a new `Server`.
pub struct Server {
    pub name: ServerName,
    pub settings: config::Server,
    /// Unique number among all servers and all instances that ever ran.
    pub number: u64,
    /// Identifies the config entry of a remote server: the same after a restart of the proxy, and
    /// another one after a change of the entry.
    pub remote: Option<u64>,
    common: Arc<ServerShared>,
    instances: InstanceSet,
    pool: Arc<WarmPool>,
    /// Calls to the server, at any stage of the pipeline.
    calls: TaskTracker,
    /// Cancelled when no instance runs and none can start again.
    gone: CancellationToken,
    /// Requested reloads of the server's secrets.
    pub rereads: Coalescing<ReloadScope>,
}

/// Result of a rotation.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RotationReport {
    /// Names of all secrets of the server.
    pub secrets: Vec<String>,
    /// Number of running instances with new secrets on their files.
    pub instances: usize,
    /// Names of secrets with an old value in a running instance until its next start.
    pub later: Vec<String>,
}

/// Result of reading a server's secrets again.
#[derive(Debug, Default)]
pub struct Reading {
    read: BTreeSet<SecretScope>,
    /// Failures of single secrets.
    faults: Vec<String>,
}

/// Result of a restart or a stop.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestartReport {
    /// Number of restarted or stopped instances.
    pub instances: usize,
    /// Number of calls that finish on the old instances, which end after that.
    pub calls: usize,
}

impl Server {
    /// A stopped server. Its events go to `events`, its messages without a call to `unrouted`. `scrub`
    /// redacts its standard error. `read` has its secrets, already registered for redaction. Those
    /// that did not resolve are read again at the next start.
    pub fn new(
        name: ServerName,
        settings: config::Server,
        launcher: Arc<Launcher>,
        read: LoadedSecrets,
        scrub: Scrub,
        events: mpsc::Sender<ServerEvent>,
        unrouted: mpsc::Sender<UnroutedMessage>,
    ) -> Self {
        let common = ServerShared::new(
            name.clone(),
            settings.clone(),
            launcher,
            read,
            scrub,
            events,
            unrouted,
        );
        let pool = WarmPool::new(common.clone());
        Self {
            name,
            remote: settings.url.is_some().then(|| entry_number(&settings)),
            settings,
            number: NUMBERS.fetch_add(1, Ordering::Relaxed),
            instances: InstanceSet::new(common.clone(), pool.clone()),
            common,
            pool,
            calls: TaskTracker::new(),
            gone: CancellationToken::new(),
            rereads: Coalescing::default(),
        }
    }

    /// Counts a call to the server until the token is dropped.
    pub fn counted(&self) -> TaskTrackerToken {
        self.calls.token()
    }

    /// Cancelled when the server was removed or replaced in the config, and no instance runs.
    pub fn gone(&self) -> &CancellationToken {
        &self.gone
    }

    /// Lets the next call retry a start that failed recently, because its cause may be gone.
    pub async fn retry_now(&self) {
        join_all(self.instances.all().iter().map(|instance| instance.retry_now())).await;
    }

    /// Refuses all further starts, because the entry was replaced or removed.
    pub fn stop_new_launches(&self, why: &'static str) {
        self.common.stop_launches(why);
    }

    /// Whether this server is still the config's entry under its name. Decisions by name are
    /// decisions about that entry.
    ///
    /// # Errors
    /// `server-unavailable` with the reason.
    pub fn ensure_active(&self) -> Result<(), Refusal> {
        self.common.ensure_active()
    }

    /// Ends all instances for good: after the calls to the server, but at the latest after the call
    /// timeout, or when `now` is cancelled.
    pub async fn drain_and_stop(&self, why: &'static str, now: &CancellationToken) {
        self.stop_new_launches(why);
        self.pool.close(why).await;
        self.calls.close();
        let late = tokio::select! {
            () = self.calls.wait() => false,
            () = tokio::time::sleep(self.deadline()) => true,
            () = now.cancelled() => false,
        };
        if late {
            let words = format!("server `{}` was ended before it answered: {why}", self.name);
            let refusal = Refusal::new(Code::ServerUnavailable, words);
            for running in self.instances.all().iter().filter_map(|instance| instance.peek()) {
                let _ = running.revoked.set(Box::new(refusal.clone()));
            }
        }
        self.close(why).await;
        self.gone.cancel();
    }

    /// The shared instance. It serves lists, and calls of clients without server requests.
    pub fn shared(&self) -> &Arc<Instance> {
        self.instances.shared()
    }

    /// The instance with this key; without a key, the shared one.
    pub fn at(&self, key: Option<&InstanceKey>) -> Option<Arc<Instance>> {
        match key {
            Some(key) => self.owned(key),
            None => Some(self.shared().clone()),
        }
    }

    /// The eras that the server speaks, as far as its handshakes have shown.
    pub fn eras(&self) -> Option<Eras> {
        *self.common.eras.read()
    }

    /// [`eras`](Self::eras), also from the handshake of the server's last run.
    pub async fn known_eras(&self) -> Option<Eras> {
        if let Some(eras) = self.eras() {
            return Some(eras);
        }
        let handshake = self.common.discovery.handshake().await?;
        self.common.eras.write().get_or_insert(self.common.eras_of(&handshake));
        self.eras()
    }

    /// Key of the shared instance of clients of this revision: `None` unless the server speaks both
    /// eras and the revision is legacy.
    pub fn shared_key(&self, client: Revision) -> Option<InstanceKey> {
        let apart = self.eras() == Some(Eras::Both) && !client.is_modern();
        apart.then_some(InstanceKey::Legacy)
    }

    /// Of a shared instance and its replicas, the one with the fewest calls.
    pub fn least_busy(&self, instance: &Arc<Instance>) -> Arc<Instance> {
        self.instances.least_busy(instance)
    }

    /// The instance for a client: a dedicated one, or the shared one if that is sufficient.
    ///
    /// # Errors
    /// A [`CallError`] if the client cannot get an instance.
    pub fn own(&self, party: &InstanceOwner) -> Result<Arc<Instance>, CallError> {
        self.instances.own(party)
    }

    /// The instance with this key, if there is one.
    pub fn owned(&self, key: &InstanceKey) -> Option<Arc<Instance>> {
        self.instances.owned(key)
    }

    /// Ends the dedicated instance of a client that has disconnected.
    pub async fn leave(&self, key: &InstanceKey) {
        if let Some(own) = self.instances.remove(key) {
            own.close("its client is gone").await;
        }
    }

    /// Timeout of a call.
    pub fn deadline(&self) -> Duration {
        self.common.call_timeout()
    }

    /// The fresh cached list, or list failure, of the running shared instance.
    pub fn fresh_list(&self, offer: ListKind) -> Option<Result<Items, CallError>> {
        self.shared().fresh_list(offer)
    }

    /// The list of the server's last run. `None` while it runs, because its list may have changed.
    pub async fn last_list(&self, offer: ListKind) -> Option<Items> {
        if self.current().is_some() {
            return None;
        }
        self.common.discovery.list(offer).await
    }

    /// The handshake of the shared instance of clients of this revision, if it runs, or of the last
    /// run.
    pub async fn handshake(&self, client: Revision) -> Option<Arc<Handshake>> {
        if self.shared_key(client).is_some() {
            return self.common.legacy_handshake.read().clone();
        }
        match self.current() {
            Some(running) => Some(running.handshake.clone()),
            None => self.common.discovery.handshake().await,
        }
    }

    /// Sends clients of an instance a change notification for a list that was unavailable when they
    /// requested it, and is available now.
    pub fn notify_list_changed(&self, party: Option<InstanceKey>, offer: ListKind) {
        let method = Method::new(offer.changed());
        // If the queue is full, clients get other notifications, and can request the list again.
        let message = ServerMessage::Notification { method, params: None };
        let _ = self.common.unrouted.try_send(UnroutedMessage { party, message });
    }

    /// A list of the server. Starts the shared instance if necessary.
    ///
    /// # Errors
    /// A [`CallError`] if the server returns no list.
    pub async fn items(&self, offer: ListKind) -> Result<Items, CallError> {
        self.shared().items(offer).await
    }

    /// The result of `tools/list`, with all pages in one.
    ///
    /// # Errors
    /// As [`Server::items`].
    pub async fn tools(&self) -> Result<Value, CallError> {
        let items = self.items(ListKind::Tools).await?;
        let tools: Vec<_> = items.iter().map(|tool| tool.definition.value()).collect();
        Ok(json!({ "tools": tools }))
    }

    /// Waits until all earlier events of the server are recorded.
    pub async fn flush(&self) {
        let (done, recorded) = oneshot::channel();
        self.common.emit(ServerEvent::Flush(done)).await;
        // A closed channel means that the recorder has ended.
        let _ = recorded.await;
    }

    /// The running shared instance. Does not start it.
    pub fn current(&self) -> Option<Arc<Running>> {
        self.shared().peek()
    }

    /// The last lines of the instances' standard error, with delivered secrets redacted.
    pub fn log(&self) -> Vec<String> {
        self.common.log.lock().iter().cloned().collect()
    }

    /// Ends all instances for good.
    pub async fn close(&self, why: &str) {
        let all = self.instances.close();
        join_all(all.iter().map(|instance| instance.close(why))).await;
        self.pool.close(why).await;
    }

    /// Ends idle instances, detects dead ones, and starts missing warm processes.
    pub async fn sweep(&self) {
        self.pool.sweep().await;
        join_all(self.instances.all().iter().map(|instance| instance.sweep())).await;
        self.instances.remove_idle();
    }

    /// Ends the processes that policies forbid.
    pub async fn review(&self, review: &dyn LaunchReview) {
        join_all(self.instances.all().iter().map(|instance| instance.review(review))).await;
        self.pool.review(review).await;
    }

    /// Reads the secrets of all scopes again. Secrets that cannot be read are recorded, and keep
    /// their values.
    pub async fn reread(&self, which: ReloadScope) -> Reading {
        let Reload { read, failed } = self.common.secrets.reload(which).await;
        let mut faults = Vec::new();
        for (error, kept) in failed {
            faults.push(error.failure.what.clone());
            self.common.emit(ServerEvent::Unread { not: Box::new(error), kept }).await;
        }
        Reading { read, faults }
    }

    /// The instances with secrets of a reading.
    pub fn with_secrets_of(&self, reading: &Reading) -> Vec<Arc<Instance>> {
        self.instances.with_secrets(&reading.read)
    }

    /// Reads the secrets again, and delivers those on files to the running instances. The next
    /// start delivers the others; if the config says so, the instances restart now.
    ///
    /// # Errors
    /// The failures, after the rest is done. If a secret cannot be read, its scope keeps the old
    /// values. An instance that could not get new values keeps the old ones.
    pub async fn rotate_secrets(
        &self,
        review: &dyn LaunchReview,
        which: ReloadScope,
    ) -> Result<RotationReport, String> {
        let mut reading = self.reread(which).await;
        let all = self.with_secrets_of(&reading);
        let all = join_all(all.iter().map(|instance| instance.rotate(review)));
        // Concurrently: an instance that does not start delays no warm process.
        let (all, ()) = tokio::join!(all, self.pool.rotate());
        let (mut instances, mut later) = (0, BTreeSet::new());
        for rotated in all {
            match rotated {
                Ok(outcome) => {
                    instances += usize::from(outcome.files);
                    later.extend(outcome.outdated);
                }
                Err(why) => reading.faults.push(why),
            }
        }
        if !reading.faults.is_empty() {
            return Err(reading.faults.join("; "));
        }
        let secrets =
            self.settings.secret_bindings().map(|binding| binding.name.to_owned()).collect();
        Ok(RotationReport { secrets, instances, later: later.into_iter().collect() })
    }

    /// Replaces the warm processes with old secrets, once for all concurrent callers.
    pub async fn rotate_warm_processes(&self) {
        self.pool.rotate_coalesced().await;
    }

    /// The files that are sources of the server's secrets.
    pub fn secret_files(&self) -> Vec<PathBuf> {
        let base = &self.common.launcher.base;
        let all = self.settings.secret_bindings().flat_map(SecretBinding::references);
        let all = all.filter_map(|(_, from)| from.parse::<Source>().ok());
        all.filter_map(|source| Some(source.relative_to(base).file()?.to_owned())).collect()
    }

    /// Ends the dedicated instances of a removed client with this key.
    pub async fn dismiss(&self, client: &PrincipalKind, key: &str) {
        let gone = self.instances.remove_client(client, key);
        join_all(gone.iter().map(|instance| instance.close("its client is gone"))).await;
    }

    /// Restarts each running instance. The new process takes further calls; the old one ends after
    /// its own, at the latest after the call timeout. If a new process does not start, the old one
    /// continues.
    ///
    /// # Errors
    /// A [`CallError`] of a process that did not start.
    pub async fn restart(&self) -> Result<RestartReport, CallError> {
        let why = "it was restarted";
        // First, so that no instance takes a warm process that was started before.
        self.pool.restart(why).await;
        let all = futures_util::stream::iter(self.instances.all());
        let all = all.map(|instance| async move { instance.replace(why).await });
        let all: Vec<_> = all.buffer_unordered(REPLACED_AT_ONCE).collect().await;
        let mut restarted = RestartReport::default();
        for replaced in all {
            if let ReplaceOutcome::Busy(calls) = replaced? {
                restarted.instances += 1;
                restarted.calls += calls;
            }
        }
        Ok(restarted)
    }

    /// Stops each instance after its calls, and refuses further calls until
    /// [`start`](Self::start). A changed entry of the config is a new server, which takes calls.
    pub async fn stop(&self) -> RestartReport {
        let why = "an operator stopped it";
        self.common.stopped_by_operator.store(true, Ordering::Relaxed);
        self.pool.restart(why).await;
        let all = self.instances.all();
        let all = join_all(all.iter().map(|instance| instance.stop(why))).await;
        let mut stopped = RestartReport::default();
        for calls in all.into_iter().flatten() {
            stopped.instances += 1;
            stopped.calls += calls;
        }
        stopped
    }

    /// Takes calls again after [`stop`](Self::stop), and starts the shared instance.
    ///
    /// # Errors
    /// A [`CallError`] if it does not start.
    pub async fn start(&self) -> Result<(), CallError> {
        self.common.stopped_by_operator.store(false, Ordering::Relaxed);
        self.pool.sweep().await;
        self.retry_now().await;
        self.shared().running().await.map(drop)
    }

    /// Whether an operator stopped the server.
    pub fn is_stopped_by_operator(&self) -> bool {
        self.common.stopped_by_operator.load(Ordering::Relaxed)
    }

    /// Whether the server takes calls.
    ///
    /// # Errors
    /// `server-unavailable` with the reason.
    pub fn ensure_started(&self) -> Result<(), Refusal> {
        self.common.ensure_started()
    }

    /// State of the server and its instances.
    pub async fn status(&self) -> Status {
        let legacy = self.instances.legacy();
        // Of a server of both eras, the instance that runs is the server's state.
        let main = match self.current().is_none() && legacy.peek().is_some() {
            true => legacy,
            false => self.shared(),
        };
        let mut others = self.instances.all();
        others.retain(|instance| !Arc::ptr_eq(instance, main));
        let others = join_all(others.iter().map(|instance| instance.standing()));
        let (others, shared) = tokio::join!(others, main.standing());
        let placement = self.common.launcher.placement(&self.settings);
        let unwell = self.common.unwell.load(Ordering::Relaxed);
        Status::of(shared, &others, placement, self.pool.count(), unwell)
    }
}

/// A number that only the same config entry has.
fn entry_number(settings: &config::Server) -> u64 {
    let Ok(text) = serde_json::to_vec(settings) else {
        // A random number, which no entry has after a restart.
        return RandomState::new().build_hasher().finish();
    };
    let digest = Sha256::digest(text);
    digest.iter().take(8).fold(0, |number, byte| number << 8 | u64::from(*byte))
}
