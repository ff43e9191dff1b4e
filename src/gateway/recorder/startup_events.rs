//! Events of a start, also of a failed one: the config, policies and plugins in use, and those that
//! could not be loaded.

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

/// Time to wait for a store that a running proxy may have open.
const PATIENCE: Duration = Duration::from_secs(1);

fn version() -> String {
    env!("CARGO_PKG_VERSION").to_owned()
}

fn count(members: usize) -> u64 {
    u64::try_from(members).unwrap_or(u64::MAX)
}

/// The event of a loaded config, from its present file.
fn config(loaded: &Loaded) -> ConfigLoaded {
    let chain = loaded.config.chain();
    ConfigLoaded {
        file: loaded.path.display().to_string(),
        revision: loaded.revision.clone(),
        servers: count(loaded.config.servers.len()),
        chain: chain.iter().map(Member::shown).collect(),
    }
}

/// The event of policies in force.
pub(crate) fn policies(status: &portcullis_policy::Status) -> PolicyLoaded {
    PolicyLoaded {
        revision: status.revision.to_string(),
        policies: count(status.policies),
        bundle: status.bundle.as_ref().map(|bundle| bundle.name.clone()),
        bundle_version: status.bundle.as_ref().map(|bundle| bundle.version),
        keeping: status.keeping.clone(),
    }
}

/// The event of a loaded plugin.
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

/// The grants of a plugin in the config: functions, hosts and secrets.
fn grants(config: &plugin::Config) -> Vec<String> {
    let functions = config.grants.functions().into_iter().map(|one| one.as_str().to_owned());
    let hosts = config.grants.hosts().map(|host| format!("http:{host}"));
    let secrets = config.grants.secrets.iter().flatten().map(|(name, _)| format!("secret:{name}"));
    functions.chain(hosts).chain(secrets).collect()
}

/// The event of a plugin that was not loaded.
pub(crate) fn no_plugin(entry: &InterceptorEntry, path: &Path, why: String) -> PluginRefused {
    PluginRefused { plugin: entry.name().to_owned(), file: path.display().to_string(), reason: why }
}

/// The event of a secret that does not resolve; `kept` if its previous value stays in use.
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
    /// Records the start, and returns the policy revision in that record. The proxy accepts
    /// messages only afterwards.
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
    /// Records that the proxy did not start, if the store is available. Otherwise the failure is
    /// only logged.
    pub async fn record(&self, loaded: &Loaded) {
        let (reason, first) = match self {
            // The log itself is unavailable.
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

/// Records the events of a start and then its failure, if the store is available.
pub async fn record_start_failure(loaded: &Loaded, happened: Vec<Event>, reason: String) {
    let last = ProxyStartFailed { version: version(), reason }.into();
    let all = [vec![config(loaded).into()], happened, vec![last]].concat();
    if let Err(error) = record_offline(loaded, all).await {
        tracing::warn!(%error, "failed start of the proxy could not be recorded");
    }
}

/// Records events while no proxy is running.
///
/// # Errors
/// [`Unavailable`], also if a proxy is running after all.
pub async fn record_offline(loaded: &Loaded, all: Vec<Event>) -> Result<(), Unavailable> {
    // No secret was read, so only secrets with a known form can be found.
    let scrub = Scrubber::new(&[])
        .ok()
        .map(|scrubber| -> Scrub { Arc::new(move |text: &mut String| scrubber.scrub(text)) });
    let audit = crate::builder::open(&loaded.config, PATIENCE, scrub).await?;
    for happening in all {
        // No calls happen here, so the record itself is required.
        audit.record_required(happening).await?;
    }
    Ok(())
}

/// Records changes of images while no proxy is running.
///
/// # Errors
/// As [`record_offline`]: then the remaining changes must not be made.
pub async fn record_images_offline(
    loaded: &Loaded,
    all: Vec<ImageDone>,
    by: ByHand,
) -> Result<(), Unavailable> {
    record_offline(loaded, all.into_iter().map(|done| done.by(by.clone())).collect()).await
}

/// Records a change of clients before it is made, while no proxy is running.
///
/// # Errors
/// As [`record_offline`]: then the change must not be made.
pub async fn record_client_offline(
    loaded: &Loaded,
    change: Change,
    by: By,
) -> Result<(), Unavailable> {
    record_offline(loaded, vec![crate::clients::changed(change, by)]).await
}
