//! Messages in both directions: calls, lists, reads, prompts, completions, notifications, and
//! server requests.

use serde_json::{Value, json};

use super::{any, like, one};
use crate::support::{
    agent::Agent,
    gate::{Gate, Setup},
    wire,
};

/// What every record of a message of `everything` has, by the client's era.
fn common(era: &str) -> Value {
    json!({
        "v": 1, "id": "*", "at": "*", "principal": "ann", "verified": true, "groups": ["ops"],
        "key_id": "*", "client_addr": "*", "transport": "http", "era": era, "revision": "*",
        "policy_revision": "*",
    })
}

fn with(mut record: Value, more: Value) -> Value {
    for (name, value) in more.as_object().unwrap() {
        record[name] = value.clone();
    }
    record
}

async fn keyed(era: &str) -> (Gate, Agent) {
    let written = Setup::everything("legacy").keyed().write();
    let key = written.add_client("ann", &["ops"]).await;
    let gate = written.start().await;
    let url = gate.url("/mcp");
    let agent = match era {
        "legacy" => Agent::legacy(&url, Some(&key)).await.unwrap(),
        _ => Agent::modern(&url, Some(&key)),
    };
    (gate, agent)
}

#[tokio::test]
async fn every_method_has_an_intent_and_an_outcome() {
    let tool = "everything__test_simple_text";
    let prompt = "everything__test_simple_prompt";
    let reference =
        json!({ "type": "ref/prompt", "name": "everything__test_prompt_with_arguments" });
    let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
    let traced = json!({ "traceparent": format!("00-{trace}-00f067aa0ba902b7-01") });
    for era in ["legacy", "modern"] {
        let (gate, agent) = keyed(era).await;
        let server = json!("everything");
        let cases = [
            ("tools/list", json!({}), json!({})),
            (
                "tools/call",
                json!({ "name": tool, "arguments": {}, "_meta": traced }),
                json!({ "server": server, "target": { "tool": "test_simple_text" }, "pin": "*",
                    // The modern agent's `_meta` is its own.
                    "trace": if era == "legacy" { json!(trace) } else { Value::Null } }),
            ),
            (
                "prompts/get",
                json!({ "name": prompt }),
                json!({ "server": server, "target": { "prompt": "test_simple_prompt" } }),
            ),
            (
                "resources/read",
                json!({ "uri": "test://static-text" }),
                json!({ "server": server, "target": { "resource": "test://static-text" } }),
            ),
            (
                "completion/complete",
                json!({ "ref": reference, "argument": { "name": "arg1", "value": "a" } }),
                json!({ "server": server }),
            ),
        ];
        for (method, params, _) in &cases {
            agent.ask(method, params.clone()).await.unwrap_or_else(|e| panic!("{method}: {e:#}"));
        }
        let records = gate.records(&[]).await;
        for (method, _, more) in cases {
            let wanted = with(common(era), with(more, json!({ "method": method })));
            let intent = with(
                wanted.clone(),
                json!({ "record": "intent", "decision": "allowed",
                "request": { "bytes": "*", "digest": "*" }, "rules": [{ "id": "all", "file": "*",
                "line": 1 }] }),
            );
            let id = one(&records, &intent)["id"].clone();
            let outcome = one(
                &records,
                &with(
                    wanted,
                    json!({ "record": "outcome", "id": id, "decision": "allowed",
                    "answer": "result", "response": { "bytes": "*", "digest": "*" }, "shape": "*",
                    "total_us": "*" }),
                ),
            );
            let stages = outcome["stages_us"].as_object().unwrap();
            for stage in ["request/policy", "intent"] {
                assert!(stages.contains_key(stage), "{method}: {outcome:#}");
            }
            let asked = !outcome["server"].is_null();
            assert_eq!(stages.contains_key("server"), asked, "{method}: {outcome:#}");
            let all: u64 = stages.values().map(|us| us.as_u64().unwrap()).sum();
            // But for what is lost in rounding, stages are parts of the whole.
            let parse = stages.get("parse").and_then(Value::as_u64).unwrap_or(0);
            let total = outcome["total_us"].as_u64().unwrap();
            assert!(all <= total + parse, "{method}: {outcome:#}");
        }
        gate.stop().await;
    }
}

#[tokio::test]
async fn records_have_definition_digest_and_session() {
    let gate = Setup::everything("legacy").start().await;
    let agent = gate.legacy().await;
    for tool in ["everything__test_simple_text", "everything__test_error_handling"] {
        let _ = agent.call(tool, json!({})).await;
        let _ = agent.call(tool, json!({})).await;
    }
    let records = gate.records(&[]).await;
    let pins = |tool: &str| -> Vec<Value> {
        let wanted = json!({ "record": "intent", "target": { "tool": tool } });
        like(&records, &wanted).iter().map(|record| record["pin"].clone()).collect()
    };
    let (text, error) = (pins("test_simple_text"), pins("test_error_handling"));
    assert!(text.len() == 2 && text[0] == text[1] && error[0] == error[1], "{text:?} {error:?}");
    assert_ne!(text[0], error[0]);
    assert!(text[0].as_str().unwrap().starts_with("sha256:"), "{text:?}");
    // The greeting says which session it opened, which all the rest names.
    let opened = json!({ "record": "outcome", "method": "initialize", "session": "*" });
    let session = &one(&records, &opened)["session"];
    one(
        &records,
        &json!({ "record": "event", "event": "session-opened", "session": session,
        "principal": "anonymous", "transport": "http", "client_addr": "*", "revision": "*",
        "client_info": "*" }),
    );
    any(&records, &json!({ "record": "outcome", "method": "tools/call", "session": session }));
    gate.stop().await;
}

