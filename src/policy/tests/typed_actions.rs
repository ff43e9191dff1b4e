//! Typed tools: each has its own action, decided in addition to `call_tool`.

use super::*;

const TOOLS: &str = r#"{"tools": [
  {"name": "add-note", "inputSchema": {"type": "object", "required": ["text"],
    "additionalProperties": false,
    "properties": {"text": {"type": "string"}, "pages": {"type": "integer"}}}},
  {"name": "list", "inputSchema": {"type": "object"}},
  {"name": "read-note", "inputSchema": {"type": "object",
    "properties": {"id": {"type": "integer"}}}}
]}"#;

fn loaded(policies: &str) -> Result<Engine, Diagnostics> {
    let folder = folder(&[("p.cedar", policies), ("notes.tools.json", TOOLS)]);
    Engine::load(&["policies".into()], folder.path())
}

fn call(engine: &Engine, tool: &str, json: &str) -> Outcome {
    let (server, principal) = (server("notes"), client("ci", &[]));
    engine.decide(&Request {
        subject: Subject::Client(&principal),
        action: Action::CallTool,
        resource: Resource::Tool { server: &server, name: tool, claims: Claims::default() },
        args: Some(&args(json)),
        written: json.as_bytes(),
        circumstances: circumstances("tools/call"),
    })
}

/// Decides, and compares lists and the inspector with the decision.
fn decide(policies: &str, tool: &str, json: &str) -> Outcome {
    let engine = loaded(policies).unwrap_or_else(|found| panic!("{found}\n{policies}"));
    let outcome = call(&engine, tool, json);
    let (server, principal) = (server("notes"), client("ci", &[]));
    let subject = Subject::Client(&principal);
    let resource = Resource::Tool { server: &server, name: tool, claims: Claims::default() };
    let shown = engine.could_allow(&subject, Action::CallTool, &resource);
    assert!(shown || !outcome.allowed, "{policies}");
    let arguments = args(json);
    let request = Request {
        subject,
        action: Action::CallTool,
        resource,
        args: Some(&arguments),
        written: json.as_bytes(),
        circumstances: circumstances("tools/call"),
    };
    let mut inspector = engine.inspect();
    let verdict = if outcome.allowed { Verdict::Allowed } else { Verdict::Refused };
    assert_eq!(inspector.judge(&request, Unknown::Nothing).verdict, verdict, "{policies}");
    let explained = inspector.explain(&request, Unknown::Nothing, &Default::default());
    assert_eq!(explained.verdict, verdict, "{policies}");
    let less = Request { args: None, ..request };
    for unknown in [Unknown::Arguments, Unknown::Circumstances, Unknown::Claims] {
        let judged = engine.inspect().judge(&less, unknown).verdict;
        assert!(judged == verdict || judged == Verdict::Unknown, "{unknown:?}: {policies}");
        let explained = engine.inspect().explain(&less, unknown, &Default::default());
        assert_eq!(explained.verdict, judged, "{unknown:?}: {policies}");
    }
    outcome
}

const OWN: &str = r#"@id("own") permit (principal, action == Portcullis::Action::"notes/add-note",
    resource) when { context.input.text like "ok*" };"#;

