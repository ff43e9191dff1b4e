//! Clients of both eras against servers of both eras, over pipes and over HTTP.

use serde_json::{Value, json};

use crate::support::{
    agent::Agent,
    gate::{Gate, Setup},
    remote, wire,
};

/// Four servers that are the same but for era and transport.
async fn four() -> Gate {
    let (legacy, modern) =
        (remote::serve(remote::legacy()).await, remote::serve(remote::MODERN).await);
    Setup::new(&format!(
        r#"
        [servers.pipe-legacy]
        command = ["{{one-era}}", "legacy"]
        runtime = "sandbox"
        [servers.pipe-modern]
        command = ["{{one-era}}", "modern"]
        runtime = "sandbox"
        [servers.http-legacy]
        url = "{legacy}"
        [servers.http-modern]
        url = "{modern}"
        "#
    ))
    .start()
    .await
}

const SERVERS: [&str; 4] = ["pipe-legacy", "pipe-modern", "http-legacy", "http-modern"];

async fn agents(gate: &Gate) -> [Agent; 2] {
    [gate.legacy().await, gate.modern()]
}

#[tokio::test]
async fn tools_work_across_eras() {
    let gate = four().await;
    for agent in agents(&gate).await {
        let names = agent.names("tools/list").await;
        for server in SERVERS {
            assert!(names.contains(&format!("{server}__read_note")), "{names:?}");
            let tool = format!("{server}__read_note");
            let result = agent.call(&tool, json!({ "name": "welcome" })).await.unwrap();
            let text = result["structuredContent"]["text"].as_str().unwrap();
            assert!(text.contains("behind Portcullis"), "{server}: {result:#}");
            // The server's own refusal stays a result.
            let missing = agent.call(&tool, json!({ "name": "none" }));
            assert_eq!(missing.await.unwrap()["isError"], true, "{server}");
        }
    }
    gate.stop().await;
}

#[tokio::test]
async fn prompts_and_completion_work_across_eras() {
    let gate = four().await;
    for agent in agents(&gate).await {
        let names = agent.names("prompts/list").await;
        for server in SERVERS {
            let prompt = format!("{server}__summarize_notes");
            assert!(names.contains(&prompt), "{names:?}");
            let params = json!({ "name": prompt, "arguments": { "name": "groceries" } });
            let got = agent.ask("prompts/get", params).await.unwrap();
            let text = got["messages"][0]["content"]["text"].as_str().unwrap();
            assert!(text.contains("two lemons"), "{server}: {got:#}");
            let params = json!({
                "ref": { "type": "ref/prompt", "name": prompt },
                "argument": { "name": "name", "value": "gro" },
            });
            let completed = agent.ask("completion/complete", params).await.unwrap();
            assert_eq!(completed["completion"]["values"], json!(["groceries"]), "{server}");
        }
    }
    gate.stop().await;
}

#[tokio::test]
async fn resources_and_templates_work_across_eras() {
    let gate = four().await;
    for server in SERVERS {
        // One server at a time: all four have the same URIs.
        let url = gate.url(&format!("/servers/{server}/mcp"));
        for agent in [Agent::legacy(&url, None).await.unwrap(), Agent::modern(&url, None)] {
            let uris = agent.names("resources/list").await;
            assert_eq!(uris, ["note:///groceries", "note:///welcome"], "{server}");
            assert_eq!(agent.names("resources/templates/list").await, ["note:///{name}"]);
            let params = json!({ "uri": "note:///welcome" });
            let read = agent.ask("resources/read", params).await.unwrap();
            let text = read["contents"][0]["text"].as_str().unwrap();
            assert!(text.contains("behind Portcullis"), "{server}: {read:#}");
            let params = json!({
                "ref": { "type": "ref/resource", "uri": "note:///{name}" },
                "argument": { "name": "name", "value": "we" },
            });
            let completed = agent.ask("completion/complete", params).await.unwrap();
            assert_eq!(completed["completion"]["values"], json!(["welcome"]), "{server}");
        }
    }
    gate.stop().await;
}

#[tokio::test]
async fn each_era_gets_results_of_its_revision() {
    let gate = four().await;
    let [legacy, modern] = agents(&gate).await;
    for server in SERVERS {
        let tool = format!("{server}__list_notes");
        let result = legacy.call(&tool, json!({})).await.unwrap();
        assert!(result.get("resultType").is_none(), "{server}: {result:#}");
        let result = modern.call(&tool, json!({})).await.unwrap();
        assert_eq!(result["resultType"], "complete", "{server}: {result:#}");
    }
    let list = modern.ask("tools/list", json!({})).await.unwrap();
    assert!(list["ttlMs"].is_u64(), "{list:#}");
    // What is filtered for one client is not for others to see.
    assert_eq!(list["cacheScope"], "private");
    let list = legacy.ask("tools/list", json!({})).await.unwrap();
    assert!(list.get("ttlMs").is_none() && list.get("resultType").is_none());
    gate.stop().await;
}

