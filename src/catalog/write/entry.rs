//! Adds entries to `portcullis.toml`, a file that a person edits.
//!
//! Invariant: only the entry changes: no comment, no order, no other key.

use std::collections::BTreeMap;

use toml_edit::{Array, DocumentMut, InlineTable, Item, Key, Table, TableLike, Value, value};

use crate::report::brief;
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
    #[error("`{}` is not a key: write its parts with dots, such as `servers.git.call-timeout-s`", brief(.0))]
    Key(String),
    #[error("`{0}` in the config is not a table")]
    NotTable(String),
    #[error("`{0}` is a section of the config: set a key in it, or edit the file")]
    IsTable(String),
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

/// Removes a server from the text of a config, with the comment directly above its header. `None`:
/// the server is not in it.
///
/// # Errors
/// [`EntryError`]
pub fn remove(config: &str, name: &str) -> Result<Option<String>, EntryError> {
    let mut document = read(config)?;
    let servers = document.get_mut("servers").and_then(Item::as_table_like_mut);
    let Some(removed) = servers.and_then(|servers| servers.remove(name)) else { return Ok(None) };
    if let Item::Table(entry) = &removed
        && let (Some(at), Some(above)) = (entry.position(), entry.decor().prefix())
    {
        let above = above.as_str().unwrap_or_default();
        // Comments before an empty line are about the file, not about the entry.
        let kept = above.rfind("\n\n").map_or("", |end| &above[..=end]);
        if !kept.trim().is_empty() {
            put_before_next(&mut document, at, kept);
        }
    }
    Ok(Some(document.to_string()))
}

/// Puts a text above the first table behind a position, or at the end.
fn put_before_next(document: &mut DocumentMut, at: isize, text: &str) {
    let mut next = None;
    each_table(document.as_table_mut(), &mut |table| {
        let position = table.position().filter(|position| *position > at);
        next = [next, position].into_iter().flatten().min();
    });
    if next.is_none() {
        let trailing = document.trailing().as_str().unwrap_or_default();
        let trailing = format!("{text}{trailing}");
        document.set_trailing(trailing);
        return;
    }
    each_table(document.as_table_mut(), &mut |table| {
        if table.position() == next {
            let above = table.decor().prefix().and_then(|above| above.as_str()).unwrap_or_default();
            let above = format!("{text}{above}");
            table.decor_mut().set_prefix(above);
        }
    });
}

/// Visits the tables of a document that have a header of their own.
fn each_table(table: &mut Table, visit: &mut dyn FnMut(&mut Table)) {
    for (_, item) in table.iter_mut() {
        match item {
            Item::Table(inner) => {
                if !inner.is_implicit() && !inner.is_dotted() {
                    visit(inner);
                }
                each_table(inner, visit);
            }
            Item::ArrayOfTables(tables) => {
                for inner in tables.iter_mut() {
                    visit(inner);
                    each_table(inner, visit);
                }
            }
            Item::None | Item::Value(_) => {}
        }
    }
}

/// Enables or disables a server in the text of a config. `None`: the server is not in it.
///
/// # Errors
/// [`EntryError`]
pub fn enable(config: &str, name: &str, enabled: bool) -> Result<Option<String>, EntryError> {
    let mut document = read(config)?;
    let servers = document.get_mut("servers").and_then(Item::as_table_like_mut);
    let entry = servers.and_then(|servers| servers.get_mut(name));
    let Some(entry) = entry.and_then(Item::as_table_like_mut) else { return Ok(None) };
    match (enabled, entry.get_mut("enabled")) {
        (true, _) => drop(entry.remove("enabled")),
        (false, Some(written)) => *written = value(false),
        (false, None) => drop(entry.insert("enabled", value(false))),
    }
    Ok(Some(document.to_string()))
}

/// The parts of a dotted key in the syntax of TOML: `servers.git.image`.
///
/// # Errors
/// [`EntryError::Key`]
pub fn parse_key(key: &str) -> Result<Vec<String>, EntryError> {
    let keys = Key::parse(key).map_err(|_| EntryError::Key(key.to_owned()))?;
    Ok(keys.iter().map(|key| key.get().to_owned()).collect())
}

