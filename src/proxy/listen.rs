//! Who hears of changes: legacy sessions by what they subscribed to, modern clients by
//! `subscriptions/listen`.
//!
//! INVARIANT: a client hears of a list, or of a resource, only where policy lets it see the server,
//! or read the resource's changes; and each notification passes the chain as what it is to it.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use bytes::Bytes;
use futures_util::FutureExt as _;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::{Proxy, guest::Guest, sight::Sight, way::Passage};
use crate::{
    audit::Conclusion,
    codec::{Frame, Id, Object, era::META_SUBSCRIPTION},
    exchange::{Answer, Direction, Exchange, Method, Payload, Phase, Target},
    identity::PrincipalKind,
    names::{ServerName, SessionId},
    refusal::{Code, Refusal},
    router::{Sight as _, View},
    session::Session,
    upstream::{Failure, Instance, PartyKey, Reply, Server},
};

/// Resources that one session, or one listener, may watch.
const MOST: usize = 256;
/// Resources that may be watched for one principal.
const OF_ONE: usize = 1_024;

/// What a client wants to hear of (MCP 2026-07-28, `subscriptions/listen`).
#[derive(Debug, Default, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Filter {
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    tools_list_changed: bool,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    prompts_list_changed: bool,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    resources_list_changed: bool,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    resource_subscriptions: Vec<String>,
}

impl Filter {
    fn lists(&self, method: &str) -> bool {
        match method {
            Method::TOOLS_CHANGED => self.tools_list_changed,
            Method::PROMPTS_CHANGED => self.prompts_list_changed,
            Method::RESOURCES_CHANGED => self.resources_list_changed,
            _ => false,
        }
    }
}

/// A modern client that listens.
struct Listener {
    guest: Guest,
    /// The id of its request, by which it knows what it hears.
    id: Id,
    filter: Filter,
    /// The resources in the filter.
    watched: Mutex<Vec<Watching>>,
    out: mpsc::Sender<Bytes>,
    /// Cancelled where it does not read what it asked for.
    slow: CancellationToken,
}

/// All that listen, and what is watched for them and for sessions.
#[derive(Default)]
pub(super) struct Listeners {
    next: AtomicU64,
    all: Mutex<HashMap<u64, Arc<Listener>>>,
    /// What sessions subscribed to.
    subscribed: Mutex<HashMap<Subscription, Watching>>,
    /// How many resources are watched for each principal.
    watched: Mutex<HashMap<PrincipalKind, usize>>,
}

type Subscription = (SessionId, ServerName, String);

/// Takes a listener out where its request ends, however it does.
struct Listening {
    proxy: Arc<Proxy>,
    key: u64,
}

impl Drop for Listening {
    fn drop(&mut self) {
        self.proxy.listeners.all.lock().remove(&self.key);
    }
}

/// A place among the resources that are watched for a principal, until it is dropped.
struct Turn {
    proxy: Arc<Proxy>,
    owner: PrincipalKind,
}

impl Turn {
    fn take(proxy: &Arc<Proxy>, owner: &PrincipalKind) -> Result<Self, Refusal> {
        let mut watched = proxy.listeners.watched.lock();
        let count = watched.entry(owner.clone()).or_default();
        if *count >= OF_ONE {
            let words = format!("at most {OF_ONE} resources can be watched by one client");
            return Err(Refusal::new(Code::RateLimited, words));
        }
        *count += 1;
        Ok(Self { proxy: proxy.clone(), owner: owner.clone() })
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut watched = self.proxy.listeners.watched.lock();
        if let Some(count) = watched.get_mut(&self.owner) {
            *count -= 1;
            if *count == 0 {
                watched.remove(&self.owner);
            }
        }
    }
}

/// A resource that is watched until this is dropped.
struct Watching {
    turn: Turn,
    /// Which of all that ever were in the config.
    server: (ServerName, u64),
    instance: Arc<Instance>,
    uri: String,
}

impl Drop for Watching {
    fn drop(&mut self) {
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            let (instance, uri) = (self.instance.clone(), std::mem::take(&mut self.uri));
            let work = async move {
                if let Err(failure) = instance.unwatch(&uri).await {
                    tracing::debug!(%failure, "a watch could not be ended");
                }
            };
            self.turn.proxy.tasks.spawn_on(work, &runtime);
        }
    }
}

