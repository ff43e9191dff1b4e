//! server-everything.

use serde_json::{Value, json};

use super::{contained, stop_without_orphans};
use crate::support::{gate::Setup, sdk::Sdk, target};

const PROGRAM: &str =
    "/opt/node/node_modules/@modelcontextprotocol/server-everything/dist/index.js";

fn in_a_container() -> Setup {
    contained("everything", &["node", PROGRAM], "")
}

fn in_the_sandbox() -> Setup {
    Setup::new(&format!(
        r#"
        [servers.everything]
        command = ["node", "{PROGRAM}"]
        runtime = "sandbox"
        mounts = ["{}:/opt/node"]
        env.GATE = "{{mark}}"
        "#,
        target("tests/servers/node").display(),
    ))
    .and("[[interceptors]]\nuse = \"schema\"\n[[interceptors]]\nuse = \"secrets\"")
}

async fn check_tools(setup: Setup) -> crate::support::gate::Gate {
    let gate = setup.start().await;
    for agent in [gate.legacy().await, gate.modern()] {
        // A call waits for the server to start; a list does not.
        let echo = agent.text("everything__echo", json!({ "message": "hello" })).await;
        assert!(echo.contains("hello"), "{echo}");
        assert!(!agent.names("tools/list").await.is_empty());
        let sum = agent.text("everything__get-sum", json!({ "a": 2, "b": 40 })).await;
        assert!(sum.contains("42"), "{sum}");
        assert!(!agent.names("prompts/list").await.is_empty());
        assert!(!agent.names("resources/list").await.is_empty());
        let weather = json!({ "location": "New York" });
        let weather = agent.call("everything__get-structured-content", weather).await.unwrap();
        assert!(weather["structuredContent"].is_object(), "{weather:#}");
        let image = agent.call("everything__get-tiny-image", json!({})).await.unwrap();
        let images: Vec<&Value> = image["content"].as_array().unwrap().iter().collect();
        assert!(images.iter().any(|block| block["mimeType"] == "image/png"), "{image:#}");
        let links = agent.call("everything__get-resource-links", json!({ "count": 10 })).await;
        let links = links.unwrap()["content"].as_array().unwrap().len();
        assert_eq!(links, 11);
        // Its environment has what the profile and the config say, and no more.
        let env: Value =
            serde_json::from_str(&agent.text("everything__get-env", json!({})).await).unwrap();
        assert_eq!(env["HOME"], "/tmp", "{env:#}");
    }
    progress(&gate).await;
    gate
}

async fn progress(gate: &crate::support::gate::Gate) {
    let agent = gate.legacy().await;
    let params = json!({
        "name": "everything__trigger-long-running-operation",
        "arguments": { "duration": 1, "steps": 4 },
        "_meta": { "progressToken": "mine" },
    });
    let request = json!({ "jsonrpc": "2.0", "id": "a", "method": "tools/call", "params": params });
    let answered = agent.send(request).await;
    let (notices, answers): (Vec<_>, Vec<_>) =
        answered.messages.into_iter().partition(|message| message["method"].is_string());
    assert_eq!(answers.len(), 1, "{answers:#?}");
    assert_eq!(answers[0]["id"], "a");
    let progress: Vec<_> =
        notices.iter().filter(|n| n["method"] == "notifications/progress").collect();
    assert!(!progress.is_empty(), "{notices:#?}");
    for notice in progress {
        assert_eq!(notice["params"]["progressToken"], "mine");
    }
}

#[tokio::test]
async fn tools_work_in_a_container() {
    stop_without_orphans(check_tools(in_a_container()).await).await;
}

#[tokio::test]
async fn tools_work_in_the_sandbox() {
    check_tools(in_the_sandbox()).await.stop().await;
}

/// The results that SDK clients parse are those of the servers.
#[tokio::test]
async fn sdk_clients_use_servers_in_containers() {
    let folder = super::open_folder();
    std::fs::write(folder.path().join("poem.txt"), "roses are red\n").unwrap();
    let image = crate::support::engine::servers_image();
    let gate = in_a_container()
        .and(&format!(
            r#"
            [servers.files]
            image = "{image}"
            command = ["node", "{}", "/files"]
            mounts = ["{}:/files"]
            [servers.db]
            image = "{image}"
            command = ["python3", "-c", "import mcp_server_sqlite as it; it.main()", "--db-path", "/tmp/a.db"]
            env.PYTHONPATH = "/opt/sqlite"
            "#,
            super::files::PROGRAM,
            folder.path().display(),
        ))
        .start()
        .await;
    let call = |tool: &str, arguments: Value| json!({ "method": "tools/call", "params": { "name": tool, "arguments": arguments } });
    let steps = json!([
        call("everything__get-sum", json!({ "a": 2, "b": 40 })),
        call("files__read_text_file", json!({ "path": "/files/poem.txt" })),
        call("files__read_text_file", json!({ "path": "/etc/passwd" })),
        call("db__read_query", json!({ "query": "SELECT 6 * 7 AS answer" })),
        { "method": "tools/list" },
    ]);
    for sdk in [Sdk::Python, Sdk::TypeScript] {
        for era in ["legacy", "modern"] {
            let report = sdk.report(era, &["--url", &gate.url("/mcp")], None, &steps).await;
            let steps = report["steps"].as_array().unwrap();
            let [sum, poem, passwd, answer, tools] = steps.as_slice() else { panic!("{report:#}") };
            let tools = tools["result"]["tools"].as_array().unwrap().len();
            assert!(tools > 25, "{tools}");
            assert!(sum["result"]["content"][0]["text"].as_str().unwrap().contains("42"));
            assert_eq!(poem["result"]["content"][0]["text"], "roses are red\n");
            assert_eq!(passwd["result"]["isError"], true, "{passwd:#}");
            assert_eq!(answer["result"]["content"][0]["text"], "[{'answer': 42}]");
        }
    }
    stop_without_orphans(gate).await;
}
