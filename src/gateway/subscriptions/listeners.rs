//! Receivers of change notifications: legacy sessions with `resources/subscribe`, modern clients
//! with `subscriptions/listen`.
//!
//! INVARIANT: a client is notified of a list or a resource only if policy lets it see the server or
//! read the resource's changes. Each notification passes the chain for each client.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::sync::{SetOnce, mpsc};
use tokio_util::sync::CancellationToken;

use super::{
    Subscriptions,
    watches::{MOST, Subscriber, Subscription, WatchRefusal},
};
use crate::{router::Visibility as _, stages::ClientContext};
use portcullis_protocol::exchange::View;
use portcullis_protocol::{
    codec::{Frame, Id, Object, era::META_SUBSCRIPTION},
    exchange::{Answer, Exchange, Method, Payload},
    identity::PrincipalKind,
    names::ServerName,
    refusal::{Code, Refusal},
};
use portcullis_upstream::InstanceKey;

/// Time for a listener to read the notifications of many resources at once.
const READS: Duration = Duration::from_secs(10);

/// The notifications that a client requests (MCP 2026-07-28, `subscriptions/listen`).
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

/// A modern client with an open `subscriptions/listen` request.
struct Listener {
    client: ClientContext,
    /// The id of the request, which all its notifications contain.
    id: Id,
    filter: Filter,
    /// Whether the granted filter was sent. No notification is sent before it.
    reported: AtomicBool,
    out: mpsc::Sender<Bytes>,
    /// Cancelled if the client does not read its notifications.
    slow: CancellationToken,
    /// Cause of the loss of a granted subscription.
    lost: SetOnce<Refusal>,
}

/// All open `subscriptions/listen` requests.
#[derive(Default)]
pub(crate) struct Listeners {
    next: AtomicU64,
    all: Mutex<HashMap<u64, Arc<Listener>>>,
}

/// Removes a listener when its request ends in any way.
struct Listening {
    hub: Arc<Subscriptions>,
    key: u64,
}

impl Drop for Listening {
    fn drop(&mut self) {
        self.hub.listeners.all.lock().remove(&self.key);
        self.hub.watches.forget(&Subscriber::Listener(self.key));
    }
}

impl Subscriptions {
    /// Answers `subscriptions/listen`: sends the granted filter and then all its notifications,
    /// until the client closes its stream or the proxy stops.
    ///
    /// # Errors
    /// A refusal if the filter is invalid, or if the client does not read its notifications.
    pub(crate) async fn listen(
        self: &Arc<Self>,
        client: &ClientContext,
        id: &Id,
        exchange: &Exchange,
        out: &mpsc::Sender<Bytes>,
    ) -> Result<Answer, Refusal> {
        let invalid = |why: &str| Refusal::new(Code::InvalidParams, why.to_owned());
        let notifications = exchange.request.value().get("notifications");
        let requested: Filter =
            notifications.ok_or_else(|| invalid("`notifications` must be an object")).and_then(
                |filter| Filter::deserialize(filter).map_err(|error| invalid(&error.to_string())),
            )?;
        if requested.resource_subscriptions.len() > MOST {
            return Err(invalid(&format!("at most {MOST} resources can be watched")));
        }
        let mut granted = Filter { resource_subscriptions: Vec::new(), ..requested.clone() };
        let listening = Listening { hub: self.clone(), key: self.listeners.next() };
        let listener = Arc::new(Listener {
            client: client.clone(),
            id: id.clone(),
            filter: granted.clone(),
            reported: AtomicBool::new(false),
            out: out.clone(),
            slow: CancellationToken::new(),
            lost: SetOnce::new(),
        });
        self.listeners.all.lock().insert(listening.key, listener.clone());
        // Concurrently, so that a server can open one subscription for all of them.
        // On tasks of their own, so that each is recorded to its end.
        let requested_uris = requested.resource_subscriptions.iter().map(|uri| {
            let (hub, client, uri) = (self.clone(), client.clone(), uri.clone());
            let subscriber = Subscriber::Listener(listening.key);
            self.tasks.spawn(async move { hub.grant(&client, subscriber, uri).await })
        });
        let found = futures_util::future::join_all(requested_uris).await;
        for (uri, found) in requested.resource_subscriptions.iter().zip(found) {
            if found.unwrap_or(false) {
                granted.resource_subscriptions.push(uri.clone());
            }
        }
        let tag = tag(id);
        let acknowledged = json!({ "notifications": granted, "_meta": tag }).to_string();
        let text = Frame::notification(Method::ACKNOWLEDGED, acknowledged.as_bytes());
        if out.send(text).await.is_err() {
            return Err(Refusal::new(Code::Cancelled, "the client closed the subscription"));
        }
        listener.reported.store(true, Ordering::Release);
        tokio::select! {
            () = listener.slow.cancelled() => {
                Err(Refusal::new(Code::ClientTimeout, "the client did not read its notifications in time"))
            }
            lost = listener.lost.wait() => Err(lost.clone()),
            () = self.closing.cancelled() => {
                let result = json!({ "resultType": "complete", "_meta": tag });
                Ok(Answer::Result(Payload::from(result)))
            }
        }
    }

