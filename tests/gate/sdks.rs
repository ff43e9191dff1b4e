//! SDKs as clients, in both eras, over HTTP and over pipes.

use serde_json::{Value, json};

use crate::support::{
    gate::Setup,
    new_mark, portcullis,
    sdk::{Sdk, inspect},
    server,
};

/// Those whose results are the protocol's own. Pydantic AI's are values for a model.
const PLAIN: [Sdk; 4] = [Sdk::Python, Sdk::FastMcp, Sdk::TypeScript, Sdk::Rmcp];
/// One for each language that starts a program for its pipes.
const BY_PIPE: [Sdk; 3] = [Sdk::Python, Sdk::TypeScript, Sdk::Rmcp];

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
async fn sdk_clients_work_over_http_with_a_key() {
    let written = Setup::notes().keyed().policies(POLICY).write();
    let key = written.add_client("sdk", &[]).await;
    let gate = written.start().await;
    for sdk in PLAIN {
        for era in ["legacy", "modern"] {
            let report = sdk.report(era, &["--url", &gate.url("/mcp")], Some(&key), &steps()).await;
            check(era, &report);
        }
    }
    gate.stop().await;
}

#[tokio::test]
async fn sdk_clients_work_over_a_bridge() {
    let gate = Setup::notes().policies(POLICY).start().await;
    let config = gate.path("portcullis.toml");
    let program = portcullis();
    let target =
        ["--stdio", program.to_str().unwrap(), "connect", "--config", config.to_str().unwrap()];
    for sdk in BY_PIPE {
        for era in ["legacy", "modern"] {
            check(era, &sdk.report(era, &target, None, &steps()).await);
        }
    }
    gate.stop().await;
}

