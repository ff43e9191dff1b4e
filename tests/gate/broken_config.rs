//! Commands reach a running proxy although the config on disk became invalid.

use std::{fs, process::Stdio};

use serde_json::json;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};

use crate::support::{
    agent::Agent,
    gate::{Ended, Gate, Setup},
    in_time, portcullis,
};

/// What follows is not TOML, or means nothing.
const BROKEN: &[&str] = &["\n[servers.half\n", "\n[servers.other]\nimgae = \"x\"\n", "\nx = \"\n"];

async fn running() -> Gate {
    let gate = Setup::notes().start().await;
    gate.modern().text("notes__list_notes", json!({})).await;
    gate
}

fn save(gate: &Gate, more: &str) {
    gate.put(&(gate.config() + more));
}

/// It answered, and said what is wrong with the file.
fn answered(ended: &Ended) {
    assert_eq!(ended.code, Some(0), "{ended:#?}");
    let said = ["portcullis.toml:", "can't be used", "is asked all the same", "portcullis check"];
    assert!(said.iter().all(|part| ended.stderr.contains(part)), "{ended:#?}");
}

#[tokio::test]
async fn invalid_config_does_not_prevent_queries() {
    for broken in BROKEN {
        let gate = running().await;
        gate.add_client("leaver", &[]).await;
        save(&gate, broken);
        for (args, part) in [
            (&["server", "ls"][..], "notes"),
            (&["server", "stats"], "sandbox"),
            (&["server", "stats", "notes"], "sandbox"),
            (&["server", "tools", "notes"], "add_note"),
            (&["server", "logs", "notes", "--format", "json"], "["),
            (&["server", "restart", "notes"], "restarted"),
            (&["tools", "ls"], "notes__add_note"),
            (&["tools", "call", "notes__list_notes"], ""),
            (&["approve", "ls", "--format", "json"], "[]"),
            (&["audit", "tail"], "notes"),
            (&["audit", "query", "client = anonymous"], ""),
            (&["audit", "checkpoint"], ""),
            (&["secret", "rotate", "notes"], "0 secrets"),
            (&["client", "rm", "leaver", "--format", "json"], "true"),
        ] {
            let ended = gate.cli(args).await;
            answered(&ended);
            assert!(ended.stdout.contains(part), "{args:?}: {ended:#?}");
        }
        // A server that the proxy has not is told by the proxy.
        let ended = gate.cli(&["server", "restart", "nots"]).await;
        assert!(ended.code == Some(1) && ended.stderr.contains("`nots`"), "{ended:#?}");
        let doctor = gate.cli(&["doctor", "--format", "json"]).await.expect(11);
        let checks = doctor["checks"].as_array().unwrap();
        let said = |name, part| {
            checks.iter().any(|check| {
                check["name"] == name && check["detail"].as_str().unwrap().contains(part)
            })
        };
        assert!(said("server", "`notes` is"), "{checks:#?}");
        gate.stop().await;
    }
}

