//! Watched resources: sessions watch them with `resources/subscribe`, listeners with their filter.
//! When a server's entry changes, its watches move to the server of the new entry.
//!
//! INVARIANT: each watch is decided and recorded before it is requested from a server, also from
//! the server of a new entry.

use std::{
    collections::{HashMap, HashSet},
    net::SocketAddr,
    sync::Arc,
};

use bytes::Bytes;
use futures_util::StreamExt as _;
use parking_lot::Mutex;
use serde_json::json;

use super::Subscriptions;
use crate::{recorder::ExchangeRecord, stages::ClientContext};
use portcullis_audit::Conclusion;
use portcullis_protocol::exchange::View;
use portcullis_protocol::{
    exchange::{Answer, Exchange, Method, Payload, Target},
    identity::PrincipalKind,
    names::{DecisionId, ServerName, SessionId},
    refusal::{Code, Refusal},
};
use portcullis_upstream::{CallError, Instance, InstanceKey, Reply, Server};

/// Resources that one session or one listener may watch.
pub(crate) const MOST: usize = 256;
/// Resources that one principal may watch.
const OF_ONE: usize = 1_024;

/// Watched resources of sessions and listeners.
#[derive(Default)]
pub(crate) struct Watches {
    watched: Mutex<HashMap<Subscription, Watched>>,
    /// Number of watched resources of each principal.
    counts: Mutex<HashMap<PrincipalKind, usize>>,
}

/// Receiver of a resource's change notifications.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Subscriber {
    Session(SessionId),
    Listener(u64),
}

/// A subscriber with the server and the URI of a resource.
pub(crate) type Subscription = (Subscriber, ServerName, String);

/// A resource with a subscriber.
struct Watched {
    /// Number of the server, among all that had its name in the config.
    number: u64,
    /// `None` while the server's response is awaited.
    watching: Option<Watching>,
    /// The client's address when it subscribed.
    from: Option<SocketAddr>,
}

/// Refusal that ended a watch, with its decision, if any.
pub(crate) type WatchRefusal = (Option<DecisionId>, Refusal);

/// A slot among the watched resources of a principal, until it is dropped.
struct SubscriberPermit {
    hub: Arc<Subscriptions>,
    owner: PrincipalKind,
}

impl SubscriberPermit {
    fn take(hub: &Arc<Subscriptions>, owner: &PrincipalKind) -> Result<Self, Refusal> {
        let mut counts = hub.watches.counts.lock();
        let count = counts.entry(owner.clone()).or_default();
        if *count >= OF_ONE {
            let words = format!("at most {OF_ONE} resources can be watched by one client");
            return Err(Refusal::new(Code::RateLimited, words));
        }
        *count += 1;
        Ok(Self { hub: hub.clone(), owner: owner.clone() })
    }
}

impl Drop for SubscriberPermit {
    fn drop(&mut self) {
        let mut counts = self.hub.watches.counts.lock();
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
    turn: SubscriberPermit,
    server: ServerName,
    /// Number of the server, among all that had its name in the config.
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
                    tracing::debug!(%failure, "resource subscription could not be ended");
                }
            };
            self.turn.hub.tasks.spawn_on(work, &runtime);
        }
    }
}

impl Subscriptions {
    /// Adds one resource to a listener's filter. Returns whether it is watched.
    pub(crate) async fn grant(
        self: &Arc<Self>,
        client: &ClientContext,
        subscriber: Subscriber,
        uri: String,
    ) -> bool {
        let Ok(watching) = self.watch_one(client, &client.view, &uri).await else { return false };
        let key = (subscriber, watching.server.clone(), watching.uri.clone());
        self.watches.add(key.clone(), watching, client);
        if self.client_of(&key.0, None).is_none() {
            // The listener has ended meanwhile.
            self.watches.forget(&key.0);
            return false;
        }
        match self.follow_move(&key).await {
            Ok(_) => true,
            Err((_, refusal)) => {
                tracing::debug!(server = %key.1, code = %refusal.code, "resource subscription failed");
                false
            }
        }
    }

