//! An exchange: one message, its response if any, and the context of the pipeline's stages.

use std::{
    collections::{BTreeSet, HashSet},
    fmt,
    net::SocketAddr,
    sync::{Arc, OnceLock},
    time::Instant,
};

use bytes::Bytes;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest as _, Sha256};

use crate::{
    identity::Principal,
    names::{DecisionId, ServerName, SessionId},
    obligations::Obligations,
    refusal::rule::Rule,
};

/// Servers that an endpoint shows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum View {
    /// All servers, with prefixed names.
    All,
    /// One server, with its own names.
    One(ServerName),
}

/// JSON-RPC method, as on the wire.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Method(Arc<str>);

impl Method {
    pub const INITIALIZE: &str = "initialize";
    pub const DISCOVER: &str = "server/discover";
    pub const PING: &str = "ping";
    pub const TOOLS_LIST: &str = "tools/list";
    pub const TOOLS_CALL: &str = "tools/call";
    pub const PROMPTS_LIST: &str = "prompts/list";
    pub const PROMPTS_GET: &str = "prompts/get";
    pub const RESOURCES_LIST: &str = "resources/list";
    pub const TEMPLATES_LIST: &str = "resources/templates/list";
    pub const RESOURCES_READ: &str = "resources/read";
    pub const COMPLETE: &str = "completion/complete";
    pub const SAMPLE: &str = "sampling/createMessage";
    pub const ELICIT: &str = "elicitation/create";
    pub const ROOTS_LIST: &str = "roots/list";
    pub const CANCELLED: &str = "notifications/cancelled";
    pub const INITIALIZED: &str = "notifications/initialized";
    pub const PROGRESS: &str = "notifications/progress";
    pub const LOG_MESSAGE: &str = "notifications/message";
    pub const SET_LEVEL: &str = "logging/setLevel";
    pub const SUBSCRIBE: &str = "resources/subscribe";
    pub const UNSUBSCRIBE: &str = "resources/unsubscribe";
    pub const LISTEN: &str = "subscriptions/listen";
    pub const ACKNOWLEDGED: &str = "notifications/subscriptions/acknowledged";
    pub const TOOLS_CHANGED: &str = "notifications/tools/list_changed";
    pub const PROMPTS_CHANGED: &str = "notifications/prompts/list_changed";
    pub const RESOURCES_CHANGED: &str = "notifications/resources/list_changed";
    pub const ROOTS_CHANGED: &str = "notifications/roots/list_changed";
    pub const UPDATED: &str = "notifications/resources/updated";
    pub const TASKS_LIST: &str = "tasks/list";
    /// Of 2025-11-25 only.
    pub const TASKS_RESULT: &str = "tasks/result";
    pub const TASK_STATUS: &str = "notifications/tasks/status";

    /// Methods about one task, by its `taskId`.
    pub const TASK: &[&str] = &["tasks/get", Self::TASKS_RESULT, "tasks/update", "tasks/cancel"];

    /// Methods that the proxy knows.
    pub const KNOWN: &[&str] = &[
        Self::INITIALIZE,
        Self::DISCOVER,
        Self::PING,
        Self::TOOLS_LIST,
        Self::TOOLS_CALL,
        Self::PROMPTS_LIST,
        Self::PROMPTS_GET,
        Self::RESOURCES_LIST,
        Self::TEMPLATES_LIST,
        Self::RESOURCES_READ,
        Self::COMPLETE,
        Self::SAMPLE,
        Self::ELICIT,
        Self::ROOTS_LIST,
        Self::CANCELLED,
        Self::INITIALIZED,
        Self::PROGRESS,
        Self::LOG_MESSAGE,
        Self::SET_LEVEL,
        Self::SUBSCRIBE,
        Self::UNSUBSCRIBE,
        Self::LISTEN,
        Self::ACKNOWLEDGED,
        Self::TOOLS_CHANGED,
        Self::PROMPTS_CHANGED,
        Self::RESOURCES_CHANGED,
        Self::UPDATED,
        Self::ROOTS_CHANGED,
        Self::TASKS_LIST,
        Self::TASK[0],
        Self::TASK[1],
        Self::TASK[2],
        Self::TASK[3],
        Self::TASK_STATUS,
        "notifications/elicitation/complete",
    ];

