//! The shape of `portcullis.toml`. `portcullis schema config` prints it as JSON Schema.

mod audit;
mod ceilings;
mod listen;

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use indexmap::IndexMap;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use audit::{
    Audit, Begin, Checkpoint, Destination, Encryption, Export, OnFailure, Retention, Witness,
};
pub use ceilings::{Ceilings, Loosening};
pub use listen::{ClientAddressSource, ConnectionBounds, ConnectionLimits, Listen};

use super::{InterceptorEntry, MountEntry, SecretRef, ServerHeader, ServerSecret};
use crate::{
    admin::Roles,
    chain::Mode,
    egress,
    names::{ClientName, Group, ServerName, SignerName},
};

/// The whole file. Relative paths are relative to the file.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Config {
    #[serde(default)]
    pub listen: Listen,
    /// Where the proxy keeps its audit store, client keys and local socket. Default: `.portcullis`
    /// beside the config.
    #[serde(default = "default_state_dir")]
    pub state_dir: PathBuf,
    #[serde(default)]
    pub policy: Policy,
    #[serde(default)]
    pub audit: Audit,
    #[serde(default)]
    pub admin: Admin,
    #[serde(default)]
    pub approvals: Approvals,
    #[serde(default)]
    pub limits: Limits,
    #[serde(default)]
    pub telemetry: Telemetry,
    #[serde(default)]
    pub engine: Engine,
    #[serde(default)]
    pub registries: Registries,
    /// Whose signatures of images count. Each image of a server that has a digest and a registry is
    /// looked at before it is started, once, and policies are told who signed it.
    #[serde(default)]
    pub signers: BTreeMap<SignerName, Signer>,
    /// Who may connect, beside those of `portcullis client add`.
    #[serde(default)]
    pub clients: BTreeMap<ClientName, Client>,
    /// The servers behind the proxy, in the order in which lists show them.
    #[serde(default)]
    pub servers: IndexMap<ServerName, Server>,
    /// The chain, in order. Policy and audit are always in it and need no entry. `rate-limit`,
    /// `schema` and `secrets` are in it with their defaults unless an entry with the same `use` takes
    /// the place of the default: with other settings, or with `mode = "off"`.
    #[serde(default)]
    pub interceptors: Vec<InterceptorEntry>,
}

/// The state folder of a config that names none.
pub(super) const STATE_DIR: &str = ".portcullis";

fn default_state_dir() -> PathBuf {
    STATE_DIR.into()
}

/// Calls that wait for a person, where a policy says `@approve`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Approvals {
    /// Seconds after which a call that nobody allowed is refused.
    #[schemars(range(min = 1, max = 86400))]
    pub timeout_s: u64,
    /// Calls of one client that may wait at once.
    #[schemars(range(min = 1, max = 1000))]
    pub per_client: usize,
    pub webhook: Option<Webhook>,
}

impl Default for Approvals {
    fn default() -> Self {
        Self { timeout_s: 300, per_client: 10, webhook: None }
    }
}

/// A URL that is told of each call that waits, and may say in its answer what becomes of it.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Webhook {
    /// It takes the call as JSON in the body of a POST.
    pub url: String,
    /// Secret headers sent to it.
    #[serde(default)]
    pub headers: BTreeMap<String, SecretRef>,
}

/// Where the Cedar policies are.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Policy {
    /// Files, and folders whose `*.cedar` and `*.tools.json` files are read (not those in folders
    /// within).
    pub paths: Vec<PathBuf>,
    /// A folder that `portcullis policy bundle sign` signed, instead of `paths`: policies are taken
    /// from it as they were signed, or not at all.
    pub bundle: Option<PathBuf>,
    /// Verifier keys, `NAME+HASH+BASE64`, as `portcullis policy bundle key` prints them. One of them
    /// must have signed the bundle, whose name is the key's.
    pub bundle_keys: Vec<String>,
}

impl Default for Policy {
    fn default() -> Self {
        Self { paths: vec!["policies".into()], bundle: None, bundle_keys: Vec::new() }
    }
}

/// The operator's way into the running proxy, over a local socket.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Admin {
    /// A second socket, for users who have a role: nobody but root and the user who runs the proxy
    /// gets to the one in the state folder. Its folder must be one that others can't write to.
    pub socket: Option<PathBuf>,
    pub roles: Roles,
}

/// What is taken of one message, one client and one session.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Limits {
    /// Bytes of one message of a client.
    #[schemars(range(min = 1))]
    pub request_bytes: usize,
    /// Bytes of one message of a server.
    #[schemars(range(min = 1))]
    pub response_bytes: usize,
    /// Nesting of arrays and objects in a message.
    #[schemars(range(min = 4, max = 1000))]
    pub depth: usize,
    /// Values in a message, keys included.
    #[schemars(range(min = 1))]
    pub nodes: usize,
    /// Keys of one object in a message of a client or a server. Elements of arrays are not keys.
    #[schemars(range(min = 8))]
    pub object_keys: usize,
    /// Keys in one message of a client, over all its objects.
    #[schemars(range(min = 8))]
    pub request_keys: usize,
    /// Keys in one message of a server, over all its objects.
    #[schemars(range(min = 8))]
    pub response_keys: usize,
    /// Bytes of memory for large messages of clients, over all clients: bodies while they arrive, and
    /// messages until they are answered. One client has at most a quarter. What is beyond is refused
    /// with `rate-limited`. Messages of up to 32 KiB do not count.
    #[schemars(range(min = 1))]
    pub message_memory_bytes: usize,
    /// Exchanges that one principal may have under way at once.
    #[schemars(range(min = 1))]
    pub concurrent: usize,
    /// Legacy sessions at once, over all clients.
    #[schemars(range(min = 1))]
    pub sessions: usize,
    /// Seconds after which an unused legacy session ends.
    #[schemars(range(min = 1))]
    pub session_idle_s: u64,
    /// Seconds that a client may take to answer what a server asks it.
    #[schemars(range(min = 1, max = 3600))]
    pub question_s: u64,
    /// Items on one page of a list. Clients that ask for no further page see the first alone.
    #[schemars(range(min = 1))]
    pub page: usize,
    pub connections: ConnectionLimits,
    pub servers: Ceilings,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            request_bytes: 4 << 20,
            response_bytes: 64 << 20,
            depth: 64,
            nodes: 1_000_000,
            object_keys: 10_000,
            request_keys: 50_000,
            response_keys: 500_000,
            message_memory_bytes: 512 << 20,
            concurrent: 256,
            sessions: 10_000,
            session_idle_s: 3_600,
            question_s: 300,
            page: 250,
            connections: ConnectionLimits::default(),
            servers: Ceilings::default(),
        }
    }
}

