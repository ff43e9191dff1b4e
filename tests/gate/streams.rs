//! Event streams: resumption, and clients that do not read.

use serde_json::{Value, json};

use crate::support::{
    agent::{Agent, MODERN, code_of},
    events::Events,
    gate::{Gate, Setup},
    until,
    wire::{self, ORDINARY},
};

fn call(id: u64, tool: &str, arguments: Value) -> String {
    let params = json!({ "name": format!("crooked__{tool}"), "arguments": arguments });
    json!({ "jsonrpc": "2.0", "id": id, "method": "tools/call", "params": params }).to_string()
}

/// A client of a legacy session that reads its streams itself.
struct Legacy {
    url: String,
    key: Option<String>,
    session: String,
}

impl Legacy {
    async fn new(gate: &Gate, key: Option<&str>, revision: &str) -> Self {
        let url = gate.url("/mcp");
        let agent = Agent::legacy_of(&url, key, revision).await.expect("a session");
        let key = key.map(|key| format!("Bearer {key}"));
        Self { url, key, session: agent.session.unwrap() }
    }

    fn headers<'a>(&'a self, more: &[(&'a str, &'a str)]) -> Vec<(&'a str, &'a str)> {
        let mut headers = vec![("mcp-session-id", self.session.as_str())];
        headers.extend(self.key.as_deref().map(|key| ("authorization", key)));
        headers.extend(more);
        headers
    }

    async fn post(&self, body: String) -> Events {
        Events::post(&self.url, &self.headers(&[]), body).await
    }

    async fn resume(&self, last: &str) -> Events {
        let headers = self.headers(&[("accept", "text/event-stream"), ("last-event-id", last)]);
        Events::get(&self.url, &headers).await
    }

    async fn cancel(&self, id: u64) -> u16 {
        let params = json!({ "requestId": id });
        let method = "notifications/cancelled";
        let message = json!({ "jsonrpc": "2.0", "method": method, "params": params });
        self.post(message.to_string()).await.status
    }
}

#[tokio::test]
async fn interrupted_stream_resumes_only_for_its_client() {
    let written = Setup::crooked("").keyed().write();
    let (a, b) = (written.add_client("a", &[]).await, written.add_client("b", &[]).await);
    let gate = written.start().await;
    let client = Legacy::new(&gate, Some(&a), "2025-11-25").await;
    let mut stream = client.post(call(1, "slow", json!({ "ms": 3000 }))).await;
    let priming = stream.next().await.unwrap();
    assert_eq!(priming.data, "");
    assert!(priming.retry.is_some() && priming.name.is_none(), "{priming:?}");
    let last = priming.id.unwrap();
    // The connection ends; the call does not.
    drop(stream);
    let mut stream = client.resume(&last).await;
    assert_eq!(stream.status, 200);
    let answer = stream.next().await.unwrap();
    assert_eq!(answer.message()["result"]["content"][0]["text"], "at last");
    assert_eq!(answer.message()["id"], 1);
    assert!(stream.next().await.is_none());
    let id = answer.id.clone().unwrap();
    assert_ne!(id, last);
    // It may have been lost on the way: for a while it can be had again.
    let again = client.resume(&last).await.next().await.unwrap();
    assert_eq!((again.id, again.data), (answer.id, answer.data));
    // Clients would resume an empty stream for ever.
    assert_eq!(client.resume(&id).await.status, 405);

    // Another session's events do not exist, be it the same client's or another's.
    for key in [&a, &b] {
        let other = Legacy::new(&gate, Some(key), "2025-11-25").await;
        for id in [&last, &id, "0-1", "no such", "ffffffffffffffff-18446744073709551615"] {
            let mut refused = other.resume(id).await;
            assert_eq!(refused.status, 400, "{id}");
            assert_eq!(code_of(&refused.message().await["error"]), "invalid-request");
        }
    }
    let key = format!("Bearer {b}");
    let thief = Legacy { url: client.url.clone(), key: Some(key), session: client.session.clone() };
    let mut refused = thief.resume(&last).await;
    assert_eq!(refused.status, 404);
    assert_eq!(code_of(&refused.message().await["error"]), "session-unknown");
    gate.stop().await;
}

