//! A client of any revision over any transport. It records all notifications and answers server
//! requests.

mod answers;
mod inbox;

use std::{
    collections::HashMap,
    fmt,
    path::Path,
    process::Stdio,
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use futures_util::StreamExt;
use serde_json::{Value, json};
use sse_stream::SseStream;
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    process::{Child, Command},
    sync::{mpsc, oneshot},
    task::AbortHandle,
};

use self::{
    answers::{answer, capabilities},
    inbox::{Inbox, inbox, read, take_text},
};
use super::gate::reqwest_client;

/// The revisions, oldest first. Their names sort by age.
pub const REVISIONS: [&str; 5] =
    ["2024-11-05", "2025-03-26", "2025-06-18", "2025-11-25", "2026-07-28"];
pub const MODERN: &str = "2026-07-28";

/// Timeout of all waits of the client.
const PATIENCE: Duration = Duration::from_secs(20);

/// Transport between the client and the proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Transport {
    Http,
    Stdio,
    /// HTTP+SSE, only in 2024-11-05.
    Sse,
}

impl Transport {
    /// Transports of a revision.
    pub fn of(revision: &str) -> [Self; 2] {
        [if revision == REVISIONS[0] { Self::Sse } else { Self::Http }, Self::Stdio]
    }
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Http => "HTTP",
            Self::Stdio => "stdio",
            Self::Sse => "HTTP+SSE",
        })
    }
}

/// Text of an error or violation.
pub type Wrong = String;

/// A client of one revision.
pub struct Client {
    pub revision: &'static str,
    wire: Wire,
    next: AtomicU64,
    inbox: Arc<Inbox>,
    /// The result of `initialize` or of `server/discover`.
    pub greeting: Value,
}

enum Wire {
    Http {
        http: reqwest::Client,
        url: String,
        session: OnceLock<String>,
        /// Streams of the requests in flight, which a modern client closes to cancel.
        streams: Mutex<HashMap<u64, AbortHandle>>,
    },
    Sse {
        http: reqwest::Client,
        endpoint: String,
    },
    Stdio {
        lines: mpsc::UnboundedSender<String>,
        _child: Child,
    },
}

impl Client {
    /// Connects over HTTP and does the handshake.
    ///
    /// # Errors
    /// The reason why there is no connection.
    pub async fn http(revision: &'static str, url: &str) -> Result<Arc<Self>, Wrong> {
        let (inbox, asked) = inbox(revision);
        let wire = Wire::Http {
            http: reqwest_client(),
            url: url.into(),
            session: OnceLock::new(),
            streams: Mutex::default(),
        };
        Self::greet(revision, wire, inbox, asked).await
    }

    /// Connects over HTTP+SSE and does the handshake.
    ///
    /// # Errors
    /// The reason why there is no connection.
    pub async fn sse(revision: &'static str, url: &str) -> Result<Arc<Self>, Wrong> {
        let (inbox, asked) = inbox(revision);
        let http = reqwest_client();
        let get = http.get(url).header("accept", "text/event-stream").send();
        let reply = in_time("the stream", get).await?.map_err(|e| e.to_string())?;
        let status = reply.status();
        if !status.is_success() {
            let body = reply.text().await.unwrap_or_default();
            return Err(format!("GET {url}: {status} {body}"));
        }
        let mut events = SseStream::from_bytes_stream(reply.bytes_stream());
        let first = in_time("the endpoint", events.next()).await?;
        let endpoint = match first {
            Some(Ok(event)) if event.event.as_deref() == Some("endpoint") => event.data,
            other => return Err(format!("no endpoint first: {other:?}")),
        };
        let endpoint = reqwest::Url::parse(url)
            .and_then(|url| url.join(endpoint.as_deref().unwrap_or_default()))
            .map_err(|e| e.to_string())?;
        let stream = inbox.clone();
        tokio::spawn(async move {
            while let Some(Ok(event)) = events.next().await {
                if let Some(data) = event.data.filter(|data| !data.is_empty()) {
                    take_text(&stream, &data);
                }
            }
        });
        Self::greet(revision, Wire::Sse { http, endpoint: endpoint.into() }, inbox, asked).await
    }

