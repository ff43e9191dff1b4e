//! The example `plugins/examples/redact-pii`.

use portcullis_chain::Decision;
use portcullis_protocol::{names::DecisionId, refusal::Code};

use super::*;

fn redact_pii() -> Plugin {
    let mut config = config("redact-pii");
    config.config.insert("marker".into(), "internal-only".into());
    load(&config, &EntrySettings::default()).expect("the example loads")
}

#[tokio::test]
async fn addresses_in_results_are_replaced() {
    let plugin = redact_pii();
    for (said, passed) in [
        ("write to ada@example.org.", "write to [email]."),
        ("<a.b+c@x-y.example.com>, d@e.f", "<[email]>, [email]"),
        ("é@example.org x@y@example.org", "é@example.org x@[email]"),
    ] {
        let answer = json!({ "content": [{ "type": "text", "text": said }] });
        let exchange = call("read", json!({}), Some(answer.clone()));
        let verdict = plugin.inspect(&exchange, Phase::Response).await.expect("a verdict");
        let decision = match verdict.decision {
            Decision::Replace(text) => serde_json::from_slice(&text).expect("JSON"),
            _ => answer,
        };
        assert_eq!(decision["content"][0]["text"], passed);
    }
}

#[tokio::test]
async fn unreplaced_values_keep_order_and_digits() {
    let text = |address| format!(r#"{{"z":12345678901234567890.50, "a":"{address}","b":0.10}}"#);
    let mut exchange = call("read", json!({}), Some(Value::Null));
    exchange.response = Some(Answer::Result(Payload::new(text("a@b.example").into())));
    let verdict = redact_pii().inspect(&exchange, Phase::Response).await.expect("a verdict");
    let Decision::Replace(replaced) = verdict.decision else { panic!("replaced") };
    assert_eq!(replaced, text("[email]"));
    assert!(verdict.labels.contains("pii"));
    assert_eq!(verdict.findings[0].rule.id, "redact-pii/email");
}

#[tokio::test]
async fn result_without_address_is_unchanged() {
    let exchange = call("read", json!({}), Some(json!({ "content": [{ "text": "a @ b, c@d" }] })));
    let verdict = redact_pii().inspect(&exchange, Phase::Response).await.expect("a verdict");
    assert_eq!(verdict, Verdict::pass());
}

#[tokio::test]
async fn marked_call_is_refused_by_the_plugins_rule() {
    let plugin = redact_pii();
    let marked = call("send", json!({ "to": ["x", { "y": "(internal-only)" }] }), None);
    let verdict = plugin.inspect(&marked, Phase::Request).await.expect("a verdict");
    let Decision::Refuse(refusal) = verdict.decision else { panic!("refused") };
    assert_eq!(refusal.code, Code::PluginRefused);
    assert_eq!(refusal.rules[0].id, "redact-pii/marker");
    // Which of the plugin's rules it was is for the agent, too; nothing else of it.
    let told = refusal.to_rpc_error(DecisionId::next());
    assert_eq!(told["data"]["reason"], "redact-pii/marker");
    assert_eq!(told["data"]["code"], "plugin-refused");

    let plain = call("send", json!({ "to": "x" }), None);
    assert_eq!(plugin.inspect(&plain, Phase::Request).await.expect("a verdict"), Verdict::pass());
}

#[tokio::test]
async fn without_a_marker_every_call_passes() {
    let plugin = load(&config("redact-pii"), &EntrySettings::default()).expect("the example loads");
    let verdict = ask(&plugin, "internal-only").await.expect("a verdict");
    assert_eq!(verdict, Verdict::pass());
    assert_eq!(plugin.name(), "plugin");
    assert_eq!(plugin.now().manifest().name, "redact-pii");
    assert!(plugin.wants(&Method::new(Method::TOOLS_CALL), Phase::Response));
    assert!(!plugin.wants(&Method::new(Method::TOOLS_LIST), Phase::Response));
}

/// What a component imports, by name.
fn imports(name: &str) -> Vec<String> {
    let tools = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."))
        .join("target/guests/release/plugin-tools");
    let out = Command::new(tools).arg("imports").arg(built(name)).output().expect("plugin-tools");
    assert!(out.status.success(), "{name}: {}", String::from_utf8_lossy(&out.stderr));
    let lines = String::from_utf8(out.stdout).expect("text");
    let last = |line: &str| line.rsplit('/').next().unwrap_or_default().to_owned();
    lines.lines().map(last).collect()
}

#[test]
fn plugins_import_only_what_they_use() {
    for (name, expected) in [
        ("redact-pii", &[][..]),
        ("watermark", &[]),
        ("quota", &["log@0.1.0", "state@0.1.0"]),
        ("refunds", &["clock@0.1.0", "state@0.1.0"]),
        ("prompt-injection", &["metrics@0.1.0"]),
    ] {
        assert_eq!(imports(name), expected, "{name}");
    }
}

#[tokio::test]
async fn counting_plugin_needs_the_state_grant() {
    let entry = |grants: Value| {
        let config = json!({ "calls": 2 });
        let entry = json!({ "path": built("quota"), "allow-unpinned": true, "config": config, "grants": grants });
        serde_json::from_value::<Config>(entry).expect("a legal entry")
    };
    let bare = load(&entry(json!({})), &EntrySettings::default()).err().expect("not loaded");
    assert!(bare.to_string().contains("state"), "{bare}");
    let granted = entry(json!({ "log": true, "state": "1MiB" }));
    let plugin = load(&granted, &EntrySettings::default()).expect("it loads");
    for _ in 0..2 {
        assert_eq!(ask(&plugin, "any").await, Ok(Verdict::pass()));
    }
    let spent = ask(&plugin, "any").await.expect("a verdict");
    let Decision::Refuse(refusal) = spent.decision else { panic!("refused") };
    assert_eq!(refusal.rules[0].id, "quota/spent");
}
