//! Multiplexer of the calls on one connection: assigns the server's messages to calls.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use parking_lot::{Mutex, RwLock};
use serde::{Deserialize, de::IgnoredAny};
use tokio::{
    runtime::Handle,
    sync::{Semaphore, mpsc, oneshot},
};

use super::{
    batch,
    call_error::CallError,
    message_sink::MessageSink,
    pending_requests::{PendingServerRequests, StreamOfCall},
    transport::{
        Call, OriginalIds, Reply, ServerMessage, nobody, pong, progress_token, subscription,
    },
};
use portcullis_chain::{Party, Weight, in_turns};
use portcullis_protocol::{
    codec::{Caps, Flaw, Frame, Id, Kind, Object, may_have},
    exchange::{Method, Revision},
};

/// Maximum number of queued messages to a server whose sending nobody waits for.
const ERRANDS: usize = 256;

/// Maximum number of tasks whose progress is delivered after the end of their calls.
const TASKS: usize = 256;

/// Maximum size of the progress token and id that are kept for a task.
const TASK_BYTES: usize = 1_024;

/// Maximum number of cancelled calls with log messages that are tracked.
const GIVEN_UP: usize = 1_024;

/// Sends a text to the server, with a timeout.
pub(super) type Writer = Arc<dyn Fn(Bytes) -> BoxFuture<'static, ()> + Send + Sync>;

/// Calls of one connection.
pub(super) struct Multiplexer {
    pub caps: Caps,
    pub sink: MessageSink,
    pending: Mutex<HashMap<u64, Pending>>,
    /// The newest calls that were answered with a task. Their progress tokens stay valid.
    tasks: Mutex<VecDeque<(u64, OriginalIds)>>,
    /// Cancelled calls with log messages: the server may still log for them.
    /// Lock order: `pending` before this.
    given_up: Mutex<HashSet<u64>>,
    next: AtomicU64,
    dead: OnceLock<String>,
    revision: RwLock<Option<Revision>>,
    server_requests: PendingServerRequests,
    out: Writer,
    errands: Arc<Semaphore>,
}

struct Pending {
    answer: oneshot::Sender<Result<Reply, CallError>>,
    messages: Option<mpsc::Sender<ServerMessage>>,
    original_ids: OriginalIds,
}

/// A call in flight.
pub(super) struct PendingCall {
    pub id: u64,
    pub original_ids: OriginalIds,
    pub messages: Option<mpsc::Sender<ServerMessage>>,
    pub answer: oneshot::Receiver<Result<Reply, CallError>>,
}

/// Stream on which a message arrived.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum StreamKind {
    /// The only stream of the server.
    Shared,
    /// A stream beside those of calls: a message on it that names no call belongs to none.
    Unsolicited,
}

impl Multiplexer {
    /// A multiplexer without calls. Messages without a call go to `sink`; `out` sends to the
    /// server.
    pub fn new(caps: Caps, sink: MessageSink, out: Writer) -> Self {
        Self {
            caps,
            sink,
            pending: Mutex::default(),
            tasks: Mutex::default(),
            given_up: Mutex::default(),
            next: AtomicU64::new(1),
            dead: OnceLock::new(),
            revision: RwLock::default(),
            server_requests: PendingServerRequests::default(),
            out,
            errands: Arc::new(Semaphore::new(ERRANDS)),
        }
    }

    /// Registers a call until [`forget`](Self::forget). Returns its text with an id of the proxy.
    pub fn begin(&self, call: &Call) -> (PendingCall, Bytes) {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let (text, original_ids) = call.text(id);
        let (sender, answer) = oneshot::channel();
        let pending = Pending {
            answer: sender,
            messages: call.messages.clone(),
            original_ids: original_ids.clone(),
        };
        self.pending.lock().insert(id, pending);
        if self.dead.get().is_some() {
            // The connection may have died before the entry: nothing else would end the wait.
            self.pending.lock().remove(&id);
        }
        (PendingCall { id, original_ids, messages: call.messages.clone(), answer }, text)
    }

    pub fn forget(&self, id: u64) {
        self.pending.lock().remove(&id);
    }

    /// Removes a cancelled call that the server may still process.
    fn give_up(&self, id: u64) {
        let mut pending = self.pending.lock();
        if pending
            .remove(&id)
            .is_some_and(|call| call.original_ids.logs && !call.original_ids.subscribes)
        {
            let mut given_up = self.given_up.lock();
            // Beyond the limit, one id that no response has stays in the set for good.
            let id = if given_up.len() < GIVEN_UP { id } else { u64::MAX };
            given_up.insert(id);
        }
    }

    #[cfg(test)]
    pub fn is_empty(&self) -> bool {
        self.pending.lock().is_empty()
    }

    /// Ends all calls with an error.
    pub fn die(&self, why: String) {
        let _ = self.dead.set(why);
        // Dropping the senders ends all waits.
        self.pending.lock().clear();
        self.server_requests.end();
    }

