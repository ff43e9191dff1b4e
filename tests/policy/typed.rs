//! Typed tools at the command line: `NAME.tools.json` beside the policies.

use super::*;

const TOOLS: &str = r#"{"tools": [
  {"name": "add-note", "description": "Adds a note.", "inputSchema": {
    "type": "object", "required": ["name"], "additionalProperties": false,
    "properties": {"name": {"type": "string"}, "pages": {"type": "integer"}, "odd": {}}}}
]}
"#;

const DRAFTS: &str = r#"@id("drafts")
permit (
  principal in Portcullis::Group::"readers",
  action == Portcullis::Action::"notes/add-note",
  resource
)
when { context.input.name like "draft-*" };
"#;

fn typed(policies: &str, tools: &str) -> TempDir {
    let folder = folder(policies);
    fs::write(folder.path().join("policies/notes.tools.json"), tools).unwrap();
    folder
}

fn run(policies: &str, tools: &str, args: &[&str]) -> String {
    shown(&portcullis(&typed(policies, tools), args))
}

#[test]
fn schema_has_an_action_for_each_tool() {
    let output = portcullis(&typed(DRAFTS, TOOLS), &["schema", "cedar"]);
    assert_eq!(output.status.code(), Some(0), "{}", shown(&output));
    let text = String::from_utf8(output.stdout).unwrap();
    let common = portcullis_policy::SCHEMA.trim_end().strip_suffix('}').unwrap();
    assert_snapshot!(text.strip_prefix(common).unwrap(), @r#"

      // Tools of `notes`, from policies/notes.tools.json.
      action "notes/add-note" in [call_tool]
        appliesTo { principal: [Client, Local, Anonymous], resource: [Tool], context: {
          method: String,
          transport: String,
          revision: String,
          now: datetime,
          weekday: Long,
          source_ip?: ipaddr,
          session_calls: Long,
          labels: Set<String>,
          args: Args,
          paths: Paths,
          urls: Urls,
          lists: Lists,
          input: {
            "name": String,
            "pages"?: Long,
            // no "odd": it may be of any type
          },
        } };
    }
    "#);
}

