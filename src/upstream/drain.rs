//! Replacement of a running instance: the new process takes further calls. The old process ends
//! when its calls are done or have timed out.

use std::{sync::Arc, time::Duration};

use tokio::{sync::MutexGuard, task::JoinHandle};
use tokio_util::sync::CancellationToken;

use super::{event::LaunchReview, running::Running, server_shared::ServerShared};

/// Time for a process to exit before it is killed.
pub(super) const GRACE: Duration = Duration::from_secs(3);

/// Replacements of one instance, one at a time.
pub(super) struct Replacement {
    server: Arc<ServerShared>,
    turn: tokio::sync::Mutex<()>,
    draining: tokio::sync::Mutex<Option<Draining>>,
}

/// A process that takes no further calls.
struct Draining {
    running: Arc<Running>,
    /// Ends the process without waiting for its calls.
    now: CancellationToken,
    ended: JoinHandle<()>,
}

/// Result of a replacement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ReplaceOutcome {
    /// The instance did not run, or did not have to be replaced.
    NotRunning,
    /// A new process runs; the old one finishes this many calls.
    Busy(usize),
}

impl Replacement {
    pub fn new(server: Arc<ServerShared>) -> Self {
        Self {
            server,
            turn: tokio::sync::Mutex::default(),
            draining: tokio::sync::Mutex::default(),
        }
    }

    /// Exclusive right to replace the instance.
    pub async fn turn(&self) -> MutexGuard<'_, ()> {
        self.turn.lock().await
    }

    /// Waits until no replacement is in progress.
    pub async fn settled(&self) {
        drop(self.turn.lock().await);
    }

    /// Ends a process after its calls. Returns the number of its calls.
    pub async fn drain(&self, old: Arc<Running>, why: &str) -> usize {
        let mut draining = self.draining.lock().await;
        // One process drains at a time: the next replacement ends the earlier one.
        if let Some(before) = draining.take() {
            before.end().await;
        }
        old.calls.close();
        let calls = old.calls.len();
        let now = CancellationToken::new();
        let ended = tokio::spawn({
            let (server, running, now) = (self.server.clone(), old.clone(), now.clone());
            let why = why.to_owned();
            async move {
                tokio::select! {
                    () = running.calls.wait() => {}
                    () = tokio::time::sleep(server.call_timeout()) => {}
                    () = now.cancelled() => {}
                }
                running.stop(GRACE).await;
                server.emit_end(&running, why).await;
            }
        });
        *draining = Some(Draining { running: old, now, ended });
        calls
    }

    /// Ends the draining process at once, and waits for its end.
    pub async fn end(&self) {
        let draining = self.draining.lock().await.take();
        if let Some(draining) = draining {
            draining.end().await;
        }
    }

    /// Ends the draining process at once if policies forbid it.
    pub async fn review(&self, review: &dyn LaunchReview) {
        let draining = self.draining.lock().await;
        let Some(Draining { running, now, .. }) = draining.as_ref() else { return };
        if running.end().is_some() {
            return;
        }
        if let Some(refusal) = review.forbids(&self.server.name, &running.cleared).await {
            let _ = running.revoked.set(refusal);
            now.cancel();
        }
    }

    /// The draining process.
    pub fn draining(&self) -> Option<Arc<Running>> {
        let draining = self.draining.try_lock().ok()?;
        let Draining { running, ended, .. } = draining.as_ref()?;
        (!ended.is_finished()).then(|| running.clone())
    }
}

impl Draining {
    async fn end(self) {
        self.now.cancel();
        let _ = self.ended.await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ServerEvent, config, running::tests::running, server_shared::tests::shared};

    #[tokio::test]
    async fn replaced_process_ends_after_its_calls() {
        let (server, mut events) = shared(config::Server::default());
        let (replacement, old) = (Replacement::new(server), Arc::new(running(true)));
        let call = old.calls.token();
        assert_eq!(replacement.drain(old.clone(), "it was replaced").await, 1);
        assert!(old.calls.is_closed());
        assert!(replacement.draining().is_some() && events.try_recv().is_err());
        drop(call);
        let Some(ServerEvent::Ended { why, .. }) = events.recv().await else { panic!() };
        assert_eq!(why, "it was replaced");
        replacement.end().await;
        assert!(replacement.draining().is_none());
    }

    #[tokio::test]
    async fn next_replacement_ends_the_draining_process() {
        let (server, mut events) = shared(config::Server::default());
        let replacement = Replacement::new(server);
        let all = [Arc::new(running(true)), Arc::new(running(true))];
        let _calls = [all[0].calls.token(), all[1].calls.token()];
        for (old, why) in all.iter().zip(["first", "second"]) {
            replacement.drain(old.clone(), why).await;
        }
        let Ok(ServerEvent::Ended { why, .. }) = events.try_recv() else { panic!() };
        assert_eq!(why, "first");
        assert!(Arc::ptr_eq(&replacement.draining().unwrap(), &all[1]));
        replacement.end().await;
        assert!(matches!(events.try_recv(), Ok(ServerEvent::Ended { .. })));
    }
}