    pub fn dead(&self) -> Option<String> {
        self.dead.get().cloned()
    }

    /// Error of calls on a dead connection.
    pub fn unavailable(&self) -> CallError {
        CallError::Unavailable(self.dead().unwrap_or_else(|| "its connection ended".to_owned()))
    }

    pub fn agreed(&self, revision: Revision) {
        *self.revision.write() = Some(revision);
    }

    pub fn revision(&self) -> Option<Revision> {
        *self.revision.read()
    }

    /// Sends a message without waiting: a server that does not read must not block its own
    /// responses.
    pub fn send(&self, text: Bytes) {
        // Without a runtime, the process is ending.
        let Ok(runtime) = Handle::try_current() else { return };
        let Ok(permit) = self.errands.clone().try_acquire_owned() else {
            return tracing::debug!("server does not read its input; message dropped");
        };
        let sending = (self.out)(text);
        runtime.spawn(async move {
            sending.await;
            drop(permit);
        });
    }

    /// Sends a cancellation of a call.
    pub fn cancel(&self, id: u64) {
        let params = format!("{{\"requestId\":{id},\"reason\":\"cancelled\"}}");
        self.send(Frame::notification(Method::CANCELLED, params.as_bytes()));
    }

    /// Processes one text from a stream that all calls share.
    pub async fn take(&self, text: Bytes, stream: StreamKind) {
        let (party, weight) = (Party::Server(self.sink.server().clone()), Weight::of(&text));
        in_turns(party, weight, self.take_text(text, stream)).await;
    }

    async fn take_text(&self, text: Bytes, stream: StreamKind) {
        let messages = match batch::messages(text.clone(), self.caps, self.revision()) {
            Ok(messages) => messages,
            Err(flaw) => {
                for element in batch::elements(&text) {
                    self.malformed(&element, &flaw);
                }
                return tracing::debug!(%flaw, "server sent an invalid message");
            }
        };
        for message in messages {
            match Frame::parse(message.clone(), self.caps) {
                Ok(frame) => self.message(frame, stream).await,
                Err(flaw) => self.malformed(&message, &flaw),
            }
        }
    }

    fn malformed(&self, text: &[u8], flaw: &Flaw) {
        match claimed(text) {
            // The caller would wait in vain.
            Some(id) => {
                self.settle(id, Err(CallError::Misbehaved(format!("its answer: {flaw}"))));
            }
            // Some servers print to standard output; such text is not a response.
            None => tracing::debug!(%flaw, "server sent an invalid message"),
        }
    }

    async fn message(&self, frame: Frame, stream: StreamKind) {
        match frame.kind {
            Kind::Result { id, result } => self.answer(id.raw(), Reply::Result(result)),
            Kind::Error { id: Some(id), error } => self.answer(id.raw(), Reply::Error(error)),
            Kind::Error { id: None, .. } => tracing::debug!("server error has no request id"),
            Kind::Request { id, method, params } => {
                let Some(message) = self.request(None, id, method, params) else { return };
                self.send_to_owner(message, stream).await;
            }
            Kind::Notification { method, params } => {
                self.notification(method, params, stream).await
            }
        }
    }

    fn answer(&self, id: &Bytes, reply: Reply) {
        match std::str::from_utf8(id).ok().and_then(|id| id.parse().ok()) {
            Some(id) => self.settle(id, Ok(reply)),
            None => tracing::debug!("server response has an unknown id"),
        }
    }

    fn settle(&self, id: u64, reply: Result<Reply, CallError>) {
        let pending = self.pending.lock().remove(&id);
        match pending {
            Some(pending) => {
                if let Ok(reply) = &reply {
                    self.answered(id, &pending.original_ids, reply);
                }
                drop(pending.answer.send(reply));
            }
            None => {
                self.given_up.lock().remove(&id);
                tracing::debug!("server response matches no pending request");
            }
        }
    }

    /// Keeps the progress token of a call that was answered with a task.
    pub fn answered(&self, id: u64, original_ids: &OriginalIds, reply: &Reply) {
        if let Reply::Result(result) = reply
            && let Some(original_id) = original_ids.copied(TASK_BYTES)
            && begins_task(result)
        {
            let mut tasks = self.tasks.lock();
            if tasks.len() == TASKS {
                tasks.pop_front();
            }
            tasks.push_back((id, original_id));
        }
    }

    /// A server request on a stream, with a sender for its answer. `None` if it was answered
    /// already: a ping, or a request beyond the limit.
    pub fn request(
        &self,
        stream: StreamOfCall,
        id: Id,
        method: Method,
        params: Option<Bytes>,
    ) -> Option<ServerMessage> {
        if method.as_str() == Method::PING {
            self.send(pong(&id));
            return None;
        }
        let Some(answer) = self.server_requests.register(stream, &id, {
            let out = self.out.clone();
            move |text| out(text)
        }) else {
            self.send(nobody(&id));
            return None;
        };
        Some(ServerMessage::Request { id, method, params, answer })
    }

