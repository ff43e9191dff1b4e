//! Events of the proxy: Application Lifecycle (6002), Application Error (6008), API Activity
//! (6003), Authentication (3002), Entity Management (3004), Network Activity (4001), and Base
//! Event (0) for events without a class.

use std::net::{IpAddr, SocketAddr};

use serde_json::{Map, Value, json};

use super::{
    super::{super::Item, Origin},
    class, product, put,
};
use crate::record::{Class, Decision, Record};

/// OCSF event of an event record.
pub(super) fn event(item: &Item, origin: &Origin) -> Map<String, Value> {
    let Record::Event(happened) = &item.record else { return Map::new() };
    let mut members = item.happening().unwrap_or_default();
    members.shift_remove("event");
    let (name, category) = (happened.what.name(), happened.what.category());
    let activity = match category.activity {
        (99, _) => (99, name),
        known => known,
    };
    let mut event = classified(category.class, activity, &members, item, origin);
    let refused = item.record.decision() == Some(Decision::Refused);
    let failed = category.failed || refused;
    let (status_id, status) = if failed { (2, "Failure") } else { (1, "Success") };
    event.insert("status_id".into(), status_id.into());
    event.insert("status".into(), status.into());
    event.insert("status_code".into(), name.into());
    if let Some(decision) = item.record.decision() {
        let allowed = decision == Decision::Allowed;
        let (action_id, action) = if allowed { (1, "Allowed") } else { (2, "Denied") };
        let (disposition_id, disposition) = if allowed { (1, "Allowed") } else { (2, "Blocked") };
        event.insert("action_id".into(), action_id.into());
        event.insert("action".into(), action.into());
        event.insert("disposition_id".into(), disposition_id.into());
        event.insert("disposition".into(), disposition.into());
    }
    put(&mut event, "status_detail", text(&members, "reason"));
    if let Some(count) = item.record.summarized() {
        event.insert("count".into(), count.into());
    }
    event.insert("message".into(), happened.what.to_string().into());
    if !members.is_empty() {
        event.insert("unmapped".into(), members.into());
    }
    event
}

fn text<'a>(members: &'a Map<String, Value>, key: &str) -> Option<&'a str> {
    members.get(key).and_then(Value::as_str)
}

