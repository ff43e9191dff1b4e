//! Legacy sessions: a client's declarations at `initialize`, its requests in flight, and the
//! stream for messages of servers. Modern clients have none.
//!
//! # Invariants
//! - A session belongs to the principal and to the endpoint that opened it. For others it does not
//!   exist.

mod budget;
mod calls;
mod capabilities;
mod log_level;
mod pending_requests;
mod replay;
mod stream;
mod table;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::IpAddr,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use bytes::Bytes;
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use portcullis_protocol::exchange::View;
use portcullis_protocol::{
    exchange::{Revision, Transport},
    identity::{Principal, PrincipalKind},
    names::{ServerName, SessionId},
    refusal::{Code, Refusal},
};

pub use calls::{Calls, InFlight};
pub use capabilities::ClientCapabilities;
pub use log_level::LogLevel;
pub use pending_requests::{ClientReply, PendingRequest, PendingRequests};
pub use replay::Streams;
pub use stream::{Event, Reader, Stream, TooSlow};
use table::Table;

/// Divisor of all sessions that gives the default limit of one holder.
const SHARE: usize = 10;
/// Limit in bytes of a client's text that a session copies. Larger texts stay parts of their
/// message, which has reserved memory.
const MAX_COPIED_BYTES: usize = 4 << 10;
/// Cause of the end of a session whose place another one got.
const REPLACED: &str = "a newer session took its place, since it was idle longest";

/// One legacy session.
pub struct Session {
    pub id: SessionId,
    /// Number among all sessions that ever were.
    number: u64,
    owner: Arc<Principal>,
    holder: Holder,
    view: View,
    pub revision: Revision,
    used: Mutex<Instant>,
    pub calls: Arc<Calls>,
    /// Pending server requests for the client.
    pub pending_requests: Arc<PendingRequests>,
    pub abilities: ClientCapabilities,
    /// `clientInfo` of the handshake, as text.
    pub info: Option<Bytes>,
    /// Transport between client and proxy.
    pub transport: Transport,
    level: Mutex<Option<LogLevel>>,
    /// Servers without room for a dedicated instance; the session uses their shared instance.
    pub shares: Mutex<BTreeSet<ServerName>>,
    requests: AtomicU64,
    /// Labels that policies and plugins gave it.
    pub labels: Mutex<Labels>,
    /// The event streams to the client.
    pub streams: Streams,
    ended: CancellationToken,
    /// Cause of its end.
    why: OnceLock<&'static str>,
}

/// Labels that messages of one server can give to a session, or to a client without one. A plugin
/// may derive new labels from messages, and a server that exploits that harms only itself.
const MOST_LABELS: usize = 64;

/// Labels of a session, or of a client without one, with their origins.
#[derive(Debug, Clone, Default)]
pub struct Labels(BTreeMap<String, By>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum By {
    Policy,
    /// Messages of one server, or of several, as in merged lists.
    Words(Option<ServerName>),
}

impl Labels {
    /// All labels.
    pub fn all(&self) -> BTreeSet<String> {
        self.0.keys().cloned().collect()
    }

    /// Removes all labels.
    pub fn clear(&mut self) {
        self.0.clear();
    }

    /// Adds a policy's label. The operator writes the policies, so there are few.
    pub fn give(&mut self, label: &str) {
        self.0.insert(label.to_owned(), By::Policy);
    }

    /// Adds a label of a server's message; false if that server has too many.
    #[must_use]
    pub fn add_from_server(&mut self, label: &str, server: Option<&ServerName>) -> bool {
        let by = By::Words(server.cloned());
        if self.0.contains_key(label) {
            return true;
        }
        if self.0.values().filter(|source| **source == by).count() >= MOST_LABELS {
            return false;
        }
        self.0.insert(label.to_owned(), by);
        true
    }
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session").field("id", &self.id).finish_non_exhaustive()
    }
}

impl Session {
    /// Number of requests so far.
    pub fn requests(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }

    /// Counts a request.
    pub fn count(&self) {
        self.requests.fetch_add(1, Ordering::Relaxed);
    }

    /// The principal that opened it.
    pub fn owner(&self) -> &Arc<Principal> {
        &self.owner
    }

