//! Generated policies and requests.

use super::*;

const PRINCIPALS: [&str; 8] = [
    "principal",
    r#"principal == P::Client::"a""#,
    r#"principal == P::Local::"a""#,
    r#"principal in P::Group::"g""#,
    r#"principal in P::Client::"b""#,
    "principal is P::Client",
    r#"principal is P::Local in P::Group::"g""#,
    r#"principal == P::Server::"s""#,
];

const ACTIONS: [&str; 9] = [
    r#"action == P::Action::"s/t""#,
    "action",
    r#"action == P::Action::"call_tool""#,
    r#"action in P::Action::"use""#,
    r#"action in P::Action::"from_client""#,
    r#"action in [P::Action::"read", P::Action::"connect"]"#,
    r#"action in [P::Action::"call_tool", P::Action::"get_prompt", P::Action::"complete"]"#,
    r#"action in P::Action::"call_tool""#,
    r#"action == P::Action::"sample""#,
];

const TOOL_ACTIONS: [&str; 3] = [
    r#"action == P::Action::"call_tool""#,
    r#"action in P::Action::"access_task""#,
    r#"action in [P::Action::"call_tool", P::Action::"access_task"]"#,
];

const RESOURCES: [&str; 10] = [
    "resource",
    r#"resource == P::Tool::"s/t""#,
    r#"resource in P::Tool::"s/u""#,
    r#"resource in P::Server::"s""#,
    r#"resource == P::Server::"s""#,
    "resource is P::Tool",
    r#"resource is P::Tool in P::Server::"other""#,
    r#"resource is P::Resource in P::Server::"s""#,
    r#"resource == P::Resource::"s/note://1""#,
    r#"resource is P::Client"#,
];

/// Scopes of actions of the proxy itself.
const OWN_PRINCIPALS: [&str; 5] = [
    "principal",
    r#"principal == P::Server::"s""#,
    "principal is P::Server",
    r#"principal in P::Server::"other""#,
    r#"principal == P::Plugin::"s""#,
];

const OWN_ACTIONS: [&str; 6] = [
    "action",
    r#"action in P::Action::"from_proxy""#,
    r#"action == P::Action::"launch""#,
    r#"action in [P::Action::"deliver_secret", P::Action::"grant"]"#,
    r#"action == P::Action::"egress""#,
    r#"action == P::Action::"deliver_secret""#,
];

const OWN_RESOURCES: [&str; 11] = [
    "resource",
    r#"resource == P::Program::"t""#,
    "resource is P::Secret",
    r#"resource in P::Server::"s""#,
    r#"resource is P::Secret in P::Server::"other""#,
    r#"resource == P::Secret::"s/t""#,
    r#"resource == P::Secret::"plugin:s/t""#,
    r#"resource in P::Plugin::"s""#,
    r#"resource == P::Host::"example.com:443""#,
    "resource is P::Host",
    r#"resource == P::Grant::"log""#,
];

