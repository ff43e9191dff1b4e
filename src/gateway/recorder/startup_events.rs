//! Events of a start, also of a failed one: the config, policies and plugins in use, and those that
//! could not be loaded.

use std::path::Path;

use super::launch_events;
use portcullis_audit::record::{
    ConfigLoaded, PluginLoaded, PluginRefused, PolicyLoaded, SecretSource, SecretUnresolved,
};
use portcullis_config::{Loaded, Member};
use portcullis_interceptors::{
    InterceptorEntry,
    plugin::{self, Version},
};
use portcullis_protocol::names::ServerName;
use portcullis_upstream::SecretError;

pub(crate) fn version() -> String {
    env!("CARGO_PKG_VERSION").to_owned()
}

fn count(members: usize) -> u64 {
    u64::try_from(members).unwrap_or(u64::MAX)
}

/// The event of a loaded config, from its present file.
pub(crate) fn config(loaded: &Loaded) -> ConfigLoaded {
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
