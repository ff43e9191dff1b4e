//! A description that is taken again, put into the entry that is there.
//!
//! Invariant: a key that no description writes stays as it is, and so does what the operator made of
//! one that a description writes. What the description said when it was taken last tells the two apart.
//! Where that is not known, all that opens something (hosts, folders, secrets, a user) counts as the
//! description's, so that what is not asked for any more goes.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;
use toml::Value;
use toml_edit::{Array, InlineTable, Item, Table, TableLike};

use super::entry::{Unwritten, mount, read, table};
use crate::{
    lock::origin,
    name::own_variables,
    secret_heuristics::{argument_holds_secret, is_plain, url_holds_secret},
    server::{Run, Server},
};

/// An entry that was changed.
#[derive(Debug)]
pub struct MergedEntry {
    /// The text of the config.
    pub text: String,
    /// The server, of whose hosts, folders and secrets those are left that stand in the entry.
    pub server: Server,
    /// What counts as said of the entry from now on: what the operator took out or made another is not
    /// the description's, whatever it says of it meanwhile.
    pub said: toml::Table,
    /// What became another, and what did not although the description says another by now.
    pub changes: Vec<Change>,
}

/// What the description says otherwise than the entry did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Change {
    /// The key in the entry: `image`, `egress`, `secrets.KEY`.
    pub key: String,
    /// What stood there. Nothing: it was not there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub was: Option<String>,
    /// What the description says. Nothing: it does not say it any more.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub is: Option<String>,
    /// Whether it was taken. Where not, what stands there is the operator's own, and stays.
    pub taken: bool,
}

/// What a server's description says of its entry, for the next time that it is taken.
///
/// # Errors
/// [`Unwritten::Syntax`], where what we write is no TOML.
pub fn said(server: &Server) -> Result<toml::Table, Unwritten> {
    plain(&toml_edit::DocumentMut::from(table(server)).to_string())
}

/// Whether an entry runs something else than its description said: another image (by whatever tag or
/// digest), program or URL. Then it is not that description's any more.
///
/// # Errors
/// [`Unwritten::Syntax`]
pub fn strayed(config: &str, server: &str, said: &toml::Table) -> Result<bool, Unwritten> {
    let config = plain(config)?;
    let runs = |entry: &toml::Table| {
        let url = entry.get("url").and_then(Value::as_str);
        (runs(entry), url.map(str::to_owned))
    };
    let entry = get(&config, &["servers", server]).and_then(Value::as_table);
    Ok(entry.is_none_or(|entry| runs(entry) != runs(said)))
}

/// Whether an entry would come to run an image of another repository, another program, or a server of
/// another place, with what it is: then its references, folders and weakenings would be for that. Tells
/// what it runs, and what it would.
///
/// # Errors
/// [`Unwritten::Syntax`]
pub fn moved(config: &str, server: &Server) -> Result<Option<(String, String)>, Unwritten> {
    let (config, now) = (plain(config)?, said(server)?);
    let entry = get(&config, &["servers", &server.name]).and_then(Value::as_table);
    let (was, is) = (entry.map_or_else(String::new, runs), runs(&now));
    Ok((was != is).then_some((was, is)))
}

/// What an entry runs: the image without tag and digest, the origin of the URL, or the program.
fn runs(entry: &toml::Table) -> String {
    let text = |key: &str| entry.get(key).and_then(Value::as_str);
    if let Some(image) = text("image") {
        return origin(&format!("docker://{image}")).to_owned();
    }
    if let Some(url) = text("url") {
        let place = url::Url::parse(url).map(|url| url.origin().ascii_serialization());
        return place.unwrap_or_else(|_| url.to_owned());
    }
    let program = entry.get("command").and_then(|command| command.get(0)?.as_str());
    program.unwrap_or_default().to_owned()
}

/// The secrets and headers of an entry whose reference the operator wrote themselves: it is another than the
/// description's when that was taken last.
///
/// # Errors
/// [`Unwritten::Syntax`]
pub fn written_by_operator(
    config: &str,
    server: &str,
    said: &toml::Table,
) -> Result<BTreeSet<String>, Unwritten> {
    let config = plain(config)?;
    let Some(entry) = get(&config, &["servers", server]).and_then(Value::as_table) else {
        return Ok(BTreeSet::new());
    };
    let from = |table: &toml::Table, key: &str, name: &str| {
        get(table, &[key, name, "from"]).and_then(Value::as_str).map(str::to_owned)
    };
    let names = ["secrets", "headers"].into_iter().flat_map(|key| {
        let names =
            get(entry, &[key]).and_then(Value::as_table).into_iter().flat_map(|all| all.keys());
        names.map(move |name| (key, name))
    });
    let own = names.filter(|(key, name)| {
        let here = from(entry, key, name);
        here.is_some() && here != from(said, key, name)
    });
    Ok(own.map(|(_, name)| name.clone()).collect())
}

