//! `portcullis client connect` and `disconnect`: the entry for Portcullis in the config file of an
//! MCP client.
//!
//! The client starts `portcullis connect` with the path of a file that has the key, so neither its
//! config file nor an argument list contains the key.

use std::{
    collections::BTreeSet,
    io::{self, IsTerminal as _},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, bail};
use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};
use serde_json::json;
use url::Url;

use super::{in_config, on_record, store};
use crate::{
    cli::{
        Context, Exit, Usage, adding,
        proxy_client::{self, Located},
    },
    manage::client_files::{ClientFile, Connection, Connections, Level, locate, remove_empty},
};
use portcullis_catalog::{
    Problem,
    client_files::{CLIENTS, ClientKind, Launch, named},
};
use portcullis_protocol::{
    identity::{Change, Key, Store},
    names::{ClientName, Group, ServerName},
};

/// A config file of a client, and how its change is confirmed.
#[derive(Debug, clap::Args)]
struct Selection {
    /// The MCP client
    #[arg(value_name = "CLIENT", value_parser = kinds())]
    kind: &'static ClientKind,
    /// Use the client's config file of the project in this folder. Default: the user's config file
    #[arg(long, value_name = "DIR")]
    project: Option<PathBuf>,
    /// Use this config file
    #[arg(long, value_name = "FILE", conflicts_with = "project")]
    file: Option<PathBuf>,
    /// Write without a question
    #[arg(long)]
    yes: bool,
    /// Show the change, and write nothing
    #[arg(long, conflicts_with = "yes")]
    dry_run: bool,
}

/// Default name of an entry.
const ENTRY: &str = "portcullis";

/// Options of `connect`.
#[derive(Debug, clap::Args)]
pub struct Connect {
    #[command(flatten)]
    selection: Selection,
    /// Name of the client in policies and audit records. Default: CLIENT, with the name of the
    /// project's folder if it is a project's file
    #[arg(long, value_name = "NAME")]
    name: Option<ClientName>,
    /// A group for policies; may be given several times
    #[arg(long = "group", value_name = "GROUP")]
    groups: Vec<Group>,
    /// The proxy's endpoint. Default: `/mcp` at the config's `listen.http`
    #[arg(long, value_name = "URL")]
    url: Option<String>,
    /// Name of the entry in the client's config file. Default: `portcullis`
    #[arg(long, value_name = "NAME")]
    entry: Option<ServerName>,
}

/// Options of `disconnect`.
#[derive(Debug, clap::Args)]
pub struct Disconnect {
    #[command(flatten)]
    selection: Selection,
}

/// A client that is connected together with the server that it uses.
pub(in crate::cli) struct NewConnection {
    pub kind: &'static ClientKind,
    /// The group whose policies apply to it.
    pub group: Group,
    /// Whether the change is confirmed already.
    pub yes: bool,
}

impl NewConnection {
    fn selection(&self) -> Selection {
        Selection { kind: self.kind, project: None, file: None, yes: self.yes, dry_run: false }
    }

    /// Checks the client's config file, before the server is added.
    ///
    /// # Errors
    /// The file cannot be changed.
    pub fn check(&self) -> anyhow::Result<()> {
        let file = self.selection().read()?;
        let text = file.text.as_deref().unwrap_or_default();
        self.kind.find(text, ENTRY).map_err(|problem| at(&file, &problem))?;
        Ok(())
    }

    /// Connects the client, unless it is connected already.
    pub async fn connect(self, ctx: &Context) -> anyhow::Result<Exit> {
        let selection = self.selection();
        let found = Located::with(ctx.load()?).await;
        let known = connections(&found)?.find(self.kind, &selection.path()?)?.is_some();
        let groups = if known { Vec::new() } else { vec![self.group] };
        connect(Connect { selection, name: None, groups, url: None, entry: None }, ctx).await
    }
}

pub(in crate::cli) fn kinds() -> impl TypedValueParser<Value = &'static ClientKind> {
    let values = CLIENTS.iter().map(|kind| PossibleValue::new(kind.name).help(kind.title));
    PossibleValuesParser::new(values)
        .try_map(|name: String| named(&name).ok_or("this is not a supported client"))
}

impl Selection {
    fn path(&self) -> anyhow::Result<PathBuf> {
        let level = match (&self.project, &self.file) {
            (Some(folder), _) => Level::Project(folder),
            (None, Some(file)) => Level::File(file),
            (None, None) => Level::User,
        };
        locate(self.kind, level)
    }

    fn read(&self) -> anyhow::Result<ClientFile> {
        ClientFile::read(self.path()?, self.project.as_deref())
    }