#[test]
fn typed_permit_allows_only_its_exact_tool() {
    for (tool, json, allowed) in [
        ("add-note", r#"{"text": "ok then"}"#, true),
        ("add-note", r#"{"text": "ok", "pages": 3}"#, true),
        ("add-note", r#"{"text": "no"}"#, false),
        // Names are exact.
        ("Add-note", r#"{"text": "ok"}"#, false),
        ("add-note ", r#"{"text": "ok"}"#, false),
        ("list", r#"{"text": "ok"}"#, false),
    ] {
        let outcome = decide(OWN, tool, json);
        assert_eq!(outcome.allowed, allowed, "{tool} {json}");
        assert_eq!(outcome.errors, [], "{tool} {json}");
    }
}

#[test]
fn mistyped_arguments_pass_if_no_policy_uses_the_type() {
    let policies = r#"
        permit (principal, action == Portcullis::Action::"call_tool", resource)
        when { context.args.hasTag("/text") };
        forbid (principal, action == Portcullis::Action::"notes/read-note", resource)
        when { context.input has id && context.input.id == 7 };"#;
    assert!(decide(policies, "add-note", r#"{"text": "a", "more": 1}"#).allowed);
    assert!(!decide(policies, "read-note", r#"{"text": "a", "id": "no number"}"#).allowed);
}

#[test]
fn forbid_of_all_calls_applies_to_typed_tools() {
    for forbid in [
        r#"forbid (principal, action == Portcullis::Action::"call_tool", resource);"#,
        r#"forbid (principal, action in [Portcullis::Action::"call_tool"], resource);"#,
        r#"forbid (principal, action in Portcullis::Action::"use", resource);"#,
        r#"forbid (principal, action, resource) when { !(context has input) };"#,
        r#"forbid (principal, action, resource) when { context has input };"#,
        r#"forbid (principal, action, resource is Portcullis::Tool) when { resource.claims.destructive };"#,
        r#"forbid (principal, action == Portcullis::Action::"notes/add-note", resource)
            when { context.input has pages && context.input.pages > 2 };"#,
        r#"forbid (principal, action == Portcullis::Action::"call_tool", resource)
            when { context.args.hasTag("/pages") };"#,
    ] {
        let policies = format!("{OWN}\n@id(\"against\") {forbid}");
        let outcome = decide(&policies, "add-note", r#"{"text": "ok", "pages": 3}"#);
        assert!(!outcome.allowed, "{forbid}");
        assert_eq!(ids(&outcome), ["against"], "{forbid}");
    }
}

#[test]
fn policies_of_both_actions_are_listed_once() {
    let both = r#"
        @id("a") @note("a") permit (principal, action == Portcullis::Action::"call_tool", resource);
        @id("b") @note("b") permit (principal, action in Portcullis::Action::"use", resource);
        @id("c") @note("c") permit (principal, action == Portcullis::Action::"notes/add-note", resource);
        @id("d") @rate("5/1m") permit (principal, action, resource);"#;
    let outcome = decide(both, "add-note", r#"{"text": "ok"}"#);
    assert!(outcome.allowed);
    assert_eq!(ids(&outcome), ["a", "b", "c", "d"]);
    assert_eq!(ids(&decide(both, "other", "{}")), ["a", "b", "d"]);
}

#[test]
fn mistyped_arguments_are_refused_if_a_policy_uses_the_type() {
    let all =
        r#"@id("all") permit (principal, action == Portcullis::Action::"call_tool", resource);"#;
    let named = r#"permit (principal, action == Portcullis::Action::"notes/add-note", resource);"#;
    let guarded = r#"forbid (principal, action, resource)
        when { context has input && context.input has pages && context.input.pages > 2 };"#;
    for (json, problem) in [
        (r#"{"text": 5}"#, "`/text` is not a text"),
        ("{}", "`/text` is missing"),
        (r#"{"text": "ok", "pages": 1.5}"#, "`/pages` is not an integer of 64 bits"),
        (
            r#"{"text": "ok", "more": 1}"#,
            "they may have no members but those of its type, and has others",
        ),
        (
            r#"{"text": "ok", "pages": 10000000000000000000000001}"#,
            "the arguments have a number with more digits than policies can evaluate",
        ),
    ] {
        assert!(decide(all, "add-note", json).allowed, "no policy is about the type: {json}");
        for about in [named, guarded, OWN] {
            let outcome = decide(&format!("{all}\n{about}"), "add-note", json);
            assert!(!outcome.allowed, "{json} {about}");
            let rendered = outcome.explain();
            assert!(rendered.contains(problem), "{rendered}\n{json}");
        }
    }
    // A policy for other principals does not matter.
    let others = r#"permit (principal in Portcullis::Group::"other",
        action == Portcullis::Action::"notes/add-note", resource);"#;
    assert!(decide(&format!("{all}\n{others}"), "add-note", "{}").allowed);
}

#[test]
fn conditions_are_validated_against_the_type() {
    for (condition, code) in [
        (r#"context.input.txt like "a*""#, "policy-invalid"),
        ("context.input.text > 3", "policy-invalid"),
        // Only after a check of its presence.
        ("context.input.pages > 3", "policy-invalid"),
        (r#"context.input.text like "a*" && context.args.hasTag("/x")"#, ""),
    ] {
        let policies = format!(
            r#"permit (principal, action == Portcullis::Action::"notes/add-note", resource)
                when {{ {condition} }};"#
        );
        match loaded(&policies) {
            Ok(engine) => {
                assert_eq!(code, "", "{condition}");
                assert_eq!(engine.status().borrow().warnings.len(), 0);
            }
            Err(found) => assert_eq!(found.findings()[0].code(), code, "{condition}: {found}"),
        }
    }
    let unknown =
        loaded(r#"permit (principal, action == Portcullis::Action::"notes/add_note", resource);"#);
    let found = unknown.err().unwrap();
    let help = miette::Diagnostic::help(&found.findings()[0]).unwrap().to_string();
    assert_eq!(help, r#"did you mean `Portcullis::Action::"notes/add-note"`?"#);
}

#[test]
fn list_shows_exactly_the_tools_that_could_be_allowed() {
    let (server, principal) = (server("notes"), client("ci", &[]));
    for (policies, add, list) in [
        (OWN.to_owned(), true, false),
        (
            format!(
                "{OWN} forbid (principal, action == Portcullis::Action::\"call_tool\", resource);"
            ),
            false,
            false,
        ),
        (
            format!(
                "{OWN} forbid (principal, action == Portcullis::Action::\"notes/add-note\", resource);"
            ),
            false,
            false,
        ),
        (
            r#"permit (principal, action == Portcullis::Action::"call_tool", resource);
               forbid (principal, action == Portcullis::Action::"notes/list", resource);"#
                .into(),
            true,
            false,
        ),
        ("permit (principal, action, resource) when { context has input };".into(), true, true),
        ("permit (principal, action, resource) when { !(context has input) };".into(), true, true),
        (
            r#"permit (principal, action == Portcullis::Action::"notes/list", resource)
                when { resource.name == "other" };"#
                .into(),
            false,
            false,
        ),
    ] {
        let engine = loaded(&policies).unwrap();
        let shown = |name| {
            let resource = Resource::Tool { server: &server, name, claims: Claims::default() };
            engine.could_allow(&Subject::Client(&principal), Action::CallTool, &resource)
        };
        assert_eq!((shown("add-note"), shown("list")), (add, list), "{policies}");
    }
}

#[test]
fn tool_lists_are_part_of_the_policy_set() {
    let folder = folder(&[("p.cedar", OWN), ("notes.tools.json", TOOLS)]);
    let file = folder.path().join("policies/notes.tools.json");
    let engine = Engine::load(&["policies".into()], folder.path()).unwrap();
    let before = engine.revision();
    let allows = |json| call(&engine, "add-note", json).allowed;
    assert!(allows(r#"{"text": "ok"}"#));

    for broken in ["{", "[]", r#"{"tools": [{"name": "add-note"}]}"#] {
        fs::write(&file, broken).unwrap();
        engine.reload().unwrap_err();
        assert_eq!(engine.revision(), before);
        assert!(allows(r#"{"text": "ok"}"#), "{broken}");
    }

    let open = TOOLS.replace(r#""additionalProperties": false,"#, "");
    assert!(!allows(r#"{"text": "ok", "more": 1}"#));
    fs::write(&file, open).unwrap();
    assert_ne!(engine.reload().unwrap(), before);
    assert!(allows(r#"{"text": "ok", "more": 1}"#));

    fs::write(&file, TOOLS).unwrap();
    assert_eq!(engine.reload().unwrap(), before, "the same files are the same revision");
    assert!(!allows(r#"{"text": "ok", "more": 1}"#));
}

#[test]
fn invalid_tool_lists_are_reported_with_position() {
    let tool = |schema: &str| {
        format!("{{\"tools\": [\n  {{\"name\": \"a\", \"inputSchema\": {schema}}}]}}")
    };
    for (name, text, message, line) in [
        ("notes.tools.json", "{".to_owned(), "policies/notes.tools.json holds no result of `tools/list`", Some(1)),
        ("notes.tools.json", "[1]".to_owned(), "this is not a tool", Some(1)),
        ("notes.tools.json", r#"{"result": {}}"#.to_owned(), "policies/notes.tools.json holds no result of `tools/list`", Some(1)),
        (
            "notes.tools.json",
            "{\"tools\": [], \"nextCursor\": \"x\"}".to_owned(),
            "policies/notes.tools.json holds no result of `tools/list`",
            Some(1),
        ),
        ("notes.tools.json", tool("true"), "no action can be built from `inputSchema` of `a`", Some(2)),
        ("notes.tools.json", tool(r#"{"type": "string"}"#), "no action can be built from \
                                                             `inputSchema` of `a`", Some(2)),
        (
            "notes.tools.json",
            "{\"tools\": [{\"name\": \"a\", \"inputSchema\": {\"type\": \"object\"}},\n{\"name\": \"a\", \"inputSchema\": {\"type\": \"object\"}}]}".to_owned(),
            "the tool `a` is listed twice",
            Some(2),
        ),
        (".tools.json", tool(r#"{"type": "object"}"#), "policies/.tools.json begins with no server's name: ", None),
    ] {
        let folder = folder(&[(name, &text)]);
        let found = Engine::load(&["policies".into()], folder.path()).err().unwrap();
        let rendered = found.findings()[0].to_string();
        assert!(rendered.starts_with(message), "{rendered}\n{text}");
        let json = serde_json::to_value(&found.findings()[0]).unwrap();
        assert_eq!(json["line"].as_u64(), line, "{json}\n{text}");
        assert!(json["help"].is_string(), "{json}");
        assert_eq!(json["code"], "typed-tools");
    }
    let folder = folder(&[("notes.tools.json", TOOLS)]);
    fs::create_dir(folder.path().join("more")).unwrap();
    fs::write(folder.path().join("more/notes.tools.json"), TOOLS).unwrap();
    let both = ["policies".into(), "more".into()];
    let found = Engine::load(&both, folder.path()).err().unwrap();
    let rendered = found.findings()[0].to_string();
    assert_eq!(rendered, "policies/notes.tools.json is the second file with tools of `notes`");
}

/// With any names from a server, Cedar can parse the schema, and it contains exactly those names.
#[test]
fn hostile_names_cannot_inject_into_the_schema() {
    let names = [
        "\"; } } forbid",
        "a\nb // c",
        "\\\"",
        "*/ /*",
        "\u{202e}x",
        "é",
        "in",
        "__cedar",
        "'",
        "\0",
        "{",
        "}",
    ];
    let properties: Map<String, Value> = names
        .iter()
        .map(|name| ((*name).to_owned(), serde_json::json!({"type": "string"})))
        .collect();
    let untyped: Map<String, Value> =
        names.iter().map(|name| (format!("{name}u"), serde_json::json!({}))).collect();
    let tools: Vec<_> = names
        .iter()
        .map(|name| {
            let all: Map<_, _> = properties.clone().into_iter().chain(untyped.clone()).collect();
            let schema = serde_json::json!({"type": "object", "properties": all});
            serde_json::json!({"name": name, "inputSchema": schema})
        })
        .collect();
    let text = serde_json::to_string(&serde_json::json!({ "tools": tools })).unwrap();
    let all = "permit (principal, action, resource) when { context has input };";
    let folder = folder(&[("p.cedar", all), ("notes.tools.json", &text)]);
    let engine =
        Engine::load(&["policies".into()], folder.path()).unwrap_or_else(|found| panic!("{found}"));
    for name in names {
        let json = serde_json::json!({ name: "x" }).to_string();
        assert!(call(&engine, name, &json).allowed, "{name:?}");
        assert!(!call(&engine, name, &json.replace("\"x\"", "1")).allowed, "{name:?}");
    }
    assert!(!call(&engine, "forbid", "{}").allowed);
}
