//! A running instance is replaced by a new one: that one takes the calls from now on, and the old one
//! ends when its own are done, or have had their time.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::{
    event::LaunchReview,
    instance::{Instance, State},
    running::Running,
    transport::CallError,
};

/// How long one may take to end by itself once its calls are done.
const GRACE: Duration = Duration::from_secs(3);

/// One that takes no more calls.
pub(super) struct Draining {
    running: Arc<Running>,
    /// Ends it, whatever it still does.
    now: CancellationToken,
    ended: JoinHandle<()>,
}

/// What became of one that was to be replaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ReplaceOutcome {
    /// It did not run, or need not be replaced. What starts next is new.
    NotRunning,
    /// Another runs in its place; so many calls are still under way at the old one.
    Busy(usize),
}

impl Instance {
    /// Starts another process, has it take the calls, and lets the old one end. Where the new one
    /// does not start, the old one goes on.
    ///
    /// # Errors
    /// Why the new one did not start.
    pub(super) async fn replace(self: &Arc<Self>, why: &str) -> Result<ReplaceOutcome, CallError> {
        self.replace_where(why, |_| true).await
    }

    /// The same, where what runs is one of which that is so once it is this one's turn.
    ///
    /// # Errors
    /// Why the new one did not start.
    pub(super) async fn replace_where(
        self: &Arc<Self>,
        why: &str,
        is_so: impl Fn(&Running) -> bool,
    ) -> Result<ReplaceOutcome, CallError> {
        let _one_at_a_time = self.replacing.lock().await;
        let old = match &*self.state.lock().await {
            State::Running(old) if is_so(old) => old.clone(),
            _ => return Ok(ReplaceOutcome::NotRunning),
        };
        // The state is free meanwhile: the old one takes calls, and can be ended.
        let new = self.launched(Instant::now() + self.patience()).await?;
        let mut state = self.state.lock().await;
        if !matches!(&*state, State::Running(now) if Arc::ptr_eq(now, &old)) {
            drop(state);
            new.stop(GRACE).await;
            self.tell_end(&new, "what it was to take the place of ended first".into()).await;
            return Ok(ReplaceOutcome::NotRunning);
        }
        *state = State::Running(new.clone());
        self.show(Some(new.clone()), None);
        self.watched.begin(&new);
        drop(state);
        Ok(ReplaceOutcome::Busy(self.let_go(old, why).await))
    }

    /// Lets one end once its calls are done; how many are under way.
    async fn let_go(self: &Arc<Self>, old: Arc<Running>, why: &str) -> usize {
        let mut leaving = self.leaving.lock().await;
        // One at a time: who replaces it again does not wait for the last.
        if let Some(before) = leaving.take() {
            before.now.cancel();
            let _ = before.ended.await;
        }
        old.calls.close();
        let calls = old.calls.len();
        let now = CancellationToken::new();
        let ended = tokio::spawn({
            let (instance, running, now) = (self.clone(), old.clone(), now.clone());
            let why = why.to_owned();
            async move {
                tokio::select! {
                    () = running.calls.wait() => {}
                    () = tokio::time::sleep(instance.call_timeout()) => {}
                    () = now.cancelled() => {}
                }
                running.stop(GRACE).await;
                instance.tell_end(&running, why).await;
            }
        });
        *leaving = Some(Draining { running: old, now, ended });
        calls
    }

    /// Ends what still leaves, and waits until it has.
    pub(super) async fn end_leaving(&self) {
        let leaving = self.leaving.lock().await.take();
        if let Some(leaving) = leaving {
            leaving.now.cancel();
            let _ = leaving.ended.await;
        }
    }

    /// Asks whether what leaves may go on, and ends it at once where it may not.
    pub(super) async fn review_leaving(&self, review: &dyn LaunchReview) {
        let leaving = self.leaving.lock().await;
        let Some(Draining { running, now, .. }) = leaving.as_ref() else { return };
        if running.end().is_some() {
            return;
        }
        if let Some(refusal) = review.forbids(&self.common.name, &running.cleared).await {
            let _ = running.revoked.set(refusal);
            now.cancel();
        }
    }

    /// What takes no more calls and has not ended.
    pub(super) fn leaving(&self) -> Option<Arc<Running>> {
        let leaving = self.leaving.try_lock().ok()?;
        let Draining { running, ended, .. } = leaving.as_ref()?;
        (!ended.is_finished()).then(|| running.clone())
    }
}
