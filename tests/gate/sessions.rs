//! Limits of sessions, which clients often leave open.

use std::net::SocketAddr;

use futures_util::{StreamExt, stream};
use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::support::{
    agent::Agent,
    gate::{Gate, Setup},
    in_time, until,
    wire::{self, Reply},
};

const HELLO: &str = r#"{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"protocolVersion":"2025-11-25","capabilities":{},"clientInfo":{"name":"gate","version":"1"}}}"#;

/// Posts `initialize` from this address, with this key.
async fn initialize(addr: SocketAddr, from: &str, key: Option<&str>) -> Reply {
    let key = key.map(|key| format!("Authorization: Bearer {key}\r\n")).unwrap_or_default();
    let head = format!(
        "POST /mcp HTTP/1.1\r\nHost: {addr}\r\nConnection: close\r\nContent-Type: application/json\r\n\
         Accept: application/json, text/event-stream\r\n{key}Content-Length: {}\r\n\r\n{HELLO}",
        HELLO.len()
    );
    wire::raw_from(from.parse().unwrap(), addr, head.as_bytes()).await
}

/// Opens a session and its stream. The session is in use while the stream is open.
async fn session_in_use(addr: SocketAddr, from: &str, key: Option<&str>) -> TcpStream {
    let opened = initialize(addr, from, key).await;
    let session = opened.header("mcp-session-id").unwrap_or_else(|| panic!("{opened:#?}"));
    let key = key.map(|key| format!("Authorization: Bearer {key}\r\n")).unwrap_or_default();
    let head = format!(
        "GET /mcp HTTP/1.1\r\nHost: {addr}\r\nAccept: text/event-stream\r\n\
         {key}Mcp-Session-Id: {session}\r\n\r\n"
    );
    let mut stream = wire::connect_from(from.parse().unwrap(), addr).await.unwrap();
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut start = [0; 12];
    in_time("the head of a stream", stream.read_exact(&mut start)).await.unwrap();
    assert_eq!(&start, b"HTTP/1.1 200");
    stream
}

#[tokio::test]
async fn abandoned_sessions_are_replaced_by_new_ones() {
    let limits = "[limits]\nsessions = 30\nsessions-per-client = 10";
    let written = Setup::notes().and(limits).keyed().write();
    let (a, b) = (written.add_client("a", &[]).await, written.add_client("b", &[]).await);
    let gate = written.start().await;
    let url = gate.url("/mcp");
    let other = Agent::legacy(&url, Some(&b)).await.unwrap();
    abandon(&gate, &a, 3_000).await;
    // Only sessions of the same client ended, the longest idle first.
    assert!(!other.names("tools/list").await.is_empty());
    let newest = Agent::legacy(&url, Some(&a)).await.unwrap();
    assert!(!newest.names("tools/list").await.is_empty());
    let ended = gate.records(&["event = session-ended"]).await;
    let reason = "a newer session took its place, since it was idle longest";
    assert!(
        !ended.is_empty() && ended.iter().all(|record| record["reason"] == reason),
        "{ended:#?}"
    );
    gate.stop().await;
}

/// Opens so many sessions, each over a connection of its own, and leaves them open.
async fn abandon(gate: &Gate, key: &str, count: usize) {
    let opened = stream::iter(0..count)
        .map(|_| initialize(gate.addr, "127.0.0.1", Some(key)))
        .buffer_unordered(16);
    let replies: Vec<_> = opened.collect().await;
    let refused: Vec<_> =
        replies.iter().filter(|reply| reply.header("mcp-session-id").is_none()).collect();
    assert!(refused.is_empty(), "{} refused: {:#?}", refused.len(), refused[0]);
}

