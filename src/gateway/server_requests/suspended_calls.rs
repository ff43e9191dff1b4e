//! Suspended calls of modern clients: a legacy server sent a request during the call, and the
//! client got `input_required` (MCP 2026-07-28, multi-round-trip requests).
//!
//! INVARIANT: only the principal that made the call can resume it, with the same request: the key
//! of the call is in a `requestState` that is sealed to both.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use parking_lot::Mutex;
use serde_json::Value;
use tokio::sync::oneshot;
use uuid::Uuid;

use super::{
    ServerRequest, ServerRequests,
    request_state::{ParkedState, digest},
    withdrawn,
};
use crate::upstream_call::UpstreamCall;
use portcullis_protocol::{
    codec::Id,
    exchange::{Answer, Payload},
    identity::PrincipalKind,
    refusal::{Code, Refusal},
};
use portcullis_upstream::{Instance, PauseGuard, Running};

/// Calls that may be suspended at once; the second constant is the limit of one principal.
const MOST: usize = 1_024;
const OF_ONE: usize = 64;

/// A call that waits for its client.
pub(crate) struct SuspendedCall {
    dialogue: UpstreamCall,
    pub open: Vec<PendingInput>,
    /// The instance that runs the call.
    at: (Arc<Instance>, Arc<Running>),
    /// Pauses the call's deadline while it waits.
    paused: Option<PauseGuard>,
    /// End of the wait. Resuming the call without an answer does not extend it.
    until: Option<Instant>,
}

impl SuspendedCall {
    /// A call with its pending server requests.
    pub fn new(
        dialogue: UpstreamCall,
        open: Vec<PendingInput>,
        at: (Arc<Instance>, Arc<Running>),
    ) -> Self {
        Self { dialogue, open, at, paused: None, until: None }
    }

    /// Pauses the deadline.
    pub fn pause(&mut self) {
        self.paused = Some(self.dialogue.clock().pause());
    }

    /// The call, with its deadline running again.
    pub fn resume(self) -> (UpstreamCall, (Arc<Instance>, Arc<Running>)) {
        let Self { dialogue, at, paused, .. } = self;
        drop(paused);
        (dialogue, at)
    }
}

/// A server request at the client. If dropped unanswered, it is recorded as withdrawn.
pub(crate) struct PendingInput {
    requests: Arc<ServerRequests>,
    /// Empty once it is settled.
    inner: Option<(ServerRequest, Id, oneshot::Sender<Bytes>)>,
    key: String,
    request: Bytes,
    digest: String,
}

impl PendingInput {
    /// A request with the server's id, and the channel for its response.
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
        let digest = digest(question.exchange.method.as_str(), question.params());
        let (requests, request) = (requests.clone(), request.into());
        Self { requests, inner: Some((question, id, answer)), key, request, digest }
    }

    /// Key in `inputRequests`.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// Digest of the request.
    pub fn digest(&self) -> &str {
        &self.digest
    }

    /// Size in bytes.
    pub fn size(&self) -> usize {
        self.request.len()
    }

    /// Text of the request as a member of `inputRequests`.
    pub fn request(&self) -> Bytes {
        self.request.clone()
    }

    /// Sends the client's response through the chain to the server.
    pub async fn complete(mut self, result: Bytes) {
        if let Some((question, id, answer)) = self.inner.take() {
            let outcome = match answer.is_closed() {
                // The server withdrew it meanwhile.
                true => Err(withdrawn()),
                false => Ok(Answer::Result(Payload::new(result))),
            };
            let _ = answer.send(self.requests.complete(question, &id, outcome).await);
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

/// All suspended calls.
pub(crate) struct SuspendedCalls {
    /// Key of this run of the proxy.
    run: Uuid,
    cells: Mutex<HashMap<Uuid, Entry>>,
}

struct Entry {
    owner: PrincipalKind,
    until: Instant,
    parked: SuspendedCall,
}

impl SuspendedCalls {
    pub fn new() -> Self {
        Self { run: Uuid::now_v7(), cells: Mutex::default() }
    }

    /// Suspends a call for at most `limit`. Returns its state.
    ///
    /// # Errors
    /// A refusal if too many calls are suspended; the call is abandoned.
    pub fn park(
        &self,
        owner: PrincipalKind,
        mut parked: SuspendedCall,
        limit: Duration,
    ) -> Result<ParkedState, Refusal> {
        let until = *parked.until.get_or_insert_with(|| Instant::now() + limit);
        let digests: BTreeMap<_, _> =
            parked.open.iter().map(|open| (open.key.clone(), open.digest.clone())).collect();
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
        Ok(ParkedState { key, run: self.run, digests })
    }

    /// Removes a call to resume it; `None` if an earlier run of the proxy suspended it, and the call
    /// ended with that run.
    ///
    /// # Errors
    /// A refusal if it was resumed before or not in time.
    pub fn take(&self, state: &ParkedState) -> Result<Option<SuspendedCall>, Refusal> {
        let found = self.cells.lock().remove(&state.key).map(|cell| cell.parked);
        if found.is_none() && state.run == self.run {
            let words = "this call is no longer suspended: retry it";
            return Err(Refusal::new(Code::RequestStateInvalid, words));
        }
        Ok(found)
    }

    /// Abandons calls that were not resumed in time.
    pub fn sweep(&self) {
        let now = Instant::now();
        // Dropped outside the lock.
        let late: Vec<_> = self.cells.lock().extract_if(|_, cell| cell.until <= now).collect();
        drop(late);
    }

    /// Abandons all calls.
    pub fn clear(&self) {
        let all = std::mem::take(&mut *self.cells.lock());
        drop(all);
    }
}
