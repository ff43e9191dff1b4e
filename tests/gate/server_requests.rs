//! Server requests: their recipients, decisions and records.

use std::{collections::BTreeSet, fs::OpenOptions, net::SocketAddr};

use axum::{
    Json, Router,
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::post,
};
use serde_json::{Value, json};
use tokio::net::TcpListener;

use crate::support::{
    agent::{Agent, MODERN, code_of},
    client::Client,
    credential,
    gate::{Gate, Setup},
    remote,
};

const ASK: &str = "everything__test_elicitation";
const STATEFUL: &str = "everything__test_input_required_result_request_state";
const TASK: &str = "everything__test_tool_with_task";

/// A modern client that can be asked everything.
fn askable(gate: &Gate, key: Option<&str>) -> Agent {
    let mut agent = Agent::modern(&gate.url("/mcp"), key);
    agent.abilities = json!({
        "elicitation": {}, "sampling": {}, "roots": {},
        "extensions": { "io.modelcontextprotocol/tasks": {} },
    });
    agent
}

/// The call that asks, or that answers what was asked.
fn call(message: &str, answer: Option<(&Value, Value)>) -> Value {
    call_of(ASK, json!({ "message": message }), answer)
}

fn call_of(tool: &str, arguments: Value, answer: Option<(&Value, Value)>) -> Value {
    let mut params = json!({ "name": tool, "arguments": arguments });
    if let Some((asked, given)) = answer {
        let keys = asked["inputRequests"].as_object().unwrap().keys();
        params["inputResponses"] = keys.map(|key| (key.clone(), given.clone())).collect();
        if let Some(state) = asked.get("requestState") {
            params["requestState"] = state.clone();
        }
    }
    params
}

fn accept() -> Value {
    json!({ "action": "accept", "content": { "username": "ann", "email": "ann@example.org" } })
}

#[tokio::test]
async fn request_state_belongs_to_one_client_and_request() {
    // Of a legacy server the call is parked here, of a modern one its own state is sealed.
    for era in ["legacy", "modern"] {
        let written = Setup::everything(era).keyed().write();
        let keys = [written.add_client("a", &[]).await, written.add_client("b", &[]).await];
        let gate = written.start().await;
        let [a, b] = [0, 1].map(|at| askable(&gate, Some(&keys[at])));
        let ask = async |agent: &Agent, arguments: Value, asked: Option<&Value>| {
            let given = asked
                .map(|asked| (asked, json!({ "action": "accept", "content": { "ok": true } })));
            agent.ask("tools/call", call_of(STATEFUL, arguments, given)).await
        };
        let asked = ask(&a, json!({}), None).await.unwrap();
        assert_eq!(asked["resultType"], "input_required", "{asked:#}");
        let state = asked["requestState"].as_str().unwrap();

        let stolen = ask(&b, json!({}), Some(&asked)).await.unwrap_err();
        assert_eq!(code_of(&stolen), "request-state-invalid", "{era}");
        let other = ask(&a, json!({ "x": 1 }), Some(&asked)).await.unwrap_err();
        assert_eq!(code_of(&other), "request-state-invalid", "{era}");
        let mut forged = asked.clone();
        let first = if state.starts_with('A') { "B" } else { "A" };
        forged["requestState"] = format!("{first}{}", &state[1..]).into();
        let forged = ask(&a, json!({}), Some(&forged)).await.unwrap_err();
        assert_eq!(code_of(&forged), "request-state-invalid", "{era}");

        let done = ask(&a, json!({}), Some(&asked)).await.unwrap();
        assert_eq!(done["resultType"], "complete", "{done:#}");
        assert!(done["content"][0]["text"].as_str().unwrap().contains("state-ok"), "{done:#}");
        if era == "legacy" {
            // What was parked is taken up once.
            let again = ask(&a, json!({}), Some(&asked)).await.unwrap_err();
            assert_eq!(code_of(&again), "request-state-invalid");
        }
        gate.stop().await;
    }
}

