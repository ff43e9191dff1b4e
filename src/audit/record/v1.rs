//! Version 1 of the records, as they are stored, printed and described by
//! `portcullis schema audit`. A published field never changes its meaning; a new one is optional.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::SocketAddr,
    str::FromStr,
};

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::names::DecisionId;

/// The version that these types are.
pub const VERSION: u8 = 1;

/// One record as the store returns it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(title = "Portcullis audit record, version 1")]
pub struct Entry {
    /// The version of the record: 1.
    pub v: u8,
    /// The record's place in the store. Later records have greater cursors.
    pub cursor: Cursor,
    /// When the record was written, to the microsecond. Unique, and never before that of an
    /// earlier record, also where the clock was set back.
    #[schemars(with = "String", extend("format" = "date-time"))]
    pub recorded: Timestamp,
    #[serde(flatten)]
    pub record: Record,
}

/// A place in the store: the microsecond since 1970 at which a record was written, as 16 digits
/// in hex.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(try_from = "String", into = "String")]
#[schemars(with = "String")]
pub struct Cursor(pub(in crate::audit) u64);

/// Text that is no cursor.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{}` is not a cursor: use the `cursor` of a record, 16 digits in hex",
    .0.escape_default()
)]
pub struct IllegalCursor(String);

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl FromStr for Cursor {
    type Err = IllegalCursor;

    fn from_str(text: &str) -> Result<Self, IllegalCursor> {
        let digits = text.len() == 16 && text.bytes().all(|b| b.is_ascii_hexdigit());
        match u64::from_str_radix(text, 16) {
            Ok(stamp) if digits => Ok(Self(stamp)),
            _ => Err(IllegalCursor(text.chars().take(64).collect())),
        }
    }
}

impl TryFrom<String> for Cursor {
    type Error = IllegalCursor;

    fn try_from(text: String) -> Result<Self, IllegalCursor> {
        text.parse()
    }
}

impl From<Cursor> for String {
    fn from(cursor: Cursor) -> String {
        cursor.to_string()
    }
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
    Event(Event),
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
    /// The protocol revision that the client speaks, a date.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<String>,
    /// The server that is asked, or that asks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server: Option<String>,
    /// The tool, prompt or resource.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<Target>,
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
    /// The rules that decided.
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

fn is_zero(count: &u32) -> bool {
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
    /// `would-replace` or `fault`.
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

/// The types of the arguments by JSON pointer. `*` stands for every element of an array, `|`
/// joins the types where they differ. A key that neither the tool's schema nor the protocol names
/// stands as `#` and the beginning of its keyed digest, since a key can hold data too.
pub type Shape = BTreeMap<String, String>;

/// A message that was allowed, before it leaves.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Intent {
    #[serde(flatten)]
    pub call: Call,
    /// Always `allowed`.
    pub decision: Decision,
    #[serde(flatten)]
    pub grounds: Grounds,
    /// The parameters as they leave.
    pub request: Body,
    /// The shape of the arguments.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub shape: Shape,
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
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Timing {
    /// Microseconds from the message's arrival to this record.
    pub total_us: u64,
    /// Microseconds of it that the server took.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server_us: Option<u64>,
}

/// A message that was refused before it left.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Refused {
    #[serde(flatten)]
    pub call: Call,
    /// Always `refused`.
    pub decision: Decision,
    pub refusal: Refusal,
    #[serde(flatten)]
    pub grounds: Grounds,
    /// The message, or its parameters where it could be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request: Option<Body>,
    /// The shape of the arguments.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub shape: Shape,
    #[serde(flatten)]
    pub timing: Timing,
}

/// Something that happened to the proxy.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Event {
    /// The event's own id, a UUID.
    #[schemars(with = "String", extend("format" = "uuid"))]
    pub id: DecisionId,
    #[schemars(with = "String", extend("format" = "date-time"))]
    pub at: Timestamp,
    #[serde(flatten)]
    pub what: Happening,
}

