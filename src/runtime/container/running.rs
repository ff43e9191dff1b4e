//! A running container: how it ends, how it is ended, and its resource usage.

use std::{
    sync::{Arc, OnceLock},
    thread,
    time::Duration,
};

use async_trait::async_trait;
use bollard::{
    Docker,
    errors::Error,
    query_parameters::{
        KillContainerOptionsBuilder, RemoveContainerOptionsBuilder, StatsOptionsBuilder,
        WaitContainerOptionsBuilder,
    },
};
use futures_util::{StreamExt, future::BoxFuture};
use nix::sys::signal::Signal;
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::timeout,
};

use crate::process::{Exit, Handle, Usage};

use super::engine_errors::{missing, words};

/// Time limit for the engine to report the exit status after the streams ended.
const EXIT_STATUS_TIMEOUT: Duration = Duration::from_secs(5);
/// Time limit for waiting for a container's end: ten years, in effect none.
const UNLIMITED: Duration = Duration::from_secs(10 * 365 * 24 * 60 * 60);
/// Time limit for the removal of a killed container.
const REMOVAL_TIMEOUT: Duration = Duration::from_secs(20);

/// Container behind a [`Process`](crate::started::Process).
pub(super) struct Container {
    guard: Guard,
    exit: watch::Receiver<Option<Exit>>,
}

impl Container {
    pub fn new(guard: Guard, exit: watch::Receiver<Option<Exit>>) -> Self {
        Self { guard, exit }
    }

    fn docker(&self) -> &Docker {
        self.guard.docker()
    }

    fn id(&self) -> &str {
        self.guard.id()
    }
}

#[async_trait]
impl Handle for Container {
    fn describe(&self) -> String {
        format!("container {}", self.id().get(..12).unwrap_or(self.id()))
    }

    fn wait(&self) -> BoxFuture<'static, Exit> {
        let mut exit = self.exit.clone();
        Box::pin(async move {
            match exit.wait_for(Option::is_some).await {
                Ok(exit) => exit.clone().unwrap_or_else(lost),
                // The watcher ends without a result only when the async runtime ends.
                Err(_) => lost(),
            }
        })
    }

    async fn stop(&self, grace: Duration) {
        if self.exit.borrow().is_none() {
            let term = KillContainerOptionsBuilder::new().signal("SIGTERM").build();
            let signalled = self.docker().kill_container(self.id(), Some(term)).await;
            if signalled.is_ok() {
                let _ = timeout(grace, self.wait()).await;
            }
        }
        remove_all(self.docker(), &self.guard.ids).await;
    }

    async fn usage(&self) -> Option<Usage> {
        let options = StatsOptionsBuilder::new().stream(false).one_shot(true).build();
        let stats = self.docker().stats(self.id(), Some(options)).next().await?.ok()?;
        let memory = stats.memory_stats?;
        let used = memory.usage?;
        // Page cache can be reclaimed, so it does not count as usage. The name is that of cgroup
        // v2, or of v1.
        let cache = memory.stats.and_then(|stats| {
            stats.get("inactive_file").or_else(|| stats.get("total_inactive_file")).copied()
        });
        Some(Usage {
            memory: used.saturating_sub(cache.unwrap_or(0)),
            cpu_seconds: stats.cpu_stats?.cpu_usage?.total_usage? as f64 / 1e9,
        })
    }
}

fn lost() -> Exit {
    Exit { code: -1, reason: Some("its exit status is unknown".to_owned()) }
}

/// Container that is removed on drop, followed by the containers that it depends on.
pub(super) struct Guard {
    docker: Docker,
    /// Ids in the order of removal.
    ids: Vec<String>,
}

impl Guard {
    pub fn new(docker: Docker, id: String) -> Self {
        Self { docker, ids: vec![id] }
    }

    pub fn docker(&self) -> &Docker {
        &self.docker
    }

    pub fn id(&self) -> &str {
        self.ids.first().map_or("", String::as_str)
    }

    /// This guard extended by containers that it depends on.
    pub fn with(mut self, mut other: Self) -> Self {
        self.ids.append(&mut other.ids);
        self
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        if !self.ids.is_empty() {
            remover(self.docker.clone(), std::mem::take(&mut self.ids));
        }
    }
}

/// Containers to remove in order, with their engine.
type Removal = (Docker, Vec<String>);

/// Removes containers on a separate thread. The async runtime that dropped them may be shutting
/// down, and would cancel a task.
fn remover(docker: Docker, ids: Vec<String>) {
    static QUEUE: OnceLock<Option<mpsc::UnboundedSender<Removal>>> = OnceLock::new();
    let queue = QUEUE.get_or_init(|| {
        let (sender, mut dropped) = mpsc::unbounded_channel::<Removal>();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().ok()?;
        thread::Builder::new()
            .name("container-remover".to_owned())
            .spawn(move || {
                runtime.block_on(async move {
                    while let Some((docker, ids)) = dropped.recv().await {
                        tokio::spawn(async move { remove_all(&docker, &ids).await });
                    }
                });
            })
            .ok()?;
        Some(sender)
    });
    // Without a thread, the lease in the labels lets the next proxy remove them.
    if let Some(queue) = queue {
        let _ = queue.send((docker, ids));
    }
}

