//! Runs a plugin on one message.

use std::{
    collections::BTreeMap,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use indexmap::IndexMap;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, value::RawValue};

use super::{
    UserError,
    cases::{Case, StubServices, about, granted, matching_hooks, message, sound, taken},
};
use portcullis_plugin_host::{
    Compiled, Decision, Direction, Inspection, Message, Phase, Pin, PluginHost, Principal,
    PrincipalKind, Settings, Target, Values,
};
use portcullis_policy::{File, Finding};
use portcullis_policy_tools::read_cases;
use portcullis_vault::Secret;

/// Deadline of one verdict, long enough for a person who watches.
const DEADLINE: Duration = Duration::from_secs(10);
const MEMORY_MIB: u64 = 64;

/// Message, with the environment of the plugin.
pub struct PluginCall {
    message: Message,
    case: Case,
}

impl PluginCall {
    /// Message from the audit log.
    pub fn recorded(message: Message) -> Self {
        Self { message, case: Case::default() }
    }

    /// Parses a message in the format of cases, or in JSON-RPC.
    ///
    /// # Errors
    /// The text is not a valid message.
    pub fn read(name: &Path, text: &str) -> Result<Self, UserError> {
        let file = File { name: name.to_owned(), text: text.into() };
        if let Ok(rpc) = serde_json::from_str::<Rpc<'_>>(text) {
            let message = rpc.message();
            return match sound(&message.payload, message.phase, message.is_error) {
                Ok(()) => Ok(Self::recorded(message)),
                Err(flaw) => {
                    let why = format!("its `params` are nothing that the proxy takes: {flaw}");
                    Err(Box::new(Finding::error("plugin-message", why).file(name)))
                }
            };
        }
        let case: Case =
            read_cases(&file, "plugin-message").map_err(|finding| -> UserError { finding })?;
        match message(&case, &IndexMap::new(), 0) {
            Ok(message) => Ok(Self { message, case }),
            Err(why) => Err(Box::new(Finding::error("plugin-message", why).file(name))),
        }
    }
}

/// JSON-RPC request or notification.
#[derive(Deserialize)]
struct Rpc<'a> {
    #[serde(rename = "jsonrpc")]
    _version: &'a str,
    method: String,
    #[serde(borrow)]
    params: Option<&'a RawValue>,
}

impl Rpc<'_> {
    fn message(self) -> Message {
        #[derive(Default, Deserialize)]
        struct Names {
            name: Option<String>,
            uri: Option<String>,
        }
        let payload = self.params.map_or("{}", RawValue::get).to_owned();
        let names: Names = serde_json::from_str(&payload).unwrap_or_default();
        let target = match (self.method.as_str(), names.name, names.uri) {
            ("tools/call", Some(name), _) => Target::Tool(name),
            ("prompts/get", Some(name), _) => Target::Prompt(name),
            ("resources/read", _, Some(uri)) => Target::Resource(uri),
            _ => Target::None,
        };
        let principal = Principal {
            name: "anonymous".into(),
            kind: PrincipalKind::Anonymous,
            groups: Vec::new(),
        };
        Message {
            exchange: "00000000-0000-7000-8000-000000000000".into(),
            event: self.method,
            phase: Phase::Request,
            direction: Direction::ClientToServer,
            server: None,
            target,
            principal,
            labels: Vec::new(),
            session_prefix: None,
            is_error: false,
            payload,
        }
    }
}

/// Verdict of a plugin about a message, with its cost.
#[derive(Debug, Serialize)]
pub struct Answered {
    pub plugin: String,
    pub event: String,
    /// Description of the message, its principal and its server.
    pub asked: String,
    pub verdict: Verdict,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub labels: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub findings: Vec<ReportedFinding>,
    /// Counters of `metrics`.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub counts: BTreeMap<String, u64>,
    /// Values of `state` afterwards.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub state: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub log: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub requests: Vec<String>,
    /// Duration, including the creation of an instance.
    pub micros: u64,
    /// Bytes of memory of the instance at the end.
    pub memory: usize,
}