/// The call begins again, and the server's requests that the client answered are answered.
#[tokio::test]
async fn suspended_call_survives_a_restart_of_the_proxy() {
    let gate = Setup::everything("legacy").start().await;
    let asked = askable(&gate, None).ask("tools/call", call("who?", None)).await.unwrap();
    let gate = gate.stop().await.start().await;
    let agent = askable(&gate, None);
    let done = agent.ask("tools/call", call("who?", Some((&asked, accept())))).await.unwrap();
    assert_eq!(done["resultType"], "complete", "{done:#}");
    assert!(done["content"][0]["text"].as_str().unwrap().contains("ann"), "{done:#}");
    // Decided and recorded as a new call, with its request.
    for (method, runs) in [("tools/call", 2), ("elicitation/create", 2)] {
        let records = gate.records(&[&format!("method = \"{method}\"")]).await;
        let ids: BTreeSet<_> = records.iter().map(|one| one["id"].to_string()).collect();
        assert_eq!(ids.len(), runs, "{records:#?}");
    }

    // An answer under another key answers nothing: the client gets the request.
    let mut other = asked.clone();
    other["inputRequests"] = json!({ "other": {} });
    let again = agent.ask("tools/call", call("who?", Some((&other, accept())))).await.unwrap();
    assert_eq!(again["resultType"], "input_required", "{again:#}");
    let done = agent.ask("tools/call", call("who?", Some((&again, accept())))).await.unwrap();
    assert_eq!(done["resultType"], "complete", "{done:#}");
    gate.stop().await;
}

#[tokio::test]
async fn suspended_call_is_resumed_although_the_server_has_no_room() {
    let written = Setup::everything("legacy").write();
    let full = "runtime = \"sandbox\"\nconcurrent = 1\nqueue = 0\n";
    written.put(&written.config().replace("runtime = \"sandbox\"", full));
    let gate = written.start().await;
    let agent = askable(&gate, None);
    let asked = agent.ask("tools/call", call("who?", None)).await.unwrap();
    let refused = agent.ask("tools/call", call("another", None)).await.unwrap_err();
    assert_eq!(code_of(&refused), "server-overloaded");
    let done = agent.ask("tools/call", call("who?", Some((&asked, accept())))).await.unwrap();
    assert!(done["content"][0]["text"].as_str().unwrap().contains("ann"), "{done:#}");
    gate.stop().await;
}

#[tokio::test]
async fn server_request_is_decided_and_recorded() {
    for era in ["legacy", "modern"] {
        let gate = Setup::everything(era)
            .policies(
                r#"
                @id("clients")
                permit (principal, action in Portcullis::Action::"from_client", resource);
                @id("forms")
                permit (principal == Portcullis::Server::"everything",
                    action == Portcullis::Action::"elicit", resource)
                when {
                    context.args.hasTag("/message") && context.args.getTag("/message") like "*who*"
                };
                "#,
            )
            .start()
            .await;
        let agent = askable(&gate, None);
        let asked = agent.ask("tools/call", call("who?", None)).await.unwrap();
        assert_eq!(asked["resultType"], "input_required", "{asked:#}");
        agent.ask("tools/call", call("who?", Some((&asked, accept())))).await.unwrap();

        // What policy does not permit is not asked.
        match agent.ask("tools/call", call("your password?", None)).await {
            // A legacy server hears of it, and says how it went on.
            Ok(result) => assert_ne!(result["resultType"], "input_required", "{result:#}"),
            Err(error) => assert!(!error.to_string().contains("input_required"), "{error:#}"),
        }
        let records = gate.records(&[]).await;
        let of = |method: &str, decision: &str| {
            let found = records.iter().filter(|record| record["method"] == method);
            found.filter(|record| record["decision"] == decision).count()
        };
        if era == "legacy" {
            // An intent and an outcome, and the refusal.
            assert_eq!(of("elicitation/create", "allowed"), 2, "{records:#?}");
            assert_eq!(of("elicitation/create", "refused"), 1, "{records:#?}");
        } else {
            assert_eq!(of("tools/call", "refused"), 1, "{records:#?}");
        }
        gate.stop().await;
    }
}

#[tokio::test]
async fn client_without_the_capability_gets_no_request() {
    let gate = Setup::everything("legacy").start().await;
    // It says nothing of itself, so it shares a server that knows that it can ask nobody.
    let agent = gate.modern();
    let answer = agent.ask("tools/call", call("who?", None)).await;
    let text = answer.unwrap_or_else(|error| error).to_string();
    assert!(text.contains("elicitation"), "{text}");
    gate.stop().await;
}

