//! Streamable HTTP, for both eras: `/mcp` shows all servers, `/servers/NAME/mcp` one of them.
//!
//! A request is refused before its body is read if its `Host` or `Origin` is not allowed (DNS
//! rebinding) or if it has no identity. Then its body is read within the limits, parsed once, and
//! sent through the pipeline.

mod client_address;
mod connections;
mod legacy_sse;
mod listener;
mod metrics;
mod proxy_protocol;
pub(super) mod request_checks;
mod responder;
mod sse;

use std::{convert::Infallible, net::SocketAddr, sync::Arc};

use axum::{
    Router,
    body::Body,
    extract::{FromRequestParts, RawPathParams, Request, State, rejection::RawPathParamsRejection},
    http::{HeaderMap, HeaderValue, StatusCode, header, request::Parts},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use bytes::Bytes;

use crate::{CLIENT_CHANGED, Caller, ConcurrencyPermit, Gateway, session::Session};
use portcullis_chain::{Party, Weight, in_turns};
use portcullis_config::Listen;
use portcullis_protocol::exchange::View;
use portcullis_protocol::{
    codec::{Frame, Id, Kind, is_batch},
    exchange::{Method, Revision, Transport},
    identity::{Keyring, Principal, bearer},
    names::{ClientName, SessionId},
    refusal::{Code, Refusal},
};

use super::{batch, rest};
use client_address::{ByTrustedProxy, ForwardingFault, is_forwarded};
use connections::ConnectionPermit;
use legacy_sse::Connections;
use request_checks::{DetectedEra, Hosts};

pub use listener::Listener;
pub(super) use request_checks::{greeted, unsupported};

/// The header with the client that the operator's command line acts as; only on the local socket.
pub const AS: &str = "portcullis-as";
const SESSION: &str = "mcp-session-id";

/// State of the handlers.
#[derive(Clone)]
pub(super) struct Front {
    pub(super) proxy: Arc<Gateway>,
    keyring: Arc<Keyring>,
    auth_mode: Arc<AuthMode>,
    connections: Arc<Connections>,
}

/// The kinds of listener, by their authentication.
enum AuthMode {
    /// TCP: keys, `Host` and `Origin`.
    Network { hosts: Hosts, anonymous: Anonymous },
    /// The local socket: the system has checked that the peer is its owner.
    Local,
}

/// Callers without a key that are accepted over TCP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Anonymous {
    Refused,
    /// Callers of this machine.
    Loopback,
    Everywhere,
}

impl Anonymous {
    /// Whether a request without a key is accepted. Requests forwarded by a reverse proxy on this
    /// machine come from loopback, so a request with a trace of a proxy is not local. A trusted
    /// proxy's requests never are, whatever their address.
    fn takes(self, request: &Request) -> bool {
        match self {
            Self::Refused => false,
            Self::Loopback => {
                let extensions = request.extensions();
                let address = extensions.get::<SocketAddr>();
                address.is_some_and(|address| address.ip().is_loopback())
                    && extensions.get::<ByTrustedProxy>().is_none()
                    && !is_forwarded(request.headers())
            }
            Self::Everywhere => true,
        }
    }

    fn of(listen: &Listen) -> Self {
        match (listen.anonymous, listen.anonymous_beyond_loopback) {
            (false, _) => Self::Refused,
            (true, false) => Self::Loopback,
            (true, true) => Self::Everywhere,
        }
    }
}

/// The routes of the TCP listener, bound to `address`.
pub fn network(
    proxy: Arc<Gateway>,
    keyring: Arc<Keyring>,
    listen: &Listen,
    address: SocketAddr,
) -> Router {
    let hosts = Hosts::new(listen, address);
    let auth_mode = Arc::new(AuthMode::Network { hosts, anonymous: Anonymous::of(listen) });
    let front = Front { proxy: proxy.clone(), keyring, auth_mode, connections: Arc::default() };
    mcp(front.clone()).merge(health(proxy)).merge(metrics::for_clients(front))
}

