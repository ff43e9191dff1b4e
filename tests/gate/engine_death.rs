//! The engine dies, with or without its processes and the proxy: no orphans stay, foreign
//! containers are kept, and a running proxy continues.
//!
//! Each test has its own engine; the machine's engine serves all others.

use serde_json::json;

use crate::support::{
    gate::{Gate, Setup},
    ground::Ground,
    until,
};

async fn ground() -> Ground {
    tokio::task::spawn_blocking(Ground::start).await.unwrap().unwrap()
}

fn on(ground: &Ground, more: &str) -> Setup {
    Setup::crooked(more)
        .runtime("container")
        .and(&format!("start-timeout-s = 60\n[engine]\nhost = {:?}", ground.host()))
}

async fn echoes(gate: &Gate) {
    let agent = gate.modern();
    let echo = json!({ "text": "x" });
    until("an answer", async || agent.call("crooked__echo", echo.clone()).await.ok()).await;
}

fn bare(ground: &Ground) {
    ground.wait_until_bare().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn proxy_outlives_its_engine() {
    let mut ground = ground().await;
    let gate = on(&ground, "").start().await;
    echoes(&gate).await;
    ground.kill_daemon().unwrap();
    let agent = gate.modern();
    let code = until("a clear error", async || {
        let error = agent.call("crooked__echo", json!({ "text": "x" })).await.err()?;
        Some(error["data"]["code"].as_str().unwrap().to_owned())
    })
    .await;
    assert!(["server-unavailable", "server-circuit-open"].contains(&code.as_str()), "{code}");
    ground.begin().unwrap();
    // The same proxy, which nobody started again.
    echoes(&gate).await;
    gate.stop().await;
    bare(&ground);
}

#[tokio::test(flavor = "multi_thread")]
async fn engine_started_after_the_proxy_is_used_and_reaped() {
    let mut ground = ground().await;
    let gate = on(&ground, "warm = 1").start().await;
    echoes(&gate).await;
    let ours = ground.containers().unwrap();
    assert!(!ours.is_empty());
    let written = gate.kill_9().await;
    ground.lose_power().unwrap();
    // Nobody answers; the proxy runs all the same.
    let mut gate = written.start().await;
    let agent = gate.modern();
    let error = agent.call("crooked__echo", json!({ "text": "x" })).await.unwrap_err();
    assert_eq!(error["data"]["code"], "server-unavailable", "{error:#}");
    let doctor = gate.cli(&["doctor"]).await;
    assert!(doctor.stdout.contains("`crooked` is failed: no container engine"), "{doctor:#?}");
    ground.begin().unwrap();
    gate.logged("the engine", |line| line.contains("container engine is available")).await;
    until("those of before to be gone", async || {
        let now = ground.containers().unwrap();
        ours.iter().all(|id| !now.contains(id)).then_some(())
    })
    .await;
    echoes(&gate).await;
    gate.stop().await;
    bare(&ground);
}

#[tokio::test(flavor = "multi_thread")]
async fn reboot_leaves_only_foreign_containers() {
    let mut ground = ground().await;
    let gate = on(&ground, "warm = 1").start().await;
    echoes(&gate).await;
    until("a spare", async || (ground.containers().unwrap().len() == 2).then_some(())).await;
    let ours = ground.containers().unwrap();
    let image = ground.docker(&["inspect", "--format", "{{.Image}}", &ours[0]]).unwrap();
    // Somebody else's, with a name like ours and a label of ours.
    let label = "dev.portcullis.server=crooked";
    let create = ["create", "--name", "portcullis-mine", "--label", label, "--network", "none"];
    let others = ground.docker(&[&create[..], &[&image]].concat()).unwrap();
    let written = gate.kill_9().await;
    ground.lose_power().unwrap();
    ground.begin().unwrap();
    let gate = written.start().await;
    until("those of before to be gone", async || {
        let now = ground.containers().unwrap();
        ours.iter().all(|id| !now.contains(id)).then_some(())
    })
    .await;
    echoes(&gate).await;
    gate.stop().await;
    assert_eq!(ground.containers().unwrap(), std::slice::from_ref(&others));
    ground.docker(&["rm", &others]).unwrap();
    bare(&ground);
}

#[tokio::test(flavor = "multi_thread")]
async fn servers_of_a_proxy_killed_during_launches_are_reaped() {
    let ground = ground().await;
    let mut written = on(&ground, "warm = 3").write();
    for _ in 0..5 {
        let gate = written.start().await;
        // Some are made, some are not yet.
        until("a first one", async || (!ground.containers().unwrap().is_empty()).then_some(()))
            .await;
        written = gate.kill_9().await;
    }
    let gate = written.start().await;
    echoes(&gate).await;
    gate.stop().await;
    bare(&ground);
}

#[tokio::test(flavor = "multi_thread")]
async fn proxy_killed_with_its_engine_leaves_nothing() {
    let mut ground = ground().await;
    let gate = on(&ground, "").start().await;
    echoes(&gate).await;
    let agent = gate.modern();
    // In the midst of a call.
    let hanging = tokio::spawn(async move { agent.call("crooked__hang", json!({})).await });
    let written = gate.kill_9().await;
    ground.kill_daemon().unwrap();
    let _ = hanging.await;
    ground.begin().unwrap();
    let gate = written.start().await;
    gate.stop().await;
    bare(&ground);
}
