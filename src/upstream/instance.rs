//! One instance of a server: started when it is first needed, ended when nobody needs it.

use std::{
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use parking_lot::{Mutex, RwLock};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, SetOnce, mpsc};
use tokio_util::task::AbortOnDropHandle;

use super::{
    Clock,
    definitions::{Definitions, Items, Offer},
    ear::Ear,
    event::{By, Event, Launching, Review, Started},
    greeting::Greeting,
    hands::Handed,
    launcher::{Launcher, Place},
    link::{Call, Failure, Heard, Link, Reply},
    log::{Log, Scrub},
    party::{Party, PartyKey},
    process::{Exit, Handle, Origin, Usage},
    spare::Spares,
    start::Launch,
    watch::Watched,
};
use crate::{
    config::{self, Era},
    exchange::Revision,
    identity::PrincipalKind,
    names::{DecisionId, ServerName},
    refusal::Refusal,
    vault::Folder,
};

/// Calls that may wait for an instance to start, or to tell what it offers.
const WAITING: usize = 256;
/// The longest wait between two tries to start one that does not start.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// How long one may take to end by itself.
const GRACE: Duration = Duration::from_secs(3);
/// How long its end by force may take on top.
const FORCE: Duration = Duration::from_secs(5);
/// An instance that ran for so long before it ended is no failing one.
const STEADY: Duration = Duration::from_secs(30);
/// How often an instance may end soon after its start, with no call answered since, before it is let
/// alone for a while.
const FALLS: u32 = 3;
/// The longest such while: short, since one client's calls may be what ends it for all.
const LONGEST_REST: Duration = Duration::from_secs(5);
/// For a process that was ended to say how it ended.
const VERDICT: Duration = Duration::from_secs(1);
/// Bytes of a failure's text.
const FAILURE_BYTES: usize = 1_000;

/// What all instances of a server share.
pub(super) struct Common {
    pub name: ServerName,
    pub settings: config::Server,
    pub launcher: Arc<Launcher>,
    pub log: Log,
    pub scrub: Scrub,
    pub events: mpsc::Sender<Event>,
    pub heard: mpsc::Sender<Heard>,
    /// The era that it was last greeted in.
    pub era: RwLock<Option<Era>>,
    /// Whether it was found to speak HTTP+SSE alone.
    pub sse: AtomicBool,
    pub spares: Spares,
}

/// One instance of a server: the one that all clients share, or one that is greeted in the name
/// of one party.
pub struct Instance {
    pub(super) common: Arc<Common>,
    pub(super) party: Option<Party>,
    state: tokio::sync::Mutex<State>,
    /// A copy of the state's running server, to be looked at without waiting.
    shown: Mutex<Shown>,
    permits: Arc<Semaphore>,
    /// Who may wait for a start or a list.
    waiting: Arc<Semaphore>,
    active: AtomicUsize,
    last_used: Mutex<Instant>,
    /// Whether the question for the era ended the process once, so that it is not asked again.
    pub(super) known_legacy: AtomicBool,
    /// Messages of it that did not fit a queue, and how many of those were told of.
    pub(super) lost: Arc<AtomicU64>,
    told_lost: AtomicU64,
    pub(super) watched: Watched,
    /// How often it ended soon after its start since it last answered a call.
    falls: AtomicU32,
}

enum State {
    Stopped,
    /// The proxy stops, or its party is gone: it is not started again.
    Closed,
    Running(Arc<Running>),
    Failed {
        until: Instant,
        pause: Duration,
        why: String,
    },
}

#[derive(Default)]
struct Shown {
    running: Option<Arc<Running>>,
    failure: Option<String>,
}

/// A started instance.
pub struct Running {
    /// No two that ever ran have the same.
    pub number: u64,
    /// What joins all that is told of it.
    pub(super) launch: DecisionId,
    pub(super) link: Arc<dyn Link>,
    pub(super) ear: Ear,
    /// What keeps the server telling of what is watched.
    pub(super) listening: Mutex<Option<AbortOnDropHandle<()>>>,
    pub greeting: Greeting,
    pub(super) definitions: Arc<Definitions>,
    pub(super) process: Option<Arc<dyn Handle>>,
    pub(super) exit: Arc<OnceLock<Exit>>,
    pub place: Place,
    /// What runs there.
    pub origin: Origin,
    pub since: Instant,
    /// The least severe log messages that it was last told to send, where it was told.
    pub level: Mutex<Option<&'static str>>,
    /// What policies let be done to start it.
    pub(super) cleared: Arc<Launching>,
    /// Where it finds the secrets that it gets as files; gone with it.
    pub(super) folder: Option<Folder>,
    /// Why they let it run no longer.
    pub(super) revoked: SetOnce<Box<Refusal>>,
}

