//! Processes of a server that are started ahead and wait for their first word.
//!
//! A spare is decided and recorded as any start is, in nobody's name. Who takes one goes on with its
//! launch id, and has it decided and recorded again: in the party's name, where it is for one, and by
//! the policies of then. It has the secrets that are common, so that it is for nobody who has some of
//! his own.

use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use super::{
    Deadline,
    coalesce::Coalescing,
    event::{LaunchReview, ServerEvent},
    instance::{Instance, ServerShared},
    launch::{Launch, SpawnedProcess},
    running::end,
    server_secrets::SecretScope,
    transport::CallError,
};
use portcullis_protocol::names::DecisionId;

/// The longest wait between two tries to start one.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// One that ended so soon says that the next will end, too.
const SOON: Duration = Duration::from_secs(10);

/// The spares of one server.
pub(super) struct WarmPool {
    ready: Mutex<PoolSlot>,
    /// Held by whoever starts some.
    filling: tokio::sync::Mutex<()>,
    /// That they be others, with new secrets.
    pub renewing: Coalescing<()>,
    /// How often policies were asked about what waits.
    reviews: AtomicU64,
    closing: CancellationToken,
}

#[derive(Default)]
struct PoolSlot {
    waiting: VecDeque<WarmProcess>,
    /// Until when none is started, since the last did not start, and how long that is.
    paused: Option<(Instant, Duration)>,
}

/// A process that nobody has spoken to.
pub(super) struct WarmProcess {
    pub launch: DecisionId,
    pub begun: SpawnedProcess,
    since: Instant,
}

impl WarmPool {
    pub fn new() -> Self {
        Self {
            ready: Mutex::default(),
            filling: tokio::sync::Mutex::default(),
            renewing: Coalescing::default(),
            reviews: AtomicU64::new(0),
            closing: CancellationToken::new(),
        }
    }

    /// How many wait.
    pub fn count(&self) -> usize {
        self.ready.lock().waiting.iter().filter(|spare| spare.begun.exit.get().is_none()).count()
    }

    fn wants(&self, warm: usize) -> bool {
        let ready = self.ready.lock();
        let rests = ready.paused.is_some_and(|(until, _)| Instant::now() < until);
        !self.closing.is_cancelled() && !rests && ready.waiting.len() < warm
    }

    fn pause(&self) {
        let mut ready = self.ready.lock();
        let pause = ready.paused.map_or(Duration::ZERO, |(_, pause)| pause * 2);
        let pause = pause.clamp(Duration::from_millis(500), LONGEST_PAUSE);
        ready.paused = Some((Instant::now() + pause, pause));
    }

    /// Has one wait that was begun after so many reviews; gives it back where it may not, and says
    /// why.
    fn add(
        &self,
        spare: WarmProcess,
        reviews: u64,
    ) -> Result<(), (Box<WarmProcess>, &'static str)> {
        let mut ready = self.ready.lock();
        if self.closing.is_cancelled() {
            return Err((Box::new(spare), "the proxy stops"));
        }
        if self.reviews.load(Ordering::SeqCst) != reviews {
            return Err((Box::new(spare), "policies changed while it was started"));
        }
        ready.waiting.push_back(spare);
        Ok(())
    }

    fn first(&self) -> Option<WarmProcess> {
        self.ready.lock().waiting.pop_front()
    }

    /// One lived, so that the next need not be waited for.
    fn lived(&self) {
        self.ready.lock().paused = None;
    }

    /// Takes those that are to go.
    fn remove(&self, go: impl Fn(&WarmProcess) -> bool) -> Vec<WarmProcess> {
        let mut ready = self.ready.lock();
        let (gone, stay) = ready.waiting.drain(..).partition(go);
        ready.waiting = stay;
        gone.into_iter().collect()
    }
}

impl WarmProcess {
    async fn end(self, common: &ServerShared, why: &str) {
        let exit = self.begun.exit.get().cloned();
        end(self.begun.handle.as_ref(), Duration::ZERO).await;
        let process = self.begun.handle.describe();
        let (launch, why) = (self.launch, why.to_owned());
        let _ = common
            .events
            .send(ServerEvent::Ended { launch, process, party: None, why, exit })
            .await;
    }
}

impl Instance {
    /// Takes a spare that still runs, and whose program is still the one on disk.
    pub(super) async fn spare(&self) -> Option<WarmProcess> {
        let common = &self.common;
        if common.settings.warm == 0 || self.whose() != SecretScope::Common {
            return None;
        }
        if common.spares.ready.lock().waiting.is_empty() {
            self.refill();
            return None;
        }
        let now = self.content().await;
        let place = common.launcher.place(&common.settings);
        let handed = common.handed(&SecretScope::Common).ok();
        let taken = loop {
            let Some(spare) = common.spares.first() else { break None };
            let cleared = &spare.begun.cleared.program;
            if spare.begun.exit.get().is_some() {
                spare.end(common, "it ended before it was needed").await;
            } else if cleared.digest != now {
                spare.end(common, "its program was replaced").await;
            } else if spare.begun.place.kind() != place.kind() {
                spare.end(common, "its runtime has changed").await;
            } else if !handed.as_ref().is_some_and(|now| Arc::ptr_eq(now, &spare.begun.handed)) {
                spare.end(common, "its secrets were read again").await;
            } else {
                common.spares.lived();
                break Some(spare);
            }
        };
        self.refill();
        taken
    }

