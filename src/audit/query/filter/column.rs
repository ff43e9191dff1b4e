//! The fields of a record, as filters, tables and counts name them.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

/// Type of a column. It determines the comparisons.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Type {
    /// A text: `=`, `!=`, `in`, `~`, `!~`, `contains`.
    Text,
    /// One of these words: `=`, `!=`, `in`.
    Word(&'static [&'static str]),
    /// A time: `<`, `<=`, `>`, `>=`, and `=` with a day.
    Time,
    /// A duration: `<`, `<=`, `>`, `>=`, `=`, `!=`.
    Duration,
    /// A size: as a duration.
    Bytes,
    /// A number: as a duration.
    Number,
    /// An address: `=`, `!=`, `in`, with an address or a network.
    Address,
    /// JSON: `contains`.
    Body,
}

impl Type {
    /// Comparisons of this type, as text for docs and errors.
    pub fn signs(self) -> &'static str {
        match self {
            Self::Text => "=, !=, in (…), ~, !~ and contains",
            Self::Word(_) | Self::Address => "=, != and in (…)",
            Self::Time => "<, <=, >, >=, and = with a day",
            Self::Duration | Self::Bytes | Self::Number => "<, <=, >, >=, = and !=",
            Self::Body => "contains",
        }
    }
}

macro_rules! columns {
    ($(#[doc = $doc:literal] $variant:ident = $name:literal, $type:expr, $example:literal;)*) => {
        /// Column of filters, tables and counts: one field of a record. For a record without the
        /// field, only `!=` is true.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Column {
            $(#[doc = $doc] $variant,)*
        }

        impl Column {
            /// Every column, in the order of the docs.
            pub const ALL: &[Column] = &[$(Column::$variant,)*];

            /// Name in filters and in `--fields`.
            pub fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }

            /// Type of the values.
            pub fn ty(self) -> Type {
                match self { $(Self::$variant => $type,)* }
            }

            /// Description, one sentence.
            pub fn about(self) -> &'static str {
                match self { $(Self::$variant => $doc.trim_ascii(),)* }
            }

            /// Example filter for the docs.
            pub fn example(self) -> &'static str {
                match self { $(Self::$variant => $example,)* }
            }
        }
    };
}

columns! {
    /// When the record was written.
    Time = "time", Type::Time, "time > 24h ago";
    /// The day on which it was written, in UTC.
    Day = "day", Type::Text, "day = 2026-11-21";
    /// The hour in which it was written, in UTC.
    Hour = "hour", Type::Text, "hour = 2026-11-21T08";
    /// The record's place in the log.
    Seq = "seq", Type::Number, "seq >= 4096";
    /// The decision's id, as the agent was told; an event's own.
    Id = "id", Type::Text, "id = 01960f8e-3b5a-7c60-9c1e-2f6b1f3d9a77";
    /// Which kind of record it is.
    Kind = "kind", Type::Word(&["intent", "outcome", "refused", "event"]), "kind = event";
    /// Which event.
    Event = "event", Type::Text, "event ~ \"server-*\"";
    /// What was decided.
    Decision = "decision",
        Type::Word(&["allowed", "refused", "failed", "cancelled"]),
        "decision in (refused, failed)";
    /// The code of the refusal or failure.
    Code = "code", Type::Text, "code = policy-denied";
    /// What the agent was told, and the detail that it was not told.
    Refusal = "refusal", Type::Text, "has refusal";
    /// The principal: a client's name, `local:USER` or `anonymous`.
    Client = "client", Type::Text, "client = ci-bot";
    /// The local user: of `local:USER`, or who asked something of the running proxy.
    User = "user", Type::Text, "user = alice";
    /// A group of the client.
    Group = "group", Type::Text, "group = contractors";
    /// The first digits of the hash of the client's key.
    Key = "key", Type::Text, "has key";
    /// The client's address: one, or a network of them. Refusals that share an id have their network's first.
    Addr = "addr", Type::Address, "addr = 10.0.0.0/8";
    /// How the client reached the proxy.
    Transport = "transport", Type::Word(&["http", "unix", "stdio", "cli"]), "transport = http";
    /// The first characters of the session's id.
    Session = "session", Type::Text, "session = 0b9f3a51";
    /// The trace id that the client sent.
    Trace = "trace", Type::Text, "trace = 4bf92f3577b34da6a3ce929d0e0e4736";
    /// The server.
    Server = "server", Type::Text, "not server = notes";
    /// The digest of the server's image.
    Image = "image", Type::Text, "image ~ \"sha256:9f86*\"";
    /// The tool's name on its server.
    Tool = "tool", Type::Text, "tool ~ \"delete_*\"";
    /// The digest of the tool's definition.
    Pin = "pin", Type::Text, "has pin";
    /// The tool, prompt or resource.
    Target = "target", Type::Text, "target ~ \"file:///srv/*\"";
    /// The JSON-RPC method.
    Method = "method", Type::Text, "method = tools/call";
    /// Who speaks to whom.
    Direction = "direction",
        Type::Word(&["client-to-server", "server-to-client"]),
        "direction = server-to-client";
    /// The protocol revision that the client speaks.
    Revision = "revision", Type::Text, "revision = 2026-07-28";
    /// A rule that decided or found something: its id.
    Rule = "rule", Type::Text, "rule = no-destructive";
    /// What an interceptor saw, in words.
    Finding = "finding", Type::Text, "finding contains token";
    /// The revision of the policies that decided.
    Policy = "policy", Type::Text, "policy = 7f3a";
    /// A label that an interceptor gave.
    Label = "label", Type::Text, "label = pii";
    /// From the message's arrival to its end.
    Total = "total", Type::Duration, "total > 200ms";
    /// The part of it that the server took.
    Upstream = "upstream", Type::Duration, "upstream >= 1.5s";
    /// The size of the parameters.
    Request = "request", Type::Bytes, "request > 64KiB";
    /// The size of the answer.
    Response = "response", Type::Bytes, "response > 1MB";
    /// The arguments, where a policy has them kept. They are in the intent.
    Arguments = "arguments", Type::Body, "arguments contains \"/etc/passwd\"";
    /// The result, where a policy has it kept.
    Result = "result", Type::Body, "result contains \"access denied\"";
    /// Any text of the record.
    Text = "text", Type::Body, "text contains github.com";
}

