use std::fs;

use serde_json::json;

use super::*;
use crate::fixtures::{answered, call, message, tool};
use portcullis_protocol::exchange::Payload;

fn gate(policies: &str) -> PolicyGate {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("p.cedar"), policies).unwrap();
    let engine = Engine::load(&["p.cedar".into()], folder.path()).unwrap();
    PolicyGate::new(Arc::new(engine), Stated::default())
}

/// One policy for each action, named after it, for one resource.
const EACH: &str = r#"
@id("connect") permit (principal == Portcullis::Client::"ci", action == Portcullis::Action::"connect",
    resource == Portcullis::Proxy::"portcullis");
@id("connect-one") permit (principal == Portcullis::Client::"ci", action == Portcullis::Action::"connect",
    resource == Portcullis::Server::"notes");
@id("call_tool") permit (principal == Portcullis::Client::"ci", action == Portcullis::Action::"call_tool",
    resource == Portcullis::Tool::"notes/t") when { context.args.hasTag("/a") };
@id("access_task") permit (principal == Portcullis::Client::"ci", action == Portcullis::Action::"access_task",
    resource == Portcullis::Tool::"notes/t");
@id("get_prompt") permit (principal == Portcullis::Client::"ci", action == Portcullis::Action::"get_prompt",
    resource == Portcullis::Prompt::"notes/p") when { context.args.hasTag("/a") };
@id("read_resource") permit (principal == Portcullis::Client::"ci", action == Portcullis::Action::"read_resource",
    resource == Portcullis::Resource::"notes/note://1") when { resource.scheme == "note" };
@id("subscribe_resource") permit (principal == Portcullis::Client::"ci", action == Portcullis::Action::"subscribe_resource",
    resource == Portcullis::Resource::"notes/note://1");
@id("complete-prompt") permit (principal == Portcullis::Client::"ci", action == Portcullis::Action::"complete",
    resource == Portcullis::Prompt::"notes/p") when { context.args.hasTag("/argument/value") };
@id("complete-template") permit (principal == Portcullis::Client::"ci", action == Portcullis::Action::"complete",
    resource == Portcullis::ResourceTemplate::"notes/note://{id}");
@id("notify_server") permit (principal == Portcullis::Client::"ci", action == Portcullis::Action::"notify_server",
    resource == Portcullis::Proxy::"portcullis") when { context.method == "notifications/roots/list_changed" };
@id("other_method") permit (principal == Portcullis::Client::"ci", action == Portcullis::Action::"other_method",
    resource == Portcullis::Server::"notes") when { context.method == "acme/get" && context.args.hasTag("/taskId") };
@id("sample") permit (principal == Portcullis::Server::"notes", action == Portcullis::Action::"sample",
    resource == Portcullis::Client::"ci") when { context.args.hasTag("/maxTokens") };
@id("elicit") permit (principal == Portcullis::Server::"notes", action == Portcullis::Action::"elicit",
    resource == Portcullis::Client::"ci")
    unless { context.args.hasTag("/mode") && context.args.getTag("/mode") == "url" };
@id("list_roots") permit (principal == Portcullis::Server::"notes", action == Portcullis::Action::"list_roots",
    resource == Portcullis::Client::"ci");
@id("notify_client") permit (principal == Portcullis::Server::"notes", action == Portcullis::Action::"notify_client",
    resource == Portcullis::Client::"ci") when { context.method == "notifications/message" };
@id("other_server_method") permit (principal == Portcullis::Server::"notes",
    action == Portcullis::Action::"other_server_method", resource == Portcullis::Client::"ci")
    when { context.method == "x/y" };
"#;

/// Message for the server `notes`.
fn about_notes(method: &str, params: Value) -> Exchange {
    let target = match method {
        Method::PROMPTS_GET => Target::Prompt { name: "p".into(), prompt: None },
        Method::RESOURCES_READ | "resources/subscribe" | "resources/unsubscribe" => {
            Target::Resource { uri: "note://1".into() }
        }
        _ => Target::None,
    };
    Exchange {
        server: Some("notes".parse().unwrap()),
        target,
        notification: method.starts_with("notifications/"),
        request: Payload::from(params),
        ..message("ci", method)
    }
}

