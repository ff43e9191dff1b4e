//! One configured server and its instances: the one that all clients share (or several, among which
//! calls are divided), and those of parties that the server may ask something or that are kept apart.

use std::{
    collections::{BTreeSet, HashMap},
    path::PathBuf,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use futures_util::{StreamExt as _, future::join_all};
use parking_lot::{Mutex, RwLock};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::sync::{mpsc, oneshot};
use tokio_util::{
    sync::CancellationToken,
    task::{TaskTracker, task_tracker::TaskTrackerToken},
};

use super::{
    coalesce::Coalescing,
    discovery::{Items, ListKind},
    discovery_cache::DiscoveryCache,
    drain::ReplaceOutcome,
    event::{LaunchReview, ServerEvent},
    handshake::Handshake,
    instance::{Instance, ServerShared},
    instance_key::{InstanceKey, InstanceOwner},
    launcher::{Launcher, Placement},
    maintenance::not_anew,
    running::{NUMBERS, Running},
    server_secrets::{LoadedSecrets, ReloadScope, SecretScope},
    stderr_log::Scrub,
    transport::{CallError, ServerMessage, UnroutedMessage},
    warm_pool::WarmPool,
};
use crate::config::{self, Era, SecretBinding, Sharing};
use portcullis_protocol::{
    exchange::Method,
    identity::PrincipalKind,
    names::ServerName,
    refusal::{Code, Refusal},
};
use portcullis_runtime::process::Usage;
use portcullis_vault::Source;

/// One principal may have one of so many parts of a server's instances, so that none takes them
/// all.
const SHARE: usize = 4;
/// How long no further instance is started after one that did not start.
const PAUSE: Duration = Duration::from_secs(10);
/// Why a process that waits is another.
const REREAD: &str = "its secrets were read again";
/// Instances that are replaced at once.
const REPLACED_AT_ONCE: usize = 4;

/// One server of the config. Where its entry changes, another takes its place.
pub struct Server {
    pub name: ServerName,
    pub settings: config::Server,
    /// No other that ever was in the config has the same, nor has anything that ran.
    pub number: u64,
    common: Arc<ServerShared>,
    shared: Arc<Instance>,
    /// Further ones that all clients share, for calls alone.
    replicas: Vec<Arc<Instance>>,
    /// Until when none of those is started, since the last was refused.
    no_more: Arc<Mutex<Option<Instant>>>,
    /// Nothing once the server was closed.
    own: Mutex<Option<HashMap<InstanceKey, Arc<Instance>>>>,
    /// The calls that go to it, wherever they are on their way.
    calls: TaskTracker,
    /// Done once nothing of it runs any more, nor ever will.
    gone: CancellationToken,
    /// Readings of its secrets that were asked for.
    pub rereads: Coalescing<ReloadScope>,
}

/// What `portcullis server ls` and the metrics show.
#[derive(Debug, Clone)]
pub struct Status {
    /// `running`, `stopped` or `failed`: the shared instance.
    pub state: &'static str,
    /// How that is, in one word: `healthy` or `unhealthy` where it is asked (`health-s`), else
    /// `running`; `pulling` its image, `resting` since it kept ending, `failed`, or `stopped`.
    pub health: &'static str,
    /// Where it runs, or would.
    pub place: Placement,
    /// The shared instance's process, where it runs here.
    pub process: Option<String>,
    pub revision: Option<String>,
    /// Calls under way, of all instances.
    pub active: usize,
    /// Instances that run.
    pub instances: Vec<InstanceStatus>,
    /// Processes that wait for their first word.
    pub warm: usize,
    /// Why the shared one failed.
    pub failure: Option<String>,
    /// How many instances had to be ended since they did not answer whether they are well.
    pub unwell: u64,
    /// Messages of the present instances that did not fit a queue and were dropped.
    pub lost: u64,
}

/// How one running instance stands.
#[derive(Debug, Clone)]
pub struct InstanceStatus {
    /// No two that ever ran have the same.
    pub number: u64,
    /// The one client for which alone it runs.
    pub principal: Option<PrincipalKind>,
    /// Its process, where it runs here.
    pub process: Option<String>,
    /// Calls under way.
    pub active: usize,
    /// Whether another has taken its place, and it ends once its calls are done.
    pub leaving: bool,
    /// How long it last took to say that it is well, where it is asked (`health-s`).
    pub health: Option<Duration>,
    /// How long it has been running.
    pub up: Duration,
    /// What it uses, where that can be told.
    pub usage: Option<Usage>,
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
        let common = Arc::new(ServerShared {
            name: name.clone(),
            settings: settings.clone(),
            launcher,
            log: Arc::default(),
            scrub,
            events,
            heard,
            over: OnceLock::new(),
            era: RwLock::default(),
            sse: AtomicBool::new(false),
            spares: WarmPool::new(),
            unwell: AtomicU64::new(0),
            known: DiscoveryCache::default(),
            hands: RwLock::new(read),
            rereading: tokio::sync::Mutex::default(),
        });
        let shared = Arc::new(Instance::new(common.clone(), None));
        let replica = || Arc::new(Instance::replica(common.clone()));
        let replicas = (1..settings.replicas).map(|_| replica()).collect();
        let (own, no_more) = (Mutex::new(Some(HashMap::new())), Arc::default());
        let number = NUMBERS.fetch_add(1, Ordering::Relaxed);
        let (calls, gone) = (TaskTracker::new(), CancellationToken::new());
        let rereads = Coalescing::default();
        Self {
            name,
            settings,
            number,
            common,
            shared,
            replicas,
            no_more,
            own,
            calls,
            gone,
            rereads,
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
        join_all(self.all().iter().map(|instance| instance.try_again())).await;
    }

    /// Has nothing of it started from now on: another stands in its place, or none.
    pub fn stop_new_launches(&self, why: &'static str) {
        let _ = self.common.over.set(why);
    }

    /// Whether it is still the one in the config. What is decided by its name is decided by what the
    /// config says of the one that is.
    ///
    /// # Errors
    /// `server-unavailable`, with what has become of it.
    pub fn ensure_active(&self) -> Result<(), Refusal> {
        self.common.still_there()
    }

    /// Ends what runs of it, for good: once the calls that go to it are done, at the latest when a call
    /// has had its time, or at `now`.
    pub async fn drain_and_stop(&self, why: &'static str, now: &CancellationToken) {
        self.stop_new_launches(why);
        self.shared.close_spares(why).await;
        self.calls.close();
        let late = tokio::select! {
            () = self.calls.wait() => false,
            () = tokio::time::sleep(self.deadline()) => true,
            () = now.cancelled() => false,
        };
        if late {
            let words = format!("server `{}` was ended before it answered: {why}", self.name);
            let refusal = Refusal::new(Code::ServerUnavailable, words);
            for running in self.all().iter().filter_map(|instance| instance.peek()) {
                let _ = running.revoked.set(Box::new(refusal.clone()));
            }
        }
        self.close(why).await;
        self.gone.cancel();
    }

    /// The instance that serves all lists, and all calls of clients that can be asked nothing.
    pub fn shared(&self) -> &Arc<Instance> {
        &self.shared
    }

    /// Of the instances that all clients share, that with the least calls under way. Where all that
    /// run are busy, one more is started meanwhile.
    pub fn least_busy(&self) -> Arc<Instance> {
        let runs = |instance: &&Arc<Instance>| instance.peek().is_some();
        let all = || std::iter::once(&self.shared).chain(&self.replicas);
        let Some(least) = all().filter(runs).min_by_key(|instance| instance.active()) else {
            return self.shared.clone();
        };
        let pauses = self.no_more.lock().is_some_and(|until| Instant::now() < until);
        if least.active() > 0
            && !pauses
            && let Some(next) = self.replicas.iter().find(|instance| !runs(instance)).cloned()
        {
            let no_more = self.no_more.clone();
            tokio::spawn(async move {
                if let Err(failure) = next.running().await {
                    // Each try is on record, and the next call would make the next.
                    *no_more.lock() = Some(Instant::now() + PAUSE);
                    tracing::debug!(%failure, "another instance did not start");
                }
            });
        }
        least.clone()
    }

    /// The instance for a party: its own, but where the server is a modern one, which needs none
    /// unless clients are kept apart, or where the config says that all share one.
    ///
    /// # Errors
    /// [`Failure::NoSecret`] where a secret differs by client and there is none for this one;
    /// [`Failure::Overloaded`] where there are too many, of all or of this principal;
    /// [`Failure::Unavailable`] where the client was removed meanwhile.
    pub fn own(self: &Arc<Self>, party: &InstanceOwner) -> Result<Arc<Instance>, CallError> {
        let modern = *self.common.era.read() == Some(Era::Modern);
        let sharing = self.settings.sharing;
        if sharing == Sharing::Shared || modern && !sharing.keeps_apart() {
            return Ok(self.shared.clone());
        }
        self.common.launcher.hands.has(&self.name, &self.settings, &party.principal)?;
        let mut own = self.own.lock();
        // Under the lock: whoever dismisses a client first says so, and then looks here.
        if self.common.launcher.dismissed.has(party) {
            return Err(CallError::Unavailable("its client was removed".into()));
        }
        let Some(own) = own.as_mut() else {
            self.shared.still_there()?;
            return Err(CallError::Unavailable("the proxy is shutting down".into()));
        };
        if let Some(instance) = own.get(&party.key) {
            instance.touch();
            return Ok(instance.clone());
        }
        let most = self.settings.instances;
        let principals = own
            .values()
            .filter(|own| own.owner().is_some_and(|owner| owner.principal == party.principal))
            .count();
        if own.len() >= most || principals >= most.div_ceil(SHARE) {
            return Err(CallError::Overloaded { what: "instances for single clients", most });
        }
        let instance = Arc::new(Instance::new(self.common.clone(), Some(party.clone())));
        own.insert(party.key.clone(), instance.clone());
        Ok(instance)
    }

    /// The party's own instance, where it has one.
    pub fn owned(&self, key: &InstanceKey) -> Option<Arc<Instance>> {
        self.own.lock().as_ref()?.get(key).cloned()
    }

    /// Ends a party's own instance, if it has one: the party is gone.
    pub async fn leave(&self, key: &InstanceKey) {
        let own = self.own.lock().as_mut().and_then(|own| own.remove(key));
        if let Some(own) = own {
            own.close("its client is gone").await;
        }
    }

    /// How long a call may take.
    pub fn deadline(&self) -> Duration {
        self.shared.call_timeout()
    }

    /// What the server offers of a kind, or why it does not say, where that is known.
    pub fn kept(&self, offer: ListKind) -> Option<Result<Items, CallError>> {
        self.shared.kept(offer)
    }

    /// What the server offered of a kind when it last ran, where it does not run now: another list may
    /// have taken its place.
    pub async fn known(&self, offer: ListKind) -> Option<Items> {
        if self.current().is_some() {
            return None;
        }
        self.common.known(offer).await
    }

    /// What the server says of itself: as it runs, or as it last ran.
    pub async fn greeting(&self) -> Option<Arc<Handshake>> {
        match self.current() {
            Some(running) => Some(running.greeting.clone()),
            None => self.common.known_greeting().await,
        }
    }

    /// Reports for the server that a list changed: it was unavailable when clients asked
    /// for it, and now it is.
    pub fn tell_of_list(&self, offer: ListKind) {
        let method = Method::new(offer.changed());
        // Where the queue is full, much is told already, and a client that minds asks again.
        let said = ServerMessage::Notification { method, params: None };
        let _ = self.common.heard.try_send(UnroutedMessage { party: None, said });
    }

    /// What the server offers of a kind, starting it if need be.
    ///
    /// # Errors
    /// A [`CallError`] where it does not say.
    pub async fn items(&self, offer: ListKind) -> Result<Items, CallError> {
        self.shared.items(offer).await
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
        self.shared.say(ServerEvent::Flush(done)).await;
        // Nobody records any more.
        let _ = recorded.await;
    }

    /// The running shared instance, if it runs, without starting it.
    pub fn current(&self) -> Option<Arc<Running>> {
        self.shared.peek()
    }

    /// The last lines that its instances wrote to standard error, the secrets they were handed
    /// blotted out.
    pub fn log(&self) -> Vec<String> {
        self.common.log.lock().iter().cloned().collect()
    }

    fn all(&self) -> Vec<Arc<Instance>> {
        let own = self.own.lock();
        let own = own.iter().flat_map(HashMap::values);
        own.chain(&self.replicas).chain([&self.shared]).cloned().collect()
    }

    /// Ends all that runs of it, for good.
    pub async fn close(&self, why: &str) {
        let own = self.own.lock().take().unwrap_or_default();
        let all = own.values().chain(&self.replicas).chain([&self.shared]);
        join_all(all.map(|instance| instance.close(why))).await;
        self.shared.close_spares(why).await;
    }

    /// Ends the instances that nobody used for as long as the config says, notices the death of any,
    /// and sees that as many processes are ready as the config says.
    pub async fn sweep(&self) {
        self.shared.look_after_spares().await;
        join_all(self.all().iter().map(|instance| instance.sweep())).await;
        if let Some(own) = self.own.lock().as_mut() {
            // One that somebody just got is about to be used.
            own.retain(|_, own| {
                Arc::strong_count(own) > 1 || own.peek().is_some() || !own.is_idle()
            });
        }
    }

    /// Asks of each instance that runs whether it may go on, and ends those that may not.
    pub async fn review(&self, review: &dyn LaunchReview) {
        join_all(self.all().iter().map(|instance| instance.review(review))).await;
        self.shared.review_spares(review).await;
    }

    /// Reads its secrets again, also those of single clients. What does not resolve is on record, and
    /// stays as it was.
    pub async fn reread(&self, which: ReloadScope) -> Reading {
        let mut reading = Reading::default();
        // Else what was read first could be kept last.
        let _turn = self.common.rereading.lock().await;
        for whose in SecretScope::all(&self.common.settings) {
            let before = self.common.handed(&whose);
            match self.common.reread(&whose, which).await {
                Ok(_) => drop(reading.read.insert(whose)),
                Err(not) => {
                    let kept = before.is_ok();
                    // What is still missing was told when it was first looked for.
                    let known = before.is_err_and(|before| before.what == not.failure.what);
                    if which == ReloadScope::Files && known {
                        continue;
                    }
                    reading.faults.push(not.failure.what.clone());
                    self.shared.say(ServerEvent::Unread { not: Box::new(not), kept }).await;
                }
            }
        }
        reading
    }

    /// The instances that have some of what was read.
    pub fn having(&self, reading: &Reading) -> Vec<Arc<Instance>> {
        let mut all = self.all();
        all.retain(|instance| reading.read.contains(&instance.whose()));
        all
    }

    /// Reads its secrets again, and delivers those that it gets as files to its running instances.
    /// What it gets in its environment or in headers, the next start hands over; that is now where the
    /// config says so.
    ///
    /// # Errors
    /// Where a secret does not resolve: then those of the same clients stay as they were; or where an
    /// instance could not be handed the new ones, which then has the old ones still. The rest is done.
    pub async fn rehand(
        &self,
        review: &dyn LaunchReview,
        which: ReloadScope,
    ) -> Result<RotationReport, String> {
        let settings = &self.common.settings;
        let reading = self.reread(which).await;
        let all = self.having(&reading).into_iter().map(|instance| async move {
            let mut renewed = instance.rehand(review).await?;
            if settings.restart_on_rotation && !renewed.outdated.is_empty() {
                instance.renew().await.map_err(|failure| not_anew(&failure))?;
                renewed.outdated.clear();
            }
            Ok::<_, String>(renewed)
        });
        // Side by side: an instance that does not come up keeps no spare with old ones.
        let (all, ()) = tokio::join!(join_all(all), self.shared.renew_spares(REREAD, true));
        let mut faults = reading.faults;
        let mut rehanded = RotationReport::default();
        for renewed in all {
            match renewed {
                Ok(renewed) => {
                    rehanded.instances += usize::from(renewed.files);
                    let all = rehanded.later.drain(..).chain(renewed.outdated);
                    rehanded.later = all.collect::<BTreeSet<_>>().into_iter().collect();
                }
                Err(why) => faults.push(why),
            }
        }
        if !faults.is_empty() {
            return Err(faults.join("; "));
        }
        rehanded.secrets = settings.given().map(|given| given.name.to_owned()).collect();
        Ok(rehanded)
    }

    /// Has the processes that wait be some that have what was last read, unless somebody is at it already,
    /// who then sees to that, too.
    pub async fn see_to_spares(&self) {
        let renewing = &self.common.spares.renewing;
        renewing.ask(());
        while renewing.is_asked() {
            let Some(mut turn) = renewing.turn() else { return };
            while turn.take().is_some() {
                self.shared.renew_spares(REREAD, true).await;
            }
        }
    }

    /// The files from which its secrets come.
    pub fn secret_files(&self) -> Vec<PathBuf> {
        let base = &self.common.launcher.base;
        let all = self.settings.given().flat_map(SecretBinding::references);
        let all = all.filter_map(|(_, from)| from.parse::<Source>().ok());
        all.filter_map(|source| Some(source.relative_to(base).file()?.to_owned())).collect()
    }

    /// Ends what runs for that client with that key alone: it may come in no more.
    pub async fn dismiss(&self, client: &PrincipalKind, key: &str) {
        let is_its = |own: &Instance| {
            own.owner().is_some_and(|party| {
                party.principal == *client && party.holder.as_deref() == Some(key)
            })
        };
        let gone: Vec<_> = match self.own.lock().as_mut() {
            Some(own) => own.extract_if(|_, own| is_its(own)).map(|(_, own)| own).collect(),
            None => return,
        };
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
        // First: no new one is to be one that was started before.
        self.shared.renew_spares(why, false).await;
        let all = futures_util::stream::iter(self.all());
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

    /// How it stands.
    pub async fn status(&self) -> Status {
        let all = self.all();
        let mut all = join_all(all.iter().map(|instance| instance.standing())).await;
        let active = all.iter().map(|one| one.active).sum();
        let leaving = all.iter().filter_map(|one| {
            let (running, calls) = one.leaving.as_ref()?;
            Some(InstanceStatus {
                number: running.number,
                principal: one.principal.clone(),
                process: running.process.as_ref().map(|process| process.describe()),
                active: *calls,
                leaving: true,
                health: None,
                up: running.since.elapsed(),
                usage: None,
            })
        });
        let leaving: Vec<_> = leaving.collect();
        let lost = all.iter().map(|one| one.lost).sum();
        let instances = all.iter().filter_map(|one| {
            let running = one.running.as_ref()?;
            Some(InstanceStatus {
                number: running.number,
                principal: one.principal.clone(),
                process: one.process.clone(),
                active: one.active
                    - one.leaving.as_ref().map_or(0, |(_, calls)| *calls).min(one.active),
                leaving: false,
                health: one.health,
                up: running.since.elapsed(),
                usage: one.usage,
            })
        });
        let instances = instances.chain(leaving).collect();
        // The shared one comes last, and is always there.
        let shared = all.pop();
        let (running, process, failure, health) = match shared {
            Some(shared) => (shared.running, shared.process, shared.failure, shared.word),
            None => (None, None, None, "stopped"),
        };
        Status {
            state: match (&running, &failure) {
                (Some(_), _) => "running",
                (None, Some(_)) => "failed",
                (None, None) => "stopped",
            },
            health,
            place: match &running {
                Some(running) => running.place.clone(),
                None => self.common.launcher.place(&self.settings),
            },
            process,
            revision: running.as_ref().map(|r| r.greeting.revision.to_string()),
            active,
            instances,
            warm: self.common.spares.count(),
            failure,
            unwell: self.common.unwell.load(Ordering::Relaxed),
            lost,
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use portcullis_protocol::{
        codec::Caps, exchange::Revision, identity::PrincipalKind, names::SessionId,
    };

    fn server(settings: config::Server) -> Arc<Server> {
        let launcher = Arc::new(Launcher {
            engine: crate::Engines::none(None, "none"),
            instance: String::new(),
            base: "/".into(),
            protected: Default::default(),
            known: None,
            caps: Caps { bytes: 1_000, depth: 9, nodes: 99, keys: 99, object_keys: 99 },
            hands: Default::default(),
            runtime: Default::default(),
            digests: Default::default(),
            images: Arc::new(crate::Images::of_nothing()),
            outward: Arc::new(portcullis_runtime::egress_netns::DenyAllEgress),
            signatures: Default::default(),
            dismissed: Default::default(),
            looks: portcullis_foundation::fair_semaphore::FairSemaphore::one_each(),
        });
        let (events, _) = mpsc::channel(1);
        let (heard, _) = mpsc::channel(1);
        let name = "s".parse().unwrap();
        let read = LoadedSecrets::default();
        Arc::new(Server::new(name, settings, launcher, read, Arc::new(|_| {}), events, heard))
    }

    fn party(session: usize, client: &str) -> InstanceOwner {
        InstanceOwner {
            key: InstanceKey::Session(SessionId::presented(&session.to_string())),
            principal: PrincipalKind::Client(client.parse().unwrap()),
            holder: None,
            revision: Revision::LATEST_LEGACY,
            capabilities: Bytes::from_static(br#"{"roots":{}}"#),
        }
    }

    #[tokio::test]
    async fn parties_have_instances_of_their_own_and_none_has_them_all() {
        let server = server(config::Server { instances: 6, ..Default::default() });
        let first = server.own(&party(0, "a")).unwrap();
        assert_eq!(first.party(), Some(&party(0, "a").key));
        assert!(Arc::ptr_eq(&first, &server.own(&party(0, "a")).unwrap()));
        assert!(!Arc::ptr_eq(&first, server.shared()));
        server.own(&party(1, "a")).unwrap();
        let refused = |party| match server.own(&party) {
            Err(failure) => failure,
            Ok(_) => panic!("one too many"),
        };
        let full = CallError::Overloaded { what: "instances for single clients", most: 6 };
        assert_eq!(refused(party(2, "a")), full);
        for (session, client) in [(3, "b"), (4, "b"), (5, "c"), (6, "c")] {
            server.own(&party(session, client)).unwrap();
        }
        assert_eq!(refused(party(7, "d")), full);

        // Who leaves makes room, and is started no more.
        server.leave(&party(0, "a").key).await;
        assert!(server.owned(&party(0, "a").key).is_none());
        assert!(matches!(first.running().await, Err(CallError::Unavailable(_))));
        server.own(&party(7, "d")).unwrap();
        server.close("the test ends").await;
        assert!(matches!(refused(party(7, "d")), CallError::Unavailable(_)));
    }

    #[tokio::test]
    async fn instances_that_nobody_uses_go() {
        let settings = config::Server { idle_stop_s: 1, ..Default::default() };
        let server = server(settings);
        let held = server.own(&party(0, "a")).unwrap();
        drop(server.own(&party(1, "a")).unwrap());
        // What is used again and again stays; the other goes once its time is over.
        let swept = async {
            while server.owned(&party(1, "a").key).is_some() {
                server.sweep().await;
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(30), swept).await.unwrap();
        assert!(Arc::ptr_eq(&held, &server.owned(&party(0, "a").key).unwrap()));
    }

    #[test]
    fn all_share_one_where_the_config_or_the_era_says_so() {
        let shared = config::Server { sharing: Sharing::Shared, ..Default::default() };
        let servers = [server(shared), server(config::Server::default())];
        *servers[1].common.era.write() = Some(Era::Modern);
        for server in servers {
            let own = server.own(&party(0, "a")).unwrap();
            assert!(Arc::ptr_eq(&own, server.shared()));
        }
    }
}
