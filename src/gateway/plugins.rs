//! Plugins in the proxy: their grants by policies and config, and the services for them.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{Arc, OnceLock, Weak},
    time::Duration,
};

use async_trait::async_trait;
use miette::Diagnostic as _;
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    file_watcher::Files,
    recorder::{Recorder, startup_events},
};
use portcullis_audit::record::PluginHttpSent;
use portcullis_chain::{Fault, Interceptor, Verdict};
use portcullis_config::{Code, Loaded};
use portcullis_interceptors::{
    InterceptorEntry, InterceptorKind,
    plugin::{Config, Plugin},
    secrets::Known,
};
use portcullis_plugin_host::{
    Artifacts, Cache, Grants, HostServices, LoadError, PluginHost, States, signature_path,
};
use portcullis_policy::{Action, DeliveredAs, Holder, Resource, Subject};
use portcullis_protocol::exchange::{Exchange, Method, Phase};
use portcullis_telemetry::Metrics;
use portcullis_upstream::config::Registries;
use portcullis_vault::{Secret, Source};

/// A finding about a config, from any crate.
pub type BoxedDiagnostic = Box<dyn miette::Diagnostic + Send + Sync>;

/// Secrets of plugins by the indexes of their entries, read once for this run.
#[derive(Default)]
pub struct PluginSecrets(BTreeMap<usize, BTreeMap<String, Secret>>);

impl PluginSecrets {
    /// Reads the secrets of all plugins of a config. An unavailable secret is a finding.
    pub fn read(loaded: &Loaded, found: &mut Vec<BoxedDiagnostic>) -> Self {
        let mut all = BTreeMap::new();
        for (at, entry) in loaded.config.interceptors.iter().enumerate() {
            let InterceptorKind::Plugin(config) = &entry.kind else { continue };
            if !entry.is_on() {
                continue;
            }
            match config.secrets(&loaded.base) {
                Ok(secrets) => {
                    all.insert(at, secrets);
                }
                Err((name, error)) => {
                    let pointer = format!("/interceptors/{at}/grants/secrets/{name}");
                    let what = error.to_string();
                    found.push(Box::new(loaded.finding(&pointer, Code::BadValue, what)));
                }
            }
        }
        Self(all)
    }

    /// The same, by the names that identify them in traffic.
    pub fn known_secrets(&self, loaded: &Loaded) -> Vec<Known> {
        let entries = loaded.config.interceptors.iter().enumerate();
        let all = entries.flat_map(|(at, entry)| {
            let secrets = self.0.get(&at).into_iter().flatten();
            secrets.map(|(name, value)| (entry.name(), name, value))
        });
        all.map(|(holder, name, value)| Known {
            holder: holder.to_owned(),
            name: name.clone(),
            client: None,
            value: value.clone(),
        })
        .collect()
    }

    fn of(&self, at: usize) -> BTreeMap<String, Secret> {
        self.0.get(&at).cloned().unwrap_or_default()
    }
}

/// Loads the plugin of the entry at `at`. Blocks while the plugin compiles.
///
/// # Errors
/// The error of the plugin, with its position in the config.
pub fn load(
    loaded: &Loaded,
    at: usize,
    entry: &InterceptorEntry,
    config: &Config,
    delivered: &PluginSecrets,
    plugin_host: &PluginHost,
) -> Result<Plugin, BoxedDiagnostic> {
    let plugin = Plugin::load(config, &entry.settings, &loaded.base, delivered.of(at), plugin_host);
    plugin.map_err(|error| -> BoxedDiagnostic {
        let key = match &error {
            LoadError::Config { at, .. } if !config.config.is_empty() => format!("config{at}"),
            LoadError::Start { .. } if !config.config.is_empty() => "config".into(),
            _ if config.oci.is_some() => "oci".into(),
            _ => "path".into(),
        };
        Box::new(loaded.locate(&format!("/interceptors/{at}/{key}"), error))
    })
}

/// A plugin in the chain, with its entry.
pub struct LoadedPlugin {
    pub entry: InterceptorEntry,
    pub plugin: Arc<Plugin>,
}

