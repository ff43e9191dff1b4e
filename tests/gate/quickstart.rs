//! The README's first minutes, on the very files that it names.

use serde_json::json;

use crate::support::gate::Setup;

#[tokio::test]
async fn a_call_passes_another_is_refused_and_the_audit_log_has_both() {
    let gate = Setup::quickstart().start().await;
    let agent = gate.legacy().await;

    let listed = agent.call("notes__list_notes", json!({})).await.unwrap();
    assert_eq!(listed["structuredContent"]["notes"][1]["name"], "welcome", "{listed:#}");

    let error = agent.call("notes__delete_note", json!({ "name": "welcome" })).await.unwrap_err();
    assert_eq!(error["data"]["code"], "policy-denied", "{error:#}");
    let decision = error["data"]["decision"].as_str().unwrap();
    // What the agent reads has the id too, and nothing of the rule.
    assert!(error["message"].as_str().unwrap().contains(decision));
    assert!(!error.to_string().contains("notes-are-not-destroyed"));

    // The note is still there.
    let read = agent.text("notes__read_note", json!({ "name": "welcome" })).await;
    assert!(read.contains("behind Portcullis"));

    let refused = gate.cli(&["audit", "show", decision, "--format", "json"]).await;
    let refused = refused.expect(0).to_string();
    assert!(refused.contains("deleting notes is not permitted here"), "{refused}");
    assert!(refused.contains(".cedar"), "{refused}");
    let records = gate.records(&[]).await;
    let of = |tool: &str, decision: &str| {
        records
            .iter()
            .any(|record| record["target"]["tool"] == tool && record["decision"] == decision)
    };
    assert!(of("list_notes", "allowed") && of("delete_note", "refused"), "{records:#?}");
    gate.stop().await;
}
