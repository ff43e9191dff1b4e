//! Artifacts for other programs: catalogs and profiles.

use serde_json::{Map, Value, json};

use crate::{
    name::as_variable,
    node::Node,
    report::{Problem, brief},
    secret_heuristics::endpoint,
    template::is_template,
};

/// The content of an artifact, from a catalog in either of its forms.
///
/// # Errors
/// If it is not a catalog.
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
                // Sets of images for single calls are not part of an artifact.
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

/// A server of a profile, from an entry of the config as JSON, with the parts of the entry that are
/// missing or different in it. `plain` is an empty entry; `only` are the enabled tools.
///
/// # Errors
/// If the format cannot represent it.
pub fn member(
    name: &str,
    entry: &Value,
    plain: &Value,
    only: Option<&[String]>,
) -> Result<(Value, Vec<String>), Problem> {
    let mut notes = Vec::new();
    let mut server = Map::new();
    server.insert("name".into(), json!(name));
    server.insert("title".into(), json!(name));
    server.insert("description".into(), json!(""));
    let mut secrets = Vec::new();
    let mut outer = if let Some(image) = entry.get("image").and_then(Value::as_str) {
        server.insert("type".into(), json!("server"));
        server.insert("image".into(), json!(image));
        if let Some(command) = entry.get("command").filter(|command| !command.is_null()) {
            let mut words = command.as_array().into_iter().flatten().filter_map(Value::as_str);
            if let Some(nth) = words.position(is_template) {
                return Err(Problem::of(format!(
                    "argument {} of `{}` has `{{{{` in it, which others take for a value to be put in",
                    nth + 1,
                    brief(name)
                )));
            }
            server.insert("command".into(), command.clone());
        }
        network(&mut server, entry, &mut notes);
        json!({ "type": "image", "image": image })
    } else if let Some(url) = entry.get("url").and_then(Value::as_str) {
        let kind = entry.get("transport").and_then(Value::as_str);
        let kind = kind.filter(|kind| ["sse", "streamable-http"].contains(kind)).unwrap_or("http");
        let mut remote = json!({ "url": url, "transport_type": kind });
        // The whole value of the header is the secret.
        for header in keys(entry, "headers") {
            let variable = as_variable(header);
            remote["headers"][header] = json!(format!("${{{variable}}}"));
            secrets.push(variable);
        }
        server.insert("type".into(), json!("remote"));
        server.insert("remote".into(), remote);
        json!({ "type": "remote", "endpoint": url })
    } else {
        return Err(Problem::of(format!(
            "`{}` is a program of this machine, for which profiles have no form",
            brief(name)
        )));
    };
    outer["config"] = environment(&mut server, name, entry);
    secrets.extend(keys(entry, "secrets").map(str::to_owned));
    if !secrets.is_empty() {
        notes.push(format!(
            "secrets: it has their names alone ({}); the operator gives their sources with \
             `--secret SERVER/NAME=REFERENCE`",
            secrets.join(", ")
        ));
        let secrets: Vec<Value> = secrets
            .iter()
            .map(
                |env| json!({ "name": format!("{name}.{}", env.to_ascii_lowercase()), "env": env }),
            )
            .collect();
        server.insert("secrets".into(), Value::Array(secrets));
        outer["secrets"] = json!(PROVIDER);
    }
    if let Some(user) = entry.pointer("/hardening/user").filter(|user| user.is_string()) {
        server.insert("user".into(), user.clone());
    }
    if entry.get("idle-stop-s") == Some(&json!(0)) {
        server.insert("longLived".into(), json!(true));
    }
    if let Some(only) = only {
        outer["tools"] = json!(only);
    }
    outer["snapshot"] = json!({ "server": server });
    left_out(entry, plain, &mut notes);
    Ok((outer, notes))
}