    /// Has a server watch a resource, as a separate request, like in revisions before 2026-07-28.
    async fn watch_one(
        self: &Arc<Self>,
        client: &ClientContext,
        view: &View,
        uri: &str,
    ) -> Result<Watching, WatchRefusal> {
        let method = Method::new(Method::SUBSCRIBE);
        let params = Bytes::from(json!({ "uri": uri }).to_string());
        let mut exchange = self.stages.begin(client, &method, false, Some(params.clone()));
        let id = Some(exchange.id);
        let mut record = ExchangeRecord::default();
        let sight = self.stages.view(&client.principal);
        let mut counted = None;
        let admitted = async {
            let route = self.router.route((client, view), &method, &params, &sight).await?;
            // Like a call, this delays the end of a server whose config entry changes.
            counted = route.server.as_ref().map(|server| server.counted());
            exchange.server = route.server.as_ref().map(|server| server.name.clone());
            exchange.target = route.target;
            if let Some(params) = route.params {
                exchange.request = Payload::new(params);
            }
            self.stages.request(&mut exchange, &mut record).await?;
            let server = route
                .server
                .ok_or_else(|| Refusal::new(Code::Unknown, "the resource does not exist"))?;
            server.ensure_active()?;
            Ok(server)
        };
        let server = match admitted.await {
            Ok(server) => server,
            Err(refusal) => {
                self.stages.recorder.record_refusal(&exchange, &record, &refusal).await;
                return Err((id, refusal));
            }
        };
        let unrecorded = |words: &str| (id, Refusal::new(Code::AuditUnavailable, words));
        record.image = client.image(&server);
        if let Err(error) = self.stages.recorder.record_intent(&exchange, &mut record).await {
            tracing::error!(decision = %exchange.id, %error, "subscription refused: it could not be recorded");
            return Err(unrecorded("the subscription could not be recorded, so it was not made"));
        }
        // The server's own, which may differ from the client's.
        let uri = match &exchange.target {
            Target::Resource { uri } => uri.clone(),
            _ => uri.to_owned(),
        };
        let watched = self.watch(client, &exchange, &mut record, &server, &uri).await;
        let conclusion = match &watched {
            Ok(_) => Conclusion::Delivered,
            Err(refusal) => Conclusion::Failed(refusal),
        };
        let recorded = self.stages.recorder.record_outcome(&exchange, &record, conclusion).await;
        if let Err(error) = &recorded {
            tracing::error!(decision = %exchange.id, %error, "an outcome could not be recorded");
        }
        let watching = watched.map_err(|refusal| (id, refusal))?.map_err(|_| {
            let words = "the server does not send updates for this resource";
            (id, Refusal::new(Code::Unknown, words))
        })?;
        match recorded {
            Ok(()) => Ok(watching),
            Err(_) => Err(unrecorded("the subscription was made, but could not be recorded")),
        }
    }

