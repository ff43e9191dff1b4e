//! Limits of the TCP listener's open connections.
//!
//! INVARIANT: unauthenticated connections take no slot of a client with a key. They share one part
//! of all slots, and a new one always gets a slot there: the oldest connection of a network with
//! too many is closed for it. A connection moves to the other part with its first request that
//! presents a valid key, and counts for the principal of that key from then on. A trusted proxy
//! that forwards requests of many clients has slots in that part, too; each of its connections
//! counts for the client of its current request. If slots are missing, its connection that was idle
//! longest is closed. The last slots of that part are for principals with few connections.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, HashMap},
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::client_network::network;
use portcullis_chain::Party;
use portcullis_config::ConnectionBounds;
use portcullis_protocol::{
    identity::PrincipalKind,
    refusal::{Code, Refusal},
};

/// Interval between log lines about displaced or refused connections.
const LOG_INTERVAL: Duration = Duration::from_secs(10);
/// Divisor of the authenticated slots that gives the part for principals with few connections.
const SHARE_OF_FEW: usize = 8;
/// A principal has few connections if it has fewer than these.
const FEW: usize = 8;

/// All open connections of a listener.
pub(super) struct ConnectionTable {
    bounds: ConnectionBounds,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Number of the next connection. Numbers grow, so a lower one is older.
    next: u64,
    /// Notifiers that close unauthenticated connections, by network and number.
    unauthenticated: HashMap<IpAddr, BTreeMap<u64, Arc<Notify>>>,
    /// Number of unauthenticated connections.
    unauthenticated_count: usize,
    /// Number of open connections of clients and of trusted proxies.
    authenticated_count: usize,
    /// Notifiers that close idle connections of trusted proxies, by the start of idleness: a lower
    /// number is longer ago.
    idle_proxies: BTreeMap<u64, Arc<Notify>>,
    /// Number of connections of each principal.
    clients: HashMap<PrincipalKind, usize>,
    /// Number of requests without a key that trusted proxies forward, by network.
    anonymous: HashMap<IpAddr, usize>,
    displaced: UnloggedEvents,
    /// Refused connections of trusted proxies.
    refused_proxies: UnloggedEvents,
}

/// Events that are not logged yet.
#[derive(Default)]
struct UnloggedEvents {
    count: u64,
    logged: Option<Instant>,
}

impl UnloggedEvents {
    /// Counts an event. Returns the count if it is due to be logged.
    fn add(&mut self) -> Option<u64> {
        self.count += 1;
        if self.logged.is_some_and(|logged| logged.elapsed() < LOG_INTERVAL) {
            return None;
        }
        self.logged = Some(Instant::now());
        Some(std::mem::take(&mut self.count))
    }
}

/// The slot of one connection, released on drop.
pub(super) struct ConnectionPermit {
    table: Arc<ConnectionTable>,
    number: u64,
    /// The party whose work the connection is. A lock of its own: wakes of the connection's task
    /// read it, also while the table is locked.
    party: Arc<Mutex<Party>>,
    displaced: Arc<Notify>,
    slot: Mutex<Slot>,
}

/// Owner that a connection counts for.
enum Slot {
    /// A network whose connection has not authenticated.
    Unauthenticated(IpAddr),
    Client(PrincipalKind),
    /// A trusted proxy that forwards requests of many clients.
    Proxy(Forwarding),
}

/// Owner of the request on a trusted proxy's connection.
enum Forwarding {
    /// No request, since this number in [`State::idle_proxies`].
    Idle(u64),
    /// Not known yet.
    Unknown,
    Client(PrincipalKind),
    /// A caller without a key.
    Anonymous(IpAddr),
}

/// A request on a trusted proxy's connection. Dropping it ends what the connection counts for.
pub(super) struct RequestGuard(Arc<ConnectionPermit>);

impl RequestGuard {
    pub fn new(permit: Arc<ConnectionPermit>) -> Self {
        permit.begin_request();
        Self(permit)
    }
}

impl Drop for RequestGuard {
    fn drop(&mut self) {
        self.0.end_request();
    }
}

