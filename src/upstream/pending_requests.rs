//! Server requests that wait for answers of clients.

use std::{collections::HashMap, sync::Arc};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::{sync::oneshot, task::AbortHandle};

use super::transport::nobody;
use portcullis_protocol::codec::{Id, Object};

/// Maximum number of pending requests of one server. Further ones are answered at once.
const MOST: usize = 64;

/// Pending server requests of one server. Dropping this closes the senders of all
/// answers.
#[derive(Default)]
pub(super) struct PendingServerRequests {
    open: Arc<Mutex<HashMap<Id, AbortHandle>>>,
}

impl PendingServerRequests {
    /// Registers a server request. Returns the sender of its answer, which `send` delivers to the
    /// server. `None` at the limit, or if the id is already in use.
    pub fn place<S>(
        &self,
        id: &Id,
        send: impl FnOnce(Bytes) -> S + Send + 'static,
    ) -> Option<oneshot::Sender<Bytes>>
    where
        S: Future<Output = ()> + Send + 'static,
    {
        let mut open = self.open.lock();
        if open.len() >= MOST || open.contains_key(id) {
            return None;
        }
        let (answer, text) = oneshot::channel();
        let (all, own) = (self.open.clone(), id.clone());
        let waiting = tokio::spawn(async move {
            send(text.await.unwrap_or_else(|_| nobody(&own))).await;
            // Not earlier: a server that does not read could have any number of answers queued.
            all.lock().remove(&own);
        });
        open.insert(id.clone(), waiting.abort_handle());
        Some(answer)
    }

    /// Cancels a server request: the sender of its answer is closed.
    pub fn take_back(&self, params: Option<&Bytes>) {
        let id = params
            .and_then(|params| Object::parse(params.clone()).ok())
            .and_then(|params| params.get("requestId"))
            .and_then(|id| Id::parse(id).ok());
        if let Some(waiting) = id.and_then(|id| self.open.lock().remove(&id)) {
            waiting.abort();
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
    async fn answers_come_back_unless_nobody_waits_for_them() {
        let asked = PendingServerRequests::default();
        let (sent, mut received) = mpsc::unbounded_channel();
        let place = |id: u64| {
            let sent = sent.clone();
            asked.place(&Id::from(id), move |text| async move { sent.send(text).unwrap() })
        };
        let (first, second) = (place(1).unwrap(), place(2).unwrap());
        assert!(place(1).is_none(), "twice under one id");
        first.send(Bytes::from_static(b"one")).unwrap();
        assert_eq!(received.recv().await.unwrap(), "one");
        drop(second);
        assert_eq!(received.recv().await.unwrap(), nobody(&Id::from(2)));

        let mut third = place(3).unwrap();
        for params in [&br#"{"requestId":"3"}"#[..], b"{}", b"[", br#"{"requestId":{}}"#] {
            asked.take_back(Some(&Bytes::copy_from_slice(params)));
            assert!(!third.is_closed());
        }
        asked.take_back(Some(&Bytes::from_static(br#"{"requestId":3,"reason":"x"}"#)));
        third.closed().await;

        let mut all: Vec<_> = (10..).map_while(place).collect();
        assert_eq!(all.len(), MOST);
        drop(asked);
        for place in &mut all {
            place.closed().await;
        }
    }
}
