//! Events of servers: start, secrets, end and orphans.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::super::Orphan;
use super::{
    super::v1::{Era, Rule},
    ByHand,
};
use portcullis_protocol::claims::Attested;
use portcullis_protocol::names::DecisionId;

/// Kind of a server's runtime.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum PlaceKind {
    Container,
    Sandbox,
    Remote,
}

/// Event of a server that is about to start.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Launching {
    /// Id of the launch. All events of one launch have the same.
    #[schemars(with = "String", extend("format" = "uuid"))]
    pub launch: DecisionId,
    pub server: String,
    pub kind: PlaceKind,
    /// Image as written in the config, the program, or scheme, host and port of the URL.
    pub program: String,
    /// `sha256:…` of the image, from the config or the lock file, or of the program's file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<String>,
    /// Config keys of the deviations from the hardened profile.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub deviations: Vec<String>,
    /// Signers of the config that signed the image.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub signers: Vec<String>,
    /// Attestations of these signers.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub attested: Vec<Attested>,
    /// Client for which the dedicated instance starts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub principal: Option<String>,
    /// Policies that permit the start, the connection to the server, and each of its secrets.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rules: Vec<Rule>,
    /// Revision of the policies that decided.
    pub policy_revision: String,
}

/// Event of a start that policy does not permit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct LaunchRefused {
    #[schemars(with = "String", extend("format" = "uuid"))]
    pub launch: DecisionId,
    pub server: String,
    pub kind: PlaceKind,
    /// Client for which the dedicated instance was intended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub principal: Option<String>,
    /// Action that is not permitted: `launch`, `egress` or `deliver_secret`.
    pub action: String,
    /// Program, `HOST:PORT`, or name of the secret.
    pub target: String,
    /// Policies that forbid the action. Empty if no policy permits it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rules: Vec<Rule>,
    pub policy_revision: String,
}

/// Event of a started server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Launched {
    /// Same value as in its `server-launching`.
    #[schemars(with = "String", extend("format" = "uuid"))]
    pub launch: DecisionId,
    pub server: String,
    pub kind: PlaceKind,
    /// Instance: `container 0123456789ab`, `sandbox pid 42`, or scheme, host and port of the URL.
    pub place: String,
    /// Reason for this kind of runtime.
    pub reason: String,
    /// Program, for a sandbox.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub program: Option<String>,
    /// Image as named by the config, or by the packing of a program. For a container of a pod: as
    /// named by the config; only the cluster knows the image that runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image_ref: Option<String>,
    /// `sha256:` and the engine's digest of the running image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// Digest of the confinement settings, as in the container's label. Absent for a sandbox and
    /// for a container of a pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub profile: Option<String>,
    /// Deviations from the hardened profile: `FIELD: ACTUAL (CONFIG KEY)`. With `pod-socket`, these
    /// are the deviations in the config; the pod creates the container.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub deviations: Vec<String>,
    /// Whether a self-test ran inside, before the start of the program, and could reach nothing
    /// except `egress`. Servers without `egress` are not tested.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub egress_tried: bool,
    /// Client of the dedicated instance.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub principal: Option<String>,
    /// Protocol era of the handshake.
    pub era: Era,
    pub revision: String,
    /// Name and version that the server claims.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server_info: Option<String>,
    /// Microseconds until the server was ready.
    pub took_us: u64,
}

/// Event of a server that ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Stopped {
    /// Same value as in its `server-launching`.
    #[schemars(with = "String", extend("format" = "uuid"))]
    pub launch: DecisionId,
    pub server: String,
    /// Same value as in its `server-launched`.
    pub place: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub principal: Option<String>,
    pub reason: String,
    /// Exit code: 128 + n after signal n, -1 if unknown. Absent for a remote server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i64>,
    /// Further details of the end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_reason: Option<String>,
}

/// Event of orphans of killed proxies.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct LeftBehind {
    /// Orphans. If there are more than fit into a record, the next record has the rest.
    pub left: Vec<Orphan>,
    #[serde(flatten)]
    pub by: ByHand,
}

/// Event of connections to a remote server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Egress {
    /// Same value as in its `server-launching`.
    #[schemars(with = "String", extend("format" = "uuid"))]
    pub launch: DecisionId,
    pub server: String,
    /// Client of the dedicated instance for which they are opened.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub principal: Option<String>,
    /// Scheme, host and port of the URL. The path is omitted, because it can contain a secret.
    pub url: String,
    /// Transport: `streamable-http` or `sse`.
    pub protocol: String,
    /// Whether the connections are encrypted.
    pub encrypted: bool,
}

/// Source of a secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum SecretSource {
    /// Variable of the proxy's environment.
    Env,
    File,
    /// A `.env` file.
    Dotenv,
    /// Keyring of the desktop.
    Keyring,
    /// Keyring of the kernel.
    Keyctl,
    DockerPass,
    /// Credential helper.
    DockerCredential,
    /// HashiCorp Vault.
    Vault,
    /// Encrypted store of Portcullis.
    Age,
    /// The text is not a valid reference.
    Illegal,
}

/// Secret that is delivered to a server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SecretHanded {
    /// Name of the secret at the server.
    pub secret: String,
    pub source: SecretSource,
    /// Kind of delivery.
    pub by: HandedBy,
    /// Whether the value belongs to the client; else it is the common value.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub own: bool,
}

/// Kind of delivery of a secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum HandedBy {
    /// Environment variable of the process.
    Environment,
    /// File on a tmpfs that only the server sees.
    File,
    /// Header of every request to the server.
    Header,
}

/// Event of dropped messages.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Dropped {
    pub server: String,
    /// Recipient of the messages, if known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub principal: Option<String>,
    pub reason: DropReason,
    /// Number of messages since the last such record.
    pub count: u64,
}

/// Reason for dropped messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum DropReason {
    /// The server sent them without a request, faster than they were read.
    Flood,
    /// Log messages below the level that the client set.
    Level,
    /// Notifications of a call that its client did not read. They were allowed, and each has an
    /// intent.
    Unread,
}
