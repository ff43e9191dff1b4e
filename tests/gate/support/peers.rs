//! Remote servers of older revisions, written by hand: HTTP+SSE, and streamable HTTP with streams
//! that end early and sessions that expire.

use std::{
    collections::HashMap,
    convert::Infallible,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

use axum::{
    Router,
    body::Body,
    extract::{Query, Request, State},
    http::{HeaderMap, StatusCode},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use serde_json::{Value, json};
use tokio::{net::TcpListener, sync::mpsc};
use tokio_stream::{StreamExt, wrappers::UnboundedReceiverStream};

type Events = mpsc::UnboundedSender<String>;

async fn serve(app: Router) -> SocketAddr {
    let listener = TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], 0))).await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, app).await });
    addr
}

fn stream() -> (Events, Response) {
    let (sender, events) = mpsc::unbounded_channel::<String>();
    let body = Body::from_stream(UnboundedReceiverStream::new(events).map(Ok::<_, Infallible>));
    (sender, ([("content-type", "text/event-stream")], body).into_response())
}

async fn read(request: Request) -> (HeaderMap, Value) {
    let (parts, body) = request.into_parts();
    let body = axum::body::to_bytes(body, 1 << 20).await.unwrap();
    (parts.headers, serde_json::from_slice(&body).unwrap_or_default())
}

/// The result of a request that both servers support.
fn result(message: &Value, revision: &str) -> Value {
    match message["method"].as_str().unwrap_or_default() {
        "initialize" => json!({
            "protocolVersion": revision,
            "capabilities": { "tools": {} },
            "serverInfo": { "name": "peer", "version": "1" },
        }),
        "tools/list" => {
            let tool = |name: &str| json!({ "name": name, "inputSchema": { "type": "object" } });
            let tools = ["echo", "end"].map(tool);
            json!({ "tools": tools })
        }
        "tools/call" => {
            let text = &message["params"]["arguments"]["text"];
            json!({ "content": [{ "type": "text", "text": text }] })
        }
        _ => json!({}),
    }
}

fn answer(message: &Value, revision: &str) -> Value {
    json!({ "jsonrpc": "2.0", "id": message["id"], "result": result(message, revision) })
}

#[derive(Default)]
struct Sse {
    next: AtomicU64,
    open: Mutex<HashMap<String, Events>>,
}

/// A server of 2024-11-05 over HTTP+SSE: `echo` answers, `end` answers and ends the stream.
/// Returns the URL of its stream, which accepts no POST.
pub async fn sse() -> String {
    let app = Router::new()
        .route("/sse", get(open_sse))
        .route("/told", post(told))
        .with_state(Arc::<Sse>::default());
    format!("http://{}/sse", serve(app).await)
}

async fn open_sse(State(server): State<Arc<Sse>>) -> Response {
    let (events, response) = stream();
    let session = server.next.fetch_add(1, Ordering::Relaxed).to_string();
    events.send(format!("event: endpoint\ndata: /told?session={session}\n\n")).unwrap();
    server.open.lock().unwrap().insert(session, events);
    response
}

async fn told(
    State(server): State<Arc<Sse>>,
    Query(query): Query<HashMap<String, String>>,
    request: Request,
) -> StatusCode {
    let (_, message) = read(request).await;
    let session = query.get("session").cloned().unwrap_or_default();
    let mut open = server.open.lock().unwrap();
    let Some(events) = open.get(&session) else { return StatusCode::NOT_FOUND };
    if message["id"].is_null() || message["method"].is_null() {
        return StatusCode::ACCEPTED;
    }
    let text = answer(&message, "2024-11-05");
    let _ = events.send(format!("event: message\ndata: {text}\n\n"));
    if message["params"]["name"] == "end" {
        open.remove(&session);
    }
    StatusCode::ACCEPTED
}

/// A server of 2025-11-25 over streamable HTTP. Its only tool, `key`, returns the header `X-Key`
/// of the call.
pub async fn keyed() -> String {
    let app = Router::new().route("/mcp", post(tell_key));
    format!("http://{}/mcp", serve(app).await)
}

