//! `portcullis policy test`: case files.

use super::*;

const CASES: &str = r#"
principals:
  reader: { client: ci-bot, groups: [readers] }
  other: client:someone

tools:
  notes/read_note: { readOnlyHint: true }
  notes/delete_note: { destructiveHint: true }

cases:
  - name: readers read
    as: reader
    call: notes/read_note
    expect: allow
    by: readers-read

  - name: nobody destroys
    as: [reader, other, anonymous, local:ann]
    call: notes/delete_note
    expect: deny
    by: no-destruction

  - name: who may read is who is a reader
    call: notes/read_note
    each:
      - { as: group:readers, expect: allow }
      - { as: other, expect: deny, by: [] }
      - { name: by force, as: reader, args: { force: true }, expect: deny, by: [] }

  - name: lists
    as: reader
    call: [notes/read_note, notes/list_notes]
    hints: { readOnlyHint: true }
    expect: shown
  - name: others see nothing
    as: [other, anonymous]
    call: notes/read_note
    expect: hidden

  - name: the server asks by a form
    as: server:notes
    do: elicitation/create
    on: reader
    expect: allow
    by: forms
"#;

fn with_cases(policies: &str, cases: &str) -> TempDir {
    let folder = folder(policies);
    fs::write(folder.path().join("policies/p.test.yaml"), cases).unwrap();
    folder
}

fn test(policies: &str, cases: &str, args: &[&str]) -> String {
    shown(&portcullis(&with_cases(policies, cases), &[&["policy", "test"], args].concat()))
}

