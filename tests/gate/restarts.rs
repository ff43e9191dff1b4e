//! Health checks, restarts without a lost call, and the trial call after a pause.

use serde_json::{Value, json};

use crate::support::{
    gate::{Gate, Setup},
    in_time, marked, until,
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
async fn unresponsive_server_is_replaced() {
    for runtime in ["sandbox", "container"] {
        let gate =
            Setup::crooked("health-s = 1\nhealth-timeout-s = 1").runtime(runtime).start().await;
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
}

#[tokio::test]
async fn health_checks_do_not_keep_an_idle_server_running() {
    for runtime in ["sandbox", "container"] {
        let gate = Setup::crooked("health-s = 1\nidle-stop-s = 3").runtime(runtime).start().await;
        gate.modern().call("crooked__echo", echo()).await.unwrap();
        until("it to be let go", async || marked(&gate.mark).is_empty().then_some(())).await;
        let ended = until("its end to be on record", async || {
            gate.records(&["event = server-stopped"]).await.into_iter().next()
        })
        .await;
        assert!(ended["reason"].as_str().unwrap().contains("idle for"), "{ended:#?}");
        gate.stop().await;
    }
}

#[tokio::test]
async fn server_with_a_waiting_call_is_not_idle() {
    let more = "idle-stop-s = 1\nstart-timeout-s = 600\ncall-timeout-s = 600";
    let other = "[servers.other]\ncommand = [\"{crooked}\"]\nruntime = \"sandbox\"\n\
                 idle-stop-s = 1\nenv = { GATE = \"{mark}\" }";
    let written = Setup::holding(more).and(other).write();
    let held = ["initialize", "tools/list"];
    held.iter().for_each(|method| written.hold(method));
    let gate = written.start().await;
    let agent = gate.modern();
    let call = tokio::spawn(async move { agent.text("crooked__echo", echo()).await });
    for (n, method) in held.iter().enumerate() {
        gate.held("crooked", method).await;
        // What nobody uses is ended by then.
        gate.modern().call("other__echo", echo()).await.unwrap();
        until("the other one's end", async || {
            let ended = gate.records(&["event = server-stopped"]).await;
            let others = ended.iter().filter(|end| end["server"] == "other");
            (others.count() > n).then_some(())
        })
        .await;
        gate.let_go(method);
    }
    assert_eq!(in_time("the answer", call).await.unwrap(), "x");
    let launched = gate.records(&["event = server-launched"]).await;
    assert_eq!(
        launched.iter().filter(|one| one["server"] == "crooked").count(),
        1,
        "{launched:#?}"
    );
    gate.stop().await;
}

#[tokio::test]
async fn restart_loses_no_call() {
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
    assert_eq!(ended[0]["reason"], "it was restarted");
    gate.stop().await;
}

#[tokio::test]
async fn stopped_server_refuses_calls_until_it_is_started() {
    let gate = Setup::crooked("warm = 1").start().await;
    let agent = gate.modern();
    agent.call("crooked__echo", echo()).await.unwrap();
    let slow = tokio::spawn({
        let agent = gate.modern();
        async move { agent.text("crooked__slow", json!({ "ms": 3_000 })).await }
    });
    until("the call to be under way", async || {
        (stats(&gate).await["instances"][0]["active"] == 1).then_some(())
    })
    .await;
    let stopped = gate.cli(&["server", "stop", "crooked", "--format", "json"]).await.expect(0);
    assert_eq!(stopped, json!({ "instances": 1, "calls": 1 }));
    assert_eq!(agent.refused("crooked__echo", echo()).await, "server-unavailable");
    // The call in flight finishes, then all processes end, and none is started in advance.
    assert_eq!(slow.await.unwrap(), "at last");
    until("it to be gone", async || marked(&gate.mark).is_empty().then_some(())).await;
    let status = gate.cli(&["status", "--format", "json"]).await.expect(0);
    assert_eq!(status["running"], true);
    assert!(status["address"].as_str().unwrap().starts_with("http://127.0.0.1:"), "{status}");
    assert_eq!(status["servers"][0]["stoppedByOperator"], true, "{status:#}");
    assert_eq!(agent.refused("crooked__echo", echo()).await, "server-unavailable");
    assert!(marked(&gate.mark).is_empty());
    gate.cli(&["server", "stop", "crooked", "--format", "json"]).await.expect(0);

    gate.cli(&["server", "start", "crooked", "--format", "json"]).await.expect(0);
    assert!(!marked(&gate.mark).is_empty());
    agent.call("crooked__echo", echo()).await.unwrap();
    let ended = gate.records(&["event = server-stopped"]).await;
    assert!(ended.iter().any(|end| end["reason"] == "an operator stopped it"), "{ended:#?}");
    let asked = gate.records(&["event = admin-action"]).await;
    let asked: Vec<_> = asked.iter().filter_map(|one| one["verb"].as_str()).collect();
    for verb in ["POST /v1/servers/crooked/stop", "POST /v1/servers/crooked/start"] {
        assert!(asked.contains(&verb), "{asked:?}");
    }
    gate.stop().await;
}

#[tokio::test]
async fn failed_restart_keeps_the_old_process() {
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
    assert!(failed.stderr.contains("was not restarted"), "{failed:#?}");
    agent.call("crooked__echo", echo()).await.unwrap();
    assert_eq!(marked(&gate.mark), before);
    gate.stop().await;
}

#[tokio::test]
async fn changed_policies_end_the_old_process_during_a_restart() {
    // The second start waits for as long as there is a file.
    let wait =
        "while [ -e /flag/wait ]; do read -t 1 x < /flag/never || :; done; exec /data/crooked";
    let written = Setup::new(&format!(
        "[servers.crooked]\ncommand = [\"/bin/sh\", \"-c\", {wait:?}]\nruntime = \"sandbox\"\n\
         mounts = [\"{{folder}}/flag:/flag\", \"{{folder}}/bin:/data\"]\n\
         env = {{ GATE = \"{{mark}}\" }}\nstart-timeout-s = 300\ncall-timeout-s = 300"
    ))
    .file("flag/never", "")
    .file("bin/none", "")
    .write();
    std::fs::copy(crate::support::server("crooked"), written.path("bin/crooked")).unwrap();
    let gate = written.start().await;
    let agent = gate.modern();
    agent.call("crooked__echo", echo()).await.unwrap();
    let before = marked(&gate.mark);
    std::fs::write(gate.path("flag/wait"), "").unwrap();
    let restart = async { gate.cli(&["server", "restart", "crooked"]).await };
    let meanwhile = async {
        until("the next to be on its way", async || {
            (marked(&gate.mark).len() > before.len()).then_some(())
        })
        .await;
        // What runs takes calls all the same.
        agent.call("crooked__echo", echo()).await.unwrap();
        let forbid =
            "@id(\"no\") forbid (principal, action == Portcullis::Action::\"launch\", resource);";
        std::fs::write(gate.path("policies/no.cedar"), forbid).unwrap();
        until("the old one to be ended", async || {
            let now = marked(&gate.mark);
            before.iter().all(|pid| !now.contains(pid)).then_some(())
        })
        .await;
        std::fs::remove_file(gate.path("flag/wait")).unwrap();
    };
    tokio::join!(restart, meanwhile);
    until("the new one to be ended", async || marked(&gate.mark).is_empty().then_some(())).await;
    assert_eq!(agent.refused("crooked__echo", echo()).await, "policy-denied");
    gate.stop().await;
}

#[tokio::test]
async fn trial_call_waiting_for_its_client_does_not_block_others() {
    let gate = Setup::everything("legacy").start().await;
    let mut agent = gate.modern();
    agent.abilities = json!({ "elicitation": {} });
    let asked = async || {
        let asked = agent.call("everything__test_elicitation", json!({ "message": "?" })).await;
        asked.ok().filter(|asked| asked["resultType"] == "input_required").map(drop)
    };
    // It ends each time before it has answered anything.
    for _ in 0..3 {
        until("a question", asked).await;
        let all = marked(&gate.mark);
        all.iter().for_each(|pid| crate::support::kill_9(*pid));
        until("their end", async || marked(&gate.mark).is_empty().then_some(())).await;
    }
    until("the one that tries it to wait for a person", asked).await;
    until("another to try it", async || {
        agent.call("everything__test_simple_text", json!({})).await.ok()
    })
    .await;
    gate.stop().await;
}

#[tokio::test]
async fn restart_replaces_warm_processes() {
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
async fn after_the_pause_only_one_trial_call_runs() {
    let gate = Setup::crooked("").start().await;
    let agent = gate.modern();
    until("it to be let alone", async || {
        let error = agent.call("crooked__die", json!({})).await.unwrap_err();
        let code = error["data"]["code"].as_str().unwrap().to_owned();
        if code == "server-circuit-open" {
            assert!(error["data"]["retryAfterMs"].as_u64().unwrap() > 0, "{error:#}");
        }
        (code == "server-circuit-open").then_some(())
    })
    .await;
    // The one that tries it hangs; all others are told at once.
    let url = gate.url("/mcp");
    let trial = tokio::spawn(async move {
        let agent = crate::support::agent::Agent::modern(&url, None);
        while let Err(error) = agent.call("crooked__slow", json!({ "ms": 5_000 })).await {
            assert_eq!(error["data"]["code"], "server-circuit-open");
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    });
    until("the trial to be under way", async || {
        (stats(&gate).await["instances"][0]["active"] == 1).then_some(())
    })
    .await;
    assert_eq!(agent.refused("crooked__echo", echo()).await, "server-circuit-open");
    crate::support::in_time("the trial", trial).await.unwrap();
    // It was answered, so it is there for all again.
    agent.call("crooked__echo", echo()).await.unwrap();
    gate.stop().await;
}
