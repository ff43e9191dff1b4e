use std::sync::LazyLock;

use super::*;
use portcullis_protocol::refusal::Rule;

fn call(engine: &Engine, principal: &Principal, tool: &str, json: &str) -> Outcome {
    let (server_name, name) = tool.split_once('/').unwrap();
    let server = server(server_name);
    let arguments = args(json);
    engine.decide(&Request {
        subject: Subject::Client(principal),
        action: Action::CallTool,
        resource: Resource::Tool { server: &server, name, claims: Claims::default() },
        args: Some(&arguments),
        written: json.as_bytes(),
        circumstances: circumstances("tools/call"),
    })
}

/// Every action with a resource that it applies to.
fn every_question<'a>(
    principal: &'a Principal,
    server: &'a ServerName,
) -> Vec<(Subject<'a>, Action, Resource<'a>)> {
    let tool = Resource::Tool { server, name: "t", claims: Claims::default() };
    let prompt = Resource::Prompt { server, name: "p" };
    let resource = Resource::Resource { server, uri: "file:///a" };
    let template = Resource::Template { server, uri: "file:///{a}" };
    let (requester, answerer) = (Subject::Client(principal), Subject::Server(server));
    let peer = Resource::Client(principal);
    let site = Resource::Resource { server, uri: "https://example.com/a" };
    vec![
        (requester, Action::Connect, Resource::Proxy),
        (requester, Action::Connect, Resource::Server(server)),
        (requester, Action::CallTool, tool),
        (requester, Action::AccessTask, tool),
        (requester, Action::GetPrompt, prompt),
        (requester, Action::Complete, prompt),
        (requester, Action::Complete, template),
        (requester, Action::ReadResource, resource),
        (requester, Action::ReadResource, site),
        (requester, Action::SubscribeResource, resource),
        (requester, Action::SeeTemplate, template),
        (requester, Action::NotifyServer, Resource::Proxy),
        (requester, Action::NotifyServer, Resource::Server(server)),
        (requester, Action::OtherMethod, Resource::Proxy),
        (requester, Action::OtherMethod, Resource::Server(server)),
        (answerer, Action::Sample, peer),
        (answerer, Action::Elicit, peer),
        (answerer, Action::ListRoots, peer),
        (answerer, Action::NotifyClient, peer),
        (answerer, Action::OtherServerMethod, peer),
        (answerer, Action::Launch, Resource::Program(program())),
        (
            answerer,
            Action::DeliverSecret,
            Resource::Secret {
                holder: Holder::Server(server),
                name: "TOKEN",
                source: "env",
                delivery: DeliveredAs::Env,
                client: None,
            },
        ),
        (answerer, Action::Egress, Resource::Host { name: "example.com", port: 443 }),
        (Subject::Plugin("pii"), Action::Grant, Resource::Grant("log")),
    ]
}

fn program() -> &'static Program {
    static PROGRAM: LazyLock<Program> = LazyLock::new(|| Program {
        runtime: "container",
        name: "example/notes:1".into(),
        digest: Some("sha256:00".into()),
        deviations: vec!["resources.memory".into()],
        signers: vec!["acme".into()],
        attested: vec![scan("acme")],
    });
    &PROGRAM
}

fn scan(by: &str) -> Attested {
    Attested { by: by.into(), of_type: "https://example.com/scan".into() }
}

