//! `kill -9` of a server, of a container, of the proxy: no orphans stay.

use nix::sys::signal::Signal;
use serde_json::json;

use crate::support::{
    engine::{containers, docker, servers_image},
    gate::Setup,
    kill_9, marked, until,
};

fn in_container() -> Setup {
    Setup::crooked("").runtime("container")
}

#[tokio::test]
async fn killed_server_is_replaced() {
    let gate = Setup::crooked("").start().await;
    let agent = gate.modern();
    agent.text("crooked__echo", json!({ "text": "x" })).await;
    let before = marked(&gate.mark);
    assert!(!before.is_empty());
    // The deepest process is the server; those above it watch.
    kill_9(*before.iter().max().unwrap());
    until("the server's whole tree to be replaced", async || {
        agent.call("crooked__echo", json!({ "text": "x" })).await.ok()?;
        let now = marked(&gate.mark);
        (!now.is_empty() && now.iter().all(|pid| !before.contains(pid))).then_some(())
    })
    .await;
    gate.stop().await;
}

#[tokio::test]
async fn children_end_with_their_server() {
    for setup in [Setup::crooked(""), in_container()] {
        let gate = setup.start().await;
        let agent = gate.modern();
        agent.call("crooked__spawn", json!({})).await.unwrap();
        let mark = gate.mark.clone();
        gate.stop().await;
        assert!(containers(&mark).is_empty());
        assert!(crate::support::marked(&mark).is_empty());
    }
}

#[tokio::test]
async fn killed_container_is_replaced_and_removed() {
    let gate = in_container().start().await;
    let agent = gate.modern();
    agent.text("crooked__echo", json!({ "text": "x" })).await;
    let before = containers(&gate.mark);
    assert_eq!(before.len(), 1);
    docker(&["kill", &before[0]]);
    until("a new container, and the old one gone", async || {
        agent.call("crooked__echo", json!({ "text": "x" })).await.ok()?;
        let now = containers(&gate.mark);
        (now.len() == 1 && now != before).then_some(())
    })
    .await;
    let mark = gate.mark.clone();
    gate.stop().await;
    assert!(containers(&mark).is_empty());
}

#[tokio::test]
async fn sandboxes_end_with_a_killed_proxy() {
    let gate = Setup::crooked("").start().await;
    let agent = gate.modern();
    agent.text("crooked__echo", json!({ "text": "x" })).await;
    // One that would rather not go: it does not read its input.
    let hanging = agent.call("crooked__hang", json!({}));
    let started = until("the server to run", async || {
        let running = marked(&gate.mark);
        (!running.is_empty()).then_some(running)
    });
    tokio::select! {
        _ = hanging => panic!("it hangs"),
        _ = started => {}
    }
    let written = gate.kill_9().await;
    until("the sandbox to be gone", async || marked(&written.mark).is_empty().then_some(())).await;
}

#[tokio::test]
async fn containers_of_a_killed_proxy_are_removed_by_its_restart() {
    let image = servers_image();
    // One ends when its input does; the other does not care.
    let gate = Setup::new(&format!(
        r#"
        [servers.crooked]
        command = ["{{crooked}}"]
        runtime = "container"
        env = {{ GATE = "{{mark}}" }}
        [servers.stubborn]
        image = "{image}"
        command = ["python3", "-c", "import time; time.sleep(3600)"]
        env = {{ GATE = "{{mark}}" }}
        start-timeout-s = 60
        "#
    ))
    .start()
    .await;
    let agent = gate.modern();
    agent.text("crooked__echo", json!({ "text": "x" })).await;
    let url = gate.url("/mcp");
    let waiting = tokio::spawn(async move {
        let stubborn = crate::support::agent::Agent::modern(&url, None);
        stubborn.call("stubborn__anything", json!({})).await
    });
    until("both containers to run", async || (containers(&gate.mark).len() == 2).then_some(()))
        .await;
    let written = gate.kill_9().await;
    waiting.abort();
    let mark = written.mark.clone();
    let left = containers(&mark);
    let gate = written.start().await;
    until("the old containers to be gone", async || {
        let now = containers(&mark);
        now.iter().all(|id| !left.contains(id)).then_some(())
    })
    .await;
    gate.stop().await;
    assert!(containers(&mark).is_empty());
}

#[tokio::test]
async fn second_proxy_keeps_containers_of_the_first() {
    let first = in_container().start().await;
    let agent = first.modern();
    agent.text("crooked__echo", json!({ "text": "x" })).await;
    let before = containers(&first.mark);
    let second = in_container().start().await;
    second.modern().text("crooked__echo", json!({ "text": "x" })).await;
    second.stop().await;
    assert_eq!(containers(&first.mark), before);
    agent.text("crooked__echo", json!({ "text": "x" })).await;
    first.stop().await;
}

#[tokio::test]
async fn bridge_ends_with_its_client() {
    let gate = Setup::notes().start().await;
    let mut bridge = tokio::process::Command::new(crate::support::portcullis())
        .args(["connect", "--config"])
        .arg(gate.path("portcullis.toml"))
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    drop(bridge.stdin.take());
    let status = crate::support::in_time("the bridge's end", bridge.wait()).await.unwrap();
    assert_eq!(status.code(), Some(0));
    gate.signal(Signal::SIGTERM);
    let mut gate = gate;
    assert_eq!(gate.ended().await.code(), Some(0));
}