#[tokio::test]
async fn endpoint_of_one_server_has_only_that_server() {
    let gate = four().await;
    let url = gate.url("/servers/pipe-legacy/mcp");
    for agent in [Agent::legacy(&url, None).await.unwrap(), Agent::modern(&url, None)] {
        let names = agent.names("tools/list").await;
        assert_eq!(names.len(), 4, "{names:?}");
        // Alone, its tools need no name before theirs.
        assert!(names.contains(&"read_note".to_owned()), "{names:?}");
        let read = agent.text("read_note", json!({ "name": "welcome" })).await;
        assert!(read.contains("Portcullis"));
        assert_eq!(
            agent.refused("http-legacy__read_note", json!({ "name": "welcome" })).await,
            "unknown-target"
        );
    }
    let unknown = wire::post(gate.addr, "/servers/none/mcp", wire::ORDINARY, b"{}").await;
    assert_eq!(unknown.status, 404);
    gate.stop().await;
}

#[tokio::test]
async fn every_legacy_revision_is_supported() {
    let gate = Setup::notes().start().await;
    for revision in ["2025-03-26", "2025-06-18", "2025-11-25"] {
        let agent = Agent::legacy_of(&gate.url("/mcp"), None, revision).await.unwrap();
        assert_eq!(agent.greeting["protocolVersion"], revision);
        assert!(agent.names("tools/list").await.contains(&"notes__read_note".to_owned()));
        assert_eq!(agent.ask("ping", json!({})).await.unwrap(), json!({}));
    }
    // One that nobody knows gets the newest that has `initialize`.
    let agent = Agent::legacy_of(&gate.url("/mcp"), None, "2031-01-01").await.unwrap();
    assert_eq!(agent.greeting["protocolVersion"], "2025-11-25");
    gate.stop().await;
}

#[tokio::test]
async fn modern_client_discovers_the_proxy() {
    let gate = Setup::notes().start().await;
    let agent = gate.modern();
    let found = agent.ask("server/discover", json!({})).await.unwrap();
    let versions = found["supportedVersions"].as_array().unwrap();
    assert!(versions.contains(&Value::from("2026-07-28")), "{found:#}");
    for capability in ["tools", "prompts", "resources", "completions"] {
        assert!(found["capabilities"][capability].is_object(), "{found:#}");
    }
    // What the revision took away is not there.
    let gone = agent.ask("ping", json!({})).await.unwrap_err();
    assert_eq!(gone["code"], -32601);
    gate.stop().await;
}

#[tokio::test]
async fn missing_resource_has_the_error_code_of_the_clients_era() {
    let gate = four().await;
    for server in SERVERS {
        let url = gate.url(&format!("/servers/{server}/mcp"));
        let params = json!({ "uri": "note:///none" });
        let legacy = Agent::legacy(&url, None).await.unwrap();
        let error = legacy.ask("resources/read", params.clone()).await.unwrap_err();
        // The modern code can mean more than the legacy one: an error without the URI is left as it
        // is.
        let is_unclear = server.ends_with("modern") && error["data"]["uri"].is_null();
        let code = if is_unclear { -32602 } else { -32002 };
        assert_eq!(error["code"], code, "{server}: {error:#}");
        let modern = Agent::modern(&url, None);
        let answered = modern.send(modern.request("resources/read", params)).await;
        let error = &answered.messages[0]["error"];
        assert_eq!((answered.status, &error["code"]), (400, &json!(-32602)), "{server}: {error:#}");
    }
    gate.stop().await;
}

#[tokio::test]
async fn proxied_answers_equal_direct_ones() {
    let (legacy, modern) =
        (remote::serve(remote::legacy()).await, remote::serve(remote::MODERN).await);
    let gate = Setup::new(&format!(
        "[servers.legacy]\nurl = \"{legacy}\"\n[servers.modern]\nurl = \"{modern}\""
    ))
    .start()
    .await;
    let pairs = [
        (
            Agent::legacy(&legacy, None).await.unwrap(),
            Agent::legacy(&gate.url("/servers/legacy/mcp"), None).await.unwrap(),
            "legacy",
        ),
        (
            Agent::modern(&modern, None),
            Agent::modern(&gate.url("/servers/modern/mcp"), None),
            "modern",
        ),
    ];
    for (direct, proxied, server) in pairs {
        let name = json!({ "name": "welcome" });
        for (method, params) in [
            ("tools/call", json!({ "name": "read_note", "arguments": name })),
            ("tools/call", json!({ "name": "read_note", "arguments": { "name": "none" } })),
            ("resources/read", json!({ "uri": "note:///welcome" })),
            ("resources/read", json!({ "uri": "note:///none" })),
            ("prompts/get", json!({ "name": "summarize_notes", "arguments": name })),
        ] {
            let through = proxied.ask(method, params.clone()).await;
            assert_eq!(direct.ask(method, params).await, through, "{server}: {method}");
        }
        for (method, of) in [("tools/list", "tools"), ("prompts/list", "prompts")] {
            let through = proxied.ask(method, json!({})).await.unwrap();
            assert_eq!(direct.ask(method, json!({})).await.unwrap()[of], through[of], "{server}");
        }
    }
    gate.stop().await;
}
