//! Lifecycle of one instance: stopped, running, failed, circuit open, closed.
//!
//! Invariant: the state keeps a running process until its end. If a caller gives up halfway, the
//! next caller finishes its work.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use tokio::sync::MutexGuard;
use tokio_util::sync::CancellationToken;

use super::{
    breaker::{Breaker, OpenUntil, STEADY},
    call_error::CallError,
    running::Running,
};
use portcullis_foundation::backoff::{Backoff, Cooldown};

/// Pauses after failed starts.
pub(super) const START_BACKOFF: Backoff =
    Backoff::new(Duration::from_millis(500), Duration::from_secs(30));

#[derive(Default)]
enum State {
    #[default]
    Stopped,
    /// The proxy stops, or the instance's client is gone. The instance does not start again.
    Closed,
    Running(Arc<Running>),
    /// The last start failed.
    Failed {
        cooldown: Cooldown,
        why: String,
    },
    /// The instance ended repeatedly soon after its start.
    CircuitOpen {
        until: Instant,
        why: String,
    },
}

/// Lifecycle of one instance.
#[derive(Default)]
pub(super) struct Lifecycle {
    state: tokio::sync::Mutex<State>,
    snapshot: Mutex<Snapshot>,
    pub breaker: Breaker,
    /// Cancelled when the instance is closed.
    pub closing: CancellationToken,
}

/// State for callers that do not wait for a transition.
#[derive(Clone, Default)]
pub(super) struct Snapshot {
    pub running: Option<Arc<Running>>,
    pub failure: Option<String>,
}

/// Exclusive access to the state.
pub(super) struct Transition<'a> {
    of: &'a Lifecycle,
    state: MutexGuard<'a, State>,
}

impl Lifecycle {
    /// Waits for exclusive access to the state.
    pub async fn lock(&self) -> Transition<'_> {
        Transition { of: self, state: self.state.lock().await }
    }

    /// Exclusive access to the state; `None` if another caller has it.
    pub fn try_lock(&self) -> Option<Transition<'_>> {
        Some(Transition { of: self, state: self.state.try_lock().ok()? })
    }

    /// The running instance, if it takes calls.
    pub fn peek(&self) -> Option<Arc<Running>> {
        let running = self.snapshot.lock().running.clone()?;
        (running.end().is_none() && !running.calls.is_closed()).then_some(running)
    }

    /// The running instance, also while it drains, and the last failure.
    pub fn snapshot(&self) -> Snapshot {
        let mut snapshot = self.snapshot.lock().clone();
        snapshot.running.take_if(|running| running.end().is_some());
        snapshot
    }
}