    /// Starts a program with the stdio transport, and does the handshake.
    ///
    /// # Errors
    /// The reason why there is no connection.
    pub async fn stdio(
        revision: &'static str,
        program: &Path,
        args: &[&str],
    ) -> Result<Arc<Self>, Wrong> {
        let (inbox, asked) = inbox(revision);
        let mut command = Command::new(program);
        command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.kill_on_drop(true).spawn().map_err(|e| e.to_string())?;
        let (stdin, stdout) = (child.stdin.take(), child.stdout.take());
        let stderr = child.stderr.take();
        let (Some(mut stdin), Some(stdout), Some(stderr)) = (stdin, stdout, stderr) else {
            return Err("no pipes".into());
        };
        let (lines, mut to_write) = mpsc::unbounded_channel::<String>();
        tokio::spawn(async move {
            while let Some(line) = to_write.recv().await {
                if stdin.write_all(line.as_bytes()).await.is_err() || stdin.flush().await.is_err() {
                    return;
                }
            }
        });
        let read = inbox.clone();
        tokio::spawn(async move {
            let mut lines = BufReader::new(stdout).lines();
            while let Ok(Some(line)) = lines.next_line().await {
                take_text(&read, &line);
            }
        });
        let errors = inbox.clone();
        tokio::spawn(async move {
            let mut lines = BufReader::new(stderr).lines();
            while let Ok(Some(line)) = lines.next_line().await {
                errors.wrong(format!("standard error: {line}"));
            }
        });
        Self::greet(revision, Wire::Stdio { lines, _child: child }, inbox, asked).await
    }

    async fn greet(
        revision: &'static str,
        wire: Wire,
        inbox: Arc<Inbox>,
        mut asked: mpsc::UnboundedReceiver<Value>,
    ) -> Result<Arc<Self>, Wrong> {
        let mut client =
            Self { revision, wire, next: AtomicU64::new(1), inbox, greeting: Value::Null };
        client.greeting = if revision == MODERN {
            client.ask("server/discover", json!({})).await?
        } else {
            let hello = json!({
                "protocolVersion": revision,
                "capabilities": capabilities(revision),
                "clientInfo": { "name": "scripted", "version": revision },
            });
            let greeting = client.ask("initialize", hello).await?;
            if greeting["protocolVersion"] != revision {
                return Err(format!("another revision than {revision}: {greeting}"));
            }
            greeting
        };
        let client = Arc::new(client);
        if revision != MODERN {
            client.tell("notifications/initialized", json!({})).await?;
            client.open_standalone_stream().await?;
        }
        let answering = Arc::downgrade(&client);
        tokio::spawn(async move {
            while let Some(request) = asked.recv().await {
                let Some(client) = answering.upgrade() else { return };
                let method = request["method"].as_str().unwrap_or_default();
                let mut message = json!({ "jsonrpc": "2.0", "id": request["id"] });
                match answer(client.revision, method, &request["params"]) {
                    Ok(result) => message["result"] = result,
                    Err(wrong) => {
                        message["error"] = json!({ "code": -32601, "message": wrong });
                        client.inbox.wrong(wrong);
                    }
                }
                if let Err(wrong) = client.send(message, None).await {
                    client.inbox.wrong(wrong);
                }
            }
        });
        Ok(client)
    }

    /// Opens the standalone stream, if the transport has one.
    async fn open_standalone_stream(&self) -> Result<(), Wrong> {
        let Wire::Http { http, url, session, .. } = &self.wire else { return Ok(()) };
        let mut get = http.get(url).header("accept", "text/event-stream");
        if let Some(session) = session.get() {
            get = get.header("mcp-session-id", session);
        }
        get = get.header("mcp-protocol-version", self.revision);
        let reply = in_time("the GET stream", get.send()).await?.map_err(|e| e.to_string())?;
        // A server may have no standalone stream.
        if reply.status() == 405 {
            return Ok(());
        }
        if !reply.status().is_success() {
            return Err(format!("GET {url}: {}", reply.status()));
        }
        let inbox = self.inbox.clone();
        tokio::spawn(async move {
            let mut events = SseStream::from_bytes_stream(reply.bytes_stream());
            while let Some(Ok(event)) = events.next().await {
                if let Some(data) = event.data.filter(|data| !data.is_empty()) {
                    take_text(&inbox, &data);
                }
            }
        });
        Ok(())
    }