/// Conditions that do not read the call, that do, or that read it and the request. Some fail.
const CONDITIONS: &[&str] = &[
    "true",
    "false",
    "principal.verified",
    "principal has verified && principal.verified",
    r#"principal.name == "a""#,
    r#"principal in P::Group::"g""#,
    "principal is P::Client",
    r#"resource == P::Tool::"s/t""#,
    r#"resource in P::Server::"s""#,
    r#"resource in [P::Server::"other", P::Tool::"s/u"]"#,
    "resource is P::Tool",
    "resource.claims.destructive",
    "resource has claims && !resource.claims.read_only",
    r#"resource.name like "t*""#,
    r#"resource has uri && resource.uri like "note://*""#,
    r#"action == P::Action::"call_tool""#,
    r#"action in P::Action::"read""#,
    "9223372036854775807 + 1 > 0",
    r#"P::Client::"nobody".name == "x""#,
    r#"P::Client::"nobody".name == context.transport"#,
    r#"[context.transport, "x"].contains(P::Tool::"s/u".name)"#,
    r#"P::Tool::"s/t" has claims && !P::Tool::"s/t".claims.read_only"#,
    r#"P::Tool::"s/u".claims.destructive"#,
    r#"P::Resource::"s/note://1" has uri"#,
    r#"P::Prompt::"s/t" has name && context.session_calls < 5"#,
    r#"P::Tool::"s/t" in P::Server::"s""#,
    r#"P::Args::"args".hasTag("/x")"#,
    r#"P::Args::"args" has keys && P::Args::"args".keys.contains("x")"#,
    r#"P::Paths::"paths".hasTag("/a") && P::Paths::"paths".getTag("/a") == "x""#,
    r#"P::Urls::"urls".hasTag("/a") && !P::Urls::"urls".getTag("/a").verbatim"#,
    r#"context.transport == "http""#,
    "context.session_calls > 5",
    "context.session_calls + 9223372036854775803 > 0",
    r#"context.args.hasTag("/x")"#,
    r#"context.args.hasTag("/x") && context.args.getTag("/x") == "1""#,
    "context has source_ip",
    r#"context has source_ip && context.source_ip.isInRange(ip("10.0.0.0/8"))"#,
    r#"context.now < datetime("2027-01-01")"#,
    r#"context.now.toTime() > duration("9h")"#,
    r#"context.now.offset(duration("9223372036854775807ms")) > context.now"#,
    r#"context.args.keys.contains("x")"#,
    "context.args.keys.isEmpty()",
    r#"context.labels.contains("tainted")"#,
    r#"context.labels.containsAny(["tainted", principal.name])"#,
    "context.labels.isEmpty()",
    r#"context.paths.getTag("/a") like "/srv/*""#,
    r#"context.paths.hasTag("/a") && context.args.hasTag("/a") && context.paths.getTag("/a") == context.args.getTag("/a")"#,
    r#"context.paths.hasTag("/a") && context.paths.getTag("/a") == resource.name"#,
    r#"context.urls.hasTag("/a") && context.urls.getTag("/a").port > 443"#,
    r#"context.urls.getTag("/a").verbatim"#,
    r#"context.urls.hasTag("/b/c") || context.paths.hasTag("/b/c")"#,
    r#"context.lists.hasTag("/x") && context.lists.getTag("/x") == 2"#,
    r#"context.lists.getTag("/x") > 1 && context.args.hasTag("/x/1")"#,
    r#"P::Lists::"lists".hasTag("/x")"#,
    "{c: context.urls}.c.hasTag(principal.name)",
    r#"resource has url && resource.url.host == "example.com""#,
    r#"resource has path && resource.path like "/srv/*""#,
    r#"resource has runtime && resource.runtime == "sandbox""#,
    r#"resource has deviations && resource.deviations.contains("network")"#,
    r#"resource has signed && resource.signed && resource.signers.contains("acme")"#,
    r#"resource has digest && resource.digest like "sha256:*""#,
    "resource has header && (resource.header || context.now < datetime(\"2027-01-01\"))",
    r#"resource has source && resource.source == "env""#,
    r#"resource has delivery && resource.delivery == "file""#,
    r#"resource has client && resource.client == "a""#,
    "resource has port && resource.port == 443",
    "resource has port && resource.port + 9223372036854775800 > context.session_calls",
    r#"context.paths.hasTag("/a") && context.paths.getTag("/a") == "x""#,
    r#"context.urls.hasTag("/a") && context.urls.getTag("/a").host == "example.com""#,
    "context.args.leaves > 1 || context.args.size > 100",
    r#"["tools/call", "prompts/get"].contains(context.method)"#,
    r#"context.revision == "2025-11-25""#,
    "context == context",
    "[context].contains(context) && [context.args].contains({c: context}.c.args)",
    "{c: context}.c.session_calls > 3",
    r#"principal.name == "a" || context has source_ip"#,
    "context.args.hasTag(principal.name)",
    "context.method == resource.name",
    "(if principal.verified then 1 else context.session_calls) == 1",
    "(if context.session_calls > 5 then principal.name else resource.name) like \"t*\"",
    r#"[context.transport, principal.name].contains("http")"#,
    "context.session_calls < 9223372036854775807 + 1",
    "{c: context, r: resource}.r == resource",
    r#"(if resource.claims.destructive then context.transport else "http") == "http""#,
];

