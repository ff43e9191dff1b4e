//! The sections of servers, registries and signers in the config.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use portcullis_policy::Tool;
use portcullis_protocol::names::{ClientName, SignerName};
use portcullis_runtime::config::{Hardening, MountEntry, Resources};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How OCI registries are asked. Logins are those of `docker login`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Registries {
    /// Hosts, with their ports, that are asked without TLS, which shows a login for them to the
    /// network between. Those of this machine are, unless there is a `ca-file`.
    pub plain_http: Vec<String>,
    /// Certificates of authorities that registries may have beside those of the system, in PEM.
    pub ca_file: Option<PathBuf>,
    /// Seconds for all that is asked for one artifact.
    #[schemars(range(min = 1, max = 3600))]
    pub deadline_s: u64,
    /// Seconds for the engine to pull one image.
    #[schemars(range(min = 1, max = 86400))]
    pub pull_deadline_s: u64,
    /// MiB that an image may have, packed as its registry has it.
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

/// Somebody whose signatures count: the holder of a key, or an identity that was let in by an issuer
/// and got a certificate for it (Sigstore's "keyless" signing).
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Signer {
    /// The file of a public key in PEM: ECDSA (P-256, P-384), Ed25519 or RSA.
    pub key: Option<PathBuf>,
    /// The URL of the OpenID Connect issuer that let them in.
    pub issuer: Option<String>,
    /// As whom: an e-mail address, or a URI. `*` stands for any text without `/` and `@`, `**` for any
    /// text: `https://github.com/acme/*/.github/workflows/release.yml@refs/tags/*`.
    pub subject: Option<String>,
    /// The file of the authorities and logs that vouch for it: Sigstore's `trusted_root.json`. With a
    /// `key`, signatures count only where its transparency log has them.
    pub trusted_root: Option<PathBuf>,
}

/// One server: an `image`, a `command` or a `url`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Server {
    /// A container image: by digest (`name@sha256:…`), by tag (`registry/name:tag`, resolved once into
    /// the lock file), or by a local image id (`sha256:…`).
    pub image: Option<String>,
    /// Who has to have signed the `image`: names of `[signers]`, of which one is enough.
    pub signed_by: Vec<SignerName>,
    /// A program and its arguments. With `image`: arguments for the image's entry point.
    pub command: Option<Vec<String>>,
    /// A remote server's endpoint.
    pub url: Option<String>,
    /// What is spoken to a `url`.
    pub transport: Transport,
    /// Where it runs. With `image`: `runsc`, or nothing.
    pub runtime: Runtime,
    /// The socket of `portcullis pod-exec`, which starts the program of `image` in another container
    /// of the proxy's own pod. `server export k8s` writes it, with the pod, which confines the program:
    /// to policies that is a deviation, `pod-socket`. Here, `mounts`, `egress`, `hardening` and
    /// `resources` (but for `files`) only tell policies what the pod gives it.
    pub pod_socket: Option<PathBuf>,
    /// What stands before the server's names in the merged lists, with `__` between. Default: the
    /// server's name. Empty: nothing. At most 32 characters; one server's must not be taken for
    /// another's.
    pub prefix: Option<String>,
    /// Plain environment.
    pub env: BTreeMap<String, String>,
    /// Secrets that it is handed, as environment or as files. The `secrets` interceptor looks for them
    /// in all messages.
    pub secrets: BTreeMap<String, ServerSecret>,
    /// Secret headers sent to a `url`.
    pub headers: BTreeMap<String, ServerHeader>,
    /// Start it anew when a secret changes that it has in its environment or in a header. Else it goes
    /// on with the old one until its next start, which is told in the log. Files change in place.
    pub restart_on_rotation: bool,
    /// Host folders: `SOURCE:TARGET` (read-only) or `SOURCE:TARGET:rw`.
    pub mounts: Vec<MountEntry>,
    pub resources: Resources,
    /// Hosts that the server may reach, through a proxy end of ours; none by default. Each connection
    /// is decided by policies (`egress`) and recorded. `api.example.com:443` is TLS for that very name,
    /// `http://example.com:80` HTTP in clear text, `tcp://db.example.com:5432` anything else,
    /// `*.example.com:443` every name below. A name that leads to a private network is refused unless
    /// its address is written behind it: `git.example.com:443=10.0.0.5`.
    #[schemars(length(max = 200))]
    pub egress: Vec<portcullis_egress::Destination>,
    pub egress_limits: EgressLimits,
    /// Deviations from the hardened default profile, each with its own line.
    pub hardening: Hardening,
    pub era: Era,
    /// Seconds for the server to start and greet.
    #[schemars(range(min = 1))]
    pub start_timeout_s: u64,
    /// Seconds for one call.
    #[schemars(range(min = 1))]
    pub call_timeout_s: u64,
    /// Seconds without a call after which an instance is stopped. 0: never. One in which resources
    /// are watched is not idle, and the common one of a remote server is not stopped.
    pub idle_stop_s: u64,
    /// Seconds between questions to a running instance whether it still answers (`ping`, or
    /// `server/discover` in revision 2026-07-28). 0: it is not asked. One that does not answer is ended
    /// and another started in its place; to be asked keeps no idle one alive.
    pub health_s: u64,
    /// Seconds that it may take to answer that, beside the calls that it was given before.
    #[schemars(range(min = 1))]
    pub health_timeout_s: u64,
    /// Calls under way at once on one instance; more are refused.
    #[schemars(range(min = 1))]
    pub concurrent: usize,
    pub sharing: Sharing,
    /// Instances for single clients at once. Beyond that, a legacy session shares the common one,
    /// which can ask it nothing, and a client of 2026-07-28 is refused. One client has at most a
    /// quarter of them.
    #[schemars(range(min = 1))]
    pub instances: usize,
    /// Processes that are started ahead and wait for their first word, so that a client that needs
    /// an instance does not wait for a start. At most 16.
    #[schemars(range(max = 16))]
    pub warm: usize,
    /// Instances among which the calls of clients that share one are divided, each to that with the
    /// least under way: for servers that keep nothing between calls. Further ones are started as
    /// all are busy. At most 16.
    #[schemars(range(min = 1, max = 16))]
    pub replicas: usize,
    /// What the operator knows of single tools, by their names on the server.
    pub tools: BTreeMap<String, Tool>,
}