    /// The command with that verb for the same file.
    fn command(&self, verb: &str) -> String {
        let mut command = format!("portcullis client {verb} {}", self.kind.name);
        for (option, path) in [("--project", &self.project), ("--file", &self.file)] {
            if let Some(path) = path {
                command.push_str(&format!(" {option} {}", path.display()));
            }
        }
        command
    }

    /// Default name of the client.
    fn client_name(&self) -> anyhow::Result<ClientName> {
        let mut name = self.kind.name.to_owned();
        if let Some(project) = &self.project {
            let folder = std::fs::canonicalize(project)
                .with_context(|| format!("cannot find the folder {}", project.display()))?;
            let folder = folder.file_name().unwrap_or_default().to_string_lossy();
            let legal = |c: char| if c.is_ascii_alphanumeric() || c == '_' { c } else { '-' };
            name.push('-');
            name.extend(folder.chars().map(|c| legal(c.to_ascii_lowercase())).take(40));
        }
        name.parse().context("name the client with `--name`")
    }

    /// Whether the change is to be written.
    ///
    /// # Errors
    /// It must be confirmed, and is not.
    fn confirmed(&self, ctx: &Context, question: &str) -> anyhow::Result<bool> {
        if self.dry_run || self.yes {
            return Ok(self.yes);
        }
        let terminal = io::stdin().is_terminal() && io::stderr().is_terminal() && !ctx.is_json();
        if !terminal {
            bail!(
                "nothing was written, because it was not confirmed: confirm the change with `--yes`"
            );
        }
        if !adding::yes(ctx, question)? {
            bail!("nothing was written");
        }
        Ok(true)
    }
}

/// Adds the entry and the client.
pub(super) async fn connect(options: Connect, ctx: &Context) -> anyhow::Result<Exit> {
    let Connect { selection, name, groups, url, entry } = options;
    let has_options = name.is_some() || !groups.is_empty() || url.is_some() || entry.is_some();
    let entry = entry.unwrap_or(ENTRY.parse()?);
    let kind = selection.kind;
    let found = Located::with(ctx.load()?).await;
    let store = store(ctx, &found)?;
    let connections = connections(&found)?;
    let file = selection.read()?;
    let text = file.text.as_deref().unwrap_or_default();
    if let Some(connection) = connections.find(kind, file.path())? {
        let place = kind.find(text, &connection.entry).map_err(|problem| at(&file, &problem))?;
        let key = store.read()?.get(&connection.client).map(|stored| stored.key_hash.id());
        let has_key = key.as_ref() == Some(&connection.key)
            && connections.key_file(&connection.client).exists();
        let lost = match (place, has_key) {
            (None, _) => Some(format!("{} has lost its entry", file.path().display())),
            (Some(_), false) => Some("its key is revoked or missing".to_owned()),
            (Some(_), true) => None,
        };
        if let Some(lost) = lost {
            bail!(
                "{} is connected as the client `{}`, but {lost}: run `{}` first",
                kind.title,
                connection.client,
                selection.command("disconnect")
            );
        }
        if has_options {
            bail!(
                "{} is connected already, as the client `{}`: to change its options, run `{}` first",
                kind.title,
                connection.client,
                selection.command("disconnect")
            );
        }
        report(ctx, &connection, None, false)?;
        ctx.note(format!(
            "{} is connected already, as the client `{}`.",
            kind.title, connection.client
        ));
        return Ok(Exit::Ok);
    }
    let name = match name {
        Some(name) => name,
        None => selection.client_name()?,
    };
    if let Some(place) = in_config(&found, &name) {
        bail!("{place}: choose another name with `--name`");
    }
    if store.read()?.contains_key(&name) {
        bail!("client `{name}` exists already: choose another name with `--name`");
    }
    if let Some(existing) = connections.existing_file(&name) {
        bail!(
            "client `{name}` was removed, but its connection is still there ({}): run `portcullis \
             client disconnect` for it first, or choose another name with `--name`",
            existing.display()
        );
    }
    let starts = url.is_none();
    let url = endpoint(&found, url)?;
    if let Some(place) = kind.find(text, entry.as_str()).map_err(|problem| at(&file, &problem))? {
        bail!(
            "{}:{place}: there is an entry `{entry}` that this command did not write: remove it, or \
             choose another name with `--entry`",
            file.path().display()
        );
    }
    let program = std::env::current_exe().context("the path of this program is unknown")?;
    let key_file = connections.key_file(&name);
    let (Some(program), Some(key_path)) = (program.to_str(), key_file.to_str()) else {
        bail!(
            "the path of this program or of the state folder is not UTF-8, so no client can use it: \
             move it"
        );
    };
    let mut arguments =
        ["connect", "--url", &url, "--key-file", key_path].map(str::to_owned).to_vec();
    // A proxy that `--url` names may run on another machine.
    if starts {
        let config = std::path::absolute(&ctx.config)?;
        let config = config.to_str().context("the path of the config is not UTF-8")?;
        arguments.extend(["--start", "--config", config].map(str::to_owned));
    }
    let launch = Launch { program, arguments: &arguments };
    let edit = kind.insert(text, entry.as_str(), launch).map_err(|problem| at(&file, &problem))?;
    let after = edit.apply(text).context("the change does not fit the file")?;
    let key = Key::generate()?;
    let connection = Connection {
        client: name.clone(),
        key: key.hash().id(),
        kind: kind.name.to_owned(),
        file: file.path().to_owned(),
        entry: entry.as_str().to_owned(),
        edit,
        created: file.text.is_none(),
        folders: file.missing_folders(),
    };
    show(ctx, file.path(), text, &after)?;
    let question = format!("Write this, and add the client `{name}` with a new key? [y/N] ");
    if !selection.confirmed(ctx, &question)? {
        report(ctx, &connection, Some((text, after.as_str())), false)?;
        return Ok(Exit::Ok);
    }
    let groups: Vec<Group> = groups.into_iter().collect::<BTreeSet<_>>().into_iter().collect();
    let is_in_group = !groups.is_empty();
    connections.add(&connection, &key)?;
    let added =
        Change::Added { client: name.clone(), key: connection.key.clone(), groups: groups.clone() };
    if let Err(error) = on_record(ctx, &found, added, || store.add_with(&name, &key, groups)).await
    {
        take_back(ctx, connections.remove(&name));
        return Err(error);
    }
    if let Err(error) = file.write(&after) {
        remove_empty(&connection.folders);
        take_back(ctx, revoke(ctx, &found, &store, &connection).await);
        take_back(ctx, connections.remove(&name));
        return Err(error);
    }
    report(ctx, &connection, Some((text, after.as_str())), true)?;
    let proxy = match starts {
        true => "It starts the proxy in the background if none runs.",
        false => "It needs a running proxy.",
    };
    ctx.note(format!("{} is connected, as the client `{name}`. Restart it. {proxy}", kind.title));
    if !is_in_group {
        ctx.note(format!(
            "Policies decide what it may do: `portcullis policy new read-only --client {name} --server SERVER`."
        ));
    }
    Ok(Exit::Ok)
}