impl LoadedPlugin {
    /// The plugin's files that can be replaced.
    pub fn files(&self) -> Vec<PathBuf> {
        let component = self.plugin.changeable().into_iter();
        component.flat_map(|path| [signature_path(&path), path]).collect()
    }
}

/// Replaces plugins when their files change.
pub(crate) async fn keep_plugins(
    all: Vec<LoadedPlugin>,
    mut files: Files,
    recorder: Arc<Recorder>,
    closing: CancellationToken,
) {
    loop {
        tokio::select! {
            changed = files.changed() => if !changed { return },
            () = closing.cancelled() => return,
        }
        for one in all.iter().filter(|one| one.plugin.changeable().is_some()) {
            reload_if_changed(one, &recorder).await;
        }
    }
}

async fn reload_if_changed(LoadedPlugin { entry, plugin }: &LoadedPlugin, recorder: &Recorder) {
    let InterceptorKind::Plugin(config) = &entry.kind else { return };
    let name = entry.name();
    let looked = tokio::task::spawn_blocking({
        let plugin = plugin.clone();
        move || plugin.reload_if_changed()
    });
    let refused = match looked.await {
        Ok(Ok(None)) => return,
        Ok(Ok(Some(next))) => {
            let (digest, version) = (next.sha256().to_owned(), next.manifest().version.clone());
            // Recorded before it takes effect.
            match recorder.audit.record_event(startup_events::plugin(entry, config, &next)).await {
                Ok(()) => {
                    plugin.take(next);
                    tracing::info!(interceptor = name, version, digest, "changed plugin loaded");
                }
                Err(error) => tracing::error!(
                    interceptor = name, %error,
                    "changed plugin rejected: the change could not be recorded; the previous one stays in force"
                ),
            }
            return;
        }
        Ok(Err(refused)) => match refused.help() {
            Some(help) => format!("{refused}; {help}"),
            None => refused.to_string(),
        },
        Err(error) => error.to_string(),
    };
    tracing::error!(
        interceptor = name,
        "changed plugin rejected; the previous one stays in force: {refused}"
    );
    recorder
        .audit
        .record_best_effort(startup_events::no_plugin(entry, &config.place(), refused))
        .await;
}

/// The host of a proxy's plugins.
pub fn host(loaded: &Loaded, services: Arc<PluginServices>) -> PluginHost {
    let states = States::at(loaded.config.state_dir.join("plugins/state"));
    let plugins = loaded.config.interceptors.iter();
    // Without plugins, neither a cache nor its key is needed.
    let any = plugins.into_iter().any(|entry| matches!(entry.kind, InterceptorKind::Plugin(_)));
    let cache = any.then(|| Cache::of(&loaded.config.state_dir)).flatten().map(Arc::new);
    let artifacts = artifacts(loaded, true);
    PluginHost { services, states: Some(states), cache, artifacts }
}

/// Access to registries for plugins, as configured. With `keep`, pulled plugins are kept on disk.
pub fn artifacts(loaded: &Loaded, keep: bool) -> Artifacts {
    let Registries { plain_http, ca_file, deadline_s, .. } = &loaded.config.registries;
    let settings = portcullis_oci::Settings {
        authorities: ca_file.clone(),
        plain_http: plain_http.clone(),
        ..Default::default()
    };
    Artifacts::from_registries(settings, Duration::from_secs(*deadline_s))
        .kept_in(&loaded.config.state_dir, keep)
}

/// Services of the proxy for its plugins. The recorder exists only after the start.
pub struct PluginServices {
    pub(crate) policies: Arc<portcullis_policy::Engine>,
    pub(crate) metrics: Arc<Metrics>,
    running: OnceLock<(Weak<Recorder>, TaskTracker)>,
}

impl PluginServices {
    pub fn new(policies: Arc<portcullis_policy::Engine>, metrics: Arc<Metrics>) -> Arc<Self> {
        Arc::new(Self { policies, metrics, running: OnceLock::new() })
    }