pub(super) fn condition() -> impl Strategy<Value = String> {
    let part = select(CONDITIONS).prop_map(|part| format!("({part})"));
    part.prop_recursive(3, 8, 3, |inner| {
        prop_oneof![
            (inner.clone(), inner.clone()).prop_map(|(a, b)| format!("({a} && {b})")),
            (inner.clone(), inner.clone()).prop_map(|(a, b)| format!("({a} || {b})")),
            inner.clone().prop_map(|a| format!("(!{a})")),
            (inner.clone(), inner.clone(), inner)
                .prop_map(|(a, b, c)| format!("(if {a} then {b} else {c})")),
        ]
    })
}

/// Scopes of all forms; many of them about tools, since most conditions only validate there.
pub(super) fn scope() -> impl Strategy<Value = String> {
    let any = (select(&PRINCIPALS), select(&ACTIONS), select(&RESOURCES));
    let of_tools = (select(&PRINCIPALS[..7]), select(&TOOL_ACTIONS), select(&RESOURCES[..7]));
    let joined = |(principal, action, resource)| format!("{principal}, {action}, {resource}");
    let own = (select(&OWN_PRINCIPALS), select(&OWN_ACTIONS), select(&OWN_RESOURCES));
    prop_oneof![1 => any.prop_map(joined), 3 => of_tools.prop_map(joined), 1 => own.prop_map(joined)]
}

pub(super) fn policy() -> impl Strategy<Value = String> {
    let conditions = proptest::collection::vec((any::<bool>(), condition()), 0..3);
    (prop::bool::weighted(0.7), scope(), conditions).prop_map(|(permit, scope, conditions)| {
        let mut text = format!("{} ({scope})", if permit { "permit" } else { "forbid" });
        for (when, condition) in conditions {
            let word = if when { "when" } else { "unless" };
            text.push_str(&format!("\n{word} {{ {condition} }}"));
        }
        text.replace("P::", "Portcullis::") + ";"
    })
}

pub(super) fn schema() -> Schema {
    Schema::from_cedarschema_str(SCHEMA).unwrap().0
}

/// The valid policies, since a set in use has no others.
pub(super) fn valid(texts: &[String], schema: &Schema) -> PolicySet {
    let validator = Validator::new(schema.clone());
    let mut valid = PolicySet::new();
    for (number, text) in texts.iter().enumerate() {
        let policy = Policy::parse(Some(PolicyId::new(format!("p{number}"))), text).unwrap();
        let alone = PolicySet::from_policies([policy.clone()]).unwrap();
        if validator.validate(&alone, ValidationMode::Strict).validation_passed() {
            valid.add(policy).unwrap();
        }
    }
    valid
}

pub(super) fn principal(kind: PrincipalKind, groups: &[&str], verified: bool) -> Principal {
    let groups = groups.iter().map(|group| group.parse().unwrap()).collect();
    Principal { kind, groups, verified, key: None }
}

pub(super) fn principals() -> Vec<Principal> {
    let client = |name: &str| PrincipalKind::Client(name.parse().unwrap());
    vec![
        principal(client("a"), &[], true),
        principal(client("a"), &["g"], true),
        principal(client("a"), &["h", "g"], true),
        principal(client("b"), &["g"], true),
        principal(client("b"), &[], false),
        principal(PrincipalKind::Local { user: "a".into() }, &[], true),
        principal(PrincipalKind::Local { user: "a".into() }, &["g"], true),
        principal(PrincipalKind::Anonymous, &[], false),
    ]
}