    /// Has a server watch a resource, or returns the server's own error.
    async fn watch(
        self: &Arc<Self>,
        client: &ClientContext,
        exchange: &Exchange,
        record: &mut ExchangeRecord,
        server: &Arc<Server>,
        uri: &str,
    ) -> Result<Result<Watching, Bytes>, Refusal> {
        let failed = |failure: CallError| failure.refusal(&server.name);
        let turn = SubscriberPermit::take(self, &client.principal.kind)?;
        let (instance, _) = client.instance(server).await.map_err(failed)?;
        // The start of the server may have taken long.
        self.stages.renew_decision(exchange, record, server).await?;
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
    /// A refusal if the server cannot notify of changes.
    pub(crate) async fn subscribe(
        self: &Arc<Self>,
        client: &ClientContext,
        exchange: &Exchange,
        record: &mut ExchangeRecord,
        server: &Arc<Server>,
    ) -> Result<Answer, Refusal> {
        let (Some(session), Target::Resource { uri }) = (&client.session, &exchange.target) else {
            return Err(Refusal::new(
                Code::MethodUnknown,
                "this protocol revision does not have this method",
            ));
        };
        let subscriber = Subscriber::Session(session.id.clone());
        let key = (subscriber, server.name.clone(), uri.clone());
        if exchange.method.as_str() == Method::UNSUBSCRIBE {
            let watched = self.watches.watched.lock().remove(&key);
            drop(watched);
            return Ok(Answer::Result(Payload::new(Bytes::from_static(b"{}"))));
        }
        let others = |other: &&Subscription| other.0 == key.0 && **other != key;
        let many = self.watches.watched.lock().keys().filter(others).count();
        if many >= MOST {
            return Err(Refusal::new(
                Code::RateLimited,
                format!("at most {MOST} resources can be watched"),
            ));
        }
        match self.watch(client, exchange, record, server, uri).await? {
            Err(error) => return Ok(Answer::Error(Payload::new(error))),
            Ok(watching) => self.watches.add(key.clone(), watching, client),
        }
        if session.ended().is_cancelled() {
            self.watches.forget(&key.0);
        } else if server.ensure_active().is_err() {
            // On a task of its own, so that it is recorded to its end.
            let hub = self.clone();
            let moved = self.tasks.spawn(async move { hub.follow_move(&key).await });
            let Ok(moved) = moved.await else {
                return Err(Refusal::new(Code::ShuttingDown, "the proxy is shutting down"));
            };
            moved.map_err(|(_, refusal)| refusal)?;
        }
        Ok(Answer::Result(Payload::new(Bytes::from_static(b"{}"))))
    }

    /// Moves the watches of a retired server to the server of the new entry, if there is one.
    /// Notifies subscribers that lost a watch, and those that may have missed a change.
    pub(crate) async fn move_watches(self: &Arc<Self>, old: &Server) {
        let moved: Vec<_> = {
            let watched = self.watches.watched.lock();
            let of_it = watched.iter().filter(|((_, server, _), watched)| {
                *server == old.name && watched.number <= old.number
            });
            of_it.map(|(key, _)| key.clone()).collect()
        };
        let moved = futures_util::stream::iter(moved).for_each_concurrent(None, |key| async move {
            match self.follow_move(&key).await {
                Ok(true) => self.notify_move(key).await,
                Ok(false) => {}
                Err(lost) => self.notify_loss(key, lost).await,
            }
        });
        moved.await;
    }

    /// Moves a watch to the present server of that name, as a new request, since that server is
    /// another program. Returns whether this call moved it.
    ///
    /// # Errors
    /// The cause why it is not watched any more.
    async fn follow_move(self: &Arc<Self>, key: &Subscription) -> Result<bool, WatchRefusal> {
        let (subscriber, name, uri) = key;
        let mut is_moved = false;
        loop {
            let now = self.router.server(name);
            let (before, from, claimed) = {
                let mut watched = self.watches.watched.lock();
                let Some(entry) = watched.get_mut(key) else { return Ok(false) };
                let claimed = now.as_ref().map(|server| server.number);
                // Another task moves it or has moved it.
                if claimed.is_some_and(|number| entry.number >= number) {
                    return Ok(is_moved);
                }
                entry.number = claimed.unwrap_or(entry.number);
                let (before, from) = (entry.watching.take(), entry.from);
                if claimed.is_none() {
                    watched.remove(key);
                }
                (before, from, claimed)
            };
            // Dropping it takes other locks.
            drop(before);
            let Some(number) = claimed else {
                let words = format!("server `{name}` was removed from the config");
                return Err((None, Refusal::new(Code::ServerUnavailable, words)));
            };
            let Some(client) = self.client_of(subscriber, from) else {
                self.watches.forget(subscriber);
                return Ok(false);
            };
            // Granted at this server, so not at another with a resource of that name.
            let moved = self.watch_one(&client, &View::One(name.clone()), uri).await;
            let mut watched = self.watches.watched.lock();
            // An unsubscription or a new subscription meanwhile takes precedence.
            let waits = |entry: &&mut Watched| entry.number == number && entry.watching.is_none();
            let entry = watched.get_mut(key).filter(waits);
            let superseded = self
                .router
                .server(name)
                .is_none_or(|now| now.number != number || now.ensure_active().is_err());
            match (moved, entry) {
                (Ok(watching), Some(entry)) => {
                    entry.number = watching.number;
                    entry.watching = Some(watching);
                    is_moved = true;
                }
                // The next round asks the newer server.
                (Err(_), Some(_)) if superseded => {}
                (Err(lost), Some(_)) => {
                    watched.remove(key);
                    return Err(lost);
                }
                (moved, None) => {
                    drop(watched);
                    drop(moved);
                    return Ok(false);
                }
            }
        }
    }
}

/// Whether a watch of one URI covers a change of another: the same URI, or one below it (MCP: an
/// update may be of a part of the resource that was subscribed).
fn covers(watched: &str, changed: &str) -> bool {
    changed.strip_prefix(watched).is_some_and(|rest| {
        rest.is_empty() || watched.ends_with('/') || rest.starts_with(['/', '?', '#'])
    })
}

impl Watches {
    /// The subscribers of a server's resource at the instance with this key. A client's instance can
    /// be another now than when it subscribed.
    pub fn subscribers(
        &self,
        server: &ServerName,
        instance: Option<&InstanceKey>,
        uri: &str,
    ) -> HashSet<Subscriber> {
        let watched = self.watched.lock();
        let of_it = watched.iter().filter(|((_, of, watched), entry)| {
            let at = entry.watching.as_ref().map(|watching| watching.instance.party());
            of == server && at == Some(instance) && covers(watched, uri)
        });
        of_it.map(|((subscriber, ..), _)| subscriber.clone()).collect()
    }

    /// Adds a watch. It replaces an earlier watch of the same key.
    fn add(&self, key: Subscription, watching: Watching, client: &ClientContext) {
        let (number, from) = (watching.number, client.client_addr);
        let entry = Watched { number, watching: Some(watching), from };
        let before = self.watched.lock().insert(key, entry);
        // Dropping it takes other locks.
        drop(before);
    }

    /// Ends all watches of a subscriber that has ended.
    pub fn forget(&self, subscriber: &Subscriber) {
        let mut watched = self.watched.lock();
        let all: Vec<_> = watched.extract_if(|key, _| key.0 == *subscriber).collect();
        drop(watched);
        drop(all);
    }
}

#[cfg(test)]
mod tests {
    use super::covers;

    #[test]
    fn changes_below_a_watched_uri_are_covered() {
        for (watched, changed, expected) in [
            ("file:///a", "file:///a", true),
            ("file:///a", "file:///a/b", true),
            ("file:///a/", "file:///a/b", true),
            ("file:///a", "file:///a#b", true),
            ("file:///a", "file:///ab", false),
            ("file:///a/b", "file:///a", false),
        ] {
            assert_eq!(covers(watched, changed), expected, "{watched} {changed}");
        }
    }
}
