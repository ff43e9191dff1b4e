use std::task::Context;

use futures_util::{
    FutureExt as _,
    task::{ArcWake, waker},
};

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
    permits.map(|permit| !permit.has_slot())
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
fn full_network_displaces_its_oldest_connection() {
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
fn fullest_network_loses_its_oldest_connection() {
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
fn authenticated_connection_is_never_displaced() {
    let table = table();
    let known = admit(&table, "192.0.2.1");
    known.authenticate(&client("ann")).unwrap();
    let strangers: Vec<_> = (0..50).map(|_| admit(&table, "192.0.2.1")).collect();
    assert_eq!(closed([&known]), [false]);
    assert_eq!(strangers.iter().filter(|stranger| stranger.has_slot()).count(), 2);
    drop((known, strangers));
    assert!(is_empty(&table));
}

#[test]
fn connections_are_limited_by_client_and_in_total() {
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
fn clients_with_few_connections_get_the_last_slots() {
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
fn clients_with_few_requests_get_a_proxys_last_slots() {
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
    assert!(idle_of_ann.iter().chain(&idle_of_bob).all(|idle| !idle.has_slot()));
    drop((ann, bob, eve, idle_of_ann, idle_of_bob));
    assert!(is_empty(&table));
}

#[tokio::test]
async fn idle_proxy_connection_is_displaced_by_clients_and_newer_ones() {
    let table = table();
    let proxy = "192.0.2.9".parse().unwrap();
    let front: Vec<_> = (0..4).map(|_| Arc::new(table.admit_proxy(proxy).unwrap())).collect();
    let closed = || front.iter().map(|permit| !permit.has_slot()).collect::<Vec<_>>();
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
fn longest_idle_proxy_connection_is_displaced() {
    let table = table();
    let proxy = "192.0.2.9".parse().unwrap();
    let front: Vec<_> = (0..4).map(|_| Arc::new(table.admit_proxy(proxy).unwrap())).collect();
    drop(RequestGuard::new(front[0].clone()));
    let _newer = table.admit_proxy(proxy).unwrap();
    let closed: Vec<_> = front.iter().map(|permit| !permit.has_slot()).collect();
    assert_eq!(closed, [false, true, false, false]);
}

#[test]
fn frequent_event_is_logged_once_an_interval() {
    let mut unlogged = UnloggedEvents::default();
    assert_eq!([unlogged.add(), unlogged.add(), unlogged.add()], [Some(1), None, None]);
    unlogged.logged = unlogged.logged.and_then(|at| at.checked_sub(LOG_INTERVAL));
    assert_eq!([unlogged.add(), unlogged.add()], [Some(3), None]);
}

#[test]
fn displaced_connection_can_still_authenticate() {
    let table = table();
    let first = admit(&table, "192.0.2.1");
    let _more = [admit(&table, "192.0.2.1"), admit(&table, "192.0.2.1")];
    assert_eq!(closed([&first]), [true]);
    assert!(!first.has_slot());
    let counts = || {
        let state = table.state.lock();
        let ann = state.clients.get(&client("ann")).copied().unwrap_or_default();
        (state.unauthenticated_count, state.authenticated_count, ann)
    };
    assert_eq!(counts(), (2, 0, 0));
    // Its request had arrived before. No other connection loses its slot.
    first.authenticate(&client("ann")).unwrap();
    assert!(first.has_slot());
    assert_eq!(counts(), (2, 1, 1));
    drop(first);
    assert_eq!(counts(), (2, 0, 0));
}

#[test]
fn displaced_connection_cannot_exceed_client_limits() {
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
    assert!(!first.has_slot());
    drop((ann, bob, first, more));
    assert!(is_empty(&table));
}

#[test]
fn proxy_connection_counts_for_its_current_client() {
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
fn dedicated_proxy_connection_counts_for_its_client() {
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

/// A displaced connection's task is woken while the table is locked, perhaps also while the task
/// itself holds its slot and waits for the table. The wake reads the party.
#[test]
fn wake_of_a_displaced_connection_waits_for_no_lock() {
    struct Read(Arc<Mutex<Party>>, Mutex<Vec<Option<Party>>>);
    impl ArcWake for Read {
        fn wake_by_ref(read: &Arc<Self>) {
            read.1.lock().push(read.0.try_lock().map(|party| party.clone()));
        }
    }
    let table = table();
    let first = admit(&table, "192.0.2.1");
    let read = Arc::new(Read(first.party(), Mutex::default()));
    let waker = waker(read.clone());
    let mut displaced = Box::pin(first.displaced());
    assert!(displaced.poll_unpin(&mut Context::from_waker(&waker)).is_pending());
    let slot = first.slot.lock();
    let _others = [admit(&table, "192.0.2.1"), admit(&table, "192.0.2.1")];
    drop(slot);
    let network = Party::Network("192.0.2.1".parse().unwrap());
    assert_eq!(*read.1.lock(), [Some(network)]);
}

#[test]
fn connection_is_work_of_its_client() {
    let table = table();
    let party = |permit: &ConnectionPermit| permit.party().lock().clone();
    let network = |address: &str| Party::Network(address.parse().unwrap());
    let own = admit(&table, "192.0.2.1");
    assert_eq!(party(&own), network("192.0.2.1"));
    own.authenticate(&client("ann")).unwrap();
    assert_eq!(party(&own), Party::Client(client("ann")));
    let proxy = table.admit_proxy("192.0.2.9".parse().unwrap()).unwrap();
    assert_eq!(party(&proxy), network("192.0.2.9"));
    proxy.begin_request();
    proxy.authenticate(&client("bob")).unwrap();
    proxy.end_request();
    assert_eq!(party(&proxy), Party::Client(client("bob")));
    proxy.begin_request();
    proxy.forward_anonymous("192.0.2.7".parse().unwrap()).unwrap();
    assert_eq!(party(&proxy), network("192.0.2.7"));
    proxy.dedicate("192.0.2.8".parse().unwrap());
    assert_eq!(party(&proxy), network("192.0.2.8"));
}
