//! Clients that send a text as it is and show what came back as it came.

use std::{collections::HashMap, net::SocketAddr};

use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines},
    process::{ChildStdin, ChildStdout},
};

use super::message::members;
use crate::support::{
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
                let hello = hello().to_string();
                let reply = wire::post(gate.addr, &path, ORDINARY, hello.as_bytes()).await;
                let session = reply.header("mcp-session-id").expect("a session").to_owned();
                sessions.insert(*server, session);
            }
        }
        Self { modern, line: Line::Http { addr: gate.addr, sessions } }
    }

    /// One over the proxy's standard input and output, which begins as a legacy one.
    pub async fn pipe(gate: &mut Gate) -> Self {
        let stdin = gate.stdin.take().unwrap();
        let lines = BufReader::new(gate.stdout.take().unwrap()).lines();
        let mut client = Self { modern: false, line: Line::Pipe { stdin, lines } };
        client.send("", &hello().to_string()).await;
        client
    }

    pub fn name(&self) -> String {
        let line = match self.line {
            Line::Http { .. } => "http",
            Line::Pipe { .. } => "stdio",
        };
        format!("{} over {line}", if self.modern { "modern" } else { "legacy" })
    }

    /// Whether a line is a message to it.
    pub fn lines(&self) -> bool {
        matches!(self.line, Line::Pipe { .. })
    }

    /// What it calls a server's tool.
    pub fn tool(&self, server: &str, tool: &str) -> String {
        if self.lines() { format!("{server}__{tool}") } else { tool.into() }
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
            Line::Pipe { stdin, lines } => {
                let line = format!("{}\n", text.replace('\n', " "));
                in_time("room for a line", stdin.write_all(line.as_bytes())).await.unwrap();
                loop {
                    let line = in_time("an answer", lines.next_line()).await.unwrap();
                    let line = line.expect("an answer before the end");
                    if !members(&line).iter().any(|(key, _)| key == "\"method\"") {
                        return line;
                    }
                }
            }
        }
    }
}

fn hello() -> Value {
    json!({
        "jsonrpc": "2.0", "id": 0, "method": "initialize",
        "params": {
            "protocolVersion": "2025-11-25",
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
