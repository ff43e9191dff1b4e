//! The entry of a server that the config has, and its replacement by a description.
//!
//! Invariant: nothing of the config changes except the entry. Nothing of the old entry is kept,
//! except the comments above its header.

use std::collections::BTreeSet;

use toml::Value;
use toml_edit::{DocumentMut, Item, Table};

use super::entry::{EntryError, read, table};
use crate::{
    lock::{digest, origin},
    secret_heuristics::{
        argument_holds_secret, holds_key, is_plain, names_secret, url_holds_secret,
    },
    server::Server,
};

const HIDDEN: &str = "(not shown: it may be a secret)";

/// Keys of which each value protects something, with the effect of losing one.
const PROTECTIONS: &[(&str, &str)] = &[
    ("signed-by", "this signer is no longer required"),
    ("runtime", "the server starts in the default runtime"),
    ("sharing", "clients share instances as by default"),
    ("resources", "this limit no longer applies"),
    ("egress-limits", "this limit no longer applies"),
    ("tools", "policies no longer see this claim"),
    ("secrets", "the secret is no longer delivered like this"),
    ("headers", "the header is no longer sent like this"),
];

/// Keys of which each value opens something, with the effect of adding one.
const OPENINGS: &[(&str, &str)] = &[
    ("egress", "the server may reach this host"),
    ("mounts", "the server sees this folder"),
    ("hardening", "the server deviates from the hardened profile"),
];

/// Entry of a server in the config.
#[derive(Debug)]
pub struct ExistingEntry {
    server: String,
    item: Item,
    values: toml::Table,
}

/// New entry of a server, in the place of another.
#[derive(Debug, Clone)]
pub struct Replacement {
    /// Text of the config.
    pub text: String,
    /// Text of the old entry. Values and comments that may be secrets are hidden.
    pub before: String,
    /// Text of the new entry.
    pub after: String,
    /// Protections that the new entry lacks, and hosts, folders and deviations that it adds: one
    /// sentence each.
    pub warnings: Vec<String>,
}

impl ExistingEntry {
    /// Finds the entry of a server. `None`: the config has no such server.
    ///
    /// # Errors
    /// [`EntryError`]
    pub fn of(config: &str, server: &str) -> Result<Option<Self>, EntryError> {
        let document = read(config)?;
        let Some(item) = document.get("servers").and_then(|servers| servers.get(server)) else {
            return Ok(None);
        };
        let (server, item) = (server.to_owned(), item.clone());
        let values = values(&server, &text(&server, &item))?;
        Ok(Some(Self { server, item, values }))
    }

    /// `sha256:` of its text, without the comments above it.
    #[must_use]
    pub fn digest(&self) -> String {
        digest(text(&self.server, &self.item).as_bytes())
    }

    /// The reference of a secret or a header.
    #[must_use]
    pub fn reference(&self, name: &str) -> Option<&str> {
        let tables = ["secrets", "headers"].into_iter().filter_map(|key| self.values.get(key));
        tables.filter_map(|table| table.get(name)?.get("from")?.as_str()).next()
    }

    /// The programs of the entry and of a description, if that is an image of another repository,
    /// another program or a URL of another host.
    ///
    /// # Errors
    /// [`EntryError`]
    pub fn moved(&self, to: &Server) -> Result<Option<(String, String)>, EntryError> {
        let new = values(&to.name, &text(&to.name, &Item::Table(table(to))))?;
        let (was, is) = (runs(&self.values), runs(&new));
        Ok((was != is).then_some((was, is)))
    }

    /// Writes the description of a server in its place. `None`: the entry has these values already.
    ///
    /// # Errors
    /// [`EntryError`]
    pub fn replace(&self, config: &str, by: &Server) -> Result<Option<Replacement>, EntryError> {
        let mut replacement = table(by);
        replacement.decor_mut().set_prefix("\n");
        let after = text(&self.server, &Item::Table(replacement.clone()));
        let new = values(&self.server, &after)?;
        if new == self.values {
            return Ok(None);
        }
        let mut document = read(config)?;
        let servers = document.get_mut("servers").and_then(Item::as_table_like_mut);
        let servers = servers.ok_or(EntryError::Shape)?;
        let above = match &self.item {
            Item::Table(old) if !old.is_dotted() => {
                replacement.set_position(old.position());
                old.decor().prefix()
            }
            _ => servers.key(&self.server).and_then(|key| key.leaf_decor().prefix()),
        };
        if let Some(above) = above {
            replacement.decor_mut().set_prefix(above.clone());
        }
        servers.insert(&self.server, Item::Table(replacement));
        let warnings = warnings(&self.values, &new);
        Ok(Some(Replacement {
            text: document.to_string(),
            before: self.shown(&new),
            after,
            warnings,
        }))
    }

