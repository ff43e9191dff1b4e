//! A call in flight at a server, with the server's messages meanwhile.

use std::{collections::HashMap, mem, panic::AssertUnwindSafe, sync::Arc};

use futures_util::{
    FutureExt,
    future::{BoxFuture, pending},
};
use parking_lot::Mutex;
use tokio::sync::mpsc::{self, error::TrySendError};
use tokio_util::task::{AbortOnDropHandle, task_tracker::TaskTrackerToken};

use portcullis_upstream::{
    Call, CallError, Deadline, Instance, InstanceKey, Reply, Running, SendCheck, Server,
    ServerMessage,
};

/// Messages of a server that may wait for its client.
const MAX_QUEUED: usize = 64;

/// Calls in flight on dedicated instances, newest last. Messages that such an instance sends on a
/// separate stream usually belong to one of its calls.
#[derive(Default)]
pub(crate) struct InFlightCalls(Mutex<HashMap<Key, Vec<mpsc::Sender<ServerMessage>>>>);

/// Number of the server, among all that ever were in the config, and the instance's owner.
type Key = (u64, InstanceKey);

impl InFlightCalls {
    /// Passes a server's message to the newest call in flight. Returns the message if there is none
    /// that takes it.
    pub fn deliver(
        &self,
        server: u64,
        party: &InstanceKey,
        from_server: ServerMessage,
    ) -> Option<ServerMessage> {
        let all = self.0.lock();
        let newest = all.get(&(server, party.clone())).and_then(|calls| calls.last());
        let Some(newest) = newest else { return Some(from_server) };
        match newest.try_send(from_server) {
            Ok(()) => None,
            Err(TrySendError::Full(from_server) | TrySendError::Closed(from_server)) => {
                Some(from_server)
            }
        }
    }
}

/// Registration of a call in flight, until it is dropped.
struct Entry {
    all: Arc<InFlightCalls>,
    key: Key,
    call: mpsc::Sender<ServerMessage>,
}

impl Drop for Entry {
    fn drop(&mut self) {
        let mut all = self.all.0.lock();
        if let Some(calls) = all.get_mut(&self.key) {
            calls.retain(|call| !call.same_channel(&self.call));
            if calls.is_empty() {
                all.remove(&self.key);
            }
        }
    }
}

/// A call in flight. It advances while [`next`](Self::next) is awaited, and after
/// [`spawn`](Self::spawn) also otherwise. Dropping it cancels the call.
pub(crate) struct UpstreamCall {
    from_server: mpsc::Receiver<ServerMessage>,
    reply: BoxFuture<'static, Result<Reply, CallError>>,
    /// The response, until all messages before it are taken.
    settled: Option<Result<Reply, CallError>>,
    spawned: bool,
    clock: Deadline,
    check: Option<SendCheck>,
    /// Delays the end of a server that is replaced in the config.
    _counted: TaskTrackerToken,
}

/// The next event of a call.
pub(crate) enum CallEvent {
    FromServer(ServerMessage),
    /// The call waited, and the decision on it no longer holds. It is sent after
    /// [`renew`](UpstreamCall::renew).
    Outdated,
    Over(Result<Reply, CallError>),
}

impl UpstreamCall {
    /// Starts a call.
    pub fn begin(
        all: &Arc<InFlightCalls>,
        server: &Server,
        instance: Arc<Instance>,
        running: Arc<Running>,
        mut call: Call,
    ) -> Self {
        let (sender, from_server) = mpsc::channel(MAX_QUEUED);
        let entry = instance.party().map(|party| {
            let key = (server.number, party.clone());
            all.0.lock().entry(key.clone()).or_default().push(sender.clone());
            Entry { all: all.clone(), key, call: sender.clone() }
        });
        call.messages = Some(sender);
        let (clock, check) = (call.clock.clone(), call.send_check.clone());
        let reply = async move {
            // Dropped here, so that no sender is left after the response.
            let _entry = entry;
            instance.call(&running, call).await
        };
        // A panic fails this call; its exchange is recorded to its end.
        let reply = AssertUnwindSafe(reply).catch_unwind();
        let reply = reply.map(|ended| ended.unwrap_or_else(|_| Err(ended_early()))).boxed();
        let counted = server.counted();
        Self { from_server, reply, settled: None, spawned: false, clock, check, _counted: counted }
    }

    /// Moves the call to a task of its own, so that it advances while its client's messages are
    /// processed, and while it is suspended.
    pub fn spawn(&mut self) {
        if self.settled.is_some() || mem::replace(&mut self.spawned, true) {
            return;
        }
        let reply = mem::replace(&mut self.reply, pending().boxed());
        let task = AbortOnDropHandle::new(tokio::spawn(reply));
        self.reply = async move { task.await.unwrap_or_else(|_| Err(ended_early())) }.boxed();
    }

    /// The next message of the server; its response is the last. Cancel safe: no message is lost if
    /// this future is dropped.
    pub async fn next(&mut self) -> CallEvent {
        let reply = match self.settled.take() {
            Some(reply) => reply,
            None => tokio::select! {
                biased;
                Some(from_server) = self.from_server.recv() => {
                    return CallEvent::FromServer(from_server);
                }
                () = outdated(self.check.as_ref()) => return CallEvent::Outdated,
                reply = &mut self.reply => reply,
            },
        };
        // The server sent these messages before its response.
        match self.from_server.try_recv() {
            Ok(from_server) => {
                self.settled = Some(reply);
                CallEvent::FromServer(from_server)
            }
            Err(_) => CallEvent::Over(reply),
        }
    }

    /// Continues an outdated call under a renewed decision.
    pub fn renew(&mut self, check: SendCheck) {
        if let Some(outdated) = self.check.replace(check.clone()) {
            outdated.renew(check);
        }
    }

    /// The call's deadline.
    pub fn clock(&self) -> &Deadline {
        &self.clock
    }
}

/// Waits until the decision on a call must be renewed.
async fn outdated(check: Option<&SendCheck>) {
    match check {
        Some(check) => check.outdated().await,
        None => pending().await,
    }
}

fn ended_early() -> CallError {
    CallError::Misbehaved("the work for the call ended early".into())
}