/// The routes of the local socket.
pub fn local(proxy: Arc<Gateway>, keyring: Arc<Keyring>) -> Router {
    let (auth_mode, connections) = (Arc::new(AuthMode::Local), Arc::default());
    mcp(Front { proxy: proxy.clone(), keyring, auth_mode, connections })
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

/// Parameters of a path.
struct PathParams(Result<RawPathParams, RawPathParamsRejection>);

impl PathParams {
    fn get(&self, name: &str) -> Option<&str> {
        let named = self.0.as_ref().ok()?;
        named.iter().find(|(key, _)| *key == name).map(|(_, value)| value)
    }
}

impl<S: Send + Sync> FromRequestParts<S> for PathParams {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Infallible> {
        Ok(Self(RawPathParams::from_request_parts(parts, state).await))
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
    let (visitor, refusal) = match front.admit(&request) {
        Ok(visitor) => {
            let refusal = Refusal::new(
                Code::HttpMethodNotAllowed,
                "this path does not accept this HTTP method",
            );
            (Some(Box::new(visitor)), refusal)
        }
        Err(NotAdmitted { visitor, refusal }) => (visitor, refusal),
    };
    let code = refusal.code;
    let mut response = front.turn_away(refusal, visitor.as_deref(), address, None, None).await;
    if code == Code::HttpMethodNotAllowed {
        response.headers_mut().insert(header::ALLOW, allowed);
    }
    response
}

/// Answers unknown paths. Clients that look for `/.well-known/…` before they have a key get the
/// same response as all others.
async fn other_path(State(front): State<Front>, request: Request) -> Response {
    let address = request.extensions().get::<SocketAddr>().copied();
    let visitor = match front.admit(&request) {
        Ok(visitor) => Some(Box::new(visitor)),
        Err(NotAdmitted { visitor, .. }) => visitor,
    };
    let refusal = Refusal::new(Code::Unknown, "this path does not exist");
    front.turn_away(refusal, visitor.as_deref(), address, None, None).await
}

/// An identified caller.
pub(super) struct Peer {
    pub(super) principal: Arc<Principal>,
    transport: Transport,
    pub(super) address: Option<SocketAddr>,
}

/// A request that was refused by its headers.
pub(super) struct NotAdmitted {
    /// The caller, if it presented a valid key.
    pub(super) visitor: Option<Box<Peer>>,
    pub(super) refusal: Refusal,
}

impl From<Refusal> for NotAdmitted {
    fn from(refusal: Refusal) -> Self {
        Self { visitor: None, refusal }
    }
}

impl Peer {
    /// Counts the request's connection for its principal.
    fn take_slot(&self, request: &Request) -> Result<(), Refusal> {
        let Some(permit) = request.extensions().get::<Arc<ConnectionPermit>>() else {
            return Ok(());
        };
        match (self.principal.verified, self.address) {
            (true, _) => permit.authenticate(&self.principal.kind),
            (false, Some(address)) => permit.forward_anonymous(address.ip()),
            (false, None) => Ok(()),
        }
    }

    pub(super) fn caller(
        &self,
        view: View,
        session: Option<Arc<Session>>,
        revision: Revision,
    ) -> Caller {
        Caller {
            principal: self.principal.clone(),
            transport: self.transport,
            client_addr: self.address,
            view,
            calls: session.as_ref().map(|session| session.calls.clone()),
            session,
            revision,
            headers: None,
        }
    }
}

/// A POST with its whole body.
struct ReceivedMessage {
    visitor: Peer,
    headers: HeaderMap,
    view: View,
    /// Whether the client accepts an event stream.
    streams: bool,
    call_permit: ConcurrencyPermit,
    text: Bytes,
}

impl Front {
    fn view(&self, named: &PathParams) -> Result<View, Refusal> {
        match &named.0 {
            Ok(_) => self.view_of(named.get("server")),
            Err(_) => Err(no_server()),
        }
    }

    /// The view of the named server, or of all servers.
    pub(super) fn view_of(&self, name: Option<&str>) -> Result<View, Refusal> {
        let Some(name) = name else { return Ok(View::All) };
        let server = name.parse().ok().and_then(|name| self.proxy.router.server(&name));
        Ok(View::One(server.ok_or_else(no_server)?.name.clone()))
    }

    /// Admits a request, or returns the response of its refusal.
    async fn enter(&self, request: Request) -> Result<(Peer, Request), Response> {
        let address = request.extensions().get::<SocketAddr>().copied();
        match self.admit(&request) {
            Ok(visitor) => Ok((visitor, request)),
            Err(NotAdmitted { visitor, refusal }) => {
                Err(self.turn_away(refusal, visitor.as_deref(), address, None, None).await)
            }
        }
    }

    /// Admits a request, or returns the refusal.
    pub(super) fn admit(&self, request: &Request) -> Result<Peer, NotAdmitted> {
        let headers = request.headers();
        let address = request.extensions().get::<SocketAddr>().copied();
        match &*self.auth_mode {
            AuthMode::Network { hosts, anonymous } => {
                let key = bearer(headers);
                let known = key.as_ref().ok().and_then(Option::as_ref);
                let known = known.and_then(|key| self.keyring.authenticate(key));
                let fault = request.extensions().get::<ForwardingFault>().copied();
                let refused = hosts
                    .check(headers, request.uri())
                    .and_then(|()| fault.map_or(Ok(()), |fault| Err(fault.into())));
                if let Err(refusal) = refused {
                    // Recorded apart from refusals of unauthenticated callers.
                    let visitor = known.map(|principal| {
                        Box::new(Peer { principal, transport: Transport::Http, address })
                    });
                    return Err(NotAdmitted { visitor, refusal });
                }
                let unknown = |message: &str| Refusal::new(Code::Unauthenticated, message);
                let principal = match key {
                    Ok(Some(_)) => known.ok_or_else(|| unknown("the key is not known"))?,
                    Ok(None) if anonymous.takes(request) => Principal::anonymous(),
                    Ok(None) if *anonymous == Anonymous::Loopback => {
                        return Err(unknown("callers from other machines need a key").into());
                    }
                    Ok(None) => {
                        return Err(
                            unknown("a key is required: send Authorization: Bearer KEY").into()
                        );
                    }
                    Err(fault) => return Err(unknown(&fault.to_string()).into()),
                };
                let visitor = Peer { principal, transport: Transport::Http, address };
                match visitor.take_slot(request) {
                    Ok(()) => Ok(visitor),
                    Err(refusal) => Err(NotAdmitted { visitor: Some(Box::new(visitor)), refusal }),
                }
            }
            AuthMode::Local => {
                let Some(name) = headers.get(AS) else {
                    let principal = Principal::local();
                    return Ok(Peer { principal, transport: Transport::Unix, address: None });
                };
                let principal =
                    name.to_str().ok().and_then(|name| self.stand_in(name)).ok_or_else(|| {
                        Refusal::new(Code::Unauthenticated, "the client does not exist")
                    })?;
                Ok(Peer { principal, transport: Transport::Cli, address: None })
            }
        }
    }

    /// Reads the body of a message. This may take long, so the caller is checked again afterwards.
    pub(super) async fn body(&self, visitor: &Peer, body: Body) -> Result<Bytes, Refusal> {
        let incoming = self.proxy.admission.incoming(&visitor.principal);
        let text = request_checks::body(body, self.proxy.request_caps().bytes, incoming).await?;
        match self.keyring.still_knows(&visitor.principal) {
            true => Ok(text),
            false => Err(Refusal::new(Code::Unauthenticated, CLIENT_CHANGED)),
        }
    }

    /// The principal that the operator wants to act as.
    fn stand_in(&self, name: &str) -> Option<Arc<Principal>> {
        match name {
            "anonymous" => Some(Principal::anonymous()),
            "local" => Some(Principal::local()),
            name => self.keyring.client(&name.parse::<ClientName>().ok()?),
        }
    }

    async fn turn_away(
        &self,
        refusal: Refusal,
        visitor: Option<&Peer>,
        address: Option<SocketAddr>,
        message: Option<&[u8]>,
        id: Option<&Id>,
    ) -> Response {
        let text = self.refuse(&refusal, visitor, address, message, id).await;
        responder::refused(refusal.code, text)
    }

    /// Records a refusal and returns its text.
    pub(super) async fn refuse(
        &self,
        refusal: &Refusal,
        visitor: Option<&Peer>,
        address: Option<SocketAddr>,
        message: Option<&[u8]>,
        id: Option<&Id>,
    ) -> Bytes {
        let transport = match (visitor, &*self.auth_mode) {
            (Some(visitor), _) => visitor.transport,
            (None, AuthMode::Network { .. }) => Transport::Http,
            (None, AuthMode::Local) => Transport::Unix,
        };
        let principal = visitor.map(|visitor| &*visitor.principal);
        self.proxy.recorder.reject(refusal, transport, address, principal, message, id).await
    }

    async fn post(&self, named: PathParams, request: Request) -> Response {
        let (visitor, request) = match self.enter(request).await {
            Ok(entered) => entered,
            Err(response) => return response,
        };
        let (parts, body) = request.into_parts();
        let headers = parts.headers;
        let away = async |refusal| {
            self.turn_away(refusal, Some(&visitor), visitor.address, None, None).await
        };
        let view = match self.view(&named) {
            Ok(view) => view,
            Err(refusal) => return away(refusal).await,
        };
        let streams = match request_checks::content(&headers) {
            Ok(streams) => streams,
            Err(refusal) => return away(refusal).await,
        };
        let call_permit = match self.proxy.admission.acquire(&visitor.principal) {
            Ok(call_permit) => call_permit,
            Err(refusal) => return away(refusal).await,
        };
        let text = match self.body(&visitor, body).await {
            Ok(text) => text,
            Err(refusal) => return away(refusal).await,
        };
        let (party, weight) = (Party::Client(visitor.principal.kind.clone()), Weight::of(&text));
        let arrived = ReceivedMessage { visitor, headers, view, streams, call_permit, text };
        in_turns(party, weight, self.take(arrived)).await
    }

    /// Handles the message of a POST after its body has arrived.
    async fn take(&self, arrived: ReceivedMessage) -> Response {
        let ReceivedMessage { visitor, headers, view, streams, call_permit, text } = arrived;
        let away = |refusal, message: Option<Bytes>, id: Option<Id>| {
            let (visitor, address) = (&visitor, visitor.address);
            async move {
                self.turn_away(refusal, Some(visitor), address, message.as_deref(), id.as_ref())
                    .await
            }
        };
        if let Some(session) = self.takes_batch(&text, &headers, &visitor, &view) {
            let revision = session.revision;
            let caller = visitor.caller(view, Some(session), revision);
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
            DetectedEra::Greeting(revision) => Ok((revision, None)),
            // Its only response is a stream.
            DetectedEra::Modern if !streams && is_listen(&frame) => {
                Err(request_checks::not_acceptable("text/event-stream"))
            }
            DetectedEra::Modern => Ok((Revision::LATEST_MODERN, None)),
            DetectedEra::Legacy { session, revision } => {
                let found = self.proxy.sessions.find(&session, &visitor.principal, &view)?;
                let session = request_checks::agreed(revision, found)?;
                Ok((session.revision, Some(session)))
            }
        });
        let (revision, session) = match spoken {
            Ok(spoken) => spoken,
            Err(refusal) => return away(refusal, Some(text), id).await,
        };
        let mut caller = visitor.caller(view, session, revision);
        if revision.is_modern() {
            caller.headers = request_checks::params(&headers, visitor.transport);
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
        visitor: &Peer,
        view: &View,
    ) -> Option<Arc<Session>> {
        let id = presented(headers).filter(|_| is_batch(text))?;
        let session = self.proxy.sessions.find(&id, &visitor.principal, view).ok()?;
        let session =
            request_checks::agreed(request_checks::revision(headers).ok()?, session).ok()?;
        batch::are_taken_in(&session).then_some(session)
    }

    /// Opens a legacy session's stream of messages that are not responses.
    async fn get(&self, named: PathParams, request: Request) -> Response {
        let (visitor, request) = match self.enter(request).await {
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
            let session = self.proxy.sessions.find(&id, &visitor.principal, &view)?;
            let last = request_checks::last_event(headers)?;
            responder::listen(&session, last.as_deref(), self.proxy.closing().clone())
        });
        match listens {
            Ok(response) => response,
            Err(refusal) => {
                self.turn_away(refusal, Some(&visitor), visitor.address, None, None).await
            }
        }
    }

    /// Ends a legacy session.
    async fn delete(&self, named: PathParams, request: Request) -> Response {
        let (visitor, request) = match self.enter(request).await {
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
            self.proxy.sessions.find(&id, &visitor.principal, &view)
        });
        match session {
            Ok(session) => {
                self.proxy.sessions.close(&session.id, "the client closed it");
                StatusCode::NO_CONTENT.into_response()
            }
            Err(refusal) => {
                self.turn_away(refusal, Some(&visitor), visitor.address, None, None).await
            }
        }
    }
}

fn is_listen(frame: &Frame) -> bool {
    matches!(&frame.kind, Kind::Request { method, .. } if method.as_str() == Method::LISTEN)
}

fn no_server() -> Refusal {
    Refusal::new(Code::Unknown, "the server does not exist")
}

fn presented(headers: &HeaderMap) -> Option<SessionId> {
    headers.get(SESSION).and_then(|id| id.to_str().ok()).map(SessionId::presented)
}
