//! Secrets that change while the proxy runs: their files are followed, and all are read again on SIGHUP.

use std::{os::unix::fs::PermissionsExt as _, path::Path};

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::support::{
    agent::Agent,
    gate::{Gate, Setup},
    marked, until,
};

/// A value that nothing else looks like.
fn value(n: u8) -> String {
    ["hunter", "2", "renewed", &n.to_string()].concat()
}

fn with(from: &str, how: &str) -> Setup {
    Setup::crooked(&format!("secrets = {{ TOKEN = {{ from = \"{from}\", as = \"{how}\" }} }}"))
        .shown()
}

async fn on_file(agent: &Agent) -> String {
    agent.text("crooked__environment", json!({ "name": "TOKEN_FILE", "read": true })).await
}

async fn in_environment(agent: &Agent) -> String {
    agent.text("crooked__environment", json!({ "name": "TOKEN" })).await
}

async fn becomes(agent: &Agent, wanted: &str) {
    until(&format!("`{wanted}` in the server's file"), async || {
        (on_file(agent).await == wanted).then_some(())
    })
    .await;
}

/// Puts a new file in the place of the old at once, as careful programs do.
fn replace(path: &Path, text: &str) {
    let new = path.with_extension("new");
    std::fs::write(&new, text).unwrap();
    std::fs::rename(new, path).unwrap();
}

async fn of_event(gate: &Gate, event: &str) -> Vec<Value> {
    let mut records = gate.records(&[&format!("event = {event}")]).await;
    records.sort_by_key(|record| record["time"].to_string());
    records
}

#[tokio::test]
async fn changed_file_is_read_without_a_command_or_a_restart() {
    for (from, text) in [("file:token", ""), ("dotenv:token#TOKEN", "TOKEN=")] {
        let text = |n| format!("{text}{}\n", value(n));
        let gate = with(from, "file").file("token", text(1)).start().await;
        let agent = gate.modern();
        assert_eq!(on_file(&agent).await, value(1), "{from}");
        let before = marked(&gate.mark);
        replace(&gate.path("token"), &text(2));
        becomes(&agent, &value(2)).await;
        std::fs::write(gate.path("token"), text(3)).unwrap();
        becomes(&agent, &value(3)).await;
        assert_eq!(marked(&gate.mark), before, "{from}: it was started again");
        // Each hand-over is on record; what is looked for is what was handed over at any time.
        let handed = of_event(&gate, "secrets-delivered").await;
        assert_eq!(handed.len(), 3, "{from}: {handed:?}");
        assert!(handed.iter().all(|record| record["launch"] == handed[0]["launch"]));
        for n in 1..4 {
            let code = agent.refused("crooked__echo", json!({ "text": value(n) })).await;
            assert_eq!(code, "secret-found", "{from}: {n}");
        }
        gate.stop().await;
    }
}

/// Kubernetes has the files of a secret in a folder, links them by way of a link to that folder, and
/// exchanges this one link.
#[tokio::test]
async fn changed_mounted_secret_of_kubernetes_is_read() {
    use std::os::unix::fs::symlink;

    let written = with("file:mounted/token", "file").file("mounted/..1/token", value(1)).write();
    let mounted = written.path("mounted");
    symlink("..1", mounted.join("..data")).unwrap();
    symlink("..data/token", mounted.join("token")).unwrap();
    let gate = written.start().await;
    let agent = gate.modern();
    assert_eq!(on_file(&agent).await, value(1));
    std::fs::create_dir(mounted.join("..2")).unwrap();
    std::fs::write(mounted.join("..2/token"), value(2)).unwrap();
    symlink("..2", mounted.join("..data_tmp")).unwrap();
    std::fs::rename(mounted.join("..data_tmp"), mounted.join("..data")).unwrap();
    std::fs::remove_dir_all(mounted.join("..1")).unwrap();
    becomes(&agent, &value(2)).await;
    gate.stop().await;
}

#[tokio::test]
async fn failed_reread_leaves_the_old_value_and_is_recorded() {
    let gate = with("file:token", "file").file("token", value(1)).start().await;
    let agent = gate.modern();
    assert_eq!(on_file(&agent).await, value(1));
    std::fs::remove_file(gate.path("token")).unwrap();
    let failed = until("the failure on record", async || {
        of_event(&gate, "secret-unresolved").await.into_iter().next()
    })
    .await;
    assert_eq!((&failed["secret"], &failed["kept"]), (&json!("TOKEN"), &json!(true)), "{failed}");
    assert_eq!(on_file(&agent).await, value(1));
    std::fs::write(gate.path("token"), value(2)).unwrap();
    becomes(&agent, &value(2)).await;
    gate.stop().await;
}

