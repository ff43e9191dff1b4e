//! Tests of every format: its output, and other programs' readers.

mod docs;
mod ocsf;
mod readers;
mod text;

use bytes::Bytes;
use serde_json::Value;

use super::{super::Item, Origin};
use crate::{
    line::{Line, LineHead, Seq},
    proof::Hash,
};

fn origin() -> Origin {
    Origin { log: "0f1e2d3c".into(), host: Some("gate1".into()), version: "1.2.3", pid: 42 }
}

const ID: &str = "019a4c7e-0000-7000-8000-000000000001";

/// Records chained as the store returns them.
pub(super) fn chained<'a>(records: impl IntoIterator<Item = &'a str>) -> Vec<Item> {
    let mut prev = Hash::ZERO;
    let first = "2026-11-21T16:00:00.123456Z".parse::<jiff::Timestamp>().unwrap();
    records
        .into_iter()
        .zip(0..)
        .map(|(record, seq)| {
            let recorded = first + jiff::SignedDuration::from_millis(seq as i64);
            let head = LineHead { seq: Seq(seq), recorded, prev };
            let line = Line::write(head, record.as_bytes());
            prev = line.hash();
            Item::of(&line).unwrap()
        })
        .collect()
}

/// Name with the special characters of every format.
const HOSTILE: &str = "=re\\ad|x=1] \"y\"\n\r\u{1b}[2J\0";

fn call(kind: &str, rest: &str) -> String {
    let tool = Value::from(HOSTILE);
    format!(
        r#"{{"record":"{kind}","id":"{ID}","at":"2026-11-21T15:59:59.5Z","principal":"ci-bot","verified":true,"groups":["automation"],"key_id":"ab12","client_addr":"192.0.2.7:4000","transport":"http","session":"s-1","direction":"client-to-server","method":"tools/call","revision":"2025-11-25","era":"legacy","server":"notes","target":{{"tool":{tool}}},"labels":["pii","web"],"trace":"4bf92f3577b34da6a3ce929d0e0e4736",{rest}}}"#
    )
}

const REQUEST: &str = r#""request":{"bytes":120,"digest":"hmac-sha256:00"}"#;

/// An intent, its outcome, refusals of all kinds, and an exchange with few known values.
pub(super) fn calls() -> Vec<String> {
    vec![
        call("intent", &format!(r#""decision":"allowed",{REQUEST},"shape":{{"/path":"string"}}"#)),
        call(
            "outcome",
            r#""decision":"allowed","answer":"result","response":{"bytes":7,"digest":"hmac-sha256:01"},"total_us":1500,"server_us":1200,"stages_us":{"parse":3}"#,
        ),
        call(
            "refused",
            &format!(
                r#""decision":"refused","refusal":{{"code":"policy-denied","message":"not allowed","detail":"rule says no"}},"rules":[{{"id":"no-destructive","file":"policies/a.cedar","line":9,"reason":"Nothing is deleted"}}],"findings":[{{"interceptor":"secrets","phase":"request","rule":{{"id":"aws-key"}},"message":"a key","effect":"reported"}}],"policy_revision":"r1",{REQUEST},"total_us":90"#
            ),
        ),
        call(
            "outcome",
            r#""decision":"refused","refusal":{"code":"secret-found","message":"a secret stands in the answer"},"total_us":2000,"server_us":1900"#,
        ),
        call(
            "outcome",
            r#""decision":"failed","refusal":{"code":"server-timeout","message":"no answer in time"},"total_us":60000000,"server_us":60000000"#,
        ),
        call("outcome", r#""decision":"cancelled","total_us":10"#),
        format!(
            r#"{{"record":"refused","id":"{ID}","at":"2026-11-21T15:59:59Z","client_addr":"[2001:db8::1]:5","transport":"http","direction":"client-to-server","decision":"refused","refusal":{{"code":"malformed","message":"not JSON"}},"total_us":5}}"#
        ),
        format!(
            r#"{{"record":"intent","id":"{ID}","at":"2026-11-21T15:59:59Z","principal":"local:ann","transport":"stdio","direction":"server-to-client","method":"sampling/createMessage","server":"notes","decision":"allowed",{REQUEST}}}"#
        ),
        format!(
            r#"{{"record":"outcome","id":"{ID}","at":"2026-11-21T15:59:59Z","principal":"ci-bot","verified":true,"transport":"unix","direction":"client-to-server","method":"resources/read","server":"notes","target":{{"resource":"notes://welcome"}},"decision":"allowed","answer":"result","total_us":10}}"#
        ),
    ]
}

/// The published schema of records.
fn schema() -> Value {
    schemars::schema_for!(crate::record::Event).to_value()
}

/// One event of each kind, generated from the schema, with required and optional members.
fn events() -> Vec<String> {
    let schema = schema();
    let kinds = schema["oneOf"].as_array().unwrap();
    kinds
        .iter()
        .map(|kind| {
            let mut event = instance(kind, &schema);
            event["record"] = "event".into();
            event["id"] = ID.into();
            event["at"] = "2026-11-21T15:59:59Z".into();
            event.to_string()
        })
        .collect()
}

/// A value that fits a schema.
fn instance(schema: &Value, root: &Value) -> Value {
    if let Some(reference) = schema["$ref"].as_str() {
        let mut found = instance(root.pointer(reference.trim_start_matches('#')).unwrap(), root);
        if let (Value::Object(found), true) = (&mut found, schema["properties"].is_object()) {
            found.extend(members(schema, root));
        }
        return found;
    }
    if let Some(value) = schema.get("const") {
        return value.clone();
    }
    if let Some(one) = schema["enum"].as_array().and_then(|all| all.first()) {
        return one.clone();
    }
    for several in ["oneOf", "anyOf"] {
        if let Some(one) = schema[several].as_array().and_then(|all| all.first()) {
            return instance(one, root);
        }
    }
    let kind = match &schema["type"] {
        Value::Array(kinds) => kinds[0].as_str(),
        kind => kind.as_str(),
    };
    match (kind, schema["format"].as_str()) {
        (Some("object") | None, _) => Value::Object(members(schema, root)),
        (Some("array"), _) => vec![instance(&schema["items"], root)].into(),
        (Some("boolean"), _) => true.into(),
        (Some("integer" | "number"), _) => 7.into(),
        (_, Some("date-time")) => "2026-11-21T15:00:00Z".into(),
        (_, Some("uuid")) => ID.into(),
        _ => "192.0.2.9:443".into(),
    }
}

fn members(schema: &Value, root: &Value) -> serde_json::Map<String, Value> {
    schema["properties"]
        .as_object()
        .into_iter()
        .flatten()
        .map(|(key, schema)| (key.clone(), instance(schema, root)))
        .collect()
}

/// All samples.
fn samples() -> Vec<Item> {
    let texts: Vec<String> = calls().into_iter().chain(events()).collect();
    chained(texts.iter().map(String::as_str))
}

#[test]
fn samples_contain_every_kind_of_record() {
    let samples = samples();
    assert_eq!(samples.len(), calls().len() + events().len());
    assert_eq!(samples[1].prev, samples[0].hash);
    let line = Bytes::from_static(b"{\"v\":1}");
    assert!(Line::read(line).is_none());
}
