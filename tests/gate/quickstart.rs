//! The README's first steps, with the files that it names.

use serde_json::json;

use crate::support::{gate::Setup, in_time, portcullis, root};

#[tokio::test]
async fn permitted_and_refused_calls_are_recorded() {
    let gate = Setup::quickstart().start().await;
    let agent = gate.legacy().await;

    let listed = agent.call("notes__list_notes", json!({})).await.unwrap();
    assert_eq!(listed["structuredContent"]["notes"][1]["name"], "welcome", "{listed:#}");

    let error = agent.call("notes__delete_note", json!({ "name": "welcome" })).await.unwrap_err();
    assert_eq!(error["data"]["code"], "policy-denied", "{error:#}");
    let decision = error["data"]["decision"].as_str().unwrap();
    // What the agent reads has the id too, and nothing of the rule.
    assert!(error["message"].as_str().unwrap().contains(decision));
    assert!(!error.to_string().contains("notes-are-not-destroyed"));

    // The note is still there.
    let read = agent.text("notes__read_note", json!({ "name": "welcome" })).await;
    assert!(read.contains("behind Portcullis"));

    let refused = gate.cli(&["audit", "show", decision, "--format", "json"]).await;
    let refused = refused.expect(0).to_string();
    assert!(refused.contains("deleting notes is not permitted here"), "{refused}");
    assert!(refused.contains(".cedar"), "{refused}");
    let records = gate.records(&[]).await;
    let of = |tool: &str, decision: &str| {
        records
            .iter()
            .any(|record| record["target"]["tool"] == tool && record["decision"] == decision)
    };
    assert!(of("list_notes", "allowed") && of("delete_note", "refused"), "{records:#?}");
    gate.stop().await;
}

#[tokio::test]
async fn commands_of_the_readme_work() {
    let readme = std::fs::read_to_string(root().join("README.md")).unwrap();
    let section = readme.split("### Try it").nth(1).unwrap().split("\n## ").next().unwrap();
    let commands: Vec<_> =
        section.lines().filter_map(|line| line.strip_prefix("$ portcullis ")).collect();
    let [add, delete, query] = commands.as_slice() else { panic!("{commands:?}") };
    let gate = Setup::quickstart().start().await;
    let shell = async |command: &str| {
        let mut shell = tokio::process::Command::new("sh");
        let script = format!("exec \"$PORTCULLIS\" -c \"$CONFIG\" {command}");
        shell.arg("-c").arg(script);
        shell.env("PORTCULLIS", portcullis()).env("CONFIG", gate.path("portcullis.toml"));
        let output = in_time(command, shell.output()).await.unwrap();
        let all = [output.stdout, output.stderr].concat();
        (output.status.code(), String::from_utf8(all).unwrap())
    };
    let (code, said) = shell(add).await;
    assert_eq!(code, Some(0), "{said}");
    assert!(section.contains(&said), "the README does not show\n{said}");
    let (code, said) = shell(delete).await;
    assert_eq!(code, Some(10), "{said}");
    let (reason, decision) = said.split_once(", decision ").unwrap();
    assert!(section.contains(reason), "the README does not show\n{reason}");
    let (code, said) = shell(query).await;
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains(decision.trim().trim_end_matches(']')), "{said}");
    for has in ["refused", "policy-denied", "notes/delete_note", "allowed", "notes/add_note"] {
        assert!(said.contains(has), "{has} is not in\n{said}");
    }
    gate.stop().await;
}
