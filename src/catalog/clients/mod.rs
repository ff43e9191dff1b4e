//! `mcpServers` and similar sections: servers in the files of desktop clients and editors.
//!
//! Supported are Claude Desktop and Claude Code, Cursor, VS Code, Zed, Windsurf, Cline, Roo, Gemini
//! CLI, Amazon Q, Kiro, LM Studio, OpenCode, Goose, Continue and Codex.

mod arguments;
mod docker;
mod entry;

use std::collections::BTreeMap;

use crate::{
    Entry, ParsedFile,
    docker::one,
    node::{Key, Node, NodeValue},
    options::Options,
    report::{Problem, Report},
    values::Values,
};

pub(crate) use docker::run as docker_run;

/// Keys of the sections with servers, and their clients.
const ROOMS: &[(&[&str], &str)] = &[
    (&["mcpServers"], "mcpServers"),
    (&["mcp", "servers"], "VS Code settings"),
    (&["servers"], "VS Code"),
    (&["context_servers"], "Zed"),
    (&["mcp_servers"], "Codex"),
    (&["mcp"], "OpenCode"),
    (&["extensions"], "Goose"),
];

/// The section with servers in a client's file.
fn room(node: &Node) -> Option<(&Node, &'static str)> {
    ROOMS.iter().find_map(|(path, whose)| {
        let found = path.iter().try_fold(node, |node, key| node.get(key))?;
        let servers = match &found.what {
            NodeValue::Map(entries) => entries.iter().all(|(_, node)| node.entries().is_some()),
            NodeValue::List(items) => items.iter().all(|item| item.get("name").is_some()),
            _ => false,
        };
        servers.then_some((found, *whose))
    })
}

/// Whether it is a client's file.
pub(crate) fn is_file(node: &Node) -> bool {
    room(node).is_some()
}

/// Reads a client's file.
pub(crate) fn file(node: &Node, options: &Options) -> Result<ParsedFile, Problem> {
    let Some((servers, whose)) = room(node) else {
        return Err(Problem::at(node.place, "there are no servers in this file"));
    };
    let mut report = Report::default();
    if let Some((key, _)) =
        node.entries().into_iter().flatten().find(|(key, _)| &*key.text == "projects")
    {
        report.left_out(
            key.place,
            "servers of single projects are not read: import the project's own file",
        );
    }
    let mut named: Vec<(&str, &Node)> = Vec::new();
    match &servers.what {
        NodeValue::Map(entries) => {
            named.extend(entries.iter().map(|(key, node): &(Key, Node)| (&*key.text, node)));
        }
        NodeValue::List(items) => {
            for item in items {
                let name = item.get("name").and_then(Node::text).unwrap_or("");
                named.push((name, item));
            }
        }
        _ => {}
    }
    if named.len() > 1_000 {
        return Err(Problem::at(servers.place, "more than 1000 servers in one file"));
    }
    let inputs = inputs(node);
    let servers: Vec<Entry> = named
        .into_iter()
        .map(|(name, node)| {
            let context = entry::Context { options, inputs: &inputs };
            one(name, node, |report| entry::read(name, node, &context, report))
        })
        .collect();
    Ok(ParsedFile {
        format: whose,
        title: None,
        servers,
        notes: report.notes,
        values: Values::new(),
    })
}

/// Descriptions of VS Code's inputs, by id.
fn inputs(node: &Node) -> BTreeMap<String, String> {
    let own = node.get("inputs").or_else(|| node.get("mcp")?.get("inputs"));
    let inputs = own.and_then(Node::items).unwrap_or_default();
    inputs
        .iter()
        .filter_map(|input| {
            let id = input.get("id").and_then(Node::text)?;
            let about = input.get("description").and_then(Node::text).unwrap_or(id);
            Some((id.to_owned(), about.to_owned()))
        })
        .collect()
}