/// Removes the entry and the client.
pub(super) async fn disconnect(options: Disconnect, ctx: &Context) -> anyhow::Result<Exit> {
    let Disconnect { selection } = options;
    let kind = selection.kind;
    // Revoking a key must not require a valid config.
    let found = proxy_client::find(ctx).await?;
    let store = store(ctx, &found)?;
    let connections = connections(&found)?;
    let path = selection.path()?;
    let Some(connection) = connections.find(kind, &path)? else {
        bail!(
            "{} is not connected to this proxy by {}: `{}` connects it",
            kind.title,
            path.display(),
            selection.command("connect")
        );
    };
    let unchanged = || {
        format!(
            "nothing was changed: `portcullis client rm {}` revokes the key alone",
            connection.client
        )
    };
    let file = selection.read().with_context(unchanged)?;
    let text = file.text.as_deref().unwrap_or_default();
    let after = kind
        .remove(text, &connection.entry, &connection.edit)
        .map_err(|problem| at(&file, &problem))
        .with_context(unchanged)?;
    let is_gone = connection.created && ClientKind::is_blank(&after);
    show(ctx, file.path(), text, &after)?;
    let question = format!("Write this, and revoke the key of `{}`? [y/N] ", connection.client);
    if !selection.confirmed(ctx, &question)? {
        report(ctx, &connection, Some((text, after.as_str())), false)?;
        return Ok(Exit::Ok);
    }
    if is_gone {
        file.delete(&connection.folders)?;
    } else if text != after {
        file.write(&after)?;
    }
    revoke(ctx, &found, &store, &connection).await?;
    connections.remove(&connection.client)?;
    report(ctx, &connection, Some((text, after.as_str())), true)?;
    ctx.note(format!(
        "{} is disconnected, and the key of the client `{}` is revoked.",
        kind.title, connection.client
    ));
    Ok(Exit::Ok)
}

/// Connections of the proxy that was found.
fn connections(found: &Located) -> anyhow::Result<Connections> {
    let state_dir = found.state_dir().context("the state folder is unknown")?;
    Connections::within(state_dir).context("the working folder is unknown")
}