async fn remove_all(docker: &Docker, ids: &[String]) {
    for id in ids {
        let _ = timeout(REMOVAL_TIMEOUT, remove(docker, id)).await;
    }
}

/// Ends and removes a container. Returns after its removal.
pub(super) async fn remove(docker: &Docker, id: &str) -> Result<(), Error> {
    let force = RemoveContainerOptionsBuilder::new().force(true).v(true).build();
    match docker.remove_container(id, Some(force)).await {
        Err(error) if missing(&error) => Ok(()),
        // It is already being removed: by the engine, after the end of an auto-removed container.
        Err(Error::DockerResponseServerError { status_code: 409, .. }) => {
            let removed = WaitContainerOptionsBuilder::new().condition("removed").build();
            match docker.wait_container(id, Some(removed)).next().await {
                Some(Err(error)) if missing(&error) => Ok(()),
                Some(Err(Error::DockerContainerWaitError { .. }) | Ok(_)) | None => Ok(()),
                Some(Err(error)) => Err(error),
            }
        }
        other => other,
    }
}

/// Waits for a container's end and returns its exit status. Call it before the start: a container
/// that ends immediately is removed immediately.
///
/// `streams` resolves when the container's streams have ended. Either end counts: a container
/// without streams is useless even if the engine reports it as running.
pub(super) async fn watch(
    docker: Docker,
    id: String,
    memory: u64,
    streams: oneshot::Receiver<()>,
    exit: Arc<watch::Sender<Option<Exit>>>,
) {
    let next = WaitContainerOptionsBuilder::new().condition("next-exit").build();
    // Some engines send nothing before the end, not even headers.
    let patient = docker.clone().with_timeout(UNLIMITED);
    let mut ended = Box::pin(patient.wait_container(&id, Some(next)));
    let verdict = tokio::select! {
        verdict = ended.next() => verdict,
        _ = streams => match timeout(EXIT_STATUS_TIMEOUT, ended.next()).await {
            Ok(verdict) => verdict,
            Err(_) => {
                let _ = timeout(REMOVAL_TIMEOUT, remove(&docker, &id)).await;
                exit.send_replace(Some(Exit {
                    code: -1,
                    reason: Some("the engine ended its streams; it was removed".to_owned()),
                }));
                return;
            }
        },
    };
    let (code, why) = match verdict {
        Some(Ok(answer)) => (answer.status_code, String::new()),
        Some(Err(Error::DockerContainerWaitError { code, error })) => (code, error),
        Some(Err(error)) => (
            -1,
            format!(
                "the engine did not report its exit status: \
            {}",
                words(&error)
            ),
        ),
        None => (-1, "the engine did not report its exit status".to_owned()),
    };
    // The engine keeps an ended container for slightly longer than this request takes.
    let oom = match code {
        0 | -1 => false,
        _ => docker
            .inspect_container(&id, None)
            .await
            .ok()
            .and_then(|container| container.state?.oom_killed)
            .unwrap_or(false),
    };
    exit.send_replace(Some(Exit { code, reason: reason(code, why, oom, memory) }));
}

fn reason(code: i64, why: String, oom: bool, memory: u64) -> Option<String> {
    if oom {
        return Some(format!(
            "killed because it ran out of memory; its limit is {} MiB (`resources.memory-mib`)",
            memory >> 20
        ));
    }
    if !why.is_empty() {
        return Some(why);
    }
    match code {
        126 => Some("its program could not be executed".to_owned()),
        127 => Some("its program was not found in the image".to_owned()),
        129..=192 => {
            let signal = i32::try_from(code - 128).ok().and_then(|n| Signal::try_from(n).ok())?;
            Some(format!("ended by {signal}"))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_reasons_name_the_cause() {
        for (code, why, oom, expected) in [
            (0, "", false, None),
            (1, "", false, None),
            (127, "", false, Some("its program was not found in the image")),
            (137, "", false, Some("ended by SIGKILL")),
            (143, "", false, Some("ended by SIGTERM")),
            (
                137,
                "",
                true,
                Some(
                    "killed because it ran out of memory; its limit is 64 MiB \
                    (`resources.memory-mib`)",
                ),
            ),
            (-1, "gone", false, Some("gone")),
            (255, "", false, None),
        ] {
            let shown = reason(code, why.to_owned(), oom, 64 << 20);
            assert_eq!(shown.as_deref(), expected, "{code}");
        }
    }
}
