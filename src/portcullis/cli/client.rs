//! `portcullis client`: clients and their keys.

mod connection;

pub(super) use connection::{NewConnection, kinds};

use std::collections::BTreeSet;

use anyhow::Context as _;
use serde_json::{Value, json};

use super::{
    Context, Exit,
    proxy_client::{self, Located},
};
use crate::manage::servers::current_user;
use portcullis_audit::record::{By, CommandUser};
use portcullis_config::Loaded;
use portcullis_gateway::{admin, record_client_offline};
use portcullis_protocol::{
    identity::{Change, Key, KeyHash, Store, StoreFault},
    names::{ClientName, Group},
};

#[derive(Debug, clap::Subcommand)]
pub enum Verb {
    /// Add a client and print its key; the key is not shown again
    Add {
        /// The client's name, as used in policies and audit records
        name: ClientName,
        /// A group for policies; may be given several times
        #[arg(long = "group", value_name = "GROUP")]
        groups: Vec<Group>,
    },
    /// Add an entry for Portcullis, with a key of its own, to the config file of an MCP client
    Connect(connection::Connect),
    /// Remove the entry from the config file of an MCP client, and revoke its key
    Disconnect(connection::Disconnect),
    /// List the clients
    Ls,
    /// Remove a client; revokes its key immediately
    Rm {
        /// The client's name
        name: ClientName,
    },
}

/// Runs the verb.
pub async fn run(verb: Verb, ctx: &Context) -> anyhow::Result<Exit> {
    match verb {
        Verb::Add { name, groups } => {
            let found = Located::with(ctx.load()?).await;
            add(ctx, &found, &store(ctx, &found)?, &name, groups).await
        }
        Verb::Connect(options) => connection::connect(options, ctx).await,
        Verb::Disconnect(options) => connection::disconnect(options, ctx).await,
        Verb::Ls => ls(ctx, &ctx.load()?),
        Verb::Rm { name } => {
            // Revoking a key must not require a valid config.
            let found = proxy_client::find(ctx).await?;
            rm(ctx, &found, &store(ctx, &found)?, &name).await
        }
    }
}

/// Store of clients of exactly the proxy that was found.
///
/// # Errors
/// The proxy was not found by its state folder, which contains the store.
fn store(ctx: &Context, found: &Located) -> anyhow::Result<Store> {
    let state_dir = found.state_dir().with_context(|| {
        format!(
            "a proxy answers at its `admin.socket`, but not in a state folder that {} names, so its \
             clients are not to be found: name its own folder in `state-dir`, and run this as its user",
            ctx.config.display()
        )
    })?;
    Ok(Store::in_state_dir(state_dir))
}

/// Records an upcoming change, through the running proxy or else by this command.
async fn record(found: &Located, change: &Change, reason: Option<String>) -> anyhow::Result<()> {
    let change = change.clone();
    match found {
        Located::Running(proxy, _) => {
            let request = admin::ClientChange { change, reason };
            Ok(proxy.post_json("/v1/clients", &request).await?)
        }
        Located::Alone(loaded) => {
            let CommandUser { uid, user } = current_user();
            let by = By { uid, user, reason };
            record_client_offline(loaded, change, by)
                .await
                .map_err(|fault| anyhow::anyhow!("{fault}; {}", fault.remedy()))
        }
    }
}

/// Makes a change after it is recorded.
async fn on_record<T>(
    ctx: &Context,
    found: &Located,
    change: Change,
    make: impl FnOnce() -> Result<T, StoreFault>,
) -> anyhow::Result<T> {
    record(found, &change, None)
        .await
        .context("this can't be recorded in the audit log, so it is not done")?;
    match make() {
        Ok(made) => Ok(made),
        Err(fault) => {
            let why = format!("it could not be done: {fault}");
            if let Err(error) = record(found, &change.reverse(), Some(why)).await {
                ctx.note(format!("The audit log says that it was done: {error:#}"));
            }
            Err(fault.into())
        }
    }
}

