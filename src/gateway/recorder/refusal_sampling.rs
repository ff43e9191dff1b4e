//! Sampling of refusals: which get a record of their own, and how the others are counted.
//!
//! A refusal costs its sender little and the audit log a synced record, so a flood of refusals
//! could fill the log's disk. Each source of refusals (a principal, a network without a proven
//! identity, a server, the admin socket) has a rate up to which each of its refusals is recorded by
//! itself. Refusals beyond that rate are counted in a [`Summary`] by principal, server, code and
//! network. They share its decision id.
//!
//! INVARIANTS
//! - A decision id is on record before it leaves the proxy: as that of the refusal's own record, or
//!   as that of an opened summary. Only a log that takes no records at all is an exception.
//! - Callers without a proven identity use up no records of a principal, and no principal or
//!   server uses up those of another.
//! - What a flood takes of memory and of the log is bounded: by the rates, and by the summaries
//!   that one source may have open at once.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    num::NonZeroU32,
    sync::{Arc, OnceLock},
    time::{Duration, Instant},
};

use futures_util::{StreamExt as _, stream};
use governor::{DefaultDirectRateLimiter, DefaultKeyedRateLimiter, Quota, RateLimiter};
use jiff::Timestamp;
use parking_lot::Mutex;
use tokio::sync::watch;

use super::Recorder;
use crate::client_network::network;
use portcullis_audit::{
    Audit,
    record::{RefusalGroup, RefusalSummaryOpened, RefusalsSummarized},
};
use portcullis_protocol::{
    identity::{Principal, PrincipalKind},
    names::{DecisionId, ServerName},
    refusal::Code,
};
use portcullis_upstream::InstanceKey;

/// Records a second, and burst, of one principal with a proven identity.
const PRINCIPAL_RATE: (u32, u32) = (100, 1_000);
/// Records a second, and burst, of all other callers of one network.
const NETWORK_RATE: (u32, u32) = (20, 100);
/// Records a second, and burst, of all other callers of all networks.
const NETWORKS_RATE: (u32, u32) = (100, 500);
/// Records a second, and burst, of one server's messages for one client, or for all.
const SERVER_RATE: (u32, u32) = (10, 50);
/// Records a second, and burst, of the admin socket's refusals.
const ADMIN_RATE: (u32, u32) = (5, 50);
/// Networks whose rates are counted. While there are more, further networks get no records of their
/// own.
const MAX_NETWORKS: usize = 10_000;
/// Open summaries of all callers without a proven identity, besides one for each code.
const MAX_STRANGERS_SUMMARIES: usize = 256;
/// Open summaries of any other source, besides one for each code.
const MAX_SUMMARIES: usize = 64;
/// Time for which refusals are counted before the count is recorded.
const INTERVAL: Duration = Duration::from_secs(10);
/// Counts that wait for the disk at once.
const WRITES: usize = 32;

/// Limits the records of refusals, and counts the refusals without a record.
pub(crate) struct RefusalSampler {
    principals: DefaultKeyedRateLimiter<PrincipalKind>,
    /// By network; `None` stands for callers that do not use a network.
    networks: DefaultKeyedRateLimiter<Option<IpAddr>>,
    all_networks: DefaultDirectRateLimiter,
    servers: DefaultKeyedRateLimiter<ServerSource>,
    /// Notifications of changed lists, separate so that other messages do not displace them.
    changes: DefaultKeyedRateLimiter<ServerSource>,
    admin: DefaultDirectRateLimiter,
    open: Mutex<HashMap<Source, HashMap<RefusalGroup, Open>>>,
}

/// A server, and the client of its dedicated instance, if any: messages of one client's instance
/// must not silence another's.
type ServerSource = (ServerName, Option<InstanceKey>);

/// Source whose refusals are counted separately.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Source {
    Principal(PrincipalKind),
    /// Callers without a proven identity.
    Strangers,
    Server(ServerName),
    Admin,
}

/// A summary and its count that is not recorded yet.
struct Open {
    summary: Arc<Summary>,
    count: u64,
    /// Time of the first refusal in the count.
    since: Timestamp,
    began: Instant,
}

/// Refusals that share a decision id because they have no records of their own.
pub(crate) struct Summary {
    pub id: DecisionId,
    group: RefusalGroup,
    /// Becomes true once opening it in the log was attempted. Empty until the id is first used.
    opened: OnceLock<watch::Receiver<bool>>,
}

/// A count that is to be recorded.
struct Due {
    source: Source,
    summary: Arc<Summary>,
    count: u64,
    since: Timestamp,
}

