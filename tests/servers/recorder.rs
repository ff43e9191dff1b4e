//! A server that answers what it is told to, and tells what it received, byte for byte.
//!
//! `recorder legacy|modern` speaks over standard input and output; with `http` behind it, over
//! streamable HTTP on loopback, and writes its URL to standard output. Its tool `record` answers
//! with the text of `arguments.legacy` or `arguments.modern`, a member of an answer (`"result":…` or
//! `"error":…`); as an event stream where `arguments.stream` is true. `received` returns the last message that called
//! `record`.

use std::{
    convert::Infallible,
    io::{BufRead, Write},
    sync::Mutex,
};

use axum::{
    body::{Body, Bytes},
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::post,
};
use futures_util::{StreamExt, stream};
use serde::Deserialize;
use serde_json::{Value, json, value::RawValue};
use tokio::sync::Notify;

static RECEIVED: Mutex<String> = Mutex::new(String::new());
static GO: Notify = Notify::const_new();

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
    if args.get(1).is_some_and(|way| way == "http") {
        return serve(modern);
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
async fn serve(modern: bool) -> anyhow::Result<()> {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    println!("http://{}/mcp", listener.local_addr()?);
    let took = move |body: Bytes| async move { reply(modern, &body) };
    Ok(axum::serve(listener, axum::Router::new().route("/mcp", post(took))).await?)
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
