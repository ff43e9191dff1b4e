//! The sections of servers, registries and signers in the config.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use portcullis_policy::Tool;
use portcullis_protocol::names::{ClientName, SignerName};
use portcullis_runtime::config::{Hardening, MountEntry, Resources};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Access to OCI registries. Logins are those of `docker login`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Registries {
    /// Hosts, with their ports, that are reached without TLS. Their logins are then visible on the
    /// network. Registries on this machine are reached without TLS unless `ca-file` is set.
    pub plain_http: Vec<String>,
    /// Certificate authorities of registries (PEM), in addition to those of the system.
    pub ca_file: Option<PathBuf>,
    /// Seconds for all requests for one artifact.
    #[schemars(range(min = 1, max = 3600))]
    pub deadline_s: u64,
    /// Seconds for the engine to pull one image.
    #[schemars(range(min = 1, max = 86400))]
    pub pull_deadline_s: u64,
    /// Maximum size in MiB of an image, compressed as in its registry.
    #[schemars(range(min = 1, max = 1048576))]
    pub largest_image_mib: u64,
}

impl Default for Registries {
    fn default() -> Self {
        Self {
            plain_http: Vec::new(),
            ca_file: None,
            deadline_s: 60,
            pull_deadline_s: 900,
            largest_image_mib: 8192,
        }
    }
}

/// Trusted signer: the holder of a key, or an identity that an issuer confirmed in a certificate
/// (Sigstore's "keyless" signing).
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Signer {
    /// File of a public key in PEM: ECDSA (P-256, P-384), Ed25519 or RSA.
    pub key: Option<PathBuf>,
    /// URL of the OpenID Connect issuer that confirms the identity.
    pub issuer: Option<String>,
    /// Identity at the issuer: an e-mail address or a URI. `*` matches any text without `/` and
    /// `@`, `**` matches any text:
    /// `https://github.com/acme/*/.github/workflows/release.yml@refs/tags/*`.
    pub subject: Option<String>,
    /// File of the trusted authorities and logs: Sigstore's `trusted_root.json`. With a `key`, only
    /// signatures in the transparency log are valid.
    pub trusted_root: Option<PathBuf>,
}

/// One server: an `image`, a `command` or a `url`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Server {
    /// Whether clients have the server. A disabled server stays in the config and does not run
    /// (`portcullis server disable`).
    pub enabled: bool,
    /// Container image: by digest (`name@sha256:…`), by tag (`registry/name:tag`, resolved once
    /// into the lock file), or by a local image id (`sha256:…`).
    pub image: Option<String>,
    /// Names of `[signers]`. At least one of them must have signed the `image`.
    pub signed_by: Vec<SignerName>,
    /// Program and its arguments. With `image`: arguments for the image's entry point.
    pub command: Option<Vec<String>>,
    /// Endpoint of a remote server.
    pub url: Option<String>,
    /// Transport to a `url`.
    pub transport: Transport,
    /// Runtime of the server. With `image`: `runsc`, or omit the key.
    pub runtime: Runtime,
    /// Socket of `portcullis pod-exec`, which starts the program of `image` in another container of
    /// the proxy's pod. `server export k8s` writes this key together with the pod. The pod confines
    /// the program, so policies see the deviation `pod-socket`. With this key, `mounts`, `egress`,
    /// `hardening` and `resources` (except `files`) have no effect: they only describe the pod to
    /// policies.
    pub pod_socket: Option<PathBuf>,
    /// Prefix of the server's names in the merged lists, separated by `__`. Default: the server's
    /// name. Empty: no prefix. At most 32 characters. It must not be confusable with the prefix of
    /// another server.
    pub prefix: Option<String>,
    /// Environment variables in plain text.
    pub env: BTreeMap<String, String>,
    /// Secrets of the server, delivered as environment variables or as files. The `secrets`
    /// interceptor searches all messages for them.
    pub secrets: BTreeMap<String, ServerSecret>,
    /// Secret headers sent to a `url`.
    pub headers: BTreeMap<String, ServerHeader>,
    /// Restart the server when a secret changes that it has in its environment or in a header. If
    /// false, the server keeps the old secret until its next start, and the log reports that.
    /// Secrets as files change in place.
    pub restart_on_rotation: bool,
    /// Mounted folders of the host: `SOURCE:TARGET` (read-only) or `SOURCE:TARGET:rw`.
    pub mounts: Vec<MountEntry>,
    pub resources: Resources,
    /// Hosts that the server may reach, through the egress proxy of Portcullis. Default: none.
    /// Policies decide each connection (`egress`), and each is recorded. `api.example.com:443` is
    /// TLS for exactly that name, `http://example.com:80` HTTP in clear text,
    /// `tcp://db.example.com:5432` any other protocol, `*.example.com:443` every name below. A name
    /// that resolves to a private network is refused unless the entry has its address:
    /// `git.example.com:443=10.0.0.5`.
    #[schemars(length(max = 200))]
    pub egress: Vec<portcullis_egress::Destination>,
    pub egress_limits: EgressLimits,
    /// Deviations from the hardened profile, one key each.
    pub hardening: Hardening,
    pub era: Era,
    /// Seconds for the server to start and complete the handshake.
    #[schemars(range(min = 1))]
    pub start_timeout_s: u64,
    /// Timeout of one call in seconds.
    #[schemars(range(min = 1))]
    pub call_timeout_s: u64,
    /// Seconds without a call after which an instance is stopped; 0 disables it. An instance with
    /// resource subscriptions is not idle. The shared instance of a remote server is not stopped.
    pub idle_stop_s: u64,
    /// Health-check interval in seconds; 0 disables it. The request is `ping`, or `server/discover`
    /// in revision 2026-07-28. An instance that does not answer is stopped and replaced. Health
    /// checks do not count as activity for `idle-stop-s`.
    pub health_s: u64,
    /// Timeout of a health check in seconds. While calls from before the check are in flight, the
    /// timeout is extended.
    #[schemars(range(min = 1))]
    pub health_timeout_s: u64,
    /// Maximum number of calls in flight on one instance. Further calls wait in the queue. From 8
    /// on, one client has at most seven eighths of them.
    #[schemars(range(min = 1))]
    pub concurrent: usize,
    /// Maximum number of calls in the queue of one instance. A call waits up to 10 seconds. Clients
    /// take turns, and one client has at most half of the queue. Further calls are refused.
    pub queue: usize,
    pub sharing: Sharing,
    /// Maximum number of dedicated instances. One client has at most a quarter of them. Beyond the
    /// limit, a legacy session uses the shared instance, which cannot send server requests, and a
    /// client of revision 2026-07-28 is refused.
    #[schemars(range(min = 1))]
    pub instances: usize,
    /// Number of processes kept started in advance (warm pool), so that a client that needs a
    /// dedicated instance does not wait for a start. At most 16.
    #[schemars(range(max = 16))]
    pub warm: usize,
    /// Maximum number of shared instances. Each call goes to the one with the fewest calls in
    /// flight. For stateless servers only. Further replicas start when all are busy. At most 16.
    #[schemars(range(min = 1, max = 16))]
    pub replicas: usize,
    /// Your claims about single tools, by their names on the server.
    pub tools: BTreeMap<String, Tool>,
}

