//! Capabilities of the client, and its answers to server requests.

use serde_json::{Value, json};

use super::{MODERN, Wrong};

/// Capabilities of the client in the form of its revision.
pub fn capabilities(revision: &str) -> Value {
    let mut capabilities = json!({ "sampling": {}, "roots": {} });
    if revision != MODERN {
        capabilities["roots"] = json!({ "listChanged": true });
    }
    match revision {
        "2025-06-18" => capabilities["elicitation"] = json!({}),
        "2025-11-25" | MODERN => capabilities["elicitation"] = json!({ "form": {}, "url": {} }),
        _ => {}
    }
    if revision == MODERN {
        capabilities["extensions"] = json!({ "io.modelcontextprotocol/tasks": {} });
    }
    capabilities
}

/// The client's answer to a server request.
///
/// # Errors
/// An error if the client's revision has no such server request.
pub fn answer(revision: &str, method: &str, params: &Value) -> Result<Value, Wrong> {
    match method {
        "ping" if revision != MODERN => Ok(json!({})),
        "sampling/createMessage" if params["messages"][0]["content"]["text"].is_string() => {
            let content = json!({ "type": "text", "text": format!("42 in {revision}") });
            Ok(json!({
                "role": "assistant", "content": content, "model": "scripted", "stopReason": "endTurn",
            }))
        }
        "roots/list" => {
            Ok(json!({ "roots": [{ "uri": format!("file:///{revision}"), "name": "root" }] }))
        }
        "elicitation/create" if revision < "2025-06-18" => {
            Err(format!("{revision} has no {method}"))
        }
        "elicitation/create" if params["mode"] == "url" => {
            if revision < "2025-11-25" || !params["url"].is_string() {
                return Err(format!("{method} in {revision}: {params}"));
            }
            Ok(json!({ "action": "accept" }))
        }
        "elicitation/create" if params["requestedSchema"]["properties"].is_object() => {
            Ok(json!({ "action": "accept", "content": { "name": "Ada" } }))
        }
        other => Err(format!("{revision} has no answer to {other} {params}")),
    }
}
