//! One server's lists for the merged lists, with a time limit.
//!
//! A server that does not return its list within [`SOON`] continues in the background. It is
//! missing from the lists requested meanwhile; when its list arrives, listeners are notified of the
//! change. A server that is not running, but whose last list is known, is started without waiting
//! for it. A server that was late or failed is not waited for again until it was punctual.
//!
//! What a server offers depends on the era and on the capabilities of its client, so clients have
//! the lists of the instance that serves them.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::{
    FutureExt,
    future::{BoxFuture, Shared},
};
use parking_lot::Mutex;

use super::merged_names::MergedNames;
use crate::stages::{ClientContext, ListSource};
use portcullis_upstream::{CallError, InstanceKey, Items, ListKind, Server};

/// Time for which a merged list waits for a server without a known list.
const SOON: Duration = Duration::from_secs(10);

/// A server with the known lists of one instance.
pub struct ServerLists {
    pub server: Arc<Server>,
    /// The instance.
    source: ListSource,
    /// The lists of its other instances, by their keys. Empty unless these are of the shared one.
    of_others: Mutex<HashMap<InstanceKey, Arc<ServerLists>>>,
    /// The prefixes of all other servers, if this one has none.
    others: Vec<String>,
    slots: [Mutex<CachedList>; 4],
}

/// One list.
#[derive(Default)]
struct CachedList {
    /// The last list.
    catalog: Option<Arc<MergedNames>>,
    flight: Option<InFlightFetch>,
    /// Cause why it is missing from merged lists, if it is.
    missing: Option<String>,
    /// Whether policies are that cause.
    is_refused: bool,
    /// Whether it was used while the server was not running.
    was_reported: bool,
    /// Whether the last request for it was late or failed.
    late: bool,
}

/// A request for a list in flight. All callers meanwhile share it.
#[derive(Clone)]
struct InFlightFetch {
    since: Instant,
    answer: Shared<BoxFuture<'static, Result<Arc<MergedNames>, CallError>>>,
}

impl ServerLists {
    pub fn new(server: Arc<Server>, others: Vec<String>) -> Arc<Self> {
        Self::from_source(server, ListSource::Shared(None), others)
    }

    fn from_source(server: Arc<Server>, source: ListSource, others: Vec<String>) -> Arc<Self> {
        let (of_others, slots) = Default::default();
        Arc::new(Self { server, source, of_others, others, slots })
    }

    /// The lists of the instance that serves a client. Before the first handshake of the server, a
    /// list of the shared instance is requested, because that shows the server's era.
    pub async fn of(self: &Arc<Self>, client: &ClientContext, offer: ListKind) -> Arc<Self> {
        if self.server.known_eras().await.is_none() {
            // A failure is the result of the next request.
            let _ = self.soon(offer).await;
            if self.server.eras().is_none() {
                return self.clone();
            }
        }
        let source = client.list_source(&self.server);
        let Some(key) = source.key().cloned() else { return self.clone() };
        let mut all = self.of_others.lock();
        if let Some(lists) = all.get(&key) {
            return lists.clone();
        }
        all.retain(|key, _| self.server.owned(key).is_some());
        let lists = Self::from_source(self.server.clone(), source, self.others.clone());
        all.insert(key, lists.clone());
        lists
    }

    /// The lists of the instance that serves a client, if they were requested before; otherwise
    /// those of the shared instance.
    pub fn known_of(self: &Arc<Self>, client: &ClientContext) -> Arc<Self> {
        let source = client.list_source(&self.server);
        let found = source.key().and_then(|key| self.of_others.lock().get(key).cloned());
        found.unwrap_or_else(|| self.clone())
    }

    /// The fresh list, or list failure, of the running instance.
    fn fresh_list(&self, offer: ListKind) -> Option<Result<Items, CallError>> {
        self.source.instance(&self.server)?.fresh_list(offer)
    }

