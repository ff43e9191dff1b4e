//! `plugin test`: passing cases, and the messages about failing ones.

use std::{fs, path::Path};

use serde_json::Value;

use super::{ROOT, built, run};

#[test]
fn examples_pass_their_own_cases() {
    for name in ["redact-pii", "refunds", "prompt-injection", "watermark"] {
        let plugin = built(name);
        let folder = Path::new(ROOT).join("plugins/examples").join(name);
        let args = ["plugin", "test", ".", "--plugin", plugin.to_str().unwrap()];
        let (code, out, err) = run(&folder, &args);
        assert_eq!(code, 0, "{name}: {out}{err}");
        assert!(!out.contains("no case:"), "{name}: {out}");
    }
}

/// Runs cases of the example `refunds`.
fn cases(text: &str) -> (i32, String) {
    let dir = tempfile::tempdir().unwrap();
    let plugin = built("refunds");
    let head = format!("plugin: {}\nconfig: {{ limits: {{ EUR: 100 }} }}\n", plugin.display());
    fs::write(dir.path().join("mine.test.yaml"), head + text).unwrap();
    let (code, out, err) = run(dir.path(), &["plugin", "test"]);
    assert_eq!(err, "");
    (code, out)
}

#[test]
fn failure_shows_verdict_and_message() {
    let (code, out) = cases(
        "cases:\n  - name: large\n    call: shop/refund\n    args: { amount: 101, currency: EUR }\n    expect: pass\n",
    );
    assert_eq!(code, 11, "{out}");
    for part in [
        "large: expected pass, got refuse",
        "mine.test.yaml:7",
        "got refuse with `limit`: a refund is at most 100 EUR",
        r#"asked: anonymous, request of tools/call on shop, {"name":"refund","arguments":{"amount":101,"currency":"EUR"}}"#,
        "mine.test.yaml: 1 of 1 message NOT as expected",
    ] {
        assert!(out.contains(part), "{part}\n{out}");
    }
}

#[test]
fn every_expectation_of_a_case_can_fail() {
    let refused = "call: shop/refund, args: { amount: 101, currency: EUR }, expect: refuse";
    let passed = "call: shop/refund, args: { amount: 1, currency: EUR }, expect: pass";
    for (case, told) in [
        (format!("{refused}, code: amount"), "refuses with another code"),
        (format!("{refused}, says: no such words"), "says something else"),
        (format!("{passed}, gives: [seen]"), "gives other labels"),
        (format!("{passed}, reports: [seen]"), "reports something else"),
        (format!("{passed}, counts: {{ seen: 1 }}"), "counts something else"),
        (format!("{passed}, logs: seen"), "logs something else"),
        (format!("{passed}, leaves: {{ a: 1 }}"), "leaves something else"),
        (format!("{passed}, config: {{}}"), "expected pass, got unusable"),
        ("read: shop/x://y, expect: pass".to_owned(), "expected pass, got unasked"),
    ] {
        let (code, out) = cases(&format!("cases:\n  - {{ name: one, {case} }}\n"));
        assert_eq!(code, 11, "{case}: {out}");
        assert!(out.contains(told), "{case}: {out}");
    }
    for case in [refused, passed, "read: shop/x://y, expect: unasked"] {
        let (code, out) = cases(&format!("cases:\n  - {{ name: one, {case} }}\n"));
        assert_eq!(code, 0, "{case}: {out}");
    }
}

