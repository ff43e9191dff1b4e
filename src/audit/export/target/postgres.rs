//! Table of a PostgreSQL database, with the columns of `columns.rs` and one row per record. A batch
//! is acknowledged by its commit. Existing rows stay unchanged, so a batch that is sent twice
//! leaves one row per record.

use std::{fmt::Write as _, sync::Arc};

use async_trait::async_trait;
use rustls::ClientConfig;
use tokio::task::JoinHandle;
use tokio_postgres::{
    Client, Config, Statement,
    config::{Host, SslMode},
    types::ToSql,
};

use super::{
    super::{
        Item, Origin,
        format::columns::{COLUMNS, Column, Kind, Value},
    },
    Illegal, PATIENCE, Sink, Undelivered, causes, in_time, is_loopback, tls,
};

/// Name of the table, resolved by the user's `search_path`.
const TABLE: &str = "portcullis_audit";

/// Connection settings. No `Debug`: they contain a password.
pub struct Settings {
    config: Config,
    password: bool,
}

impl Settings {
    pub(super) fn parse(text: &str) -> Result<Self, Illegal> {
        let bad = |why: &str| Illegal(format!("this is not a URL of a PostgreSQL database: {why}"));
        // The parser's own message can contain a part of the URL.
        let mut config: Config =
            text.parse().map_err(|_| bad("write `postgres://USER@HOST:PORT/DATABASE`"))?;
        if config.get_hosts().is_empty() && config.get_hostaddrs().is_empty() {
            return Err(bad("it names no host"));
        }
        if config.get_user().is_none() {
            return Err(bad("it names no user"));
        }
        // The library's default falls back to plain text if a server has no TLS. Over a network,
        // plain text needs an explicit `sslmode`.
        let named = text.contains("sslmode=");
        if !named {
            let mode = if local(&config) { SslMode::Disable } else { SslMode::Require };
            config.ssl_mode(mode);
        }
        let password = config.get_password().is_some();
        config.connect_timeout(PATIENCE).application_name("portcullis");
        Ok(Self { config, password })
    }

    pub(super) fn has_password(&self) -> bool {
        self.password
    }

    pub(super) fn is_open(&self) -> bool {
        !local(&self.config) && self.config.get_ssl_mode() != SslMode::Require
    }

    /// Host, port and database.
    pub(super) fn destination(&self) -> String {
        let host = match self.config.get_hosts().first() {
            Some(Host::Tcp(name)) => name.clone(),
            Some(Host::Unix(path)) => path.display().to_string(),
            None => {
                self.config.get_hostaddrs().first().map(ToString::to_string).unwrap_or_default()
            }
        };
        let port = self.config.get_ports().first().copied().unwrap_or(5432);
        let database = self.config.get_dbname().or(self.config.get_user()).unwrap_or_default();
        format!("{host}:{port}/{database}")
    }
}

fn local(config: &Config) -> bool {
    config.get_hosts().iter().all(|host| match host {
        Host::Tcp(name) => is_loopback(name),
        Host::Unix(_) => true,
    }) && config.get_hostaddrs().iter().all(|address| address.to_canonical().is_loopback())
}

fn sql_type(kind: Kind) -> &'static str {
    match kind {
        Kind::Text => "text",
        Kind::Integer => "bigint",
        Kind::Boolean => "boolean",
        Kind::Time => "timestamptz",
    }
}

/// Statement that creates the table if it is missing.
pub(in crate::export) fn table() -> String {
    let mut sql = format!("create table if not exists {TABLE} (\n    \"log\" text not null,\n");
    for Column { name, kind, always, .. } in COLUMNS {
        let null = if *always { " not null" } else { "" };
        let _ = writeln!(sql, "    \"{name}\" {}{null},", sql_type(*kind));
    }
    sql.push_str("    primary key (\"log\", \"seq\")\n)");
    sql
}

/// Statement that inserts a batch: one array per column.
fn insert() -> String {
    let names: Vec<String> = COLUMNS.iter().map(|column| format!("\"{}\"", column.name)).collect();
    let arrays: Vec<String> = COLUMNS
        .iter()
        .zip(2..)
        .map(|(column, at)| format!("${at}::{}[]", sql_type(column.kind)))
        .collect();
    let (names, arrays) = (names.join(", "), arrays.join(", "));
    format!(
        "insert into {TABLE} (\"log\", {names}) select $1, * from unnest({arrays}) \
         on conflict (\"log\", \"seq\") do nothing"
    )
}

/// Statement that finds records of the batch whose row has another hash.
fn compare() -> String {
    format!(
        "select count(*) from {TABLE} t join unnest($2::bigint[], $3::text[]) as sent(seq, hash) \
         on t.\"log\" = $1 and t.\"seq\" = sent.seq where t.\"hash\" <> sent.hash"
    )
}