/// Private memory of the proxy in bytes.
fn memory(gate: &Gate) -> usize {
    let status = std::fs::read_to_string(format!("/proc/{}/status", gate.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<usize>().unwrap() << 10
}

#[tokio::test]
async fn memory_of_abandoned_sessions_is_limited_and_used_again() {
    const SESSIONS: usize = 5_000;
    const MAX_SESSION_BYTES: usize = 8 << 10;
    let limits = format!("[limits]\nsessions-per-client = {SESSIONS}");
    let written = Setup::notes().and(&limits).keyed().write();
    let (a, b) = (written.add_client("a", &[]).await, written.add_client("b", &[]).await);
    let gate = written.start().await;
    let other = Agent::legacy(&gate.url("/mcp"), Some(&b)).await.unwrap();
    // Fills what is filled once: the newest records, connections, threads.
    abandon(&gate, &b, 1_500).await;
    let before = memory(&gate);
    abandon(&gate, &a, SESSIONS).await;
    let full = memory(&gate);
    let of_one = full.saturating_sub(before) / SESSIONS;
    println!("an idle session: {of_one} bytes");
    assert!(of_one < MAX_SESSION_BYTES, "an idle session has {of_one} bytes");
    // Each further one ends one of them.
    abandon(&gate, &a, SESSIONS).await;
    let again = memory(&gate);
    println!("after as many again: {full} to {again} bytes");
    assert!(again.saturating_sub(full) < SESSIONS * MAX_SESSION_BYTES / 4, "{full} to {again}");
    assert!(!other.names("tools/list").await.is_empty());
    gate.stop().await;
}

#[tokio::test]
async fn anonymous_callers_are_distinguished_by_address() {
    let gate = Setup::notes().and("[limits]\nsessions-per-client = 1").start().await;
    let post = async |from: &str, session: Option<&str>, body: &str| {
        let session = session.map(|id| format!("Mcp-Session-Id: {id}\r\n")).unwrap_or_default();
        let head = format!(
            "POST /mcp HTTP/1.1\r\nHost: {}\r\nConnection: close\r\nContent-Type: application/json\r\n\
             Accept: application/json, text/event-stream\r\n{session}Content-Length: {}\r\n\r\n{body}",
            gate.addr,
            body.len()
        );
        wire::raw_from(from.parse().unwrap(), gate.addr, head.as_bytes()).await
    };
    let open = async |from| {
        let reply = post(from, None, HELLO).await;
        reply.header("mcp-session-id").unwrap().to_owned()
    };
    let ping = json!({ "jsonrpc": "2.0", "id": 2, "method": "ping" }).to_string();
    let first = open("127.0.0.1").await;
    let other = open("127.0.0.2").await;
    assert_eq!(post("127.0.0.1", Some(&first), &ping).await.status, 200);
    // A second one of the same address takes the place of the first.
    let second = open("127.0.0.1").await;
    assert_eq!(post("127.0.0.1", Some(&first), &ping).await.refusal(), "session-unknown");
    for (from, session) in [("127.0.0.1", &second), ("127.0.0.2", &other)] {
        assert_eq!(post(from, Some(session), &ping).await.status, 200);
    }
    gate.stop().await;
}

/// The proxy looks at a part of the sessions before it looks at all.
#[tokio::test]
async fn many_sessions_in_use_leave_idle_ones_replaceable() {
    let limits = "[limits]\nsessions = 300\nsessions-per-client = 290";
    let written = Setup::notes().and(limits).keyed().write();
    let (a, b) = (written.add_client("a", &[]).await, written.add_client("b", &[]).await);
    let c = written.add_client("c", &[]).await;
    let gate = written.start().await;
    let url = gate.url("/mcp");
    let opened = stream::iter(0..290)
        .map(|_| session_in_use(gate.addr, "127.0.0.1", Some(&a)))
        .buffer_unordered(16);
    let streams: Vec<_> = opened.collect().await;
    for _ in 0..10 {
        let reply = initialize(gate.addr, "127.0.0.1", Some(&b)).await;
        assert!(reply.header("mcp-session-id").is_some(), "{reply:#?}");
    }
    // All places are taken, and the client with the most sessions uses all of them.
    for key in [&c, &b, &c] {
        assert!(!Agent::legacy(&url, Some(key)).await.unwrap().greeting.is_null());
    }
    let refused = initialize(gate.addr, "127.0.0.1", Some(&a)).await;
    assert_eq!(refused.refusal(), "rate-limited");
    let ended = gate.records(&["event = session-ended"]).await;
    assert!(ended.iter().all(|record| record["principal"] == "b"), "{ended:#?}");
    drop(streams);
    gate.stop().await;
}

#[tokio::test]
async fn callers_without_a_key_leave_room_for_clients_with_one() {
    let limits = "[limits]\nsessions = 4\nsessions-per-client = 1";
    let written = Setup::notes().and(limits).write();
    let a = written.add_client("a", &[]).await;
    let gate = written.start().await;
    // Each from an address of its own, and in use.
    let mut streams = Vec::new();
    for from in ["127.0.0.1", "127.0.0.2", "127.0.0.3"] {
        streams.push(session_in_use(gate.addr, from, None).await);
    }
    let refused = initialize(gate.addr, "127.0.0.4", None).await;
    assert_eq!(refused.refusal(), "rate-limited");
    streams.push(session_in_use(gate.addr, "127.0.0.4", Some(&a)).await);
    let refused = initialize(gate.addr, "127.0.0.5", None).await;
    assert_eq!(refused.refusal(), "rate-limited");
    // A caller without a key takes the place of another one only.
    streams.remove(0);
    until("a place to be free", async || {
        let reply = initialize(gate.addr, "127.0.0.5", None).await;
        reply.header("mcp-session-id").map(drop)
    })
    .await;
    let ended = gate.records(&["event = session-ended"]).await;
    assert!(ended.iter().all(|record| record["principal"] == "anonymous"), "{ended:#?}");
    gate.stop().await;
}
