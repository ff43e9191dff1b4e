//! Sink for the messages of a server other than responses.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::sync::mpsc;

use super::{
    discovery::Definitions,
    instance_key::InstanceKey,
    transport::{ServerMessage, UnroutedMessage, is_list_change},
};
use portcullis_protocol::names::ServerName;

/// Maximum number of queued messages of one instance.
const QUEUE: usize = 64;
/// Longest wait of a dedicated instance's connection for its client to take a message of
/// its call.
const PATIENCE: Duration = Duration::from_secs(5);

/// Messages of one instance that were dropped because a queue was full.
#[derive(Debug, Default)]
pub(super) struct LostMessages {
    count: AtomicU64,
    reported: AtomicU64,
}

impl LostMessages {
    /// Number of all dropped messages.
    pub fn count(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }

    /// Number of messages that were dropped since the last report.
    pub fn take_unreported(&self) -> u64 {
        let count = self.count();
        count.saturating_sub(self.reported.swap(count, Ordering::Relaxed))
    }

    fn add(&self) -> u64 {
        self.count.fetch_add(1, Ordering::Relaxed) + 1
    }
}

/// Sink for the notifications and server requests of one running instance.
#[derive(Clone)]
pub(super) struct MessageSink {
    server: ServerName,
    party: Option<InstanceKey>,
    definitions: Arc<Definitions>,
    queue: mpsc::Sender<ServerMessage>,
    lost: Arc<LostMessages>,
    /// Whether another instance reports changes of lists.
    lists_apart: bool,
}

impl MessageSink {
    /// A sink that passes messages without a call to `unrouted`, while that is open.
    pub fn new(
        server: ServerName,
        party: Option<InstanceKey>,
        definitions: Arc<Definitions>,
        unrouted: mpsc::Sender<UnroutedMessage>,
        lost: Arc<LostMessages>,
    ) -> Self {
        // Each instance has a queue, so that a flood fills only its own.
        let (queue, mut waiting) = mpsc::channel(QUEUE);
        tokio::spawn({
            let party = party.clone();
            async move {
                while let Some(message) = waiting.recv().await {
                    if unrouted
                        .send(UnroutedMessage { party: party.clone(), message })
                        .await
                        .is_err()
                    {
                        return;
                    }
                }
            }
        });
        Self { server, party, definitions, queue, lost, lists_apart: false }
    }

    /// A sink that does not report changes of lists, because another instance reports them.
    pub fn without_lists(self) -> Self {
        Self { lists_apart: true, ..self }
    }

    /// A sink for tests, and its messages.
    #[cfg(test)]
    pub fn test(party: Option<InstanceKey>) -> (Self, mpsc::Receiver<UnroutedMessage>) {
        let (sender, unrouted) = mpsc::channel(4);
        let server = "s".parse().unwrap();
        (Self::new(server, party, Arc::default(), sender, Arc::default()), unrouted)
    }

    /// Name of the server.
    pub fn server(&self) -> &ServerName {
        &self.server
    }

    /// Whether the instance is dedicated.
    pub fn has_party(&self) -> bool {
        self.party.as_ref().is_some_and(InstanceKey::is_dedicated)
    }

    /// Whether the instance is dedicated to a client without a session.
    pub fn has_modern_party(&self) -> bool {
        matches!(self.party, Some(InstanceKey::Client { .. }))
    }

    /// Takes a message without a call. Does not wait. A change of a list always drops the cached
    /// lists, even if the queue is full.
    pub fn send(&self, message: ServerMessage) {
        if is_list_change(message.method()) {
            self.definitions.forget();
            if self.lists_apart {
                return;
            }
        }
        match self.queue.try_send(message) {
            Ok(()) | Err(mpsc::error::TrySendError::Closed(_)) => {}
            Err(mpsc::error::TrySendError::Full(message)) => self.lose(&message),
        }
    }

    /// Takes a message of a call. Waits only on a dedicated instance: a client that does not read
    /// must not block a connection that others share.
    pub async fn send_to_call(&self, call: &mpsc::Sender<ServerMessage>, message: ServerMessage) {
        match call.try_send(message) {
            // A closed channel means that the caller is gone.
            Ok(()) | Err(mpsc::error::TrySendError::Closed(_)) => {}
            Err(mpsc::error::TrySendError::Full(message)) if self.has_party() => {
                match tokio::time::timeout(PATIENCE, call.reserve()).await {
                    Ok(Ok(permit)) => permit.send(message),
                    Ok(Err(_)) => {}
                    Err(_) => self.lose(&message),
                }
            }
            Err(mpsc::error::TrySendError::Full(message)) => self.lose(&message),
        }
    }

    /// Takes a message that came on a call's own stream: only this call waits.
    pub async fn send_to_stream(&self, call: &mpsc::Sender<ServerMessage>, message: ServerMessage) {
        // The caller may be gone.
        let _ = call.send(message).await;
    }

    /// Drops the cached lists, because change notifications may have been missed.
    pub fn missed(&self) {
        self.definitions.forget();
    }

    /// Counts a dropped message. A dropped request is answered when the sender of its answer is
    /// dropped.
    fn lose(&self, message: &ServerMessage) {
        let lost = self.lost.add();
        // In a flood, only each power of two is logged; all are counted for the audit log.
        if lost.is_power_of_two() {
            let request = matches!(message, ServerMessage::Request { .. });
            tracing::warn!(server = %self.server, request, lost, "server message dropped: queue full");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use portcullis_protocol::exchange::Method;

    fn notification(method: &str) -> ServerMessage {
        ServerMessage::Notification { method: Method::new(method), params: None }
    }

    #[tokio::test]
    async fn lost_messages_are_counted() {
        let (sink, mut unrouted) = MessageSink::test(None);
        let all: u64 = 1_000;
        for _ in 0..all {
            sink.send(notification("notifications/message"));
        }
        let lost = sink.lost.clone();
        drop(sink);
        let mut taken = 0;
        while unrouted.recv().await.is_some() {
            taken += 1;
        }
        assert!(taken < all);
        assert_eq!(taken + lost.count(), all);
        assert_eq!((lost.take_unreported(), lost.take_unreported()), (lost.count(), 0));
    }

    #[tokio::test]
    async fn slow_reader_blocks_only_its_dedicated_connection() {
        let key = InstanceKey::Session(portcullis_protocol::names::SessionId::presented("x"));
        for (party, lost) in [(None, 2), (Some(key), 0)] {
            let (sink, _unrouted) = MessageSink::test(party);
            let (call, mut message) = mpsc::channel(1);
            let (_, taken) = tokio::join!(
                async {
                    for _ in 0..3 {
                        sink.send_to_call(&call, notification("notifications/progress")).await;
                    }
                    drop(call);
                },
                async {
                    let mut taken = 0;
                    while message.recv().await.is_some() {
                        taken += 1;
                    }
                    taken
                }
            );
            assert_eq!(sink.lost.count(), lost);
            assert_eq!(taken + lost, 3);
        }
    }
}