/// Puts a server's description into the entry of its name. `before` is what the description said when
/// it was taken last; `confirmed` are the references that the operator named or confirmed before, by the name
/// of the secret or header; `named` are those that they name now, in the place of those that are there.
///
/// # Errors
/// [`Unwritten`]
pub fn again(
    config: &str,
    server: &Server,
    before: Option<&toml::Table>,
    confirmed: &BTreeMap<String, String>,
    named: &BTreeSet<String>,
) -> Result<MergedEntry, Unwritten> {
    let mut document = read(config)?;
    let entry =
        |all: &toml::Table| Some(all.get("servers")?.get(&server.name)?.as_table()?.clone());
    let here = entry(&plain(config)?).ok_or(Unwritten::Shape)?;
    let there = document.get_mut("servers").and_then(Item::as_table_like_mut);
    let there = there.and_then(|servers| servers.get_mut(&server.name)?.as_table_like_mut());
    let mut merge = Merge {
        there: there.ok_or(Unwritten::Shape)?,
        here,
        made: table(server),
        now: said(server)?,
        keep: said(server)?,
        before,
        confirmed,
        own: own_variables(&server.name),
        changes: Vec::new(),
    };
    merge.all(named);
    let (changes, said) = (merge.changes, merge.keep);
    let text = document.to_string();
    let left = entry(&plain(&text)?).ok_or(Unwritten::Shape)?;
    Ok(MergedEntry { server: standing(server.clone(), &left), text, said, changes })
}

fn plain(text: &str) -> Result<toml::Table, Unwritten> {
    text.parse().map_err(|error: toml::de::Error| Unwritten::Syntax(error.message().to_owned()))
}

/// Of a server's hosts, folders and secrets those that stand in its entry.
fn standing(mut server: Server, entry: &toml::Table) -> Server {
    let listed = |key, text: &str| listed(entry, key).contains(text);
    server.egress.retain(|host| listed("egress", host));
    server.mounts.retain(|one| listed("mounts", &mount(one)));
    let held = |key: &str, secrets: &mut std::collections::BTreeMap<String, crate::Secret>| {
        secrets.retain(|name, secret| {
            let there = get(entry, &[key, name]);
            if let Some(from) = there.and_then(|there| there.get("from")?.as_str()) {
                from.clone_into(&mut secret.from);
            }
            there.is_some()
        });
    };
    held("secrets", &mut server.secrets);
    if let Run::Remote { headers, .. } = &mut server.run {
        held("headers", headers);
    }
    server
}

struct Merge<'a> {
    /// The entry in the file.
    there: &'a mut dyn TableLike,
    /// The entry as it was.
    here: toml::Table,
    /// What the description makes of it, as it is written.
    made: Table,
    /// The same as values.
    now: toml::Table,
    /// What counts as said from now on.
    keep: toml::Table,
    /// What the description said last.
    before: Option<&'a toml::Table>,
    /// The references that the operator named or confirmed before.
    confirmed: &'a BTreeMap<String, String>,
    /// What the names of the variables begin with that are the server's own.
    own: String,
    changes: Vec<Change>,
}

/// Whose a value is of which nobody knows what the description said last.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Unknown {
    Description,
    Operator,
}

