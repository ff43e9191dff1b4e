//! Secrets of servers: reads them, and registers them for redaction.

use std::{collections::BTreeMap, path::Path, sync::Arc};

use futures_util::StreamExt as _;
use indexmap::IndexMap;

use crate::recorder::startup_events;
use portcullis_audit::record::Event;
use portcullis_interceptors::secrets::{Known, Scrubber, Secrets};
use portcullis_protocol::names::ServerName;
use portcullis_upstream::{
    LoadedSecrets, RegisterForRedaction, SecretError, SecretHolder, SecretScope, SecretSet,
};

/// Secrets of servers that are read at once.
const READ_AT_ONCE: usize = 8;

/// The present secrets of servers.
pub(crate) async fn delivered(
    servers: &IndexMap<ServerName, portcullis_upstream::config::Server>,
    base: &Path,
) -> BTreeMap<SecretHolder, Result<SecretSet, SecretError>> {
    let all = servers.iter().flat_map(|(server, settings)| {
        let all = SecretScope::all(settings).into_iter();
        all.map(|scope| ((server.clone(), scope), settings.clone()))
    });
    // Owned, so that this can run on a task of its own.
    let all: Vec<_> = all.collect();
    let all = futures_util::stream::iter(all).map(|(holder, settings)| {
        let base = base.to_owned();
        async move {
            let read = SecretSet::read(&settings, &base, &holder.1).await;
            (holder, read)
        }
    });
    all.buffer_unordered(READ_AT_ONCE).collect().await
}

/// The same, grouped by server.
pub(crate) fn by_server(
    delivered: BTreeMap<SecretHolder, Result<SecretSet, SecretError>>,
) -> BTreeMap<ServerName, LoadedSecrets> {
    let mut all = BTreeMap::<_, LoadedSecrets>::new();
    for ((server, scope), read) in delivered {
        let read = read.map(Arc::new).map_err(|not| not.failure.what);
        all.entry(server).or_default().insert(scope, read);
    }
    all
}

/// The events of secrets that do not resolve. Only the servers that need them cannot start.
pub(crate) fn missing(
    delivered: &BTreeMap<SecretHolder, Result<SecretSet, SecretError>>,
) -> Vec<Event> {
    let missing =
        delivered.iter().filter_map(|(holder, read)| Some((holder, read.as_ref().err()?)));
    missing
        .map(|((server, scope), not)| {
            tracing::warn!(%server, client = scope.client(), why = not.failure.what, "server cannot start: its secret does not resolve");
            startup_events::no_secret(server, not, false).into()
        })
        .collect()
}

/// The secrets of servers, by the names that identify them in traffic.
pub(crate) fn known_secrets(
    delivered: &BTreeMap<SecretHolder, Result<SecretSet, SecretError>>,
) -> Vec<Known> {
    let all = delivered.iter().filter_map(|(holder, read)| Some((&holder.0, read.as_ref().ok()?)));
    all.flat_map(|(server, delivered)| known_of(server, delivered)).collect()
}

fn known_of(server: &ServerName, delivered: &SecretSet) -> Vec<Known> {
    let all = delivered.0.iter().map(|secret| Known {
        holder: server.to_string(),
        name: secret.name.clone(),
        client: secret.client.clone(),
        value: secret.value.clone(),
    });
    all.collect()
}

/// Registers values that are read later for redaction in messages, records and logs.
pub(crate) fn learn(scrubber: Arc<Scrubber>, scanners: Vec<Arc<Secrets>>) -> RegisterForRedaction {
    Arc::new(move |server, delivered| {
        let known_secrets: Vec<_> =
            delivered.iter().flat_map(|delivered| known_of(server, delivered)).collect();
        scrubber.learn(&known_secrets).map_err(|error| error.to_string())?;
        scanners
            .iter()
            .try_for_each(|scanner| scanner.learn(&known_secrets).map_err(|e| e.to_string()))
    })
}