/// Logs and metrics.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Telemetry {
    pub log_format: LogFormat,
    /// A filter such as `info` or `portcullis=debug`. `PORTCULLIS_LOG` overrides it.
    pub log: Option<String>,
    /// Clients that may read `/metrics` over TCP, each with its key as a bearer token (`portcullis
    /// client add prometheus`). None by default: then only the local socket serves it.
    pub metrics_clients: Vec<ClientName>,
}

/// How log lines are written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum LogFormat {
    /// JSON unless standard error is a terminal.
    #[default]
    Auto,
    Text,
    Json,
}

/// The container engine.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Engine {
    /// The engine's socket: `unix:///var/run/docker.sock`. Default: `DOCKER_HOST`, else Docker's
    /// usual sockets.
    pub host: Option<String>,
}

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

/// One client with a key.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Client {
    /// `sha256:` and the SHA-256 of the key in hex, as `portcullis client add` prints it.
    pub key_hash: String,
    /// Groups for policies: `principal in Portcullis::Group::"NAME"`.
    #[serde(default)]
    pub groups: Vec<Group>,
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
    /// is decided by policies (`reach`) and recorded. `api.example.com:443` is TLS for that very name,
    /// `http://example.com:80` HTTP in clear text, `tcp://db.example.com:5432` anything else,
    /// `*.example.com:443` every name below. A name that leads to a private network is refused unless
    /// its address is written behind it: `git.example.com:443=10.0.0.5`.
    #[schemars(length(max = 200))]
    pub egress: Vec<egress::Destination>,
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

/// What the operator says of a tool, in the place of all that the server claims of it
/// (`resource.claims` in policies, then with `by == "operator"`). What is left out has MCP's
/// default: not read-only, destructive unless it is read-only, not idempotent, open world.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Tool {
    /// It changes nothing.
    pub read_only: Option<bool>,
    /// It can destroy something.
    pub destructive: Option<bool>,
    /// Calling it again with the same arguments changes nothing more.
    pub idempotent: Option<bool>,
    /// It deals with a world that is open: the web, mail, other people.
    pub open_world: Option<bool>,
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

/// Ceilings for one server's process.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Resources {
    /// MiB of memory (and swap together).
    #[schemars(range(min = 8))]
    pub memory_mib: u64,
    /// Processors.
    #[schemars(range(min = 0.01, max = 1024.0))]
    pub cpus: f64,
    /// Processes and threads.
    #[schemars(range(min = 1))]
    pub pids: u32,
    /// MiB of `/tmp`, which is in memory and counts as such.
    #[schemars(range(min = 1, max = 1024))]
    pub tmp_mib: u64,
    /// Open files of one process.
    #[schemars(range(min = 64, max = 65_536))]
    pub files: u32,
}

impl Default for Resources {
    fn default() -> Self {
        Self { memory_mib: 512, cpus: 1.0, pids: 128, tmp_mib: 64, files: 1024 }
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
    pub fn limits(&self) -> egress::Limits {
        let default = egress::Limits::default();
        egress::Limits {
            connections: self.connections,
            attempts: self.attempts_per_s.try_into().unwrap_or(default.attempts),
            idle: Duration::from_secs(self.idle_s),
            ..default
        }
    }
}

/// Deviations from the hardened default profile. Each is off by default and shows in
/// `portcullis server inspect`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Hardening {
    /// Attach the engine's default network (a sandbox: the host's).
    pub network: bool,
    /// A writable root file system.
    pub writable_root: bool,
    /// Run as `UID:GID` instead of 65534:65534.
    pub user: Option<String>,
    /// Capabilities to add, such as `CAP_NET_BIND_SERVICE`.
    pub cap_add: Vec<String>,
    /// Allow programs in /tmp to be executed; in the sandbox also those in writable mounts.
    pub exec_tmp: bool,
}

/// What every entry of the chain may say.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct EntrySettings {
    /// The name in records and refusals. Default: the value of `use`.
    pub name: Option<String>,
    pub mode: Mode,
    /// Let a message pass when this interceptor fails.
    pub fail_open: bool,
    /// Milliseconds for one verdict. Default 1000.
    #[schemars(range(min = 1))]
    pub deadline_ms: Option<u64>,
    /// Ask only for these methods (a narrowing of the interceptor's own hooks).
    pub events: Option<Vec<String>>,
}
