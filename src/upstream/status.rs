//! State of a server and its instances, for `portcullis server ls` and the metrics.

use std::{sync::Arc, time::Duration};

use super::{placement::Placement, running::Running};
use portcullis_protocol::identity::PrincipalKind;
use portcullis_runtime::process::Usage;

/// What `portcullis server ls` and the metrics show.
#[derive(Debug, Clone)]
pub struct Status {
    /// `running`, `stopped` or `failed`: the shared instance.
    pub state: &'static str,
    /// How that is, in one word: `healthy` or `unhealthy` where it is asked (`health-s`), else
    /// `running`; `pulling` its image, `resting` since it kept ending, `failed`, or `stopped`.
    pub health: &'static str,
    /// Where it runs, or would.
    pub place: Placement,
    /// The shared instance's process, where it runs here.
    pub process: Option<String>,
    pub revision: Option<String>,
    /// Calls in flight, of all instances.
    pub active: usize,
    /// Instances that run.
    pub instances: Vec<InstanceStatus>,
    /// Processes that wait for their first word.
    pub warm: usize,
    /// Why the shared one failed.
    pub failure: Option<String>,
    /// How many instances had to be ended since they did not answer whether they are well.
    pub unwell: u64,
    /// Messages of the present instances that did not fit a queue and were dropped.
    pub lost: u64,
}

/// How one running instance stands.
#[derive(Debug, Clone)]
pub struct InstanceStatus {
    /// No two that ever ran have the same.
    pub number: u64,
    /// The one client for which alone it runs.
    pub principal: Option<PrincipalKind>,
    /// Its process, where it runs here.
    pub process: Option<String>,
    /// Calls in flight.
    pub active: usize,
    /// Whether another has taken its place, and it ends once its calls are done.
    pub leaving: bool,
    /// How long it last took to say that it is well, where it is asked (`health-s`).
    pub health: Option<Duration>,
    /// How long it has been running.
    pub up: Duration,
    /// What it uses, where that can be told.
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
    /// Time of the last answer to a health check.
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
    /// The status of a server with these instances. `place` is where it would run now.
    pub(super) fn of(
        shared: InstanceHealth,
        others: &[InstanceHealth],
        place: Placement,
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
            place: running.as_ref().map_or(place, |running| running.place.clone()),
            process,
            revision: running.as_ref().map(|running| running.greeting.revision.to_string()),
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
    async fn calls_of_a_draining_process_are_its_own() {
        let elsewhere = Placement::Remote { url: "https://elsewhere".into() };
        let mut shared = health(Some(running(true)), 3);
        shared.draining = Some((Arc::new(running(true)), 2));
        let others = [health(None, 1), health(Some(running(true)), 0)];
        let status = Status::of(shared, &others, elsewhere.clone(), 0, 7);
        assert_eq!((status.state, status.active, status.lost), ("running", 4, 6));
        assert_ne!(status.place, elsewhere);
        let each: Vec<_> = status.instances.iter().map(|one| (one.leaving, one.active)).collect();
        assert_eq!(each, [(false, 0), (false, 1), (true, 2)]);

        let mut stopped = health(None, 0);
        stopped.failure = Some("no such file".into());
        let status = Status::of(stopped, &[], elsewhere.clone(), 0, 0);
        assert_eq!((status.state, status.place), ("failed", elsewhere));
    }
}