impl Merge<'_> {
    fn all(&mut self, named: &BTreeSet<String>) {
        let kind = |entry: &toml::Table| ["image", "url"].map(|key| entry.contains_key(key));
        let same_kind = kind(&self.here) == kind(&self.now);
        // What runs is the description's.
        for key in ["image", "url", "transport"] {
            self.put(&[key]);
        }
        if same_kind {
            self.value(&["command"], Unknown::Description);
        } else {
            self.put(&["command"]);
        }
        for name in self.names("env") {
            self.value(&["env", &name], Unknown::Operator);
        }
        for key in ["secrets", "headers"] {
            for name in self.names(key) {
                self.secret(key, &name, named);
            }
        }
        for key in ["mounts", "egress"] {
            self.list(key);
        }
        for key in ["user", "exec-tmp"] {
            self.value(&["hardening", key], Unknown::Description);
        }
        for path in [&["resources", "tmp-mib"][..], &["start-timeout-s"], &["idle-stop-s"]] {
            self.value(path, Unknown::Operator);
        }
    }

    /// The names within a table, there and in the description, as it is and as it was.
    fn names(&self, key: &str) -> BTreeSet<String> {
        let tables = [Some(&self.here), Some(&self.now), self.before];
        let tables = tables.into_iter().flatten().filter_map(|all| all.get(key)?.as_table());
        tables.flat_map(|table| table.keys().cloned()).collect()
    }

    fn was(&self, path: &[&str], unknown: Unknown) -> Option<&Value> {
        match self.before {
            Some(before) => get(before, path),
            None if unknown == Unknown::Description => get(&self.here, path),
            None => None,
        }
    }

    /// A value: the description's, where the operator left it as it was said.
    fn value(&mut self, path: &[&str], unknown: Unknown) {
        let (here, now) = (get(&self.here, path), get(&self.now, path));
        let was = self.was(path, unknown).cloned();
        let removed = here.is_none();
        if here == was.as_ref() {
            self.put(path);
            return;
        }
        if here != now && was.as_ref() != now {
            self.tell(path, here.cloned().as_ref(), now.cloned().as_ref(), false);
        }
        // It stays the operator's, also where the description comes to say the same for a while. A variable
        // that they took out may have been a secret.
        let was = match path {
            ["env", _] if removed => was.map(|_| Value::from("")),
            _ => was,
        };
        keep(&mut self.keep, path, was);
    }

    /// Has a value be the description's.
    fn put(&mut self, path: &[&str]) {
        let (here, now) = (get(&self.here, path).cloned(), get(&self.now, path).cloned());
        if here == now {
            return;
        }
        self.tell(path, here.as_ref(), now.as_ref(), true);
        let made = item(&self.made, path).cloned();
        write(self.there, path, made);
    }

    /// A secret or a header: one that is there stays as it is, one that is new is added, one that is not
    /// asked for any more goes. A reference that the description chose and nobody confirmed becomes what it is
    /// chosen to be now: earlier versions let a client's file name any variable of the proxy. Where it is not known
    /// what the description said, a variable of the proxy that is not the server's own counts as chosen by it.
    fn secret(&mut self, key: &str, name: &str, named: &BTreeSet<String>) {
        let path = [key, name];
        let (here, now) = (get(&self.here, &path), get(&self.now, &path));
        let was = self.was(&path, Unknown::Description).cloned();
        let from = [key, name, "from"];
        match (here, &was) {
            // One that the operator took out stays so when it is asked for again.
            (None, Some(_)) => keep(&mut self.keep, &path, was.clone()),
            (Some(_), None) => keep(&mut self.keep, &path, None),
            _ => {}
        }
        match (here, now) {
            (Some(_), None) if was.is_some() => self.put(&path),
            (None, Some(_)) if was.is_none() => self.put(&path),
            (Some(_), Some(_)) => {
                let text = |table| get(table, &from).and_then(Value::as_str);
                let (here, now) = (text(&self.here), text(&self.now));
                let chosen = match self.before {
                    Some(before) => here.is_some() && here == text(before),
                    // The lock file does not say who chose it.
                    None => here.is_some_and(|here| {
                        here.starts_with("env:") && !here.starts_with(&format!("env:{}", self.own))
                    }),
                };
                let unconfirmed = self.confirmed.get(name).map(String::as_str) != here;
                if now.is_some_and(|now| named.contains(now)) || (chosen && unconfirmed) {
                    self.put(&from);
                }
            }
            _ => {}
        }
    }

    /// A list: each of its entries by itself.
    fn list(&mut self, key: &str) {
        let (here, now) = (listed(&self.here, key), listed(&self.now, key));
        let was = self.before.map_or_else(|| here.clone(), |before| listed(before, key));
        let (here, now, was) = (owned(&here), owned(&now), owned(&was));
        // What the operator took out counts as said, and what they added does not.
        let said = now.union(&was).filter(|one| now.contains(*one) || !here.contains(*one));
        let said = said.filter(|one| was.contains(*one) || !here.contains(*one));
        let said: Vec<Value> = said.map(|one| Value::from(one.as_str())).collect();
        keep(&mut self.keep, &[key], (!said.is_empty()).then_some(Value::Array(said)));
        let gone: Vec<&String> =
            here.iter().filter(|one| !now.contains(*one) && was.contains(*one)).collect();
        let new: Vec<&String> =
            now.iter().filter(|one| !here.contains(*one) && !was.contains(*one)).collect();
        for one in &gone {
            self.tell(&[key], Some(&Value::from(one.as_str())), None, true);
        }
        for one in &new {
            self.tell(&[key], None, Some(&Value::from(one.as_str())), true);
        }
        if gone.is_empty() && new.is_empty() {
            return;
        }
        if self.there.get(key).is_none() {
            self.there.insert(key, toml_edit::value(Array::new()));
        }
        let Some(array) = self.there.get_mut(key).and_then(Item::as_array_mut) else { return };
        array
            .retain(|value| value.as_str().is_none_or(|text| !gone.iter().any(|one| *one == text)));
        for one in new {
            array.push(one.as_str());
        }
        if array.is_empty() {
            self.there.remove(key);
        }
    }

    fn tell(&mut self, path: &[&str], was: Option<&Value>, is: Option<&Value>, taken: bool) {
        let shown = |value: Option<&Value>| value.map(|value| shown(path, value));
        let key: Vec<&str> = path.iter().copied().filter(|key| *key != "from").collect();
        self.changes.push(Change { key: key.join("."), was: shown(was), is: shown(is), taken });
    }
}

