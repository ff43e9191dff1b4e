//! Server requests that wait for a client's response.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot};

use portcullis_protocol::{
    codec::{Id, Object},
    exchange::Answer,
    refusal::{Code, Refusal},
};

/// Server requests that one client may have pending at once.
const MOST: usize = 64;
/// Progress notifications of one request that may wait for the server.
const PROGRESS: usize = 16;

/// Pending server requests of one client. The proxy assigns their ids and progress tokens, since
/// those of several servers could collide.
#[derive(Default)]
pub struct PendingRequests {
    next: AtomicU64,
    open: Mutex<HashMap<u64, Slot>>,
}

struct Slot {
    answer: oneshot::Sender<Answer>,
    /// Receiver of the client's progress notifications, and the server's token for them.
    progress: Option<(Bytes, mpsc::Sender<Bytes>)>,
}

impl PendingRequests {
    /// Opens a server request. `token` is the server's progress token, if any.
    ///
    /// # Errors
    /// A refusal if the client has too many pending already.
    pub fn begin(self: &Arc<Self>, token: Option<Bytes>) -> Result<PendingRequest, Refusal> {
        let id = self.next.fetch_add(1, Ordering::Relaxed) + 1;
        let (sender, answer) = oneshot::channel();
        let (forwarder, progress) = mpsc::channel(PROGRESS);
        let mut open = self.open.lock();
        if open.len() >= MOST {
            return Err(Refusal::new(
                Code::RateLimited,
                "too many server requests wait for this client",
            )
            .detail(format!("{MOST} server requests wait for its answer")));
        }
        open.insert(id, Slot { answer: sender, progress: token.map(|token| (token, forwarder)) });
        Ok(PendingRequest { id, pending_requests: self.clone(), answer, progress })
    }

    /// Delivers a client's response to the waiting request; false if there is none.
    pub fn deliver(&self, id: &Id, answer: Answer) -> bool {
        let Some(id) = number(id.raw()) else { return false };
        let open = self.open.lock().remove(&id);
        open.is_some_and(|open| open.answer.send(answer).is_ok())
    }

    /// Delivers the `params` of a client's progress notification with the server's own token.
    /// Without a matching open request it is dropped.
    pub fn progress(&self, params: &Bytes) {
        let Ok(object) = Object::parse(params.clone()) else { return };
        let Some(id) = object.get("progressToken").and_then(|token| number(&token)) else { return };
        let open = self.open.lock();
        if let Some(Slot { progress: Some((token, forwarder)), .. }) = open.get(&id) {
            let _ = forwarder.try_send(object.with(&[("progressToken", Some(token))]));
        }
    }
}

fn number(text: &Bytes) -> Option<u64> {
    std::str::from_utf8(text).ok()?.parse().ok()
}

/// A server request that is open until this is dropped.
pub struct PendingRequest {
    id: u64,
    pending_requests: Arc<PendingRequests>,
    answer: oneshot::Receiver<Answer>,
    progress: mpsc::Receiver<Bytes>,
}

impl PendingRequest {
    /// The client's id of the request.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// Waits for the client's next message; its response is the last. `None` if its session ended.
    pub async fn next(&mut self) -> Option<ClientReply> {
        tokio::select! {
            biased;
            Some(params) = self.progress.recv() => Some(ClientReply::Progress(params)),
            answer = &mut self.answer => answer.ok().map(ClientReply::Answer),
        }
    }
}

/// A client's message about a server request.
pub enum ClientReply {
    /// Progress: `params` with the server's own token.
    Progress(Bytes),
    Answer(Answer),
}

impl Drop for PendingRequest {
    fn drop(&mut self) {
        self.pending_requests.open.lock().remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use portcullis_protocol::exchange::Payload;

    fn result(text: &'static str) -> Answer {
        Answer::Result(Payload::new(Bytes::from_static(text.as_bytes())))
    }

    #[tokio::test]
    async fn responses_and_progress_reach_their_request() {
        let pending_requests = Arc::new(PendingRequests::default());
        let mut first = pending_requests.begin(Some(Bytes::from_static(b"\"t\""))).unwrap();
        let second = pending_requests.begin(None).unwrap();
        assert_ne!(first.id(), second.id());
        let token = format!("{{\"progressToken\":{},\"progress\":0.50}}", first.id());
        pending_requests.progress(&token.into());
        assert!(!pending_requests.deliver(&Id::from(99), result("{}")));
        assert!(pending_requests.deliver(&Id::from(1), result("{\"a\":1}")));
        let Some(ClientReply::Progress(params)) = first.next().await else { panic!("no progress") };
        assert_eq!(params, "{\"progressToken\":\"t\",\"progress\":0.50}");
        let Some(ClientReply::Answer(answer)) = first.next().await else { panic!("no answer") };
        assert_eq!(answer.payload().raw(), "{\"a\":1}");
        drop(second);
        assert!(!pending_requests.deliver(&Id::from(2), result("{}")));
        assert!(pending_requests.open.lock().is_empty());
    }

    #[test]
    fn pending_requests_are_limited() {
        let pending_requests = Arc::new(PendingRequests::default());
        let held: Vec<_> = (0..MOST).map(|_| pending_requests.begin(None).unwrap()).collect();
        assert_eq!(pending_requests.begin(None).err().unwrap().code, Code::RateLimited);
        drop(held);
        assert!(pending_requests.begin(None).is_ok());
    }
}