#[tokio::test]
async fn sdk_clients_work_over_stdio() {
    for sdk in BY_PIPE {
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

#[tokio::test]
async fn pydantic_ai_agent_uses_tools() {
    let gate = Setup::notes().policies(POLICY).start().await;
    let target = ["--url", &gate.url("/mcp")];
    let steps = json!([
        { "method": "tools/list" },
        { "method": "tools/call", "params": { "name": "notes__read_note", "arguments": { "name": "welcome" } } },
        { "method": "prompts/get", "params": { "name": "notes__summarize_notes", "arguments": { "name": "groceries" } } },
        { "method": "resources/read", "params": { "uri": "note:///welcome" } },
        { "method": "agent", "params": { "tool": "notes__list_notes" } },
        { "method": "tools/call", "params": { "name": "notes__delete_note", "arguments": { "name": "welcome" } } },
    ]);
    for era in ["legacy", "modern"] {
        let report = Sdk::PydanticAi.report(era, &target, None, &steps).await;
        let steps = report["steps"].as_array().unwrap();
        let [tools, call, prompt, read, agent, delete] = steps.as_slice() else {
            panic!("{report:#}")
        };
        assert_eq!(tools["result"]["tools"].as_array().unwrap().len(), 3, "{tools:#}");
        for (step, text) in [
            (call, "behind Portcullis"),
            (prompt, "two lemons"),
            (read, "behind Portcullis"),
            (agent, "groceries"),
        ] {
            assert!(step["result"]["value"].to_string().contains(text), "{step:#}");
        }
        assert_eq!(delete["error"]["data"]["code"], "policy-denied", "{delete:#}");
    }
    gate.stop().await;
}

#[tokio::test]
async fn inspector_lists_only_permitted_tools() {
    let gate = Setup::notes().policies(POLICY).start().await;
    let url = gate.url("/mcp");
    for era in ["legacy", "modern"] {
        let inspect = async |method: &[&str]| inspect(era, &[&url], method).await;
        let tools = inspect(&["tools/list"]).await.unwrap().to_string();
        assert!(tools.contains("notes__read_note"), "{era}: {tools}");
        assert!(!tools.contains("notes__delete_note"), "{era}: {tools}");
        let call = ["tools/call", "--tool-name", "notes__read_note", "--tool-arg", "name=welcome"];
        let called = inspect(&call).await.unwrap().to_string();
        assert!(called.contains("behind Portcullis"), "{era}: {called}");
        let read = inspect(&["resources/read", "--uri", "note:///welcome"]).await.unwrap();
        assert!(read.to_string().contains("behind Portcullis"), "{era}: {read:#}");
        let get = ["prompts/get", "--prompt-name", "notes__summarize_notes", "--prompt-args"];
        let got = inspect(&[&get[..], &["name=groceries"]].concat()).await.unwrap();
        assert!(got.to_string().contains("two lemons"), "{era}: {got:#}");
        let delete = ["tools/call", "--tool-name", "notes__delete_note", "--tool-arg", "name=n"];
        // It calls nothing that is not in the list.
        let refused = inspect(&delete).await.unwrap_err();
        assert!(refused.contains("not found"), "{era}: {refused}");
    }
    gate.stop().await;
}

/// The inspector reads config files as Claude Code does, and starts the command of the entry.
#[tokio::test]
async fn entry_of_client_connect_is_used_by_the_inspector() {
    let gate = Setup::notes().keyed().policies(POLICY).start().await;
    let (file, url) = (gate.path("mcp.json").display().to_string(), gate.url("/mcp"));
    let connect = ["client", "connect", "claude-code", "--file", &file, "--url", &url, "--yes"];
    gate.cli(&[&connect[..], &["--format", "json"]].concat()).await.expect(0);
    let entry = ["--config", &file, "--server", "portcullis"];
    for era in ["legacy", "modern"] {
        let tools = inspect(era, &entry, &["tools/list"]).await.unwrap().to_string();
        assert!(tools.contains("notes__read_note"), "{era}: {tools}");
        assert!(!tools.contains("notes__delete_note"), "{era}: {tools}");
    }
    let records = gate.records(&["client = claude-code and method = tools/list"]).await;
    assert!(!records.is_empty(), "the client has its own key");
    gate.cli(&["client", "disconnect", "claude-code", "--file", &file, "--yes"]).await;
    assert!(!gate.path("mcp.json").exists());
    gate.stop().await;
}

#[tokio::test]
async fn server_requests_work_across_eras() {
    let scripted = server("scripted");
    let mut config = String::new();
    let servers = [("legacy", "2025-11-25"), ("modern", "2026-07-28")];
    for (name, revision) in servers {
        config.push_str(&format!(
            "[servers.{name}]\ncommand = [\"{}\", \"{revision}\", \"stdio\"]\nruntime = \"sandbox\"\n",
            scripted.display()
        ));
    }
    let gate = Setup::new(&config).start().await;
    let mut wrong = Vec::new();
    for (name, revision) in servers {
        let url = gate.url(&format!("/servers/{name}/mcp"));
        for sdk in Sdk::ALL {
            for era in ["legacy", "modern"] {
                let call = |tool: &str, arguments: Value| {
                    let params = json!({ "name": tool, "arguments": arguments });
                    json!({ "method": "tools/call", "params": params })
                };
                let steps = json!([
                    call("echo", json!({ "text": "hello" })),
                    call("sample", json!({})),
                    call("form", json!({})),
                    call("roots", json!({})),
                    { "cancel": new_mark() },
                ]);
                let report = sdk.report(era, &["--url", &url], None, &steps).await;
                let said = [
                    &format!("{revision}: hello"),
                    "the client said: 42 from a model",
                    "the client said: Ada",
                    "the client said: file:///clients/root",
                    "it was cancelled",
                ];
                for (step, said) in report["steps"].as_array().unwrap().iter().zip(said) {
                    if !step["result"].to_string().contains(said) {
                        wrong.push(format!("{sdk:?} {era} → {name}: {step} without {said:?}"));
                    }
                }
                if report["steps"][4]["heard"] != 1.0 {
                    wrong.push(format!("{sdk:?} {era} → {name}: no progress: {report:#}"));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    gate.stop().await;
}
