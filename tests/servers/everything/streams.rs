//! Sessions whose streams the server may close in the middle of a call, as 2025-11-25 allows: the
//! client comes back with `Last-Event-ID` for the rest.

use std::time::Duration;

use futures_util::Stream;
use rmcp::{
    model::{ClientJsonRpcMessage, GetExtensions, ServerJsonRpcMessage},
    transport::streamable_http_server::{
        SessionId, SessionManager,
        session::{
            ServerSseMessage,
            local::{LocalSessionHandle, LocalSessionManager, LocalSessionManagerError},
        },
    },
};
use tokio::sync::broadcast;
use tokio_stream::wrappers::ReceiverStream;

/// After how long the client should come back.
const RETRY: Duration = Duration::from_millis(300);

/// How long a client that was sent away is waited for.
const PATIENCE: Duration = Duration::from_secs(20);

/// rmcp's sessions, which tell each request the stream that it is answered on.
pub struct Sessions {
    inner: LocalSessionManager,
    /// Every session with a client that came back.
    back: broadcast::Sender<SessionId>,
}

impl Default for Sessions {
    fn default() -> Self {
        Self { inner: LocalSessionManager::default(), back: broadcast::Sender::new(64) }
    }
}

/// The stream that a request is answered on.
#[derive(Clone)]
pub struct StreamOf {
    session: SessionId,
    request: u64,
}

impl Sessions {
    async fn handle(&self, id: &SessionId) -> Result<LocalSessionHandle, LocalSessionManagerError> {
        let sessions = self.inner.sessions.read().await;
        let found = sessions.get(id).cloned();
        found.ok_or_else(|| LocalSessionManagerError::SessionNotFound(id.clone()))
    }

    /// Ends the response in the middle, and waits for the client to come back for its rest.
    pub async fn send_away(&self, stream: &StreamOf) -> Result<(), LocalSessionManagerError> {
        let mut back = self.back.subscribe();
        let handle = self.handle(&stream.session).await?;
        handle.close_sse_stream(stream.request, Some(RETRY)).await?;
        let returned = async { while back.recv().await.is_ok_and(|id| id != stream.session) {} };
        // One that does not come back can have the rest later.
        let _ = tokio::time::timeout(PATIENCE, returned).await;
        Ok(())
    }
}

impl SessionManager for Sessions {
    type Error = <LocalSessionManager as SessionManager>::Error;
    type Transport = <LocalSessionManager as SessionManager>::Transport;

    async fn create_session(&self) -> Result<(SessionId, Self::Transport), Self::Error> {
        self.inner.create_session().await
    }

    async fn initialize_session(
        &self,
        id: &SessionId,
        message: ClientJsonRpcMessage,
    ) -> Result<ServerJsonRpcMessage, Self::Error> {
        self.inner.initialize_session(id, message).await
    }

    async fn has_session(&self, id: &SessionId) -> Result<bool, Self::Error> {
        self.inner.has_session(id).await
    }

    async fn close_session(&self, id: &SessionId) -> Result<(), Self::Error> {
        self.inner.close_session(id).await
    }

    async fn create_stream(
        &self,
        id: &SessionId,
        mut message: ClientJsonRpcMessage,
    ) -> Result<impl Stream<Item = ServerSseMessage> + Send + Sync + 'static, Self::Error> {
        let handle = self.handle(id).await?;
        let receiver = handle.establish_request_wise_channel().await?;
        if let (ClientJsonRpcMessage::Request(request), Some(stream)) =
            (&mut message, receiver.http_request_id)
        {
            let stream = StreamOf { session: id.clone(), request: stream };
            request.request.extensions_mut().insert(stream);
        }
        handle.push_message(message, receiver.http_request_id).await?;
        Ok(ReceiverStream::new(receiver.inner))
    }

    async fn accept_message(
        &self,
        id: &SessionId,
        message: ClientJsonRpcMessage,
    ) -> Result<(), Self::Error> {
        self.inner.accept_message(id, message).await
    }

    async fn create_standalone_stream(
        &self,
        id: &SessionId,
    ) -> Result<impl Stream<Item = ServerSseMessage> + Send + Sync + 'static, Self::Error> {
        self.inner.create_standalone_stream(id).await
    }

    async fn resume(
        &self,
        id: &SessionId,
        last_event_id: String,
    ) -> Result<impl Stream<Item = ServerSseMessage> + Send + Sync + 'static, Self::Error> {
        let stream = self.inner.resume(id, last_event_id).await?;
        // An error says that nobody waits.
        let _ = self.back.send(id.clone());
        Ok(stream)
    }
}
