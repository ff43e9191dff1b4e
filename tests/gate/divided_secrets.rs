//! Secrets in parts, and texts that a baseline allows.

use serde_json::json;
use tokio::process::Command;

use crate::support::{agent::Agent, credential, gate::Setup, in_time, target};

#[tokio::test]
async fn token_in_two_arguments_or_two_calls_does_not_leave() {
    let written = Setup::crooked("").keyed().write();
    let key = written.add_client("alice", &[]).await;
    let gate = written.start().await;
    let agent = Agent::modern(&gate.url("/mcp"), Some(&key));
    let secret = credential();
    for at in [3, 10, 19] {
        let (first, last) = secret.split_at(at);
        let arguments = json!({ "text": first, "x": [1, last] });
        let code = agent.refused("crooked__echo", arguments).await;
        assert_eq!(code, "secret-found", "{at}");
    }
    let (first, last) = secret.split_at(10);
    let answer = agent.text("crooked__echo", json!({ "text": format!("it is {first}") })).await;
    assert_eq!(answer, format!("it is {first}"));
    let code = agent.refused("crooked__echo", json!({ "text": last })).await;
    assert_eq!(code, "secret-found");
    gate.stop().await;
}

/// `detect-secrets scan` of a file writes a baseline, and its texts pass.
#[tokio::test]
async fn baseline_of_detect_secrets_allows_its_texts() {
    let secret = credential();
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("keys.txt"), format!("id = {secret}\n")).unwrap();
    let mut command = Command::new(target("tests/python/bin/python"));
    command.args(["-m", "detect_secrets", "scan", "--no-verify", "--all-files", "keys.txt"]);
    command.current_dir(folder.path()).kill_on_drop(true);
    let output = in_time("detect-secrets", command.output()).await.unwrap();
    assert!(output.status.success(), "{output:#?}");
    let baseline = String::from_utf8(output.stdout).unwrap();
    assert!(baseline.contains("hashed_secret") && !baseline.contains(&secret), "{baseline}");

    let settings = "[[interceptors]]\nuse = \"secrets\"\nbaselines = [\"secrets.baseline\"]\n";
    let setup = Setup::crooked("").and(settings).file("secrets.baseline", baseline);
    let gate = setup.start().await;
    let agent = gate.modern();
    assert_eq!(agent.text("crooked__echo", json!({ "text": secret })).await, secret);
    let other = secret.replace("Q3EG", "Q4EG");
    let code = agent.refused("crooked__echo", json!({ "text": other })).await;
    assert_eq!(code, "secret-found");
    gate.stop().await;
}
