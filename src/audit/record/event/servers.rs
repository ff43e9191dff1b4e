//! What became of servers: their start, what they were handed, their end, and what they left.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::super::Orphan;
use super::{
    super::v1::{Era, Rule},
    ByHand,
};
use portcullis_protocol::claims::Attested;
use portcullis_protocol::names::DecisionId;

/// Where a server runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum PlaceKind {
    Container,
    Sandbox,
    Remote,
}

/// A server that is to be started.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Launching {
    /// What joins all events of one launch.
    #[schemars(with = "String", extend("format" = "uuid"))]
    pub launch: DecisionId,
    pub server: String,
    pub kind: PlaceKind,
    /// The image as the config has it, the program, or of the URL scheme, host and port.
    pub program: String,
    /// `sha256:…` of the image, by the config or the lock file, or of the program's file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<String>,
    /// The keys of the config by which it deviates from the hardened profile.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub deviations: Vec<String>,
    /// Who of the config's signers signed the image.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub signers: Vec<String>,
    /// What they attest of it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub attested: Vec<Attested>,
    /// The one client for which alone it is to run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub principal: Option<String>,
    /// The policies that permit its start, the way to it, and each of its secrets.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rules: Vec<Rule>,
    /// The revision of the policies that decided.
    pub policy_revision: String,
}

/// A start that policy does not permit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct LaunchRefused {
    #[schemars(with = "String", extend("format" = "uuid"))]
    pub launch: DecisionId,
    pub server: String,
    pub kind: PlaceKind,
    /// The one client for which alone it was to run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub principal: Option<String>,
    /// What is not permitted: `launch`, `egress` or `deliver_secret`.
    pub action: String,
    /// The program, `HOST:PORT`, or the secret's name.
    pub target: String,
    /// The policies that forbid it; none where nothing permits it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rules: Vec<Rule>,
    pub policy_revision: String,
}

/// A server that was started.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Launched {
    /// As in its `server-launching`.
    #[schemars(with = "String", extend("format" = "uuid"))]
    pub launch: DecisionId,
    pub server: String,
    pub kind: PlaceKind,
    /// Which one: `container 0123456789ab`, `sandbox pid 42`, or of a URL scheme, host and port.
    pub place: String,
    /// Why it runs there.
    pub reason: String,
    /// The program, in a sandbox.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub program: Option<String>,
    /// The image as the config or the packing names it. Of a pod's container it is the config's word:
    /// which image that is of, its cluster knows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image_ref: Option<String>,
    /// `sha256:` and the digest by which the engine knows the image that runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// The digest of all that confines it, as in the container's label. A sandbox and a pod's container
    /// have none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub profile: Option<String>,
    /// What the config changed against the default profile: `FIELD: ACTUAL (CONFIG KEY)`. Where
    /// `pod-socket` is among it, this is what the config asks for: its pod has the container made.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub deviations: Vec<String>,
    /// Whether it was tried, from inside and before its program began, that nothing but its `egress` is
    /// to be reached: nothing was. A server without `egress` is not tried.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub egress_tried: bool,
    /// The one client for which alone it runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub principal: Option<String>,
    /// The era in which it was greeted.
    pub era: Era,
    pub revision: String,
    /// Name and version that it claims.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server_info: Option<String>,
    /// Microseconds until it was ready.
    pub took_us: u64,
}

/// A server that ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Stopped {
    /// As in its `server-launching`.
    #[schemars(with = "String", extend("format" = "uuid"))]
    pub launch: DecisionId,
    pub server: String,
    /// As at its launch.
    pub place: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub principal: Option<String>,
    pub reason: String,
    /// Its exit code: 128 + n after signal n, -1 where it could not be told. Absent for a remote
    /// one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i64>,
    /// What else is known of its end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_reason: Option<String>,
}

/// What proxies have left that are gone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct LeftBehind {
    /// Where there is more, the next record has it.
    pub left: Vec<Orphan>,
    #[serde(flatten)]
    pub by: ByHand,
}

/// A way out of this machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Egress {
    /// As in its `server-launching`.
    #[schemars(with = "String", extend("format" = "uuid"))]
    pub launch: DecisionId,
    pub server: String,
    /// The one client for which alone they are opened.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub principal: Option<String>,
    /// Of the URL scheme, host and port: its path may hold a secret.
    pub url: String,
    /// `streamable-http` or `sse`.
    pub protocol: String,
    /// Whether the way there is encrypted.
    pub encrypted: bool,
}

/// Where a secret comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum SecretSource {
    /// A variable of the proxy's own environment.
    Env,
    File,
    /// A `.env` file.
    Dotenv,
    /// The desktop's keyring.
    Keyring,
    /// The kernel's keys.
    Keyctl,
    DockerPass,
    /// A credential helper.
    DockerCredential,
    /// HashiCorp Vault.
    Vault,
    /// An encrypted store of Portcullis.
    Age,
    /// What was written is no reference.
    Illegal,
}

/// A secret that a server was handed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SecretHanded {
    /// The name under which the server gets it.
    pub secret: String,
    pub source: SecretSource,
    /// How it is handed over.
    pub by: HandedBy,
    /// Whether it is the client's own, and not what all have who are not named.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub own: bool,
}

/// How a secret is handed over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum HandedBy {
    /// In the environment of its process.
    Environment,
    /// In a file, on a tmpfs that nobody else sees.
    File,
    /// In a header of every request to it.
    Header,
}

/// Messages that were dropped.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Dropped {
    pub server: String,
    /// For whom they were, where that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub principal: Option<String>,
    pub reason: DropReason,
    /// How many, since the last such record.
    pub count: u64,
}

/// Why messages were dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum DropReason {
    /// The server sent them unasked, and faster than they were taken.
    Flood,
    /// Log messages below the level that the client asked for.
    Level,
    /// Notifications of a call that its client did not read. They were allowed, and have an
    /// intent each.
    Unread,
}
