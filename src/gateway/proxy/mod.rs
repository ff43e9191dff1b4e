//! The pipeline of a message, from arrival to answer; the only module that names every stage.
//!
//! Messages of clients:
//! - `pipeline` takes an exchange through all stages; `client` is a client with its declarations.
//! - `client_messages` has notifications and responses of clients.
//! - `builtin_methods` has the answers of the proxy itself, `lists` the merged lists.
//! - `mirrored_headers` compares headers with the arguments that they repeat, `argument_names` the
//!   names of arguments with the tool's schema.
//! - `concurrency` bounds the messages in flight of a principal, `memory` the memory of large
//!   ones.
//! - `visibility` evaluates policies before a server is involved, `obligations` applies
//!   obligations of policies, and `approval` waits for a person.
//!
//! Calls and servers:
//! - `call` makes one call at a server (`upstream_call`), whatever the two eras.
//! - `server_requests` sends server requests to clients. For clients without a session,
//!   `suspended_calls` and `request_state` suspend the call.
//! - `change_listeners` knows the subscribers of changes, `subscriptions` the resources, `tasks`
//!   the owners of tasks.
//! - `server_events` receives the events and unsolicited messages of servers.
//! - `launch_policy` and `egress_policy` have policies decide launches and connections, `plugins`
//!   the grants of plugins.
//!
//! Records and reloads:
//! - `recorder` records exchanges, `client_activity` clients and sessions, `startup_events`,
//!   `launch_events` and `egress_events` what their names say, and `refusal_sampling` bounds the
//!   refusals that get a record of their own.
//! - `policy_reload`, `config_reload` and `secret_rotation` apply changed policies, servers and
//!   secrets, `file_watcher` watches files, and `audit_retention` drops old segments.
//! - `builder` makes all of it from a config.

mod approval;
mod argument_names;
mod audit_retention;
mod builder;
mod builtin_methods;
mod call;
mod change_listeners;
mod client;
mod client_activity;
mod client_messages;
mod concurrency;
mod config_reload;
mod egress_events;
mod egress_policy;
mod file_watcher;
mod launch_events;
mod launch_policy;
mod lists;
mod memory;
mod mirrored_headers;
mod obligations;
mod pipeline;
mod plugins;
mod policy_reload;
mod recorder;
mod refusal_sampling;
mod request_state;
mod secret_rotation;
mod server_events;
mod server_requests;
mod startup_events;
mod subscriptions;
mod suspended_calls;
mod tasks;
mod upstream_call;
mod visibility;

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::HeaderMap;
use parking_lot::Mutex;
use tokio::sync::{Notify, mpsc, oneshot};
use tokio_util::{
    sync::{CancellationToken, DropGuard},
    task::TaskTracker,
};

use crate::{
    approval::Approvals,
    router::Router,
    session::{Calls, Session, Sessions},
};
use portcullis_audit::{Arrival, Audit, Refused, export::Streams};
use portcullis_chain::{Chain, Party, Weight, in_turns};
use portcullis_config::Config;
use portcullis_foundation::{allocator::Returning, fair_semaphore::FairSemaphore};
use portcullis_interceptors::{policy::PolicyGate, secrets::Scrubber};
use portcullis_protocol::exchange::View;
use portcullis_protocol::{
    codec::{Caps, Frame, Id},
    exchange::{Revision, Transport},
    identity::{Principal, PrincipalKind},
    names::DecisionId,
    refusal::{Code, Refusal},
    seal::Seal,
};
use portcullis_telemetry::Metrics;
use portcullis_upstream::{Launcher, Server};

use change_listeners::Listeners;
use client_activity::{DropCounters, ExpectedChanges, RecentClients};
use concurrency::PrincipalLimits;
use config_reload::ReloadStatus;
use memory::MessageMemory;
use obligations::{Rates, SessionLabels};
use policy_reload::RecordedRevisions;
use refusal_sampling::RefusalSampler;
use subscriptions::Subscriptions;
use suspended_calls::SuspendedCalls;
use tasks::Tasks;
use upstream_call::InFlightCalls;

pub use audit_retention::prune_offline;
pub use builder::{BoxedDiagnostic, GatewayBuilder, Purpose, StartFailure, interceptor};
pub use client_activity::CLIENT_CHANGED;
pub use concurrency::ConcurrencyPermit;
pub use file_watcher::Files;
pub use launch_events::pull_outcome;
pub use memory::Incoming;
pub use plugins::{PluginSecrets, artifacts, permits, ungranted};
pub use startup_events::{
    record_client_offline, record_images_offline, record_offline, record_start_failure,
};

/// How long calls under way may take to end when the proxy stops.
const DRAIN: Duration = Duration::from_secs(10);
/// How long exports may take to deliver the last records when the proxy stops.
const LAST_EXPORT: Duration = Duration::from_secs(5);
/// Notifications of one exchange that may wait for a client that does not read.
const NOTICES: usize = 256;