    /// Method with that name, known or not.
    pub fn new(name: &str) -> Self {
        Self(name.into())
    }

    /// Name on the wire.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether this differs from a known name only in case, look-alike letters and characters other
    /// than letters and digits. A lenient parser would take it for that name.
    pub fn passes_for_known(&self) -> bool {
        if Self::KNOWN.contains(&&*self.0) {
            return false;
        }
        // In both orders: a look-alike's case and the look-alikes of a case differ (`I`, `l`).
        let looks = |name: &str| [letters(name), letters(&name.to_lowercase())];
        let own = looks(&self.0);
        Self::KNOWN.iter().any(|known| looks(known).iter().any(|known| own.contains(known)))
    }
}

/// Letters and digits of a name, normalized by look.
fn letters(name: &str) -> String {
    unicode_security::skeleton(name)
        .flat_map(char::to_lowercase)
        .filter(|char| char.is_alphanumeric())
        .collect()
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Protocol revision, oldest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Revision {
    #[serde(rename = "2024-11-05")]
    V2024_11_05,
    #[serde(rename = "2025-03-26")]
    V2025_03_26,
    #[serde(rename = "2025-06-18")]
    V2025_06_18,
    #[serde(rename = "2025-11-25")]
    V2025_11_25,
    #[serde(rename = "2026-07-28")]
    V2026_07_28,
}

impl Revision {
    /// Every revision, oldest first.
    pub const ALL: [Revision; 5] = [
        Self::V2024_11_05,
        Self::V2025_03_26,
        Self::V2025_06_18,
        Self::V2025_11_25,
        Self::V2026_07_28,
    ];
    /// Newest revision with `initialize`.
    pub const LATEST_LEGACY: Revision = Self::V2025_11_25;
    /// Newest stateless revision.
    pub const LATEST_MODERN: Revision = Self::V2026_07_28;

    /// Date that names it on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::V2024_11_05 => "2024-11-05",
            Self::V2025_03_26 => "2025-03-26",
            Self::V2025_06_18 => "2025-06-18",
            Self::V2025_11_25 => "2025-11-25",
            Self::V2026_07_28 => "2026-07-28",
        }
    }

    /// Revision of that date.
    pub fn parse(date: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|revision| revision.as_str() == date)
    }

    /// Whether it is stateless (2026-07-28), without `initialize` and sessions.
    pub fn is_modern(self) -> bool {
        self >= Self::V2026_07_28
    }
}

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// How a client reached the proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Transport {
    /// Streamable HTTP over TCP.
    Http,
    /// Streamable HTTP over the local unix socket.
    Unix,
    /// Standard input and output.
    Stdio,
    /// The operator's own command line.
    Cli,
}

/// Direction of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Direction {
    /// Request or notification of a client.
    ClientToServer,
    /// Request or notification of a server.
    ServerToClient,
}

/// Which half of an exchange passes the chain.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    Request,
    Response,
}

impl Phase {
    /// Name in configs and records.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Request => "request",
            Self::Response => "response",
        }
    }
}

/// JSON text that the codec checked (UTF-8, no duplicate keys, within the limits), with the parsed
/// value cached on first use. The text is what is forwarded.
#[derive(Debug, Clone)]
pub struct Payload {
    raw: Bytes,
    /// Shared by clones, so that it is parsed only once.
    value: Arc<OnceLock<Value>>,
}

impl Payload {
    /// Payload of text that the codec checked.
    pub fn new(raw: Bytes) -> Self {
        Self { raw, value: Arc::default() }
    }

    /// Text, byte for byte.
    pub fn raw(&self) -> &Bytes {
        &self.raw
    }

    /// Value, parsed on first use and cached. Empty text is `null`.
    pub fn value(&self) -> &Value {
        self.value.get_or_init(|| serde_json::from_slice(&self.raw).unwrap_or(Value::Null))
    }
}

impl From<Value> for Payload {
    fn from(value: Value) -> Self {
        let payload = Self::new(value.to_string().into());
        let _ = payload.value.set(value);
        payload
    }
}