/// The hosts in its egress.
fn network(server: &mut Map<String, Value>, entry: &Value, notes: &mut Vec<String>) {
    let listed = entry.get("egress").and_then(Value::as_array).into_iter().flatten();
    let mut hosts = Vec::new();
    for entry in listed.filter_map(Value::as_str) {
        let place = entry.split_once("://").map_or(entry, |(_, place)| place);
        let place = place.split('=').next().unwrap_or(place);
        match endpoint(place) {
            Some(read) if read == entry => {}
            Some(read) => notes
                .push(format!("egress: of `{entry}`, it has `{place}`, which is read as `{read}`")),
            None => notes.push(format!("egress: it has `{place}`, which others may not read")),
        }
        hosts.push(json!(place));
    }
    if !hosts.is_empty() {
        server.insert("allowHosts".into(), Value::Array(hosts));
    } else if entry.pointer("/hardening/network") != Some(&json!(true)) {
        server.insert("disableNetwork".into(), json!(true));
    }
}

/// Plain environment. A value that others would read as a template is moved to the settings, and a
/// template inserts it.
fn environment(server: &mut Map<String, Value>, name: &str, entry: &Value) -> Value {
    let mut config = Map::new();
    let mut properties = Map::new();
    let mut env = Vec::new();
    for (variable, value) in entry.get("env").and_then(Value::as_object).into_iter().flatten() {
        let value = value.as_str().unwrap_or_default();
        if is_template(value) || value.contains('$') {
            config.insert(variable.clone(), json!(value));
            properties.insert(variable.clone(), json!({ "type": "string" }));
            env.push(json!({ "name": variable, "value": format!("{{{{{name}.{variable}}}}}") }));
        } else {
            env.push(json!({ "name": variable, "value": value }));
        }
    }
    if !env.is_empty() {
        server.insert("env".into(), Value::Array(env));
    }
    if !properties.is_empty() {
        let schema = json!({
            "name": name, "description": "Values of variables", "type": "object", "properties": properties,
        });
        server.insert("config".into(), json!([schema]));
    }
    Value::Object(config)
}

/// Reports the parts of the entry that are not in the profile, since its users could not notice.
fn left_out(entry: &Value, plain: &Value, notes: &mut Vec<String>) {
    for table in ["secrets", "headers"] {
        for (name, secret) in entry.get(table).and_then(Value::as_object).into_iter().flatten() {
            if secret.get("by-client").is_some() {
                notes.push(format!("{table}.{name}.by-client: it is of your clients"));
            }
            if secret.get("as") == Some(&json!("file")) {
                notes.push(format!("{table}.{name}.as: others hand a secret over as a variable"));
            }
        }
    }
    for (key, value) in entry.as_object().into_iter().flatten() {
        let unsaid = plain.get(key).unwrap_or(&Value::Null);
        let why = match key.as_str() {
            _ if value == unsaid => continue,
            "image" | "command" | "url" | "transport" | "env" | "secrets" | "headers"
            | "egress" => {
                continue;
            }
            "idle-stop-s" if value == &json!(0) => continue,
            "mounts" => "they are folders of this machine",
            "tools" => "what you say of tools is yours",
            "signed-by" => "whom you trust is yours",
            "hardening" => {
                let claims = value.as_object().into_iter().flatten();
                let loosened = claims.filter(|(key, value)| unsaid.get(key) != Some(value));
                let loosened: Vec<&str> =
                    loosened.map(|(key, _)| key.as_str()).filter(|key| *key != "user").collect();
                if !loosened.is_empty() {
                    let why = "each says for themselves how a server may deviate";
                    notes.push(format!("hardening.{}: {why}", loosened.join(", hardening.")));
                }
                continue;
            }
            _ => "the form has no place for it",
        };
        notes.push(format!("{key}: {why}"));
    }
}

fn keys<'a>(entry: &'a Value, table: &str) -> impl Iterator<Item = &'a str> {
    let table = entry.get(table).and_then(Value::as_object);
    table.into_iter().flat_map(|table| table.keys().map(String::as_str))
}

/// Name of the provider of secrets, as in profiles of others.
const PROVIDER: &str = "default";

/// A profile.
#[must_use]
pub fn profile(id: &str, title: &str, servers: Vec<Value>) -> Value {
    let secrets = servers.iter().any(|server| server.get("secrets").is_some());
    let mut profile = json!({ "version": 1, "id": id, "name": title, "servers": servers });
    if secrets {
        profile["secrets"] = json!({ PROVIDER: { "provider": "docker-desktop-store" } });
    }
    profile
}