impl ConnectionTable {
    pub fn new(bounds: ConnectionBounds) -> Self {
        Self { bounds, state: Mutex::default() }
    }

    /// A slot for a connection from this address, and whether another one was closed for it.
    pub fn admit(self: &Arc<Self>, address: IpAddr) -> (ConnectionPermit, bool) {
        let network = network(address);
        let mut state = self.state.lock();
        let displaced = Arc::new(Notify::new());
        let slot = Slot::Unauthenticated(network);
        let permit = self.permit(&mut state, network, displaced, slot);
        let crowded = state.insert(network, permit.number, permit.displaced.clone(), &self.bounds);
        (permit, crowded)
    }

    /// A slot for a connection of a trusted proxy; `None` if all are taken.
    pub fn admit_proxy(self: &Arc<Self>, address: IpAddr) -> Option<ConnectionPermit> {
        let mut state = self.state.lock();
        if !state.make_room(&self.bounds) {
            if let Some(count) = state.refused_proxies.add() {
                tracing::warn!(
                    count,
                    %address,
                    "connections of trusted proxies closed: too many are open",
                );
            }
            return None;
        }
        state.authenticated_count += 1;
        let displaced = Arc::new(Notify::new());
        let slot = Slot::Proxy(state.idle(&displaced));
        Some(self.permit(&mut state, network(address), displaced, slot))
    }

    fn permit(
        self: &Arc<Self>,
        state: &mut State,
        network: IpAddr,
        displaced: Arc<Notify>,
        slot: Slot,
    ) -> ConnectionPermit {
        let number = state.number();
        let (slot, party) = (Mutex::new(slot), Arc::new(Mutex::new(Party::Network(network))));
        ConnectionPermit { table: self.clone(), number, party, displaced, slot }
    }
}

impl ConnectionPermit {
    /// Returns when the connection must close for another. If a request with a key arrives at that
    /// moment, the connection has a slot of its client and stays.
    pub async fn displaced(&self) {
        loop {
            self.displaced.notified().await;
            if !self.has_slot() {
                return;
            }
        }
    }

    /// The party whose work the connection is: its client; a trusted proxy's connection is that of
    /// the newest request's client; before that, the network of the peer.
    pub fn party(&self) -> Arc<Mutex<Party>> {
        self.party.clone()
    }

    /// Whether it is a trusted proxy's, with requests of many clients.
    pub fn is_proxy(&self) -> bool {
        matches!(*self.slot.lock(), Slot::Proxy(_))
    }

    fn has_slot(&self) -> bool {
        let slot = self.slot.lock();
        self.table.state.lock().has(&slot, self.number)
    }

    /// Counts a trusted proxy's connection as busy. If it was displaced, it stays if there is a
    /// free slot.
    fn begin_request(&self) {
        let mut slot = self.slot.lock();
        let Slot::Proxy(forwarding) = &mut *slot else { return };
        let Forwarding::Idle(since) = *forwarding else { return };
        let mut state = self.table.state.lock();
        if state.idle_proxies.remove(&since).is_none() {
            if !state.make_room(&self.table.bounds) {
                return;
            }
            state.authenticated_count += 1;
        }
        *forwarding = Forwarding::Unknown;
    }

    /// Counts a trusted proxy's connection for its only client, by the client's address.
    pub fn dedicate(&self, client: IpAddr) {
        let network = network(client);
        let mut slot = self.slot.lock();
        let mut state = self.table.state.lock();
        state.leave(&slot, self.number);
        state.insert(network, self.number, self.displaced.clone(), &self.table.bounds);
        *slot = Slot::Unauthenticated(network);
        *self.party.lock() = Party::Network(network);
    }

