//! REST for clients without MCP: `GET /tools`, `POST /invoke`, `POST /batch`.
//!
//! Each call becomes a `tools/call` of 2026-07-28 without client capabilities, and passes the same
//! admission, chain and records as any other. A tool's result is returned unchanged; a refusal has
//! an HTTP status, its stable code and its decision id. `openapi.json` in this folder is the
//! machine-readable description.

mod answer;
mod call;

use std::{convert::Infallible, net::SocketAddr};

use axum::{
    Router,
    extract::{FromRequestParts, Query, Request, State, rejection::QueryRejection},
    http::{HeaderValue, StatusCode, header, request::Parts},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use bytes::Bytes;
use futures_util::future::join_all;
use parking_lot::Mutex;
use serde::Deserialize;

use super::{
    http::{
        admit::{Front, NotAdmitted, Peer},
        request_checks,
    },
    in_flight::{InFlight, Output, Outputs},
};
use crate::{ConcurrencyPermit, ExchangeResponse};
use portcullis_chain::{Party, Weight, grow, in_turns};
use portcullis_protocol::exchange::View;
use portcullis_protocol::{
    codec::{Frame, elements},
    exchange::{Method, Revision},
    refusal::{Code, Refusal},
};

use answer::{Reply, json};

/// Calls in one batch.
const MOST: usize = 64;

/// The OpenAPI document of these routes.
const OPENAPI: &str = include_str!("openapi.json");

/// The routes.
pub(super) fn routes(front: Front) -> Router {
    Router::new()
        .route("/tools", get(tools).fallback(only_get))
        .route("/invoke", post(invoke).fallback(only_post))
        .route("/batch", post(invoke_all).fallback(only_post))
        .route("/openapi.json", get(openapi).fallback(only_get))
        .with_state(front)
}

/// Parameters of a query.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct QueryParams {
    /// The only server of the view; its names have no prefix then.
    server: Option<String>,
    /// Cursor of the next page of a list.
    cursor: Option<String>,
}

/// A query, or the rejection of a malformed one.
struct CallQuery(Result<Query<QueryParams>, QueryRejection>);

impl<S: Send + Sync> FromRequestParts<S> for CallQuery {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Infallible> {
        Ok(Self(Query::from_request_parts(parts, state).await))
    }
}

impl CallQuery {
    fn read(self) -> Result<QueryParams, Refusal> {
        let why = "the query may have `server` and, for a list, `cursor`, each once";
        self.0.map(|Query(query)| query).map_err(|_| Refusal::new(Code::InvalidRequest, why))
    }
}

async fn openapi(State(front): State<Front>, request: Request) -> Response {
    match enter(&front, request).await {
        Ok(_) => json(StatusCode::OK, vec![Bytes::from_static(OPENAPI.as_bytes())]),
        Err(reply) => reply.into_response(),
    }
}

async fn tools(State(front): State<Front>, named: CallQuery, request: Request) -> Response {
    let (peer, _) = match enter(&front, request).await {
        Ok(entered) => entered,
        Err(reply) => return reply.into_response(),
    };
    let listed = async {
        let query = named.read()?;
        let view = front.view_of(query.server.as_deref())?;
        let call_permit = front.proxy.admission.acquire(&peer.principal)?;
        let params = call::list(query.cursor.as_deref());
        let sent = send(&front, &peer, view, Method::TOOLS_LIST, &params, call_permit)?;
        Ok(finish(sent).await)
    };
    let replied = async {
        match listed.await {
            Ok(answered) => Reply::of(answered, answer::tools),
            Err(refusal) => settled(&front, &peer, refusal, None).await,
        }
    };
    in_turns(party(&peer), Weight::NONE, replied).await.into_response()
}

async fn invoke(State(front): State<Front>, named: CallQuery, request: Request) -> Response {
    let (peer, request) = match enter(&front, request).await {
        Ok(entered) => entered,
        Err(reply) => return reply.into_response(),
    };
    let ReceivedCall { view, call_permit, text } = match arrive(&front, &peer, named, request).await
    {
        Ok(arrived) => arrived,
        Err(refusal) => return settled(&front, &peer, refusal, None).await.into_response(),
    };
    let invoked = async {
        let sent = call::parse(text.clone(), front.proxy.request_caps())
            .and_then(|params| send(&front, &peer, view, Method::TOOLS_CALL, &params, call_permit));
        match sent {
            Ok(sent) => Reply::of(finish(sent).await, answer::unchanged),
            Err(refusal) => settled(&front, &peer, refusal, Some(&text)).await,
        }
    };
    in_turns(party(&peer), Weight::of(&text), invoked).await.into_response()
}

async fn invoke_all(State(front): State<Front>, named: CallQuery, request: Request) -> Response {
    let (peer, request) = match enter(&front, request).await {
        Ok(entered) => entered,
        Err(reply) => return reply.into_response(),
    };
    let ReceivedCall { view, call_permit, text } = match arrive(&front, &peer, named, request).await
    {
        Ok(arrived) => arrived,
        Err(refusal) => return settled(&front, &peer, refusal, None).await.into_response(),
    };
    let invoked = invoke_each(&front, &peer, view, call_permit, &text);
    in_turns(party(&peer), Weight::of(&text), invoked).await
}

