//! An exchange: one message, its answer where it has one, and all that the stages know of them.

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
    refusal::Rule,
};

/// Which servers an endpoint shows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum View {
    /// All, their names behind prefixes.
    All,
    /// One, its names as they are.
    One(ServerName),
}

/// A JSON-RPC method, as the wire has it.
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

    /// Methods that the proxy knows by name.
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

    /// The method of that name, known or not.
    pub fn new(name: &str) -> Self {
        Self(name.into())
    }

    /// The name on the wire.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether this differs from a known name only in case, look-alike letters and characters that
    /// are neither letters nor digits. A lenient reader would take it for that name.
    pub fn passes_for_known(&self) -> bool {
        if Self::KNOWN.contains(&&*self.0) {
            return false;
        }
        // Both ways: a look-alike's case and the look-alikes of a case differ (`I`, `l`).
        let looks = |name: &str| [letters(name), letters(&name.to_lowercase())];
        let own = looks(&self.0);
        Self::KNOWN.iter().any(|known| looks(known).iter().any(|known| own.contains(known)))
    }
}

/// The letters and digits of a name, as they look to somebody who minds no case.
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

/// A revision of the protocol, oldest first.
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
    /// The newest revision that begins with `initialize`.
    pub const LATEST_LEGACY: Revision = Self::V2025_11_25;
    /// The newest stateless revision.
    pub const LATEST_MODERN: Revision = Self::V2026_07_28;

    /// The date by which the wire names it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::V2024_11_05 => "2024-11-05",
            Self::V2025_03_26 => "2025-03-26",
            Self::V2025_06_18 => "2025-06-18",
            Self::V2025_11_25 => "2025-11-25",
            Self::V2026_07_28 => "2026-07-28",
        }
    }

    /// The revision of that date.
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

/// Who speaks and who is spoken to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Direction {
    /// A client's request or notification.
    ClientToServer,
    /// A server's request or notification.
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
    /// The name in configs and records.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Request => "request",
            Self::Response => "response",
        }
    }
}

/// JSON text that was checked once by the codec (UTF-8, no duplicate keys, within the caps), with
/// the parsed value beside it as soon as somebody asks. What goes on is the text.
#[derive(Debug, Clone)]
pub struct Payload {
    raw: Bytes,
    /// Shared by clones, so that none is parsed or copied twice.
    value: Arc<OnceLock<Value>>,
}

impl Payload {
    /// Text that the codec checked.
    pub fn new(raw: Bytes) -> Self {
        Self { raw, value: Arc::default() }
    }

    /// The text, byte for byte.
    pub fn raw(&self) -> &Bytes {
        &self.raw
    }

    /// The value, parsed on first use and kept. An empty text is `null`.
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

/// What came back.
#[derive(Debug, Clone)]
pub enum Answer {
    /// A `result`.
    Result(Payload),
    /// An `error`, by the server that was called.
    Error(Payload),
}

impl Answer {
    /// The text of the result or the error object.
    pub fn payload(&self) -> &Payload {
        match self {
            Self::Result(payload) | Self::Error(payload) => payload,
        }
    }

    /// The same kind of answer with another text.
    pub fn with(&self, raw: Bytes) -> Self {
        match self {
            Self::Result(_) => Self::Result(Payload::new(raw)),
            Self::Error(_) => Self::Error(Payload::new(raw)),
        }
    }
}

/// A tool, prompt, resource or template as its server defines it. Everything in it is the
/// server's claim.
#[derive(Debug)]
pub struct Definition {
    /// The server that owns it.
    pub server: ServerName,
    /// The name on that server; a resource's URI, a template's URI template.
    pub name: String,
    /// The whole definition, as the server sent it.
    pub definition: Payload,
    pin: OnceLock<Option<String>>,
    /// The names that its two schemas declare.
    names: [OnceLock<HashSet<String>>; 2],
    hints: OnceLock<[Option<bool>; HINTS.len()]>,
}

/// A schema of a tool's definition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Schema {
    Input,
    Output,
}

/// The hints that MCP knows. They are looked up for every entry of every list, so they are kept.
const HINTS: [&str; 4] = ["readOnlyHint", "destructiveHint", "idempotentHint", "openWorldHint"];

impl Definition {
    /// A definition as its server sent it.
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

    /// `sha256:` and the digest of the definition in canonical form (RFC 8785), made on first use
    /// and kept. None where it has no such form.
    pub fn pin(&self) -> Option<&str> {
        let made = || {
            let text = serde_json_canonicalizer::to_vec(self.definition.value()).ok()?;
            Some(format!("sha256:{}", hex::encode(Sha256::digest(text))))
        };
        self.pin.get_or_init(made).as_deref()
    }

