//! Handles of redacted secrets become the secrets again for their own server and client only.

use std::{fs::Permissions, os::unix::fs::PermissionsExt as _};

use serde_json::json;

use crate::support::{
    agent::Agent,
    credential,
    gate::{Setup, Written},
};

/// Two servers that write what they receive to a file of their own.
fn setup() -> Written {
    let server = |name: &str| {
        format!(
            r#"
            [servers.{name}]
            command = ["{{crooked}}"]
            runtime = "sandbox"
            env = {{ GATE = "{{mark}}", RECEIVED = "/out/received" }}
            mounts = ["{{folder}}/{name}:/out:rw"]
            "#
        )
    };
    let setup = Setup::new(&format!("{}{}", server("one"), server("two")))
        .and("[[interceptors]]\nuse = \"secrets\"\nhandles = true\n")
        .policies(
            "@id(\"kept\")\n@keep(\"arguments, result\")\npermit (principal, action, resource);",
        )
        .file("one/received", "")
        .file("two/received", "")
        .keyed()
        .write();
    // The sandbox has a user of its own.
    for (name, mode) in
        [("one", 0o777), ("two", 0o777), ("one/received", 0o666), ("two/received", 0o666)]
    {
        std::fs::set_permissions(setup.path(name), Permissions::from_mode(mode)).unwrap();
    }
    setup
}

#[tokio::test]
async fn handle_becomes_the_secret_for_its_own_server_and_client() {
    let written = setup();
    let (alice, bob) =
        (written.add_client("alice", &[]).await, written.add_client("bob", &[]).await);
    let gate = written.start().await;
    let agent = |key: &str| Agent::modern(&gate.url("/mcp"), Some(key));
    let (alice, bob) = (agent(&alice), agent(&bob));
    let received =
        |server: &str| std::fs::read_to_string(gate.path(server).join("received")).unwrap();

    let shown = alice.text("one__leak", json!({})).await;
    let handle = shown.strip_prefix("the key is ").unwrap();
    assert!(handle.starts_with("[secret:aws-access-key-id:"), "{shown}");
    assert_eq!(alice.text("one__leak", json!({})).await, shown);

    // Neither another server nor another client gets the value.
    for (agent, tool) in [(&alice, "two__echo"), (&bob, "one__echo"), (&bob, "two__echo")] {
        let text = format!("use {handle} here");
        assert_eq!(agent.text(tool, json!({ "text": text })).await, text);
    }
    assert!(!received("one").contains(&credential()));
    assert!(received("one").contains(handle) && received("two").contains(handle));

    // Its own server does, and what it echoes is redacted again.
    let text = format!("use {handle} here");
    assert_eq!(alice.text("one__echo", json!({ "text": text })).await, text);
    assert!(received("one").contains(&format!("use {} here", credential())));
    assert!(!received("two").contains(&credential()));

    // The secret itself is still refused.
    let code = alice.refused("one__echo", json!({ "text": credential() })).await;
    assert_eq!(code, "secret-found");
    let told = format!("{:?}{:?}", gate.records(&[]).await, gate.log());
    assert!(!told.contains(&credential()), "{told}");
    assert!(told.contains("handles of secrets were replaced"), "{told}");
    gate.stop().await;
}

#[tokio::test]
async fn policy_decides_the_action_by_client_and_tool() {
    let policies = r#"
        @id("others")
        permit (principal, action, resource)
        unless { action == Portcullis::Action::"call_tool" };
        @id("echo")
        @secrets("request: aws-access-key-id = allow, response: report")
        permit (
          principal == Portcullis::Client::"alice",
          action == Portcullis::Action::"call_tool",
          resource == Portcullis::Tool::"crooked/echo"
        );
        @id("leak")
        permit (
          principal == Portcullis::Client::"alice",
          action == Portcullis::Action::"call_tool",
          resource == Portcullis::Tool::"crooked/leak"
        );
        @id("bob")
        @secrets("refuse")
        permit (
          principal == Portcullis::Client::"bob",
          action == Portcullis::Action::"call_tool",
          resource
        );
    "#;
    let written = Setup::crooked("").policies(policies).keyed().write();
    let (alice, bob) =
        (written.add_client("alice", &[]).await, written.add_client("bob", &[]).await);
    let gate = written.start().await;
    let agent = |key: &str| Agent::modern(&gate.url("/mcp"), Some(key));
    let (alice, bob) = (agent(&alice), agent(&bob));
    let text = credential();
    assert_eq!(alice.text("crooked__echo", json!({ "text": text })).await, text);
    let redacted = "the key is [redacted:aws-access-key-id]";
    assert_eq!(alice.text("crooked__leak", json!({})).await, redacted);
    assert_eq!(bob.refused("crooked__leak", json!({})).await, "secret-found");
    gate.stop().await;
}