fn classified(
    which: Class,
    activity: (u8, &str),
    members: &Map<String, Value>,
    item: &Item,
    origin: &Origin,
) -> Map<String, Value> {
    let application = (6, "Application Activity");
    let iam = (3, "Identity & Access Management");
    match which {
        Class::Lifecycle => {
            let mut event = class(6002, "Application Lifecycle", application, activity);
            let app = match item.record.server().or(text(members, "plugin")) {
                Some(name) => json!({ "name": name }),
                None => product(origin),
            };
            event.insert("app".into(), app);
            event
        }
        Class::Error => class(6008, "Application Error", application, activity),
        Class::Api => {
            let mut event = class(6003, "API Activity", application, activity);
            let mut user = json!({ "name": text(members, "user").unwrap_or("unknown") });
            if let Some(uid) = members.get("uid") {
                user["uid"] = uid.to_string().into();
            }
            event.insert("actor".into(), json!({ "user": user }));
            let mut api = json!({
                "operation": text(members, "verb").unwrap_or("unknown"),
                "request": { "uid": item.record.id().to_string() },
            });
            if let Some(code) = text(members, "code") {
                api["response"] = json!({ "error": code });
            }
            event.insert("api".into(), api);
            event.insert("src_endpoint".into(), json!({ "name": "admin.sock" }));
            event
        }
        Class::Authentication => {
            let mut event = class(3002, "Authentication", iam, activity);
            let name = item.record.principal().unwrap_or("unidentified");
            let mut user = json!({ "name": name });
            if let Some(groups) = members.get("groups").and_then(Value::as_array) {
                user["groups"] = groups.iter().map(|group| json!({ "name": group })).collect();
            }
            if let Some(key) = text(members, "key_id") {
                let credential = json!({ "type": "API key", "uid": key });
                user["programmatic_credentials"] = json!([credential]);
            }
            event.insert("user".into(), user);
            event.insert("service".into(), json!({ "name": "Portcullis" }));
            if let Some(session) = item.record.session() {
                event.insert("session".into(), json!({ "uid": session }));
            }
            let addr = text(members, "client_addr");
            if let Some(addr) = addr.and_then(|a| a.parse::<SocketAddr>().ok()) {
                let ip = addr.ip().to_canonical().to_string();
                let endpoint = json!({ "name": name, "ip": ip, "port": addr.port() });
                event.insert("src_endpoint".into(), endpoint);
            }
            event
        }
        Class::Entity => {
            let mut event = class(3004, "Entity Management", iam, activity);
            let name = item.record.event().unwrap_or("event");
            event.insert("entity".into(), entity(name, members));
            event
        }
        Class::Network => {
            let mut event = class(4001, "Network Activity", (4, "Network Activity"), activity);
            let server = item.record.server().unwrap_or("unknown");
            let mut endpoint = json!({ "name": server });
            if let Some(host) = text(members, "host") {
                // The server opens this connection, so it is the source.
                event.insert("src_endpoint".into(), endpoint);
                endpoint = at(host);
                if let Some(port) = members.get("port") {
                    endpoint["port"] = port.clone();
                }
                let address = text(members, "address").and_then(|a| a.parse::<SocketAddr>().ok());
                set_text(&mut endpoint, "ip", address.map(|a| a.ip().to_string()).as_deref());
                let bytes = |key| members.get(key).and_then(Value::as_u64);
                if let (Some(up), Some(down)) = (bytes("up"), bytes("down")) {
                    let traffic = json!({ "bytes_out": up, "bytes_in": down, "bytes": up.saturating_add(down) });
                    event.insert("traffic".into(), traffic);
                }
            } else {
                let of_url = host(text(members, "url"));
                let of_url = of_url.as_deref().map(at);
                let more = of_url.iter().filter_map(Value::as_object).flatten();
                more.for_each(|(key, value)| endpoint[key] = value.clone());
            }
            event.insert("dst_endpoint".into(), endpoint);
            event
        }
        Class::Base => class(0, "Base Event", (0, "Uncategorized"), activity),
    }
}

fn set_text(value: &mut Value, key: &str, text: Option<&str>) {
    if let Some(text) = text {
        value[key] = text.into();
    }
}

/// Endpoint by its name or IP address.
fn at(host: &str) -> Value {
    match host.trim_matches(['[', ']']).parse::<IpAddr>() {
        Ok(address) => json!({ "ip": address.to_string() }),
        Err(_) => json!({ "hostname": host }),
    }
}

fn host(url: Option<&str>) -> Option<String> {
    reqwest::Url::parse(url?).ok()?.host_str().map(str::to_owned)
}

/// Entity that is used or changed, by the member that names it.
fn entity(event: &str, members: &Map<String, Value>) -> Value {
    let mut entity = match event {
        "client-added" | "client-removed" => {
            let name = text(members, "client").unwrap_or("unknown");
            json!({ "name": name, "type": "User", "type_id": 2 })
        }
        "config-loaded" | "config-reloaded" | "config-rejected" => {
            let file = text(members, "file").unwrap_or("unknown");
            json!({ "name": file, "type": "config", "type_id": 99 })
        }
        "policy-loaded" | "policy-rejected" => {
            json!({ "name": "policies", "type": "Policy", "type_id": 5 })
        }
        "secrets-delivered" | "secret-unresolved" | "secrets-stale" => {
            let server = text(members, "server").unwrap_or("unknown");
            json!({ "name": format!("secrets of {server}"), "type": "secrets", "type_id": 99 })
        }
        "segment-dropped" | "key-rotated" | "store-backed-up" => {
            json!({ "name": "audit log", "type": "audit log", "type_id": 99 })
        }
        other => json!({ "name": other, "type": other, "type_id": 99 }),
    };
    set_text(&mut entity, "version", text(members, "revision"));
    entity
}