fn from_server(method: &str, params: Value) -> Exchange {
    Exchange { direction: Direction::ServerToClient, ..about_notes(method, params) }
}

async fn verdict(gate: &PolicyGate, exchange: &Exchange) -> Result<Verdict, Fault> {
    let phase = if exchange.response.is_some() { Phase::Response } else { Phase::Request };
    gate.inspect(exchange, phase).await
}

/// Ids of the permits, or code and text of the refusal.
async fn answer_of(gate: &PolicyGate, exchange: &Exchange) -> String {
    match verdict(gate, exchange).await {
        Ok(Verdict { decision: Decision::Refuse(refusal), .. }) => refusal.to_string(),
        Ok(Verdict { rules, .. }) => {
            rules.into_iter().map(|rule| rule.id).collect::<Vec<_>>().join(",")
        }
        Err(fault) => format!("fault: {fault}"),
    }
}

const REFUSED: &str = "policy-denied: not permitted by policy";

#[tokio::test]
async fn every_method_is_decided_by_its_action() {
    let gate = gate(EACH);
    let none = empty_gate();
    let t = tool("notes", "t", json!({}));
    let all = |method| message("ci", method);
    let task = |method| Exchange {
        target: Target::Tool { name: "t".into(), tool: None },
        ..about_notes(method, json!({"taskId": "1"}))
    };
    let notification = |method| Exchange { notification: true, ..message("ci", method) };
    for (exchange, expected) in [
        (all("initialize"), "connect"),
        (all("server/discover"), "connect"),
        (all("tools/list"), "connect"),
        (all("prompts/list"), "connect"),
        (all("resources/list"), "connect"),
        (all("resources/templates/list"), "connect"),
        (about_notes("tools/list", json!({})), "connect-one"),
        (call("ci", &t, json!({"a": 1})), "call_tool"),
        (call("ci", &t, json!({"b": 1})), REFUSED),
        (call("other", &t, json!({"a": 1})), REFUSED),
        (all("tasks/list"), "connect"),
        (all("subscriptions/listen"), "connect"),
        (all("logging/setLevel"), "connect"),
        (task("tasks/get"), "access_task"),
        (task("tasks/cancel"), "access_task"),
        (about_notes("prompts/get", json!({"name": "p", "arguments": {"a": "x"}})), "get_prompt"),
        (about_notes("prompts/get", json!({"name": "p"})), REFUSED),
        (about_notes("resources/read", json!({"uri": "note://1"})), "read_resource"),
        (about_notes("resources/subscribe", json!({"uri": "note://1"})), "subscribe_resource"),
        (about_notes("resources/unsubscribe", json!({"uri": "note://1"})), "subscribe_resource"),
        (
            about_notes(
                "completion/complete",
                json!({"ref": {"type": "ref/prompt", "name": "p"}, "argument": {"name": "a", "value": ""}}),
            ),
            "complete-prompt",
        ),
        (
            about_notes(
                "completion/complete",
                json!({"ref": {"type": "ref/resource", "uri": "note://{id}"}}),
            ),
            "complete-template",
        ),
        (notification("notifications/roots/list_changed"), "notify_server"),
        (notification("notifications/other"), REFUSED),
        (about_notes("acme/get", json!({"taskId": "1"})), "other_method"),
        (about_notes("acme/end", json!({"taskId": "1"})), REFUSED),
        (about_notes("Tools/Call", json!({"name": "t"})), REFUSED),
        (about_notes("sampling/createMessage", json!({})), REFUSED),
        (from_server("sampling/createMessage", json!({"maxTokens": 1})), "sample"),
        (from_server("elicitation/create", json!({"mode": "form"})), "elicit"),
        (from_server("elicitation/create", json!({"mode": "url"})), REFUSED),
        (from_server("roots/list", json!({})), "list_roots"),
        (from_server("notifications/message", json!({})), "notify_client"),
        (from_server("notifications/initialized", json!({})), REFUSED),
        (from_server("x/y", json!({})), "other_server_method"),
        (from_server("tools/call", json!({"name": "t"})), REFUSED),
    ] {
        assert_eq!(answer_of(&gate, &exchange).await, expected, "{}", exchange.method);
        assert_eq!(answer_of(&none, &exchange).await, REFUSED, "{}", exchange.method);
    }
}