    /// The recorder of the proxy, while it is running.
    pub(crate) fn recorder(&self) -> Option<Arc<Recorder>> {
        self.running.get().and_then(|(recorder, _)| recorder.upgrade())
    }

    /// Sets the recorder and the tasks when the proxy starts.
    pub fn attach(&self, recorder: &Arc<Recorder>, tasks: TaskTracker) {
        let _ = self.running.set((Arc::downgrade(recorder), tasks));
    }
}

impl HostServices for PluginServices {
    fn count(&self, plugin: &str, name: &str, by: u64) {
        self.metrics.plugin_counted(plugin, name, by);
    }

    fn circuits_open(&self, plugin: &str, between: usize) {
        self.metrics.plugin_circuits_open(plugin, between);
    }

    fn withdrawn(&self, plugin: &str, exchange: &str, requests: Vec<String>) {
        let context = exchange.parse().ok().zip(self.recorder()).zip(self.running.get());
        let (Some(((call, recorder), (_, tasks))), Ok(runtime)) = (context, Handle::try_current())
        else {
            tracing::error!(
                interceptor = plugin, decision = exchange, requests = %requests.join(", "),
                "plugin requests for a withdrawn message are not recorded"
            );
            return;
        };
        let sent = PluginHttpSent { plugin: plugin.to_owned(), call, requests };
        // The shutdown waits for this task.
        tasks.spawn_on(async move { recorder.audit.record_best_effort(sent).await }, &runtime);
    }

    fn may_reach(&self, plugin: &str, host: &str, port: u16) -> Result<(), String> {
        // A refusal for the missing record could not undo the plugin's request.
        if !self.recorder().is_some_and(|recorder| recorder.audit.is_healthy()) {
            return Err("requests are refused while the audit log accepts no records".into());
        }
        let resource = Resource::Host { name: host, port };
        let outcome = self.policies.decide_own(Subject::Plugin(plugin), Action::Egress, resource);
        match outcome.permits_alone() {
            true => Ok(()),
            false => Err(format!("policy does not permit `{host}:{port}`")),
        }
    }
}

/// A grant of the config that policies do not permit.
struct UngrantedCapability {
    /// Its key within `grants`.
    key: String,
    what: String,
    action: Action,
    /// The resource, as a policy names it.
    shown: String,
    why: String,
}

impl UngrantedCapability {
    fn words(&self, plugin: &str) -> String {
        format!("policy does not let the plugin `{plugin}` have {}: {}", self.what, self.why)
    }
}

fn withheld(
    plugin: &str,
    grants: &Grants,
    policies: &portcullis_policy::Engine,
) -> Vec<UngrantedCapability> {
    let mut withheld = Vec::new();
    let mut ask =
        |key: String, what: String, action: Action, resource: Resource<'_>, shown: String| {
            let outcome = policies.decide_own(Subject::Plugin(plugin), action, resource);
            if outcome.permits_alone() {
                return;
            }
            let why = outcome.explain_alone();
            withheld.push(UngrantedCapability { key, what, action, shown, why });
        };
    for function in grants.functions() {
        let name = function.as_str();
        let (what, shown) = (format!("`{name}`"), format!("Grant::\"{name}\""));
        ask(name.to_owned(), what, Action::Grant, Resource::Grant(name), shown);
    }
    for (nth, host) in grants.hosts().enumerate() {
        let resource = Resource::Host { name: host.name(), port: host.port };
        let what = format!("the host `{}:{}`", host.host, host.port);
        let shown = format!("Host::\"{}:{}\"", host.name(), host.port);
        ask(format!("http/{nth}"), what, Action::Egress, resource, shown);
    }
    for (name, reference) in grants.secrets.iter().flatten() {
        // Malformed references were reported before.
        let Ok(source) = Source::try_from(reference) else { continue };
        let source = source.kind();
        let holder = Holder::Plugin(plugin);
        let delivery = DeliveredAs::Plugin;
        let resource = Resource::Secret { holder, name, source, delivery, client: None };
        let secret = format!("{holder}/{name}");
        let secret = cedar_policy::EntityId::new(&secret);
        let shown = format!("Secret::\"{}\"", secret.escaped());
        ask(
            format!("secrets/{name}"),
            format!("the secret `{name}`"),
            Action::DeliverSecret,
            resource,
            shown,
        );
    }
    withheld
}

