//! Policies decide the proxy's own actions: launches, egress, secrets, grants.

use serde_json::json;
use sha2::{Digest as _, Sha256};

use crate::support::{
    PERMIT_ALL,
    agent::Agent,
    credential,
    engine::containers,
    gate::{Ended, Gate, Setup},
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
async fn launch_needs_permits_for_server_and_secrets() {
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
        forbid (principal, action == Portcullis::Action::"deliver_secret", resource)
        when { resource.name == "TOKEN" && resource.source == "env" };
    "#;
    let secret = r#"
        @id("hand-it")
        permit (principal, action == Portcullis::Action::"deliver_secret", resource in Portcullis::Server::"crooked");
    "#;
    let policies = gate.path("policies/gate.cedar");
    refused(&gate, &agent, "launch", "crooked", None).await;
    std::fs::write(&policies, format!("{CALLS}{launch}")).unwrap();
    refused(&gate, &agent, "deliver_secret", "TOKEN", None).await;
    std::fs::write(&policies, format!("{CALLS}{launch}{secret}{never}")).unwrap();
    refused(&gate, &agent, "deliver_secret", "TOKEN", Some("no-tokens")).await;
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
async fn list_of_a_server_that_policies_refused_follows_their_change() {
    let gate = Setup::notes().policies(CALLS).without_launches().start().await;
    let agent = gate.modern();
    assert_eq!(agent.names("tools/list").await, [""; 0]);
    let launch = r#"
        permit (principal == Portcullis::Server::"notes", action == Portcullis::Action::"launch", resource);
    "#;
    std::fs::write(gate.path("policies/gate.cedar"), format!("{CALLS}{launch}")).unwrap();
    // No client asks meanwhile.
    until("the server to be started", async || {
        let started = gate.records(&["event = server-launched"]).await;
        (!started.is_empty()).then_some(())
    })
    .await;
    let names = agent.names("tools/list").await;
    assert!(names.iter().any(|name| name == "notes__add_note"), "{names:?}");
    gate.stop().await;
}

#[tokio::test]
async fn remote_server_needs_an_egress_permit() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let reach = format!(
        "{CALLS} @id(\"run\") permit (principal, action == Portcullis::Action::\"launch\", resource) \
         when {{ resource.runtime == \"remote\" }}; \
         @id(\"go\") permit (principal, action == Portcullis::Action::\"egress\", resource) \
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
async fn plugin_grants_need_a_permit() {
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

const LAUNCH: &str = r#"
    @id("run-it")
    permit (principal, action == Portcullis::Action::"launch", resource);
"#;

#[tokio::test]
async fn running_server_ends_when_policies_forbid_it() {
    let setup = Setup::crooked("").policies(&format!("{CALLS}{LAUNCH}"));
    let gate = setup.without_launches().start().await;
    let agent = gate.modern();
    let echo = json!({ "text": "x" });
    agent.call("crooked__echo", echo.clone()).await.unwrap();
    let policies = gate.path("policies/gate.cedar");
    let withdraw = async {
        until("the call to be under way", async || {
            let records = gate.records(&["tool = hang"]).await;
            (!records.is_empty()).then_some(())
        })
        .await;
        std::fs::write(&policies, CALLS).unwrap();
    };
    // A call under way is told why it has no answer.
    let (hangs, ()) = tokio::join!(agent.call("crooked__hang", json!({})), withdraw);
    let error = hangs.unwrap_err();
    assert_eq!(error["data"]["code"], "policy-denied", "{error:#}");
    assert!(error["message"].as_str().unwrap().contains("no longer permits server `crooked`"));
    until("the process to be gone", async || marked(&gate.mark).is_empty().then_some(())).await;
    let stopped = until("its end to be on record", async || {
        gate.records(&["event = server-stopped"]).await.into_iter().next()
    })
    .await;
    assert_eq!(stopped["reason"], "policies permit it no longer", "{stopped:#}");
    let refused = &gate.records(&["event = server-launch-refused"]).await[0];
    assert_eq!(refused["action"], "launch", "{refused:#}");
    assert_eq!(refused["launch"], stopped["launch"], "{refused:#}");
    assert_eq!(agent.refused("crooked__echo", echo.clone()).await, "policy-denied");

    // Where another policy permits it, it goes on as it is.
    std::fs::write(&policies, format!("{CALLS}{LAUNCH}")).unwrap();
    until("it to be started again", async || agent.call("crooked__echo", echo.clone()).await.ok())
        .await;
    let running = marked(&gate.mark);
    let other = LAUNCH.replace("run-it", "still-run-it");
    std::fs::write(&policies, format!("{CALLS}{other}")).unwrap();
    until("the other policies to be in force", async || {
        (gate.records(&["event = policy-loaded"]).await.len() == 4).then_some(())
    })
    .await;
    agent.call("crooked__echo", echo).await.unwrap();
    assert_eq!(marked(&gate.mark), running);
    gate.stop().await;
}

#[tokio::test]
async fn plugin_with_a_withdrawn_grant_is_not_called() {
    let plugin = std::fs::read(target("plugins/redact-pii.wasm")).unwrap();
    let entry = "[[interceptors]]\nuse = \"plugin\"\nname = \"mail\"\npath = \"plugin.wasm\"\nallow-unpinned = true\n[interceptors.grants]\nlog = true";
    let gate = Setup::notes()
        .and(entry)
        .file("plugin.wasm", &plugin)
        .policies(PERMIT_ALL)
        .without_launches()
        .start()
        .await;
    let agent = gate.modern();
    let list = async || agent.call("notes__list_notes", json!({})).await;
    list().await.unwrap();
    let policies = gate.path("policies/gate.cedar");
    let without =
        "permit (principal, action, resource) unless { action == Portcullis::Action::\"grant\" };";
    std::fs::write(&policies, without).unwrap();
    let error = until("the plugin not to be asked", async || list().await.err()).await;
    assert_eq!(error["data"]["code"], "interceptor-fault", "{error:#}");
    let records = gate.records(&[]).await;
    let told = |record: &serde_json::Value| {
        record.to_string().contains("does not let the plugin `mail` have `log`")
    };
    assert!(records.iter().any(told), "{records:#?}");
    std::fs::write(&policies, PERMIT_ALL).unwrap();
    until("the plugin to be asked again", async || list().await.ok()).await;
    gate.stop().await;
}

#[tokio::test]
async fn program_is_pinned_by_its_digest() {
    let pinned = |digest: &str| {
        format!(
            "{CALLS} @id(\"pinned\") permit (principal, action == Portcullis::Action::\"launch\", resource) \
             when {{ resource has digest && resource.digest == \"{digest}\" }};"
        )
    };
    let program = std::fs::read(crate::support::server("crooked")).unwrap();
    let digest = format!("sha256:{}", hex::encode(Sha256::digest(&program)));
    let gate = Setup::new(
        "[servers.crooked]\ncommand = [\"./program\"]\nruntime = \"sandbox\"\nenv = { GATE = \"{mark}\" }\n",
    )
    .file("program", &program)
    .policies(&pinned(&digest))
    .without_launches()
    .write();
    let executable = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(gate.path("program"), executable).unwrap();
    let gate = gate.start().await;
    let agent = gate.modern();
    let echo = json!({ "text": "x" });
    agent.call("crooked__echo", echo.clone()).await.unwrap();
    assert_eq!(gate.records(&["event = server-launching"]).await[0]["digest"], digest);
    // Another program of the same name.
    crate::support::kill_9(marked(&gate.mark)[0]);
    std::fs::remove_file(gate.path("program")).unwrap();
    std::fs::write(gate.path("program"), [&program[..], b"x"].concat()).unwrap();
    let executable = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(gate.path("program"), executable).unwrap();
    refused(&gate, &agent, "launch", "program", None).await;
    gate.stop().await;
}

// This engine has none.
#[tokio::test]
async fn gvisor_server_never_runs_without_gvisor() {
    let gate = Setup::crooked("").runtime("runsc").start().await;
    let agent = gate.modern();
    let code = agent.refused("crooked__echo", json!({ "text": "x" })).await;
    assert_eq!(code, "server-unavailable");
    let failed = gate.records(&["event = server-launch-failed"]).await;
    let why = failed[0]["reason"].as_str().unwrap();
    assert!(why.contains("the engine does not have the OCI runtime `runsc`"), "{why}");
    assert_eq!(containers(&gate.mark), Vec::<String>::new());
    gate.stop().await;
}

#[tokio::test]
async fn tool_list_names_missing_servers() {
    let written = Setup::crooked("").policies(CALLS).without_launches().write();
    let missing = |ended: &Ended| {
        assert!(ended.stderr.contains("the tools of server `crooked` are missing: "), "{ended:#?}");
        assert!(ended.stderr.contains("policy"), "{ended:#?}");
        assert_eq!(ended.code, Some(1), "{ended:#?}");
    };
    // A proxy for this one question, and one that runs.
    missing(&written.cli(&["tools", "ls"]).await);
    let gate = written.start().await;
    missing(&gate.cli(&["tools", "ls"]).await);
    let listed = gate.cli(&["tools", "ls", "--format", "json"]).await;
    missing(&listed);
    assert_eq!(listed.expect(1)["tools"], json!([]));
    gate.stop().await;
}