async fn invoke_each(
    front: &Front,
    peer: &Peer,
    view: View,
    call_permit: ConcurrencyPermit,
    text: &Bytes,
) -> Response {
    let calls = match elements(text, MOST, front.proxy.request_caps()) {
        Ok(calls) => calls,
        Err(flaw) => {
            return settled(front, peer, flaw.into(), Some(text)).await.into_response();
        }
    };
    let call_permit = Mutex::new(Some(call_permit));
    let replies = calls.into_iter().map(async |text| {
        let sent = call::parse(text.clone(), front.proxy.request_caps()).and_then(|params| {
            let first = call_permit.lock().take();
            let call_permit =
                first.map_or_else(|| front.proxy.admission.acquire(&peer.principal), Ok)?;
            send(front, peer, view.clone(), Method::TOOLS_CALL, &params, call_permit)
        });
        match sent {
            Ok(sent) => Reply::of(finish(sent).await, answer::unchanged).into_element(),
            Err(refusal) => settled(front, peer, refusal, Some(&text)).await.into_element(),
        }
    });
    json(StatusCode::OK, answer::array(join_all(replies).await))
}

async fn only_get(State(front): State<Front>, request: Request) -> Response {
    other_verb(front, request, "GET").await
}

async fn only_post(State(front): State<Front>, request: Request) -> Response {
    other_verb(front, request, "POST").await
}

async fn other_verb(front: Front, request: Request, allowed: &'static str) -> Response {
    let peer = match enter(&front, request).await {
        Ok((peer, _)) => peer,
        Err(reply) => return reply.into_response(),
    };
    let refusal =
        Refusal::new(Code::HttpMethodNotAllowed, "this path does not accept this HTTP method");
    let mut response = settled(&front, &peer, refusal, None).await.into_response();
    response.headers_mut().insert(header::ALLOW, HeaderValue::from_static(allowed));
    response
}

/// A body with the data that its calls need.
struct ReceivedCall {
    view: View,
    call_permit: ConcurrencyPermit,
    text: Bytes,
}

async fn arrive(
    front: &Front,
    peer: &Peer,
    named: CallQuery,
    request: Request,
) -> Result<ReceivedCall, Refusal> {
    let query = named.read()?;
    if query.cursor.is_some() {
        return Err(Refusal::new(Code::InvalidRequest, "a call does not take a `cursor`"));
    }
    let view = front.view_of(query.server.as_deref())?;
    request_checks::is_json(request.headers())?;
    let call_permit = front.proxy.admission.acquire(&peer.principal)?;
    let text = front.body(peer, request.into_body()).await?;
    Ok(ReceivedCall { view, call_permit, text })
}

/// The party whose turns the work on a caller's messages takes.
fn party(peer: &Peer) -> Party {
    Party::Client(peer.principal.kind.clone())
}

/// Starts handling a request that the proxy made.
fn send(
    front: &Front,
    peer: &Peer,
    view: View,
    method: &str,
    params: &[u8],
    call_permit: ConcurrencyPermit,
) -> Result<InFlight, Refusal> {
    let text = Frame::request(1, method, params);
    let mut caps = front.proxy.request_caps();
    // The proxy's own additions do not count against the client's limit.
    caps.bytes = caps.bytes.max(text.len());
    let caller = peer.caller(view, None, Revision::LATEST_MODERN);
    Ok(InFlight::take(&front.proxy, caller, Frame::parse(text, caps)?, call_permit))
}

/// Waits for the result of a request. Notifications are dropped.
async fn finish(sent: InFlight) -> Option<ExchangeResponse> {
    // Dropped with this future, it cancels the call.
    let mut output = Outputs::of(vec![sent]);
    while let Some(next) = output.next().await {
        if let Output::Answer(answer) = next {
            grow(answer.answered.text.as_ref().map_or(Weight::NONE, Weight::of)).await;
            return Some(answer.answered);
        }
    }
    None
}

/// A rejected call.
async fn settled(front: &Front, peer: &Peer, refusal: Refusal, text: Option<&Bytes>) -> Reply {
    let message = text.map(|text| &**text);
    let text = front.refuse(&refusal, Some(peer), peer.address, message, None).await;
    Reply::refused(refusal.code, &text)
}

/// Admits a request, or returns the reply of its refusal.
async fn enter(front: &Front, request: Request) -> Result<(Peer, Request), Reply> {
    let address = request.extensions().get::<SocketAddr>().copied();
    let NotAdmitted { peer, refusal } = match front.admit(&request) {
        Ok(peer) => return Ok((peer, request)),
        Err(refused) => refused,
    };
    let text = front.refuse(&refusal, peer.as_deref(), address, None, None).await;
    Err(Reply::refused(refusal.code, &text))
}