/// How one instance stands.
pub(super) struct Standing {
    pub running: Option<Arc<Running>>,
    pub process: Option<String>,
    pub active: usize,
    pub failure: Option<String>,
    pub usage: Option<Usage>,
    pub lost: u64,
    pub principal: Option<PrincipalKind>,
}

impl Instance {
    /// An instance that is not started yet.
    pub(super) fn new(common: Arc<Common>, party: Option<Party>) -> Self {
        Self {
            permits: Arc::new(Semaphore::new(common.settings.concurrent)),
            waiting: Arc::new(Semaphore::new(WAITING)),
            common,
            party,
            state: tokio::sync::Mutex::new(State::Stopped),
            shown: Mutex::default(),
            active: AtomicUsize::new(0),
            last_used: Mutex::new(Instant::now()),
            known_legacy: AtomicBool::new(false),
            lost: Arc::default(),
            told_lost: AtomicU64::new(0),
            watched: Watched::default(),
            falls: AtomicU32::new(0),
        }
    }

    /// For whom it runs; nothing where it is shared.
    pub fn party(&self) -> Option<&PartyKey> {
        self.party.as_ref().map(|party| &party.key)
    }

    pub(super) fn owner(&self) -> Option<&Party> {
        self.party.as_ref()
    }

    pub(super) fn call_timeout(&self) -> Duration {
        Duration::from_secs(self.common.settings.call_timeout_s)
    }

    pub(super) fn start_timeout(&self) -> Duration {
        Duration::from_secs(self.common.settings.start_timeout_s)
    }

    /// The running instance, started if need be. One start at a time; who comes meanwhile waits
    /// for it.
    ///
    /// # Errors
    /// A [`Failure`] where it does not start, or did not a moment ago.
    pub async fn running(self: &Arc<Self>) -> Result<Arc<Running>, Failure> {
        if let Some(running) = self.peek() {
            return Ok(running);
        }
        self.apart(|server| async move { server.started().await }).await
    }

    /// Does work that outlives its caller: a client that gives up must not undo the start, or the
    /// list, that others wait for or that the next try needs. How much may wait is bounded.
    async fn apart<T, W>(self: &Arc<Self>, work: impl FnOnce(Arc<Self>) -> W) -> Result<T, Failure>
    where
        T: Send + 'static,
        W: Future<Output = Result<T, Failure>> + Send + 'static,
    {
        let full = |_| Failure::Overloaded { what: "calls that wait for it", most: WAITING };
        let permit = self.waiting.clone().try_acquire_owned().map_err(full)?;
        let work = work(self.clone());
        tokio::spawn(async move {
            let _permit = permit;
            work.await
        })
        .await
        .unwrap_or_else(|_| Err(Failure::Misbehaved("the work for it ended early".into())))
    }

