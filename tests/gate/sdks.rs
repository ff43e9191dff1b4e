//! The official SDKs as clients, in both eras, over HTTP and over pipes.

use serde_json::{Value, json};

use crate::support::{gate::Setup, portcullis, sdk::Sdk};

fn steps() -> Value {
    json!([
        { "method": "tools/list" },
        { "method": "tools/call", "params": { "name": "notes__read_note", "arguments": { "name": "welcome" } } },
        { "method": "prompts/list" },
        { "method": "prompts/get", "params": { "name": "notes__summarize_notes", "arguments": { "name": "groceries" } } },
        { "method": "resources/list" },
        { "method": "resources/templates/list" },
        { "method": "resources/read", "params": { "uri": "note:///welcome" } },
        { "method": "completion/complete", "params": {
            "ref": { "type": "ref/prompt", "name": "notes__summarize_notes" },
            "argument": { "name": "name", "value": "w" },
        } },
        { "method": "tools/call", "params": { "name": "notes__delete_note", "arguments": { "name": "welcome" } } },
    ])
}

/// Everything but deletion, for everybody.
const POLICY: &str = r#"
@id("use")
permit (principal, action, resource);
@id("keep")
forbid (principal, action == Portcullis::Action::"call_tool", resource == Portcullis::Tool::"notes/delete_note");
"#;

fn check(era: &str, report: &Value) {
    let revision = match era {
        "legacy" => "2025-11-25",
        _ => "2026-07-28",
    };
    assert_eq!(report["revision"], revision, "{report:#}");
    let steps = report["steps"].as_array().unwrap();
    let [tools, call, prompts, prompt, resources, templates, read, completion, delete] =
        steps.as_slice()
    else {
        panic!("{report:#}")
    };
    let names = |of: &Value| -> Vec<String> {
        let of = of.as_array().unwrap_or_else(|| panic!("{report:#}"));
        of.iter().map(|entry| entry["name"].as_str().unwrap().to_owned()).collect()
    };
    // The list shows what could be called: deletion could not.
    assert_eq!(
        names(&tools["result"]["tools"]),
        ["notes__add_note", "notes__list_notes", "notes__read_note"]
    );
    let text = &call["result"]["structuredContent"]["text"];
    assert!(text.as_str().unwrap().contains("behind Portcullis"), "{call:#}");
    assert_eq!(names(&prompts["result"]["prompts"]), ["notes__summarize_notes"]);
    assert!(prompt["result"].to_string().contains("two lemons"), "{prompt:#}");
    assert_eq!(names(&resources["result"]["resources"]), ["groceries", "welcome"]);
    assert_eq!(names(&templates["result"]["resourceTemplates"]), ["note"]);
    assert!(read["result"].to_string().contains("behind Portcullis"), "{read:#}");
    assert_eq!(completion["result"]["completion"]["values"], json!(["welcome"]));
    let code = &delete["error"]["data"]["code"];
    assert_eq!(code, "policy-denied", "{delete:#}");
}

#[tokio::test]
async fn over_http_with_a_key() {
    let written = Setup::notes().keyed().policies(POLICY).write();
    let key = written.add_client("sdk", &[]).await;
    let gate = written.start().await;
    for sdk in Sdk::ALL {
        for era in ["legacy", "modern"] {
            let report = sdk.report(era, &["--url", &gate.url("/mcp")], Some(&key), &steps()).await;
            check(era, &report);
        }
    }
    gate.stop().await;
}

#[tokio::test]
async fn over_the_bridge_to_a_running_proxy() {
    let gate = Setup::notes().policies(POLICY).start().await;
    let config = gate.path("portcullis.toml");
    let program = portcullis();
    let target =
        ["--stdio", program.to_str().unwrap(), "connect", "--config", config.to_str().unwrap()];
    for sdk in Sdk::ALL {
        for era in ["legacy", "modern"] {
            check(era, &sdk.report(era, &target, None, &steps()).await);
        }
    }
    gate.stop().await;
}

#[tokio::test]
async fn over_the_pipes_of_a_proxy_of_their_own() {
    for sdk in Sdk::ALL {
        for era in ["legacy", "modern"] {
            let written = Setup::notes().policies(POLICY).write();
            let config = written.path("portcullis.toml");
            let program = portcullis();
            let target = [
                "--stdio",
                program.to_str().unwrap(),
                "run",
                "--stdio",
                "--config",
                config.to_str().unwrap(),
            ];
            check(era, &sdk.report(era, &target, None, &steps()).await);
            assert!(crate::support::marked(&written.mark).is_empty(), "{sdk:?} {era}");
        }
    }
}
