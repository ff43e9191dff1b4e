//! Policy: deny by default, decisions on arguments, lists, reloads.

use serde_json::json;

use crate::support::{
    PERMIT_ALL,
    agent::{Agent, code_of},
    gate::Setup,
    until,
};

#[tokio::test]
async fn empty_policies_list_and_allow_nothing() {
    let gate = Setup::notes().policies("").start().await;
    let cases = [
        ("tools/list", json!({})),
        ("tools/call", json!({ "name": "notes__list_notes", "arguments": {} })),
        ("tools/call", json!({ "name": "notes__no_such_tool", "arguments": {} })),
        ("prompts/list", json!({})),
        ("prompts/get", json!({ "name": "notes__summarize_notes" })),
        ("resources/list", json!({})),
        ("resources/templates/list", json!({})),
        ("resources/read", json!({ "uri": "note:///welcome" })),
        (
            "completion/complete",
            json!({
                "ref": { "type": "ref/prompt", "name": "notes__summarize_notes" },
                "argument": { "name": "name", "value": "" },
            }),
        ),
        ("server/discover", json!({})),
        ("no/such/method", json!({})),
    ];
    let agent = gate.modern();
    for (method, params) in cases {
        match agent.ask(method, params).await {
            // An empty list tells as little as a refusal.
            Ok(result) => {
                for of in ["tools", "prompts", "resources", "resourceTemplates"] {
                    assert!(
                        result[of].as_array().is_none_or(Vec::is_empty),
                        "{method}: {result:#}"
                    );
                }
                assert!(method.ends_with("/list"), "{method}: {result:#}");
            }
            Err(error) => {
                let code = code_of(&error);
                assert!(
                    ["policy-denied", "unknown-target", "method-unknown"].contains(&&code[..]),
                    "{method}: {error:#}"
                );
            }
        }
    }
    assert!(Agent::legacy(&gate.url("/mcp"), None).await.is_err());
    // No server was started for any of it.
    assert!(crate::support::marked(&gate.mark).is_empty());
    gate.stop().await;
}

#[tokio::test]
async fn decisions_can_depend_on_arguments() {
    let gate = Setup::notes()
        .policies(
            r#"
            @id("all")
            permit (principal, action, resource);
            @id("drafts-only")
            @reason("agents write drafts")
            forbid (principal, action == Portcullis::Action::"call_tool", resource == Portcullis::Tool::"notes/add_note")
            unless { context.args.hasTag("/name") && context.args.getTag("/name") like "draft-*" };
            "#,
        )
        .start()
        .await;
    for agent in [gate.legacy().await, gate.modern()] {
        let draft = json!({ "name": "draft-1", "text": "x", "replace": true });
        assert!(agent.call("notes__add_note", draft).await.is_ok());
        let other = json!({ "name": "final", "text": "x" });
        assert_eq!(agent.refused("notes__add_note", other).await, "policy-denied");
        // It is listed, since there are arguments with which it could be called.
        assert!(agent.names("tools/list").await.contains(&"notes__add_note".into()));
    }
    let records = gate.records(&["--decision", "refused"]).await;
    let rule = &records[0]["rules"][0];
    assert_eq!(rule["id"], "drafts-only", "{records:#?}");
    assert_eq!(rule["reason"], "agents write drafts");
    assert!(rule["file"].as_str().unwrap().ends_with("gate.cedar"));
    assert_eq!(rule["line"], 4, "{rule:#}");
    gate.stop().await;
}

