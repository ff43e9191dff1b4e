//! Notifications of a server precede its response, and a large response passes without filling the
//! proxy's memory.

use std::net::SocketAddr;

use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::TcpStream,
};

use crate::support::{agent::Agent, gate::Gate, in_time, recorder};

const SERVERS: [&str; 4] = ["pipe-legacy", "pipe-modern", "http-legacy", "http-modern"];

/// Reads from a connection until this text has come.
async fn until(stream: &mut TcpStream, seen: &mut String, text: &str) {
    let reading = async {
        while !seen.contains(text) {
            let mut piece = [0; 4096];
            let read = stream.read(&mut piece).await.unwrap();
            assert_ne!(read, 0, "the end before `{text}`: {seen}");
            seen.push_str(std::str::from_utf8(&piece[..read]).unwrap());
        }
    };
    in_time(text, reading).await;
}

/// A call over a connection of its own, whose answer is read later.
async fn begin(addr: SocketAddr, headers: &str, body: &Value) -> TcpStream {
    let mut stream = TcpStream::connect(addr).await.unwrap();
    let body = body.to_string();
    let head = format!(
        "POST /mcp HTTP/1.1\r\nHost: {addr}\r\nContent-Type: application/json\r\n\
         Accept: application/json, text/event-stream\r\n{headers}Content-Length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.write_all(body.as_bytes()).await.unwrap();
    stream
}

fn wait(server: &str, modern: bool) -> Value {
    let mut meta = json!({ "progressToken": "mine" });
    if modern {
        meta["io.modelcontextprotocol/protocolVersion"] = "2026-07-28".into();
        meta["io.modelcontextprotocol/clientCapabilities"] = json!({});
    }
    json!({
        "jsonrpc": "2.0", "id": "w", "method": "tools/call",
        "params": { "name": format!("{server}__wait"), "arguments": {}, "_meta": meta },
    })
}

#[tokio::test]
async fn progress_precedes_the_response_over_http() {
    let (gate, _servers) = recorder::gate("").await;
    for agent in [gate.legacy().await, gate.modern()] {
        for server in SERVERS {
            let name = format!("{server}__wait");
            let headers = match &agent.session {
                Some(session) => format!("Mcp-Session-Id: {session}\r\n"),
                None => format!(
                    "MCP-Protocol-Version: 2026-07-28\r\nMcp-Method: tools/call\r\nMcp-Name: {name}\r\n"
                ),
            };
            let body = wait(server, agent.session.is_none());
            let mut call = begin(gate.addr, &headers, &body).await;
            let mut seen = String::new();
            until(&mut call, &mut seen, "\"progressToken\":\"mine\"").await;
            assert!(!seen.contains("\"id\":\"w\""), "{server}: answered before it may: {seen}");
            // Only who has heard of the progress lets the server answer.
            agent.call(&format!("{server}__go"), json!({})).await.unwrap();
            until(&mut call, &mut seen, "\"id\":\"w\"").await;
        }
    }
    gate.stop().await;
}

#[tokio::test]
async fn progress_precedes_the_response_over_stdio() {
    let (mut gate, _servers) = recorder::gate("").await;
    let mut stdin = gate.stdin.take().unwrap();
    let mut lines = BufReader::new(gate.stdout.take().unwrap()).lines();
    let hello = json!({
        "jsonrpc": "2.0", "id": 1, "method": "initialize",
        "params": { "protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": { "name": "t", "version": "1" } },
    });
    stdin.write_all(format!("{hello}\n").as_bytes()).await.unwrap();
    in_time("a greeting", lines.next_line()).await.unwrap().unwrap();
    for server in SERVERS {
        let mut next = async || {
            let line = in_time("a message", lines.next_line()).await.unwrap().expect("a line");
            serde_json::from_str::<Value>(&line).unwrap()
        };
        let line = format!("{}\n", wait(server, false));
        stdin.write_all(line.as_bytes()).await.unwrap();
        let progress = next().await;
        assert_eq!(progress["params"]["progressToken"], "mine", "{server}: {progress:#}");
        let go = json!({
            "jsonrpc": "2.0", "id": "g", "method": "tools/call",
            "params": { "name": format!("{server}__go"), "arguments": {} },
        });
        stdin.write_all(format!("{go}\n").as_bytes()).await.unwrap();
        let mut ids = [next().await["id"].to_string(), next().await["id"].to_string()];
        ids.sort();
        assert_eq!(ids, ["\"g\"", "\"w\""], "{server}");
    }
    drop(stdin);
    assert_eq!(gate.ended().await.code(), Some(0));
}

/// Bytes of the result that must pass.
const MIB: usize = 50;

/// The most memory that a proxy had so far, in MiB.
fn peak(gate: &Gate) -> usize {
    let status = std::fs::read_to_string(format!("/proc/{}/status", gate.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("VmHWM");
    line.trim().trim_end_matches(" kB").parse::<usize>().unwrap() >> 10
}

/// The bound that docs/operate/limits.md states: FACTOR times the result plus MARGIN MiB, on top of
/// the proxy's baseline.
const FACTOR: usize = 3;
const MARGIN: usize = 25;

async fn grows(server: &str, modern: bool) -> usize {
    let (gate, _servers) = recorder::gate("[limits]\nresponse-bytes = 67108864").await;
    let url = gate.url("/mcp");
    let agent = match modern {
        false => Agent::legacy(&url, None).await.unwrap(),
        true => Agent::modern(&url, None),
    };
    let tool = format!("{server}__huge");
    agent.text(&tool, json!({ "mib": 1 })).await;
    let before = peak(&gate);
    let text = agent.text(&tool, json!({ "mib": MIB })).await;
    assert_eq!(text.len(), MIB << 20);
    let grown = peak(&gate) - before;
    eprintln!("{server}, modern client {modern}: from {before} MiB by {grown} MiB");
    gate.stop().await;
    grown
}

#[tokio::test]
async fn result_of_50_mib_passes_in_limited_memory() {
    for (server, modern) in [
        ("pipe-legacy", false),
        ("pipe-legacy", true),
        ("http-legacy", false),
        ("http-modern", true),
    ] {
        let grown = grows(server, modern).await;
        assert!(grown <= FACTOR * MIB + MARGIN, "{server}: {grown} MiB");
    }
}