/// Error with the database's message and its SQLSTATE code.
fn failed(what: &str) -> impl Fn(tokio_postgres::Error) -> Undelivered {
    move |error| {
        let code = error.code().map(|code| format!(" ({})", code.code())).unwrap_or_default();
        Undelivered::Failed(format!("{what}: {}{code}", causes(&error)))
    }
}

pub(super) struct Table {
    settings: Arc<Settings>,
    tls: Arc<ClientConfig>,
    origin: Origin,
    connection: Option<Connection>,
}

struct Connection {
    client: Client,
    insert: Statement,
    compare: Statement,
    task: JoinHandle<()>,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Table {
    pub fn new(settings: Arc<Settings>, tls: Arc<ClientConfig>, origin: Origin) -> Self {
        Self { settings, tls, origin, connection: None }
    }

    async fn connect(&self) -> Result<Connection, Undelivered> {
        let (client, connection) = self
            .settings
            .config
            .connect(tls::Postgres(self.tls.clone()))
            .await
            .map_err(failed("the database can't be reached"))?;
        // The task ends with the client. Statements return its errors.
        let task = tokio::spawn(async move { drop(connection.await) });
        let known = client
            .query_opt("select 1 where to_regclass($1) is not null", &[&TABLE])
            .await
            .map_err(failed("the table can't be looked for"))?;
        if known.is_none() {
            client.batch_execute(&table()).await.map_err(failed(
                "the table cannot be created (docs/operate/audit-export.md has its DDL)",
            ))?;
        }
        let insert = client.prepare(&insert()).await.map_err(failed(
            "the table has other columns than docs/operate/audit-export.md says",
        ))?;
        let compare = client.prepare(&compare()).await.map_err(failed(
            "the table has other columns than docs/operate/audit-export.md says",
        ))?;
        Ok(Connection { client, insert, compare, task })
    }
}

#[async_trait]
impl Sink for Table {
    async fn deliver(&mut self, items: Arc<Vec<Item>>) -> Result<(), Undelivered> {
        let connection = match self.connection.take().filter(|c| !c.client.is_closed()) {
            Some(connection) => connection,
            None => in_time("the connection", self.connect()).await?,
        };
        in_time("the database", put(&connection, &items, &self.origin)).await?;
        self.connection = Some(connection);
        Ok(())
    }
}

async fn put(connection: &Connection, items: &[Item], origin: &Origin) -> Result<(), Undelivered> {
    let arrays: Vec<Box<dyn ToSql + Sync + Send>> =
        COLUMNS.iter().map(|column| array(column, items)).collect();
    let mut parameters: Vec<&(dyn ToSql + Sync)> = vec![&origin.log];
    parameters.extend(arrays.iter().map(|array| &**array as &(dyn ToSql + Sync)));
    let inserted = connection
        .client
        .execute(&connection.insert, &parameters)
        .await
        .map_err(failed("the records can't be inserted"))?;
    if inserted == items.len() as u64 {
        return Ok(());
    }
    // Rows existed: the batch was sent twice, or another log has the same id.
    let seqs: Vec<i64> =
        items.iter().map(|item| i64::try_from(item.seq.0).unwrap_or(i64::MAX)).collect();
    let hashes: Vec<String> = items.iter().map(|item| item.hash.to_string()).collect();
    let differing: i64 = connection
        .client
        .query_one(&connection.compare, &[&origin.log, &seqs, &hashes])
        .await
        .and_then(|row| row.try_get(0))
        .map_err(failed("the records can't be compared"))?;
    if differing > 0 {
        tracing::error!(
            log = origin.log,
            differing,
            "the table of an audit export has other records under the same numbers: this store, \
             or the table, was set back to an earlier state; the rows were left as they are"
        );
    }
    Ok(())
}

/// One column of a batch.
fn array(column: &Column, items: &[Item]) -> Box<dyn ToSql + Sync + Send> {
    let values = items.iter().map(|item| (column.value)(item));
    match column.kind {
        Kind::Text => Box::new(
            values
                .map(|value| match value {
                    // PostgreSQL's `text` cannot contain NUL. `line` has it escaped.
                    Value::Text(text) => Some(text.replace('\0', "\u{fffd}")),
                    _ => None,
                })
                .collect::<Vec<_>>(),
        ),
        Kind::Integer => Box::new(
            values
                .map(|value| match value {
                    Value::Integer(number) => Some(number),
                    _ => None,
                })
                .collect::<Vec<_>>(),
        ),
        Kind::Boolean => Box::new(
            values
                .map(|value| match value {
                    Value::Boolean(yes) => Some(yes),
                    _ => None,
                })
                .collect::<Vec<_>>(),
        ),
        Kind::Time => Box::new(
            values
                .map(|value| match value {
                    Value::Time(time) => Some(time),
                    _ => None,
                })
                .collect::<Vec<_>>(),
        ),
    }
}