    /// The digest of what would be started now, where it has one.
    async fn content(&self) -> Option<String> {
        let ServerShared { launcher, name, settings, .. } = &*self.common;
        if let Some(hashed) = launcher.hashed(settings).await {
            return Some(hashed.digest);
        }
        let pinned =
            launcher.images.pin(&launcher.engine.now(), name, settings).await.ok().flatten();
        pinned.map(|pinned| pinned.digest().to_owned())
    }

    /// Has spares started, if need be, on a task of its own: that takes its time. They are nobody's,
    /// whoever took the last.
    fn refill(&self) {
        let nobodys = Self::new(self.common.clone(), None);
        tokio::spawn(async move { nobodys.fill().await });
    }

    /// Starts spares until there are as many as the config says.
    async fn fill(&self) {
        let common = &self.common;
        let warm = common.settings.warm;
        let Ok(_turn) = common.spares.filling.try_lock() else { return };
        while common.spares.wants(warm) {
            let reviews = common.spares.reviews.load(Ordering::SeqCst);
            let launch = DecisionId::next();
            let clock = Deadline::new(self.start_timeout());
            let until = Instant::now() + self.patience();
            let begun = tokio::select! {
                biased;
                begun = self.begin(Launch { id: launch, clock: &clock, until }, None) => begun,
                () = clock.expired() => Err(CallError::Timeout(self.start_timeout())),
                () = common.spares.closing.cancelled() => {
                    Err(CallError::Unavailable("the proxy is shutting down".into()))
                }
            };
            match begun {
                Ok(begun) => {
                    let spare = WarmProcess { launch, begun, since: Instant::now() };
                    if let Err((late, why)) = common.spares.add(spare, reviews) {
                        late.end(common, why).await;
                    }
                }
                Err(failure) => {
                    common.spares.pause();
                    let place = common.launcher.place(&common.settings);
                    let why = self.told(failure).to_string();
                    self.say(ServerEvent::NotStarted { launch, place, party: None, why }).await;
                    return;
                }
            }
        }
    }

    /// Notices spares that ended, and replaces them.
    pub(super) async fn look_after_spares(&self) {
        let common = &self.common;
        for spare in common.spares.remove(|spare| spare.begun.exit.get().is_some()) {
            if spare.since.elapsed() < SOON {
                common.spares.pause();
            }
            spare.end(common, "it ended before it was needed").await;
        }
        let steady = |spare: &WarmProcess| spare.since.elapsed() >= SOON;
        if common.spares.ready.lock().waiting.iter().any(steady) {
            common.spares.lived();
        }
        if common.spares.wants(common.settings.warm) {
            self.refill();
        }
    }

    /// Ends the spares that policies permit no longer.
    pub(super) async fn review_spares(&self, review: &dyn LaunchReview) {
        let common = &self.common;
        // One that is being started was decided on before, and is not kept. It is not waited for.
        common.spares.reviews.fetch_add(1, Ordering::SeqCst);
        let launches: Vec<_> = {
            let ready = common.spares.ready.lock();
            ready.waiting.iter().map(|s| (s.launch, s.begun.cleared.clone())).collect()
        };
        for (launch, cleared) in launches {
            if review.forbids(&common.name, &cleared).await.is_none() {
                continue;
            }
            for spare in common.spares.remove(|spare| spare.launch == launch) {
                spare.end(common, "policies permit it no longer").await;
            }
        }
    }

    /// Ends the spares that were started before, or of those the ones that have other secrets than they
    /// would have now (`outdated`); others take their places.
    pub(super) async fn renew_spares(&self, why: &str, outdated: bool) {
        let common = &self.common;
        {
            // One that is being started may have been handed the old ones.
            let _turn = common.spares.filling.lock().await;
            let handed = common.handed(&SecretScope::Common).ok();
            let stays = |spare: &WarmProcess| {
                let has = |now| Arc::ptr_eq(now, &spare.begun.handed);
                outdated && handed.as_ref().is_some_and(has)
            };
            for spare in common.spares.remove(|spare| !stays(spare)) {
                spare.end(common, why).await;
            }
        }
        self.look_after_spares().await;
    }

    /// Ends all spares, for good.
    pub(super) async fn close_spares(&self, why: &str) {
        let spares = &self.common.spares;
        spares.closing.cancel();
        for spare in spares.remove(|_| true) {
            spare.end(&self.common, why).await;
        }
        // One that is being started ends itself; until it has, it is not gone.
        drop(spares.filling.lock().await);
    }
}