impl Default for Server {
    fn default() -> Self {
        Self {
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
            sharing: Sharing::default(),
            instances: 64,
            warm: 0,
            replicas: 1,
            tools: BTreeMap::new(),
        }
    }
}

/// What is spoken to a remote server.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Transport {
    /// Streamable HTTP, and HTTP+SSE with servers that do not take that.
    #[default]
    Auto,
    StreamableHttp,
    /// HTTP+SSE, as revision 2024-11-05 has it: `url` is that of the event stream.
    Sse,
}

/// Where a server runs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Runtime {
    /// In a container made of the program and its libraries where an engine answers and the
    /// program is an executable that can be packed; else in the local sandbox.
    #[default]
    Auto,
    Container,
    /// In a container under gVisor, whose kernel stands between the server and the machine's: the
    /// engine must have the OCI runtime `runsc`. Without `egress`, which does not get there.
    Runsc,
    Sandbox,
}

impl Runtime {
    /// The OCI runtime that the engine is asked for by name.
    pub fn oci(self) -> Option<&'static str> {
        (self == Self::Runsc).then_some("runsc")
    }
}

/// The protocol era in which a server is addressed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Era {
    /// Ask with `server/discover`, fall back to `initialize`.
    #[default]
    Auto,
    Legacy,
    Modern,
}

/// Who shares an instance of a server.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Sharing {
    /// All clients share one, but for those that the server may ask something (samples of a model,
    /// the user's input, roots): each of those has its own where the server is a legacy one. Where
    /// secrets differ by client (`by-client`), it means `per-client`.
    #[default]
    Auto,
    /// All clients share one, and the server can ask nobody anything.
    Shared,
    /// Each client has one of its own, whatever the server's era; so has each of its sessions, and
    /// each way in which a sessionless client can be asked, where a legacy server may ask
    /// something. Callers with neither key nor session are one client.
    PerClient,
    /// Each legacy session has one of its own; a client of 2026-07-28, which has no sessions, has
    /// one as with `per-client`.
    PerSession,
}

impl Sharing {
    /// Whether no two clients ever meet in one instance. The common one then only tells what the
    /// server offers.
    pub fn keeps_apart(self) -> bool {
        matches!(self, Self::PerClient | Self::PerSession)
    }
}

/// How much of what `egress` lists one process of a server may have.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct EgressLimits {
    /// Connections at once.
    #[schemars(range(min = 1, max = 4096))]
    pub connections: usize,
    /// Attempts a second, on the average.
    #[schemars(range(min = 1, max = 10000))]
    pub attempts_per_s: u32,
    /// Seconds without a byte in either direction after which a connection ends.
    #[schemars(range(min = 1, max = 86400))]
    pub idle_s: u64,
}