/// Verdict of a plugin, as output for programs.
#[derive(Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "is", rename_all = "kebab-case")]
pub enum Verdict {
    Pass,
    Refuse {
        code: String,
        reason: String,
        #[serde(skip_serializing_if = "Option::is_none")]
        detail: Option<String>,
    },
    Replace {
        payload: String,
    },
    Fault {
        why: String,
    },
    /// No hook of the plugin matches the message.
    Unasked,
}

/// Finding that the plugin reports.
#[derive(Debug, Serialize)]
pub struct ReportedFinding {
    pub code: String,
    pub message: String,
}

/// Runs the component on a message. `config` applies if the message has no config. The component
/// has all grants; only hosts with a reply in the message can be reached.
///
/// # Errors
/// The plugin cannot run.
pub async fn ask(
    component: &Path,
    call: PluginCall,
    config: Option<Map<String, Value>>,
) -> Result<Answered, UserError> {
    let PluginCall { message, case } = call;
    let compiled = Compiled::read(component, Pin::Any)?;
    let secrets = case.secrets.unwrap_or_default();
    let services = Arc::new(StubServices::default());
    let settings = Settings {
        entry: compiled.manifest().name.clone(),
        config: case.config.or(config).unwrap_or_default(),
        memory_mib: MEMORY_MIB,
        fail_open: false,
        trial: None,
        deadline: DEADLINE,
        grants: case.grants.unwrap_or_else(|| granted(&compiled, secrets.keys())),
        secrets: secrets.into_iter().map(|(name, value)| (name, Secret::new(value))).collect(),
    };
    let plugin_host = PluginHost { services: services.clone(), ..PluginHost::bare() };
    let plugin = compiled.plugin(settings, &plugin_host)?;
    let mut answered = Answered {
        plugin: compiled.manifest().name.clone(),
        event: message.event.clone(),
        asked: about(&message),
        verdict: Verdict::Unasked,
        labels: Vec::new(),
        findings: Vec::new(),
        counts: BTreeMap::new(),
        state: BTreeMap::new(),
        log: Vec::new(),
        requests: Vec::new(),
        micros: 0,
        memory: 0,
    };
    if matching_hooks(&compiled, &message).is_empty() {
        return Ok(answered);
    }
    if let (Some(state), Some(values)) = (&case.state, plugin.values()) {
        for (key, stored) in &state.value {
            values.put(key, &stored.0).map_err(|why| -> UserError {
                Box::new(Finding::error("plugin-message", format!("state: `{key}`: {why}")))
            })?;
        }
    }
    services.prepare(
        Some(case.now.unwrap_or_else(jiff::Timestamp::now)),
        case.http.unwrap_or_default(),
    );
    let before = Instant::now();
    let Inspection { verdict, requests, memory } = plugin.inspect(message.clone(), None).await;
    answered.micros = u64::try_from(before.elapsed().as_micros()).unwrap_or(u64::MAX);
    (answered.requests, answered.memory) = (requests, memory);
    let side_effects = services.take();
    (answered.counts, answered.log) = (side_effects.counts, side_effects.lines);
    answered.state = plugin.values().map(Values::texts).unwrap_or_default();
    answered.verdict = match verdict.and_then(|verdict| taken(verdict, &message)) {
        Err(failure) => Verdict::Fault { why: failure.to_string() },
        Ok(verdict) => {
            answered.labels = verdict.labels;
            let findings = verdict.findings.into_iter();
            answered.findings = findings
                .map(|finding| ReportedFinding { code: finding.code, message: finding.message })
                .collect();
            match verdict.decision {
                Decision::Pass => Verdict::Pass,
                Decision::Refuse(refusal) => Verdict::Refuse {
                    code: refusal.code,
                    reason: refusal.reason,
                    detail: refusal.detail,
                },
                Decision::Replace(payload) => Verdict::Replace { payload },
            }
        }
    };
    Ok(answered)
}