impl Proxy {
    /// Answers `subscriptions/listen`: tells what is granted, then everything of it, until the
    /// client closes its stream or the proxy stops.
    ///
    /// # Errors
    /// A refusal where the filter is none, or the client does not read what it hears.
    pub(super) async fn listen(
        self: &Arc<Self>,
        guest: &Guest,
        id: &Id,
        exchange: &Exchange,
        out: &mpsc::Sender<Bytes>,
    ) -> Result<Answer, Refusal> {
        let invalid = |why: &str| Refusal::new(Code::InvalidParams, why.to_owned());
        let notifications = exchange.request.value().get("notifications");
        let asked: Filter =
            notifications.ok_or_else(|| invalid("`notifications` must be an object")).and_then(
                |filter| Filter::deserialize(filter).map_err(|error| invalid(&error.to_string())),
            )?;
        if asked.resource_subscriptions.len() > MOST {
            return Err(invalid(&format!("at most {MOST} resources can be watched")));
        }
        let mut granted = Filter { resource_subscriptions: Vec::new(), ..asked.clone() };
        let listening = Listening { proxy: self.clone(), key: self.listeners.next() };
        let mut watched = Vec::new();
        // All at once: a server opens one subscription for what it is asked together.
        // On tasks of their own, so that each is recorded to its end.
        let asked_for = asked.resource_subscriptions.iter().map(|uri| {
            let (proxy, guest, uri) = (self.clone(), guest.clone(), uri.clone());
            self.tasks.spawn(async move { proxy.watch_one(&guest, &uri).await })
        });
        let found = futures_util::future::join_all(asked_for).await;
        for (uri, found) in asked.resource_subscriptions.iter().zip(found) {
            if let Ok(Some(watching)) = found {
                watched.push(watching);
                granted.resource_subscriptions.push(uri.clone());
            }
        }
        let slow = CancellationToken::new();
        let tag = tag(id);
        let acknowledged = json!({ "notifications": granted, "_meta": tag }).to_string();
        let text = Frame::notification(Method::ACKNOWLEDGED, acknowledged.as_bytes());
        if out.send(text).await.is_err() {
            return Err(Refusal::new(Code::Withdrawn, "the client listens no more"));
        }
        let listener = Listener {
            guest: guest.clone(),
            id: id.clone(),
            filter: granted,
            watched: Mutex::new(watched),
            out: out.clone(),
            slow: slow.clone(),
        };
        self.listeners.all.lock().insert(listening.key, Arc::new(listener));
        tokio::select! {
            () = slow.cancelled() => {
                Err(Refusal::new(Code::ClientTimeout, "this client does not read what it hears"))
            }
            () = self.closing.cancelled() => {
                let result = json!({ "resultType": "complete", "_meta": tag });
                Ok(Answer::Result(Payload::from(result)))
            }
        }
    }

    /// Takes one resource into a filter, as the request of its own that it is in other revisions.
    async fn watch_one(self: &Arc<Self>, guest: &Guest, uri: &str) -> Option<Watching> {
        let method = Method::new(Method::SUBSCRIBE);
        let params = Bytes::from(json!({ "uri": uri }).to_string());
        let mut exchange = self.begin(guest, &method, false, Some(params.clone()));
        let mut passage = Passage::default();
        let sight = Sight(self.gate.sight(&guest.principal));
        let admitted = async {
            let route = self.router.route(&guest.view, &method, &params, &sight).await?;
            exchange.server = route.server.as_ref().map(|server| server.name.clone());
            exchange.target = route.target;
            self.chain.pass(&mut exchange, Phase::Request, &mut passage.trail).await?;
            self.fulfil(&exchange, &mut passage).await?;
            route
                .server
                .ok_or_else(|| Refusal::new(Code::Unknown, "there is no such resource here"))
        };
        let server = match admitted.await {
            Ok(server) => server,
            Err(refusal) => {
                self.record_refusal(&exchange, &passage, &refusal).await;
                return None;
            }
        };
        passage.image = self.image(guest, &server);
        if let Err(error) = self.record_intent(&exchange, &mut passage).await {
            tracing::error!(decision = %exchange.id, %error, "a subscription could not be recorded and is not made");
            return None;
        }
        let watched = self.watch(guest, &server, uri).await;
        let conclusion = match &watched {
            Ok(_) => Conclusion::Delivered,
            Err(refusal) => Conclusion::Failed(refusal),
        };
        let recorded = self.record_outcome(&exchange, &passage, conclusion).await;
        if let Err(error) = &recorded {
            tracing::error!(decision = %exchange.id, %error, "an outcome could not be recorded");
        }
        let watching = watched.ok()?.ok()?;
        recorded.ok().map(|()| watching)
    }

