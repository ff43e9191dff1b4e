//! Health checks of one instance (`health-s`).
//!
//! INVARIANT: a health check is not a use of the instance. It does not keep an idle instance
//! running, and it does not take the permit of a call.

use std::time::{Duration, Instant};

use parking_lot::Mutex;
use serde_json::json;

use super::{active_calls::ActiveCalls, deadline::Deadline, running::Running, transport::Call};
use crate::config;
use portcullis_protocol::{codec::era::own_meta, exchange::Method};

/// Age from which an unanswered check is shown as unhealthy.
const LATE: Duration = Duration::from_secs(2);

/// Health checks of one instance.
pub(super) struct HealthCheck {
    every: Duration,
    timeout: Duration,
    last: Mutex<LastCheck>,
}

#[derive(Default)]
struct LastCheck {
    began: Option<Instant>,
    is_pending: bool,
    /// Duration of the last answered check.
    took: Option<Duration>,
}

impl HealthCheck {
    pub fn new(settings: &config::Server) -> Self {
        Self {
            every: Duration::from_secs(settings.health_s),
            timeout: Duration::from_secs(settings.health_timeout_s),
            last: Mutex::default(),
        }
    }

    /// Begins a check if one is due. [`check`](Self::check) ends it.
    pub fn begin(&self, running: &Running) -> bool {
        let mut last = self.last.lock();
        let since = last.began.unwrap_or(running.since).max(running.since);
        if self.every.is_zero() || last.is_pending || since.elapsed() < self.every {
            return false;
        }
        (last.began, last.is_pending) = (Some(Instant::now()), true);
        true
    }

    /// Whether the instance answers. Also true if it has ended, which others detect.
    pub async fn check(&self, running: &Running, calls: &ActiveCalls) -> bool {
        let began = Instant::now();
        let is_healthy = self.answers(running, calls).await;
        let mut last = self.last.lock();
        last.is_pending = false;
        last.took = is_healthy.then(|| began.elapsed());
        is_healthy
    }

    async fn answers(&self, running: &Running, calls: &ActiveCalls) -> bool {
        let before = calls.begun();
        // Revision 2026-07-28 has no `ping`; each of its servers answers `server/discover`.
        let (method, params) = match running.handshake.revision.is_modern() {
            true => (Method::DISCOVER, json!({ "_meta": own_meta() })),
            false => (Method::PING, json!({})),
        };
        let mut call = Call::own(method, Some(params.to_string().into()), self.timeout);
        call.clock = Deadline::never();
        let answer = running.link.call(call);
        tokio::pin!(answer);
        loop {
            tokio::select! {
                answer = &mut answer => return answer.is_ok() || running.end().is_some(),
                () = tokio::time::sleep(self.timeout) => {}
            }
            // A single-threaded server answers after the earlier calls, which have deadlines of
            // their own.
            if !calls.has_older(before) {
                return false;
            }
        }
    }

    /// Reason for the end of an instance that failed its check.
    pub fn failure(&self) -> String {
        let seconds = self.timeout.as_secs();
        format!("it did not answer within {seconds} s whether it is well (`health-s`)")
    }

    /// Whether an answer is late.
    pub fn is_late(&self) -> bool {
        let last = self.last.lock();
        last.is_pending && last.began.is_some_and(|began| began.elapsed() >= LATE)
    }

    /// Duration of the last answered check.
    pub fn took(&self) -> Option<Duration> {
        self.last.lock().took
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::running::tests::{running, silent};

    fn check(every: u64) -> HealthCheck {
        let settings = config::Server { health_s: every, ..Default::default() };
        HealthCheck { timeout: Duration::from_millis(5), ..HealthCheck::new(&settings) }
    }

    #[tokio::test]
    async fn only_one_health_check_runs_at_a_time() {
        let (checks, calls) = (check(1), ActiveCalls::new(9, 0));
        let mut running = running(true);
        assert!(!check(0).begin(&running) && !checks.begin(&running));
        running.since -= Duration::from_secs(2);
        assert!(checks.begin(&running) && !checks.begin(&running));
        assert!(!checks.is_late() && checks.took().is_none());
        assert!(checks.check(&running, &calls).await);
        assert!(checks.took().is_some());
        // The next one is due after a second.
        assert!(!checks.begin(&running));
    }

    #[tokio::test]
    async fn silent_instance_without_older_calls_is_unhealthy() {
        let (checks, calls) = (check(1), ActiveCalls::new(9, 0));
        let running = silent();
        assert!(!checks.check(&running, &calls).await);
        assert!(checks.took().is_none());
        let older = calls.admit(None).await.unwrap();
        let late = tokio::time::timeout(Duration::from_millis(50), checks.check(&running, &calls));
        assert!(late.await.is_err(), "it may be busy with the older call");
        drop(older);
        assert!(!checks.check(&running, &calls).await);
    }
}
