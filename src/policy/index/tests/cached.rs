//! The evaluated policies, the entities that they get, and the cached results.

use super::*;

/// Runs a test with the index of a text.
fn with_index(text: &str, test: impl FnOnce(Terms<'_>, &Index)) {
    let schema = schema();
    let vocabulary = Vocabulary::new(&schema, Typed::default()).unwrap();
    let policies: PolicySet = text.parse().unwrap();
    let index = Index::new(&policies.policies().collect::<Vec<_>>(), &vocabulary);
    test(Terms { schema: &schema, vocabulary: &vocabulary }, &index);
}

/// The number of policies evaluated for each call of a tool, and whether they get anything except
/// the call.
fn evaluated(terms: Terms<'_>, index: &Index, principal: &Principal, name: &str) -> (usize, bool) {
    let server = "s".parse().unwrap();
    let resource = Resource::Tool { server: &server, name, claims: Claims::default() };
    let (subject, action) = (Subject::Client(principal), Action::CallTool);
    let about = About { subject, action, resource, own: false };
    let known = index.evaluation(terms, CachedSubject::of(&subject), about).unwrap();
    (known.residual().open.len(), known.residual().entities)
}

#[test]
fn irrelevant_policies_are_not_evaluated() {
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
        let counts = |principal: &Principal, name| evaluated(terms, index, principal, name).0;
        assert_eq!(counts(&client("a", &[]), "x"), 0);
        assert_eq!(counts(&client("a", &["g1", "g2"]), "x"), 2);
        assert_eq!(counts(&client("a", &["g1"]), "t3"), 3);
        assert_eq!(counts(&client("n7", &["g1"]), "t3"), 4);
        // A shared class has no results of its first member only.
        assert_eq!(counts(&client("a", &["g1"]), "x"), 1);
        assert_eq!(counts(&client("a", &["g1"]), "t4"), 3);
    });
}

#[test]
fn policies_without_entity_access_get_no_entities() {
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
            assert_eq!(evaluated(terms, index, &some, "t"), (1, entities), "{condition}");
        });
    }
}

#[test]
fn distinguishable_principals_share_no_results() {
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
                    let shown =
                        index.could_allow(terms, CachedSubject::of(&subject), about).unwrap();
                    assert_eq!(shown, *expected, "{principal:?} {resource:?}");
                }
            }
        }
    });
}

/// An item in a condition, other than the resource, has no attributes, in either order of requests.
#[test]
fn items_named_in_conditions_have_no_attributes() {
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
                let shown = index.could_allow(terms, CachedSubject::of(&subject), about).unwrap();
                assert_eq!(shown, name != "vip", "{name} of {names:?}");
            }
        });
    }
}

#[test]
fn flood_of_names_does_not_exceed_the_cache() {
    let text = "permit (principal, action, resource) when { context.session_calls < 5 };";
    let some = principal(PrincipalKind::Anonymous, &[], false);
    with_index(text, |terms, index| {
        for number in 0..100 {
            evaluated(terms, index, &some, &format!("{number}{}", "x".repeat(1 << 20)));
        }
        assert!(
            index.evaluations.weight() <= index.evaluations.capacity(),
            "{}",
            index.evaluations.weight()
        );
        assert!(index.evaluations.len() < 16, "{}", index.evaluations.len());
        assert_eq!(index.classes.len(), 1, "a class has no name in it");
    });
}
