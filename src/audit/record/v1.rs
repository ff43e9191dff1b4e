//! Version 1 of the records, as they are stored, printed and described by
//! `portcullis schema audit`. A published field never changes its meaning; a new one is optional.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
};

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Event, PolicyInput};
use crate::{line::Seq, proof::Hash};
use portcullis_protocol::names::DecisionId;

/// The version that these types are.
pub const VERSION: u8 = 1;

/// One record as the store returns it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(title = "Portcullis audit record, version 1")]
pub struct Entry {
    /// The version of the record: 1.
    pub v: u8,
    /// The record's place in the log, counted from 0 without gaps.
    pub seq: Seq,
    /// When the record was written, to the microsecond: never before an earlier record, also where
    /// the clock was set back.
    #[schemars(with = "String", extend("format" = "date-time"))]
    pub recorded: Timestamp,
    /// The hash of the record before; zeros for the first.
    pub prev: Hash,
    #[serde(flatten)]
    pub record: Record,
}

/// What is recorded. `record` says which kind it is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "record", rename_all = "kebab-case")]
pub enum Record {
    /// A message that was allowed, written before it leaves the proxy.
    Intent(Box<Intent>),
    /// What came of a message that had an intent, written after its end.
    Outcome(Box<Outcome>),
    /// A message that was refused before it left.
    Refused(Box<Refused>),
    /// Something that happened to the proxy and not in a call.
    Event(Box<EventRecord>),
}

/// The kinds of record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    Intent,
    Outcome,
    Refused,
    Event,
}

/// What was decided of a message.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema, clap::ValueEnum,
)]
#[serde(rename_all = "kebab-case")]
pub enum Decision {
    /// It may pass; in an outcome: it passed, and so did its answer.
    Allowed,
    /// It, or in an outcome its answer, was refused.
    Refused,
    /// It was allowed, and the server gave no usable answer.
    Failed,
    /// It was allowed, and its sender stopped waiting.
    Cancelled,
}

/// The message and who sent it: what every record of a decision says first.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Call {
    /// The decision's id, a UUID. All records of one decision carry the same.
    #[schemars(with = "String", extend("format" = "uuid"))]
    pub id: DecisionId,
    /// When the message arrived.
    #[schemars(with = "String", extend("format" = "date-time"))]
    pub at: Timestamp,
    /// The client's name, `local:USER` or `anonymous`. Absent where nobody was identified.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub principal: Option<String>,
    /// Whether that identity was proven.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub verified: bool,
    /// The client's groups.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub groups: Vec<String>,
    /// The first digits of the hash of the client's key: one name can have had several keys.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_id: Option<String>,
    /// The client's address and port, over a network.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub client_addr: Option<SocketAddr>,
    pub transport: Transport,
    /// The first characters of the session's id: enough to join, too few to speak in it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session: Option<String>,
    pub direction: Direction,
    /// The JSON-RPC method. Absent where the message could not be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub method: Option<String>,
    /// Whether the message expects no answer.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub notification: bool,
    /// The era of the protocol that the client speaks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub era: Option<Era>,
    /// The protocol revision that the client speaks, a date.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<String>,
    /// The server that is asked, or that asks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server: Option<String>,
    /// `sha256:` and the digest of the image that the server runs from, where it runs in a
    /// container.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// The tool, prompt or resource.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<Target>,
    /// `sha256:` and the digest of the tool's definition in canonical form (RFC 8785): the same
    /// as long as its server says the same of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pin: Option<String>,
    /// Labels that interceptors gave.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub labels: BTreeSet<String>,
    /// The trace id of the client's `traceparent`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trace: Option<String>,
}

/// How the client reached the proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Transport {
    Http,
    Unix,
    Stdio,
    Cli,
}

/// The eras of the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Era {
    /// Up to 2025-11-25: begins with `initialize`, has sessions.
    Legacy,
    /// From 2026-07-28: stateless.
    Modern,
}

/// Who speaks and who is spoken to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Direction {
    ClientToServer,
    ServerToClient,
}

/// What a message is about.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Target {
    /// A tool's name on its server.
    Tool(String),
    /// A prompt's name on its server.
    Prompt(String),
    /// A resource's URI without its user, query and fragment, which can hold secrets.
    Resource(String),
}

/// What the stages found on the way to the decision.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Grounds {
    /// The rules that decided, and those that had permitted what was then refused, or failed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rules: Vec<Rule>,
    /// What interceptors saw.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub findings: Vec<Finding>,
    /// The revision of the policies that decided.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy_revision: Option<String>,
    /// How many rules, findings, labels and members of the shape were left out to keep the
    /// record small.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub omitted: u32,
}

pub(super) fn is_zero(count: &u32) -> bool {
    *count == 0
}