    /// The last list of the instance while it does not run.
    async fn last_run(&self, offer: ListKind) -> Option<Items> {
        if self.source.key().is_none() {
            return self.server.last_list(offer).await;
        }
        let runs = self.source.instance(&self.server).is_some_and(|one| one.peek().is_some());
        if runs {
            return None;
        }
        match (self.last_list(offer), &self.source) {
            (Some(last), _) => Some(last.items().clone()),
            // Until the instance has started: what the shared one of the same era listed last.
            (None, ListSource::Own(owner)) if self.server.shared_key(owner.revision).is_none() => {
                self.server.last_list(offer).await
            }
            (None, _) => None,
        }
    }

    /// Whether it belongs to this same server, with the same other prefixes.
    pub fn is_of(&self, server: &Arc<Server>, others: &[String]) -> bool {
        Arc::ptr_eq(&self.server, server) && self.others == others
    }

    /// The prefix of the server's names in merged lists.
    pub fn prefix(&self) -> &str {
        prefix(&self.server)
    }

    /// A list, if the server returns it soon.
    ///
    /// # Errors
    /// A [`CallError`] if it does not. The list is then missing, and the status has the cause.
    pub async fn soon(self: &Arc<Self>, offer: ListKind) -> Result<Arc<MergedNames>, CallError> {
        if let Some(fresh) = self.fresh_list(offer) {
            return self.settle(offer, fresh);
        }
        let last = self.before(offer).await;
        let (flight, patience) = self.flight(offer);
        if let Some(last) = last {
            return Ok(last);
        }
        let remaining = patience.saturating_sub(flight.since.elapsed());
        if let Ok(answer) = tokio::time::timeout(remaining, flight.answer.clone()).await {
            return answer;
        }
        if self.is_missed(offer, &flight) {
            return Err(CallError::Timeout(SOON));
        }
        // It arrived at this moment.
        flight.answer.await
    }

    /// A list of the view's only server; its last list at once if the server is not running.
    ///
    /// # Errors
    /// A [`CallError`] if the server does not return it.
    pub async fn here(self: &Arc<Self>, offer: ListKind) -> Result<Arc<MergedNames>, CallError> {
        if self.fresh_list(offer).is_none()
            && let Some(last) = self.before(offer).await
        {
            self.flight(offer);
            return Ok(last);
        }
        self.complete(offer).await
    }

    /// The last list of a server that is not running. If the server's new list differs, listeners
    /// are notified of the change.
    async fn before(&self, offer: ListKind) -> Option<Arc<MergedNames>> {
        let items = self.last_run(offer).await?;
        let mut slot = self.slot(offer).lock();
        // A later attempt failed.
        if slot.missing.is_some() {
            return None;
        }
        let catalog = match &slot.catalog {
            Some(catalog) if Arc::ptr_eq(catalog.items(), &items) => catalog.clone(),
            _ => Arc::new(MergedNames::of(items, offer, self.prefix(), &self.others)),
        };
        slot.catalog = Some(catalog.clone());
        slot.was_reported = true;
        Some(catalog)
    }

    /// Marks a list as missing if its request is still in flight.
    fn is_missed(&self, offer: ListKind, flight: &InFlightFetch) -> bool {
        let mut slot = self.slot(offer).lock();
        let in_flight = slot.flight.as_ref().is_some_and(|now| now.answer.ptr_eq(&flight.answer));
        if in_flight && slot.missing.is_none() {
            slot.missing = Some("its lists are not known yet".to_owned());
        }
        in_flight
    }

    /// A list, however long the server takes.
    ///
    /// # Errors
    /// A [`CallError`] if the server does not return it.
    pub async fn complete(
        self: &Arc<Self>,
        offer: ListKind,
    ) -> Result<Arc<MergedNames>, CallError> {
        if let Some(fresh) = self.fresh_list(offer) {
            return self.settle(offer, fresh);
        }
        let (flight, _) = self.flight(offer);
        flight.answer.await
    }

    /// The last known list, for callers that must not wait.
    pub fn last_list(&self, offer: ListKind) -> Option<Arc<MergedNames>> {
        self.slot(offer).lock().catalog.clone()
    }