/// The grants of the entry at `at` that policies do not permit.
pub fn ungranted(
    loaded: &Loaded,
    at: usize,
    entry: &InterceptorEntry,
    policies: &portcullis_policy::Engine,
) -> Vec<BoxedDiagnostic> {
    let InterceptorKind::Plugin(config) = &entry.kind else { return Vec::new() };
    let plugin = entry.name();
    let found =
        withheld(plugin, &config.grants, policies).into_iter().map(|withheld| -> BoxedDiagnostic {
            let help = withheld.permit(plugin);
            let pointer = format!("/interceptors/{at}/grants/{}", withheld.key);
            Box::new(
                loaded.finding(&pointer, Code::NotPermitted, withheld.words(plugin)).help(help),
            )
        });
    found.collect()
}

/// The policies that permit all grants of a plugin's entry, one a line.
pub fn permits(plugin: &str, grants: &Grants) -> Vec<String> {
    // Without any policy, all permits are missing.
    let Ok(none) = portcullis_policy::Engine::load(&[], Path::new("")) else { return Vec::new() };
    withheld(plugin, grants, &none).iter().map(|withheld| withheld.permit(plugin)).collect()
}

impl UngrantedCapability {
    /// The missing policy.
    fn permit(&self, plugin: &str) -> String {
        let id = cedar_policy::EntityId::new(plugin);
        // The id of the resource, as Cedar escapes it.
        let resource = self.shown.split_once('"').and_then(|(_, rest)| rest.strip_suffix('"'));
        format!(
            "@id(\"{}.{}\") permit (principal == Portcullis::Plugin::\"{}\", action == \
             Portcullis::Action::\"{}\", resource == Portcullis::{});",
            id.escaped(),
            resource.unwrap_or_default(),
            id.escaped(),
            self.action.as_str(),
            self.shown
        )
    }
}

/// A plugin that runs only while policies permit the grants that it got at the start. Otherwise it
/// does not run, which is a fault. Hosts are decided with every request.
pub struct GatedPlugin {
    plugin: Arc<Plugin>,
    grants: Grants,
    policies: Arc<portcullis_policy::Engine>,
    /// The last result of the policies, with their revision.
    last_result: Mutex<Option<(portcullis_policy::Revision, Result<(), String>)>>,
}

impl GatedPlugin {
    pub fn new(
        plugin: Arc<Plugin>,
        grants: Grants,
        policies: Arc<portcullis_policy::Engine>,
    ) -> Self {
        Self { plugin, grants, policies, last_result: Mutex::default() }
    }

    fn may_go_on(&self) -> Result<(), String> {
        let mut last_result = self.last_result.lock();
        let revision = self.policies.revision();
        if let Some((of, last_result)) = &*last_result
            && *of == revision
        {
            return last_result.clone();
        }
        let name = self.plugin.name();
        let withheld = withheld(name, &self.grants, &self.policies);
        let new = match withheld.iter().find(|withheld| withheld.action != Action::Egress) {
            Some(withheld) => Err(format!("{}; it has it since the start", withheld.words(name))),
            None => Ok(()),
        };
        if let Err(why) = &new {
            tracing::warn!(plugin = name, "plugin grants refused by policy: {why}");
        }
        *last_result = Some((revision, new.clone()));
        new
    }
}

#[async_trait]
impl Interceptor for GatedPlugin {
    fn name(&self) -> &str {
        self.plugin.name()
    }

    fn wants(&self, method: &Method, phase: Phase) -> bool {
        self.plugin.wants(method, phase)
    }

    fn repeatable(&self) -> bool {
        self.plugin.repeatable()
    }

    async fn inspect(&self, exchange: &Exchange, phase: Phase) -> Result<Verdict, Fault> {
        self.may_go_on().map_err(Fault)?;
        self.plugin.inspect(exchange, phase).await
    }
}
