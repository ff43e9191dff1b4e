//! The index against plain Cedar, over generated policies and questions.

use std::{collections::BTreeSet, sync::LazyLock};

use cedar_policy::{
    AuthorizationError, Authorizer, Decision, PartialEntities, PolicySet, ValidationMode, Validator,
};
use proptest::{prelude::*, sample::select, strategy::ValueTree};
use serde_json::{Map, Value};

use super::*;
use crate::{
    exchange::{self, Transport},
    identity::{Principal, PrincipalKind},
    names::ServerName,
    policy::{
        SCHEMA,
        diagnostics::File,
        ground::Ground,
        request::*,
        tests::{none, whole},
        typed::Typed,
    },
};

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
    r#"action in P::Action::"follow_task""#,
    r#"action in [P::Action::"call_tool", P::Action::"follow_task"]"#,
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

/// Scopes of what the proxy does of itself.
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
    r#"action in [P::Action::"hand_secret", P::Action::"grant"]"#,
    r#"action == P::Action::"reach""#,
    r#"action == P::Action::"hand_secret""#,
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

/// Conditions that do not look at the call, do, or look at it and at who asks for what. Some fail.
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
    "{c: context.urls}.c.hasTag(principal.name)",
    r#"resource has url && resource.url.host == "example.com""#,
    r#"resource has path && resource.path like "/srv/*""#,
    r#"resource has runtime && resource.runtime == "sandbox""#,
    r#"resource has deviations && resource.deviations.contains("network")"#,
    r#"resource has digest && resource.digest like "sha256:*""#,
    "resource has header && (resource.header || context.now < datetime(\"2027-01-01\"))",
    r#"resource has source && resource.source == "env""#,
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

fn condition() -> impl Strategy<Value = String> {
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

/// Scopes of all forms; many of them about tools, since most conditions validate there alone.
fn scope() -> impl Strategy<Value = String> {
    let any = (select(&PRINCIPALS), select(&ACTIONS), select(&RESOURCES));
    let of_tools = (select(&PRINCIPALS[..7]), select(&TOOL_ACTIONS), select(&RESOURCES[..7]));
    let joined = |(principal, action, resource)| format!("{principal}, {action}, {resource}");
    let own = (select(&OWN_PRINCIPALS), select(&OWN_ACTIONS), select(&OWN_RESOURCES));
    prop_oneof![1 => any.prop_map(joined), 3 => of_tools.prop_map(joined), 1 => own.prop_map(joined)]
}

fn policy() -> impl Strategy<Value = String> {
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

fn schema() -> Schema {
    Schema::from_cedarschema_str(SCHEMA).unwrap().0
}

/// Those that validate, as a set that is used has nothing else.
fn valid(texts: &[String], schema: &Schema) -> PolicySet {
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

fn principal(kind: PrincipalKind, groups: &[&str], verified: bool) -> Principal {
    let groups = groups.iter().map(|group| group.parse().unwrap()).collect();
    Principal { kind, groups, verified, key: None }
}

fn principals() -> Vec<Principal> {
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

fn programs() -> Vec<Program> {
    let program = |runtime, digest: Option<&str>, deviations: &[&str]| Program {
        runtime,
        name: "t".to_owned(),
        digest: digest.map(str::to_owned),
        deviations: deviations.iter().map(|key| (*key).to_owned()).collect(),
    };
    vec![
        program("sandbox", None, &["network"]),
        program("sandbox", None, &[]),
        program("container", Some("sha256:00"), &["network"]),
    ]
}

/// What the proxy does of itself.
fn own<'a>(programs: &'a [Program], servers: &'a [ServerName; 2]) -> Vec<About<'a>> {
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
            for (name, source, header) in
                [("t", "env", true), ("t", "env", false), ("t", "file", true)]
            {
                ask(
                    Action::HandSecret,
                    Resource::Secret { holder: Holder::Server(server), name, source, header },
                );
            }
        }
        for (name, port) in [("example.com", 443), ("example.com", 80), ("a", 443)] {
            ask(Action::Reach, Resource::Host { name, port });
        }
        for name in ["log", "t"] {
            ask(Action::Grant, Resource::Grant(name));
        }
    }
    let plugin = "s";
    let subject = Subject::Plugin(plugin);
    for holder in [Holder::Plugin(plugin), Holder::Plugin("other"), Holder::Server(&servers[0])] {
        let resource = Resource::Secret { holder, name: "t", source: "env", header: false };
        all.push(About { subject, action: Action::HandSecret, resource, own: false });
    }
    let resource = Resource::Host { name: "a", port: 443 };
    all.push(About { subject, action: Action::Reach, resource, own: false });
    all
}

/// Everything that clients and servers can ask of anything.
fn questions<'a>(principals: &'a [Principal], servers: &'a [ServerName; 2]) -> Vec<About<'a>> {
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
                    ask(Action::FollowTask, tool);
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

fn requests<'a>(about: About<'a>, args: &'a [(&'a str, Map<String, Value>)]) -> Vec<Request<'a>> {
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

