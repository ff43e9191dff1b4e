//! The server behind the calls: MCP 2025-11-25 with a tool that returns its text. It does as little
//! as a server can, so that it does not hide what a proxy adds.

use std::{
    convert::Infallible,
    io::{BufRead, Write},
};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::{
    Request, Response, StatusCode,
    body::Incoming,
    header::{CONTENT_TYPE, HeaderValue},
    service::service_fn,
};
use serde::Deserialize;
use serde_json::{json, value::RawValue};

use crate::{REVISION, floor::accept};

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

/// The tools: `echo`, and others that are only listed.
fn tools(count: usize) -> Vec<serde_json::Value> {
    let tool = |at: usize| {
        json!({
            "name": if at == 0 { "echo".to_owned() } else { format!("tool-{at}") },
            "description": "Returns its text",
            "annotations": { "readOnlyHint": true, "openWorldHint": false },
            "inputSchema": {
                "type": "object",
                "properties": { "text": { "type": "string", "maxLength": 1 << 20 } },
                "required": ["text"],
                "additionalProperties": false,
            },
        })
    };
    (0..count).map(tool).collect()
}

/// The response to a message; none to a notification.
fn answer(text: &[u8], count: usize) -> Option<String> {
    let message: Message<'_> = match serde_json::from_slice(text) {
        Ok(message) => message,
        Err(error) => {
            let error = json!({ "code": -32700, "message": error.to_string() });
            return Some(json!({ "jsonrpc": "2.0", "id": null, "error": error }).to_string());
        }
    };
    let id = message.id?.get();
    let echoed = message
        .params
        .as_ref()
        .filter(|params| params.name.as_deref() == Some("echo"))
        .and_then(|params| params.arguments.as_ref()?.text);
    let result = match (message.method.as_str(), echoed) {
        ("tools/call", Some(echoed)) => {
            format!("{{\"content\":[{{\"type\":\"text\",\"text\":{}}}]}}", echoed.get())
        }
        ("initialize", _) => json!({
            "protocolVersion": REVISION,
            "capabilities": { "tools": {} },
            "serverInfo": { "name": "echo", "version": "1" },
        })
        .to_string(),
        ("tools/list", _) => json!({ "tools": tools(count) }).to_string(),
        ("ping", _) => "{}".to_owned(),
        _ => {
            let error = "{\"code\":-32601,\"message\":\"no such method or tool\"}";
            return Some(format!("{{\"jsonrpc\":\"2.0\",\"id\":{id},\"error\":{error}}}"));
        }
    };
    Some(format!("{{\"jsonrpc\":\"2.0\",\"id\":{id},\"result\":{result}}}"))
}

/// Serves over streamable HTTP and prints the port.
///
/// # Errors
/// If no port can be opened.
pub async fn http(tools: usize) -> anyhow::Result<()> {
    accept(service_fn(move |request: Request<Incoming>| async move {
        let mut response = Response::new(Full::default());
        match request.into_body().collect().await {
            Ok(body) => match answer(&body.to_bytes(), tools) {
                Some(answer) => {
                    *response.body_mut() = Full::new(Bytes::from(answer));
                    let json = HeaderValue::from_static("application/json");
                    response.headers_mut().insert(CONTENT_TYPE, json);
                }
                None => *response.status_mut() = StatusCode::ACCEPTED,
            },
            Err(_) => *response.status_mut() = StatusCode::BAD_REQUEST,
        }
        Ok::<_, Infallible>(response)
    }))
    .await
}

/// Serves over standard input and output.
///
/// # Errors
/// If the output is closed.
pub fn stdio() -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    for line in std::io::stdin().lock().lines() {
        if let Some(answer) = answer(line?.as_bytes(), 1) {
            writeln!(out, "{answer}")?;
            out.flush()?;
        }
    }
    Ok(())
}
