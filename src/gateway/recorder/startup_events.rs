//! What is on record of a start, and of one that failed: what the proxy goes by, and what it was
//! told to do and could not.

use std::{path::Path, sync::Arc, time::Duration};

use super::launch_events;
use crate::builder::{GatewayBuilder, Purpose, StartFailure};
use portcullis_audit::{
    Audit, Scrub, Unavailable,
    record::{
        By, ByHand, ConfigLoaded, Event, ImageDone, PluginLoaded, PluginRefused, PolicyLoaded,
        PolicyRejected, ProxyStartFailed, ProxyStarted, SecretSource, SecretUnresolved,
    },
};
use portcullis_config::{Loaded, Member};
use portcullis_interceptors::{
    InterceptorEntry,
    plugin::{self, Version},
    secrets::Scrubber,
};
use portcullis_protocol::{identity::Change, names::ServerName};
use portcullis_upstream::SecretError;

/// How long who records alone waits for a store that a running proxy may have.
const PATIENCE: Duration = Duration::from_secs(1);

fn version() -> String {
    env!("CARGO_PKG_VERSION").to_owned()
}

fn count(members: usize) -> u64 {
    u64::try_from(members).unwrap_or(u64::MAX)
}

/// What a config comes to, as its file is now.
fn config(loaded: &Loaded) -> ConfigLoaded {
    let chain = loaded.config.chain();
    ConfigLoaded {
        file: loaded.path.display().to_string(),
        revision: loaded.revision.clone(),
        servers: count(loaded.config.servers.len()),
        chain: chain.iter().map(Member::shown).collect(),
    }
}

/// These policies, in force.
pub(crate) fn policies(status: &portcullis_policy::Status) -> PolicyLoaded {
    PolicyLoaded {
        revision: status.revision.to_string(),
        policies: count(status.policies),
        bundle: status.bundle.as_ref().map(|bundle| bundle.name.clone()),
        bundle_version: status.bundle.as_ref().map(|bundle| bundle.version),
        keeping: status.keeping.clone(),
    }
}

/// A plugin that was loaded.
pub(crate) fn plugin(
    entry: &InterceptorEntry,
    config: &plugin::Config,
    plugin: &Version,
) -> PluginLoaded {
    let manifest = plugin.manifest();
    PluginLoaded {
        plugin: entry.name().to_owned(),
        file: config.place().display().to_string(),
        digest: format!("sha256:{}", plugin.sha256()),
        pinned: config.sha256.is_some() || config.oci.is_some(),
        signed_by: plugin.signed_by().map(str::to_owned),
        manifest: format!("{} {}", manifest.name, manifest.version),
        grants: grants(config),
        memory_mib: config.memory_mib,
    }
}

/// What a config gives a plugin: functions, hosts and secrets.
fn grants(config: &plugin::Config) -> Vec<String> {
    let functions = config.grants.functions().into_iter().map(|one| one.as_str().to_owned());
    let hosts = config.grants.hosts().map(|host| format!("http:{host}"));
    let secrets = config.grants.secrets.iter().flatten().map(|(name, _)| format!("secret:{name}"));
    functions.chain(hosts).chain(secrets).collect()
}

/// A plugin that was not loaded.
pub(crate) fn no_plugin(entry: &InterceptorEntry, path: &Path, why: String) -> PluginRefused {
    PluginRefused { plugin: entry.name().to_owned(), file: path.display().to_string(), reason: why }
}

/// A secret that does not resolve; `kept` if its previous value stays in use.
pub(crate) fn no_secret(server: &ServerName, not: &SecretError, kept: bool) -> SecretUnresolved {
    SecretUnresolved {
        server: server.to_string(),
        secret: not.secret.clone(),
        source: not.source.as_ref().map_or(SecretSource::Illegal, launch_events::source),
        principal: not.client.clone(),
        kept,
        reason: not.failure.what.clone(),
    }
}

impl GatewayBuilder {
    /// Records the start, and tells the revision of the policies that it records. The proxy takes no
    /// message before.
    pub(crate) async fn record(
        &self,
        loaded: &Loaded,
        audit: &Audit,
        purpose: Purpose,
    ) -> Result<portcullis_policy::Revision, Unavailable> {
        let dry_run = purpose == Purpose::DryRun;
        audit.record_event(ProxyStarted { version: version(), dry_run }).await?;
        audit.record_event(config(loaded)).await?;
        let status = self.policies.status().borrow().clone();
        audit.record_event(policies(&status)).await?;
        for plugin in &self.plugins {
            audit.record_event(plugin.clone()).await?;
        }
        Ok(status.revision)
    }
}

impl StartFailure {
    /// Records that the proxy did not start, where the store can be had. Where it can't, this is
    /// all that is left to say so.
    pub async fn record(&self, loaded: &Loaded) {
        let (reason, first) = match self {
            // Then there is nothing to record it in.
            Self::Audit(_) => return,
            Self::Config(found, happened) => {
                let all: Vec<_> = found.iter().map(ToString::to_string).collect();
                (all.join("\n"), happened.clone())
            }
            Self::Policies(diagnostics) => {
                let reason = diagnostics.to_string();
                (reason.clone(), vec![PolicyRejected { reason }.into()])
            }
            other => (other.to_string(), Vec::new()),
        };
        record_start_failure(loaded, first, reason).await;
    }
}

/// Records that the proxy did not start, after what happened on the way, where the store can be
/// had.
pub async fn record_start_failure(loaded: &Loaded, happened: Vec<Event>, reason: String) {
    let last = ProxyStartFailed { version: version(), reason }.into();
    let all = [vec![config(loaded).into()], happened, vec![last]].concat();
    if let Err(error) = record_offline(loaded, all).await {
        tracing::warn!(%error, "failed start of the proxy could not be recorded");
    }
}

/// Records what happens while no proxy runs.
///
/// # Errors
/// [`Unavailable`], also where a proxy runs after all.
pub async fn record_offline(loaded: &Loaded, all: Vec<Event>) -> Result<(), Unavailable> {
    // No secret was read, so what is known by its form is all to look for.
    let scrub = Scrubber::new(&[])
        .ok()
        .map(|scrubber| -> Scrub { Arc::new(move |text: &mut String| scrubber.scrub(text)) });
    let audit = crate::builder::open(&loaded.config, PATIENCE, scrub).await?;
    for happening in all {
        // No call goes on here, so that nothing is let pass without its record.
        audit.record_required(happening).await?;
    }
    Ok(())
}

/// Records what is done with images while no proxy runs.
///
/// # Errors
/// As [`record_alone`]: then what is still to be done must not be.
pub async fn record_images_offline(
    loaded: &Loaded,
    all: Vec<ImageDone>,
    by: ByHand,
) -> Result<(), Unavailable> {
    record_offline(loaded, all.into_iter().map(|done| done.by(by.clone())).collect()).await
}

/// Records a change among the clients that is about to be made while no proxy runs.
///
/// # Errors
/// As [`record_alone`]: then it must not be made.
pub async fn record_client_offline(
    loaded: &Loaded,
    change: Change,
    by: By,
) -> Result<(), Unavailable> {
    record_offline(loaded, vec![crate::clients::changed(change, by)]).await
}
