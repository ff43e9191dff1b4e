//! Streamable HTTP, for both eras: `/mcp` shows all servers, `/servers/NAME/mcp` one of them.
//!
//! A request is refused before its body is read if its `Host` or `Origin` is not allowed (DNS
//! rebinding) or if it has no identity. Then its body is read within the limits, parsed once, and
//! sent through the pipeline.

pub(super) mod admit;
mod client_address;
mod connections;
mod legacy_connections;
mod legacy_sse;
mod listener;
mod metrics;
mod proxy_protocol;
pub(super) mod request_checks;
mod responder;
mod sse;

use std::{net::SocketAddr, sync::Arc};

use axum::{
    Router,
    extract::{Request, State},
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use bytes::Bytes;

use crate::{ConcurrencyPermit, Gateway, session::Session};
use portcullis_chain::{Party, Weight, in_turns};
use portcullis_config::Listen;
use portcullis_protocol::exchange::View;
use portcullis_protocol::{
    codec::{Frame, Id, Kind, is_batch},
    exchange::{Method, Revision},
    identity::Keyring,
    names::SessionId,
    refusal::{Code, Refusal},
};

use super::{batch, rest};
use admit::{AuthMode, Front, NotAdmitted, PathParams, Peer};
use request_checks::DetectedEra;

pub use admit::AS;
pub use listener::{IN_TRANSIT, Listener};

const SESSION: &str = "mcp-session-id";

/// The routes of the TCP listener, bound to `address`.
pub fn network(
    proxy: Arc<Gateway>,
    keyring: Arc<Keyring>,
    listen: &Listen,
    address: SocketAddr,
) -> Router {
    let front = Front::new(proxy.clone(), keyring, AuthMode::network(listen, address));
    mcp(front.clone()).merge(health(proxy)).merge(metrics::for_clients(front))
}

/// The routes of the local socket.
pub fn local(proxy: Arc<Gateway>, keyring: Arc<Keyring>) -> Router {
    mcp(Front::new(proxy.clone(), keyring, AuthMode::Local))
        .merge(health(proxy.clone()))
        .merge(metrics::for_owner(proxy))
}

fn mcp(front: Front) -> Router {
    let only = |allowed: &'static str| {
        move |State(front): State<Front>, request: Request| {
            other_verb(front, request, HeaderValue::from_static(allowed))
        }
    };
    let methods = || {
        let methods = post(post_message).get(get_stream).delete(delete_session);
        methods.fallback(only("POST, GET, DELETE"))
    };
    let connect = || get(connect).fallback(only("GET"));
    let post_to = || post(post_to).fallback(only("POST"));
    let rest =
        if front.proxy.config.listen.rest { rest::routes(front.clone()) } else { Router::new() };
    Router::new()
        .route("/mcp", methods())
        .route("/servers/{server}/mcp", methods())
        .route("/sse", connect())
        .route("/servers/{server}/sse", connect())
        .route("/sse/{connection}", post_to())
        .route("/servers/{server}/sse/{connection}", post_to())
        .fallback(other_path)
        .with_state(front)
        .merge(rest)
}

/// Health, without authentication.
fn health(proxy: Arc<Gateway>) -> Router {
    Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .with_state(proxy)
}

async fn ready(State(proxy): State<Arc<Gateway>>) -> Response {
    if proxy.closing().is_cancelled() {
        (StatusCode::SERVICE_UNAVAILABLE, "shutting down\n").into_response()
    } else {
        "ready\n".into_response()
    }
}

async fn post_message(State(front): State<Front>, named: PathParams, request: Request) -> Response {
    front.post(named, request).await
}

async fn get_stream(State(front): State<Front>, named: PathParams, request: Request) -> Response {
    front.get(named, request).await
}

async fn delete_session(
    State(front): State<Front>,
    named: PathParams,
    request: Request,
) -> Response {
    front.delete(named, request).await
}

async fn connect(State(front): State<Front>, named: PathParams, request: Request) -> Response {
    front.connect(named, request).await
}