    /// The names that one of its schemas declares, as `collect` finds them on first use.
    pub fn names(
        &self,
        which: Schema,
        collect: impl FnOnce(&Value) -> HashSet<String>,
    ) -> &HashSet<String> {
        let (at, key) = match which {
            Schema::Input => (0, "inputSchema"),
            Schema::Output => (1, "outputSchema"),
        };
        let made = || self.definition.value().get(key).map(collect).unwrap_or_default();
        self.names[at].get_or_init(made)
    }

    /// A hint of the definition's `annotations`, where it is a boolean.
    pub fn hint(&self, name: &str) -> Option<bool> {
        let look = |name| self.definition.value().get("annotations")?.get(name)?.as_bool();
        match HINTS.iter().position(|known| *known == name) {
            Some(at) => self.hints.get_or_init(|| HINTS.map(look))[at],
            None => look(name),
        }
    }
}

/// What a message is about, once the router knows.
#[derive(Debug, Clone)]
pub enum Target {
    /// The proxy or a whole server: lists, pings, unknown methods.
    None,
    /// A tool, with its definition where the server has it. Without, the tool is unknown.
    Tool { name: String, tool: Option<Arc<Definition>> },
    /// A prompt by its name on its server, with its definition where the server has it and the
    /// principal could use it.
    Prompt { name: String, prompt: Option<Arc<Definition>> },
    /// A resource by its URI.
    Resource { uri: String },
}

/// Something that an interceptor saw, for the audit record. Never holds a secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// The interceptor that reports.
    pub interceptor: String,
    /// The phase in which it looked.
    pub phase: Phase,
    /// The rule or the code by which it reports.
    pub rule: Rule,
    /// What was seen and where (a JSON pointer), in words.
    pub message: String,
    /// What came of it.
    pub effect: Effect,
}

impl Finding {
    /// The code, behind the name of a plugin and `/`, of the findings that tell of its HTTP requests.
    pub const REQUEST: &str = "@http";

    /// Whether it tells of an HTTP request that a plugin made.
    pub fn is_request(&self) -> bool {
        self.rule.id.rsplit_once('/').is_some_and(|(_, code)| code == Self::REQUEST)
    }
}

/// What came of a finding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    Reported,
    Redacted,
    Replaced,
    Refused,
    /// In `audit` mode, or by a policy in shadow: it would have been refused.
    WouldRefuse,
    /// By a policy in shadow: it would not have been refused.
    WouldPermit,
    /// In `audit` mode: it would have been redacted or replaced.
    WouldReplace,
    /// The interceptor failed, and the message passed because the operator said so.
    Fault,
}

impl Effect {
    /// The name in records.
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

    /// What it comes to where verdicts have no effect.
    pub fn in_audit(self) -> Self {
        match self {
            Self::Refused => Self::WouldRefuse,
            Self::Redacted | Self::Replaced => Self::WouldReplace,
            other => other,
        }
    }
}

/// One message with its context: what interceptors look at.
#[derive(Debug, Clone)]
pub struct Exchange {
    /// The decision's id, which the audit record and the agent share.
    pub id: DecisionId,
    /// When the message arrived.
    pub at: jiff::Timestamp,
    /// The same moment on the monotonic clock.
    pub started: Instant,
    /// Who asks. For a message of a server to a client: the client.
    pub principal: Arc<Principal>,
    pub direction: Direction,
    pub method: Method,
    /// Whether it expects no answer.
    pub notification: bool,
    pub transport: Transport,
    pub client_addr: Option<SocketAddr>,
    /// The legacy session, where there is one.
    pub session: Option<SessionId>,
    /// Calls made in this session so far (0 without one).
    pub session_calls: u64,
    /// The revision that the client speaks.
    pub revision: Revision,
    /// The server that is asked, or that asks.
    pub server: Option<ServerName>,
    pub target: Target,
    /// `params`, with names as the server knows them.
    pub request: Payload,
    /// `result` or `error`, in the response phase.
    pub response: Option<Answer>,
    /// Labels: those that the session carries, and those that interceptors gave.
    pub labels: BTreeSet<String>,
    /// What the policies that let the request pass ask for.
    pub obligations: Vec<Arc<Obligations>>,
    /// The trace id of a `traceparent`, where the client sent one.
    pub trace: Option<String>,
}

impl Exchange {
    /// `params.arguments`, where it is an object.
    pub fn arguments(&self) -> Option<&serde_json::Map<String, Value>> {
        self.request.value().get("arguments")?.as_object()
    }

    /// Whether the text that passes the chain in this phase is a server's.
    pub fn from_server(&self, phase: Phase) -> bool {
        match phase {
            Phase::Request => self.direction == Direction::ServerToClient,
            Phase::Response => self.direction == Direction::ClientToServer,
        }
    }

    /// The text that passes the chain in this phase.
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
    fn a_method_that_passes_for_a_known_one_is_found() {
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
