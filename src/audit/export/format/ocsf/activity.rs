//! API Activity (6003).

use serde_json::{Map, Value, json};

use super::{
    super::super::Item, actor, api, class, client, put, resources, rules, server, unmapped,
};
use crate::record::{Call, Decision, Direction, Kind};

/// Event of an allowed exchange: its intent or its outcome.
pub(super) fn event(item: &Item, call: &Call) -> Map<String, Value> {
    let method = call.method.as_deref().unwrap_or("unreadable");
    let reads = method.ends_with("/list")
        || matches!(method, "resources/read" | "prompts/get" | "completion/complete" | "tasks/get");
    // The effect of a tool is unknown to the proxy.
    let activity = if reads { (2, "Read") } else { (99, method) };
    let mut event = class(6003, "API Activity", (6, "Application Activity"), activity);
    event.insert("actor".into(), actor(call));
    event.insert("api".into(), api(item, call));
    let (source, destination) = match call.direction {
        Direction::ClientToServer => (Some(client(call)), server(call)),
        Direction::ServerToClient => (server(call), Some(client(call))),
    };
    event.insert("src_endpoint".into(), source.unwrap_or_else(|| client(call)));
    put(&mut event, "dst_endpoint", destination);
    put(&mut event, "resources", resources(call));
    put(&mut event, "trace", call.trace.as_ref().map(|trace| json!({ "uid": trace })));

    let kind = item.record.kind();
    let ((status_id, status), disposition) = match item.record.decision() {
        _ if kind == Kind::Intent => ((99, "Intent"), (1, "Allowed")),
        Some(Decision::Allowed) | None => ((1, "Success"), (1, "Allowed")),
        Some(Decision::Failed) => ((2, "Failure"), (27, "Error")),
        Some(Decision::Cancelled) => ((99, "Cancelled"), (16, "No Action")),
        Some(Decision::Refused) => ((2, "Failure"), (2, "Blocked")),
    };
    let refused = item.record.decision() == Some(Decision::Refused);
    let (action_id, action) = if refused { (2, "Denied") } else { (1, "Allowed") };
    event.insert("status_id".into(), status_id.into());
    event.insert("status".into(), status.into());
    event.insert("action_id".into(), action_id.into());
    event.insert("action".into(), action.into());
    event.insert("disposition_id".into(), disposition.0.into());
    event.insert("disposition".into(), disposition.1.into());
    if let Some(refusal) = item.record.refusal() {
        event.insert("status_code".into(), refusal.code.as_str().into());
        put(&mut event, "status_detail", refusal.detail.as_deref());
    }
    rules(&mut event, item, action);
    let who = call.principal.as_deref().unwrap_or("unidentified");
    let target = call.server.as_deref().unwrap_or("the proxy");
    let message = match call.direction {
        Direction::ClientToServer => format!("{who}: {method} at {target}: {status}"),
        Direction::ServerToClient => format!("{target}: {method} to {who}: {status}"),
    };
    event.insert("message".into(), message.into());
    unmapped(&mut event, item);
    event
}
