//! `portcullis audit`, with and without a running proxy.

use std::{
    path::Path,
    process::{Output, Stdio},
};

use assert_cmd::cargo::cargo_bin;
use portcullis_audit::record::Kind;
use portcullis_gateway::admin::{Server, audit_routes};
use portcullis_protocol::{exchange::Target, names::DecisionId, refusal::Code};
use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    process::Command,
};
use tokio_util::sync::CancellationToken;

use crate::common::{call, exchange, find, intent, open, outcome, query, refuse};

fn portcullis(state_dir: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(cargo_bin("portcullis"));
    command.args(args).args(["--state-dir".as_ref(), state_dir.as_os_str()]).kill_on_drop(true);
    command.stdin(Stdio::null());
    command
}

async fn run(state_dir: &Path, args: &[&str]) -> Output {
    portcullis(state_dir, args).output().await.unwrap()
}

fn text(output: &Output) -> &str {
    assert!(output.status.success(), "{output:?}");
    std::str::from_utf8(&output.stdout).unwrap()
}

fn json(output: &Output) -> Vec<Value> {
    text(output).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Writes a call that passed and one that was refused; returns their ids.
async fn write(state_dir: &Path) -> (DecisionId, DecisionId) {
    let audit = open(&state_dir.join("audit"));
    let passed = call();
    intent(&audit, &passed).await.unwrap();
    outcome(&audit, &passed).await.unwrap();
    let denied = exchange("dev", "github", "delete_repo");
    refuse(&audit, &denied, Code::PolicyDenied).await.unwrap();
    (passed.id, denied.id)
}

#[tokio::test]
async fn log_is_queried_without_a_running_proxy() {
    let dir = tempfile::tempdir().unwrap();
    let (passed, denied) = write(dir.path()).await;

    let all = json(&run(dir.path(), &["--format", "json", "audit", "query"]).await);
    let ids: Vec<_> = all.iter().map(|entry| entry["id"].as_str().unwrap()).collect();
    assert_eq!(ids, [denied.to_string(), passed.to_string()]);
    let refused = ["audit", "query", "--code", "policy-denied", "--since", "1h", "--client", "dev"];
    let table = run(dir.path(), &refused).await;
    let rows: Vec<_> = text(&table).lines().collect();
    assert!(rows[0].starts_with("TIME") && rows.len() == 2, "{rows:?}");
    assert!(rows[1].contains("tools/call github/delete_repo"), "{rows:?}");
    let none = run(dir.path(), &["audit", "query", "--until", "1h"]).await;
    assert_eq!((text(&none), none.stderr.as_slice()), ("", b"no records\n".as_slice()));

    let first = run(dir.path(), &["--format", "json", "audit", "query", "--limit", "1"]).await;
    let cursor = json(&first)[0]["seq"].to_string();
    let hint = String::from_utf8(first.stderr).unwrap();
    assert_eq!(hint, format!("there are more: --after {cursor}\n"));
    let rest = ["--format", "json", "audit", "query", "--after", &cursor];
    assert_eq!(json(&run(dir.path(), &rest).await), all[1..]);

    let shown = run(dir.path(), &["audit", "show", &denied.to_string()]).await;
    assert!(text(&shown).contains("rule      \"no-destructive\"  policies/github.cedar:9"));
    let tail = json(&run(dir.path(), &["--format", "json", "audit", "tail", "-n", "1"]).await);
    assert_eq!(tail, all[..1]);

    let follow = run(dir.path(), &["audit", "tail", "-f"]).await;
    assert_eq!(follow.status.code(), Some(1));
    let unknown = run(dir.path(), &["audit", "show", &DecisionId::next().to_string()]).await;
    assert_eq!(unknown.status.code(), Some(1));
    let nonsense = run(dir.path(), &["audit", "query", "--since", "tomorrow"]).await;
    assert_eq!(nonsense.status.code(), Some(2));
    let missing = run(&dir.path().join("none"), &["audit", "query"]).await;
    assert_eq!(missing.status.code(), Some(1));
    let words = String::from_utf8(missing.stderr).unwrap();
    assert!(words.contains("there is no audit store in"), "{words}");
}

#[tokio::test]
async fn log_of_a_running_proxy_is_queried_through_it() {
    let dir = tempfile::tempdir().unwrap();
    let (passed, denied) = write(dir.path()).await;
    let audit = open(&dir.path().join("audit"));
    let stopping = CancellationToken::new();
    let server = Server::bind(dir.path()).unwrap();
    let routes = audit_routes(audit.clone(), stopping.clone());
    let served = tokio::spawn(server.serve(routes, stopping.clone()));

    let all = json(&run(dir.path(), &["--format", "json", "audit", "query"]).await);
    assert_eq!(all.len(), 2);
    let shown = run(dir.path(), &["--format", "json", "audit", "show", &passed.to_string()]).await;
    let shown: Value = serde_json::from_slice(&shown.stdout).unwrap();
    assert_eq!(shown["records"][0]["record"], "intent");
    assert_eq!(shown["records"][1]["record"], "outcome");

    let args = ["--format", "json", "audit", "tail", "-f", "-n", "1"];
    let mut follower = portcullis(dir.path(), &args).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(follower.stdout.take().unwrap()).lines();
    let mut next = async || -> Option<Value> {
        let line = lines.next_line().await.unwrap()?;
        Some(serde_json::from_str(&line).unwrap())
    };
    assert_eq!(next().await.unwrap()["id"], denied.to_string());
    let later = call();
    intent(&audit, &later).await.unwrap();
    outcome(&audit, &later).await.unwrap();
    let seen = next().await.unwrap();
    assert_eq!((&seen["id"], &seen["record"]), (&later.id.to_string().into(), &"outcome".into()));
    stopping.cancel();
    assert_eq!(next().await, None);
    assert!(follower.wait().await.unwrap().success());
    served.await.unwrap().unwrap();
}

#[tokio::test]
async fn records_cannot_control_the_terminal() {
    let dir = tempfile::tempdir().unwrap();
    let evil = "re\u{1b}]0;title\u{7}ad\r\n\u{9b}2J\u{202e}x";
    let audit = open(&dir.path().join("audit"));
    let mut hostile = call();
    hostile.target = Target::Tool { name: evil.into(), tool: None };
    refuse(&audit, &hostile, Code::Unknown).await.unwrap();
    let found = find(&audit, query("tool contains title")).await;
    assert_eq!(found[0].record.kind(), Kind::Refused);
    drop(audit);
    let id = hostile.id.to_string();
    for args in [
        &["audit", "query"][..],
        &["audit", "tail"],
        &["audit", "show", &id],
        &["--format", "json", "audit", "query"],
        &["--format", "json", "audit", "show", &id],
    ] {
        let output = run(dir.path(), args).await;
        let steering = |c: char| (c.is_control() && c != '\n') || c == '\u{202e}';
        assert!(!text(&output).contains(steering), "{args:?}: {output:?}");
        assert!(!output.stdout.is_empty());
    }
}

#[tokio::test]
async fn records_match_the_published_schema() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path()).await;
    let schema = Command::new(cargo_bin("portcullis"))
        .args(["schema", "audit"])
        .stdin(Stdio::null())
        .output()
        .await
        .unwrap();
    let schema: Value = serde_json::from_slice(&schema.stdout).unwrap();
    let valid = jsonschema::validator_for(&schema).unwrap();
    let all = ["--format", "json", "audit", "query", "--intents"];
    let records = json(&run(dir.path(), &all).await);
    assert_eq!(records.len(), 3);
    for record in records {
        assert!(valid.is_valid(&record), "{:?}", valid.iter_errors(&record).collect::<Vec<_>>());
    }
    assert!(!valid.is_valid(&serde_json::json!({ "record": "intent" })));
}