    /// Counts the connection, or the request that a trusted proxy forwards, for an authenticated
    /// principal.
    ///
    /// # Errors
    /// `rate-limited` if the principal, or all of them, have no free slot. The connection then
    /// counts as before.
    pub fn authenticate(&self, principal: &PrincipalKind) -> Result<(), Refusal> {
        let mut slot = self.slot.lock();
        let is_proxy = match &*slot {
            Slot::Client(owner) | Slot::Proxy(Forwarding::Client(owner)) if owner == principal => {
                return Ok(());
            }
            Slot::Proxy(_) => true,
            Slot::Unauthenticated(_) | Slot::Client(_) => false,
        };
        let bounds = &self.table.bounds;
        let mut state = self.table.state.lock();
        let open = state.clients.get(principal).copied().unwrap_or_default();
        if open >= bounds.per_client {
            return Err(full("too many connections of this client are open")
                .detail(format!("limits.connections.per-client = {}", bounds.per_client)));
        }
        let has_slot = !matches!(*slot, Slot::Unauthenticated(_)) && state.has(&slot, self.number);
        let is_idle = matches!(*slot, Slot::Proxy(Forwarding::Idle(_)));
        let idle = state.idle_proxies.len() - usize::from(is_idle && has_slot);
        let busy_others = state.authenticated_count - usize::from(has_slot) - idle;
        let (most, whom) = match open < FEW {
            true => (bounds.authenticated, "authenticated clients"),
            false => (
                bounds.authenticated - bounds.authenticated / SHARE_OF_FEW,
                "clients that have many connections",
            ),
        };
        if busy_others >= most || !has_slot && !state.make_room(bounds) {
            return Err(full("too many connections are open")
                .detail(format!("limits.connections: {most} are for {whom}")));
        }
        *state.clients.entry(principal.clone()).or_default() += 1;
        let principal = principal.clone();
        *self.party.lock() = Party::Client(principal.clone());
        let next = if is_proxy {
            Slot::Proxy(Forwarding::Client(principal))
        } else {
            Slot::Client(principal)
        };
        let before = std::mem::replace(&mut *slot, next);
        state.leave(&before, self.number);
        state.authenticated_count += 1;
        Ok(())
    }

    /// Counts a request without a key that a trusted proxy forwards for its client's network. The
    /// client's own connections already count.
    ///
    /// # Errors
    /// `rate-limited` if the network has no free slot.
    pub fn forward_anonymous(&self, client: IpAddr) -> Result<(), Refusal> {
        let mut slot = self.slot.lock();
        let forwarding = match &mut *slot {
            Slot::Proxy(forwarding @ Forwarding::Unknown) => forwarding,
            Slot::Proxy(Forwarding::Idle(_)) => return Err(full("too many connections are open")),
            _ => return Ok(()),
        };
        let network = network(client);
        let most = self.table.bounds.unauthenticated_per_network;
        let mut state = self.table.state.lock();
        let open = state.anonymous.entry(network).or_default();
        if *open >= most {
            return Err(full("too many requests without a key come from this address")
                .detail(format!("limits.connections.unauthenticated-per-network = {most}")));
        }
        *open += 1;
        *forwarding = Forwarding::Anonymous(network);
        *self.party.lock() = Party::Network(network);
        Ok(())
    }

    /// Ends what the request of a trusted proxy's connection counts for.
    fn end_request(&self) {
        let mut slot = self.slot.lock();
        if let Slot::Proxy(forwarding) = &mut *slot
            && !matches!(forwarding, Forwarding::Idle(_))
        {
            let mut state = self.table.state.lock();
            state.end_forwarding(forwarding);
            *forwarding = state.idle(&self.displaced);
        }
    }
}

impl Drop for ConnectionPermit {
    fn drop(&mut self) {
        self.table.state.lock().leave(self.slot.get_mut(), self.number);
    }
}

impl State {
    /// Adds an unauthenticated connection, and closes another if there are too many. Returns
    /// whether it closed one.
    fn insert(
        &mut self,
        network: IpAddr,
        number: u64,
        displaced: Arc<Notify>,
        bounds: &ConnectionBounds,
    ) -> bool {
        let own = self.unauthenticated.get(&network).map_or(0, BTreeMap::len);
        let full = if own >= bounds.unauthenticated_per_network {
            Some(network)
        } else if self.unauthenticated_count >= bounds.unauthenticated {
            let networks = self.unauthenticated.iter();
            let fullest = networks.max_by_key(|(_, open)| {
                let oldest = open.keys().next().copied();
                (open.len(), Reverse(oldest))
            });
            fullest.map(|(network, _)| *network)
        } else {
            None
        };
        if let Some(full) = full {
            self.displace(full);
        }
        self.unauthenticated.entry(network).or_default().insert(number, displaced);
        self.unauthenticated_count += 1;
        full.is_some()
    }