    /// Cancels a server request.
    pub fn take_back(&self, stream: StreamOfCall, params: Option<&Bytes>) {
        self.server_requests.take_back(stream, params);
    }

    async fn notification(&self, method: Method, params: Option<Bytes>, stream: StreamKind) {
        if let Some(id) = subscription(params.as_ref()) {
            let Some((call, original_ids)) = self.call(id) else {
                return tracing::debug!("server notification for an ended subscription");
            };
            let params = original_ids.restored(params);
            return self
                .sink
                .send_to_call(&call, ServerMessage::Notification { method, params })
                .await;
        }
        match method.as_str() {
            Method::PROGRESS => {
                // Progress without a requested token is dropped.
                let Some(id) = progress_token(params.as_ref()) else { return };
                let call = self.call(id).filter(|(_, original_ids)| original_ids.token.is_some());
                if let Some((call, original_ids)) = call {
                    let params = original_ids.restored(params);
                    self.sink
                        .send_to_call(&call, ServerMessage::Notification { method, params })
                        .await;
                } else if let Some(original_ids) = self.task(id) {
                    let params = original_ids.restored(params);
                    self.sink.send(ServerMessage::Notification { method, params });
                }
            }
            Method::CANCELLED => self.take_back(None, params.as_ref()),
            _ => {
                let logs = method.as_str() == Method::LOG_MESSAGE && stream == StreamKind::Shared;
                let message = ServerMessage::Notification { method, params };
                if message.is_of_server() {
                    self.sink.send(message);
                } else if let Some(call) = logs.then(|| self.logged()).flatten() {
                    self.sink.send_to_call(&call, message).await;
                } else {
                    self.send_to_owner(message, stream).await;
                }
            }
        }
    }

    /// Delivers a message that names no call. On a dedicated instance, it goes to the newest call,
    /// since all calls are the same client's; on a shared one, to no call.
    async fn send_to_owner(&self, message: ServerMessage, stream: StreamKind) {
        let newest = || {
            let pending = self.pending.lock();
            let hearing = pending.iter().filter(|(_, pending)| pending.messages.is_some());
            hearing.max_by_key(|(id, _)| **id).and_then(|(_, pending)| pending.messages.clone())
        };
        // A modern client receives server requests only in answer to a call, so a server request
        // that came beside the calls goes to a call as well.
        let only_by_calls =
            matches!(message, ServerMessage::Request { .. }) && self.sink.has_modern_party();
        let guess = only_by_calls || stream == StreamKind::Shared && self.sink.has_party();
        match guess.then(newest).flatten() {
            Some(call) => self.sink.send_to_call(&call, message).await,
            None => self.sink.send(message),
        }
    }

    /// The only call, if it requested log messages as in 2026-07-28, and if no cancelled call can
    /// still log. A log message names no call, and one client's must not reach another
    /// client.
    fn logged(&self) -> Option<mpsc::Sender<ServerMessage>> {
        let pending = self.pending.lock();
        if !self.given_up.lock().is_empty() {
            return None;
        }
        let mut calls = pending.values().filter(|pending| !pending.original_ids.subscribes);
        match (calls.next(), calls.next()) {
            (Some(call), None) if call.original_ids.logs => call.messages.clone(),
            _ => None,
        }
    }

    /// The ids of a call that was answered with a task.
    fn task(&self, id: u64) -> Option<OriginalIds> {
        let tasks = self.tasks.lock();
        tasks.iter().find(|(task, _)| *task == id).map(|(_, original_ids)| original_ids.clone())
    }

    /// The message channel and ids of a call in flight.
    fn call(&self, id: u64) -> Option<(mpsc::Sender<ServerMessage>, OriginalIds)> {
        let pending = self.pending.lock();
        let call = pending.get(&id)?;
        Some((call.messages.clone()?, call.original_ids.clone()))
    }
}

/// Removes a call when its caller drops it. With `cancels`, sends a cancellation to the server.
pub(super) struct Cancel<'a> {
    pub multiplexer: &'a Multiplexer,
    pub id: u64,
    pub cancels: bool,
}

impl Drop for Cancel<'_> {
    fn drop(&mut self) {
        if self.cancels {
            self.multiplexer.give_up(self.id);
            self.multiplexer.cancel(self.id);
        } else {
            self.multiplexer.forget(self.id);
        }
    }
}

/// Whether a result says that the call continues as a task.
fn begins_task(result: &Bytes) -> bool {
    may_have(result, "task")
        && Object::parse(result.clone()).is_ok_and(|result| {
            result.object("task").is_some_and(|task| task.get("taskId").is_some())
        })
}

/// Id of the request that an invalid text seems to answer.
fn claimed(text: &[u8]) -> Option<u64> {
    #[derive(Deserialize)]
    struct Claim {
        id: u64,
        method: Option<IgnoredAny>,
    }
    let claim: Claim = serde_json::from_slice(text).ok()?;
    claim.method.is_none().then_some(claim.id)
}
