//! Batches, which only revision 2025-03-26 has.

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};

use crate::support::{
    agent::{Agent, code_of},
    events::Events,
    gate::{Gate, Setup},
    in_time,
    wire::{self, ORDINARY, Reply},
};

fn request(id: u64, method: &str, params: Value) -> Value {
    json!({ "jsonrpc": "2.0", "id": id, "method": method, "params": params })
}

fn call(id: u64, tool: &str, arguments: Value) -> Value {
    request(id, "tools/call", json!({ "name": format!("crooked__{tool}"), "arguments": arguments }))
}

fn hello(revision: &str) -> Value {
    let client = json!({ "name": "gate", "version": "1" });
    let params = json!({ "protocolVersion": revision, "capabilities": {}, "clientInfo": client });
    request(0, "initialize", params)
}

async fn session(gate: &Gate, revision: &str) -> String {
    let agent = Agent::legacy_of(&gate.url("/mcp"), None, revision).await.expect("a session");
    agent.session.unwrap()
}

async fn post(gate: &Gate, session: &str, body: &Value) -> Reply {
    let headers = [ORDINARY, &[("Mcp-Session-Id", session)]].concat();
    wire::post(gate.addr, "/mcp", &headers, body.to_string().as_bytes()).await
}

/// The answers of a batch, by id.
fn answers(reply: &Reply) -> Vec<Value> {
    assert_eq!(reply.status, 200, "{reply:#?}");
    let mut answers: Vec<Value> = serde_json::from_str(&reply.body).unwrap();
    answers.sort_by_key(|answer| answer["id"].as_u64());
    answers
}

const POLICY: &str = r#"
@id("use")
permit (principal, action, resource);
@id("keep")
forbid (principal, action == Portcullis::Action::"call_tool", resource == Portcullis::Tool::"crooked/die");
"#;

#[tokio::test]
async fn each_message_of_a_batch_is_decided_separately() {
    let gate = Setup::crooked("").policies(POLICY).start().await;
    let session = session(&gate, "2025-03-26").await;
    let batch = json!([
        call(1, "echo", json!({ "text": "one" })),
        call(2, "die", json!({})),
        { "jsonrpc": "2.0", "method": "notifications/cancelled", "params": { "requestId": 77 } },
        hello("2025-03-26"),
        { "jsonrpc": "1.0", "id": 3, "method": "ping" },
        request(4, "ping", json!({})),
        [request(5, "ping", json!({}))],
    ]);
    let answers = answers(&post(&gate, &session, &batch).await);
    let [broken, nested, hello, one, die, ping] = answers.as_slice() else {
        panic!("{answers:#?}")
    };
    for (refused, code) in [
        (broken, "invalid-request"),
        (nested, "invalid-request"),
        (hello, "invalid-request"),
        (die, "policy-denied"),
    ] {
        assert_eq!(code_of(&refused["error"]), code);
    }
    assert_eq!(hello["id"], 0);
    assert_eq!(one["result"]["content"][0]["text"], "one");
    assert_eq!(ping["result"], json!({}));
    let records = gate.records(&[]).await;
    for (tool, decision) in [("echo", "allowed"), ("die", "refused")] {
        let found =
            records.iter().any(|r| r["target"]["tool"] == tool && r["decision"] == decision);
        assert!(found, "{tool}: {records:#?}");
    }
    gate.stop().await;
}

/// Invalid messages in one batch.
const REFUSED: usize = 20;

#[tokio::test]
async fn no_message_of_a_batch_starts_before_its_refusals_are_recorded() {
    let gate = Setup::crooked("").start().await;
    let session = session(&gate, "2025-03-26").await;
    // The server runs already, so that a call starts at once.
    answers(&post(&gate, &session, &json!([call(1, "reflect", json!({}))])).await);
    let mut batch = vec![call(1, "echo", json!({ "text": "x" }))];
    batch.extend((0..REFUSED).map(Value::from));
    assert_eq!(answers(&post(&gate, &session, &batch.into()).await).len(), REFUSED + 1);
    let records = gate.records(&[]).await;
    let seq = |record: &Value| record["seq"].as_u64().unwrap();
    let refused: Vec<_> = records.iter().filter(|one| one["decision"] == "refused").collect();
    assert!(refused.len() >= 3, "{records:#?}");
    let begun = records.iter().filter(|one| one["target"]["tool"] == "echo").map(seq).min();
    assert!(refused.into_iter().map(seq).max() < begun, "{records:#?}");
    gate.stop().await;
}

#[tokio::test]
async fn batch_of_notifications_is_accepted() {
    let gate = Setup::crooked("").start().await;
    let session = session(&gate, "2025-03-26").await;
    let ready = json!({ "jsonrpc": "2.0", "method": "notifications/initialized" });
    let reply = post(&gate, &session, &json!([ready, ready])).await;
    assert_eq!((reply.status, reply.body.as_str()), (202, ""));
    gate.stop().await;
}