#[test]
fn illegal_replacement_is_a_fault() {
    let dir = tempfile::tempdir().unwrap();
    let plugin = built("hostile");
    for (harm, told) in [
        ("garbage", "not JSON"),
        ("garbage-list", "object"),
        ("garbage-twice", "duplicate key"),
        ("other-tool", "changes `name`"),
    ] {
        let case = format!("call: shop/{harm}, args: {{}}");
        let file = format!(
            "plugin: {}\ncases: [{{ name: one, {case}, expect: fault, says: '{told}' }}]\n",
            plugin.display()
        );
        fs::write(dir.path().join("mine.test.yaml"), file).unwrap();
        let (code, out, err) = run(dir.path(), &["plugin", "test"]);
        assert_eq!(code, 0, "{harm}: {out}{err}");

        let message = dir.path().join("message.yaml");
        fs::write(&message, format!("call: shop/{harm}\nargs: {{}}\n")).unwrap();
        let asked = ["plugin", "call", plugin.to_str().unwrap(), "--message", "message.yaml"];
        let (code, out, err) = run(dir.path(), &asked);
        assert_eq!(code, 1, "{harm}: {out}{err}");
        assert!(out.starts_with("fault: ") && out.contains(told), "{harm}: {out}");
    }
}

#[test]
fn errors_in_a_case_file_have_positions() {
    for (case, told) in [
        ("{ name: a, call: shop/refund, expects: pass }", "did you mean `expect`?"),
        ("{ name: a, call: shop/refund }", "the case expects nothing"),
        ("{ call: shop/refund, expect: pass }", "the case has no name"),
        ("{ name: a, call: refund, expect: pass }", "is not SERVER/NAME"),
        ("{ name: a, expect: pass }", "the case has no message"),
        ("{ name: a, call: s/t, expect: pass, code: x }", "`code` goes with `expect: refuse`"),
        ("{ name: a, call: s/t, as: nobody, expect: pass }", "there is no principal `nobody`"),
        ("{ name: a, call: s/t, args: {}, text: x, expect: pass }", "give one of `args`"),
        (
            "{ name: a, call: s/t, phase: request, payload: '[]', expect: pass }",
            "not the text of a JSON object",
        ),
    ] {
        let (code, out) = cases(&format!("cases:\n  - {case}\n"));
        assert_eq!(code, 11, "{case}: {out}");
        assert!(out.contains(told) && out.contains("mine.test.yaml:4"), "{case}: {out}");
    }
}

#[test]
fn steps_share_state_and_rows_do_not() {
    let day = "config: { limits: { EUR: 100 }, a-day: { EUR: 150 } }";
    let asked = "call: shop/refund\n    args: { amount: 100, currency: EUR }";
    let rows = |key: &str, second: &str| {
        cases(&format!(
            "cases:\n  - name: two\n    {day}\n    {asked}\n    {key}:\n      - {{ expect: pass }}\n      - {{ expect: {second} }}\n"
        ))
    };
    assert_eq!(rows("steps", "refuse").0, 0);
    assert_eq!(rows("each", "pass").0, 0);
    let (code, out) = rows("steps", "pass");
    assert_eq!(code, 11);
    assert!(out.contains("two (step 2): expected pass, got refuse"), "{out}");
    assert!(out.contains("in this row"), "{out}");
}

#[test]
fn untested_hooks_are_reported() {
    let dir = tempfile::tempdir().unwrap();
    let plugin = built("redact-pii");
    let text = format!(
        "plugin: {}\ncases:\n  - {{ name: a, call: crm/find, text: hello, expect: pass }}\n",
        plugin.display()
    );
    fs::write(dir.path().join("pii.test.yaml"), text).unwrap();
    let (code, out, _) = run(dir.path(), &["plugin", "test"]);
    assert_eq!(code, 0, "{out}");
    for told in ["request of tools/call", "response of resources/read", "response of prompts/get"] {
        assert!(out.contains(&format!("no case: redact-pii is asked about the {told}\n")), "{out}");
    }
    assert!(!out.contains("response of tools/call"), "{out}");

    let (_, out, _) = run(dir.path(), &["plugin", "test", "--format", "json"]);
    let told: Value = serde_json::from_str(&out).unwrap();
    assert_eq!((&told["passed"], &told["failed"]), (&1.into(), &0.into()));
    assert_eq!(told["unmet"].as_array().unwrap().len(), 3);
    assert_eq!(told["cases"][0]["actual"], "pass");
}