#[test]
fn passing_cases_exit_with_0() {
    assert_snapshot!(test(POLICIES, CASES, &[]), @r#"
    exit 0
    policies/p.test.yaml: 13 requests as expected
    --- stderr
    "#);
    assert_snapshot!(test(POLICIES, CASES, &["--coverage", "--fail-under", "100"]), @r#"
    exit 0
    policies/p.test.yaml: 13 requests as expected
    3 of 3 policies decide a case (100 %)
    --- stderr
    "#);
    assert_snapshot!(test(POLICIES, CASES, &["--filter", "NOBODY", "policies"]), @r#"
    exit 0
    policies/p.test.yaml: 4 requests as expected
    --- stderr
    "#);
    assert_snapshot!(test(POLICIES, CASES, &["--filter", "nothing of it"]), @r#"
    exit 2
    --- stderr
    error: no case has `nothing of it` in its name
    "#);
    assert_snapshot!(shown(&portcullis(&folder(POLICIES), &["policy", "test"])), @r#"
    exit 2
    --- stderr
    error: there are no cases: write some to `NAME.test.yaml` beside the policies
    "#);
}

#[test]
fn failing_cases_show_the_difference() {
    assert_snapshot!(test(POLICIES, r#"
tools:
  notes/delete_note: { destructiveHint: true }
context: { source_ip: 10.0.0.1 }
cases:
  - name: readers clean up
    as: group:readers
    call: notes/delete_note
    args: { id: 7, "why": "it's old" }
    expect: allow
  - name: rows
    as: group:readers
    call: notes/read_note
    hints: { readOnlyHint: true }
    expect: deny
    each:
      - { as: anonymous }
      - { name: the second, context: { session_calls: 9 } }
  - name: another rule
    as: group:readers
    call: notes/delete_note
    expect: deny
    by: forms
  - name: no rule
    as: group:readers
    call: notes/delete_note
    expect: deny
    by: []
  - name: seen by strangers
    as: client:c
    call: notes/read_note
    expect: shown
"#, &[]), @r#"
    exit 11
    policy-case-failed

      × readers clean up: expected allow, got deny
        ╭─[policies/p.test.yaml:10:13]
      9 │     args: { id: 7, "why": "it's old" }
     10 │     expect: allow
        ·             ──┬──
        ·               ╰── got deny: forbidden by `no-destruction`
     11 │   - name: rows
        ╰────
      help: asked: group:readers (in readers), tools/call notes/delete_note, args {"id":7,"why":"it's old"}, claims destructive, open_world
    policy-case-decided

      ☞ `no-destruction`
        ╭─[policies/p.cedar:10:1]
      9 │     
     10 │ ╭─▶ @id("no-destruction")
     11 │ │   @reason("nothing is destroyed here")
     12 │ │   forbid (principal, action, resource is Portcullis::Tool)
     13 │ ├─▶ when { resource.claims.destructive };
        · ╰──── forbids it
     14 │     
        ╰────
    policy-case-failed

      × rows: the second: expected deny, got allow
        ╭─[policies/p.test.yaml:15:13]
     14 │     hints: { readOnlyHint: true }
     15 │     expect: deny
        ·             ──┬─
        ·               ╰── got allow: permitted by `readers-read`
     16 │     each:
     17 │       - { as: anonymous }
     18 │       - { name: the second, context: { session_calls: 9 } }
        ·         ┬
        ·         ╰── in this row
     19 │   - name: another rule
        ╰────
      help: asked: group:readers (in readers), tools/call notes/read_note, claims read_only, open_world
    policy-case-decided

      ☞ `readers-read`
       ╭─[policies/p.cedar:2:1]
     1 │     
     2 │ ╭─▶ @id("readers-read")
     3 │ │   permit (
     4 │ │     principal in Portcullis::Group::"readers",
     5 │ │     action == Portcullis::Action::"call_tool",
     6 │ │     resource in Portcullis::Server::"notes"
     7 │ │   )
     8 │ ├─▶ unless { context.args.hasTag("/force") };
       · ╰──── permits it
     9 │     
       ╰────
    policy-case-failed

      × another rule: got deny, but not by `forms`
        ╭─[policies/p.test.yaml:23:9]
     22 │     expect: deny
     23 │     by: forms
        ·         ──┬──
        ·           ╰── forbidden by `no-destruction`
     24 │   - name: no rule
        ╰────
      help: asked: group:readers (in readers), tools/call notes/delete_note, claims destructive, open_world
    policy-case-decided

      ☞ `no-destruction`
        ╭─[policies/p.cedar:10:1]
      9 │     
     10 │ ╭─▶ @id("no-destruction")
     11 │ │   @reason("nothing is destroyed here")
     12 │ │   forbid (principal, action, resource is Portcullis::Tool)
     13 │ ├─▶ when { resource.claims.destructive };
        · ╰──── forbids it
     14 │     
        ╰────
    policy-case-failed

      × no rule: got deny, but some policy decides
        ╭─[policies/p.test.yaml:28:9]
     27 │     expect: deny
     28 │     by: []
        ·         ┬
        ·         ╰── forbidden by `no-destruction`
     29 │   - name: seen by strangers
        ╰────
      help: asked: group:readers (in readers), tools/call notes/delete_note, claims destructive, open_world
    policy-case-decided

      ☞ `no-destruction`
        ╭─[policies/p.cedar:10:1]
      9 │     
     10 │ ╭─▶ @id("no-destruction")
     11 │ │   @reason("nothing is destroyed here")
     12 │ │   forbid (principal, action, resource is Portcullis::Tool)
     13 │ ├─▶ when { resource.claims.destructive };
        · ╰──── forbids it
     14 │     
        ╰────
    policy-case-failed

      × seen by strangers: expected shown, got hidden
        ╭─[policies/p.test.yaml:32:13]
     31 │     call: notes/read_note
     32 │     expect: shown
        ·             ──┬──
        ·               ╰── got hidden
        ╰────
      help: asked: client:c, tools/call notes/read_note, claims destructive, open_world
    policies/p.test.yaml: 5 of 6 requests NOT as expected
    --- stderr
    "#);
}

#[test]
fn coverage_lists_policies_without_a_case() {
    let cases = r#"
cases:
  - { name: strangers, as: client:c, call: notes/x, hints: { readOnlyHint: true }, expect: deny }
  - { name: readers, as: group:readers, call: notes/x, hints: { readOnlyHint: true }, expect: allow }
"#;
    assert_snapshot!(test(POLICIES, cases, &["--coverage"]), @r#"
    exit 0
    policies/p.test.yaml: 2 requests as expected
    1 of 3 policies decide a case (33 %)
      no case: no-destruction  policies/p.cedar:10
      no case: forms  policies/p.cedar:15
    --- stderr
    "#);
    assert_snapshot!(test(POLICIES, cases, &["--fail-under", "34"]), @r#"
    exit 11
    policies/p.test.yaml: 2 requests as expected
    1 of 3 policies decide a case (33 %)
      no case: no-destruction  policies/p.cedar:10
      no case: forms  policies/p.cedar:15
    that is fewer than 34 %
    --- stderr
    "#);
    let folder = with_cases(POLICIES, cases);
    fs::write(
        folder.path().join("policies/q.cedar"),
        "@id(\"q\")\nforbid (principal, action == Portcullis::Action::\"sample\", resource);",
    )
    .unwrap();
    let args = ["policy", "test", "policies", "--fail-under", "20", "--format", "json"];
    assert_snapshot!(shown(&portcullis(&folder, &args)), @r#"
    exit 0
    {
      "passed": 2,
      "failed": 0,
      "findings": [],
      "cases": [
        {
          "file": "policies/p.test.yaml",
          "line": 3,
          "name": "strangers",
          "as": "client:c",
          "do": "tools/call",
          "on": "notes/x",
          "expected": "deny",
          "actual": "deny",
          "rules": [],
          "asks": [],
          "errors": [],
          "passed": true
        },
        {
          "file": "policies/p.test.yaml",
          "line": 4,
          "name": "readers",
          "as": "group:readers",
          "do": "tools/call",
          "on": "notes/x",
          "expected": "allow",
          "actual": "allow",
          "rules": [
            {
              "id": "readers-read",
              "file": "policies/p.cedar",
              "line": 2
            }
          ],
          "asks": [],
          "errors": [],
          "passed": true
        }
      ],
      "coverage": {
        "percent": 25,
        "policies": 4,
        "undecided": [
          {
            "id": "no-destruction",
            "file": "policies/p.cedar",
            "line": 10,
            "reason": "nothing is destroyed here"
          },
          {
            "id": "forms",
            "file": "policies/p.cedar",
            "line": 15
          },
          {
            "id": "q",
            "file": "policies/q.cedar",
            "line": 1
          }
        ]
      }
    }
    --- stderr
    "#);
}

#[test]
fn policy_error_differs_from_a_refusal() {
    let policies = r#"@id("sums")
permit (principal, action, resource)
when { context.session_calls + 9223372036854775807 > 0 };"#;
    let cases = |expect| {
        format!(
            "cases:\n- name: sums\n  as: client:c\n  do: connect\n  context: {{ session_calls: 9 }}\n  expect: {expect}\n"
        )
    };
    assert!(test(policies, &cases("error"), &[]).starts_with("exit 0\n"));
    assert_snapshot!(test(policies, &cases("deny"), &[]), @r#"
    exit 11
    policy-case-failed

      × sums: expected deny, got error
       ╭─[policies/p.test.yaml:6:11]
     5 │   context: { session_calls: 9 }
     6 │   expect: deny
       ·           ──┬─
       ·             ╰── got error: policy `sums` failed: an integer overflows
       ╰────
      help: asked: client:c, connect
    policies/p.test.yaml: 1 of 1 request NOT as expected
    --- stderr
    "#);
}

#[test]
fn errors_in_case_files_have_positions() {
    let wrong = |cases: &str| test(POLICIES, cases, &[]);
    assert_snapshot!(wrong("cases:\n  - name: a\n    as: client:c\n    cal: notes/x\n    expect: deny\n"), @r#"
    exit 11
    policy-cases

      × unknown key `cal`
       ╭─[policies/p.test.yaml:4:5]
     3 │     as: client:c
     4 │     cal: notes/x
       ·     ─┬─
       ·      ╰── did you mean `call`?
     5 │     expect: deny
       ╰────
      help: known here: `name`, `as`, `call`, `read`, `get`, `do`, `on`, `launch`, `deliver`, `egress`, `grant`, `args`, `hints`, `context`, `expect`, `by`, `asks`, `each`
    1 finding
    --- stderr
    "#);
    assert_snapshot!(wrong("cases:\n- { name: a, as: client:c, call: notes/x, expect: denied }\n"), @r#"
    exit 11
    policy-cases

      × unknown value `denied`
       ╭─[policies/p.test.yaml:2:51]
     1 │ cases:
     2 │ - { name: a, as: client:c, call: notes/x, expect: denied }
       ·                                                   ───┬──
       ·                                                      ╰── is not known here
       ╰────
      help: known here: `allow`, `deny`, `error`, `shown`, `hidden`
    1 finding
    --- stderr
    "#);
    assert_snapshot!(wrong("principals:\n  a: { client: A b }\ncases: []\n"), @r#"
    exit 11
    policy-cases

      × `A b` is not a legal name: use 1 to 64 of a-z, 0-9, `-` and `_`, beginning with a letter or a digit
       ╭─[policies/p.test.yaml:2:16]
     1 │ principals:
     2 │   a: { client: A b }
       ·                ───
     3 │ cases: []
       ╰────
    1 finding
    --- stderr
    "#);
    assert_snapshot!(wrong("case:\n- name: a\n"), @r#"
    exit 11
    policy-cases

      × unknown key `case`
       ╭─[policies/p.test.yaml:1:1]
     1 │ case:
       · ──┬─
       ·   ╰── did you mean `cases`?
     2 │ - name: a
       ╰────
      help: known here: `policies`, `principals`, `tools`, `context`, `cases`
    1 finding
    --- stderr
    "#);
    assert_snapshot!(wrong("cases:\n- name: a\n  name: b\n"), @r#"
    exit 11
    policy-cases

      × the key `name` stands twice
       ╭─[policies/p.test.yaml:3:3]
     2 │ - name: a
     3 │   name: b
       ·   ────
       ╰────
    1 finding
    --- stderr
    "#);
    assert_snapshot!(wrong("cases:\n- name: 'a\n"), @r#"
    exit 11
    policy-cases

      × invalid indentation in multiline quoted scalar
       ╭─[policies/p.test.yaml:3:1]
     2 │ - name: 'a
       ╰────
    1 finding
    --- stderr
    "#);
    assert_snapshot!(wrong("tools:\n  notes/x: { readonlyHint: true }\ncases: []\n"), @r#"
    exit 11
    policy-cases

      × unknown key `readonlyHint`
       ╭─[policies/p.test.yaml:2:14]
     1 │ tools:
     2 │   notes/x: { readonlyHint: true }
       ·              ──────┬─────
       ·                    ╰── did you mean `readOnlyHint`?
     3 │ cases: []
       ╰────
      help: known here: `readOnlyHint`, `destructiveHint`, `idempotentHint`, `openWorldHint`
    1 finding
    --- stderr
    "#);
    assert_snapshot!(wrong("cases:\n- { name: a, as: client:c, call: notes/x, context: { now: yesterday }, expect: deny }\n"), @r#"
    exit 11
    policy-cases

      × failed to parse four digit integer as year: invalid digit, expected 0-9 but got y
       ╭─[policies/p.test.yaml:2:59]
     1 │ cases:
     2 │ - { name: a, as: client:c, call: notes/x, context: { now: yesterday }, expect: deny }
       ·                                                           ─────────
       ╰────
    1 finding
    --- stderr
    "#);
    // All that is wrong with the cases of a file that can be read.
    assert_snapshot!(wrong(r#"
principals: { reader: group:readers }
cases:
  - { as: reader, call: notes/x, expect: deny }
  - { name: a, call: notes/x, expect: deny }
  - { name: b, as: reader, call: notes/x }
  - { name: c, as: reader, expect: deny }
  - { name: d, as: reader, call: notes/x, read: notes/y, expect: deny }
  - { name: e, as: raeder, call: notes/x, expect: deny }
  - { name: f, as: somebody, call: notes/x, expect: deny }
  - { name: g, as: reader, call: notes, expect: deny }
  - { name: h, as: reader, call: Notes/x, expect: deny }
  - { name: i, as: reader, do: sampling/createMessage, on: notes, expect: deny }
  - { name: j, as: server:notes, call: notes/x, expect: deny }
  - { name: k, as: server:notes, do: sample, expect: deny }
  - { name: l, as: reader, call: notes/x, expect: shown, by: forms }
  - { name: m, as: reader, do: other_method, expect: shown }
  - { name: n, as: reader, call: notes/x, expect: deny, by: form }
  - { name: o, as: reader, call: notes/x, expect: deny, each: [] }
"#), @r#"
    exit 11
    policy-cases

      × the case has no name
       ╭─[policies/p.test.yaml:4:5]
     3 │ cases:
     4 │   - { as: reader, call: notes/x, expect: deny }
       ·     ┬
       ·     ╰── begins here
     5 │   - { name: a, call: notes/x, expect: deny }
       ╰────
      help: add `name: …`
    policy-cases

      × the case does not name a principal
       ╭─[policies/p.test.yaml:5:5]
     4 │   - { as: reader, call: notes/x, expect: deny }
     5 │   - { name: a, call: notes/x, expect: deny }
       ·     ┬
       ·     ╰── begins here
     6 │   - { name: b, as: reader, call: notes/x }
       ╰────
      help: add `as:` and a party
    policy-cases

      × the case expects nothing
       ╭─[policies/p.test.yaml:6:5]
     5 │   - { name: a, call: notes/x, expect: deny }
     6 │   - { name: b, as: reader, call: notes/x }
       ·     ┬
       ·     ╰── begins here
     7 │   - { name: c, as: reader, expect: deny }
       ╰────
      help: add `expect:` `allow`, `deny`, `shown`, `hidden` or `error`
    policy-cases

      × the case has no action
       ╭─[policies/p.test.yaml:7:5]
     6 │   - { name: b, as: reader, call: notes/x }
     7 │   - { name: c, as: reader, expect: deny }
       ·     ┬
       ·     ╰── begins here
     8 │   - { name: d, as: reader, call: notes/x, read: notes/y, expect: deny }
       ╰────
      help: give one of `call: SERVER/TOOL`, `read: SERVER/URI`, `get: SERVER/PROMPT` and `do: ACTION` with `on: TARGET`
    policy-cases

      × the case has two actions
       ╭─[policies/p.test.yaml:8:5]
     7 │   - { name: c, as: reader, expect: deny }
     8 │   - { name: d, as: reader, call: notes/x, read: notes/y, expect: deny }
       ·     ┬
       ·     ╰── begins here
     9 │   - { name: e, as: raeder, call: notes/x, expect: deny }
       ╰────
      help: give one of `call: SERVER/TOOL`, `read: SERVER/URI`, `get: SERVER/PROMPT` and `do: ACTION` with `on: TARGET`
    policy-cases

      × there is no principal `raeder`
        ╭─[policies/p.test.yaml:9:20]
      8 │   - { name: d, as: reader, call: notes/x, read: notes/y, expect: deny }
      9 │   - { name: e, as: raeder, call: notes/x, expect: deny }
        ·                    ───┬──
        ·                       ╰── is not a principal
     10 │   - { name: f, as: somebody, call: notes/x, expect: deny }
        ╰────
      help: did you mean `reader`?
    policy-cases

      × there is no principal `somebody`
        ╭─[policies/p.test.yaml:10:20]
      9 │   - { name: e, as: raeder, call: notes/x, expect: deny }
     10 │   - { name: f, as: somebody, call: notes/x, expect: deny }
        ·                    ────┬───
        ·                        ╰── is not a principal
     11 │   - { name: g, as: reader, call: notes, expect: deny }
        ╰────
      help: name it under `principals`, or write `client:NAME`, `group:NAME` (some client in that group), `local:USER`, `server:NAME`, `plugin:NAME` or `anonymous`
    policy-cases

      × `call_tool` needs a target of the form SERVER/TOOL
        ╭─[policies/p.test.yaml:11:34]
     10 │   - { name: f, as: somebody, call: notes/x, expect: deny }
     11 │   - { name: g, as: reader, call: notes, expect: deny }
        ·                                  ──┬──
        ·                                    ╰── does not name that
     12 │   - { name: h, as: reader, call: Notes/x, expect: deny }
        ╰────
    policy-cases

      × the server's name: `Notes` is not a legal name: use 1 to 64 of a-z, 0-9, `-` and `_`, beginning with a letter or a digit
        ╭─[policies/p.test.yaml:12:34]
     11 │   - { name: g, as: reader, call: notes, expect: deny }
     12 │   - { name: h, as: reader, call: Notes/x, expect: deny }
        ·                                  ───┬───
        ·                                     ╰── does not name that
     13 │   - { name: i, as: reader, do: sampling/createMessage, on: notes, expect: deny }
        ╰────
    policy-cases

      × `sample` is asked by a server
        ╭─[policies/p.test.yaml:13:20]
     12 │   - { name: h, as: reader, call: Notes/x, expect: deny }
     13 │   - { name: i, as: reader, do: sampling/createMessage, on: notes, expect: deny }
        ·                    ───┬──
        ·                       ╰── is not a server
     14 │   - { name: j, as: server:notes, call: notes/x, expect: deny }
        ╰────
      help: write `as: server:NAME`
    policy-cases

      × a server does not ask for `tools/call`
        ╭─[policies/p.test.yaml:14:20]
     13 │   - { name: i, as: reader, do: sampling/createMessage, on: notes, expect: deny }
     14 │   - { name: j, as: server:notes, call: notes/x, expect: deny }
        ·                    ──────┬─────
        ·                          ╰── is a server
     15 │   - { name: k, as: server:notes, do: sample, expect: deny }
        ╰────
    policy-cases

      × `sample` is asked of a client
        ╭─[policies/p.test.yaml:15:38]
     14 │   - { name: j, as: server:notes, call: notes/x, expect: deny }
     15 │   - { name: k, as: server:notes, do: sample, expect: deny }
        ·                                      ───┬──
        ·                                         ╰── does not name a client
     16 │   - { name: l, as: reader, call: notes/x, expect: shown, by: forms }
        ╰────
      help: add `on:` and a party
    policy-cases

      × no one policy decides what lists show
        ╭─[policies/p.test.yaml:16:62]
     15 │   - { name: k, as: server:notes, do: sample, expect: deny }
     16 │   - { name: l, as: reader, call: notes/x, expect: shown, by: forms }
        ·                                                              ─────
     17 │   - { name: m, as: reader, do: other_method, expect: shown }
        ╰────
      help: what lists show is what no set of circumstances allows: take `by` out
    policy-cases

      × no list has what `other_method` is asked of
        ╭─[policies/p.test.yaml:17:54]
     16 │   - { name: l, as: reader, call: notes/x, expect: shown, by: forms }
     17 │   - { name: m, as: reader, do: other_method, expect: shown }
        ·                                                      ─────
     18 │   - { name: n, as: reader, call: notes/x, expect: deny, by: form }
        ╰────
      help: lists have tools, prompts, resources and templates
    policy-cases

      × no policy has the id `form`
        ╭─[policies/p.test.yaml:18:61]
     17 │   - { name: m, as: reader, do: other_method, expect: shown }
     18 │   - { name: n, as: reader, call: notes/x, expect: deny, by: form }
        ·                                                             ──┬─
        ·                                                               ╰── is not among the policies of these cases
     19 │   - { name: o, as: reader, call: notes/x, expect: deny, each: [] }
        ╰────
      help: did you mean `forms`?
    policy-cases

      × the case has no rows, so it asks nothing
        ╭─[policies/p.test.yaml:19:5]
     18 │   - { name: n, as: reader, call: notes/x, expect: deny, by: form }
     19 │   - { name: o, as: reader, call: notes/x, expect: deny, each: [] }
        ·     ┬
        ·     ╰── `each` is empty
        ╰────
    16 findings
    --- stderr
    "#);
}

#[test]
fn invalid_policies_are_findings() {
    assert_snapshot!(test("permit (", CASES, &[]), @r#"
    exit 11
    policy-syntax

      × unexpected end of input
       ╭─[policies/p.cedar:1:9]
     1 │ permit (
       ╰────
    1 finding
    --- stderr
    "#);
    let named = "policies: [nowhere.cedar]\ncases: []\n";
    assert_snapshot!(test(POLICIES, named, &[]), @r#"
    exit 11
    policy-unreadable

      × cannot read policies/nowhere.cedar: No such file or directory (os error 2)
      help: make the file or folder, or correct `paths` under `[policy]`
    1 finding
    --- stderr
    "#);
}

#[test]
fn cases_cover_actions_of_the_proxy() {
    let policies = r#"@id("pinned")
permit (principal, action == Portcullis::Action::"launch", resource)
when { resource.runtime == "container" && resource has digest && resource.deviations.isEmpty() };

@id("tokens")
permit (
  principal == Portcullis::Server::"github",
  action == Portcullis::Action::"deliver_secret",
  resource in Portcullis::Server::"github"
)
when { resource.name == "TOKEN" && resource.source == "env" && !resource.header };

@id("out")
permit (
  principal == Portcullis::Server::"github",
  action == Portcullis::Action::"egress",
  resource == Portcullis::Host::"api.github.com:443"
);

@id("logs")
permit (
  principal == Portcullis::Plugin::"scan",
  action == Portcullis::Action::"grant",
  resource == Portcullis::Grant::"log"
);
"#;
    let cases = r#"
cases:
  - name: a pinned image
    as: server:github
    launch: { runtime: container, name: ghcr.io/github/github-mcp-server, digest: "sha256:ab" }
    expect: allow
    by: pinned
  - name: other programs
    as: server:github
    expect: deny
    each:
      - { launch: { runtime: container, name: ghcr.io/github/github-mcp-server } }
      - { launch: { runtime: sandbox, name: npx } }
      - { launch: { runtime: container, name: x, digest: "sha256:ab", deviations: [mounts] } }
  - name: its token
    as: server:github
    deliver: { name: TOKEN, source: env }
    expect: allow
    by: tokens
  - name: not as a header, and not to another
    deliver: { name: TOKEN, source: env, header: true }
    as: [server:github, server:git]
    expect: deny
  - name: its way out
    as: server:github
    egress: api.github.com:443
    expect: allow
    by: out
  - name: and no other
    as: [server:github, server:git, plugin:scan]
    egress: [evil.example:443, api.github.com:80]
    expect: deny
  - name: logs
    as: plugin:scan
    grant: log
    expect: allow
    by: logs
"#;
    assert_snapshot!(test(policies, cases, &["--fail-under", "100"]), @r#"
    exit 0
    policies/p.test.yaml: 15 requests as expected
    4 of 4 policies decide a case (100 %)
    --- stderr
    "#);
    assert_snapshot!(test(policies, r#"
cases:
  - { name: a, as: local:annie, egress: api.github.com:443, expect: deny }
  - { name: b, as: server:github, grant: log, expect: deny }
  - { name: c, as: server:github, egress: api.github.com, expect: deny }
  - { name: d, as: server:github, egress: a:1, call: github/x, expect: deny }
  - { name: e, as: plugin:scan, call: github/x, expect: deny }
"#, &[]), @"
    exit 11
    policy-cases

      × this is done for a server or a plugin: write `as: server:NAME` or `as: plugin:NAME`
       ╭─[policies/p.test.yaml:3:20]
     2 │ cases:
     3 │   - { name: a, as: local:annie, egress: api.github.com:443, expect: deny }
       ·                    ───────────
     4 │   - { name: b, as: server:github, grant: log, expect: deny }
       ╰────
    policy-cases

      × this is given to a plugin: write `as: plugin:NAME`
       ╭─[policies/p.test.yaml:4:20]
     3 │   - { name: a, as: local:annie, egress: api.github.com:443, expect: deny }
     4 │   - { name: b, as: server:github, grant: log, expect: deny }
       ·                    ─────────────
     5 │   - { name: c, as: server:github, egress: api.github.com, expect: deny }
       ╰────
    policy-cases

      × `api.github.com` is not HOST:PORT
       ╭─[policies/p.test.yaml:5:43]
     4 │   - { name: b, as: server:github, grant: log, expect: deny }
     5 │   - { name: c, as: server:github, egress: api.github.com, expect: deny }
       ·                                           ──────────────
     6 │   - { name: d, as: server:github, egress: a:1, call: github/x, expect: deny }
       ╰────
    policy-cases

      × the case has two actions
       ╭─[policies/p.test.yaml:6:5]
     5 │   - { name: c, as: server:github, egress: api.github.com, expect: deny }
     6 │   - { name: d, as: server:github, egress: a:1, call: github/x, expect: deny }
       ·     ┬
       ·     ╰── begins here
     7 │   - { name: e, as: plugin:scan, call: github/x, expect: deny }
       ╰────
    policy-cases

      × a plugin asks for nothing
       ╭─[policies/p.test.yaml:7:20]
     6 │   - { name: d, as: server:github, egress: a:1, call: github/x, expect: deny }
     7 │   - { name: e, as: plugin:scan, call: github/x, expect: deny }
       ·                    ─────┬─────
       ·                         ╰── is a plugin
       ╰────
    5 findings
    --- stderr
    ");
}

#[test]
fn cases_cover_obligations() {
    let policies = r#"@id("ask")
@approve("look at it")
@note("be careful")
permit (principal is Portcullis::Client, action, resource);

@id("trial")
@mode("shadow")
permit (principal is Portcullis::Local, action, resource);
"#;
    let cases = |asks| {
        format!(
            "cases:\n- {{ name: a, as: client:c, call: notes/x, expect: allow, asks: {asks} }}\n"
        )
    };
    for asks in ["approve", "[note, approve]"] {
        let ran = test(policies, &cases(asks), &["--fail-under", "100"]);
        assert!(ran.starts_with("exit 0\n"), "{ran}");
    }
    assert_snapshot!(test(policies, &cases("[approve, redact]"), &[]), @r#"
    exit 11
    policy-case-failed

      × a: got allow, but does not ask for `redact`
       ╭─[policies/p.test.yaml:2:64]
     1 │ cases:
     2 │ - { name: a, as: client:c, call: notes/x, expect: allow, asks: [approve, redact] }
       ·                                                                ┬
       ·                                                                ╰── asks for approve, note
       ╰────
      help: asked: client:c, tools/call notes/x, claims destructive, open_world
    policy-case-decided

      ☞ `ask`
       ╭─[policies/p.cedar:1:1]
     1 │ ╭─▶ @id("ask")
     2 │ │   @approve("look at it")
     3 │ │   @note("be careful")
     4 │ ├─▶ permit (principal is Portcullis::Client, action, resource);
       · ╰──── permits it
     5 │     
       ╰────
    policies/p.test.yaml: 1 of 1 request NOT as expected
    --- stderr
    "#);
    assert_snapshot!(test(policies, &cases("[]"), &[]), @r#"
    exit 11
    policy-case-failed

      × a: got allow, but asks for `approve`
       ╭─[policies/p.test.yaml:2:64]
     1 │ cases:
     2 │ - { name: a, as: client:c, call: notes/x, expect: allow, asks: [] }
       ·                                                                ┬
       ·                                                                ╰── asks for approve, note
       ╰────
      help: asked: client:c, tools/call notes/x, claims destructive, open_world
    policy-case-decided

      ☞ `ask`
       ╭─[policies/p.cedar:1:1]
     1 │ ╭─▶ @id("ask")
     2 │ │   @approve("look at it")
     3 │ │   @note("be careful")
     4 │ ├─▶ permit (principal is Portcullis::Client, action, resource);
       · ╰──── permits it
     5 │     
       ╰────
    policies/p.test.yaml: 1 of 1 request NOT as expected
    --- stderr
    "#);
    assert_snapshot!(test(policies, &cases("aprove"), &[]), @r#"
    exit 11
    policy-cases

      × there is no obligation `aprove`
       ╭─[policies/p.test.yaml:2:64]
     1 │ cases:
     2 │ - { name: a, as: client:c, call: notes/x, expect: allow, asks: aprove }
       ·                                                                ──────
       ╰────
      help: known here: approve, redact, rate, note, label, secrets, keep
    1 finding
    --- stderr
    "#);
}

#[test]
fn documented_example_passes() {
    let docs = include_str!("../../docs/concepts/policies/test.md");
    let block = |kind: &str| {
        let after = docs.split_once(&format!("```{kind}\n")).unwrap().1;
        after.split_once("```").unwrap().0
    };
    let ran = test(block("cedar"), block("yaml"), &["--fail-under", "100"]);
    assert!(ran.starts_with("exit 0\n"), "{ran}");
}

#[test]
fn failing_case_says_which_policies_it_tests() {
    let case = |target: &str| {
        format!(
            "cases:\n  - name: readers\n    as: group:readers\n    call: notes/{target}\n    hints: {{ \
             readOnlyHint: true }}\n    \
             expect: allow\n"
        )
    };
    let folder = with_cases(
        "@id(\"mine\") permit (principal, action == Portcullis::Action::\"connect\", resource);",
        &case("read_note"),
    );
    fs::write(folder.path().join("policies/other.cedar"), POLICIES).unwrap();
    let printed = shown(&portcullis(&folder, &["policy", "test"]));
    let note =
        "these cases test the policies of `p.cedar` alone; `policies: .` at the top of the file";
    let words = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(words(&printed).contains(note), "{printed}");
    assert!(words(&printed).contains("with them, this case passes"), "{printed}");
    fs::write(
        folder.path().join("policies/p.test.yaml"),
        format!("policies: .\n{}", case("read_note")),
    )
    .unwrap();
    let printed = shown(&portcullis(&folder, &["policy", "test"]));
    assert!(printed.starts_with("exit 0"), "{printed}");
}
