//! Who hears of changes: legacy sessions by what they subscribed to, modern clients by
//! `subscriptions/listen`.
//!
//! INVARIANT: a client hears of a list, or of a resource, only where policy lets it see the server,
//! or read the resource's changes; and each notification passes the chain as what it is to it. No
//! server is asked to tell of a resource before that was decided and recorded, nor is the one that
//! takes another's place in the config.

use std::{
    collections::{HashMap, HashSet},
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use bytes::Bytes;
use futures_util::StreamExt as _;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::sync::{SetOnce, mpsc};
use tokio_util::sync::CancellationToken;

use super::{Proxy, guest::Guest, sight::Sight, way::Passage};
use crate::{
    audit::Conclusion,
    codec::{Frame, Id, Object, era::META_SUBSCRIPTION},
    exchange::{Answer, Direction, Exchange, Method, Payload, Phase, Target},
    identity::PrincipalKind,
    names::{DecisionId, ServerName, SessionId},
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
    /// Whether it was told what is granted. Nothing else comes before that.
    told: AtomicBool,
    out: mpsc::Sender<Bytes>,
    /// Cancelled where it does not read what it asked for.
    slow: CancellationToken,
    /// Why something is not watched any more that was granted to it.
    lost: SetOnce<Refusal>,
}

/// All that listen, and what is watched for them and for sessions.
#[derive(Default)]
pub(super) struct Listeners {
    next: AtomicU64,
    all: Mutex<HashMap<u64, Arc<Listener>>>,
    watched: Mutex<HashMap<Subscription, Watched>>,
    /// How many resources are watched for each principal.
    counts: Mutex<HashMap<PrincipalKind, usize>>,
}

/// Who hears of a resource.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Hearer {
    Session(SessionId),
    Listener(u64),
}

/// Who hears of which server's resource, by its URI.
type Subscription = (Hearer, ServerName, String);

/// A resource that somebody hears of.
struct Watched {
    /// Which server of that name it is, of all that ever were in the config.
    number: u64,
    /// Nothing while that server is being asked.
    watching: Option<Watching>,
    /// From where the client asked for it.
    from: Option<SocketAddr>,
}

/// What is not watched any more, and by which decision where one was made.
type Lost = (Option<DecisionId>, Refusal);

/// Takes a listener out where its request ends, however it does.
struct Listening {
    proxy: Arc<Proxy>,
    key: u64,
}

impl Drop for Listening {
    fn drop(&mut self) {
        self.proxy.listeners.all.lock().remove(&self.key);
        self.proxy.listeners.forget(&Hearer::Listener(self.key));
    }
}

/// A place among the resources that are watched for a principal, until it is dropped.
struct Turn {
    proxy: Arc<Proxy>,
    owner: PrincipalKind,
}

impl Turn {
    fn take(proxy: &Arc<Proxy>, owner: &PrincipalKind) -> Result<Self, Refusal> {
        let mut counts = proxy.listeners.counts.lock();
        let count = counts.entry(owner.clone()).or_default();
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
        let mut counts = self.proxy.listeners.counts.lock();
        if let Some(count) = counts.get_mut(&self.owner) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.owner);
            }
        }
    }
}

