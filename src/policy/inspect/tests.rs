//! The inspector predicts exactly the engine's decision. If parts of the request are unknown, it
//! never contradicts it.

use std::{collections::BTreeMap, fs};

use jiff::Timestamp;
use proptest::{collection::vec, prelude::*, sample::select};
use serde_json::{Map, Value, json};
use tempfile::TempDir;

use super::{PolicyResult, Unknown, Verdict};
use crate::{Action, Circumstances, Engine, Request, Resource, Subject};
use portcullis_protocol::claims::Claims;
use portcullis_protocol::{exchange::Transport, identity::Principal, names::ServerName};

const CONDITIONS: &[&str] = &[
    "principal.verified",
    "principal in Portcullis::Group::\"staff\"",
    "resource.claims.destructive",
    "resource in Portcullis::Server::\"notes\"",
    "context.args.hasTag(\"/a\")",
    "context.args.hasTag(\"/a\") && context.args.getTag(\"/a\") == \"x\"",
    "context.args.hasTag(\"/a\") && context.args.getTag(\"/a\") like \"x*\"",
    "context.args.leaves > 1",
    "Portcullis::Args::\"args\".hasTag(\"/a\")",
    "Portcullis::Paths::\"paths\".hasTag(\"/b\") && context.session_calls < 3",
    "Portcullis::Tool::\"notes/a\" has claims && Portcullis::Tool::\"notes/a\".claims.read_only",
    "context.args.leaves * 9223372036854775807 > 1",
    "context.session_calls + 9223372036854775807 > 3",
    "context.session_calls < 3",
    "context.paths.hasTag(\"/a\")",
    "context.labels.contains(\"pii\")",
    "(if context.args.hasTag(\"/a\") then principal.verified else context.session_calls < 3)",
    "context has source_ip",
    "context.transport == \"http\"",
];

fn policies() -> impl Strategy<Value = String> {
    let condition = select(CONDITIONS).prop_map(str::to_owned);
    let condition = condition.prop_recursive(3, 8, 3, |inner| {
        prop_oneof![
            vec(inner.clone(), 2..4).prop_map(|all| format!("({})", all.join(" && "))),
            vec(inner.clone(), 2..4).prop_map(|all| format!("({})", all.join(" || "))),
            inner.prop_map(|one| format!("!({one})")),
        ]
    });
    let scope = select::<&str>(&[
        "principal, ACTION, resource is Portcullis::Tool",
        "principal in Portcullis::Group::\"staff\", ACTION, resource",
        "principal, ACTION, resource == Portcullis::Tool::\"notes/a\"",
    ] as &[&str]);
    let clause = prop_oneof![
        4 => condition.clone().prop_map(|condition| format!("when {{ {condition} }}")),
        2 => condition.prop_map(|condition| format!("unless {{ {condition} }}")),
        1 => Just(String::new()),
    ];
    let policy = (any::<bool>(), scope, clause).prop_map(move |(forbids, scope, clause)| {
        let effect = if forbids { "forbid" } else { "permit" };
        // Only tools have claims, and only calls have no other resources.
        let action = "action == Portcullis::Action::\"call_tool\"";
        format!("{effect} ({}) {clause};", scope.replace("ACTION", action))
    });
    vec(policy, 0..5).prop_map(|all| all.join("\n"))
}

fn engine(policies: &str) -> Option<Engine> {
    let folder = TempDir::new().unwrap();
    fs::write(folder.path().join("p.cedar"), policies).unwrap();
    Engine::load(&["p.cedar".into()], folder.path()).ok()
}