    /// Reports to a subscriber that a resource is not watched any more. Revisions with sessions
    /// have only log messages for that. The request of a listener ends, so that the client sends it
    /// again and gets the filter that is granted then.
    pub(crate) async fn notify_loss(
        &self,
        (subscriber, server, uri): Subscription,
        (decision, why): WatchRefusal,
    ) {
        tracing::info!(
            %server, code = %why.code, decision = decision.map(tracing::field::display),
            "resource subscription ended"
        );
        match &subscriber {
            Subscriber::Session(id) => {
                let Some(session) = self.sessions.get(id) else { return };
                let mut data = json!({
                    "message": format!("the resource subscription ended: {}", why.message),
                    "uri": uri,
                    "code": why.code.as_str(),
                });
                if let Some(decision) = decision {
                    data["decision"] = decision.to_string().into();
                }
                let params = json!({ "level": "warning", "logger": "portcullis", "data": data });
                let (method, params) = (Method::new(Method::LOG_MESSAGE), params.to_string());
                let client = ClientContext::at(&session);
                let text =
                    self.stages.notice_to(&client, &server, &method, Some(params.into())).await;
                text.map(|text| session.send(text));
            }
            Subscriber::Listener(key) => {
                let Some(listener) = self.listeners.get(*key) else { return };
                let message =
                    format!("a resource subscription ended, subscribe again: {}", why.message);
                let refusal = Refusal { message, ..why }.data("uri", uri.into());
                // Any of several reasons is enough.
                let _ = listener.lost.set(refusal);
            }
        }
    }

    /// Notifies a subscriber that a resource may have changed, since nothing watched it between the
    /// watches of the old and the new server.
    pub(crate) async fn notify_move(&self, (subscriber, server, uri): Subscription) {
        let method = Method::new(Method::UPDATED);
        let params = Bytes::from(json!({ "uri": uri }).to_string());
        match &subscriber {
            Subscriber::Session(id) => {
                let session = self.sessions.get(id).filter(|session| session.has_reader());
                let Some(session) = session else { return };
                let client = ClientContext::at(&session);
                let text = self.stages.notice_to(&client, &server, &method, Some(params)).await;
                text.map(|text| session.send(text));
            }
            Subscriber::Listener(key) => {
                // Before its granted filter, the client has read no data that could be outdated.
                let listener = self.listeners.get(*key);
                let Some(listener) = listener.filter(|one| one.reported.load(Ordering::Acquire))
                else {
                    return;
                };
                let text = self.notice_for(&listener, &server, &method, Some(&params)).await;
                // One notification for each resource may be more than the client reads at once.
                if let Some(text) = text
                    && listener.out.send_timeout(text, READS).await.is_err()
                {
                    listener.slow.cancel();
                }
            }
        }
    }

    /// Ends the listeners of a principal.
    pub(crate) fn end_listeners(&self, kind: &PrincipalKind, key: Option<&str>, why: &str) {
        for listener in self.listeners.all.lock().values() {
            if listener.client.principal.is(kind, key) {
                let _ = listener.lost.set(Refusal::new(Code::Unauthenticated, why));
            }
        }
    }

    /// The client of a subscriber, for requests in its name; `None` once it has ended. `from` is
    /// the address of the session's request.
    pub(crate) fn client_of(
        &self,
        subscriber: &Subscriber,
        from: Option<SocketAddr>,
    ) -> Option<ClientContext> {
        match subscriber {
            Subscriber::Session(id) => {
                self.sessions.get(id).map(|s| ClientContext::at(&s).from(from))
            }
            Subscriber::Listener(key) => self.listeners.get(*key).map(|one| one.client.clone()),
        }
    }