#[tokio::test]
async fn environment_secret_changes_at_the_next_start() {
    let mut gate = with("file:token", "env").file("token", value(1)).start().await;
    let agent = gate.modern();
    assert_eq!(in_environment(&agent).await, value(1));
    let before = marked(&gate.mark);
    replace(&gate.path("token"), &value(2));
    gate.logged("what a restart is needed for", |line| {
        line.contains("its next start") && line.contains("TOKEN")
    })
    .await;
    let outdated =
        until("the record", async || of_event(&gate, "secrets-stale").await.into_iter().next())
            .await;
    assert_eq!(outdated["secrets"], json!(["TOKEN"]), "{outdated}");
    assert_eq!(outdated["server"], "crooked", "{outdated}");
    // The same again is no news.
    let rotated = gate.cli(&["secret", "rotate", "crooked", "--format", "json"]).await.expect(0);
    let wanted = json!({ "secrets": ["TOKEN"], "instances": 0, "later": ["TOKEN"] });
    assert_eq!(rotated["rotation"], wanted);
    assert_eq!(of_event(&gate, "secrets-stale").await.len(), 1);
    assert_eq!(in_environment(&agent).await, value(1));
    assert_eq!(marked(&gate.mark), before, "it was started again");
    for n in 1..3 {
        let code = agent.refused("crooked__echo", json!({ "text": value(n) })).await;
        assert_eq!(code, "secret-found", "{n}");
    }
    gate.cli(&["server", "restart", "crooked", "--format", "json"]).await.expect(0);
    assert_eq!(in_environment(&agent).await, value(2));
    let rotated = gate.cli(&["secret", "rotate", "crooked", "--format", "json"]).await.expect(0);
    assert_eq!(rotated["rotation"]["later"], json!([]));
    let told = format!("{:?}{:?}", gate.records(&[]).await, gate.log());
    assert!(!told.contains("hunter"), "{told}");
    gate.stop().await;
}

#[tokio::test]
async fn server_restarts_for_a_new_secret_if_configured() {
    let gate = with("file:token", "env")
        .and("restart-on-rotation = true")
        .file("token", value(1))
        .start()
        .await;
    let agent = gate.modern();
    assert_eq!(in_environment(&agent).await, value(1));
    replace(&gate.path("token"), &value(2));
    until("the new value", async || (in_environment(&agent).await == value(2)).then_some(())).await;
    gate.stop().await;
}

/// A keeper that has something else to say after a while, and that nobody can follow.
#[tokio::test]
async fn hangup_signal_rereads_every_source() {
    let from = "docker-credential:gate/https://example.com";
    let written = with(from, "file").file("kept", value(1)).file(
        "docker-credential-gate",
        "#!/bin/sh\nprintf '{\"ServerURL\":\"https://example.com\",\"Username\":\"x\",\"Secret\":\"%s\"}' \
         \"$(cat \"$(dirname \"$0\")/kept\")\"\n",
    );
    let path = std::env::var("PATH").unwrap();
    let written = written.write();
    let folder = written.path("docker-credential-gate");
    std::fs::set_permissions(&folder, std::fs::Permissions::from_mode(0o755)).unwrap();
    let path = format!("{}:{path}", folder.parent().unwrap().display());
    let gate = written.with_env("PATH", &path).start().await;
    let agent = gate.modern();
    assert_eq!(on_file(&agent).await, value(1));
    let before = marked(&gate.mark);
    replace(&gate.path("kept"), &value(2));
    gate.signal(Signal::SIGHUP);
    becomes(&agent, &value(2)).await;
    // Nothing is new: nothing is handed over.
    gate.signal(Signal::SIGHUP);
    let read = |log: &[String]| log.iter().filter(|line| line.contains("secrets re-read")).count();
    until("the second reading", async || (read(&gate.log()) == 2).then_some(())).await;
    assert_eq!(of_event(&gate, "secrets-delivered").await.len(), 2);
    assert_eq!(marked(&gate.mark), before);
    gate.stop().await;
}

