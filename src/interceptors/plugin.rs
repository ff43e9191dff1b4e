//! Runs a WebAssembly plugin. Refuses with `plugin-refused`, with the rule `PLUGIN/CODE`; replaces
//! payloads; adds labels and findings. A trap, a timeout, an exceeded limit or an invalid answer is
//! a fault. The chain checks whether a replacement is legal.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use arc_swap::ArcSwap;
use async_trait::async_trait;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::EntrySettings;
use portcullis_chain::{Fault, Hook, Hooks, Interceptor};
use portcullis_foundation::note_key::Verifier;
use portcullis_plugin_host::{
    Artifact, Compiled, Decision, Grants, LoadError, Message, Pin, PluginHost, Settings, Trial,
    Versions,
};
use portcullis_protocol::{
    exchange::{self, Answer, Exchange, Method, Phase},
    identity::PrincipalKind,
    names::SessionId,
    refusal::{Code, Refusal, Rule},
};
use portcullis_vault::{Secret, Source, Unresolved};

/// Default of `deadline-ms`.
const DEFAULT_DEADLINE_MS: u64 = 1_000;
/// Code of findings about a plugin's HTTP requests. A plugin cannot use it.
const REQUEST: &str = exchange::Finding::REQUEST;

/// Plugin in the chain.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Config {
    /// File of the component (`*.wasm`). Set either this or `oci`.
    #[serde(default)]
    pub path: Option<PathBuf>,
    /// Component in a registry, pinned: `HOST/REPOSITORY[:TAG]@sha256:…`.
    #[serde(default)]
    pub oci: Option<String>,
    /// SHA-256 of the component in hex. Required with `path`, unless `signed-by` or
    /// `allow-unpinned` is set.
    #[serde(default)]
    pub sha256: Option<String>,
    /// Verifier keys, NAME+HASH+KEY. One of them must have signed the component (`FILE.sig`, or the
    /// signature pushed with it).
    #[serde(default)]
    pub signed_by: Vec<String>,
    /// Required plugin name, as in its manifest. Set it with `path` and `signed-by` if `sha256` is
    /// absent.
    #[serde(default)]
    pub plugin: Option<String>,
    /// Required plugin version, such as `>=1.2`. Set it with `path` and `signed-by` if `sha256` is
    /// absent.
    #[serde(default)]
    pub version: Option<Versions>,
    /// Load any file at `path`, without a check. For the development of a plugin.
    #[serde(default)]
    pub allow_unpinned: bool,
    /// Settings of the plugin itself. Its manifest has their schema.
    #[serde(default)]
    pub config: Map<String, Value>,
    /// Memory of one instance in MiB, 1 to 256.
    #[serde(default = "default_memory_mib")]
    pub memory_mib: u64,
    /// Send the plugin's HTTP requests also in `mode = "audit"`. For plugins that cannot be tested
    /// without them.
    #[serde(default)]
    pub audit_http: bool,
    /// Host functions that the plugin may use. `portcullis check` prints those that a plugin needs.
    #[serde(default)]
    pub grants: Grants,
}

impl Config {
    /// Location of the plugin as the operator wrote it, with `oci://` for registries.
    pub fn place(&self) -> PathBuf {
        match (&self.oci, &self.path) {
            (Some(reference), _) => {
                format!("oci://{}", reference.strip_prefix("oci://").unwrap_or(reference)).into()
            }
            (None, path) => path.clone().unwrap_or_default(),
        }
    }

    /// Granted secrets by name, with their sources. Relative files are resolved against `base`.
    ///
    /// # Errors
    /// The first secret that does not resolve.
    pub fn secrets(&self, base: &Path) -> Result<BTreeMap<String, Secret>, (String, Unresolved)> {
        let granted = self.grants.secrets.iter().flatten();
        let resolved = granted.map(|(name, reference)| {
            let source = Source::try_from(reference).map(|source| source.relative_to(base));
            let secret = source.and_then(|source| source.resolve());
            secret.map(|secret| (name.clone(), secret)).map_err(|error| (name.clone(), error))
        });
        resolved.collect()
    }
}

fn default_memory_mib() -> u64 {
    64
}

/// Interceptor that runs a plugin.
pub struct Plugin {
    name: String,
    place: PluginSource,
    now: ArcSwap<Version>,
}

/// Everything needed to load the plugin of an entry.
struct PluginSource {
    config: Config,
    settings: EntrySettings,
    base: PathBuf,
    secrets: BTreeMap<String, Secret>,
    plugin_host: PluginHost,
}

/// Loaded version of a plugin.
pub struct Version {
    hooks: Hooks,
    plugin: portcullis_plugin_host::Plugin,
}