/// The running proxy.
pub struct Gateway {
    pub config: Arc<Config>,
    pub router: Router,
    pub sessions: Sessions,
    pub audit: Audit,
    /// The streams of audit records to elsewhere.
    pub exports: Streams,
    pub metrics: Arc<Metrics>,
    pub policies: Arc<portcullis_policy::Engine>,
    pub launcher: Arc<Launcher>,
    /// Seals what clients keep for us.
    pub seal: Arc<Seal>,
    /// The policies that are on record.
    revisions: RecordedRevisions,
    gate: Arc<PolicyGate>,
    scrubber: Arc<Scrubber>,
    /// Large bodies that are looked through for secrets, to be kept.
    looking: FairSemaphore<PrincipalKind>,
    memory: MessageMemory,
    /// Gives memory of large messages back to the system.
    returning: Returning,
    presence: RecentClients,
    drops: DropCounters,
    expected: ExpectedChanges,
    /// Calls that wait for a person.
    pub approvals: Arc<Approvals>,
    labels: SessionLabels,
    rates: Rates,
    chain: Chain,
    /// Exchanges under way, by principal.
    permits: Mutex<HashMap<PrincipalKind, PrincipalLimits>>,
    refusals: RefusalSampler,
    under_way: Arc<InFlightCalls>,
    parked: SuspendedCalls,
    listeners: Listeners,
    subscriptions: Subscriptions,
    /// Serializes config reloads.
    follows: tokio::sync::Mutex<()>,
    following: Mutex<ReloadStatus>,
    /// Servers that are in the config no more, until they are gone.
    retired: Mutex<Vec<Arc<Server>>>,
    /// What ends them.
    retiring: TaskTracker,
    /// Done once they need wait for no call any more.
    ending: CancellationToken,
    task_log: Tasks,
    tasks: TaskTracker,
    /// Other files of secrets may have to be followed.
    secrets_moved: Notify,
    closing: CancellationToken,
}

/// Who sends a message, and how it came.
#[derive(Clone)]
pub struct Caller {
    pub principal: Arc<Principal>,
    pub transport: Transport,
    pub client_addr: Option<SocketAddr>,
    pub view: View,
    /// The legacy session; `initialize` comes without one.
    pub session: Option<Arc<Session>>,
    /// What the client has under way, where it can cancel by an id.
    pub calls: Option<Arc<Calls>>,
    pub revision: Revision,
    /// The `Mcp-Param-*` headers of a modern message, where it came with headers to be held
    /// against its body.
    pub headers: Option<Arc<HeaderMap>>,
}

/// A message on its way.
pub struct ExchangeHandle {
    /// Notifications for the client that belong to it, as they come.
    pub notices: mpsc::Receiver<Bytes>,
    /// What became of it.
    pub answer: oneshot::Receiver<ExchangeResponse>,
    /// Dropping it cancels the exchange.
    pub cancel: DropGuard,
}

/// What became of a message.
#[derive(Debug)]
pub struct ExchangeResponse {
    /// The text of the answer; for a notification only that of its refusal, which a transport
    /// with a channel for it may hand out. It holds its principal's [`ConcurrencyPermit`] until
    /// it is dropped, so that answers that nobody reads are bounded as messages are.
    pub text: Option<Bytes>,
    /// The code of a refusal.
    pub refused: Option<Code>,
    /// The code in the `error` that it is, a server's or of a refusal.
    pub error: Option<i64>,
    /// The session that an `initialize` opened.
    pub session: Option<Arc<Session>>,
}

/// Where an address's limits are counted: the address itself, or an IPv6 address's /64, the
/// whole of which one machine has.
pub fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() >> 64 << 64)),
        v4 => v4,
    }
}

impl Gateway {
    /// Sends a message on its way, from the place that its principal took for it. It goes on by
    /// itself; dropping the ticket cancels it.
    pub fn take(
        self: &Arc<Self>,
        caller: Caller,
        frame: Frame,
        place: ConcurrencyPermit,
    ) -> ExchangeHandle {
        let (notices, receiver) = mpsc::channel(NOTICES);
        let (sender, answer) = oneshot::channel();
        let cancel = CancellationToken::new();
        let guard = cancel.clone().drop_guard();
        let proxy = self.clone();
        let party = Party::Client(caller.principal.kind.clone());
        let weight = Weight::of(frame.raw());
        let work = async move {
            let who = &caller.principal.kind;
            let fits = proxy.fits(&place, &frame);
            // Held until the exchange is over, and its parsed form with it.
            let mut answered =
                match fits.and_then(|()| proxy.memory.reserve_parsed(who, frame.counts)) {
                    Ok(_parsed) => proxy.handle(caller, frame, notices, cancel).await,
                    Err(refusal) => proxy.reject_over_limit(&caller, &frame, refusal).await,
                };
            answered.text = answered.text.map(|text| place.hold(text));
            // The client may be gone; what happened is recorded all the same.
            let _ = sender.send(answered);
        };
        self.tasks.spawn(in_turns(party, weight, work));
        ExchangeHandle { notices: receiver, answer, cancel: guard }
    }

