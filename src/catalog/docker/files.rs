//! Files of settings beside a catalog: the enabled servers, their settings, and their enabled
//! tools.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::{
    node::Node,
    report::{Problem, brief},
    values::Values,
};

/// Reads a `registry.yaml`: the enabled servers, in their order, with their settings.
///
/// # Errors
/// If it is not such a file.
pub fn enabled(text: &str) -> Result<(Vec<String>, Values), Problem> {
    let node = crate::yaml::read(text)?;
    let servers = node.get("registry").and_then(Node::entries).ok_or_else(|| {
        Problem::at(node.place, "a file of the servers that are on has a map `registry`")
    })?;
    let mut values = Values::new();
    for (key, server) in servers {
        if let Some(config) = server.get("config") {
            values.insert(key.text.to_string(), map(config, &key.text)?);
        }
    }
    Ok((servers.iter().map(|(key, _)| key.text.to_string()).collect(), values))
}

/// Reads a `config.yaml`: settings by server and key.
///
/// # Errors
/// If it is not such a file.
pub fn settings(text: &str) -> Result<Values, Problem> {
    let node = crate::yaml::read(text)?;
    let servers = node
        .entries()
        .ok_or_else(|| Problem::at(node.place, "a file of settings is a map of servers"))?;
    servers.iter().map(|(key, node)| Ok((key.text.to_string(), map(node, &key.text)?))).collect()
}

/// Reads a `tools.yaml`: the enabled tools, by server.
///
/// # Errors
/// If it is not such a file.
pub fn tool_lists(text: &str) -> Result<BTreeMap<String, Vec<String>>, Problem> {
    let node = crate::yaml::read(text)?;
    let servers = node
        .entries()
        .ok_or_else(|| Problem::at(node.place, "a file of tools is a map of servers"))?;
    let tools = |key: &str, node: &Node| {
        let items =
            node.items().map(|items| items.iter().map(Node::scalar).collect::<Option<Vec<_>>>());
        match items {
            Some(Some(tools)) => Ok(tools.into_iter().map(str::to_owned).collect()),
            _ => Err(Problem::at(
                node.place,
                format!("the tools of `{}` are a list of names", brief(key)),
            )),
        }
    };
    servers.iter().map(|(key, node)| Ok((key.text.to_string(), tools(&key.text, node)?))).collect()
}

fn map(node: &Node, server: &str) -> Result<Value, Problem> {
    match node.to_json() {
        Value::Null => Ok(Value::Object(Default::default())),
        map @ Value::Object(_) => Ok(map),
        _ => Err(Problem::at(node.place, format!("the settings of `{}` are a map", brief(server)))),
    }
}
