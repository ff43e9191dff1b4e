//! One configured server: calls and lists go to one of its instances; restarts, reviews and the rotation of
//! secrets go to all of them.

use std::{
    collections::BTreeSet,
    path::PathBuf,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use futures_util::{StreamExt as _, future::join_all};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
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
    handshake::Handshake,
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
    exchange::Method,
    identity::PrincipalKind,
    names::ServerName,
    refusal::{Code, Refusal},
};
use portcullis_vault::Source;

/// Instances that are replaced at once.
const REPLACED_AT_ONCE: usize = 4;

/// One server of the config. Where its entry changes, another takes its place.
pub struct Server {
    pub name: ServerName,
    pub settings: config::Server,
    /// No other that ever was in the config has the same, nor has anything that ran.
    pub number: u64,
    common: Arc<ServerShared>,
    instances: InstanceSet,
    pool: Arc<WarmPool>,
    /// The calls that go to it, wherever they are on their way.
    calls: TaskTracker,
    /// Done once nothing of it runs any more, nor ever will.
    gone: CancellationToken,
    /// Readings of its secrets that were asked for.
    pub rereads: Coalescing<ReloadScope>,
}

/// The result of reading secrets again.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RotationReport {
    /// All of its secrets, by name.
    pub secrets: Vec<String>,
    /// How many running instances have new ones on their files.
    pub instances: usize,
    /// Those of which something that runs has an old value, until its next start.
    pub later: Vec<String>,
}

/// What was read again of a server's secrets.
#[derive(Debug, Default)]
pub struct Reading {
    read: BTreeSet<SecretScope>,
    /// Why not all of it could be had.
    faults: Vec<String>,
}

/// What became of a server's instances that were to be replaced.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestartReport {
    /// Number of restarted instances.
    pub instances: usize,
    /// Calls that go on at the old ones, which end when those are done.
    pub calls: usize,
}