impl Default for Server {
    fn default() -> Self {
        Self {
            enabled: true,
            image: None,
            signed_by: Vec::new(),
            command: None,
            url: None,
            transport: Transport::default(),
            runtime: Runtime::default(),
            pod_socket: None,
            prefix: None,
            env: BTreeMap::new(),
            secrets: BTreeMap::new(),
            headers: BTreeMap::new(),
            restart_on_rotation: false,
            mounts: Vec::new(),
            resources: Resources::default(),
            egress: Vec::new(),
            egress_limits: EgressLimits::default(),
            hardening: Hardening::default(),
            era: Era::default(),
            start_timeout_s: 60,
            call_timeout_s: 60,
            idle_stop_s: 900,
            health_s: 0,
            health_timeout_s: 10,
            concurrent: 64,
            queue: 64,
            sharing: Sharing::default(),
            instances: 64,
            warm: 0,
            replicas: 1,
            tools: BTreeMap::new(),
        }
    }
}

/// Transport to a remote server.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Transport {
    /// Streamable HTTP; HTTP+SSE for servers that do not support it.
    #[default]
    Auto,
    StreamableHttp,
    /// HTTP+SSE of revision 2024-11-05; `url` is the URL of the event stream.
    Sse,
}

/// Runtime of a server.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Runtime {
    /// A container built from the program and its libraries, if an engine is available and the
    /// program is an executable that can be packed. Else the local sandbox.
    #[default]
    Auto,
    Container,
    /// A container under gVisor, whose kernel isolates the server from the kernel of the machine.
    /// The engine must have the OCI runtime `runsc`. `egress` is not available.
    Runsc,
    Sandbox,
}

impl Runtime {
    /// Name of the OCI runtime, if the engine must not use its default.
    pub fn oci(self) -> Option<&'static str> {
        (self == Self::Runsc).then_some("runsc")
    }
}

/// Protocol era of a server.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Era {
    /// Try `server/discover`, then `initialize`.
    #[default]
    Auto,
    Legacy,
    Modern,
}

/// Sharing of instances among clients.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Sharing {
    /// All clients share one instance. A client that declares sampling, elicitation or roots has
    /// its own instance of a legacy server. With `by-client` secrets: the same as `per-client`.
    #[default]
    Auto,
    /// All clients share one instance. The server cannot send server requests.
    Shared,
    /// Each client has its own instance, in both eras. If a legacy server may send server requests,
    /// each session of the client has its own instance, and so has each set of capabilities of a
    /// client without sessions. Callers with neither key nor session count as one client.
    PerClient,
    /// Each legacy session has its own instance. Clients of revision 2026-07-28 have no sessions:
    /// the same as `per-client`.
    PerSession,
}

impl Sharing {
    /// Whether clients never share an instance. The shared instance then only serves lists.
    pub fn keeps_apart(self) -> bool {
        matches!(self, Self::PerClient | Self::PerSession)
    }
}