#[tokio::test]
async fn invalid_config_does_not_prevent_a_bridge() {
    let gate = running().await;
    save(&gate, BROKEN[0]);
    let mut bridge = tokio::process::Command::new(portcullis())
        .args(["connect", "--config"])
        .arg(gate.path("portcullis.toml"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let ask = json!({ "jsonrpc": "2.0", "id": 1, "method": "ping" });
    let mut input = bridge.stdin.take().unwrap();
    input.write_all(format!("{ask}\n").as_bytes()).await.unwrap();
    let mut lines = BufReader::new(bridge.stdout.take().unwrap()).lines();
    let answer = in_time("an answer", lines.next_line()).await.unwrap().unwrap();
    assert!(answer.contains("\"id\":1"), "{answer}");
    drop(input);
    in_time("the bridge's end", bridge.wait()).await.unwrap();
    gate.stop().await;
}

#[tokio::test]
async fn option_replaces_an_unreadable_state_folder() {
    let gate = running().await;
    let whole = gate.config();
    gate.put(&whole.replace("state-dir = \"state\"", "state-dir = \"state"));
    let state = gate.path("state");
    for args in [&["server", "stats"][..], &["approve", "ls"], &["tools", "ls"], &["audit", "tail"]]
    {
        unanswered(&gate.cli(args).await);
        let args = [args, &["--state-dir", state.to_str().unwrap()]].concat();
        let ended = gate.cli(&args).await;
        assert_eq!(
            (ended.code, ended.stderr.contains("can't be used")),
            (Some(0), false),
            "{ended:#?}"
        );
    }
    // Nobody is asked who is not there.
    let ended = gate.cli(&["server", "ls", "--state-dir", "/nowhere"]).await;
    assert!(ended.code == Some(1) && ended.stderr.contains("no proxy runs with"), "{ended:#?}");
    gate.put(&whole);
    let written = gate.stop().await;
    // Without a proxy there is nothing but the finding.
    written.put("x");
    let ended = written.cli(&["server", "ls"]).await;
    assert!(ended.code == Some(1) && ended.stderr.contains("config-syntax"), "{ended:#?}");
}

/// Nobody was asked, and it was said what is wrong and what to do.
fn unanswered(ended: &Ended) {
    assert_eq!((ended.code, ended.stdout.as_str()), (Some(1), ""), "{ended:#?}");
    let said = ["config-syntax", "does not say any more", "--state-dir", "--socket"];
    assert!(said.iter().all(|part| ended.stderr.contains(part)), "{ended:#?}");
}

/// The folder has the invalid config of one proxy, and the state of another in the default folder.
#[tokio::test]
async fn commands_never_reach_the_proxy_of_another_config() {
    let written = Setup::notes().write();
    let whole = written.config();
    let others = whole.replace("state-dir = \"state\"\n", "");
    written.put(&others);
    let other = written.start().await;
    assert!(other.path(".portcullis/admin.sock").exists());
    let key = other.add_client("stays", &[]).await;
    for state_dir in
        ["state-dir = \"state", "state-dir \"state\"", "x = \"\"\"\nstate-dir = \"state\""]
    {
        other.put(&whole.replace("state-dir = \"state\"", state_dir));
        for args in [
            &["server", "ls"][..],
            &["server", "restart", "notes"],
            &["tools", "call", "notes__list_notes"],
            &["approve", "ls"],
            &["audit", "query", "client = anonymous"],
            &["secret", "rotate", "notes"],
            &["client", "rm", "stays"],
            &["connect"],
        ] {
            unanswered(&other.cli(args).await);
        }
        let doctor = other.cli(&["doctor", "--format", "json"]).await.expect(11);
        let checks = doctor["checks"].as_array().unwrap();
        assert!(checks.iter().all(|check| check["name"] != "server"), "{checks:#?}");
    }
    other.put(&others);
    let agent = Agent::modern(&other.url("/mcp"), Some(&key));
    agent.text("notes__list_notes", json!({})).await;
    assert_eq!(other.records(&["event = client-removed"]).await, [json!(null); 0]);
    other.stop().await;
}

/// Only `admin.socket` identifies the proxy, and the default folder has the clients of another.
#[tokio::test]
async fn key_is_removed_only_from_the_proxys_own_folder() {
    let door = "[admin]\nsocket = \"{folder}/door/admin.sock\"";
    let gate = Setup::notes().and(door).start().await;
    let key = gate.add_client("leaver", &[]).await;
    let stale = gate.path(".portcullis/clients.toml");
    fs::create_dir(gate.path(".portcullis")).unwrap();
    fs::copy(gate.path("state/clients.toml"), &stale).unwrap();
    let before = fs::read(&stale).unwrap();
    let whole = gate.config();
    for state_dir in ["state-dir = \"state", "state-dir = \"elsewhere\""] {
        gate.put(&whole.replace("state-dir = \"state\"", state_dir));
        let ended = gate.cli(&["server", "ls"]).await;
        assert!(ended.code == Some(0) && ended.stdout.contains("notes"), "{ended:#?}");
        for args in [&["client", "rm", "leaver"][..], &["client", "add", "comer"]] {
            let ended = gate.cli(args).await;
            assert_eq!((ended.code, ended.stdout.as_str()), (Some(1), ""), "{args:?}: {ended:#?}");
        }
    }
    let ended = gate.cli(&["client", "rm", "leaver"]).await;
    assert!(ended.stderr.contains("its clients are not to be found"), "{ended:#?}");
    assert_eq!(fs::read(&stale).unwrap(), before);
    assert!(!gate.path("elsewhere/clients.toml").exists());
    gate.put(&whole);
    assert_eq!(gate.records(&["event = client-removed"]).await, [json!(null); 0]);
    Agent::modern(&gate.url("/mcp"), Some(&key)).text("notes__list_notes", json!({})).await;
    gate.stop().await;
}

#[tokio::test]
async fn socket_variable_applies_only_to_audit_commands() {
    let nowhere = "/nowhere/admin.sock";
    let gate = Setup::notes().env("PORTCULLIS_ADMIN_SOCKET", nowhere).start().await;
    for args in [&["server", "restart", "notes"][..], &["tools", "ls"], &["approve", "ls"]] {
        let ended = gate.cli(args).await;
        assert_eq!(ended.code, Some(0), "{args:?}: {ended:#?}");
    }
    let ended = gate.cli(&["audit", "tail"]).await;
    assert!(ended.code == Some(1) && ended.stderr.contains(nowhere), "{ended:#?}");
    gate.stop().await;
}
