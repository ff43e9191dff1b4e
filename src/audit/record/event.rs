//! Events of the proxy, in records of kind `event`: version 1, as in `v1`.

mod images;
mod people;
mod refusals;
mod servers;

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use images::{
    ImageLockFailed, ImageLocked, ImagePullFailed, ImagePulled, ImagePulling, ImageResolved,
};
pub use people::{AdminAction, By, ByHand, SessionOpened, Who};
pub use refusals::{RefusalGroup, SummarizedRefusals};
pub use servers::{
    DropReason, Dropped, Egress, HandedBy, LaunchRefused, Launched, Launching, LeftBehind,
    PlaceKind, SecretHanded, SecretSource, Stopped,
};

use super::egress::{EgressClosed, EgressConnecting};
use crate::line::Seq;
use portcullis_protocol::names::DecisionId;

/// Events. `event` has the name.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum Event {
    /// The proxy started to accept messages.
    ProxyStarted {
        version: String,
        /// Whether this is a dry run: the proxy reports what it would do, accepts no messages and
        /// ends.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        dry_run: bool,
    },
    /// The proxy did not start, because its settings are invalid or cannot be applied.
    ProxyStartFailed {
        version: String,
        /// All problems, one per line.
        reason: String,
    },
    /// The proxy stopped regularly, not by a crash.
    ProxyStopped {
        #[serde(default, skip_serializing_if = "Option::is_none")]
        reason: Option<String>,
    },
    /// The config of this run.
    ConfigLoaded {
        /// Path of the file.
        file: String,
        /// `sha256:` and the digest of the file.
        revision: String,
        /// Number of servers.
        servers: u64,
        /// Interceptors of the chain, in order, without `policy`: `NAME`, `NAME (default)` for an
        /// interceptor that is on without an entry, `NAME (audit)` or `NAME (off)`.
        chain: Vec<String>,
    },
    /// The config was reloaded while the proxy ran. Its servers replace the earlier ones.
    ConfigReloaded {
        /// Path of the file.
        file: String,
        /// `sha256:` and the digest of the file.
        revision: String,
        /// Number of servers after the reload.
        servers: u64,
        /// Added servers.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        added: Vec<String>,
        /// Servers with a changed entry.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        changed: Vec<String>,
        /// Removed servers.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        removed: Vec<String>,
        /// Other sections that changed since the proxy started. They take effect at its next start.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        waiting: Vec<String>,
    },
    /// A reload of the config failed. The earlier config stays in effect.
    ConfigRejected {
        /// Path of the file.
        file: String,
        /// All problems, one per line.
        reason: String,
    },
    /// Policies took effect.
    PolicyLoaded {
        revision: String,
        policies: u64,
        /// Name of the signed bundle that contains the policies.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        bundle: Option<String>,
        /// Version of the bundle.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        bundle_version: Option<u64>,
        /// Policies that keep bodies, by `@keep`.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        keeping: Vec<String>,
    },
    /// Policies were rejected. The earlier policies stay in effect.
    PolicyRejected { reason: String },
    /// A plugin was loaded.
    PluginLoaded(PluginLoaded),
    /// A plugin was not loaded, so the proxy did not start.
    PluginRefused {
        /// Name of the interceptor.
        plugin: String,
        file: String,
        reason: String,
    },
    /// A plugin sent HTTP requests for a message that was cancelled before its verdict. With a
    /// verdict, such requests are findings in the message's record.
    PluginHttpSent {
        /// Name of the interceptor.
        plugin: String,
        /// Decision id of the message.
        #[schemars(with = "String", extend("format" = "uuid"))]
        call: DecisionId,
        /// Method, host and result of each request.
        requests: Vec<String>,
    },
    /// First message of a principal with this key from this address, or the first one after an hour
    /// without messages.
    ClientSeen(Who),
    /// `initialize` opened a session. The message itself has its own records.
    SessionOpened(SessionOpened),
    /// A session ended. Sessions that are open when the proxy stops have no such event.
    SessionEnded {
        session: String,
        principal: String,
        /// Number of requests in the session.
        requests: u64,
        /// Reason for the end.
        reason: String,
    },
    /// A server is about to be started, or connected to. If this cannot be recorded, the server is
    /// not started. A launch with several attempts has several such events: a legacy server that
    /// ends during the detection of its era is started again, a remote server is tried with an
    /// older transport.
    ServerLaunching(Launching),
    /// Policy does not permit a server's start, its egress or a secret. The server is not started.
    ServerLaunchRefused(LaunchRefused),
    /// An image tag was resolved at its registry or in the engine. From now on, the digest
    /// identifies the image.
    ImageResolved(ImageResolved),
    /// `portcullis server` is about to change the locked digest of a server's image. If this cannot
    /// be recorded, the lock file is not changed.
    ImageLocked(ImageLocked),
    /// The change of an `image-locked` event failed. The earlier digest, if any, stays locked.
    ImageLockFailed(ImageLockFailed),
    /// `portcullis server pull` is about to pull an image with the engine. If this cannot be
    /// recorded, it is not pulled.
    ImagePulling(ImagePulling),
    /// The engine pulled an image.
    ImagePulled(ImagePulled),
    /// The engine failed to pull an image.
    ImagePullFailed(ImagePullFailed),
    /// A server was started, or connected to.
    ServerLaunched(Box<Launched>),
    /// A server could not be started.
    ServerLaunchFailed {
        /// Same value as in its `server-launching`.
        #[schemars(with = "String", extend("format" = "uuid"))]
        launch: DecisionId,
        server: String,
        /// Intended kind of runtime.
        kind: PlaceKind,
        /// Client for which the dedicated instance was intended.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        principal: Option<String>,
        reason: String,
    },
    /// A server ended or was stopped.
    ServerStopped(Stopped),
    /// `portcullis server cleanup` is about to remove orphans of killed proxies. If this cannot be
    /// recorded, nothing is removed.
    OrphansRemoving(LeftBehind),
    /// Result of `orphans-removing`.
    OrphansRemoved(LeftBehind),
    /// The proxy itself is about to open connections to a remote server.
    EgressOpened(Egress),
    /// A server is about to be connected to a host of its `egress`. If this cannot be recorded, the
    /// connection is refused. Network connections of a server with `hardening.network` are not
    /// recorded.
    EgressConnecting(EgressConnecting),
    /// An egress connection of a server ended or was refused.
    EgressClosed(Box<EgressClosed>),
    /// Secrets are about to be delivered to a server. Values are not recorded.
    SecretsDelivered {
        /// Same value as in its `server-launching`.
        #[schemars(with = "String", extend("format" = "uuid"))]
        launch: DecisionId,
        server: String,
        /// Client for which the dedicated instance starts.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        principal: Option<String>,
        secrets: Vec<SecretHanded>,
    },
    /// A secret did not resolve. At the start of the proxy: its server cannot start (only for
    /// `principal`, if there is one). At a later read: the old value stays in use, and `kept` is
    /// true.
    SecretUnresolved {
        server: String,
        /// Name of the secret at the server.
        secret: String,
        source: SecretSource,
        /// Client to which the value belongs, for a secret by client.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        principal: Option<String>,
        /// Whether an earlier value stays in use.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        kept: bool,
        reason: String,
    },
    /// A secret changed that a running server has in its environment or gets as a header. The
    /// server uses the old value until its next start.
    SecretsStale {
        /// Same value as in its `server-launching`.
        #[schemars(with = "String", extend("format" = "uuid"))]
        launch: DecisionId,
        server: String,
        /// Client of the dedicated instance.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        principal: Option<String>,
        /// Names of all secrets of which the server has an old value.
        secrets: Vec<String>,
    },
    /// Messages were dropped.
    MessagesDropped(Dropped),
    /// A call waits for the approval of a person.
    ApprovalRequested {
        /// `id` of the waiting call.
        #[schemars(with = "String", extend("format" = "uuid"))]
        call: DecisionId,
        principal: String,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        server: Option<String>,
        /// Policies that require the approval.
        rules: Vec<String>,
        /// Time at which the call is refused without a decision.
        #[schemars(with = "String", extend("format" = "date-time"))]
        until: Timestamp,
        /// Host of the webhook that receives the call with its arguments.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        webhook: Option<String>,
    },
    /// The approval webhook could not be reached or returned an invalid response. The call
    /// continues to wait.
    ApprovalWebhookFailed {
        /// Same value as in its `approval-requested`.
        #[schemars(with = "String", extend("format" = "uuid"))]
        call: DecisionId,
        principal: String,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        server: Option<String>,
        reason: String,
    },
    /// A person or the webhook allowed or denied a call. A call without a decision is refused with
    /// `approval-timeout`.
    ApprovalDecided {
        /// Same value as in its `approval-requested`.
        #[schemars(with = "String", extend("format" = "uuid"))]
        call: DecisionId,
        principal: String,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        server: Option<String>,
        allowed: bool,
        /// User of this machine, or the webhook, that decided.
        by: String,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        reason: Option<String>,
    },
    /// A client gets a key. If `portcullis client` cannot record this, it creates no key.
    ClientAdded {
        client: String,
        /// First digits of the hash of the client's key.
        key_id: String,
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        groups: Vec<String>,
        #[serde(flatten)]
        by: By,
    },
    /// A client's key is removed.
    ClientRemoved {
        client: String,
        /// First digits of the hash of the client's key.
        key_id: String,
        #[serde(flatten)]
        by: By,
    },
    /// A user sent a request to the admin socket of the running proxy.
    AdminAction(AdminAction),
    /// More messages are refused than are recorded individually. From now on, refusals with the
    /// values of this event share its `id`.
    RefusalSummaryOpened(RefusalGroup),
    /// Number of messages that were refused without individual records. Their responses, if any,
    /// have the `id` of this event. One `id` can have several such records: add their counts.
    RefusalsSummarized(SummarizedRefusals),
    /// Acknowledged records are lost, because their files are damaged. The rest of these files is
    /// in `quarantine`. Later records reuse their `seq`.
    RecordsLost {
        /// `seq` of the first lost record.
        from: Seq,
        /// `seq` after the last lost record.
        until: Seq,
        /// Description of the damage.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        reason: Option<String>,
    },
    /// The store did not accept records, and these numbers of records are missing: records of what
    /// had already happened, and of refusals. With `on-failure = "pass"`, also records of messages
    /// that passed.
    RecordsDropped {
        #[schemars(with = "String", extend("format" = "date-time"))]
        since: Timestamp,
        #[schemars(with = "String", extend("format" = "date-time"))]
        until: Timestamp,
        intents: u64,
        outcomes: u64,
        refusals: u64,
        events: u64,
    },
    /// A segment was dropped by retention, because of its age or the size of the store. Its proof
    /// is kept.
    SegmentDropped {
        /// `seq` of the first record of the segment; `last` is that of the last one.
        first: u64,
        last: u64,
        /// Time at which the first record was written; `to` is that of the last one.
        #[schemars(with = "String", extend("format" = "date-time"))]
        from: Timestamp,
        #[schemars(with = "String", extend("format" = "date-time"))]
        to: Timestamp,
        /// Size of the segment in bytes.
        bytes: u64,
        reason: String,
    },
    /// From now on, records are encrypted with another key.
    KeyRotated {
        /// Id of the key, as in `store.json`.
        key_id: String,
    },
    /// A backup of the store was made.
    StoreBackedUp {
        /// Folder of the backup.
        to: String,
        /// `seq` of the first record of the backup; `last` is that of the last one.
        first: u64,
        last: u64,
    },
}

/// Event of a loaded plugin.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
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
