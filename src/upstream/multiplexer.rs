//! The calls under way on one link, and what of the server's words belongs to which.

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
    pending_requests::PendingServerRequests,
    transport::{
        Call, OriginalIds, Reply, ServerMessage, nobody, pong, progress_token, subscription,
    },
};
use portcullis_chain::{Party, Weight, in_turns};
use portcullis_protocol::{
    codec::{Caps, Flaw, Frame, Id, Kind, Object, may_have},
    exchange::{Method, Revision},
};

/// Messages that nobody waits for which may wait for a server to take them.
const ERRANDS: usize = 256;

/// Tasks of which progress may be told when the calls that began them are long over.
const TASKS: usize = 256;

/// Bytes of a progress token and an id that are kept for a task.
const TASK_BYTES: usize = 1_024;

/// Calls for log messages, given up without an answer, that are told apart.
const GIVEN_UP: usize = 1_024;

/// Brings a text to the server, or gives it up after a while.
pub(super) type Writer = Arc<dyn Fn(Bytes) -> BoxFuture<'static, ()> + Send + Sync>;

/// One link's calls.
pub(super) struct Multiplexer {
    pub caps: Caps,
    pub ear: MessageSink,
    pending: Mutex<HashMap<u64, Pending>>,
    /// Calls that were answered with a task, whose progress tokens go on: the newest.
    tasks: Mutex<VecDeque<(u64, OriginalIds)>>,
    /// Calls that asked for log messages and were given up: the server may still log for them.
    /// Locked within `pending`, where both are.
    given_up: Mutex<HashSet<u64>>,
    next: AtomicU64,
    dead: OnceLock<String>,
    revision: RwLock<Option<Revision>>,
    asked: PendingServerRequests,
    out: Writer,
    errands: Arc<Semaphore>,
}

struct Pending {
    answer: oneshot::Sender<Result<Reply, CallError>>,
    said: Option<mpsc::Sender<ServerMessage>>,
    mine: OriginalIds,
}

/// A call that is on its way.
pub(super) struct PendingCall {
    pub id: u64,
    pub mine: OriginalIds,
    pub said: Option<mpsc::Sender<ServerMessage>>,
    pub answer: oneshot::Receiver<Result<Reply, CallError>>,
}

/// By which way something came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum StreamKind {
    /// The only one that the server has.
    Only,
    /// One beside those of the calls: what comes here and names no call belongs to none.
    Beside,
}

impl Multiplexer {
    /// No calls yet. What belongs to none goes to `ear`; what the server is to hear, to `out`.
    pub fn new(caps: Caps, ear: MessageSink, out: Writer) -> Self {
        Self {
            caps,
            ear,
            pending: Mutex::default(),
            tasks: Mutex::default(),
            given_up: Mutex::default(),
            next: AtomicU64::new(1),
            dead: OnceLock::new(),
            revision: RwLock::default(),
            asked: PendingServerRequests::default(),
            out,
            errands: Arc::new(Semaphore::new(ERRANDS)),
        }
    }

    /// Enters a call; its text under an id of ours. It stands until [`forget`](Self::forget).
    pub fn begin(&self, call: &Call) -> (PendingCall, Bytes) {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let (text, mine) = call.text(id);
        let (sender, answer) = oneshot::channel();
        let pending = Pending { answer: sender, said: call.said.clone(), mine: mine.clone() };
        self.pending.lock().insert(id, pending);
        if self.dead.get().is_some() {
            // It may have died before the entry: nobody else would end the wait.
            self.pending.lock().remove(&id);
        }
        (PendingCall { id, mine, said: call.said.clone(), answer }, text)
    }

    pub fn forget(&self, id: u64) {
        self.pending.lock().remove(&id);
    }

    /// Gives up a call that the server may be at work on.
    fn give_up(&self, id: u64) {
        let mut pending = self.pending.lock();
        if pending.remove(&id).is_some_and(|call| call.mine.logs && !call.mine.subscribes) {
            let mut given_up = self.given_up.lock();
            // One too many stands for ever, under an id that no answer has.
            let id = if given_up.len() < GIVEN_UP { id } else { u64::MAX };
            given_up.insert(id);
        }
    }

    #[cfg(test)]
    pub fn is_empty(&self) -> bool {
        self.pending.lock().is_empty()
    }

