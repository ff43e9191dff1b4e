//! Deadline of a call, which can be paused. It is paused while a person answers, because that
//! time is not the server's.

use std::{sync::Arc, time::Duration};

use tokio::{sync::watch, time::Instant};

use super::call_error::CallError;

/// Deadline of a call. Clones share one clock.
#[derive(Debug, Clone)]
pub struct Deadline {
    limit: Option<Duration>,
    state: Arc<watch::Sender<State>>,
}

#[derive(Debug)]
struct State {
    /// Time left at the last pause.
    remaining: Duration,
    /// Time since which the clock runs; `None` during a pause.
    since: Option<Instant>,
    /// Number of pauses in effect.
    paused: usize,
}

impl Deadline {
    /// A clock that runs from now on and expires after `limit`.
    pub fn new(limit: Duration) -> Self {
        Self::of(Some(limit))
    }

    /// A clock that does not expire.
    pub fn never() -> Self {
        Self::of(None)
    }

    fn of(limit: Option<Duration>) -> Self {
        let remaining = limit.unwrap_or_default();
        let state = State { remaining, since: Some(Instant::now()), paused: 0 };
        Self { limit, state: Arc::new(watch::Sender::new(state)) }
    }

    /// Pauses the clock until this guard and all other guards are dropped.
    #[must_use = "the clock runs on once this is dropped"]
    pub fn pause(&self) -> PauseGuard {
        self.state.send_modify(|state| {
            state.paused += 1;
            if let Some(since) = state.since.take() {
                state.remaining = state.remaining.saturating_sub(since.elapsed());
            }
        });
        PauseGuard(self.clone())
    }

    /// Waits until the deadline has passed.
    pub async fn expired(&self) {
        if self.limit.is_none() {
            return std::future::pending().await;
        }
        let mut state = self.state.subscribe();
        loop {
            let due = {
                let state = state.borrow_and_update();
                state.since.map(|since| since.checked_add(state.remaining))
            };
            // A deadline beyond the range of the clock never passes.
            let over = async {
                match due {
                    Some(Some(due)) => tokio::time::sleep_until(due).await,
                    _ => std::future::pending().await,
                }
            };
            tokio::select! {
                () = over => return,
                // `self` holds the sender, so the channel is open.
                _ = state.changed() => {}
            }
        }
    }

    /// Waits until the clock is paused.
    pub async fn stopped(&self) {
        let mut state = self.state.subscribe();
        // `self` holds the sender, so the channel is open.
        let _ = state.wait_for(|state| state.paused > 0).await;
    }

    /// Runs `work` until the deadline.
    ///
    /// # Errors
    /// [`CallError::Timeout`] after the deadline, and the errors of `work`.
    pub async fn bound<T>(
        &self,
        work: impl Future<Output = Result<T, CallError>>,
    ) -> Result<T, CallError> {
        tokio::select! {
            biased;
            done = work => done,
            () = self.expired() => Err(CallError::Timeout(self.limit.unwrap_or_default())),
        }
    }
}

/// Pause of a clock, until it is dropped.
#[derive(Debug)]
pub struct PauseGuard(Deadline);

impl Drop for PauseGuard {
    fn drop(&mut self) {
        self.0.state.send_modify(|state| {
            state.paused -= 1;
            if state.paused == 0 {
                state.since = Some(Instant::now());
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[tokio::test]
    async fn paused_deadline_does_not_expire() {
        let clock = Deadline::new(Duration::ZERO);
        assert!(clock.stopped().now_or_never().is_none());
        let (one, other) = (clock.pause(), clock.clone().pause());
        let waiting = tokio::spawn({
            let clock = clock.clone();
            async move { clock.expired().await }
        });
        drop(one);
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished() && clock.expired().now_or_never().is_none());
        assert!(clock.stopped().now_or_never().is_some());
        drop(other);
        waiting.await.unwrap();
        let _paused = clock.pause();
        assert!(clock.expired().now_or_never().is_none());
    }

    #[tokio::test]
    async fn remaining_time_survives_a_pause() {
        let clock = Deadline::new(Duration::from_secs(3_600));
        drop(clock.pause());
        let remaining = clock.state.borrow().remaining;
        assert!(remaining > Duration::from_secs(3_000) && remaining < Duration::from_secs(3_600));
    }

    #[tokio::test]
    async fn work_is_limited_by_the_deadline() {
        let (short, never) = (Duration::from_millis(1), std::future::pending::<Result<(), _>>());
        assert_eq!(Deadline::new(short).bound(never).await, Err(CallError::Timeout(short)));
        for clock in
            [Deadline::never(), Deadline::new(Duration::MAX), Deadline::new(Duration::ZERO)]
        {
            assert_eq!(clock.bound(async { Ok(1) }).await, Ok(1));
        }
        for clock in [Deadline::never(), Deadline::new(Duration::MAX)] {
            assert!(clock.expired().now_or_never().is_none());
        }
    }
}