    /// Requests each missing list again.
    pub fn refetch_missing(self: &Arc<Self>) {
        for offer in ListKind::ALL {
            if self.slot(offer).lock().missing.is_some() {
                self.flight(offer);
            }
        }
    }

    /// Requests each list again that policies refused.
    pub fn refetch_refused(self: &Arc<Self>) {
        for offer in ListKind::ALL {
            let is_refused = {
                let mut slot = self.slot(offer).lock();
                // Callers wait for a list that policies may permit now.
                slot.late &= !slot.is_refused;
                slot.is_refused
            };
            if is_refused {
                self.flight(offer);
            }
        }
    }

    /// Findings about the server's lists for the operator.
    pub fn notices(&self) -> Vec<String> {
        let mut notices = Vec::new();
        for offer in ListKind::ALL {
            let slot = self.slot(offer).lock();
            if let Some(why) = &slot.missing {
                notices.push(format!("missing from `{}`: {why}", offer.method()));
            }
            let catalog = slot.catalog.iter().flat_map(|catalog| catalog.notices());
            notices.extend(catalog.map(|notice| format!("`{}`: {notice}", offer.method())));
        }
        notices
    }

    /// The request in flight or a new one, and the time limit for waiting.
    fn flight(self: &Arc<Self>, offer: ListKind) -> (InFlightFetch, Duration) {
        let mut slot = self.slot(offer).lock();
        let patience = if slot.late { Duration::ZERO } else { SOON };
        if let Some(flight) = &slot.flight {
            return (flight.clone(), patience);
        }
        let (server_lists, since) = (self.clone(), Instant::now());
        // A task of its own, so that it continues without a waiting caller.
        let task = tokio::spawn(async move {
            let items = server_lists.source.items(&server_lists.server, offer).await;
            server_lists.land(offer, since.elapsed(), items)
        });
        let answer = task
            .map(|done| {
                let ended = || CallError::Misbehaved("the work for it ended early".into());
                done.unwrap_or_else(|_| Err(ended()))
            })
            .boxed()
            .shared();
        let flight = InFlightFetch { since, answer };
        slot.flight = Some(flight.clone());
        (flight, patience)
    }

    fn land(
        &self,
        offer: ListKind,
        took: Duration,
        items: Result<Items, CallError>,
    ) -> Result<Arc<MergedNames>, CallError> {
        {
            let mut slot = self.slot(offer).lock();
            slot.flight = None;
            slot.late = items.is_err() || took > SOON;
        }
        self.settle(offer, items)
    }

    /// Stores a server's list or failure.
    fn settle(
        &self,
        offer: ListKind,
        items: Result<Items, CallError>,
    ) -> Result<Arc<MergedNames>, CallError> {
        let mut slot = self.slot(offer).lock();
        let items = match items {
            Ok(items) => items,
            Err(failure) => {
                if slot.missing.is_none() {
                    tracing::warn!(
                        server = %self.server.name, list = offer.method(), %failure,
                        "server is missing from a merged list"
                    );
                }
                slot.is_refused = matches!(failure, CallError::Forbidden(_));
                slot.missing = Some(failure.to_string());
                return Err(failure);
            }
        };
        let catalog = match &slot.catalog {
            Some(catalog) if Arc::ptr_eq(catalog.items(), &items) => catalog.clone(),
            _ => Arc::new(MergedNames::of(items, offer, self.prefix(), &self.others)),
        };
        let before = slot.catalog.replace(catalog.clone());
        let reported = std::mem::take(&mut slot.was_reported);
        let changed = || before.is_some_and(|before| !before.items().is_same(catalog.items()));
        slot.is_refused = false;
        if slot.missing.take().is_some() || reported && changed() {
            self.server.notify_list_changed(self.source.key().cloned(), offer);
        }
        Ok(catalog)
    }

    fn slot(&self, offer: ListKind) -> &Mutex<CachedList> {
        &self.slots[offer as usize]
    }
}

/// The prefix of a server's names in merged lists.
pub fn prefix(server: &Server) -> &str {
    server.settings.prefix.as_deref().unwrap_or(server.name.as_str())
}
