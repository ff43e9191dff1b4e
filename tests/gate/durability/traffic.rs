//! Calls that can be told apart by everybody who sees them, and a server that remembers them.

use std::{
    collections::{BTreeMap, HashSet},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use axum::{body::Bytes, routing::post};
use serde_json::{Value, json};
use tokio::{net::TcpListener, sync::watch};

use crate::support::{
    agent::{LEGACY, MODERN},
    gate::reqwest_client,
    in_time,
};

/// A server of this process, which outlives every proxy before it.
#[derive(Clone)]
pub struct Witness(Arc<Seen>);

struct Seen {
    marks: Mutex<HashSet<String>>,
    /// Messages of any kind.
    messages: AtomicU64,
    /// Answers wait while this is set.
    held: watch::Sender<bool>,
    /// How many do.
    waiting: watch::Sender<usize>,
}

impl Witness {
    /// Serves until the test ends. Returns the URL, too.
    pub async fn serve() -> (Self, String) {
        let (held, waiting) = (watch::Sender::new(false), watch::Sender::new(0));
        let witness = Self(Arc::new(Seen {
            marks: Mutex::default(),
            messages: AtomicU64::new(0),
            held,
            waiting,
        }));
        let seen = witness.clone();
        let answer = move |body: Bytes| async move { seen.answer(&body).await };
        let app = axum::Router::new().route("/mcp", post(answer));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/mcp", listener.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(listener, app).await });
        (witness, url)
    }

    async fn answer(&self, body: &[u8]) -> axum::response::Response {
        use axum::{Json, http::StatusCode, response::IntoResponse as _};
        let message: Value = serde_json::from_slice(body).unwrap();
        self.0.messages.fetch_add(1, Ordering::Relaxed);
        let result = match message["method"].as_str().unwrap_or_default() {
            "initialize" => json!({
                "protocolVersion": LEGACY,
                "capabilities": { "tools": {} },
                "serverInfo": { "name": "witness", "version": "1" },
            }),
            "tools/list" => json!({ "tools": [{
                "name": "note",
                "inputSchema": { "type": "object", "properties": { "mark": { "type": "string" } } },
            }] }),
            "tools/call" => {
                let mark = message["params"]["arguments"]["mark"].as_str().unwrap();
                self.marks().insert(mark.into());
                self.0.waiting.send_modify(|waiting| *waiting += 1);
                // The sender is in this server.
                let _ = self.0.held.subscribe().wait_for(|held| !held).await;
                self.0.waiting.send_modify(|waiting| *waiting -= 1);
                json!({ "content": [{ "type": "text", "text": mark }] })
            }
            _ => json!({}),
        };
        if message.get("id").is_none() {
            return StatusCode::ACCEPTED.into_response();
        }
        Json(json!({ "jsonrpc": "2.0", "id": message["id"], "result": result })).into_response()
    }

    /// How many messages of any kind came.
    pub fn messages(&self) -> u64 {
        self.0.messages.load(Ordering::Relaxed)
    }

    /// The marks of all calls that came.
    pub fn seen(&self) -> HashSet<String> {
        self.marks().clone()
    }

    fn marks(&self) -> MutexGuard<'_, HashSet<String>> {
        self.0.marks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Answers no call until it is released.
    pub fn hold(&self) {
        self.0.held.send_replace(true);
    }

    pub fn release(&self) {
        self.0.held.send_replace(false);
    }

    /// Waits until a call waits for its answer.
    pub async fn holding(&self) {
        let mut waiting = self.0.waiting.subscribe();
        // The sender is in this server.
        let _ = in_time("a call", waiting.wait_for(|waiting| *waiting > 0)).await;
    }
}

/// Result of a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CallOutcome {
    /// The server's answer.
    Answer,
    /// A refusal with this code.
    Refusal(String),
    /// Nothing: the proxy is gone.
    Nothing,
}

/// A client over HTTP, without a session.
#[derive(Clone)]
pub struct Caller {
    http: reqwest::Client,
    url: String,
}

static NEXT: AtomicU64 = AtomicU64::new(1);

impl Caller {
    pub fn new(url: &str) -> Self {
        Self { http: reqwest_client(), url: url.into() }
    }

    /// Calls the witness' tool. The mark is the call's trace id, too, so that it is on record.
    pub async fn call(&self) -> (String, CallOutcome) {
        // As a trace id: 32 hex digits, not all of them zero.
        let id = NEXT.fetch_add(1, Ordering::Relaxed);
        let mark = format!("{:016x}{id:016x}", u64::from(std::process::id()));
        let message = json!({
            "jsonrpc": "2.0", "id": id, "method": "tools/call",
            "params": {
                "name": "witness__note",
                "arguments": { "mark": mark },
                "_meta": {
                    "traceparent": format!("00-{mark}-00f067aa0ba902b7-01"),
                    "io.modelcontextprotocol/protocolVersion": MODERN,
                    "io.modelcontextprotocol/clientCapabilities": {},
                    "io.modelcontextprotocol/clientInfo": { "name": "caller", "version": "1" },
                },
            },
        });
        let post = self
            .http
            .post(&self.url)
            .header("content-type", "application/json")
            .header("accept", "application/json, text/event-stream")
            .header("mcp-protocol-version", MODERN)
            .header("mcp-method", "tools/call")
            .header("mcp-name", "witness__note")
            .body(message.to_string());
        let came = in_time("an answer or the end of the proxy", async {
            // A torn answer is none: the client did not see it.
            let Ok(text) = async { post.send().await?.text().await }.await else {
                return CallOutcome::Nothing;
            };
            let Some(answer) = message_of(&text) else { return CallOutcome::Nothing };
            match answer["error"]["data"]["code"].as_str() {
                Some(code) => CallOutcome::Refusal(code.into()),
                None => {
                    assert_eq!(answer["result"]["content"][0]["text"], *mark, "{answer:#}");
                    CallOutcome::Answer
                }
            }
        });
        let came = came.await;
        (mark, came)
    }
}

/// The one message of an answer, as JSON or as an event.
fn message_of(text: &str) -> Option<Value> {
    let event = text.lines().filter_map(|line| line.strip_prefix("data:")).next_back();
    serde_json::from_str(event.unwrap_or(text).trim()).ok()
}

/// What is on record of each call, by its mark: kinds of records, oldest first.
pub fn marks(records: &[Value]) -> BTreeMap<String, Vec<String>> {
    let mut marks: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for record in records {
        if let (Some(mark), Some(kind)) = (record["trace"].as_str(), record["record"].as_str()) {
            marks.entry(mark.into()).or_default().push(kind.into());
        }
    }
    marks
}
