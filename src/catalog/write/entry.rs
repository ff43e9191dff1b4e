//! Adds entries to `portcullis.toml`, a file that a person edits.
//!
//! Invariant: only the entry changes: no comment, no order, no other key.

use std::collections::BTreeMap;

use toml_edit::{Array, DocumentMut, InlineTable, Item, Key, Table, Value, value};

use crate::server::{Mount, Run, Secret, Server, Transport};

/// Startup timeout for fetched packages, for a slow network.
const FETCHING_S: i64 = 300;
/// Size of /tmp for fetched packages: uv's alone exceed the default of 64 MiB.
const FETCHED_MIB: i64 = 256;

/// Why an entry was not written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EntryError {
    #[error("the config is not TOML: {0}")]
    Syntax(String),
    #[error("`servers` in the config is not a table")]
    Shape,
    #[error(
        "the config has a server `{0}` already: name this one with `--name`, or replace it with `--replace`"
    )]
    There(String),
}

/// The names of the servers in a config.
///
/// # Errors
/// If it is not valid TOML.
pub fn names(config: &str) -> Result<Vec<String>, EntryError> {
    let document = read(config)?;
    let servers = document.get("servers").and_then(Item::as_table_like);
    Ok(servers
        .into_iter()
        .flat_map(|servers| servers.iter().map(|(name, _)| name.to_owned()))
        .collect())
}

/// Adds a server to the text of a config.
///
/// # Errors
/// [`EntryError`]
pub fn add(config: &str, server: &Server) -> Result<String, EntryError> {
    let mut document = read(config)?;
    let servers = document.entry("servers").or_insert_with(|| {
        let mut table = Table::new();
        table.set_implicit(true);
        Item::Table(table)
    });
    let servers = servers.as_table_like_mut().ok_or(EntryError::Shape)?;
    if servers.contains_key(&server.name) {
        return Err(EntryError::There(server.name.clone()));
    }
    servers.insert(&server.name, Item::Table(table(server)));
    Ok(document.to_string())
}

/// Removes a server from the text of a config. `None`: the server is not in it.
///
/// # Errors
/// [`EntryError`]
pub fn remove(config: &str, name: &str) -> Result<Option<String>, EntryError> {
    let mut document = read(config)?;
    let servers = document.get_mut("servers").and_then(Item::as_table_like_mut);
    let removed = servers.and_then(|servers| servers.remove(name));
    Ok(removed.map(|_| document.to_string()))
}

pub(super) fn read(config: &str) -> Result<DocumentMut, EntryError> {
    config
        .parse()
        .map_err(|error: toml_edit::TomlError| EntryError::Syntax(error.message().to_owned()))
}

/// The entry of a server, from its description.
pub(super) fn table(server: &Server) -> Table {
    let mut entry = Table::new();
    let mut hardening = Table::new();
    hardening.set_dotted(true);
    match &server.run {
        Run::Image { image, arguments } => {
            entry.insert("image", value(image.to_string()));
            if !arguments.is_empty() {
                entry.insert("command", value(list(arguments)));
            }
        }
        Run::Command { program, arguments } => {
            let all: Vec<String> = std::iter::once(program).chain(arguments).cloned().collect();
            entry.insert("command", value(list(&all)));
        }
        Run::Remote { url, transport, headers } => {
            entry.insert("url", value(url));
            match transport {
                Transport::Auto => {}
                Transport::StreamableHttp => {
                    drop(entry.insert("transport", value("streamable-http")))
                }
                Transport::Sse => drop(entry.insert("transport", value("sse"))),
            }
            if !headers.is_empty() {
                entry.insert("headers", value(references(headers)));
            }
        }
    }
    if !server.env.is_empty() {
        let mut env = InlineTable::new();
        for (name, text) in &server.env {
            env.insert(name, text.as_str().into());
        }
        entry.insert("env", value(env));
    }
    if !server.secrets.is_empty() {
        entry.insert("secrets", value(references(&server.secrets)));
    }
    if !server.mounts.is_empty() {
        let mounts: Vec<String> = server.mounts.iter().map(mount).collect();
        entry.insert("mounts", value(list(&mounts)));
    }
    if !server.egress.is_empty() {
        entry.insert("egress", value(list(&server.egress)));
    }
    if let Some(user) = &server.user {
        hardening.insert("user", value(user));
    }
    if server.fetches {
        hardening.insert("exec-tmp", value(true));
        entry.insert("start-timeout-s", value(FETCHING_S));
        let mut resources = Table::new();
        resources.insert("tmp-mib", value(FETCHED_MIB));
        entry.insert("resources", Item::Table(resources));
    }
    if !hardening.is_empty() {
        entry.insert("hardening", Item::Table(hardening));
    }
    if server.stays {
        entry.insert("idle-stop-s", value(0));
    }
    if let Some(title) = server.title.as_deref().or(server.description.as_deref()) {
        entry.decor_mut().set_prefix(format!("\n# {}\n", comment(title)));
    }
    entry
}

