//! A server that writes down all that reaches it, and takes everything: it stands for the most
//! lenient one that there is.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use axum::{
    Router,
    body::Bytes,
    extract::State,
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
    routing::post,
};
use serde_json::{Value, json};
use tokio::net::TcpListener;

/// Stands in what may reach a server, and in nothing else.
pub const CONTROL: &str = "control";

/// One of an era, over streamable HTTP.
pub struct Server {
    pub url: String,
    shared: Arc<Shared>,
}

struct Shared {
    /// Also the scheme of its resources.
    name: &'static str,
    modern: bool,
    seen: Mutex<Vec<String>>,
}

impl Server {
    /// Serves until the test ends.
    pub async fn start(name: &'static str, modern: bool) -> Self {
        let shared = Arc::new(Shared { name, modern, seen: Mutex::default() });
        let app = Router::new().route("/mcp", post(take)).with_state(shared.clone());
        let listener = TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], 0))).await.unwrap();
        let url = format!("http://{}/mcp", listener.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(listener, app).await });
        Self { url, shared }
    }

    /// What reached it so far but for what the proxy asks of itself, headers and body. Forgets it.
    pub fn reached(&self) -> Vec<String> {
        std::mem::take(&mut *self.shared.seen.lock().unwrap())
    }
}

/// What the tool `news` has its server say, spelled in all ways: the first is nothing special, all
/// others pass for what a log message is.
pub const NEWS: [&str; 6] = [
    "x/news",
    "notifications/message",
    "Notifications/Message",
    "notifications/m\\u0065ssag\\u0045",
    "notifications.message",
    "notifications/m\u{435}ssage",
];

/// What the proxy asks of itself, to know a server and its lists.
const OWN: [&str; 8] = [
    "initialize",
    "notifications/initialized",
    "server/discover",
    "tools/list",
    "prompts/list",
    "resources/list",
    "resources/templates/list",
    "subscriptions/listen",
];

async fn take(State(shared): State<Arc<Shared>>, headers: HeaderMap, body: Bytes) -> Response {
    let message: Value = serde_json::from_slice(&body).unwrap_or_default();
    let method = message["method"].as_str().unwrap_or_default();
    let watches = message.pointer("/params/notifications/resourceSubscriptions");
    let watches = watches.and_then(Value::as_array).is_some_and(|uris| !uris.is_empty());
    if !OWN.contains(&method) || watches {
        let mut text = String::new();
        for (name, value) in headers.iter().filter(|(name, _)| name.as_str().starts_with("mcp-")) {
            text.push_str(&format!("{name}: {}\n", String::from_utf8_lossy(value.as_bytes())));
        }
        text.push_str(&String::from_utf8_lossy(&body));
        shared.seen.lock().unwrap().push(text);
    }
    if message.get("id").is_none() {
        return StatusCode::ACCEPTED.into_response();
    }
    let mut result = shared.answer(method, &message["params"]);
    if shared.modern {
        let object = result.as_object_mut().unwrap();
        for (name, value) in [
            ("resultType", json!("complete")),
            ("ttlMs", json!(60_000)),
            ("cacheScope", json!("private")),
        ] {
            object.entry(name).or_insert(value);
        }
    }
    let answer = json!({ "jsonrpc": "2.0", "id": message["id"], "result": result }).to_string();
    if message["params"]["name"] == "news" {
        let said = |method: &&str| {
            let params = r#"{"level":"info","data":"forbidden"}"#;
            format!("data: {{\"jsonrpc\":\"2.0\",\"method\":\"{method}\",\"params\":{params}}}\n\n")
        };
        let news: String = NEWS.iter().map(said).collect();
        let stream = format!("{news}data: {answer}\n\n");
        return ([(header::CONTENT_TYPE, "text/event-stream")], stream).into_response();
    }
    ([(header::CONTENT_TYPE, "application/json")], answer).into_response()
}