fn ask<T>(
    principal: &Principal,
    args: &Map<String, Value>,
    session_calls: u64,
    claims: Claims,
    ask: impl FnOnce(&Request<'_>) -> T,
) -> T {
    let server: ServerName = "notes".parse().unwrap();
    let written = serde_json::to_vec(args).unwrap();
    let labels = Default::default();
    ask(&Request {
        subject: Subject::Client(principal),
        action: Action::CallTool,
        resource: Resource::Tool { server: &server, name: "a", claims },
        args: Some(args),
        written: &written,
        circumstances: Circumstances {
            method: "tools/call",
            transport: Some(Transport::Http),
            revision: None,
            now: Timestamp::UNIX_EPOCH,
            source_ip: None,
            session_calls,
            labels: &labels,
        },
    })
}

fn all_args() -> [Value; 4] {
    [json!({}), json!({"a": "x"}), json!({"a": "xy", "b": 1}), json!({"b": "z"})]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]

    #[test]
    fn inspection_agrees_with_the_decision(policies in policies(), staff: bool, calls in 0_u64..5) {
        let Some(engine) = engine(&policies) else {
            panic!("these do not validate:\n{policies}");
        };
        let groups = if staff { vec!["staff".parse().unwrap()] } else { Vec::new() };
        let principal = Principal::client("cy".parse().unwrap(), groups);
        let mut inspector = engine.inspect();
        for args in all_args() {
            let args = args.as_object().unwrap();
            ask(&principal, args, calls, Claims::default(), |request| {
                let decided = engine.decide(request);
                let verdict = if decided.allowed { Verdict::Allowed } else { Verdict::Refused };
                let judged = inspector.judge(request, Unknown::Nothing);
                prop_assert_eq!(judged.verdict, verdict, "{}", &policies);
                let explained = inspector.explain(request, Unknown::Nothing, &BTreeMap::new());
                prop_assert_eq!(explained.verdict, verdict, "{}", &policies);
                let harmless = Claims { destructive: false, ..Claims::default() };
                let other = ask(&principal, args, calls, harmless, |request| {
                    inspector.judge(request, Unknown::Claims).verdict
                });
                prop_assert!(
                    other == verdict || other == Verdict::Unknown,
                    "other claims: {other:?}, decided {verdict:?}:\n{}", &policies
                );
                let calls_unknown =
                    Unknown::Of { transport: false, source_ip: false, session_calls: true };
                let other = ask(&principal, args, 4 - calls, Claims::default(), |request| {
                    inspector.judge(request, calls_unknown).verdict
                });
                prop_assert!(
                    other == verdict || other == Verdict::Unknown,
                    "other calls: {other:?}, decided {verdict:?}:\n{}", &policies
                );
                for unknown in [Unknown::Arguments, Unknown::Circumstances, Unknown::Claims] {
                    let judged = inspector.judge(request, unknown).verdict;
                    prop_assert!(
                        judged == verdict || judged == Verdict::Unknown,
                        "{unknown:?}: {judged:?}, decided {verdict:?}:\n{}", &policies
                    );
                }
                Ok(())
            })?;
        }
    }
}

#[test]
fn irrelevant_unknown_values_do_not_prevent_a_verdict() {
    let call = "action == Portcullis::Action::\"call_tool\", resource";
    for (policies, verdict) in [
        (format!("permit (principal, {call});"), Verdict::Allowed),
        (
            format!("permit (principal, {call}) when {{ context.args.leaves < 3 }};"),
            Verdict::Unknown,
        ),
        (
            format!(
                "permit (principal, {call}) when {{ context.args.leaves < 3 || principal.verified }};"
            ),
            Verdict::Allowed,
        ),
        (
            format!(
                "permit (principal, {call}) when {{ principal.verified || context.args.leaves < 3 }};"
            ),
            Verdict::Allowed,
        ),
        (
            format!(
                "permit (principal, {call});
                 forbid (principal, {call}) when {{ !principal.verified && context.args.leaves > 3 }};"
            ),
            Verdict::Allowed,
        ),
        (
            format!(
                "permit (principal, {call}) when {{ context.args.leaves < 3 }};
                 forbid (principal, {call}) when {{ principal.verified }};"
            ),
            Verdict::Refused,
        ),
        (
            format!("@mode(\"shadow\") forbid (principal, {call});\npermit (principal, {call});"),
            Verdict::Allowed,
        ),
    ] {
        let engine = engine(&policies).unwrap();
        let principal = Principal::client("cy".parse().unwrap(), Vec::new());
        let judged = ask(&principal, &Map::new(), 0, Claims::default(), |request| {
            engine.inspect().judge(request, Unknown::Arguments)
        });
        assert_eq!(judged.verdict, verdict, "{policies}");
    }
}

#[test]
fn failed_condition_is_shown_with_its_values() {
    let engine = engine(
        "@id(\"titles\") permit (principal, action == Portcullis::Action::\"call_tool\", resource)
         when { principal.verified && context.args.hasTag(\"/a\")
           && context.args.getTag(\"/a\") like \"bot: *\" }
         unless { context.session_calls > 100 };",
    )
    .unwrap();
    let principal = Principal::client("cy".parse().unwrap(), Vec::new());
    let explain = |args: Value, unknown| {
        ask(&principal, args.as_object().unwrap(), 0, Claims::default(), |request| {
            let shape = BTreeMap::from([("/a".to_owned(), "string".into())]);
            engine.inspect().explain(request, unknown, &shape)
        })
    };
    let blamed = |args, unknown| match explain(args, unknown).policies.remove(0).standing {
        PolicyResult::Unmet { condition } | PolicyResult::Unknown { condition } => {
            let seen = condition.values.into_iter().map(|seen| {
                format!("{} {}", seen.what, seen.value.or(seen.absent).unwrap_or_default())
            });
            (condition.text, condition.line.unwrap(), seen.collect::<Vec<_>>().join("; "))
        }
        other => panic!("{other:?}"),
    };
    assert_eq!(
        blamed(json!({"a": "x"}), Unknown::Nothing),
        (
            "context.args.getTag(\"/a\") like \"bot: *\"".to_owned(),
            3,
            "context.args.getTag(\"/a\") \"x\"".to_owned()
        )
    );
    assert_eq!(
        blamed(json!({}), Unknown::Nothing),
        (
            "context.args.hasTag(\"/a\")".to_owned(),
            2,
            "context.args.getTag(\"/a\") not there".to_owned()
        )
    );
    assert_eq!(
        blamed(json!({}), Unknown::Arguments).2,
        "context.args.getTag(\"/a\") string, not kept"
    );
}