#[test]
fn actions_of_the_proxy_are_decided_by_their_attributes() {
    let engine = engine(
        r#"
        @id("hardened")
        permit (principal == Portcullis::Server::"notes", action == Portcullis::Action::"launch", resource)
        when { resource.runtime == "container" && resource has digest && resource.digest == "sha256:00" }
        unless { resource.deviations.contains("hardening.privileged") };
        @id("signed")
        permit (principal == Portcullis::Server::"other", action == Portcullis::Action::"launch", resource)
        when { resource.signed && resource.signers == ["acme"] && resource.attested.contains({ by: "acme", type: "https://example.com/scan" }) };
        @id("by-day")
        permit (principal, action == Portcullis::Action::"deliver_secret", resource in Portcullis::Server::"notes")
        when { resource.source == "env" && !resource.header && context.now.toTime() > duration("8h") };
        @id("in-memory")
        permit (principal, action == Portcullis::Action::"deliver_secret", resource in Portcullis::Server::"notes")
        when { resource.source == "file" && resource.delivery == "file" };
        @id("alices-own")
        permit (principal, action == Portcullis::Action::"deliver_secret", resource in Portcullis::Server::"other")
        when { resource has client && resource.client == "alice" && resource.delivery == "env" };
        @id("https")
        permit (principal, action == Portcullis::Action::"egress", resource)
        when { resource.name like "*.example.com" && resource.port == 443 };
        @id("log")
        permit (principal == Portcullis::Plugin::"pii", action == Portcullis::Action::"grant", resource == Portcullis::Grant::"log");
        "#,
    );
    let decide = |subject, action, resource| {
        let outcome = engine.decide(&Request {
            subject,
            action,
            resource,
            args: None,
            written: b"",
            circumstances: Circumstances::own("2026-11-21T08:30:00Z".parse().unwrap()),
        });
        assert_eq!(outcome.errors, []);
        ids(&outcome).join(" ")
    };
    let (notes, other) = (server("notes"), server("other"));
    let weak = Program { deviations: vec!["hardening.privileged".into()], ..program().clone() };
    let unknown = Program { digest: None, ..program().clone() };
    let unsigned = Program { signers: vec![], ..program().clone() };
    let elsewhere = Program { signers: vec!["acme".into(), "evil".into()], ..program().clone() };
    let unattested = Program { attested: vec![], ..program().clone() };
    let attested_by_another = Program { attested: vec![scan("evil")], ..program().clone() };
    for (subject, program, rules) in [
        (&notes, program(), "hardened"),
        (&notes, &weak, ""),
        (&notes, &unknown, ""),
        (&other, program(), "signed"),
        (&other, &unsigned, ""),
        (&other, &elsewhere, ""),
        (&other, &unattested, ""),
        (&other, &attested_by_another, ""),
    ] {
        let resource = Resource::Program(program);
        assert_eq!(
            decide(Subject::Server(subject), Action::Launch, resource),
            rules,
            "{program:?}"
        );
    }
    for (server, source, delivery, client, rules) in [
        (&notes, "env", DeliveredAs::Env, None, "by-day"),
        (&notes, "file", DeliveredAs::Env, None, ""),
        (&notes, "file", DeliveredAs::File, None, "in-memory"),
        (&notes, "file", DeliveredAs::File, Some("alice"), "in-memory"),
        (&notes, "env", DeliveredAs::Header, None, ""),
        (&other, "env", DeliveredAs::Env, None, ""),
        (&other, "env", DeliveredAs::Env, Some("alice"), "alices-own"),
        (&other, "env", DeliveredAs::Env, Some("bob"), ""),
        (&other, "env", DeliveredAs::File, Some("alice"), ""),
    ] {
        let holder = Holder::Server(server);
        let resource = Resource::Secret { holder, name: "TOKEN", source, delivery, client };
        assert_eq!(decide(Subject::Server(server), Action::DeliverSecret, resource), rules);
    }
    for (name, port, rules) in
        [("api.example.com", 443, "https"), ("api.example.com", 80, ""), ("example.org", 443, "")]
    {
        let resource = Resource::Host { name, port };
        assert_eq!(
            decide(Subject::Server(&notes), Action::Egress, resource),
            rules,
            "{name}:{port}"
        );
    }
    for (plugin, grant, rules) in [("pii", "log", "log"), ("pii", "http", ""), ("other", "log", "")]
    {
        let resource = Resource::Grant(grant);
        assert_eq!(decide(Subject::Plugin(plugin), Action::Grant, resource), rules);
    }
}

