//! Obligations: redaction, rates, notes, labels.

use serde_json::{Value, json};

use crate::support::{
    agent::{Agent, code_of},
    events::Events,
    gate::{Gate, Setup},
    wire,
};

const POLICIES: &str = r#"
    @id("rest")
    permit (principal, action, resource)
    unless { action == Portcullis::Action::"call_tool" };

    @id("reflect-redacts")
    @redact("/secret, /list/*/ssn")
    @note("the secret was taken out")
    permit (principal, action, resource == Portcullis::Tool::"crooked/reflect");

    @id("echo-taints")
    @label("tainted")
    @redact("result:/content/0/text")
    permit (principal, action, resource == Portcullis::Tool::"crooked/echo");

    @id("flood-when-clean")
    @rate("2/1h")
    permit (principal, action, resource == Portcullis::Tool::"crooked/flood")
    unless { context.labels.contains("tainted") };
"#;

fn texts(result: &Value) -> Vec<&str> {
    result["content"].as_array().unwrap().iter().map(|c| c["text"].as_str().unwrap()).collect()
}

#[tokio::test]
async fn fields_are_overwritten_and_notes_added() {
    let gate = Setup::crooked("").policies(POLICIES).start().await;
    for agent in [gate.legacy().await, gate.modern()] {
        let said = json!({
            "text": "kept", "secret": { "deep": 1 }, "list": [{ "ssn": 1, "n": 1.50 }, { "n": 2 }],
        });
        let reflected = agent.call("crooked__reflect", said).await.unwrap();
        let texts = texts(&reflected);
        assert_eq!(texts.last(), Some(&"[portcullis] the secret was taken out"));
        // As the server read it, byte for byte.
        let arguments = r#"{"text":"kept","secret":"[redacted]","list":[{"ssn":"[redacted]","n":1.5},{"n":2}]}"#;
        assert!(texts[0].contains(arguments), "{}", texts[0]);
        let echoed = agent.call("crooked__echo", json!({ "text": "hidden" })).await.unwrap();
        assert_eq!(echoed["content"], json!([{ "type": "text", "text": "[redacted]" }]));
    }
    let records = gate.records(&[]).await;
    let intents = records
        .iter()
        .filter(|record| record["record"] == "intent" && record["target"]["tool"] == "reflect");
    for intent in intents {
        let finding = &intent["findings"][0];
        assert_eq!(finding["effect"], "redacted", "{intent:#}");
        assert_eq!(finding["rule"]["id"], "reflect-redacts", "{intent:#}");
    }
    gate.stop().await;
}

#[tokio::test]
async fn rates_belong_to_a_client_and_labels_to_a_session() {
    let gate = Setup::crooked("").policies(POLICIES).start().await;
    let flood = json!({ "mib": 0 });
    let first = gate.legacy().await;
    first.call("crooked__flood", flood.clone()).await.unwrap();
    first.call("crooked__echo", json!({ "text": "from outside" })).await.unwrap();
    assert_eq!(first.refused("crooked__flood", flood.clone()).await, "policy-denied");
    // Another session of the same client has read nothing of the kind.
    let second = gate.legacy().await;
    second.call("crooked__flood", flood.clone()).await.unwrap();
    // But it is the same client.
    assert_eq!(second.refused("crooked__flood", flood.clone()).await, "rate-limited");
    let modern = gate.modern();
    assert_eq!(modern.refused("crooked__flood", flood.clone()).await, "rate-limited");
    modern.call("crooked__echo", json!({ "text": "from outside" })).await.unwrap();
    assert_eq!(modern.refused("crooked__flood", flood).await, "policy-denied");
    let records = gate.records(&[]).await;
    let limited: Vec<_> =
        records.iter().filter(|record| record["refusal"]["code"] == "rate-limited").collect();
    assert_eq!(limited.len(), 2);
    assert_eq!(limited[0]["rules"][0]["id"], "flood-when-clean", "{:#}", limited[0]);
    let denied: Vec<_> =
        records.iter().filter(|record| record["refusal"]["code"] == "policy-denied").collect();
    assert!(denied.iter().all(|record| record["labels"] == json!(["tainted"])), "{denied:#?}");
    gate.stop().await;
}