    /// Ends every call.
    pub fn die(&self, why: String) {
        let _ = self.dead.set(why);
        // Dropping the senders ends every wait.
        self.pending.lock().clear();
        self.asked.end();
    }

    pub fn dead(&self) -> Option<String> {
        self.dead.get().cloned()
    }

    /// Why nobody answers.
    pub fn unavailable(&self) -> CallError {
        CallError::Unavailable(self.dead().unwrap_or_else(|| "its connection ended".to_owned()))
    }

    pub fn agreed(&self, revision: Revision) {
        *self.revision.write() = Some(revision);
    }

    pub fn revision(&self) -> Option<Revision> {
        *self.revision.read()
    }

    /// Sends what nobody waits for, without waiting: a server that does not read must not stop
    /// its own answers.
    pub fn send(&self, text: Bytes) {
        // Where the process ends there is nobody left to tell.
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

    /// Tells the server that nobody waits for an answer any more.
    pub fn cancel(&self, id: u64) {
        let params = format!("{{\"requestId\":{id},\"reason\":\"cancelled\"}}");
        self.send(Frame::notification(Method::CANCELLED, params.as_bytes()));
    }

    /// Takes one text of a line that all calls share.
    pub async fn take(&self, text: Bytes, way: StreamKind) {
        let (party, weight) = (Party::Server(self.ear.server().clone()), Weight::of(&text));
        in_turns(party, weight, self.take_text(text, way)).await;
    }

    async fn take_text(&self, text: Bytes, way: StreamKind) {
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
                Ok(frame) => self.message(frame, way).await,
                Err(flaw) => self.malformed(&message, &flaw),
            }
        }
    }

    fn malformed(&self, text: &[u8], flaw: &Flaw) {
        match claimed(text) {
            // Whoever waits for it would wait in vain.
            Some(id) => {
                self.settle(id, Err(CallError::Misbehaved(format!("its answer: {flaw}"))));
            }
            // Some servers print to standard output; what is no message answers nothing.
            None => tracing::debug!(%flaw, "server sent an invalid message"),
        }
    }

    async fn message(&self, frame: Frame, way: StreamKind) {
        match frame.kind {
            Kind::Result { id, result } => self.answer(id.raw(), Reply::Result(result)),
            Kind::Error { id: Some(id), error } => self.answer(id.raw(), Reply::Error(error)),
            Kind::Error { id: None, .. } => tracing::debug!("server error has no request id"),
            Kind::Request { id, method, params } => {
                let Some(said) = self.request(id, method, params) else { return };
                self.tell_party(said, way).await;
            }
            Kind::Notification { method, params } => self.notification(method, params, way).await,
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
                    self.answered(id, &pending.mine, reply);
                }
                drop(pending.answer.send(reply));
            }
            None => {
                self.given_up.lock().remove(&id);
                tracing::debug!("server response matches no pending request");
            }
        }
    }

    /// Keeps in mind what outlives the call: the progress token of a task.
    pub fn answered(&self, id: u64, mine: &OriginalIds, reply: &Reply) {
        if let Reply::Result(result) = reply
            && let Some(kept) = mine.copied(TASK_BYTES)
            && begins_task(result)
        {
            let mut tasks = self.tasks.lock();
            if tasks.len() == TASKS {
                tasks.pop_front();
            }
            tasks.push_back((id, kept));
        }
    }

    /// A server's request, with a place for its answer. Nothing where it is answered already: a
    /// ping, or one too many.
    pub fn request(&self, id: Id, method: Method, params: Option<Bytes>) -> Option<ServerMessage> {
        if method.as_str() == Method::PING {
            self.send(pong(&id));
            return None;
        }
        let Some(answer) = self.asked.place(&id, {
            let out = self.out.clone();
            move |text| out(text)
        }) else {
            self.send(nobody(&id));
            return None;
        };
        Some(ServerMessage::Request { id, method, params, answer })
    }

    /// The server takes back a request of its own.
    pub fn take_back(&self, params: Option<&Bytes>) {
        self.asked.take_back(params);
    }

    async fn notification(&self, method: Method, params: Option<Bytes>, way: StreamKind) {
        if let Some(id) = subscription(params.as_ref()) {
            let Some((call, mine)) = self.call(id) else {
                return tracing::debug!("server notification for an ended subscription");
            };
            let params = mine.restored(params);
            return self.ear.tell_call(&call, ServerMessage::Notification { method, params }).await;
        }
        match method.as_str() {
            Method::PROGRESS => {
                // Progress that nobody asked for is dropped.
                let Some(id) = progress_token(params.as_ref()) else { return };
                let call = self.call(id).filter(|(_, mine)| mine.token.is_some());
                if let Some((call, mine)) = call {
                    let params = mine.restored(params);
                    self.ear.tell_call(&call, ServerMessage::Notification { method, params }).await;
                } else if let Some(mine) = self.task(id) {
                    let params = mine.restored(params);
                    self.ear.tell(ServerMessage::Notification { method, params });
                }
            }
            Method::CANCELLED => self.take_back(params.as_ref()),
            _ => {
                let logs = method.as_str() == Method::LOG_MESSAGE && way == StreamKind::Only;
                let said = ServerMessage::Notification { method, params };
                if said.is_of_server() {
                    self.ear.tell(said);
                } else if let Some(call) = logs.then(|| self.logged()).flatten() {
                    self.ear.tell_call(&call, said).await;
                } else {
                    self.tell_party(said, way).await;
                }
            }
        }
    }

    /// Tells what names no call. All calls of a party's own instance are that party's, so the
    /// newest of them is as good as any; on a shared one nobody can be told.
    async fn tell_party(&self, said: ServerMessage, way: StreamKind) {
        let newest = || {
            let pending = self.pending.lock();
            let hearing = pending.iter().filter(|(_, pending)| pending.said.is_some());
            hearing.max_by_key(|(id, _)| **id).and_then(|(_, pending)| pending.said.clone())
        };
        // A modern client can be asked nothing but in answer to a call, so a question that came
        // beside the calls is put to one all the same.
        let only_by_calls =
            matches!(said, ServerMessage::Request { .. }) && self.ear.has_modern_party();
        let guess = only_by_calls || way == StreamKind::Only && self.ear.has_party();
        match guess.then(newest).flatten() {
            Some(call) => self.ear.tell_call(&call, said).await,
            None => self.ear.tell(said),
        }
    }

    /// The only call that asked for log messages, as 2026-07-28 has it, where it is the only call
    /// at all, and none that was given up can still log: a log message names no call, and one
    /// client's must not come to another.
    fn logged(&self) -> Option<mpsc::Sender<ServerMessage>> {
        let pending = self.pending.lock();
        if !self.given_up.lock().is_empty() {
            return None;
        }
        let mut calls = pending.values().filter(|pending| !pending.mine.subscribes);
        match (calls.next(), calls.next()) {
            (Some(call), None) if call.mine.logs => call.said.clone(),
            _ => None,
        }
    }

    /// A call that was answered with a task.
    fn task(&self, id: u64) -> Option<OriginalIds> {
        let tasks = self.tasks.lock();
        tasks.iter().find(|(task, _)| *task == id).map(|(_, mine)| mine.clone())
    }

    /// A call that wants to hear something.
    fn call(&self, id: u64) -> Option<(mpsc::Sender<ServerMessage>, OriginalIds)> {
        let pending = self.pending.lock();
        let call = pending.get(&id)?;
        Some((call.said.clone()?, call.mine.clone()))
    }
}

/// Takes a call off the board when its caller does, and tells the server, where it is to be told.
pub(super) struct Cancel<'a> {
    pub board: &'a Multiplexer,
    pub id: u64,
    pub tells: bool,
}

impl Drop for Cancel<'_> {
    fn drop(&mut self) {
        if self.tells {
            self.board.give_up(self.id);
            self.board.cancel(self.id);
        } else {
            self.board.forget(self.id);
        }
    }
}

/// Whether a result is that the work goes on as a task.
fn begins_task(result: &Bytes) -> bool {
    may_have(result, "task")
        && Object::parse(result.clone()).is_ok_and(|result| {
            result.object("task").is_some_and(|task| task.get("taskId").is_some())
        })
}

/// The request that a text answers, or would, were it a legal message.
fn claimed(text: &[u8]) -> Option<u64> {
    #[derive(Deserialize)]
    struct Claim {
        id: u64,
        method: Option<IgnoredAny>,
    }
    let claim: Claim = serde_json::from_slice(text).ok()?;
    claim.method.is_none().then_some(claim.id)
}
