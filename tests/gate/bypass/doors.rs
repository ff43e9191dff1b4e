//! The ways in: each takes bytes as they are and gives back what came of them.

use std::path::PathBuf;

use base64::{Engine as _, prelude::BASE64_STANDARD};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, Lines},
    net::UnixStream,
    process::{ChildStdin, ChildStdout},
};

use crate::support::{
    agent::{Agent, LEGACY, MODERN},
    events::Events,
    gate::Gate,
    in_time,
    wire::{self, ORDINARY, Reply},
};

/// A way in, and the server that is attacked through it.
pub struct Door {
    pub server: &'static str,
    /// Whether names stand behind the server's prefix.
    pub merged: bool,
    pub modern: bool,
    line: Line,
    next: u64,
}

enum Line {
    Http { gate: std::net::SocketAddr, path: String, headers: Vec<(String, String)> },
    Unix { socket: PathBuf, path: String },
    Sse { gate: std::net::SocketAddr, uri: String, stream: Events },
    Stdio { input: ChildStdin, output: Lines<BufReader<ChildStdout>> },
}

/// A refusal: its stable code, and the decision's id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    pub code: String,
    pub decision: String,
}

impl Door {
    /// Streamable HTTP, at all servers' endpoint or at the server's own.
    pub async fn http(gate: &Gate, server: &'static str, merged: bool, modern: bool) -> Self {
        let path = endpoint(server, merged);
        let headers = match modern {
            true => Vec::new(),
            false => session(gate, &path, LEGACY, None).await,
        };
        let line = Line::Http { gate: gate.addr, path, headers };
        Self { server, merged, modern, line, next: 1 }
    }

    /// The same for the holder of a key.
    pub async fn keyed(
        gate: &Gate,
        server: &'static str,
        merged: bool,
        modern: bool,
        key: &str,
    ) -> Self {
        let path = endpoint(server, merged);
        let mut headers = match modern {
            true => Vec::new(),
            false => session(gate, &path, LEGACY, Some(key)).await,
        };
        headers.push(("Authorization".to_owned(), format!("Bearer {key}")));
        let line = Line::Http { gate: gate.addr, path, headers };
        Self { server, merged, modern, line, next: 1 }
    }

    /// A session of the revision that has batches.
    pub async fn batches(gate: &Gate, server: &'static str, merged: bool) -> Self {
        let path = endpoint(server, merged);
        let headers = session(gate, &path, "2025-03-26", None).await;
        let line = Line::Http { gate: gate.addr, path, headers };
        Self { server, merged, modern: false, line, next: 1 }
    }

    /// The local socket, in 2026-07-28.
    pub fn unix(gate: &Gate, server: &'static str, merged: bool) -> Self {
        let (socket, path) = (gate.path("state/admin.sock"), endpoint(server, merged));
        let line = Line::Unix { socket, path };
        Self { server, merged, modern: true, line, next: 1 }
    }

    /// HTTP+SSE.
    pub async fn sse(gate: &Gate, server: &'static str, merged: bool) -> Self {
        let path = endpoint(server, merged).replace("mcp", "sse");
        let mut stream = Events::get(&gate.url(&path), &[("accept", "text/event-stream")]).await;
        let uri = stream.next().await.unwrap().data;
        let line = Line::Sse { gate: gate.addr, uri, stream };
        let mut door = Self { server, merged, modern: false, line, next: 1 };
        door.greet().await;
        door
    }

    /// Standard input and output, which both eras share.
    pub async fn stdio(gate: &mut Gate, server: &'static str) -> Self {
        let input = gate.stdin.take().unwrap();
        let output = BufReader::new(gate.stdout.take().unwrap()).lines();
        let line = Line::Stdio { input, output };
        let mut door = Self { server, merged: true, modern: false, line, next: 1 };
        door.greet().await;
        door
    }