    /// The endpoint at which it was opened.
    pub fn view(&self) -> &View {
        &self.view
    }

    /// Opens the stream for messages that are not responses. The earlier stream ends.
    pub fn listen(&self) -> Reader {
        self.streams.own().join()
    }

    /// Whether the stream has a reader, or may get one again.
    pub fn has_reader(&self) -> bool {
        self.streams.own().has_reader()
    }

    /// Sends a message on the session's own stream; false if it is lost without a reader.
    pub fn send(&self, text: Bytes) -> bool {
        let has_reader = self.has_reader();
        if has_reader {
            self.streams.own().push(text);
        }
        has_reader
    }

    /// The least severe log messages that the client wants, if it set a level.
    pub fn level(&self) -> Option<LogLevel> {
        *self.level.lock()
    }

    /// Sets the least severe log messages that the client wants.
    pub fn set_level(&self, level: LogLevel) {
        *self.level.lock() = Some(level);
    }

    /// Cancelled when the session has ended.
    pub fn ended(&self) -> &CancellationToken {
        &self.ended
    }

    /// Cause of its end as text; empty before.
    pub fn end_reason(&self) -> &'static str {
        self.why.get().copied().unwrap_or_default()
    }

    /// Time since which nobody uses it; `None` while it has a request in flight or a reader.
    fn idle_since(&self) -> Option<Instant> {
        let unread = self.streams.own().unread_since().filter(|_| self.calls.is_empty())?;
        Some(unread.max(*self.used.lock()))
    }

    fn end(&self, why: &'static str) {
        // The first cause counts.
        let _ = self.why.set(why);
        self.ended.cancel();
        self.streams.end();
        self.calls.end();
    }
}

/// Data for opening a session.
pub struct Opening {
    pub owner: Arc<Principal>,
    /// The network of the client's address, if it has one.
    pub network: Option<IpAddr>,
    pub view: View,
    pub transport: Transport,
    pub revision: Revision,
    pub abilities: ClientCapabilities,
    /// `clientInfo`, as text.
    pub info: Option<Bytes>,
}

/// Unit in which sessions are limited: a principal, or one network of callers without a key.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Holder {
    kind: PrincipalKind,
    network: Option<IpAddr>,
}

impl Holder {
    fn of(opening: &Opening) -> Self {
        let network = opening.network.filter(|_| !opening.owner.verified);
        Self { kind: opening.owner.kind.clone(), network }
    }
}

/// All sessions.
pub struct Sessions {
    table: Mutex<Table>,
    /// Number of sessions that were ever opened.
    opened: AtomicU64,
    most: usize,
    /// Limit of the sessions of all callers without a key.
    most_without_key: usize,
    most_of_one: usize,
    idle: Duration,
}

impl Sessions {
    /// Empty, with at most `most` sessions, `most_of_one` of them of one principal or of one
    /// network of callers without a key. A tenth is for clients with a key. Each is ended after
    /// `idle` without use.
    pub fn new(most: usize, most_of_one: Option<usize>, idle: Duration) -> Self {
        let most_of_one = most_of_one.unwrap_or_else(|| most.div_ceil(SHARE));
        // However many networks callers without a key have, clients with a key find a place.
        let most_without_key = (most - most.div_ceil(SHARE)).max(1);
        let (table, opened) = Default::default();
        Self { table, opened, most, most_without_key, most_of_one, idle }
    }

