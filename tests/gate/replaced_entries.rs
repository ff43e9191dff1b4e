//! Work in flight while a config entry changes ends at the old entry or is decided again for the
//! new one. A call authorized against one entry is never sent to the other.

use serde_json::{Value, json};

use crate::support::{
    agent::{Agent, MODERN, code_of},
    events::Events,
    gate::{Gate, Setup},
    in_time, marked, until,
};

fn echo() -> Value {
    json!({ "text": "x" })
}

/// Has another entry in the place of the only one, by a variable.
async fn change(gate: &Gate, value: &str) {
    let before = reloads(gate);
    let config = gate.config();
    let without = match config.find("MORE = ") {
        Some(at) => [&config[..at], config[at..].split_once(", ").unwrap().1].concat(),
        None => config,
    };
    gate.put(&without.replace("env = { ", &format!("env = {{ MORE = \"{value}\", ")));
    until("the change", async || (reloads(gate) > before).then_some(())).await;
}

fn reloads(gate: &Gate) -> usize {
    gate.log().iter().filter(|line| line.contains("config reloaded")).count()
}

async fn environment(agent: &Agent, tool: &str) -> String {
    agent.text(tool, json!({ "name": "MORE" })).await
}

const BY_A_PERSON: &str = r#"
    @id("rest")
    permit (principal, action, resource)
    unless { action == Portcullis::Action::"call_tool" && resource.name == "environment" };

    @id("by-a-person")
    @approve("it tells")
    permit (principal, action, resource)
    when { action == Portcullis::Action::"call_tool" && resource.name == "environment" };
"#;

#[tokio::test]
async fn approved_call_does_not_run_on_a_replaced_entry() {
    let gate = Setup::crooked("").policies(BY_A_PERSON).start().await;
    let agent = gate.modern();
    let asked =
        tokio::spawn(
            async move { agent.call("crooked__environment", json!({ "name": "GATE" })).await },
        );
    let call = until("a call to wait", async || {
        let calls = gate.cli(&["approve", "ls", "--format", "json"]).await.expect(0);
        Some(calls[0]["id"].as_str()?.to_owned())
    })
    .await;
    change(&gate, "new").await;
    assert_eq!(gate.cli(&["approve", "allow", &call]).await.code, Some(0));
    let refused = in_time("the call", asked).await.unwrap().unwrap_err();
    assert_eq!(code_of(&refused), "server-unavailable", "{refused:#}");
    assert!(
        refused["message"].as_str().unwrap().contains("has changed; call again"),
        "{refused:#}"
    );
    let records = gate.records(&[]).await;
    let of_it = records.iter().filter(|one| one["id"] == *call && one["record"].is_string());
    let kinds: Vec<_> = of_it.map(|one| one["record"].as_str().unwrap()).collect();
    assert!(kinds.contains(&"refused") && !kinds.contains(&"intent"), "{kinds:?}");
    gate.stop().await;
}

const READING: &str = "@id(\"read\") permit (principal, action, resource) when \
                       { !(resource is Portcullis::Tool) || resource.claims.read_only };";

#[tokio::test]
async fn call_permitted_for_new_entry_does_not_run_on_old() {
    let written = Setup::holding("").policies(READING).write();
    written.hold("tools/list");
    written.hold("resources/subscribe");
    let mut gate = written.start().await;
    // Something is under way at the old one, which therefore goes on.
    let own = gate.url("/servers/crooked/mcp");
    let watching = tokio::spawn(async move {
        let agent = Agent::legacy_without_abilities(&own, None).await;
        agent.ask("resources/subscribe", json!({ "uri": "crooked://x" })).await
    });
    gate.held("crooked", "resources/subscribe").await;
    let agent = gate.modern();
    let asked = tokio::spawn(async move { agent.call("crooked__echo", echo()).await });
    gate.held("crooked", "tools/list").await;
    gate.put(&(gate.config() + "\n[servers.crooked.tools.echo]\nread-only = true\n"));
    gate.logged("the change", |line| line.contains("config reloaded")).await;
    gate.let_go("tools/list");
    let refused = in_time("the call", asked).await.unwrap().unwrap_err();
    assert_eq!(code_of(&refused), "server-unavailable", "{refused:#}");
    assert!(
        refused["message"].as_str().unwrap().contains("has changed; call again"),
        "{refused:#}"
    );
    // The new one may.
    assert_eq!(gate.modern().text("crooked__echo", echo()).await, "x");
    gate.let_go("resources/subscribe");
    in_time("the subscription", watching).await.unwrap().unwrap();
    gate.stop().await;
}

/// Notifications of lists that one change of the config has every session told.
const LISTS: usize = 3;

/// How often it is on record that a server was asked to tell of a resource, and answered.
async fn subscribed(gate: &Gate) -> usize {
    let records = gate.records(&[]).await;
    let of_it = |one: &&Value| one["method"] == "resources/subscribe" && one["record"] == "outcome";
    records.iter().filter(of_it).count()
}

#[tokio::test]
async fn subscription_in_progress_moves_to_the_final_entry() {
    // The config changes once or twice while a server still thinks about it.
    for changes in [1, 2] {
        let written = Setup::holding("").write();
        written.hold("resources/subscribe");
        let gate = written.start().await;
        let own = gate.url("/servers/crooked/mcp");
        let client = Agent::legacy(&own, None).await.unwrap();
        let mut stream = stream_of(&client, &own).await;
        let asked = tokio::spawn(async move {
            let done = client.ask("resources/subscribe", json!({ "uri": "crooked://x" })).await;
            (client, done)
        });
        gate.held("crooked", "resources/subscribe").await;
        let old = marked(&gate.mark);
        for n in 0..changes {
            change(&gate, &n.to_string()).await;
        }
        gate.let_go("resources/subscribe");
        let (client, done) = in_time("the subscription", asked).await.unwrap();
        done.unwrap();
        until("the old one to be gone", async || {
            marked(&gate.mark).iter().all(|pid| !old.contains(pid)).then_some(())
        })
        .await;
        assert_eq!(environment(&client, "environment").await, (changes - 1).to_string());
        assert_eq!(subscribed(&gate).await, 2, "{changes}");
        client.call("update", json!({})).await.unwrap();
        updated(&mut stream).await;
        gate.stop().await;
    }
}