#[test]
fn paths_urls_and_labels_are_matched_after_normalization() {
    let engine = engine(
        r#"
        @id("srv")
        permit (principal, action, resource == Portcullis::Tool::"fs/read")
        when { context.paths.hasTag("/path") && context.paths.getTag("/path") like "/srv/*" };
        @id("api")
        permit (principal, action, resource == Portcullis::Tool::"web/get")
        when {
          context.urls.hasTag("/url") && context.urls.getTag("/url").host == "api.example.com" &&
          context.urls.getTag("/url").port == 443 && context.urls.getTag("/url").verbatim
        };
        @id("srv-files")
        permit (principal, action == Portcullis::Action::"read_resource", resource)
        when { resource has path && resource.path like "/srv/*" };
        @id("site")
        permit (principal, action == Portcullis::Action::"read_resource", resource)
        when { resource has url && resource.url.host == "example.com" };
        @id("clean")
        permit (principal, action, resource == Portcullis::Tool::"web/post")
        unless { context.labels.contains("tainted") };
        "#,
    );
    let ann = client("ann", &[]);
    for (tool, json, rules) in [
        ("fs/read", r#"{"path": "/srv/a"}"#, "srv"),
        ("fs/read", r#"{"path": "file:///srv/x/a%20b"}"#, "srv"),
        ("fs/read", r#"{"path": "file:///srv/x/../a"}"#, ""),
        ("fs/read", r#"{"path": "file:///srv/a?/../../etc"}"#, ""),
        ("fs/read", r#"{"path": "/srv/../etc/passwd"}"#, ""),
        ("fs/read", r#"{"path": "/srv/%2e%2e/etc"}"#, "srv"),
        ("fs/read", r#"{"path": "file:///srv/%2e%2e/etc"}"#, ""),
        ("fs/read", r#"{"path": "srv/a"}"#, ""),
        ("fs/read", r#"{"path": 1}"#, ""),
        ("fs/read", r#"{"path": ["/srv/a"]}"#, ""),
        ("web/get", r#"{"url": "https://api.example.com/x"}"#, "api"),
        ("web/get", r#"{"url": "https://api.example.com@evil.example/x"}"#, ""),
        ("web/get", r#"{"url": "https://api.example.com:8443/x"}"#, ""),
        ("web/get", r#"{"url": "https:\\api.example.com/x"}"#, ""),
        ("web/get", r#"{"url": "api.example.com"}"#, ""),
        ("web/post", "{}", "clean"),
    ] {
        assert_eq!(ids(&call(&engine, &ann, tool, json)).join(" "), rules, "{tool} {json}");
    }
    let notes = server("notes");
    for (uri, rules) in [
        ("file:///srv/a", "srv-files"),
        ("file:///srv/../etc", ""),
        ("file:///srv/a?/../../etc", ""),
        ("file:///srv/a#b", ""),
        ("https://EXAMPLE.com/a", "site"),
        ("https://example.org/a", ""),
        ("note://1", ""),
    ] {
        let outcome = engine.decide(&Request {
            subject: Subject::Client(&ann),
            action: Action::ReadResource,
            resource: Resource::Resource { server: &notes, uri },
            args: None,
            written: b"",
            circumstances: circumstances("resources/read"),
        });
        assert_eq!(ids(&outcome).join(" "), rules, "{uri}");
    }
    let tainted = BTreeSet::from(["tainted".to_owned()]);
    let web = server("web");
    let outcome = engine.decide(&Request {
        subject: Subject::Client(&ann),
        action: Action::CallTool,
        resource: Resource::Tool { server: &web, name: "post", claims: Claims::default() },
        args: None,
        written: b"",
        circumstances: Circumstances { labels: &tainted, ..circumstances("tools/call") },
    });
    assert!(!outcome.allowed);
}

#[test]
fn every_request_fits_the_schema() {
    let (schema, warnings) = Schema::from_cedarschema_str(SCHEMA).unwrap();
    assert_eq!(warnings.map(|warning| warning.to_string()).collect::<Vec<_>>(), [""; 0]);
    let vocabulary = Vocabulary::new(&schema, Typed::default()).unwrap();
    let server = server("notes");
    let arguments = args(r#"{"a": [1, {"b": null}], "c": "x"}"#);
    for principal in [client("ci", &["bots", "eu"]), local("ann"), anonymous()] {
        let questions = every_question(&principal, &server);
        for action in Action::ALL {
            assert!(questions.iter().any(|(_, requested, _)| requested == action), "{action:?}");
        }
        for (subject, action, resource) in questions {
            let request = Request {
                subject,
                action,
                resource,
                args: Some(&arguments),
                written: b"",
                circumstances: circumstances("m"),
            };
            let (question, entities) = whole(&vocabulary, &schema, About::of(&request), &request);
            let context = question.context().unwrap().clone();
            context.validate(&schema, question.action().unwrap()).unwrap();
            Entities::from_entities(entities.iter().cloned(), Some(&schema))
                .unwrap_or_else(|error| panic!("{action:?}: {error}"));
            let base = vocabulary.base(About::of(&request), &schema).unwrap();
            let entities = vocabulary.entities(&base, &resource).unwrap();
            vocabulary.open_question(&base, &resource, &entities, &schema).unwrap();
        }
    }
}

#[test]
fn requests_outside_the_schema_are_refused() {
    let engine = engine("permit (principal, action, resource);");
    let (server, principal) = (server("notes"), anonymous());
    for (subject, action, resource) in [
        (Subject::Client(&principal), Action::CallTool, Resource::Server(&server)),
        (Subject::Client(&principal), Action::Sample, Resource::Client(&principal)),
        (Subject::Server(&server), Action::Connect, Resource::Proxy),
    ] {
        let request = Request {
            subject,
            action,
            resource,
            args: None,
            written: b"",
            circumstances: circumstances("m"),
        };
        let outcome = engine.decide(&request);
        assert_eq!(outcome.explain(), "the request does not fit the policy schema", "{action:?}");
        assert!(!outcome.allowed && !engine.could_allow(&subject, action, &resource));
    }
}

#[test]
fn empty_policies_allow_and_show_nothing() {
    let empty = try_engine(&[]).unwrap();
    let comments = engine("// Nothing here.\n");
    let server = server("notes");
    for engine in [empty, comments] {
        for principal in [client("ci", &["bots"]), local("ann"), anonymous()] {
            for (subject, action, resource) in every_question(&principal, &server) {
                let outcome = engine.decide(&Request {
                    subject,
                    action,
                    resource,
                    args: None,
                    written: b"",
                    circumstances: circumstances("m"),
                });
                assert!(!outcome.allowed && outcome.rules.is_empty(), "{action:?}");
                assert_eq!(outcome.explain(), "no policy permits it");
                assert!(!engine.could_allow(&subject, action, &resource), "{action:?}");
            }
        }
    }
}

#[test]
fn every_action_can_be_permitted_by_its_group() {
    let engine = engine(
        r#"permit (principal, action in Portcullis::Action::"from_client", resource);
           permit (principal, action in Portcullis::Action::"from_server", resource);
           permit (principal, action in Portcullis::Action::"from_proxy", resource);"#,
    );
    let (server, principal) = (server("notes"), client("ci", &[]));
    for (subject, action, resource) in every_question(&principal, &server) {
        let outcome = engine.decide(&Request {
            subject,
            action,
            resource,
            args: None,
            written: b"",
            circumstances: circumstances("m"),
        });
        assert!(outcome.allowed, "{action:?}");
        assert!(engine.could_allow(&subject, action, &resource), "{action:?}");
    }
}

#[test]
fn calls_are_decided_by_the_table() {
    let engine = engine(
        r#"
@id("bots-read")
permit (principal in Portcullis::Group::"bots", action == Portcullis::Action::"call_tool",
        resource == Portcullis::Tool::"notes/read_note");
@id("ann-writes-in-srv")
permit (principal == Portcullis::Local::"ann", action == Portcullis::Action::"call_tool",
        resource in Portcullis::Server::"fs")
when { context.args.hasTag("/path") && context.args.getTag("/path") like "/srv/*" };
@id("known-arguments-only")
forbid (principal, action == Portcullis::Action::"call_tool", resource in Portcullis::Server::"fs")
unless { ["path", "text", "force"].containsAll(context.args.keys) };
@id("no-force") @reason("force is not for agents")
forbid (principal, action, resource)
when { context.args.hasTag("/force") && context.args.getTag("/force") != "false" };
@id("office")
permit (principal is Portcullis::Anonymous, action == Portcullis::Action::"call_tool", resource)
when { context has source_ip && context.source_ip.isInRange(ip("10.0.0.0/8"))
       && context.now < datetime("2027-01-01") && context.transport == "http"
       && context.session_calls < 10 && context.method == "tools/call"
       && context.revision == "2025-11-25" && context.args.leaves <= 1 && context.args.size < 9 };
"#,
    );
    let (bot, ann, nobody) = (client("ci", &["eu", "bots"]), local("ann"), anonymous());
    // A client with the user's name is not the user.
    let impostor = client("ann", &[]);
    for (principal, tool, json, allowed, rules) in [
        (&bot, "notes/read_note", "{}", true, &["bots-read"] as &[_]),
        (&bot, "notes/Read_note", "{}", false, &[]),
        (&bot, "notes/read_note/x", "{}", false, &[]),
        (&bot, "notes2/read_note", "{}", false, &[]),
        (&bot, "notes/delete_note", "{}", false, &[]),
        (&bot, "notes/read_note", r#"{"force": true}"#, false, &["no-force"]),
        (&bot, "notes/read_note", r#"{"force": "true"}"#, false, &["no-force"]),
        (&bot, "notes/read_note", r#"{"force": 1.0}"#, false, &["no-force"]),
        (&bot, "notes/read_note", r#"{"force": false}"#, true, &["bots-read"]),
        (&ann, "fs/write", r#"{"path": "/srv/a"}"#, true, &["ann-writes-in-srv"]),
        (&ann, "fs/write", r#"{"path": "/etc/a"}"#, false, &[]),
        (&ann, "fs/write", r#"{"path": ["/srv/a"]}"#, false, &[]),
        (&ann, "fs/write", r#"{"path": "/srv/a", "mode": 1}"#, false, &["known-arguments-only"]),
        (&ann, "fs/write", r#"{"path": "/srv/a", "x": []}"#, false, &["known-arguments-only"]),
        (
            &ann,
            "fs/write",
            r#"{"path": "/srv/a", "x": 1, "force": null}"#,
            false,
            &["known-arguments-only", "no-force"],
        ),
        (&impostor, "fs/write", r#"{"path": "/srv/a"}"#, false, &[]),
        (&nobody, "web/get", r#"{"q": "12345678"}"#, true, &["office"]),
        (&nobody, "web/get", r#"{"q": "123456789"}"#, false, &[]),
        (&nobody, "web/get", r#"{"q": [1, 2]}"#, false, &[]),
    ] {
        let outcome = call(&engine, principal, tool, json);
        assert_eq!(outcome.allowed, allowed, "{} {tool} {json}", principal.name());
        assert_eq!(ids(&outcome), rules, "{} {tool} {json}", principal.name());
        assert_eq!(outcome.errors, []);
    }
}

#[test]
fn rule_has_file_line_and_reason() {
    let engine = try_engine(&[
        ("a.cedar", "// a comment\n\npermit (principal, action, resource);\n"),
        (
            "b.cedar",
            "\n\n@id(\"no\")\n@reason(\"not here\")\nforbid (principal, action, resource)\nwhen { context.args.hasTag(\"/x\") };\n",
        ),
    ])
    .unwrap();
    let allowed = call(&engine, &anonymous(), "s/t", "{}");
    assert_eq!(
        allowed.rules,
        [Rule {
            id: "policies/a.cedar:3".into(),
            file: Some("policies/a.cedar".into()),
            line: Some(3),
            reason: None,
            obligations: Default::default(),
        }]
    );
    assert_eq!(allowed.explain(), "permitted by `policies/a.cedar:3`");
    let refused = call(&engine, &anonymous(), "s/t", r#"{"x": 1}"#);
    assert_eq!(
        refused.rules,
        [Rule {
            id: "no".into(),
            file: Some("policies/b.cedar".into()),
            line: Some(3),
            reason: Some("not here".into()),
            obligations: Default::default(),
        }]
    );
    assert_eq!(refused.explain(), "forbidden by `no`");
}

#[test]
fn policy_error_refuses_the_call() {
    // Integers overflow only at run time: one of the few failures that validation leaves.
    let overflow = "when { context.session_calls + 9223372036854775807 > 0 };";
    for (effect, scope) in [("forbid", "principal"), ("permit", "principal")] {
        let engine = engine(&format!(
            r#"@id("all") permit (principal, action, resource);
               @id("fails") {effect} ({scope}, action, resource) {overflow}"#
        ));
        let outcome = call(&engine, &anonymous(), "s/t", "{}");
        assert!(!outcome.allowed);
        assert_eq!(ids(&outcome), ["fails"]);
        assert_eq!(outcome.explain(), "policy `fails` failed: an integer overflows");
    }
}

#[test]
fn explanation_names_both_forbid_and_error() {
    let engine = engine(
        r#"@id("no") forbid (principal, action, resource);
           @id("fails") permit (principal, action, resource)
           when { context.session_calls + 9223372036854775807 > 0 };"#,
    );
    let outcome = call(&engine, &anonymous(), "s/t", "{}");
    assert!(!outcome.allowed);
    assert_eq!(ids(&outcome), ["no"]);
    assert_eq!(outcome.errors[0].rule.as_ref().unwrap().id, "fails");
}

#[test]
fn too_many_arguments_are_refused_if_a_policy_reads_them() {
    let many = format!(r#"{{"a": [{}]}}"#, vec!["1"; arguments::MAX_LEAVES + 1].join(","));
    let enough = format!(r#"{{"a": [{}]}}"#, vec!["1"; arguments::MAX_LEAVES].join(","));
    let looks = engine(
        r#"permit (principal, action, resource);
           forbid (principal, action, resource) when { context.args.hasTag("/a/9999") };"#,
    );
    let outcome = call(&looks, &anonymous(), "s/t", &many);
    assert!(!outcome.allowed);
    assert!(outcome.explain().contains("more than 10000 values"), "{}", outcome.explain());
    assert!(!call(&looks, &anonymous(), "s/t", &enough).allowed);
    assert_eq!(call(&looks, &anonymous(), "s/t", &enough).errors, []);

    let looks_away = engine("permit (principal, action, resource);");
    assert!(call(&looks_away, &anonymous(), "s/t", &many).allowed);
}

#[test]
fn ambiguous_file_urls_are_refused_if_a_policy_reads_paths() {
    let json = r#"{"path": "file:///srv/a?/../../../srv/.env"}"#;
    let reads = engine(
        r#"permit (principal, action, resource);
           forbid (principal, action, resource) when {
             context.paths.hasTag("/path") && context.paths.getTag("/path") like "*/.env"
           };"#,
    );
    let outcome = call(&reads, &anonymous(), "s/t", json);
    assert!(!outcome.allowed);
    assert!(outcome.explain().contains("more than one path"), "{}", outcome.explain());
    assert!(call(&reads, &anonymous(), "s/t", r#"{"path": "file:///srv/a"}"#).allowed);

    let looks_away = engine(
        r#"permit (principal, action, resource);
           forbid (principal, action, resource) when { context.args.hasTag("/other") };"#,
    );
    assert!(call(&looks_away, &anonymous(), "s/t", json).allowed);

    let reads = engine(
        r#"permit (principal, action, resource);
           forbid (principal, action, resource is Portcullis::Resource)
           when { resource has path && resource.path like "*/.env" };"#,
    );
    let (notes, anonymous) = (server("notes"), anonymous());
    for (uri, allowed) in [("file:///srv/a", true), ("file:///srv/a?/../../../srv/.env", false)] {
        let outcome = reads.decide(&Request {
            subject: Subject::Client(&anonymous),
            action: Action::ReadResource,
            resource: Resource::Resource { server: &notes, uri },
            args: None,
            written: b"",
            circumstances: circumstances("resources/read"),
        });
        assert_eq!(outcome.allowed, allowed, "{}", outcome.explain());
    }
}

#[test]
fn unrepresentable_numbers_are_refused_if_a_policy_reads_arguments() {
    let long = r#"{"id": 12345678901234567890123}"#;
    let looks = engine(
        r#"permit (principal, action, resource);
           forbid (principal, action, resource) when { context.args.hasTag("/other") };"#,
    );
    let outcome = call(&looks, &anonymous(), "s/t", long);
    assert!(!outcome.allowed);
    assert!(outcome.explain().contains("more digits"), "{}", outcome.explain());
    assert!(call(&looks, &anonymous(), "s/t", r#"{"id": 12345678901234567890}"#).allowed);

    let looks_away = engine("permit (principal, action, resource);");
    assert!(call(&looks_away, &anonymous(), "s/t", long).allowed);
}

#[test]
fn use_of_the_whole_context_includes_arguments() {
    // No policy names `args` here, but it counts.
    let engine = engine(
        r#"permit (principal, action, resource);
           @id("whole") forbid (principal, action, resource)
           when { [context].contains(context) && {c: context}.c.args.hasTag("/x") };"#,
    );
    assert_eq!(ids(&call(&engine, &anonymous(), "s/t", r#"{"x": 1}"#)), ["whole"]);
}

#[test]
fn hostile_text_is_only_data() {
    let engine = engine(
        r#"permit (principal, action, resource);
           @id("slash") forbid (principal, action, resource) when { context.args.hasTag("/a~1b/~0") };
           @id("star") forbid (principal, action, resource)
           when { context.args.hasTag("/s") && context.args.getTag("/s") like "a\*b" };"#,
    );
    let huge = "x".repeat(3 << 20);
    for (json, rules) in [
        (r#"{"a/b": {"~": 1}}"#.to_owned(), &["slash"] as &[_]),
        (r#"{"a": {"b": {"~": 1}}}"#.to_owned(), &["policies/p.cedar:1"]),
        (r#"{"s": "a*b"}"#.to_owned(), &["star"]),
        (r#"{"s": "aXb"}"#.to_owned(), &["policies/p.cedar:1"]),
        (r#"{"s": "\u0000\"\\\u202e${x}"}"#.to_owned(), &["policies/p.cedar:1"]),
        (format!(r#"{{"{huge}": "{huge}"}}"#), &["policies/p.cedar:1"]),
    ] {
        let outcome = call(&engine, &anonymous(), "s/\u{202e}\"); permit (", &json);
        assert_eq!(ids(&outcome), rules, "{}", &json[..json.len().min(60)]);
    }
}
