//! Builds a proxy from its config. Everything is checked before anything starts, so that a faulty
//! config leaves nothing behind.

mod chain;
mod start_record;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use futures_util::future::BoxFuture;
use tokio::runtime::Handle;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    Gateway,
    admission::Admission,
    approval::{Approvals, Webhook},
    clients::Clients,
    file_watcher::Files,
    pipeline::{Pipeline, PipelineParts},
    plugins::{self, BoxedDiagnostic, LoadedPlugin, PluginServices},
    recorder::{Recorder, open},
    router::Router,
    server_requests::ServerRequests,
    servers::{
        EgressPolicy, NewServer, Servers, ServersParts, reap,
        secrets::{by_server, delivered, known_secrets, learn, missing},
    },
    session::Sessions,
    stages::{Obligations, Stages},
    subscriptions::Subscriptions,
    tasks::Tasks,
    upstream_call::InFlightCalls,
};
use portcullis_audit::{Audit, Unavailable, export, record::Event};
use portcullis_chain::{Chain, ChainEntry, heavy_at_once};
use portcullis_config::{Code, Config, Diagnostics, Loaded, protected_paths, refused_mounts};
use portcullis_foundation::{fair_semaphore::FairSemaphore, fair_tasks::FairTasks};
use portcullis_interceptors::{
    InterceptorEntry, InterceptorKind,
    policy::PolicyGate,
    secrets::{Scrubber, Secrets},
};
use portcullis_plugin_host::{Broken, PluginHost};
use portcullis_policy::{Revision, Stated};
use portcullis_protocol::{
    identity::{Keyring, StoreFault},
    names::ServerName,
    seal::{KeyFault, Seal},
};
use portcullis_runtime::ProtectedPaths;
use portcullis_telemetry::Metrics;
use portcullis_upstream::{
    Engines, KNOWN_FOLDER, Launcher, LoadedSecrets, SecretBroker, SecretSet, SignatureVerifier,
};

pub use chain::interceptor;
use chain::links;

/// A started proxy and the watcher of its policies.
type Started = Result<(Arc<Gateway>, portcullis_policy::Watcher), StartFailure>;