#[tokio::test]
async fn notifications_are_recorded_in_both_directions() {
    let gate = Setup::everything("legacy").start().await;
    let agent = gate.legacy().await;
    agent.call("everything__test_tool_with_logging", json!({})).await.unwrap();
    let records = gate.records(&[]).await;
    for record in ["intent", "outcome"] {
        one(
            &records,
            &json!({ "record": record, "direction": "client-to-server",
            "method": "notifications/initialized", "notification": true }),
        );
    }
    any(
        &records,
        &json!({ "record": "intent", "direction": "server-to-client",
        "method": "notifications/message", "notification": true, "server": "everything",
        "principal": "anonymous" }),
    );
    gate.stop().await;
}

#[tokio::test]
async fn server_requests_and_responses_are_recorded() {
    let gate = Setup::everything("legacy").start().await;
    let mut agent = gate.modern();
    agent.abilities = json!({ "elicitation": {}, "sampling": {}, "roots": {} });
    let call = json!({ "name": "everything__test_elicitation", "arguments": { "message": "?" } });
    let asked = agent.ask("tools/call", call.clone()).await.unwrap();
    let key = asked["inputRequests"].as_object().unwrap().keys().next().unwrap().clone();
    let mut again = call;
    let given = json!({ "action": "accept", "content": { "username": "a", "email": "a@b.c" } });
    again["inputResponses"] = json!({ key: given });
    again["requestState"] = asked["requestState"].clone();
    agent.ask("tools/call", again).await.unwrap();
    let records = gate.records(&[]).await;
    let question = json!({ "direction": "server-to-client", "method": "elicitation/create",
        "server": "everything", "principal": "anonymous" });
    let intent =
        with(question.clone(), json!({ "record": "intent", "shape": { "/message": "string" } }));
    let id = &one(&records, &intent)["id"];
    let outcome = one(
        &records,
        &with(
            question,
            json!({ "record": "outcome", "id": id, "answer": "result",
            "shape": { "/action": "string" }, "stages_us": { "client": "*" } }),
        ),
    );
    assert!(!outcome.to_string().contains("a@b.c"), "{outcome:#}");
    gate.stop().await;
}

#[tokio::test]
async fn refusals_of_every_stage_are_recorded() {
    let written = Setup::crooked("")
        .keyed()
        .policies(
            r#"
            @id("most")
            permit (principal, action, resource);
            @id("no-flood")
            @reason("not here")
            forbid (principal, action, resource == Portcullis::Tool::"crooked/flood");
            "#,
        )
        .and("[[interceptors]]\nuse = \"schema\"\n[[interceptors]]\nuse = \"secrets\"")
        .write();
    let key = written.add_client("ann", &[]).await;
    let gate = written.start().await;
    let agent = Agent::modern(&gate.url("/mcp"), Some(&key));
    // At the door.
    let nobody = wire::post(gate.addr, "/mcp", wire::ORDINARY, b"{}").await;
    assert_eq!(nobody.status, 401);
    let host = [wire::ORDINARY, &[("Host", "evil.example")]].concat();
    assert_eq!(wire::post(gate.addr, "/mcp", &host, b"{}").await.status, 403);
    let bearer = format!("Bearer {key}");
    let known = [wire::ORDINARY, &[("Authorization", bearer.as_str())]].concat();
    assert_eq!(wire::post(gate.addr, "/mcp", &known, b"{").await.refusal(), "malformed");
    // By the router, policy, an interceptor; and the answer, by another.
    agent.refused("crooked__no_such_tool", json!({})).await;
    agent.refused("crooked__flood", json!({})).await;
    agent.refused("crooked__echo", json!({ "text": crate::support::credential() })).await;
    agent.refused("crooked__lie", json!({})).await;
    // By the server itself.
    assert!(agent.call("crooked__die", json!({})).await.is_err());
    let cases = [
        json!({ "record": "refused", "refusal": { "code": "unauthenticated" }, "client_addr": "*" }),
        json!({ "record": "refused", "refusal": { "code": "forbidden-origin" } }),
        json!({ "record": "refused", "refusal": { "code": "malformed" }, "principal": "ann",
            "verified": true, "key_id": "*", "request": { "bytes": 1 } }),
        json!({ "record": "refused", "refusal": { "code": "unknown-target" }, "principal": "ann",
            "stages_us": { "route": "*" } }),
        json!({ "record": "refused", "refusal": { "code": "policy-denied" },
            "rules": [{ "id": "no-flood", "file": "*", "line": 4, "reason": "not here" }] }),
        json!({ "record": "refused", "refusal": { "code": "secret-found" },
            "findings": [{ "interceptor": "secrets", "effect": "refused" }],
            "stages_us": { "request/secrets": "*" } }),
        json!({ "record": "outcome", "decision": "refused", "refusal": { "code": "result-invalid" },
            "answer": "result", "response": { "bytes": "*", "digest": "*" },
            "shape": { "/structuredContent/count": "string" },
            "stages_us": { "server": "*", "response/schema": "*" } }),
        json!({ "record": "outcome", "decision": "failed", "server_us": "*",
            "refusal": { "code": "server-unavailable" } }),
    ];
    let records = gate.records(&[]).await;
    for wanted in cases {
        one(&records, &wanted);
    }
    gate.stop().await;
}
