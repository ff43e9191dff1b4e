//! HTTP+SSE, the transport of 2024-11-05: a client opens a stream with `GET`, and posts its
//! messages to a URI. The stream first sends the URI, then everything else. The stream is the
//! connection; its end is the client's end.
//!
//! INVARIANT: only the client that opened the stream can post, over the same listener and endpoint.
//! For others the URI does not exist, even though its id cannot be guessed. The stream ends when
//! its client is removed, or gets another key or other groups.

use axum::{
    extract::Request,
    http::StatusCode,
    response::{IntoResponse, Response},
};
use futures_util::{StreamExt, stream};
use tokio_stream::wrappers::ReceiverStream;

use super::{
    admit::{Front, PathParams},
    request_checks, sse,
};
use crate::{CLIENT_CHANGED, front::connection::Connection, session::Event};
use portcullis_protocol::exchange::View;

impl Front {
    /// Opens a connection.
    pub(super) async fn connect(&self, named: PathParams, request: Request) -> Response {
        let (peer, request) = match self.enter(request).await {
            Ok(entered) => entered,
            Err(response) => return response,
        };
        let opened = self.view(&named).and_then(|view| {
            if !request_checks::accepts(request.headers(), "text/event-stream") {
                return Err(request_checks::not_acceptable("text/event-stream"));
            }
            let path = match &view {
                View::All => String::new(),
                View::One(server) => format!("/servers/{server}"),
            };
            let (connection, messages) =
                Connection::new(self.proxy.clone(), peer.principal.clone(), view, peer.transport);
            let most = self.proxy.config.limits.sessions;
            let open = self.connections.open(connection.clone(), most)?;
            Ok((format!("{path}/sse/{}", open.id.expose()), open, connection, messages))
        });
        let (endpoint, open, connection, messages) = match opened {
            Ok(opened) => opened,
            Err(refusal) => {
                return self.refused_response(refusal, Some(&peer), peer.address, None, None).await;
            }
        };
        let (closing, keyring) = (self.proxy.closing().clone(), self.keyring.clone());
        let messages =
            ReceiverStream::new(messages).map(|text| sse::event(Event { id: None, text }));
        let events = stream::once(async move { sse::named("endpoint", &endpoint) }).chain(messages);
        sse::response(events.take_until(async move {
            let _open = open;
            tokio::select! {
                () = connection.gone().cancelled() => {}
                () = keyring.changed(&connection.principal) => connection.end(CLIENT_CHANGED),
                () = closing.cancelled() => {}
            }
        }))
    }

    /// Handles a client's message for its connection. The response goes to its stream.
    pub(super) async fn post_to(&self, named: PathParams, request: Request) -> Response {
        let (peer, request) = match self.enter(request).await {
            Ok(entered) => entered,
            Err(response) => return response,
        };
        let found = self.view(&named).and_then(|view| {
            request_checks::is_json(request.headers())?;
            let connection =
                self.connections.find(named.get("connection"), &peer.principal, &view)?;
            Ok((connection, self.proxy.admission.acquire(&peer.principal)?))
        });
        let mut message = None;
        let taken = async {
            let (connection, call_permit) = found?;
            let text = self.body(&peer, request.into_body()).await?;
            message = Some(text.clone());
            // The response to `initialize` is sent on the stream, so it is not awaited here.
            connection.take(text, call_permit, peer.address).await
        };
        match taken.await {
            Ok(_) => StatusCode::ACCEPTED.into_response(),
            Err(away) => {
                let (peer, address) = (Some(&peer), peer.address);
                let (message, id) = (message.as_deref(), away.id.as_ref());
                self.refused_response(away.refusal, peer, address, message, id).await
            }
        }
    }
}