    async fn greet(&mut self) {
        let hello = json!({ "jsonrpc": "2.0", "id": 0, "method": "initialize", "params": {
            "protocolVersion": LEGACY, "capabilities": {},
            "clientInfo": { "name": "gate", "version": "1" },
        } });
        let answers = self.send(hello.to_string().as_bytes(), false).await;
        assert!(answers[0]["result"].is_object(), "{answers:#?}");
        self.send(br#"{"jsonrpc":"2.0","method":"notifications/initialized"}"#, true).await;
    }

    /// Whether the transport reports a refused notification.
    pub fn reports_refused_notifications(&self) -> bool {
        matches!(self.line, Line::Http { .. } | Line::Unix { .. })
    }

    /// A name as this door has it.
    pub fn name(&self, inner: &str) -> String {
        match self.merged {
            true => format!("{}__{inner}", self.server),
            false => inner.to_owned(),
        }
    }

    /// Fills in what a message says of where it goes: `@id@`, `@meta@`, `@server@`, `@other@` (the
    /// other server), `@prefix@`, `@alias@` (what `wipe/all` is called), and tools' names.
    pub fn fill(&mut self, text: &str) -> String {
        self.next += 1;
        let alias = if self.merged {
            let hash = hex::encode(<sha2::Sha256 as sha2::Digest>::digest(b"wipe/all"));
            self.name(&format!("wipe_all_{}", &hash[..8]))
        } else {
            "wipe/all".to_owned()
        };
        let meta = match self.modern {
            true => format!(",\"_meta\":{}", meta()),
            false => String::new(),
        };
        let mut text = text
            .replace("@id@", &self.next.to_string())
            .replace("@meta@", &meta)
            .replace("@server@", self.server)
            .replace("@other@", if self.server == "old" { "new" } else { "old" })
            .replace("@prefix@", &self.name(""))
            .replace("@alias@", &alias);
        for name in
            ["look", "fetch", "say", "wipe", "shred", "vip", "job", "ask", "greet", "secret"]
        {
            text = text.replace(&format!("@{name}@"), &self.name(name));
        }
        text
    }

    /// Sends these bytes. All messages that came back; where nothing is to come back, none.
    pub async fn send(&mut self, body: &[u8], silent: bool) -> Vec<Value> {
        let headers = repeated(body, self.modern);
        match &mut self.line {
            Line::Http { gate, path, headers: more } => {
                let all = headers.iter().chain(more.iter());
                let all = all.map(|(name, value)| (name.as_str(), value.as_str()));
                let all: Vec<_> = ORDINARY.iter().copied().chain(all).collect();
                messages(&wire::post(*gate, path, &all, body).await)
            }
            Line::Unix { socket, path } => {
                let mut head = format!(
                    "POST {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {}\r\n",
                    body.len()
                );
                let ordinary = ORDINARY.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned()));
                for (name, value) in ordinary.chain(headers) {
                    head.push_str(&format!("{name}: {value}\r\n"));
                }
                let request = [head.as_bytes(), b"\r\n", body].concat();
                let exchange = async {
                    let mut stream = UnixStream::connect(&*socket).await.unwrap();
                    stream.write_all(&request).await.unwrap();
                    let mut answer = Vec::new();
                    stream.read_to_end(&mut answer).await.unwrap();
                    answer
                };
                messages(&wire::parse(&in_time("an answer", exchange).await))
            }
            Line::Sse { gate, uri, stream } => {
                let reply = wire::post(*gate, uri, ORDINARY, body).await;
                match reply.status {
                    202 if silent => Vec::new(),
                    202 => vec![stream.message().await],
                    _ => messages(&reply),
                }
            }
            Line::Stdio { input, output } => {
                input.write_all(&[body, b"\n"].concat()).await.unwrap();
                input.flush().await.unwrap();
                if silent {
                    return Vec::new();
                }
                let line = in_time("a line", output.next_line()).await.unwrap().unwrap();
                vec![serde_json::from_str(&line).unwrap_or_else(|e| panic!("{e}: {line}"))]
            }
        }
    }
}

/// The `_meta` of a client of 2026-07-28 that can have tasks and be asked.
pub fn meta() -> Value {
    json!({
        "io.modelcontextprotocol/protocolVersion": MODERN,
        "io.modelcontextprotocol/clientCapabilities": {
            "elicitation": {}, "extensions": { "io.modelcontextprotocol/tasks": {} },
        },
    })
}

fn endpoint(server: &str, merged: bool) -> String {
    if merged { "/mcp".to_owned() } else { format!("/servers/{server}/mcp") }
}

async fn session(
    gate: &Gate,
    path: &str,
    revision: &str,
    key: Option<&str>,
) -> Vec<(String, String)> {
    let agent = Agent::legacy_of(&gate.url(path), key, revision).await.expect("a session");
    let mut headers = vec![("Mcp-Session-Id".to_owned(), agent.session.unwrap())];
    if revision >= "2025-06-18" {
        headers.push(("MCP-Protocol-Version".to_owned(), revision.to_owned()));
    }
    headers
}

/// The headers by which a request of 2026-07-28 repeats itself, right as far as the body can be
/// read at all: a wrong one must not be what an attempt fails on.
pub fn repeated(body: &[u8], modern: bool) -> Vec<(String, String)> {
    if !modern {
        return Vec::new();
    }
    let message: Value = serde_json::from_slice(body).unwrap_or_default();
    let method = message["method"].as_str().unwrap_or("tools/call");
    let mut headers =
        vec![("MCP-Protocol-Version", MODERN.to_owned()), ("Mcp-Method", method.to_owned())];
    let params = &message["params"];
    let name = ["name", "uri", "taskId"].into_iter().find_map(|key| params[key].as_str());
    headers.extend(
        name.map(|name| ("Mcp-Name", format!("=?base64?{}?=", BASE64_STANDARD.encode(name)))),
    );
    headers
        .into_iter()
        .filter(|(_, value)| value.bytes().all(|b| (0x20..0x7f).contains(&b)))
        .map(|(name, value)| (name.to_owned(), value))
        .collect()
}

/// The messages of a reply, also those of a batch.
fn messages(reply: &Reply) -> Vec<Value> {
    reply
        .messages()
        .into_iter()
        .flat_map(|message| match message {
            Value::Array(all) => all,
            one => vec![one],
        })
        .collect()
}

/// The refusals among messages.
pub fn refusals(messages: &[Value]) -> Vec<Refused> {
    let all = messages.iter().flat_map(|message| match message {
        Value::Array(all) => all.as_slice(),
        one => std::slice::from_ref(one),
    });
    all.filter_map(|message| {
        let data = match message.get("error") {
            // REST has them without the envelope.
            Some(error) => error.get("data").unwrap_or(error),
            // An input error of a tool.
            None => message.get("result")?.get("_meta")?.get("dev.portcullis/refusal")?,
        };
        let text = |name: &str| Some(data.get(name)?.as_str()?.to_owned());
        Some(Refused { code: text("code")?, decision: text("decision")? })
    })
    .collect()
}