impl Version {
    /// Manifest of the plugin.
    pub fn manifest(&self) -> &portcullis_plugin_host::Manifest {
        self.plugin.manifest()
    }

    /// Digest of its file in hex.
    pub fn sha256(&self) -> &str {
        self.plugin.sha256()
    }

    /// Name of the key whose signature was accepted.
    pub fn signed_by(&self) -> Option<&str> {
        self.plugin.signed_by()
    }
}

impl PluginSource {
    fn file(&self) -> Option<PathBuf> {
        self.config.path.as_ref().map(|path| self.base.join(path))
    }

    fn found(&self) -> Result<Artifact, LoadError> {
        match (self.file(), &self.config.oci) {
            (Some(path), None) => Artifact::file(&path),
            (None, Some(reference)) => self.plugin_host.artifacts.component_now(reference),
            _ => Err(LoadError::Nowhere),
        }
    }

    fn load(&self) -> Result<Version, LoadError> {
        let (config, settings) = (&self.config, &self.settings);
        let keys = config.signed_by.iter().enumerate().map(|(at, key)| {
            let illegal = |_| LoadError::Key { path: config.place(), at };
            key.parse::<Verifier>().map_err(illegal)
        });
        let keys = keys.collect::<Result<Vec<_>, _>>()?;
        let pin = match &config.sha256 {
            sha256 if !keys.is_empty() => Pin::Signed { by: &keys, sha256: sha256.as_deref() },
            Some(sha256) => Pin::Sha256(sha256),
            // A reference contains the digest of the manifest, which contains that of the
            // component.
            None if config.allow_unpinned || config.oci.is_some() => Pin::Any,
            None => Pin::Missing,
        };
        let granted = Settings {
            entry: entry_name(settings),
            config: config.config.clone(),
            memory_mib: config.memory_mib,
            deadline: Duration::from_millis(settings.deadline_ms.unwrap_or(DEFAULT_DEADLINE_MS)),
            fail_open: settings.fail_open,
            trial: (settings.mode == portcullis_chain::Mode::Audit)
                .then_some(Trial { http: config.audit_http }),
            grants: config.grants.clone(),
            secrets: self.secrets.clone(),
        };
        let compiled = Compiled::of(&self.found()?, pin, self.plugin_host.cache.as_deref())?;
        // Before it gets any grant.
        self.is_meant(compiled.manifest())?;
        let plugin = compiled.plugin(granted, &self.plugin_host)?;
        let manifest = plugin.manifest();
        let hooks = narrowed(&manifest.hooks, settings.events.as_deref());
        if hooks.0.is_empty() {
            let mut hooked: Vec<_> =
                manifest.hooks.0.iter().flat_map(|hook| &hook.events).cloned().collect();
            hooked.sort_unstable();
            hooked.dedup();
            return Err(LoadError::NeverAsked {
                plugin: manifest.name.clone(),
                hooked: hooked.join("`, `"),
            });
        }
        Ok(Version { hooks, plugin })
    }

    /// Checks that it is the plugin that the entry names. A signature alone covers everything its
    /// key ever signed.
    fn is_meant(&self, manifest: &portcullis_plugin_host::Manifest) -> Result<(), LoadError> {
        let Config { oci, sha256, signed_by, plugin, version, .. } = &self.config;
        let path = self.config.place();
        // The digest of a reference identifies it.
        let named = oci.is_some() || (plugin.is_some() && version.is_some());
        if !signed_by.is_empty() && sha256.is_none() && !named {
            return Err(LoadError::Unnamed {
                path,
                name: manifest.name.clone(),
                version: manifest.version.clone(),
            });
        }
        let other = plugin.as_ref().is_some_and(|expected| *expected != manifest.name);
        if other || version.as_ref().is_some_and(|expected| !manifest.is_among(expected)) {
            let plugin = plugin.as_ref().unwrap_or(&manifest.name);
            let expected = match version {
                Some(version) => format!("{plugin} {version}"),
                None => plugin.clone(),
            };
            return Err(LoadError::NotMeant {
                path,
                name: manifest.name.clone(),
                version: manifest.version.clone(),
                expected,
            });
        }
        Ok(())
    }
}

fn entry_name(settings: &EntrySettings) -> String {
    settings.name.clone().unwrap_or_else(|| "plugin".into())
}

