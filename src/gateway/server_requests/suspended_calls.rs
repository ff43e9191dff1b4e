//! Calls of modern clients that wait for them: a legacy server asked something in the midst of one,
//! and the client was told `input_required` (MCP 2026-07-28, multi-round-trip requests).
//!
//! INVARIANT: what is parked is taken up by the principal that made the call, with the request
//! that it made: its key stands in a `requestState` that is sealed to both.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use parking_lot::Mutex;
use serde_json::Value;
use tokio::sync::oneshot;
use uuid::Uuid;

use super::{ServerRequest, ServerRequests, withdrawn};
use crate::upstream_call::UpstreamCall;
use portcullis_protocol::{
    codec::Id,
    exchange::{Answer, Payload},
    identity::PrincipalKind,
    refusal::{Code, Refusal},
};
use portcullis_upstream::{Instance, PauseGuard, Running};

/// Calls that may be parked at once, and those of one principal among them.
const MOST: usize = 1_024;
const OF_ONE: usize = 64;

/// A call that waits for its client.
pub(crate) struct SuspendedCall {
    dialogue: UpstreamCall,
    pub open: Vec<PendingInput>,
    /// Where it is made.
    at: (Arc<Instance>, Arc<Running>),
    /// Its time stands still while it waits.
    paused: Option<PauseGuard>,
    /// When it is given up, once it waits: the same for who takes it up and answers nothing.
    until: Option<Instant>,
}

impl SuspendedCall {
    /// A call with what its server asks.
    pub fn new(
        dialogue: UpstreamCall,
        open: Vec<PendingInput>,
        at: (Arc<Instance>, Arc<Running>),
    ) -> Self {
        Self { dialogue, open, at, paused: None, until: None }
    }

    /// Stops its clock.
    pub fn pause(&mut self) {
        self.paused = Some(self.dialogue.clock().pause());
    }

    /// The call with its clock running again.
    pub fn resume(self) -> (UpstreamCall, (Arc<Instance>, Arc<Running>)) {
        let Self { dialogue, at, paused, .. } = self;
        drop(paused);
        (dialogue, at)
    }
}

/// A question that the client was handed. Dropped unanswered, it is recorded as withdrawn.
pub(crate) struct PendingInput {
    requests: Arc<ServerRequests>,
    /// Gone once it is settled.
    inner: Option<(ServerRequest, Id, oneshot::Sender<Bytes>)>,
    key: String,
    request: Bytes,
}

impl PendingInput {
    /// A question under the server's id of it, with where its answer goes.
    pub fn new(
        requests: &Arc<ServerRequests>,
        question: ServerRequest,
        id: Id,
        answer: oneshot::Sender<Bytes>,
    ) -> Self {
        let key = question.exchange.id.to_string();
        let method = Value::from(question.exchange.method.as_str());
        let mut request = format!("\"{key}\":{{\"method\":{method}").into_bytes();
        if let Some(params) = question.params() {
            request.extend_from_slice(b",\"params\":");
            request.extend_from_slice(params);
        }
        request.push(b'}');
        let (requests, request) = (requests.clone(), request.into());
        Self { requests, inner: Some((question, id, answer)), key, request }
    }

    /// Its key in `inputRequests`.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// Bytes that it keeps.
    pub fn size(&self) -> usize {
        self.request.len()
    }

    /// It as a member of `inputRequests`, as text.
    pub fn request(&self) -> Bytes {
        self.request.clone()
    }

    /// Takes the client's answer through the chain to the server.
    pub async fn settle(mut self, result: Bytes) {
        if let Some((question, id, answer)) = self.inner.take() {
            let given = match answer.is_closed() {
                // The server took it back meanwhile.
                true => Err(withdrawn()),
                false => Ok(Answer::Result(Payload::new(result))),
            };
            let _ = answer.send(self.requests.complete(question, &id, given).await);
        }
    }
}

impl Drop for PendingInput {
    fn drop(&mut self) {
        let (Some((question, id, answer)), Ok(runtime)) =
            (self.inner.take(), tokio::runtime::Handle::try_current())
        else {
            return;
        };
        let requests = self.requests.clone();
        let work = async move {
            let text = requests.complete(question, &id, Err(withdrawn())).await;
            let _ = answer.send(text);
        };
        self.requests.tasks.spawn_on(work, &runtime);
    }
}

/// All calls that wait.
pub(crate) struct SuspendedCalls {
    cells: Mutex<HashMap<Uuid, Entry>>,
}

struct Entry {
    owner: PrincipalKind,
    until: Instant,
    parked: SuspendedCall,
}

impl SuspendedCalls {
    pub fn new() -> Self {
        Self { cells: Mutex::default() }
    }

    /// Parks a call for at most `limit`; its key.
    ///
    /// # Errors
    /// A refusal where too many are parked; the call is given up.
    pub fn park(
        &self,
        owner: PrincipalKind,
        mut parked: SuspendedCall,
        limit: Duration,
    ) -> Result<Uuid, Refusal> {
        let until = *parked.until.get_or_insert_with(|| Instant::now() + limit);
        let mut cells = self.cells.lock();
        let own = cells.values().filter(|cell| cell.owner == owner).count();
        if cells.len() >= MOST || own >= OF_ONE {
            return Err(Refusal::new(
                Code::RateLimited,
                "too many calls wait for input from this client",
            )
            .retry_after(Duration::from_secs(1)));
        }
        let key = Uuid::now_v7();
        cells.insert(key, Entry { owner, until, parked });
        Ok(key)
    }

    /// Takes a call up again.
    pub fn take(&self, key: &Uuid) -> Option<SuspendedCall> {
        self.cells.lock().remove(key).map(|cell| cell.parked)
    }

    /// Gives up those that nobody took up in time.
    pub fn sweep(&self) {
        let now = Instant::now();
        // Dropped outside the lock.
        let late: Vec<_> = self.cells.lock().extract_if(|_, cell| cell.until <= now).collect();
        drop(late);
    }

    /// Gives up all.
    pub fn clear(&self) {
        let all = std::mem::take(&mut *self.cells.lock());
        drop(all);
    }
}
