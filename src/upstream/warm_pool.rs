//! Warm pool of a server: processes that are started in advance, without a handshake.
//!
//! The start of a warm process is decided and recorded without a client. The instance that takes it
//! keeps its launch id, and has the launch decided and recorded again: for its client, by the
//! policies of that time. A warm process has the common secrets, so instances with other secrets do
//! not take one.

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
    call_error::CallError,
    coalesce::Coalescing,
    deadline::Deadline,
    event::{LaunchReview, ServerEvent},
    launch::{Launch, SpawnedProcess, Starter},
    running::end,
    server_shared::ServerShared,
};
use portcullis_foundation::backoff::{Backoff, Cooldown};
use portcullis_protocol::names::DecisionId;

/// Pauses after failed starts of warm processes.
const BACKOFF: Backoff = Backoff::new(Duration::from_millis(500), Duration::from_secs(30));
/// Age from which a process counts as steady. One that ends earlier counts as a failed start.
const STEADY: Duration = Duration::from_secs(10);
/// Why a process with old secrets is replaced.
const REREAD: &str = "its secrets changed";

/// Warm processes of one server.
pub(super) struct WarmPool {
    starter: Starter,
    slot: Mutex<PoolSlot>,
    /// Held while processes are started.
    filling: tokio::sync::Mutex<()>,
    /// Replacements of processes with old secrets.
    rotating: Coalescing<()>,
    /// Number of policy reviews. A process that was started across a review is not kept.
    reviews: AtomicU64,
    closing: CancellationToken,
}

struct PoolSlot {
    waiting: VecDeque<WarmProcess>,
    cooldown: Cooldown,
}

/// A process that has received no message.
struct WarmProcess {
    process: SpawnedProcess,
    since: Instant,
}

impl WarmProcess {
    fn has_ended(&self) -> bool {
        self.process.exit.get().is_some()
    }

    fn is_steady(&self) -> bool {
        self.since.elapsed() >= STEADY
    }

    fn launch(&self) -> DecisionId {
        self.process.cleared.launch
    }
}

impl WarmPool {
    pub fn new(server: Arc<ServerShared>) -> Arc<Self> {
        Arc::new(Self {
            starter: Starter::new(server, None),
            slot: Mutex::new(PoolSlot {
                waiting: VecDeque::new(),
                cooldown: Cooldown::new(BACKOFF),
            }),
            filling: tokio::sync::Mutex::default(),
            rotating: Coalescing::default(),
            reviews: AtomicU64::new(0),
            closing: CancellationToken::new(),
        })
    }

    fn server(&self) -> &ServerShared {
        &self.starter.server
    }

    /// Number of warm processes.
    pub fn count(&self) -> usize {
        self.slot.lock().waiting.iter().filter(|warm| !warm.has_ended()).count()
    }

    /// Takes a running process that equals the result of a start now.
    pub async fn take(self: &Arc<Self>) -> Option<SpawnedProcess> {
        if self.server().settings.warm == 0 {
            return None;
        }
        if self.slot.lock().waiting.is_empty() {
            self.refill();
            return None;
        }
        let digest = self.program_digest().await;
        let ServerShared { launcher, settings, secrets, .. } = self.server();
        let placement = launcher.placement(settings);
        let secrets = secrets.loaded(&self.starter.scope).ok();
        let taken = loop {
            let Some(warm) = self.slot.lock().waiting.pop_front() else { break None };
            let process = &warm.process;
            let outdated = if warm.has_ended() {
                "it ended before it was needed"
            } else if process.cleared.program.digest != digest {
                "its program was replaced"
            } else if process.placement.kind() != placement.kind() {
                "its runtime has changed"
            } else if !secrets.as_ref().is_some_and(|now| Arc::ptr_eq(now, &process.secrets)) {
                REREAD
            } else {
                self.slot.lock().cooldown.reset();
                break Some(warm.process);
            };
            self.end(warm, outdated).await;
        };
        self.refill();
        taken
    }

    /// Digest of the program or image of a start now, if it has one.
    async fn program_digest(&self) -> Option<String> {
        let ServerShared { launcher, name, settings, .. } = self.server();
        if let Some(hashed) = launcher.hashed(settings).await {
            return Some(hashed.digest);
        }
        let pinned =
            launcher.images.pin(&launcher.engine.now(), name, settings).await.ok().flatten();
        pinned.map(|pinned| pinned.digest().to_owned())
    }