fn empty_gate() -> PolicyGate {
    gate("")
}

#[tokio::test]
async fn housekeeping_passes_undecided() {
    let none = empty_gate();
    for (exchange, passes) in [
        (about_notes("ping", json!({})), true),
        (about_notes("notifications/initialized", json!({})), true),
        (about_notes("notifications/cancelled", json!({})), true),
        (about_notes("notifications/progress", json!({})), true),
        (from_server("ping", json!({})), true),
        (from_server("notifications/cancelled", json!({})), true),
        (from_server("notifications/progress", json!({})), true),
        // The same names as requests are ordinary methods.
        (message("ci", "notifications/initialized"), false),
        (message("ci", "notifications/cancelled"), false),
    ] {
        let decision = verdict(&none, &exchange).await.unwrap().decision;
        assert_eq!(decision == Decision::Pass, passes, "{}", exchange.method);
    }
}

#[tokio::test]
async fn messages_that_policies_cannot_evaluate_are_refused() {
    let gate = gate("permit (principal, action, resource);");
    let t = tool("notes", "t", json!({}));
    let with = |params| Exchange { request: Payload::from(params), ..call("ci", &t, json!({})) };
    for (exchange, expected) in [
        (
            with(json!({"name": "t", "arguments": [1]})),
            "invalid-params: `arguments` must be an object",
        ),
        (
            with(json!({"name": "t", "arguments": "x"})),
            "invalid-params: `arguments` must be an object",
        ),
        (with(json!({"name": ["t"]})), "invalid-params: `name` must be a string"),
        (with(json!(["t"])), "invalid-params: `params` must be an object"),
        (
            with(json!({"name": "u"})),
            "fault: `params` name a different target than the message was routed to",
        ),
        (with(json!({"name": "t", "arguments": null})), "p.cedar:1"),
        (
            Exchange { server: None, ..call("ci", &t, json!({})) },
            "fault: the message needs a server, but none is known",
        ),
        (
            about_notes("resources/read", json!({"uri": "note://2"})),
            "fault: `params` name a different target than the message was routed to",
        ),
        (
            about_notes("completion/complete", json!({"ref": {"type": "ref/tool"}})),
            "invalid-params: `ref.type` must be `ref/prompt` or `ref/resource`",
        ),
        (about_notes("completion/complete", json!({})), "invalid-params: `type` must be a string"),
    ] {
        assert_eq!(answer_of(&gate, &exchange).await, expected);
    }
}

#[tokio::test]
async fn refusal_has_the_reason_for_the_agent_and_the_rule_for_the_operator() {
    let gate = gate(
        "permit (principal, action, resource);\n\
         @id(\"no\") @reason(\"notes are kept\")\n\
         forbid (principal, action, resource is Portcullis::Tool) when { resource.claims.destructive };",
    );
    let keeps = tool("notes", "t", json!({"annotations": {"readOnlyHint": true}}));
    assert_eq!(answer_of(&gate, &call("ci", &keeps, json!({}))).await, "p.cedar:1");
    let deletes = tool("notes", "t", json!({"annotations": {"destructiveHint": true}}));
    let Decision::Refuse(refusal) =
        verdict(&gate, &call("ci", &deletes, json!({}))).await.unwrap().decision
    else {
        panic!("passed");
    };
    assert_eq!(refusal.code, Code::PolicyDenied);
    assert_eq!(refusal.message, "notes are kept");
    let rule = &refusal.rules[0];
    assert_eq!((rule.id.as_str(), rule.line), ("no", Some(2)));
    assert_eq!(rule.file.as_deref(), Some("p.cedar".as_ref()));
    assert!(refusal.detail.unwrap().starts_with("call_tool: forbidden by `no` (policies "));
}