    /// Sends a request until it has a result. Answers the server's input requests in the form of
    /// the revision.
    ///
    /// # Errors
    /// The error of the response, or of a missing response.
    pub async fn ask(&self, method: &str, params: Value) -> Result<Value, Wrong> {
        let mut asked = params.clone();
        // Servers need only a few rounds of input.
        for _ in 0..4 {
            let (_, awaited) = self.begin(method, asked.clone()).await?;
            let result = finish(method, awaited).await?;
            self.check(method, &result);
            if result["resultType"] != "input_required" {
                return Ok(result);
            }
            let questions = result["inputRequests"].as_object().cloned().unwrap_or_default();
            let mut answers = json!({});
            for (key, question) in questions {
                let method = question["method"].as_str().unwrap_or_default();
                answers[key] = answer(self.revision, method, &question["params"])?;
            }
            asked = params.clone();
            asked["inputResponses"] = answers;
            if let Some(state) = result.get("requestState") {
                asked["requestState"] = state.clone();
            }
        }
        Err(format!("{method}: too many questions"))
    }

    /// Sends a request, and returns the receiver of its response.
    ///
    /// # Errors
    /// An error if the request could not be sent.
    pub async fn begin(
        &self,
        method: &str,
        mut params: Value,
    ) -> Result<(u64, oneshot::Receiver<Value>), Wrong> {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        if self.revision == MODERN {
            let meta = &mut params["_meta"];
            meta["io.modelcontextprotocol/protocolVersion"] = MODERN.into();
            meta["io.modelcontextprotocol/clientCapabilities"] = capabilities(MODERN);
            meta["io.modelcontextprotocol/clientInfo"] =
                json!({ "name": "scripted", "version": MODERN });
        }
        let (sender, receiver) = oneshot::channel();
        lock(&self.inbox.waiting).insert(id, sender);
        let message = json!({ "jsonrpc": "2.0", "id": id, "method": method, "params": params });
        self.send(message, Some(id)).await?;
        Ok((id, receiver))
    }

    /// Sends a notification.
    ///
    /// # Errors
    /// An error if the message could not be sent.
    pub async fn tell(&self, method: &str, params: Value) -> Result<(), Wrong> {
        let message = json!({ "jsonrpc": "2.0", "method": method, "params": params });
        self.send(message, None).await
    }

    /// Cancels a request in the form of the revision and the transport.
    ///
    /// # Errors
    /// An error if the message could not be sent.
    pub async fn cancel(&self, id: u64) -> Result<(), Wrong> {
        if self.revision == MODERN
            && let Wire::Http { streams, .. } = &self.wire
        {
            if let Some(stream) = lock(streams).remove(&id) {
                stream.abort();
            }
            return Ok(());
        }
        self.tell("notifications/cancelled", json!({ "requestId": id })).await
    }

    /// Waits for a notification that matches.
    ///
    /// # Errors
    /// The messages that came instead.
    pub async fn heard(
        &self,
        what: &str,
        matches: impl Fn(&Value) -> bool,
    ) -> Result<Value, Wrong> {
        let mut heard = self.inbox.heard.subscribe();
        let there = heard.wait_for(|heard| heard.iter().any(&matches));
        if let Ok(Ok(heard)) = tokio::time::timeout(PATIENCE, there).await
            && let Some(found) = heard.iter().find(|message| matches(message))
        {
            return Ok(found.clone());
        }
        Err(format!("waited in vain for {what}; heard {}", Value::from(self.all_heard())))
    }

    /// The notifications so far.
    pub fn all_heard(&self) -> Vec<Value> {
        self.inbox.heard.borrow().clone()
    }

    /// Violations of the revision's rules since the last call.
    pub fn wrongs(&self) -> Vec<Wrong> {
        std::mem::take(&mut *lock(&self.inbox.wrongs))
    }

