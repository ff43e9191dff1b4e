//! Legacy sessions: a client's declarations at `initialize`, its requests in flight, and the
//! stream for messages of servers. Modern clients have none.
//!
//! # Invariants
//! - A session belongs to the principal and to the endpoint that opened it. For others it does not
//!   exist.

mod calls;
mod capabilities;
mod log_level;
mod pending_requests;
mod replay;
mod stream;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fmt,
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

/// Divisor of all sessions that gives the limit of one principal.
const SHARE: usize = 10;

/// One legacy session.
pub struct Session {
    pub id: SessionId,
    owner: Arc<Principal>,
    view: View,
    pub revision: Revision,
    used: Mutex<Instant>,
    pub calls: Arc<Calls>,
    /// Pending server requests for the client.
    pub asks: Arc<PendingRequests>,
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
    pub fn hear(&mut self, label: &str, server: Option<&ServerName>) -> bool {
        let by = By::Words(server.cloned());
        if self.0.contains_key(label) {
            return true;
        }
        if self.0.values().filter(|given| **given == by).count() >= MOST_LABELS {
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
    pub fn is_heard(&self) -> bool {
        self.streams.own().is_heard()
    }

    /// Sends a message on the session's own stream; false if it is lost without a reader.
    pub fn tell(&self, text: Bytes) -> bool {
        let heard = self.is_heard();
        if heard {
            self.streams.own().push(text);
        }
        heard
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
    pub view: View,
    pub transport: Transport,
    pub revision: Revision,
    pub abilities: ClientCapabilities,
    /// `clientInfo`, as text.
    pub info: Option<Bytes>,
}

/// All sessions.
pub struct Sessions {
    sessions: Mutex<HashMap<SessionId, Arc<Session>>>,
    most: usize,
    idle: Duration,
}

impl Sessions {
    /// Empty, with at most `most` sessions, each ended after `idle` without use.
    pub fn new(most: usize, idle: Duration) -> Self {
        Self { sessions: Mutex::default(), most, idle }
    }

    /// Opens a session.
    ///
    /// # Errors
    /// A refusal if there are too many.
    pub fn open(&self, opening: Opening) -> Result<Arc<Session>, Refusal> {
        let mut random = [0; 24];
        getrandom::fill(&mut random).map_err(|error| {
            Refusal::new(Code::InterceptorFault, "the session cannot be opened")
                .detail(format!("the operating system returned no random bytes: {error}"))
        })?;
        let of_owner = |s: &&Arc<Session>| s.owner.kind == opening.owner.kind;
        let budget =
            self.sessions.lock().values().find(of_owner).map(|s| s.streams.budget().clone());
        let budget = budget.unwrap_or_default();
        let session = Arc::new(Session {
            id: SessionId::presented(&BASE64_URL_SAFE_NO_PAD.encode(random)),
            owner: opening.owner,
            view: opening.view,
            revision: opening.revision,
            transport: opening.transport,
            abilities: opening.abilities,
            info: opening.info,
            requests: AtomicU64::new(0),
            labels: Mutex::default(),
            used: Mutex::new(Instant::now()),
            calls: Arc::default(),
            asks: Arc::default(),
            level: Mutex::default(),
            shares: Mutex::default(),
            streams: Streams::new(budget),
            ended: CancellationToken::new(),
            why: OnceLock::new(),
        });
        let mut sessions = self.sessions.lock();
        let own = sessions.values().filter(|s| s.owner.kind == session.owner.kind).count();
        if sessions.len() >= self.most || own >= self.most.div_ceil(SHARE) {
            return Err(Refusal::new(Code::RateLimited, "too many sessions are open")
                .detail(format!("limits.sessions = {}", self.most))
                .retry_after(Duration::from_secs(60)));
        }
        sessions.insert(session.id.clone(), session.clone());
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
        let session = self.sessions.lock().get(id).cloned();
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
        if let Some(session) = self.sessions.lock().remove(id) {
            session.end(why);
        }
    }

    /// Ends all sessions of a principal, with a cause for the record.
    pub fn close_of(&self, kind: &PrincipalKind, key: Option<&str>, why: &'static str) {
        self.sessions.lock().retain(|_, session| {
            let keep = !session.owner.is(kind, key);
            if !keep {
                session.end(why);
            }
            keep
        });
    }

    /// Ends the sessions that were idle for too long.
    pub fn sweep(&self) {
        let idle = self.idle;
        self.sessions.lock().retain(|_, session| {
            let keep = session.used.lock().elapsed() < idle
                || session.is_heard()
                || !session.calls.is_empty();
            if !keep {
                session.end("nobody used it for `limits.session-idle-s`");
            }
            session.streams.sweep();
            keep
        });
    }

    /// The session with this id, without a check of its owner: for messages of servers.
    pub fn get(&self, id: &SessionId) -> Option<Arc<Session>> {
        self.sessions.lock().get(id).cloned()
    }

    /// Every session.
    pub fn all(&self) -> Vec<Arc<Session>> {
        self.sessions.lock().values().cloned().collect()
    }

    /// Number of sessions.
    pub fn count(&self) -> usize {
        self.sessions.lock().len()
    }
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
            view: View::All,
            transport: Transport::Http,
            revision: Revision::LATEST_LEGACY,
            abilities: ClientCapabilities::default(),
            info: None,
        }
    }

    #[test]
    fn a_session_is_its_openers_alone() {
        let sessions = Sessions::new(11, Duration::from_secs(60));
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
        for _ in 0..2 {
            sessions.open(opening(&b)).unwrap();
        }
        let refusal = sessions.open(opening(&b)).err().unwrap();
        assert_eq!(refusal.code, Code::RateLimited);
        sessions.close(&session.id, "the test says so");
        assert_eq!(session.end_reason(), "the test says so");
        assert!(sessions.find(&session.id, &a, &View::All).is_err());
        assert!(session.ended().is_cancelled());
    }

    #[test]
    fn idle_sessions_end_and_their_requests_with_them() {
        let sessions = Sessions::new(2, Duration::ZERO);
        let session = sessions.open(opening(&principal("a"))).unwrap();
        let cancel = CancellationToken::new();
        let under_way = session.calls.begin(&Id::from(1), cancel.clone()).unwrap();
        sessions.sweep();
        assert_eq!(sessions.count(), 1);
        session.calls.cancel(&Id::from(1));
        assert!(cancel.is_cancelled());
        drop(under_way);
        sessions.sweep();
        assert_eq!(sessions.count(), 0);
    }
}