    /// Opens a session. If there are too many, the longest-idle one ends: many clients end without
    /// closing theirs.
    ///
    /// # Errors
    /// A refusal if there are too many in use.
    pub fn open(&self, opening: Opening) -> Result<Arc<Session>, Refusal> {
        let mut random = [0; 24];
        getrandom::fill(&mut random).map_err(|error| {
            Refusal::new(Code::InterceptorFault, "the session cannot be opened")
                .detail(format!("the operating system returned no random bytes: {error}"))
        })?;
        let id = SessionId::presented(&BASE64_URL_SAFE_NO_PAD.encode(random));
        let holder = Holder::of(&opening);
        let info = opening.info.map(copied);
        let abilities = opening.abilities.map_text(copied);
        let mut table = self.table.lock();
        let own_full = table.held_by(&holder) >= self.most_of_one;
        let full = table.len() >= self.most;
        let share_full = !opening.owner.verified && table.of(&holder.kind) >= self.most_without_key;
        let replaced = if own_full || full || share_full {
            let idlest = match own_full {
                true => table.idlest_of(&holder),
                false => table.idlest_for(&opening.owner),
            };
            let limit = match (own_full, full) {
                (true, _) => format!("limits.sessions-per-client = {}", self.most_of_one),
                (false, true) => format!("limits.sessions = {}", self.most),
                (false, false) => format!(
                    "callers without a key have at most {} of limits.sessions = {}",
                    self.most_without_key, self.most
                ),
            };
            let idlest = idlest.ok_or_else(|| {
                Refusal::new(Code::RateLimited, "too many sessions are in use")
                    .detail(limit)
                    .retry_after(Duration::from_secs(60))
            })?;
            table.remove(&idlest)
        } else {
            None
        };
        let budget = table.budget(&holder.kind).unwrap_or_default();
        let session = Arc::new(Session {
            id,
            number: self.opened.fetch_add(1, Ordering::Relaxed),
            owner: opening.owner,
            holder,
            view: opening.view,
            revision: opening.revision,
            transport: opening.transport,
            abilities,
            info,
            requests: AtomicU64::new(0),
            labels: Mutex::default(),
            used: Mutex::new(Instant::now()),
            calls: Arc::default(),
            pending_requests: Arc::default(),
            level: Mutex::default(),
            shares: Mutex::default(),
            streams: Streams::new(budget),
            ended: CancellationToken::new(),
            why: OnceLock::new(),
        });
        table.insert(session.clone());
        drop(table);
        if let Some(replaced) = replaced {
            replaced.end(REPLACED);
        }
        Ok(session)
    }

    /// Finds the session of a client's request, if it belongs to the client and to this endpoint.
    ///
    /// # Errors
    /// `session-unknown`, equally for a session that never existed, ended, or belongs to others.
    pub fn find(
        &self,
        id: &SessionId,
        principal: &Principal,
        view: &View,
    ) -> Result<Arc<Session>, Refusal> {
        let session = self.get(id);
        match session {
            // With other groups or another key, it is not the principal that opened it.
            Some(session) if *session.owner == *principal && session.view == *view => {
                *session.used.lock() = Instant::now();
                Ok(session)
            }
            _ => Err(Refusal::new(
                Code::SessionUnknown,
                "the session does not exist or has ended: start a new one with `initialize`",
            )),
        }
    }

    /// Ends a session, with a cause for the record.
    pub fn close(&self, id: &SessionId, why: &'static str) {
        let removed = self.table.lock().remove(id);
        if let Some(session) = removed {
            session.end(why);
        }
    }

    /// Ends all sessions of a principal, with a cause for the record.
    pub fn close_of(&self, kind: &PrincipalKind, key: Option<&str>, why: &'static str) {
        self.close_if(why, |session| session.owner.is(kind, key));
    }

    /// Ends the sessions that were idle for too long.
    pub fn sweep(&self) {
        let idle = self.idle;
        self.close_if("idle for `limits.session-idle-s`", |session| {
            session.streams.sweep();
            session.used.lock().elapsed() >= idle
                && !session.has_reader()
                && session.calls.is_empty()
        });
    }

    fn close_if(&self, why: &'static str, over: impl Fn(&Session) -> bool) {
        let mut table = self.table.lock();
        let over: Vec<_> =
            table.all().filter(|session| over(session)).map(|session| session.id.clone()).collect();
        for id in over {
            if let Some(session) = table.remove(&id) {
                session.end(why);
            }
        }
    }

    /// The session with this id, without a check of its owner: for messages of servers.
    pub fn get(&self, id: &SessionId) -> Option<Arc<Session>> {
        self.table.lock().get(id).cloned()
    }

    /// Every session.
    pub fn all(&self) -> Vec<Arc<Session>> {
        self.table.lock().all().cloned().collect()
    }

    /// Number of sessions.
    pub fn count(&self) -> usize {
        self.table.lock().len()
    }
}

