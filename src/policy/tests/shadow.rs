//! Policies in shadow mode: evaluated, without effect.

use super::*;

fn decide(engine: &Engine, tool: &str, json: &str) -> Outcome {
    let (server, arguments) = (server("s"), args(json));
    engine.decide(&Request {
        subject: Subject::Client(&client("a", &[])),
        action: Action::CallTool,
        resource: Resource::Tool { server: &server, name: tool, claims: Claims::default() },
        args: Some(&arguments),
        written: json.as_bytes(),
        circumstances: circumstances("tools/call"),
    })
}

const POLICIES: &str = r#"
    @id("open") permit (principal, action, resource == Portcullis::Tool::"s/open");
    @id("shut") permit (principal, action, resource == Portcullis::Tool::"s/shut");
    @id("never") forbid (principal, action, resource == Portcullis::Tool::"s/shut");
    @id("trial") @mode("shadow") permit (principal, action, resource);
    @id("no-x") @mode("shadow") forbid (principal, action, resource)
    when { context.args.hasTag("/x") };
    @id("fails") @mode("shadow") @keep("arguments") permit (principal, action, resource)
    when { context.args.hasTag("/y") && context.session_calls + 9223372036854775807 > 0 };
"#;

#[test]
fn shadow_policy_only_reports_its_effect() {
    let engine = engine(POLICIES);
    for (tool, json, rules, shadows) in [
        ("open", "{}", &["open"] as &[_], &[] as &[_]),
        ("open", r#"{"x": 1}"#, &["open"], &["no-x"]),
        ("open", r#"{"x": 1, "y": 1}"#, &["open"], &["no-x", "fails"]),
        ("open", r#"{"y": 1}"#, &["open"], &["fails"]),
        // A forbidden call stays forbidden, whatever is permitted.
        ("shut", "{}", &["never"], &[]),
        ("shut", r#"{"x": 1}"#, &["never"], &[]),
        ("other", "{}", &[], &["trial"]),
        // Together with the others, it would be refused too.
        ("other", r#"{"x": 1}"#, &[], &[]),
        ("other", r#"{"y": 1}"#, &[], &[]),
    ] {
        let outcome = decide(&engine, tool, json);
        assert_eq!(outcome.allowed, rules == ["open"], "{tool} {json}");
        assert_eq!(ids(&outcome), rules, "{tool} {json}");
        assert_eq!(outcome.errors, [], "{tool} {json}");
        let would: Vec<_> = outcome.shadows.iter().map(|shadow| shadow.rule.id.as_str()).collect();
        assert_eq!(would, shadows, "{tool} {json}");
        for shadow in &outcome.shadows {
            let problem = (shadow.rule.id == "fails").then_some("an integer overflows");
            assert_eq!(shadow.problem.as_deref(), problem, "{tool} {json}");
        }
    }
}

#[test]
fn shadow_policy_does_not_change_visibility() {
    let engine = engine(
        r#"permit (principal, action, resource == Portcullis::Tool::"s/open");
           @mode("shadow") forbid (principal, action, resource == Portcullis::Tool::"s/open");
           @mode("shadow") permit (principal, action, resource);"#,
    );
    let (principal, server) = (client("a", &[]), server("s"));
    for (name, shown) in [("open", true), ("other", false)] {
        let resource = Resource::Tool { server: &server, name, claims: Claims::default() };
        let subject = Subject::Client(&principal);
        assert_eq!(engine.could_allow(&subject, Action::CallTool, &resource), shown, "{name}");
    }
}

#[test]
fn shadow_policies_keep_and_permit_nothing() {
    assert_eq!(engine(POLICIES).status().borrow().keeping, [] as [&str; 0]);
    let engine = engine(r#"@id("all") @mode("shadow") permit (principal, action, resource);"#);
    let outcome = decide(&engine, "t", "{}");
    assert!(!outcome.allowed);
    assert_eq!(outcome.shadows.len(), 1);
    assert_eq!(outcome.explain(), "no policy permits it");
}

#[test]
fn unrepresentable_arguments_pass_shadow_policies() {
    let engine = engine(
        r#"permit (principal, action, resource);
           @mode("shadow") forbid (principal, action, resource)
           when { context.args.hasTag("/other") };"#,
    );
    let outcome = decide(&engine, "t", r#"{"id": 12345678901234567890123}"#);
    assert!(outcome.allowed);
    let problem = outcome.shadows[0].problem.as_deref().unwrap();
    assert!(problem.contains("more digits"), "{problem}");
}