/// Removes the client, unless it was removed already or has another key.
async fn revoke(
    ctx: &Context,
    found: &Located,
    store: &Store,
    connection: &Connection,
) -> anyhow::Result<()> {
    let name = &connection.client;
    let key = store.read()?.get(name).map(|stored| stored.key_hash.id());
    if key.as_ref() != Some(&connection.key) {
        return Ok(());
    }
    let removed = Change::Removed { client: name.clone(), key: connection.key.clone() };
    on_record(ctx, found, removed, || store.remove(name)).await?;
    Ok(())
}

/// Reports that a step before a failure could not be reversed.
fn take_back(ctx: &Context, outcome: anyhow::Result<()>) {
    if let Err(error) = outcome {
        ctx.note(format!("This could not be reversed: {error:#}"));
    }
}

/// URL of the proxy for its clients.
fn endpoint(found: &Located, url: Option<String>) -> anyhow::Result<String> {
    if let Some(url) = url {
        let parsed: Url = url.parse().map_err(|_| {
            Usage("`--url` is not a URL, such as `http://127.0.0.1:8811/mcp`".to_owned())
        })?;
        let has_secret = !parsed.username().is_empty() || parsed.password().is_some();
        if !matches!(parsed.scheme(), "http" | "https") || has_secret {
            let text =
                "`--url` must begin with `http://` or `https://`, without a user and a password";
            return Err(Usage(text.to_owned()).into());
        }
        return Ok(url);
    }
    let loaded =
        found.loaded().context("the config cannot be read: name the endpoint with `--url`")?;
    let mut address = loaded.config.listen.http;
    if address.port() == 0 {
        bail!("`listen.http` leaves the port open: name the endpoint with `--url`");
    }
    match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => address.set_ip(Ipv4Addr::LOCALHOST.into()),
        IpAddr::V6(ip) if ip.is_unspecified() => address.set_ip(Ipv6Addr::LOCALHOST.into()),
        _ => {}
    }
    Ok(format!("http://{address}/mcp"))
}

/// A problem of a file, with its position.
fn at(file: &ClientFile, problem: &Problem) -> anyhow::Error {
    let path = file.path().display();
    match problem.place {
        Some(place) => anyhow::anyhow!("{path}:{place}: {problem}"),
        None => anyhow::anyhow!("{path}: {problem}"),
    }
}

/// The only difference of two texts: its line, and what is there in either text.
fn difference<'a>(before: &'a str, after: &'a str) -> (usize, &'a str, &'a str) {
    let is_same = |(a, b): &(char, char)| a == b;
    let length = |(a, _): (char, char)| a.len_utf8();
    let start: usize = before.chars().zip(after.chars()).take_while(is_same).map(length).sum();
    let (old, new) = (&before[start..], &after[start..]);
    let end: usize = old.chars().rev().zip(new.chars().rev()).take_while(is_same).map(length).sum();
    let line = before[..start].matches('\n').count() + 1;
    (line, &old[..old.len() - end], &new[..new.len() - end])
}

/// Prints the difference, unless data is printed as JSON. Other lines of the file are not printed:
/// they may contain secrets of other servers.
fn show(ctx: &Context, path: &Path, before: &str, after: &str) -> anyhow::Result<()> {
    if ctx.is_json() {
        return Ok(());
    }
    let (line, removed, added) = difference(before, after);
    ctx.line(format!("{}, line {line}:", path.display()))?;
    for (sign, text) in [('-', removed), ('+', added)] {
        let text = text.trim_matches(['\r', '\n']);
        for line in text.lines().filter(|_| !text.trim().is_empty()) {
            ctx.line(format!("{sign} {}", line.replace('\t', "    ")))?;
        }
    }
    Ok(())
}

/// Prints the result as JSON, if data is printed as JSON.
fn report(
    ctx: &Context,
    connection: &Connection,
    texts: Option<(&str, &str)>,
    is_written: bool,
) -> anyhow::Result<()> {
    if !ctx.is_json() {
        return Ok(());
    }
    let change = texts.map(|(before, after)| {
        let (line, removed, added) = difference(before, after);
        json!({ "line": line, "removed": removed, "added": added })
    });
    ctx.json(&json!({
        "client": connection.client,
        "kind": connection.kind,
        "file": connection.file,
        "entry": connection.entry,
        "change": change,
        "written": is_written,
    }))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn difference_has_changed_text_only() {
        for (before, after, expected) in [
            ("", "a\n", (1, "", "a\n")),
            ("a\nb\nc\n", "a\nx\nc\n", (2, "b", "x")),
            ("a\nb\n", "a\nb\nb\n", (3, "", "b\n")),
            ("ä\n", "ö\n", (1, "ä", "ö")),
            ("a", "a", (1, "", "")),
        ] {
            assert_eq!(difference(before, after), expected);
        }
    }
}