#[tokio::test]
async fn shadow_policy_is_only_recorded() {
    let policies = r#"
        @id("rest")
        permit (principal, action, resource)
        unless { action == Portcullis::Action::"call_tool" };

        @id("echo")
        permit (principal, action, resource == Portcullis::Tool::"crooked/echo");

        @id("no-x")
        @mode("shadow")
        forbid (principal, action == Portcullis::Action::"call_tool", resource)
        when { context.args.hasTag("/text") && context.args.getTag("/text") == "x" };

        @id("flood")
        @mode("shadow")
        permit (principal, action, resource == Portcullis::Tool::"crooked/flood");
    "#;
    let gate = Setup::crooked("").policies(policies).start().await;
    for agent in [gate.legacy().await, gate.modern()] {
        assert_eq!(agent.names("tools/list").await, ["crooked__echo"]);
        for text in ["x", "y"] {
            let echoed = agent.call("crooked__echo", json!({ "text": text })).await.unwrap();
            assert_eq!(texts(&echoed), [text]);
        }
        assert_eq!(agent.refused("crooked__flood", json!({ "mib": 0 })).await, "policy-denied");
    }
    let records = gate.records(&[]).await;
    let mut found: Vec<_> = records
        .iter()
        .filter(|record| record["method"] == "tools/call" && record["record"] != "outcome")
        .flat_map(|record| {
            let refused = !record["refusal"].is_null();
            let findings = record["findings"].as_array().into_iter().flatten();
            findings.map(move |finding| {
                let text = |value: &Value| value.as_str().unwrap().to_owned();
                (refused, text(&finding["rule"]["id"]), text(&finding["effect"]))
            })
        })
        .collect();
    found.sort();
    let one = |refused, id: &str, effect: &str| (refused, id.to_owned(), effect.to_owned());
    let (refuse, permit) = (one(false, "no-x", "would-refuse"), one(true, "flood", "would-permit"));
    assert_eq!(found, [refuse.clone(), refuse, permit.clone(), permit]);
    gate.stop().await;
}

/// What `everything` may do, until its client has been tainted.
const TAINTED: &str = r#"
    @id("all")
    permit (principal, action, resource);

    @id("taints")
    @label("tainted")
    permit (principal, action == Portcullis::Action::"call_tool", resource)
    when { ["test_simple_text", "slow_compute"].contains(resource.name) };

    @id("nothing-of-the-tainted")
    forbid (principal, action, resource)
    when { context.labels.contains("tainted") }
    unless {
        action == Portcullis::Action::"connect"
        || (action == Portcullis::Action::"call_tool"
            && ["test_simple_text", "slow_compute", "test_elicitation"].contains(resource.name))
    };
"#;

async fn invoke(gate: &Gate, tool: &str) -> (u16, Value) {
    let call = json!({ "tool": format!("everything__{tool}"), "arguments": {} }).to_string();
    let json = [("Content-Type", "application/json")];
    let reply = wire::post(gate.addr, "/invoke", &json, call.as_bytes()).await;
    (reply.status, serde_json::from_str(&reply.body).unwrap())
}

/// The resources that a client may listen to; nothing where there are none.
async fn listened(agent: &Agent, gate: &Gate) -> Value {
    let listen = agent.request(
        "subscriptions/listen",
        json!({ "notifications": { "resourceSubscriptions": ["test://watched-resource"] } }),
    );
    let headers = [("mcp-protocol-version", "2026-07-28"), ("mcp-method", "subscriptions/listen")];
    let mut stream = Events::post(&gate.url("/mcp"), &headers, listen.to_string()).await;
    stream.message().await["params"]["notifications"]["resourceSubscriptions"].take()
}