    /// Records a refusal of a message that did not become an exchange, and makes its answer. The
    /// refusals of a flood are recorded together, under the decision id that they share.
    pub async fn reject(
        &self,
        refusal: &Refusal,
        transport: Transport,
        client_addr: Option<SocketAddr>,
        principal: Option<&Principal>,
        message: Option<&[u8]>,
        id: Option<&Id>,
    ) -> Bytes {
        self.metrics.refusal(refusal.code);
        self.metrics.error(refusal.code.rpc().into());
        let answer =
            |decision| Frame::error(id, refusal.to_rpc_error(decision).to_string().as_bytes());
        if let Some(summary) = self.refusals.on_arrival(refusal.code, principal, client_addr) {
            summary.on_record(&self.audit).await;
            tracing::debug!(decision = %summary.id, code = %refusal.code, "refused on arrival, one of many");
            return answer(summary.id);
        }
        let decision = DecisionId::next();
        let arrival = Arrival {
            id: decision,
            at: jiff::Timestamp::now(),
            transport,
            client_addr,
            principal,
            message,
        };
        tracing::info!(%decision, code = %refusal.code, detail = refusal.detail, "refused on arrival");
        let made = async { Refused::on_arrival(arrival, refusal, self.audit.key()) };
        let record = match principal {
            Some(principal) => {
                let party = Party::Client(principal.kind.clone());
                in_turns(party, message.map_or(Weight::NONE, Weight::of), made).await
            }
            None => made.await,
        };
        if let Err(error) = self.audit.refused(record).await {
            tracing::error!(%decision, %error, "a refusal could not be recorded");
        }
        answer(decision)
    }

    /// Whether one more refusal of this user, with this code, at the admin socket gets a record of
    /// its own; if not, it is counted.
    pub fn records_admin_refusal(&self, user: &str, code: &'static str) -> bool {
        self.refusals.of_admin(user, code)
    }

    /// A text of a client's or a server's as a log may show it.
    fn shown(&self, text: &str) -> String {
        let mut text = text.to_owned();
        self.scrubber.scrub(&mut text);
        text
    }

    /// A body of this client, as it arrives.
    pub fn incoming<'a>(&'a self, principal: &'a Principal) -> Incoming<'a> {
        Incoming::new(&self.memory, &principal.kind)
    }

    /// A message of this client that arrived whole, counted as [`incoming`](Self::incoming) ones are.
    ///
    /// # Errors
    /// `rate-limited` where there is no memory for it.
    pub fn arrived(&self, principal: &Principal, text: Bytes) -> Result<Bytes, Refusal> {
        self.memory.hold(&principal.kind, text)
    }

    /// What is taken of a client's message.
    pub fn request_caps(&self) -> Caps {
        self.config.limits.request_caps()
    }

    /// Done once the proxy takes no more messages.
    pub fn closing(&self) -> &CancellationToken {
        &self.closing
    }

    /// Stops: takes no more messages, lets those under way end for a while, ends the servers.
    pub async fn close(&self, reason: &str) {
        self.closing.cancel();
        self.parked.clear();
        self.tasks.close();
        let began = Instant::now();
        if tokio::time::timeout(DRAIN, self.tasks.wait()).await.is_err() {
            tracing::warn!(under_way = self.tasks.len(), "calls still in flight at shutdown");
        } else {
            tracing::debug!(took = ?began.elapsed(), "all calls ended");
        }
        self.parked.clear();
        let servers = self.router.servers(&View::All);
        self.ending.cancel();
        self.retiring.close();
        let stopped = async {
            let all = futures_util::future::join_all(servers.iter().map(|server| async {
                server.close("the proxy stops").await;
                server.flush().await;
            }));
            tokio::join!(all, self.retiring.wait())
        };
        // A server that is just being started is not waited for: what it has become by then is
        // ended by the reaping below, or with this process.
        if tokio::time::timeout(DRAIN, stopped).await.is_err() {
            tracing::warn!("not every server could be stopped in time");
        }
        if let Ok(engine) = self.launcher.engine.now()
            && let Err(fault) = engine.reap(&self.launcher.instance).await
        {
            tracing::warn!(%fault, "containers could not be removed");
        }
        let counts = async {
            self.summarize_refusals(true).await;
            self.tell_of_drops().await;
        };
        if tokio::time::timeout(DRAIN, counts).await.is_err() {
            tracing::error!("last counts of refusals and dropped messages not recorded");
        }
        let what =
            portcullis_audit::record::Event::ProxyStopped { reason: Some(reason.to_owned()) };
        if let Err(error) = self.audit.record_event(what).await {
            tracing::error!(%error, "shutdown could not be recorded");
        }
        self.exports.finish(LAST_EXPORT).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ipv6_address_counts_as_its_network() {
        for (address, counted) in [
            ("192.0.2.1", "192.0.2.1"),
            ("::ffff:192.0.2.1", "192.0.2.1"),
            ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::"),
        ] {
            let counted: IpAddr = counted.parse().unwrap();
            assert_eq!(network(address.parse().unwrap()), counted, "{address}");
        }
    }
}