async fn add(
    ctx: &Context,
    found: &Located,
    store: &Store,
    name: &ClientName,
    groups: Vec<Group>,
) -> anyhow::Result<Exit> {
    if let Some(place) = in_config(found, name) {
        anyhow::bail!(place);
    }
    let groups: Vec<Group> = groups.into_iter().collect::<BTreeSet<_>>().into_iter().collect();
    if store.read()?.contains_key(name) {
        return Err(StoreFault::Exists(name.clone()).into());
    }
    let key = Key::generate()?;
    let (client, id) = (name.clone(), key.hash().id());
    let added = Change::Added { client, key: id, groups: groups.clone() };
    on_record(ctx, found, added, || store.add_with(name, &key, groups.clone())).await?;
    if ctx.is_json() {
        ctx.json(&json!({
            "client": name,
            "groups": groups,
            "key": key.expose(),
            "keyHash": key.hash(),
        }))?;
    } else {
        ctx.line(key.expose())?;
    }
    ctx.note(
        "The key is shown this once; only its hash is kept. The client sends it in the header",
    );
    ctx.note("`Authorization: Bearer KEY`. A proxy that is running takes it from now on.");
    Ok(Exit::Ok)
}

fn ls(ctx: &Context, loaded: &Loaded) -> anyhow::Result<Exit> {
    let configured = loaded.config.clients.iter().map(|(name, client)| Row {
        name,
        groups: &client.groups,
        key: client.key_hash.parse::<KeyHash>().map(|hash| hash.id()).unwrap_or_default(),
        place: "config",
        added: None,
    });
    let stored = Store::in_state_dir(&loaded.config.state_dir).read()?;
    let stored = stored.iter().map(|(name, client)| Row {
        name,
        groups: &client.groups,
        key: client.key_hash.id(),
        place: "state",
        added: Some(client.added.to_string()),
    });
    let mut rows: Vec<Row<'_>> = configured.chain(stored).collect();
    rows.sort_by_key(|row| row.name);
    if ctx.is_json() {
        ctx.json(&rows.iter().map(Row::to_json).collect::<Vec<_>>())?;
    } else if rows.is_empty() {
        ctx.note("No clients yet: `portcullis client add NAME` makes one.");
    } else {
        ctx.table(
            &["NAME", "GROUPS", "KEY", "WHERE", "ADDED"],
            rows.iter().map(|row| {
                let groups: Vec<&str> = row.groups.iter().map(Group::as_str).collect();
                let added = row.added.clone().unwrap_or_default();
                [
                    row.name.to_string(),
                    groups.join(", "),
                    row.key.clone(),
                    row.place.to_owned(),
                    added,
                ]
            }),
        )?;
    }
    Ok(Exit::Ok)
}

struct Row<'a> {
    name: &'a ClientName,
    groups: &'a [Group],
    /// Id of its key, as in records.
    key: String,
    /// `config` or `state`.
    place: &'static str,
    added: Option<String>,
}

impl Row<'_> {
    fn to_json(&self) -> Value {
        json!({
            "client": self.name,
            "groups": self.groups,
            "key": self.key,
            "where": self.place,
            "added": self.added,
        })
    }
}

async fn rm(
    ctx: &Context,
    found: &Located,
    store: &Store,
    name: &ClientName,
) -> anyhow::Result<Exit> {
    let key = match store.read()?.get(name) {
        Some(stored) => stored.key_hash.id(),
        None => match in_config(found, name) {
            Some(place) => anyhow::bail!("{place}: remove it there"),
            None => return Err(StoreFault::Missing(name.clone()).into()),
        },
    };
    let removed = Change::Removed { client: name.clone(), key };
    on_record(ctx, found, removed, || store.remove(name)).await?;
    if ctx.is_json() {
        ctx.json(&json!({ "client": name, "removed": true }))?;
    } else {
        ctx.note(format!("Client `{name}` is removed; its key has ended."));
    }
    Ok(Exit::Ok)
}

/// Message with the position of a client that the config defines.
fn in_config(found: &Located, name: &ClientName) -> Option<String> {
    let loaded = found.loaded().filter(|loaded| loaded.config.clients.contains_key(name))?;
    let file = loaded.path.display();
    let line = loaded.line(&format!("/clients/{name}")).unwrap_or_default();
    Some(format!("the client `{name}` stands in the config ({file}:{line})"))
}
