//! Handshakes and lists do not wait for a server whose lists are cached: neither after an idle stop
//! nor after a restart of the proxy.

use std::{fs, path::Path};

use serde_json::{Value, json};

use crate::support::{
    agent::Agent,
    gate::{Gate, Setup, Written},
    in_time, marked, until,
};

/// A server that waits before its first word for as long as there is a file `wait`.
fn slow_to_start() -> Written {
    let setup = Setup::new(
        r#"
        [servers.crooked]
        command = ["/bin/sh", "-c", "while [ -e /flag/wait ]; do read -t 1 x < /flag/never || :; done; exec /data/crooked $@"]
        runtime = "sandbox"
        mounts = ["{folder}/flag:/flag", "{folder}/bin:/data"]
        env = { GATE = "{mark}" }
        start-timeout-s = 50
        idle-stop-s = 2
        "#,
    );
    let written = setup.file("flag/never", "").file("bin/none", "").write();
    let here = written.path("bin/crooked");
    fs::copy(crate::support::server("crooked"), &here).unwrap();
    written
}

fn wait(flag: &Path, waits: bool) {
    if waits { fs::write(flag, "").unwrap() } else { fs::remove_file(flag).unwrap() }
}

async fn offers(gate: &Gate) -> Vec<String> {
    in_time("a list", gate.modern().names("tools/list")).await
}

#[tokio::test]
async fn cached_lists_are_served_before_the_server_starts() {
    let written = slow_to_start();
    let flag = written.path("flag/wait");
    let gate = written.start().await;
    let known = offers(&gate).await;
    assert!(known.contains(&"crooked__echo".to_owned()), "{known:?}");
    let kept = gate.path("state/known/crooked.json");
    until("it to be written down", async || kept.exists().then_some(())).await;

    // Let go.
    until("it to be let go", async || marked(&gate.mark).is_empty().then_some(())).await;
    wait(&flag, true);
    assert_eq!(offers(&gate).await, known);
    let agent = gate.modern();
    let call =
        tokio::spawn(async move { agent.call("crooked__echo", json!({ "text": "x" })).await });
    wait(&flag, false);
    // A call waits for the server itself.
    in_time("the call", call).await.unwrap().unwrap();
    let written = gate.stop().await;

    // Started again.
    wait(&flag, true);
    let gate = written.start().await;
    assert_eq!(offers(&gate).await, known);
    let url = gate.url("/servers/crooked/mcp");
    let one = in_time("a greeting", Agent::legacy(&url, None)).await.expect("a session");
    let listed = in_time("its list", one.names("tools/list")).await;
    assert!(listed.contains(&"echo".to_owned()), "{listed:?}");
    let states: Value = gate.cli(&["server", "ls", "--format", "json"]).await.expect(0);
    assert_eq!(states[0]["state"], "stopped", "{states:#}");
    wait(&flag, false);
    in_time("the call", one.call("echo", json!({ "text": "x" }))).await.unwrap();
    let written = gate.stop().await;

    // Another entry of the config offers something else, for all that is known.
    let config = written.path("portcullis.toml");
    let text = fs::read_to_string(&config).unwrap().replace("exec ", "exec  ");
    fs::write(&config, text.replace(" $@\"]", " mute\"]")).unwrap();
    let gate = written.start().await;
    let states = async || gate.cli(&["server", "ls", "--format", "json"]).await.expect(0);
    let url = gate.url("/mcp");
    let asking = tokio::spawn(async move { Agent::modern(&url, None).names("tools/list").await });
    // It is started and asked, and says nothing: then it is missing.
    assert!(in_time("a list", asking).await.unwrap().is_empty());
    let notices = states().await[0]["notices"].to_string();
    assert!(notices.contains("missing from `tools/list`"), "{notices}");
    gate.kill_9().await;
}

#[tokio::test]
async fn call_during_an_idle_stop_waits_for_a_restart() {
    // It is asked to end, says so, and takes its time.
    let script = "exec 3<&0; trap ': > /flag/leaving; kill $!; /bin/sleep 2; exit' TERM; /data/crooked <&3 & wait";
    let setup = Setup::new(&format!(
        r#"
        [servers.crooked]
        command = ["/bin/sh", "-c", {script:?}]
        runtime = "sandbox"
        mounts = ["{{folder}}/flag:/flag:rw", "{{folder}}/bin:/data"]
        env = {{ GATE = "{{mark}}" }}
        era = "legacy"
        idle-stop-s = 1
        "#
    ));
    let written = setup.file("flag/never", "").file("bin/none", "").write();
    fs::copy(crate::support::server("crooked"), written.path("bin/crooked")).unwrap();
    let leaving = written.path("flag/leaving");
    // Its user is another.
    let anybody = std::os::unix::fs::PermissionsExt::from_mode(0o777);
    fs::set_permissions(written.path("flag"), anybody).unwrap();
    let gate = written.start().await;
    let agent = gate.modern();
    agent.call("crooked__echo", json!({ "text": "one" })).await.unwrap();
    until("it to be let go", async || leaving.exists().then_some(())).await;
    let next = agent.call("crooked__echo", json!({ "text": "two" }));
    in_time("the next", next).await.unwrap();
}
