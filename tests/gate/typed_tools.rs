//! Typed tools: a saved list of a server's tools gives each its own action.

use serde_json::{Value, json};

use crate::support::{agent::Agent, gate::Setup, until};

/// What one server may be asked, by its own action alone.
const DRAFTS: &str = r#"
@id("connect")
permit (principal, action == Portcullis::Action::"connect", resource);
@id("drafts")
permit (principal, action == Portcullis::Action::"notes/add_note", resource)
when { context.input.name like "draft-*" };
@id("no-replacing")
forbid (principal, action == Portcullis::Action::"call_tool", resource)
when { context.args.hasTag("/replace") && context.args.getTag("/replace") == "true" };
"#;

async fn denied(agent: &Agent, arguments: Value) {
    assert_eq!(
        agent.refused("notes__add_note", arguments.clone()).await,
        "policy-denied",
        "{arguments}"
    );
}

#[tokio::test]
async fn saved_tool_list_types_arguments_in_policies() {
    let gate = Setup::notes().policies("").start().await;
    // Nobody may call anything, and the operator saves what there is.
    let saved = gate.path("policies/notes.tools.json");
    let file = saved.to_str().unwrap();
    let ended = gate.cli(&["server", "tools", "notes", "--save", file]).await;
    assert_eq!(ended.code, Some(0), "{ended:#?}");
    let list: Value = serde_json::from_slice(&std::fs::read(&saved).unwrap()).unwrap();
    let names: Vec<_> = list["tools"].as_array().unwrap().iter().map(|t| &t["name"]).collect();
    assert!(names.contains(&&json!("add_note")), "{names:?}");
    assert_eq!(gate.cli(&["server", "tools", "notes", "--format", "json"]).await.expect(0), list);
    let mut gate = gate;
    std::fs::write(gate.path("policies/gate.cedar"), DRAFTS).unwrap();
    gate.logged("the policies", |line| line.contains("policies reloaded")).await;

    let listed = async |agent: &Agent| agent.names("tools/list").await;
    until("the policies with the list", async || {
        (listed(&gate.modern()).await == ["notes__add_note"]).then_some(())
    })
    .await;
    for (agent, name) in [(gate.legacy().await, "draft-a"), (gate.modern(), "draft-b")] {
        assert_eq!(listed(&agent).await, ["notes__add_note"]);
        assert!(agent.call("notes__add_note", json!({ "name": name, "text": "x" })).await.is_ok());
        denied(&agent, json!({ "name": "final", "text": "x" })).await;
        // A `call_tool` forbid is not got round by a permit of the tool's own action.
        denied(&agent, json!({ "name": "draft-1", "text": "x", "replace": true })).await;
        // What is not of the type.
        for arguments in [
            json!({ "name": ["draft-1"], "text": "x" }),
            json!({ "name": "draft-1" }),
            json!({ "name": "draft-1", "text": "x", "replace": "true" }),
            json!({ "name": "draft-1", "text": "x", "more": 1 }),
        ] {
            denied(&agent, arguments).await;
        }
        assert_eq!(
            agent.refused("notes__read_note", json!({ "name": "a" })).await,
            "policy-denied"
        );
    }
    let records = gate.records(&["--decision", "refused"]).await;
    let told = |text: &str| records.iter().any(|record| record.to_string().contains(text));
    assert!(
        told("the arguments do not fit the tool's typed action: `/name` is not a text"),
        "{records:#?}"
    );
    assert!(told("no-replacing"), "{records:#?}");
    assert!(!told("[\\\"draft-1\\\"]"));

    // A list that is none is not used, nor is the policy that came with it.
    std::fs::write(&saved, "{\"tools\": [{\"name\": 1}]}").unwrap();
    gate.logged("the broken list", |line| line.contains("this is not a tool")).await;
    let agent = gate.modern();
    assert!(agent.call("notes__add_note", json!({ "name": "draft-c", "text": "x" })).await.is_ok());
    denied(&agent, json!({ "name": 1, "text": "x" })).await;
    let report = gate.cli(&["policy", "check", "--format", "json"]).await.expect(11);
    assert_eq!(report["findings"][0]["code"], "typed-tools", "{report:#}");
    gate.stop().await;
}