    /// Has a server tell of a resource's changes, or returns the server's own error.
    async fn watch(
        self: &Arc<Self>,
        guest: &Guest,
        server: &Arc<Server>,
        uri: &str,
    ) -> Result<Result<Watching, Bytes>, Refusal> {
        let failed = |failure: Failure| failure.refusal(&server.name);
        let turn = Turn::take(self, &guest.principal.kind)?;
        let (instance, _) = self.instance(guest, server).await.map_err(failed)?;
        Ok(match instance.watch(uri).await.map_err(failed)? {
            Reply::Result(_) => {
                let server = (server.name.clone(), server.number);
                Ok(Watching { turn, server, instance, uri: uri.to_owned() })
            }
            Reply::Error(error) => Err(error),
        })
    }

    /// Answers `resources/subscribe` and `resources/unsubscribe` of a legacy session.
    ///
    /// # Errors
    /// A refusal where the server cannot tell of changes.
    pub(super) async fn subscribe(
        self: &Arc<Self>,
        guest: &Guest,
        exchange: &Exchange,
        server: &Arc<Server>,
    ) -> Result<Answer, Refusal> {
        let (Some(session), Target::Resource { uri }) = (&guest.session, &exchange.target) else {
            return Err(Refusal::new(Code::MethodUnknown, "this method is not of this revision"));
        };
        let key = (session.id.clone(), server.name.clone(), uri.clone());
        if exchange.method.as_str() == Method::UNSUBSCRIBE {
            let watching = self.listeners.subscribed.lock().remove(&key);
            drop(watching);
        } else {
            let many =
                self.listeners.subscribed.lock().keys().filter(|k| k.0 == session.id).count();
            if many >= MOST {
                return Err(Refusal::new(
                    Code::RateLimited,
                    format!("at most {MOST} resources can be watched"),
                ));
            }
            match self.watch(guest, server, uri).await? {
                Err(error) => return Ok(Answer::Error(Payload::new(error))),
                Ok(watching) => {
                    // Twice is once, so what was watched before is watched no more.
                    let before = self.listeners.subscribed.lock().insert(key, watching);
                    drop(before);
                }
            }
            if session.ended().is_cancelled() {
                self.unsubscribe_all(session);
            }
        }
        Ok(Answer::Result(Payload::new(Bytes::from_static(b"{}"))))
    }

    fn unsubscribe_all(&self, session: &Session) {
        let mut subscribed = self.listeners.subscribed.lock();
        let all: Vec<_> = subscribed.extract_if(|key, _| key.0 == session.id).collect();
        // What ends with them takes other locks.
        drop(subscribed);
        drop(all);
    }

    /// What was watched of a server that is in the config no more is watched of the one in its place,
    /// where there is one.
    pub(super) async fn change_places(self: &Arc<Self>, old: &Server) {
        let place = (old.name.clone(), old.number);
        let new = self.router.server(&old.name);
        let of_sessions: Vec<_> = {
            let mut subscribed = self.listeners.subscribed.lock();
            subscribed.extract_if(|_, watching| watching.server == place).collect()
        };
        let mut moved = Vec::new();
        for ((session, name, uri), watching) in of_sessions {
            drop(watching);
            let (Some(new), Some(session)) = (&new, self.sessions.get(&session)) else { continue };
            moved.push(self.move_session(session, new.clone(), (name, uri)).boxed());
        }
        let listeners: Vec<_> = self.listeners.all.lock().values().cloned().collect();
        for listener in listeners {
            let mut watched = listener.watched.lock();
            let (gone, stay) = watched.drain(..).partition(|watching| watching.server == place);
            *watched = stay;
            drop(watched);
            let gone: Vec<Watching> = gone;
            let uris: Vec<_> = gone.iter().map(|watching| watching.uri.clone()).collect();
            drop(gone);
            let Some(new) = new.clone().filter(|_| !uris.is_empty()) else { continue };
            moved.push(self.move_listener(listener, new, uris).boxed());
        }
        futures_util::future::join_all(moved).await;
    }

