//! The audit log from the operator's view.

use serde_json::{Value, json};

use crate::support::{gate::Setup, in_time, portcullis};

#[tokio::test]
async fn call_has_intent_and_outcome_without_content() {
    let gate = Setup::notes().start().await;
    let agent = gate.legacy().await;
    let text = "the meeting is on Thursday";
    agent.call("notes__add_note", json!({ "name": "plan", "text": text })).await.unwrap();
    let of = |records: &[Value]| -> Vec<Value> {
        let add = |record: &&Value| record["target"]["tool"] == "add_note";
        records.iter().filter(add).cloned().collect()
    };
    let records = of(&gate.records(&[]).await);
    let mut kinds: Vec<_> = records.iter().map(|r| r["record"].as_str().unwrap()).collect();
    kinds.sort_unstable();
    assert_eq!(kinds, ["intent", "outcome"], "{records:#?}");
    assert_eq!(records[0]["id"], records[1]["id"]);
    for record in &records {
        assert_eq!(record["principal"], "anonymous");
        assert_eq!(record["server"], "notes");
        assert_eq!(record["transport"], "http");
        assert_eq!(record["decision"], "allowed");
        assert_eq!(record["revision"], "2025-11-25");
        assert!(!record.to_string().contains("Thursday"), "{record:#}");
    }
    // The record survives the proxy, and can be read without one.
    let id = records[0]["id"].as_str().unwrap().to_owned();
    let written = gate.stop().await;
    let shown = written.cli(&["audit", "show", &id, "--format", "json"]).await;
    assert!(shown.expect(0).to_string().contains("add_note"));
    let shown = written.cli(&["audit", "show", &id]).await;
    assert_eq!(shown.code, Some(0), "{shown:#?}");
    assert!(shown.stdout.contains("add_note"), "{shown:#?}");
}

#[tokio::test]
async fn queries_filter_by_server_tool_client_decision_and_code() {
    let gate = Setup::notes()
        .policies(
            r#"
            @id("all")
            permit (principal, action, resource);
            @id("keep")
            forbid (principal, action, resource == Portcullis::Tool::"notes/delete_note");
            "#,
        )
        .start()
        .await;
    let agent = gate.modern();
    agent.call("notes__list_notes", json!({})).await.unwrap();
    agent.refused("notes__delete_note", json!({ "name": "welcome" })).await;
    let cases: [&[&str]; 4] = [
        &["--decision", "refused"],
        &["--tool", "delete_note"],
        &["--code", "policy-denied"],
        &["--server", "notes", "--decision", "refused"],
    ];
    for filter in cases {
        let found = gate.records(filter).await;
        assert!(!found.is_empty(), "{filter:?}");
        assert!(
            found.iter().all(|r| r["target"]["tool"] == "delete_note"),
            "{filter:?}: {found:#?}"
        );
    }
    let found = gate.records(&["--client", "nobody-of-that-name"]).await;
    assert!(found.is_empty(), "{found:#?}");
    let found = gate.records(&["--client", "anonymous", "--tool", "list_notes"]).await;
    assert!(!found.is_empty());
    gate.stop().await;
}