    fn is_short(&self) -> bool {
        if self.server().ensure_started().is_err() {
            return false;
        }
        let slot = self.slot.lock();
        let warm = self.server().settings.warm;
        !self.closing.is_cancelled() && !slot.cooldown.is_active() && slot.waiting.len() < warm
    }

    /// Starts missing processes on a task of its own.
    fn refill(self: &Arc<Self>) {
        let pool = self.clone();
        tokio::spawn(async move { pool.fill().await });
    }

    async fn fill(&self) {
        let Ok(_one_at_a_time) = self.filling.try_lock() else { return };
        let server = self.server();
        while self.is_short() {
            let reviews = self.reviews.load(Ordering::SeqCst);
            let id = DecisionId::next();
            let clock = Deadline::new(server.start_timeout());
            let until = Instant::now() + server.pull_patience();
            let begun = tokio::select! {
                biased;
                begun = self.starter.begin(Launch { id, clock: &clock, until }, None) => begun,
                () = clock.expired() => Err(CallError::Timeout(server.start_timeout())),
                () = self.closing.cancelled() => {
                    Err(CallError::Unavailable("the proxy is shutting down".into()))
                }
            };
            match begun {
                Ok(process) => {
                    let warm = WarmProcess { process, since: Instant::now() };
                    if let Err((late, why)) = self.add(warm, reviews) {
                        self.end(*late, why).await;
                    }
                }
                Err(failure) => {
                    self.slot.lock().cooldown.fail();
                    self.starter.not_started(id, failure).await;
                    return;
                }
            }
        }
    }

    /// Adds a process whose start began after `reviews` reviews. Returns it with the reason if it
    /// may not be kept.
    fn add(&self, warm: WarmProcess, reviews: u64) -> Result<(), (Box<WarmProcess>, &'static str)> {
        let mut slot = self.slot.lock();
        if self.closing.is_cancelled() {
            return Err((Box::new(warm), "the proxy stops"));
        }
        if self.reviews.load(Ordering::SeqCst) != reviews {
            return Err((Box::new(warm), "policies changed while it was started"));
        }
        slot.waiting.push_back(warm);
        Ok(())
    }

    /// Removes the processes for which `go` holds.
    fn remove(&self, go: impl Fn(&WarmProcess) -> bool) -> Vec<WarmProcess> {
        let mut slot = self.slot.lock();
        let (gone, stay) = slot.waiting.drain(..).partition(go);
        slot.waiting = stay;
        gone.into_iter().collect()
    }

    async fn end(&self, warm: WarmProcess, why: &str) {
        let SpawnedProcess { handle, exit, .. } = &warm.process;
        let exit = exit.get().cloned();
        end(handle.as_ref(), Duration::ZERO).await;
        let (launch, process, why) = (warm.launch(), handle.describe(), why.to_owned());
        self.server().emit(ServerEvent::Ended { launch, process, party: None, why, exit }).await;
    }

    /// Replaces processes that ended.
    pub async fn sweep(self: &Arc<Self>) {
        for warm in self.remove(WarmProcess::has_ended) {
            if !warm.is_steady() {
                self.slot.lock().cooldown.fail();
            }
            self.end(warm, "it ended before it was needed").await;
        }
        {
            let mut slot = self.slot.lock();
            if slot.waiting.iter().any(WarmProcess::is_steady) {
                slot.cooldown.reset();
            }
        }
        if self.is_short() {
            self.refill();
        }
    }

    /// Ends the processes that policies forbid.
    pub async fn review(&self, review: &dyn LaunchReview) {
        // A process that is starting was permitted before this review, and is not kept.
        self.reviews.fetch_add(1, Ordering::SeqCst);
        let launches: Vec<_> =
            self.slot.lock().waiting.iter().map(|warm| warm.process.cleared.clone()).collect();
        for cleared in launches {
            if review.forbids(&self.server().name, &cleared).await.is_none() {
                continue;
            }
            for warm in self.remove(|warm| warm.launch() == cleared.launch) {
                self.end(warm, "policies permit it no longer").await;
            }
        }
    }