/// Response to a request.
#[derive(Debug, Clone)]
pub enum Answer {
    /// `result`.
    Result(Payload),
    /// `error` of the called server.
    Error(Payload),
}

impl Answer {
    /// Text of the result or the error object.
    pub fn payload(&self) -> &Payload {
        match self {
            Self::Result(payload) | Self::Error(payload) => payload,
        }
    }

    /// This kind of response with another text.
    pub fn with(&self, raw: Bytes) -> Self {
        match self {
            Self::Result(_) => Self::Result(Payload::new(raw)),
            Self::Error(_) => Self::Error(Payload::new(raw)),
        }
    }
}

/// Tool, prompt, resource or template as its server defines it. All of it is the server's claim.
#[derive(Debug)]
pub struct Definition {
    /// Server that owns it.
    pub server: ServerName,
    /// Name on that server; for a resource its URI, for a template its URI template.
    pub name: String,
    /// Whole definition, as the server sent it.
    pub definition: Payload,
    pin: OnceLock<Option<String>>,
    /// Names that its two schemas declare.
    names: [OnceLock<HashSet<String>>; 2],
    hints: OnceLock<[Option<bool>; HINTS.len()]>,
}

/// Schema of a tool's definition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Schema {
    Input,
    Output,
}

/// Hints that MCP defines. They are read for every entry of every list, so they are cached.
const HINTS: [&str; 4] = ["readOnlyHint", "destructiveHint", "idempotentHint", "openWorldHint"];

impl Definition {
    /// Definition as its server sent it.
    pub fn new(server: ServerName, name: String, definition: Payload) -> Self {
        Self {
            server,
            name,
            definition,
            pin: OnceLock::new(),
            names: Default::default(),
            hints: OnceLock::new(),
        }
    }

    /// `sha256:` and the digest of the definition in canonical form (RFC 8785), computed on first
    /// use and cached. `None` if it has no such form.
    pub fn pin(&self) -> Option<&str> {
        let create = || {
            let text = serde_json_canonicalizer::to_vec(self.definition.value()).ok()?;
            Some(format!("sha256:{}", hex::encode(Sha256::digest(text))))
        };
        self.pin.get_or_init(create).as_deref()
    }

    /// Names that one of its schemas declares, as `collect` finds them on first use.
    pub fn names(
        &self,
        which: Schema,
        collect: impl FnOnce(&Value) -> HashSet<String>,
    ) -> &HashSet<String> {
        let (at, key) = match which {
            Schema::Input => (0, "inputSchema"),
            Schema::Output => (1, "outputSchema"),
        };
        let create = || self.definition.value().get(key).map(collect).unwrap_or_default();
        self.names[at].get_or_init(create)
    }

    /// Hint of the definition's `annotations`, if it is a boolean.
    pub fn hint(&self, name: &str) -> Option<bool> {
        let look = |name| self.definition.value().get("annotations")?.get(name)?.as_bool();
        match HINTS.iter().position(|known| *known == name) {
            Some(at) => self.hints.get_or_init(|| HINTS.map(look))[at],
            None => look(name),
        }
    }
}

/// Target of a message, as the router determined it.
#[derive(Debug, Clone)]
pub enum Target {
    /// The proxy or a whole server: lists, pings, unknown methods.
    None,
    /// Tool, with its definition if the server has it. Without, the tool is unknown.
    Tool { name: String, tool: Option<Arc<Definition>> },
    /// Prompt by its name on its server, with its definition if the server has it and the principal
    /// could use it.
    Prompt { name: String, prompt: Option<Arc<Definition>> },
    /// Resource by its URI.
    Resource { uri: String },
}

/// Observation of an interceptor, for the audit record. Never contains a secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// Interceptor that reports it.
    pub interceptor: String,
    /// Phase of the inspection.
    pub phase: Phase,
    /// Rule or code of the report.
    pub rule: Rule,
    /// Text about what was found, and where (a JSON pointer).
    pub message: String,
    /// Effect of the finding.
    pub effect: Effect,
}

impl Finding {
    /// Code, after the name of a plugin and `/`, of findings about its HTTP requests.
    pub const REQUEST: &str = "@http";