#[tokio::test]
async fn labels_over_rest_affect_tasks_requests_and_subscriptions() {
    let gate = Setup::everything("modern").policies(TAINTED).start().await;
    let mut agent = gate.modern();
    agent.abilities = json!({
        "elicitation": {}, "extensions": { "io.modelcontextprotocol/tasks": {} },
    });
    let elicit = json!({ "message": "Who?" });
    // Before: everything passes.
    let (status, _) = invoke(&gate, "test_error_handling").await;
    assert_eq!(status, 200);
    assert_eq!(listened(&agent, &gate).await, json!(["test://watched-resource"]));
    let asked = agent.call("everything__test_elicitation", elicit.clone()).await.unwrap();
    assert_eq!(asked["resultType"], "input_required", "{asked:#}");
    let compute = json!({ "seconds": 60, "label": "x" });
    let task = agent.call("everything__slow_compute", compute).await.unwrap();
    let task = json!({ "taskId": task["taskId"] });
    // The call that became a task has given the label already.
    assert_eq!(code_of(&agent.ask("tasks/get", task.clone()).await.unwrap_err()), "policy-denied");
    let (status, _) = invoke(&gate, "test_simple_text").await;
    assert_eq!(status, 200);
    // After: nothing does, whatever the door.
    let (status, refused) = invoke(&gate, "test_error_handling").await;
    assert_eq!((status, &refused["error"]["code"]), (403, &json!("policy-denied")));
    for method in ["tasks/get", "tasks/cancel"] {
        let refused = agent.ask(method, task.clone()).await.unwrap_err();
        assert_eq!(code_of(&refused), "policy-denied", "{method}");
    }
    assert_eq!(listened(&agent, &gate).await, Value::Null);
    let refused = agent.call("everything__test_elicitation", elicit).await.unwrap_err();
    assert_eq!(code_of(&refused), "policy-denied", "the question in the result");
    let records = gate.records(&["--decision", "refused"]).await;
    // The question was in an answer; all else was refused before it left.
    let early: Vec<_> = records.iter().filter(|record| record["record"] == "refused").collect();
    assert!(early.len() >= 4, "{records:#?}");
    assert!(early.iter().all(|record| record["labels"] == json!(["tainted"])), "{early:#?}");
    gate.stop().await;
}

#[tokio::test]
async fn session_labels_affect_server_requests() {
    let gate = Setup::everything("legacy").policies(TAINTED).start().await;
    let url = gate.url("/mcp");
    let mut agent = Agent::legacy(&url, None).await.unwrap();
    agent.call("everything__test_simple_text", json!({})).await.unwrap();
    let refused = agent.ask("resources/subscribe", json!({ "uri": "test://watched-resource" }));
    assert_eq!(code_of(&refused.await.unwrap_err()), "policy-denied");
    agent.abilities = json!({ "elicitation": {} });
    let hello = agent.request(
        "initialize",
        json!({
            "protocolVersion": "2025-11-25", "capabilities": agent.abilities,
            "clientInfo": { "name": "gate", "version": "1" },
        }),
    );
    agent.session = None;
    agent.session = agent.send(hello).await.session;
    let ready = json!({ "jsonrpc": "2.0", "method": "notifications/initialized" });
    agent.send(ready).await;
    agent.call("everything__test_simple_text", json!({})).await.unwrap();
    // The question is refused, so the client gets none, and the server hears why.
    let call =
        json!({ "name": "everything__test_elicitation", "arguments": { "message": "Who?" } });
    let answered = agent.send(agent.request("tools/call", call)).await;
    let asked = answered.messages.iter().any(|message| message["method"] == "elicitation/create");
    assert!(!asked, "{:#?}", answered.messages);
    let records = gate.records(&["--decision", "refused"]).await;
    let question = records.iter().find(|record| record["method"] == "elicitation/create");
    let question = question.unwrap_or_else(|| panic!("{records:#?}"));
    assert_eq!(question["labels"], json!(["tainted"]));
    assert_eq!(question["rules"][0]["id"], "nothing-of-the-tainted");
    gate.stop().await;
}

#[tokio::test]
async fn result_of_a_task_is_redacted_too() {
    let policies = r#"
        @id("rest")
        permit (principal, action, resource)
        unless { action == Portcullis::Action::"call_tool" };
        @id("computed-is-ours")
        @redact("result:/content/0/text")
        permit (principal, action == Portcullis::Action::"call_tool", resource);
    "#;
    let gate = Setup::everything("modern").policies(policies).start().await;
    let mut agent = gate.modern();
    let compute = json!({ "seconds": 0, "label": "the-secret" });
    // At once, where the client knows no tasks.
    let done = agent.call("everything__slow_compute", compute.clone()).await.unwrap();
    assert_eq!(texts(&done), ["[redacted]"]);
    agent.abilities = json!({ "extensions": { "io.modelcontextprotocol/tasks": {} } });
    let task = agent.call("everything__slow_compute", compute).await.unwrap();
    assert_eq!(task["resultType"], "task", "{task:#}");
    let asked = json!({ "taskId": task["taskId"] });
    let done = crate::support::until("the task to be done", async || {
        let state = agent.ask("tasks/get", asked.clone()).await.unwrap();
        assert!(!state.to_string().contains("the-secret"), "{state:#}");
        (state["status"] == "completed").then_some(state)
    });
    let done = done.await;
    assert_eq!(done["result"]["content"][0]["text"], "[redacted]", "{done:#}");
    gate.stop().await;
}
