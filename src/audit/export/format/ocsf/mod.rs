//! Events of the Open Cybersecurity Schema Framework 1.9.0: API Activity (6003) for exchanges,
//! Detection Finding (2004) for refusals, and classes by event (`events!`) for the rest.
//!
//! Every event has the whole record in `raw_data`, and in `attestation_list` (the profile
//! `record_integrity`) the record's hash, the hash of the preceding record and the log's id. The
//! fingerprint is that of the record, from which the event is derived: a reader can check it with
//! `raw_data` only.

mod activity;
mod finding;
mod other;

use serde_json::{Map, Value, json};

use super::{super::Item, Origin, severity};
use crate::{
    proof::Hash,
    record::{Call, Decision, Severity, Target},
};

/// Version of the schema.
const VERSION: &str = "1.9.0";

/// Event of one record.
pub(super) fn event(item: &Item, origin: &Origin) -> Value {
    let mut event = match (item.record.call(), item.record.refusal(), item.record.decision()) {
        (None, ..) => other::event(item, origin),
        (Some(call), Some(refusal), Some(Decision::Refused)) => finding::event(item, call, refusal),
        (Some(call), ..) => activity::event(item, call),
    };
    common(&mut event, item, origin);
    Value::Object(event)
}

/// Members of a class and their dependent numbers.
fn class(uid: u32, name: &str, category: (u8, &str), activity: (u8, &str)) -> Map<String, Value> {
    let mut event = Map::new();
    event.insert("class_uid".into(), uid.into());
    event.insert("class_name".into(), name.into());
    event.insert("category_uid".into(), category.0.into());
    event.insert("category_name".into(), category.1.into());
    event.insert("activity_id".into(), activity.0.into());
    event.insert("activity_name".into(), activity.1.into());
    event.insert("type_uid".into(), (u64::from(uid) * 100 + u64::from(activity.0)).into());
    // `activity_name` has the activity's own name; this is the name of its number.
    let label = if activity.0 == 99 { "Other" } else { activity.1 };
    event.insert("type_name".into(), format!("{name}: {label}").into());
    event
}

/// Members that every event has.
fn common(event: &mut Map<String, Value>, item: &Item, origin: &Origin) {
    let (severity_id, severity) = Severity::ocsf(severity(item));
    event.insert("severity_id".into(), severity_id.into());
    event.insert("severity".into(), severity.into());
    event.insert("time".into(), item.record.at().as_millisecond().into());
    event.insert("timezone_offset".into(), 0.into());
    event.insert("metadata".into(), metadata(event, item, origin));
    event.insert("raw_data".into(), item.text().into());
    event.insert("raw_data_size".into(), item.line.len().into());
    event.insert("attestation_list".into(), json!([attestation(item, origin)]));
}

fn metadata(event: &Map<String, Value>, item: &Item, origin: &Origin) -> Value {
    let mut profiles = vec!["record_integrity"];
    if event.contains_key("action_id") {
        profiles.push("security_control");
    }
    if event.contains_key("trace") {
        profiles.push("trace");
    }
    let mut metadata = json!({
        "version": VERSION,
        "product": product(origin),
        "profiles": profiles,
        "uid": record_uid(origin, item.seq.0),
        "sequence": item.seq.0,
        "correlation_uid": item.record.id().to_string(),
        "log_name": "audit",
        "log_provider": "Portcullis",
        "logged_time": item.recorded.as_millisecond(),
        "original_time": item.record.at().to_string(),
    });
    let labels = item.record.call().map(|call| &call.labels);
    if let Some(labels) = labels.filter(|labels| !labels.is_empty()) {
        metadata["labels"] = json!(labels);
    }
    metadata
}

fn product(origin: &Origin) -> Value {
    json!({ "name": "Portcullis", "vendor_name": "Portcullis", "version": origin.version })
}

/// Unique name of a record among all logs.
fn record_uid(origin: &Origin, seq: u64) -> String {
    format!("{}/{seq}", origin.log)
}

fn fingerprint(hash: &Hash) -> Value {
    json!({
        "algorithm_id": 3,
        "algorithm": "SHA-256",
        "encoding_id": 1,
        "encoding": "Hex",
        "serialization_id": 99,
        "serialization": "RFC 9162 leaf: a zero byte, then the bytes of raw_data",
        "value": hash.to_string(),
    })
}

