//! `/metrics`, which names servers, tools and clients.
//!
//! INVARIANT: a connection from loopback proves no identity. A reverse proxy on this machine
//! connects from loopback for all clients. If it sets no header (nginx with only `proxy_pass`), its
//! requests look like those of a local program. So over TCP metrics need the key of a client that
//! the config names; the local socket serves them to users that the system admits.

use std::sync::Arc;

use axum::{
    Router,
    extract::{Request, State},
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};

use super::admit::Front;
use crate::Gateway;
use portcullis_protocol::{
    identity::PrincipalKind,
    refusal::{Code, Refusal},
};
use portcullis_telemetry::CONTENT_TYPE;

/// The route of the TCP listener.
pub(super) fn for_clients(front: Front) -> Router {
    Router::new().route("/metrics", get(for_client)).with_state(front)
}

/// The route of the local socket, where the system identifies the peer.
pub(super) fn for_owner(proxy: Arc<Gateway>) -> Router {
    let route = get(|State(proxy): State<Arc<Gateway>>| async move { render(&proxy).await });
    Router::new().route("/metrics", route).with_state(proxy)
}

async fn for_client(State(front): State<Front>, request: Request) -> Response {
    let (peer, _) = match front.enter(request).await {
        Ok(entered) => entered,
        Err(response) => return response,
    };
    let readers = &front.proxy.config.telemetry.metrics_clients;
    let refusal = match &peer.principal.kind {
        PrincipalKind::Client(name) if readers.contains(name) => return render(&front.proxy).await,
        PrincipalKind::Client(_) => {
            Refusal::new(Code::PolicyDenied, "this client may not read metrics")
        }
        PrincipalKind::Local { .. } | PrincipalKind::Anonymous => {
            Refusal::new(Code::Unauthenticated, "metrics need a key over TCP")
        }
    };
    let refusal =
        refusal.detail("telemetry.metrics-clients names the clients that may read metrics");
    let code = refusal.code;
    let address = peer.address;
    let mut response = front.refused_response(refusal, Some(&peer), address, None, None).await;
    if code == Code::PolicyDenied {
        *response.status_mut() = StatusCode::FORBIDDEN;
    }
    response
}

async fn render(proxy: &Gateway) -> Response {
    proxy.read_usage().await;
    match proxy.metrics.render() {
        Ok(text) => ([(header::CONTENT_TYPE, CONTENT_TYPE)], text).into_response(),
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}
