//! Orderly shutdown: calls in flight are answered, servers and containers end, the exit code is 0.

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};

use crate::support::{agent::Agent, engine::containers, gate::Setup, in_time};

#[tokio::test]
async fn shutdown_waits_for_calls_in_flight() {
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let mut gate = Setup::crooked("").start().await;
        let agent = gate.modern();
        agent.text("crooked__echo", json!({ "text": "up" })).await;
        let url = gate.url("/mcp");
        let slow = tokio::spawn(async move {
            Agent::modern(&url, None).text("crooked__slow", json!({ "ms": 1500 })).await
        });
        // Its intent on record means that it is on its way.
        crate::support::until("the call to be under way", async || {
            let records = gate.records(&["--tool", "slow"]).await;
            (!records.is_empty()).then_some(())
        })
        .await;
        gate.signal(signal);
        assert_eq!(slow.await.unwrap(), "at last", "{signal}");
        assert_eq!(gate.ended().await.code(), Some(0), "{signal}: {:#?}", gate.log());
        assert!(crate::support::marked(&gate.mark).is_empty(), "{signal}");
    }
}

#[tokio::test]
async fn hanging_call_does_not_block_shutdown() {
    let mut gate = Setup::crooked("call-timeout-s = 3600").start().await;
    let url = gate.url("/mcp");
    let hanging =
        tokio::spawn(
            async move { Agent::modern(&url, None).call("crooked__hang", json!({})).await },
        );
    crate::support::until("the call to be under way", async || {
        let records = gate.records(&["--tool", "hang"]).await;
        (!records.is_empty()).then_some(())
    })
    .await;
    gate.signal(Signal::SIGTERM);
    assert_eq!(gate.ended().await.code(), Some(0), "{:#?}", gate.log());
    hanging.abort();
    assert!(crate::support::marked(&gate.mark).is_empty());
}

#[tokio::test]
async fn shutdown_removes_containers() {
    let gate = Setup::new(
        "[servers.crooked]\ncommand = [\"{crooked}\"]\nruntime = \"container\"\nenv = { GATE = \"{mark}\" }",
    )
    .start()
    .await;
    gate.modern().text("crooked__echo", json!({ "text": "x" })).await;
    assert_eq!(containers(&gate.mark).len(), 1);
    let written = gate.stop().await;
    assert!(containers(&written.mark).is_empty());
}

#[tokio::test]
async fn end_of_standard_input_ends_the_proxy() {
    let mut gate = Setup::notes().write().start_with(&["--stdio"]).await;
    let mut stdin = gate.stdin.take().unwrap();
    let mut lines = BufReader::new(gate.stdout.take().unwrap()).lines();
    let hello = json!({
        "jsonrpc": "2.0", "id": 1, "method": "initialize",
        "params": { "protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": { "name": "t", "version": "1" } },
    });
    let ready = json!({ "jsonrpc": "2.0", "method": "notifications/initialized" });
    let call = json!({
        "jsonrpc": "2.0", "id": 2, "method": "tools/call",
        "params": { "name": "notes__list_notes", "arguments": {} },
    });
    stdin.write_all(format!("{hello}\n{ready}\n{call}\n").as_bytes()).await.unwrap();
    let mut answers = Vec::new();
    while answers.len() < 2 {
        let line = in_time("an answer", lines.next_line()).await.unwrap().expect("a line");
        let message: Value = serde_json::from_str(&line).expect("nothing but JSON on stdout");
        if message["id"].is_u64() {
            answers.push(message);
        }
    }
    assert_eq!(answers[0]["result"]["protocolVersion"], "2025-11-25");
    assert!(answers[1].to_string().contains("welcome"), "{answers:#?}");
    drop(stdin);
    assert_eq!(gate.ended().await.code(), Some(0), "{:#?}", gate.log());
    assert!(crate::support::marked(&gate.mark).is_empty());
    // Over pipes it is the local user who asks.
    let records = gate.records(&["--tool", "list_notes"]).await;
    assert!(records[0]["principal"].as_str().unwrap().starts_with("local:"), "{records:#?}");
}

#[tokio::test]
async fn pending_standard_input_is_answered_before_the_end() {
    let mut gate = Setup::crooked("").write().start_with(&["--stdio"]).await;
    let mut stdin = gate.stdin.take().unwrap();
    let mut lines = BufReader::new(gate.stdout.take().unwrap()).lines();
    let hello = json!({
        "jsonrpc": "2.0", "id": 1, "method": "initialize",
        "params": { "protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": { "name": "t", "version": "1" } },
    });
    let call = json!({
        "jsonrpc": "2.0", "id": 2, "method": "tools/call",
        "params": { "name": "crooked__slow", "arguments": { "ms": 300 } },
    });
    let ready = json!({ "jsonrpc": "2.0", "method": "notifications/initialized" });
    stdin.write_all(format!("{hello}\n{ready}\n{call}\n").as_bytes()).await.unwrap();
    drop(stdin);
    let mut last = Value::Null;
    while let Some(line) = in_time("an answer", lines.next_line()).await.unwrap() {
        last = serde_json::from_str(&line).unwrap();
    }
    assert_eq!(last["id"], 2, "{last:#}");
    assert!(last.to_string().contains("at last"), "{last:#}");
    assert_eq!(gate.ended().await.code(), Some(0));
}
