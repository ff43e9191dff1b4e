//! Servers that hang, crash, flood or send invalid messages affect only their own callers.

use serde_json::json;

use crate::support::{
    agent::Agent,
    gate::{Gate, Setup},
    in_time, until,
};

/// A crooked server with short deadlines beside an honest one.
async fn with_notes_server() -> Gate {
    Setup::crooked("call-timeout-s = 2\nconcurrent = 4\nqueue = 0")
        .and(
            r#"
            [servers.notes]
            command = ["portcullis", "example-server", "notes"]
            runtime = "sandbox"
            [limits]
            response-bytes = 1048576
            "#,
        )
        .start()
        .await
}

async fn assert_notes_answers(agent: &Agent) {
    let text = agent.text("notes__read_note", json!({ "name": "welcome" })).await;
    assert!(text.contains("Portcullis"));
    assert_eq!(agent.text("crooked__echo", json!({ "text": "still here" })).await, "still here");
}

#[tokio::test]
async fn hanging_server_times_out() {
    let gate = with_notes_server().await;
    for agent in [gate.legacy().await, gate.modern()] {
        assert_eq!(agent.refused("crooked__hang", json!({})).await, "server-timeout");
        assert_notes_answers(&agent).await;
    }
    gate.stop().await;
}

#[tokio::test]
async fn overloaded_server_does_not_delay_others() {
    let gate = with_notes_server().await;
    let agent = gate.modern();
    agent.text("crooked__echo", json!({ "text": "up" })).await;
    let url = gate.url("/mcp");
    let mut hanging = tokio::task::JoinSet::new();
    for _ in 0..12 {
        let url = url.clone();
        hanging.spawn(async move {
            Agent::modern(&url, None).refused("crooked__hang", json!({})).await
        });
    }
    // The eight that find no place come back at once, so the four that do hang by now.
    let mut codes = Vec::new();
    for _ in 0..8 {
        codes.push(hanging.join_next().await.unwrap().unwrap());
    }
    assert!(codes.iter().all(|code| code == "server-overloaded"), "{codes:?}");
    assert_eq!(agent.refused("crooked__hang", json!({})).await, "server-overloaded");
    agent.text("notes__read_note", json!({ "name": "welcome" })).await;
    assert!(hanging.try_join_next().is_none(), "the honest call waited for one that hangs");
    let codes = hanging.join_all().await;
    assert_eq!(codes, ["server-timeout"; 4]);
    // The last one, at least, found no room before its intent.
    let refused = gate.records(&["code = server-overloaded and kind = refused"]).await;
    let sent = gate.records(&["code = server-overloaded and kind = outcome"]).await;
    assert_eq!(refused.len() + sent.len(), 9);
    assert!(!refused.is_empty());
    gate.stop().await;
}

#[tokio::test]
async fn crashed_server_is_restarted() {
    let gate = with_notes_server().await;
    let agent = gate.legacy().await;
    assert_eq!(agent.refused("crooked__die", json!({})).await, "server-unavailable");
    in_time("the server to be back", async {
        while agent.call("crooked__echo", json!({ "text": "x" })).await.is_err() {}
    })
    .await;
    assert_notes_answers(&agent).await;
    gate.stop().await;
}

#[tokio::test]
async fn container_that_ends_during_a_call_is_restarted() {
    let gate = Setup::crooked("").runtime("container").start().await;
    let agent = gate.modern();
    let hanging = tokio::spawn({
        let agent = gate.modern();
        async move { agent.refused("crooked__hang", json!({})).await }
    });
    until("the call to be under way", async || {
        let stats = gate.cli(&["server", "stats", "--format", "json"]).await.expect(0);
        (stats[0]["instances"][0]["active"] == 1).then_some(())
    })
    .await;
    assert_eq!(agent.refused("crooked__die", json!({})).await, "server-unavailable");
    assert_eq!(hanging.await.unwrap(), "server-unavailable");
    until("the server to be back", async || {
        agent.call("crooked__echo", json!({ "text": "x" })).await.ok()
    })
    .await;
    gate.stop().await;
}

