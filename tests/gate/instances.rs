//! Number, clients, starts and pauses of a server's processes.

use serde_json::{Value, json};

use crate::support::{
    PERMIT_ALL,
    agent::Agent,
    gate::{Gate, Setup},
    marked, peers, remote, until,
};

/// What `portcullis server stats` tells of the one server.
async fn stats(gate: &Gate) -> Value {
    gate.cli(&["server", "stats", "--format", "json"]).await.expect(0)[0].clone()
}

/// Waits until so many processes wait for a first word.
async fn warm(gate: &Gate, count: usize) {
    until(&format!("{count} spares"), async || (stats(gate).await["warm"] == count).then_some(()))
        .await;
}

fn echo() -> Value {
    json!({ "text": "x" })
}

#[tokio::test]
async fn warm_process_serves_the_first_message_and_is_replaced() {
    let gate = Setup::crooked("warm = 1").start().await;
    warm(&gate, 1).await;
    // It runs, as somebody may well see, and greeted nobody.
    assert_eq!(marked(&gate.mark).len(), 1);
    let launched = gate.records(&["event = server-launching"]).await;
    let [spare] = launched.as_slice() else { panic!("one launch: {launched:#?}") };
    assert!(gate.records(&["event = server-launched"]).await.is_empty());

    let agent = gate.modern();
    agent.call("crooked__echo", echo()).await.unwrap();
    let started = gate.records(&["event = server-launched"]).await;
    assert_eq!(started.len(), 1, "{started:#?}");
    assert_eq!(started[0]["launch"], spare["launch"], "{started:#?}");
    warm(&gate, 1).await;
    // Decided and recorded ahead, when it was taken, and the next one ahead.
    let launched = gate.records(&["event = server-launching"]).await;
    assert_eq!(launched.len(), 3);
    assert_eq!(launched.iter().filter(|one| one["launch"] == spare["launch"]).count(), 2);
    assert_eq!(marked(&gate.mark).len(), 2);

    // One that dies while it waits is replaced, and was an end like any other.
    let ended = gate.records(&["event = server-stopped"]).await.len();
    let spares: Vec<_> = marked(&gate.mark);
    let newest = *spares.iter().max().unwrap();
    crate::support::kill_9(newest);
    until("the end of the spare to be on record", async || {
        (gate.records(&["event = server-stopped"]).await.len() > ended).then_some(())
    })
    .await;
    warm(&gate, 1).await;
    let mark = gate.mark.clone();
    gate.stop().await;
    assert!(marked(&mark).is_empty());
}

/// A warm process has no owner until a client gets it, and then belongs to that client only.
#[tokio::test]
async fn warm_process_belongs_to_the_client_that_uses_it() {
    let setup = Setup::crooked("warm = 3\nsharing = \"per-client\"").keyed();
    let written = setup.write();
    let (a, b) = (written.add_client("a", &[]).await, written.add_client("b", &[]).await);
    let gate = written.start().await;
    for key in [&a, &b] {
        warm(&gate, 3).await;
        let agent = Agent::modern(&gate.url("/mcp"), Some(key));
        agent.call("crooked__echo", echo()).await.unwrap();
    }
    warm(&gate, 3).await;
    let launched = gate.records(&["event = server-launching"]).await;
    let mut by_launch = std::collections::BTreeMap::<_, Vec<_>>::new();
    for one in launched.iter().rev() {
        let launch = one["launch"].as_str().unwrap().to_owned();
        by_launch.entry(launch).or_default().push(one["principal"].as_str().map(str::to_owned));
    }
    let mut takers: Vec<_> = by_launch.into_values().collect();
    takers.sort();
    let taken = |who: Option<&str>| vec![None, who.map(str::to_owned)];
    // Those that wait, the common one that tells what there is, and the two clients'.
    let waits = || vec![None];
    let all = [waits(), waits(), waits(), taken(None), taken(Some("a")), taken(Some("b"))];
    assert_eq!(takers, all, "{launched:#?}");
    assert_eq!(clients(&gate).await, ["", "a", "b"]);
    gate.stop().await;
}

#[tokio::test]
async fn warm_process_ends_when_policies_forbid_it() {
    let gate = Setup::crooked("warm = 2").policies(PERMIT_ALL).without_launches().start().await;
    warm(&gate, 2).await;
    let denied = format!(
        "{PERMIT_ALL} @id(\"not-this\") forbid (principal, action == \
         Portcullis::Action::\"launch\", resource);"
    );
    std::fs::write(gate.path("policies/gate.cedar"), denied).unwrap();
    until("the spares to be ended", async || marked(&gate.mark).is_empty().then_some(())).await;
    let agent = gate.modern();
    assert_eq!(agent.refused("crooked__echo", echo()).await, "policy-denied");
    gate.stop().await;
}

