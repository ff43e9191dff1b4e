//! Events of the proxy itself: start and stop, config, policies and plugins.

use super::content::{Content, content, names, then};
use portcullis_protocol::names::DecisionId;

content! {
    /// The proxy started to accept messages.
    pub struct ProxyStarted {
        pub version: String,
        /// Whether this is a dry run: the proxy reports what it would do, accepts no messages and
        /// ends.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        pub dry_run: bool,
    }
    summary("{}, version {version}", if *dry_run { "dry run began" } else { "proxy started" });

    /// The proxy did not start, because its settings are invalid or cannot be applied.
    pub struct ProxyStartFailed {
        pub version: String,
        /// All problems, one per line.
        pub reason: String,
    }
    summary("proxy did not start: {reason}");

    /// The proxy stopped regularly, not by a crash.
    pub struct ProxyStopped {
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub reason: Option<String>,
    }
    summary("proxy stopped{}", then(": ", reason));

    /// The config of this run.
    pub struct ConfigLoaded {
        /// Path of the file.
        pub file: String,
        /// `sha256:` and the digest of the file.
        pub revision: String,
        /// Number of servers.
        pub servers: u64,
        /// Interceptors of the chain, in order, without `policy`: `NAME`, `NAME (default)` for an
        /// interceptor that is on without an entry, `NAME (audit)` or `NAME (off)`.
        pub chain: Vec<String>,
    }
    summary("config loaded: {file}, {servers} servers, revision {revision}");

    /// The config was reloaded while the proxy ran. Its servers replace the earlier ones.
    pub struct ConfigReloaded {
        /// Path of the file.
        pub file: String,
        /// `sha256:` and the digest of the file.
        pub revision: String,
        /// Number of servers after the reload.
        pub servers: u64,
        /// Added servers.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        pub added: Vec<String>,
        /// Servers with a changed entry.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        pub changed: Vec<String>,
        /// Removed servers.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        pub removed: Vec<String>,
        /// Other sections that changed since the proxy started. They take effect at its next start.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        pub waiting: Vec<String>,
    }
    summary(
        "config reloaded: {file}{}{}{}{}",
        names("; added: ", added),
        names("; changed: ", changed),
        names("; removed: ", removed),
        names("; not before a restart: ", waiting)
    );

    /// A reload of the config failed. The earlier config stays in effect.
    pub struct ConfigRejected {
        /// Path of the file.
        pub file: String,
        /// All problems, one per line.
        pub reason: String,
    }
    summary("config rejected: {reason}");

    /// Policies took effect.
    pub struct PolicyLoaded {
        pub revision: String,
        pub policies: u64,
        /// Name of the signed bundle that contains the policies.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub bundle: Option<String>,
        /// Version of the bundle.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub bundle_version: Option<u64>,
        /// Policies that keep bodies, by `@keep`.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        pub keeping: Vec<String>,
    }
    summary(
        "policies loaded: {policies}, revision {revision}{}",
        match (bundle, bundle_version) {
            (Some(name), Some(version)) => format!(", bundle {name} version {version}"),
            _ => String::new(),
        }
    );

    /// Policies were rejected. The earlier policies stay in effect.
    pub struct PolicyRejected {
        pub reason: String,
    }
    summary("policies rejected: {reason}");

    /// A plugin was loaded.
    pub struct PluginLoaded {
        /// Name of the interceptor.
        pub plugin: String,
        /// Path of the component, or `oci://` and its reference with the digest of its manifest.
        pub file: String,
        /// `sha256:` and the digest of the component.
        pub digest: String,
        /// Whether the config pins that digest, or the digest of a manifest that contains it.
        pub pinned: bool,
        /// Key that signed the component, if the config requires a signature.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub signed_by: Option<String>,
        /// Name and version in the plugin's manifest.
        pub manifest: String,
        /// Grants: host functions (`log`), hosts (`http:api.example.com:443`) and secrets
        /// (`secret:NAME`).
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        pub grants: Vec<String>,
        /// Memory limit of one instance in MiB.
        pub memory_mib: u64,
    }
    summary("plugin {plugin} loaded: {file}, {digest}");

    /// A plugin was not loaded, so the proxy did not start.
    pub struct PluginRefused {
        /// Name of the interceptor.
        pub plugin: String,
        pub file: String,
        pub reason: String,
    }
    summary("plugin {plugin} not loaded: {file}: {reason}");

    /// A plugin sent HTTP requests for a message that was cancelled before its verdict. With a
    /// verdict, such requests are findings in the message's record.
    pub struct PluginHttpSent {
        /// Name of the interceptor.
        pub plugin: String,
        /// Decision id of the message.
        #[schemars(with = "String", extend("format" = "uuid"))]
        pub call: DecisionId,
        /// Method, host and result of each request.
        pub requests: Vec<String>,
    }
    summary("plugin {plugin} sent for {call}, which was withdrawn: {}", requests.join(", "));
}
