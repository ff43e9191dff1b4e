//! The shape of `portcullis.toml`. `portcullis schema config` prints it as JSON Schema.

mod ceilings;
mod listen;

use std::{collections::BTreeMap, path::PathBuf};

use indexmap::IndexMap;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use ceilings::{Ceilings, Loosening};
pub use listen::{ClientAddressSource, ConnectionBounds, ConnectionLimits, Listen};

use portcullis_audit::config::Audit;
use portcullis_interceptors::InterceptorEntry;
use portcullis_policy::{Policy, Tool};
use portcullis_protocol::{
    codec::Caps,
    identity::{Client, Roles},
    names::{ClientName, ServerName, SignerName},
};
use portcullis_telemetry::Telemetry;
use portcullis_upstream::config::{Registries, Server, Signer};
use portcullis_vault::SecretRef;

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

impl Config {
    /// What the operator says of the servers' tools.
    pub fn tools(&self) -> impl Iterator<Item = (&ServerName, &BTreeMap<String, Tool>)> {
        self.servers.iter().map(|(name, server)| (name, &server.tools))
    }
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

impl Limits {
    /// What is taken of a client's message.
    pub fn request_caps(&self) -> Caps {
        Caps {
            bytes: self.request_bytes,
            depth: self.depth,
            nodes: self.nodes,
            keys: self.request_keys,
            object_keys: self.object_keys,
        }
    }

    /// What is taken of a server's message.
    pub fn response_caps(&self) -> Caps {
        Caps {
            bytes: self.response_bytes,
            depth: self.depth,
            nodes: self.nodes,
            keys: self.response_keys,
            object_keys: self.object_keys,
        }
    }
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

/// The container engine.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Engine {
    /// The engine's socket: `unix:///var/run/docker.sock`. Default: `DOCKER_HOST`, else Docker's
    /// usual sockets.
    pub host: Option<String>,
}
