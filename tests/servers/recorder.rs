//! A server that answers what it is told to, and tells what it received, byte for byte.
//!
//! `recorder legacy|modern` speaks over standard input and output; with `http` behind it, over
//! streamable HTTP on loopback, and writes its URL to standard output; `recorder legacy sse` does so
//! over HTTP+SSE. Its tool `record` answers with the text of `arguments.legacy` or `arguments.modern`, a member of an answer (`"result":…` or
//! `"error":…`); as an event stream where `arguments.stream` is true. `received` returns the last message that called
//! `record`.

use std::{
    collections::HashMap,
    convert::Infallible,
    io::{BufRead, Write},
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

use axum::{
    body::{Body, Bytes},
    extract::Path,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use futures_util::{StreamExt, stream};
use serde::Deserialize;
use serde_json::{Value, json, value::RawValue};
use tokio::sync::{Notify, mpsc};
use tokio_stream::wrappers::UnboundedReceiverStream;

static RECEIVED: Mutex<String> = Mutex::new(String::new());
static GO: Notify = Notify::const_new();
/// The streams of HTTP+SSE that are open, by the ids in their endpoints.
static OPEN: Mutex<Option<HashMap<u64, mpsc::UnboundedSender<String>>>> = Mutex::new(None);
static NEXT: AtomicU64 = AtomicU64::new(0);

/// What is to be said.
struct Said {
    /// At once.
    before: Option<String>,
    text: String,
    stream: bool,
    /// Whether one that waits may go on.
    go: bool,
}

fn main() -> anyhow::Result<()> {
    let args: Vec<_> = std::env::args().skip(1).collect();
    let modern = match args.first().map(String::as_str) {
        Some("legacy") => false,
        Some("modern") => true,
        other => anyhow::bail!("no such era: {other:?}"),
    };
    match args.get(1).map(String::as_str) {
        None => {}
        Some("http") => {
            let took = move |body: Bytes| async move { reply(modern, &body) };
            return serve("/mcp", axum::Router::new().route("/mcp", post(took)));
        }
        Some("sse") if !modern => {
            let app = axum::Router::new().route("/sse", get(open)).route("/told/{id}", post(told));
            return serve("/sse", app);
        }
        other => anyhow::bail!("no such way: {other:?}"),
    }
    let mut stdout = std::io::stdout();
    let mut waiting = Vec::new();
    for line in std::io::stdin().lock().lines() {
        let Some(said) = answer(modern, &line?)? else { continue };
        let mut lines = Vec::new();
        match said.before {
            Some(before) => {
                lines.push(before);
                waiting.push(said.text);
            }
            None => lines.push(said.text),
        }
        if said.go {
            lines.append(&mut waiting);
        }
        for line in lines {
            writeln!(stdout, "{}", line.replace('\n', " "))?;
        }
        stdout.flush()?;
    }
    Ok(())
}

#[tokio::main(flavor = "current_thread")]
async fn serve(path: &str, app: axum::Router) -> anyhow::Result<()> {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    println!("http://{}{path}", listener.local_addr()?);
    Ok(axum::serve(listener, app).await?)
}

/// Opens a stream, which tells first where to post.
async fn open() -> Response {
    let (sender, events) = mpsc::unbounded_channel();
    let id = NEXT.fetch_add(1, Ordering::Relaxed);
    let _ = sender.send(format!("event: endpoint\ndata: /told/{id}\n\n"));
    let mut open = OPEN.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let open = open.get_or_insert_default();
    open.retain(|_, sender| !sender.is_closed());
    open.insert(id, sender);
    let events = UnboundedReceiverStream::new(events).map(Ok::<_, Infallible>);
    ([(header::CONTENT_TYPE, "text/event-stream")], Body::from_stream(events)).into_response()
}

/// Takes what was posted for a stream, and answers there.
async fn told(Path(id): Path<u64>, body: Bytes) -> Response {
    let sender = {
        let open = OPEN.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        open.as_ref().and_then(|open| open.get(&id).cloned())
    };
    let Some(sender) = sender else { return StatusCode::NOT_FOUND.into_response() };
    let text = std::str::from_utf8(&body).map_err(anyhow::Error::from);
    match text.and_then(|text| answer(false, text)) {
        Ok(None) => {}
        Ok(Some(Said { before, text, go, .. })) => {
            if go {
                GO.notify_one();
            }
            let waits = before.is_some();
            let _ = before.map(|before| sender.send(event(&before)));
            tokio::spawn(async move {
                if waits {
                    GO.notified().await;
                }
                // A stream that nobody reads any more has no use for it.
                let _ = sender.send(event(&text));
            });
        }
        Err(error) => return (StatusCode::BAD_REQUEST, error.to_string()).into_response(),
    }
    StatusCode::ACCEPTED.into_response()
}

fn reply(modern: bool, body: &[u8]) -> Response {
    let text = std::str::from_utf8(body).map_err(anyhow::Error::from);
    match text.and_then(|text| answer(modern, text)) {
        Ok(None) => StatusCode::ACCEPTED.into_response(),
        Ok(Some(Said { before: None, text, stream: false, go })) => {
            if go {
                GO.notify_one();
            }
            ([(header::CONTENT_TYPE, "application/json")], text).into_response()
        }
        Ok(Some(Said { before, text, .. })) => {
            let first = stream::iter(before.clone().map(|before| event(&before)));
            let last = stream::once(async move {
                if before.is_some() {
                    GO.notified().await;
                }
                event(&text)
            });
            let events = first.chain(last).map(Ok::<_, Infallible>);
            ([(header::CONTENT_TYPE, "text/event-stream")], Body::from_stream(events))
                .into_response()
        }
        Err(error) => (StatusCode::BAD_REQUEST, error.to_string()).into_response(),
    }
}

/// A message as an event, with what readers are to ignore.
fn event(text: &str) -> String {
    let lines: Vec<_> = text.split('\n').map(|line| format!("data: {line}\n")).collect();
    format!(": comment\n\nevent: message\nunknown\n{}\n", lines.concat())
}

#[derive(Deserialize)]
struct Message<'a> {
    #[serde(borrow)]
    id: Option<&'a RawValue>,
    method: String,
    #[serde(default)]
    params: Value,
}

fn answer(modern: bool, text: &str) -> anyhow::Result<Option<Said>> {
    let message: Message<'_> = serde_json::from_str(text)?;
    let Some(id) = message.id else { return Ok(None) };
    let complete = |mut result: Value| {
        if modern {
            result["resultType"] = "complete".into();
        }
        format!("\"result\":{result}")
    };
    let arguments = &message.params["arguments"];
    let member = match (message.method.as_str(), message.params["name"].as_str()) {
        ("server/discover", _) if modern => complete(json!({
            "supportedVersions": ["2026-07-28"],
            "capabilities": { "tools": {} },
            "serverInfo": { "name": "recorder", "version": "1" },
            "ttlMs": 0,
            "cacheScope": "private",
        })),
        ("initialize", _) if !modern => complete(json!({
            "protocolVersion": message.params["protocolVersion"],
            "capabilities": { "tools": {} },
            "serverInfo": { "name": "recorder", "version": "1" },
        })),
        ("tools/list", _) => {
            let any = json!({ "type": "object" });
            let tool = |name| json!({ "name": name, "inputSchema": any });
            let tools = ["record", "received", "wait", "go", "huge"].map(tool);
            complete(json!({ "tools": tools, "ttlMs": 0, "cacheScope": "private" }))
        }
        ("tools/call", Some("record")) => {
            *RECEIVED.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) = text.to_owned();
            let told = &arguments[if modern { "modern" } else { "legacy" }];
            told.as_str().unwrap_or_default().to_owned()
        }
        ("tools/call", Some("received")) => {
            let received = RECEIVED.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
            complete(json!({ "content": [{ "type": "text", "text": *received }] }))
        }
        ("tools/call", Some("wait" | "go")) => complete(json!({ "content": [] })),
        ("tools/call", Some("huge")) => {
            let mib = usize::try_from(arguments["mib"].as_u64().unwrap_or(1))?;
            let text = "x".repeat(mib << 20);
            complete(json!({ "content": [{ "type": "text", "text": text }] }))
        }
        _ => format!("\"error\":{}", json!({ "code": -32601, "message": "no such method" })),
    };
    let waits = message.params["name"] == "wait";
    let token = &message.params["_meta"]["progressToken"];
    let before = waits.then(|| {
        let params = json!({ "progressToken": token, "progress": 1 });
        json!({ "jsonrpc": "2.0", "method": "notifications/progress", "params": params })
            .to_string()
    });
    Ok(Some(Said {
        before,
        text: format!("{{\"jsonrpc\":\"2.0\",\"id\":{id},{member}}}"),
        stream: arguments["stream"] == true,
        go: message.params["name"] == "go",
    }))
}
