//! REST, for callers that do not speak MCP.

use std::process::Stdio;

use serde_json::{Value, json};
use tokio::{io::AsyncWriteExt, process::Command};

use crate::support::{
    credential,
    gate::{Gate, Setup},
    in_time, target, until,
    wire::{self, Reply},
};

const JSON: &[(&str, &str)] = &[("Content-Type", "application/json")];

const POLICY: &str = r#"
@id("use")
permit (principal, action, resource);
@id("keep")
forbid (principal, action == Portcullis::Action::"call_tool", resource == Portcullis::Tool::"crooked/die");
"#;

async fn get(gate: &Gate, path: &str, more: &str) -> Reply {
    let head =
        format!("GET {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n{more}\r\n", gate.addr);
    wire::raw(gate.addr, head.as_bytes()).await
}

async fn post(gate: &Gate, path: &str, body: &Value) -> Reply {
    wire::post(gate.addr, path, JSON, body.to_string().as_bytes()).await
}

fn body(reply: &Reply) -> Value {
    serde_json::from_str(&reply.body).unwrap_or_else(|e| panic!("{e}: {reply:#?}"))
}

/// The status and the stable code of a refusal, which has a decision's id.
fn refused(reply: &Reply) -> (u16, String) {
    let error = &body(reply)["error"];
    assert!(error["decision"].as_str().is_some_and(|id| id.len() == 36), "{reply:#?}");
    (reply.status, error["code"].as_str().unwrap().to_owned())
}

/// Holds an answer against what the document says of it.
fn holds(document: &Value, path: &str, verb: &str, reply: &Reply) {
    let status = reply.status.to_string();
    let responses = &document["paths"][path][verb]["responses"];
    let response = responses.get(&status).unwrap_or(&responses["default"]);
    let response = match response["$ref"].as_str() {
        Some(pointer) => document.pointer(pointer.trim_start_matches('#')).unwrap(),
        None => response,
    };
    let mut schema = response["content"]["application/json"]["schema"].clone();
    assert!(schema.is_object(), "{path} {status}");
    schema["components"] = document["components"].clone();
    let validator = jsonschema::draft202012::new(&schema).unwrap();
    if let Err(error) = validator.validate(&body(reply)) {
        panic!("{verb} {path}: {error} at {}: {reply:#?}", error.instance_path());
    }
}

#[tokio::test]
async fn tools_are_listed_and_called() {
    let gate = Setup::crooked("").policies(POLICY).start().await;
    let document = body(&get(&gate, "/openapi.json", "").await);
    let list = get(&gate, "/tools", "").await;
    holds(&document, "/tools", "get", &list);
    let names = |list: &Reply| -> Vec<String> {
        let list = body(list);
        let tools = list["tools"].as_array().unwrap().iter();
        tools.map(|tool| tool["name"].as_str().unwrap().to_owned()).collect()
    };
    let all = names(&list);
    assert!(all.contains(&"crooked__echo".into()), "{all:?}");
    assert!(!all.contains(&"crooked__die".into()), "{all:?}");
    let one = names(&get(&gate, "/tools?server=crooked", "").await);
    assert!(one.contains(&"echo".into()), "{one:?}");

    let call = json!({ "tool": "crooked__echo", "arguments": { "text": "x" } });
    let reply = post(&gate, "/invoke", &call).await;
    assert_eq!(reply.status, 200, "{reply:#?}");
    holds(&document, "/invoke", "post", &reply);
    assert_eq!(body(&reply)["content"][0]["text"], "x");
    let call = json!({ "tool": "echo", "arguments": { "text": "y" } });
    let reply = post(&gate, "/invoke?server=crooked", &call).await;
    assert_eq!(body(&reply)["content"][0]["text"], "y");
    gate.stop().await;
}

