//! State of a server and its instances, for `portcullis server ls` and the metrics.

use std::{sync::Arc, time::Duration};

use super::{placement::Placement, running::Running};
use portcullis_protocol::identity::PrincipalKind;
use portcullis_runtime::process::Usage;

/// State of a server.
#[derive(Debug, Clone)]
pub struct Status {
    /// State of the shared instance: `running`, `stopped` or `failed`.
    pub state: &'static str,
    /// Health: `healthy` or `unhealthy` with health checks (`health-s`), else `running`; `pulling`,
    /// `resting` while the circuit is open, `failed`, or `stopped`.
    pub health: &'static str,
    /// Runtime of the shared instance, or the runtime of its next start.
    pub placement: Placement,
    /// Local process of the shared instance.
    pub process: Option<String>,
    pub revision: Option<String>,
    /// Calls in flight, of all instances.
    pub active: usize,
    /// Running instances.
    pub instances: Vec<InstanceStatus>,
    /// Number of warm processes.
    pub warm: usize,
    /// Failure of the shared instance.
    pub failure: Option<String>,
    /// Number of instances that were ended after a failed health check.
    pub unwell: u64,
    /// Number of messages of the present instances that were dropped because a queue was full.
    pub lost: u64,
}

/// State of one running instance.
#[derive(Debug, Clone)]
pub struct InstanceStatus {
    /// Unique number among all instances that ever ran.
    pub number: u64,
    /// Owner of the dedicated instance; `None` for a shared one.
    pub principal: Option<PrincipalKind>,
    /// Local process.
    pub process: Option<String>,
    /// Calls in flight.
    pub active: usize,
    /// Whether the instance was replaced and ends after its calls.
    pub leaving: bool,
    /// Duration of the last answered health check (`health-s`).
    pub health: Option<Duration>,
    /// Time since the start.
    pub up: Duration,
    /// Resource usage, if available.
    pub usage: Option<Usage>,
}

/// State of one instance.
pub(super) struct InstanceHealth {
    pub running: Option<Arc<Running>>,
    pub process: Option<String>,
    pub active: usize,
    /// The draining process and the number of its calls.
    pub draining: Option<(Arc<Running>, usize)>,
    pub failure: Option<String>,
    pub usage: Option<Usage>,
    pub lost: u64,
    /// Duration of the last answered health check.
    pub health: Option<Duration>,
    /// As in [`Status::health`].
    pub word: &'static str,
    pub principal: Option<PrincipalKind>,
}

impl InstanceHealth {
    fn of_running(&self) -> Option<InstanceStatus> {
        let running = self.running.as_ref()?;
        let draining = self.draining.as_ref().map_or(0, |(_, calls)| *calls);
        Some(InstanceStatus {
            number: running.number,
            principal: self.principal.clone(),
            process: self.process.clone(),
            active: self.active.saturating_sub(draining),
            leaving: false,
            health: self.health,
            up: running.since.elapsed(),
            usage: self.usage,
        })
    }

    fn of_draining(&self) -> Option<InstanceStatus> {
        let (running, calls) = self.draining.as_ref()?;
        Some(InstanceStatus {
            number: running.number,
            principal: self.principal.clone(),
            process: running.process.as_ref().map(|process| process.describe()),
            active: *calls,
            leaving: true,
            health: None,
            up: running.since.elapsed(),
            usage: None,
        })
    }
}

impl Status {
    /// The status of a server with these instances. `place` is the runtime of its next start.
    pub(super) fn of(
        shared: InstanceHealth,
        others: &[InstanceHealth],
        placement: Placement,
        warm: usize,
        unwell: u64,
    ) -> Self {
        let all = || others.iter().chain([&shared]);
        let running = all().filter_map(InstanceHealth::of_running);
        let instances = running.chain(all().filter_map(InstanceHealth::of_draining)).collect();
        let (active, lost) = (all().map(|one| one.active).sum(), all().map(|one| one.lost).sum());
        let InstanceHealth { running, process, failure, word, .. } = shared;
        Self {
            state: match (&running, &failure) {
                (Some(_), _) => "running",
                (None, Some(_)) => "failed",
                (None, None) => "stopped",
            },
            health: word,
            placement: running.as_ref().map_or(placement, |running| running.placement.clone()),
            process,
            revision: running.as_ref().map(|running| running.handshake.revision.to_string()),
            active,
            instances,
            warm,
            failure,
            unwell,
            lost,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::running::tests::running;

    fn health(running: Option<Running>, active: usize) -> InstanceHealth {
        InstanceHealth {
            running: running.map(Arc::new),
            process: None,
            active,
            draining: None,
            failure: None,
            usage: None,
            lost: 2,
            health: None,
            word: "running",
            principal: None,
        }
    }

    #[tokio::test]
    async fn calls_of_a_draining_process_are_counted_separately() {
        let elsewhere = Placement::Remote { url: "https://elsewhere".into() };
        let mut shared = health(Some(running(true)), 3);
        shared.draining = Some((Arc::new(running(true)), 2));
        let others = [health(None, 1), health(Some(running(true)), 0)];
        let status = Status::of(shared, &others, elsewhere.clone(), 0, 7);
        assert_eq!((status.state, status.active, status.lost), ("running", 4, 6));
        assert_ne!(status.placement, elsewhere);
        let each: Vec<_> = status.instances.iter().map(|one| (one.leaving, one.active)).collect();
        assert_eq!(each, [(false, 0), (false, 1), (true, 2)]);

        let mut stopped = health(None, 0);
        stopped.failure = Some("no such file".into());
        let status = Status::of(stopped, &[], elsewhere.clone(), 0, 0);
        assert_eq!((status.state, status.placement), ("failed", elsewhere));
    }
}