/// The stream on which a session hears what belongs to no call.
async fn stream_of(client: &Agent, url: &str) -> Events {
    let session = client.session.clone().unwrap();
    let headers = [("mcp-session-id", session.as_str()), ("accept", "text/event-stream")];
    Events::get(url, &headers).await
}

/// The next that a stream tells of the resource that is watched.
async fn updated(stream: &mut Events) {
    in_time("the update", async {
        while !stream.next().await.expect("an event").data.contains("crooked://x") {}
    })
    .await;
}

#[tokio::test]
async fn listen_request_in_progress_completes_on_the_old_entry() {
    let written = Setup::holding("").write();
    written.hold("resources/subscribe");
    let gate = written.start().await;
    let own = gate.url("/servers/crooked/mcp");
    let client = Agent::modern(&own, None);
    let asked = json!({ "notifications": { "resourceSubscriptions": ["crooked://x"] } });
    let asked = client.request("subscriptions/listen", asked).to_string();
    let listening = tokio::spawn(async move {
        let headers = [("mcp-protocol-version", MODERN), ("mcp-method", "subscriptions/listen")];
        let mut stream = Events::post(&own, &headers, asked).await;
        let granted = stream.message().await;
        (stream, granted)
    });
    gate.held("crooked", "resources/subscribe").await;
    let old = marked(&gate.mark);
    change(&gate, "new").await;
    // The old one is at it yet, while the new one is called.
    assert_eq!(environment(&client, "environment").await, "new");
    gate.let_go("resources/subscribe");
    let (mut stream, granted) = in_time("the grant", listening).await.unwrap();
    let granted = &granted["params"]["notifications"]["resourceSubscriptions"];
    assert_eq!(*granted, json!(["crooked://x"]));
    until("the old one to be gone", async || {
        marked(&gate.mark).iter().all(|pid| !old.contains(pid)).then_some(())
    })
    .await;
    assert_eq!(subscribed(&gate).await, 2);
    client.call("update", json!({})).await.unwrap();
    updated(&mut stream).await;
    gate.stop().await;
}

#[tokio::test]
async fn moving_subscription_follows_the_next_change_unless_removed() {
    for taken_back in [false, true] {
        let gate = Setup::holding("").start().await;
        let own = gate.url("/servers/crooked/mcp");
        let client = Agent::legacy(&own, None).await.unwrap();
        let watched = json!({ "uri": "crooked://x" });
        client.ask("resources/subscribe", watched.clone()).await.unwrap();
        let mut stream = stream_of(&client, &own).await;
        let old = marked(&gate.mark);
        gate.hold("resources/subscribe");
        change(&gate, "first").await;
        gate.held("crooked", "resources/subscribe").await;
        if taken_back {
            client.ask("resources/unsubscribe", watched).await.unwrap();
        } else {
            change(&gate, "second").await;
        }
        gate.let_go("resources/subscribe");
        until("the old one to be gone", async || {
            marked(&gate.mark).iter().all(|pid| !old.contains(pid)).then_some(())
        })
        .await;
        if taken_back {
            // What the server tells of after that is nothing of it.
            until("it to be taken back", async || (subscribed(&gate).await == 2).then_some(()))
                .await;
            client.call("update", json!({})).await.unwrap();
            change(&gate, "second").await;
            // The lists of both changes.
            in_time("the lists", async {
                for _ in 0..2 * LISTS {
                    let event = loop {
                        let event = stream.next().await.expect("an event");
                        if !event.data.is_empty() {
                            break event.data;
                        }
                    };
                    assert!(event.contains("list_changed"), "{event}");
                }
            })
            .await;
        } else {
            until("it to be watched", async || (subscribed(&gate).await == 3).then_some(())).await;
            assert_eq!(environment(&client, "environment").await, "second");
            // It may have changed between the one and the other, and then it does.
            updated(&mut stream).await;
            client.call("update", json!({})).await.unwrap();
            updated(&mut stream).await;
        }
        gate.stop().await;
    }
}

#[tokio::test]
async fn suspended_call_of_an_ended_server_gets_a_reason() {
    // While a client is asked, the call's own time does not run; that of a server that was superseded does.
    let gate = Setup::everything("legacy").and("call-timeout-s = 3").start().await;
    let agent = gate.legacy().await;
    let asked = tokio::spawn(async move {
        agent.call("everything__test_sampling", json!({ "prompt": "what?" })).await
    });
    until("the client to be asked", async || {
        let records = gate.records(&[]).await;
        records.iter().any(|one| one["method"] == "sampling/createMessage").then_some(())
    })
    .await;
    change(&gate, "new").await;
    let error = in_time("the call", asked).await.unwrap().unwrap_err();
    assert_eq!(code_of(&error), "server-unavailable", "{error:#}");
    let words = error["message"].as_str().unwrap();
    assert!(words.contains("was ended before it answered"), "{words}");
    assert!(words.contains("its entry in the config has changed; call again"), "{words}");
    until("it to be gone", async || marked(&gate.mark).is_empty().then_some(())).await;
    gate.stop().await;
}
