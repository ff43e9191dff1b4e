//! The columns of CSV, Parquet and PostgreSQL. `docs/operate/audit-export.md` is generated from
//! this table.

use std::borrow::Cow;

use jiff::Timestamp;
use serde::Serialize;

use super::super::Item;
use crate::record::{Call, Decision, KeptBody, Record, Target};

/// Type of a column.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// CSV: as it is. Parquet: UTF-8. PostgreSQL: `text`.
    Text,
    /// CSV: digits. Parquet: INT64. PostgreSQL: `bigint`.
    Integer,
    /// CSV: `true` or `false`. Parquet: BOOLEAN. PostgreSQL: `boolean`.
    Boolean,
    /// CSV: RFC 3339 in UTC. Parquet: INT64 of microseconds, TIMESTAMP in UTC. PostgreSQL:
    /// `timestamptz`.
    Time,
}

/// Value of one record in one column.
#[derive(Debug, Clone, PartialEq)]
pub enum Value<'a> {
    Absent,
    Text(Cow<'a, str>),
    Integer(i64),
    Boolean(bool),
    Time(Timestamp),
}

/// One column.
pub struct Column {
    pub name: &'static str,
    pub kind: Kind,
    /// Whether every record has a value.
    pub always: bool,
    #[cfg_attr(
        not(test),
        expect(dead_code, reason = "docs/operate/audit-export.md is held against it")
    )]
    pub about: &'static str,
    pub value: for<'a> fn(&'a Item) -> Value<'a>,
}

impl std::fmt::Debug for Column {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Column").field("name", &self.name).finish_non_exhaustive()
    }
}

fn integer(number: impl TryInto<i64>) -> Value<'static> {
    Value::Integer(number.try_into().unwrap_or(i64::MAX))
}

/// Serialized name of an enum value.
fn word(value: &impl Serialize) -> Value<'static> {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(text)) => Value::Text(text.into()),
        _ => Value::Absent,
    }
}

fn text(text: &str) -> Value<'_> {
    Value::Text(text.into())
}

fn maybe(text: Option<&str>) -> Value<'_> {
    text.map_or(Value::Absent, |text| Value::Text(text.into()))
}

fn json(list: &impl Serialize, empty: bool) -> Value<'static> {
    match serde_json::to_string(list) {
        Ok(text) if !empty => Value::Text(text.into()),
        _ => Value::Absent,
    }
}

fn body(body: Option<&KeptBody>) -> Value<'static> {
    body.map_or(Value::Absent, |body| json(body, false))
}

fn call(item: &Item) -> Option<&Call> {
    item.record.call()
}

fn target(item: &Item) -> Option<(&'static str, &str)> {
    Some(match call(item)?.target.as_ref()? {
        Target::Tool(name) => ("tool", name),
        Target::Prompt(name) => ("prompt", name),
        Target::Resource(uri) => ("resource", uri),
    })
}

const fn column(
    name: &'static str,
    kind: Kind,
    about: &'static str,
    value: for<'a> fn(&'a Item) -> Value<'a>,
) -> Column {
    Column { name, kind, always: false, about, value }
}

const fn always(column: Column) -> Column {
    Column { always: true, ..column }
}

use Kind::{Boolean, Integer, Text, Time};

