//! Detection Finding (2004).

use serde_json::{Map, Value, json};

use super::{
    super::super::Item, actor, api, class, client, put, resources, rules, server, unmapped,
};
use crate::record::{Call, Kind, Refusal};

/// Event of a refused message or response.
pub(super) fn event(item: &Item, call: &Call, refusal: &Refusal) -> Map<String, Value> {
    let mut event = class(2004, "Detection Finding", (2, "Findings"), (1, "Create"));
    let method = call.method.as_deref().unwrap_or("message");
    let what = match item.record.kind() {
        Kind::Outcome => "answer",
        _ => "request",
    };
    let title = format!("{method} {what} refused: {}", refusal.code);
    let at = item.record.at().as_millisecond();
    let mut finding = json!({
        "uid": item.record.id().to_string(),
        "title": title,
        "desc": refusal.message,
        "types": [refusal.code],
        "created_time": item.recorded.as_millisecond(),
        "first_seen_time": at,
        "last_seen_time": at,
    });
    if let Some(rule) = item.record.grounds().and_then(|grounds| grounds.deciding().next()) {
        let mut analytic = json!({ "type_id": 1, "type": "Rule", "uid": rule.id, "name": rule.id });
        if let Some(reason) = &rule.reason {
            analytic["desc"] = reason.as_str().into();
        }
        finding["analytic"] = analytic;
    }
    event.insert("finding_info".into(), finding);
    let mut evidence = json!({
        "actor": actor(call),
        "api": api(item, call),
        "src_endpoint": client(call),
    });
    if let Some(server) = server(call) {
        evidence["dst_endpoint"] = server;
    }
    event.insert("evidences".into(), json!([evidence]));
    put(&mut event, "resources", resources(call));
    event.insert("is_alert".into(), true.into());
    event.insert("status_id".into(), 1.into());
    event.insert("status".into(), "New".into());
    event.insert("status_code".into(), refusal.code.as_str().into());
    put(&mut event, "status_detail", refusal.detail.as_deref());
    event.insert("confidence_id".into(), 3.into());
    event.insert("confidence".into(), "High".into());
    event.insert("action_id".into(), 2.into());
    event.insert("action".into(), "Denied".into());
    event.insert("disposition_id".into(), 2.into());
    event.insert("disposition".into(), "Blocked".into());
    rules(&mut event, item, "Denied");
    event.insert("message".into(), title.into());
    unmapped(&mut event, item);
    event
}