    async fn move_session(
        self: &Arc<Self>,
        session: Arc<Session>,
        server: Arc<Server>,
        (name, uri): (ServerName, String),
    ) {
        let watching = self.watch(&Guest::at(&session), &server, &uri).await;
        let Ok(Ok(watching)) = watching else {
            tracing::debug!(server = %name, "a resource that was watched is not any more");
            return;
        };
        let key = (session.id.clone(), name, uri);
        let before = self.listeners.subscribed.lock().insert(key, watching);
        drop(before);
        if session.ended().is_cancelled() {
            self.unsubscribe_all(&session);
        }
    }

    async fn move_listener(
        self: &Arc<Self>,
        listener: Arc<Listener>,
        server: Arc<Server>,
        uris: Vec<String>,
    ) {
        for uri in uris {
            match self.watch(&listener.guest, &server, &uri).await {
                Ok(Ok(watching)) => listener.watched.lock().push(watching),
                _ => {
                    tracing::debug!(server = %server.name, "a resource that was watched is not any more")
                }
            }
        }
    }

    /// Tells all clients that see any of these servers that lists have changed, each once.
    pub(super) async fn tell_of_servers(&self, servers: &[ServerName]) {
        let seen = |guest: &Guest| {
            let sight = Sight(self.gate.sight(&guest.principal));
            let shows = |server: &&ServerName| match &guest.view {
                View::All => true,
                View::One(name) => name == *server,
            };
            servers.iter().filter(shows).find(|server| sight.server(server)).cloned()
        };
        let lists = [Method::TOOLS_CHANGED, Method::PROMPTS_CHANGED, Method::RESOURCES_CHANGED];
        for session in self.sessions.all().into_iter().filter(|session| session.is_heard()) {
            let guest = Guest::at(&session);
            let Some(server) = seen(&guest) else { continue };
            for method in lists {
                if let Some(text) =
                    self.notice_to(&guest, &server, &Method::new(method), None).await
                {
                    session.tell(text);
                }
            }
        }
        let listeners: Vec<_> = self.listeners.all.lock().values().cloned().collect();
        for listener in listeners {
            let Some(server) = seen(&listener.guest) else { continue };
            for method in lists.into_iter().filter(|method| listener.filter.lists(method)) {
                self.tell_listener(&listener, &server, &Method::new(method), None).await;
            }
        }
    }

    /// Ends what was kept for a session: its subscriptions, and the servers that ran for it alone.
    pub(super) async fn depart(&self, session: &Arc<Session>) {
        self.unsubscribe_all(session);
        let key = PartyKey::Session(session.id.clone());
        self.task_log.forget(&key);
        let servers = self.router.servers(&View::All);
        futures_util::future::join_all(servers.iter().map(|server| server.leave(&key))).await;
    }

