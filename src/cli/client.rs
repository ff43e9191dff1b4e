//! `portcullis client`: clients and their keys.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::{Context, Exit};
use crate::{
    admin,
    audit::record::Happening,
    config::Loaded,
    identity::{KeyHash, Store, StoreFault},
    names::{ClientName, Group},
    proxy::record_alone,
};

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    /// Add a client and print its key, this once
    Add {
        /// The client's name, as policies and records have it
        name: ClientName,
        /// A group for policies; may be given several times
        #[arg(long = "group", value_name = "GROUP")]
        groups: Vec<Group>,
    },
    /// List the clients
    Ls,
    /// Remove a client; its key ends at once
    Rm {
        /// The client's name
        name: ClientName,
    },
}

/// Runs the verb.
pub async fn run(args: Args, ctx: &Context) -> anyhow::Result<Exit> {
    let loaded = ctx.load()?;
    let store = Store::within(&loaded.config.state_dir);
    match args.verb {
        Verb::Add { name, groups } => add(ctx, &loaded, &store, &name, groups).await,
        Verb::Ls => ls(ctx, &loaded, &store),
        Verb::Rm { name } => rm(ctx, &loaded, &store, &name).await,
    }
}

/// Records what was done. A proxy that runs sees it and records it itself.
async fn record(ctx: &Context, loaded: &Loaded, what: Happening) {
    if admin::Client::connect(&loaded.config.state_dir).await.is_some() {
        return;
    }
    if let Err(error) = record_alone(loaded, vec![what]).await {
        let remedy = error.remedy();
        ctx.note(format!("This is not in the audit log: {error}; {remedy}"));
    }
}

async fn add(
    ctx: &Context,
    loaded: &Loaded,
    store: &Store,
    name: &ClientName,
    groups: Vec<Group>,
) -> anyhow::Result<Exit> {
    if loaded.config.clients.contains_key(name) {
        anyhow::bail!(in_config(loaded, name));
    }
    let groups: Vec<Group> = groups.into_iter().collect::<BTreeSet<_>>().into_iter().collect();
    let key = store.add(name, groups.clone())?;
    let added = Happening::ClientAdded {
        client: name.to_string(),
        key: key.hash().id(),
        groups: groups.iter().map(ToString::to_string).collect(),
    };
    record(ctx, loaded, added).await;
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

fn ls(ctx: &Context, loaded: &Loaded, store: &Store) -> anyhow::Result<Exit> {
    let configured = loaded.config.clients.iter().map(|(name, client)| Row {
        name,
        groups: &client.groups,
        key: client.key_hash.parse::<KeyHash>().map(|hash| hash.id()).unwrap_or_default(),
        place: "config",
        added: None,
    });
    let stored = store.read()?;
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
    /// Which key it holds, as records have it.
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
    loaded: &Loaded,
    store: &Store,
    name: &ClientName,
) -> anyhow::Result<Exit> {
    let key = match store.remove(name) {
        Ok(removed) => removed.key_hash.id(),
        Err(StoreFault::Missing(_)) if loaded.config.clients.contains_key(name) => {
            anyhow::bail!("{}: remove it there", in_config(loaded, name));
        }
        Err(fault) => return Err(fault.into()),
    };
    record(ctx, loaded, Happening::ClientRemoved { client: name.to_string(), key }).await;
    if ctx.is_json() {
        ctx.json(&json!({ "client": name, "removed": true }))?;
    } else {
        ctx.note(format!("Client `{name}` is removed; its key has ended."));
    }
    Ok(Exit::Ok)
}

fn in_config(loaded: &Loaded, name: &ClientName) -> String {
    let file = loaded.path.display();
    let line = loaded.line(&format!("/clients/{name}")).unwrap_or_default();
    format!("the client `{name}` stands in the config ({file}:{line})")
}