    async fn started(&self) -> Result<Arc<Running>, Failure> {
        let mut state = self.state.lock().await;
        let pause = match &*state {
            State::Closed => return Err(Failure::Unavailable("it was ended for good".into())),
            State::Running(running) => match running.end() {
                None => return Ok(running.clone()),
                // The connection is dead, which the process behind it need not be.
                Some(why) => {
                    let running = running.clone();
                    running.stop(Duration::ZERO).await;
                    *state = self.fallen(&running, &why);
                    self.tell_end(&running, why).await;
                    match &*state {
                        State::Failed { why, .. } => return Err(Failure::Unavailable(why.clone())),
                        _ => Duration::ZERO,
                    }
                }
            },
            State::Failed { until, why, .. } if Instant::now() < *until => {
                return Err(Failure::Unavailable(format!("it failed a moment ago: {why}")));
            }
            State::Failed { pause, .. } => *pause,
            State::Stopped => Duration::ZERO,
        };
        *state = State::Stopped;
        self.show(None, None);
        let clock = Clock::new(self.start_timeout());
        let began = Instant::now();
        let (launch, spare) = match self.spare().await {
            Some(spare) => (spare.launch, Some(spare.begun)),
            None => (DecisionId::next(), None),
        };
        let started = tokio::select! {
            biased;
            started = self.start(Launch { id: launch, clock: &clock }, spare) => started,
            () = clock.expired() => Err(Failure::Unavailable(format!(
                "it did not start within {} s (`start-timeout-s`)",
                self.common.settings.start_timeout_s
            ))),
        };
        match started {
            Ok(running) => {
                let running = Arc::new(running);
                self.say(Event::Started(Box::new(Started {
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
                *state = State::Running(running.clone());
                self.show(Some(running.clone()), None);
                self.watched.begin(&running);
                Ok(running)
            }
            Err(failure) => {
                let failure = self.told(failure);
                let pause = (pause * 2).clamp(Duration::from_millis(500), LONGEST_PAUSE);
                let why = failure.to_string();
                // Those are no faults of the server's: as soon as it may be started, it is.
                if !matches!(failure, Failure::Unrecorded(_) | Failure::Forbidden(_)) {
                    let until = Instant::now() + pause;
                    *state = State::Failed { until, pause, why: why.clone() };
                }
                self.show(None, Some(why.clone()));
                let place = self.common.launcher.place(&self.common.settings);
                self.say(Event::NotStarted { launch, place, party: self.principal(), why }).await;
                Err(failure)
            }
        }
    }

    /// What follows on an end that nobody asked for, and shows it: it may be started at once, unless
    /// it keeps ending soon after its start and answers nothing in between.
    fn fallen(&self, running: &Running, why: &str) -> State {
        let falls = match running.since.elapsed() {
            steady if steady >= STEADY || running.process.is_none() => {
                self.falls.store(0, Ordering::Relaxed);
                0
            }
            _ => self.falls.fetch_add(1, Ordering::Relaxed).saturating_add(1),
        };
        if falls < FALLS {
            self.show(None, None);
            return State::Stopped;
        }
        let doubled = 1 << (falls - FALLS).min(8);
        let pause = (Duration::from_millis(500) * doubled).min(LONGEST_REST);
        let why = format!("it ended {falls} times soon after its start; at last: {why}");
        self.show(None, Some(why.clone()));
        State::Failed { until: Instant::now() + pause, pause: Duration::ZERO, why }
    }

    pub(super) async fn say(&self, event: Event) {
        let _ = self.common.events.send(event).await;
    }

    /// Tells that what ran has ended, and how.
    async fn tell_end(&self, running: &Running, why: String) {
        let (process, exit) = match &running.process {
            Some(process) => {
                let exit = tokio::time::timeout(VERDICT, process.wait()).await.ok();
                (process.describe(), exit)
            }
            None => (running.place.why().to_owned(), None),
        };
        let (launch, party) = (running.launch, self.principal());
        self.say(Event::Ended { launch, process, party, why, exit }).await;
    }

    /// The one client for which alone it runs.
    pub(super) fn principal(&self) -> Option<PrincipalKind> {
        self.party.as_ref().map(|party| party.principal.clone())
    }

    fn show(&self, running: Option<Arc<Running>>, failure: Option<String>) {
        *self.shown.lock() = Shown { running, failure };
    }

    /// A death with the exit code and where to look further. What the server wrote itself stays
    /// out: a failure's text goes to places where a server has no say.
    pub(super) fn with_exit(&self, failure: Failure, exit: &OnceLock<Exit>) -> Failure {
        let mut text = failure.to_string();
        if let Some(exit) = exit.get() {
            text = format!("{text} with {exit}");
        }
        if !self.common.log.lock().is_empty() {
            text = format!("{text}; see `portcullis server logs {}`", self.common.name);
        }
        self.told(Failure::Unavailable(text))
    }

    /// Makes a call. Where a remote server did not take it because it had ended the session, it
    /// is greeted anew and gets it once more.
    ///
    /// # Errors
    /// A [`Failure`] where no answer came.
    pub async fn call(self: &Arc<Self>, running: &Running, call: Call) -> Result<Reply, Failure> {
        let _permit = self.permit()?;
        let again = running.process.is_none().then(|| call.clone());
        let mut reply = running.unless_revoked(running.link.call(call)).await;
        if let (Err(Failure::Forgotten), Some(call)) = (&reply, again) {
            reply = self.call_again(running.greeting.revision, call).await;
        }
        self.touch();
        if reply.is_ok() {
            self.falls.store(0, Ordering::Relaxed);
        }
        reply.map_err(|failure| match failure {
            Failure::Unavailable(_) if running.process.is_some() => {
                self.with_exit(failure, &running.exit)
            }
            failure => self.told(failure),
        })
    }

    async fn call_again(
        self: &Arc<Self>,
        revision: Revision,
        call: Call,
    ) -> Result<Reply, Failure> {
        let clock = call.clock.clone();
        let running = clock.bound(self.running()).await?;
        // In the words of another revision it would be another call.
        if running.greeting.revision != revision {
            return Err(Failure::Forgotten);
        }
        running.unless_revoked(running.link.call(call)).await
    }

    /// Sends a notification.
    ///
    /// # Errors
    /// A [`Failure`] where it could not be sent.
    pub async fn notify(
        &self,
        running: &Running,
        method: &str,
        params: Bytes,
    ) -> Result<(), Failure> {
        self.touch();
        let sent = running.unless_revoked(running.link.notify(method, params)).await;
        sent.map_err(|failure| self.told(failure))
    }

    /// A failure as it may be logged: a part of its text can be the server's own, a header's name
    /// or a content type.
    pub(super) fn told(&self, failure: Failure) -> Failure {
        let clean = |mut text: String| {
            (self.common.scrub)(&mut text);
            text.truncate(text.floor_char_boundary(FAILURE_BYTES));
            text
        };
        match failure {
            Failure::Unavailable(text) => Failure::Unavailable(clean(text)),
            Failure::Misbehaved(text) => Failure::Misbehaved(clean(text)),
            Failure::Unrecorded(text) => Failure::Unrecorded(clean(text)),
            Failure::Forgotten => Failure::Unavailable(failure.to_string()),
            failure
            @ (Failure::Timeout(_) | Failure::Overloaded { .. } | Failure::Forbidden(_)) => failure,
        }
    }

    /// Notes that somebody needs it.
    pub(super) fn touch(&self) {
        *self.last_used.lock() = Instant::now();
    }

    fn permit(&self) -> Result<Active<'_>, Failure> {
        let permit = self.permits.clone().try_acquire_owned().map_err(|_| Failure::Overloaded {
            what: "calls under way",
            most: self.common.settings.concurrent,
        })?;
        self.touch();
        self.active.fetch_add(1, Ordering::SeqCst);
        Ok(Active { count: &self.active, _permit: permit })
    }

    /// What it offers of a kind, or why it does not say, where that is known.
    pub(super) fn kept(&self, offer: Offer) -> Option<Result<Items, Failure>> {
        let kept = self.peek()?.definitions.kept(offer)?;
        self.touch();
        Some(kept)
    }

    /// What it offers of a kind, starting it if need be.
    ///
    /// # Errors
    /// A [`Failure`] where it does not say.
    pub(super) async fn items(self: &Arc<Self>, offer: Offer) -> Result<Items, Failure> {
        self.touch();
        if let Some(kept) = self.kept(offer) {
            return kept;
        }
        self.apart(move |server| async move { server.listed(offer).await }).await
    }

    async fn listed(&self, offer: Offer) -> Result<Items, Failure> {
        match self.listed_once(offer).await {
            // Greeted anew, it may tell.
            Err(Failure::Forgotten) => self.listed_once(offer).await,
            listed => listed,
        }
        .map_err(|failure| self.told(failure))
    }

    async fn listed_once(&self, offer: Offer) -> Result<Items, Failure> {
        let running = self.started().await?;
        let (greeting, link) = (&running.greeting, running.link.as_ref());
        let bytes = self.common.launcher.caps.bytes;
        let name = &self.common.name;
        let items =
            running.definitions.items(offer, name, greeting, link, bytes, self.call_timeout());
        running.unless_revoked(items).await
    }

    /// Ends it, if it runs, for good.
    pub(super) async fn close(&self, why: &str) {
        let mut state = self.state.lock().await;
        if let State::Running(running) = std::mem::replace(&mut *state, State::Closed) {
            running.stop(GRACE).await;
            self.show(None, None);
            self.tell_end(&running, why.to_owned()).await;
        }
        drop(state);
        self.tell_lost().await;
    }

    /// Ends it if nobody used it for as long as the config says, and notices its death.
    pub(super) async fn sweep(&self) {
        self.tell_lost().await;
        // One that is being started is not idle; do not wait for it.
        let Ok(mut state) = self.state.try_lock() else { return };
        let State::Running(running) = &*state else { return };
        let ends = running.process.is_some() || self.party.is_some();
        let running = running.clone();
        let why = if let Some(why) = running.end() {
            running.stop(Duration::ZERO).await;
            *state = self.fallen(&running, &why);
            why
        } else if ends && self.is_idle() {
            running.stop(GRACE).await;
            *state = State::Stopped;
            self.show(None, None);
            format!("nobody used it for {} s", self.common.settings.idle_stop_s)
        } else {
            return;
        };
        // Before the next start can be told of.
        self.tell_end(&running, why).await;
        drop(state);
    }

    /// Asks whether what runs may go on, and ends it at once where it may not. One that is being
    /// started is asked about when it has started.
    pub(super) async fn review(&self, review: &dyn Review) {
        let mut state = self.state.lock().await;
        let State::Running(running) = &*state else { return };
        let Some(refusal) = review.forbids(&self.common.name, &running.cleared).await else {
            return;
        };
        let running = running.clone();
        let why = "policies permit it no longer".to_owned();
        // First, so that whoever waits for an answer hears of that and not of its end.
        let _ = running.revoked.set(refusal);
        self.show(None, Some(why.clone()));
        running.stop(Duration::ZERO).await;
        *state = State::Stopped;
        self.tell_end(&running, why).await;
        drop(state);
    }

    /// Puts secrets on the files that it has of them, where policies still permit it; tells whether
    /// it has any. One that is being started is waited for: it may have been handed what was read
    /// before.
    ///
    /// # Errors
    /// Why it goes on with what it has.
    pub(super) async fn rehand(
        &self,
        handed: &Handed,
        review: &dyn Review,
    ) -> Result<bool, String> {
        let state = self.state.lock().await;
        let State::Running(running) = &*state else { return Ok(false) };
        let Some(folder) = &running.folder else { return Ok(false) };
        let (name, cleared) = (&self.common.name, &running.cleared);
        if let Some(refusal) = review.forbids(name, cleared).await {
            return Err(refusal.message);
        }
        review.hands_again(name, cleared).await?;
        for (secret, value) in handed.by(By::File) {
            folder.put(&secret, &value).map_err(|why| why.to_string())?;
        }
        Ok(true)
    }

    /// Whether nobody has used it for as long as the config says, nor waits for it to tell
    /// something.
    pub(super) fn is_idle(&self) -> bool {
        let idle = Duration::from_secs(self.common.settings.idle_stop_s);
        !idle.is_zero()
            && self.active.load(Ordering::SeqCst) == 0
            && self.watched.is_empty()
            && self.last_used.lock().elapsed() >= idle
    }

    /// Tells of messages that were dropped since it was last told.
    async fn tell_lost(&self) {
        let lost = self.lost.load(Ordering::Relaxed);
        let count = lost.saturating_sub(self.told_lost.swap(lost, Ordering::Relaxed));
        if count > 0 {
            self.say(Event::Lost { count }).await;
        }
    }

    /// How it stands.
    pub(super) async fn standing(&self) -> Standing {
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
        Standing {
            running,
            process: process.map(|process| process.describe()),
            active: self.active.load(Ordering::SeqCst),
            failure,
            usage,
            lost: self.lost.load(Ordering::Relaxed),
            principal: self.principal(),
        }
    }

    /// Calls under way.
    pub(super) fn active(&self) -> usize {
        self.active.load(Ordering::SeqCst)
    }

    /// The running instance, if it runs, without starting it.
    pub fn peek(&self) -> Option<Arc<Running>> {
        self.shown.lock().running.clone().filter(|running| running.end().is_none())
    }
}

impl Running {
    /// Why it ended, if it did.
    fn end(&self) -> Option<String> {
        let why = self.link.dead()?;
        Some(match self.exit.get() {
            Some(exit) => format!("{why} with {exit}"),
            None => why,
        })
    }

    /// What comes of work with it, while policies let it run.
    async fn unless_revoked<T>(
        &self,
        work: impl Future<Output = Result<T, Failure>>,
    ) -> Result<T, Failure> {
        tokio::select! {
            biased;
            refusal = self.revoked.wait() => Err(Failure::Forbidden(refusal.clone())),
            done = work => done,
        }
    }

    /// Ends the process, where there is one here. Until it is gone, the state keeps it: a caller
    /// that gives up half way leaves it to the next.
    async fn stop(&self, grace: Duration) {
        drop(self.listening.lock().take());
        if !grace.is_zero() {
            self.link.leave().await;
        }
        if let Some(process) = &self.process {
            end(process.as_ref(), grace).await;
        }
    }
}

/// Ends a process, and does not wait for ever for that: what then remains goes with its handle.
pub(super) async fn end(process: &dyn Handle, grace: Duration) {
    if tokio::time::timeout(grace + FORCE, process.stop(grace)).await.is_err() {
        tracing::warn!(process = process.describe(), "a server's process did not end in time");
    }
}

struct Active<'a> {
    count: &'a AtomicUsize,
    _permit: OwnedSemaphorePermit,
}

impl Drop for Active<'_> {
    fn drop(&mut self) {
        self.count.fetch_sub(1, Ordering::SeqCst);
    }
}
