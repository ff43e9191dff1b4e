//! A server whose lists are what its argument says, over standard input and output, in the legacy
//! revisions. The argument is a JSON object: `label`, and lists `tools`, `prompts`, `resources` and
//! `templates` of names or whole items. `page` says how many items a page has, `wait` names a file
//! before whose being there no list is answered. Everything that is called answers with the label
//! and the name by which it was called.

use std::{
    io::{BufRead, Write, stdin, stdout},
    path::Path,
    sync::Arc,
    thread,
    time::Duration,
};

use serde_json::{Value, json};

fn main() {
    let spec = std::env::args().nth(1).expect("what to list");
    let spec: Arc<Value> = Arc::new(serde_json::from_str(&spec).expect("a JSON object"));
    for line in stdin().lock().lines() {
        let Ok(line) = line else { return };
        let Ok(message) = serde_json::from_str::<Value>(&line) else { continue };
        if message["id"].is_null() || message["method"].is_null() {
            continue;
        }
        let spec = spec.clone();
        // A thread for each: a list that waits holds up no call.
        thread::spawn(move || {
            let mut reply = json!({ "jsonrpc": "2.0", "id": message["id"] });
            match result(&spec, message["method"].as_str().unwrap_or_default(), &message["params"])
            {
                Some(result) => reply["result"] = result,
                None => reply["error"] = json!({ "code": -32601, "message": "no such method" }),
            }
            let mut out = stdout().lock();
            // Where nobody listens any more the end of input follows.
            let _ = writeln!(out, "{reply}").and_then(|()| out.flush());
        });
    }
}

fn result(spec: &Value, method: &str, params: &Value) -> Option<Value> {
    let said = |key: &str| {
        let label = spec["label"].as_str().unwrap_or_default();
        format!("{label}:{}", params[key].as_str().unwrap_or_default())
    };
    let text = |text: String| json!({ "type": "text", "text": text });
    Some(match method {
        "initialize" => {
            let all = json!({ "tools": {}, "prompts": {}, "resources": {}, "completions": {} });
            json!({
                "protocolVersion": params["protocolVersion"],
                "capabilities": spec.get("capabilities").unwrap_or(&all),
                "serverInfo": { "name": "lister", "version": "1" },
            })
        }
        "ping" => json!({}),
        "tools/list" => list(spec, "tools", "tools", "name", params),
        "prompts/list" => list(spec, "prompts", "prompts", "name", params),
        "resources/list" => list(spec, "resources", "resources", "uri", params),
        "resources/templates/list" => {
            list(spec, "templates", "resourceTemplates", "uriTemplate", params)
        }
        "tools/call" => json!({ "content": [text(said("name"))], "isError": false }),
        "prompts/get" => {
            json!({ "messages": [{ "role": "user", "content": text(said("name")) }] })
        }
        "resources/read" => {
            json!({ "contents": [{ "uri": params["uri"], "text": said("uri") }] })
        }
        "completion/complete" => {
            let name = params["ref"]["name"].as_str().unwrap_or_default();
            json!({ "completion": { "values": [name] } })
        }
        _ => return None,
    })
}

fn list(spec: &Value, of: &str, member: &str, key: &str, params: &Value) -> Value {
    while spec["wait"].as_str().is_some_and(|path| !Path::new(path).exists()) {
        thread::sleep(Duration::from_millis(20));
    }
    let all: Vec<Value> = spec[of]
        .as_array()
        .into_iter()
        .flatten()
        .map(|item| {
            let Some(name) = item.as_str() else { return item.clone() };
            json!({ key: name, "name": name, "inputSchema": { "type": "object" } })
        })
        .collect();
    let size = spec["page"].as_u64().and_then(|n| usize::try_from(n).ok()).unwrap_or(usize::MAX);
    // The cursor to the second page is the empty text, which is one like any other.
    let begin = match params["cursor"].as_str() {
        None => 0,
        Some("") => size,
        Some(cursor) => cursor.parse().unwrap_or(0),
    };
    let end = begin.saturating_add(size).min(all.len());
    let mut result = json!({ member: all[begin.min(end)..end] });
    if end < all.len() {
        let next = if begin == 0 { String::new() } else { end.to_string() };
        result["nextCursor"] = next.into();
    }
    result
}
