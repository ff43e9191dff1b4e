//! HTTP+SSE, the transport of 2024-11-05.

use serde_json::{Value, json};

use crate::support::{
    agent::code_of,
    events::Events,
    gate::{Gate, Setup},
    until,
    wire::{self, ORDINARY, Reply},
};

/// A client with its stream open.
struct Client<'a> {
    gate: &'a Gate,
    key: Option<String>,
    stream: Events,
    uri: String,
}

impl<'a> Client<'a> {
    async fn open(gate: &'a Gate, path: &str, key: Option<&str>) -> Self {
        let key = key.map(|key| format!("Bearer {key}"));
        let mut headers = vec![("accept", "text/event-stream")];
        headers.extend(key.as_deref().map(|key| ("authorization", key)));
        let mut stream = Events::get(&gate.url(path), &headers).await;
        assert_eq!(stream.status, 200);
        let endpoint = stream.next().await.unwrap();
        assert_eq!(endpoint.name.as_deref(), Some("endpoint"));
        Self { gate, key, stream, uri: endpoint.data }
    }

    async fn greeted(gate: &'a Gate, path: &str, key: Option<&str>, revision: &str) -> Self {
        let mut client = Self::open(gate, path, key).await;
        let params = json!({
            "protocolVersion": revision,
            "capabilities": {},
            "clientInfo": { "name": "gate", "version": "1" },
        });
        let answer = client.ask(json!(0), "initialize", params).await;
        assert_eq!(answer["result"]["protocolVersion"], revision);
        let ready = json!({ "jsonrpc": "2.0", "method": "notifications/initialized" });
        assert_eq!(client.post(&ready).await.status, 202);
        client
    }

    async fn post(&self, message: &Value) -> Reply {
        post(self.gate, &self.uri, self.key.as_deref(), message).await
    }

    /// Posts a request and reads its answer from the stream.
    async fn ask(&mut self, id: Value, method: &str, params: Value) -> Value {
        let message = json!({ "jsonrpc": "2.0", "id": id, "method": method, "params": params });
        let reply = self.post(&message).await;
        assert_eq!((reply.status, reply.body.as_str()), (202, ""));
        let answer = self.stream.next().await.unwrap();
        assert!(answer.id.is_none() && answer.name.as_deref() == Some("message"), "{answer:?}");
        let answer = answer.message();
        assert_eq!(answer["id"], id);
        answer
    }

    async fn call(&mut self, id: u64, tool: &str, arguments: Value) -> Value {
        let params = json!({ "name": tool, "arguments": arguments });
        self.ask(json!(id), "tools/call", params).await
    }
}

async fn post(gate: &Gate, uri: &str, key: Option<&str>, message: &Value) -> Reply {
    let mut headers = ORDINARY.to_vec();
    headers.extend(key.map(|key| ("Authorization", key)));
    wire::post(gate.addr, uri, &headers, message.to_string().as_bytes()).await
}

#[tokio::test]
async fn posted_requests_are_answered_on_the_stream() {
    let gate = Setup::crooked("").start().await;
    for revision in ["2024-11-05", "2025-11-25"] {
        let mut client = Client::greeted(&gate, "/sse", None, revision).await;
        assert!(client.uri.starts_with("/sse/"), "{}", client.uri);
        let answer = client.call(1, "crooked__echo", json!({ "text": "x" })).await;
        assert_eq!(answer["result"]["content"][0]["text"], "x");
        let refused = client.call(2, "crooked__no_such", json!({})).await;
        assert_eq!(code_of(&refused["error"]), "unknown-target");
    }
    let mut one = Client::greeted(&gate, "/servers/crooked/sse", None, "2024-11-05").await;
    assert!(one.uri.starts_with("/servers/crooked/sse/"), "{}", one.uri);
    let answer = one.call(1, "echo", json!({ "text": "x" })).await;
    assert_eq!(answer["result"]["content"][0]["text"], "x");
    gate.stop().await;
}