/// The events. `event` says which it is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum Happening {
    /// The proxy began to take messages.
    ProxyStarted { version: String },
    /// The proxy stopped in an orderly way.
    ProxyStopped {
        #[serde(default, skip_serializing_if = "Option::is_none")]
        reason: Option<String>,
    },
    /// A server was started.
    ServerLaunched {
        server: String,
        /// Where it runs: `container 0123456789ab`, `sandbox pid 42`, a URL's host.
        place: String,
    },
    /// A server could not be started.
    ServerLaunchFailed { server: String, reason: String },
    /// A server ended or was stopped.
    ServerStopped {
        server: String,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        reason: Option<String>,
    },
    /// Messages that a server sent unasked came faster than they were taken, and were dropped.
    MessagesDropped {
        server: String,
        /// How many, since the last such record.
        count: u64,
    },
    /// Policies took effect.
    PolicyLoaded { revision: String, policies: u64 },
    /// Policies were read and not taken; the old ones stay.
    PolicyRejected { reason: String },
    /// A client was given a key.
    ClientAdded { client: String },
    /// A client's key was taken away.
    ClientRemoved { client: String },
    /// Messages were refused without a record of each: more came than are recorded one by one.
    RefusalsUnrecorded {
        /// How many they were.
        count: u64,
        /// When the first of them was refused. The last was before this record.
        #[schemars(with = "String", extend("format" = "date-time"))]
        since: Timestamp,
    },
    /// Records of this store that were acknowledged are gone: a part of it is damaged. Later ones
    /// are in a new part.
    RecordsLost {
        /// The folder, still in its place.
        segment: String,
        /// No record after this time is left in it.
        #[schemars(with = "String", extend("format" = "date-time"))]
        after: Timestamp,
        /// The last lost record was written at this time.
        #[schemars(with = "String", extend("format" = "date-time"))]
        until: Timestamp,
    },
    /// A part of this store could not be opened and was put aside. Records in it can't be queried.
    SegmentQuarantined {
        /// The folder, now under `quarantine` in the store.
        segment: String,
        reason: String,
    },
}

impl Record {
    /// Which kind it is.
    pub fn kind(&self) -> Kind {
        match self {
            Self::Intent(_) => Kind::Intent,
            Self::Outcome(_) => Kind::Outcome,
            Self::Refused(_) => Kind::Refused,
            Self::Event(_) => Kind::Event,
        }
    }

    /// The decision's id, or the event's own.
    pub fn id(&self) -> DecisionId {
        match self {
            Self::Event(event) => event.id,
            _ => self.call().map_or(DecisionId::from_bytes([0; 16]), |call| call.id),
        }
    }

    /// The message, except for an event.
    pub fn call(&self) -> Option<&Call> {
        match self {
            Self::Intent(intent) => Some(&intent.call),
            Self::Outcome(outcome) => Some(&outcome.call),
            Self::Refused(refused) => Some(&refused.call),
            Self::Event(_) => None,
        }
    }

    /// What was decided, except for an event.
    pub fn decision(&self) -> Option<Decision> {
        match self {
            Self::Intent(intent) => Some(intent.decision),
            Self::Outcome(outcome) => Some(outcome.decision),
            Self::Refused(refused) => Some(refused.decision),
            Self::Event(_) => None,
        }
    }

    /// Why it did not pass.
    pub fn refusal(&self) -> Option<&Refusal> {
        match self {
            Self::Outcome(outcome) => outcome.refusal.as_ref(),
            Self::Refused(refused) => Some(&refused.refusal),
            Self::Intent(_) | Self::Event(_) => None,
        }
    }

    /// On what grounds it was decided, except for an event.
    pub fn grounds(&self) -> Option<&Grounds> {
        match self {
            Self::Intent(intent) => Some(&intent.grounds),
            Self::Outcome(outcome) => Some(&outcome.grounds),
            Self::Refused(refused) => Some(&refused.grounds),
            Self::Event(_) => None,
        }
    }

    /// The server that the record is about.
    pub fn server(&self) -> Option<&str> {
        match self {
            Self::Event(event) => match &event.what {
                Happening::ServerLaunched { server, .. }
                | Happening::ServerLaunchFailed { server, .. }
                | Happening::ServerStopped { server, .. }
                | Happening::MessagesDropped { server, .. } => Some(server),
                _ => None,
            },
            _ => self.call()?.server.as_deref(),
        }
    }

    /// The tool that the record is about.
    pub fn tool(&self) -> Option<&str> {
        match self.call()?.target.as_ref()? {
            Target::Tool(name) => Some(name),
            Target::Prompt(_) | Target::Resource(_) => None,
        }
    }
}