    /// Checks a result against the rules of the revision.
    fn check(&self, method: &str, result: &Value) {
        let kind = result.get("resultType");
        if self.revision == MODERN {
            if kind.is_none() {
                self.inbox.wrong(format!("{method}: no `resultType`: {result}"));
            }
            let cached = method.ends_with("/list") || method == "resources/read";
            if cached
                && kind.is_some_and(|kind| kind == "complete")
                && !(result["ttlMs"].is_u64() && result["cacheScope"].is_string())
            {
                self.inbox.wrong(format!("{method}: no `ttlMs` and `cacheScope`: {result}"));
            }
            return;
        }
        for member in ["resultType", "ttlMs", "cacheScope", "inputRequests", "requestState"] {
            if result.get(member).is_some() {
                self.inbox.wrong(format!("{method}: {member} in {}: {result}", self.revision));
            }
        }
    }

    async fn send(&self, message: Value, id: Option<u64>) -> Result<(), Wrong> {
        match &self.wire {
            Wire::Stdio { lines, .. } => {
                lines.send(format!("{message}\n")).map_err(|_| "the pipe is closed".into())
            }
            Wire::Sse { http, endpoint } => {
                let post = http.post(endpoint).header("content-type", "application/json");
                let sent = post.body(message.to_string()).send();
                let reply = in_time("the POST", sent).await?.map_err(|e| e.to_string())?;
                let status = reply.status();
                if status != 202 && status != 200 {
                    let body = reply.text().await.unwrap_or_default();
                    return Err(format!("POST {endpoint}: {status} {body}"));
                }
                Ok(())
            }
            Wire::Http { .. } => self.post(message, id).await,
        }
    }

    async fn post(&self, message: Value, id: Option<u64>) -> Result<(), Wrong> {
        let Wire::Http { http, url, session, streams } = &self.wire else { return Ok(()) };
        let mut post = http
            .post(url)
            .header("content-type", "application/json")
            .header("accept", "application/json, text/event-stream");
        if let Some(session) = session.get() {
            post = post.header("mcp-session-id", session);
        }
        let method = message["method"].as_str().unwrap_or_default().to_owned();
        if self.revision == MODERN {
            post = post.header("mcp-protocol-version", MODERN).header("mcp-method", &method);
            let params = &message["params"];
            let name = match method.as_str() {
                "tools/call" | "prompts/get" => params["name"].as_str(),
                "resources/read" => params["uri"].as_str(),
                "tasks/get" | "tasks/update" | "tasks/cancel" => params["taskId"].as_str(),
                _ => None,
            };
            if let Some(name) = name {
                post = post.header("mcp-name", name);
            }
        } else if self.revision >= "2025-06-18" && !self.greeting.is_null() {
            post = post.header("mcp-protocol-version", self.revision);
        }
        let sent = post.body(message.to_string()).send();
        let inbox = self.inbox.clone();
        let Some(id) = id else {
            let reply = in_time("202", sent).await?.map_err(|e| e.to_string())?;
            let status = reply.status();
            if status == 202 {
                return Ok(());
            }
            let body = reply.text().await.unwrap_or_default();
            return Err(format!("{method}: {status} {body}"));
        };
        let (opened, open) = oneshot::channel();
        let stream = tokio::spawn(async move {
            let why = match sent.await {
                Err(error) => error.to_string(),
                Ok(reply) => {
                    let _ = opened.send(reply.headers().get("mcp-session-id").cloned());
                    read(reply, &inbox).await
                }
            };
            inbox.give_up(id, &why);
        });
        lock(streams).insert(id, stream.abort_handle());
        if method == "initialize"
            && let Ok(Ok(Some(id))) = tokio::time::timeout(PATIENCE, open).await
            && let Ok(id) = id.to_str()
        {
            let _ = session.set(id.to_owned());
        }
        Ok(())
    }
}

/// Waits for the result of a request.
///
/// # Errors
/// The error of the response, or of a missing response.
pub async fn finish(method: &str, answer: oneshot::Receiver<Value>) -> Result<Value, Wrong> {
    let message = in_time(&format!("the answer to {method}"), answer).await?;
    let message = message.map_err(|_| format!("{method}: the connection ended"))?;
    match message.get("result") {
        Some(result) => Ok(result.clone()),
        None => Err(format!("{method}: {}", message["error"])),
    }
}

async fn in_time<F: Future>(what: &str, future: F) -> Result<F::Output, Wrong> {
    tokio::time::timeout(PATIENCE, future).await.map_err(|_| format!("waited in vain for {what}"))
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap()
}
