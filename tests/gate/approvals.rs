//! Calls that wait for an approval: allowed and denied by command and by webhook, timed out,
//! abandoned.

use std::sync::Arc;

use axum::{Json, Router, extract::State, routing::post};
use serde_json::{Value, json};
use tokio::sync::mpsc;

use crate::support::{
    agent::{Agent, code_of},
    credential,
    gate::{Gate, Setup},
    in_time, until,
};

const POLICIES: &str = r#"
    @id("rest")
    permit (principal, action, resource)
    unless { action == Portcullis::Action::"call_tool" && resource.name == "reflect" };

    @id("by-a-person")
    @approve("it leaves the house")
    permit (principal, action, resource)
    when { action == Portcullis::Action::"call_tool" && resource.name == "reflect" };
"#;

const REFLECT: &str = "crooked__reflect";

/// The calls that wait, once there are so many.
async fn waiting(gate: &Gate, many: usize) -> Vec<Value> {
    until(&format!("{many} calls to wait"), async || {
        let listed = gate.cli(&["approve", "ls", "--format", "json"]).await;
        assert_eq!(listed.code, Some(0), "{}", listed.stderr);
        let calls: Vec<Value> = serde_json::from_str(&listed.stdout).unwrap();
        (calls.len() == many).then_some(calls)
    })
    .await
}

async fn say(gate: &Gate, verb: &str, call: &Value) {
    let id = call["id"].as_str().unwrap();
    let said = gate.cli(&["approve", verb, id, "--reason", "as agreed"]).await;
    assert_eq!(said.code, Some(0), "{}", said.stderr);
}

fn call(agent: &Arc<Agent>, arguments: Value) -> tokio::task::JoinHandle<Result<Value, Value>> {
    let agent = agent.clone();
    tokio::spawn(async move { agent.call(REFLECT, arguments).await })
}

#[tokio::test]
async fn call_waits_for_an_approval() {
    let gate = Setup::crooked("").without("secrets").policies(POLICIES).start().await;
    for agent in [gate.legacy().await, gate.modern()] {
        let agent = Arc::new(agent);
        let secret = credential();
        let asked = call(&agent, json!({ "text": "hello", "key": secret }));
        let calls = waiting(&gate, 1).await;
        let shown = &calls[0];
        assert_eq!(shown["principal"], "anonymous");
        assert_eq!((&shown["server"], &shown["target"]), (&json!("crooked"), &json!("reflect")));
        assert_eq!(shown["rules"][0]["id"], "by-a-person");
        assert_eq!(shown["rules"][0]["why"], "it leaves the house");
        assert_eq!(shown["params"]["body"]["arguments"]["text"], "hello");
        assert!(!shown.to_string().contains(&secret), "{shown:#}");
        // Others are not kept waiting, nor does anything leave meanwhile.
        agent.call("crooked__echo", json!({ "text": "x" })).await.unwrap();
        say(&gate, "allow", shown).await;
        let result = in_time("the call", asked).await.unwrap().unwrap();
        assert!(result.to_string().contains("hello"), "{result:#}");
        // It is allowed once.
        let again = gate.cli(&["approve", "allow", shown["id"].as_str().unwrap()]).await;
        assert_eq!(again.code, Some(1), "{}", again.stdout);

        let asked = call(&agent, json!({ "text": "no" }));
        let calls = waiting(&gate, 1).await;
        say(&gate, "deny", &calls[0]).await;
        let refused = in_time("the call", asked).await.unwrap().unwrap_err();
        assert_eq!(code_of(&refused), "approval-denied", "{refused:#}");
        assert_eq!(refused["data"]["decision"], calls[0]["id"]);
        assert!(!refused.to_string().contains("as agreed"), "{refused:#}");
    }
    let records = gate.records(&["--oldest-first"]).await;
    let of = |event: &str| records.iter().filter(|r| r["event"] == event).count();
    assert_eq!((of("approval-requested"), of("approval-decided")), (4, 4));
    for given in records.iter().filter(|r| r["event"] == "approval-decided") {
        assert!(given["by"].is_string() && given["reason"] == "as agreed", "{given:#}");
        // What was allowed left after that.
        let place = |kind: &str| {
            records.iter().position(|r| r["record"] == kind && r["id"] == given["call"])
        };
        let at = records.iter().position(|r| r["seq"] == given["seq"]);
        match given["allowed"].as_bool().unwrap() {
            true => assert!(place("intent") > at && place("refused").is_none()),
            false => assert!(place("intent").is_none() && place("refused") > at),
        }
    }
    gate.stop().await;
}