async fn tell_key(request: Request) -> Response {
    let (headers, message) = read(request).await;
    if message["id"].is_null() {
        return StatusCode::ACCEPTED.into_response();
    }
    let key = headers.get("x-key").map_or("", |key| key.to_str().unwrap());
    let result = match message["method"].as_str().unwrap_or_default() {
        "tools/list" => {
            json!({ "tools": [{ "name": "key", "inputSchema": { "type": "object" } }] })
        }
        "tools/call" => json!({ "content": [{ "type": "text", "text": key }] }),
        _ => result(&message, "2025-11-25"),
    };
    axum::Json(json!({ "jsonrpc": "2.0", "id": message["id"], "result": result })).into_response()
}

/// A server of 2025-11-25 that answers each call with a stream of one chunk: a progress notification
/// and the response.
pub async fn together() -> String {
    let app = Router::new().route("/mcp", post(send_together));
    format!("http://{}/mcp", serve(app).await)
}

async fn send_together(request: Request) -> Response {
    let (_, message) = read(request).await;
    let answer = answer(&message, "2025-11-25");
    match message["method"].as_str().unwrap_or_default() {
        "server/discover" => StatusCode::BAD_REQUEST.into_response(),
        _ if message["id"].is_null() => StatusCode::ACCEPTED.into_response(),
        "tools/call" => {
            let token = &message["params"]["_meta"]["progressToken"];
            let notice = json!({
                "jsonrpc": "2.0",
                "method": "notifications/progress",
                "params": { "progressToken": token, "progress": 1 },
            });
            let body = format!("data: {notice}\n\ndata: {answer}\n\n");
            ([("content-type", "text/event-stream")], body).into_response()
        }
        _ => axum::Json(answer).into_response(),
    }
}

#[derive(Default)]
struct Polled {
    next: AtomicU64,
    /// Sessions with the responses that are delivered when the stream is resumed.
    sessions: Mutex<HashMap<String, Vec<Value>>>,
}

/// A server of 2025-11-25 that ends the stream of every call before the response. The resumed
/// stream has the response to `echo`, and that to `end`, which also ends the session.
pub async fn polled() -> String {
    let app = Router::new()
        .route("/mcp", post(asked).get(asked_again))
        .route("/s/{key}/mcp", post(asked).get(asked_again))
        .with_state(Arc::<Polled>::default());
    format!("http://{}/mcp", serve(app).await)
}

fn session(headers: &HeaderMap) -> String {
    headers.get("mcp-session-id").map_or("", |id| id.to_str().unwrap()).to_owned()
}

async fn asked(State(server): State<Arc<Polled>>, request: Request) -> Response {
    let (headers, message) = read(request).await;
    let method = message["method"].as_str().unwrap_or_default();
    let answer = answer(&message, "2025-11-25");
    let session = session(&headers);
    let known = server.sessions.lock().unwrap().contains_key(&session);
    match method {
        "server/discover" => StatusCode::BAD_REQUEST.into_response(),
        "initialize" => {
            let session = server.next.fetch_add(1, Ordering::Relaxed).to_string();
            server.sessions.lock().unwrap().insert(session.clone(), Vec::new());
            ([("mcp-session-id", session)], axum::Json(answer)).into_response()
        }
        _ if !known => StatusCode::NOT_FOUND.into_response(),
        "tools/call" => {
            server.sessions.lock().unwrap().entry(session).or_default().push(answer);
            let (events, response) = stream();
            let end = message["params"]["name"] == "end";
            let id = if end { "last" } else { "more" };
            events.send(format!("id: {id}\nretry: 1\ndata:\n\n")).unwrap();
            response
        }
        _ if message["id"].is_null() => StatusCode::ACCEPTED.into_response(),
        _ => axum::Json(answer).into_response(),
    }
}

async fn asked_again(State(server): State<Arc<Polled>>, headers: HeaderMap) -> Response {
    let session = session(&headers);
    let mut sessions = server.sessions.lock().unwrap();
    let Some(kept) = sessions.get_mut(&session) else {
        return StatusCode::NOT_FOUND.into_response();
    };
    let Some(last) = headers.get("last-event-id") else {
        return StatusCode::METHOD_NOT_ALLOWED.into_response();
    };
    let (events, response) = stream();
    for answer in std::mem::take(kept) {
        events.send(format!("id: end\ndata: {answer}\n\n")).unwrap();
    }
    if last == "last" {
        sessions.remove(&session);
    }
    response
}
