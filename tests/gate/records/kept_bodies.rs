//! Only bodies that a policy keeps are recorded, without their secrets.

use serde_json::{Value, json};

use super::one;
use crate::support::{credential, gate::Setup};

const POLICIES: &str = r#"
    @id("most")
    permit (principal, action, resource);
    @id("watched")
    @keep("arguments, result")
    permit (principal, action, resource == Portcullis::Tool::"crooked/echo");
    @id("lies")
    @keep("result")
    permit (principal, action, resource == Portcullis::Tool::"crooked/lie");
    @id("denied")
    @keep("arguments")
    forbid (principal, action, resource == Portcullis::Tool::"crooked/flood");
"#;

pub fn files(folder: &std::path::Path) -> Vec<Vec<u8>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap().flatten() {
        let path = entry.path();
        match path.is_dir() {
            true => found.extend(files(&path)),
            false => found.extend(std::fs::read(&path)),
        }
    }
    found
}

#[tokio::test]
async fn only_bodies_required_by_policy_are_kept() {
    let gate = Setup::crooked("").without("secrets").policies(POLICIES).start().await;
    let agent = gate.modern();
    let secret = credential();
    let said = json!({ "text": format!("the plan is {secret}, keep it"), "n": [1, 2.5, null] });
    agent.call("crooked__echo", said).await.unwrap();
    agent.refused("crooked__flood", json!({ "mib": 1, "why": "curious" })).await;
    agent.call("crooked__reflect", json!({ "text": "off the record" })).await.unwrap();
    agent.call("crooked__echo", json!({ "text": "x".repeat(40_000) })).await.unwrap();
    agent.refused("crooked__lie", json!({})).await;
    let records = gate.records(&[]).await;
    one(
        &records,
        &json!({ "record": "outcome", "target": { "tool": "lie" }, "decision": "refused",
        "result": { "body": { "structuredContent": { "count": "many" } } } }),
    );
    let kept = "the plan is [redacted:aws-access-key-id], keep it";
    one(
        &records,
        &json!({ "record": "intent", "target": { "tool": "echo" },
        "arguments": { "body": { "text": kept, "n": [1, 2.5, null] }, "redacted": 1 } }),
    );
    one(
        &records,
        &json!({ "record": "outcome", "target": { "tool": "echo" },
        "result": { "body": { "content": [{ "text": kept }] }, "redacted": 1 } }),
    );
    one(
        &records,
        &json!({ "record": "refused", "target": { "tool": "flood" },
        "arguments": { "body": { "mib": 1, "why": "curious" } } }),
    );
    let long = one(&records, &json!({ "record": "intent", "arguments": { "cut": true } }));
    let text = long["arguments"]["body"]["text"].as_str().unwrap();
    assert!(
        text.starts_with("xxx") && text.ends_with('…') && text.len() < 17_000,
        "{}",
        text.len()
    );
    for record in &records {
        let is_echo = record["target"]["tool"] == "echo";
        let keeps = record.get("arguments").is_some() || record.get("result").is_some();
        let denied = record["target"]["tool"] == "flood";
        let lie = record["target"]["tool"] == "lie" && record["record"] == "outcome";
        assert_eq!(keeps, is_echo || denied || lie, "{record:#}");
        assert!(!record.to_string().contains("off the record"), "{record:#}");
    }
    one(&records, &json!({ "event": "policy-loaded", "keeping": ["denied", "lies", "watched"] }));
    let written = gate.stop().await;
    for file in files(&written.path("state")) {
        let holds = file.windows(secret.len()).any(|window| window == secret.as_bytes());
        assert!(!holds, "the secret is in the store");
    }
}

#[tokio::test]
async fn unknown_value_of_keep_is_an_error_with_position() {
    let written = Setup::crooked("")
        .policies(
            "@id(\"a\")\n@keep(\"arguments, answers\")\npermit (principal, action, resource);",
        )
        .write();
    for args in [["check"].as_slice(), &["policy", "check"]] {
        let checked = written.cli(&[args, &["--format", "json"]].concat()).await;
        assert_eq!(checked.code, Some(11), "{checked:#?}");
        let text = format!("{}{}", checked.stdout, checked.stderr);
        assert!(text.contains("`@keep` does not know `answers`"), "{text}");
        let found: Value = serde_json::from_str(&checked.stdout).unwrap();
        assert!(found.to_string().contains("\"line\":2"), "{found:#}");
    }
    let started = written.cli(&["run"]).await;
    assert_ne!(started.code, Some(0), "{started:#?}");
    let records = written.records(&[]).await;
    one(&records, &json!({ "event": "policy-rejected", "reason": "*" }));
    one(&records, &json!({ "event": "proxy-start-failed", "reason": "*", "version": "*" }));
}
