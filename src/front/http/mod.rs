//! Streamable HTTP, for both eras: `/mcp` shows all servers, `/servers/NAME/mcp` one of them.
//!
//! A request is turned away before its body is read where its `Host` or `Origin` is not one that
//! is allowed here (DNS rebinding) or where it has no identity. Then its body is read within the
//! limits, parsed once, and sent on its way.

mod arrival;
mod listener;
mod reply;

use std::{net::SocketAddr, sync::Arc};

use axum::{
    Router,
    extract::{Path, Request, State},
    http::{HeaderMap, StatusCode, header},
    middleware::Next,
    response::{IntoResponse, Response},
    routing::{MethodRouter, get, post},
};
use bytes::Bytes;

use crate::{
    codec::Id,
    config::Listen,
    exchange::Transport,
    identity::{Keyring, Principal, bearer},
    names::{ClientName, SessionId},
    proxy::Proxy,
    refusal::{Code, Refusal},
    router::View,
    telemetry::CONTENT_TYPE,
};

use arrival::{Hosts, Speaks};

pub(super) use arrival::{greeted, unsupported};
pub use listener::Listener;

/// The header by which the operator's command line speaks as a client, on the local socket alone.
pub const AS: &str = "portcullis-as";
const SESSION: &str = "mcp-session-id";

/// What the handlers need.
#[derive(Clone)]
struct Front {
    proxy: Arc<Proxy>,
    keyring: Arc<Keyring>,
    door: Arc<Door>,
}

/// The kinds of door, which differ in how they know who is calling.
enum Door {
    /// TCP: keys, `Host` and `Origin`.
    Network { hosts: Hosts, anonymous: bool },
    /// The local socket, which the system has checked: its owner.
    Local,
}

/// The routes of the network's door, bound to `address`.
pub fn network(
    proxy: Arc<Proxy>,
    keyring: Arc<Keyring>,
    listen: &Listen,
    address: SocketAddr,
) -> Router {
    let hosts = Hosts::new(listen, address);
    let door = Arc::new(Door::Network { hosts, anonymous: listen.anonymous });
    let guarded = axum::middleware::from_fn_with_state(door.clone(), guarded);
    mcp(Front { proxy: proxy.clone(), keyring, door }).merge(operations(proxy).layer(guarded))
}

/// The routes of the local socket's door.
pub fn local(proxy: Arc<Proxy>, keyring: Arc<Keyring>) -> Router {
    mcp(Front { proxy: proxy.clone(), keyring, door: Arc::new(Door::Local) })
        .merge(operations(proxy))
}

fn mcp(front: Front) -> Router {
    Router::new().route("/mcp", methods()).route("/servers/{name}/mcp", methods()).with_state(front)
}

fn methods() -> MethodRouter<Front> {
    post(post_message).get(get_stream).delete(delete_session).fallback(other_verb)
}

fn operations(proxy: Arc<Proxy>) -> Router {
    Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
        .with_state(proxy)
}

/// Metrics name servers, tools and clients: on the network only this machine may have them, and
/// no page of another host that a browser on this machine shows. Health is anybody's to ask.
async fn guarded(State(door): State<Arc<Door>>, request: Request, next: Next) -> Response {
    if request.uri().path() != "/metrics" {
        return next.run(request).await;
    }
    let near = request.extensions().get::<SocketAddr>().is_some_and(|a| a.ip().is_loopback());
    let known = match &*door {
        Door::Network { hosts, .. } => hosts.check(request.headers(), request.uri()).is_ok(),
        Door::Local => true,
    };
    if near && known {
        next.run(request).await
    } else {
        (StatusCode::FORBIDDEN, "metrics are for this machine alone\n").into_response()
    }
}

async fn ready(State(proxy): State<Arc<Proxy>>) -> Response {
    if proxy.closing().is_cancelled() {
        (StatusCode::SERVICE_UNAVAILABLE, "shutting down\n").into_response()
    } else {
        "ready\n".into_response()
    }
}