#[tokio::test]
async fn rate_obligation_limits_approval_requests() {
    let rated = POLICIES.replace("@approve", "@rate(\"2/1h\") @approve");
    let gate = Setup::crooked("").policies(&rated).start().await;
    let agent = Arc::new(gate.modern());
    for _ in 0..2 {
        let asked = call(&agent, json!({ "text": "please" }));
        say(&gate, "deny", &waiting(&gate, 1).await[0]).await;
        let refused = in_time("the call", asked).await.unwrap().unwrap_err();
        assert_eq!(code_of(&refused), "approval-denied", "{refused:#}");
    }
    assert_eq!(agent.refused(REFLECT, json!({ "text": "please" })).await, "rate-limited");
    let records = gate.records(&[]).await;
    assert_eq!(records.iter().filter(|r| r["event"] == "approval-requested").count(), 2);
    gate.stop().await;
}

#[tokio::test]
async fn waiting_calls_time_out_and_are_limited() {
    let gate = Setup::crooked("")
        .and("[approvals]\ntimeout-s = 1\nper-client = 1")
        .policies(POLICIES)
        .start()
        .await;
    let agent = Arc::new(gate.modern());
    let asked = call(&agent, json!({ "text": "a" }));
    waiting(&gate, 1).await;
    assert_eq!(agent.refused(REFLECT, json!({ "text": "b" })).await, "approval-timeout");
    let refused = in_time("the call", asked).await.unwrap().unwrap_err();
    assert_eq!(code_of(&refused), "approval-timeout");
    waiting(&gate, 0).await;
    let asked = call(&agent, json!({ "text": "c" }));
    waiting(&gate, 1).await;
    asked.abort();
    waiting(&gate, 0).await;
    gate.stop().await;
}

#[tokio::test]
async fn changed_policies_decide_waiting_calls() {
    let mut gate = Setup::crooked("").policies(POLICIES).start().await;
    let agent = Arc::new(gate.modern());
    let asked = call(&agent, json!({ "text": "a" }));
    let calls = waiting(&gate, 1).await;
    let forbid = format!("{POLICIES}\n@id(\"stop\") forbid (principal, action, resource);");
    std::fs::write(gate.path("policies/gate.cedar"), forbid).unwrap();
    gate.logged("the new policies", |line| line.contains("policies reloaded")).await;
    say(&gate, "allow", &calls[0]).await;
    let refused = in_time("the call", asked).await.unwrap().unwrap_err();
    assert_eq!(code_of(&refused), "policy-denied", "{refused:#}");
    gate.stop().await;
}

#[tokio::test]
async fn webhook_is_notified_and_can_decide() {
    let (told, mut calls) = mpsc::channel::<Value>(8);
    let app = Router::new().route(
        "/hook",
        post(async |State(told): State<mpsc::Sender<Value>>, Json(call): Json<Value>| {
            let text = call["params"]["body"]["arguments"]["text"].clone();
            told.send(call).await.unwrap();
            match text.as_str().unwrap() {
                "yes" => Json(json!({ "decision": "allow", "by": "bot" })),
                "no" => Json(json!({ "decision": "deny", "reason": "no" })),
                _ => Json(json!("what?")),
            }
        }),
    );
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, app.with_state(told)).await });
    let gate = Setup::crooked("")
        .and(&format!("[approvals]\nwebhook = {{ url = \"http://{address}/hook\" }}"))
        .policies(POLICIES)
        .start()
        .await;
    let agent = Arc::new(gate.modern());
    assert!(agent.call(REFLECT, json!({ "text": "yes" })).await.is_ok());
    let told = in_time("the webhook", calls.recv()).await.unwrap();
    assert_eq!(told["rules"][0]["id"], "by-a-person", "{told:#}");
    assert_eq!(agent.refused(REFLECT, json!({ "text": "no" })).await, "approval-denied");
    // Whatever else it says decides nothing.
    let asked = call(&agent, json!({ "text": "other" }));
    let waiting = waiting(&gate, 1).await;
    say(&gate, "allow", &waiting[0]).await;
    assert!(in_time("the call", asked).await.unwrap().is_ok());
    let records = gate.records(&[]).await;
    let by: Vec<_> = records.iter().filter(|r| r["event"] == "approval-decided").collect();
    assert!(by.iter().any(|given| given["by"] == "webhook: bot"), "{by:#?}");
    // Who was told is on record, and that one answer was none.
    let asked = records.iter().filter(|r| r["event"] == "approval-requested");
    assert!(asked.clone().all(|asked| asked["webhook"] == "127.0.0.1"), "{records:#?}");
    let untold: Vec<_> =
        records.iter().filter(|r| r["event"] == "approval-webhook-failed").collect();
    let [untold] = untold.as_slice() else { panic!("{records:#?}") };
    assert_eq!((asked.count(), &untold["call"]), (3, &waiting[0]["id"]));
    assert!(untold["reason"].as_str().unwrap().contains("its answer is not"), "{untold:#}");
    gate.stop().await;
}