fn get<'a>(table: &'a toml::Table, path: &[&str]) -> Option<&'a Value> {
    let (last, tables) = path.split_last()?;
    let mut table = table;
    for key in tables {
        table = table.get(*key)?.as_table()?;
    }
    table.get(*last)
}

fn item<'a>(table: &'a Table, path: &[&str]) -> Option<&'a Item> {
    let (last, tables) = path.split_last()?;
    let mut table: &dyn TableLike = table;
    for key in tables {
        table = table.get(key)?.as_table_like()?;
    }
    table.get(last)
}

/// The texts of a list.
fn listed<'a>(entry: &'a toml::Table, key: &str) -> BTreeSet<&'a str> {
    let list = entry.get(key).and_then(Value::as_array);
    list.into_iter().flatten().filter_map(Value::as_str).collect()
}

fn owned(texts: &BTreeSet<&str>) -> BTreeSet<String> {
    texts.iter().map(|text| (*text).to_owned()).collect()
}

/// Has a table say a value, or nothing in its place.
fn keep(table: &mut toml::Table, path: &[&str], value: Option<Value>) {
    let Some((key, rest)) = path.split_first() else { return };
    if rest.is_empty() {
        match value {
            Some(value) => drop(table.insert((*key).to_owned(), value)),
            None => drop(table.remove(*key)),
        }
        return;
    }
    if !table.contains_key(*key) && value.is_none() {
        return;
    }
    let within = table.entry(*key).or_insert_with(|| Value::Table(toml::Table::new()));
    if let Some(within) = within.as_table_mut() {
        keep(within, rest, value);
    }
}

/// Writes a value into an entry, or takes it out, and leaves the comments beside it.
fn write(there: &mut dyn TableLike, path: &[&str], made: Option<Item>) {
    let Some((key, rest)) = path.split_first() else { return };
    if !rest.is_empty() {
        if there.get(key).is_none() && made.is_some() {
            there.insert(key, toml_edit::value(InlineTable::new()));
        }
        let Some(table) = there.get_mut(key).and_then(Item::as_table_like_mut) else { return };
        write(table, rest, made);
        if table.is_empty() {
            there.remove(key);
        }
        return;
    }
    let Some(made) = made else {
        there.remove(key);
        return;
    };
    match (there.get_mut(key), made) {
        (Some(Item::Value(old)), Item::Value(mut new)) => {
            *new.decor_mut() = old.decor().clone();
            *old = new;
        }
        (_, made) => drop(there.insert(key, made)),
    }
}

/// A value for a message. What the operator wrote there by hand may be a secret.
fn shown(path: &[&str], value: &Value) -> String {
    const HIDDEN: &str = "(not shown: it may be a secret)";
    let text = match value {
        Value::String(text) => text.clone(),
        Value::Table(secret) => secret.get("from").and_then(Value::as_str).unwrap_or("").to_owned(),
        other => other.to_string(),
    };
    let hidden = match path {
        ["env", name] => !is_plain(name, &text),
        ["url"] => url::Url::parse(&text).is_ok_and(|url| url_holds_secret(&url)),
        ["command"] => {
            let words: Vec<&str> =
                value.as_array().into_iter().flatten().filter_map(Value::as_str).collect();
            let before = std::iter::once(None).chain(words.iter().copied().map(Some));
            before.zip(&words).any(|(before, word)| argument_holds_secret(before, word))
        }
        _ => false,
    };
    if hidden { HIDDEN.to_owned() } else { text.chars().flat_map(escaped).collect() }
}

fn escaped(c: char) -> Vec<char> {
    match c {
        '"' | '\'' | '\\' => vec![c],
        c => c.escape_debug().collect(),
    }
}

#[cfg(test)]
mod tests;
