//! The members of the chain with real messages: rate-limit, schema, secrets, plugin; modes and
//! faults.

use serde_json::json;

use crate::support::{
    agent::{Agent, code_of, input_error},
    credential,
    gate::Setup,
    target,
};

#[tokio::test]
async fn exhausted_limit_refuses_with_a_retry_time() {
    let gate = Setup::notes()
        .and(
            r#"
            [[interceptors]]
            use = "rate-limit"
            limits = [{ per = ["client", "tool"], calls = 2, window = "1h" }]
            "#,
        )
        .start()
        .await;
    for agent in [gate.modern()] {
        for _ in 0..2 {
            agent.call("notes__list_notes", json!({})).await.unwrap();
        }
        let error = agent.call("notes__list_notes", json!({})).await.unwrap_err();
        assert_eq!(error["data"]["code"], "rate-limited", "{error:#}");
        let wait = error["data"]["retryAfterMs"].as_u64().unwrap();
        assert!((1..=3_600_000).contains(&wait), "{error:#}");
        // Another tool has a count of its own, and lists cost nothing.
        agent.call("notes__read_note", json!({ "name": "welcome" })).await.unwrap();
        for _ in 0..5 {
            agent.names("tools/list").await;
        }
    }
    // The operator is told where the limit stands.
    let records = gate.records(&["--decision", "refused"]).await;
    let rule = &records[0]["rules"][0];
    assert!(rule["file"].as_str().is_some_and(|file| file.ends_with(".toml")), "{records:#?}");
    assert!(rule["line"].as_u64().is_some_and(|line| line > 1), "{records:#?}");
    gate.stop().await;
}

#[tokio::test]
async fn clients_have_separate_counts() {
    let written = Setup::notes()
        .keyed()
        .and(
            r#"
            [[interceptors]]
            use = "rate-limit"
            limits = [{ per = ["client"], calls = 1, window = "1h" }]
            "#,
        )
        .write();
    let keys = [written.add_client("a", &[]).await, written.add_client("b", &[]).await];
    let gate = written.start().await;
    for key in &keys {
        let agent = crate::support::agent::Agent::modern(&gate.url("/mcp"), Some(key));
        agent.call("notes__list_notes", json!({})).await.unwrap();
        assert_eq!(agent.refused("notes__list_notes", json!({})).await, "rate-limited");
    }
    gate.stop().await;
}

#[tokio::test]
async fn arguments_and_results_must_match_their_schemas() {
    let gate = Setup::crooked("")
        .and(
            r#"
            [servers.notes]
            command = ["portcullis", "example-server", "notes"]
            runtime = "sandbox"
            [[interceptors]]
            use = "schema"
            "#,
        )
        .start()
        .await;
    for agent in [gate.legacy().await, gate.modern()] {
        for arguments in [
            json!({}),
            json!({ "name": 7 }),
            json!({ "name": "../etc" }),
            json!({ "name": "welcome", "more": true }),
        ] {
            let refused = agent.refused("notes__read_note", arguments.clone()).await;
            assert_eq!(refused, "arguments-invalid", "{arguments}");
        }
        assert_eq!(agent.refused("crooked__lie", json!({})).await, "result-invalid");
        // An unknown tool is refused with the nearest names.
        let error = agent.call("notes__raed_note", json!({})).await.unwrap_err();
        assert_eq!(error["data"]["code"], "unknown-target", "{error:#}");
        assert!(error["message"].as_str().unwrap().contains("notes__read_note"), "{error:#}");
    }
    gate.stop().await;
}