#[tokio::test]
async fn tail_follows_new_records() {
    let gate = Setup::notes().start().await;
    let mut tail = tokio::process::Command::new(portcullis())
        .args(["audit", "tail", "--follow", "--format", "json", "--config"])
        .arg(gate.path("portcullis.toml"))
        .stdout(std::process::Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut lines =
        tokio::io::AsyncBufReadExt::lines(tokio::io::BufReader::new(tail.stdout.take().unwrap()));
    let agent = gate.modern();
    // Its own start cannot be seen from here: so there is something to follow until it does.
    let seen = async {
        loop {
            agent.call("notes__list_notes", json!({})).await.unwrap();
            let line =
                tokio::time::timeout(std::time::Duration::from_millis(500), lines.next_line());
            if let Ok(Ok(Some(line))) = line.await {
                let record: Value = serde_json::from_str(&line).unwrap();
                if record["target"]["tool"] == "list_notes" {
                    return;
                }
            }
        }
    };
    in_time("the tail", seen).await;
    tail.kill().await.unwrap();
    gate.stop().await;
}

#[tokio::test]
async fn refusals_of_every_stage_are_recorded() {
    let gate = Setup::crooked("").and("[[interceptors]]\nuse = \"schema\"").start().await;
    let agent = gate.modern();
    agent.refused("crooked__no_such_tool", json!({})).await;
    agent.refused("crooked__lie", json!({})).await;
    let wire = crate::support::wire::ORDINARY;
    let malformed = crate::support::wire::post(gate.addr, "/mcp", wire, b"{").await;
    assert_eq!(malformed.refusal(), "malformed");
    let host = [wire, &[("Host", "evil.example")]].concat();
    assert_eq!(crate::support::wire::post(gate.addr, "/mcp", &host, b"{}").await.status, 403);
    let records = gate.records(&[]).await;
    for code in ["unknown-target", "result-invalid", "malformed", "forbidden-origin"] {
        let found = records.iter().any(|record| record["refusal"]["code"] == code);
        assert!(found, "{code} is not on record: {records:#?}");
    }
    gate.stop().await;
}

/// The server never ran, so its tools are unknown: the record has the requested names.
#[tokio::test]
async fn record_of_a_failed_launch_has_server_and_tool() {
    let calls = r#"
        @id("calls")
        permit (principal, action, resource)
        unless { action in Portcullis::Action::"from_proxy" };
    "#;
    let gate = Setup::notes().policies(calls).without_launches().start().await;
    let refused = gate.modern().refused("notes__add_note", json!({ "name": "x" })).await;
    assert_eq!(refused, "policy-denied");
    let [record] = &gate.records(&["method = tools/call"]).await[..] else { panic!("one record") };
    assert_eq!(record["server"], "notes", "{record:#}");
    assert_eq!(record["target"]["tool"], "add_note", "{record:#}");
    gate.modern().refused("nowhere__find", json!({})).await;
    let [record] = &gate.records(&["tool ~ \"*find\""]).await[..] else { panic!("one record") };
    assert_eq!(
        (&record["server"], &record["target"]["tool"]),
        (&Value::Null, &json!("nowhere__find"))
    );
    gate.stop().await;
}

#[tokio::test]
async fn refusals_name_no_permits_and_events_are_not_calls() {
    let policies = r#"
        @id("all")
        permit (principal, action, resource);
        @id("keep")
        forbid (principal, action, resource == Portcullis::Tool::"notes/delete_note");
    "#;
    let gate = Setup::notes().policies(policies).start().await;
    let agent = gate.modern();
    agent.call("notes__list_notes", json!({})).await.unwrap();
    // Refused behind the policies, which permit it; and by a policy.
    assert_eq!(agent.refused("notes__no_such_tool", json!({})).await, "unknown-target");
    assert_eq!(agent.refused("notes__delete_note", json!({ "name": "x" })).await, "policy-denied");
    let [record] = &gate.records(&["code = unknown-target"]).await[..] else {
        panic!("one record")
    };
    assert_eq!(record["rules"][0]["id"], "all", "{record:#}");
    assert_eq!(record["rules"][0]["overruled"], true, "{record:#}");
    let group =
        ["audit", "query", "decision = refused", "--group", "code,rule", "--format", "json"];
    let groups = gate.cli(&group).await.stdout;
    assert!(groups.contains("keep") && !groups.contains("\"all\""), "{groups}");
    assert!(gate.records(&["rule = all and decision = refused"]).await.is_empty());
    let stats = gate.cli(&["audit", "stats", "--format", "json"]).await.expect(0);
    let rules = stats["summary"]["rules"]["top"].as_array().unwrap();
    assert_eq!(rules.iter().map(|rule| &rule["name"]).collect::<Vec<_>>(), ["keep"], "{stats:#}");
    // The three calls: not the start of the server, nor what the operator asked.
    let servers = stats["summary"]["servers"].as_array().unwrap();
    assert_eq!(
        (&servers[0]["name"], &servers[0]["count"]),
        (&json!("notes"), &json!(3)),
        "{stats:#}"
    );
    assert!(!gate.records(&["server = notes and kind = event"]).await.is_empty());
    gate.stop().await;
}

#[tokio::test]
async fn proxy_without_an_audit_store_does_not_start() {
    let written = Setup::notes().write();
    // A file where the store's folder should be.
    std::fs::create_dir_all(written.path("state")).unwrap();
    std::fs::write(written.path("state/audit"), "not a folder").unwrap();
    let ended = written.cli(&["run"]).await;
    assert_eq!(ended.code, Some(1), "{ended:#?}");
    assert!(ended.stderr.contains("audit"), "{ended:#?}");
}

#[tokio::test]
async fn log_survives_a_kill() {
    let gate = Setup::notes().start().await;
    let agent = gate.modern();
    let mut made = 0;
    for _ in 0..20 {
        agent.call("notes__list_notes", json!({})).await.unwrap();
        made += 1;
    }
    let gate = gate.kill_9().await.start().await;
    let records = gate.records(&["--tool", "list_notes"]).await;
    let intents = records.iter().filter(|record| record["record"] == "intent").count();
    assert_eq!(intents, made, "an answered call is not on record");
    gate.stop().await;
}
