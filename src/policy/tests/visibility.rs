use cedar_policy::{Authorizer, Decision, PolicySet};
use proptest::prelude::*;

use super::*;

const SCOPES: [[&str; 4]; 3] = [
    [
        "principal",
        r#"principal == Portcullis::Client::"a""#,
        r#"principal in Portcullis::Group::"g""#,
        "principal is Portcullis::Client",
    ],
    [
        "action",
        r#"action == Portcullis::Action::"call_tool""#,
        r#"action in Portcullis::Action::"use""#,
        r#"action in [Portcullis::Action::"call_tool", Portcullis::Action::"connect"]"#,
    ],
    [
        "resource",
        r#"resource == Portcullis::Tool::"s/t""#,
        r#"resource in Portcullis::Server::"s""#,
        "resource is Portcullis::Tool",
    ],
];

/// Conditions that are true, false, dependent on the call, or failing.
const CONDITIONS: [&str; 12] = [
    "",
    "when { false }",
    "when { principal has verified && principal.verified }",
    r#"when { context.transport == "http" }"#,
    r#"when { context.args.hasTag("/x") && context.args.getTag("/x") == "1" }"#,
    r#"unless { context.args.hasTag("/x") }"#,
    "when { context.session_calls > 5 }",
    "when { context.session_calls + 9223372036854775807 > 0 }",
    "when { 9223372036854775807 + 1 > 0 }",
    r#"when { context.now < datetime("2027-01-01") }"#,
    r#"when { [context].contains(context) && [context.args].contains({c: context}.c.args) }"#,
    r#"when { principal.name == "a" || context has source_ip }"#,
];

fn policies() -> impl Strategy<Value = String> {
    let policy = (any::<bool>(), 0..4usize, 0..4usize, 0..4usize, 0..CONDITIONS.len());
    proptest::collection::vec(policy, 0..5).prop_map(|policies| {
        policies
            .into_iter()
            .map(|(permit, principal, action, resource, condition)| {
                format!(
                    "{} ({}, {}, {}) {};\n",
                    if permit { "permit" } else { "forbid" },
                    SCOPES[0][principal],
                    SCOPES[1][action],
                    SCOPES[2][resource],
                    CONDITIONS[condition],
                )
            })
            .collect()
    })
}

/// Result of plain Cedar with all data.
struct Plain {
    schema: Schema,
    vocabulary: Vocabulary,
    policies: PolicySet,
}

impl Plain {
    fn new(policies: &str) -> Self {
        let (schema, _) = Schema::from_cedarschema_str(SCHEMA).unwrap();
        let vocabulary = Vocabulary::new(&schema, Typed::default()).unwrap();
        Self { schema, vocabulary, policies: policies.parse().unwrap() }
    }

    fn allows(&self, request: &Request<'_>) -> bool {
        let (question, entities) =
            whole(&self.vocabulary, &self.schema, About::of(request), request);
        let response = Authorizer::new().is_authorized(&question, &self.policies, &entities);
        response.decision() == Decision::Allow && response.diagnostics().errors().next().is_none()
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn decisions_match_cedar_and_allowed_tools_are_visible(policies in policies()) {
        let engine = engine(&policies);
        let plain = Plain::new(&policies);
        let (s, other) = (server("s"), server("other"));
        let principals = [client("a", &[]), client("b", &["g"]), client("b", &[]), local("a"), anonymous()];
        let claims = Claims::default();
        // Twice, so that the second round is answered from the cache.
        for _ in 0..2 {
            for principal in &principals {
                let subject = Subject::Client(principal);
                for (server, name) in [(&s, "t"), (&s, "u"), (&other, "t")] {
                    let resource = Resource::Tool { server, name, claims };
                    let shown = engine.could_allow(&subject, Action::CallTool, &resource);
                    for json in ["{}", r#"{"x": 1}"#, r#"{"x": 2}"#] {
                        for (source_ip, session_calls) in
                            [(None, 0), (Some("10.1.2.3".parse().unwrap()), 6)]
                        {
                            let arguments = args(json);
                            let request = Request {
                                subject,
                                action: Action::CallTool,
                                resource,
                                args: Some(&arguments),
                                written: json.as_bytes(),
                                circumstances: Circumstances {
                                    source_ip,
                                    session_calls,
                                    ..circumstances("tools/call")
                                },
                            };
                            let outcome = engine.decide(&request);
                            prop_assert_eq!(outcome.allowed, plain.allows(&request));
                            prop_assert!(
                                shown || !outcome.allowed,
                                "allowed and not shown: {} {server}/{name} {json}\n{policies}",
                                principal.name(),
                            );
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn tools_that_could_be_allowed_are_visible() {
    let engine = engine(
        r#"permit (principal in Portcullis::Group::"g", action == Portcullis::Action::"call_tool",
                   resource in Portcullis::Server::"s")
           when { context.args.hasTag("/x") };
           forbid (principal, action, resource is Portcullis::Tool) when { resource.claims.destructive };
           permit (principal, action in Portcullis::Action::"read", resource in Portcullis::Server::"s")
           when { resource.uri like "note://*" };"#,
    );
    let s = server("s");
    let (inside, outside) = (client("a", &["g"]), client("a", &[]));
    let tool = |destructive| Resource::Tool {
        server: &s,
        name: "t",
        claims: Claims { destructive, ..Claims::default() },
    };
    let template = |uri| Resource::Template { server: &s, uri };
    let resource = |uri| Resource::Resource { server: &s, uri };
    for (principal, action, resource, shown) in [
        (&inside, Action::CallTool, tool(false), true),
        // A changed definition has another key.
        (&inside, Action::CallTool, tool(true), false),
        // The same client without the group is another principal.
        (&outside, Action::CallTool, tool(false), false),
        (&outside, Action::SeeTemplate, template("note://{id}"), true),
        (&outside, Action::SeeTemplate, template("file:///{path}"), false),
        (&outside, Action::ReadResource, resource("note://1"), true),
        (&outside, Action::ReadResource, resource("file:///1"), false),
        (&outside, Action::GetPrompt, Resource::Prompt { server: &s, name: "t" }, false),
    ] {
        for _ in 0..2 {
            assert_eq!(
                engine.could_allow(&Subject::Client(principal), action, &resource),
                shown,
                "{principal:?} {action:?} {resource:?}"
            );
        }
    }
}

#[test]
fn action_that_always_fails_is_not_visible() {
    let engine = engine(
        r#"permit (principal, action, resource);
           forbid (principal, action, resource) when { 9223372036854775807 + 1 > 0 };"#,
    );
    let principal = anonymous();
    assert!(!engine.could_allow(&Subject::Client(&principal), Action::Connect, &Resource::Proxy));
}
