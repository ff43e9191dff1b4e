//! What happens to the proxy, as records of kind `event` have it: version 1, as in `v1`.

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

/// The events. `event` says which it is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum Event {
    /// The proxy began to take messages.
    ProxyStarted {
        version: String,
        /// Whether it only tries what it would do, takes no message of anybody, and ends.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        dry_run: bool,
    },
    /// The proxy did not start: what it was told to do cannot be done.
    ProxyStartFailed {
        version: String,
        /// Everything that is wrong, one a line.
        reason: String,
    },
    /// The proxy stopped in an orderly way.
    ProxyStopped {
        #[serde(default, skip_serializing_if = "Option::is_none")]
        reason: Option<String>,
    },
    /// The config that this run goes by.
    ConfigLoaded {
        /// Its file.
        file: String,
        /// `sha256:` and the digest of the file.
        revision: String,
        /// How many servers it names.
        servers: u64,
        /// Its chain of interceptors in their order, without `policy`: `NAME`, `NAME (default)` for one
        /// that is on without an entry, `NAME (audit)` or `NAME (off)`.
        chain: Vec<String>,
    },
    /// The config was read again while the proxy ran, and its servers take the places of those before.
    ConfigReloaded {
        /// Its file.
        file: String,
        /// `sha256:` and the digest of the file.
        revision: String,
        /// How many servers there are now.
        servers: u64,
        /// Servers that were not there before.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        added: Vec<String>,
        /// Servers whose entry is another.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        changed: Vec<String>,
        /// Servers that are there no more.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        removed: Vec<String>,
        /// Other sections that are not as they were when the proxy started, and count from its next
        /// start on.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        waiting: Vec<String>,
    },
    /// The config was read again and not taken; all stays as it was.
    ConfigRejected {
        /// Its file.
        file: String,
        /// Everything that is wrong, one a line.
        reason: String,
    },
    /// Policies took effect.
    PolicyLoaded {
        revision: String,
        policies: u64,
        /// The name of the signed bundle that they are from.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        bundle: Option<String>,
        /// Its version.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        bundle_version: Option<u64>,
        /// The policies that have bodies kept, by `@keep`.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        keeping: Vec<String>,
    },
    /// Policies were read and not taken; the old ones stay.
    PolicyRejected { reason: String },
    /// A plugin was loaded.
    PluginLoaded(PluginLoaded),
    /// A plugin was not loaded, and so the proxy did not start.
    PluginRefused {
        /// The interceptor's name.
        plugin: String,
        file: String,
        reason: String,
    },
    /// A plugin sent requests for a message and came to no verdict on it, since the message was
    /// withdrawn: else they are findings in its record.
    PluginHttpSent {
        /// The interceptor's name.
        plugin: String,
        /// The decision on that message.
        #[schemars(with = "String", extend("format" = "uuid"))]
        call: DecisionId,
        /// Method, host and what came of it.
        requests: Vec<String>,
    },
    /// A client was let in: the first message of this principal with this key from this address,
    /// or the first one after an hour without any.
    ClientSeen(Who),
    /// A session was opened by an `initialize`, which has records of its own.
    SessionOpened(SessionOpened),
    /// A session ended. Those that are open when the proxy stops end with it, without this.
    SessionEnded {
        session: String,
        principal: String,
        /// How many requests were made in it.
        requests: u64,
        /// Why it ended.
        reason: String,
    },
    /// A server is about to be started, or connected to. Where this can't be recorded, it is not.
    /// One launch has several where it takes several tries: a legacy server that ends when it is
    /// asked for its era is started again, a remote one is tried in an older protocol.
    ServerLaunching(Launching),
    /// Policy does not permit a server's start, its way out, or a secret: it is not started.
    ServerLaunchRefused(LaunchRefused),
    /// What a tag means was asked of its registry, or of the engine, and is the image from now on.
    ImageResolved(ImageResolved),
    /// What a server's image means is moved by `portcullis server`. Where that can't be recorded, it is
    /// not.
    ImageLocked(ImageLocked),
    /// What is on record as locked was not: what was locked before, if anything, still is.
    ImageLockFailed(ImageLockFailed),
    /// `portcullis server pull` has the engine pull an image. Where that can't be recorded, it does not.
    ImagePulling(ImagePulling),
    /// The engine pulled an image.
    ImagePulled(ImagePulled),
    /// The engine did not pull an image.
    ImagePullFailed(ImagePullFailed),
    /// A server was started, or connected to.
    ServerLaunched(Box<Launched>),
    /// A server could not be started.
    ServerLaunchFailed {
        /// As in its `server-launching`.
        #[schemars(with = "String", extend("format" = "uuid"))]
        launch: DecisionId,
        server: String,
        /// Where it was to run.
        kind: PlaceKind,
        /// The one client for which alone it was to run.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        principal: Option<String>,
        reason: String,
    },
    /// A server ended or was stopped.
    ServerStopped(Stopped),
    /// `portcullis server cleanup` is about to remove what proxies that are gone have left. Where this can't be
    /// recorded, it is not done.
    OrphansRemoving(LeftBehind),
    /// What came of it.
    OrphansRemoved(LeftBehind),
    /// The proxy itself is about to open connections to a remote server.
    EgressOpened(Egress),
    /// A server is about to be connected to a host of its `egress`. Where this can't be recorded, it is
    /// not. What a server with `hardening.network` asks of a network is not seen.
    EgressConnecting(EgressConnecting),
    /// What became of a connection that a server wanted, be it that it was refused.
    EgressClosed(Box<EgressClosed>),
    /// A server is about to be handed secrets. No value is on record.
    SecretsDelivered {
        /// As in its `server-launching`.
        #[schemars(with = "String", extend("format" = "uuid"))]
        launch: DecisionId,
        server: String,
        /// The one client for which alone it is to run.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        principal: Option<String>,
        secrets: Vec<SecretHanded>,
    },
    /// A secret could not be had when the proxy started, and so its server can't be started (for that
    /// client, where one is named); or not when it was read again, and the old value goes on being used.
    SecretUnresolved {
        server: String,
        /// The name under which the server would have got it.
        secret: String,
        source: SecretSource,
        /// The one client whose own value it would have been.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        principal: Option<String>,
        /// Whether it was read before, and that value goes on being used.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        kept: bool,
        reason: String,
    },
    /// A secret changed that a running server has in its environment, or that is sent to it as a header.
    /// It goes on with the old one until its next start.
    SecretsStale {
        /// As in its `server-launching`.
        #[schemars(with = "String", extend("format" = "uuid"))]
        launch: DecisionId,
        server: String,
        /// The one client for which alone it runs.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        principal: Option<String>,
        /// All of which it has an old value, by their names.
        secrets: Vec<String>,
    },
    /// Messages were dropped, and how many.
    MessagesDropped(Dropped),
    /// A person is asked to allow a call.
    ApprovalRequested {
        /// The `id` of the call that waits.
        #[schemars(with = "String", extend("format" = "uuid"))]
        call: DecisionId,
        principal: String,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        server: Option<String>,
        /// The policies that ask for it.
        rules: Vec<String>,
        /// When the call is refused, if nobody says anything.
        #[schemars(with = "String", extend("format" = "date-time"))]
        until: Timestamp,
        /// The host of the webhook that is told of the call, with its arguments.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        webhook: Option<String>,
    },
    /// The webhook for approvals was not reached, or did not answer as it may. The call waits on.
    ApprovalWebhookFailed {
        /// As in its `approval-requested`.
        #[schemars(with = "String", extend("format" = "uuid"))]
        call: DecisionId,
        principal: String,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        server: Option<String>,
        reason: String,
    },
    /// A person, or the webhook, allowed a call or did not. What nobody said anything of is refused
    /// with `approval-timeout`.
    ApprovalDecided {
        /// As in its `approval-requested`.
        #[schemars(with = "String", extend("format" = "uuid"))]
        call: DecisionId,
        principal: String,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        server: Option<String>,
        allowed: bool,
        /// Who said so: a user of this machine, or the webhook.
        by: String,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        reason: Option<String>,
    },
    /// A client is given a key. Where `portcullis client` can't record this, it gives none.
    ClientAdded {
        client: String,
        /// The first digits of the hash of its key.
        key_id: String,
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        groups: Vec<String>,
        #[serde(flatten)]
        by: By,
    },
    /// A client's key is taken away.
    ClientRemoved {
        client: String,
        /// The first digits of the hash of its key.
        key_id: String,
        #[serde(flatten)]
        by: By,
    },
    /// Somebody asked something of the running proxy at its admin socket.
    AdminAction(AdminAction),
    /// More messages are refused than are recorded one by one. The refusals that have this in
    /// common share the `id` of this event from here on.
    RefusalSummaryOpened(RefusalGroup),
    /// So many messages were refused without a record of each. Their answers, if they had any, have
    /// the `id` of this event. One `id` can have several such records: their counts add up.
    RefusalsSummarized(SummarizedRefusals),
    /// Records that were acknowledged are gone: the files that held them are damaged, and what is
    /// left of those is in `quarantine`. Later records take their places.
    RecordsLost {
        /// The place of the first lost record.
        from: Seq,
        /// The place after the last.
        until: Seq,
        /// What was found.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        reason: Option<String>,
    },
    /// The store did not take records, and so many of each kind are missing: of what had happened
    /// already, and of refusals; where the operator lets messages pass that cannot be recorded,
    /// of those, too.
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
    /// Records grew too old, or the store too large: a segment was dropped, and its proof kept.
    SegmentDropped {
        /// `seq` of its first and its last record.
        first: u64,
        last: u64,
        /// When those were written.
        #[schemars(with = "String", extend("format" = "date-time"))]
        from: Timestamp,
        #[schemars(with = "String", extend("format" = "date-time"))]
        to: Timestamp,
        /// How much room it took.
        bytes: u64,
        reason: String,
    },
    /// Records are encrypted under another key from here on.
    KeyRotated {
        /// The key's id, as in `store.json`.
        key_id: String,
    },
    /// The store was copied.
    StoreBackedUp {
        /// The folder that has the copy.
        to: String,
        /// `seq` of the first and the last record of the copy.
        first: u64,
        last: u64,
    },
}

/// A plugin that was loaded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PluginLoaded {
    /// The interceptor's name.
    pub plugin: String,
    /// Its path, or `oci://` and its reference with the digest of its manifest.
    pub file: String,
    /// `sha256:` and the digest of the component.
    pub digest: String,
    /// Whether the config names that digest, or that of a manifest that does.
    pub pinned: bool,
    /// The key by whose signature it was taken, where the config asks for one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signed_by: Option<String>,
    /// Name and version by its own manifest.
    pub manifest: String,
    /// What it may do beyond its verdicts: functions (`log`), hosts (`http:api.example.com:443`) and
    /// secrets (`secret:NAME`).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub grants: Vec<String>,
    /// MiB of memory that one instance of it may have.
    pub memory_mib: u64,
}