    /// Closes the oldest unauthenticated connection of a network.
    fn displace(&mut self, network: IpAddr) {
        let oldest = self.unauthenticated.get_mut(&network).and_then(BTreeMap::pop_first);
        let Some((_, displaced)) = oldest else { return };
        displaced.notify_one();
        self.forget_if_empty(network);
        self.unauthenticated_count -= 1;
        if let Some(count) = self.displaced.add() {
            tracing::warn!(
                count,
                %network,
                "connections without a key closed to make room for newer ones",
            );
        }
    }

    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    /// Marks a connection of a trusted proxy as idle from now on.
    fn idle(&mut self, displaced: &Arc<Notify>) -> Forwarding {
        let since = self.number();
        self.idle_proxies.insert(since, displaced.clone());
        Forwarding::Idle(since)
    }

    /// Whether there is a slot for a connection of a client or a trusted proxy. If necessary,
    /// closes the trusted proxy's connection that was idle longest.
    fn make_room(&mut self, bounds: &ConnectionBounds) -> bool {
        if self.authenticated_count < bounds.authenticated {
            return true;
        }
        let Some((_, oldest)) = self.idle_proxies.pop_first() else { return false };
        oldest.notify_one();
        self.authenticated_count -= 1;
        true
    }

    /// Whether a connection was not displaced.
    fn has(&self, slot: &Slot, number: u64) -> bool {
        match slot {
            Slot::Unauthenticated(network) => {
                self.unauthenticated.get(network).is_some_and(|open| open.contains_key(&number))
            }
            Slot::Proxy(Forwarding::Idle(since)) => self.idle_proxies.contains_key(since),
            Slot::Proxy(_) | Slot::Client(_) => true,
        }
    }

    /// Releases what a connection counts for.
    fn leave(&mut self, slot: &Slot, number: u64) {
        match slot {
            Slot::Unauthenticated(network) => {
                // A displaced connection was removed already.
                let open = self.unauthenticated.get_mut(network);
                if open.is_some_and(|open| open.remove(&number).is_some()) {
                    self.unauthenticated_count -= 1;
                    self.forget_if_empty(*network);
                }
            }
            Slot::Client(principal) => {
                self.authenticated_count -= 1;
                decrease(&mut self.clients, principal);
            }
            Slot::Proxy(Forwarding::Idle(since)) => {
                // A displaced connection was removed already.
                if self.idle_proxies.remove(since).is_some() {
                    self.authenticated_count -= 1;
                }
            }
            Slot::Proxy(forwarding) => {
                self.authenticated_count -= 1;
                self.end_forwarding(forwarding);
            }
        }
    }

    fn end_forwarding(&mut self, forwarding: &Forwarding) {
        match forwarding {
            Forwarding::Idle(_) | Forwarding::Unknown => {}
            Forwarding::Client(principal) => decrease(&mut self.clients, principal),
            Forwarding::Anonymous(network) => decrease(&mut self.anonymous, network),
        }
    }

    fn forget_if_empty(&mut self, network: IpAddr) {
        if self.unauthenticated.get(&network).is_some_and(BTreeMap::is_empty) {
            self.unauthenticated.remove(&network);
        }
    }
}

fn full(message: &str) -> Refusal {
    Refusal::new(Code::RateLimited, message).retry_after(Duration::from_secs(1))
}

/// Decreases a count, and removes it at zero.
fn decrease<K: std::hash::Hash + Eq>(counts: &mut HashMap<K, usize>, key: &K) {
    if let Some(count) = counts.get_mut(key) {
        *count -= 1;
        if *count == 0 {
            counts.remove(key);
        }
    }
}

#[cfg(test)]
mod tests;