impl Default for EgressLimits {
    fn default() -> Self {
        Self { connections: 64, attempts_per_s: 20, idle_s: 300 }
    }
}

impl EgressLimits {
    /// As the proxy end takes them.
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

/// Where a secret of a server comes from, and how the server gets it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct ServerSecret {
    /// A reference, as for every secret. With `by-client`: what the clients have that are not named
    /// there, and the instance that tells what the server offers. Without it, those have none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// References for single clients, by their names; the user who runs the proxy is `local:USER`.
    /// Each client then has an instance of its own, and where neither this nor `from` has a value for
    /// one, its calls are refused (`secret-unavailable`).
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub by_client: BTreeMap<String, String>,
    /// How the server gets it.
    #[serde(rename = "as", default)]
    pub hand_over: SecretDeliveryMethod,
}

/// Where a secret header comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct ServerHeader {
    /// A reference, as for every secret. With `by-client`: what is sent for the clients that are not
    /// named there, and to learn what the server offers. Without it, nothing is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// References for single clients, by their names, as in `[servers.NAME.secrets.NAME]`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub by_client: BTreeMap<String, String>,
}

/// A secret of a server, whichever way it is handed over.
#[derive(Debug, Clone, Copy)]
pub struct SecretBinding<'a> {
    /// The name under which the server gets it.
    pub name: &'a str,
    /// What everybody has who is not named.
    pub from: Option<&'a str>,
    /// By the names of clients.
    pub by_client: &'a BTreeMap<String, String>,
    /// None for a header.
    pub hand_over: Option<SecretDeliveryMethod>,
}

impl<'a> SecretBinding<'a> {
    /// The key of the server's table in which it stands.
    pub fn table(&self) -> &'static str {
        if self.hand_over.is_some() { "secrets" } else { "headers" }
    }

    /// Every reference, with the client whose own it is.
    pub fn references(self) -> impl Iterator<Item = (Option<&'a str>, &'a str)> {
        let own = self.by_client.iter().map(|(client, from)| (Some(&**client), &**from));
        self.from.map(|from| (None, from)).into_iter().chain(own)
    }
}

impl Server {
    /// The secrets that it is handed, those that are sent as headers among them.
    pub fn given(&self) -> impl Iterator<Item = SecretBinding<'_>> {
        let secrets = self.secrets.iter().map(|(name, secret)| SecretBinding {
            name,
            from: secret.from.as_deref(),
            by_client: &secret.by_client,
            hand_over: Some(secret.hand_over),
        });
        let headers = self.headers.iter().map(|(name, header)| SecretBinding {
            name,
            from: header.from.as_deref(),
            by_client: &header.by_client,
            hand_over: None,
        });
        secrets.chain(headers)
    }

    /// Whether clients have secrets of their own there, so that they may not share an instance.
    pub fn has_secrets_by_client(&self) -> bool {
        self.given().any(|given| !given.by_client.is_empty())
    }

    /// Every reference that stands in it.
    pub fn references_mut(&mut self) -> impl Iterator<Item = &mut String> {
        let secrets = self.secrets.values_mut().map(|one| (&mut one.from, &mut one.by_client));
        let headers = self.headers.values_mut().map(|one| (&mut one.from, &mut one.by_client));
        secrets.chain(headers).flat_map(|(from, own)| from.iter_mut().chain(own.values_mut()))
    }
}

/// Whether that can be whose secret it is: the name of a client, or `local:USER`.
pub fn is_client(name: &str) -> bool {
    match name.strip_prefix("local:") {
        Some(user) => !user.is_empty() && !user.contains(|c: char| c.is_control() || c == ':'),
        None => name.parse::<ClientName>().is_ok(),
    }
}

/// How a server gets a secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum SecretDeliveryMethod {
    /// As a variable of its environment, by the secret's name. What runs beside it as its user, and
    /// whoever may ask the container engine, can read it there.
    #[default]
    Env,
    /// As the file `/run/secrets/NAME`, in memory, which only the server sees. The variable
    /// `NAME_FILE` of its environment says where it is.
    File,
}

/// Whether an environment can hold a variable of that name.
pub fn is_env_name(name: &str) -> bool {
    name.bytes()
        .enumerate()
        .all(|(at, b)| b == b'_' || b.is_ascii_alphabetic() || (at > 0 && b.is_ascii_digit()))
        && !name.is_empty()
}
