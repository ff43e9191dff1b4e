//! Puts a proxy together from its config: everything is checked before anything is started, so
//! that a config with a fault leaves nothing behind.

use std::{collections::BTreeMap, path::Path, sync::Arc, time::Duration};

use futures_util::StreamExt as _;
use indexmap::IndexMap;
use rayon::iter::{IntoParallelRefIterator as _, ParallelIterator as _};
use tokio::sync::mpsc;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    Gateway,
    egress_policy::EgressPolicy,
    file_watcher::Files,
    memory::MessageMemory,
    plugins::{self, LoadedPlugin, PluginServices},
    policy_reload::RecordedRevisions,
    refusal_sampling::RefusalSampler,
    startup_events,
    suspended_calls::SuspendedCalls,
};
use crate::{
    approval::{Approvals, Webhook},
    router::Router,
    session::Sessions,
};
use portcullis_audit::{Audit, Unavailable, config::OnFailure, export, proof, record::Event};
use portcullis_chain::{Chain, ChainEntry, Interceptor};
use portcullis_config::{
    Code, Config, Diagnostics, Loaded, Member, protected_paths, refused_mounts,
};
use portcullis_foundation::fair_semaphore::FairSemaphore;
use portcullis_interceptors::{
    InterceptorEntry, InterceptorKind,
    policy::PolicyGate,
    rate_limit::RateLimit,
    schema::Schema,
    secrets::{self, Known, Scrubber, Secrets},
};
use portcullis_plugin_host::{Broken, PluginHost};
use portcullis_policy::Stated;
use portcullis_protocol::{
    names::ServerName,
    seal::{KeyFault, Seal},
};
use portcullis_runtime::{ProtectedPaths, container};
use portcullis_telemetry::Metrics;
use portcullis_upstream::{
    Engines, KNOWN_FOLDER, Launcher, LoadedSecrets, RegisterForRedaction, SecretBroker,
    SecretError, SecretHolder, SecretScope, SecretSet, Server, ServerEvent, SignatureVerifier,
    UnroutedMessage,
};

/// Segments of the audit log that `max-size` has room for, at least.
const SEGMENTS: u64 = 8;
/// The default of an entry's `deadline-ms`.
const DEADLINE: Duration = Duration::from_millis(1_000);
/// What a plugin's own deadline is given on top before the chain stops waiting for it.
const SLACK: Duration = Duration::from_millis(250);
/// What a server may do and say before the proxy has heard it.
const EVENTS: usize = 64;

/// Something that is wrong with a config, whichever crate found it.
pub type BoxedDiagnostic = Box<dyn miette::Diagnostic + Send + Sync>;

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

/// The parts of a proxy that a config describes and that can be checked without starting anything.
pub struct GatewayBuilder {
    pub policies: Arc<portcullis_policy::Engine>,
    links: Vec<ChainEntry>,
    gate: Arc<PolicyGate>,
    launcher: Arc<Launcher>,
    scrubber: Arc<Scrubber>,
    /// The plugins in the chain, for the record.
    pub(super) plugins: Vec<Event>,
    exports: Vec<export::Settings>,
    approvals: Arc<Approvals>,
    metrics: Arc<Metrics>,
    around: Arc<PluginServices>,
    house: PluginHost,
    in_chain: Vec<LoadedPlugin>,
    /// The secrets of servers, which are known already.
    read: BTreeMap<ServerName, LoadedSecrets>,
}

/// What a proxy is started for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// To take messages.
    Serve,
    /// To see whether it could.
    DryRun,
}