#[tokio::test]
async fn failed_start_is_not_repeated_for_every_call() {
    let crooked = crate::support::server("crooked");
    let gate = Setup::new(&format!(
        "[servers.dead]\ncommand = [{crooked:?}, \"dead\"]\nruntime = \"sandbox\""
    ))
    .start()
    .await;
    let agent = gate.modern();
    until("a call that starts nothing", async || {
        let error = agent.call("dead__echo", json!({})).await.unwrap_err();
        let reason = error["data"]["code"].as_str().unwrap_or_default().to_owned();
        assert!(["server-unavailable", "unknown-target"].contains(&&reason[..]), "{error:#}");
        let listed = gate.cli(&["server", "ls", "--format", "json"]).await.expect(0);
        listed.to_string().contains("it failed a moment ago").then_some(())
    })
    .await;
    gate.stop().await;
}

#[tokio::test]
async fn flooding_server_affects_no_others() {
    let gate = with_notes_server().await;
    let agent = gate.modern();
    for tool in ["crooked__flood", "crooked__flood_stderr"] {
        // Whatever came of the call itself, it came.
        let _ = agent.call(tool, json!({ "mib": 32 })).await;
        in_time("the server to be back", async {
            while agent.call("crooked__echo", json!({ "text": "x" })).await.is_err() {}
        })
        .await;
        assert_notes_answers(&agent).await;
    }
    let log: usize = gate.log().iter().map(String::len).sum();
    assert!(log < 4 << 20, "a server filled the log with {log} bytes");
    gate.stop().await;
}

#[tokio::test]
async fn oversized_response_is_refused() {
    let gate = with_notes_server().await;
    let agent = gate.modern();
    let code = agent.refused("crooked__huge", json!({ "mib": 4 })).await;
    assert!(["server-unavailable", "server-misbehaved"].contains(&&code[..]), "{code}");
    in_time("the server to be back", async {
        while agent.call("crooked__echo", json!({ "text": "x" })).await.is_err() {}
    })
    .await;
    assert_notes_answers(&agent).await;
    gate.stop().await;
}

#[tokio::test]
async fn malformed_server_messages_are_not_forwarded() {
    let gate = with_notes_server().await;
    for agent in [gate.legacy().await, gate.modern()] {
        assert_eq!(agent.text("crooked__babble", json!({})).await, "babbled");
        assert_eq!(agent.text("crooked__twice", json!({})).await, "once");
        assert_eq!(agent.text("crooked__stranger", json!({})).await, "for you");
        assert_eq!(agent.refused("crooked__no_result", json!({})).await, "server-misbehaved");
        assert_notes_answers(&agent).await;
    }
    gate.stop().await;
}

#[tokio::test]
async fn server_requests_need_a_permit() {
    let gate = Setup::crooked("")
        .policies("@id(\"clients\")\npermit (principal, action in Portcullis::Action::\"from_client\", resource);\n")
        .start()
        .await;
    let agent = gate.legacy().await;
    let params = json!({ "name": "crooked__ask_client", "arguments": {} });
    let request = json!({ "jsonrpc": "2.0", "id": 5, "method": "tools/call", "params": params });
    let answered = agent.send(request).await;
    assert!(
        answered.messages.iter().all(|m| m["method"] != "sampling/createMessage"),
        "{:#?}",
        answered.messages
    );
    let records = gate.records(&["--decision", "refused"]).await;
    let asked = records.iter().find(|record| record["method"] == "sampling/createMessage");
    assert_eq!(asked.expect("a record")["direction"], "server-to-client", "{records:#?}");
    gate.stop().await;
}

#[tokio::test]
async fn servers_that_cannot_start_do_not_affect_others() {
    let crooked = crate::support::server("crooked");
    let crooked = crooked.display();
    let gate = Setup::notes()
        .and(&format!(
            r#"
            [servers.dead]
            command = ["{crooked}", "dead"]
            runtime = "sandbox"
            start-timeout-s = 2
            [servers.silent]
            command = ["{crooked}", "silent"]
            runtime = "sandbox"
            start-timeout-s = 2
            [servers.babble]
            command = ["{crooked}", "babble"]
            runtime = "sandbox"
            start-timeout-s = 2
            [servers.away]
            url = "http://127.0.0.1:9/mcp"
            start-timeout-s = 2
            "#
        ))
        .start()
        .await;
    for agent in [gate.legacy().await, gate.modern()] {
        let names = agent.names("tools/list").await;
        assert!(names.iter().any(|name| name == "notes__read_note"), "{names:?}");
        for server in ["dead", "silent", "away"] {
            let code = agent.refused(&format!("{server}__echo"), json!({})).await;
            let codes = ["server-unavailable", "server-timeout", "unknown-target"];
            assert!(codes.contains(&&code[..]), "{server}: {code}");
        }
        agent.text("notes__read_note", json!({ "name": "welcome" })).await;
    }
    gate.stop().await;
}