impl Plugin {
    /// Loads the plugin of an entry with its granted secrets; a relative `path` is resolved against
    /// `base`. Blocks while compiling: call it outside the async threads.
    ///
    /// # Errors
    /// One [`LoadError`](portcullis_plugin_host::LoadError), which contains the remedy.
    pub fn load(
        config: &Config,
        settings: &EntrySettings,
        base: &Path,
        secrets: BTreeMap<String, Secret>,
        plugin_host: &PluginHost,
    ) -> Result<Self, LoadError> {
        let place = PluginSource {
            config: config.clone(),
            settings: settings.clone(),
            base: base.to_owned(),
            secrets,
            plugin_host: plugin_host.clone(),
        };
        let now = ArcSwap::from_pointee(place.load()?);
        Ok(Self { name: entry_name(settings), place, now })
    }

    /// Version that inspects messages now.
    pub fn now(&self) -> Arc<Version> {
        self.now.load_full()
    }

    /// Prepares instances.
    pub fn warm(&self) {
        self.now.load().plugin.warm();
    }

    /// Its file, if the operator allows replacing it.
    pub fn changeable(&self) -> Option<PathBuf> {
        self.place.file().filter(|_| self.place.config.sha256.is_none())
    }

    /// Loads the present file, beside the active version; `None` if it is unchanged. Blocks like
    /// [`Self::load`].
    ///
    /// # Errors
    /// Why it cannot replace the active version.
    pub fn reload_if_changed(&self) -> Result<Option<Version>, LoadError> {
        let now = self.now.load_full();
        // The content of a registry's digest does not change.
        let Some(file) = self.changeable() else { return Ok(None) };
        if portcullis_plugin_host::digest(&file)? == now.sha256() {
            return Ok(None);
        }
        let next = self.place.load()?;
        let (old, new) = (now.manifest(), next.manifest());
        let path = || self.place.config.place();
        // Even with a valid signature, or in an open folder, only the same plugin may replace it.
        if new.name != old.name {
            return Err(LoadError::Another {
                path: path(),
                name: new.name.clone(),
                running: old.name.clone(),
            });
        }
        if next.signed_by().is_some() && new.is_older_than(old) {
            return Err(LoadError::Older {
                path: path(),
                version: new.version.clone(),
                running: old.version.clone(),
            });
        }
        Ok(Some(next))
    }

    /// Activates this version. In-flight messages finish with the previous one.
    pub fn take(&self, next: Version) {
        next.plugin.warm();
        self.now.store(Arc::new(next));
    }
}

/// Version and name of its entry, for the text of verdicts.
struct VerdictBuilder<'a> {
    name: &'a str,
    manifest: &'a portcullis_plugin_host::Manifest,
}

impl VerdictBuilder<'_> {
    fn rule(&self, code: &str) -> Rule {
        Rule::named(format!("{}/{code}", self.manifest.name))
    }

    fn verdict(
        &self,
        answer: portcullis_plugin_host::Verdict,
        phase: Phase,
    ) -> portcullis_chain::Verdict {
        let mut verdict = match answer.decision {
            Decision::Pass => portcullis_chain::Verdict::pass(),
            Decision::Replace(text) => portcullis_chain::Verdict::replace(text.into()),
            Decision::Refuse(refused) => {
                let words = match refused.reason.trim() {
                    "" => "a plugin refused the message",
                    words => words,
                };
                let rule = self.rule(&refused.code);
                let mut refusal = Refusal::new(Code::PluginRefused, words)
                    .data("reason", rule.id.as_str().into())
                    .rule(rule);
                refusal.detail = refused.detail;
                portcullis_chain::Verdict::refuse(refusal)
            }
        };
        verdict.labels.extend(answer.labels);
        let findings = answer.findings.into_iter();
        verdict
            .findings
            .extend(findings.map(|finding| self.finding(phase, &finding.code, finding.message)));
        verdict
    }

    fn finding(&self, phase: Phase, code: &str, message: String) -> exchange::Finding {
        exchange::Finding {
            interceptor: self.name.to_owned(),
            phase,
            rule: self.rule(code),
            message,
            effect: exchange::Effect::Reported,
        }
    }
}

#[async_trait]
impl Interceptor for Plugin {
    fn name(&self) -> &str {
        &self.name
    }

    fn wants(&self, method: &Method, phase: Phase) -> bool {
        self.now.load().hooks.wants(method, phase)
    }

    fn repeatable(&self) -> bool {
        !self.now.load().manifest().once
    }