#[tokio::test]
async fn client_response_passes_the_chain() {
    let secret = credential();
    for era in ["legacy", "modern"] {
        let gate = Setup::everything(era)
            .and("[[interceptors]]\nuse = \"secrets\"\nresponse = \"refuse\"\n")
            .start()
            .await;
        let agent = askable(&gate, None);
        let asked = agent.ask("tools/call", call("who?", None)).await.unwrap();
        let mut given = accept();
        given["content"]["username"] = secret.clone().into();
        let answer = agent.ask("tools/call", call("who?", Some((&asked, given)))).await;
        let text = answer.unwrap_or_else(|error| error).to_string();
        assert!(!text.contains(&secret), "{era}: {text}");
        assert!(text.contains("secret-found"), "{era}: {text}");
        gate.stop().await;
    }
}

#[tokio::test]
async fn task_belongs_to_its_client() {
    let written = Setup::everything("modern").keyed().write();
    let keys = [written.add_client("a", &[]).await, written.add_client("b", &[]).await];
    let gate = written.start().await;
    let [a, b] = [0, 1].map(|at| askable(&gate, Some(&keys[at])));
    let asked = a.call(TASK, json!({})).await.unwrap();
    let given = json!({ "action": "accept", "content": { "name": "ann" } });
    let params = call_of(TASK, json!({}), Some((&asked, given)));
    let task = a.ask("tools/call", params).await.unwrap();
    assert_eq!(task["resultType"], "task", "{task:#}");
    let id = json!({ "taskId": task["taskId"] });
    let found = a.ask("tasks/get", id.clone()).await.unwrap();
    assert_eq!(found["taskId"], task["taskId"]);
    for method in ["tasks/get", "tasks/cancel"] {
        let error = b.ask(method, id.clone()).await.unwrap_err();
        assert_eq!(code_of(&error), "request-state-invalid", "{method}");
    }
    // A client that does not speak of tasks is told what it lacks.
    let plain = Agent::modern(&gate.url("/mcp"), Some(&keys[0]));
    let error = plain.ask("tasks/get", id).await.unwrap_err();
    assert_eq!(code_of(&error), "capability-missing");
    gate.stop().await;
}

/// A server without sessions numbers its requests on each stream from 0.
#[tokio::test]
async fn requests_with_equal_ids_on_several_streams_are_answered() {
    let url = remote::asking().await;
    let gate = Setup::new(&format!("[servers.remote]\nurl = \"{url}\"\nera = \"legacy\""));
    let gate = gate.start().await;
    let client = Client::http("2025-11-25", &gate.url("/mcp")).await.unwrap();
    let ask = || client.ask("tools/call", json!({ "name": "remote__ask", "arguments": {} }));
    let (one, other) = tokio::join!(ask(), ask());
    for result in [one, other] {
        assert_eq!(result.unwrap()["content"][0]["text"], "asked");
    }
    gate.stop().await;
}

/// Answers as a server of both eras whose tool creates a task of 2026-07-28, with the id in its
/// arguments.
async fn create_task(Json(message): Json<Value>) -> Response {
    if message["id"].is_null() {
        return StatusCode::ACCEPTED.into_response();
    }
    let params = &message["params"];
    let result = match message["method"].as_str().unwrap_or_default() {
        "initialize" => json!({
            "protocolVersion": params["protocolVersion"], "capabilities": { "tools": {} },
            "serverInfo": { "name": "tasks", "version": "1" },
        }),
        "server/discover" => json!({
            "resultType": "complete", "supportedVersions": [MODERN], "ttlMs": 0,
            "capabilities": { "tools": {}, "extensions": { "io.modelcontextprotocol/tasks": {} } },
            "cacheScope": "private",
        }),
        "tools/list" => json!({
            "resultType": "complete", "ttlMs": 0, "cacheScope": "private",
            "tools": [{ "name": "start", "inputSchema": { "type": "object" } }],
        }),
        "tools/call" => json!({
            "resultType": "task", "taskId": params["arguments"]["id"], "status": "working",
        }),
        _ => json!({
            "resultType": "complete", "taskId": params["taskId"], "status": "working",
        }),
    };
    Json(json!({ "jsonrpc": "2.0", "id": message["id"], "result": result })).into_response()
}