    /// Whether it reports an HTTP request of a plugin.
    pub fn is_request(&self) -> bool {
        self.rule.id.rsplit_once('/').is_some_and(|(_, code)| code == Self::REQUEST)
    }
}

/// Effect of a finding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    Reported,
    Redacted,
    Replaced,
    Refused,
    /// In `audit` mode, or by a policy in shadow mode: the message would have been refused.
    WouldRefuse,
    /// By a policy in shadow mode: the message would not have been refused.
    WouldPermit,
    /// In `audit` mode: the message would have been redacted or replaced.
    WouldReplace,
    /// The interceptor failed, and the message passed because of `fail-open`.
    Fault,
}

impl Effect {
    /// Name in records.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Reported => "reported",
            Self::Redacted => "redacted",
            Self::Replaced => "replaced",
            Self::Refused => "refused",
            Self::WouldRefuse => "would-refuse",
            Self::WouldPermit => "would-permit",
            Self::WouldReplace => "would-replace",
            Self::Fault => "fault",
        }
    }

    /// Corresponding effect in `audit` mode.
    pub fn in_audit(self) -> Self {
        match self {
            Self::Refused => Self::WouldRefuse,
            Self::Redacted | Self::Replaced => Self::WouldReplace,
            other => other,
        }
    }
}

/// One message with its context: what interceptors inspect.
#[derive(Debug, Clone)]
pub struct Exchange {
    /// Decision id, which the audit record and the agent share.
    pub id: DecisionId,
    /// Arrival of the message.
    pub at: jiff::Timestamp,
    /// Arrival on the monotonic clock.
    pub started: Instant,
    /// Principal of the request. For a message of a server to a client: the client.
    pub principal: Arc<Principal>,
    pub direction: Direction,
    pub method: Method,
    /// Whether it expects no response.
    pub notification: bool,
    pub transport: Transport,
    pub client_addr: Option<SocketAddr>,
    /// Legacy session, if there is one.
    pub session: Option<SessionId>,
    /// Number of calls in this session so far (0 without one).
    pub session_calls: u64,
    /// Revision of the client.
    pub revision: Revision,
    /// Server that receives or sends the request.
    pub server: Option<ServerName>,
    pub target: Target,
    /// `params`, with names as the server knows them.
    pub request: Payload,
    /// `result` or `error`, in the response phase.
    pub response: Option<Answer>,
    /// Labels of the session, and those that interceptors gave.
    pub labels: BTreeSet<String>,
    /// Obligations of the policies that permitted the request.
    pub obligations: Vec<Arc<Obligations>>,
    /// Trace id of a `traceparent`, if the client sent one.
    pub trace: Option<String>,
}

impl Exchange {
    /// `params.arguments`, if it is an object.
    pub fn arguments(&self) -> Option<&serde_json::Map<String, Value>> {
        self.request.value().get("arguments")?.as_object()
    }

    /// Whether the text in this phase comes from a server.
    pub fn from_server(&self, phase: Phase) -> bool {
        match phase {
            Phase::Request => self.direction == Direction::ServerToClient,
            Phase::Response => self.direction == Direction::ClientToServer,
        }
    }

    /// Text that passes the chain in this phase.
    pub fn payload(&self, phase: Phase) -> &Payload {
        match (phase, &self.response) {
            (Phase::Response, Some(answer)) => answer.payload(),
            _ => &self.request,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn look_alike_methods_are_found() {
        for method in [
            "Tools/Call",
            "TOOLS/LIST",
            "tools/call/",
            "tools//call",
            " tools/call",
            "tools/call\0",
            "tools.call",
            "toolsCall",
            "t\u{43e}ols/call",
            "tools/c\u{ff41}ll",
            "tools/ca\u{200b}ll",
            "notifications/Cancelled",
            "INITIALIZE",
        ] {
            assert!(Method::new(method).passes_for_known(), "{method:?}");
        }
        for method in ["", "acme/get", "tools/call2", "tools/search", "rpc.discover", "tools"] {
            assert!(!Method::new(method).passes_for_known(), "{method:?}");
        }
        for known in Method::KNOWN {
            assert!(!Method::new(known).passes_for_known(), "{known}");
        }
    }
}