pub(super) fn programs() -> Vec<Program> {
    let program = |runtime, digest: Option<&str>, deviations: &[&str]| Program {
        runtime,
        name: "t".to_owned(),
        digest: digest.map(str::to_owned),
        deviations: deviations.iter().map(|key| (*key).to_owned()).collect(),
        signers: digest.iter().map(|_| "acme".to_owned()).collect(),
        attested: vec![],
    };
    vec![
        program("sandbox", None, &["network"]),
        program("sandbox", None, &[]),
        program("container", Some("sha256:00"), &["network"]),
    ]
}

/// Actions of the proxy itself.
pub(super) fn own<'a>(programs: &'a [Program], servers: &'a [ServerName; 2]) -> Vec<About<'a>> {
    let mut all = Vec::new();
    for asking in servers {
        let mut ask = |action, resource| {
            let subject = match action {
                Action::Grant => Subject::Plugin(asking.as_str()),
                _ => Subject::Server(asking),
            };
            all.push(About { subject, action, resource, own: false });
        };
        for program in programs {
            ask(Action::Launch, Resource::Program(program));
        }
        for server in servers {
            for (name, source, delivery, client) in [
                ("t", "env", DeliveredAs::Header, None),
                ("t", "env", DeliveredAs::Env, None),
                ("t", "env", DeliveredAs::File, None),
                ("t", "env", DeliveredAs::File, Some("a")),
                ("t", "env", DeliveredAs::File, Some("b")),
                ("t", "file", DeliveredAs::Header, None),
            ] {
                let holder = Holder::Server(server);
                let resource = Resource::Secret { holder, name, source, delivery, client };
                ask(Action::DeliverSecret, resource);
            }
        }
        for (name, port) in [("example.com", 443), ("example.com", 80), ("a", 443)] {
            ask(Action::Egress, Resource::Host { name, port });
        }
        for name in ["log", "t"] {
            ask(Action::Grant, Resource::Grant(name));
        }
    }
    let plugin = "s";
    let subject = Subject::Plugin(plugin);
    for holder in [Holder::Plugin(plugin), Holder::Plugin("other"), Holder::Server(&servers[0])] {
        let delivery = DeliveredAs::Plugin;
        let resource =
            Resource::Secret { holder, name: "t", source: "env", delivery, client: None };
        all.push(About { subject, action: Action::DeliverSecret, resource, own: false });
    }
    let resource = Resource::Host { name: "a", port: 443 };
    all.push(About { subject, action: Action::Egress, resource, own: false });
    all
}

/// All actions of clients and servers on all resources.
pub(super) fn questions<'a>(
    principals: &'a [Principal],
    servers: &'a [ServerName; 2],
) -> Vec<About<'a>> {
    let [s, other] = servers;
    let mut all = Vec::new();
    let claims = [Claims::default(), Claims::from_hints(|hint| Some(hint == "readOnlyHint"))];
    for principal in principals {
        let mut ask = |action, resource| {
            let subject = match resource {
                Resource::Client(_) => Subject::Server(s),
                _ => Subject::Client(principal),
            };
            all.push(About { subject, action, resource, own: false });
        };
        ask(Action::Sample, Resource::Client(principal));
        ask(Action::Connect, Resource::Proxy);
        for server in [s, other] {
            ask(Action::Connect, Resource::Server(server));
            for claims in claims {
                for name in ["t", "u", "tools/call"] {
                    let tool = Resource::Tool { server, name, claims };
                    ask(Action::CallTool, tool);
                    ask(Action::AccessTask, tool);
                }
            }
            for name in ["t", "x"] {
                ask(Action::GetPrompt, Resource::Prompt { server, name });
                ask(Action::Complete, Resource::Prompt { server, name });
            }
            for uri in ["note://1", "file:///srv/1", "https://example.com/a"] {
                ask(Action::ReadResource, Resource::Resource { server, uri });
                ask(Action::SeeTemplate, Resource::Template { server, uri });
            }
        }
    }
    all
}