/// A proxy with the server of [`create_task`], addressed in one era.
async fn creating_tasks(era: &str) -> Gate {
    let listener = TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], 0))).await.unwrap();
    let url = format!("http://{}/mcp", listener.local_addr().unwrap());
    let app = Router::new().route("/mcp", post(create_task));
    tokio::spawn(async move { axum::serve(listener, app).await });
    let entry = format!("[servers.remote]\nurl = \"{url}\"\nera = \"{era}\"");
    Setup::new(&entry).start().await
}

#[tokio::test]
async fn task_of_either_era_is_forwarded_unchanged_or_refused() {
    for era in ["legacy", "modern"] {
        let gate = creating_tasks(era).await;
        let begin = json!({ "id": "1" });
        let task = askable(&gate, None).call("remote__start", begin.clone()).await.unwrap();
        let expected = json!({ "resultType": "task", "taskId": "1", "status": "working" });
        assert_eq!(task, expected, "{era}");
        let found = askable(&gate, None).ask("tasks/get", json!({ "taskId": "1" })).await.unwrap();
        assert_eq!((&found["status"], &found["taskId"]), (&json!("working"), &json!("1")), "{era}");
        // A client without tasks could not follow it.
        let plain = gate.modern().call("remote__start", begin.clone()).await.unwrap_err();
        assert_eq!(code_of(&plain), "server-misbehaved", "{era}");
        let legacy = gate.legacy().await.call("remote__start", begin).await;
        match era {
            "legacy" => assert_eq!(legacy.unwrap(), expected),
            _ => assert_eq!(code_of(&legacy.unwrap_err()), "server-misbehaved"),
        }
        gate.stop().await;
    }
}

#[tokio::test]
async fn tasks_are_listed_only_if_a_server_has_them() {
    for (server, has) in [
        ("[servers.one]\ncommand = [\"{one-era}\", \"legacy\"]", false),
        ("[servers.one]\ncommand = [\"{scripted}\", \"2025-11-25\", \"stdio\"]", true),
    ] {
        let gate = Setup::new(&format!("{server}\nruntime = \"sandbox\"")).start().await;
        // A server that never ran may have tasks.
        assert!(!gate.legacy().await.names("tools/list").await.is_empty());
        for path in ["/mcp", "/servers/one/mcp"] {
            let agent = Agent::legacy(&gate.url(path), None).await.unwrap();
            assert_eq!(agent.greeting["capabilities"]["tasks"]["list"].is_object(), has, "{path}");
            match agent.ask("tasks/list", json!({})).await {
                Ok(list) => assert!(has && list["tasks"] == json!([]), "{path}: {list:#}"),
                Err(error) => {
                    assert!(!has && error["code"] == -32601, "{path}: {error:#}");
                    assert_eq!(code_of(&error), "method-unknown");
                }
            }
        }
        gate.stop().await;
    }
}

#[tokio::test]
async fn ids_and_file_of_tasks_are_limited() {
    let gate = creating_tasks("modern").await;
    let agent = askable(&gate, None);
    let longest = "x".repeat(1_024);
    let task = agent.call("remote__start", json!({ "id": longest })).await.unwrap();
    assert_eq!((&task["resultType"], &task["taskId"]), (&json!("task"), &json!(longest)));
    let longer = json!({ "id": format!("{longest}x") });
    let error = agent.call("remote__start", longer).await.unwrap_err();
    assert_eq!(code_of(&error), "server-misbehaved");

    let get = json!({ "taskId": longest });
    let gate = gate.stop().await.start().await;
    askable(&gate, None).ask("tasks/get", get.clone()).await.unwrap();
    let written = gate.stop().await;
    let file = OpenOptions::new().write(true).open(written.path("state/tasks.json")).unwrap();
    file.set_len((64 << 20) + 1).unwrap();
    let mut gate = written.start().await;
    gate.logged("the size of the file", |line| {
        line.contains("owners of tasks could not be read") && line.contains("67108865")
    })
    .await;
    let error = askable(&gate, None).ask("tasks/get", get).await.unwrap_err();
    assert_eq!(code_of(&error), "request-state-invalid");
    gate.stop().await;
}
