//! The server over HTTP: streamable (2025-03-26 and later), or HTTP+SSE (2024-11-05).

use std::{
    collections::HashMap,
    convert::Infallible,
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
};

use axum::{
    Router,
    body::Body,
    extract::{Query, State},
    http::{HeaderMap, Method, StatusCode, header},
    response::{IntoResponse, Response},
    routing::any,
};
use futures_util::Stream;
use serde_json::Value;
use tokio::{net::TcpListener, sync::mpsc};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::peer::{Connection, MODERN, World, error, lock};

/// The sessions by their ids.
pub struct Sessions {
    world: Arc<World>,
    next: AtomicU64,
    open: Mutex<HashMap<String, Session>>,
}

struct Session {
    connection: Arc<Connection>,
    general: General,
}

type Messages = mpsc::UnboundedReceiver<Value>;
/// What belongs to no request, unless a stream has it.
type General = Arc<Mutex<Option<Messages>>>;
type Shared = State<Arc<Sessions>>;

/// Serves on a free port of loopback and prints the URL.
pub async fn serve(
    world: Arc<World>,
    routes: fn() -> (Router<Arc<Sessions>>, &'static str),
) -> anyhow::Result<()> {
    let sessions = Sessions { world, next: AtomicU64::new(1), open: Mutex::default() };
    let (router, path) = routes();
    let listener = TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], 0))).await?;
    println!("http://{}{path}", listener.local_addr()?);
    axum::serve(listener, router.with_state(Arc::new(sessions))).await?;
    Ok(())
}

pub fn streamable() -> (Router<Arc<Sessions>>, &'static str) {
    (Router::new().route("/mcp", any(mcp)), "/mcp")
}

pub fn sse() -> (Router<Arc<Sessions>>, &'static str) {
    (Router::new().route("/sse", any(stream)).route("/messages", any(messages)), "/sse")
}

impl Sessions {
    fn open(&self) -> (String, Arc<Connection>) {
        let id = format!("session-{}", self.next.fetch_add(1, Ordering::Relaxed));
        let (out, general) = mpsc::unbounded_channel();
        let connection = Connection::new(self.world.clone(), out);
        let general = Arc::new(Mutex::new(Some(general)));
        lock(&self.open).insert(id.clone(), Session { connection: connection.clone(), general });
        (id, connection)
    }

    fn find(&self, id: &str) -> Option<(Arc<Connection>, General)> {
        lock(&self.open).get(id).map(|s| (s.connection.clone(), s.general.clone()))
    }
}

fn refuse(status: StatusCode, id: &Value, code: i64, why: &str) -> Response {
    let kind = [(header::CONTENT_TYPE, "application/json")];
    (status, kind, error(id, code, why).to_string()).into_response()
}

fn bad(why: &str) -> Response {
    refuse(StatusCode::BAD_REQUEST, &Value::Null, -32600, why)
}

/// The one endpoint of the streamable transport.
async fn mcp(
    State(sessions): Shared,
    method: Method,
    headers: HeaderMap,
    body: String,
) -> Response {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let world = &sessions.world;
    if world.modern() {
        return if method == Method::POST {
            modern(sessions.clone(), &headers, &body)
        } else {
            StatusCode::METHOD_NOT_ALLOWED.into_response()
        };
    }
    let id = text("mcp-session-id");
    let session = id.and_then(|id| sessions.find(id));
    // The header came with 2025-06-18.
    let revision = text("mcp-protocol-version");
    let right =
        revision == Some(world.revision) || (revision.is_none() && world.revision < "2025-06-18");
    match (method, session) {
        (Method::POST, session) => {
            let message: Value = match serde_json::from_str(&body) {
                Ok(message) => message,
                Err(error) => return bad(&error.to_string()),
            };
            if !text("accept").is_some_and(|accept| {
                accept.contains("application/json") && accept.contains("text/event-stream")
            }) {
                return bad("Accept must name both kinds");
            }
            if message["method"] == "initialize" {
                let (id, connection) = sessions.open();
                let mut response = answer(connection, message, CancellationToken::new(), None);
                if let Ok(id) = id.parse() {
                    response.headers_mut().insert("mcp-session-id", id);
                }
                return response;
            }
            let Some((connection, _)) = session else {
                let status =
                    if id.is_some() { StatusCode::NOT_FOUND } else { StatusCode::BAD_REQUEST };
                return refuse(status, &message["id"], -32600, "no session");
            };
            if !right {
                return bad(&format!("MCP-Protocol-Version is {revision:?}"));
            }
            if message["method"].is_null() || message.get("id").is_none() {
                let (out, _) = mpsc::unbounded_channel();
                connection.handle(message, out, CancellationToken::new()).await;
                return StatusCode::ACCEPTED.into_response();
            }
            answer(connection, message, CancellationToken::new(), None)
        }
        (_, None) => bad("no session"),
        (_, Some(_)) if !right => bad(&format!("MCP-Protocol-Version is {revision:?}")),
        (Method::GET, Some((_, general))) => general_stream(&general, None),
        (Method::DELETE, Some(_)) => {
            lock(&sessions.open).remove(id.unwrap_or_default());
            StatusCode::OK.into_response()
        }
        _ => StatusCode::METHOD_NOT_ALLOWED.into_response(),
    }
}

