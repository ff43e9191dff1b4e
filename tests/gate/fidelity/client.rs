//! Clients that send a text as it is and show what came back as it came.

use std::{collections::HashMap, net::SocketAddr};

use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines},
    process::{ChildStdin, ChildStdout},
};

use super::message::members;
use crate::support::{
    events::Events,
    gate::Gate,
    in_time,
    wire::{self, ORDINARY, Reply},
};

/// One client: what it speaks, over what.
pub struct Client {
    pub modern: bool,
    line: Line,
}

enum Line {
    /// HTTP, at each server's own endpoint, with a session for each where the era has them.
    Http { addr: SocketAddr, sessions: HashMap<&'static str, String> },
    /// HTTP+SSE, at each server's own endpoint: a stream, and the path that it told.
    Paired { addr: SocketAddr, connections: HashMap<&'static str, (Events, String)> },
    /// Standard input and output, where all servers are one.
    Pipe { stdin: ChildStdin, lines: Lines<BufReader<ChildStdout>> },
}

impl Client {
    /// One over HTTP.
    pub async fn http(gate: &Gate, modern: bool, servers: &[&'static str]) -> Self {
        let mut sessions = HashMap::new();
        if !modern {
            for server in servers {
                let path = format!("/servers/{server}/mcp");
                let hello = hello("2025-11-25").to_string();
                let reply = wire::post(gate.addr, &path, ORDINARY, hello.as_bytes()).await;
                let session = reply.header("mcp-session-id").expect("a session").to_owned();
                sessions.insert(*server, session);
            }
        }
        Self { modern, line: Line::Http { addr: gate.addr, sessions } }
    }

    /// One over HTTP+SSE, of the revision that has it.
    pub async fn paired(gate: &Gate, servers: &[&'static str]) -> Self {
        let mut connections = HashMap::new();
        for server in servers {
            let url = gate.url(&format!("/servers/{server}/sse"));
            let mut stream = Events::get(&url, &[("accept", "text/event-stream")]).await;
            let endpoint = stream.next().await.expect("an endpoint");
            assert_eq!((stream.status, endpoint.name.as_deref()), (200, Some("endpoint")));
            connections.insert(*server, (stream, endpoint.data));
        }
        let line = Line::Paired { addr: gate.addr, connections };
        let mut client = Self { modern: false, line };
        for server in servers {
            client.send(server, &hello("2024-11-05").to_string()).await;
        }
        client
    }

    /// One over the proxy's standard input and output, which begins as a legacy one.
    pub async fn pipe(gate: &mut Gate) -> Self {
        let stdin = gate.stdin.take().unwrap();
        let lines = BufReader::new(gate.stdout.take().unwrap()).lines();
        let mut client = Self { modern: false, line: Line::Pipe { stdin, lines } };
        client.send("", &hello("2025-11-25").to_string()).await;
        client
    }

    pub fn name(&self) -> String {
        let line = match self.line {
            Line::Http { .. } => "http",
            Line::Paired { .. } => "http+sse",
            Line::Pipe { .. } => "stdio",
        };
        format!("{} over {line}", if self.modern { "modern" } else { "legacy" })
    }

    /// Whether what it sends is a message a line.
    pub fn sends_lines(&self) -> bool {
        matches!(self.line, Line::Pipe { .. })
    }

    /// Whether what it gets is a message a line, as an event of the proxy's is.
    pub fn gets_lines(&self) -> bool {
        matches!(self.line, Line::Pipe { .. } | Line::Paired { .. })
    }

    /// What it calls a server's tool.
    pub fn tool(&self, server: &str, tool: &str) -> String {
        match self.line {
            Line::Pipe { .. } => format!("{server}__{tool}"),
            Line::Http { .. } | Line::Paired { .. } => tool.into(),
        }
    }

    /// The last message that reached a server's `record`.
    pub async fn received(&mut self, server: &'static str) -> String {
        let meta = json!({
            "io.modelcontextprotocol/protocolVersion": "2026-07-28",
            "io.modelcontextprotocol/clientCapabilities": {},
        });
        let mut params = json!({ "name": self.tool(server, "received"), "arguments": {} });
        if self.modern {
            params["_meta"] = meta;
        }
        let ask = json!({ "jsonrpc": "2.0", "id": "r", "method": "tools/call", "params": params });
        let answer = self.send(server, &ask.to_string()).await;
        let answer: Value = serde_json::from_str(&answer).unwrap();
        answer["result"]["content"][0]["text"].as_str().unwrap_or_else(|| panic!("{answer}")).into()
    }

    /// Sends a text; the text of the answer.
    pub async fn send(&mut self, server: &'static str, text: &str) -> String {
        let tool = members(text).into_iter().find(|(key, _)| key == "\"params\"");
        let tool: Value = serde_json::from_str(&tool.expect("params").1).unwrap();
        match &mut self.line {
            Line::Http { addr, sessions } => {
                let tool = tool["name"].as_str().unwrap_or_default();
                let headers = match sessions.get(server) {
                    Some(session) => vec![("Mcp-Session-Id", session.as_str())],
                    None => vec![
                        ("MCP-Protocol-Version", "2026-07-28"),
                        ("Mcp-Method", "tools/call"),
                        ("Mcp-Name", tool),
                    ],
                };
                let headers = [ORDINARY, &headers].concat();
                let path = format!("/servers/{server}/mcp");
                last(&wire::post(*addr, &path, &headers, text.as_bytes()).await)
            }
            Line::Paired { addr, connections } => {
                let (stream, path) = connections.get_mut(server).expect("a connection");
                let reply = wire::post(*addr, path, ORDINARY, text.as_bytes()).await;
                assert_eq!((reply.status, reply.body.as_str()), (202, ""), "{text}");
                loop {
                    let event = stream.next().await.expect("an answer before the end");
                    assert_eq!(event.name.as_deref(), Some("message"), "{event:?}");
                    if is_answer(&event.data) {
                        return event.data;
                    }
                }
            }
            Line::Pipe { stdin, lines } => {
                let line = format!("{}\n", text.replace('\n', " "));
                in_time("room for a line", stdin.write_all(line.as_bytes())).await.unwrap();
                loop {
                    let line = in_time("an answer", lines.next_line()).await.unwrap();
                    let line = line.expect("an answer before the end");
                    if is_answer(&line) {
                        return line;
                    }
                }
            }
        }
    }
}

fn is_answer(text: &str) -> bool {
    !members(text).iter().any(|(key, _)| key == "\"method\"")
}

fn hello(revision: &str) -> Value {
    json!({
        "jsonrpc": "2.0", "id": 0, "method": "initialize",
        "params": {
            "protocolVersion": revision,
            "capabilities": {},
            "clientInfo": { "name": "fidelity", "version": "1" },
        },
    })
}

/// The text of the last message of an answer.
fn last(reply: &Reply) -> String {
    if !reply.header("content-type").is_some_and(|kind| kind.starts_with("text/event-stream")) {
        return reply.body.clone();
    }
    let event = reply.body.trim_end().rsplit("\n\n").next().unwrap_or_default();
    let data: Vec<_> = event.lines().filter_map(|line| line.strip_prefix("data: ")).collect();
    data.join("\n")
}