#[tokio::test]
async fn forbidden_items_look_like_missing_ones() {
    let gate = Setup::notes()
        .policies(
            r#"
            @id("connect")
            permit (principal, action == Portcullis::Action::"connect", resource);
            @id("one-tool")
            permit (principal, action, resource == Portcullis::Tool::"notes/read_note");
            @id("one-resource")
            permit (principal, action, resource == Portcullis::Resource::"notes/note:///welcome");
            "#,
        )
        .start()
        .await;
    let agent = gate.modern();
    assert_eq!(agent.names("tools/list").await, ["notes__read_note"]);
    assert_eq!(agent.names("resources/list").await, ["note:///welcome"]);
    assert!(agent.names("prompts/list").await.is_empty());
    assert!(agent.names("resources/templates/list").await.is_empty());
    assert!(agent.ask("resources/read", json!({ "uri": "note:///welcome" })).await.is_ok());
    for (method, hidden, absent) in [
        ("resources/read", json!({ "uri": "note:///groceries" }), json!({ "uri": "note:///none" })),
        // As like to what can be seen: what is suggested goes by the name that was asked for.
        (
            "tools/call",
            json!({ "name": "notes__list_notes" }),
            json!({ "name": "notes__list_nodes" }),
        ),
        (
            "prompts/get",
            json!({ "name": "notes__summarize_notes" }),
            json!({ "name": "notes__none" }),
        ),
    ] {
        let told = |mut error: serde_json::Value| {
            // The client's own words.
            error["data"]["uri"].take();
            let decision = error["data"]["decision"].as_str().unwrap().to_owned();
            error.to_string().replace(&decision, "")
        };
        let hidden = agent.ask(method, hidden).await.unwrap_err();
        let absent = agent.ask(method, absent).await.unwrap_err();
        assert_eq!(told(hidden), told(absent), "{method}");
    }
    gate.stop().await;
}

#[tokio::test]
async fn only_valid_policy_changes_take_effect() {
    let mut gate = Setup::notes().start().await;
    let agent = gate.modern();
    assert!(agent.call("notes__list_notes", json!({})).await.is_ok());
    let file = gate.path("policies/gate.cedar");

    let narrow = format!(
        "{PERMIT_ALL}@id(\"no-lists\")\nforbid (principal, action, resource == Portcullis::Tool::\"notes/list_notes\");\n"
    );
    std::fs::write(&file, &narrow).unwrap();
    until("the new policy to refuse", async || {
        agent.call("notes__list_notes", json!({})).await.err()
    })
    .await;
    assert!(agent.call("notes__read_note", json!({ "name": "welcome" })).await.is_ok());

    // One that does not parse, and one that parses and names what the schema has not.
    for (broken, complaint) in [
        ("permit (principal", "gate.cedar:1"),
        ("permit (principal, action, resource) when { context.nonsense };", "nonsense"),
    ] {
        std::fs::write(&file, broken).unwrap();
        let complains = |line: &str| line.contains("gate.cedar") && line.contains(complaint);
        gate.logged("the complaint", complains).await;
        assert_eq!(agent.refused("notes__list_notes", json!({})).await, "policy-denied");
        assert!(agent.call("notes__read_note", json!({ "name": "welcome" })).await.is_ok());
    }
    let rejected = gate.records(&[]).await;
    assert!(rejected.iter().any(|record| record["event"] == "policy-rejected"), "{rejected:#?}");

    std::fs::write(&file, PERMIT_ALL).unwrap();
    until("the mended policy to permit", async || {
        agent.call("notes__list_notes", json!({})).await.ok()
    })
    .await;
    gate.stop().await;
}

#[tokio::test]
async fn operator_claims_override_server_claims() {
    let gate = Setup::notes()
        .and("[servers.notes.tools.list_notes]\ndestructive = true\n[servers.notes.tools.delete_note]\nread-only = true")
        .policies(
            r#"
            @id("all")
            permit (principal, action, resource);
            @id("trusted-readers")
            forbid (principal, action == Portcullis::Action::"call_tool", resource)
            unless { resource.claims.read_only && resource.claims.by == "operator" };
            "#,
        )
        .start()
        .await;
    for agent in [gate.legacy().await, gate.modern()] {
        let listed = agent.ask("tools/list", json!({})).await.unwrap();
        let names: Vec<_> =
            listed["tools"].as_array().unwrap().iter().map(|tool| &tool["name"]).collect();
        assert_eq!(names, ["notes__delete_note"]);
        // The server claims the contrary.
        assert_eq!(listed["tools"][0]["annotations"]["destructiveHint"], true);
        assert_eq!(agent.refused("notes__list_notes", json!({})).await, "policy-denied");
        agent.call("notes__delete_note", json!({ "name": "welcome" })).await.unwrap();
    }
    let asked =
        gate.cli(&["policy", "can-i", "--as", "anonymous", "tools/call", "notes/delete_note"]);
    assert_eq!(asked.await.code, Some(0));
    gate.stop().await;
}

