//! The configured servers at run time: their events, their messages outside of calls, and their
//! replacement when the config or their secrets change.

mod config_reload;
mod egress_policy;
mod events;
mod launch_policy;
mod secret_rotation;
pub(crate) mod secrets;

use std::{sync::Arc, time::Duration};

use parking_lot::Mutex;
use serde_json::json;
use tokio::sync::{Notify, mpsc};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    recorder::Recorder, router::Router, server_requests::ServerRequests, session::Sessions,
    stages::Stages, subscriptions::Subscriptions, tasks::Tasks, upstream_call::InFlightCalls,
};
use portcullis_config::Config;
use portcullis_protocol::{exchange::View, identity::PrincipalKind, names::ServerName};
use portcullis_runtime::container;
use portcullis_upstream::{
    InstanceStatus, Launcher, LoadedSecrets, Placement, Server, ServerEvent, UnroutedMessage,
};

use config_reload::ReloadStatus;
pub(crate) use egress_policy::EgressPolicy;

/// Events and messages of a server that may wait for the proxy.
const MAX_WAITING: usize = 64;
/// Time for servers to end when the proxy stops.
const STOP_TIMEOUT: Duration = Duration::from_secs(10);

/// A server with the receivers of its events and messages, before [`Servers::register`].
pub(crate) struct NewServer {
    pub server: Arc<Server>,
    happened: mpsc::Receiver<ServerEvent>,
    messages: mpsc::Receiver<UnroutedMessage>,
}

impl NewServer {
    pub fn of(
        name: &ServerName,
        settings: &portcullis_upstream::config::Server,
        launcher: &Arc<Launcher>,
        read: LoadedSecrets,
        scrub: portcullis_audit::Scrub,
    ) -> Self {
        // Two channels for each server, so that a flood of messages delays neither other servers
        // nor the record of its own starts and ends.
        let (events, happened) = mpsc::channel(MAX_WAITING);
        let (words, messages) = mpsc::channel(MAX_WAITING);
        let (name, settings, launcher) = (name.clone(), settings.clone(), launcher.clone());
        let server = Arc::new(Server::new(name, settings, launcher, read, scrub, events, words));
        Self { server, happened, messages }
    }
}

/// All servers of the config, and retired ones that are still running.
pub struct Servers {
    config: Arc<Config>,
    pub router: Arc<Router>,
    pub launcher: Arc<Launcher>,
    pub(crate) recorder: Arc<Recorder>,
    pub(crate) sessions: Arc<Sessions>,
    pub(crate) subscriptions: Arc<Subscriptions>,
    pub(crate) server_tasks: Arc<Tasks>,
    stages: Arc<Stages>,
    requests: Arc<ServerRequests>,
    in_flight: Arc<InFlightCalls>,
    /// Held while a config is applied.
    reloading: tokio::sync::Mutex<()>,
    reload: Mutex<ReloadStatus>,
    /// Servers that were removed from the config or replaced, until they are gone.
    retired: Mutex<Vec<Arc<Server>>>,
    /// Tasks that end the retired servers.
    retiring: TaskTracker,
    /// Cancelled when retired servers stop waiting for their calls.
    ending: CancellationToken,
    /// Signals that other secret files may have to be watched.
    secrets_changed: Notify,
    tasks: TaskTracker,
    closing: CancellationToken,
}

/// Components of [`Servers`].
pub(crate) struct ServersParts {
    pub config: Arc<Config>,
    pub router: Arc<Router>,
    pub launcher: Arc<Launcher>,
    pub sessions: Arc<Sessions>,
    pub stages: Arc<Stages>,
    pub subscriptions: Arc<Subscriptions>,
    pub requests: Arc<ServerRequests>,
    pub server_tasks: Arc<Tasks>,
    pub in_flight: Arc<InFlightCalls>,
    pub tasks: TaskTracker,
    pub closing: CancellationToken,
}

impl Servers {
    pub(crate) fn new(parts: ServersParts) -> Arc<Self> {
        let ServersParts { config, router, launcher, sessions, stages, .. } = parts;
        Arc::new(Self {
            config,
            router,
            launcher,
            recorder: stages.recorder.clone(),
            sessions,
            subscriptions: parts.subscriptions,
            server_tasks: parts.server_tasks,
            stages,
            requests: parts.requests,
            in_flight: parts.in_flight,
            reloading: Default::default(),
            reload: Default::default(),
            retired: Default::default(),
            retiring: TaskTracker::new(),
            ending: CancellationToken::new(),
            secrets_changed: Default::default(),
            tasks: parts.tasks,
            closing: parts.closing,
        })
    }

    /// Receives and records the events and messages of a server until it is gone.
    pub(crate) fn register(self: &Arc<Self>, new: NewServer) {
        let NewServer { server, happened, messages } = new;
        tokio::spawn(self.clone().record(server.name.clone(), happened));
        tokio::spawn(
            self.clone().receive_server_messages((server.name.clone(), server.number), messages),
        );
        tokio::spawn(self.clone().review(server));
    }

    /// All servers that may have running instances: configured and retired ones.
    pub(crate) fn all(&self) -> Vec<Arc<Server>> {
        // Configured first: a server is added to the retired ones before it leaves the router.
        let mut all = self.router.servers(&View::All);
        all.extend(self.retired.lock().iter().cloned());
        all
    }