impl Shared {
    fn answer(&self, method: &str, params: &Value) -> Value {
        match method {
            "initialize" if !self.modern => json!({
                "protocolVersion": params["protocolVersion"],
                "capabilities": self.capabilities(),
                "serverInfo": { "name": self.name, "version": "1" },
            }),
            "server/discover" if self.modern => json!({
                "supportedVersions": ["2026-07-28"],
                "capabilities": self.capabilities(),
                "serverInfo": { "name": self.name, "version": "1" },
            }),
            "tools/list" => json!({ "tools": tools() }),
            "prompts/list" => json!({ "prompts": [
                { "name": "greet", "arguments": [{ "name": "topic" }] },
                { "name": "secret" }, { "name": "hidden" },
            ] }),
            "resources/list" => {
                let of = |of: &str| json!({ "uri": self.uri(of), "name": of });
                json!({ "resources": [of("open/1"), of("secret/1")] })
            }
            "resources/templates/list" => {
                let of = |of: &str| json!({ "uriTemplate": self.uri(of), "name": of });
                json!({ "resourceTemplates": [of("open/{id}"), of("secret/{id}")] })
            }
            "tools/call" => self.call(params),
            "prompts/get" => json!({ "messages": [] }),
            "resources/read" => json!({ "contents": [] }),
            "completion/complete" => json!({ "completion": { "values": [] } }),
            "tasks/get" | "tasks/cancel" => {
                task(params["taskId"].as_str().unwrap_or_default(), self.modern)
            }
            _ => json!({ "content": [] }),
        }
    }

    fn call(&self, params: &Value) -> Value {
        let name = params["name"].as_str().unwrap_or_default();
        let mark = params["arguments"]["mark"].as_str().unwrap_or_default();
        match name {
            "job" if self.modern => {
                let mut task = task(&format!("task-{mark}"), true);
                task["resultType"] = "task".into();
                task
            }
            "job" => json!({ "task": task(&format!("task-{mark}"), false) }),
            "ask" if self.modern && params.get("inputResponses").is_none() => json!({
                "resultType": "input_required",
                "inputRequests": { "who": { "method": "elicitation/create", "params": {
                    "mode": "form", "message": "Who?",
                    "requestedSchema": { "type": "object", "properties": {} },
                } } },
                "requestState": format!("state of {mark}"),
            }),
            _ => json!({ "content": [{ "type": "text", "text": "done" }] }),
        }
    }

    fn capabilities(&self) -> Value {
        let mut capabilities = json!({
            "tools": {}, "prompts": {}, "resources": { "subscribe": true }, "completions": {},
        });
        if self.modern {
            capabilities["extensions"] = json!({ "io.modelcontextprotocol/tasks": {} });
        } else {
            capabilities["tasks"] =
                json!({ "list": {}, "cancel": {}, "requests": { "tools": { "call": {} } } });
        }
        capabilities
    }

    fn uri(&self, of: &str) -> String {
        format!("{}://{of}", self.name)
    }
}

fn task(id: &str, modern: bool) -> Value {
    let mut task = json!({
        "taskId": id,
        "status": "working",
        "createdAt": "2026-08-01T12:00:00Z",
        "lastUpdatedAt": "2026-08-01T12:00:00Z",
    });
    task[if modern { "ttlMs" } else { "ttl" }] = 60_000.into();
    task
}

/// `shred` says nothing of itself, so it is destructive.
fn tools() -> Value {
    let text = json!({ "type": "string" });
    let region = json!({ "type": "string", "x-mcp-header": "Region" });
    let tool = |name: &str, properties: Value| {
        let mut tool = json!({
            "name": name, "inputSchema": { "type": "object", "properties": properties },
        });
        if name == "say" {
            tool["inputSchema"]["$id"] = "urn:say".into();
            tool["inputSchema"]["$defs"] = json!({
                "Where": { "properties": { "path": text } },
                "Opts": { "properties": { "force": text } },
                "Own": { "$id": "own.json", "$defs": { "Opts": { "properties": { "skip": text } } } },
            });
        }
        if name != "shred" {
            tool["annotations"] = json!({ "readOnlyHint": true });
        }
        tool
    };
    json!([
        tool("look", json!({ "path": text })),
        tool("fetch", json!({ "url": text })),
        tool(
            "say",
            json!({
                "word": text, "region": region,
                "where": { "anyOf": [{ "$ref": "#/$defs/Where" }, { "type": "null" }] },
                "opts": { "$ref": "urn:say#/$defs/Opts" },
                "own": { "$ref": "own.json#/$defs/Opts" },
                "remote": { "$ref": "https://elsewhere.example/opts.json" },
            })
        ),
        tool("wipe", json!({})),
        tool("wipe/all", json!({})),
        tool("shred", json!({})),
        tool("vip", json!({})),
        tool("news", json!({})),
        tool("job", json!({})),
        tool("ask", json!({ "word": text })),
    ])
}