#[test]
fn policy_is_validated_against_the_type() {
    assert_snapshot!(run(DRAFTS, TOOLS, &["policy", "check"]), @r#"
    exit 0
    1 policy: no findings
    --- stderr
    "#);
    let wrong = DRAFTS.replace("context.input.name like \"draft-*\"", "context.input.pages > 3");
    assert_snapshot!(run(&wrong, TOOLS, &["policy", "check"]), @r#"
    exit 11
    policy-invalid

      × for policy `drafts`, unable to guarantee safety of access to optional attribute `input.pages` in context for Portcullis::Action::"notes/add-note"
       ╭─[policies/p.cedar:7:8]
     6 │ )
     7 │ when { context.input.pages > 3 };
       ·        ───────────────────
       ╰────
      help: try testing for the attribute's presence with `context.input has pages && ..`
    1 finding
    --- stderr
    "#);
    assert_snapshot!(run(DRAFTS, &TOOLS.replace("\"object\"", "\"array\""), &["check"]), @r#"
    exit 11
    typed-tools

      × no action can be built from `inputSchema` of `add-note`
       ╭─[policies/notes.tools.json:2:70]
     1 │ {"tools": [
     2 │   {"name": "add-note", "description": "Adds a note.", "inputSchema": {
       ·                                                                      ┬
       ·                                                                      ╰── it describes no object, which is what arguments are
     3 │     "type": "array", "required": ["name"], "additionalProperties": false,
       ╰────
      help: take the tool out of the file: policies decide on it by `call_tool` and `context.args` then

    chain: rate-limit (default), policy, argument-names, schema (default), secrets (default)
    1 finding
    --- stderr
    "#);
}

#[test]
fn tool_list_of_an_unknown_server_is_reported() {
    let folder = folder("");
    fs::write(folder.path().join("policies/nodes.tools.json"), TOOLS).unwrap();
    assert_snapshot!(shown(&portcullis(&folder, &["policy", "check"])), @r#"
    exit 11
    policy-unknown-server

      ⚠ policies/nodes.tools.json is about `nodes`, and the config has no such server
      help: add `[servers.nodes]` to the config, or take the file out
    1 finding
    --- stderr
    "#);
}

#[test]
fn cases_and_can_i_evaluate_both_actions() {
    let cases = r#"
principals:
  reader: { client: ci-bot, groups: [readers] }
cases:
  - name: drafts
    as: reader
    call: notes/add-note
    each:
      - { args: { name: draft-1 }, expect: allow, by: drafts }
      - { args: { name: final }, expect: deny, by: [] }
      - { name: of another type, args: { name: draft-1, pages: many }, expect: error }
      - { name: shown, expect: shown }
  - name: other tools
    as: reader
    call: notes/add_note
    args: { name: draft-1 }
    expect: deny
"#;
    let folder = typed(DRAFTS, TOOLS);
    fs::write(folder.path().join("policies/p.test.yaml"), cases).unwrap();
    assert_snapshot!(shown(&portcullis(&folder, &["policy", "test", "--coverage"])), @r#"
    exit 0
    policies/p.test.yaml: 5 requests as expected
    1 of 1 policy decides a case (100 %)
    --- stderr
    "#);
    let ask = |args: &str| {
        let words =
            ["policy", "can-i", "--as", "ci-bot", "call_tool", "notes/add-note", "--explain"];
        shown(&portcullis(&folder, &[&words[..], &["--args", args]].concat()))
            .lines()
            .filter(|line| !line.contains("  policies  "))
            .collect::<Vec<_>>()
            .join("\n")
    };
    assert_snapshot!(ask(r#"{"name": "draft-1"}"#), @r#"
    exit 0
    allowed: permitted by `drafts`
      drafts  policies/p.cedar:1
      who       Portcullis::Client::"ci-bot"
      what      call_tool and notes/add-note Portcullis::Tool::"notes/add-note"

    permit drafts permits it  policies/p.cedar:1
      context.input.name is "draft-1"
    --- stderr
    the tool's annotations are not known, since its server has listed no tools to this proxy yet; whatever they are, the answer is the same
    "#);
    assert_snapshot!(ask(r#"{"name": "final"}"#), @r#"
    exit 10
    denied: no policy permits it
      who       Portcullis::Client::"ci-bot"
      what      call_tool and notes/add-note Portcullis::Tool::"notes/add-note"

    permit drafts does not hold  policies/p.cedar:1
      is not so:  policies/p.cedar:7
        context.input.name like "draft-*"
      context.input.name is "final"
    --- stderr
    the tool's annotations are not known, since its server has listed no tools to this proxy yet; whatever they are, the answer is the same
    "#);
    assert_snapshot!(ask(r#"{"name": 5}"#), @r#"
    exit 10
    denied: the arguments do not fit the tool's typed action: `/name` is not a text
      who       Portcullis::Client::"ci-bot"
      what      call_tool and notes/add-note Portcullis::Tool::"notes/add-note"
      refused   the arguments do not fit the tool's typed action: `/name` is not a text
    --- stderr
    the tool's annotations are not known, since its server has listed no tools to this proxy yet; whatever they are, the answer is the same
    "#);
}

#[test]
fn documented_example_decides_as_described() {
    let docs = include_str!("../../docs/concepts/policies/typed.md");
    let example = docs.split("```cedar\n").nth(1).and_then(|rest| rest.split("```").next());
    let folder = typed(example.unwrap(), &TOOLS.replace("add-note", "add_note"));
    let check = portcullis(&folder, &["policy", "check", "policies"]);
    assert_eq!(check.status.code(), Some(0), "{}", shown(&check));
    for (args, code) in [(r#"{"name": "draft-1"}"#, 0), (r#"{"name": "final"}"#, 10), ("{}", 10)] {
        let words = ["policy", "can-i", "--as", "group:bots", "tools/call"];
        let asked =
            portcullis(&folder, &[&words[..], &["notes/add_note", "--args", args]].concat());
        assert_eq!(asked.status.code(), Some(code), "{args}: {}", shown(&asked));
    }
}

#[test]
fn diff_compares_typed_policy_sets() {
    let folder = typed(DRAFTS, TOOLS);
    fs::create_dir(folder.path().join("new")).unwrap();
    let wide = DRAFTS.replace("when { context.input.name like \"draft-*\" }", "");
    fs::write(folder.path().join("new/p.cedar"), wide).unwrap();
    fs::write(folder.path().join("new/notes.tools.json"), TOOLS).unwrap();
    let tools = format!("notes={}", folder.path().join("new/notes.tools.json").display());
    let words = ["policy", "diff", "new", "--tools", &tools];
    assert_snapshot!(shown(&portcullis(&folder, &words)), @r#"
    exit 11
    changed: permit `drafts`  new/p.cedar:1, before policies/p.cedar:1
      - )
      - when { context.input.name like "draft-*" };
      + );
    CLIENT         TOOL            NOW               BEFORE  POLICIES NOW  POLICIES BEFORE
    ci-bot         notes/add-note  other conditions  if …    drafts        drafts
    group readers  notes/add-note  other conditions  if …    drafts        drafts
    1 policy changed; 2 differences among 4 principals and 2 tools
    --- stderr
    "#);
}

#[test]
fn unreachable_rules_of_typed_tools_are_reported() {
    let policies = format!(
        "{DRAFTS}\n@id(\"astray\")\npermit (principal is Portcullis::Local, action == \
         Portcullis::Action::\"notes/add-note\", resource == Portcullis::Tool::\"notes/other\");\n"
    );
    let folder = typed(&policies, TOOLS);
    let tools = r#"[{"name": "add-note"}, {"name": "other"}]"#;
    fs::write(folder.path().join("all.json"), tools).unwrap();
    let words = ["policy", "check", "--tools", "notes=all.json"];
    let said = shown(&portcullis(&folder, &words));
    // The lines of the picture end in blanks.
    let said: Vec<_> = said.lines().map(str::trim_end).collect();
    assert_snapshot!(said.join("\n"), @r#"
    exit 11
    policy-no-tool

      ⚠ `astray` holds for no known tool
        ╭─[policies/p.cedar:9:1]
      8 │
      9 │ ╭─▶ @id("astray")
     10 │ ├─▶ permit (principal is Portcullis::Local, action == Portcullis::Action::"notes/add-note", resource == Portcullis::Tool::"notes/other");
        · ╰──── matches none
        ╰────
      help: `--tools` names the file of what a server offers; correct this, or take it out
    1 finding
    --- stderr
    "#);
}
