//! Which refusals get a record of their own. Whoever need not be known to be refused (a stranger
//! at the door, a server with questions) could fill the audit log's disk with refusals. Beyond a
//! rate they are counted, and the count is recorded: nothing goes wholly unrecorded.

use std::{
    net::{IpAddr, SocketAddr},
    num::NonZeroU32,
    time::{Duration, Instant},
};

use governor::{DefaultDirectRateLimiter, DefaultKeyedRateLimiter, Quota, RateLimiter};
use jiff::Timestamp;
use parking_lot::Mutex;

use super::network;
use crate::{names::ServerName, upstream::PartyKey};

/// Records a second, and at once, of one network.
const OF_ONE: (u32, u32) = (20, 100);
/// Records a second, and at once, of what one server says for one client, or for all.
const OF_SERVER: (u32, u32) = (10, 50);
/// Records a second, and at once, of what the admin socket refuses.
const OF_ADMIN: (u32, u32) = (5, 50);
/// Records a second, and at once, of all.
const OF_ALL: (u32, u32) = (100, 500);
/// Networks that are counted apart; while there are more, refusals of the rest are only counted.
const NETWORKS: usize = 10_000;
/// How long refusals are counted before the count is recorded.
const INTERVAL: Duration = Duration::from_secs(10);

/// What limits the records of refusals.
pub(super) struct Refusals {
    /// By network; `None` is whoever comes over no network.
    networks: DefaultKeyedRateLimiter<Option<IpAddr>>,
    servers: DefaultKeyedRateLimiter<Speaker>,
    /// What tells of changes, apart: other chatter must not swallow it.
    changes: DefaultKeyedRateLimiter<Speaker>,
    /// What strangers at the admin socket do must not swallow what clients do.
    admin: DefaultDirectRateLimiter,
    all: DefaultDirectRateLimiter,
    excess: Mutex<Option<Excess>>,
}

/// A server, and for whom alone it speaks: what one client's instance says must not silence
/// another's.
type Speaker = (ServerName, Option<PartyKey>);

/// Refusals without a record of their own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Excess {
    pub count: u64,
    /// When the first of them was refused.
    pub since: Timestamp,
    began: Instant,
}

impl Refusals {
    pub fn new() -> Self {
        Self {
            networks: RateLimiter::keyed(quota(OF_ONE)),
            servers: RateLimiter::keyed(quota(OF_SERVER)),
            changes: RateLimiter::keyed(quota(OF_SERVER)),
            admin: RateLimiter::direct(quota(OF_ADMIN)),
            all: RateLimiter::direct(quota(OF_ALL)),
            excess: Mutex::new(None),
        }
    }

    /// Whether a refusal of one that comes from this address is recorded; if not, it is counted.
    pub fn of_address(&self, address: Option<SocketAddr>) -> bool {
        let network = address.map(|address| network(address.ip()));
        self.networks.len() <= NETWORKS
            && self.networks.check_key(&network).is_ok()
            && self.all.check().is_ok()
            || self.count()
    }

    /// Whether a refusal at the admin socket is recorded; if not, it is counted.
    pub fn of_admin(&self) -> bool {
        self.admin.check().is_ok() || self.count()
    }

    /// Whether what a server says unasked is taken and recorded by itself; if not, it is counted.
    pub fn of_server(&self, server: &ServerName, party: Option<&PartyKey>) -> bool {
        self.servers.check_key(&(server.clone(), party.cloned())).is_ok() || self.count()
    }

    /// Whether a change of which a server tells is handed on; if not, it is counted.
    pub fn of_changes(&self, server: &ServerName, party: Option<&PartyKey>) -> bool {
        self.changes.check_key(&(server.clone(), party.cloned())).is_ok() || self.count()
    }

    fn count(&self) -> bool {
        self.add(Excess { count: 1, since: Timestamp::now(), began: Instant::now() });
        false
    }

    /// Counts refusals; also those whose count could not be recorded.
    pub fn add(&self, more: Excess) {
        let mut excess = self.excess.lock();
        *excess = Some(match *excess {
            Some(known) => Excess {
                count: known.count.saturating_add(more.count),
                since: known.since.min(more.since),
                began: known.began.min(more.began),
            },
            None => more,
        });
    }

    /// What is to be recorded of those that were counted: nothing before the interval is over,
    /// but at the end.
    pub fn take(&self, end: bool) -> Option<Excess> {
        self.excess.lock().take_if(|excess| end || excess.began.elapsed() >= INTERVAL)
    }

    /// Forgets who is at rest.
    pub fn sweep(&self) {
        self.networks.retain_recent();
        self.networks.shrink_to_fit();
        self.servers.retain_recent();
        self.servers.shrink_to_fit();
        self.changes.retain_recent();
        self.changes.shrink_to_fit();
    }
}

fn quota((rate, burst): (u32, u32)) -> Quota {
    let of = |count| NonZeroU32::new(count).unwrap_or(NonZeroU32::MIN);
    Quota::per_second(of(rate)).allow_burst(of(burst))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::names::SessionId;

    #[test]
    fn a_flood_is_counted_and_others_are_still_recorded() {
        let refusals = Refusals::new();
        let flood: SocketAddr = "192.0.2.1:1".parse().unwrap();
        let recorded = (0..5_000).filter(|_| refusals.of_address(Some(flood))).count();
        assert!((100..5_000).contains(&recorded), "{recorded}");
        assert!(refusals.of_address(Some("192.0.2.2:1".parse().unwrap())));
        assert!(refusals.of_address(None));
        let admin = (0..5_000).filter(|_| refusals.of_admin()).count();
        assert!((50..5_000).contains(&admin), "{admin}");
        let server: ServerName = "notes".parse().unwrap();
        let asked = (0..5_000).filter(|_| refusals.of_server(&server, None)).count();
        assert!((50..5_000).contains(&asked), "{asked}");
        // Neither another client's instance nor what tells of changes is silenced by that.
        let session = PartyKey::Session(SessionId::presented("x"));
        assert!(refusals.of_server(&server, Some(&session)));
        assert!(refusals.of_changes(&server, None));

        assert_eq!(refusals.take(false), None, "the interval is not over");
        let excess = refusals.take(true).unwrap();
        assert_eq!(excess.count, 15_000 - (recorded + admin + asked) as u64);
        assert_eq!(refusals.take(true), None);
        refusals.add(excess);
        assert_eq!(refusals.take(true), Some(excess));
    }
}