/// A request of 2026-07-28: nothing before it counts, and its headers repeat it.
fn modern(sessions: Arc<Sessions>, headers: &HeaderMap, body: &str) -> Response {
    let message: Value = match serde_json::from_str(body) {
        Ok(message) => message,
        Err(error) => return bad(&error.to_string()),
    };
    let id = &message["id"];
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let method = message["method"].as_str().unwrap_or_default();
    let mismatch = |why: String| refuse(StatusCode::BAD_REQUEST, id, -32020, &why);
    if method == "initialize" || text("mcp-protocol-version").is_none_or(|v| v != MODERN) {
        let mut error = error(id, -32022, "unsupported protocol version");
        error["error"]["data"] = serde_json::json!({ "supported": [MODERN] });
        let kind = [(header::CONTENT_TYPE, "application/json")];
        return (StatusCode::BAD_REQUEST, kind, error.to_string()).into_response();
    }
    if text("mcp-method") != Some(method) {
        return mismatch(format!("Mcp-Method is {:?} for {method}", text("mcp-method")));
    }
    let named = match method {
        "tools/call" | "prompts/get" => Some("name"),
        "resources/read" => Some("uri"),
        "tasks/get" | "tasks/update" | "tasks/cancel" => Some("taskId"),
        _ => None,
    };
    if let Some(member) = named
        && text("mcp-name") != message["params"][member].as_str()
    {
        return mismatch(format!("Mcp-Name is {:?} for {method}", text("mcp-name")));
    }
    if text("mcp-session-id").is_some() {
        return bad("2026-07-28 has no sessions");
    }
    let (out, _) = mpsc::unbounded_channel();
    let connection = Connection::new(sessions.world.clone(), out);
    let gone = CancellationToken::new();
    let guard = gone.clone().drop_guard();
    answer(connection, message, gone, Some(guard))
}

/// The stream of one request. With a guard, its end before the answer's cancels the request.
fn answer(
    connection: Arc<Connection>,
    message: Value,
    gone: CancellationToken,
    guard: Option<DropGuard>,
) -> Response {
    let (out, messages) = mpsc::unbounded_channel();
    tokio::spawn(connection.handle(message, out, gone));
    events(Events { messages: Some(messages), first: None, back: None, _guard: guard })
}

/// The stream for what belongs to no request. When it closes, the next takes over.
fn general_stream(general: &General, first: Option<String>) -> Response {
    match lock(general).take() {
        Some(messages) => events(Events {
            messages: Some(messages),
            first,
            back: Some(general.clone()),
            _guard: None,
        }),
        None => StatusCode::CONFLICT.into_response(),
    }
}

fn events(events: Events) -> Response {
    let kind = [(header::CONTENT_TYPE, "text/event-stream"), (header::CACHE_CONTROL, "no-cache")];
    (kind, Body::from_stream(events)).into_response()
}

/// Messages as server-sent events.
struct Events {
    messages: Option<Messages>,
    first: Option<String>,
    back: Option<General>,
    _guard: Option<DropGuard>,
}

impl Stream for Events {
    type Item = Result<String, Infallible>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if let Some(first) = self.first.take() {
            return Poll::Ready(Some(Ok(first)));
        }
        let Some(messages) = &mut self.messages else { return Poll::Ready(None) };
        messages
            .poll_recv(context)
            .map(|message| message.map(|m| Ok(format!("event: message\ndata: {m}\n\n"))))
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        if let Some(back) = &self.back {
            *lock(back) = self.messages.take();
        }
    }
}

/// HTTP+SSE: the stream that begins with the endpoint for messages.
async fn stream(State(sessions): Shared, method: Method) -> Response {
    if method != Method::GET {
        return StatusCode::METHOD_NOT_ALLOWED.into_response();
    }
    let (id, _) = sessions.open();
    let endpoint = format!("event: endpoint\ndata: /messages?session={id}\n\n");
    let general = lock(&sessions.open).get(&id).map(|session| session.general.clone());
    match general {
        Some(general) => general_stream(&general, Some(endpoint)),
        None => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

/// HTTP+SSE: everything that a client says. The answers come on the stream.
async fn messages(
    State(sessions): Shared,
    Query(query): Query<HashMap<String, String>>,
    method: Method,
    body: String,
) -> Response {
    if method != Method::POST {
        return StatusCode::METHOD_NOT_ALLOWED.into_response();
    }
    let session = query.get("session").and_then(|id| sessions.find(id));
    let Some((connection, _)) = session else { return StatusCode::NOT_FOUND.into_response() };
    let message = match serde_json::from_str(&body) {
        Ok(message) => message,
        Err(error) => return bad(&error.to_string()),
    };
    let out = connection.general.clone();
    tokio::spawn(connection.handle(message, out, CancellationToken::new()));
    StatusCode::ACCEPTED.into_response()
}
