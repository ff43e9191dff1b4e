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

use crate::stages::network;
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
    displaced: Unlogged,
    /// Refused connections of trusted proxies.
    refused_proxies: Unlogged,
}

/// Events that are not logged yet.
#[derive(Default)]
struct Unlogged {
    count: u64,
    logged: Option<Instant>,
}

impl Unlogged {
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
    displaced: Arc<Notify>,
    place: Mutex<Place>,
}

/// Owner that a connection counts for.
enum Place {
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
        let permit = self.permit(&mut state, displaced, Place::Unauthenticated(network));
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
        let place = Place::Proxy(state.idle(&displaced));
        Some(self.permit(&mut state, displaced, place))
    }

    fn permit(
        self: &Arc<Self>,
        state: &mut State,
        displaced: Arc<Notify>,
        place: Place,
    ) -> ConnectionPermit {
        let number = state.number();
        ConnectionPermit { table: self.clone(), number, displaced, place: Mutex::new(place) }
    }
}

impl ConnectionPermit {
    /// Returns when the connection must close for another. If a request with a key arrives at that
    /// moment, the connection has a slot of its client and stays.
    pub async fn displaced(&self) {
        loop {
            self.displaced.notified().await;
            if !self.has_place() {
                return;
            }
        }
    }

    /// Whether it is a trusted proxy's, with requests of many clients.
    pub fn is_proxy(&self) -> bool {
        matches!(*self.place.lock(), Place::Proxy(_))
    }

    fn has_place(&self) -> bool {
        let place = self.place.lock();
        self.table.state.lock().has(&place, self.number)
    }

    /// Counts a trusted proxy's connection as busy. If it was displaced, it stays if there is a
    /// free slot.
    fn begin_request(&self) {
        let mut place = self.place.lock();
        let Place::Proxy(forwarding) = &mut *place else { return };
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
        let mut place = self.place.lock();
        let mut state = self.table.state.lock();
        state.leave(&place, self.number);
        state.insert(network, self.number, self.displaced.clone(), &self.table.bounds);
        *place = Place::Unauthenticated(network);
    }

