//! `plugin call` and `plugin inspect`.

use std::{
    fs,
    io::Write as _,
    process::{Output, Stdio},
};

use serde_json::{Value, json};

use super::{built, command, run};

const LIMITS: &str = r#"{"limits":{"EUR":100}}"#;

fn rpc(amount: u32) -> String {
    let call = json!({ "name": "refund", "arguments": { "amount": amount, "currency": "EUR" } });
    json!({ "jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": call }).to_string()
}

#[test]
fn plugin_call_reads_a_file_or_standard_input() {
    let dir = tempfile::tempdir().unwrap();
    let plugin = built("refunds");
    let plugin = plugin.to_str().unwrap();
    let call = |file: &str| {
        run(dir.path(), &["plugin", "call", plugin, "--settings", LIMITS, "--message", file])
    };
    fs::write(dir.path().join("small.json"), rpc(100)).unwrap();
    fs::write(dir.path().join("large.json"), rpc(101)).unwrap();
    fs::write(
        dir.path().join("asked.yaml"),
        "call: shop/refund\nargs: { amount: 7, currency: USD }\nconfig: { limits: { USD: 5 } }\n",
    )
    .unwrap();
    let (code, out, err) = call("small.json");
    assert_eq!(code, 0, "{out}{err}");
    assert!(out.starts_with("pass\n") && out.contains(" µs, "), "{out}");
    let (code, out, _) = call("large.json");
    assert_eq!(code, 10);
    assert!(out.starts_with("refuse refunds/limit: a refund is at most 100 EUR\n"), "{out}");
    let (code, out, _) = call("asked.yaml");
    assert_eq!(code, 10);
    assert!(out.contains("at most 5 USD"), "{out}");

    let args =
        ["plugin", "call", plugin, "--settings", LIMITS, "--message", "-", "--format", "json"];
    let mut child =
        command(dir.path(), &args).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(rpc(101).as_bytes()).unwrap();
    let Output { status, stdout, .. } = child.wait_with_output().unwrap();
    assert_eq!(status.code(), Some(10));
    let told: Value = serde_json::from_slice(&stdout).unwrap();
    assert_eq!(told["verdict"]["is"], "refuse");
    assert_eq!(told["verdict"]["code"], "limit");
    assert!(told["memory"].as_u64().unwrap() > 0 && told["micros"].as_u64().unwrap() > 0, "{told}");
}

#[test]
fn invalid_plugin_calls_are_explained() {
    let dir = tempfile::tempdir().unwrap();
    let plugin = built("refunds");
    let plugin = plugin.to_str().unwrap();
    fs::write(dir.path().join("small.json"), rpc(1)).unwrap();
    fs::write(dir.path().join("wrong.yaml"), "cal: shop/refund\n").unwrap();
    for (args, told) in [
        (&["--message", "small.json"][..], "plugin-config"),
        (&["--message", "wrong.yaml", "--settings", LIMITS], "did you mean `call`?"),
        (&["--message", "none.json"], "cannot read the message none.json"),
        (&["--message", "small.json", "--settings", "[]"], "`--settings` is not a JSON object"),
        (&[], "--message"),
    ] {
        let (code, out, err) = run(dir.path(), &[&["plugin", "call", plugin], args].concat());
        assert!(code == 1 || code == 2, "{args:?}");
        assert_eq!(out, "");
        assert!(err.contains(told), "{args:?}: {err}");
    }
}

#[test]
fn plugin_inspect_shows_manifest_and_cost() {
    let dir = tempfile::tempdir().unwrap();
    let plugin = built("refunds");
    let plugin = plugin.to_str().unwrap();
    let inspect = ["plugin", "inspect", plugin, "--settings", LIMITS, "--format", "json"];
    let (code, out, err) = run(dir.path(), &inspect);
    assert_eq!(code, 0, "{err}");
    let told: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(told["name"], "refunds");
    assert_eq!(told["imports"], json!(["clock", "state"]));
    assert_eq!((&told["lifetime"], &told["once"]), (&json!("message"), &json!(true)));
    assert_eq!(told["hooks"][0]["event"], "tools/call");
    assert_eq!(told["config_schema"]["required"], json!(["limits"]));
    assert_eq!(told["bytes"], fs::metadata(plugin).unwrap().len());
    let costs = told["costs"].as_array().unwrap();
    let sizes: Vec<_> = costs.iter().map(|cost| cost["kib"].as_u64().unwrap()).collect();
    assert_eq!(sizes, [1, 10, 100], "{told}");
    assert!(costs.iter().all(|cost| cost["p50_us"].as_f64().unwrap() > 0.0), "{told}");

    assert!(told["slopes"][0]["us"].as_f64().unwrap() >= 0.0, "{told}");

    // Without a config that fits, all else is said.
    let (code, out, _) = run(dir.path(), &["plugin", "inspect", plugin]);
    assert_eq!(code, 0);
    assert!(out.contains("its cost was not measured: "), "{out}");
    assert!(out.contains("  asked     once; put it behind"), "{out}");
    assert!(out.contains("config = { limits = "), "{out}");
    assert!(out.contains("   # an example: write your own values\n"), "{out}");
    assert!(out.contains("[interceptors.grants]\nclock = true\nstate = \"1MiB\"\n"), "{out}");
}

#[test]
fn printed_config_and_policies_satisfy_check() {
    let dir = tempfile::tempdir().unwrap();
    let plugin = built("prompt-injection");
    let plugin = plugin.to_str().unwrap();
    let inspect = ["plugin", "inspect", plugin, "--no-cost", "--format", "json"];
    let (_, out, _) = run(dir.path(), &inspect);
    let told: Value = serde_json::from_str(&out).unwrap();
    let entry = told["config"].as_str().unwrap();
    fs::create_dir(dir.path().join("policies")).unwrap();
    let config = dir.path().join("portcullis.toml");
    fs::write(&config, entry).unwrap();
    let policies = told["policies"].as_array().unwrap();
    let policies: Vec<_> = policies.iter().map(|policy| policy.as_str().unwrap()).collect();
    let (code, out, _) = run(dir.path(), &["check"]);
    assert_eq!(code, 11);
    assert!(policies.iter().all(|policy| out.contains(policy)), "{out}");
    fs::write(dir.path().join("policies/plugin.cedar"), policies.join("\n")).unwrap();
    let (code, out, err) = run(dir.path(), &["check"]);
    assert_eq!(code, 0, "{out}{err}");

    let (bare, grants) = entry.split_once("[interceptors.grants]\n").unwrap();
    fs::write(&config, bare).unwrap();
    let (code, out, err) = run(dir.path(), &["check"]);
    assert_ne!(code, 0);
    for line in grants.lines() {
        assert!(out.contains(line) || err.contains(line), "{line}: {out}{err}");
    }
}

#[test]
fn inspect_refuses_other_files() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("text.wasm"), "text").unwrap();
    for (file, told) in [("text.wasm", "is not WebAssembly"), ("none.wasm", "cannot read")] {
        let (code, out, err) = run(dir.path(), &["plugin", "inspect", file]);
        assert_eq!((code, out.as_str()), (1, ""));
        assert!(err.contains(told), "{err}");
    }
}
