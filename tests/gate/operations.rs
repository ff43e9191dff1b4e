//! Operation: health, metrics, logs, and the commands that inspect a config.

use serde_json::json;

use crate::support::gate::{Setup, reqwest_client};

#[tokio::test]
async fn health_needs_no_key_and_metrics_contain_no_secret() {
    let written = Setup::notes().keyed().write();
    let key = written.add_client("ci", &[]).await;
    let gate = written.start().await;
    let agent = crate::support::agent::Agent::modern(&gate.url("/mcp"), Some(&key));
    agent.text("notes__read_note", json!({ "name": "welcome" })).await;
    agent.refused("notes__no_such", json!({})).await;
    let http = reqwest_client();
    for path in ["/healthz", "/readyz"] {
        assert_eq!(http.get(gate.url(path)).send().await.unwrap().status(), 200, "{path}");
    }
    let metrics = gate.metrics().await;
    for has in [
        "requests_total",
        "duration_seconds",
        "tool_calls_total",
        "server=\"notes\"",
        "client=\"ci\"",
    ] {
        assert!(metrics.contains(has), "{has} is not in\n{metrics}");
    }
    assert!(metrics.trim_end().ends_with("# EOF"), "{metrics}");
    assert!(!metrics.contains("portcullis_audit_records_total 0\n"), "{metrics}");
    assert!(!metrics.contains(&key));
    // Names that servers do not have are no labels: they would be without end.
    assert!(!metrics.contains("no_such"), "{metrics}");
    gate.stop().await;
}

#[tokio::test]
async fn dry_run_lists_visible_tools_and_ends() {
    let written = Setup::notes().write();
    let ended = written.cli(&["run", "--dry-run"]).await;
    assert_eq!(ended.code, Some(0), "{ended:#?}");
    assert!(ended.stdout.contains("notes__read_note"), "{ended:#?}");
    assert!(crate::support::marked(&written.mark).is_empty());
}

#[tokio::test]
async fn check_of_a_valid_config_has_no_findings() {
    let policies = "permit (principal is Portcullis::Local, action, resource);\n";
    let ended = Setup::notes().policies(policies).write().cli(&["check"]).await;
    assert_eq!(ended.code, Some(0), "{ended:#?}");
    let ended = Setup::quickstart().cli(&["check"]).await;
    assert_eq!(ended.code, Some(0), "{ended:#?}");
}

#[tokio::test]
async fn doctor_lists_features_of_the_machine() {
    let ended = Setup::notes().write().cli(&["doctor"]).await;
    assert_eq!(ended.code, Some(0), "{ended:#?}");
    for has in ["engine", "landlock"] {
        assert!(ended.stdout.to_lowercase().contains(has), "{ended:#?}");
    }
}

#[tokio::test]
async fn tools_are_listed_and_called_from_the_command_line() {
    let written = Setup::notes()
        .policies(
            r#"
            @id("local")
            permit (principal is Portcullis::Local, action, resource)
            unless { resource == Portcullis::Tool::"notes/delete_note" };
            "#,
        )
        .write();
    written.add_client("ci", &[]).await;
    let listed = written.cli(&["tools", "ls", "--format", "json"]).await;
    let listed = listed.expect(0).to_string();
    assert!(listed.contains("notes__read_note") && !listed.contains("delete_note"), "{listed}");
    let called = written.cli(&["tools", "call", "notes__list_notes", "{}"]).await;
    assert_eq!(called.code, Some(0), "{called:#?}");
    assert!(called.stdout.contains("welcome"), "{called:#?}");
    let denied =
        written.cli(&["tools", "call", "notes__delete_note", r#"{"name":"welcome"}"#]).await;
    assert_eq!(denied.code, Some(10), "{denied:#?}");
    let denied = written.cli(&["tools", "call", "--as", "ci", "notes__list_notes", "{}"]).await;
    assert_eq!(denied.code, Some(10), "{denied:#?}");
    assert!(crate::support::marked(&written.mark).is_empty());
}

#[tokio::test]
async fn servers_are_listed_and_inspected() {
    let written = Setup::notes().write();
    let listed = written.cli(&["server", "ls", "--format", "json"]).await.expect(0);
    assert!(listed.to_string().contains("notes"), "{listed:#}");
    let inspected =
        written.cli(&["server", "inspect", "notes", "--format", "json"]).await.expect(0);
    assert!(
        inspected["profile"].is_object() && inspected["deviations"] == json!([]),
        "{inspected:#}"
    );
    let unknown = written.cli(&["server", "inspect", "ntoes"]).await;
    assert_eq!(unknown.code, Some(1), "{unknown:#?}");
    assert!(unknown.stderr.contains("notes"), "{unknown:#?}");
}

#[tokio::test]
async fn schemas_are_printed() {
    let written = Setup::notes().write();
    for of in ["config", "audit"] {
        let schema = written.cli(&["schema", of]).await.expect(0);
        assert!(schema["$schema"].is_string(), "{of}");
    }
    let cedar = written.cli(&["schema", "cedar"]).await;
    assert_eq!(cedar.code, Some(0));
    assert!(cedar.stdout.contains("namespace Portcullis"), "{cedar:#?}");
}