#[tokio::test]
async fn end_of_the_stream_cancels_its_calls() {
    let gate = Setup::crooked("call-timeout-s = 3600").start().await;
    let client = Client::greeted(&gate, "/sse", None, "2024-11-05").await;
    let params = json!({ "name": "crooked__hang", "arguments": {} });
    let call = json!({ "jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params });
    assert_eq!(client.post(&call).await.status, 202);
    until("the call to be under way", async || {
        (!gate.records(&["--tool", "hang"]).await.is_empty()).then_some(())
    })
    .await;
    let uri = client.uri.clone();
    drop(client);
    until("the call to be cancelled", async || {
        let records = gate.records(&["--tool", "hang"]).await;
        records.iter().any(|record| record["decision"] == "cancelled").then_some(())
    })
    .await;
    let reply = post(&gate, &uri, None, &call).await;
    assert_eq!((reply.status, reply.refusal().as_str()), (404, "session-unknown"));
    gate.stop().await;
}

#[tokio::test]
async fn foreign_posts_are_refused() {
    let written = Setup::crooked("").keyed().write();
    let (a, b) = (written.add_client("a", &[]).await, written.add_client("b", &[]).await);
    let gate = written.start().await;
    let mut client = Client::greeted(&gate, "/sse", Some(&a), "2024-11-05").await;
    let ping = json!({ "jsonrpc": "2.0", "id": 1, "method": "ping" });
    let (a, b) = (format!("Bearer {a}"), format!("Bearer {b}"));
    let elsewhere = format!("/servers/crooked{}", client.uri);
    for (uri, key, status, code) in [
        (client.uri.as_str(), Some(b.as_str()), 404, "session-unknown"),
        (client.uri.as_str(), None, 401, "unauthenticated"),
        (elsewhere.as_str(), Some(a.as_str()), 404, "session-unknown"),
        ("/sse/no-such-connection", Some(a.as_str()), 404, "session-unknown"),
        ("/sse/%ff", Some(a.as_str()), 404, "unknown-target"),
    ] {
        let reply = post(&gate, uri, key, &ping).await;
        assert_eq!((reply.status, reply.refusal().as_str()), (status, code), "{uri}");
    }
    let strange = [ORDINARY, &[("Authorization", a.as_str()), ("Origin", "http://evil.example")]];
    let body = ping.to_string();
    let reply = wire::post(gate.addr, &client.uri, &strange.concat(), body.as_bytes()).await;
    assert_eq!((reply.status, reply.refusal().as_str()), (403, "forbidden-origin"));
    // None of it disturbed the connection.
    assert_eq!(client.ask(json!(2), "ping", json!({})).await["result"], json!({}));
    gate.stop().await;
}

#[tokio::test]
async fn removed_client_or_changed_groups_end_the_connection() {
    let written = Setup::crooked("").keyed().write();
    let key = written.add_client("one", &["writers"]).await;
    let other = written.add_client("other", &["writers-too"]).await;
    let gate = written.start().await;
    let mut stays = Client::greeted(&gate, "/sse", Some(&other), "2024-11-05").await;
    for removed in [false, true] {
        let mut greeted = Client::greeted(&gate, "/sse", Some(&key), "2024-11-05").await;
        let mut silent = Client::open(&gate, "/servers/crooked/sse", Some(&key)).await;
        if removed {
            assert_eq!(gate.cli(&["client", "rm", "one"]).await.code, Some(0));
        } else {
            let path = gate.path("state/clients.toml");
            let text = std::fs::read_to_string(&path).unwrap();
            let changed = text.replace("\"writers\"", "\"readers\"");
            assert_ne!(text, changed);
            std::fs::write(path.with_extension("new"), changed).unwrap();
            std::fs::rename(path.with_extension("new"), &path).unwrap();
        }
        for client in [&mut greeted, &mut silent] {
            assert!(client.stream.next().await.is_none(), "{removed}");
        }
        let ended = until("the session's end", async || {
            let ended = gate.records(&["event = session-ended"]).await;
            (ended.len() == 1 + usize::from(removed)).then_some(ended)
        })
        .await;
        for one in ended {
            let why = one["reason"].as_str().unwrap();
            assert!(why.contains("was removed, or its groups changed"), "{one:#}");
        }
    }
    assert_eq!(stays.ask(json!(2), "ping", json!({})).await["result"], json!({}));
    gate.stop().await;
}

#[tokio::test]
async fn invalid_messages_are_refused_in_the_response() {
    let gate = Setup::crooked("").start().await;
    let client = Client::open(&gate, "/sse", None).await;
    for (message, code) in [
        (json!({ "jsonrpc": "2.0", "id": 1, "method": "ping" }), "invalid-request"),
        (json!({ "id": 1, "method": "ping" }), "invalid-request"),
        (json!([{ "jsonrpc": "2.0", "id": 1, "method": "ping" }]), "invalid-request"),
        (
            json!({ "jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": { "_meta": {
                "io.modelcontextprotocol/protocolVersion": "2026-07-28",
                "io.modelcontextprotocol/clientCapabilities": {},
            } } }),
            "revision-unsupported",
        ),
    ] {
        let reply = client.post(&message).await;
        assert_eq!((reply.status, reply.refusal().as_str()), (400, code), "{message}");
    }
    let reply = wire::post(gate.addr, "/sse", ORDINARY, b"{}").await;
    assert_eq!((reply.status, reply.header("allow")), (405, Some("GET")));
    gate.stop().await;
}