#[tokio::test]
async fn arguments_reach_the_server_unchanged() {
    let gate = Setup::crooked("").start().await;
    let arguments = r#"{"a": 50.0,  "b":[1e2, "\u00e9"]}"#;
    let call = format!(r#"{{"tool":"crooked__reflect","arguments":{arguments}}}"#);
    let reply = wire::post(gate.addr, "/invoke", JSON, call.as_bytes()).await;
    let body = body(&reply);
    let seen = body["content"][0]["text"].as_str().unwrap();
    assert!(seen.contains(arguments), "{seen}");
    gate.stop().await;
}

#[tokio::test]
async fn refusals_have_status_code_and_decision_id() {
    let notes = "[servers.notes]\ncommand = [\"portcullis\", \"example-server\", \"notes\"]\n\
                 runtime = \"sandbox\"";
    let gate = Setup::crooked("call-timeout-s = 1").and(notes).policies(POLICY).start().await;
    let document = body(&get(&gate, "/openapi.json", "").await);
    for (call, status, code) in [
        (json!({ "tool": "crooked__die" }), 403, "policy-denied"),
        (json!({ "tool": "crooked__none" }), 404, "unknown-target"),
        (json!({ "tool": "notes__read_note" }), 400, "arguments-invalid"),
        (json!({ "tool": "crooked__hang" }), 504, "server-timeout"),
        (json!({ "tool": 7 }), 400, "invalid-params"),
        (json!({ "tool": "crooked__echo", "arguments": [] }), 400, "invalid-params"),
        (json!({ "name": "crooked__echo" }), 400, "invalid-params"),
        (json!([]), 400, "invalid-request"),
    ] {
        let reply = post(&gate, "/invoke", &call).await;
        assert_eq!(refused(&reply), (status, code.into()), "{call}");
        holds(&document, "/invoke", "post", &reply);
    }
    for (path, status, code) in [
        ("/tools?server=none", 404, "unknown-target"),
        ("/tools?what=x", 400, "invalid-request"),
        ("/tools?server=a&server=b", 400, "invalid-request"),
        ("/tools?server=%ff", 404, "unknown-target"),
    ] {
        let reply = get(&gate, path, "").await;
        assert_eq!(refused(&reply), (status, code.into()), "{path}");
        holds(&document, "/tools", "get", &reply);
    }
    let twice = br#"{"tool":"crooked__echo","tool":"crooked__die"}"#;
    let reply = wire::post(gate.addr, "/invoke", JSON, twice).await;
    assert_eq!(refused(&reply), (400, "duplicate-key".into()));
    let reply = wire::post(gate.addr, "/invoke", &[("Content-Type", "text/plain")], b"{}").await;
    assert_eq!(refused(&reply), (415, "unsupported-media".into()));
    let reply = get(&gate, "/tools", "Origin: http://evil.example\r\n").await;
    assert_eq!(refused(&reply), (403, "forbidden-origin".into()));
    for (path, allowed) in [("/invoke", "POST"), ("/batch", "POST")] {
        let reply = get(&gate, path, "").await;
        assert_eq!(refused(&reply), (405, "http-method-not-allowed".into()));
        assert_eq!(reply.header("allow"), Some(allowed));
    }
    let records = gate.records(&["--tool", "die"]).await;
    assert!(records.iter().any(|record| record["decision"] == "refused"), "{records:#?}");
    gate.stop().await;
}

#[tokio::test]
async fn batch_calls_are_decided_separately_and_answered_in_order() {
    let gate = Setup::crooked("").policies(POLICY).start().await;
    let document = body(&get(&gate, "/openapi.json", "").await);
    let calls = json!([
        { "tool": "crooked__slow", "arguments": { "ms": 300 } },
        { "tool": "crooked__die" },
        { "tool": "crooked__echo", "arguments": { "text": "x" } },
        7,
        { "tool": "crooked__leak" },
    ]);
    let reply = post(&gate, "/batch", &calls).await;
    holds(&document, "/batch", "post", &reply);
    let answers = body(&reply);
    let statuses: Vec<_> =
        answers.as_array().unwrap().iter().map(|a| a["status"].clone()).collect();
    assert_eq!(statuses, [200, 403, 200, 400, 200], "{answers:#}");
    assert_eq!(answers[0]["result"]["content"][0]["text"], "at last");
    assert_eq!(answers[1]["error"]["code"], "policy-denied");
    assert_eq!(answers[2]["result"]["content"][0]["text"], "x");
    assert!(!reply.body.contains(&credential()), "{reply:#?}");
    assert!(reply.body.contains("[redacted:aws-access-key-id]"), "{reply:#?}");
    let many = Value::from(vec![json!({ "tool": "crooked__echo" }); 65]);
    let reply = post(&gate, "/batch", &many).await;
    assert_eq!(refused(&reply), (413, "too-large".into()));
    assert_eq!(refused(&post(&gate, "/batch", &json!([])).await), (400, "invalid-request".into()));
    let keys: serde_json::Map<_, _> = (0..9_000).map(|i| (format!("k{i}"), json!(0))).collect();
    let call = json!({ "tool": "crooked__echo", "arguments": keys });
    let beyond = post(&gate, "/batch", &json!(vec![call; 6])).await;
    assert_eq!(refused(&beyond), (413, "too-large".into()));
    gate.stop().await;
}

#[tokio::test]
async fn batch_uses_permits_of_its_client_and_ends_with_it() {
    let gate =
        Setup::crooked("call-timeout-s = 3600").and("[limits]\nconcurrent = 2").start().await;
    let slow = json!({ "tool": "crooked__slow", "arguments": { "ms": 300 } });
    let reply = post(&gate, "/batch", &json!([slow, slow, slow])).await;
    let statuses: Vec<_> =
        body(&reply).as_array().unwrap().iter().map(|a| a["status"].clone()).collect();
    assert_eq!(statuses, [200, 200, 429], "{reply:#?}");
    let addr = gate.addr;
    let hang = json!({ "tool": "crooked__hang" }).to_string();
    let hanging =
        tokio::spawn(async move { wire::post(addr, "/invoke", JSON, hang.as_bytes()).await });
    until("the call to be under way", async || {
        (!gate.records(&["--tool", "hang"]).await.is_empty()).then_some(())
    })
    .await;
    hanging.abort();
    until("the call to be cancelled", async || {
        let records = gate.records(&["--tool", "hang"]).await;
        records.iter().any(|record| record["decision"] == "cancelled").then_some(())
    })
    .await;
    gate.stop().await;
}

#[tokio::test]
async fn rest_needs_a_key_and_can_be_disabled() {
    let written = Setup::crooked("").keyed().write();
    let key = written.add_client("a", &[]).await;
    let gate = written.start().await;
    for path in ["/tools", "/openapi.json"] {
        let reply = get(&gate, path, "").await;
        assert_eq!(refused(&reply), (401, "unauthenticated".into()), "{path}");
        assert!(reply.header("www-authenticate").is_some());
        let reply = get(&gate, path, &format!("Authorization: Bearer {key}\r\n")).await;
        assert_eq!(reply.status, 200, "{path}");
    }
    gate.stop().await;
    let gate = Setup::crooked("").listen("rest = false").start().await;
    for path in ["/tools", "/openapi.json"] {
        assert_eq!(get(&gate, path, "").await.status, 404, "{path}");
    }
    gate.stop().await;
}

/// A third-party validator accepts the document.
#[tokio::test]
async fn openapi_document_is_valid() {
    let gate = Setup::crooked("").start().await;
    let document = get(&gate, "/openapi.json", "").await.body;
    let mut command = Command::new(target("tests/python/bin/python"));
    command.args(["-m", "openapi_spec_validator", "-"]).kill_on_drop(true);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(document.as_bytes()).await.unwrap();
    let output = in_time("the validator", child.wait_with_output()).await.unwrap();
    assert!(output.status.success(), "{output:#?}");
    gate.stop().await;
}