impl Summary {
    /// Waits until the id is on record. This is attempted once. If the log takes no records then,
    /// the count of these refusals puts the id on record later.
    pub async fn on_record(self: &Arc<Self>, audit: &Audit) {
        let opened = self.opened.get_or_init(|| {
            let (sender, receiver) = watch::channel(false);
            let (summary, audit) = (self.clone(), audit.clone());
            // A task of its own: a caller that goes away while it waits must not cause another
            // record.
            tokio::spawn(async move {
                let what = RefusalSummaryOpened { group: summary.group.clone() };
                if let Err(error) = audit.record_event_as(summary.id, what).await {
                    let decision = summary.id;
                    tracing::error!(%decision, %error, "a summary of refusals could not be recorded");
                }
                let _ = sender.send(true);
            });
            receiver
        });
        // Fails only if the task ended early, which counts as its end.
        let _ = opened.clone().wait_for(|done| *done).await;
    }
}

impl RefusalSampler {
    pub fn new() -> Self {
        Self {
            principals: RateLimiter::keyed(quota(PRINCIPAL_RATE)),
            networks: RateLimiter::keyed(quota(NETWORK_RATE)),
            all_networks: RateLimiter::direct(quota(NETWORKS_RATE)),
            servers: RateLimiter::keyed(quota(SERVER_RATE)),
            changes: RateLimiter::keyed(quota(SERVER_RATE)),
            admin: RateLimiter::direct(quota(ADMIN_RATE)),
            open: Mutex::default(),
        }
    }

    /// The summary that counts a refusal on arrival; `None` if it gets a record of its own.
    pub fn on_arrival(
        &self,
        code: Code,
        principal: Option<&Principal>,
        address: Option<SocketAddr>,
    ) -> Option<Arc<Summary>> {
        let network = address.map(|address| network(address.ip()));
        let verified = principal.filter(|principal| principal.verified);
        let (source, recorded) = match verified {
            Some(verified) => {
                let recorded = self.principals.check_key(&verified.kind).is_ok();
                (Source::Principal(verified.kind.clone()), recorded)
            }
            None => {
                let recorded = self.networks.len() <= MAX_NETWORKS
                    && self.networks.check_key(&network).is_ok()
                    && self.all_networks.check().is_ok();
                (Source::Strangers, recorded)
            }
        };
        (!recorded).then(|| {
            self.count(
                source,
                RefusalGroup {
                    principal: principal.map(Principal::name),
                    network: network.map(shown),
                    ..RefusalGroup::of(code.as_str())
                },
            )
        })
    }

    /// Whether a refusal at the admin socket gets a record of its own; if not, it is counted.
    pub fn of_admin(&self, user: &str, code: &'static str) -> bool {
        let recorded = self.admin.check().is_ok();
        if !recorded {
            let principal = Some(PrincipalKind::Local { user: user.to_owned() }.name());
            self.count(Source::Admin, RefusalGroup { principal, ..RefusalGroup::of(code) });
        }
        recorded
    }

    /// The summary that counts a refusal of a server's message; `None` if it gets a record of its
    /// own.
    pub fn of_server(&self, server: &ServerName, code: &'static str) -> Option<Arc<Summary>> {
        let recorded = self.admits(server, None);
        (!recorded).then(|| self.dropped(server, code))
    }

    /// Whether a server message outside of calls is accepted, within its rate.
    pub fn admits(&self, server: &ServerName, party: Option<&InstanceKey>) -> bool {
        self.servers.check_key(&(server.clone(), party.cloned())).is_ok()
    }

    /// Whether a server's change notification is forwarded, within its rate.
    pub fn admits_change(&self, server: &ServerName, party: Option<&InstanceKey>) -> bool {
        self.changes.check_key(&(server.clone(), party.cloned())).is_ok()
    }

    /// Counts a server message beyond its rate.
    pub fn dropped(&self, server: &ServerName, code: &'static str) -> Arc<Summary> {
        let group = RefusalGroup { server: Some(server.to_string()), ..RefusalGroup::of(code) };
        self.count(Source::Server(server.clone()), group)
    }

    fn count(&self, source: Source, group: RefusalGroup) -> Arc<Summary> {
        let mut open = self.open.lock();
        let most = match source {
            Source::Strangers => MAX_STRANGERS_SUMMARIES,
            Source::Principal(_) | Source::Server(_) | Source::Admin => MAX_SUMMARIES,
        };
        let group = match open.get(&source) {
            Some(groups) if groups.len() >= most && !groups.contains_key(&group) => {
                group.among_others(matches!(source, Source::Principal(_)))
            }
            _ => group,
        };
        let groups = open.entry(source).or_default();
        let open = groups.entry(group).or_insert_with_key(|group| {
            let (id, opened) = (DecisionId::next(), OnceLock::new());
            let summary = Arc::new(Summary { id, group: group.clone(), opened });
            Open { summary, count: 0, since: Timestamp::now(), began: Instant::now() }
        });
        open.count = open.count.saturating_add(1);
        open.summary.clone()
    }