/// A resource that is watched until this is dropped.
struct Watching {
    turn: Turn,
    server: ServerName,
    /// Which server of that name it is, of all that ever were in the config.
    number: u64,
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
        let listener = Arc::new(Listener {
            guest: guest.clone(),
            id: id.clone(),
            filter: granted.clone(),
            told: AtomicBool::new(false),
            out: out.clone(),
            slow: CancellationToken::new(),
            lost: SetOnce::new(),
        });
        self.listeners.all.lock().insert(listening.key, listener.clone());
        // All at once: a server opens one subscription for what it is asked together.
        // On tasks of their own, so that each is recorded to its end.
        let asked_for = asked.resource_subscriptions.iter().map(|uri| {
            let (proxy, guest, uri) = (self.clone(), guest.clone(), uri.clone());
            let hearer = Hearer::Listener(listening.key);
            self.tasks.spawn(async move { proxy.grant(&guest, hearer, uri).await })
        });
        let found = futures_util::future::join_all(asked_for).await;
        for (uri, found) in asked.resource_subscriptions.iter().zip(found) {
            if found.unwrap_or(false) {
                granted.resource_subscriptions.push(uri.clone());
            }
        }
        let tag = tag(id);
        let acknowledged = json!({ "notifications": granted, "_meta": tag }).to_string();
        let text = Frame::notification(Method::ACKNOWLEDGED, acknowledged.as_bytes());
        if out.send(text).await.is_err() {
            return Err(Refusal::new(Code::Withdrawn, "the client listens no more"));
        }
        listener.told.store(true, Ordering::Release);
        tokio::select! {
            () = listener.slow.cancelled() => {
                Err(Refusal::new(Code::ClientTimeout, "this client does not read what it hears"))
            }
            lost = listener.lost.wait() => Err(lost.clone()),
            () = self.closing.cancelled() => {
                let result = json!({ "resultType": "complete", "_meta": tag });
                Ok(Answer::Result(Payload::from(result)))
            }
        }
    }

    /// Takes one resource into a listener's filter; whether it is watched.
    async fn grant(self: &Arc<Self>, guest: &Guest, hearer: Hearer, uri: String) -> bool {
        let Ok(watching) = self.watch_one(guest, &guest.view, &uri).await else { return false };
        let key = (hearer, watching.server.clone(), uri);
        self.listeners.add(key.clone(), watching, guest);
        if self.listener(&key.0).is_none() {
            // It has ended meanwhile.
            self.listeners.forget(&key.0);
            return false;
        }
        match self.follow_place(&key).await {
            Ok(()) => true,
            Err((_, refusal)) => {
                tracing::debug!(server = %key.1, code = %refusal.code, "a resource is not watched");
                false
            }
        }
    }

    /// Has a server tell of a resource's changes, as the request of its own that this is in revisions
    /// before 2026-07-28.
    async fn watch_one(
        self: &Arc<Self>,
        guest: &Guest,
        view: &View,
        uri: &str,
    ) -> Result<Watching, Lost> {
        let method = Method::new(Method::SUBSCRIBE);
        let params = Bytes::from(json!({ "uri": uri }).to_string());
        let mut exchange = self.begin(guest, &method, false, Some(params.clone()));
        let id = Some(exchange.id);
        let mut passage = Passage::default();
        let sight = Sight(self.gate.sight(&guest.principal));
        let admitted = async {
            let route = self.router.route(view, &method, &params, &sight).await?;
            exchange.server = route.server.as_ref().map(|server| server.name.clone());
            exchange.target = route.target;
            self.chain.pass(&mut exchange, Phase::Request, &mut passage.trail).await?;
            self.fulfil(&exchange, &mut passage).await?;
            let server = route
                .server
                .ok_or_else(|| Refusal::new(Code::Unknown, "there is no such resource here"))?;
            server.still_there()?;
            Ok(server)
        };
        let server = match admitted.await {
            Ok(server) => server,
            Err(refusal) => {
                self.record_refusal(&exchange, &passage, &refusal).await;
                return Err((id, refusal));
            }
        };
        let unrecorded = |words: &str| (id, Refusal::new(Code::AuditUnavailable, words));
        passage.image = self.image(guest, &server);
        if let Err(error) = self.record_intent(&exchange, &mut passage).await {
            tracing::error!(decision = %exchange.id, %error, "a subscription could not be recorded and is not made");
            return Err(unrecorded("the subscription could not be recorded, so it was not made"));
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
        let watching = watched.map_err(|refusal| (id, refusal))?.map_err(|_| {
            let words = "the server does not tell of changes of this resource";
            (id, Refusal::new(Code::Unknown, words))
        })?;
        match recorded {
            Ok(()) => Ok(watching),
            Err(_) => Err(unrecorded("the subscription was made, but could not be recorded")),
        }
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
                let (server, number) = (server.name.clone(), server.number);
                Ok(Watching { turn, server, number, instance, uri: uri.to_owned() })
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
        let hearer = Hearer::Session(session.id.clone());
        let key = (hearer, server.name.clone(), uri.clone());
        if exchange.method.as_str() == Method::UNSUBSCRIBE {
            let watched = self.listeners.watched.lock().remove(&key);
            drop(watched);
            return Ok(Answer::Result(Payload::new(Bytes::from_static(b"{}"))));
        }
        let many = self.listeners.watched.lock().keys().filter(|other| other.0 == key.0).count();
        if many >= MOST {
            return Err(Refusal::new(
                Code::RateLimited,
                format!("at most {MOST} resources can be watched"),
            ));
        }
        match self.watch(guest, server, uri).await? {
            Err(error) => return Ok(Answer::Error(Payload::new(error))),
            Ok(watching) => self.listeners.add(key.clone(), watching, guest),
        }
        if session.ended().is_cancelled() {
            self.listeners.forget(&key.0);
        } else if server.still_there().is_err() {
            // On a task of its own, so that it is recorded to its end.
            let proxy = self.clone();
            let moved = self.tasks.spawn(async move { proxy.follow_place(&key).await });
            moved.await.unwrap_or(Ok(())).map_err(|(_, refusal)| refusal)?;
        }
        Ok(Answer::Result(Payload::new(Bytes::from_static(b"{}"))))
    }

    /// What was watched of a server that is in the config no more is watched of the one in its place,
    /// where there is one. Whoever has lost something by that is told.
    pub(super) async fn change_places(self: &Arc<Self>, old: &Server) {
        let moved: Vec<_> = {
            let watched = self.listeners.watched.lock();
            let of_it = watched.iter().filter(|((_, server, _), watched)| {
                *server == old.name && watched.number <= old.number
            });
            of_it.map(|(key, _)| key.clone()).collect()
        };
        let moved = futures_util::stream::iter(moved).for_each_concurrent(None, |key| async move {
            if let Err((decision, refusal)) = self.follow_place(&key).await {
                self.tell_of_loss(key, decision, refusal).await;
            }
        });
        moved.await;
    }

    /// Has a resource that is watched be watched of the server that is in the config by now, where that
    /// is another: as a request of its own, since what is there is another program.
    ///
    /// # Errors
    /// Why it is not watched any more.
    async fn follow_place(self: &Arc<Self>, key: &Subscription) -> Result<(), Lost> {
        let (hearer, name, uri) = key;
        loop {
            let now = self.router.server(name);
            let (before, from, claimed) = {
                let mut watched = self.listeners.watched.lock();
                let Some(entry) = watched.get_mut(key) else { return Ok(()) };
                let claimed = now.as_ref().map(|server| server.number);
                // Somebody else may be at it, or has been.
                if claimed.is_some_and(|number| entry.number >= number) {
                    return Ok(());
                }
                entry.number = claimed.unwrap_or(entry.number);
                let (before, from) = (entry.watching.take(), entry.from);
                if claimed.is_none() {
                    watched.remove(key);
                }
                (before, from, claimed)
            };
            // What ends with it takes other locks.
            drop(before);
            let Some(number) = claimed else {
                let words = format!("server `{name}` was taken out of the config");
                return Err((None, Refusal::new(Code::ServerUnavailable, words)));
            };
            let guest = match hearer {
                Hearer::Session(id) => self.sessions.get(id).map(|s| Guest::at(&s).from(from)),
                Hearer::Listener(_) => self.listener(hearer).map(|one| one.guest.clone()),
            };
            let Some(guest) = guest else {
                self.listeners.forget(hearer);
                return Ok(());
            };
            // It is there that it was granted, and not at whoever else has something of that name.
            let moved = self.watch_one(&guest, &View::One(name.clone()), uri).await;
            let mut watched = self.listeners.watched.lock();
            // Whoever took it back, or asked for it again, has the last word.
            let waits = |entry: &&mut Watched| entry.number == number && entry.watching.is_none();
            let entry = watched.get_mut(key).filter(waits);
            let superseded = self
                .router
                .server(name)
                .is_none_or(|now| now.number != number || now.still_there().is_err());
            match (moved, entry) {
                (Ok(watching), Some(entry)) => {
                    entry.number = watching.number;
                    entry.watching = Some(watching);
                }
                // What is there by now, or in a moment, is asked instead.
                (Err(_), Some(_)) if superseded => {}
                (Err(lost), Some(_)) => {
                    watched.remove(key);
                    return Err(lost);
                }
                (moved, None) => {
                    drop(watched);
                    drop(moved);
                    return Ok(());
                }
            }
        }
    }

    /// Tells who heard of a resource that it is not watched any more. The revisions with sessions have
    /// no word for that, but log messages; a listener's request ends, so that it asks again and hears
    /// what is granted.
    async fn tell_of_loss(&self, key: Subscription, decision: Option<DecisionId>, why: Refusal) {
        let (hearer, server, uri) = key;
        tracing::info!(
            %server, code = %why.code, decision = decision.map(tracing::field::display),
            "a resource that was watched is not any more"
        );
        match &hearer {
            Hearer::Session(id) => {
                let Some(session) = self.sessions.get(id) else { return };
                let mut data = json!({
                    "message": format!("this resource is not watched any more: {}", why.message),
                    "uri": uri,
                    "code": why.code.as_str(),
                });
                if let Some(decision) = decision {
                    data["decision"] = decision.to_string().into();
                }
                let params = json!({ "level": "warning", "logger": "portcullis", "data": data });
                let (method, params) = (Method::new(Method::LOG_MESSAGE), params.to_string());
                let guest = Guest::at(&session);
                let text = self.notice_to(&guest, &server, &method, Some(params.into())).await;
                text.map(|text| session.tell(text));
            }
            Hearer::Listener(_) => {
                let Some(listener) = self.listener(&hearer) else { return };
                let message =
                    format!("a resource is not watched any more, listen again: {}", why.message);
                let refusal = Refusal { message, ..why }.data("uri", uri.into());
                // The first reason is as good as another.
                let _ = listener.lost.set(refusal);
            }
        }
    }

    /// Ends what a principal listens to.
    pub(super) fn end_listeners(&self, kind: &PrincipalKind, key: Option<&str>, why: &str) {
        for listener in self.listeners.all.lock().values() {
            if listener.guest.principal.is(kind, key) {
                let _ = listener.lost.set(Refusal::new(Code::Unauthenticated, why));
            }
        }
    }

    fn listener(&self, hearer: &Hearer) -> Option<Arc<Listener>> {
        match hearer {
            Hearer::Listener(key) => self.listeners.all.lock().get(key).cloned(),
            Hearer::Session(_) => None,
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
        for (_, listener) in self.listeners.told() {
            let Some(server) = seen(&listener.guest) else { continue };
            for method in lists.into_iter().filter(|method| listener.filter.lists(method)) {
                self.tell_listener(&listener, &server, &Method::new(method), None).await;
            }
        }
    }

    /// Ends what was kept for a session: its subscriptions, and the servers that ran for it alone.
    pub(super) async fn depart(&self, session: &Arc<Session>) {
        self.listeners.forget(&Hearer::Session(session.id.clone()));
        let key = PartyKey::Session(session.id.clone());
        self.task_log.forget(&key);
        let servers = self.all_servers();
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
        // Who hears of it, where it is of one resource.
        let hearers = uri.map(|uri| self.listeners.of(server, &uri));
        let mut told = false;
        for session in self.sessions.all() {
            let meant = match (&hearers, party) {
                (_, Some(PartyKey::Client { .. })) => false,
                (_, Some(PartyKey::Session(id))) if *id != session.id => false,
                (Some(hearers), _) => hearers.contains(&Hearer::Session(session.id.clone())),
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
        for (key, listener) in self.listeners.told() {
            let meant = match &hearers {
                Some(hearers) => hearers.contains(&Hearer::Listener(key)),
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

    /// Those that were told what is granted to them, with their keys.
    fn told(&self) -> Vec<(u64, Arc<Listener>)> {
        let all = self.all.lock();
        let told = all.iter().filter(|(_, listener)| listener.told.load(Ordering::Acquire));
        told.map(|(key, listener)| (*key, listener.clone())).collect()
    }

    /// Those who hear of a change of a server's resource.
    fn of(&self, server: &ServerName, uri: &str) -> HashSet<Hearer> {
        let watched = self.watched.lock();
        let of_it = watched.iter().filter(|((_, of, watched), entry)| {
            of == server && entry.watching.is_some() && covers(watched, uri)
        });
        of_it.map(|((hearer, ..), _)| hearer.clone()).collect()
    }

    /// Notes that a resource is watched. Twice is once: what was watched before is watched no more.
    fn add(&self, key: Subscription, watching: Watching, guest: &Guest) {
        let (number, from) = (watching.number, guest.client_addr);
        let entry = Watched { number, watching: Some(watching), from };
        let before = self.watched.lock().insert(key, entry);
        // What ends with it takes other locks.
        drop(before);
    }

    /// Has nothing watched any more for one that hears of nothing any more.
    fn forget(&self, hearer: &Hearer) {
        let mut watched = self.watched.lock();
        let all: Vec<_> = watched.extract_if(|key, _| key.0 == *hearer).collect();
        drop(watched);
        drop(all);
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
