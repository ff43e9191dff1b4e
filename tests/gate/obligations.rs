//! What policies ask for beside their decision: fields overwritten, rates, notes, labels.

use serde_json::{Value, json};

use crate::support::gate::Setup;

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
async fn a_rate_is_counted_for_each_client_and_a_label_stays_with_its_session() {
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
async fn a_policy_in_shadow_decides_nothing_and_stands_in_records() {
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