    /// The counts to record now: those whose interval is over, or with `end` all.
    fn due(&self, end: bool) -> Vec<Due> {
        let open = self.open.lock();
        let all = open
            .iter()
            .flat_map(|(source, groups)| groups.values().map(move |open| (source, open)));
        all.filter(|(_, open)| end || open.began.elapsed() >= INTERVAL)
            .map(|(source, Open { summary, count, since, .. })| Due {
                source: source.clone(),
                summary: summary.clone(),
                count: *count,
                since: *since,
            })
            .collect()
    }

    /// Subtracts the recorded count. A summary that counted more meanwhile keeps its id.
    fn recorded(&self, due: &Due) {
        let mut all = self.open.lock();
        let Some(groups) = all.get_mut(&due.source) else { return };
        if let Some(open) = groups.get_mut(&due.summary.group) {
            open.count = open.count.saturating_sub(due.count);
            (open.since, open.began) = (Timestamp::now(), Instant::now());
            if open.count == 0 {
                groups.remove(&due.summary.group);
            }
        }
        if groups.is_empty() {
            all.remove(&due.source);
        }
    }

    /// Forgets the rates of inactive sources.
    fn sweep(&self) {
        self.principals.retain_recent();
        self.principals.shrink_to_fit();
        self.networks.retain_recent();
        self.networks.shrink_to_fit();
        self.servers.retain_recent();
        self.servers.shrink_to_fit();
        self.changes.retain_recent();
        self.changes.shrink_to_fit();
    }
}

impl Recorder {
    /// Records the counts of refusals without a record of their own, when they are due or with
    /// `end`. Counts that the log does not take are kept for the next time.
    pub(crate) async fn summarize_refusals(&self, end: bool) {
        self.refusals.sweep();
        let all = self.refusals.due(end);
        if all.is_empty() {
            return;
        }
        let (summaries, count) = (all.len(), all.iter().map(|due| due.count).sum::<u64>());
        tracing::warn!(count, summaries, "too many refusals; recording summaries");
        let written = stream::iter(all).map(|due| async move {
            if due.summary.opened.get().is_some() {
                due.summary.on_record(&self.audit).await;
            }
            let Due { summary, count, since, .. } = &due;
            let what =
                RefusalsSummarized { group: summary.group.clone(), count: *count, since: *since };
            match self.audit.record_event_as(summary.id, what).await {
                Ok(()) => self.refusals.recorded(&due),
                Err(error) => {
                    let decision = summary.id;
                    tracing::error!(%decision, %error, "a count of refusals could not be recorded");
                }
            }
        });
        written.buffer_unordered(WRITES).collect::<()>().await;
    }
}

/// A network as records show it: the address, or an IPv6 address's /64.
fn shown(network: IpAddr) -> String {
    match network {
        IpAddr::V4(address) => address.to_string(),
        IpAddr::V6(address) => format!("{address}/64"),
    }
}

fn quota((rate, burst): (u32, u32)) -> Quota {
    let of = |count| NonZeroU32::new(count).unwrap_or(NonZeroU32::MIN);
    Quota::per_second(of(rate)).allow_burst(of(burst))
}

#[cfg(test)]
mod tests {
    use std::net::Ipv6Addr;

    use super::*;
    use portcullis_protocol::names::SessionId;

    const CODE: Code = Code::Unauthenticated;

    fn at(address: &str) -> Option<SocketAddr> {
        Some(SocketAddr::new(address.parse().unwrap(), 1))
    }

    fn client(name: &str) -> Principal {
        Principal::client(name.parse().unwrap(), Vec::new())
    }

    fn counted(refusals: &RefusalSampler) -> u64 {
        refusals.due(true).iter().map(|due| due.count).sum()
    }

