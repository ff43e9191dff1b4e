//! Plugins in a running proxy: audit mode, reload, and labels.

use serde_json::json;

use crate::support::{gate::Setup, target, until};

fn entry(more: &str) -> String {
    format!(
        "[[interceptors]]\nuse = \"plugin\"\nname = \"mine\"\npath = \"plugin.wasm\"\n\
         allow-unpinned = true\n{more}\n"
    )
}

fn built(name: &str) -> Vec<u8> {
    std::fs::read(target(&format!("plugins/{name}.wasm"))).unwrap()
}

#[tokio::test]
async fn plugin_in_audit_mode_is_only_recorded() {
    let gate = Setup::crooked("")
        .and(&entry("mode = \"audit\""))
        .file("plugin.wasm", built("keeper"))
        .start()
        .await;
    let agent = gate.modern();
    assert_eq!(agent.text("crooked__echo", json!({ "text": "plain" })).await, "plain");
    let records = gate.records(&["--method", "tools/call"]).await;
    let text = serde_json::to_string(&records).unwrap();
    assert!(text.contains("would-refuse") && text.contains("keeper/seen"), "{text}");
    gate.stop().await;
}

#[tokio::test]
async fn changed_plugin_is_replaced_after_its_record() {
    let gate = Setup::crooked("").and(&entry("")).file("plugin.wasm", built("noop")).start().await;
    let agent = gate.modern();
    assert_eq!(agent.text("crooked__echo", json!({ "text": "plain" })).await, "plain");
    let put = |name: &str| {
        let new = gate.path("new.wasm");
        std::fs::write(&new, built(name)).unwrap();
        std::fs::rename(new, gate.path("plugin.wasm")).unwrap();
    };

    put("stricter");
    until("the new plugin", async || {
        let refused = agent.call("crooked__echo", json!({ "text": "plain" })).await.err()?;
        assert_eq!(refused["data"]["code"], "plugin-refused", "{refused:#}");
        Some(())
    })
    .await;
    let loaded = gate.records(&["event = plugin-loaded"]).await;
    let manifests: Vec<_> = loaded.iter().map(|record| record["manifest"].clone()).collect();
    // The newest first.
    assert_eq!(manifests, ["noop 0.2.0", "noop 0.1.0"]);

    put("liar");
    let records = until("the refusal of a bad one", async || {
        let records = gate.records(&["event = plugin-refused"]).await;
        (!records.is_empty()).then_some(records)
    })
    .await;
    let reason = records[0]["reason"].as_str().unwrap();
    assert!(reason.contains("is not an MCP method"), "{reason}");
    assert_eq!(agent.refused("crooked__echo", json!({ "text": "plain" })).await, "plugin-refused");
    gate.stop().await;
}

/// Nothing that is labelled `secret` is called, and nothing by who has read what is labelled `tainted`.
const LABELS: &str = r#"
    @id("all")
    permit (principal, action, resource);

    @id("labelled")
    forbid (principal, action == Portcullis::Action::"call_tool", resource)
    when { context.labels.contains("secret") || context.labels.contains("tainted") };
"#;

#[tokio::test]
async fn policies_see_labels_of_plugins() {
    let gate = Setup::crooked("")
        .and(&entry(""))
        .file("plugin.wasm", built("tagger"))
        .policies(LABELS)
        .start()
        .await;
    let agent = gate.legacy().await;
    let say = |text: &'static str| json!({ "text": text });
    assert_eq!(agent.text("crooked__echo", say("tag:dull;")).await, "tag:dull;");
    // Of a message: this one alone.
    assert_eq!(agent.refused("crooked__echo", say("tag:secret;")).await, "policy-denied");
    assert_eq!(agent.text("crooked__echo", say("plain")).await, "plain");
    let records = gate.records(&["decision = refused"]).await;
    assert_eq!(records.len(), 1);
    assert_eq!(records[0]["labels"], json!(["secret"]));
    assert_eq!(records[0]["rules"][0]["id"], "labelled");

    // Of an answer: all that the session does once it has read it, and no other's.
    let other = gate.legacy().await;
    assert_eq!(agent.text("crooked__echo", say("answer:tainted;")).await, "answer:tainted;");
    assert_eq!(agent.refused("crooked__echo", say("plain")).await, "policy-denied");
    assert_eq!(other.text("crooked__echo", say("plain")).await, "plain");
    // Who has no session carries it, too.
    let modern = gate.modern();
    modern.text("crooked__echo", say("answer:tainted;")).await;
    assert_eq!(modern.refused("crooked__echo", say("plain")).await, "policy-denied");

    // Without end there are none.
    for call in 0.. {
        let labels: String = (0..30).map(|at| format!("answer:n{call}-{at};")).collect();
        match other.call("crooked__echo", json!({ "text": labels })).await {
            Ok(_) => assert!(call < 9, "labels without end"),
            Err(error) => {
                assert_eq!(error["data"]["code"], "interceptor-fault", "{error:#}");
                break;
            }
        }
    }
    gate.stop().await;
}
