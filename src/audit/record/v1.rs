//! Version 1 of the records, as they are stored, printed and described by
//! `portcullis schema audit`. A published field never changes its meaning; a new one is optional.

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
};

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use smol_str::SmolStr;

use super::{Decision, Era, Event, PolicyInput, Rule, Transport};
use crate::{line::Seq, proof::Hash};
use portcullis_protocol::names::DecisionId;

/// Version of these types.
pub const VERSION: u8 = 1;

/// Record as the store returns it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(title = "Portcullis audit record, version 1")]
pub struct Entry {
    /// Version of the record: 1.
    pub v: u8,
    /// Position of the record in the log, counted from 0 without gaps.
    pub seq: Seq,
    /// Time of writing, in microseconds. Never before that of an earlier record, even if the clock
    /// was set back.
    #[schemars(with = "String", extend("format" = "date-time"))]
    pub recorded: Timestamp,
    /// Hash of the preceding record; zeros for the first record.
    pub prev: Hash,
    #[serde(flatten)]
    pub record: Record,
}

/// Content of a record. `record` has the kind.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "record", rename_all = "kebab-case")]
pub enum Record {
    /// An allowed message. Written before the message leaves the proxy.
    Intent(Box<Intent>),
    /// The end of a message that has an intent. Written after its end.
    Outcome(Box<Outcome>),
    /// A message that was refused before it left the proxy.
    Refused(Box<Refused>),
    /// An event of the proxy that is not a message.
    Event(Box<EventRecord>),
}

/// Kinds of records.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    Intent,
    Outcome,
    Refused,
    Event,
}

/// The message and its sender: the common fields of all records of a decision.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Call {
    /// Decision id, a UUID. All records of one decision have the same.
    #[schemars(with = "String", extend("format" = "uuid"))]
    pub id: DecisionId,
    /// Time at which the message arrived.
    #[schemars(with = "String", extend("format" = "date-time"))]
    pub at: Timestamp,
    /// Name of the client, `local:USER` or `anonymous`. Absent if no principal was identified.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub principal: Option<String>,
    /// Whether the identity was proven.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub verified: bool,
    /// Groups of the client.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub groups: Vec<String>,
    /// First digits of the hash of the client's key. One name can have several keys over time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_id: Option<String>,
    /// Address and port of the client, for connections over a network.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub client_addr: Option<SocketAddr>,
    pub transport: Transport,
    /// First characters of the session id: enough to join records, too few to use the session.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session: Option<String>,
    pub direction: Direction,
    /// JSON-RPC method. Absent if the message could not be parsed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub method: Option<String>,
    /// Whether the message is a notification, which expects no response.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub notification: bool,
    /// Protocol era of the client.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub era: Option<Era>,
    /// Protocol revision of the client, a date.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<String>,
    /// Server that receives the message, or that sends it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server: Option<String>,
    /// `sha256:` and the digest of the server's image, if it runs in a container.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// Tool, prompt or resource.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<Target>,
    /// `sha256:` and the digest of the tool's definition in canonical form (RFC 8785). It changes
    /// only if the server changes the definition.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pin: Option<String>,
    /// Labels set by interceptors.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub labels: BTreeSet<String>,
    /// Trace id of the client's `traceparent`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trace: Option<String>,
}

/// Direction of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Direction {
    ClientToServer,
    ServerToClient,
}

/// Target of a message.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Target {
    /// Name of a tool on its server.
    Tool(String),
    /// Name of a prompt on its server.
    Prompt(String),
    /// URI of a resource without user, query and fragment, which can contain secrets.
    Resource(String),
}

/// Results of the stages that led to the decision.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct DecisionBasis {
    /// Rules that decided, and rules that permitted a message that was then refused, or failed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rules: Vec<Rule>,
    /// Findings of interceptors.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub findings: Vec<Finding>,
    /// Revision of the policies that decided.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy_revision: Option<String>,
    /// Number of rules, findings, labels and members of the shape that were omitted to keep the
    /// record small.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub omitted: u32,
}

pub(super) fn is_zero(count: &u32) -> bool {
    *count == 0
}

/// Finding of an interceptor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Finding {
    /// Name of the interceptor.
    pub interceptor: String,
    /// `request` or `response`.
    pub phase: String,
    pub rule: Rule,
    /// Description of the finding and its position.
    pub message: String,
    /// Effect on the message: `reported`, `redacted`, `replaced`, `refused`, `would-refuse`,
    /// `would-permit`, `would-replace` or `fault`.
    pub effect: String,
}