impl Transition<'_> {
    /// The running instance. Its connection may be dead.
    pub fn running(&self) -> Option<&Arc<Running>> {
        match &*self.state {
            State::Running(running) => Some(running),
            _ => None,
        }
    }

    /// Whether exactly this instance runs.
    pub fn is(&self, running: &Arc<Running>) -> bool {
        self.running().is_some_and(|now| Arc::ptr_eq(now, running))
    }

    /// Begins a start. Returns the cooldown to continue if the start fails.
    ///
    /// # Errors
    /// A [`CallError`] with the reason why the instance may not start now.
    pub fn begin_start(&mut self) -> Result<Cooldown, CallError> {
        let cooldown = match &*self.state {
            State::Closed => return Err(CallError::Unavailable("it was ended for good".into())),
            State::CircuitOpen { until, why } => {
                let remaining = until.saturating_duration_since(Instant::now());
                if !remaining.is_zero() {
                    return Err(CallError::CircuitOpen { why: why.clone(), remaining });
                }
                Cooldown::new(START_BACKOFF)
            }
            State::Failed { cooldown, why } if cooldown.is_active() => {
                return Err(CallError::Unavailable(format!("it failed a moment ago: {why}")));
            }
            State::Failed { cooldown, .. } => *cooldown,
            State::Stopped | State::Running(_) => Cooldown::new(START_BACKOFF),
        };
        self.stopped();
        self.withdraw(None);
        Ok(cooldown)
    }

    /// Ends a start, or a replacement, that succeeded.
    pub fn started(&mut self, running: Arc<Running>) {
        *self.state = State::Running(running.clone());
        *self.of.snapshot.lock() = Snapshot { running: Some(running), failure: None };
    }

    /// Ends a start that failed.
    pub fn start_failed(&mut self, mut cooldown: Cooldown, failure: &CallError) {
        let why = failure.to_string();
        // These are not faults of the server: the next call may start it.
        if !matches!(
            failure,
            CallError::Unrecorded(_) | CallError::Forbidden(_) | CallError::Pulling(_)
        ) {
            cooldown.fail();
            *self.state = State::Failed { cooldown, why: why.clone() };
        }
        self.withdraw(Some(why));
    }

    /// Hides the running instance from further callers, before its process is ended.
    pub fn withdraw(&self, failure: Option<String>) {
        *self.of.snapshot.lock() = Snapshot { running: None, failure };
    }

    /// Records that the process was ended on purpose.
    pub fn stopped(&mut self) {
        *self.state = State::Stopped;
    }

    /// Records an unexpected end. The next call may start the instance, unless the circuit opens.
    pub fn crashed(&mut self, running: &Running, why: &str) {
        let ran = running.process.as_ref().map_or(STEADY, |_| running.since.elapsed());
        match self.of.breaker.record_failure(ran, why) {
            None => {
                self.withdraw(None);
                self.stopped();
            }
            Some(OpenUntil { pause, why }) => {
                self.withdraw(Some(why.clone()));
                *self.state = State::CircuitOpen { until: Instant::now() + pause, why };
            }
        }
    }

    /// Lets the next call start the instance, although the last start failed recently.
    pub fn forget_failure(&mut self) {
        if matches!(&*self.state, State::Failed { .. }) {
            self.stopped();
        }
    }

    /// Closes the lifecycle. Returns what is still running.
    pub fn close(&mut self) -> Option<Arc<Running>> {
        match std::mem::replace(&mut *self.state, State::Closed) {
            State::Running(running) => Some(running),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::running::tests::running;

    #[tokio::test]
    async fn failed_starts_are_followed_by_a_cooldown() {
        let lifecycle = Lifecycle::default();
        let failure = CallError::Unavailable("no".into());
        let mut state = lifecycle.lock().await;
        let cooldown = state.begin_start().unwrap();
        state.start_failed(cooldown, &failure);
        assert_eq!(lifecycle.snapshot().failure.as_deref(), Some("no"));
        let soon = CallError::Unavailable("it failed a moment ago: no".into());
        assert_eq!(state.begin_start().unwrap_err(), soon);
        state.forget_failure();
        let cooldown = state.begin_start().unwrap();
        // A failure without fault of the server is shown, and does not delay the next start.
        state.start_failed(cooldown, &CallError::Pulling("1 MiB".into()));
        assert!(lifecycle.snapshot().failure.is_some());
        assert!(state.begin_start().is_ok());
        assert!(lifecycle.snapshot().failure.is_none());
    }

    #[tokio::test]
    async fn running_instance_is_visible_until_withdrawn() {
        let (lifecycle, running) = (Lifecycle::default(), Arc::new(running(true)));
        let mut state = lifecycle.lock().await;
        assert!(lifecycle.try_lock().is_none());
        state.started(running.clone());
        assert!(state.is(&running));
        assert!(lifecycle.peek().is_some() && lifecycle.snapshot().running.is_some());
        running.calls.close();
        assert!(lifecycle.peek().is_none() && lifecycle.snapshot().running.is_some());
        state.withdraw(None);
        assert!(lifecycle.snapshot().running.is_none() && state.running().is_some());
        state.stopped();
        assert!(state.running().is_none());
    }

    #[tokio::test]
    async fn repeated_crashes_open_the_circuit() {
        let (lifecycle, running) = (Lifecycle::default(), Arc::new(running(true)));
        let mut state = lifecycle.lock().await;
        for _ in 0..3 {
            assert!(state.begin_start().is_ok());
            state.started(running.clone());
            state.crashed(&running, "exit code 1");
        }
        assert!(lifecycle.breaker.is_half_open());
        let open = matches!(state.begin_start(), Err(CallError::CircuitOpen { .. }));
        assert!(open && lifecycle.snapshot().failure.is_some());
    }

    #[tokio::test]
    async fn lost_connection_does_not_open_the_circuit() {
        let (lifecycle, remote) = (Lifecycle::default(), Arc::new(running(false)));
        let mut state = lifecycle.lock().await;
        for _ in 0..10 {
            assert!(state.begin_start().is_ok());
            state.started(remote.clone());
            state.crashed(&remote, "connection reset");
        }
        assert!(!lifecycle.breaker.is_half_open());
    }

    #[tokio::test]
    async fn closed_instance_does_not_start_again() {
        let (lifecycle, running) = (Lifecycle::default(), Arc::new(running(true)));
        let mut state = lifecycle.lock().await;
        state.started(running.clone());
        assert!(state.close().is_some_and(|was| Arc::ptr_eq(&was, &running)));
        state.forget_failure();
        assert!(state.close().is_none());
        assert!(matches!(state.begin_start(), Err(CallError::Unavailable(_))));
    }
}