impl GatewayBuilder {
    /// Loads policies and plugins, resolves secrets, and looks for an engine.
    ///
    /// # Errors
    /// Everything that is wrong with the config or the policies.
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
        let around = PluginServices::new(policies.clone(), metrics.clone());
        let house = plugins::house(loaded, around.clone());
        let handed = handed(&config.servers, &loaded.base).await;
        let (links, handed, scrubber, exports, approvals, signatures, gathered) =
            tokio::task::spawn_blocking({
                let (loaded, gate, house) = (loaded.clone(), gate.clone(), house.clone());
                move || {
                    let mut gathered = BuildFindings::default();
                    gathered.happened.extend(missing(&handed));
                    let to_plugins = plugins::PluginSecrets::read(&loaded, &mut gathered.found);
                    let known = [known(&handed), to_plugins.known(&loaded)].concat();
                    let scrubber = Scrubber::new(&known).map_err(|error| error.to_string());
                    let exports = exports(&loaded, &mut gathered.found);
                    let signatures = signatures(&loaded, &mut gathered.found);
                    let approvals = Arc::new(approvals(&loaded, &mut gathered.found));
                    let links = links(&loaded, gate, &known, (&to_plugins, &house), &mut gathered);
                    (links, handed, scrubber, exports, approvals, signatures, gathered)
                }
            })
            .await
            .map_err(|error| StartFailure::Task(error.to_string()))?;
        let BuildFindings { found, happened, plugins: in_chain, scanners } = gathered;
        if let (Some(signatures), true) = (signatures, found.is_empty()) {
            let scrubber = Arc::new(scrubber.map_err(StartFailure::Task)?);
            let read = by_server(handed);
            let hands = SecretBroker::new(&read, learn(scrubber.clone(), scanners));
            hands.locate(loaded.secret_lines());
            let launcher = Arc::new(Launcher {
                engine,
                instance: uuid::Uuid::now_v7().to_string(),
                base: loaded.base.clone(),
                protected: ProtectedPaths::new(protected_paths(loaded)),
                caps: config.limits.response_caps(),
                hands,
                runtime: Default::default(),
                digests: Default::default(),
                known: Some(config.state_dir.join(KNOWN_FOLDER)),
                images: Arc::new(loaded.images()),
                outward: Arc::new(EgressPolicy(around.clone())),
                signatures,
                dismissed: Default::default(),
                looks: FairSemaphore::one_each(),
            });
            Ok(Self {
                policies,
                links,
                gate,
                launcher,
                scrubber,
                exports,
                approvals,
                plugins: happened,
                in_chain,
                metrics,
                around,
                house,
                read,
            })
        } else {
            Err(StartFailure::Config(found, happened))
        }
    }

    /// Whether records go to standard output, which then can't be a client's.
    pub fn writes_to_stdout(&self) -> bool {
        self.exports.iter().any(export::Settings::writes_to_stdout)
    }

    /// Starts the proxy: opens the audit log, clears away what an earlier run left, and begins to
    /// hear servers. Servers themselves start when they are first needed.
    ///
    /// # Errors
    /// Where the key of the seal or the audit log cannot be used or the policies cannot be watched.
    pub async fn start(
        mut self,
        loaded: &Loaded,
        purpose: Purpose,
    ) -> Result<(Arc<Gateway>, portcullis_policy::Watcher), StartFailure> {
        let config = Arc::new(loaded.config.clone());
        let state_dir = config.state_dir.clone();
        let seal = tokio::task::spawn_blocking(move || Seal::load(&state_dir))
            .await
            .map_err(|error| StartFailure::Task(error.to_string()))??;
        if let Some(states) = self.house.states.clone().filter(|_| keeps_state(&config)) {
            tokio::task::spawn_blocking(move || states.open())
                .await
                .map_err(|error| StartFailure::Task(error.to_string()))??;
        }
        let deadline = Duration::from_millis(config.audit.deadline_ms);
        // A name or a URI can hold a secret, and what is refused early never met the chain.
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
        let stood = config.servers.iter();
        let stood: Vec<_> = stood
            .map(|(name, settings)| {
                let read = self.read.remove(name).unwrap_or_default();
                NewServer::of(name, settings, &self.launcher, read, scrub.clone())
            })
            .collect();
        let metrics = self.metrics.clone();
        let revision = self.record(loaded, &audit, purpose).await?;
        let exports = audit.export(self.exports, |name| metrics.export(name))?;
        let router = Router::new(stood.iter().map(|stood| stood.server.clone()));
        let limits = &config.limits;
        let proxy = Arc::new(Gateway {
            chain: Chain::new(self.links, limits.request_caps(), limits.response_caps()),
            sessions: Sessions::new(limits.sessions, Duration::from_secs(limits.session_idle_s)),
            router,
            audit,
            exports,
            metrics,
            policies: self.policies,
            launcher: self.launcher,
            seal: Arc::new(seal),
            revisions: RecordedRevisions::new(revision),
            gate: self.gate,
            scrubber: self.scrubber,
            looking: FairSemaphore::new(super::recorder::AT_ONCE),
            memory: MessageMemory::new(limits.message_memory_bytes, limits.request_caps()),
            returning: Default::default(),
            presence: Default::default(),
            drops: Default::default(),
            expected: Default::default(),
            approvals: self.approvals,
            labels: Default::default(),
            rates: Default::default(),
            permits: Default::default(),
            refusals: RefusalSampler::new(),
            under_way: Default::default(),
            parked: SuspendedCalls::new(),
            listeners: Default::default(),
            subscriptions: Default::default(),
            follows: Default::default(),
            following: Default::default(),
            retired: Default::default(),
            retiring: TaskTracker::new(),
            ending: CancellationToken::new(),
            task_log: Default::default(),
            tasks: TaskTracker::new(),
            secrets_moved: Default::default(),
            closing: CancellationToken::new(),
            config,
        });
        stood.into_iter().for_each(|stood| proxy.register(stood));
        tokio::spawn({
            let (proxy, loaded) = (proxy.clone(), loaded.clone());
            async move {
                let launcher = proxy.launcher.clone();
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
            tokio::spawn(proxy.clone().await_engine());
        }
        tokio::spawn(proxy.clone().sweep());
        tokio::spawn(proxy.clone().run_retention());
        tokio::spawn(proxy.clone().keep_secrets());
        tokio::spawn(proxy.clone().record_reloads(reloads));
        self.around.settle(&proxy);
        for one in &self.in_chain {
            one.plugin.warm();
        }
        if let Some(files) = files {
            tokio::spawn(proxy.clone().keep_plugins(self.in_chain, files));
        }
        Ok((proxy, watcher))
    }
}

/// A server, with what it will tell: nobody hears of it until [`Proxy::attend`].
pub(super) struct NewServer {
    pub server: Arc<Server>,
    happened: mpsc::Receiver<ServerEvent>,
    said: mpsc::Receiver<UnroutedMessage>,
}

impl NewServer {
    pub fn of(
        name: &ServerName,
        settings: &portcullis_upstream::config::Server,
        launcher: &Arc<Launcher>,
        read: LoadedSecrets,
        scrub: portcullis_audit::Scrub,
    ) -> Self {
        // Channels for each server: one that floods fills its own, and not the one by which it is
        // recorded that it was started and ended.
        let (events, happened) = mpsc::channel(EVENTS);
        let (words, said) = mpsc::channel(EVENTS);
        let (name, settings, launcher) = (name.clone(), settings.clone(), launcher.clone());
        let server = Arc::new(Server::new(name, settings, launcher, read, scrub, events, words));
        Self { server, happened, said }
    }
}

impl Gateway {
    /// Hears and records what becomes of a server, until it is gone.
    pub(super) fn register(self: &Arc<Self>, stood: NewServer) {
        let NewServer { server, happened, said } = stood;
        tokio::spawn(self.clone().record(server.name.clone(), happened));
        tokio::spawn(
            self.clone().receive_server_messages((server.name.clone(), server.number), said),
        );
        tokio::spawn(self.clone().review(server));
    }

    /// Takes secrets out of texts.
    pub(super) fn scrub(&self) -> portcullis_audit::Scrub {
        scrub(&self.scrubber)
    }
}

fn scrub(scrubber: &Arc<Scrubber>) -> portcullis_audit::Scrub {
    let scrubber = scrubber.clone();
    Arc::new(move |text| scrubber.scrub(text))
}

/// Removes what earlier proxies left on an engine.
pub(super) async fn reap(engine: &container::Engine, instance: &str) {
    match engine.reap(instance).await {
        Ok(0) => {}
        Ok(reaped) => tracing::info!(reaped, "removed containers of an earlier run"),
        Err(fault) => tracing::warn!(%fault, "search for orphaned containers failed"),
    }
}

/// Whether a plugin keeps values.
fn keeps_state(config: &Config) -> bool {
    let granted = |entry: &InterceptorEntry| match &entry.kind {
        InterceptorKind::Plugin(config) => config.grants.state.is_some(),
        _ => false,
    };
    config.interceptors.iter().filter(|entry| entry.is_on()).any(granted)
}

/// Opens the audit log of a config.
pub(super) async fn open(
    config: &Config,
    deadline: Duration,
    scrub: Option<portcullis_audit::Scrub>,
) -> Result<Audit, Unavailable> {
    let dir = config.audit.dir.clone().unwrap_or_else(|| config.state_dir.join("audit"));
    let unfit = |why: String| Unavailable::Unfit { dir: dir.clone(), why };
    let keys = tokio::task::spawn_blocking({
        let encryption = config.audit.encryption.clone();
        move || encryption.as_ref().map(portcullis_audit::Keys::fetch).transpose()
    });
    let keys = keys.await.map_err(|error| unfit(error.to_string()))?;
    let keys = keys.map_err(|(pointer, trouble)| {
        unfit(format!("`{}`: {trouble}", pointer.trim_start_matches('/').replace('/', ".")))
    })?;
    let pass = config.audit.on_failure == OnFailure::Pass;
    let checkpoints = checkpoints(config);
    let mut options = portcullis_audit::Options {
        deadline,
        scrub,
        keys,
        pass,
        checkpoints,
        ..Default::default()
    };
    if let Some(size) = config.audit.retention.max_size {
        // So small that dropping one keeps most of what may be kept.
        options.segment_bytes = options.segment_bytes.min(size.0 / SEGMENTS);
    }
    let opened = tokio::task::spawn_blocking({
        let dir = dir.clone();
        move || Audit::open_with(&dir, options)
    });
    opened.await.unwrap_or_else(|error| Err(Unavailable::Broken { dir, why: error.to_string() }))
}

/// How checkpoints of the audit log are made, by the config.
fn checkpoints(config: &Config) -> proof::Settings {
    let portcullis_audit::config::Checkpoint { records, seconds } = config.audit.checkpoint;
    let witnesses =
        config.audit.witness.iter().filter_map(portcullis_audit::config::Witness::place).collect();
    let time = Duration::from_secs(seconds);
    proof::Settings { state: Some(config.state_dir.clone()), records, time, witnesses }
}

/// What is wrong with a config, and what is to be recorded of it.
#[derive(Default)]
struct BuildFindings {
    found: Vec<BoxedDiagnostic>,
    happened: Vec<Event>,
    plugins: Vec<LoadedPlugin>,
    /// Who looks for secrets in messages.
    scanners: Vec<Arc<Secrets>>,
}

/// The streams of audit records, with their secrets.
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

/// Whose signatures of images count.
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

/// Where calls wait for a person, and who is told of them.
fn approvals(loaded: &Loaded, found: &mut Vec<BoxedDiagnostic>) -> Approvals {
    let settings = &loaded.config.approvals;
    let patience = Duration::from_secs(settings.timeout_s);
    let webhook = settings.webhook.as_ref().and_then(|webhook| {
        let made = SecretSet::headers(&webhook.headers, &loaded.base)
            .map_err(|not| (not.failure.what, not.failure.remedy))
            .and_then(|headers| {
                let url = reqwest::Url::parse(&webhook.url).ok();
                // Who sits on the way could allow calls.
                let safe = |url: &reqwest::Url| match url.scheme() {
                    "https" => true,
                    "http" => is_loopback(url),
                    _ => false,
                };
                let help = || Some("such as `https://chat.example.com/hooks/approvals`".to_owned());
                let what = "this is no URL of HTTPS, nor of HTTP on this machine";
                let url = url.filter(safe).ok_or_else(|| (what.to_owned(), help()))?;
                Webhook::new(url, &headers, patience).map_err(|illegal| (illegal.to_string(), None))
            });
        match made {
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

/// Secrets of servers that are read at once.
const READ_AT_ONCE: usize = 8;

/// The secrets that servers are handed, as they are now.
pub(super) async fn handed(
    servers: &IndexMap<ServerName, portcullis_upstream::config::Server>,
    base: &Path,
) -> BTreeMap<SecretHolder, Result<SecretSet, SecretError>> {
    let all = servers.iter().flat_map(|(server, settings)| {
        let all = SecretScope::all(settings).into_iter();
        all.map(|whose| ((server.clone(), whose), settings.clone()))
    });
    // Owned, so that the whole can be done on a task of its own.
    let all: Vec<_> = all.collect();
    let all = futures_util::stream::iter(all).map(|(holder, settings)| {
        let base = base.to_owned();
        async move {
            let read = SecretSet::read(&settings, &base, &holder.1).await;
            (holder, read)
        }
    });
    all.buffer_unordered(READ_AT_ONCE).collect().await
}

/// The same for each server.
pub(super) fn by_server(
    handed: BTreeMap<SecretHolder, Result<SecretSet, SecretError>>,
) -> BTreeMap<ServerName, LoadedSecrets> {
    let mut all = BTreeMap::<_, LoadedSecrets>::new();
    for ((server, whose), read) in handed {
        let read = read.map(Arc::new).map_err(|not| not.failure.what);
        all.entry(server).or_default().insert(whose, read);
    }
    all
}

/// The records of secrets that do not resolve. The servers that need them can't be
/// started; nobody else is harmed.
pub(super) fn missing(
    handed: &BTreeMap<SecretHolder, Result<SecretSet, SecretError>>,
) -> Vec<Event> {
    let missing = handed.iter().filter_map(|(holder, read)| Some((holder, read.as_ref().err()?)));
    missing
        .map(|((server, whose), not)| {
            tracing::warn!(%server, client = whose.client(), why = not.failure.what, "server cannot start: its secret does not resolve");
            startup_events::no_secret(server, not, false)
        })
        .collect()
}

/// The secrets of servers by the names under which they are found in traffic.
fn known(handed: &BTreeMap<SecretHolder, Result<SecretSet, SecretError>>) -> Vec<Known> {
    let all = handed.iter().filter_map(|(holder, read)| Some((&holder.0, read.as_ref().ok()?)));
    all.flat_map(|(server, handed)| known_of(server, handed)).collect()
}

fn known_of(server: &ServerName, handed: &SecretSet) -> Vec<Known> {
    let all = handed.0.iter().map(|secret| Known {
        holder: server.to_string(),
        name: secret.name.clone(),
        client: secret.client.clone(),
        value: secret.value.clone(),
    });
    all.collect()
}

/// Has values looked for that are read later: in messages, records and logs.
fn learn(scrubber: Arc<Scrubber>, scanners: Vec<Arc<Secrets>>) -> RegisterForRedaction {
    Arc::new(move |server, handed| {
        let known: Vec<_> = handed.iter().flat_map(|handed| known_of(server, handed)).collect();
        scrubber.learn(&known).map_err(|error| error.to_string())?;
        scanners.iter().try_for_each(|scanner| scanner.learn(&known).map_err(|e| e.to_string()))
    })
}

/// The chain of a config: what counts messages first, then policy, then what is on by default, then
/// the rest in the order of the config. Policy stands before all that is not native code or costs
/// much: an unauthorized message reaches no plugin.
fn links(
    loaded: &Loaded,
    gate: Arc<PolicyGate>,
    known: &[Known],
    (handed, house): (&plugins::PluginSecrets, &PluginHost),
    gathered: &mut BuildFindings,
) -> Vec<ChainEntry> {
    let chain = loaded.config.chain();
    let chain: Vec<_> = chain.iter().filter(|member| member.entry.is_on()).collect();
    let (mut first, mut rest) = (Vec::new(), Vec::new());
    // Compiling is all that takes long.
    let loaded_plugins: Vec<_> = chain
        .par_iter()
        .map(|member| match (&member.entry.kind, member.at) {
            (InterceptorKind::Plugin(config), Some(at)) => {
                Some((at, plugins::load(loaded, at, &member.entry, config, handed, house)))
            }
            _ => None,
        })
        .collect();
    for (member, plugin) in chain.into_iter().zip(loaded_plugins) {
        let entry = &*member.entry;
        let made = match (&entry.kind, plugin) {
            (InterceptorKind::Plugin(config), Some((at, plugin))) => match plugin {
                Ok(plugin) => {
                    gathered.found.extend(plugins::ungranted(loaded, at, entry, gate.engine()));
                    gathered.happened.push(startup_events::plugin(entry, config, &plugin.now()));
                    let plugin = Arc::new(plugin);
                    gathered
                        .plugins
                        .push(LoadedPlugin { entry: entry.clone(), plugin: plugin.clone() });
                    let engine = gate.engine().clone();
                    let plugin = plugins::GatedPlugin::new(plugin, config.grants.clone(), engine);
                    Ok(Arc::new(plugin) as Arc<dyn Interceptor>)
                }
                Err(wrong) => {
                    let why = wrong.to_string();
                    gathered.happened.push(startup_events::no_plugin(entry, &config.place(), why));
                    Err(wrong)
                }
            },
            (InterceptorKind::Secrets(config), _) => {
                scanner(loaded, member, config, known).map(|scanner| {
                    gathered.scanners.push(scanner.clone());
                    scanner as Arc<dyn Interceptor>
                })
            }
            _ => interceptor(loaded, member, known, handed, house),
        };
        let interceptor = match made {
            Ok(interceptor) => interceptor,
            Err(wrong) => {
                gathered.found.push(wrong);
                continue;
            }
        };
        let settings = &entry.settings;
        let deadline = settings.deadline_ms.map_or(DEADLINE, Duration::from_millis);
        let link = ChainEntry {
            interceptor,
            mode: settings.mode,
            fail_open: settings.fail_open,
            deadline: match entry.kind {
                InterceptorKind::Plugin(_) => deadline + SLACK,
                _ => deadline,
            },
            events: settings.events.clone(),
            // A default has no line of its own: its rules point at the first entry, or at the file.
            place: Some((loaded.path.clone(), loaded.line(&pointer(member)).unwrap_or(1))),
        };
        match entry.kind {
            InterceptorKind::RateLimit(_) => first.push(link),
            _ => rest.push(link),
        }
    }
    first.push(ChainEntry::strict(gate));
    first.extend(rest);
    first
}

/// Where a member of the chain stands in the config.
fn pointer(member: &Member<'_>) -> String {
    member.at.map_or_else(|| "/interceptors".to_owned(), |at| format!("/interceptors/{at}"))
}

/// The interceptor that looks for secrets.
fn scanner(
    loaded: &Loaded,
    member: &Member<'_>,
    config: &secrets::Config,
    known: &[Known],
) -> Result<Arc<Secrets>, BoxedDiagnostic> {
    let name = member.entry.name();
    let made = Secrets::new(name, config, known).map(Arc::new);
    made.map_err(|error| -> BoxedDiagnostic {
        let what = format!("`{name}`: {error}");
        Box::new(loaded.finding(&pointer(member), Code::BadValue, what))
    })
}

/// A member of the chain as an interceptor. It blocks while a plugin compiles.
///
/// # Errors
/// What is wrong with the entry, at its place in the config.
pub fn interceptor(
    loaded: &Loaded,
    member: &Member<'_>,
    known: &[Known],
    handed: &plugins::PluginSecrets,
    house: &PluginHost,
) -> Result<Arc<dyn Interceptor>, BoxedDiagnostic> {
    let entry = &*member.entry;
    let name = entry.name();
    let invalid = |error: &dyn std::error::Error| -> BoxedDiagnostic {
        let what = format!("`{name}`: {error}");
        Box::new(loaded.finding(&pointer(member), Code::BadValue, what))
    };
    Ok(match &entry.kind {
        InterceptorKind::RateLimit(config) => {
            Arc::new(RateLimit::new(name, config).map_err(|error| invalid(&error))?)
        }
        InterceptorKind::Schema(config) => {
            Arc::new(Schema::new(name, config).map_err(|error| invalid(&error))?)
        }
        InterceptorKind::Secrets(config) => scanner(loaded, member, config, known)?,
        InterceptorKind::Plugin(config) => {
            // No plugin is on by default.
            let at = member.at.unwrap_or_default();
            Arc::new(plugins::load(loaded, at, entry, config, handed, house)?)
        }
    })
}