#[tokio::test]
async fn each_request_inside_a_result_is_decided() {
    let gate = gate(EACH);
    let t = tool("notes", "t", json!({}));
    let carrying = |requests| {
        let result = json!({"resultType": "input_required", "inputRequests": requests});
        answered(call("ci", &t, json!({"a": 1})), result)
    };
    let elicit = |mode: &str| json!({"method": "elicitation/create", "params": {"mode": mode}});
    for (exchange, expected) in [
        (answered(call("ci", &t, json!({})), json!({"content": []})), ""),
        (
            carrying(json!({"a": elicit("form"), "b": {"method": "roots/list"}})),
            "elicit,list_roots",
        ),
        (carrying(json!({"a": elicit("form"), "b": elicit("url")})), REFUSED),
        (carrying(json!({"a": {"method": "x/z"}})), REFUSED),
        (carrying(json!([1])), "fault: `inputRequests` of the result is malformed"),
        (carrying(json!({"a": {}})), "fault: `inputRequests` of the result is malformed"),
    ] {
        assert_eq!(answer_of(&gate, &exchange).await, expected);
    }
}

#[tokio::test]
async fn elicitations_inside_an_error_are_decided() {
    let error = |data: Value| {
        let error = json!({"code": -32042, "message": "m", "data": data});
        Exchange {
            server: Some("web".parse().unwrap()),
            response: Some(Answer::Error(Payload::from(error))),
            ..message("ci", "tools/call")
        }
    };
    let asks = || error(json!({"elicitations": [{"mode": "url", "url": "https://a.example"}]}));
    let permits = r#"permit (principal == Portcullis::Server::"web", action == Portcullis::Action::"elicit", resource)
                     when { context.args.hasTag("/url") && context.args.getTag("/url") like "https://a.example*" };"#;
    for (policies, exchange, passes) in [
        ("", asks(), false),
        (permits, asks(), true),
        (permits, error(json!({"elicitations": [{"url": "https://b.example"}]})), false),
        ("", error(json!({"other": 1})), true),
    ] {
        let verdict = gate(policies).inspect(&exchange, Phase::Response).await.unwrap();
        assert_eq!(matches!(verdict.decision, Decision::Pass), passes);
    }
    assert!(gate("").inspect(&error(json!({"elicitations": 1})), Phase::Response).await.is_err());
}

#[test]
fn lists_show_only_usable_entries() {
    let gate = gate(
        r#"permit (principal == Portcullis::Client::"ci", action == Portcullis::Action::"call_tool", resource)
           when { !resource.claims.destructive && context.args.hasTag("/a") };
           permit (principal, action in Portcullis::Action::"read", resource in Portcullis::Server::"notes");"#,
    );
    let (ci, other) = (message("ci", "tools/list"), message("other", "tools/list"));
    let keeps = tool("notes", "t", json!({"annotations": {"destructiveHint": false}}));
    let deletes = tool("notes", "t", json!({}));
    assert!(gate.sight(&ci.principal).visible(Listed::Tool(&keeps)));
    assert!(!gate.sight(&ci.principal).visible(Listed::Tool(&deletes)));
    assert!(!gate.sight(&other.principal).visible(Listed::Tool(&keeps)));
    let (notes, web) = ("notes".parse().unwrap(), "web".parse().unwrap());
    for (server, visible) in [(&notes, true), (&web, false)] {
        let entry = Listed::Resource { server, uri: "note://1" };
        assert_eq!(gate.sight(&other.principal).visible(entry), visible);
        let entry = Listed::Template { server, uri: "note://{id}" };
        assert_eq!(gate.sight(&other.principal).visible(entry), visible);
        assert!(!gate.sight(&other.principal).visible(Listed::Prompt { server, name: "p" }));
    }
}