/// Limits of the egress connections of one process of a server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct EgressLimits {
    /// Maximum number of concurrent connections.
    #[schemars(range(min = 1, max = 4096))]
    pub connections: usize,
    /// Maximum number of connection attempts per second, on average.
    #[schemars(range(min = 1, max = 10000))]
    pub attempts_per_s: u32,
    /// Seconds without data in either direction after which a connection is closed.
    #[schemars(range(min = 1, max = 86400))]
    pub idle_s: u64,
}

impl Default for EgressLimits {
    fn default() -> Self {
        Self { connections: 64, attempts_per_s: 20, idle_s: 300 }
    }
}

impl EgressLimits {
    /// The limits in the form of the egress proxy.
    pub fn limits(&self) -> portcullis_egress::Limits {
        let default = portcullis_egress::Limits::default();
        portcullis_egress::Limits {
            connections: self.connections,
            attempts: self.attempts_per_s.try_into().unwrap_or(default.attempts),
            idle: Duration::from_secs(self.idle_s),
            ..default
        }
    }
}

/// Source of a secret of a server, and its delivery.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct ServerSecret {
    /// Reference to the secret. With `by-client`: the value for all other clients, and for the
    /// instance that serves lists. If absent, these have no value.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// References for single clients, by client name; the user who runs the proxy is `local:USER`.
    /// Each client then has its own instance. Calls of a client with a value neither here nor in
    /// `from` are refused (`secret-unavailable`).
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub by_client: BTreeMap<String, String>,
    /// Delivery to the server.
    #[serde(rename = "as", default)]
    pub delivery: SecretDeliveryMethod,
}

/// Source of a secret header.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct ServerHeader {
    /// Reference to the secret. With `by-client`: the value for all other clients, and for requests
    /// of lists. If absent, these have no value.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// References for single clients, by client name, as in `[servers.NAME.secrets.NAME]`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub by_client: BTreeMap<String, String>,
}

/// Secret of a server, for any kind of delivery.
#[derive(Debug, Clone, Copy)]
pub struct SecretBinding<'a> {
    /// Name under which the server gets the secret.
    pub name: &'a str,
    /// Reference for clients without their own.
    pub from: Option<&'a str>,
    /// References by client name.
    pub by_client: &'a BTreeMap<String, String>,
    /// Delivery to the process; `None` for a header.
    pub delivery: Option<SecretDeliveryMethod>,
}

impl<'a> SecretBinding<'a> {
    /// Key of the server's table that contains the secret.
    pub fn table(&self) -> &'static str {
        if self.delivery.is_some() { "secrets" } else { "headers" }
    }

    /// All references, with the client for those of one client.
    pub fn references(self) -> impl Iterator<Item = (Option<&'a str>, &'a str)> {
        let own = self.by_client.iter().map(|(client, from)| (Some(&**client), &**from));
        self.from.map(|from| (None, from)).into_iter().chain(own)
    }
}

impl Server {
    /// All secrets of the server, including headers.
    pub fn secret_bindings(&self) -> impl Iterator<Item = SecretBinding<'_>> {
        let secrets = self.secrets.iter().map(|(name, secret)| SecretBinding {
            name,
            from: secret.from.as_deref(),
            by_client: &secret.by_client,
            delivery: Some(secret.delivery),
        });
        let headers = self.headers.iter().map(|(name, header)| SecretBinding {
            name,
            from: header.from.as_deref(),
            by_client: &header.by_client,
            delivery: None,
        });
        secrets.chain(headers)
    }

    /// Whether clients have different secrets, so that they cannot share an instance.
    pub fn has_secrets_by_client(&self) -> bool {
        self.secret_bindings().any(|binding| !binding.by_client.is_empty())
    }

    /// All references of the server.
    pub fn references_mut(&mut self) -> impl Iterator<Item = &mut String> {
        let secrets = self.secrets.values_mut().map(|one| (&mut one.from, &mut one.by_client));
        let headers = self.headers.values_mut().map(|one| (&mut one.from, &mut one.by_client));
        secrets.chain(headers).flat_map(|(from, own)| from.iter_mut().chain(own.values_mut()))
    }
}

/// Whether the text is a valid key of `by-client`: the name of a client, or `local:USER`.
pub fn is_client(name: &str) -> bool {
    match name.strip_prefix("local:") {
        Some(user) => !user.is_empty() && !user.contains(|c: char| c.is_control() || c == ':'),
        None => name.parse::<ClientName>().is_ok(),
    }
}

/// Delivery of a secret to a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum SecretDeliveryMethod {
    /// An environment variable with the secret's name. Processes of the same user, and users with
    /// access to the container engine, can read it.
    #[default]
    Env,
    /// The file `/run/secrets/NAME`, in memory and visible only to the server. The environment
    /// variable `NAME_FILE` has its path.
    File,
}

/// Whether the text is a valid name of an environment variable.
pub fn is_env_name(name: &str) -> bool {
    name.bytes()
        .enumerate()
        .all(|(at, b)| b == b'_' || b.is_ascii_alphabetic() || (at > 0 && b.is_ascii_digit()))
        && !name.is_empty()
}
