//! Admission of HTTP requests: the caller's identity, the view of its path, and its body. Refusals
//! are recorded here.

use std::{convert::Infallible, net::SocketAddr, sync::Arc};

use axum::{
    body::Body,
    extract::{FromRequestParts, RawPathParams, Request, rejection::RawPathParamsRejection},
    http::request::Parts,
    response::Response,
};
use bytes::Bytes;

use super::{
    client_address::{ByTrustedProxy, ForwardingFault, is_forwarded},
    connections::ConnectionPermit,
    legacy_connections::Connections,
    request_checks::{self, Hosts},
    responder,
};
use crate::{CLIENT_CHANGED, Caller, Gateway, session::Session};
use portcullis_config::Listen;
use portcullis_protocol::{
    codec::Id,
    exchange::{Revision, Transport, View},
    identity::{Keyring, Principal, bearer},
    names::ClientName,
    refusal::{Code, Refusal},
};

/// The header with the client that the operator's command line acts as; only on the local socket.
pub const AS: &str = "portcullis-as";

/// State of the handlers.
#[derive(Clone)]
pub(in crate::front) struct Front {
    pub(in crate::front) proxy: Arc<Gateway>,
    pub(super) keyring: Arc<Keyring>,
    auth_mode: Arc<AuthMode>,
    pub(super) connections: Arc<Connections>,
}

/// The kinds of listener, by their authentication.
pub(super) enum AuthMode {
    /// TCP: keys, `Host` and `Origin`.
    Network { hosts: Hosts, anonymous: Anonymous },
    /// The local socket: the system has checked that the peer is its owner.
    Local,
}

/// Callers without a key that are accepted over TCP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Anonymous {
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

impl AuthMode {
    /// Authentication of a TCP listener on `address`.
    pub(super) fn network(listen: &Listen, address: SocketAddr) -> Self {
        Self::Network { hosts: Hosts::new(listen, address), anonymous: Anonymous::of(listen) }
    }
}

/// Parameters of a path.
pub(super) struct PathParams(Result<RawPathParams, RawPathParamsRejection>);