#[tokio::test]
async fn only_cancellation_ends_a_call_of_a_session() {
    let gate = Setup::crooked("call-timeout-s = 3600").start().await;
    let client = Legacy::new(&gate, None, "2025-11-25").await;
    let mut stream = client.post(call(7, "hang", json!({}))).await;
    let last = stream.next().await.unwrap().id.unwrap();
    drop(stream);
    let mut stream = client.resume(&last).await;
    assert_eq!(client.cancel(7).await, 202);
    assert!(stream.next().await.is_none());
    assert_eq!(client.resume(&last).await.status, 405);
    let records = gate.records(&["--tool", "hang"]).await;
    assert!(records.iter().any(|record| record["decision"] == "cancelled"), "{records:#?}");
    gate.stop().await;
}

#[tokio::test]
async fn client_that_leaves_before_a_stream_begins_cancels_only_without_a_session() {
    let gate = Setup::holding("call-timeout-s = 3600").start().await;
    gate.hold("tools/call");
    let session = Legacy::new(&gate, None, "2025-11-25").await.session;
    // Clients that accept no stream never get one.
    let post = |headers: &[(&'static str, &str)], body: String| {
        let mut headers: Vec<_> =
            headers.iter().map(|(name, value)| (*name, (*value).to_owned())).collect();
        headers.push(("content-type", "application/json".into()));
        headers.push(("accept", "application/json".into()));
        let addr = gate.addr;
        tokio::spawn(async move {
            let headers: Vec<_> =
                headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
            wire::post(addr, "/mcp", &headers, body.as_bytes()).await
        })
    };
    let of_session = post(&[("mcp-session-id", &session)], call(1, "echo", json!({ "text": "x" })));
    let params = json!({ "name": "crooked__slow", "arguments": {} });
    let body = gate.modern().request("tools/call", params).to_string();
    let without = post(
        &[
            ("mcp-protocol-version", MODERN),
            ("mcp-method", "tools/call"),
            ("mcp-name", "crooked__slow"),
        ],
        body,
    );
    let ends = async |tool: &str| {
        let records = gate.records(&["--tool", tool]).await;
        let ends: Vec<_> = records.iter().filter(|one| one["record"] == "outcome").collect();
        let ends = ends.iter().map(|end| end["decision"].as_str().unwrap().to_owned());
        (records.len(), ends.collect::<Vec<_>>())
    };
    until("both intents", async || {
        (ends("echo").await.0 + ends("slow").await.0 == 2).then_some(())
    })
    .await;
    of_session.abort();
    assert!(of_session.await.unwrap_err().is_cancelled());
    without.abort();
    until("the cancellation", async || (ends("slow").await.1 == ["cancelled"]).then_some(())).await;
    assert_eq!(ends("echo").await.1, [""; 0]);
    gate.let_go("tools/call");
    until("the outcome", async || (ends("echo").await.1 == ["allowed"]).then_some(())).await;
    gate.stop().await;
}

#[tokio::test]
async fn cancelled_request_gets_a_valid_response() {
    let gate = Setup::crooked("call-timeout-s = 3600").start().await;
    let client = Legacy::new(&gate, None, "2025-06-18").await;
    let body = call(7, "hang", json!({}));
    let cancelled = async |more: &[(&str, &str)]| {
        let headers = client.headers(more);
        let post = wire::post(gate.addr, "/mcp", &headers, body.as_bytes());
        let mut post = std::pin::pin!(post);
        loop {
            // A cancellation that arrives before the request has no effect.
            tokio::select! {
                reply = &mut post => break reply,
                status = client.cancel(7) => assert_eq!(status, 202),
            }
        }
    };
    let both =
        [("content-type", "application/json"), ("accept", "application/json, text/event-stream")];
    let reply = cancelled(&both).await;
    assert_eq!((reply.status, reply.header("content-type")), (200, Some("text/event-stream")));
    assert_eq!(reply.messages(), Vec::<Value>::new());
    let json = [("content-type", "application/json"), ("accept", "application/json")];
    let reply = cancelled(&json).await;
    assert_eq!((reply.status, reply.header("content-type")), (200, Some("application/json")));
    assert_eq!(
        (reply.messages()[0]["id"].clone(), reply.refusal()),
        (json!(7), "cancelled".into())
    );
    let decision = &reply.messages()[0]["error"]["data"]["decision"];
    // Each of the two calls has one record, beside its intent if it was decided.
    let mut records = gate.records(&["method = tools/call"]).await;
    records.retain(|record| record["record"] != "intent");
    assert_eq!(records.len(), 2, "{records:#?}");
    assert!(records.iter().any(|record| record["id"] == *decision), "{records:#?}");
    gate.stop().await;
}

#[tokio::test]
async fn earlier_revisions_get_event_ids_and_no_empty_events() {
    let gate = Setup::crooked("").start().await;
    for revision in ["2025-03-26", "2025-06-18"] {
        let client = Legacy::new(&gate, None, revision).await;
        let mut stream = client.post(call(1, "slow", json!({ "ms": 1500 }))).await;
        let first = stream.next().await.unwrap();
        assert_eq!(first.message()["id"], 1, "{revision}");
        assert!(first.id.is_some(), "{revision}");
    }
    gate.stop().await;
}

#[tokio::test]
async fn standalone_stream_is_unique_and_resumable() {
    let gate = Setup::crooked("").start().await;
    let client = Legacy::new(&gate, None, "2025-11-25").await;
    let headers = client.headers(&[("accept", "text/event-stream")]);
    let mut first = Events::get(&client.url, &headers).await;
    let id = first.next().await.unwrap().id.unwrap();
    let mut second = Events::get(&client.url, &headers).await;
    assert!(first.next().await.is_none(), "a message goes to one stream");
    let newer = second.next().await.unwrap().id.unwrap();
    assert_ne!(id, newer);
    drop(second);
    let mut resumed = client.resume(&id).await;
    assert_eq!(resumed.next().await.unwrap().id, Some(newer));
    gate.stop().await;
}

#[tokio::test]
async fn client_without_free_permits_can_cancel() {
    let gate =
        Setup::crooked("call-timeout-s = 3600").and("[limits]\nconcurrent = 1").start().await;
    let client = Legacy::new(&gate, None, "2025-11-25").await;
    let mut stream = client.post(call(7, "hang", json!({}))).await;
    stream.next().await.unwrap();
    let refused = client.post(call(8, "echo", json!({}))).await.message().await;
    assert_eq!(code_of(&refused["error"]), "rate-limited");
    assert_eq!(refused["id"], 8);
    // An answer is heard, too, though nobody asked.
    let mut answer = client.post(r#"{"jsonrpc":"2.0","id":1,"result":{}}"#.into()).await;
    assert_eq!(code_of(&answer.message().await["error"]), "invalid-request");
    assert_eq!(client.cancel(7).await, 202);
    assert!(stream.next().await.is_none());
    until("the place to be free", async || {
        let answer = client.post(call(9, "echo", json!({ "text": "x" }))).await.message().await;
        answer.get("result").is_some().then_some(())
    })
    .await;
    gate.stop().await;
}

#[tokio::test]
async fn modern_revision_allows_only_post() {
    let gate = Setup::crooked("").start().await;
    for verb in ["GET", "DELETE"] {
        let head = format!(
            "{verb} /mcp HTTP/1.1\r\nHost: {}\r\nConnection: close\r\nAccept: text/event-stream\r\n\
             MCP-Protocol-Version: {MODERN}\r\n\r\n",
            gate.addr
        );
        let reply = wire::raw(gate.addr, head.as_bytes()).await;
        assert_eq!((reply.status, reply.header("allow")), (405, Some("POST")), "{reply:#?}");
        assert_eq!(reply.refusal(), "http-method-not-allowed");
    }
    gate.stop().await;
}

#[tokio::test]
async fn path_with_invalid_utf8_is_refused() {
    let gate = Setup::crooked("").start().await;
    let ping = br#"{"jsonrpc":"2.0","id":1,"method":"ping"}"#;
    let reply = wire::post(gate.addr, "/servers/%ff/mcp", ORDINARY, ping).await;
    assert_eq!((reply.status, reply.refusal().as_str()), (404, "unknown-target"));
    gate.stop().await;
}

#[tokio::test]
async fn subscription_requires_an_event_stream() {
    let gate = Setup::crooked("").start().await;
    let listen = json!({
        "jsonrpc": "2.0",
        "id": 1,
        "method": "subscriptions/listen",
        "params": { "notifications": {}, "_meta": {
            "io.modelcontextprotocol/protocolVersion": MODERN,
            "io.modelcontextprotocol/clientCapabilities": {},
        } },
    });
    let headers = [
        ("Content-Type", "application/json"),
        ("Accept", "application/json"),
        ("MCP-Protocol-Version", MODERN),
        ("Mcp-Method", "subscriptions/listen"),
    ];
    let reply = wire::post(gate.addr, "/mcp", &headers, listen.to_string().as_bytes()).await;
    assert_eq!((reply.status, reply.refusal().as_str()), (406, "not-acceptable"));
    gate.stop().await;
}

/// More than all buffers between a server and a client that does not read.
fn flood() -> Value {
    json!({ "mib": 64, "bytes": 262_144 })
}

#[tokio::test]
async fn call_of_a_client_that_does_not_read_is_ended() {
    let mut gate = Setup::crooked("").start().await;
    let mut message: Value = serde_json::from_str(&call(1, "flood", flood())).unwrap();
    message["params"]["_meta"] = json!({
        "io.modelcontextprotocol/protocolVersion": MODERN,
        "io.modelcontextprotocol/clientCapabilities": {},
        "io.modelcontextprotocol/logLevel": "debug",
    });
    let headers = [
        ("mcp-protocol-version", MODERN),
        ("mcp-method", "tools/call"),
        ("mcp-name", "crooked__flood"),
    ];
    let mut stream = Events::post(&gate.url("/mcp"), &headers, message.to_string()).await;
    assert_eq!(stream.message().await["method"], "notifications/message");
    gate.logged("the client to be cut off", |line| line.contains("client-too-slow")).await;
    // Nobody else waited for it.
    let other = gate.modern();
    assert_eq!(other.text("crooked__echo", json!({ "text": "x" })).await, "x");
    let mut last = Value::Null;
    while let Some(event) = stream.next().await {
        last = event.message();
    }
    assert_eq!(code_of(&last["error"]), "client-too-slow");
    assert_eq!(last["id"], 1);
    gate.stop().await;
}

#[tokio::test]
async fn stalled_reader_is_disconnected_and_can_resume() {
    // The server is held up until the client is cut off, and that takes its time.
    let mut gate = Setup::crooked("call-timeout-s = 300").start().await;
    let client = Legacy::new(&gate, None, "2025-11-25").await;
    let mut stream = client.post(call(1, "flood", flood())).await;
    let mut last = stream.next().await.unwrap().id.unwrap();
    gate.logged("the client to be cut off", |line| line.contains("reads too slowly")).await;
    while let Some(event) = stream.next().await {
        assert!(!event.data.contains("flooded"), "the answer came to who was cut off");
        last = event.id.unwrap();
    }
    let mut stream = client.resume(&last).await;
    let mut answer = Value::Null;
    while let Some(event) = stream.next().await {
        answer = event.message();
    }
    assert_eq!(answer["result"]["content"][0]["text"], "flooded");
    gate.stop().await;
}
