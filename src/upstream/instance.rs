//! One instance of a server: started when it is first needed, ended when nobody needs it.

use std::{
    collections::BTreeSet,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use parking_lot::{Mutex, RwLock};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::{
    Deadline,
    breaker::Breaker,
    coalesce::Coalescing,
    discovery::{Items, ListKind},
    discovery_cache::DiscoveryCache,
    drain::Draining,
    event::{ServerEvent, Started},
    health::Health,
    images::Pull,
    instance_key::{InstanceKey, InstanceOwner},
    launch::{Launch, on_the_way},
    launcher::Launcher,
    maintenance::RestartBackoff,
    resource_watches::Watched,
    running::Running,
    server_secrets::{LoadedSecrets, SecretScope},
    stderr_log::{Log, Scrub},
    transport::{Call, CallError, Reply, UnroutedMessage},
    warm_pool::WarmPool,
};
use crate::config::{self, Era};
use portcullis_protocol::{
    exchange::Revision,
    identity::PrincipalKind,
    names::{DecisionId, ServerName},
    refusal::{Code, Refusal},
};
use portcullis_runtime::process::{Exit, Usage};

/// Calls that may wait for an instance to start, or to tell what it offers.
const WAITING: usize = 256;
/// The longest wait between two tries to start one that does not start.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// For a process that was ended to say how it ended.
const VERDICT: Duration = Duration::from_secs(1);
/// Bytes of a failure's text.
const FAILURE_BYTES: usize = 1_000;

/// What all instances of a server share.
pub(super) struct ServerShared {
    pub name: ServerName,
    pub settings: config::Server,
    pub launcher: Arc<Launcher>,
    pub log: Log,
    pub scrub: Scrub,
    pub events: mpsc::Sender<ServerEvent>,
    pub heard: mpsc::Sender<UnroutedMessage>,
    /// Why nothing is started of it any more, once that is so.
    pub over: OnceLock<&'static str>,
    /// The era that it was last greeted in.
    pub era: RwLock<Option<Era>>,
    /// Whether it was found to speak HTTP+SSE alone.
    pub sse: AtomicBool,
    pub spares: WarmPool,
    /// How many had to be ended since they did not answer.
    pub unwell: AtomicU64,
    pub known: DiscoveryCache,
    /// What it is handed.
    pub hands: RwLock<LoadedSecrets>,
    /// Held by whoever reads its secrets again.
    pub rereading: tokio::sync::Mutex<()>,
}

impl ServerShared {
    /// Whether it is still the one in the config.
    ///
    /// # Errors
    /// `server-unavailable`, with what has become of it.
    pub fn still_there(&self) -> Result<(), Refusal> {
        match self.over.get() {
            None => Ok(()),
            Some(why) => {
                let words = format!("server `{}` is not available: {why}", self.name);
                Err(Refusal::new(Code::ServerUnavailable, words))
            }
        }
    }
}

/// One instance of a server: the one that all clients share, or one that is greeted in the name
/// of one party.
pub struct Instance {
    pub(super) common: Arc<ServerShared>,
    pub(super) party: Option<InstanceOwner>,
    pub(super) state: tokio::sync::Mutex<State>,
    /// Held by whoever has another take the place of what runs.
    pub(super) replacing: tokio::sync::Mutex<()>,
    /// The pull of its image that it last waited for.
    pub(super) pull: watch::Sender<Option<Pull>>,
    /// A copy of the state's running server, to be looked at without waiting.
    shown: Mutex<Snapshot>,
    permits: Arc<Semaphore>,
    /// Who may wait for a start or a list.
    waiting: Arc<Semaphore>,
    pub(super) last_used: Mutex<Instant>,
    /// Whether the question for the era ended the process once, so that it is not asked again.
    pub(super) known_legacy: AtomicBool,
    /// Messages of it that did not fit a queue, and how many of those were told of.
    pub(super) lost: Arc<AtomicU64>,
    pub(super) told_lost: AtomicU64,
    pub(super) watched: Watched,
    pub(super) breaker: Breaker,
    /// What was replaced, and has not ended yet.
    pub(super) leaving: tokio::sync::Mutex<Option<Draining>>,
    pub(super) health: Mutex<Health>,
    /// How many calls were begun; each has its number.
    pub(super) begun: AtomicU64,
    /// The calls under way, by their numbers.
    pub(super) under_way: Mutex<BTreeSet<u64>>,
    /// Lists of it are not its own to tell of: another of its kind does.
    pub(super) quiet: bool,
    pub(super) renewal: Mutex<RestartBackoff>,
    /// Hand-overs of secrets to what runs, and to what is about to take its place.
    pub(super) handing: Coalescing<()>,
    pub(super) renewing: Coalescing<()>,
    /// Done once it is not started any more.
    pub(super) closing: CancellationToken,
}

pub(super) enum State {
    Stopped,
    /// The proxy stops, or its party is gone: it is not started again.
    Closed,
    Running(Arc<Running>),
    /// It did not start.
    Failed {
        until: Instant,
        pause: Duration,
        why: String,
    },
    /// It kept ending.
    CircuitOpen {
        until: Instant,
        why: String,
    },
}

#[derive(Default)]
struct Snapshot {
    running: Option<Arc<Running>>,
    failure: Option<String>,
}

/// How one instance stands.
pub(super) struct InstanceHealth {
    pub running: Option<Arc<Running>>,
    pub process: Option<String>,
    pub active: usize,
    /// Calls under way at what takes no more of them, where there is such.
    pub leaving: Option<(Arc<Running>, usize)>,
    pub failure: Option<String>,
    pub usage: Option<Usage>,
    pub lost: u64,
    /// How long it last took to say that it is well, where it is asked.
    pub health: Option<Duration>,
    /// In one word.
    pub word: &'static str,
    pub principal: Option<PrincipalKind>,
}

impl Instance {
    /// An instance that is not started yet.
    pub(super) fn new(common: Arc<ServerShared>, party: Option<InstanceOwner>) -> Self {
        Self {
            permits: Arc::new(Semaphore::new(common.settings.concurrent)),
            waiting: Arc::new(Semaphore::new(WAITING)),
            common,
            party,
            state: tokio::sync::Mutex::new(State::Stopped),
            replacing: tokio::sync::Mutex::default(),
            pull: watch::Sender::default(),
            shown: Mutex::default(),
            last_used: Mutex::new(Instant::now()),
            known_legacy: AtomicBool::new(false),
            lost: Arc::default(),
            told_lost: AtomicU64::new(0),
            watched: Watched::default(),
            breaker: Breaker::new(),
            leaving: tokio::sync::Mutex::default(),
            health: Mutex::default(),
            begun: AtomicU64::new(0),
            under_way: Mutex::default(),
            quiet: false,
            renewal: Mutex::default(),
            handing: Coalescing::default(),
            renewing: Coalescing::default(),
            closing: CancellationToken::new(),
        }
    }

    /// A further one of those that all clients share: what it tells of lists, the first one tells.
    pub(super) fn replica(common: Arc<ServerShared>) -> Self {
        Self { quiet: true, ..Self::new(common, None) }
    }

    /// For whom it runs; nothing where it is shared.
    pub fn party(&self) -> Option<&InstanceKey> {
        self.party.as_ref().map(|party| &party.key)
    }

    pub(super) fn owner(&self) -> Option<&InstanceOwner> {
        self.party.as_ref()
    }

    pub(super) fn call_timeout(&self) -> Duration {
        Duration::from_secs(self.common.settings.call_timeout_s)
    }

    pub(super) fn start_timeout(&self) -> Duration {
        Duration::from_secs(self.common.settings.start_timeout_s)
    }

    /// How long a call waits for an image that is being pulled: somebody waits for its answer.
    pub(super) fn patience(&self) -> Duration {
        self.start_timeout().min(self.call_timeout()) / 2
    }

    /// The running instance, started if need be. One start at a time; who comes meanwhile waits
    /// for it.
    ///
    /// # Errors
    /// A [`CallError`] where it does not start, or did not a moment ago.
    pub async fn running(self: &Arc<Self>) -> Result<Arc<Running>, CallError> {
        self.touch();
        if let Some(running) = self.peek() {
            return Ok(running);
        }
        let running = self.apart(|server| async move { server.started().await }).await?;
        self.touch();
        Ok(running)
    }

    /// Does work that outlives its caller: a client that gives up must not undo the start, or the
    /// list, that others wait for or that the next try needs. How much may wait is bounded.
    async fn apart<T, W>(
        self: &Arc<Self>,
        work: impl FnOnce(Arc<Self>) -> W,
    ) -> Result<T, CallError>
    where
        T: Send + 'static,
        W: Future<Output = Result<T, CallError>> + Send + 'static,
    {
        let full = |_| CallError::Overloaded { what: "calls that wait for it", most: WAITING };
        let permit = self.waiting.clone().try_acquire_owned().map_err(full)?;
        let work = work(self.clone());
        tokio::spawn(async move {
            let _permit = permit;
            work.await
        })
        .await
        .unwrap_or_else(|_| Err(CallError::Misbehaved("the work for it ended early".into())))
    }

    async fn started(&self) -> Result<Arc<Running>, CallError> {
        let until = Instant::now() + self.patience();
        let mut state = loop {
            // One that takes the place of what runs may be waited for by whoever wants it.
            if let Some(running) = self.peek() {
                return Ok(running);
            }
            // All who wait for an image wait for it at once, and not one after another.
            self.pulled(until).await?;
            let state = match self.state.try_lock() {
                Ok(state) => state,
                // Who comes while one tries it after a rest does not wait to be told how that ended.
                Err(_) if self.breaker.is_half_open() && self.peek().is_none() => {
                    return Err(self.breaker.tried());
                }
                Err(_) => tokio::select! {
                    state = self.state.lock() => state,
                    on_the_way = self.pulled_past(until) => return Err(on_the_way),
                },
            };
            if self.pulling().is_none() {
                break state;
            }
        };
        if let State::Running(running) = &*state {
            // The connection is dead, which the process behind it need not be.
            let Some(why) = running.end() else { return Ok(running.clone()) };
            let running = running.clone();
            running.stop(Duration::ZERO).await;
            *state = self.fallen(&running, &why);
            self.tell_end(&running, why).await;
        }
        self.still_there()?;
        let pause = match &*state {
            State::Closed => return Err(CallError::Unavailable("it was ended for good".into())),
            State::CircuitOpen { until, why } => {
                let left = until.saturating_duration_since(Instant::now());
                if !left.is_zero() {
                    return Err(CallError::CircuitOpen { why: why.clone(), left });
                }
                Duration::ZERO
            }
            State::Failed { until, why, .. } if Instant::now() < *until => {
                return Err(CallError::Unavailable(format!("it failed a moment ago: {why}")));
            }
            State::Failed { pause, .. } => *pause,
            State::Stopped | State::Running(_) => Duration::ZERO,
        };
        *state = State::Stopped;
        self.show(None, None);
        match self.launched(until).await {
            Ok(running) => {
                *state = State::Running(running.clone());
                self.show(Some(running.clone()), None);
                self.watched.begin(&running);
                Ok(running)
            }
            Err(failure) => {
                let pause = (pause * 2).clamp(Duration::from_millis(500), LONGEST_PAUSE);
                let why = failure.to_string();
                // Those are no faults of the server's: as soon as it may be started, it is.
                if !matches!(
                    failure,
                    CallError::Unrecorded(_) | CallError::Forbidden(_) | CallError::Pulling(_)
                ) {
                    let until = Instant::now() + pause;
                    *state = State::Failed { until, pause, why: why.clone() };
                }
                self.show(None, Some(why));
                Err(failure)
            }
        }
    }

    /// Starts a process, or takes a spare one, and greets it; what came of that is told. Its image is
    /// waited for until then.
    pub(super) async fn launched(&self, until: Instant) -> Result<Arc<Running>, CallError> {
        let clock = Deadline::new(self.start_timeout());
        let began = Instant::now();
        let (launch, spare) = match self.spare().await {
            Some(spare) => (spare.launch, Some(spare.begun)),
            None => (DecisionId::next(), None),
        };
        let started = tokio::select! {
            biased;
            started = self.start(Launch { id: launch, clock: &clock, until }, spare) => started,
            () = clock.expired() => Err(CallError::Unavailable(format!(
                "it did not start within {} s (`start-timeout-s`)",
                self.common.settings.start_timeout_s
            ))),
            () = self.closing.cancelled() => {
                let ended = || CallError::Unavailable("it was ended while it was being started".into());
                Err(self.still_there().err().unwrap_or_else(ended))
            }
        };
        match started {
            Ok(running) => {
                let running = Arc::new(running);
                self.say(ServerEvent::Started(Box::new(Started {
                    launch,
                    place: running.place.clone(),
                    process: running.process.as_ref().map(|p| p.describe()).unwrap_or_default(),
                    origin: running.origin.clone(),
                    party: self.principal(),
                    revision: running.greeting.revision,
                    server_info: running.greeting.claims(),
                    took: began.elapsed(),
                })))
                .await;
                Ok(running)
            }
            Err(failure) => {
                let failure = self.told(failure);
                let why = failure.to_string();
                let place = self.common.launcher.place(&self.common.settings);
                self.say(ServerEvent::NotStarted { launch, place, party: self.principal(), why })
                    .await;
                Err(failure)
            }
        }
    }

    pub(super) async fn say(&self, event: ServerEvent) {
        let _ = self.common.events.send(event).await;
    }

    /// Tells that what ran has ended, and how.
    pub(super) async fn tell_end(&self, running: &Running, why: String) {
        let (process, exit) = match &running.process {
            Some(process) => {
                let exit = tokio::time::timeout(VERDICT, process.wait()).await.ok();
                (process.describe(), exit)
            }
            None => (running.place.why().to_owned(), None),
        };
        let (launch, party) = (running.launch, self.principal());
        self.say(ServerEvent::Ended { launch, process, party, why, exit }).await;
    }

    /// Whose secrets it is handed.
    pub(super) fn whose(&self) -> SecretScope {
        let client = self.party.as_ref().map(|party| &party.principal);
        SecretScope::of(&self.common.settings, client)
    }

    /// The one client for which alone it runs.
    pub(super) fn principal(&self) -> Option<PrincipalKind> {
        self.party.as_ref().map(|party| party.principal.clone())
    }

    pub(super) fn show(&self, running: Option<Arc<Running>>, failure: Option<String>) {
        *self.shown.lock() = Snapshot { running, failure };
    }

    /// A death with the exit code and where to look further. What the server wrote itself stays
    /// out: a failure's text goes to places where a server has no say.
    pub(super) fn with_exit(&self, failure: CallError, exit: &OnceLock<Exit>) -> CallError {
        let mut text = failure.to_string();
        if let Some(exit) = exit.get() {
            text = format!("{text} with {exit}");
        }
        if !self.common.log.lock().is_empty() {
            text = format!("{text}; see `portcullis server logs {}`", self.common.name);
        }
        self.told(CallError::Unavailable(text))
    }

    /// Makes a call. Where a remote server did not take it because it had ended the session, it
    /// is initialized again and gets it once more.
    ///
    /// # Errors
    /// A [`CallError`] where no answer came.
    pub async fn call(self: &Arc<Self>, running: &Running, call: Call) -> Result<Reply, CallError> {
        let _permit = self.permit()?;
        let trial = self.breaker.admit()?;
        let (mut running, mut counted) = (running, running.calls.token());
        // Counted before that is looked at: one that was replaced ends once it has no calls, and one
        // that was idle ends where it had none.
        let newer = match running.calls.is_closed() {
            true => call.clock.bound(self.running()).await.ok(),
            false => None,
        };
        let newer = newer.filter(|now| now.greeting.revision == running.greeting.revision);
        if let Some(newer) = &newer {
            (running, counted) = (newer, newer.calls.token());
        }
        let again = running.process.is_none().then(|| call.clone());
        let asks = call.clock.clone();
        let reply = running.unless_revoked(running.link.call(call));
        tokio::pin!(reply);
        // A call that waits for a person has not ended it so far: while that takes its time, another
        // may try it.
        let (mut reply, trial) = tokio::select! {
            biased;
            reply = &mut reply => (reply, trial),
            () = asks.stopped(), if trial.is_some() => {
                drop(trial);
                (reply.await, None)
            }
        };
        if let (Err(CallError::Forgotten), Some(call)) = (&reply, again) {
            reply = self.call_again(running.greeting.revision, call).await;
        }
        self.touch();
        if reply.is_ok() {
            self.breaker.answered();
        }
        drop((counted, trial));
        reply.map_err(|failure| match failure {
            CallError::Unavailable(_) if running.process.is_some() => {
                self.with_exit(failure, &running.exit)
            }
            failure => self.told(failure),
        })
    }

    async fn call_again(
        self: &Arc<Self>,
        revision: Revision,
        call: Call,
    ) -> Result<Reply, CallError> {
        let clock = call.clock.clone();
        let running = clock.bound(self.running()).await?;
        // In the words of another revision it would be another call.
        if running.greeting.revision != revision {
            return Err(CallError::Forgotten);
        }
        running.unless_revoked(running.link.call(call)).await
    }

    /// Sends a notification.
    ///
    /// # Errors
    /// A [`CallError`] where it could not be sent.
    pub async fn notify(
        &self,
        running: &Running,
        method: &str,
        params: Bytes,
    ) -> Result<(), CallError> {
        self.touch();
        let sent = running.unless_revoked(running.link.notify(method, params)).await;
        sent.map_err(|failure| self.told(failure))
    }

    /// A failure as it may be logged: a part of its text can be the server's own, a header's name
    /// or a content type.
    pub(super) fn told(&self, failure: CallError) -> CallError {
        let clean = |mut text: String| {
            (self.common.scrub)(&mut text);
            text.truncate(text.floor_char_boundary(FAILURE_BYTES));
            text
        };
        match failure {
            CallError::Unavailable(text) => CallError::Unavailable(clean(text)),
            CallError::Misbehaved(text) => CallError::Misbehaved(clean(text)),
            CallError::Unrecorded(text) => CallError::Unrecorded(clean(text)),
            CallError::Forgotten => CallError::Unavailable(failure.to_string()),
            CallError::CircuitOpen { why, left } => {
                CallError::CircuitOpen { why: clean(why), left }
            }
            failure @ (CallError::Timeout(_)
            | CallError::Overloaded { .. }
            | CallError::Forbidden(_)
            | CallError::NoSecret { .. }
            | CallError::Pulling(_)) => failure,
        }
    }

    /// Notes that somebody needs it.
    pub(super) fn touch(&self) {
        *self.last_used.lock() = Instant::now();
    }

    fn permit(&self) -> Result<Active<'_>, CallError> {
        let permit = self.permits.clone().try_acquire_owned().map_err(|_| {
            CallError::Overloaded { what: "calls in flight", most: self.common.settings.concurrent }
        })?;
        self.touch();
        let number = self.begun.fetch_add(1, Ordering::SeqCst);
        self.under_way.lock().insert(number);
        Ok(Active { number, under_way: &self.under_way, _permit: permit })
    }

    /// What it offers of a kind, or why it does not say, where that is known.
    pub(super) fn kept(&self, offer: ListKind) -> Option<Result<Items, CallError>> {
        let kept = self.peek()?.definitions.kept(offer)?;
        self.touch();
        Some(kept)
    }

    /// What it offers of a kind, starting it if need be.
    ///
    /// # Errors
    /// A [`CallError`] where it does not say.
    pub(super) async fn items(self: &Arc<Self>, offer: ListKind) -> Result<Items, CallError> {
        self.touch();
        if let Some(kept) = self.kept(offer) {
            return kept;
        }
        self.apart(move |server| async move { server.listed(offer).await }).await
    }

    async fn listed(&self, offer: ListKind) -> Result<Items, CallError> {
        match self.listed_once(offer).await {
            // Greeted anew, it may tell.
            Err(CallError::Forgotten) => self.listed_once(offer).await,
            listed => listed,
        }
        .map_err(|failure| self.told(failure))
    }

    async fn listed_once(&self, offer: ListKind) -> Result<Items, CallError> {
        let mut running = self.started().await?;
        let mut counted = running.calls.token();
        // It was just ended as idle, or another took its place.
        while running.calls.is_closed() && running.end().is_none() {
            running = self.started().await?;
            counted = running.calls.token();
        }
        let _counted = counted;
        let (greeting, link) = (&running.greeting, running.link.as_ref());
        let bytes = self.common.launcher.caps.bytes;
        let name = &self.common.name;
        let items =
            running.definitions.items(offer, name, greeting, link, bytes, self.call_timeout());
        let items = running.unless_revoked(items).await?;
        self.common.learn_list(offer, &items);
        Ok(items)
    }

    /// How it stands.
    pub(super) async fn standing(&self) -> InstanceHealth {
        let (running, failure) = {
            let shown = self.shown.lock();
            (shown.running.clone().filter(|r| r.end().is_none()), shown.failure.clone())
        };
        let process = running.as_ref().and_then(|r| r.process.clone());
        let usage = match &process {
            Some(process) => tokio::time::timeout(Duration::from_secs(2), process.usage())
                .await
                .unwrap_or_default(),
            None => None,
        };
        let leaving = self.leaving().map(|running| {
            let calls = running.calls.len();
            (running, calls)
        });
        let health = *self.health.lock();
        let pulling = self.pulling();
        let word = match (&running, &failure) {
            (Some(_), _) if health.is_late() => "unhealthy",
            (Some(_), _) if health.took.is_some() => "healthy",
            (Some(_), _) => "running",
            (None, _) if pulling.is_some() => "pulling",
            (None, _) if self.breaker.is_half_open() => "resting",
            (None, Some(_)) => "failed",
            (None, None) => "stopped",
        };
        let failure = match pulling.filter(|_| running.is_none()) {
            Some(pull) => Some(on_the_way(&pull).to_string()),
            None => failure,
        };
        InstanceHealth {
            word,
            running,
            process: process.map(|process| process.describe()),
            active: self.active(),
            leaving,
            failure,
            usage,
            lost: self.lost.load(Ordering::Relaxed),
            health: health.took,
            principal: self.principal(),
        }
    }

    /// Calls under way.
    pub(super) fn active(&self) -> usize {
        self.under_way.lock().len()
    }

    /// The running instance, if it runs, without starting it.
    pub fn peek(&self) -> Option<Arc<Running>> {
        let running = self.shown.lock().running.clone()?;
        (running.end().is_none() && !running.calls.is_closed()).then_some(running)
    }
}

struct Active<'a> {
    number: u64,
    under_way: &'a Mutex<BTreeSet<u64>>,
    _permit: OwnedSemaphorePermit,
}

impl Drop for Active<'_> {
    fn drop(&mut self) {
        self.under_way.lock().remove(&self.number);
    }
}
