//! Instances are asked whether they are well, replaced without a call being lost, and tried with one
//! call after a rest.

use serde_json::{Value, json};

use crate::support::{
    gate::{Gate, Setup},
    marked, until,
};

fn echo() -> Value {
    json!({ "text": "x" })
}

/// Stops the server itself, which is the deepest process, without ending it.
fn freeze(gate: &Gate) -> Vec<i32> {
    let before = marked(&gate.mark);
    let server = nix::unistd::Pid::from_raw(*before.iter().max().unwrap());
    nix::sys::signal::kill(server, nix::sys::signal::Signal::SIGSTOP).unwrap();
    before
}

async fn stats(gate: &Gate) -> Value {
    gate.cli(&["server", "stats", "--format", "json"]).await.expect(0)[0].clone()
}

#[tokio::test]
async fn one_that_does_not_answer_is_ended_and_replaced() {
    let gate = Setup::crooked("health-s = 1\nhealth-timeout-s = 1").start().await;
    let agent = gate.modern();
    agent.call("crooked__echo", echo()).await.unwrap();
    until("it to have said that it is well", async || {
        stats(&gate).await["instances"][0]["answeredMs"].as_f64().map(drop)
    })
    .await;
    let before = freeze(&gate);
    // Nobody calls it, and it is replaced all the same.
    until("another in its place", async || {
        let now = marked(&gate.mark);
        (!now.is_empty() && now.iter().all(|pid| !before.contains(pid))).then_some(())
    })
    .await;
    agent.call("crooked__echo", echo()).await.unwrap();
    let ended = gate.records(&["event = server-stopped"]).await;
    assert!(ended.iter().any(|end| end["reason"].as_str().unwrap().contains("`health-s`")));
    let stats = stats(&gate).await;
    assert_eq!(stats["unwell"], 1, "{stats:#}");
    gate.stop().await;
}

#[tokio::test]
async fn to_be_asked_keeps_no_idle_one_alive() {
    let gate = Setup::crooked("health-s = 1\nidle-stop-s = 3").start().await;
    gate.modern().call("crooked__echo", echo()).await.unwrap();
    until("it to be let go", async || marked(&gate.mark).is_empty().then_some(())).await;
    let ended = gate.records(&["event = server-stopped"]).await;
    assert!(ended[0]["reason"].as_str().unwrap().contains("nobody used it"), "{ended:#?}");
    gate.stop().await;
}

#[tokio::test]
async fn a_restart_loses_no_call() {
    let gate = Setup::crooked("").start().await;
    let agent = gate.modern();
    agent.call("crooked__echo", echo()).await.unwrap();
    let before = marked(&gate.mark);
    let slow = tokio::spawn({
        let agent = gate.modern();
        async move { agent.text("crooked__slow", json!({ "ms": 4_000 })).await }
    });
    until("the call to be under way", async || {
        (stats(&gate).await["instances"][0]["active"] == 1).then_some(())
    })
    .await;
    let restarted = gate.cli(&["server", "restart", "crooked", "--format", "json"]).await.expect(0);
    assert_eq!(restarted, json!({ "instances": 1, "calls": 1 }));
    // The new one answers while the old one is still at its call.
    agent.call("crooked__echo", echo()).await.unwrap();
    let stats = stats(&gate).await;
    let leaving = |one: &&Value| one["leaving"] == true;
    assert_eq!(stats["instances"].as_array().unwrap().iter().filter(leaving).count(), 1);
    assert_eq!(slow.await.unwrap(), "at last");
    until("the old one to be gone", async || {
        let now = marked(&gate.mark);
        (!now.is_empty() && now.iter().all(|pid| !before.contains(pid))).then_some(())
    })
    .await;
    let ended = gate.records(&["event = server-stopped"]).await;
    assert_eq!(ended.len(), 1);
    assert_eq!(ended[0]["reason"], "it was started anew");
    gate.stop().await;
}

#[tokio::test]
async fn what_does_not_start_anew_goes_on() {
    // It starts once: the second time, its program is gone.
    let folder = tempfile::tempdir().unwrap();
    let program = folder.path().join("once");
    std::fs::copy(crate::support::server("crooked"), &program).unwrap();
    let gate = Setup::new(&format!(
        "[servers.crooked]\ncommand = [{program:?}]\nruntime = \"sandbox\"\nenv = {{ GATE = \"{{mark}}\" }}"
    ))
    .start()
    .await;
    let agent = gate.modern();
    agent.call("crooked__echo", echo()).await.unwrap();
    let before = marked(&gate.mark);
    std::fs::remove_file(&program).unwrap();
    let failed = gate.cli(&["server", "restart", "crooked"]).await;
    assert_eq!(failed.code, Some(1), "{failed:#?}");
    assert!(failed.stderr.contains("was not started anew"), "{failed:#?}");
    agent.call("crooked__echo", echo()).await.unwrap();
    assert_eq!(marked(&gate.mark), before);
    gate.stop().await;
}

#[tokio::test]
async fn spares_are_renewed_with_the_rest() {
    let gate = Setup::crooked("warm = 1").start().await;
    let warm = async || (stats(&gate).await["warm"] == 1).then_some(());
    until("a spare", warm).await;
    gate.modern().call("crooked__echo", echo()).await.unwrap();
    until("another spare", warm).await;
    let before = marked(&gate.mark);
    gate.cli(&["server", "restart", "crooked"]).await;
    until("all to be new", async || {
        let now = marked(&gate.mark);
        warm().await?;
        (now.len() == before.len() && now.iter().all(|pid| !before.contains(pid))).then_some(())
    })
    .await;
    gate.stop().await;
}

#[tokio::test]
async fn after_a_rest_one_call_tries_it_and_others_are_told() {
    let gate = Setup::crooked("").start().await;
    let agent = gate.modern();
    until("it to be let alone", async || {
        let error = agent.call("crooked__die", json!({})).await.unwrap_err();
        let code = error["data"]["code"].as_str().unwrap().to_owned();
        if code == "server-resting" {
            assert!(error["data"]["retryAfterMs"].as_u64().unwrap() > 0, "{error:#}");
        }
        (code == "server-resting").then_some(())
    })
    .await;
    // The one that tries it hangs; all others are told at once.
    let url = gate.url("/mcp");
    let trial = tokio::spawn(async move {
        let agent = crate::support::agent::Agent::modern(&url, None);
        while let Err(error) = agent.call("crooked__slow", json!({ "ms": 5_000 })).await {
            assert_eq!(error["data"]["code"], "server-resting");
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    });
    until("the trial to be under way", async || {
        (stats(&gate).await["instances"][0]["active"] == 1).then_some(())
    })
    .await;
    assert_eq!(agent.refused("crooked__echo", echo()).await, "server-resting");
    crate::support::in_time("the trial", trial).await.unwrap();
    // It was answered, so it is there for all again.
    agent.call("crooked__echo", echo()).await.unwrap();
    gate.stop().await;
}
