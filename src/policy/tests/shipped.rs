//! The policies that are shipped: they load without a warning and decide as they say.

use std::path::Path;

use super::*;

fn load(folder: &str) -> Engine {
    let base = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
    let engine = Engine::load(&["policies".into()], &base).unwrap();
    assert!(engine.status().borrow().warnings.is_empty(), "{:?}", engine.status().borrow());
    engine
}

fn ask(engine: &Engine, principal: &Principal, action: Action, resource: Resource<'_>) -> Outcome {
    engine.decide(&Request {
        subject: Subject::Client(principal),
        action,
        resource,
        args: None,
        written: b"",
        circumstances: circumstances("m"),
    })
}

/// Claims of (read only, destructive, idempotent, open world).
fn claims(read_only: bool, destructive: bool, idempotent: bool, open_world: bool) -> Claims {
    Claims { read_only, destructive, idempotent, open_world, by: Claimant::Server }
}

#[test]
fn the_quickstart() {
    let engine = load("examples/quickstart");
    let (notes, web) = (server("notes"), server("web"));
    let (reads, adds, deletes) = (
        claims(true, false, false, false),
        claims(false, false, true, false),
        claims(false, true, false, false),
    );
    for principal in [client("ci", &[]), local("ann"), anonymous()] {
        for (server, name, claims, rules) in [
            (&notes, "list_notes", reads, &["notes-may-be-read-and-added"] as &[_]),
            (&notes, "read_note", reads, &["notes-may-be-read-and-added"]),
            (&notes, "add_note", adds, &["notes-may-be-read-and-added"]),
            (&notes, "delete_note", deletes, &["notes-are-not-destroyed"]),
            // The server lies.
            (&notes, "delete_note", reads, &[]),
            (&notes, "add_note", deletes, &["notes-are-not-destroyed"]),
            (&web, "list_notes", reads, &[]),
        ] {
            let resource = Resource::Tool { server, name, claims };
            let outcome = ask(&engine, &principal, Action::CallTool, resource);
            assert_eq!(ids(&outcome), rules, "{server}/{name}");
        }
        let resource = Resource::Resource { server: &notes, uri: "notes://note/x" };
        assert!(ask(&engine, &principal, Action::ReadResource, resource).allowed);
        assert!(ask(&engine, &principal, Action::Connect, Resource::Proxy).allowed);
        assert!(!ask(&engine, &principal, Action::OtherMethod, Resource::Proxy).allowed);
    }
}

#[test]
fn the_starter_set() {
    let engine = load("");
    let web = server("web");
    let (reader, operator, stranger) =
        (client("a", &["readers"]), client("b", &["readers", "operators"]), client("c", &[]));
    let tool = |claims| Resource::Tool { server: &web, name: "t", claims };
    let uri = |uri| Resource::Resource { server: &web, uri };
    let reads = claims(true, false, false, false);
    let destroys = claims(true, true, false, false);
    for (principal, action, resource, allowed) in [
        (&reader, Action::Connect, Resource::Proxy, true),
        (&anonymous(), Action::Connect, Resource::Proxy, false),
        (&reader, Action::CallTool, tool(reads), true),
        (&reader, Action::CallTool, tool(Claims::default()), false),
        (&reader, Action::CallTool, tool(destroys), false),
        (&operator, Action::CallTool, tool(destroys), true),
        (&stranger, Action::CallTool, tool(reads), false),
        (&local("ann"), Action::CallTool, tool(Claims::default()), true),
        (&reader, Action::ReadResource, uri("file:///srv/a"), true),
        (&reader, Action::ReadResource, uri("file:///srv/../etc/passwd"), false),
        (&reader, Action::ReadResource, uri("file:///srv/.%2E/etc/passwd"), false),
        (&reader, Action::ReadResource, uri("file:///srv\\..\\etc"), false),
        (&anonymous(), Action::ReadResource, uri("file:///srv/a"), false),
    ] {
        let outcome = ask(&engine, principal, action, resource);
        assert_eq!(outcome.allowed, allowed, "{} {resource:?}", principal.name());
    }
    let peer = Resource::Client(&reader);
    for (action, json, allowed) in [
        (Action::NotifyClient, "{}", true),
        (Action::Elicit, "{}", true),
        (Action::Elicit, r#"{"mode": "form"}"#, true),
        (Action::Elicit, r#"{"mode": "url"}"#, false),
        (Action::Sample, "{}", false),
        (Action::ListRoots, "{}", false),
    ] {
        let arguments = args(json);
        let outcome = engine.decide(&Request {
            subject: Subject::Server(&web),
            action,
            resource: peer,
            args: Some(&arguments),
            written: json.as_bytes(),
            circumstances: circumstances("m"),
        });
        assert_eq!(outcome.allowed, allowed, "{action:?} {json}");
    }
}

#[test]
fn the_examples_of_the_docs_hold() {
    let docs = include_str!("../../../docs/policies.md");
    let examples: Vec<_> =
        docs.split("```cedar\n").skip(1).map(|rest| rest.split("```").next().unwrap()).collect();
    let engine = engine(&examples.concat());
    assert_eq!(engine.status().borrow().policies, 2);
    for action in Action::ALL {
        assert!(docs.contains(&format!("| `{}` |", action.as_str())), "{action:?}");
    }
}
