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
use tokio_stream::wrappers::ReceiverStream;

/// After how long the client should come back.
const RETRY: Duration = Duration::from_millis(300);

/// rmcp's sessions, which tell each request the stream that it is answered on.
#[derive(Default)]
pub struct Sessions(LocalSessionManager);

/// The stream that a request is answered on.
#[derive(Clone)]
pub struct StreamOf {
    session: SessionId,
    request: u64,
}

impl Sessions {
    async fn handle(&self, id: &SessionId) -> Result<LocalSessionHandle, LocalSessionManagerError> {
        let sessions = self.0.sessions.read().await;
        let found = sessions.get(id).cloned();
        found.ok_or_else(|| LocalSessionManagerError::SessionNotFound(id.clone()))
    }

    /// Ends the response. What is still to be said waits for the client's return.
    pub async fn close(&self, stream: &StreamOf) -> Result<(), LocalSessionManagerError> {
        let handle = self.handle(&stream.session).await?;
        Ok(handle.close_sse_stream(stream.request, Some(RETRY)).await?)
    }
}

impl SessionManager for Sessions {
    type Error = <LocalSessionManager as SessionManager>::Error;
    type Transport = <LocalSessionManager as SessionManager>::Transport;

    async fn create_session(&self) -> Result<(SessionId, Self::Transport), Self::Error> {
        self.0.create_session().await
    }

    async fn initialize_session(
        &self,
        id: &SessionId,
        message: ClientJsonRpcMessage,
    ) -> Result<ServerJsonRpcMessage, Self::Error> {
        self.0.initialize_session(id, message).await
    }

    async fn has_session(&self, id: &SessionId) -> Result<bool, Self::Error> {
        self.0.has_session(id).await
    }

    async fn close_session(&self, id: &SessionId) -> Result<(), Self::Error> {
        self.0.close_session(id).await
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
        self.0.accept_message(id, message).await
    }

    async fn create_standalone_stream(
        &self,
        id: &SessionId,
    ) -> Result<impl Stream<Item = ServerSseMessage> + Send + Sync + 'static, Self::Error> {
        self.0.create_standalone_stream(id).await
    }

    async fn resume(
        &self,
        id: &SessionId,
        last_event_id: String,
    ) -> Result<impl Stream<Item = ServerSseMessage> + Send + Sync + 'static, Self::Error> {
        self.0.resume(id, last_event_id).await
    }
}
