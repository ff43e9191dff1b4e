//! Structure of `portcullis.toml`. `portcullis schema config` prints it as JSON Schema.

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

/// Top level of the file. Relative paths are relative to the file.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Config {
    #[serde(default)]
    pub listen: Listen,
    /// State folder: audit store, client keys and local socket. Default: `.portcullis` next to the
    /// config.
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
    /// Signers of images that you trust. Before an image with a digest and a registry starts for
    /// the first time, the proxy verifies its signatures, once. Policies receive the names of the
    /// signers.
    #[serde(default)]
    pub signers: BTreeMap<SignerName, Signer>,
    /// Clients that may connect, in addition to those of `portcullis client add`.
    #[serde(default)]
    pub clients: BTreeMap<ClientName, Client>,
    /// Servers behind the proxy, in the order of merged lists.
    #[serde(default)]
    pub servers: IndexMap<ServerName, Server>,
    /// Interceptors of the chain, in order. Policy and audit are always in the chain and need no
    /// entry. `rate-limit`, `schema` and `secrets` are in the chain with their defaults. An entry
    /// with the same `use` replaces the default; `mode = "off"` removes it.
    #[serde(default)]
    pub interceptors: Vec<InterceptorEntry>,
}

impl Config {
    /// Operator's claims about the tools of each server.
    pub fn tools(&self) -> impl Iterator<Item = (&ServerName, &BTreeMap<String, Tool>)> {
        self.servers.iter().map(|(name, server)| (name, &server.tools))
    }
}

/// Default of `state-dir`.
pub(super) const STATE_DIR: &str = ".portcullis";

fn default_state_dir() -> PathBuf {
    STATE_DIR.into()
}

/// Calls that wait for the approval of a person, because a policy has `@approve`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Approvals {
    /// Seconds to wait for a decision. After that, the call is refused.
    #[schemars(range(min = 1, max = 86400))]
    pub timeout_s: u64,
    /// Maximum number of calls of one client that wait at the same time.
    #[schemars(range(min = 1, max = 1000))]
    pub per_client: usize,
    pub webhook: Option<Webhook>,
}

impl Default for Approvals {
    fn default() -> Self {
        Self { timeout_s: 300, per_client: 10, webhook: None }
    }
}

/// Webhook that receives each waiting call. Its response may allow or deny the call.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Webhook {
    /// URL that receives the call as JSON in the body of a POST request.
    pub url: String,
    /// Secret headers of the request.
    #[serde(default)]
    pub headers: BTreeMap<String, SecretRef>,
}

/// Admin interface of the running proxy, on a local socket.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Admin {
    /// Path of a second socket, for users with a role. Only root and the user who runs the proxy
    /// can open the socket in the state folder. Other users must not have write access to the
    /// folder of the second socket.
    pub socket: Option<PathBuf>,
    pub roles: Roles,
}

/// Limits of messages, clients and sessions.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Limits {
    /// Maximum size in bytes of one message of a client.
    #[schemars(range(min = 1))]
    pub request_bytes: usize,
    /// Maximum size in bytes of one message of a server.
    #[schemars(range(min = 1))]
    pub response_bytes: usize,
    /// Maximum nesting depth of arrays and objects in a message.
    #[schemars(range(min = 4, max = 1000))]
    pub depth: usize,
    /// Maximum number of values in a message, including keys.
    #[schemars(range(min = 1))]
    pub nodes: usize,
    /// Maximum number of keys of one object in a message of a client or a server. Elements of
    /// arrays are not keys.
    #[schemars(range(min = 8))]
    pub object_keys: usize,
    /// Maximum number of keys in one message of a client, over all its objects.
    #[schemars(range(min = 8))]
    pub request_keys: usize,
    /// Maximum number of keys in one message of a server, over all its objects.
    #[schemars(range(min = 8))]
    pub response_keys: usize,
    /// Bytes of memory for large messages, over all clients: bodies while they arrive, and messages
    /// until their response. One client uses at most a quarter. Messages beyond the limit are
    /// refused with `rate-limited`. Messages of up to 32 KiB do not count.
    #[schemars(range(min = 1))]
    pub message_memory_bytes: usize,
    /// Maximum number of exchanges of one principal in flight.
    #[schemars(range(min = 1))]
    pub concurrent: usize,
    /// Maximum number of open legacy sessions, over all clients. A further session ends the
    /// longest-idle one, of callers without a key first, then of the client with the most. It is
    /// refused only if all sessions are in use. Callers without a key have at most nine tenths of
    /// the sessions.
    #[schemars(range(min = 1))]
    pub sessions: usize,
    /// Maximum number of open legacy sessions of one client, or of one network of callers without a
    /// key (an IPv4 address or an IPv6 /64). Default: a tenth of `sessions`. A further session ends
    /// the client's longest-idle one.
    #[schemars(range(min = 1))]
    pub sessions_per_client: Option<usize>,
    /// Seconds without use after which a legacy session ends.
    #[schemars(range(min = 1))]
    pub session_idle_s: u64,
    /// Seconds for a client to answer a server request.
    #[schemars(range(min = 1, max = 3600))]
    pub question_s: u64,
    /// Items on one page of a list. A client that does not request further pages sees only the
    /// first one.
    #[schemars(range(min = 1))]
    pub page: usize,
    pub connections: ConnectionLimits,
    pub servers: Ceilings,
}

impl Limits {
    /// Limits of a client's message.
    pub fn request_caps(&self) -> Caps {
        Caps {
            bytes: self.request_bytes,
            depth: self.depth,
            nodes: self.nodes,
            keys: self.request_keys,
            object_keys: self.object_keys,
        }
    }

    /// Limits of a server's message.
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
            sessions_per_client: None,
            session_idle_s: 3_600,
            question_s: 300,
            page: 250,
            connections: ConnectionLimits::default(),
            servers: Ceilings::default(),
        }
    }
}

/// Container engine.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Engine {
    /// Socket of the engine, such as `unix:///var/run/docker.sock`. Default: `DOCKER_HOST`, else
    /// Docker's usual sockets.
    pub host: Option<String>,
}