fn labels() -> &'static BTreeSet<String> {
    static LABELS: LazyLock<BTreeSet<String>> =
        LazyLock::new(|| BTreeSet::from(["tainted".to_owned()]));
    &LABELS
}

fn written() -> Vec<(&'static str, Map<String, Value>)> {
    [
        "{}",
        r#"{"x": 1}"#,
        r#"{"a": "./x", "x": [2, 3], "b": {"c": 4}}"#,
        r#"{"a": "https://example.com:8443/a"}"#,
        r#"{"a": "/srv/./x/../t", "b": {"c": "https://a"}}"#,
    ]
    .map(|text| (text, serde_json::from_str(text).unwrap()))
    .into()
}

/// What plain Cedar says when it is shown everything: decision, determining policies, errors.
type Said = (bool, Vec<String>, Vec<(String, &'static str)>);

fn plain(terms: Terms<'_>, policies: &PolicySet, request: &Request<'_>) -> Said {
    let about = About::of(request);
    let answer = plainly(terms, policies, about, request);
    let own = about.own(terms.vocabulary).map(|own| plainly(terms, policies, own, request));
    let mut all = answer;
    if let Some(own) = own {
        all.extend(own);
    }
    let of = |what: &str| -> BTreeSet<String> {
        all.iter().filter(|(_, came)| *came == what).map(|(id, _)| id.clone()).collect()
    };
    let (permits, forbids) = (of("permits"), of("forbids"));
    let allowed = forbids.is_empty() && !permits.is_empty();
    let errors = all.iter().filter(|(_, came)| !matches!(*came, "permits" | "forbids"));
    let errors: BTreeSet<_> = errors.cloned().collect();
    let reasons = if allowed { permits } else { forbids };
    (allowed, reasons.into_iter().collect(), errors.into_iter().collect())
}

/// What plain Cedar says of one question: each policy that is satisfied or fails, with `permits`,
/// `forbids`, or why it fails. It names only those that determine a decision, so each is asked alone.
fn plainly(
    terms: Terms<'_>,
    policies: &PolicySet,
    about: About<'_>,
    request: &Request<'_>,
) -> BTreeSet<(String, &'static str)> {
    let (question, entities) = whole(terms.vocabulary, terms.schema, about, request);
    let mut came = BTreeSet::new();
    for policy in policies.policies() {
        let alone = PolicySet::from_policies([policy.clone()]).unwrap();
        let response = Authorizer::new().is_authorized(&question, &alone, &entities);
        let effect = match policy.effect() {
            Effect::Permit => "permits",
            Effect::Forbid => "forbids",
        };
        came.extend(response.diagnostics().reason().map(|id| (id.to_string(), effect)));
        let errors = response.diagnostics().errors();
        came.extend(errors.map(|AuthorizationError::PolicyEvaluationError(error)| {
            (error.policy_id().to_string(), problem(error.inner()))
        }));
    }
    came
}

/// What plain Cedar says of all policies at once, of a question that is only one.
fn at_once(terms: Terms<'_>, policies: &PolicySet, request: &Request<'_>) -> Said {
    let (question, entities) = whole(terms.vocabulary, terms.schema, About::of(request), request);
    let response = Authorizer::new().is_authorized(&question, policies, &entities);
    let mut reasons: Vec<_> = response.diagnostics().reason().map(PolicyId::to_string).collect();
    let errors = response.diagnostics().errors();
    let mut errors: Vec<_> = errors
        .map(|AuthorizationError::PolicyEvaluationError(error)| {
            (error.policy_id().to_string(), problem(error.inner()))
        })
        .collect();
    reasons.sort();
    errors.sort();
    (response.decision() == Decision::Allow, reasons, errors)
}

fn indexed(terms: Terms<'_>, index: &Index, request: &Request<'_>) -> Said {
    let answer = index.decide(terms, request).unwrap();
    let allowed = answer.permitted();
    let reasons = if allowed { &answer.permits } else { &answer.forbids };
    let mut reasons: Vec<_> = reasons.iter().map(|id| id.to_string()).collect();
    let failures = answer.failures.iter();
    let mut errors: Vec<_> = failures.map(|(id, why)| (id.to_string(), *why)).collect();
    reasons.sort();
    errors.sort();
    (allowed, reasons, errors)
}

/// What Cedar's partial evaluation of all policies says for certain.
fn partial(terms: Terms<'_>, policies: &PolicySet, about: &About<'_>) -> Option<bool> {
    let resource = &about.resource;
    let base = terms.vocabulary.base(*about, terms.schema).unwrap();
    let entities = terms.vocabulary.entities(&base, resource).unwrap();
    let (question, entities): (_, PartialEntities) =
        terms.vocabulary.open_question(&base, resource, &entities, terms.schema).unwrap();
    let response = policies.tpe(&question, &entities, terms.schema).unwrap();
    if response.error_forbids().next().is_some()
        || response.error_permits().next().is_some()
        || response.true_forbids().next().is_some()
    {
        return Some(false);
    }
    if let Some(own) = about.own(terms.vocabulary) {
        // What may be permitted under one action may be under the other; what is refused under one
        // is refused.
        return match (partial(terms, policies, &own), response.decision()) {
            (Some(false), Some(Decision::Deny)) => Some(false),
            _ => None,
        };
    }
    match response.decision()? {
        Decision::Deny => Some(false),
        // A permit that is not certain may fail, and what fails refuses.
        Decision::Allow => response.residual_permits().next().is_none().then_some(true),
    }
}

fn check(texts: &[String], seed: usize, ground: &Ground) -> Result<(), TestCaseError> {
    let terms = ground.terms();
    let policies = valid(texts, terms.schema);
    let index = Index::new(&policies.policies().collect::<Vec<_>>(), terms.vocabulary);
    let (principals, args) = (principals(), written());
    let servers = ["s".parse().unwrap(), "other".parse().unwrap()];
    let (mut questions, programs) = (questions(&principals, &servers), programs());
    if terms.vocabulary.has_own_actions() {
        let typed = |about: &About<'_>| about.own(terms.vocabulary).is_some();
        let other = |at: usize| at.is_multiple_of(16);
        let mut at = 0;
        questions.retain(|about| {
            at += 1;
            typed(about) || other(at)
        });
    }
    let own = own(&programs, &servers);
    // Some of them, from another one each time: pairs of the same action, in an order that mixes
    // all kinds.
    let pairs = (0..20).map(|step| seed + step * 37).flat_map(|at| [at, at + 2]);
    let some = pairs.map(|at| questions[at % questions.len()]);
    let some = some.chain((0..6).map(|step| own[(seed + step * 5) % own.len()]));
    for about in some.clone().chain(some) {
        let shown = index.could_allow(terms, Asker::of(&about.subject), about).unwrap();
        if let Some(certain) = partial(terms, &policies, &about) {
            prop_assert_eq!(shown, certain, "shown: {:?}\n{}", about, policies);
        }
        for request in requests(about, &args) {
            let is_typed = about.own(terms.vocabulary).is_some();
            if is_typed && terms.vocabulary.input(&request).is_err() {
                prop_assert_eq!(unfit(terms, &index, &policies, &request), Ok(()));
                continue;
            }
            let expected = match is_typed {
                true => plain(terms, &policies, &request),
                false => at_once(terms, &policies, &request),
            };
            let found = indexed(terms, &index, &request);
            prop_assert_eq!(&found, &expected, "{:?}\n{}", request, policies);
            let (allowed, _, errors) = found;
            prop_assert!(
                shown || !allowed || !errors.is_empty(),
                "allowed and not shown: {:?}\n{}",
                about,
                policies
            );
        }
    }
    Ok(())
}

/// Of arguments that are not of the tool's type, the index says nothing, or what it would say if no
/// policy were about them.
fn unfit(
    terms: Terms<'_>,
    index: &Index,
    policies: &PolicySet,
    request: &Request<'_>,
) -> Result<(), String> {
    let answer = match index.decide(terms, request) {
        Err(Unaskable::Unfit(_)) => return Ok(()),
        Err(other) => return Err(other.to_string()),
        Ok(answer) => answer,
    };
    let all = answer.permits.iter().chain(&answer.forbids);
    for id in all.chain(answer.failures.iter().map(|(id, _)| id)) {
        let text = policies.policy(id).unwrap().to_string();
        if text.contains("context.input") || text.contains(r#"Action::"s/"#) {
            // Met under the action of all tools, where there is no input.
            let found = plainly(terms, policies, About::of(request), request);
            if !found.iter().any(|(found, _)| *found == id.to_string()) {
                return Err(text);
            }
        }
    }
    Ok(())
}

/// Without typed tools, and with some.
fn grounds() -> &'static [Ground; 2] {
    const TOOLS: &str = r#"{"tools": [
        {"name": "t", "inputSchema": {"type": "object", "properties": {
            "a": {"type": "string"}, "x": {"type": "integer"}, "b": {"type": "object"}}}},
        {"name": "tools/call", "inputSchema": {"type": "object", "required": ["a"], "properties": {
            "a": {"type": "string"},
            "b": {"type": "object", "properties": {"c": {"type": "integer"}}}}}}
    ]}"#;
    static GROUNDS: LazyLock<[Ground; 2]> = LazyLock::new(|| {
        let file = File { name: "s.tools.json".into(), text: TOOLS.into() };
        let mut findings = Vec::new();
        let typed = Typed::read(&[file], &mut findings);
        assert!(findings.is_empty(), "{findings:?}");
        [Ground::new(Typed::default()).unwrap(), Ground::new(typed).unwrap()]
    });
    &GROUNDS
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn it_says_what_plain_cedar_says(
        texts in proptest::collection::vec(policy(), 0..16),
        seed in 0..1000_usize,
    ) {
        check(&texts, seed, &grounds()[0])?;
    }

}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Of many policies about typed tools alone.
    #[test]
    fn of_typed_tools_it_says_what_plain_cedar_says_of_both_questions(
        texts in proptest::collection::vec(typed_policy(), 1..6),
        others in proptest::collection::vec(policy(), 0..4),
        seed in 0..1000_usize,
    ) {
        check(&[texts, others].concat(), seed, &grounds()[1])?;
    }
}

