//! HTTP+SSE, the transport of 2024-11-05: a client opens a stream with `GET`, and posts its
//! messages to a URI. The stream first sends the URI, then everything else. The stream is the
//! connection; its end is the client's end.
//!
//! INVARIANT: only the client that opened the stream can post, over the same listener and endpoint.
//! For others the URI does not exist, even though its id cannot be guessed. The stream ends when
//! its client is removed, or gets another key or other groups.

use std::{collections::HashMap, sync::Arc};

use axum::{
    extract::Request,
    http::StatusCode,
    response::{IntoResponse, Response},
};
use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use futures_util::{StreamExt, stream};
use parking_lot::Mutex;
use tokio_stream::wrappers::ReceiverStream;

use super::{Front, PathParams, Peer, request_checks, sse};
use crate::{
    CLIENT_CHANGED,
    front::connection::{Connection, ENDED},
    session::Event,
};
use portcullis_protocol::exchange::View;
use portcullis_protocol::{
    names::SessionId,
    refusal::{Code, Refusal},
};

/// Divisor of all connections that gives one principal's limit, as for sessions.
const SHARE: usize = 10;

/// The open connections of one listener.
#[derive(Default)]
pub(super) struct Connections(Mutex<HashMap<SessionId, Arc<Connection>>>);

/// Ends a connection when its stream is dropped.
struct Open {
    connections: Arc<Connections>,
    id: SessionId,
}

impl Drop for Open {
    fn drop(&mut self) {
        let ended = self.connections.0.lock().remove(&self.id);
        if let Some(connection) = ended {
            connection.end(ENDED);
        }
    }
}

impl Connections {
    fn open(self: &Arc<Self>, connection: Arc<Connection>, most: usize) -> Result<Open, Refusal> {
        let mut random = [0; 24];
        getrandom::fill(&mut random).map_err(|error| {
            Refusal::new(Code::InterceptorFault, "the connection cannot be opened")
                .detail(format!("the operating system returned no random bytes: {error}"))
        })?;
        let id = SessionId::presented(&BASE64_URL_SAFE_NO_PAD.encode(random));
        let mut open = self.0.lock();
        let kind = &connection.principal.kind;
        let own = open.values().filter(|other| other.principal.kind == *kind).count();
        if open.len() >= most || own >= most.div_ceil(SHARE) {
            return Err(Refusal::new(Code::RateLimited, "too many connections are open")
                .detail(format!("limits.sessions = {most}")));
        }
        open.insert(id.clone(), connection);
        Ok(Open { connections: self.clone(), id })
    }

    fn find(
        &self,
        named: &PathParams,
        visitor: &Peer,
        view: &View,
    ) -> Result<Arc<Connection>, Refusal> {
        let found = named.get("connection").map(SessionId::presented);
        let found = found.and_then(|id| self.0.lock().get(&id).cloned());
        found
            // Decisions use the principal that opened it, so groups and key must match, too.
            .filter(|found| found.principal == visitor.principal && found.view == *view)
            .ok_or_else(|| Refusal::new(Code::SessionUnknown, "the connection does not exist"))
    }
}

impl Front {
    /// Opens a connection.
    pub(super) async fn connect(&self, named: PathParams, request: Request) -> Response {
        let (visitor, request) = match self.enter(request).await {
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
            let (connection, messages) = Connection::new(
                self.proxy.clone(),
                visitor.principal.clone(),
                view,
                visitor.transport,
            );
            let most = self.proxy.config.limits.sessions;
            let open = self.connections.open(connection.clone(), most)?;
            Ok((format!("{path}/sse/{}", open.id.expose()), open, connection, messages))
        });
        let (endpoint, open, connection, messages) = match opened {
            Ok(opened) => opened,
            Err(refusal) => {
                return self.turn_away(refusal, Some(&visitor), visitor.address, None, None).await;
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
        let (visitor, request) = match self.enter(request).await {
            Ok(entered) => entered,
            Err(response) => return response,
        };
        let found = self.view(&named).and_then(|view| {
            request_checks::is_json(request.headers())?;
            let connection = self.connections.find(&named, &visitor, &view)?;
            Ok((connection, self.proxy.admission.acquire(&visitor.principal)?))
        });
        let mut message = None;
        let taken = async {
            let (connection, call_permit) = found?;
            let text = self.body(&visitor, request.into_body()).await?;
            message = Some(text.clone());
            // The response to `initialize` is sent on the stream, so it is not awaited here.
            connection.take(text, call_permit, visitor.address).await
        };
        match taken.await {
            Ok(_) => StatusCode::ACCEPTED.into_response(),
            Err(away) => {
                let (visitor, address) = (Some(&visitor), visitor.address);
                let (message, id) = (message.as_deref(), away.id.as_ref());
                self.turn_away(away.refusal, visitor, address, message, id).await
            }
        }
    }
}
