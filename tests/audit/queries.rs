//! `portcullis audit query` and `stats` at the command line.

use std::{path::Path, process::Output};

use assert_cmd::cargo::cargo_bin;
use portcullis_protocol::refusal::Code;
use serde_json::Value;
use tokio::process::Command;

use crate::common::{call, exchange, find, intent, open, outcome, query, refuse};

const DOCS: &str =
    concat!(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."), "/docs/reference/audit-queries.md");

async fn run(state_dir: &Path, args: &[&str]) -> Output {
    let mut command = Command::new(cargo_bin("portcullis"));
    command.args(["audit", "--state-dir"]).arg(state_dir).args(args).kill_on_drop(true);
    command.stdin(std::process::Stdio::null()).output().await.unwrap()
}

fn text(output: &Output) -> &str {
    assert!(output.status.success(), "{output:?}");
    std::str::from_utf8(&output.stdout).unwrap()
}

fn json(output: &Output) -> Vec<Value> {
    text(output).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Three calls that passed, two that were refused, one that is under way.
async fn write(state_dir: &Path) {
    let audit = open(&state_dir.join("audit"));
    for client in ["ci-bot", "ci-bot", "dev"] {
        let passed = exchange(client, "notes", "read");
        intent(&audit, &passed).await.unwrap();
        outcome(&audit, &passed).await.unwrap();
    }
    for code in [Code::PolicyDenied, Code::RateLimited] {
        refuse(&audit, &exchange("dev", "github", "delete_repo"), code).await.unwrap();
    }
    intent(&audit, &call()).await.unwrap();
}

#[tokio::test]
async fn filters_and_options_are_combined() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path()).await;
    let count = async |args: &[&str]| -> String {
        let all = [&["query", "--count"], args].concat();
        text(&run(dir.path(), &all).await).trim().to_owned()
    };
    for (args, wanted) in [
        (&[][..], "5"),
        (&["client = dev"], "3"),
        (&["client", "=", "dev"], "3"),
        (&["--client", "dev"], "3"),
        (&["tool ~ \"delete_*\"", "--code", "rate-limited"], "1"),
        (&["--decision", "refused", "--until", "1h"], "0"),
        (&["--rule", "no-destructive", "--since", "today"], "2"),
        (&["has refusal or client = ci-bot"], "4"),
        (&["kind = intent"], "4"),
        (&["--calls"], "5"),
        (&["--calls", "kind = event"], "0"),
        (&["--intents"], "9"),
        (&["time > 1h ago and total < 1h and not server = github"], "3"),
    ] {
        assert_eq!(count(args).await, wanted, "{args:?}");
    }
    let wrong = run(dir.path(), &["query", "clint = dev"]).await;
    let words = String::from_utf8_lossy(&wrong.stderr);
    assert_eq!(wrong.status.code(), Some(1), "{wrong:?}");
    assert!(words.contains("did you mean `client`?") && words.contains("╰── unknown"), "{words}");
}

#[tokio::test]
async fn fields_and_groups_are_printed_as_tables_and_json() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path()).await;
    let fields = ["query", "decision = refused", "--fields", "client,tool,code,rule"];
    assert_eq!(
        text(&run(dir.path(), &fields).await),
        "CLIENT  TOOL         CODE           RULE\n\
         dev     delete_repo  rate-limited   no-destructive\n\
         dev     delete_repo  policy-denied  no-destructive\n"
    );
    let found = json(&run(dir.path(), &[&fields[..], &["--format", "json"]].concat()).await);
    let wanted =
        r#"{"client":"dev","tool":"delete_repo","code":"rate-limited","rule":["no-destructive"]}"#;
    assert_eq!(found[0].to_string(), wanted);

    let groups = ["query", "--group", "client,decision"];
    assert_eq!(
        text(&run(dir.path(), &groups).await),
        "COUNT  CLIENT  DECISION\n2      ci-bot  allowed\n2      dev     refused\n\
         1      dev     allowed\n"
    );
    let found = json(&run(dir.path(), &[&groups[..], &["--format", "json"]].concat()).await);
    assert_eq!(found[0].to_string(), r#"{"client":"ci-bot","decision":"allowed","count":2}"#);
    for (args, said) in [
        (&["query", "--group", "id"][..], "hardly two records"),
        (&["query", "--group", "rule,label"], "several values"),
        (&["query", "--fields", "clint"], "did you mean `client`?"),
    ] {
        let output = run(dir.path(), args).await;
        assert_eq!(output.status.code(), Some(2), "{output:?}");
        assert!(String::from_utf8_lossy(&output.stderr).contains(said), "{output:?}");
    }
}

#[tokio::test]
async fn json_output_is_the_hashed_line() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path()).await;
    let printed = run(dir.path(), &["query", "--intents", "--format", "json"]).await;
    let printed: Vec<_> = text(&printed).lines().map(str::to_owned).collect();
    let audit = open(&dir.path().join("audit"));
    let page = audit.archive().query(query("")).await.unwrap();
    let lines: Vec<_> = page.lines.iter().map(|line| line.json().to_owned()).collect();
    assert_eq!(printed, lines);
    for (later, earlier) in page.lines.iter().zip(&page.lines[1..]) {
        assert_eq!(later.head().unwrap().prev, earlier.hash());
    }
}

#[tokio::test]
async fn statistics_summarize_the_log() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path()).await;
    let printed = run(dir.path(), &["stats"]).await;
    let printed = text(&printed);
    for part in [
        "5 decisions: 2 refused (40.0 %); 0 events; 9 records",
        "decisions: up to 5 in 1 min",
        "CALLS       COUNT  P50",
        "CLIENT  COUNT  REFUSED\ndev     3      2\nci-bot  2      0\n",
        "TOOL                COUNT  REFUSED  P50  ",
        "github/delete_repo  2      2        -",
        "REFUSED OR FAILED: CODE  COUNT\npolicy-denied            1\nrate-limited             1\n",
        "REFUSED: RULE   COUNT\nno-destructive  2\n",
    ] {
        assert!(printed.contains(part), "{part}\n\n{printed}");
    }
    let output = run(dir.path(), &["stats", "client = ci-bot", "--format", "json"]).await;
    let summary: Value = serde_json::from_str(text(&output)).unwrap();
    let summary = &summary["summary"];
    assert_eq!((&summary["decisions"], &summary["refused"]), (&2.into(), &0.into()));
    assert_eq!(summary["servers"][0]["name"], "notes");
    let tool = &summary["tools"]["top"][0];
    assert_eq!((&tool["name"], &tool["latency"]["count"]), (&"notes/read".into(), &0.into()));
    assert_eq!(summary["latency"]["total"]["count"], 2);
}

#[tokio::test]
async fn documented_examples_work() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path()).await;
    let docs = std::fs::read_to_string(DOCS).unwrap();
    let bin = cargo_bin("portcullis");
    let path = format!("{}:/usr/bin:/bin", bin.parent().unwrap().display());
    let mut examples = 0;
    for line in docs.lines().filter_map(|line| line.strip_prefix("$ portcullis audit ")) {
        let command = format!("portcullis audit --state-dir \"$STATE\" {line}");
        let output = Command::new("sh")
            .args(["-c", &command])
            .env("PATH", &path)
            .env("STATE", dir.path())
            .output()
            .await
            .unwrap();
        assert!(output.status.success(), "{line}: {output:?}");
        examples += 1;
    }
    assert!(examples >= 8);
    // What the docs say of intents: `kind` shows them all.
    let audit = open(&dir.path().join("audit"));
    assert_eq!(find(&audit, query("kind = intent")).await.len(), 4);
}