/// A policy that holds for the call of a typed tool, or nearly.
fn typed_policy() -> impl Strategy<Value = String> {
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
fn what_is_generated_is_mostly_of_use() {
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let texts: Vec<_> = (0..300)
        .map(|_| policy().new_tree(&mut runner).unwrap().current())
        .filter(|text| text.contains("context") && text.contains("resource."))
        .collect();
    let valid = valid(&texts, &schema()).policies().count();
    assert!(valid >= 20 && valid * 2 > texts.len(), "{valid} of {}", texts.len());
}

/// The index of a text, with what it needs.
fn with_index(text: &str, test: impl FnOnce(Terms<'_>, &Index)) {
    let schema = schema();
    let vocabulary = Vocabulary::new(&schema, Typed::default()).unwrap();
    let policies: PolicySet = text.parse().unwrap();
    let index = Index::new(&policies.policies().collect::<Vec<_>>(), &vocabulary);
    test(Terms { schema: &schema, vocabulary: &vocabulary }, &index);
}

/// How many policies are asked for each call of a tool, and whether anything but the call is shown
/// to them.
fn asked(terms: Terms<'_>, index: &Index, principal: &Principal, name: &str) -> (usize, bool) {
    let server = "s".parse().unwrap();
    let resource = Resource::Tool { server: &server, name, claims: Claims::default() };
    let (subject, action) = (Subject::Client(principal), Action::CallTool);
    let about = About { subject, action, resource, own: false };
    let known = index.known(terms, Asker::of(&subject), about).unwrap();
    (known.concern().open.len(), known.concern().entities)
}

#[test]
fn what_cannot_matter_is_not_asked() {
    let mut text = String::new();
    for number in 0..500 {
        text.push_str(&format!(
            "permit (principal in Portcullis::Group::\"g{number}\", action, resource)
               when {{ context.session_calls < 5 }};
             permit (principal, action, resource == Portcullis::Tool::\"s/t{number}\")
               when {{ context.session_calls < 5 }};
             permit (principal, action == Portcullis::Action::\"call_tool\", resource)
               when {{ context.session_calls < 5 && principal.name == \"n{number}\" }};
             permit (principal, action == Portcullis::Action::\"call_tool\", resource)
               when {{ resource.name == \"t{number}\" }}
               when {{ context.session_calls < 5 }};\n"
        ));
    }
    with_index(&text, |terms, index| {
        let client = |name: &str, groups| {
            principal(PrincipalKind::Client(name.parse().unwrap()), groups, true)
        };
        let counts = |principal: &Principal, name| asked(terms, index, principal, name).0;
        assert_eq!(counts(&client("a", &[]), "x"), 0);
        assert_eq!(counts(&client("a", &["g1", "g2"]), "x"), 2);
        assert_eq!(counts(&client("a", &["g1"]), "t3"), 3);
        assert_eq!(counts(&client("n7", &["g1"]), "t3"), 4);
        // A shared class has not learnt anything of its first member.
        assert_eq!(counts(&client("a", &["g1"]), "x"), 1);
        assert_eq!(counts(&client("a", &["g1"]), "t4"), 3);
    });
}

#[test]
fn what_needs_no_entities_is_shown_none() {
    let some = principal(PrincipalKind::Anonymous, &[], false);
    for (condition, entities) in [
        ("context.session_calls < 5", false),
        (r#"context.args.hasTag("/x") || context.now < datetime("2027-01-01")"#, false),
        ("context.args.hasTag(principal.name)", true),
        (
            r#"[context.args].contains({c: context}.c.args) && Portcullis::Group::"g" has name"#,
            true,
        ),
    ] {
        let text = format!(
            "permit (principal is Portcullis::Anonymous, action, resource is Portcullis::Tool) when {{ {condition} }};"
        );
        with_index(&text, |terms, index| {
            assert_eq!(asked(terms, index, &some, "t"), (1, entities), "{condition}");
        });
    }
}

#[test]
fn principals_share_nothing_that_a_policy_can_tell_apart() {
    let text = r#"
        permit (principal in Portcullis::Group::"g", action, resource);
        permit (principal == Portcullis::Local::"a", action, resource);
        permit (principal is Portcullis::Client, action, resource)
        when { !principal.verified && resource is Portcullis::Tool && resource.claims.read_only };
    "#;
    let client = || PrincipalKind::Client("a".parse().unwrap());
    let server = "s".parse().unwrap();
    let tool = |read_only| Resource::Tool {
        server: &server,
        name: "t",
        claims: Claims { read_only, ..Claims::default() },
    };
    let table = [
        (principal(client(), &[], true), false, false),
        (principal(client(), &["g"], true), true, true),
        (principal(client(), &[], false), true, false),
        (principal(PrincipalKind::Local { user: "a".into() }, &[], true), true, true),
        (principal(PrincipalKind::Local { user: "b".into() }, &[], true), false, false),
        (principal(PrincipalKind::Anonymous, &[], false), false, false),
    ];
    with_index(text, |terms, index| {
        for _ in 0..2 {
            for (principal, read_only, other) in &table {
                for (resource, expected) in [(tool(true), read_only), (tool(false), other)] {
                    let subject = Subject::Client(principal);
                    let about = About { subject, action: Action::CallTool, resource, own: false };
                    let shown = index.could_allow(terms, Asker::of(&subject), about).unwrap();
                    assert_eq!(shown, *expected, "{principal:?} {resource:?}");
                }
            }
        }
    });
}

/// What is named beside what is asked about is not there, whichever of the two was asked about first.
#[test]
fn a_thing_that_a_condition_names_is_seen_in_its_own_question_alone() {
    let text = r#"
        permit (principal, action, resource);
        forbid (principal, action == Portcullis::Action::"call_tool", resource)
        when { Portcullis::Tool::"s/vip" has claims && Portcullis::Tool::"s/vip".claims.destructive };
    "#;
    let some = principal(PrincipalKind::Anonymous, &[], false);
    let server = "s".parse().unwrap();
    let claims = Claims { destructive: true, ..Claims::default() };
    for names in [["vip", "other"], ["other", "vip"]] {
        with_index(text, |terms, index| {
            for name in names {
                let resource = Resource::Tool { server: &server, name, claims };
                let (subject, action) = (Subject::Client(&some), Action::CallTool);
                let about = About { subject, action, resource, own: false };
                let shown = index.could_allow(terms, Asker::of(&subject), about).unwrap();
                assert_eq!(shown, name != "vip", "{name} of {names:?}");
            }
        });
    }
}

#[test]
fn a_flood_of_names_stays_within_its_bounds() {
    let text = "permit (principal, action, resource) when { context.session_calls < 5 };";
    let some = principal(PrincipalKind::Anonymous, &[], false);
    with_index(text, |terms, index| {
        for number in 0..100 {
            asked(terms, index, &some, &format!("{number}{}", "x".repeat(1 << 20)));
        }
        assert!(index.known.weight() <= index.known.capacity(), "{}", index.known.weight());
        assert!(index.known.len() < 16, "{}", index.known.len());
        assert_eq!(index.classes.len(), 1, "a class has no name in it");
    });
}