async fn post_to(State(front): State<Front>, named: PathParams, request: Request) -> Response {
    front.post_to(named, request).await
}

async fn other_verb(front: Front, request: Request, allowed: HeaderValue) -> Response {
    let address = request.extensions().get::<SocketAddr>().copied();
    let (peer, refusal) = match front.admit(&request) {
        Ok(peer) => {
            let refusal = Refusal::new(
                Code::HttpMethodNotAllowed,
                "this path does not accept this HTTP method",
            );
            (Some(Box::new(peer)), refusal)
        }
        Err(NotAdmitted { peer, refusal }) => (peer, refusal),
    };
    let code = refusal.code;
    let mut response = front.refused_response(refusal, peer.as_deref(), address, None, None).await;
    if code == Code::HttpMethodNotAllowed {
        response.headers_mut().insert(header::ALLOW, allowed);
    }
    response
}

/// Answers unknown paths. Clients that look for `/.well-known/…` before they have a key get the
/// same response as all others.
async fn other_path(State(front): State<Front>, request: Request) -> Response {
    let address = request.extensions().get::<SocketAddr>().copied();
    let peer = match front.admit(&request) {
        Ok(peer) => Some(Box::new(peer)),
        Err(NotAdmitted { peer, .. }) => peer,
    };
    let refusal = Refusal::new(Code::Unknown, "this path does not exist");
    front.refused_response(refusal, peer.as_deref(), address, None, None).await
}

/// A POST with its whole body.
struct ReceivedMessage {
    peer: Peer,
    headers: HeaderMap,
    view: View,
    /// Whether the client accepts an event stream.
    streams: bool,
    call_permit: ConcurrencyPermit,
    text: Bytes,
}

impl Front {
    async fn post(&self, named: PathParams, request: Request) -> Response {
        let (peer, request) = match self.enter(request).await {
            Ok(entered) => entered,
            Err(response) => return response,
        };
        let (parts, body) = request.into_parts();
        let headers = parts.headers;
        let away = async |refusal| {
            self.refused_response(refusal, Some(&peer), peer.address, None, None).await
        };
        let view = match self.view(&named) {
            Ok(view) => view,
            Err(refusal) => return away(refusal).await,
        };
        let streams = match request_checks::content(&headers) {
            Ok(streams) => streams,
            Err(refusal) => return away(refusal).await,
        };
        let call_permit = match self.proxy.admission.acquire(&peer.principal) {
            Ok(call_permit) => call_permit,
            Err(refusal) => return away(refusal).await,
        };
        let text = match self.body(&peer, body).await {
            Ok(text) => text,
            Err(refusal) => return away(refusal).await,
        };
        let (party, weight) = (Party::Client(peer.principal.kind.clone()), Weight::of(&text));
        let arrived = ReceivedMessage { peer, headers, view, streams, call_permit, text };
        in_turns(party, weight, self.take(arrived)).await
    }

    /// Handles the message of a POST after its body has arrived.
    async fn take(&self, arrived: ReceivedMessage) -> Response {
        let ReceivedMessage { peer, headers, view, streams, call_permit, text } = arrived;
        let away = |refusal, message: Option<Bytes>, id: Option<Id>| {
            let (peer, address) = (&peer, peer.address);
            async move {
                self.refused_response(refusal, Some(peer), address, message.as_deref(), id.as_ref())
                    .await
            }
        };
        if let Some(session) = self.takes_batch(&text, &headers, &peer, &view) {
            let revision = session.revision;
            let caller = peer.caller(view, Some(session), revision);
            let carrier = responder::Responder { proxy: self.proxy.clone(), caller, streams };
            return match carrier.batch(&text, call_permit).await {
                Ok(response) => response,
                Err(refusal) => away(refusal, Some(text.clone()), None).await,
            };
        }
        let frame = match Frame::parse(text.clone(), self.proxy.request_caps()) {
            Ok(frame) => frame,
            Err(flaw) => return away(flaw.into(), Some(text), None).await,
        };
        let id = match &frame.kind {
            Kind::Request { id, .. } => Some(id.clone()),
            _ => None,
        };
        let spoken = request_checks::speaks(&headers, &frame).and_then(|speaks| match speaks {
            DetectedEra::Initialize(revision) => Ok((revision, None)),
            // Its only response is a stream.
            DetectedEra::Modern if !streams && is_listen(&frame) => {
                Err(request_checks::not_acceptable("text/event-stream"))
            }
            DetectedEra::Modern => Ok((Revision::LATEST_MODERN, None)),
            DetectedEra::Legacy { session, revision } => {
                let found = self.proxy.sessions.find(&session, &peer.principal, &view)?;
                let session = request_checks::agreed(revision, found)?;
                Ok((session.revision, Some(session)))
            }
        });
        let (revision, session) = match spoken {
            Ok(spoken) => spoken,
            Err(refusal) => return away(refusal, Some(text), id).await,
        };
        let mut caller = peer.caller(view, session, revision);
        if revision.is_modern() {
            caller.headers = request_checks::params(&headers, peer.transport);
        }
        responder::Responder { proxy: self.proxy.clone(), caller, streams }
            .one(frame, call_permit)
            .await
    }

