//! Attempts to bypass policies by state that the proxy keeps between messages: tasks, request
//! states, subscriptions, sessions and connections.

use serde_json::{Value, json};

use super::{
    House, POLICIES,
    doors::{Door, refusals},
    server::Server,
};
use crate::support::{
    agent::Agent,
    events::Events,
    wire::{self, ORDINARY},
};

const UNKNOWN: &[&str] = &["request-state-invalid"];
const TWICE: &[&str] = &["duplicate-key"];
const SHAPE: &[&str] = &["invalid-params", "header-mismatch"];

/// The house, and the key of a client who has something there.
async fn house(more: &str) -> (House, String) {
    let (written, servers) = House::write(&format!("{POLICIES}{more}")).await;
    let key = written.add_client("ann", &[]).await;
    (House::start(written, servers).await, key)
}

impl House {
    /// Sends a request, whatever it is.
    async fn ask(&self, door: &mut Door, method: &str, params: &str) -> Value {
        let text = format!(
            r#"{{"jsonrpc":"2.0","id":@id@,"method":"{method}","params":{{{params}@meta@}}}}"#
        );
        let text = door.fill(&text);
        let mut answers = door.send(text.as_bytes(), false).await;
        assert_eq!(answers.len(), 1, "{text}: {answers:#?}");
        answers.remove(0)
    }

    /// Sends a request that must be refused without reaching a server.
    async fn assert_refused(
        &mut self,
        door: &mut Door,
        method: &str,
        params: &str,
        codes: &[&str],
    ) {
        self.servers.iter().for_each(|server| drop(server.reached()));
        let answer = self.ask(door, method, params).await;
        let what = format!("{method} {params}");
        self.refused(&what, codes, refusals(&[answer]));
        let reached: Vec<_> = self.servers.iter().flat_map(Server::reached).collect();
        assert_eq!(reached, Vec::<String>::new(), "{what}");
    }
}