    #[test]
    fn one_source_does_not_exhaust_the_records_of_others() {
        let refusals = RefusalSampler::new();
        let (carol, dave) = (client("carol"), client("dave"));
        let stranger = |address: &str| refusals.on_arrival(CODE, None, at(address));
        // One network, then enough networks to use up the shared rate.
        let flood = (0..5_000).filter(|_| stranger("192.0.2.1").is_some()).count();
        assert!(flood > 4_000, "{flood}");
        (0..1_000_u32).for_each(|n| drop(stranger(&IpAddr::from(n.to_be_bytes()).to_string())));
        assert!(stranger("198.51.100.7").is_some());
        // From the same address.
        let probe = |who| refusals.on_arrival(Code::DuplicateKey, Some(who), at("192.0.2.1"));
        assert!((0..60).all(|_| probe(&carol).is_none()));
        assert!((0..6_000).any(|_| probe(&dave).is_some()));
        assert!((0..60).all(|_| probe(&carol).is_none()));
        // A caller without a key has no principal of its own.
        let nobody = Principal::anonymous();
        assert!(refusals.on_arrival(CODE, Some(&nobody), at("192.0.2.1")).is_some());

        let server: ServerName = "notes".parse().unwrap();
        assert!((0..5_000).any(|_| refusals.of_server(&server, "method-unknown").is_some()));
        assert!((0..5_000).any(|_| !refusals.of_admin("eve", "admin-role-missing")));
        // A server's flood silences neither another client's instance nor changed lists.
        let session = InstanceKey::Session(SessionId::presented("x"));
        assert!(refusals.admits(&server, Some(&session)));
        assert!(refusals.admits_change(&server, None));
    }

    #[test]
    fn refusals_share_an_id_by_principal_code_and_network() {
        let refusals = RefusalSampler::new();
        let summary = |code, who: Option<&Principal>, address| {
            let found = (0..20_000).find_map(|_| refusals.on_arrival(code, who, at(address)));
            found.expect("a flood")
        };
        let dave = client("dave");
        let first = summary(CODE, None, "192.0.2.1");
        for (code, who, address, same) in [
            (CODE, None, "192.0.2.1", true),
            (CODE, None, "192.0.2.2", false),
            (Code::ForbiddenOrigin, None, "192.0.2.1", false),
            (CODE, Some(&dave), "192.0.2.1", false),
        ] {
            let other = summary(code, who, address);
            assert_eq!(other.id == first.id, same, "{code} {who:?} {address}");
        }
        let one = summary(CODE, None, "2001:db8:1:2::1");
        assert_eq!(one.id, summary(CODE, None, "2001:db8:1:2::2").id);
        assert_eq!(one.group.network.as_deref(), Some("2001:db8:1:2::/64"));
    }

    #[test]
    fn recorded_counts_are_subtracted() {
        let refusals = RefusalSampler::new();
        let refuse = || refusals.on_arrival(CODE, None, at("192.0.2.1"));
        let left_out = (0..5_000).filter(|_| refuse().is_some()).count() as u64;
        assert!(refusals.due(false).is_empty(), "the interval is not over");
        let due = refusals.due(true);
        assert_eq!(due.iter().map(|due| due.count).sum::<u64>(), left_out);
        // Refusals that arrive while the count is written get another count of the same id.
        let id = refuse().expect("a flood").id;
        due.iter().for_each(|due| refusals.recorded(due));
        let rest = refusals.due(true);
        assert_eq!(
            rest.iter().map(|due| (due.summary.id, due.count)).collect::<Vec<_>>(),
            [(id, 1)]
        );
        rest.iter().for_each(|due| refusals.recorded(due));
        assert!(refusals.due(true).is_empty());
        assert_ne!(refuse().expect("a flood").id, id, "that summary is closed");
    }

    #[test]
    fn flood_summaries_are_limited_and_complete() {
        let refusals = RefusalSampler::new();
        let mut left_out = 0;
        for n in 0..20_000_u32 {
            let address = Ipv6Addr::from_bits((0x2001_0db8 << 96) | (u128::from(n) << 64));
            left_out +=
                u64::from(refusals.on_arrival(CODE, None, Some((address, 1).into())).is_some());
        }
        let dave = client("dave");
        for n in 0..20_000_u32 {
            let address = IpAddr::from(n.to_be_bytes());
            left_out += u64::from(
                refusals.on_arrival(CODE, Some(&dave), Some((address, 1).into())).is_some(),
            );
        }
        let due = refusals.due(true);
        assert_eq!(due.len(), MAX_STRANGERS_SUMMARIES + 1 + MAX_SUMMARIES + 1);
        assert_eq!(counted(&refusals), left_out);
        let others: Vec<_> =
            due.iter().map(|due| &due.summary.group).filter(|g| g.others).collect();
        assert_eq!(others.len(), 2);
        assert!(others.iter().all(|group| group.network.is_none()));
        assert!(others.iter().any(|group| group.principal.as_deref() == Some("dave")));
    }
}