    /// The session of a batch, if its revision has batches. Otherwise a batch is not a valid
    /// message.
    fn takes_batch(
        &self,
        text: &[u8],
        headers: &HeaderMap,
        peer: &Peer,
        view: &View,
    ) -> Option<Arc<Session>> {
        let id = presented(headers).filter(|_| is_batch(text))?;
        let session = self.proxy.sessions.find(&id, &peer.principal, view).ok()?;
        let session =
            request_checks::agreed(request_checks::revision(headers).ok()?, session).ok()?;
        batch::are_taken_in(&session).then_some(session)
    }

    /// Opens a legacy session's stream of messages that are not responses.
    async fn get(&self, named: PathParams, request: Request) -> Response {
        let (peer, request) = match self.enter(request).await {
            Ok(entered) => entered,
            Err(response) => return response,
        };
        let listens = self.view(&named).and_then(|view| {
            let headers = request.headers();
            request_checks::legacy(headers)?;
            let id = presented(headers).ok_or_else(|| {
                Refusal::new(
                    Code::HttpMethodNotAllowed,
                    "a GET needs the `Mcp-Session-Id` of a session",
                )
            })?;
            if !request_checks::accepts(headers, "text/event-stream") {
                return Err(request_checks::not_acceptable("text/event-stream"));
            }
            let session = self.proxy.sessions.find(&id, &peer.principal, &view)?;
            let last = request_checks::last_event(headers)?;
            responder::listen(&session, last.as_deref(), self.proxy.closing().clone())
        });
        match listens {
            Ok(response) => response,
            Err(refusal) => {
                self.refused_response(refusal, Some(&peer), peer.address, None, None).await
            }
        }
    }

    /// Ends a legacy session.
    async fn delete(&self, named: PathParams, request: Request) -> Response {
        let (peer, request) = match self.enter(request).await {
            Ok(entered) => entered,
            Err(response) => return response,
        };
        let session = self.view(&named).and_then(|view| {
            request_checks::legacy(request.headers())?;
            let id = presented(request.headers()).ok_or_else(|| {
                Refusal::new(
                    Code::InvalidRequest,
                    "a DELETE needs the `Mcp-Session-Id` of a session",
                )
            })?;
            self.proxy.sessions.find(&id, &peer.principal, &view)
        });
        match session {
            Ok(session) => {
                self.proxy.sessions.close(&session.id, "the client closed it");
                StatusCode::NO_CONTENT.into_response()
            }
            Err(refusal) => {
                self.refused_response(refusal, Some(&peer), peer.address, None, None).await
            }
        }
    }
}

fn is_listen(frame: &Frame) -> bool {
    matches!(&frame.kind, Kind::Request { method, .. } if method.as_str() == Method::LISTEN)
}

fn presented(headers: &HeaderMap) -> Option<SessionId> {
    headers.get(SESSION).and_then(|id| id.to_str().ok()).map(SessionId::presented)
}