/// Why a proxy does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartFailure {
    #[error("the config cannot be used")]
    Config(Vec<BoxedDiagnostic>, Vec<Event>),
    #[error(transparent)]
    Policies(#[from] portcullis_policy::Diagnostics),
    #[error(transparent)]
    Audit(#[from] Unavailable),
    #[error(transparent)]
    Seal(#[from] KeyFault),
    #[error(transparent)]
    Clients(#[from] StoreFault),
    #[error("the audit records cannot be exported: {0}")]
    Export(#[from] export::Illegal),
    #[error(transparent)]
    PluginState(#[from] Broken),
    #[error("the policy files cannot be watched: {0}")]
    Watch(String),
    #[error("the files of the plugins cannot be watched: {0}")]
    WatchPlugins(String),
    #[error("a part of the start ended early: {0}")]
    Task(String),
}

/// The checked parts of a proxy that do not need to be started.
pub struct GatewayBuilder {
    pub policies: Arc<portcullis_policy::Engine>,
    /// Keys of the clients.
    pub keyring: Arc<Keyring>,
    links: Vec<ChainEntry>,
    gate: Arc<PolicyGate>,
    launcher: Arc<Launcher>,
    scrubber: Arc<Scrubber>,
    /// Events of the plugins in the chain, for the record.
    pub(crate) plugins: Vec<Event>,
    exports: Vec<export::Settings>,
    approvals: Arc<Approvals>,
    metrics: Arc<Metrics>,
    plugin_services: Arc<PluginServices>,
    plugin_host: PluginHost,
    in_chain: Vec<LoadedPlugin>,
    /// The secrets of servers, which are registered for redaction already.
    read: BTreeMap<ServerName, LoadedSecrets>,
}

/// Purpose of a start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// Serve messages.
    Serve,
    /// Only check that it could serve.
    DryRun,
}

impl GatewayBuilder {
    /// Loads policies and plugins, resolves secrets, and looks for an engine.
    ///
    /// # Errors
    /// All errors in the config and the policies.
    pub async fn of(loaded: &Loaded) -> Result<Self, StartFailure> {
        let config = &loaded.config;
        let policies = Arc::new(portcullis_policy::Engine::open(
            portcullis_policy::Source::of(&config.policy, &config.state_dir)
                .narrowed(loaded.profile.as_deref()),
            &loaded.base,
        )?);
        let gate = Arc::new(PolicyGate::new(policies.clone(), Stated::of(config.tools())));
        let host = config.engine.host.as_deref();
        let engine = if config.servers.values().any(|server| server.url.is_none()) {
            Engines::find(host).await
        } else {
            Engines::none(host, "no server needs a container engine")
        };
        let metrics = Arc::new(Metrics::new());
        let plugin_services = PluginServices::new(policies.clone(), metrics.clone());
        let plugin_host = plugins::host(loaded, plugin_services.clone());
        let delivered = delivered(&config.servers, &loaded.base).await;
        let (links, delivered, scrubber, exports, approvals, signatures, gathered) =
            tokio::task::spawn_blocking({
                let (loaded, gate, plugin_host) =
                    (loaded.clone(), gate.clone(), plugin_host.clone());
                move || {
                    let mut gathered = BuildFindings::default();
                    gathered.happened.extend(missing(&delivered));
                    let to_plugins = plugins::PluginSecrets::read(&loaded, &mut gathered.found);
                    let known_secrets =
                        [known_secrets(&delivered), to_plugins.known_secrets(&loaded)].concat();
                    let scanners = loaded.config.interceptors.iter().filter(|entry| entry.is_on());
                    let scanners = scanners.filter_map(|entry| match &entry.kind {
                        InterceptorKind::Secrets(config) => Some(config),
                        _ => None,
                    });
                    let scrubber = Scrubber::with_rules(&known_secrets, scanners);
                    let scrubber = scrubber.map_err(|error| error.to_string());
                    let exports = exports(&loaded, &mut gathered.found);
                    let signatures = signatures(&loaded, &mut gathered.found);
                    let approvals = Arc::new(approvals(&loaded, &mut gathered.found));
                    let links = links(
                        &loaded,
                        gate,
                        &known_secrets,
                        (&to_plugins, &plugin_host),
                        &mut gathered,
                    );
                    (links, delivered, scrubber, exports, approvals, signatures, gathered)
                }
            })
            .await
            .map_err(|error| StartFailure::Task(error.to_string()))?;
        let BuildFindings { found, happened, plugins: in_chain, scanners } = gathered;
        if let (Some(signatures), true) = (signatures, found.is_empty()) {
            let scrubber = Arc::new(scrubber.map_err(StartFailure::Task)?);
            let read = by_server(delivered);
            let broker = SecretBroker::new(&read, learn(scrubber.clone(), scanners));
            broker.locate(loaded.secret_lines());
            let launcher = Arc::new(Launcher {
                engine,
                instance: uuid::Uuid::now_v7().to_string(),
                base: loaded.base.clone(),
                protected: ProtectedPaths::new(protected_paths(loaded)),
                caps: config.limits.response_caps(),
                broker,
                runtime: Default::default(),
                digests: Default::default(),
                discovery_cache_dir: Some(config.state_dir.join(KNOWN_FOLDER)),
                images: Arc::new(loaded.images()),
                egress_gates: Arc::new(EgressPolicy(plugin_services.clone())),
                signatures,
                dismissed: Default::default(),
                looks: FairSemaphore::one_each(),
            });
            let keyring = Keyring::load(&config.clients, &config.state_dir)?;
            Ok(Self {
                policies,
                keyring: Arc::new(keyring),
                links,
                gate,
                launcher,
                scrubber,
                exports,
                approvals,
                plugins: happened,
                in_chain,
                metrics,
                plugin_services,
                plugin_host,
                read,
            })
        } else {
            Err(StartFailure::Config(found, happened))
        }
    }

    /// Whether records are written to standard output, which is then unavailable for a client.
    pub fn writes_to_stdout(&self) -> bool {
        self.exports.iter().any(export::Settings::writes_to_stdout)
    }

    /// Starts the proxy: opens the audit log, removes orphans of an earlier run, and begins to
    /// receive messages of servers. Servers themselves start when they are first needed.
    ///
    /// The future is boxed so that this crate compiles it and the tasks that it starts, with the
    /// optimization for messages.
    ///
    /// # Errors
    /// If the key of the seal or the audit log is unusable, or the policies cannot be watched.
    pub fn start(self, loaded: &Loaded, purpose: Purpose) -> BoxFuture<'_, Started> {
        Box::pin(self.start_all(loaded, purpose))
    }

    async fn start_all(mut self, loaded: &Loaded, purpose: Purpose) -> Started {
        let config = Arc::new(loaded.config.clone());
        let state_dir = config.state_dir.clone();
        let seal = tokio::task::spawn_blocking(move || Seal::load(&state_dir))
            .await
            .map_err(|error| StartFailure::Task(error.to_string()))??;
        if let Some(states) = self.plugin_host.states.clone().filter(|_| keeps_state(&config)) {
            tokio::task::spawn_blocking(move || states.open())
                .await
                .map_err(|error| StartFailure::Task(error.to_string()))??;
        }
        let deadline = Duration::from_millis(config.audit.deadline_ms);
        // A name or a URI can contain a secret, and early refusals never passed the chain.
        let scrub = scrub(&self.scrubber);
        let audit = open(&config, deadline, Some(scrub.clone())).await?;
        tokio::task::spawn_blocking(portcullis_vault::clear)
            .await
            .map_err(|error| StartFailure::Task(error.to_string()))?;
        let engine = self.launcher.engine.now().ok();
        if let Some(engine) = &engine {
            reap(engine, &self.launcher.instance).await;
        }
        if purpose == Purpose::Serve {
            self.policies.enforce()?;
        }
        let reloads = self.policies.reloads();
        let watcher = portcullis_policy::watch(self.policies.clone())
            .map_err(|error| StartFailure::Watch(error.to_string()))?;
        let files: Vec<_> = self.in_chain.iter().flat_map(LoadedPlugin::files).collect();
        let files = (!files.is_empty()).then(|| Files::watch(files)).transpose();
        let files = files.map_err(|error| StartFailure::WatchPlugins(error.to_string()))?;
        let existing = config.servers.iter();
        let existing: Vec<_> = existing
            .map(|(name, settings)| {
                let read = self.read.remove(name).unwrap_or_default();
                NewServer::of(name, settings, &self.launcher, read, scrub.clone())
            })
            .collect();
        let metrics = self.metrics.clone();
        let revision = self.record(loaded, &audit, purpose).await?;
        let exports = std::mem::take(&mut self.exports);
        let exports = audit.export(exports, |name| metrics.export(name))?;
        let router = Arc::new(Router::new(existing.iter().map(|one| one.server.clone())));
        let (routes, state_dir) = (router.clone(), config.state_dir.clone());
        let server_tasks = tokio::task::spawn_blocking(move || Tasks::open(routes, &state_dir))
            .await
            .map_err(|error| StartFailure::Task(error.to_string()))?;
        let parts = Parts { config, seal: Arc::new(seal), router, server_tasks, audit, exports };
        let gateway = self.assemble(parts, revision);
        existing.into_iter().for_each(|existing| gateway.servers.register(existing));
        tokio::spawn({
            let (launcher, loaded) = (gateway.launcher.clone(), loaded.clone());
            async move {
                let looking = tokio::task::spawn_blocking(move || {
                    refused_mounts(&launcher.mount_policy(), &loaded)
                });
                if let Ok(refused) = looking.await
                    && !refused.is_empty()
                {
                    let why = Diagnostics(refused);
                    tracing::error!("servers cannot start because of their mounts:\n{why}");
                }
            }
        });
        if engine.is_none() && purpose == Purpose::Serve {
            tokio::spawn(gateway.servers.clone().await_engine());
        }
        tokio::spawn(gateway.clone().sweep());
        tokio::spawn(gateway.clone().run_retention());
        tokio::spawn(gateway.servers.clone().keep_secrets());
        tokio::spawn(gateway.recorder.clone().record_reloads(reloads));
        self.plugin_services.attach(&gateway.recorder, gateway.tasks.clone());
        for one in &self.in_chain {
            one.plugin.warm();
        }
        if let Some(files) = files {
            let (recorder, closing) = (gateway.recorder.clone(), gateway.closing.clone());
            tokio::spawn(plugins::keep_plugins(self.in_chain, files, recorder, closing));
        }
        Ok((gateway, watcher))
    }

    /// Creates the components with their dependencies.
    fn assemble(&mut self, parts: Parts, revision: Revision) -> Arc<Gateway> {
        let Parts { config, seal, router, server_tasks, audit, exports } = parts;
        let (metrics, policies, gate) =
            (self.metrics.clone(), self.policies.clone(), self.gate.clone());
        let (launcher, approvals) = (self.launcher.clone(), self.approvals.clone());
        let (tasks, closing) = (TaskTracker::new(), CancellationToken::new());
        // A poll of a heavy message only waits for another thread, so it takes no place of others.
        let workers = Handle::try_current().map_or(1, |runtime| runtime.metrics().num_workers());
        let fair_tasks = FairTasks::new(workers + heavy_at_once());
        let limits = &config.limits;
        let recorder = Recorder::new(
            audit.clone(),
            metrics.clone(),
            policies.clone(),
            self.scrubber.clone(),
            revision,
            Duration::from_millis(config.audit.deadline_ms),
            closing.clone(),
        );
        let sessions = Arc::new(Sessions::new(
            limits.sessions,
            limits.sessions_per_client,
            Duration::from_secs(limits.session_idle_s),
        ));
        let caps = limits.request_caps();
        let admission = Admission::new(limits.concurrent, limits.message_memory_bytes, caps);
        let admission = Arc::new(admission);
        let obligations = Obligations::new(
            sessions.clone(),
            approvals.clone(),
            gate.clone(),
            recorder.clone(),
            closing.clone(),
        );
        let chain = Chain::new(std::mem::take(&mut self.links), caps, limits.response_caps());
        let (recording, keyring) = (recorder.clone(), self.keyring.clone());
        let stages = Stages { chain, gate, obligations, recorder: recording, keyring };
        let stages = Arc::new(stages);
        let server_requests = ServerRequests::new(
            stages.clone(),
            router.clone(),
            seal.clone(),
            Duration::from_secs(limits.question_s),
            tasks.clone(),
        );
        let subscriptions = Subscriptions::new(
            stages.clone(),
            router.clone(),
            sessions.clone(),
            tasks.clone(),
            closing.clone(),
        );
        let in_flight = Arc::new(InFlightCalls::default());
        let servers = Servers::new(ServersParts {
            config: config.clone(),
            router: router.clone(),
            launcher: launcher.clone(),
            sessions: sessions.clone(),
            stages: stages.clone(),
            subscriptions: subscriptions.clone(),
            requests: server_requests.clone(),
            server_tasks: server_tasks.clone(),
            in_flight: in_flight.clone(),
            tasks: tasks.clone(),
            closing: closing.clone(),
        });
        let clients = Clients::new(servers.clone(), approvals.clone(), tasks.clone());
        let pipeline = Pipeline::new(PipelineParts {
            stages,
            router: router.clone(),
            sessions: sessions.clone(),
            admission: admission.clone(),
            clients: clients.clone(),
            subscriptions,
            server_requests: server_requests.clone(),
            server_tasks,
            in_flight,
            seal,
            page: limits.page,
            fair_tasks: fair_tasks.clone(),
            tasks: tasks.clone(),
            closing: closing.clone(),
        });
        Arc::new(Gateway {
            config,
            router,
            sessions,
            audit,
            exports,
            metrics,
            policies,
            launcher,
            approvals,
            admission,
            clients,
            servers,
            recorder,
            pipeline,
            server_requests,
            fair_tasks,
            tasks,
            closing,
        })
    }
}

/// The parts of a gateway beside those of its builder.
struct Parts {
    config: Arc<Config>,
    seal: Arc<Seal>,
    router: Arc<Router>,
    server_tasks: Arc<Tasks>,
    audit: Audit,
    exports: export::Streams,
}

fn scrub(scrubber: &Arc<Scrubber>) -> portcullis_audit::Scrub {
    let scrubber = scrubber.clone();
    Arc::new(move |text| scrubber.scrub(text))
}

/// Whether a plugin is granted state.
fn keeps_state(config: &Config) -> bool {
    let granted = |entry: &InterceptorEntry| match &entry.kind {
        InterceptorKind::Plugin(config) => config.grants.state.is_some(),
        _ => false,
    };
    config.interceptors.iter().filter(|entry| entry.is_on()).any(granted)
}

/// Findings about a config, and events to record.
#[derive(Default)]
struct BuildFindings {
    found: Vec<BoxedDiagnostic>,
    happened: Vec<Event>,
    plugins: Vec<LoadedPlugin>,
    /// Interceptors that find secrets in messages.
    scanners: Vec<Arc<Secrets>>,
}

/// The exports of audit records, with their secrets.
fn exports(loaded: &Loaded, found: &mut Vec<BoxedDiagnostic>) -> Vec<export::Settings> {
    let mut all = Vec::new();
    for (at, entry) in loaded.config.audit.export.iter().enumerate() {
        match export::Settings::read(entry, &loaded.base) {
            Ok(settings) => all.push(settings),
            Err(illegal) => {
                let pointer = format!("/audit/export/{at}");
                let what = format!("the export `{}`: {illegal}", entry.name);
                found.push(Box::new(loaded.finding(&pointer, Code::BadValue, what)));
            }
        }
    }
    all
}

/// The verifier of image signatures.
fn signatures(loaded: &Loaded, found: &mut Vec<BoxedDiagnostic>) -> Option<SignatureVerifier> {
    match loaded.signatures() {
        Ok(signatures) => Some(signatures),
        Err((pointer, why)) => {
            found.push(Box::new(loaded.finding(&pointer, Code::BadValue, why)));
            None
        }
    }
}

fn is_loopback(url: &reqwest::Url) -> bool {
    let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']);
    host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

/// The approvals of a config, with their webhook.
fn approvals(loaded: &Loaded, found: &mut Vec<BoxedDiagnostic>) -> Approvals {
    let settings = &loaded.config.approvals;
    let patience = Duration::from_secs(settings.timeout_s);
    let webhook = settings.webhook.as_ref().and_then(|webhook| {
        let webhook_headers = SecretSet::headers(&webhook.headers, &loaded.base)
            .map_err(|not| (not.failure.what, not.failure.remedy))
            .and_then(|headers| {
                let url = reqwest::Url::parse(&webhook.url).ok();
                // An attacker on an unencrypted connection could approve calls.
                let safe = |url: &reqwest::Url| match url.scheme() {
                    "https" => true,
                    "http" => is_loopback(url),
                    _ => false,
                };
                let help = || Some("such as `https://chat.example.com/hooks/approvals`".to_owned());
                let what = "this is not a URL of HTTPS, nor of HTTP on this machine";
                let url = url.filter(safe).ok_or_else(|| (what.to_owned(), help()))?;
                Webhook::new(url, &headers, patience).map_err(|illegal| (illegal.to_string(), None))
            });
        match webhook_headers {
            Ok(webhook) => Some(webhook),
            Err((what, help)) => {
                let finding = loaded.finding("/approvals/webhook", Code::BadValue, what);
                found.push(Box::new(match help {
                    Some(help) => finding.help(help),
                    None => finding,
                }));
                None
            }
        }
    });
    Approvals::new(patience, settings.per_client, webhook)
}