    /// Counts the connection, or the request that a trusted proxy forwards, for an authenticated
    /// principal.
    ///
    /// # Errors
    /// `rate-limited` if the principal, or all of them, have no free slot. The connection then
    /// counts as before.
    pub fn authenticate(&self, principal: &PrincipalKind) -> Result<(), Refusal> {
        let mut place = self.place.lock();
        let is_proxy = match &*place {
            Place::Client(known) | Place::Proxy(Forwarding::Client(known))
                if known == principal =>
            {
                return Ok(());
            }
            Place::Proxy(_) => true,
            Place::Unauthenticated(_) | Place::Client(_) => false,
        };
        let bounds = &self.table.bounds;
        let mut state = self.table.state.lock();
        let open = state.clients.get(principal).copied().unwrap_or_default();
        if open >= bounds.per_client {
            return Err(full("too many connections of this client are open")
                .detail(format!("limits.connections.per-client = {}", bounds.per_client)));
        }
        let has_place =
            !matches!(*place, Place::Unauthenticated(_)) && state.has(&place, self.number);
        let is_idle = matches!(*place, Place::Proxy(Forwarding::Idle(_)));
        let idle = state.idle_proxies.len() - usize::from(is_idle && has_place);
        let busy_others = state.authenticated_count - usize::from(has_place) - idle;
        let (most, whom) = match open < FEW {
            true => (bounds.authenticated, "authenticated clients"),
            false => (
                bounds.authenticated - bounds.authenticated / SHARE_OF_FEW,
                "clients that have many connections",
            ),
        };
        if busy_others >= most || !has_place && !state.make_room(bounds) {
            return Err(full("too many connections are open")
                .detail(format!("limits.connections: {most} are for {whom}")));
        }
        *state.clients.entry(principal.clone()).or_default() += 1;
        let principal = principal.clone();
        let next = if is_proxy {
            Place::Proxy(Forwarding::Client(principal))
        } else {
            Place::Client(principal)
        };
        let before = std::mem::replace(&mut *place, next);
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
        let mut place = self.place.lock();
        let forwarding = match &mut *place {
            Place::Proxy(forwarding @ Forwarding::Unknown) => forwarding,
            Place::Proxy(Forwarding::Idle(_)) => return Err(full("too many connections are open")),
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
        Ok(())
    }

    /// Ends what the request of a trusted proxy's connection counts for.
    fn end_request(&self) {
        let mut place = self.place.lock();
        if let Place::Proxy(forwarding) = &mut *place
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
        self.table.state.lock().leave(self.place.get_mut(), self.number);
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
    fn has(&self, place: &Place, number: u64) -> bool {
        match place {
            Place::Unauthenticated(network) => {
                self.unauthenticated.get(network).is_some_and(|open| open.contains_key(&number))
            }
            Place::Proxy(Forwarding::Idle(since)) => self.idle_proxies.contains_key(since),
            Place::Proxy(_) | Place::Client(_) => true,
        }
    }

    /// Releases what a connection counts for.
    fn leave(&mut self, place: &Place, number: u64) {
        match place {
            Place::Unauthenticated(network) => {
                // A displaced connection was removed already.
                let open = self.unauthenticated.get_mut(network);
                if open.is_some_and(|open| open.remove(&number).is_some()) {
                    self.unauthenticated_count -= 1;
                    self.forget_if_empty(*network);
                }
            }
            Place::Client(principal) => {
                self.authenticated_count -= 1;
                decrease(&mut self.clients, principal);
            }
            Place::Proxy(Forwarding::Idle(since)) => {
                // A displaced connection was removed already.
                if self.idle_proxies.remove(since).is_some() {
                    self.authenticated_count -= 1;
                }
            }
            Place::Proxy(forwarding) => {
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
mod tests {
    use super::*;

    const BOUNDS: ConnectionBounds = ConnectionBounds {
        unauthenticated: 4,
        unauthenticated_per_network: 2,
        authenticated: 4,
        per_client: 2,
    };

    fn table() -> Arc<ConnectionTable> {
        Arc::new(ConnectionTable::new(BOUNDS))
    }

    fn admit(table: &Arc<ConnectionTable>, address: &str) -> ConnectionPermit {
        table.admit(address.parse().unwrap()).0
    }

    fn client(name: &str) -> PrincipalKind {
        PrincipalKind::Client(name.parse().unwrap())
    }

    /// Whether each of these was closed.
    fn closed<const N: usize>(permits: [&ConnectionPermit; N]) -> [bool; N] {
        permits.map(|permit| !permit.has_place())
    }

    fn is_empty(table: &ConnectionTable) -> bool {
        let state = table.state.lock();
        state.unauthenticated.is_empty()
            && state.clients.is_empty()
            && state.idle_proxies.is_empty()
            && state.anonymous.is_empty()
            && (state.unauthenticated_count, state.authenticated_count) == (0, 0)
    }

    #[test]
    fn the_oldest_connection_of_a_full_network_gives_way() {
        let table = table();
        let first = admit(&table, "2001:db8::1");
        let second = admit(&table, "2001:db8::ffff:2");
        let other = admit(&table, "192.0.2.1");
        let third = admit(&table, "2001:db8::3");
        assert_eq!(closed([&first, &second, &other, &third]), [true, false, false, false]);
        drop(first);
        let fourth = admit(&table, "2001:db8::4");
        assert_eq!(closed([&second, &other, &third, &fourth]), [true, false, false, false]);
        drop((second, other, third, fourth));
        assert!(is_empty(&table));
    }

    #[test]
    fn of_many_networks_the_fullest_gives_way_and_the_oldest_of_equals() {
        let table = table();
        let lone = admit(&table, "192.0.2.1");
        let pair = [admit(&table, "192.0.2.2"), admit(&table, "192.0.2.2")];
        let last = admit(&table, "192.0.2.3");
        let fifth = admit(&table, "192.0.2.4");
        assert_eq!(
            closed([&lone, &pair[0], &pair[1], &last, &fifth]),
            [false, true, false, false, false]
        );
        let sixth = admit(&table, "192.0.2.5");
        assert_eq!(closed([&lone, &pair[1], &last, &sixth]), [true, false, false, false]);
    }

    #[test]
    fn an_authenticated_connection_never_gives_way() {
        let table = table();
        let known = admit(&table, "192.0.2.1");
        known.authenticate(&client("ann")).unwrap();
        let strangers: Vec<_> = (0..50).map(|_| admit(&table, "192.0.2.1")).collect();
        assert_eq!(closed([&known]), [false]);
        assert_eq!(strangers.iter().filter(|stranger| stranger.has_place()).count(), 2);
        drop((known, strangers));
        assert!(is_empty(&table));
    }

    #[test]
    fn a_client_has_its_own_bound_and_all_clients_have_one() {
        let table = table();
        let open = |name: &str| {
            let permit = admit(&table, "192.0.2.1");
            permit.authenticate(&client(name)).map(|()| permit)
        };
        let ann = [open("ann").unwrap(), open("ann").unwrap()];
        assert_eq!(open("ann").err().unwrap().code, Code::RateLimited);
        // The next request on a connection needs no further slot.
        ann[0].authenticate(&client("ann")).unwrap();
        let bob = [open("bob").unwrap(), open("bob").unwrap()];
        assert_eq!(open("eve").err().unwrap().code, Code::RateLimited);
        // A connection counts for the last key on it.
        bob[0].authenticate(&client("eve")).unwrap();
        assert!(open("eve").is_err());
        drop(ann);
        let eve = open("eve").unwrap();
        drop((bob, eve));
        assert!(is_empty(&table));
    }

    /// Of 40 places, 35 are for clients that have many.
    const WIDE: ConnectionBounds = ConnectionBounds { authenticated: 40, per_client: 20, ..BOUNDS };

    #[test]
    fn clients_with_many_connections_leave_places_to_those_with_few() {
        let table = Arc::new(ConnectionTable::new(WIDE));
        let open = |name: &str, count: usize| -> Vec<_> {
            let permits = (0..count).map(|_| admit(&table, "192.0.2.1"));
            permits.filter(|permit| permit.authenticate(&client(name)).is_ok()).collect()
        };
        let (ann, bob) = (open("ann", 40), open("bob", 40));
        assert_eq!((ann.len(), bob.len()), (20, 15));
        // A principal with few connections gets the rest, up to the last slot.
        let eve = open("eve", 3);
        assert_eq!(eve.len(), 3);
        assert_eq!(open("bob", 1).len(), 0);
        let joe = open("joe", 3);
        assert_eq!(joe.len(), 2);
        drop((ann, bob, eve, joe));
        assert!(is_empty(&table));
    }

    #[test]
    fn clients_with_many_requests_leave_places_of_a_trusted_proxy_to_those_with_few() {
        let table = Arc::new(ConnectionTable::new(WIDE));
        let proxy = "192.0.2.9".parse().unwrap();
        // A proxy keeps its connections open, also after a refused request.
        let forward = |name: &str, count: usize| -> (Vec<_>, Vec<_>) {
            let permits = (0..count).map_while(|_| table.admit_proxy(proxy));
            let requests = permits.map(|permit| RequestGuard::new(Arc::new(permit)));
            let (taken, refused): (Vec<_>, Vec<_>) =
                requests.partition(|request| request.0.authenticate(&client(name)).is_ok());
            let idle = refused.iter().map(|request| request.0.clone()).collect();
            (taken, idle)
        };
        let (ann, idle_of_ann) = forward("ann", 40);
        let (bob, idle_of_bob) = forward("bob", 40);
        assert_eq!((ann.len(), bob.len()), (20, 15));
        assert_eq!(table.state.lock().authenticated_count, 40, "idle ones fill the rest");
        let (eve, _) = forward("eve", 6);
        assert_eq!(eve.len(), 5, "as many as there are places");
        assert!(idle_of_ann.iter().chain(&idle_of_bob).all(|idle| !idle.has_place()));
        drop((ann, bob, eve, idle_of_ann, idle_of_bob));
        assert!(is_empty(&table));
    }

    #[tokio::test]
    async fn an_idle_connection_of_a_trusted_proxy_gives_way_to_a_client_or_a_newer_one() {
        let table = table();
        let proxy = "192.0.2.9".parse().unwrap();
        let front: Vec<_> = (0..4).map(|_| Arc::new(table.admit_proxy(proxy).unwrap())).collect();
        let closed = || front.iter().map(|permit| !permit.has_place()).collect::<Vec<_>>();
        let request = RequestGuard::new(front[0].clone());
        let ann = admit(&table, "192.0.2.1");
        ann.authenticate(&client("ann")).unwrap();
        assert_eq!(closed(), [false, true, false, false]);
        tokio::time::timeout(Duration::from_secs(30), front[1].displaced()).await.unwrap();
        let newer = Arc::new(table.admit_proxy(proxy).unwrap());
        assert_eq!(closed(), [false, true, true, false]);
        // A request that arrives on a displaced connection takes the slot of an idle one.
        let late = RequestGuard::new(front[1].clone());
        assert_eq!(closed(), [false, false, true, true]);
        late.0.authenticate(&client("bob")).unwrap();
        drop(late);
        let busy = [RequestGuard::new(front[1].clone()), RequestGuard::new(newer)];
        // No idle connection is left.
        assert!(table.admit_proxy(proxy).is_none());
        let refused = RequestGuard::new(front[2].clone());
        assert!(refused.0.authenticate(&client("bob")).is_err());
        assert!(refused.0.forward_anonymous(proxy).is_err());
        drop((request, ann, busy, refused, front));
        assert!(is_empty(&table));
    }

    #[test]
    fn of_idle_connections_the_one_that_was_idle_longest_gives_way() {
        let table = table();
        let proxy = "192.0.2.9".parse().unwrap();
        let front: Vec<_> = (0..4).map(|_| Arc::new(table.admit_proxy(proxy).unwrap())).collect();
        drop(RequestGuard::new(front[0].clone()));
        let _newer = table.admit_proxy(proxy).unwrap();
        let closed: Vec<_> = front.iter().map(|permit| !permit.has_place()).collect();
        assert_eq!(closed, [false, true, false, false]);
    }

    #[test]
    fn the_log_is_told_of_what_happens_often_once_in_an_interval() {
        let mut unlogged = Unlogged::default();
        assert_eq!([unlogged.add(), unlogged.add(), unlogged.add()], [Some(1), None, None]);
        unlogged.logged = unlogged.logged.and_then(|at| at.checked_sub(LOG_INTERVAL));
        assert_eq!([unlogged.add(), unlogged.add()], [Some(3), None]);
    }

    #[test]
    fn a_connection_that_authenticates_as_it_is_to_give_way_has_a_clients_place() {
        let table = table();
        let first = admit(&table, "192.0.2.1");
        let _more = [admit(&table, "192.0.2.1"), admit(&table, "192.0.2.1")];
        assert_eq!(closed([&first]), [true]);
        assert!(!first.has_place());
        let counts = || {
            let state = table.state.lock();
            let ann = state.clients.get(&client("ann")).copied().unwrap_or_default();
            (state.unauthenticated_count, state.authenticated_count, ann)
        };
        assert_eq!(counts(), (2, 0, 0));
        // Its request had arrived before. No other connection loses its slot.
        first.authenticate(&client("ann")).unwrap();
        assert!(first.has_place());
        assert_eq!(counts(), (2, 1, 1));
        drop(first);
        assert_eq!(counts(), (2, 0, 0));
    }

    #[test]
    fn a_connection_that_is_to_give_way_passes_no_bound_of_clients() {
        let table = table();
        let open = |name: &str| {
            let permit = admit(&table, "192.0.2.9");
            permit.authenticate(&client(name)).map(|()| permit)
        };
        let first = admit(&table, "192.0.2.1");
        let more = [admit(&table, "192.0.2.1"), admit(&table, "192.0.2.1")];
        let ann = [open("ann").unwrap(), open("ann").unwrap()];
        assert_eq!(first.authenticate(&client("ann")).err().unwrap().code, Code::RateLimited);
        let bob = [open("bob").unwrap(), open("bob").unwrap()];
        assert_eq!(first.authenticate(&client("eve")).err().unwrap().code, Code::RateLimited);
        assert!(!first.has_place());
        drop((ann, bob, first, more));
        assert!(is_empty(&table));
    }

    #[test]
    fn a_trusted_proxy_counts_for_the_clients_whose_requests_it_forwards() {
        let table = table();
        let proxy = "192.0.2.9".parse().unwrap();
        let front: Vec<_> = (0..4).map(|_| Arc::new(table.admit_proxy(proxy).unwrap())).collect();
        let begin = || front.iter().cloned().map(RequestGuard::new).collect::<Vec<_>>();
        let guards = begin();
        assert!(table.admit_proxy(proxy).is_none(), "they have the places of clients, and no more");
        front[0].authenticate(&client("ann")).unwrap();
        front[1].authenticate(&client("ann")).unwrap();
        assert!(front[2].authenticate(&client("ann")).is_err());
        front[2].authenticate(&client("bob")).unwrap();
        drop(guards);
        assert!(table.state.lock().clients.is_empty());

        let guards = begin();
        let stranger: IpAddr = "192.0.2.1".parse().unwrap();
        for permit in &front[..2] {
            permit.forward_anonymous(stranger).unwrap();
        }
        assert!(front[2].forward_anonymous(stranger).is_err());
        front[2].forward_anonymous("192.0.2.2".parse().unwrap()).unwrap();
        drop((guards, front));
        assert!(is_empty(&table));
    }

    #[test]
    fn a_proxys_connection_for_one_client_counts_as_that_clients() {
        let table = table();
        let front: Vec<_> = (0..3)
            .map(|_| {
                let permit = table.admit_proxy("192.0.2.9".parse().unwrap()).unwrap();
                permit.dedicate("192.0.2.1".parse().unwrap());
                permit
            })
            .collect();
        assert_eq!(closed([&front[0], &front[1], &front[2]]), [true, false, false]);
        drop(front);
        assert!(is_empty(&table));
    }
}