/// A mount in the syntax of the config.
fn mount(mount: &Mount) -> String {
    let how = if mount.writable { ":rw" } else { "" };
    format!("{}:{}{how}", mount.source, mount.target)
}

/// A stranger's text as a comment: on one line, without invisible characters.
fn comment(text: &str) -> String {
    let shown: String =
        text.chars().filter(|c| !c.is_control()).take(80).flat_map(char::escape_debug).collect();
    shown.replace("\\'", "'").replace("\\\"", "\"")
}

fn list(texts: &[String]) -> Array {
    texts.iter().map(String::as_str).collect()
}

fn references(secrets: &BTreeMap<String, Secret>) -> InlineTable {
    let mut table = InlineTable::new();
    for (name, secret) in secrets {
        let mut from = InlineTable::new();
        from.insert("from", Value::from(secret.from.as_str()));
        table.insert_formatted(&Key::new(name), Value::InlineTable(from));
    }
    table
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in crate::write) fn server(name: &str) -> Server {
        Server {
            name: name.to_owned(),
            original: name.to_owned(),
            title: Some("A\nserver \u{202e}\"of\" theirs".to_owned()),
            description: None,
            run: Run::Command { program: "x".into(), arguments: vec!["--a \"b\"".into()] },
            env: [("A".to_owned(), "line\n\"x\"".to_owned())].into(),
            secrets: [("K".to_owned(), Secret::of("env:K".into()))].into(),
            mounts: vec![],
            egress: vec!["a.example:443".into()],
            user: Some("1:1".into()),
            fetches: true,
            stays: true,
            tools: vec![],
            only: None,
            notes: vec![],
        }
    }

    #[test]
    fn existing_lines_are_unchanged() {
        let before = "# My config\n[listen]\nhttp = \"127.0.0.1:1\"   # here\n\n# Notes of mine\n[servers.notes]\ncommand = [ \"notes\" ] # keep\n\n[[interceptors]]\nuse = \"schema\"\n";
        let after = add(before, &server("new")).unwrap();
        for line in before.lines() {
            assert!(after.contains(line), "{line} is gone from\n{after}");
        }
        assert_eq!(names(&after).unwrap(), ["notes", "new"]);
        assert!(after.contains("egress") && !after.contains('\u{202e}'), "{after}");
        let read: toml::Table = after.parse().unwrap();
        let new = &read["servers"]["new"];
        assert_eq!(new["command"][1].as_str(), Some("--a \"b\""));
        assert_eq!(new["env"]["A"].as_str(), Some("line\n\"x\""));
        assert_eq!(new["hardening"]["user"].as_str(), Some("1:1"));
        assert_eq!(new["hardening"]["exec-tmp"].as_bool(), Some(true));
        assert_eq!(new["start-timeout-s"].as_integer(), Some(FETCHING_S));
        assert_eq!(new["resources"]["tmp-mib"].as_integer(), Some(FETCHED_MIB));
        assert!(matches!(add(&after, &server("new")), Err(EntryError::There(_))));
        let removed = remove(&after, "new").unwrap().unwrap();
        assert_eq!(names(&removed).unwrap(), ["notes"]);
        assert_eq!(remove(&removed, "new").unwrap(), None);
    }
}