    /// Tells those of a change who are to hear of it; whether there was anybody.
    pub(super) async fn tell_of_change(
        &self,
        server: &ServerName,
        party: Option<&PartyKey>,
        method: &Method,
        params: Option<Bytes>,
    ) -> bool {
        let uri = (method.as_str() == Method::UPDATED).then(|| {
            let params = params.clone().and_then(|params| Object::parse(params).ok());
            params.and_then(|params| params.string("uri")).unwrap_or_default()
        });
        let sees = |guest: &Guest| {
            let shown = match &guest.view {
                View::All => true,
                View::One(name) => name == server,
            };
            let sight = Sight(self.gate.sight(&guest.principal));
            shown && sight.server(server)
        };
        let mut told = false;
        for session in self.sessions.all() {
            let meant = match (&uri, party) {
                (_, Some(PartyKey::Client { .. })) => false,
                (_, Some(PartyKey::Session(id))) if *id != session.id => false,
                (Some(uri), _) => {
                    let subscribed = self.listeners.subscribed.lock();
                    let mut own = subscribed.keys().filter(|key| key.0 == session.id);
                    own.any(|(_, of, watched)| of == server && covers(watched, uri))
                }
                (None, _) => true,
            };
            let guest = Guest::at(&session);
            if !meant || !session.is_heard() || !sees(&guest) {
                continue;
            }
            told = true;
            if let Some(text) = self.notice_to(&guest, server, method, params.clone()).await {
                session.tell(text);
            }
        }
        let listeners: Vec<_> = self.listeners.all.lock().values().cloned().collect();
        for listener in listeners {
            let meant = match &uri {
                Some(uri) => listener
                    .watched
                    .lock()
                    .iter()
                    .any(|watching| watching.server.0 == *server && covers(&watching.uri, uri)),
                None => listener.filter.lists(method.as_str()),
            };
            let theirs = party.is_none_or(|party| match self.router.server(server) {
                Some(server) => listener.guest.party_key(&server).as_ref() == Some(party),
                None => false,
            });
            if !meant || !theirs || !sees(&listener.guest) {
                continue;
            }
            told = true;
            self.tell_listener(&listener, server, method, params.as_ref()).await;
        }
        told
    }

    async fn tell_listener(
        &self,
        listener: &Listener,
        server: &ServerName,
        method: &Method,
        params: Option<&Bytes>,
    ) {
        let params = tagged(params, &listener.id);
        let text = self.notice_to(&listener.guest, server, method, Some(params)).await;
        if let Some(text) = text
            && listener.out.try_send(text).is_err()
        {
            listener.slow.cancel();
        }
    }

    /// A server's notification for one client, through the chain.
    pub(super) async fn notice_to(
        &self,
        guest: &Guest,
        server: &ServerName,
        method: &Method,
        params: Option<Bytes>,
    ) -> Option<Bytes> {
        let mut notice = self.begin(guest, method, true, params);
        notice.direction = Direction::ServerToClient;
        notice.server = Some(server.clone());
        if !self.is_wanted(guest, &notice) {
            return None;
        }
        self.to_client(notice).await
    }
}

/// Whether who watches one URI hears of a change of another: of itself, and of what is below it
/// (MCP: an update may be of a part of the resource that was subscribed).
fn covers(watched: &str, changed: &str) -> bool {
    changed.strip_prefix(watched).is_some_and(|rest| {
        rest.is_empty() || watched.ends_with('/') || rest.starts_with(['/', '?', '#'])
    })
}

impl Listeners {
    fn next(&self) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }
}

fn tag(id: &Id) -> Value {
    json!({ META_SUBSCRIPTION: serde_json::from_slice::<Value>(id.raw()).unwrap_or_default() })
}

/// `params` with the id by which the listener knows its subscription.
fn tagged(params: Option<&Bytes>, id: &Id) -> Bytes {
    let empty = Bytes::from_static(b"{}");
    let params = params.unwrap_or(&empty);
    let Ok(object) = Object::parse(params.clone()) else { return params.clone() };
    let meta = match object.object("_meta") {
        Some(meta) => meta.with(&[(META_SUBSCRIPTION, Some(id.raw()))]),
        None => tag(id).to_string().into(),
    };
    object.with(&[("_meta", Some(&meta))])
}

#[cfg(test)]
mod tests {
    use super::covers;

    #[test]
    fn a_change_below_what_is_watched_is_heard_of() {
        for (watched, changed, heard) in [
            ("file:///a", "file:///a", true),
            ("file:///a", "file:///a/b", true),
            ("file:///a/", "file:///a/b", true),
            ("file:///a", "file:///a#b", true),
            ("file:///a", "file:///ab", false),
            ("file:///a/b", "file:///a", false),
        ] {
            assert_eq!(covers(watched, changed), heard, "{watched} {changed}");
        }
    }
}
