use insta::assert_snapshot;

use super::*;

/// The findings as `portcullis policy check` prints them.
fn findings(files: &[(&str, &str)]) -> String {
    let diagnostics = try_engine(files).unwrap_err();
    let handler =
        miette::GraphicalReportHandler::new_themed(miette::GraphicalTheme::unicode_nocolor())
            .with_links(false)
            .with_width(100);
    let mut text = String::new();
    for finding in diagnostics.findings() {
        handler.render_report(&mut text, finding).unwrap();
    }
    text
}

#[test]
fn syntax_error_is_shown_at_its_position() {
    assert_snapshot!(findings(&[("a.cedar", "permit (principal, action, resource)\nwhen { true }\n\nforbid (principal, action, resource);")]), @r#"
    policy-syntax

      × unexpected token `(`
       ╭─[policies/a.cedar:4:8]
     3 │ 
     4 │ forbid (principal, action, resource);
       ·        ┬
       ·        ╰── expected `{`
       ╰────
    "#);
}

#[test]
fn set_in_a_scope_is_refused_with_a_remedy() {
    let policy = r#"permit (principal, action, resource in [Portcullis::Server::"a"]);"#;
    assert_snapshot!(findings(&[("a.cedar", policy)]), @r#"
    policy-syntax

      × expected single entity uid or template slot, found set of entity uids
       ╭─[policies/a.cedar:1:40]
     1 │ permit (principal, action, resource in [Portcullis::Server::"a"]);
       ·                                        ─────────────────────────
       ╰────
      help: only `action` takes a list: write `resource`, and `when { resource in […] }`
    "#);
    let policy = r#"permit (principal in [Portcullis::Group::"a"], action, resource);"#;
    let help = "write `principal`, and `when { principal in […] }`";
    assert!(findings(&[("a.cedar", policy)]).contains(help));
}

#[test]
fn error_of_many_actions_is_one_finding() {
    let policy = r#"@id("a") permit (principal, action in Portcullis::Action::"use", resource)
when { context.weekend };"#;
    let found = findings(&[("a.cedar", policy)]);
    assert_eq!(found.matches("policy-invalid").count(), 1, "{found}");
    assert!(found.contains("attribute `weekend` in context"), "{found}");
}

#[test]
fn unknown_names_get_a_suggestion() {
    assert_snapshot!(findings(&[("a.cedar", r#"@id("a")
permit (principal is Portcullis::Cleint, action, resource);
@id("b")
permit (principal, action == Portcullis::Action::"call_tol", resource);
permit (principal is Client, action == Action::"call_tool", resource);
@id("c")
permit (principal, action == Portcullis::Action::"call_tool", resource)
when { resource.claims.destuctive && context.arg.hasTag("/x") };
"#)]), @r#"
    policy-invalid

      × for policy `a`, unrecognized entity type `Portcullis::Cleint`
       ╭─[policies/a.cedar:2:22]
     1 │ @id("a")
     2 │ permit (principal is Portcullis::Cleint, action, resource);
       ·                      ──────────────────
     3 │ @id("b")
       ╰────
      help: did you mean `Portcullis::Client`?
    policy-invalid

      × for policy `b`, unrecognized action `Portcullis::Action::"call_tol"`
       ╭─[policies/a.cedar:4:30]
     3 │ @id("b")
     4 │ permit (principal, action == Portcullis::Action::"call_tol", resource);
       ·                              ──────────────────────────────
     5 │ permit (principal is Client, action == Action::"call_tool", resource);
       ╰────
      help: did you mean `Portcullis::Action::"call_tool"`?
    policy-invalid

      × for policy `policies/a.cedar:5`, unrecognized entity type `Client`
       ╭─[policies/a.cedar:5:22]
     4 │ permit (principal, action == Portcullis::Action::"call_tol", resource);
     5 │ permit (principal is Client, action == Action::"call_tool", resource);
       ·                      ──────
     6 │ @id("c")
       ╰────
      help: did you mean `Portcullis::Client`?
    policy-invalid

      × for policy `policies/a.cedar:5`, unrecognized action `Action::"call_tool"`
       ╭─[policies/a.cedar:5:40]
     4 │ permit (principal, action == Portcullis::Action::"call_tol", resource);
     5 │ permit (principal is Client, action == Action::"call_tool", resource);
       ·                                        ───────────────────
     6 │ @id("c")
       ╰────
      help: did you mean `Portcullis::Action::"call_tool"`?
    policy-invalid

      × for policy `c`, attribute `claims.destuctive` on entity type `Portcullis::Tool` not found
       ╭─[policies/a.cedar:8:8]
     7 │ permit (principal, action == Portcullis::Action::"call_tool", resource)
     8 │ when { resource.claims.destuctive && context.arg.hasTag("/x") };
       ·        ──────────────────────────
       ╰────
      help: did you mean `destructive`?
    policy-invalid

      × for policy `c`, attribute `arg` in context for Portcullis::Action::"call_tool" not found
       ╭─[policies/a.cedar:8:38]
     7 │ permit (principal, action == Portcullis::Action::"call_tool", resource)
     8 │ when { resource.claims.destuctive && context.arg.hasTag("/x") };
       ·                                      ────────────────────────
       ╰────
      help: did you mean `args`?
    "#);
}

#[test]
fn argument_as_an_attribute_gets_a_remedy() {
    for (written, expected) in [
        (
            r#"context.args.path like "/srv/*""#,
            r#"`context.args.hasTag("/path") && context.args.getTag("/path")`"#,
        ),
        (
            r#"context.paths.path == "/srv""#,
            r#"`context.paths.hasTag("/path") && context.paths.getTag("/path")`"#,
        ),
        (r#"context.urls.url.host == "a.example""#, r#"context.urls.getTag("/url")`"#),
        ("context.lists.paths == 1", r#"context.lists.getTag("/paths")`"#),
    ] {
        let text = format!("permit (principal, action, resource) when {{ {written} }};");
        let found = findings(&[("a.cedar", &text)]);
        let found = found.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(found.contains(expected), "{found}");
    }
}

#[test]
fn unguarded_tag_access_is_refused() {
    assert_snapshot!(findings(&[("a.cedar", r#"permit (principal, action, resource)
when { context.args.getTag("/x") == "1" };"#)]), @r#"
    policy-invalid

      × for policy `policies/a.cedar:1`, unable to guarantee safety of access to tag `"/x"` on entity
      │ type `Portcullis::Args`
       ╭─[policies/a.cedar:2:8]
     1 │ permit (principal, action, resource)
     2 │ when { context.args.getTag("/x") == "1" };
       ·        ─────────────────────────
       ╰────
      help: try testing for the tag's presence with `.hasTag("/x") && ..`
    "#);
}

#[test]
fn unknown_annotations_are_refused() {
    assert_snapshot!(findings(&[("a.cedar", r#"@id("a")
@obligation("approve")
@resaon("typo")
permit (principal, action, resource);"#), ("b.cedar", r#"@id("")
@mode("shadow")
@reazon("typo")
permit (principal, action, resource);"#)]), @r#"
    policy-annotation

      × unknown annotation `@obligation`
       ╭─[policies/a.cedar:2:1]
     1 │ @id("a")
     2 │ @obligation("approve")
       · ───────────┬──────────
       ·            ╰── means nothing here
     3 │ @resaon("typo")
       ╰────
      help: known are `@id`, `@reason`, `@keep`, `@mode`, `@redact`, `@approve`, `@rate`, `@note`,
            `@label`, `@secrets`; remove it: it has no effect
    policy-annotation

      × unknown annotation `@resaon`
       ╭─[policies/a.cedar:3:1]
     2 │ @obligation("approve")
     3 │ @resaon("typo")
       · ───────┬───────
       ·        ╰── means nothing here
     4 │ permit (principal, action, resource);
       ╰────
      help: did you mean `@reason`?
    policy-annotation

      × `@id` is empty
       ╭─[policies/b.cedar:1:1]
     1 │ @id("")
       · ───┬───
       ·    ╰── has no text
     2 │ @mode("shadow")
       ╰────
      help: write `@id("…")`, or leave it out
    policy-annotation

      × unknown annotation `@reazon`
       ╭─[policies/b.cedar:3:1]
     2 │ @mode("shadow")
     3 │ @reazon("typo")
       · ───────┬───────
       ·        ╰── means nothing here
     4 │ permit (principal, action, resource);
       ╰────
      help: did you mean `@reason`?
    "#);
}

#[test]
fn duplicate_id_is_refused() {
    assert_snapshot!(findings(&[
        ("a.cedar", "@id(\"same\")\npermit (principal, action, resource);"),
        ("b.cedar", "\n@id(\"same\")\nforbid (principal, action, resource);"),
    ]), @r#"
    policy-duplicate-id

      × the id `same` is taken
       ╭─[policies/b.cedar:2:1]
     1 │     
     2 │ ╭─▶ @id("same")
     3 │ ├─▶ forbid (principal, action, resource);
       · ╰──── the second policy of that id
       ╰────
      help: the first is at policies/a.cedar:1; give each an id of its own
    "#);
}

#[test]
fn template_is_refused() {
    assert_snapshot!(findings(&[
        ("a.cedar", "permit (principal == ?principal, action, resource);"),
    ]), @r#"
    policy-template

      × templates are not supported
       ╭─[policies/a.cedar:1:1]
     1 │ permit (principal == ?principal, action, resource);
       · ─────────────────────────┬─────────────────────────
       ·                          ╰── has a slot (`?principal` or `?resource`)
       ╰────
      help: write one policy for each principal or resource, or use a group
    "#);
}

#[test]
fn unreadable_files_are_reported() {
    let folder = folder(&[]);
    fs::write(folder.path().join("latin1.cedar"), b"// caf\xe9").unwrap();
    let diagnostics =
        Engine::load(&["nowhere".into(), "latin1.cedar".into()], folder.path()).unwrap_err();
    assert_snapshot!(diagnostics, @r#"
    latin1.cedar: cannot read latin1.cedar: stream did not contain valid UTF-8
    nowhere: cannot read nowhere: No such file or directory (os error 2)
    "#);
    assert_snapshot!(serde_json::to_string(&diagnostics.findings()[1]).unwrap(), @r#"{"code":"policy-unreadable","severity":"error","message":"cannot read nowhere: No such file or directory (os error 2)","file":"nowhere","help":"make the file or folder, or correct `paths` under `[policy]`"}"#);
}

#[test]
fn policy_that_never_applies_causes_a_warning() {
    let engine = engine(
        r#"@id("never")
forbid (principal, action == Portcullis::Action::"sample", resource is Portcullis::Tool);"#,
    );
    let status = engine.status();
    let warnings = &status.borrow().warnings;
    assert!(warnings[0].is_warning());
    assert_snapshot!(serde_json::to_string(&warnings).unwrap(), @r#"[{"code":"policy-warning","severity":"warning","message":"for policy `never`, unable to find an applicable action given the policy scope constraints","file":"policies/p.cedar","line":1,"column":1}]"#);
}

#[test]
fn impossible_obligations_are_refused() {
    assert_snapshot!(findings(&[("a.cedar", r#"@rate("10")
permit (principal, action, resource);
@approve("look at it")
forbid (principal, action, resource);"#)]), @r#"
    policy-annotation

      × `10` is not a rate
       ╭─[policies/a.cedar:1:1]
     1 │ @rate("10")
       · ─────┬─────
       ·      ╰── cannot be done
     2 │ permit (principal, action, resource);
       ╰────
      help: write a number and a time of up to 31 days: `@rate("10/1m")`, `@rate("5/1h")`
    policy-annotation

      × `@approve` has an effect only with `permit`
       ╭─[policies/a.cedar:3:1]
     2 │ permit (principal, action, resource);
     3 │ @approve("look at it")
       · ───────────┬──────────
       ·            ╰── means nothing on a `forbid`
     4 │ forbid (principal, action, resource);
       ╰────
      help: put it on a `permit`, or take it out
    "#);
}

#[test]
fn unknown_value_of_keep_is_refused() {
    assert_snapshot!(findings(&[("a.cedar", r#"@keep("arguments,result")
permit (principal, action, resource);
@keep("arguments, answers")
permit (principal, action, resource);"#)]), @r#"
    policy-annotation

      × `@keep` does not know `answers`
       ╭─[policies/a.cedar:3:1]
     2 │ permit (principal, action, resource);
     3 │ @keep("arguments, answers")
       · ─────────────┬─────────────
       ·              ╰── cannot be done
     4 │ permit (principal, action, resource);
       ╰────
      help: write `@keep("arguments")`, `@keep("result")` or `@keep("arguments,result")`
    "#);
}