#[tokio::test]
async fn task_access_follows_owner_and_policies() {
    let forbid = r#"
        @id("tasks-run-to-their-end")
        forbid (principal, action == Portcullis::Action::"access_task", resource)
        when { context.method == "tasks/cancel" };
    "#;
    let (mut house, key) = house(forbid).await;
    for (server, modern) in [("old", false), ("new", true)] {
        for merged in [true, false] {
            let mut ann = Door::keyed(&house.gate, server, merged, modern, &key).await;
            let make = match modern {
                true => r#""name":"@job@","arguments":{"mark":"M"}"#,
                false => r#""name":"@job@","arguments":{"mark":"M"},"task":{}"#,
            };
            // Each process gives ids of its own, and here it is one for all.
            let mark = format!("{server}-{merged}");
            let made = house.ask(&mut ann, "tools/call", &make.replace('M', &mark)).await;
            let result = &made["result"];
            let id = if modern { &result["taskId"] } else { &result["task"]["taskId"] };
            let id = id.as_str().unwrap_or_else(|| panic!("{made:#}"));
            assert_eq!(id, format!("task-{mark}"));
            let own = format!(r#""taskId":"{id}""#);
            house.servers.iter().for_each(|server| drop(server.reached()));
            let found = house.ask(&mut ann, "tasks/get", &own).await;
            assert!(found["result"].is_object(), "{found:#}");
            assert_eq!(house.leaked().len(), 1, "the owner finds it");
            let last = if modern { "tasks/update" } else { "tasks/result" };

            let mut eve = Door::http(&house.gate, server, merged, modern).await;
            for method in ["tasks/get", "tasks/cancel", last] {
                let escaped = own.replace("task-", r"t\u0061sk-");
                for params in [own.as_str(), &escaped, &own.replace("taskId", r"t\u0061skId")] {
                    house.assert_refused(&mut eve, method, params, UNKNOWN).await;
                }
                let twice = format!(r#"{own},"taskId":"x""#);
                house.assert_refused(&mut eve, method, &twice, TWICE).await;
                let folded = format!(r#""taskId":"x",{}"#, own.replace("taskId", "TaskId"));
                house.assert_refused(&mut eve, method, &folded, TWICE).await;
                let upper = own.replace("taskId", "TASKID");
                house.assert_refused(&mut eve, method, &upper, TWICE).await;
                for (value, codes) in [
                    (format!("[\"{id}\"]"), SHAPE),
                    (format!("{{\"taskId\":\"{id}\"}}"), SHAPE),
                    ("null".to_owned(), SHAPE),
                    (format!("\"{}\"", id.to_uppercase()), UNKNOWN),
                    (format!("\"{id} \""), UNKNOWN),
                    (format!("\"{id}\\u0000\""), UNKNOWN),
                ] {
                    let params = format!("\"taskId\":{value}");
                    house.assert_refused(&mut eve, method, &params, codes).await;
                }
            }
            if !modern {
                let listed = house.ask(&mut eve, "tasks/list", "").await;
                assert_eq!(listed["result"]["tasks"], json!([]), "{listed:#}");
            }
            let denied: &[&str] = &["policy-denied"];
            house.assert_refused(&mut ann, "tasks/cancel", &own, denied).await;
            house.assert_refused(&mut ann, r"t\u0061sks\/c\u0061ncel", &own, denied).await;
            house.assert_refused(&mut ann, "Tasks/Cancel", &own, &["method-unknown"]).await;
        }
    }
    house.stop().await;
}

#[tokio::test]
async fn request_state_is_bound_to_its_request() {
    let (mut house, key) = house("").await;
    for merged in [true, false] {
        let mut door = Door::http(&house.gate, "new", merged, true).await;
        let asked = r#""name":"@ask@","arguments":{"word":"x","mark":"m"}"#;
        let first = house.ask(&mut door, "tools/call", asked).await;
        let state = first["result"]["requestState"].as_str().unwrap_or_else(|| panic!("{first:#}"));
        assert!(!state.contains("state of"), "the server's own is sealed: {state}");
        let answer =
            format!(r#""inputResponses":{{"who":{{"action":"cancel"}}}},"requestState":"{state}""#);
        let denied: &[&str] = &["policy-denied"];
        // Other arguments than were allowed.
        for (call, codes) in [
            (r#""name":"@ask@","arguments":{"word":"forbidden","mark":"m"}"#, denied),
            (r#""name":"@ask@","arguments":{"w\u006frd":"\u0066orbidden","mark":"m"}"#, denied),
            (r#""name":"@ask@","arguments":{"word":"y","mark":"m"}"#, UNKNOWN),
            (r#""name":"@ask@","arguments":{"word":"x","mark":"m","more":1}"#, UNKNOWN),
            (r#""name":"@ask@","arguments":{"word":"x"}"#, UNKNOWN),
            (r#""name":"@ask@""#, UNKNOWN),
            (r#""name":"@ask@","arguments":{"word":"x","mark":"m"},"task":{}"#, UNKNOWN),
            (r#""name":"@wipe@""#, denied),
            (r#""name":"@look@","arguments":{"path":"/srv/ok"}"#, UNKNOWN),
            (r#""name":"@look@","arguments":{"path":"/etc"}"#, denied),
        ] {
            let params = format!("{call},{answer}");
            house.assert_refused(&mut door, "tools/call", &params, codes).await;
        }
        house
            .assert_refused(
                &mut door,
                "prompts/get",
                &format!(r#""name":"@greet@",{answer}"#),
                UNKNOWN,
            )
            .await;
        // Other states.
        let other = match state.strip_suffix('A') {
            Some(start) => format!("{start}B"),
            None => format!("{}A", &state[..state.len() - 1]),
        };
        for (given, codes) in [
            (format!(r#""requestState":"{other}""#), UNKNOWN),
            (r#""requestState":"state of m""#.to_owned(), UNKNOWN),
            (r#""requestState":"""#.to_owned(), UNKNOWN),
            (r#""requestState":{"server":"state of m"}"#.to_owned(), UNKNOWN),
            (r#""requestState":null"#.to_owned(), UNKNOWN),
            (format!(r#""requestState":"{state}","requestState":"{state}""#), TWICE),
            (format!(r#""requestState":"{state}","RequestState":"state of m""#), TWICE),
            (r#""RequestState":"state of m""#.to_owned(), TWICE),
            (r#""inputresponses":{}"#.to_owned(), TWICE),
        ] {
            let params = format!("{asked},{given}");
            house.assert_refused(&mut door, "tools/call", &params, codes).await;
        }
        // Other people.
        let mut ann = Door::keyed(&house.gate, "new", merged, true, &key).await;
        let params = format!("{asked},{answer}");
        house.assert_refused(&mut ann, "tools/call", &params, UNKNOWN).await;
        let mut elsewhere = Door::http(&house.gate, "old", merged, true).await;
        house.assert_refused(&mut elsewhere, "tools/call", &params, UNKNOWN).await;
        // It is still good for what it was given for.
        let done = house.ask(&mut door, "tools/call", &params).await;
        assert_eq!(done["result"]["content"][0]["text"], "done", "{done:#}");
        let reached = house.leaked();
        assert!(reached.len() == 1 && reached[0].contains("state of m"), "{reached:#?}");
    }
    house.stop().await;
}

#[tokio::test]
async fn forbidden_resources_cannot_be_subscribed() {
    let house = House::open(POLICIES).await;
    let uris = [
        "old://secret/1",
        "old://secret/2",
        "OLD://secret/1",
        "old://SECRET/1",
        "old://open@secret/1",
        "old://secret/%31",
        "old://%73ecret/1",
    ];
    for path in ["/mcp", "/servers/old/mcp"] {
        let mut asked = uris.to_vec();
        asked.push("old://open/1");
        let body = json!({ "jsonrpc": "2.0", "id": 1, "method": "subscriptions/listen", "params": {
            "notifications": { "resourceSubscriptions": asked }, "_meta": super::doors::meta(),
        } });
        let headers =
            [("mcp-protocol-version", "2026-07-28"), ("mcp-method", "subscriptions/listen")];
        let mut stream = Events::post(&house.gate.url(path), &headers, body.to_string()).await;
        let granted = stream.message().await;
        let granted = &granted["params"]["notifications"]["resourceSubscriptions"];
        assert_eq!(*granted, json!(["old://open/1"]), "{path}");
        for text in house.leaked() {
            assert!(
                text.contains("old://open/1") && !text.to_lowercase().contains("secret"),
                "{text}"
            );
        }
    }
    let records = house.gate.records(&["--decision", "refused"]).await;
    let refused = records.iter().filter(|record| record["method"] == "resources/subscribe").count();
    assert_eq!(refused, 2 * uris.len(), "{records:#?}");
    house.gate.stop().await;
}

#[tokio::test]
async fn foreign_sessions_and_connections_are_refused() {
    let (mut house, key) = house("").await;
    let call = r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"old__look","arguments":{"path":"/srv/ok"}}}"#;
    let ann = Agent::legacy(&house.gate.url("/mcp"), Some(&key)).await.unwrap();
    let session = ann.session.clone().unwrap();
    let bearer = format!("Bearer {key}");
    let open = [("accept", "text/event-stream"), ("authorization", bearer.as_str())];
    let mut stream = Events::get(&house.gate.url("/sse"), &open).await;
    let uri = stream.next().await.unwrap().data;
    let own = [("Mcp-Session-Id", session.as_str())];
    for (path, more) in [
        ("/mcp", &own[..]),
        ("/servers/old/mcp", &own),
        (uri.as_str(), &[]),
        (&format!("/servers/old{uri}"), &[]),
        (&uri.to_uppercase().replace("/SSE", "/sse"), &[]),
        (&format!("{uri}%20"), &[]),
    ] {
        let reply =
            wire::post(house.gate.addr, path, &[ORDINARY, more].concat(), call.as_bytes()).await;
        house.refused(path, &["session-unknown"], refusals(&reply.messages()));
    }
    // And hers at another endpoint.
    for (path, more) in [("/servers/old/mcp", &own[..]), (&format!("/servers/old{uri}"), &[])] {
        let headers = [ORDINARY, more, &[("Authorization", bearer.as_str())]].concat();
        let reply = wire::post(house.gate.addr, path, &headers, call.as_bytes()).await;
        house.refused(path, &["session-unknown"], refusals(&reply.messages()));
    }
    ann.call("old__look", json!({ "path": "/srv/ok" })).await.unwrap();
    house.servers.iter().for_each(|server| drop(server.reached()));
    house.stop().await;
}
