//! The server behind the calls: MCP 2025-11-25 with one tool that returns its text. It does as
//! little as a server can, so what a proxy adds is not hidden behind it.

use std::io::{BufRead, Write};

use anyhow::Context as _;
use axum::{
    Router,
    body::Bytes,
    extract::DefaultBodyLimit,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::post,
};
use serde::Deserialize;
use serde_json::{json, value::RawValue};

use crate::REVISION;

#[derive(Deserialize)]
struct Message<'a> {
    #[serde(borrow)]
    id: Option<&'a RawValue>,
    method: String,
    params: Option<Params<'a>>,
}

#[derive(Deserialize)]
struct Params<'a> {
    name: Option<String>,
    #[serde(borrow)]
    arguments: Option<Arguments<'a>>,
}

#[derive(Deserialize)]
struct Arguments<'a> {
    #[serde(borrow)]
    text: Option<&'a RawValue>,
}

/// The answer to a message; none to a notification.
fn answer(text: &[u8]) -> Option<String> {
    let message: Message<'_> = match serde_json::from_slice(text) {
        Ok(message) => message,
        Err(error) => {
            let error = json!({ "code": -32700, "message": error.to_string() });
            return Some(json!({ "jsonrpc": "2.0", "id": null, "error": error }).to_string());
        }
    };
    let id = message.id?.get();
    let said = message
        .params
        .as_ref()
        .filter(|params| params.name.as_deref() == Some("echo"))
        .and_then(|params| params.arguments.as_ref()?.text);
    let result = match (message.method.as_str(), said) {
        ("tools/call", Some(said)) => {
            format!("{{\"content\":[{{\"type\":\"text\",\"text\":{}}}]}}", said.get())
        }
        ("initialize", _) => json!({
            "protocolVersion": REVISION,
            "capabilities": { "tools": {} },
            "serverInfo": { "name": "echo", "version": "1" },
        })
        .to_string(),
        ("tools/list", _) => json!({ "tools": [{
            "name": "echo",
            "description": "Returns its text",
            "annotations": { "readOnlyHint": true, "openWorldHint": false },
            "inputSchema": {
                "type": "object",
                "properties": { "text": { "type": "string", "maxLength": 1 << 20 } },
                "required": ["text"],
                "additionalProperties": false,
            },
        }] })
        .to_string(),
        ("ping", _) => "{}".to_owned(),
        _ => {
            let error = "{\"code\":-32601,\"message\":\"no such method or tool\"}";
            return Some(format!("{{\"jsonrpc\":\"2.0\",\"id\":{id},\"error\":{error}}}"));
        }
    };
    Some(format!("{{\"jsonrpc\":\"2.0\",\"id\":{id},\"result\":{result}}}"))
}

async fn respond(text: Bytes) -> Response {
    match answer(&text) {
        Some(answer) => ([(header::CONTENT_TYPE, "application/json")], answer).into_response(),
        None => StatusCode::ACCEPTED.into_response(),
    }
}

/// Serves over streamable HTTP and prints the port.
pub async fn http() -> anyhow::Result<()> {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    println!("{}", listener.local_addr()?.port());
    let app = Router::new().route("/mcp", post(respond)).layer(DefaultBodyLimit::disable());
    axum::serve(
        axum::serve::ListenerExt::tap_io(listener, |stream| {
            let _ = stream.set_nodelay(true);
        }),
        app,
    )
    .await
    .context("serving")
}

/// Serves over standard input and output.
pub fn stdio() -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    for line in std::io::stdin().lock().lines() {
        if let Some(answer) = answer(line?.as_bytes()) {
            writeln!(out, "{answer}")?;
            out.flush()?;
        }
    }
    Ok(())
}