/// All columns, in order. New columns are appended, except that `line` stays last.
pub const COLUMNS: &[Column] = &[
    always(column("seq", Integer, "The record's position in the log, from 0.", |i| {
        integer(i.seq.0)
    })),
    always(column("recorded", Time, "When the record was written.", |i| Value::Time(i.recorded))),
    always(column("at", Time, "When the message arrived, or the event happened.", |i| {
        Value::Time(i.record.at())
    })),
    always(column("record", Text, "`intent`, `outcome`, `refused` or `event`.", |i| {
        word(&i.record.kind())
    })),
    always(column("id", Text, "The decision's id, or the event's own.", |i| {
        Value::Text(i.record.id().to_string().into())
    })),
    column("event", Text, "Which event it is.", |i| maybe(i.record.event())),
    column("principal", Text, "The client, `local:USER` or `anonymous`.", |i| {
        maybe(i.record.principal())
    }),
    column("verified", Boolean, "Whether that identity was proven.", |i| {
        call(i).map_or(Value::Absent, |call| Value::Boolean(call.verified))
    }),
    column("groups", Text, "The client's groups: a JSON array of strings.", |i| {
        call(i).map_or(Value::Absent, |call| json(&call.groups, call.groups.is_empty()))
    }),
    column("key", Text, "The first digits of the hash of the client's key.", |i| {
        maybe(call(i).and_then(|call| call.key_id.as_deref()))
    }),
    column(
        "client_addr",
        Text,
        "The client's address and port; its network alone where refusals share an id.",
        |i| match call(i).and_then(|call| call.client_addr) {
            Some(addr) => Value::Text(addr.to_string().into()),
            None => maybe(i.record.refusals().and_then(|group| group.network.as_deref())),
        },
    ),
    column("transport", Text, "How the client reached the proxy.", |i| {
        call(i).map_or(Value::Absent, |call| word(&call.transport))
    }),
    column("session", Text, "The beginning of the session's id.", |i| maybe(i.record.session())),
    column("direction", Text, "`client-to-server` or `server-to-client`.", |i| {
        call(i).map_or(Value::Absent, |call| word(&call.direction))
    }),
    column("method", Text, "The JSON-RPC method.", |i| {
        maybe(call(i).and_then(|call| call.method.as_deref()))
    }),
    column("notification", Boolean, "Whether it expects no answer.", |i| {
        call(i).map_or(Value::Absent, |call| Value::Boolean(call.notification))
    }),
    column("era", Text, "`legacy` or `modern`.", |i| {
        call(i).and_then(|call| call.era.as_ref()).map_or(Value::Absent, |era| word(era))
    }),
    column("revision", Text, "The protocol revision of the client.", |i| {
        maybe(call(i).and_then(|call| call.revision.as_deref()))
    }),
    column("server", Text, "The server that is asked, or that the event is about.", |i| {
        maybe(i.record.server())
    }),
    column("image", Text, "The digest of the image that the server runs from.", |i| {
        maybe(call(i).and_then(|call| call.image.as_deref()))
    }),
    column("target_kind", Text, "`tool`, `prompt` or `resource`.", |i| {
        maybe(target(i).map(|(kind, _)| kind))
    }),
    column("target", Text, "Its name or URI.", |i| maybe(target(i).map(|(_, name)| name))),
    column("pin", Text, "The digest of the tool's definition.", |i| {
        maybe(call(i).and_then(|call| call.pin.as_deref()))
    }),
    column("decision", Text, "`allowed`, `refused`, `failed` or `cancelled`.", |i| {
        i.record.decision().map_or(Value::Absent, |decision: Decision| word(&decision))
    }),
    column("code", Text, "The stable code of a refusal or failure.", |i| maybe(i.record.code())),
    column("message", Text, "Message of the refusal, as the agent received it.", |i| {
        maybe(i.record.refusal().map(|refusal| refusal.message.as_str()))
    }),
    column("detail", Text, "What else is known, for the operator.", |i| {
        maybe(i.record.refusal().and_then(|refusal| refusal.detail.as_deref()))
    }),
    column("rules", Text, "The rules that decided: a JSON array of objects.", |i| {
        i.record.grounds().map_or(Value::Absent, |of| json(&of.rules, of.rules.is_empty()))
    }),
    column("findings", Text, "What interceptors saw: a JSON array of objects.", |i| {
        i.record.grounds().map_or(Value::Absent, |of| json(&of.findings, of.findings.is_empty()))
    }),
    column("policy_revision", Text, "The revision of the policies that decided.", |i| {
        maybe(i.record.grounds().and_then(|grounds| grounds.policy_revision.as_deref()))
    }),
    column("labels", Text, "Labels that interceptors gave: a JSON array of strings.", |i| {
        call(i).map_or(Value::Absent, |call| json(&call.labels, call.labels.is_empty()))
    }),
    column("trace", Text, "The trace id of the client's `traceparent`.", |i| {
        maybe(call(i).and_then(|call| call.trace.as_deref()))
    }),
    column("answer", Text, "Whether the server gave a `result` or an `error`.", |i| {
        match &i.record {
            Record::Outcome(outcome) => {
                outcome.answer.as_ref().map_or(Value::Absent, |answer| word(answer))
            }
            _ => Value::Absent,
        }
    }),
    column("arguments", Text, "Arguments, where a policy keeps them: a JSON object.", |i| match &i
        .record
    {
        Record::Intent(intent) => body(intent.arguments.as_ref()),
        Record::Refused(refused) => body(refused.arguments.as_ref()),
        Record::Outcome(_) | Record::Event(_) => Value::Absent,
    }),
    column("result", Text, "The result, where a policy keeps it: a JSON object.", |i| {
        match &i.record {
            Record::Outcome(outcome) => body(outcome.result.as_ref()),
            _ => Value::Absent,
        }
    }),
    column("request_bytes", Integer, "The size of the message or of its parameters.", |i| {
        i.request().map_or(Value::Absent, |body| integer(body.bytes))
    }),
    column("request_digest", Text, "Its keyed digest.", |i| {
        maybe(i.request().map(|body| body.digest.as_str()))
    }),
    column("response_bytes", Integer, "The size of the result or error.", |i| {
        i.response().map_or(Value::Absent, |body| integer(body.bytes))
    }),
    column("response_digest", Text, "Its keyed digest.", |i| {
        maybe(i.response().map(|body| body.digest.as_str()))
    }),
    column("total_us", Integer, "Microseconds from the message's arrival to the record.", |i| {
        i.record.timing().map_or(Value::Absent, |timing| integer(timing.total_us))
    }),
    column("server_us", Integer, "Microseconds of it that the server took.", |i| {
        i.record.timing().and_then(|timing| timing.server_us).map_or(Value::Absent, integer)
    }),
    column("stages_us", Text, "Microseconds in each stage: a JSON object.", |i| {
        i.record
            .timing()
            .map_or(Value::Absent, |timing| json(&timing.stages_us, timing.stages_us.is_empty()))
    }),
    column("count", Integer, "How many refusals without a record of their own it counts.", |i| {
        i.record.summarized().map_or(Value::Absent, integer)
    }),
    always(column("hash", Text, "The record's hash: SHA-256 of a zero byte and `line`.", |i| {
        Value::Text(i.hash.to_string().into())
    })),
    always(column("prev", Text, "The hash of the record before.", |i| {
        Value::Text(i.prev.to_string().into())
    })),
    always(column("line", Text, "The whole record, byte for byte.", |i| text(i.text()))),
];