#[tokio::test]
async fn server_that_never_lists_is_omitted_from_lists() {
    let crooked = crate::support::server("crooked");
    let gate = Setup::notes()
        .and(&format!(
            r#"
            [servers.mute]
            command = ["{}", "mute"]
            runtime = "sandbox"
            call-timeout-s = 600
            "#,
            crooked.display()
        ))
        .start()
        .await;
    // A list is answered long before the server's own deadline.
    let (legacy, modern) = (gate.legacy().await, gate.modern());
    let lists = async { tokio::join!(legacy.names("tools/list"), modern.names("tools/list")) };
    let (legacy, modern) = in_time("the lists", lists).await;
    for names in [legacy, modern] {
        assert!(names.iter().any(|name| name == "notes__read_note"), "{names:?}");
        assert!(!names.iter().any(|name| name.starts_with("mute__")), "{names:?}");
    }
    gate.stop().await;
}

#[tokio::test]
async fn idle_servers_are_stopped_and_started_again() {
    let gate = Setup::new(
        r#"
        [servers.notes]
        command = ["portcullis", "example-server", "notes"]
        runtime = "sandbox"
        env = { GATE = "{mark}" }
        idle-stop-s = 1
        "#,
    )
    .start()
    .await;
    let agent = gate.modern();
    agent.text("notes__read_note", json!({ "name": "welcome" })).await;
    crate::support::until("the idle server to be gone", async || {
        crate::support::marked(&gate.mark).is_empty().then_some(())
    })
    .await;
    agent.text("notes__read_note", json!({ "name": "welcome" })).await;
    gate.stop().await;
}

#[tokio::test]
async fn responses_reach_their_own_clients() {
    let gate = Setup::crooked("concurrent = 200").start().await;
    let mut asking = tokio::task::JoinSet::new();
    for number in 0..60 {
        let url = gate.url("/mcp");
        asking.spawn(async move {
            let agent = match number % 2 {
                0 => Agent::legacy(&url, None).await.unwrap(),
                _ => Agent::modern(&url, None),
            };
            // All of them use the same ids.
            for turn in 0..5 {
                let text = format!("{number}/{turn}");
                assert_eq!(agent.text("crooked__echo", json!({ "text": text })).await, text);
            }
        });
    }
    while let Some(done) = asking.join_next().await {
        done.unwrap();
    }
    gate.stop().await;
}

#[tokio::test]
async fn queued_call_runs_once_a_call_in_flight_ends() {
    let gate = Setup::crooked("call-timeout-s = 3\nconcurrent = 1").start().await;
    let url = gate.url("/mcp");
    let hanging =
        tokio::spawn(
            async move { Agent::modern(&url, None).refused("crooked__hang", json!({})).await },
        );
    crate::support::until("the call to be in flight", async || {
        let records = gate.records(&["--tool", "hang"]).await;
        (!records.is_empty()).then_some(())
    })
    .await;
    assert_eq!(gate.modern().text("crooked__echo", json!({ "text": "x" })).await, "x");
    assert_eq!(hanging.await.unwrap(), "server-timeout");
    gate.stop().await;
}

#[tokio::test]
async fn disconnected_client_releases_its_permit() {
    let gate = Setup::crooked("call-timeout-s = 3600\nconcurrent = 1\nqueue = 0").start().await;
    let url = gate.url("/mcp");
    let hanging =
        tokio::spawn(
            async move { Agent::modern(&url, None).call("crooked__hang", json!({})).await },
        );
    crate::support::until("the call to be under way", async || {
        let records = gate.records(&["--tool", "hang"]).await;
        (!records.is_empty()).then_some(())
    })
    .await;
    let agent = gate.modern();
    assert_eq!(agent.refused("crooked__echo", json!({ "text": "x" })).await, "server-overloaded");
    hanging.abort();
    crate::support::until("its place to be free", async || {
        agent.call("crooked__echo", json!({ "text": "x" })).await.ok()
    })
    .await;
    let records = gate.records(&["--tool", "hang"]).await;
    assert!(records.iter().any(|record| record["decision"] == "cancelled"), "{records:#?}");
    gate.stop().await;
}
