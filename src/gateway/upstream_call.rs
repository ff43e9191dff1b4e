//! A call under way at a server, with what the server says meanwhile.

use std::{collections::HashMap, sync::Arc};

use parking_lot::Mutex;
use tokio::sync::mpsc::{self, error::TrySendError};
use tokio_util::task::{AbortOnDropHandle, task_tracker::TaskTrackerToken};

use portcullis_upstream::{
    Call, CallError, Deadline, Instance, InstanceKey, Reply, Running, Server, ServerMessage,
};

/// What a server may say that its client has not heard yet.
const SAID: usize = 64;

/// The calls under way on instances that run for one party alone, newest last. What such a server
/// says beside its calls, on a stream of its own, is said for one of them as a rule.
#[derive(Default)]
pub(crate) struct InFlightCalls(Mutex<HashMap<Key, Vec<mpsc::Sender<ServerMessage>>>>);

/// The server, by its number among all that ever were in the config, and the party.
type Key = (u64, InstanceKey);

impl InFlightCalls {
    /// Hands what a server said, which is known by its number, to the newest call under way; back
    /// where there is none.
    pub fn tell(
        &self,
        server: u64,
        party: &InstanceKey,
        said: ServerMessage,
    ) -> Option<ServerMessage> {
        let all = self.0.lock();
        let newest = all.get(&(server, party.clone())).and_then(|calls| calls.last());
        let Some(newest) = newest else { return Some(said) };
        match newest.try_send(said) {
            Ok(()) => None,
            Err(TrySendError::Full(said) | TrySendError::Closed(said)) => Some(said),
        }
    }
}

/// A call's place among those under way, until it is dropped.
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

/// A call under way. Dropping it cancels the call.
pub(crate) struct UpstreamCall {
    said: mpsc::Receiver<ServerMessage>,
    reply: AbortOnDropHandle<Result<Reply, CallError>>,
    clock: Deadline,
    /// Has the server wait for it, should the config have another in its place.
    _counted: TaskTrackerToken,
}

/// What comes next.
pub(crate) enum CallEvent {
    Said(ServerMessage),
    Over(Result<Reply, CallError>),
}

impl UpstreamCall {
    /// Makes a call.
    pub fn begin(
        all: &Arc<InFlightCalls>,
        server: &Server,
        instance: Arc<Instance>,
        running: Arc<Running>,
        mut call: Call,
    ) -> Self {
        let (sender, said) = mpsc::channel(SAID);
        let entry = instance.party().map(|party| {
            let key = (server.number, party.clone());
            all.0.lock().entry(key.clone()).or_default().push(sender.clone());
            Entry { all: all.clone(), key, call: sender.clone() }
        });
        call.said = Some(sender);
        let clock = call.clock.clone();
        let reply = tokio::spawn(async move {
            // Here, so that no sender is left once the answer is there.
            let _entry = entry;
            instance.call(&running, call).await
        });
        let counted = server.counted();
        Self { said, reply: AbortOnDropHandle::new(reply), clock, _counted: counted }
    }

    /// The next that the server says; its answer is the last. Nothing is lost where this future is
    /// dropped.
    pub async fn next(&mut self) -> CallEvent {
        tokio::select! {
            biased;
            // The call holds the sender, so all that it was told comes before its answer.
            Some(said) = self.said.recv() => CallEvent::Said(said),
            reply = &mut self.reply => CallEvent::Over(reply.unwrap_or_else(|_| {
                Err(CallError::Misbehaved("the work for the call ended early".into()))
            })),
        }
    }

    /// The call's clock.
    pub fn clock(&self) -> &Deadline {
        &self.clock
    }
}