/// The clients for which instances run, in order.
async fn clients(gate: &Gate) -> Vec<String> {
    let stats = stats(gate).await;
    let instances = stats["instances"].as_array().unwrap().iter();
    let mut clients: Vec<_> =
        instances.map(|one| one["client"].as_str().unwrap_or("").to_owned()).collect();
    clients.sort();
    clients
}

#[tokio::test]
async fn sharing_setting_separates_clients_and_sessions() {
    for (sharing, expected) in [
        ("per-client", vec!["", "a", "b"]),
        ("per-session", vec!["", "a", "a", "b", "b"]),
        ("auto", vec![""]),
    ] {
        let setup = Setup::crooked(&format!("sharing = \"{sharing}\"")).keyed();
        let written = setup.write();
        let (a, b) = (written.add_client("a", &[]).await, written.add_client("b", &[]).await);
        let gate = written.start().await;
        let url = gate.url("/mcp");
        for key in [&a, &b] {
            for _ in 0..2 {
                // The server can ask them nothing: there is no other reason to keep them apart.
                let agent = Agent::legacy_without_abilities(&url, Some(key)).await;
                agent.call("crooked__echo", echo()).await.unwrap();
            }
        }
        assert_eq!(clients(&gate).await, expected, "{sharing}");
        gate.stop().await;
    }
}

/// A connection to a remote server is an instance too.
#[tokio::test]
async fn sessions_without_capabilities_share_the_instance_of_a_remote_server() {
    let url = peers::polled().await;
    let gate = Setup::new(&format!("[servers.remote]\nurl = \"{url}\"")).start().await;
    let echoed = async |agent: Agent| assert_eq!(agent.text("remote__echo", echo()).await, "x");
    for _ in 0..2 {
        echoed(Agent::legacy_without_abilities(&gate.url("/mcp"), None).await).await;
    }
    assert_eq!(clients(&gate).await, [""]);
    echoed(gate.legacy().await).await;
    assert_eq!(clients(&gate).await, ["", "anonymous"]);
    gate.stop().await;
}

/// A modern server could serve all clients with one process, and gets one for each.
#[tokio::test]
async fn sharing_setting_separates_clients_of_a_modern_server() {
    let written = Setup::everything("modern").keyed();
    let written = written.and("sharing = \"per-client\"").write();
    let (a, b) = (written.add_client("a", &[]).await, written.add_client("b", &[]).await);
    let gate = written.start().await;
    for key in [&a, &b] {
        let agent = Agent::modern(&gate.url("/mcp"), Some(key));
        agent.call("everything__greet", json!({ "name": "x" })).await.unwrap();
    }
    assert_eq!(clients(&gate).await, ["", "a", "b"]);
    gate.stop().await;
}

#[tokio::test]
async fn calls_are_distributed_among_replicas() {
    let gate = Setup::crooked("replicas = 2").start().await;
    let agent = gate.modern();
    agent.call("crooked__echo", echo()).await.unwrap();
    assert_eq!(clients(&gate).await.len(), 1, "a second one that nobody needs yet");
    let hang = || {
        let agent = gate.modern();
        tokio::spawn(async move { agent.call("crooked__hang", json!({})).await })
    };
    let active = async || {
        let stats = stats(&gate).await;
        let instances = stats["instances"].as_array().unwrap().clone();
        let mut active: Vec<_> =
            instances.iter().map(|one| one["active"].as_u64().unwrap()).collect();
        active.sort_unstable();
        active
    };
    let first = hang();
    until("the first to be busy", async || (active().await == [1]).then_some(())).await;
    // It finds the one busy, and has the other started.
    agent.call("crooked__echo", echo()).await.unwrap();
    until("the second to run", async || (active().await.len() == 2).then_some(())).await;
    let mut calls = vec![first];
    for expected in [vec![1, 1], vec![1, 2], vec![2, 2]] {
        calls.push(hang());
        until("one more to be busy", async || (active().await == expected).then_some(())).await;
    }
    // Whichever it reaches ends, with both of its calls.
    assert_eq!(agent.refused("crooked__die", json!({})).await, "server-unavailable");
    until("one to be free", async || matches!(active().await[..], [2] | [0, 2]).then_some(()))
        .await;
    // Who took turns would give the other one of them.
    calls.extend([hang(), hang()]);
    until("that one to have both", async || (active().await == [2, 2]).then_some(())).await;
    calls.iter().for_each(tokio::task::JoinHandle::abort);
    gate.stop().await;
}

