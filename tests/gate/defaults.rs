//! The default chain of a config without `[[interceptors]]`, and how to disable its members.

use serde_json::json;

use crate::support::{credential, gate::Setup};

const NOTES: &str = "[servers.notes]\ncommand = [\"portcullis\", \"example-server\", \"notes\"]\n\
                     runtime = \"sandbox\"";

#[tokio::test]
async fn default_chain_checks_schemas_secrets_and_rates() {
    let gate = Setup::crooked("").and(NOTES).start().await;
    let chain = "rate-limit (default), policy, argument-names, schema (default), secrets (default)";
    let checked = gate.cli(&["check"]).await;
    assert!(checked.stdout.contains(&format!("chain: {chain}\n")), "{checked:#?}");
    let inspected = gate.cli(&["server", "inspect", "crooked"]).await;
    assert!(inspected.stdout.contains(&format!("its messages pass: {chain}\n")), "{inspected:#?}");
    let inspected = gate.cli(&["server", "inspect", "crooked", "--format", "json"]).await.expect(0);
    let names = |at: usize| (&inspected["chain"][at]["name"], &inspected["chain"][at]["default"]);
    assert_eq!(names(0), (&json!("rate-limit"), &json!(true)), "{inspected:#}");
    assert_eq!(names(4), (&json!("secrets"), &json!(true)), "{inspected:#}");

    let secret = credential();
    for agent in [gate.legacy().await, gate.modern()] {
        assert_eq!(agent.refused("crooked__echo", json!({ "text": secret })).await, "secret-found");
        let leaked = agent.text("crooked__leak", json!({})).await;
        assert_eq!(leaked, "the key is [redacted:aws-access-key-id]");
        let refused = agent.refused("notes__read_note", json!({ "name": 7 })).await;
        assert_eq!(refused, "arguments-invalid");
        assert_eq!(agent.refused("crooked__lie", json!({})).await, "result-invalid");
    }
    let records = gate.records(&[]).await;
    let loaded = records.iter().find(|record| record["event"] == "config-loaded").unwrap();
    let chain = json!(["rate-limit (default)", "schema (default)", "secrets (default)"]);
    assert_eq!(loaded["chain"], chain);
    // The operator is told which file decides of that.
    let refused =
        records.iter().find(|record| record["refusal"]["code"] == "secret-found").unwrap();
    let rule = &refused["rules"][0];
    assert!(rule["file"].as_str().is_some_and(|file| file.ends_with(".toml")), "{refused:#}");
    gate.stop().await;
}

#[tokio::test]
async fn default_is_disabled_only_by_its_own_setting() {
    let gate = Setup::crooked("").and(NOTES).without("secrets").without("schema").start().await;
    let checked = gate.cli(&["check"]).await;
    let chain =
        "chain: rate-limit (default), policy, argument-names, schema (off), secrets (off)\n";
    assert!(checked.stdout.contains(chain), "{checked:#?}");
    let agent = gate.modern();
    let secret = credential();
    assert_eq!(agent.text("crooked__echo", json!({ "text": secret })).await, secret);
    assert!(agent.text("crooked__leak", json!({})).await.contains(&secret));
    agent.call("crooked__lie", json!({})).await.unwrap();
    gate.stop().await;

    // An entry for one of them says nothing of the others.
    let gate = Setup::crooked("").and("[[interceptors]]\nuse = \"rate-limit\"").start().await;
    let agent = gate.modern();
    assert_eq!(agent.refused("crooked__echo", json!({ "text": secret })).await, "secret-found");
    assert_eq!(agent.refused("crooked__lie", json!({})).await, "result-invalid");
    gate.stop().await;
}

#[tokio::test]
async fn names_of_default_interceptors_are_reserved() {
    let entry = "[[interceptors]]\nuse = \"secrets\"\nname = \"schema\"";
    let checked = Setup::notes().and(entry).write().cli(&["check"]).await;
    assert_eq!(checked.code, Some(11), "{checked:#?}");
    let told = format!("{}{}", checked.stdout, checked.stderr);
    let told = told.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(
        told.contains(
            "the name `schema` belongs to an interceptor of the default \
        chain"
        ),
        "{told}"
    );
}