impl Server {
    /// A server that is not started yet. What becomes of it goes to `events`, what it says on its
    /// own to `heard`; its standard error is kept as `scrub` leaves it. It is handed what was `read`,
    /// which is looked for already; where that was unavailable, it is read again when a start is
    /// tried.
    pub fn new(
        name: ServerName,
        settings: config::Server,
        launcher: Arc<Launcher>,
        read: LoadedSecrets,
        scrub: Scrub,
        events: mpsc::Sender<ServerEvent>,
        heard: mpsc::Sender<UnroutedMessage>,
    ) -> Self {
        let common =
            ServerShared::new(name.clone(), settings.clone(), launcher, read, scrub, events, heard);
        let pool = WarmPool::new(common.clone());
        Self {
            name,
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

    /// Counts a call that goes to it, until this is dropped.
    pub fn counted(&self) -> TaskTrackerToken {
        self.calls.token()
    }

    /// Done once it was removed from the config, or changed there, and nothing of it runs any more.
    pub fn gone(&self) -> &CancellationToken {
        &self.gone
    }

    /// Has the next call try a start that failed a moment ago: what kept it may be over.
    pub async fn try_again(&self) {
        join_all(self.instances.all().iter().map(|instance| instance.try_again())).await;
    }

    /// Has nothing of it started from now on: another stands in its place, or none.
    pub fn stop_new_launches(&self, why: &'static str) {
        self.common.stop_launches(why);
    }

    /// Whether it is still the one in the config. What is decided by its name is decided by what the
    /// config says of the one that is.
    ///
    /// # Errors
    /// `server-unavailable`, with what has become of it.
    pub fn ensure_active(&self) -> Result<(), Refusal> {
        self.common.ensure_active()
    }

    /// Ends what runs of it, for good: once the calls that go to it are done, at the latest when a call
    /// has had its time, or at `now`.
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

    /// The instance that serves all lists, and all calls of clients that can be asked nothing.
    pub fn shared(&self) -> &Arc<Instance> {
        self.instances.shared()
    }

    /// Of the instances that all clients share, the one with the fewest calls.
    pub fn least_busy(&self) -> Arc<Instance> {
        self.instances.least_busy()
    }

    /// The instance for a client: a dedicated one, or the shared one where that is enough.
    ///
    /// # Errors
    /// A [`CallError`] where there is no instance for this client.
    pub fn own(&self, party: &InstanceOwner) -> Result<Arc<Instance>, CallError> {
        self.instances.own(party)
    }

    /// The dedicated instance of a client.
    pub fn owned(&self, key: &InstanceKey) -> Option<Arc<Instance>> {
        self.instances.owned(key)
    }

    /// Ends the dedicated instance of a client that is gone.
    pub async fn leave(&self, key: &InstanceKey) {
        if let Some(own) = self.instances.remove(key) {
            own.close("its client is gone").await;
        }
    }

    /// How long a call may take.
    pub fn deadline(&self) -> Duration {
        self.common.call_timeout()
    }

    /// What the server offers of a kind, or why it does not say, where that is known.
    pub fn kept(&self, offer: ListKind) -> Option<Result<Items, CallError>> {
        self.shared().kept(offer)
    }

    /// What the server offered of a kind when it last ran, where it does not run now: another list may
    /// have taken its place.
    pub async fn known(&self, offer: ListKind) -> Option<Items> {
        if self.current().is_some() {
            return None;
        }
        self.common.discovery.list(offer).await
    }

    /// What the server says of itself: as it runs, or as it last ran.
    pub async fn greeting(&self) -> Option<Arc<Handshake>> {
        match self.current() {
            Some(running) => Some(running.greeting.clone()),
            None => self.common.discovery.greeting().await,
        }
    }

    /// Reports for the server that a list changed: it was unavailable when clients asked
    /// for it, and now it is.
    pub fn tell_of_list(&self, offer: ListKind) {
        let method = Method::new(offer.changed());
        // Where the queue is full, much is told already, and a client that minds asks again.
        let said = ServerMessage::Notification { method, params: None };
        let _ = self.common.unrouted.try_send(UnroutedMessage { party: None, said });
    }

    /// What the server offers of a kind, starting it if need be.
    ///
    /// # Errors
    /// A [`CallError`] where it does not say.
    pub async fn items(&self, offer: ListKind) -> Result<Items, CallError> {
        self.shared().items(offer).await
    }

    /// The result of `tools/list`, all its pages as one.
    ///
    /// # Errors
    /// As [`Server::items`].
    pub async fn tools(&self) -> Result<Value, CallError> {
        let items = self.items(ListKind::Tools).await?;
        let tools: Vec<_> = items.iter().map(|tool| tool.definition.value()).collect();
        Ok(json!({ "tools": tools }))
    }

    /// Waits until what became of it so far is recorded.
    pub async fn flush(&self) {
        let (done, recorded) = oneshot::channel();
        self.common.emit(ServerEvent::Flush(done)).await;
        // Nobody records any more.
        let _ = recorded.await;
    }

    /// The running shared instance, if it runs, without starting it.
    pub fn current(&self) -> Option<Arc<Running>> {
        self.shared().peek()
    }

    /// The last lines that its instances wrote to standard error, the secrets they were handed
    /// blotted out.
    pub fn log(&self) -> Vec<String> {
        self.common.log.lock().iter().cloned().collect()
    }

    /// Ends all instances for good.
    pub async fn close(&self, why: &str) {
        let all = self.instances.close();
        join_all(all.iter().map(|instance| instance.close(why))).await;
        self.pool.close(why).await;
    }

    /// Ends idle instances, notices the death of others, and starts missing warm processes.
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

    /// Reads its secrets again, also those of single clients. Secrets that cannot be read are recorded, and
    /// keep their values.
    pub async fn reread(&self, which: ReloadScope) -> Reading {
        let Reload { read, failed } = self.common.secrets.reload(which).await;
        let mut faults = Vec::new();
        for (error, kept) in failed {
            faults.push(error.failure.what.clone());
            self.common.emit(ServerEvent::Unread { not: Box::new(error), kept }).await;
        }
        Reading { read, faults }
    }

    /// The instances that have secrets of a reading.
    pub fn having(&self, reading: &Reading) -> Vec<Arc<Instance>> {
        self.instances.with_secrets(&reading.read)
    }

    /// Reads its secrets again, and delivers those that it gets as files to its running instances. The next
    /// start delivers the others; where the config says so, the instances restart now.
    ///
    /// # Errors
    /// Where a secret cannot be read: then those of the same clients keep their values. Where an instance
    /// could not get the new values: then it keeps the old ones. The rest is done.
    pub async fn rehand(
        &self,
        review: &dyn LaunchReview,
        which: ReloadScope,
    ) -> Result<RotationReport, String> {
        let mut reading = self.reread(which).await;
        let all = self.having(&reading);
        let all = join_all(all.iter().map(|instance| instance.rotate(review)));
        // At the same time: an instance that does not start delays no warm process.
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
        let secrets = self.settings.given().map(|given| given.name.to_owned()).collect();
        Ok(RotationReport { secrets, instances, later: later.into_iter().collect() })
    }

    /// Replaces the warm processes with old secrets, once for all who ask at the same time.
    pub async fn see_to_spares(&self) {
        self.pool.rotate_coalesced().await;
    }

    /// The files from which its secrets come.
    pub fn secret_files(&self) -> Vec<PathBuf> {
        let base = &self.common.launcher.base;
        let all = self.settings.given().flat_map(SecretBinding::references);
        let all = all.filter_map(|(_, from)| from.parse::<Source>().ok());
        all.filter_map(|source| Some(source.relative_to(base).file()?.to_owned())).collect()
    }

    /// Ends the dedicated instances of a client with that key, which was removed.
    pub async fn dismiss(&self, client: &PrincipalKind, key: &str) {
        let gone = self.instances.remove_client(client, key);
        join_all(gone.iter().map(|instance| instance.close("its client is gone"))).await;
    }

    /// Restarts each running instance. The new one takes the calls; the old one ends once its
    /// own are done, at the latest when a call has had its time. Where a new one does not start, the
    /// old one goes on.
    ///
    /// # Errors
    /// Why one did not start.
    pub async fn restart(&self) -> Result<RestartReport, CallError> {
        let why = "it was restarted";
        // First: an instance takes no warm process that was started before.
        self.pool.restart(why).await;
        let all = futures_util::stream::iter(self.instances.all());
        let all = all.map(|instance| async move { instance.replace(why).await });
        let all: Vec<_> = all.buffer_unordered(REPLACED_AT_ONCE).collect().await;
        let mut restarted = RestartReport { instances: 0, calls: 0 };
        for replaced in all {
            if let ReplaceOutcome::Busy(calls) = replaced? {
                restarted.instances += 1;
                restarted.calls += calls;
            }
        }
        Ok(restarted)
    }

    /// State of the server and its instances.
    pub async fn status(&self) -> Status {
        let others = self.instances.others();
        let others = join_all(others.iter().map(|instance| instance.standing()));
        let (others, shared) = tokio::join!(others, self.shared().standing());
        let place = self.common.launcher.place(&self.settings);
        let unwell = self.common.unwell.load(Ordering::Relaxed);
        Status::of(shared, &others, place, self.pool.count(), unwell)
    }
}
