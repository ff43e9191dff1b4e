//! What happens to the proxy, as records of kind `event` have it: version 1, as in `v1`.

use std::net::SocketAddr;

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    reach::{Reached, Reaching},
    v1::{Decision, Era, Rule, Transport},
};
use crate::{audit::line::Seq, names::DecisionId, policy::Attested};

/// The events. `event` says which it is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum Happening {
    /// The proxy began to take messages.
    ProxyStarted {
        version: String,
        /// Whether it only tries what it would do, takes no message of anybody, and ends.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        dry_run: bool,
    },
    /// The proxy did not start: what it was told to do cannot be done.
    ProxyNotStarted {
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
        /// Its chain of interceptors in their order, `NAME` or `NAME (audit)`.
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
    PluginSent {
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
    /// asked for its era is started anew, a remote one is tried in an older protocol.
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
    /// The proxy itself is about to open connections to a remote server.
    EgressOpened(Egress),
    /// A server is about to be connected to a host of its `egress`. Where this can't be recorded, it is
    /// not. What a server with `hardening.network` asks of a network is not seen.
    ServerReaching(Reaching),
    /// What became of a connection that a server wanted, be it that it was refused.
    ServerReached(Box<Reached>),
    /// A server is about to be handed secrets. No value is on record.
    SecretsHanded {
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
    SecretsOutdated {
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
    ApprovalAsked {
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
    ApprovalUntold {
        /// As in its `approval-asked`.
        #[schemars(with = "String", extend("format" = "uuid"))]
        call: DecisionId,
        principal: String,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        server: Option<String>,
        reason: String,
    },
    /// A person, or the webhook, allowed a call or did not. What nobody said anything of is refused
    /// with `approval-timeout`.
    ApprovalGiven {
        /// As in its `approval-asked`.
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
    /// Messages were refused without a record of each: more came than are recorded one by one.
    RefusalsUnrecorded {
        /// How many they were.
        count: u64,
        /// When the first of them was refused. The last was before this record.
        #[schemars(with = "String", extend("format" = "date-time"))]
        since: Timestamp,
    },
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
    RecordsMissed {
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

/// Who did something at the command line. Nobody where the file was changed otherwise, and the
/// proxy found out.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct By {
    /// The user id, as the system tells.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<u32>,
    /// The user's name, where the system knows one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Why, where it is not what was asked for: that could not be done, and is undone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// Who is at the door.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Who {
    /// The client's name, `local:USER` or `anonymous`.
    pub principal: String,
    /// Whether that identity was proven.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub verified: bool,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub groups: Vec<String>,
    /// The first digits of the hash of the key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_id: Option<String>,
    /// The address and port, over a network.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub client_addr: Option<SocketAddr>,
    pub transport: Transport,
}

/// A session that was opened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SessionOpened {
    /// The first characters of its id, as in the records of its calls.
    pub session: String,
    #[serde(flatten)]
    pub who: Who,
    pub revision: String,
    /// Name and version that the client claims.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_info: Option<String>,
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
    /// The image as the config has it, the program, or the URL without user and query.
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

/// Who did something at the command line; nobody where the proxy did it of itself.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ByHand {
    /// The user id, as the system tells, of whoever did it at the command line.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<u32>,
    /// The user's name, where the system knows one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
}

/// What the tag of a server's image means.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ImageResolved {
    /// As in the `server-launching` by which it was wanted first.
    #[schemars(with = "String", extend("format" = "uuid"))]
    pub launch: DecisionId,
    pub server: String,
    /// As the config has it.
    pub image: String,
    /// `sha256:…`: in its registry, or of an image that is of none.
    pub digest: String,
}

/// What a server's image is from now on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ImageLocked {
    pub server: String,
    /// As the config has it.
    pub image: String,
    /// `sha256:…`: in its registry, or of an image that is of none.
    pub digest: String,
    /// What was locked before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub was: Option<String>,
    #[serde(flatten)]
    pub by: ByHand,
}

/// An image that was not locked after all.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ImageLockFailed {
    pub server: String,
    /// As the config has it.
    pub image: String,
    /// `sha256:…`: what it was to be locked as, as in its `image-locked`.
    pub digest: String,
    /// Why it was not.
    pub reason: String,
    #[serde(flatten)]
    pub by: ByHand,
}

/// An image that the engine is to pull.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ImagePulling {
    pub server: String,
    /// As the config has it.
    pub image: String,
    /// `sha256:…` in its registry.
    pub digest: String,
    #[serde(flatten)]
    pub by: ByHand,
}

/// An image that the engine pulled.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ImagePulled {
    /// As in the `server-launching` by which it was wanted first; none of `server pull`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>", extend("format" = "uuid"))]
    pub launch: Option<DecisionId>,
    pub server: String,
    /// As the config has it.
    pub image: String,
    /// `sha256:…` in its registry.
    pub digest: String,
    /// What it is for: `linux/amd64`.
    pub platform: String,
    /// Its bytes, as its manifest has them.
    pub size: u64,
    /// Microseconds that the pull took.
    pub took_us: u64,
    #[serde(flatten)]
    pub by: ByHand,
}

/// An image that the engine did not pull.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ImagePullFailed {
    /// As in the `server-launching` by which it was wanted first; none of `server pull`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>", extend("format" = "uuid"))]
    pub launch: Option<DecisionId>,
    pub server: String,
    /// As the config has it.
    pub image: String,
    /// `sha256:…` in its registry.
    pub digest: String,
    /// Why it was not pulled.
    pub reason: String,
    #[serde(flatten)]
    pub by: ByHand,
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
    /// What is not permitted: `launch`, `reach` or `hand_secret`.
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
    /// Which one: `container 0123456789ab`, `sandbox pid 42`, a URL without user and query.
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
    /// The URL without user, query and fragment.
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

/// What an operator asked of the running proxy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct AdminAction {
    /// The user id, as the system tells.
    pub uid: u32,
    /// The user's name, where the system knows one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<i32>,
    /// What is asked: the HTTP method and the path, such as `POST /v1/audit/query`.
    pub verb: String,
    /// What it is asked of or about: a filter, a server's name, a decision's id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    pub decision: Decision,
    /// The code of a refusal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<String>,
}
