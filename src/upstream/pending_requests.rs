//! Server requests that wait for answers of clients.

use std::{collections::HashMap, sync::Arc};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::{sync::oneshot, task::AbortHandle};

use super::transport::nobody;
use portcullis_protocol::codec::{Id, Object};

/// Maximum number of pending requests of one server. Further ones are answered at once.
const MOST: usize = 64;

/// Stream on which a server request came: that of one call, or one that all calls share.
pub(super) type StreamOfCall = Option<u64>;

/// Pending server requests of one server. Dropping this closes the senders of all
/// answers. Their ids are unique on one stream only: a server can begin to count on each.
#[derive(Default)]
pub(super) struct PendingServerRequests {
    open: Arc<Mutex<HashMap<(StreamOfCall, Id), AbortHandle>>>,
}

impl PendingServerRequests {
    /// Registers a server request. Returns the sender of its answer, which `send` delivers to the
    /// server. `None` at the limit, or if the id is already in use on the stream.
    pub fn register<S>(
        &self,
        stream: StreamOfCall,
        id: &Id,
        send: impl FnOnce(Bytes) -> S + Send + 'static,
    ) -> Option<oneshot::Sender<Bytes>>
    where
        S: Future<Output = ()> + Send + 'static,
    {
        let mut open = self.open.lock();
        let own = (stream, id.clone());
        if open.len() >= MOST || open.contains_key(&own) {
            return None;
        }
        let (answer, text) = oneshot::channel();
        let (all, key) = (self.open.clone(), own.clone());
        let waiting = tokio::spawn(async move {
            send(text.await.unwrap_or_else(|_| nobody(&own.1))).await;
            // Not earlier: a server that does not read could have any number of answers queued.
            all.lock().remove(&own);
        });
        open.insert(key, waiting.abort_handle());
        Some(answer)
    }

    /// Cancels a server request: the sender of its answer is closed. A cancellation can come on
    /// the stream of no call; it counts if only one request has the id.
    pub fn take_back(&self, stream: StreamOfCall, params: Option<&Bytes>) {
        let id = params
            .and_then(|params| Object::parse(params.clone()).ok())
            .and_then(|params| params.get("requestId"))
            .and_then(|id| Id::parse(id).ok());
        let Some(id) = id else { return };
        let mut open = self.open.lock();
        let own = (stream, id);
        if let Some(waiting) = open.remove(&own) {
            return waiting.abort();
        }
        // The ids of one call's stream belong to that stream alone.
        if stream.is_some() {
            return;
        }
        let mut same = open.keys().filter(|(_, id)| *id == own.1);
        if let (Some(only), None) = (same.next().cloned(), same.next()) {
            open.remove(&only).inspect(AbortHandle::abort);
        }
    }
}

impl PendingServerRequests {
    /// Cancels all pending server requests.
    pub fn end(&self) {
        for (_, waiting) in self.open.lock().drain() {
            waiting.abort();
        }
    }
}

impl Drop for PendingServerRequests {
    fn drop(&mut self) {
        self.end();
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::mpsc;

    use super::*;

    #[tokio::test]
    async fn only_awaited_responses_are_delivered() {
        let pending = PendingServerRequests::default();
        let (sent, mut received) = mpsc::unbounded_channel();
        let on =
            |stream, id: u64| {
                let sent = sent.clone();
                pending.register(stream, &Id::from(id), move |text| async move {
                    sent.send(text).unwrap()
                })
            };
        let register = |id| on(None, id);
        let (first, second) = (register(1).unwrap(), register(2).unwrap());
        assert!(register(1).is_none(), "twice under one id");
        first.send(Bytes::from_static(b"one")).unwrap();
        assert_eq!(received.recv().await.unwrap(), "one");
        drop(second);
        assert_eq!(received.recv().await.unwrap(), nobody(&Id::from(2)));

        let mut third = register(3).unwrap();
        for params in [&br#"{"requestId":"3"}"#[..], b"{}", b"[", br#"{"requestId":{}}"#] {
            pending.take_back(None, Some(&Bytes::copy_from_slice(params)));
            assert!(!third.is_closed());
        }
        pending.take_back(None, Some(&Bytes::from_static(br#"{"requestId":3,"reason":"x"}"#)));
        third.closed().await;

        // Each stream has its own ids.
        let [mut one, mut other] = [1, 2].map(|stream| on(Some(stream), 0).unwrap());
        assert!(on(Some(1), 0).is_none(), "twice on one stream");
        let first = Bytes::from_static(br#"{"requestId":0}"#);
        pending.take_back(None, Some(&first));
        assert!(!one.is_closed() && !other.is_closed());
        pending.take_back(Some(2), Some(&first));
        other.closed().await;
        // A late cancellation on that stream concerns no other.
        pending.take_back(Some(2), Some(&first));
        assert!(!one.is_closed());
        pending.take_back(None, Some(&first));
        one.closed().await;

        let mut all: Vec<_> = (10..).map_while(register).collect();
        assert_eq!(all.len(), MOST);
        drop(pending);
        for answer in &mut all {
            answer.closed().await;
        }
    }
}