#[tokio::test]
async fn invalid_arguments_are_tool_results_in_newer_revisions() {
    let gate = Setup::notes().start().await;
    let url = gate.url("/mcp");
    let wrong = json!({ "name": "notes__read_note", "arguments": { "name": 7 } });
    for revision in ["2025-03-26", "2025-06-18"] {
        let agent = Agent::legacy_of(&url, None, revision).await.unwrap();
        let error = agent.ask("tools/call", wrong.clone()).await.unwrap_err();
        assert_eq!(error["code"], -32602, "{error:#}");
        assert_eq!(code_of(&error), "arguments-invalid");
    }
    for agent in [gate.legacy().await, gate.modern()] {
        let result = agent.ask("tools/call", wrong.clone()).await.unwrap();
        assert_eq!(input_error(&result).unwrap(), "arguments-invalid", "{result:#}");
        let text = result["content"][0]["text"].as_str().unwrap();
        assert!(text.contains("`/name`") && text.contains("[arguments-invalid, "), "{text}");
        // The tool has an `outputSchema`, which describes results that are no errors.
        assert!(result.get("structuredContent").is_none(), "{result:#}");
        // The specification keeps unknown tools errors.
        let unknown = json!({ "name": "notes__none", "arguments": {} });
        let error = agent.ask("tools/call", unknown).await.unwrap_err();
        assert_eq!(error["code"], -32602, "{error:#}");
    }
    // A call that requests a task has no result other than the task.
    let mut task = wrong.clone();
    task["task"] = json!({});
    let error = gate.legacy().await.ask("tools/call", task).await.unwrap_err();
    assert_eq!(code_of(&error), "arguments-invalid");
    // Each is on record as a refusal.
    assert_eq!(gate.records(&["code = arguments-invalid"]).await.len(), 5);
    let called = gate.cli(&["tools", "call", "notes__read_note", r#"{"name":7}"#]).await;
    assert_eq!((called.code, called.stdout.as_str()), (Some(10), ""), "{called:#?}");
    assert!(called.stderr.contains("[arguments-invalid, decision "), "{called:#?}");
    gate.stop().await;
}

#[tokio::test]
async fn only_visible_names_are_suggested() {
    let gate = Setup::notes()
        .policies(
            r#"
            @id("some")
            permit (principal, action, resource) unless { resource == Portcullis::Tool::"notes/read_note" };
            "#,
        )
        .start()
        .await;
    let error = gate.modern().call("notes__raed_note", json!({})).await.unwrap_err();
    assert!(!error.to_string().contains("notes__read_note"), "{error:#}");
    gate.stop().await;
}

#[tokio::test]
async fn secrets_are_blocked_in_both_directions() {
    let gate = Setup::crooked("").and("[[interceptors]]\nuse = \"secrets\"").start().await;
    let agent = gate.modern();
    let leaked = agent.call("crooked__leak", json!({})).await;
    let secret = credential();
    // Redacted or refused, by the rule; never as it was.
    let shown = match &leaked {
        Ok(result) => result.to_string(),
        Err(error) => {
            assert_eq!(error["data"]["code"], "secret-found", "{error:#}");
            error.to_string()
        }
    };
    assert!(!shown.contains(&secret), "{shown}");
    // Inside a longer text, and in an escape that hides it from a scan of the raw bytes.
    let sent =
        agent.call("crooked__reflect", json!({ "text": format!("use {secret} please") })).await;
    match sent {
        Ok(result) => assert!(!result.to_string().contains(&secret), "{result:#}"),
        Err(error) => assert_eq!(error["data"]["code"], "secret-found"),
    }
    let records = gate.records(&[]).await;
    assert!(records.iter().any(|record| !record["findings"].is_null()), "{records:#?}");
    let everything = format!("{records:?}{:?}", gate.log());
    assert!(!everything.contains(&secret));
    gate.stop().await;
}

#[tokio::test]
async fn plugin_rewrites_arguments() {
    let plugin = target("plugins/redact-pii.wasm");
    let sha256 = sha256(&plugin);
    let entry = format!(
        "[[interceptors]]\nuse = \"plugin\"\npath = \"{}\"\nsha256 = \"{sha256}\"\n",
        plugin.display()
    );
    let gate = Setup::crooked("").and(&entry).start().await;
    for agent in [gate.legacy().await, gate.modern()] {
        let address = ["someone", "example.org"].join("@");
        let text = agent.text("crooked__echo", json!({ "text": format!("ask {address}") })).await;
        assert!(text.starts_with("ask ") && !text.contains(&address), "{text}");
        assert_eq!(agent.text("crooked__echo", json!({ "text": "plain" })).await, "plain");
    }
    let records = gate.records(&[]).await;
    let replaced = |record: &serde_json::Value| record["findings"].to_string().contains("replaced");
    assert!(records.iter().any(replaced), "{records:#?}");
    gate.stop().await;
}

#[tokio::test]
async fn interceptor_in_audit_mode_is_only_recorded() {
    let gate = Setup::crooked("")
        .and(
            r#"
            [[interceptors]]
            use = "rate-limit"
            mode = "audit"
            limits = [{ per = [], calls = 1, window = "1h" }]
            [[interceptors]]
            use = "secrets"
            mode = "audit"
            "#,
        )
        .start()
        .await;
    let agent = gate.modern();
    for _ in 0..3 {
        agent.text("crooked__echo", json!({ "text": "again" })).await;
    }
    let leaked = agent.text("crooked__leak", json!({})).await;
    assert!(leaked.contains(&credential()));
    let records = gate.records(&[]).await;
    let text = serde_json::to_string(&records).unwrap();
    assert!(text.contains("would-refuse"), "{text}");
    // What passes is still nobody's to read in the record.
    assert!(!text.contains(&credential()));
    gate.stop().await;
}

#[tokio::test]
async fn authorized_message_arrives_byte_for_byte() {
    let gate = Setup::crooked("")
        .and("[[interceptors]]\nuse = \"schema\"\n[[interceptors]]\nuse = \"secrets\"")
        .start()
        .await;
    let agent = gate.legacy().await;
    // What a parse and a print would change: 50.0, 1e2, order, escapes, large numbers.
    let arguments =
        r#"{"z":50.0,"a":1e2,"b":"\u00e4\/x","c":12345678901234567890123,"d":-0.0,"e":[ 1 , 2 ]}"#;
    let body = format!(
        r#"{{"jsonrpc":"2.0","id":77,"method":"tools/call","params":{{"name":"crooked__reflect","arguments":{arguments}}}}}"#
    );
    let session = agent.session.clone().unwrap();
    let headers = [
        crate::support::wire::ORDINARY,
        &[("Mcp-Session-Id", session.as_str()), ("MCP-Protocol-Version", "2025-11-25")],
    ]
    .concat();
    let reply = crate::support::wire::post(gate.addr, "/mcp", &headers, body.as_bytes()).await;
    let messages = reply.messages();
    let arrived = messages.last().unwrap()["result"]["content"][0]["text"].as_str().unwrap();
    assert!(arrived.contains(arguments), "{arrived}");
    gate.stop().await;
}

fn sha256(file: &std::path::Path) -> String {
    use sha2::Digest;
    hex::encode(sha2::Sha256::digest(std::fs::read(file).unwrap()))
}