#[tokio::test]
async fn can_i_agrees_with_the_proxy() {
    let written = Setup::notes()
        .policies("@id(\"read\")\npermit (principal, action, resource == Portcullis::Tool::\"notes/read_note\");\n")
        .write();
    let ended = written.cli(&["policy", "check"]).await;
    assert_eq!(ended.code, Some(0), "{ended:#?}");
    std::fs::write(written.path("policies/bad.cedar"), "permit (principal, action, resurce);\n")
        .unwrap();
    let ended = written.cli(&["policy", "check"]).await;
    assert_eq!(ended.code, Some(11), "{ended:#?}");
    let said = format!("{}{}", ended.stdout, ended.stderr);
    assert!(said.contains("bad.cedar:1"), "{said}");
}

/// The running proxy holds the log, so the command line queries the proxy.
#[tokio::test]
async fn running_proxy_explains_and_replays_decisions() {
    let gate = Setup::notes()
        .policies(
            r#"
            @id("all")
            @keep("arguments")
            permit (principal, action, resource);
            @id("drafts-only")
            @keep("arguments")
            forbid (principal, action == Portcullis::Action::"call_tool", resource == Portcullis::Tool::"notes/add_note")
            unless { context.args.hasTag("/name") && context.args.getTag("/name") like "draft-*" };
            "#,
        )
        .file("other/new.cedar", "@id(\"all\") permit (principal, action, resource);\n@id(\"no-lists\") forbid (principal, action, resource == Portcullis::Tool::\"notes/list_notes\");")
        .start()
        .await;
    let agent = gate.modern();
    agent.call("notes__list_notes", json!({})).await.unwrap();
    let refused = agent.call("notes__add_note", json!({ "name": "final", "text": "x" })).await;
    let refused = refused.unwrap_err();
    let id = refused["data"]["decision"].as_str().unwrap();

    let explained = gate.cli(&["policy", "explain", id]).await;
    assert_eq!(explained.code, Some(0), "{explained:#?}");
    for part in ["drafts-only", "gate.cedar:5", "final"] {
        assert!(explained.stdout.contains(part), "{part}: {}", explained.stdout);
    }
    let as_json = gate.cli(&["policy", "explain", id, "--format", "json"]).await.expect(0);
    assert_eq!((&as_json["id"], &as_json["was"]), (&json!(id), &json!("refused")), "{as_json:#}");
    assert_eq!(
        (&as_json["same_policies"], &as_json["arguments_known"]),
        (&json!(true), &json!(true))
    );

    let same = gate.cli(&["policy", "replay", "--format", "json"]).await.expect(0);
    assert_eq!(
        (&same["refused"], &same["allowed"], &same["unknown"]),
        (&json!(0), &json!(0), &json!(0)),
        "{same:#}"
    );
    let new = gate.path("other");
    let new = new.to_str().unwrap();
    let other = gate.cli(&["policy", "replay", "--format", "json", "--policies", new]).await;
    let other = other.expect(11);
    assert_eq!((&other["refused"], &other["allowed"]), (&json!(1), &json!(1)), "{other:#}");
    // It was asked while it ran, and goes on.
    agent.call("notes__list_notes", json!({})).await.unwrap();
    gate.stop().await;
}