    /// Replaces all processes.
    pub async fn restart(self: &Arc<Self>, why: &str) {
        self.replace(why, |_| true).await;
    }

    /// Replaces the processes with old secrets.
    pub async fn rotate(self: &Arc<Self>) {
        self.replace(REREAD, |warm| {
            let current = self.server().secrets.loaded(&self.starter.scope);
            !current.is_ok_and(|current| Arc::ptr_eq(&current, &warm.process.secrets))
        })
        .await;
    }

    async fn replace(self: &Arc<Self>, why: &str, go: impl Fn(&WarmProcess) -> bool) {
        {
            // A process that is starting may have the old secrets.
            let _one_at_a_time = self.filling.lock().await;
            for warm in self.remove(go) {
                self.end(warm, why).await;
            }
        }
        self.sweep().await;
    }

    /// [`rotate`](Self::rotate), once for all concurrent callers.
    pub async fn rotate_coalesced(self: &Arc<Self>) {
        self.rotating.ask(());
        while let Some(mut turn) = self.rotating.begin() {
            while turn.take().is_some() {
                self.rotate().await;
            }
        }
    }

    /// Ends all processes for good, including those that are starting.
    pub async fn close(&self, why: &str) {
        self.closing.cancel();
        for warm in self.remove(|_| true) {
            self.end(warm, why).await;
        }
        drop(self.filling.lock().await);
    }
}

#[cfg(test)]
mod tests {
    use portcullis_runtime::process::Exit;
    use tokio::sync::mpsc;

    use super::*;
    use crate::{
        LoadedSecrets, SecretScope, SecretSet, config, launch::tests::spawned,
        secret_rotation::tests::PermitAll, server_shared::tests::shared_with,
    };

    /// A pool for one process, with the secrets of the server.
    fn pool() -> (Arc<WarmPool>, mpsc::Receiver<ServerEvent>, Arc<SecretSet>) {
        let secrets = Arc::new(SecretSet::default());
        let read = LoadedSecrets::from([(SecretScope::Common, Ok(secrets.clone()))]);
        let settings = config::Server { warm: 1, ..Default::default() };
        let (server, events) = shared_with(settings, read);
        (WarmPool::new(server), events, secrets)
    }

    fn warm(secrets: &Arc<SecretSet>) -> WarmProcess {
        WarmProcess { process: spawned(secrets.clone()), since: Instant::now() }
    }

    fn ended(events: &mut mpsc::Receiver<ServerEvent>) -> String {
        match events.try_recv() {
            Ok(ServerEvent::Ended { why, .. }) => why,
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn warm_process_with_old_secrets_is_not_used() {
        let (pool, mut events, secrets) = pool();
        let old = Arc::new(SecretSet::default());
        for secrets in [&old, &secrets] {
            assert!(pool.add(warm(secrets), 0).is_ok());
        }
        assert_eq!(pool.count(), 2);
        let taken = pool.take().await.unwrap();
        assert!(Arc::ptr_eq(&taken.secrets, &secrets));
        assert_eq!((ended(&mut events), pool.count()), (REREAD.to_owned(), 0));
    }

    #[tokio::test]
    async fn warm_process_started_before_a_policy_review_is_dropped() {
        let (pool, mut events, secrets) = pool();
        pool.review(&PermitAll).await;
        let Err((_, why)) = pool.add(warm(&secrets), 0) else { panic!() };
        assert_eq!(why, "policies changed while it was started");
        assert!(pool.add(warm(&secrets), 1).is_ok());
        pool.review(&PermitAll).await;
        assert_eq!(pool.count(), 1);
        pool.close("the proxy stops").await;
        assert_eq!((ended(&mut events), pool.count()), ("the proxy stops".to_owned(), 0));
        assert!(pool.add(warm(&secrets), 2).is_err());
    }

    #[tokio::test]
    async fn warm_process_that_ends_early_counts_as_a_failed_start() {
        let (pool, mut events, secrets) = pool();
        assert!(pool.is_short());
        let early = warm(&secrets);
        early.process.exit.set(Exit { code: 1, reason: None }).unwrap();
        assert!(pool.add(early, 0).is_ok());
        pool.sweep().await;
        assert_eq!(ended(&mut events), "it ended before it was needed");
        assert!(!pool.is_short() && pool.slot.lock().waiting.is_empty());
    }
}