#[tokio::test]
async fn repeated_crashes_open_the_circuit() {
    for runtime in ["sandbox", "container"] {
        let gate = Setup::crooked("").runtime(runtime).start().await;
        let agent = gate.modern();
        // Each call ends a process that had answered nothing.
        let mut falls = 0;
        let why = until("it to be let alone", async || {
            let error = agent.call("crooked__die", json!({})).await.unwrap_err();
            let code = error["data"]["code"].as_str().unwrap();
            assert!(["server-unavailable", "server-circuit-open"].contains(&code), "{error:#}");
            falls += 1;
            let listed = gate.cli(&["server", "ls", "--format", "json"]).await.expect(0);
            let failure = listed[0]["failure"].as_str()?.to_owned();
            failure.contains("soon after its start").then_some(failure)
        })
        .await;
        assert!(falls >= 3 && why.contains("it ended 3 times"), "{falls}: {why}");
        // Then one call tries it, and what it answers counts.
        until("it to answer", async || agent.call("crooked__echo", echo()).await.ok()).await;
        assert_eq!(agent.refused("crooked__die", json!({})).await, "server-unavailable");
        until("it to answer at once", async || agent.call("crooked__echo", echo()).await.ok())
            .await;
        let listed = gate.cli(&["server", "ls", "--format", "json"]).await.expect(0);
        assert_eq!(listed[0]["failure"], Value::Null);
        gate.stop().await;
    }
}

/// Such a server has one instance for each era.
#[tokio::test]
async fn server_of_both_eras_is_called_in_the_clients_era() {
    let both = &["2025-11-25", "2026-07-28"][..];
    for (era, more, expected) in [
        ("both", "", both),
        ("both", "sharing = \"shared\"", &both[1..]),
        ("both", "era = \"legacy\"", &both[..1]),
        // The legacy era is tried for the legacy client, in a process of its own.
        ("modern", "", &["2026-07-28"; 2][..]),
        ("legacy", "", &both[..1]),
    ] {
        let gate = Setup::everything(era).and(more).start().await;
        let url = gate.url("/servers/everything/mcp");
        let legacy = Agent::legacy_without_abilities(&url, None).await;
        let modern = Agent::modern(&url, None);
        for agent in [&legacy, &modern] {
            agent.call("test_simple_text", json!({})).await.unwrap();
            if expected == both {
                // Not translated.
                let missing = agent.ask("resources/read", json!({ "uri": "test://nothing" })).await;
                let code = if std::ptr::eq(agent, &modern) { -32602 } else { -32002 };
                assert_eq!(missing.unwrap_err()["code"], code);
            }
        }
        assert!(legacy.greeting["_meta"].is_null(), "{era} {more}: {:#}", legacy.greeting);
        assert_eq!(legacy.greeting["serverInfo"]["name"], "everything");
        let launched = gate.records(&["event = server-launched"]).await;
        let mut revisions: Vec<_> =
            launched.iter().map(|one| one["revision"].as_str().unwrap()).collect();
        revisions.sort_unstable();
        assert_eq!(revisions, expected, "{era} {more}: {launched:#?}");
        gate.stop().await;
    }
}

/// A server's lists can depend on the requests that its client accepts.
#[tokio::test]
async fn client_gets_the_lists_of_its_instance() {
    let url = remote::offering().await;
    let gate = Setup::new(&format!("[servers.remote]\nurl = \"{url}\"")).start().await;
    let url = gate.url("/mcp");
    let askable = Agent::legacy(&url, None).await.unwrap();
    let others = [Agent::legacy_without_abilities(&url, None).await, gate.modern()];
    for _ in 0..2 {
        let mut names = askable.names("tools/list").await;
        names.sort();
        assert_eq!(names, ["remote__draft", "remote__echo"]);
        for other in &others {
            assert_eq!(other.names("tools/list").await, ["remote__echo"]);
        }
    }
    assert_eq!(askable.text("remote__draft", json!({})).await, "draft");
    for other in &others {
        assert_eq!(other.text("remote__echo", json!({})).await, "echo");
        assert_eq!(other.refused("remote__draft", json!({})).await, "unknown-target");
    }
    gate.stop().await;
}
