//! A table for each finding: sets with it and sets without it.

use super::*;
use crate::{Engine, tests::folder};

/// `CODE LINE` of each finding.
fn found(policies: &str, known: &Inventory) -> Vec<String> {
    let folder = folder(&[("p.cedar", policies)]);
    let engine = Engine::load(&["policies".into()], folder.path()).unwrap();
    let findings = engine.analyse(known);
    let json = serde_json::to_value(findings).unwrap();
    let line = |finding: &serde_json::Value| {
        format!("{} {}", finding["code"].as_str().unwrap(), finding["line"])
    };
    json.as_array().unwrap().iter().map(line).collect()
}

const CALL: &str = r#"action == Portcullis::Action::"call_tool""#;

/// Sets of policies, one policy a line, with the findings in each.
fn table(rows: &[(&[&str], &[&str])]) {
    for (policies, expected) in rows {
        let text = policies.join("\n").replace("CALL", CALL);
        assert_eq!(found(&text, &Inventory::default()), *expected, "{text}");
    }
}

#[test]
fn over_broad_policies_are_found() {
    table(&[
        (&["permit (principal, action, resource);"], &["policy-over-broad 1"]),
        (&["permit (principal, CALL, resource);"], &["policy-over-broad 1"]),
        (
            &[
                r#"permit (principal, action in Portcullis::Action::"from_client", resource) when { true };"#,
            ],
            &["policy-over-broad 1"],
        ),
        (&["permit (principal is Portcullis::Local, action, resource);"], &[]),
        (&[r#"permit (principal, CALL, resource in Portcullis::Server::"a");"#], &[]),
        (&["permit (principal, CALL, resource) when { principal.verified };"], &[]),
        (&["permit (principal, CALL, resource) when { resource.claims.read_only };"], &[]),
        (&[r#"permit (principal, action == Portcullis::Action::"connect", resource);"#], &[]),
        (&["forbid (principal, action, resource);"], &[]),
        (
            &[
                r#"permit (principal, action, resource) unless { action in Portcullis::Action::"use" };"#,
            ],
            &["policy-over-broad 1"],
        ),
        (
            &[
                r#"permit (principal, action == Portcullis::Action::"launch", resource);"#,
                r#"permit (principal, action == Portcullis::Action::"egress", resource);"#,
                r#"permit (principal, action == Portcullis::Action::"deliver_secret", resource);"#,
            ],
            &["policy-over-broad 1"],
        ),
        (
            &[r#"permit (principal, action in Portcullis::Action::"from_proxy", resource);"#],
            &["policy-over-broad 1"],
        ),
        (
            &[
                r#"permit (principal, action == Portcullis::Action::"launch", resource) when { resource.runtime == "container" };"#,
                r#"permit (principal == Portcullis::Server::"a", action == Portcullis::Action::"launch", resource);"#,
            ],
            &[],
        ),
    ]);
}

#[test]
fn unreachable_and_contradicting_policies_are_found() {
    let on_a = r#"permit (principal, CALL, resource in Portcullis::Server::"a");"#;
    let x = r#"permit (principal, CALL, resource == Portcullis::Tool::"a/x") when { principal.verified };"#;
    table(&[
        (
            &[on_a, r#"forbid (principal, CALL, resource in Portcullis::Server::"a");"#],
            &["policy-contradiction 1"],
        ),
        (
            &[
                on_a,
                r#"forbid (principal, CALL, resource) when { resource in Portcullis::Server::"a" };"#,
            ],
            &["policy-contradiction 1"],
        ),
        (
            &[on_a, r#"forbid (principal, action in Portcullis::Action::"use", resource);"#],
            &["policy-unreachable 1"],
        ),
        (
            &[x, r#"forbid (principal, CALL, resource in Portcullis::Server::"a");"#],
            &["policy-unreachable 1"],
        ),
        (
            &[x, "forbid (principal, CALL, resource) when { principal.verified };"],
            &["policy-unreachable 1"],
        ),
        (
            &[
                x,
                r#"forbid (principal, CALL, resource) unless { resource in Portcullis::Server::"b" };"#,
            ],
            &["policy-unreachable 1"],
        ),
        // By its type only.
        (
            &[x, "forbid (principal, action, resource is Portcullis::Tool);"],
            &["policy-unreachable 1"],
        ),
        (
            &[
                x,
                r#"forbid (principal, action, resource) unless { action == Portcullis::Action::"connect" };"#,
            ],
            &["policy-unreachable 1"],
        ),
        // Only a part of it is forbidden, or that is unknown.
        (&[on_a, r#"forbid (principal, CALL, resource == Portcullis::Tool::"a/x");"#], &[]),
        (&[x, "forbid (principal, CALL, resource) when { resource.claims.destructive };"], &[]),
        (&[x, "forbid (principal, action, resource is Portcullis::Prompt);"], &[]),
        (&[x, "forbid (principal is Portcullis::Client, CALL, resource);"], &[]),
        (&[x, r#"forbid (principal, CALL, resource) unless { principal.verified };"#], &[]),
        (
            &[
                x,
                r#"forbid (principal, CALL, resource) unless { principal in Portcullis::Group::"g" };"#,
            ],
            &[],
        ),
        (
            &[
                r#"permit (principal == Portcullis::Client::"c", CALL, resource in Portcullis::Server::"a");"#,
                r#"forbid (principal, CALL, resource) unless { principal in Portcullis::Group::"g" };"#,
            ],
            &[],
        ),
        (
            &[x, r#"forbid (principal, action == Portcullis::Action::"access_task", resource);"#],
            &[],
        ),
    ]);
}

#[test]
fn duplicate_and_redundant_policies_are_found() {
    let group = r#"permit (principal in Portcullis::Group::"g", CALL, resource in Portcullis::Server::"a")"#;
    let one = &format!("{group};");
    let verified = &format!("{group} when {{ principal.verified }};");
    table(&[
        (&[one, one], &["policy-duplicate 2"]),
        (
            &[
                &format!("{group} when {{ principal.verified && context.session_calls < 3 }};"),
                &format!(
                    "{group} when {{ 3 > context.session_calls }} when {{ principal.verified }};"
                ),
            ],
            &["policy-duplicate 2"],
        ),
        (&[verified, one], &["policy-redundant 1"]),
        (&[one, verified], &["policy-redundant 2"]),
        (
            &[
                r#"permit (principal, CALL, resource == Portcullis::Tool::"a/x");"#,
                r#"permit (principal, CALL, resource) when { resource in [Portcullis::Tool::"a/x", Portcullis::Tool::"a/y"] };"#,
            ],
            &["policy-redundant 1"],
        ),
        (
            &[
                "forbid (principal, CALL, resource) when { resource.claims.destructive };",
                "forbid (principal is Portcullis::Local, CALL, resource) when { resource.claims.destructive };",
            ],
            &["policy-redundant 2"],
        ),
        // The narrow one has its own message for the agent.
        (
            &[
                "forbid (principal, CALL, resource) when { resource.claims.destructive };",
                "@reason(\"ask first\") forbid (principal is Portcullis::Local, CALL, resource) when { resource.claims.destructive };",
            ],
            &[],
        ),
        // It has an obligation.
        (&[one, &format!("@keep(\"arguments\") {verified}")], &[]),
        // It can fail, which refuses the request.
        (&[one, &format!("{group} when {{ context.session_calls + 1 > 0 }};")], &[]),
        (&[one, &one.replace("Group::\"g\"", "Group::\"h\"")], &[]),
        (&[one, &one.replace("CALL", r#"action == Portcullis::Action::"access_task""#)], &[]),
    ]);
}

#[test]
fn unknown_names_are_found() {
    let known = Inventory {
        servers: Some(["a".parse().unwrap()].into()),
        clients: Some(["ci".parse().unwrap()].into()),
        groups: Some(["readers".parse().unwrap()].into()),
        anonymous: Some(false),
        tools: Vec::new(),
    };
    for (policy, expected) in [
        (r#"permit (principal in Portcullis::Group::"readers", CALL, resource);"#, &[] as &[_]),
        (
            r#"permit (principal in Portcullis::Group::"reader", CALL, resource);"#,
            &["policy-empty-group 1"],
        ),
        (
            r#"forbid (principal, CALL, resource) unless { principal in Portcullis::Group::"x" };"#,
            &["policy-empty-group 1"],
        ),
        (r#"permit (principal == Portcullis::Client::"ci", CALL, resource);"#, &[]),
        (
            r#"permit (principal == Portcullis::Client::"cd", CALL, resource);"#,
            &["policy-unknown-client 1"],
        ),
        (
            r#"permit (principal is Portcullis::Local, CALL, resource in Portcullis::Server::"b");"#,
            &["policy-unknown-server 1"],
        ),
        ("permit (principal is Portcullis::Anonymous, CALL, resource);", &["policy-nobody 1"]),
        (
            r#"permit (principal == Portcullis::Anonymous::"anonymous", CALL, resource);"#,
            &["policy-nobody 1"],
        ),
        (
            "permit (principal, CALL, resource) unless { principal is Portcullis::Client || principal is Portcullis::Local };",
            &["policy-nobody 1"],
        ),
        ("forbid (principal is Portcullis::Anonymous, CALL, resource);", &[]),
        (
            "permit (principal, CALL, resource) when { principal is Portcullis::Anonymous || principal.verified };",
            &[],
        ),
    ] {
        let text = policy.replace("CALL", CALL);
        assert_eq!(found(&text, &known), expected, "{text}");
        // Nothing is reported about unknown data.
        assert_eq!(found(&text, &Inventory::default()), [] as [&str; 0], "{text}");
    }
}

#[test]
fn group_with_an_illegal_name_has_a_finding_of_its_own() {
    let known = Inventory { groups: Some([].into()), ..Inventory::default() };
    for (group, message) in [
        ("A", "no client can be in the group `A`"),
        ("a b", "no client can be in the group `a b`"),
        ("a", "no client is in the group `a`"),
    ] {
        let policy =
            format!("permit (principal in Portcullis::Group::\"{group}\", {CALL}, resource);");
        let folder = folder(&[("p.cedar", &policy)]);
        let engine = Engine::load(&["policies".into()], folder.path()).unwrap();
        let found = serde_json::to_value(engine.analyse(&known)).unwrap();
        assert_eq!(found[0]["message"], message, "{found:#}");
    }
}

#[test]
fn unknown_tools_are_found() {
    let tool = |name: &str, read_only: bool| KnownTool {
        name: name.to_owned(),
        claims: Claims::from_hints(|hint| (hint == "readOnlyHint").then_some(read_only)),
    };
    let known = Inventory {
        servers: Some(["a".parse().unwrap()].into()),
        tools: vec![("a".parse().unwrap(), vec![tool("look", true), tool("touch", true)])],
        ..Inventory::default()
    };
    let more = Inventory {
        servers: Some(["a".parse().unwrap(), "b".parse().unwrap()].into()),
        ..known.clone()
    };
    for (policy, expected, with_more) in [
        (
            r#"permit (principal, CALL, resource == Portcullis::Tool::"a/look");"#,
            &[] as &[&str],
            &[] as &[&str],
        ),
        (
            r#"permit (principal, CALL, resource == Portcullis::Tool::"a/lok");"#,
            &["policy-unknown-tool 1"],
            &["policy-unknown-tool 1"],
        ),
        (
            r#"permit (principal, CALL, resource) when { resource in [Portcullis::Tool::"a/look", Portcullis::Tool::"a/x"] };"#,
            &["policy-unknown-tool 1"],
            &["policy-unknown-tool 1"],
        ),
        // The tools of `b` are unknown.
        (
            "permit (principal, CALL, resource) when { resource.claims.destructive };",
            &["policy-no-tool 1"],
            &[],
        ),
        (
            r#"permit (principal, CALL, resource in Portcullis::Server::"a") when { resource.claims.destructive };"#,
            &["policy-no-tool 1"],
            &["policy-no-tool 1"],
        ),
        (r#"permit (principal, CALL, resource) when { resource.name like "t*" };"#, &[], &[]),
        (
            r#"permit (principal, CALL, resource) when { resource.name like "T*" };"#,
            &["policy-no-tool 1"],
            &[],
        ),
        // A guard for future tools, and one for a certain tool.
        ("forbid (principal, CALL, resource) when { resource.claims.destructive };", &[], &[]),
        (
            r#"forbid (principal, CALL, resource) when { resource.name == "drop" };"#,
            &["policy-no-tool 1"],
            &[],
        ),
        // Other actions have other resources.
        (r#"permit (principal in Portcullis::Group::"g", action, resource);"#, &[], &[]),
    ] {
        let text = policy.replace("CALL", CALL);
        assert_eq!(found(&text, &known), expected, "{text}");
        assert_eq!(found(&text, &more), with_more, "{text}");
    }
}

#[test]
fn docs_list_every_finding() {
    let docs = include_str!("../../../docs/concepts/policies/check.md");
    let texts = [include_str!("mod.rs"), include_str!("tools.rs"), include_str!("../load.rs")];
    let mut codes: Vec<_> = texts
        .iter()
        .flat_map(|text| text.split('"'))
        .filter(|text| text.strip_prefix("policy-").is_some_and(|code| !code.contains(' ')))
        .collect();
    codes.sort_unstable();
    codes.dedup();
    assert!(codes.len() > 15, "{codes:?}");
    for code in codes {
        assert!(docs.contains(&format!("| `{code}` |")), "{code}");
    }
}