pub(super) fn requests<'a>(
    about: About<'a>,
    args: &'a [(&'a str, Map<String, Value>)],
) -> Vec<Request<'a>> {
    let calls = [
        ("tools/call", Transport::Http, Some("10.1.2.3"), 0),
        ("t", Transport::Http, None, 6),
        ("prompts/get", Transport::Stdio, Some("192.0.2.1"), 4),
    ];
    let About { subject, action, resource, .. } = about;
    let calls =
        calls.into_iter().zip(["2026-11-21T08:30:00.250Z", "2027-01-02T10:00:00Z"].iter().cycle());
    calls
        .flat_map(|((method, transport, address, session_calls), now)| {
            args.iter().map(move |(written, args)| Request {
                subject,
                action,
                resource,
                args: Some(args),
                written: written.as_bytes(),
                circumstances: Circumstances {
                    method,
                    transport: Some(transport),
                    revision: Some(exchange::Revision::LATEST_LEGACY),
                    now: now.parse().unwrap(),
                    source_ip: address.map(|address| address.parse().unwrap()),
                    session_calls,
                    labels: if session_calls == 6 { labels() } else { none() },
                },
            })
        })
        .collect()
}

pub(super) fn labels() -> &'static BTreeSet<String> {
    static LABELS: LazyLock<BTreeSet<String>> =
        LazyLock::new(|| BTreeSet::from(["tainted".to_owned()]));
    &LABELS
}

pub(super) fn written() -> Vec<(&'static str, Map<String, Value>)> {
    [
        "{}",
        r#"{"x": 1}"#,
        r#"{"a": "./x", "x": [2, 3], "b": {"c": 4}}"#,
        r#"{"a": [], "x": [{}, []], "b": {}}"#,
        r#"{"a": "https://example.com:8443/a"}"#,
        r#"{"a": "/srv/./x/../t", "b": {"c": "https://a"}}"#,
    ]
    .map(|text| (text, serde_json::from_str(text).unwrap()))
    .into()
}

/// A policy that holds for the call of a typed tool, or nearly.
pub(super) fn typed_policy() -> impl Strategy<Value = String> {
    let scopes = [
        "principal, action, resource",
        r#"principal, action == P::Action::"s/t", resource"#,
        r#"principal, action == P::Action::"call_tool", resource"#,
        r#"principal, action in P::Action::"call_tool", resource is P::Tool"#,
        r#"principal, action in [P::Action::"s/tools/call"], resource"#,
        r#"principal is P::Client, action == P::Action::"s/t", resource == P::Tool::"s/t""#,
    ];
    (select(&["permit", "permit", "forbid"][..]), select(scopes.to_vec()), select(TYPED_CONDITIONS))
        .prop_map(|(effect, scope, condition)| {
            format!("{effect} ({scope}) when {{ {condition} }};").replace("P::", "Portcullis::")
        })
}

const TYPED_CONDITIONS: &[&str] = &[
    "true",
    "context has input",
    "!(context has input)",
    r#"context has input && context.input has a && context.input.a like "./*""#,
    "context has input && context.input has x && context.input.x < 2",
    r#"context has input && context.input has b.c && context.input.b.c == 4"#,
    "context has input && context.input has x && context.input.x + 9223372036854775807 > 0",
    r#"action == P::Action::"call_tool""#,
    r#"action in [P::Action::"call_tool"] && context.session_calls < 5"#,
    r#"action != P::Action::"s/t" || context.session_calls < 5"#,
];

#[test]
fn most_generated_policies_are_valid() {
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let texts: Vec<_> = (0..300)
        .map(|_| policy().new_tree(&mut runner).unwrap().current())
        .filter(|text| text.contains("context") && text.contains("resource."))
        .collect();
    let valid = valid(&texts, &schema()).policies().count();
    assert!(valid >= 20 && valid * 2 > texts.len(), "{valid} of {}", texts.len());
}