    async fn inspect(
        &self,
        exchange: &Exchange,
        phase: Phase,
    ) -> Result<portcullis_chain::Verdict, Fault> {
        let now = self.now.load_full();
        let builder = VerdictBuilder { name: &self.name, manifest: now.manifest() };
        let session = exchange.session.as_ref().map(SessionId::expose);
        let portcullis_plugin_host::Inspection { verdict, requests, .. } =
            now.plugin.inspect(message(exchange, phase)?, session).await;
        match verdict {
            Ok(answer) => {
                let mut verdict = builder.verdict(answer, phase);
                // Its HTTP requests about the message belong in the message's record.
                let requests = requests.into_iter();
                let requests = requests.map(|request| builder.finding(phase, REQUEST, request));
                verdict.findings.splice(..0, requests);
                Ok(verdict)
            }
            Err(failure) if requests.is_empty() => Err(Fault(failure.to_string())),
            Err(failure) => {
                // Sent requests come before unsent ones, because a long text is truncated at its
                // end.
                let mut requests = requests;
                requests.sort_by_key(|request| request.ends_with(portcullis_plugin_host::DENIED));
                Err(Fault(format!("{failure} (HTTP before: {})", requests.join(", "))))
            }
        }
    }
}

/// Hooks of the plugin, restricted to the operator's events.
fn narrowed(hooks: &Hooks, events: Option<&[String]>) -> Hooks {
    let Some(events) = events else { return hooks.clone() };
    let all = |events: &[String]| events.iter().any(|event| event == "*");
    let narrow = |hook: &Hook| {
        let common: Vec<String> = match (all(&hook.events), all(events)) {
            (true, _) => events.to_vec(),
            (_, true) => hook.events.clone(),
            _ => hook.events.iter().filter(|event| events.contains(event)).cloned().collect(),
        };
        (!common.is_empty()).then_some(Hook { events: common, phase: hook.phase })
    };
    Hooks(hooks.0.iter().filter_map(narrow).collect())
}

fn message(exchange: &Exchange, phase: Phase) -> Result<Message, Fault> {
    let payload = match std::str::from_utf8(exchange.payload(phase).raw()) {
        Ok("") => "null",
        Ok(text) => text,
        Err(_) => return Err(Fault("the payload is not UTF-8".into())),
    };
    let principal = &exchange.principal;
    Ok(Message {
        exchange: exchange.id.to_string(),
        event: exchange.method.as_str().into(),
        phase: match phase {
            Phase::Request => portcullis_plugin_host::Phase::Request,
            Phase::Response => portcullis_plugin_host::Phase::Response,
        },
        direction: match exchange.direction {
            exchange::Direction::ClientToServer => {
                portcullis_plugin_host::Direction::ClientToServer
            }
            exchange::Direction::ServerToClient => {
                portcullis_plugin_host::Direction::ServerToClient
            }
        },
        server: exchange.server.as_ref().map(ToString::to_string),
        target: match &exchange.target {
            exchange::Target::None => portcullis_plugin_host::Target::None,
            exchange::Target::Tool { name, .. } => {
                portcullis_plugin_host::Target::Tool(name.clone())
            }
            exchange::Target::Prompt { name, .. } => {
                portcullis_plugin_host::Target::Prompt(name.clone())
            }
            exchange::Target::Resource { uri } => {
                portcullis_plugin_host::Target::Resource(uri.clone())
            }
        },
        principal: portcullis_plugin_host::Principal {
            name: principal.name(),
            kind: match principal.kind {
                PrincipalKind::Client(_) => portcullis_plugin_host::PrincipalKind::Client,
                PrincipalKind::Local { .. } => portcullis_plugin_host::PrincipalKind::Local,
                PrincipalKind::Anonymous => portcullis_plugin_host::PrincipalKind::Anonymous,
            },
            groups: principal.groups.iter().map(ToString::to_string).collect(),
        },
        labels: exchange.labels.iter().cloned().collect(),
        session_prefix: exchange.session.as_ref().map(|session| session.prefix().to_owned()),
        is_error: phase == Phase::Response && matches!(exchange.response, Some(Answer::Error(_))),
        payload: payload.into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_restrict_hooks_and_never_extend_them() {
        let both = Hooks::on(&["tools/call", "tools/list"], Phase::Request)
            .and(Hooks::on(&["tools/call"], Phase::Response));
        let every = Hooks::every(&[Phase::Request]);
        let list = ["tools/list".to_owned()];
        let star = ["*".to_owned()];
        let other = ["prompts/get".to_owned()];

        assert_eq!(narrowed(&both, None), both);
        assert_eq!(narrowed(&both, Some(&star)), both);
        assert_eq!(narrowed(&both, Some(&list)), Hooks::on(&["tools/list"], Phase::Request));
        assert_eq!(narrowed(&every, Some(&other)), Hooks::on(&["prompts/get"], Phase::Request));
        assert!(narrowed(&both, Some(&other)).0.is_empty());
        assert!(narrowed(&both, Some(&[])).0.is_empty());
    }
}
