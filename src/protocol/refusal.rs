//! Refusals: what an agent is told (a stable code, a decision id) and what the operator is told
//! (the rule, its file and its line).

use std::{fmt, path::PathBuf, sync::Arc, time::Duration};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::{
    names::DecisionId,
    obligations::{Keep, Obligations},
};

macro_rules! codes {
    ($($(#[$doc:meta])* $variant:ident = $text:literal, $rpc:expr, $http:literal;)*) => {
        /// Why a message was refused. The text of a code never changes once published.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
        pub enum Code {
            $($(#[$doc])* #[serde(rename = $text)] $variant,)*
        }

        impl Code {
            /// Every code, for the docs and the tests.
            pub const ALL: &[Code] = &[$(Code::$variant,)*];

            /// The stable text.
            pub fn as_str(self) -> &'static str {
                match self { $(Code::$variant => $text,)* }
            }

            /// The JSON-RPC error code that carries it.
            pub fn rpc(self) -> i32 {
                match self { $(Code::$variant => $rpc,)* }
            }

            /// The HTTP status where a refusal happens before there is a JSON-RPC answer to give,
            /// or where revision 2026-07-28 prescribes one.
            pub fn http(self) -> u16 {
                match self { $(Code::$variant => $http,)* }
            }
        }
    };
}

/// Refusals of ours: outside JSON-RPC's reserved range (-32768 to -32000), of which MCP
/// 2026-07-28 closes or keeps for itself all that is not JSON-RPC's own.
const REFUSED: i32 = -31000;
const PARSE: i32 = -32700;
const INVALID_REQUEST: i32 = -32600;
const METHOD_NOT_FOUND: i32 = -32601;
const INVALID_PARAMS: i32 = -32602;
const INTERNAL: i32 = -32603;
const HEADER_MISMATCH: i32 = -32020;
const MISSING_CAPABILITY: i32 = -32021;
const UNSUPPORTED_REVISION: i32 = -32022;

codes! {
    /// No policy permits it, or one forbids it.
    PolicyDenied = "policy-denied", REFUSED, 200;
    /// The client gave it up before it was decided.
    Cancelled = "cancelled", REFUSED, 200;
    /// A rate limit is spent.
    RateLimited = "rate-limited", REFUSED, 200;
    /// The arguments do not fit the tool's input schema.
    ArgumentsInvalid = "arguments-invalid", INVALID_PARAMS, 200;
    /// A result does not fit the tool's output schema.
    ResultInvalid = "result-invalid", INTERNAL, 200;
    /// No such tool, prompt or resource, or none that this client may see.
    Unknown = "unknown-target", INVALID_PARAMS, 200;
    /// A secret stands in a message, and the rule says refuse.
    SecretFound = "secret-found", REFUSED, 200;
    /// A plugin refused.
    PluginRefused = "plugin-refused", REFUSED, 200;
    /// An interceptor failed, and it is not `fail-open`.
    InterceptorFault = "interceptor-fault", REFUSED, 200;
    /// The call, or the start of its server, could not be recorded, so it was not made.
    AuditUnavailable = "audit-unavailable", REFUSED, 200;
    /// No key, or none that is known.
    Unauthenticated = "unauthenticated", REFUSED, 401;
    /// `Host` or `Origin` is not one that is allowed here.
    ForbiddenOrigin = "forbidden-origin", REFUSED, 403;
    /// The session is unknown, ended, or another principal's.
    SessionUnknown = "session-unknown", REFUSED, 404;
    /// Not JSON, or not one JSON-RPC 2.0 message.
    Malformed = "malformed", PARSE, 400;
    /// A JSON-RPC message with a member missing or of the wrong type.
    InvalidRequest = "invalid-request", INVALID_REQUEST, 400;
    /// Parameters missing or of the wrong type where policy looks.
    InvalidParams = "invalid-params", INVALID_PARAMS, 400;
    /// An object has a key twice, exactly or but for case or escapes.
    DuplicateKey = "duplicate-key", INVALID_REQUEST, 400;
    /// More bytes, values or levels than are taken.
    TooLarge = "too-large", INVALID_REQUEST, 413;
    /// A body that is not plain JSON, by its `Content-Type` or `Content-Encoding`.
    UnsupportedMedia = "unsupported-media", INVALID_REQUEST, 415;
    /// An answer of a kind that `Accept` does not name.
    NotAcceptable = "not-acceptable", INVALID_REQUEST, 406;
    /// An HTTP method that is not known here, or not without a session.
    HttpMethodNotAllowed = "http-method-not-allowed", INVALID_REQUEST, 405;
    /// A method that is not known, or not one of this revision.
    MethodUnknown = "method-unknown", METHOD_NOT_FOUND, 404;
    /// A header and the body disagree (MCP 2026-07-28).
    HeaderMismatch = "header-mismatch", HEADER_MISMATCH, 400;
    /// The client does not declare a capability that the method needs (MCP 2026-07-28).
    CapabilityMissing = "capability-missing", MISSING_CAPABILITY, 400;
    /// A protocol revision that is not spoken here.
    RevisionUnsupported = "revision-unsupported", UNSUPPORTED_REVISION, 400;
    /// The server is down, could not start, or ended while the call was under way.
    ServerUnavailable = "server-unavailable", INTERNAL, 200;
    /// The server did not answer in time.
    ServerTimeout = "server-timeout", INTERNAL, 200;
    /// The server's queue is full.
    ServerOverloaded = "server-overloaded", INTERNAL, 200;
    /// Secrets of the server differ by client, and there is none for this one.
    SecretUnavailable = "secret-unavailable", REFUSED, 200;
    /// The server keeps ending soon after its start: it is let alone for a moment, or another call tries
    /// whether it answers again.
    ServerCircuitOpen = "server-circuit-open", INTERNAL, 200;
    /// What the server answered is no legal answer.
    ServerMisbehaved = "server-misbehaved", INTERNAL, 200;
    /// The client did not give what a server asked of it, or could not be asked.
    ClientUnavailable = "client-unavailable", INTERNAL, 200;
    /// The client did not answer a server's request in time.
    ClientTimeout = "client-timeout", INTERNAL, 200;
    /// A `requestState` or a task that is not known here, not this client's, or too old.
    RequestStateInvalid = "request-state-invalid", INVALID_PARAMS, 400;
    /// The client did not read in time what was sent to it.
    ClientTooSlow = "client-too-slow", REFUSED, 200;
    /// A person was asked to allow it, and said no.
    ApprovalDenied = "approval-denied", REFUSED, 200;
    /// Nobody allowed it in time, or nobody could be asked.
    ApprovalTimeout = "approval-timeout", REFUSED, 200;
    /// The proxy is shutting down.
    ShuttingDown = "shutting-down", INTERNAL, 503;
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The rule that decided, for the operator.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rule {
    /// The rule's id: a policy's `@id`, a secret rule's id, an interceptor's name.
    pub id: String,
    /// The file that holds it, as the operator named it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<PathBuf>,
    /// The line on which it begins, from 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub line: Option<u32>,
    /// Its `@reason`, in its author's words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// What else a policy asks for.
    #[serde(skip)]
    pub obligations: Arc<Obligations>,
}

impl Keep {
    /// All that any of these rules wants kept.
    pub fn of<'a>(rules: impl IntoIterator<Item = &'a Rule>) -> Self {
        rules.into_iter().fold(Self::default(), |all, rule| Self {
            arguments: all.arguments || rule.obligations.keep.arguments,
            result: all.result || rule.obligations.keep.result,
        })
    }
}

impl Rule {
    /// A rule of which no file is known here. The chain adds where its interceptor was configured.
    pub fn named(id: impl Into<String>) -> Self {
        Self { id: id.into(), file: None, line: None, reason: None, obligations: Arc::default() }
    }
}

/// A refusal, as a stage makes it. The chain adds the decision id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{code}: {message}")]
pub struct Refusal {
    /// The stable code.
    pub code: Code,
    /// What the agent reads. Never a secret, never an argument's value, never a path of the host.
    pub message: String,
    /// The rules that decided, for the operator alone.
    pub rules: Vec<Rule>,
    /// What else the operator should know. Goes to the audit record, not to the agent.
    pub detail: Option<String>,
    /// When it is worth coming back.
    pub retry_after: Option<Duration>,
    /// Further members of the error's `data`, where the protocol has some.
    pub data: Option<Box<serde_json::Map<String, Value>>>,
}

impl Refusal {
    /// A refusal with a code and the words for the agent.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
            rules: Vec::new(),
            detail: None,
            retry_after: None,
            data: None,
        }
    }

    /// With the rule that decided.
    pub fn rule(mut self, rule: Rule) -> Self {
        self.rules.push(rule);
        self
    }

    /// With more for the operator.
    pub fn detail(mut self, detail: impl Into<String>) -> Self {
        self.detail = Some(detail.into());
        self
    }

    /// With the time after which it is worth coming back.
    pub fn retry_after(mut self, after: Duration) -> Self {
        self.retry_after = Some(after);
        self
    }

    /// With a member for the error's `data`.
    pub fn data(mut self, name: &str, value: Value) -> Self {
        self.data.get_or_insert_default().insert(name.to_owned(), value);
        self
    }

    /// The JSON-RPC error object that the agent sees:
    /// `{code, message, data: {code, decision, retryAfterMs?}}`.
    pub fn to_rpc_error(&self, decision: DecisionId) -> Value {
        let mut data = Value::Object(self.data.as_deref().cloned().unwrap_or_default());
        data["code"] = self.code.as_str().into();
        data["decision"] = decision.to_string().into();
        if let Some(after) = self.retry_after {
            let millis = u64::try_from(after.as_millis()).unwrap_or(u64::MAX);
            data["retryAfterMs"] = millis.into();
        }
        json!({
            "code": self.code.rpc(),
            "message": format!("{} [{}, decision {decision}]", self.message, self.code),
            "data": data,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_distinct_and_serialize_as_their_text() {
        let mut texts: Vec<_> = Code::ALL.iter().map(|code| code.as_str()).collect();
        texts.sort_unstable();
        texts.dedup();
        assert_eq!(texts.len(), Code::ALL.len());
        for code in Code::ALL {
            assert_eq!(serde_json::to_value(code).unwrap(), code.as_str());
        }
    }

    #[test]
    fn the_agent_sees_code_and_decision_and_no_rule() {
        let id = DecisionId::next();
        let error = Refusal::new(Code::PolicyDenied, "not allowed")
            .rule(Rule::named("no-destructive"))
            .detail("operator only")
            .retry_after(Duration::from_millis(1500))
            .to_rpc_error(id);
        assert_eq!(error["data"]["code"], "policy-denied");
        assert_eq!(error["data"]["decision"], id.to_string());
        assert_eq!(error["data"]["retryAfterMs"], 1500);
        let text = error.to_string();
        assert!(!text.contains("no-destructive") && !text.contains("operator only"));
    }
}
