//! Events of servers: start, end, orphans and dropped messages.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    super::shared::{Era, Rule},
    CommandUser,
    content::{Content, content, then},
};
use portcullis_protocol::{claims::Attested, names::DecisionId};

/// Kind of a server's runtime.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum RuntimeKind {
    Container,
    Sandbox,
    Remote,
}

impl Content for RuntimeKind {}

content! {
    /// A server is about to be started, or connected to. If this cannot be recorded, the server is
    /// not started. A launch with several attempts has several such events: a legacy server that
    /// ends during the detection of its era is started again, a remote server is tried with an
    /// older transport.
    pub struct ServerLaunching {
        /// Id of the launch. All events of one launch have the same.
        #[schemars(with = "String", extend("format" = "uuid"))]
        pub launch: DecisionId,
        pub server: String,
        pub kind: RuntimeKind,
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
    summary("server {server} is being started");

    /// Policy does not permit a server's start, its egress or a secret. The server is not started.
    pub struct ServerLaunchRefused {
        #[schemars(with = "String", extend("format" = "uuid"))]
        pub launch: DecisionId,
        pub server: String,
        pub kind: RuntimeKind,
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
    summary("policy does not permit server {server} to be started: {action} {target}");

    /// A server was started, or connected to.
    pub struct ServerLaunched {
        /// Same value as in its `server-launching`.
        #[schemars(with = "String", extend("format" = "uuid"))]
        pub launch: DecisionId,
        pub server: String,
        pub kind: RuntimeKind,
        /// Instance: `container 0123456789ab`, `sandbox pid 42`, or scheme, host and port of the
        /// URL.
        pub place: String,
        /// Reason for this kind of runtime.
        pub reason: String,
        /// Program, for a sandbox.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub program: Option<String>,
        /// Image as named by the config, or by the packing of a program. For a container of a pod:
        /// as named by the config; only the cluster knows the image that runs.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub image_ref: Option<String>,
        /// `sha256:` and the engine's digest of the running image.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub image: Option<String>,
        /// Digest of the confinement settings, as in the container's label. Absent for a sandbox
        /// and for a container of a pod.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub profile: Option<String>,
        /// Deviations from the hardened profile: `FIELD: ACTUAL (CONFIG KEY)`. With `pod-socket`,
        /// these are the deviations in the config; the pod creates the container.
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
    summary(
        "server {server} started: {place}{}{}",
        then(", image ", image),
        principal.as_ref().map(|name| format!(", for {name} alone")).unwrap_or_default()
    );

    /// A server could not be started.
    pub struct ServerLaunchFailed {
        /// Same value as in its `server-launching`.
        #[schemars(with = "String", extend("format" = "uuid"))]
        pub launch: DecisionId,
        pub server: String,
        /// Intended kind of runtime.
        pub kind: RuntimeKind,
        /// Client for which the dedicated instance was intended.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub principal: Option<String>,
        pub reason: String,
    }
    summary("server {server} could not be started: {reason}");

    /// A server ended or was stopped.
    pub struct ServerStopped {
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
    summary("server {server} stopped: {reason}");

    /// `portcullis server cleanup` is about to remove orphans of killed proxies. If this cannot be
    /// recorded, nothing is removed.
    pub struct OrphansRemoving {
        /// Orphans. If there are more than fit into a record, the next record has the rest.
        pub left: Vec<Orphan>,
        #[serde(flatten)]
        pub by: CommandUser,
    }
    summary(
        "what proxies have left that are gone is being removed: {}{by}",
        left.iter().map(|orphan| orphan.name.as_str()).collect::<Vec<_>>().join(", ")
    );

    /// Result of `orphans-removing`.
    pub struct OrphansRemoved {
        /// Orphans. If there are more than fit into a record, the next record has the rest.
        pub left: Vec<Orphan>,
        #[serde(flatten)]
        pub by: CommandUser,
    }
    summary(
        "orphans of killed proxies removed: {}{by}",
        left.iter()
            .map(|orphan| match &orphan.error {
                Some(why) => format!("not {} ({why})", orphan.name),
                None => orphan.name.clone(),
            })
            .collect::<Vec<_>>()
            .join(", ")
    );

    /// Orphan of a killed proxy.
    #[serde(deny_unknown_fields)]
    pub struct Orphan {
        pub kind: OrphanKind,
        /// Name of the container, or path of the folder.
        pub name: String,
        /// Server of the container.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub server: Option<String>,
        /// Reason why the orphan could not be removed.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub error: Option<String>,
    }

    /// Messages were dropped.
    pub struct MessagesDropped {
        pub server: String,
        /// Recipient of the messages, if known.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub principal: Option<String>,
        pub reason: DropReason,
        /// Number of messages since the last such record.
        pub count: u64,
    }
    summary(
        "server {server}: {count} of its messages {} and were dropped",
        match reason {
            DropReason::Flood => "came too fast",
            DropReason::Level => "were below the level that the client asked for",
            DropReason::Unread => "were not read by the client",
        }
    );
}

/// Kind of an orphan.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum OrphanKind {
    /// Container of a server.
    Container,
    /// Container that keeps the network namespace of a server's container.
    NetworkHolder,
    /// Folder of secrets, in memory.
    Secrets,
    /// Control group of a sandbox.
    ControlGroup,
}

impl Content for OrphanKind {}

impl OrphanKind {
    /// Name of the kind.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Container => "container",
            Self::NetworkHolder => "network-holder",
            Self::Secrets => "secrets",
            Self::ControlGroup => "control-group",
        }
    }
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

impl Content for DropReason {}
