//! What others read: catalogs as artifacts, and profiles.

use serde_json::{Map, Value, json};

use crate::{
    node::Node,
    report::{Problem, brief},
};

/// The content of an artifact, of a catalog in either of its forms.
///
/// # Errors
/// Where it is no catalog.
pub fn artifact(text: &str, title: &str) -> Result<Value, Problem> {
    let node = crate::parse(text)?;
    if super::is_list(&node) && node.get("title").is_some() {
        return Ok(node.to_json());
    }
    let servers = node
        .get("registry")
        .and_then(Node::entries)
        .ok_or_else(|| Problem::at(node.place, "only Docker catalogs can be pushed"))?;
    let servers: Vec<Value> = servers
        .iter()
        .filter_map(|(key, node)| {
            let mut server = match node.to_json() {
                Value::Object(server) => server,
                _ => return None,
            };
            server.entry("name").or_insert_with(|| json!(*key.text));
            let tools: Vec<Value> = server
                .get("tools")
                .and_then(Value::as_array)
                .into_iter()
                .flatten()
                .filter_map(|tool| tool.get("name").cloned())
                .collect();
            let mut outer = match (
                server.get("image").cloned(),
                server.get("remote").and_then(|r| r.get("url")),
            ) {
                (Some(image), _) => json!({ "type": "image", "image": image }),
                (None, Some(url)) => json!({ "type": "remote", "endpoint": url }),
                // Sets of images for single calls have no place in an artifact.
                (None, None) => return None,
            };
            if !tools.is_empty() {
                outer["tools"] = Value::Array(tools);
            }
            outer["snapshot"] = json!({ "server": server });
            Some(outer)
        })
        .collect();
    let title = node.get("displayName").and_then(Node::text).unwrap_or(title);
    Ok(json!({ "title": title, "servers": servers }))
}

/// A server of a profile, of an entry of our config as JSON; and what of the entry is not in it.
///
/// # Errors
/// Where others have no form for it.
pub fn member(
    name: &str,
    entry: &Value,
    only: Option<&[String]>,
) -> Result<(Value, Vec<String>), Problem> {
    let mut left_out = Vec::new();
    let mut server = Map::new();
    server.insert("name".into(), json!(name));
    server.insert("title".into(), json!(name));
    server.insert("description".into(), json!(""));
    let mut outer = if let Some(image) = entry.get("image").and_then(Value::as_str) {
        server.insert("type".into(), json!("server"));
        server.insert("image".into(), json!(image));
        if let Some(command) = entry.get("command").filter(|command| !command.is_null()) {
            server.insert("command".into(), command.clone());
        }
        json!({ "type": "image", "image": image })
    } else if let Some(url) = entry.get("url").and_then(Value::as_str) {
        let kind = match entry.get("transport").and_then(Value::as_str) {
            Some("sse") => "sse",
            _ => "streamable-http",
        };
        server.insert("type".into(), json!("remote"));
        server.insert("remote".into(), json!({ "url": url, "transport_type": kind }));
        if has(entry, "headers") {
            left_out.push("headers: they are secrets, which everybody has of their own".to_owned());
        }
        json!({ "type": "remote", "endpoint": url })
    } else {
        return Err(Problem::of(format!(
            "`{}` is a program of this machine, for which profiles have no form",
            brief(name)
        )));
    };
    if let Some(env) = entry.get("env").and_then(Value::as_object).filter(|env| !env.is_empty()) {
        let env: Vec<Value> =
            env.iter().map(|(name, value)| json!({ "name": name, "value": value })).collect();
        server.insert("env".into(), Value::Array(env));
    }
    if let Some(secrets) =
        entry.get("secrets").and_then(Value::as_object).filter(|all| !all.is_empty())
    {
        let secrets: Vec<Value> = secrets
            .keys()
            .map(
                |env| json!({ "name": format!("{name}.{}", env.to_ascii_lowercase()), "env": env }),
            )
            .collect();
        server.insert("secrets".into(), Value::Array(secrets));
    }
    let hosts: Vec<Value> = entry
        .get("egress")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .map(|entry| {
            let place = entry.split_once("://").map_or(entry, |(_, place)| place);
            json!(place.split('=').next().unwrap_or(place))
        })
        .collect();
    if server.contains_key("image") {
        if hosts.is_empty() {
            server.insert("disableNetwork".into(), json!(true));
        } else {
            server.insert("allowHosts".into(), Value::Array(hosts));
        }
    }
    for (key, why) in [
        ("mounts", "they are folders of this machine"),
        ("tools", "what you say of tools is yours"),
        ("hardening", "each says for themselves how a server may deviate"),
    ] {
        if has(entry, key) {
            left_out.push(format!("{key}: {why}"));
        }
    }
    let tools = only.map_or(Value::Null, |only| json!(only));
    if !tools.is_null() {
        outer["tools"] = tools;
    }
    outer["config"] = json!({});
    outer["snapshot"] = json!({ "server": server });
    Ok((outer, left_out))
}

fn has(entry: &Value, key: &str) -> bool {
    match entry.get(key) {
        Some(Value::Object(map)) => map
            .values()
            .any(|value| !matches!(value, Value::Bool(false) | Value::Null) && value != &json!([])),
        Some(Value::Array(items)) => !items.is_empty(),
        _ => false,
    }
}

/// A profile.
#[must_use]
pub fn profile(id: &str, title: &str, servers: Vec<Value>) -> Value {
    json!({ "version": 1, "id": id, "name": title, "servers": servers })
}