/// A text without the message that it is a part of.
fn copied(text: Bytes) -> Bytes {
    if text.len() > MAX_COPIED_BYTES { text } else { Bytes::copy_from_slice(&text) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use portcullis_protocol::codec::Id;

    fn principal(name: &str) -> Arc<Principal> {
        Arc::new(Principal {
            kind: PrincipalKind::Client(name.parse().unwrap()),
            groups: Vec::new(),
            verified: true,
            key: None,
        })
    }

    fn opening(owner: &Arc<Principal>) -> Opening {
        Opening {
            owner: owner.clone(),
            network: None,
            view: View::All,
            transport: Transport::Http,
            revision: Revision::LATEST_LEGACY,
            abilities: ClientCapabilities::default(),
            info: None,
        }
    }

    #[test]
    fn session_belongs_to_its_principal_and_endpoint() {
        let sessions = Sessions::new(11, None, Duration::from_secs(60));
        let (a, b) = (principal("a"), principal("b"));
        let session = sessions.open(opening(&a)).unwrap();
        assert!(sessions.find(&session.id, &a, &View::All).is_ok());
        let one = View::One("s".parse().unwrap());
        for result in [
            sessions.find(&session.id, &b, &View::All),
            sessions.find(&session.id, &a, &one),
            sessions.find(&SessionId::presented("x"), &a, &View::All),
        ] {
            assert_eq!(result.err().unwrap().code, Code::SessionUnknown);
        }
        sessions.close(&session.id, "test reason");
        assert_eq!(session.end_reason(), "test reason");
        assert!(sessions.find(&session.id, &a, &View::All).is_err());
        assert!(session.ended().is_cancelled());
    }

    #[test]
    fn idle_sessions_and_their_requests_end() {
        let sessions = Sessions::new(2, Some(2), Duration::ZERO);
        let session = sessions.open(opening(&principal("a"))).unwrap();
        let cancel = CancellationToken::new();
        let in_flight = session.calls.begin(&Id::from(1), cancel.clone()).unwrap();
        sessions.sweep();
        assert_eq!(sessions.count(), 1);
        session.calls.cancel(&Id::from(1));
        assert!(cancel.is_cancelled());
        drop(in_flight);
        sessions.sweep();
        assert_eq!(sessions.count(), 0);
    }

    #[test]
    fn only_the_longest_idle_session_is_replaced() {
        let sessions = Sessions::new(4, Some(3), Duration::from_secs(60));
        let (a, b) = (principal("a"), principal("b"));
        let other = sessions.open(opening(&b)).unwrap();
        let [first, second, third] = [(); 3].map(|()| sessions.open(opening(&a)).unwrap());
        let reader = first.listen();
        let call = second.calls.begin(&Id::from(1), CancellationToken::new()).unwrap();
        let fourth = sessions.open(opening(&a)).unwrap();
        assert_eq!(third.end_reason(), REPLACED);
        assert!(sessions.find(&fourth.id, &a, &View::All).is_ok());
        let _reader = fourth.listen();
        let refusal = sessions.open(opening(&a)).err().unwrap();
        assert_eq!(refusal.code, Code::RateLimited);
        assert_eq!(refusal.detail.as_deref(), Some("limits.sessions-per-client = 3"));
        // A reader that left a moment ago was in use until then.
        drop((reader, call));
        sessions.open(opening(&a)).unwrap();
        assert_eq!(second.end_reason(), REPLACED);
        assert!(!other.ended().is_cancelled() && !first.ended().is_cancelled());
        assert_eq!(sessions.count(), 4);
    }

    #[test]
    fn anonymous_callers_never_displace_sessions_with_a_key() {
        let sessions = Sessions::new(3, Some(2), Duration::from_secs(60));
        let from = |address: &str| {
            let network = Some(address.parse().unwrap());
            sessions.open(Opening { network, ..opening(&Principal::anonymous()) })
        };
        let keyed = sessions.open(opening(&principal("a"))).unwrap();
        let [one, two] = ["2001:db8::", "192.0.2.1"].map(|address| from(address).unwrap());
        // All places are taken: the longest-idle session without a key gives way.
        let three = from("192.0.2.2").unwrap();
        assert_eq!(one.end_reason(), REPLACED);
        let four = sessions.open(opening(&principal("b"))).unwrap();
        assert_eq!(two.end_reason(), REPLACED);
        sessions.close(&three.id, "test reason");
        sessions.open(opening(&principal("c"))).unwrap();
        assert_eq!(from("192.0.2.3").err().unwrap().code, Code::RateLimited);
        assert!(!keyed.ended().is_cancelled() && !four.ended().is_cancelled());
        sessions.open(opening(&principal("d"))).unwrap();
        assert_eq!(keyed.end_reason(), REPLACED);
    }

    #[test]
    fn callers_without_a_key_leave_room_for_clients_with_one() {
        let sessions = Sessions::new(4, Some(1), Duration::from_secs(60));
        let from = |network: u8| {
            let network = Some(IpAddr::from([192, 0, 2, network]));
            sessions.open(Opening { network, ..opening(&Principal::anonymous()) })
        };
        // Each from a network of its own, and in use.
        let readers: Vec<_> = (0..3).map(|network| from(network).unwrap().listen()).collect();
        let refusal = from(3).err().unwrap();
        assert_eq!(refusal.code, Code::RateLimited);
        let detail = "callers without a key have at most 3 of limits.sessions = 4";
        assert_eq!(refusal.detail.as_deref(), Some(detail));
        let keyed = sessions.open(opening(&principal("a"))).unwrap();
        assert_eq!(sessions.count(), 4);
        drop(readers);
        from(4).unwrap();
        assert!(!keyed.ended().is_cancelled());
        assert_eq!(sessions.count(), 4);
        // A single place is anybody's.
        let one = Sessions::new(1, None, Duration::from_secs(60));
        one.open(opening(&Principal::anonymous())).unwrap();
    }

    #[test]
    fn holder_with_most_idle_sessions_gives_way() {
        let sessions = Sessions::new(6, Some(4), Duration::from_secs(60));
        let [a, b, c] = ["a", "b", "c"].map(principal);
        let of_b = sessions.open(opening(&b)).unwrap();
        let of_a = [(); 4].map(|()| sessions.open(opening(&a)).unwrap());
        let of_c = sessions.open(opening(&c)).unwrap();
        // Used later than the others were opened.
        sessions.find(&of_a[0].id, &a, &View::All).unwrap();
        sessions.open(opening(&b)).unwrap();
        assert_eq!(of_a[1].end_reason(), REPLACED);
        sessions.table.lock().check();
        // Where all of that holder are in use, the next one has to.
        let readers: Vec<_> = of_a.iter().map(|session| session.listen()).collect();
        sessions.open(opening(&c)).unwrap();
        assert_eq!(of_b.end_reason(), REPLACED);
        let reader = of_c.listen();
        sessions.table.lock().check();
        drop(readers);
        sessions.open(opening(&b)).unwrap();
        let ended = of_a.iter().filter(|session| session.ended().is_cancelled()).count();
        assert_eq!((ended, of_c.end_reason(), sessions.count()), (2, "", 6));
        drop(reader);
        sessions.close_of(&a.kind, None, "test reason");
        sessions.table.lock().check();
        assert_eq!(sessions.count(), 4);
    }

    #[test]
    fn idle_session_is_found_behind_many_in_use() {
        let many = table::LOOKS + 10;
        let sessions = Sessions::new(many + 1, Some(many), Duration::from_secs(60));
        let [a, b, c] = ["a", "b", "c"].map(principal);
        let of_b = sessions.open(opening(&b)).unwrap();
        let of_a: Vec<_> = (0..many).map(|_| sessions.open(opening(&a)).unwrap()).collect();
        let last = &of_a[many - 1];
        let mut readers: Vec<_> = of_a[..many - 1].iter().map(|session| session.listen()).collect();
        // It is the last one in the index of its holder.
        let newest = sessions.open(opening(&a)).unwrap();
        assert_eq!(last.end_reason(), REPLACED);
        sessions.table.lock().check();
        // All sessions of the holder with the most are in use.
        readers.push(newest.listen());
        sessions.open(opening(&c)).unwrap();
        assert_eq!(of_b.end_reason(), REPLACED);
        assert_eq!(sessions.open(opening(&a)).err().unwrap().code, Code::RateLimited);
        sessions.table.lock().check();
    }
}