async fn metrics(State(proxy): State<Arc<Proxy>>) -> Response {
    proxy.read_usage().await;
    match proxy.metrics.render() {
        Ok(text) => ([(header::CONTENT_TYPE, CONTENT_TYPE)], text).into_response(),
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

/// The server that a path names; none where it names all.
type Named = Option<Path<String>>;

async fn post_message(State(front): State<Front>, name: Named, request: Request) -> Response {
    front.post(name, request).await
}

async fn get_stream(State(front): State<Front>, name: Named, request: Request) -> Response {
    front.get(name, request).await
}

async fn delete_session(State(front): State<Front>, name: Named, request: Request) -> Response {
    front.delete(name, request).await
}

async fn other_verb(State(front): State<Front>, request: Request) -> Response {
    let address = request.extensions().get::<SocketAddr>().copied();
    let (visitor, refusal) = match front.admit(&request) {
        Ok(visitor) => {
            let refusal = Refusal::new(Code::VerbUnknown, "this HTTP method is not known here");
            (Some(visitor), refusal)
        }
        Err(refusal) => (None, refusal),
    };
    front.turn_away(refusal, visitor.as_ref(), address, None, None).await
}

/// Who is at the door.
struct Visitor {
    principal: Arc<Principal>,
    transport: Transport,
    address: Option<SocketAddr>,
}

impl Front {
    fn view(&self, name: Named) -> Result<View, Refusal> {
        let Some(Path(name)) = name else { return Ok(View::All) };
        let server = name.parse().ok().and_then(|name| self.proxy.router.server(&name));
        let server =
            server.ok_or_else(|| Refusal::new(Code::Unknown, "there is no server of this name"))?;
        Ok(View::One(server.name.clone()))
    }

    /// Lets a visitor in, or says why not.
    fn admit(&self, request: &Request) -> Result<Visitor, Refusal> {
        let headers = request.headers();
        let address = request.extensions().get::<SocketAddr>().copied();
        match &*self.door {
            Door::Network { hosts, anonymous } => {
                hosts.check(headers, request.uri())?;
                let unknown = |message: &str| Refusal::new(Code::Unauthenticated, message);
                let principal = match bearer(headers) {
                    Ok(Some(key)) => self
                        .keyring
                        .authenticate(&key)
                        .ok_or_else(|| unknown("this key is not known here"))?,
                    Ok(None) if *anonymous => Principal::anonymous(),
                    Ok(None) => return Err(unknown("a key is needed: Authorization: Bearer …")),
                    Err(fault) => return Err(unknown(&fault.to_string())),
                };
                Ok(Visitor { principal, transport: Transport::Http, address })
            }
            Door::Local => {
                let Some(name) = headers.get(AS) else {
                    let principal = Principal::local();
                    return Ok(Visitor { principal, transport: Transport::Unix, address: None });
                };
                let principal =
                    name.to_str().ok().and_then(|name| self.stand_in(name)).ok_or_else(|| {
                        Refusal::new(Code::Unauthenticated, "there is no such client")
                    })?;
                Ok(Visitor { principal, transport: Transport::Cli, address: None })
            }
        }
    }

    /// The principal as whom the operator wants to speak.
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
        visitor: Option<&Visitor>,
        address: Option<SocketAddr>,
        message: Option<&[u8]>,
        id: Option<&Id>,
    ) -> Response {
        let transport = match (visitor, &*self.door) {
            (Some(visitor), _) => visitor.transport,
            (None, Door::Network { .. }) => Transport::Http,
            (None, Door::Local) => Transport::Unix,
        };
        let principal = visitor.map(|visitor| &*visitor.principal);
        let text = self.proxy.turn_away(&refusal, transport, address, principal, message, id).await;
        reply::refused(refusal.code, text)
    }

    async fn post(&self, name: Named, request: Request) -> Response {
        let address = request.extensions().get::<SocketAddr>().copied();
        let visitor = match self.admit(&request) {
            Ok(visitor) => visitor,
            Err(refusal) => return self.turn_away(refusal, None, address, None, None).await,
        };
        let (parts, body) = request.into_parts();
        let headers = parts.headers;
        let away = |refusal, message: Option<Bytes>, id: Option<Id>| {
            let (visitor, address) = (&visitor, visitor.address);
            async move {
                self.turn_away(refusal, Some(visitor), address, message.as_deref(), id.as_ref())
                    .await
            }
        };
        let view = match self.view(name) {
            Ok(view) => view,
            Err(refusal) => return away(refusal, None, None).await,
        };
        let streams = match arrival::content(&headers) {
            Ok(streams) => streams,
            Err(refusal) => return away(refusal, None, None).await,
        };
        let caps = self.proxy.request_caps();
        let place = match self.proxy.enter(&visitor.principal) {
            Ok(place) => place,
            Err(refusal) => return away(refusal, None, None).await,
        };
        let text = match arrival::body(body, caps.bytes).await {
            Ok(text) => text,
            Err(refusal) => return away(refusal, None, None).await,
        };
        let frame = match crate::codec::Frame::parse(text.clone(), caps) {
            Ok(frame) => frame,
            Err(flaw) => return away(flaw.into(), Some(text), None).await,
        };
        let id = match &frame.kind {
            crate::codec::Kind::Request { id, .. } => Some(id.clone()),
            _ => None,
        };
        let speaks = match arrival::speaks(&headers, &frame) {
            Ok(speaks) => speaks,
            Err(refusal) => return away(refusal, Some(text), id).await,
        };
        let session = match &speaks {
            Speaks::Legacy { session, revision } => {
                let found = self.proxy.sessions.find(session, &visitor.principal, &view);
                match found.and_then(|found| arrival::agreed(*revision, found)) {
                    Ok(session) => Some(session),
                    Err(refusal) => return away(refusal, Some(text), id).await,
                }
            }
            Speaks::Greeting(_) | Speaks::Modern => None,
        };
        let revision = match (&speaks, &session) {
            (Speaks::Greeting(revision), _) => *revision,
            (_, Some(session)) => session.revision,
            _ => crate::exchange::Revision::LATEST_MODERN,
        };
        let caller = crate::proxy::Caller {
            principal: visitor.principal.clone(),
            transport: visitor.transport,
            client_addr: visitor.address,
            view,
            calls: session.as_ref().map(|session| session.calls.clone()),
            session,
            headers: matches!(speaks, Speaks::Modern)
                .then(|| arrival::params(&headers, visitor.transport))
                .flatten(),
            revision,
        };
        reply::carry(self.proxy.take(caller, frame, place), id.is_none(), streams, revision).await
    }

    /// The stream of a legacy session, on which it hears what answers nothing.
    async fn get(&self, name: Named, request: Request) -> Response {
        let address = request.extensions().get::<SocketAddr>().copied();
        let visitor = match self.admit(&request) {
            Ok(visitor) => visitor,
            Err(refusal) => return self.turn_away(refusal, None, address, None, None).await,
        };
        let session = self.view(name).and_then(|view| {
            let headers = request.headers();
            let id = presented(headers).ok_or_else(|| {
                Refusal::new(Code::VerbUnknown, "a GET needs the `Mcp-Session-Id` of a session")
            })?;
            if !arrival::accepts(headers, "text/event-stream") {
                return Err(arrival::not_acceptable("text/event-stream"));
            }
            self.proxy.sessions.find(&id, &visitor.principal, &view)
        });
        match session {
            Ok(session) => reply::listen(&session, self.proxy.closing().clone()),
            Err(refusal) => self.turn_away(refusal, Some(&visitor), address, None, None).await,
        }
    }

    /// Ends a legacy session.
    async fn delete(&self, name: Named, request: Request) -> Response {
        let address = request.extensions().get::<SocketAddr>().copied();
        let visitor = match self.admit(&request) {
            Ok(visitor) => visitor,
            Err(refusal) => return self.turn_away(refusal, None, address, None, None).await,
        };
        let session = self.view(name).and_then(|view| {
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
                self.proxy.sessions.close(&session.id);
                StatusCode::NO_CONTENT.into_response()
            }
            Err(refusal) => self.turn_away(refusal, Some(&visitor), address, None, None).await,
        }
    }
}

fn presented(headers: &HeaderMap) -> Option<SessionId> {
    headers.get(SESSION).and_then(|id| id.to_str().ok()).map(SessionId::presented)
}