impl fmt::Display for Column {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Text that is not the name of a column.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("there is no field `{}`{}", name.escape_default(), hint(*suggestion))]
pub struct IllegalColumn {
    name: String,
    /// Column that was probably meant.
    pub suggestion: Option<Column>,
}

fn hint(suggestion: Option<Column>) -> String {
    suggestion.map(|suggestion| format!(": did you mean `{suggestion}`?")).unwrap_or_default()
}

/// Other names that users try.
const OTHER_NAMES: &[(&str, Column)] = &[
    ("principal", Column::Client),
    ("who", Column::Client),
    ("date", Column::Time),
    ("recorded", Column::Time),
    ("at", Column::Time),
    ("record", Column::Kind),
    ("type", Column::Kind),
    ("address", Column::Addr),
    ("ip", Column::Addr),
    ("client_addr", Column::Addr),
    ("took", Column::Total),
    ("latency", Column::Total),
    ("duration", Column::Total),
    ("total_us", Column::Total),
    ("server_us", Column::Upstream),
    ("bytes", Column::Request),
    ("args", Column::Arguments),
    ("body", Column::Arguments),
    ("error", Column::Code),
    ("reason", Column::Refusal),
    ("policy_revision", Column::Policy),
    ("resource", Column::Target),
    ("prompt", Column::Target),
];

impl FromStr for Column {
    type Err = IllegalColumn;

    fn from_str(text: &str) -> Result<Self, IllegalColumn> {
        let name = text.to_ascii_lowercase();
        if let Some(found) = Self::ALL.iter().find(|column| column.name() == name) {
            return Ok(*found);
        }
        let other =
            OTHER_NAMES.iter().find(|(other, _)| *other == name).map(|(_, suggestion)| *suggestion);
        let suggestion = other.or_else(|| nearest(&name, Self::ALL.iter().map(|c| (c.name(), *c))));
        Err(IllegalColumn { name: text.chars().take(64).collect(), suggestion })
    }
}

/// Name with the most similar spelling, if any is similar.
pub(super) fn nearest<T>(
    name: &str,
    known: impl IntoIterator<Item = (&'static str, T)>,
) -> Option<T> {
    let near = |other: &str| strsim::damerau_levenshtein(name, other);
    let close = known.into_iter().map(|(other, what)| (near(other), other.len(), what));
    close
        .filter(|(distance, length, _)| *distance <= 2 && distance < length)
        .min_by_key(|(distance, ..)| *distance)
        .map(|(.., what)| what)
}

impl Serialize for Column {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

impl<'de> Deserialize<'de> for Column {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}