#[tokio::test]
async fn slow_batch_is_answered_by_a_stream() {
    let gate = Setup::crooked("").start().await;
    let session = session(&gate, "2025-03-26").await;
    let batch =
        json!([call(1, "slow", json!({ "ms": 2000 })), call(2, "echo", json!({ "text": "two" })),]);
    let headers = [("mcp-session-id", session.as_str())];
    let mut stream = Events::post(&gate.url("/mcp"), &headers, batch.to_string()).await;
    let (first, second) = (stream.message().await, stream.message().await);
    assert_eq!((&first["id"], &second["id"]), (&json!(2), &json!(1)));
    assert!(stream.next().await.is_none());
    gate.stop().await;
}

#[tokio::test]
async fn batches_are_limited_and_bound_to_their_revision() {
    let gate = Setup::crooked("").start().await;
    let ping = |id| request(id, "ping", json!({}));
    let old = session(&gate, "2025-03-26").await;
    let many: Vec<_> = (0..65).map(ping).collect();
    assert_eq!(post(&gate, &old, &many.into()).await.refusal(), "too-large");
    assert_eq!(post(&gate, &old, &json!([])).await.refusal(), "invalid-request");
    // The limits of one message hold for all of a batch together.
    let keys: serde_json::Map<_, _> = (0..9_000).map(|i| (format!("k{i}"), json!(0))).collect();
    let heavy = |id| request(id, "ping", json!({ "_meta": { "x": keys } }));
    assert_eq!(post(&gate, &old, &json!([heavy(1), heavy(2)])).await.status, 200);
    let beyond: Vec<_> = (0..6).map(heavy).collect();
    assert_eq!(post(&gate, &old, &beyond.into()).await.refusal(), "too-large");
    for revision in ["2024-11-05", "2025-06-18", "2025-11-25"] {
        let session = session(&gate, revision).await;
        let reply = post(&gate, &session, &json!([ping(1)])).await;
        assert_eq!((reply.status, reply.refusal().as_str()), (400, "invalid-request"));
    }
    let body = json!([ping(1)]).to_string();
    let reply = wire::post(gate.addr, "/mcp", ORDINARY, body.as_bytes()).await;
    assert_eq!((reply.status, reply.refusal().as_str()), (400, "invalid-request"));
    let reply = post(&gate, "no-such-session", &json!([ping(1)])).await;
    assert_eq!((reply.status, reply.refusal().as_str()), (400, "invalid-request"));
    gate.stop().await;
}

#[tokio::test]
async fn batch_uses_the_permits_of_its_client() {
    let gate = Setup::crooked("").and("[limits]\nconcurrent = 2").start().await;
    let session = session(&gate, "2025-03-26").await;
    let slow: Vec<_> = (1..=4).map(|id| call(id, "slow", json!({ "ms": 300 }))).collect();
    let answers = answers(&post(&gate, &session, &slow.into()).await);
    let codes: Vec<_> =
        answers.iter().map(|answer| answer["error"]["data"]["code"].as_str()).collect();
    assert_eq!(codes, [None, None, Some("rate-limited"), Some("rate-limited")], "{answers:#?}");
    gate.stop().await;
}

#[tokio::test]
async fn batches_work_over_standard_input() {
    let mut gate = Setup::crooked("").write().start_with(&["--stdio"]).await;
    let mut input = gate.stdin.take().unwrap();
    let mut output = BufReader::new(gate.stdout.take().unwrap()).lines();
    let mut next = async || -> Value {
        let line = in_time("a line", output.next_line()).await.unwrap().unwrap();
        serde_json::from_str(&line).unwrap()
    };
    input.write_all(format!("{}\n", hello("2025-03-26")).as_bytes()).await.unwrap();
    assert_eq!(next().await["result"]["protocolVersion"], "2025-03-26");
    let batch = json!([
        call(1, "echo", json!({ "text": "x" })),
        { "jsonrpc": "2.0", "method": "notifications/initialized" },
        request(2, "ping", json!({})),
    ]);
    input.write_all(format!("{batch}\n").as_bytes()).await.unwrap();
    let answers = next().await;
    assert_eq!(answers.as_array().map(Vec::len), Some(2), "{answers:#}");
    input.write_all(format!("{}\n", hello("2025-11-25")).as_bytes()).await.unwrap();
    assert_eq!(next().await["id"], 0);
    input.write_all(format!("{batch}\n").as_bytes()).await.unwrap();
    assert_eq!(code_of(&next().await["error"]), "invalid-request");
    drop(input);
    assert_eq!(gate.ended().await.code(), Some(0));
}