/// Sets a key in the text of a config to a value in the syntax of TOML, with the tables that it
/// needs. A comment behind the value stays.
///
/// # Errors
/// [`EntryError`]
pub fn set_key(config: &str, keys: &[String], value: &str) -> Result<String, EntryError> {
    let to: Value = value
        .parse()
        .map_err(|error: toml_edit::TomlError| EntryError::Syntax(error.message().to_owned()))?;
    let mut document = read(config)?;
    let Some((last, tables)) = keys.split_last() else { return Ok(document.to_string()) };
    let mut table: &mut dyn TableLike = document.as_table_mut();
    for key in tables {
        let missing = || {
            let mut missing = Table::new();
            missing.set_implicit(true);
            Item::Table(missing)
        };
        let item = table.entry(key).or_insert_with(missing);
        table = item.as_table_like_mut().ok_or_else(|| EntryError::NotTable(key.clone()))?;
    }
    match table.get_mut(last) {
        Some(Item::Value(old)) => {
            let decor = old.decor().clone();
            *old = to;
            *old.decor_mut() = decor;
        }
        Some(Item::Table(_) | Item::ArrayOfTables(_)) => {
            return Err(EntryError::IsTable(last.clone()));
        }
        Some(Item::None) | None => {
            table.entry(last).or_insert(Item::Value(to));
        }
    }
    Ok(document.to_string())
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
        assert_eq!(removed, before.to_owned());
        assert_eq!(remove(&removed, "new").unwrap(), None);
    }

    #[test]
    fn comments_of_the_file_stay_when_an_entry_is_removed() {
        let text = "# My config\n\n# The first\n[servers.a]\ncommand = [\"a\"]\n\n# Others\n\n# The second\n\
                    [servers.b] # two\ncommand = [\"b\"]\n[servers.b.resources]\ntmp-mib = 1\n\n\
                    [[interceptors]]\nuse = \"schema\"\n";
        let without_a = remove(text, "a").unwrap().unwrap();
        let expected = "# My config\n\n# Others\n\n# The second\n[servers.b] # two\n";
        assert!(without_a.starts_with(expected), "{without_a}");
        let without_b = remove(text, "b").unwrap().unwrap();
        let expected = "command = [\"a\"]\n\n# Others\n\n[[interceptors]]\nuse = \"schema\"\n";
        assert!(without_b.ends_with(expected), "{without_b}");
        let last = remove("# My config\n\n[servers.a]\ncommand = [\"a\"]\n", "a").unwrap().unwrap();
        assert_eq!(last, "# My config\n");
    }

    #[test]
    fn disabled_entry_is_enabled_without_a_trace() {
        let text =
            "[servers]\nb = { command = [\"b\"] } # two\n[servers.a] # one\ncommand = [\"a\"]\n";
        for name in ["a", "b"] {
            let disabled = enable(text, name, false).unwrap().unwrap();
            let read: toml::Table = disabled.parse().unwrap();
            assert_eq!(read["servers"][name]["enabled"].as_bool(), Some(false));
            assert!(disabled.contains("# one") && disabled.contains("# two"), "{disabled}");
            assert_eq!(enable(&disabled, name, false).unwrap().as_ref(), Some(&disabled));
            let enabled = enable(&disabled, name, true).unwrap().unwrap();
            let read: toml::Table = enabled.parse().unwrap();
            assert_eq!(read, text.parse().unwrap());
        }
        assert_eq!(enable(text, "c", false).unwrap(), None);
    }

    #[test]
    fn key_is_set_and_its_comment_stays() {
        let text = "[listen] # here\nhttp = \"127.0.0.1:1\" # a port\n";
        let set = |text: &str, key: &str, to: &str| set_key(text, &parse_key(key).unwrap(), to);
        assert!(parse_key("a..b").is_err());
        let port = set(text, "listen.http", "\"127.0.0.1:2\"").unwrap();
        assert_eq!(port, "[listen] # here\nhttp = \"127.0.0.1:2\" # a port\n");
        let limit = set(text, "limits.sessions", "9").unwrap();
        assert!(limit.starts_with(text) && limit.contains("[limits]\nsessions = 9\n"), "{limit}");
        assert_eq!(set(text, "listen", "1"), Err(EntryError::IsTable("listen".to_owned())));
        assert_eq!(set(text, "listen.http.x", "1"), Err(EntryError::NotTable("http".to_owned())));
    }
}