/// The server that can hold back its greeting.
fn holding(how: &str, more: &str) -> Setup {
    let secrets = format!("secrets = {{ TOKEN = {{ from = \"file:token\", as = \"{how}\" }} }}");
    Setup::holding(&format!("{secrets}\n{more}")).shown().file("token", value(1))
}

#[tokio::test]
async fn replacement_instance_has_a_secret_read_during_its_start() {
    let gate = holding("file", "").start().await;
    let agent = gate.modern();
    assert_eq!(on_file(&agent).await, value(1));
    gate.hold("initialize");
    let rotated = async {
        gate.held("crooked", "initialize").await;
        replace(&gate.path("token"), &value(2));
        // What still runs has it at once.
        becomes(&agent, &value(2)).await;
        gate.let_go("initialize");
    };
    let (restarted, ()) = tokio::join!(gate.cli(&["server", "restart", "crooked"]), rotated);
    assert_eq!(restarted.code, Some(0), "{restarted:?}");
    becomes(&agent, &value(2)).await;
    gate.stop().await;
}

#[tokio::test]
async fn failed_start_for_a_new_secret_is_retried() {
    let more = "restart-on-rotation = true\nstart-timeout-s = 3";
    let mut gate = holding("env", more).start().await;
    let agent = gate.modern();
    assert_eq!(in_environment(&agent).await, value(1));
    gate.hold("initialize");
    replace(&gate.path("token"), &value(2));
    gate.logged("the failure", |line| line.contains("was not restarted")).await;
    assert_eq!(in_environment(&agent).await, value(1));
    gate.let_go("initialize");
    // Nobody asks, and nothing else changes.
    until("the new value", async || (in_environment(&agent).await == value(2)).then_some(())).await;
    gate.stop().await;
}

#[tokio::test]
async fn hanging_instance_does_not_delay_secrets_of_others() {
    let gate = holding("file", "start-timeout-s = 600\ncall-timeout-s = 600").start().await;
    // Each has an instance of its own, since it can be asked something.
    let (one, other) = (gate.legacy().await, gate.legacy().await);
    assert_eq!(on_file(&one).await, value(1));
    gate.hold("initialize");
    let starting = tokio::spawn(async move {
        on_file(&other).await;
        other
    });
    gate.held("crooked", "initialize").await;
    for n in 2..5 {
        replace(&gate.path("token"), &value(n));
        becomes(&one, &value(n)).await;
    }
    gate.let_go("initialize");
    // It was started with what there was then, and has what there is.
    let other = starting.await.unwrap();
    becomes(&other, &value(4)).await;
    gate.stop().await;
}

#[tokio::test]
async fn hanging_server_does_not_delay_other_secrets_or_the_config() {
    let other = "[servers.other]\ncommand = [\"{crooked}\"]\nruntime = \"sandbox\"\n\
                 env = { GATE = \"{mark}\" }\n\
                 secrets = { TOKEN = { from = \"file:others\", as = \"file\" } }";
    let more = "restart-on-rotation = true\nstart-timeout-s = 600";
    let mut gate = holding("env", more).and(other).file("others", value(3)).start().await;
    let agent = gate.modern();
    let others = async || {
        let asked = json!({ "name": "TOKEN_FILE", "read": true });
        agent.text("other__environment", asked).await
    };
    assert_eq!(others().await, value(3));
    let besides = marked(&gate.mark);
    assert_eq!(in_environment(&agent).await, value(1));
    gate.hold("initialize");
    replace(&gate.path("token"), &value(2));
    gate.held("crooked", "initialize").await;
    replace(&gate.path("others"), &value(4));
    until("the other's new value", async || (others().await == value(4)).then_some(())).await;
    gate.signal(Signal::SIGHUP);
    gate.logged("that all is read", |line| line.contains("no changes")).await;
    // The operator takes it out.
    let config = gate.config();
    let (from, to) = (config.find("[servers.crooked]"), config.find("[servers.other]"));
    gate.put(&[&config[..from.unwrap()], &config[to.unwrap()..]].concat());
    gate.logged("the change", |line| line.contains("config reloaded")).await;
    until("the end of both", async || (marked(&gate.mark) == besides).then_some(())).await;
    replace(&gate.path("others"), &value(5));
    until("the other's newest", async || (others().await == value(5)).then_some(())).await;
    gate.stop().await;
}