    /// Its text. What may be a secret is hidden, unless the new entry has it too.
    fn shown(&self, new: &toml::Table) -> String {
        let mut item = self.item.clone();
        let Some(entry) = item.as_table_like_mut() else { return String::new() };
        if let Some(env) = entry.get_mut("env").and_then(Item::as_table_like_mut) {
            for (name, value) in env.iter_mut() {
                let text = value.as_str().unwrap_or_default();
                let stays = new.get("env").and_then(|env| env.get(name.get())?.as_str());
                if stays != Some(text) && !is_plain(name.get(), text) {
                    *value = toml_edit::value(HIDDEN);
                }
            }
        }
        if let Some(value) = entry.get_mut("url") {
            let url = value.as_str().and_then(|text| url::Url::parse(text).ok());
            if url.is_none_or(|url| url_holds_secret(&url)) {
                *value = toml_edit::value(HIDDEN);
            }
        }
        let mut before: Option<String> = None;
        let words = entry.get_mut("command").and_then(Item::as_array_mut).into_iter();
        for word in words.flat_map(toml_edit::Array::iter_mut) {
            let text = word.as_str().unwrap_or_default().to_owned();
            if argument_holds_secret(before.as_deref(), &text) {
                *word = HIDDEN.into();
            }
            before = Some(text);
        }
        text(&self.server, &item).lines().map(|line| plain_comment(line) + "\n").collect()
    }
}

/// A line, without a comment that may hold a secret.
fn plain_comment(line: &str) -> String {
    let is_word = |c: char| c.is_alphanumeric() || "_-./:@=+".contains(c);
    match line.split_once('#') {
        Some((code, comment))
            if comment.split(|c| !is_word(c)).any(|word| {
                names_secret(word) || holds_key(word) || argument_holds_secret(None, word)
            }) =>
        {
            format!("{code}# {HIDDEN}")
        }
        _ => line.to_owned(),
    }
}

/// The text of an entry by itself, without the comments above it.
fn text(server: &str, item: &Item) -> String {
    let mut item = item.clone();
    if let Item::Table(table) = &mut item {
        table.decor_mut().set_prefix("");
    }
    let mut servers = Table::new();
    servers.set_implicit(true);
    servers.insert(server, item);
    let mut document = DocumentMut::new();
    document.insert("servers", Item::Table(servers));
    document.to_string()
}

/// The values of an entry, from its text.
fn values(server: &str, text: &str) -> Result<toml::Table, EntryError> {
    let parsed = text.parse::<toml::Table>();
    let all = parsed.map_err(|error| EntryError::Syntax(error.message().to_owned()))?;
    let entry = all.get("servers").and_then(|servers| servers.get(server)?.as_table());
    entry.cloned().ok_or(EntryError::Shape)
}

/// What an entry runs: the image without tag and digest, the origin of the URL, or the program.
fn runs(entry: &toml::Table) -> String {
    let text = |key: &str| entry.get(key).and_then(Value::as_str);
    if let Some(image) = text("image") {
        return origin(&format!("docker://{image}")).to_owned();
    }
    if let Some(url) = text("url") {
        let destination = url::Url::parse(url).map(|url| url.origin().ascii_serialization());
        return destination.unwrap_or_else(|_| url.to_owned());
    }
    let program = entry.get("command").and_then(|command| command.get(0)?.as_str());
    program.unwrap_or_default().to_owned()
}

fn warnings(before: &toml::Table, after: &toml::Table) -> Vec<String> {
    let all = |entry: &toml::Table, key: &str| {
        let mut found = BTreeSet::new();
        if let Some(value) = entry.get(key) {
            leaves(key, value, &mut found);
        }
        found
    };
    let lost = PROTECTIONS.iter().flat_map(|(key, effect)| {
        let lost = &all(before, key) - &all(after, key);
        lost.into_iter().map(move |value| format!("`{value}` is lost: {effect}"))
    });
    let added = OPENINGS.iter().flat_map(|(key, effect)| {
        let added = &all(after, key) - &all(before, key);
        added.into_iter().map(move |value| format!("`{value}` is new: {effect}"))
    });
    lost.chain(added).collect()
}

/// Adds each value below a key as `KEY.NAME = VALUE`, those of a list one by one.
fn leaves(key: &str, value: &Value, into: &mut BTreeSet<String>) {
    match value {
        Value::Table(table) => {
            table.iter().for_each(|(name, value)| leaves(&format!("{key}.{name}"), value, into));
        }
        Value::Array(values) => values.iter().for_each(|value| leaves(key, value, into)),
        value => drop(into.insert(format!("{key} = {value}"))),
    }
}

#[cfg(test)]
mod tests;