impl PathParams {
    pub(super) fn get(&self, name: &str) -> Option<&str> {
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

/// An identified caller.
pub(in crate::front) struct Peer {
    pub(in crate::front) principal: Arc<Principal>,
    pub(super) transport: Transport,
    pub(in crate::front) address: Option<SocketAddr>,
}

/// A request that was refused by its headers.
pub(in crate::front) struct NotAdmitted {
    /// The caller, if it presented a valid key.
    pub(in crate::front) peer: Option<Box<Peer>>,
    pub(in crate::front) refusal: Refusal,
}

impl From<Refusal> for NotAdmitted {
    fn from(refusal: Refusal) -> Self {
        Self { peer: None, refusal }
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

    pub(in crate::front) fn caller(
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

impl Front {
    pub(super) fn new(proxy: Arc<Gateway>, keyring: Arc<Keyring>, auth_mode: AuthMode) -> Self {
        let (auth_mode, connections) = (Arc::new(auth_mode), Arc::default());
        Self { proxy, keyring, auth_mode, connections }
    }

    pub(super) fn view(&self, named: &PathParams) -> Result<View, Refusal> {
        match &named.0 {
            Ok(_) => self.view_of(named.get("server")),
            Err(_) => Err(no_server()),
        }
    }

    /// The view of the named server, or of all servers.
    pub(in crate::front) fn view_of(&self, name: Option<&str>) -> Result<View, Refusal> {
        let Some(name) = name else { return Ok(View::All) };
        let server = name.parse().ok().and_then(|name| self.proxy.router.server(&name));
        Ok(View::One(server.ok_or_else(no_server)?.name.clone()))
    }

    /// Admits a request, or returns the response of its refusal.
    pub(super) async fn enter(&self, request: Request) -> Result<(Peer, Request), Response> {
        let address = request.extensions().get::<SocketAddr>().copied();
        match self.admit(&request) {
            Ok(peer) => Ok((peer, request)),
            Err(NotAdmitted { peer, refusal }) => {
                Err(self.refused_response(refusal, peer.as_deref(), address, None, None).await)
            }
        }
    }

    /// Admits a request, or returns the refusal.
    pub(in crate::front) fn admit(&self, request: &Request) -> Result<Peer, NotAdmitted> {
        let headers = request.headers();
        let address = request.extensions().get::<SocketAddr>().copied();
        match &*self.auth_mode {
            AuthMode::Network { hosts, anonymous } => {
                let key = bearer(headers);
                let authenticated = key.as_ref().ok().and_then(Option::as_ref);
                let authenticated = authenticated.and_then(|key| self.keyring.authenticate(key));
                let fault = request.extensions().get::<ForwardingFault>().copied();
                let refused = hosts
                    .check(headers, request.uri())
                    .and_then(|()| fault.map_or(Ok(()), |fault| Err(fault.into())));
                if let Err(refusal) = refused {
                    // Recorded apart from refusals of unauthenticated callers.
                    let peer = authenticated.map(|principal| {
                        Box::new(Peer { principal, transport: Transport::Http, address })
                    });
                    return Err(NotAdmitted { peer, refusal });
                }
                let unknown = |message: &str| Refusal::new(Code::Unauthenticated, message);
                let principal = match key {
                    Ok(Some(_)) => authenticated.ok_or_else(|| unknown("the key is not known"))?,
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
                let peer = Peer { principal, transport: Transport::Http, address };
                match peer.take_slot(request) {
                    Ok(()) => Ok(peer),
                    Err(refusal) => Err(NotAdmitted { peer: Some(Box::new(peer)), refusal }),
                }
            }
            AuthMode::Local => {
                let Some(name) = headers.get(AS) else {
                    let principal = Principal::local();
                    return Ok(Peer { principal, transport: Transport::Unix, address: None });
                };
                let principal =
                    name.to_str().ok().and_then(|name| self.impersonated(name)).ok_or_else(
                        || Refusal::new(Code::Unauthenticated, "the client does not exist"),
                    )?;
                Ok(Peer { principal, transport: Transport::Cli, address: None })
            }
        }
    }

    /// Reads the body of a message. This may take long, so the caller is checked again afterwards.
    pub(in crate::front) async fn body(&self, peer: &Peer, body: Body) -> Result<Bytes, Refusal> {
        let incoming = self.proxy.admission.incoming(&peer.principal);
        let text = request_checks::body(body, self.proxy.request_caps().bytes, incoming).await?;
        match self.keyring.is_unchanged(&peer.principal) {
            true => Ok(text),
            false => Err(Refusal::new(Code::Unauthenticated, CLIENT_CHANGED)),
        }
    }

    /// The principal that the operator wants to act as.
    fn impersonated(&self, name: &str) -> Option<Arc<Principal>> {
        match name {
            "anonymous" => Some(Principal::anonymous()),
            "local" => Some(Principal::local()),
            name => self.keyring.client(&name.parse::<ClientName>().ok()?),
        }
    }

    pub(super) async fn refused_response(
        &self,
        refusal: Refusal,
        peer: Option<&Peer>,
        address: Option<SocketAddr>,
        message: Option<&[u8]>,
        id: Option<&Id>,
    ) -> Response {
        let text = self.refuse(&refusal, peer, address, message, id).await;
        responder::refused(refusal.code, text)
    }

    /// Records a refusal and returns its text.
    pub(in crate::front) async fn refuse(
        &self,
        refusal: &Refusal,
        peer: Option<&Peer>,
        address: Option<SocketAddr>,
        message: Option<&[u8]>,
        id: Option<&Id>,
    ) -> Bytes {
        let transport = match (peer, &*self.auth_mode) {
            (Some(peer), _) => peer.transport,
            (None, AuthMode::Network { .. }) => Transport::Http,
            (None, AuthMode::Local) => Transport::Unix,
        };
        let principal = peer.map(|peer| &*peer.principal);
        self.proxy.recorder.reject(refusal, transport, address, principal, message, id).await
    }
}

fn no_server() -> Refusal {
    Refusal::new(Code::Unknown, "the server does not exist")
}
