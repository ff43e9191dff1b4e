//! Refusals. Agents get a stable code and a decision id; operators also get the rule, its file and
//! its line.

#[cfg(test)]
mod docs;
pub(crate) mod rule;

pub use rule::Rule;

use std::{fmt, time::Duration};

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::{
    codec::Object,
    exchange::{Answer, Payload, Revision},
    names::DecisionId,
};

macro_rules! codes {
    ($($(#[doc = $doc:literal])* $variant:ident = $text:literal, $rpc:expr, $http:literal;)*) => {
        /// Why a message was refused. The text of a published code never changes.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
        pub enum Code {
            $($(#[doc = $doc])* #[serde(rename = $text)] $variant,)*
        }

        impl Code {
            /// Every code, for the docs and the tests.
            pub const ALL: &[Code] = &[$(Code::$variant,)*];

            /// The stable text.
            pub fn as_str(self) -> &'static str {
                match self { $(Code::$variant => $text,)* }
            }

            /// The meaning, for `docs/reference/codes.md`.
            #[cfg(test)]
            fn meaning(self) -> &'static str {
                match self { $(Code::$variant => concat!($($doc),*).trim(),)* }
            }

            /// The JSON-RPC error code that carries it.
            pub fn rpc(self) -> i32 {
                match self { $(Code::$variant => $rpc,)* }
            }

            /// The HTTP status if the refusal precedes the JSON-RPC response, or if revision
            /// 2026-07-28 prescribes a status.
            pub fn http(self) -> u16 {
                match self { $(Code::$variant => $http,)* }
            }
        }
    };
}

/// The JSON-RPC error code of Portcullis's own refusals. It lies outside JSON-RPC's reserved range
/// (-32768 to -32000), which JSON-RPC and MCP 2026-07-28 keep for themselves.
const REFUSED: i32 = -31000;
const PARSE: i32 = -32700;
const INVALID_REQUEST: i32 = -32600;
const METHOD_NOT_FOUND: i32 = -32601;
const INVALID_PARAMS: i32 = -32602;
const INTERNAL: i32 = -32603;
const HEADER_MISMATCH: i32 = -32020;
const MISSING_CAPABILITY: i32 = -32021;
const UNSUPPORTED_REVISION: i32 = -32022;

/// The `_meta` member of a result that is a refusal: `{code, decision, retryAfterMs?}`.
const META_REFUSAL: &str = "dev.portcullis/refusal";
/// The member of a refusal with the decision id.
const DECISION: &str = "decision";

codes! {
    /// No policy permits the message, or a policy forbids it.
    PolicyDenied = "policy-denied", REFUSED, 200;
    /// The client cancelled the request.
    Cancelled = "cancelled", REFUSED, 200;
    /// A rate limit or a limit of `limits` is reached. Retry after `retryAfterMs`, if present.
    RateLimited = "rate-limited", REFUSED, 200;
    /// The arguments do not match the tool's input schema. Since revision 2025-11-25 it is a
    /// result with `isError`.
    ArgumentsInvalid = "arguments-invalid", INVALID_PARAMS, 200;
    /// The result does not match the tool's output schema.
    ResultInvalid = "result-invalid", INTERNAL, 200;
    /// The tool, prompt, resource or server does not exist, or the client may not see it.
    Unknown = "unknown-target", INVALID_PARAMS, 200;
    /// The message contains a secret, and the `secrets` interceptor is set to refuse it.
    SecretFound = "secret-found", REFUSED, 200;
    /// A plugin refused the message.
    PluginRefused = "plugin-refused", REFUSED, 200;
    /// An interceptor failed and is not set to `fail-open`.
    InterceptorFault = "interceptor-fault", REFUSED, 200;
    /// The audit log could not record the call or the start of its server, so the call was not
    /// made.
    AuditUnavailable = "audit-unavailable", REFUSED, 200;
    /// The request has no key or an unknown key, or its client was removed or got other groups while
    /// the request waited.
    Unauthenticated = "unauthenticated", REFUSED, 401;
    /// The `Host` or `Origin` header is not allowed.
    ForbiddenOrigin = "forbidden-origin", REFUSED, 403;
    /// The session does not exist, has ended, or belongs to another principal.
    SessionUnknown = "session-unknown", REFUSED, 404;
    /// The text is not JSON, or not a single JSON-RPC 2.0 message.
    Malformed = "malformed", PARSE, 400;
    /// A number of the message is too large for a 64-bit float, such as `1e400`. Policies could not
    /// compare it, and servers read it differently.
    NumberOutOfRange = "number-out-of-range", INVALID_REQUEST, 400;
    /// A member of the JSON-RPC message is missing or has the wrong type.
    InvalidRequest = "invalid-request", INVALID_REQUEST, 400;
    /// Parameters that policies read are missing or have the wrong type.
    InvalidParams = "invalid-params", INVALID_PARAMS, 400;
    /// An object has a duplicate key, exactly or differing only in case or escapes.
    DuplicateKey = "duplicate-key", INVALID_REQUEST, 400;
    /// The message has more bytes, values or nesting levels than `limits` allows.
    TooLarge = "too-large", INVALID_REQUEST, 413;
    /// The body is not plain JSON according to `Content-Type` or `Content-Encoding`.
    UnsupportedMedia = "unsupported-media", INVALID_REQUEST, 415;
    /// The `Accept` header does not name the media type of the response.
    NotAcceptable = "not-acceptable", INVALID_REQUEST, 406;
    /// The path does not accept this HTTP method, or the method needs a session.
    HttpMethodNotAllowed = "http-method-not-allowed", INVALID_REQUEST, 405;
    /// The MCP method does not exist, or not in this protocol revision.
    MethodUnknown = "method-unknown", METHOD_NOT_FOUND, 404;
    /// A header and the body disagree (MCP 2026-07-28).
    HeaderMismatch = "header-mismatch", HEADER_MISMATCH, 400;
    /// The client does not declare a capability that the method needs (MCP 2026-07-28).
    CapabilityMissing = "capability-missing", MISSING_CAPABILITY, 400;
    /// The protocol revision is not supported.
    RevisionUnsupported = "revision-unsupported", UNSUPPORTED_REVISION, 400;
    /// The server is down, could not start, or ended during the call. Retry.
    ServerUnavailable = "server-unavailable", INTERNAL, 200;
    /// The server did not answer in time.
    ServerTimeout = "server-timeout", INTERNAL, 200;
    /// The server's queue is full. Retry later.
    ServerOverloaded = "server-overloaded", INTERNAL, 200;
    /// The server needs a secret that is not configured for this client.
    SecretUnavailable = "secret-unavailable", REFUSED, 200;
    /// The server is crashing repeatedly, so its circuit breaker is open. Retry after
    /// `retryAfterMs`.
    ServerCircuitOpen = "server-circuit-open", INTERNAL, 200;
    /// The server returned an invalid response.
    ServerMisbehaved = "server-misbehaved", INTERNAL, 200;
    /// The client did not provide what a server requested, or is not connected.
    ClientUnavailable = "client-unavailable", INTERNAL, 200;
    /// The client did not answer a server's request in time.
    ClientTimeout = "client-timeout", INTERNAL, 200;
    /// The `requestState` or task is unknown, expired, or belongs to another client.
    RequestStateInvalid = "request-state-invalid", INVALID_PARAMS, 400;
    /// The tool runs only as a task, and tasks cannot be translated between the revisions of the
    /// client and the server.
    TaskUnsupported = "task-unsupported", REFUSED, 200;
    /// The client did not read the response stream in time.
    ClientTooSlow = "client-too-slow", REFUSED, 200;
    /// A person denied the call.
    ApprovalDenied = "approval-denied", REFUSED, 200;
    /// The call was not approved in time, or no approver was available.
    ApprovalTimeout = "approval-timeout", REFUSED, 200;
    /// The proxy is shutting down.
    ShuttingDown = "shutting-down", INTERNAL, 503;
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Returns a server's answer without what marks a refusal of the proxy: the member of a result's
/// `_meta`, and the decision id of an error with one of the proxy's codes. So no server can pose as
/// the proxy.
pub fn without_marks(answer: Answer) -> Answer {
    match &answer {
        Answer::Result(result) => match unmarked_result(result.raw()) {
            Some(text) => Answer::Result(Payload::new(text)),
            None => answer,
        },
        Answer::Error(error) => match unmarked_error(error.raw()) {
            Some(text) => Answer::Error(Payload::new(text)),
            None => answer,
        },
    }
}

/// A result without the mark, if it has one.
fn unmarked_result(result: &Bytes) -> Option<Bytes> {
    // Most results have neither the name nor an escape that could spell it.
    let has = |text: &str| memchr::memmem::find(result, text.as_bytes()).is_some();
    let is_escaped = || memchr::memchr(b'\\', result).is_some() && (has("\\u") || has("\\/"));
    if !has(META_REFUSAL) && !is_escaped() {
        return None;
    }
    let result = Object::parse(result.clone()).ok()?;
    let meta = result.object("_meta")?;
    meta.get(META_REFUSAL)?;
    let meta = meta.with(&[(META_REFUSAL, None)]);
    Some(result.with(&[("_meta", Some(&meta))]))
}

fn unmarked_error(error: &Bytes) -> Option<Bytes> {
    let error = Object::parse(error.clone()).ok()?;
    let data = error.object("data")?;
    data.get(DECISION)?;
    let code = data.string("code")?;
    Code::ALL.iter().find(|known| known.as_str() == code)?;
    let data = data.with(&[(DECISION, None)]);
    Some(error.with(&[("data", Some(&data))]))
}

/// A refusal by a stage of the pipeline. The chain adds the decision id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{code}: {message}")]
pub struct Refusal {
    /// The stable code.
    pub code: Code,
    /// The text for the agent. It never has a secret, the value of an argument or a path of the host.
    pub message: String,
    /// The rules that decided, only for the operator.
    pub rules: Vec<Rule>,
    /// Details for the operator. They go to the audit record, not to the agent.
    pub detail: Option<String>,
    /// The time until a retry can succeed.
    pub retry_after: Option<Duration>,
    /// Further members of the error's `data`.
    pub data: Option<Box<serde_json::Map<String, Value>>>,
}

impl Refusal {
    /// A refusal with a code and the text for the agent.
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

    /// Adds a rule that decided.
    pub fn rule(mut self, rule: Rule) -> Self {
        self.rules.push(rule);
        self
    }

    /// Sets the details for the operator.
    pub fn detail(mut self, detail: impl Into<String>) -> Self {
        self.detail = Some(detail.into());
        self
    }

    /// Sets the time until a retry can succeed.
    pub fn retry_after(mut self, after: Duration) -> Self {
        self.retry_after = Some(after);
        self
    }

    /// Adds a member to the error's `data`.
    pub fn data(mut self, name: &str, value: Value) -> Self {
        self.data.get_or_insert_default().insert(name.to_owned(), value);
        self
    }

    /// The JSON-RPC error object for the agent:
    /// `{code, message, data: {code, decision, retryAfterMs?}}`.
    pub fn to_rpc_error(&self, decision: DecisionId) -> Value {
        json!({
            "code": self.code.rpc(),
            "message": self.text(decision),
            "data": self.data_of(decision),
        })
    }

    /// The result of a tool for the agent, with `isError`. Agents show it to their model, which can
    /// correct the call; an error often does not reach the model. `_meta` has what an error has as
    /// `data`: a tool's `outputSchema` may say what `structuredContent` is, but not what `_meta` is.
    pub fn to_tool_result(&self, decision: DecisionId, revision: Revision) -> Value {
        let mut result = json!({
            "content": [{ "type": "text", "text": self.text(decision) }],
            "isError": true,
            "_meta": { META_REFUSAL: self.data_of(decision) },
        });
        if revision.is_modern() {
            result["resultType"] = "complete".into();
        }
        result
    }

    /// The text and the `data` of a result that is a refusal.
    pub fn read_tool_result(result: &Value) -> Option<(&Value, &Value)> {
        let data = result.get("_meta")?.get(META_REFUSAL)?;
        Some((result.pointer("/content/0/text")?, data))
    }

    fn text(&self, decision: DecisionId) -> String {
        format!("{} [{}, decision {decision}]", self.message, self.code)
    }

    fn data_of(&self, decision: DecisionId) -> Value {
        let mut data = Value::Object(self.data.as_deref().cloned().unwrap_or_default());
        data["code"] = self.code.as_str().into();
        data[DECISION] = decision.to_string().into();
        if let Some(after) = self.retry_after {
            let millis = u64::try_from(after.as_millis()).unwrap_or(u64::MAX);
            data["retryAfterMs"] = millis.into();
        }
        data
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
    fn tool_result_and_error_have_the_same_facts() {
        let id = DecisionId::next();
        let refusal = Refusal::new(Code::ArgumentsInvalid, "`/a` is missing").detail("operator");
        let error = refusal.to_rpc_error(id);
        for revision in [Revision::V2025_11_25, Revision::V2026_07_28] {
            let result = refusal.to_tool_result(id, revision);
            assert_eq!(result["isError"], true);
            assert_eq!(result.get("resultType").is_some(), revision.is_modern());
            assert!(result.get("structuredContent").is_none());
            let read = Refusal::read_tool_result(&result);
            assert_eq!(read, Some((&error["message"], &error["data"])));
        }
        assert_eq!(Refusal::read_tool_result(&json!({ "content": [], "isError": true })), None);
    }

    #[test]
    fn server_cannot_pose_as_the_proxy() {
        let refusal = Refusal::new(Code::PolicyDenied, "not allowed");
        let id = DecisionId::next();
        let real = refusal.to_tool_result(id, Revision::V2025_11_25).to_string();
        let escaped = real.replace("dev.portcullis/refusal", "dev.portcullis\\/re\\u0066usal");
        let nested = escaped.replace("_meta", "\\u005fmeta");
        let passed = |answer| match without_marks(answer) {
            Answer::Result(payload) | Answer::Error(payload) => payload,
        };
        for text in [real, escaped, nested] {
            let result = passed(Answer::Result(Payload::new(text.clone().into())));
            assert_eq!(Refusal::read_tool_result(result.value()), None, "{text}");
            assert_eq!(result.value()["_meta"], json!({}), "{text}");
        }
        let error = refusal.to_rpc_error(id).to_string();
        let error = passed(Answer::Error(Payload::new(error.into())));
        assert_eq!(error.value()["data"], json!({ "code": "policy-denied" }));
        // Everything else is unchanged.
        for text in [
            r#"{"content":[{"text":"dev.portcullis/refusal \u0041"}],"_meta":{"x":1.0}}"#,
            r#"{ "structuredContent":{"dev.portcullis/refusal":{}},"_meta":[] }"#,
        ] {
            let text = Bytes::from_static(text.as_bytes());
            assert_eq!(*passed(Answer::Result(Payload::new(text.clone()))).raw(), text);
        }
        for text in [
            r#"{ "code":1,"message":"","data":{"code":"own","decision":"x"}}"#,
            r#"{ "code":1,"message":"","data":{"code":"policy-denied"}}"#,
            r#"{ "code":1,"message":""}"#,
        ] {
            let text = Bytes::from_static(text.as_bytes());
            assert_eq!(*passed(Answer::Error(Payload::new(text.clone()))).raw(), text);
        }
    }

    #[test]
    fn agent_sees_code_and_decision_but_no_rule() {
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