fn attestation(item: &Item, origin: &Origin) -> Value {
    let mut attestation = json!({
        "uid": record_uid(origin, item.seq.0),
        "authority_uid": origin.log,
        "chain_uid": origin.log,
        "fingerprint": fingerprint(&item.hash),
    });
    // The first record of a chain has no predecessor.
    if let Some(before) = item.seq.0.checked_sub(1) {
        attestation["prev_event"] = json!({
            "uid": record_uid(origin, before),
            "fingerprint": fingerprint(&item.prev),
        });
    }
    attestation
}

/// Inserts a value, if there is one.
fn put(event: &mut Map<String, Value>, key: &str, value: Option<impl Into<Value>>) {
    if let Some(value) = value {
        event.insert(key.into(), value.into());
    }
}

/// The principal of the call.
fn actor(call: &Call) -> Value {
    let name = call.principal.as_deref().unwrap_or("unidentified");
    let mut actor = json!({
        "user": { "name": name, "type_id": 0, "type": "Unknown" },
        "app_name": name,
    });
    if let Some(session) = &call.session {
        actor["session"] = json!({ "uid": session });
    }
    actor
}

/// The endpoint of the client.
fn client(call: &Call) -> Value {
    let transport = serde_json::to_value(call.transport).unwrap_or_default();
    let mut endpoint = json!({
        "name": call.principal.as_deref().unwrap_or("unidentified"),
        "svc_name": transport,
    });
    if let Some(addr) = call.client_addr {
        endpoint["ip"] = addr.ip().to_canonical().to_string().into();
        endpoint["port"] = addr.port().into();
    }
    endpoint
}

fn server(call: &Call) -> Option<Value> {
    call.server.as_ref().map(|name| json!({ "name": name, "svc_name": "mcp" }))
}

fn api(item: &Item, call: &Call) -> Value {
    let mut api = json!({
        "operation": call.method.as_deref().unwrap_or("unreadable"),
        "request": { "uid": item.record.id().to_string() },
    });
    if let Some(server) = &call.server {
        api["service"] = json!({ "name": server });
    }
    if let Some(revision) = &call.revision {
        api["version"] = revision.as_str().into();
    }
    if let Some(refusal) = item.record.refusal() {
        api["response"] = json!({ "error": refusal.code, "error_message": refusal.message });
    }
    api
}

fn resources(call: &Call) -> Option<Value> {
    let (kind, name) = match call.target.as_ref()? {
        Target::Tool(name) => ("tool", name),
        Target::Prompt(name) => ("prompt", name),
        Target::Resource(uri) => ("resource", uri),
    };
    let mut resource = json!({ "type": kind, "name": name, "uid": name });
    if let Some(server) = &call.server {
        resource["namespace"] = server.as_str().into();
    }
    Some(json!([resource]))
}

/// Rules that decided, in the members of the profile `security_control`.
fn rules(event: &mut Map<String, Value>, item: &Item, decision: &str) {
    let Some(grounds) = item.record.grounds() else { return };
    let policies: Vec<Value> = grounds
        .deciding()
        .map(|rule| {
            let mut policy = json!({ "uid": rule.id, "name": rule.id, "is_applied": true });
            if let Some(reason) = &rule.reason {
                policy["desc"] = reason.as_str().into();
            }
            if let Some(revision) = &grounds.policy_revision {
                policy["version"] = revision.as_str().into();
            }
            if let Some(file) = &rule.file {
                policy["data"] = json!({ "file": file, "line": rule.line });
            }
            policy
        })
        .collect();
    put(event, "policy", policies.first().cloned());
    let all: Vec<Value> = policies
        .into_iter()
        .map(|policy| json!({ "decision": decision, "policy": policy }))
        .collect();
    if !all.is_empty() {
        event.insert("authorizations".into(), all.into());
    }
}

/// Values for which the schema has no member.
fn unmapped(event: &mut Map<String, Value>, item: &Item) {
    let mut rest = Map::new();
    if let Some(timing) = item.record.timing() {
        rest.insert("total_us".into(), timing.total_us.into());
        put(&mut rest, "server_us", timing.server_us);
    }
    if let Some(grounds) = item.record.grounds().filter(|grounds| !grounds.findings.is_empty()) {
        rest.insert("findings".into(), json!(grounds.findings));
    }
    if !rest.is_empty() {
        event.insert("unmapped".into(), rest.into());
    }
}