    /// Looks for an engine while servers need a missing one. Then removes orphans of earlier
    /// proxies, and requests the lists that were missing without the engine.
    pub(crate) async fn await_engine(self: Arc<Self>) {
        let needed = || {
            let servers = self.router.servers(&View::All);
            let in_container = |server: &Arc<Server>| {
                matches!(self.launcher.placement(&server.settings), Placement::Container { .. })
            };
            servers.iter().any(in_container)
        };
        let engine = tokio::select! {
            engine = self.launcher.engine.wait(needed) => engine,
            () = self.closing.cancelled() => return,
        };
        tracing::info!(engine = %engine.version(), "container engine is available");
        reap(&engine, &self.launcher.instance).await;
        for server in self.router.servers(&View::All) {
            server.retry_now().await;
        }
        self.router.refetch_missing();
    }

    /// Ends every server and removes its orphans. Retired servers stop waiting for their calls.
    pub(crate) async fn close(&self) {
        let servers = self.router.servers(&View::All);
        self.ending.cancel();
        self.retiring.close();
        let stopped = async {
            let all = futures_util::future::join_all(servers.iter().map(|server| async {
                server.close("the proxy stops").await;
                server.flush().await;
            }));
            tokio::join!(all, self.retiring.wait())
        };
        // A server that is just starting is not waited for. It ends by the cleanup below, or with
        // this process.
        if tokio::time::timeout(STOP_TIMEOUT, stopped).await.is_err() {
            tracing::warn!("not every server could be stopped in time");
        }
        if let Ok(engine) = self.launcher.engine.now()
            && let Err(fault) = engine.reap(&self.launcher.instance).await
        {
            tracing::warn!(%fault, "containers could not be removed");
        }
    }

    /// Ends idle instances.
    pub(crate) async fn sweep(&self) {
        // Concurrently, so that a slow server does not delay the others.
        let servers = self.router.servers(&View::All);
        futures_util::future::join_all(servers.iter().map(|server| server.sweep())).await;
    }

    /// Reads the resource usage of running servers for the metrics.
    pub(crate) async fn read_usage(&self) {
        for server in self.router.servers(&View::All) {
            let usage: Vec<_> = server
                .status()
                .await
                .instances
                .iter()
                .filter_map(|instance| {
                    let usage = instance.usage?;
                    let cpu = Duration::try_from_secs_f64(usage.cpu_seconds).unwrap_or_default();
                    Some((instance.number, usage.memory, cpu))
                })
                .collect();
            self.recorder.metrics.server_usage(&server.name, &usage);
        }
    }

    /// Findings about a server's lists for the operator.
    fn notices(&self, server: &ServerName) -> Vec<String> {
        let notices = self.router.notices(server);
        notices.into_iter().map(|notice| self.recorder.shown(&notice)).collect()
    }

    /// The state of all servers, as JSON for the admin API.
    pub async fn states(&self) -> Vec<serde_json::Value> {
        let servers = self.router.servers(&View::All);
        let states = servers.iter().map(|server| async {
            let status = server.status().await;
            let usage = || status.instances.iter().filter_map(|one| one.usage);
            let instances: Vec<_> = status.instances.iter().map(status_of).collect();
            json!({
                "name": server.name,
                "state": status.state,
                "health": status.health,
                "place": status.placement.kind(),
                "why": status.placement.why(),
                "process": status.process,
                "revision": status.revision,
                "active": status.active,
                "stoppedByOperator": server.is_stopped_by_operator(),
                "failure": status.failure.map(|why| self.recorder.shown(&why)),
                "instances": instances,
                "warm": status.warm,
                "dropped": status.lost,
                "unwell": status.unwell,
                "memoryBytes": sum(usage().map(|usage| usage.memory)),
                "cpuSeconds": sum(usage().map(|usage| usage.cpu_seconds)),
                "notices": self.notices(&server.name),
            })
        });
        futures_util::future::join_all(states).await
    }

    fn until_closing(&self, work: impl Future<Output = ()> + Send + 'static) {
        let closing = self.closing.clone();
        self.tasks.spawn(async move {
            tokio::select! {
                () = work => {}
                () = closing.cancelled() => {}
            }
        });
    }
}

fn status_of(instance: &InstanceStatus) -> serde_json::Value {
    json!({
        "number": instance.number,
        "client": instance.principal.as_ref().map(PrincipalKind::name),
        "process": instance.process,
        "active": instance.active,
        "leaving": instance.leaving,
        "answeredMs": instance.health.map(|took| took.as_secs_f64() * 1e3),
        "upSeconds": instance.up.as_secs(),
        "memoryBytes": instance.usage.map(|usage| usage.memory),
        "cpuSeconds": instance.usage.map(|usage| usage.cpu_seconds),
    })
}

/// A sum; `None` without values.
fn sum<T: std::iter::Sum>(values: impl Iterator<Item = T>) -> Option<T> {
    let mut values = values.peekable();
    values.peek()?;
    Some(values.sum())
}

/// Removes orphans of earlier proxies from an engine.
pub(crate) async fn reap(engine: &container::Engine, instance: &str) {
    match engine.reap(instance).await {
        Ok(0) => {}
        Ok(reaped) => tracing::info!(reaped, "removed containers of an earlier run"),
        Err(fault) => tracing::warn!(%fault, "search for orphaned containers failed"),
    }
}