    /// Notifies each client that sees any of these servers once that lists have changed.
    pub(crate) async fn notify_servers(&self, servers: &[ServerName]) {
        let seen = |client: &ClientContext| {
            let sight = self.stages.view(&client.principal);
            let shows = |server: &&ServerName| match &client.view {
                View::All => true,
                View::One(name) => name == *server,
            };
            servers.iter().filter(shows).find(|server| sight.server(server)).cloned()
        };
        let lists = [Method::TOOLS_CHANGED, Method::PROMPTS_CHANGED, Method::RESOURCES_CHANGED];
        for session in self.sessions.all().into_iter().filter(|session| session.has_reader()) {
            let client = ClientContext::at(&session);
            let Some(server) = seen(&client) else { continue };
            for method in lists {
                if let Some(text) =
                    self.stages.notice_to(&client, &server, &Method::new(method), None).await
                {
                    session.send(text);
                }
            }
        }
        for (_, listener) in self.listeners.reported() {
            let Some(server) = seen(&listener.client) else { continue };
            for method in lists.into_iter().filter(|method| listener.filter.lists(method)) {
                self.notify_listener(&listener, &server, &Method::new(method), None).await;
            }
        }
    }

    /// Notifies the subscribers of a change. Returns whether there were any.
    pub(crate) async fn notify_change(
        &self,
        server: &ServerName,
        party: Option<&InstanceKey>,
        method: &Method,
        params: Option<Bytes>,
    ) -> bool {
        let uri = (method.as_str() == Method::UPDATED).then(|| {
            let params = params.clone().and_then(|params| Object::parse(params).ok());
            params.and_then(|params| params.string("uri")).unwrap_or_default()
        });
        let sees = |client: &ClientContext| {
            let shown = match &client.view {
                View::All => true,
                View::One(name) => name == server,
            };
            let sight = self.stages.view(&client.principal);
            shown && sight.server(server)
        };
        // The subscribers, if the change is of one resource.
        let subscribers = uri.map(|uri| self.watches.subscribers(server, party, &uri));
        let mut reported = false;
        let now = self.router.server(server);
        // A client gets the changes of the lists of the instances that serve it and its lists.
        let has = |client: &ClientContext| match &now {
            Some(server) => {
                client.party_key(server).as_ref() == party
                    || client.list_source(server).key() == party
            }
            None => party.is_none(),
        };
        for session in self.sessions.all() {
            let client = ClientContext::at(&session);
            let subscribed = match &subscribers {
                Some(subscribers) => subscribers.contains(&Subscriber::Session(session.id.clone())),
                None => has(&client),
            };
            if !subscribed || !session.has_reader() || !sees(&client) {
                continue;
            }
            reported = true;
            if let Some(text) = self.stages.notice_to(&client, server, method, params.clone()).await
            {
                session.send(text);
            }
        }
        for (key, listener) in self.listeners.reported() {
            let subscribed = match &subscribers {
                Some(subscribers) => subscribers.contains(&Subscriber::Listener(key)),
                None => listener.filter.lists(method.as_str()) && has(&listener.client),
            };
            if !subscribed || !sees(&listener.client) {
                continue;
            }
            reported = true;
            self.notify_listener(&listener, server, method, params.as_ref()).await;
        }
        reported
    }

    async fn notify_listener(
        &self,
        listener: &Listener,
        server: &ServerName,
        method: &Method,
        params: Option<&Bytes>,
    ) {
        if let Some(text) = self.notice_for(listener, server, method, params).await
            && listener.out.try_send(text).is_err()
        {
            listener.slow.cancel();
        }
    }

    /// A server's notification for one listener, through the chain.
    async fn notice_for(
        &self,
        listener: &Listener,
        server: &ServerName,
        method: &Method,
        params: Option<&Bytes>,
    ) -> Option<Bytes> {
        let params = tagged(params, &listener.id);
        self.stages.notice_to(&listener.client, server, method, Some(params)).await
    }
}

impl Listeners {
    fn next(&self) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    fn get(&self, key: u64) -> Option<Arc<Listener>> {
        self.all.lock().get(&key).cloned()
    }

    /// The listeners that got their granted filter, with their keys.
    fn reported(&self) -> Vec<(u64, Arc<Listener>)> {
        let all = self.all.lock();
        let reported = all.iter().filter(|(_, listener)| listener.reported.load(Ordering::Acquire));
        reported.map(|(key, listener)| (*key, listener.clone())).collect()
    }
}

fn tag(id: &Id) -> Value {
    json!({ META_SUBSCRIPTION: serde_json::from_slice::<Value>(id.raw()).unwrap_or_default() })
}

/// `params` with the id of the listener's subscription.
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
