//! What the proxy does of itself is decided: starting servers, ways out, secrets, grants.

use serde_json::json;

use crate::support::{
    PERMIT_ALL,
    agent::Agent,
    credential,
    gate::{Gate, Setup},
    marked, target, until,
};

const CALLS: &str = r#"
    @id("calls")
    permit (principal, action, resource)
    unless { action in Portcullis::Action::"from_proxy" };
"#;

/// Calls until the start of the server is refused for this action, and by this rule.
async fn refused(gate: &Gate, agent: &Agent, action: &str, target: &str, rule: Option<&str>) {
    let error = until("the start to be refused so", async || {
        let error = agent.call("crooked__echo", json!({ "text": "x" })).await.err()?;
        let records = gate.records(&["event = server-launch-refused"]).await;
        let last = records.first()?;
        let so = last["action"] == action
            && last["target"].as_str()?.ends_with(target)
            && last["rules"][0]["id"].as_str() == rule;
        so.then_some(error)
    })
    .await;
    assert_eq!(error["data"]["code"], "policy-denied", "{error:#}");
    assert!(marked(&gate.mark).is_empty());
}

#[tokio::test]
async fn a_server_is_started_once_policy_permits_it_and_its_secrets() {
    let token = credential();
    let gate = Setup::crooked("secrets = { TOKEN = { from = \"env:GATE_TOKEN\" } }")
        .env("GATE_TOKEN", &token)
        .policies(CALLS)
        .without_launches()
        .start()
        .await;
    let agent = gate.modern();
    let echo = json!({ "text": "x" });
    let launch = r#"
        @id("run-it")
        permit (principal == Portcullis::Server::"crooked", action == Portcullis::Action::"launch", resource)
        when { resource.runtime == "sandbox" && resource.deviations.isEmpty() };
    "#;
    let never = r#"
        @id("no-tokens")
        @reason("not this one")
        forbid (principal, action == Portcullis::Action::"hand_secret", resource)
        when { resource.name == "TOKEN" && resource.source == "env" };
    "#;
    let secret = r#"
        @id("hand-it")
        permit (principal, action == Portcullis::Action::"hand_secret", resource in Portcullis::Server::"crooked");
    "#;
    let policies = gate.path("policies/gate.cedar");
    refused(&gate, &agent, "launch", "crooked", None).await;
    std::fs::write(&policies, format!("{CALLS}{launch}")).unwrap();
    refused(&gate, &agent, "hand_secret", "TOKEN", None).await;
    std::fs::write(&policies, format!("{CALLS}{launch}{secret}{never}")).unwrap();
    refused(&gate, &agent, "hand_secret", "TOKEN", Some("no-tokens")).await;
    std::fs::write(&policies, format!("{CALLS}{launch}{secret}")).unwrap();
    until("the start to be permitted", async || {
        agent.call("crooked__echo", echo.clone()).await.ok()
    })
    .await;
    let records = gate.records(&["event = server-launching"]).await;
    let launched = &records[0];
    let rules: Vec<_> =
        launched["rules"].as_array().unwrap().iter().map(|r| r["id"].as_str().unwrap()).collect();
    assert_eq!(rules, ["run-it", "hand-it"], "{launched:#}");
    gate.stop().await;
}

#[tokio::test]
async fn a_way_out_is_decided_by_its_host() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let reach = format!(
        "{CALLS} @id(\"run\") permit (principal, action == Portcullis::Action::\"launch\", resource) \
         when {{ resource.runtime == \"remote\" }}; \
         @id(\"go\") permit (principal, action == Portcullis::Action::\"reach\", resource) \
         when {{ resource.name == \"127.0.0.1\" && resource.port != {port} }};"
    );
    let gate = Setup::new(&format!("[servers.far]\nurl = \"http://127.0.0.1:{port}/mcp\""))
        .policies(&reach)
        .without_launches()
        .start()
        .await;
    assert_eq!(gate.modern().refused("far__any", json!({})).await, "policy-denied");
    let records = gate.records(&["event = server-launch-refused"]).await;
    assert_eq!(records[0]["target"], format!("127.0.0.1:{port}"), "{:#}", records[0]);
    // Nobody has knocked.
    let knock = tokio::time::timeout(std::time::Duration::ZERO, listener.accept()).await;
    assert!(knock.is_err());
    gate.stop().await;
}

#[tokio::test]
async fn a_plugin_is_given_what_policy_gives_it() {
    let plugin = std::fs::read(target("plugins/redact-pii.wasm")).unwrap();
    let entry = "[[interceptors]]\nuse = \"plugin\"\nname = \"mail\"\npath = \"plugin.wasm\"\nallow-unpinned = true\n[interceptors.grants]\nlog = true";
    let setup = |policies: &str| {
        let setup = Setup::notes().and(entry).file("plugin.wasm", &plugin).policies(policies);
        setup.without_launches().write()
    };
    let ended = setup(CALLS).cli(&["check"]).await;
    assert_eq!(ended.code, Some(11), "{ended:#?}");
    let said = format!("{}{}", ended.stdout, ended.stderr);
    let remedy = "permit (principal == Portcullis::Plugin::\"mail\"";
    assert!(
        said.contains("portcullis.toml")
            && said.split_whitespace().collect::<Vec<_>>().join(" ").contains(remedy),
        "{said}"
    );
    let ended = setup(PERMIT_ALL).cli(&["check"]).await;
    assert!(!format!("{}{}", ended.stdout, ended.stderr).contains("does not let"), "{ended:#?}");
}