/// A rule: a policy, a secret's pattern, an interceptor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Rule {
    /// A policy's `@id`, a secret rule's id, an interceptor's name.
    pub id: String,
    /// The file that holds it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<String>,
    /// The line on which it begins, from 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub line: Option<u32>,
    /// Its author's reason.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// What a policy asks for beside permitting: `redact`, `approve`, `rate`, `note`, `label`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub asks: Vec<String>,
    /// Whether it permitted a message that was refused, or failed, for another reason.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub overruled: bool,
}

/// Something that an interceptor saw.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Finding {
    /// The interceptor that reports.
    pub interceptor: String,
    /// `request` or `response`.
    pub phase: String,
    pub rule: Rule,
    /// What was seen and where, in words.
    pub message: String,
    /// What came of it: `reported`, `redacted`, `replaced`, `refused`, `would-refuse`,
    /// `would-permit`, `would-replace` or `fault`.
    pub effect: String,
}

/// A text that is recorded by its size and its keyed digest alone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Body {
    /// Its size in bytes.
    pub bytes: u64,
    /// `hmac-sha256:` and the digest in hex, under the store's own key: equal texts are seen to
    /// be equal, and a guess can't be checked without the key.
    pub digest: String,
}

/// A body that is kept because a policy's `@keep` says so. Everything that the secret scanner
/// knows was taken out of it first.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Kept {
    /// The JSON, with `[redacted:RULE]` in the place of each secret. Absent where it could not be
    /// looked through.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub body: Option<Value>,
    /// How many secrets were taken out.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub redacted: u32,
    /// Whether more than the limit was there: long texts end with `…`, later members are left out.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub cut: bool,
    /// Why there is no body.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<String>,
}

/// Why a message, or its answer, did not pass.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Refusal {
    /// The stable code that the agent was given.
    pub code: String,
    /// What the agent was told.
    pub message: String,
    /// What else is known, for the operator.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
}

/// The types of arguments or of a result by JSON pointer. `*` stands for every element of an array, `|`
/// joins the types where they differ. A key that neither the tool's schema nor the protocol names
/// stands as `#` and the beginning of its keyed digest, since a key can hold data too.
pub type Shape = BTreeMap<String, String>;

/// A message that was allowed, before it leaves.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Intent {
    #[serde(flatten)]
    pub call: Call,
    /// What was decided: `allowed` in an intent, `refused` in a refusal.
    pub decision: Decision,
    #[serde(flatten)]
    pub grounds: Grounds,
    /// What policies were shown beside the rest of the record. Absent where the message could not
    /// be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub asked: Option<PolicyInput>,
    /// The parameters as they leave. Of what could not be read: the whole message.
    pub request: Body,
    /// The shape of the arguments; in an outcome that of the result, unless that has more than
    /// 1 MiB.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub shape: Shape,
    /// The arguments (where there are none by that name: the parameters without `_meta`), where a
    /// policy that decided says `@keep("arguments")`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub arguments: Option<Kept>,
}

/// What came of a message that had an intent.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Outcome {
    #[serde(flatten)]
    pub call: Call,
    pub decision: Decision,
    /// Why it was refused or failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refusal: Option<Refusal>,
    #[serde(flatten)]
    pub grounds: Grounds,
    /// Whether the server answered with a result or an error.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answer: Option<AnswerKind>,
    /// The result or the error object as it reached its last stage.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub response: Option<Body>,
    /// The shape of the result. A result of more than 1 MiB has none.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub shape: Shape,
    /// The result or the error object, where a policy that decided says `@keep("result")`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result: Option<Kept>,
    #[serde(flatten)]
    pub timing: Timing,
}

/// Which kind of answer a server gave.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum AnswerKind {
    Result,
    Error,
}

/// How long it took.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Timing {
    /// Microseconds from the message's arrival to this record.
    pub total_us: u64,
    /// Microseconds of it that the server took.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server_us: Option<u64>,
    /// Microseconds of it in each stage: `parse`, `route`, `request/NAME` for each interceptor
    /// before the call, `intent` for the record that has to be on disk before it leaves, `server`,
    /// `response/NAME` for each interceptor on the way back. Stages that took less than one are
    /// left out.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub stages_us: BTreeMap<String, u64>,
}

/// A message that was refused before it left.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Refused {
    #[serde(flatten)]
    pub call: Call,
    /// What was decided: `allowed` in an intent, `refused` in a refusal.
    pub decision: Decision,
    pub refusal: Refusal,
    #[serde(flatten)]
    pub grounds: Grounds,
    /// As in an intent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub asked: Option<PolicyInput>,
    /// The message, or its parameters where it could be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request: Option<Body>,
    /// The shape of the arguments.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub shape: Shape,
    /// The arguments, as in an intent, where a policy that decided says so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub arguments: Option<Kept>,
    #[serde(flatten)]
    pub timing: Timing,
}

/// Something that happened to the proxy.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct EventRecord {
    /// The event's own id, a UUID.
    #[schemars(with = "String", extend("format" = "uuid"))]
    pub id: DecisionId,
    #[schemars(with = "String", extend("format" = "date-time"))]
    pub at: Timestamp,
    #[serde(flatten)]
    pub what: Event,
}