/// Text of which only the size and a keyed digest are recorded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Body {
    /// Size in bytes.
    pub bytes: u64,
    /// `hmac-sha256:` and the digest in hex, under the store's own key. Equal texts have equal
    /// digests. Without the key, a guess cannot be verified.
    pub digest: String,
}

/// Body that is kept because of a policy's `@keep`. The secret scanner redacted it first.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct KeptBody {
    /// JSON with `[redacted:RULE]` in place of each secret. Absent if the body could not be
    /// scanned.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub body: Option<Value>,
    /// Number of redacted secrets.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub redacted: u32,
    /// Whether the body was truncated: long texts end with `…`, later members are omitted.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub cut: bool,
    /// Reason why there is no body.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<String>,
}

/// Refusal of a message or of its response.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Refusal {
    /// Stable code that the agent received.
    pub code: String,
    /// Message that the agent received.
    pub message: String,
    /// Further details for the operator.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
}

/// Types of arguments or of a result by JSON pointer. `*` stands for every element of an array, `|`
/// joins different types. A key that neither the tool's schema nor the protocol defines is `#` and
/// the beginning of its keyed digest, because a key can contain data.
pub type Shape = BTreeMap<String, Cow<'static, str>>;

/// Record of an allowed message, before it leaves the proxy.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Intent {
    #[serde(flatten)]
    pub call: Call,
    /// Decision: `allowed` in an intent, `refused` in a refusal.
    pub decision: Decision,
    #[serde(flatten)]
    pub grounds: DecisionBasis,
    /// Policy input that the other fields do not contain. Absent if the message could not be
    /// parsed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub asked: Option<PolicyInput>,
    /// Parameters as they leave the proxy. If the message could not be parsed: the whole message.
    pub request: Body,
    /// Shape of the arguments. In an outcome: shape of the result; absent if the result is larger
    /// than 1 MiB.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub shape: Shape,
    /// Arguments, if a policy that decided has `@keep("arguments")`. For methods without
    /// `arguments`: the parameters without `_meta`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub arguments: Option<KeptBody>,
}

/// Record of the end of a message that has an intent.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Outcome {
    #[serde(flatten)]
    pub call: Call,
    pub decision: Decision,
    /// Reason why the message was refused or failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refusal: Option<Refusal>,
    #[serde(flatten)]
    pub grounds: DecisionBasis,
    /// Whether the server returned a result or an error.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answer: Option<AnswerKind>,
    /// Result or error object as it reached its last stage.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub response: Option<Body>,
    /// Shape of the result. A result larger than 1 MiB has none.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub shape: Shape,
    /// Result or error object, if a policy that decided has `@keep("result")`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result: Option<KeptBody>,
    #[serde(flatten)]
    pub timing: Timing,
}

/// Kind of a server's response.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum AnswerKind {
    Result,
    Error,
}

/// Durations of a message.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Timing {
    /// Microseconds from the message's arrival to this record.
    pub total_us: u64,
    /// Microseconds of `total_us` spent in the server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server_us: Option<u64>,
    /// Microseconds of `total_us` in each stage: `parse`, `route`, `request/NAME` for each
    /// interceptor of the request, `intent` for writing the intent to disk, `server`,
    /// `response/NAME` for each interceptor of the response. Stages of less than one microsecond
    /// are omitted.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(with = "BTreeMap<String, u64>")]
    pub stages_us: BTreeMap<SmolStr, u64>,
}

/// A message that was refused before it left the proxy.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Refused {
    #[serde(flatten)]
    pub call: Call,
    /// Decision: `allowed` in an intent, `refused` in a refusal.
    pub decision: Decision,
    pub refusal: Refusal,
    #[serde(flatten)]
    pub grounds: DecisionBasis,
    /// Same field as in an intent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub asked: Option<PolicyInput>,
    /// Parameters, or the whole message if it could not be parsed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request: Option<Body>,
    /// Shape of the arguments.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub shape: Shape,
    /// Arguments, under the same condition as in an intent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub arguments: Option<KeptBody>,
    #[serde(flatten)]
    pub timing: Timing,
}

/// Record of an event.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct EventRecord {
    /// Id of the event, a UUID.
    #[schemars(with = "String", extend("format" = "uuid"))]
    pub id: DecisionId,
    #[schemars(with = "String", extend("format" = "date-time"))]
    pub at: Timestamp,
    #[serde(flatten)]
    pub what: Event,
}
