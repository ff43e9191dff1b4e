//! Remote servers of each revision.

use serde_json::json;

use crate::support::{agent::code_of, bad_http, gate::Setup, peers};

#[tokio::test]
async fn http_sse_server_is_detected_and_reconnected() {
    let url = peers::sse().await;
    let gate = Setup::new(&format!(
        "[servers.found]\nurl = \"{url}\"\n[servers.told]\nurl = \"{url}\"\ntransport = \"sse\""
    ))
    .start()
    .await;
    for agent in [gate.legacy().await, gate.modern()] {
        for server in ["found", "told"] {
            let (echo, end) = (format!("{server}__echo"), format!("{server}__end"));
            assert_eq!(agent.text(&echo, json!({ "text": "one" })).await, "one");
            assert_eq!(agent.text(&end, json!({ "text": "two" })).await, "two");
            // The end may be seen only when it is spoken to.
            let again = agent.call(&echo, json!({ "text": "three" })).await;
            if again.is_err() {
                assert_eq!(agent.text(&echo, json!({ "text": "three" })).await, "three");
            }
        }
    }
    let states = gate.cli(&["--format", "json", "server", "ls"]).await.expect(0);
    for state in states.as_array().unwrap() {
        assert_eq!(
            (&state["revision"], &state["state"]),
            (&json!("2024-11-05"), &json!("running"))
        );
    }
}

#[tokio::test]
async fn notification_in_one_chunk_with_its_response_is_delivered() {
    let url = peers::together().await;
    let gate = Setup::new(&format!("[servers.peer]\nurl = \"{url}\"")).start().await;
    for agent in [gate.legacy().await, gate.modern()] {
        let params = json!({ "name": "peer__echo", "arguments": { "text": "x" } });
        let mut request = agent.request("tools/call", params);
        request["params"]["_meta"]["progressToken"] = "mine".into();
        let messages = agent.send(request).await.messages;
        let [notice, response] = messages.as_slice() else { panic!("{messages:#?}") };
        assert_eq!(notice["params"], json!({ "progressToken": "mine", "progress": 1 }));
        assert_eq!(response["result"]["content"][0]["text"], "x");
    }
    gate.stop().await;
}

#[tokio::test]
async fn interrupted_streams_and_lost_sessions_recover() {
    let url = peers::polled().await;
    let gate = Setup::new(&format!("[servers.polled]\nurl = \"{url}\"")).start().await;
    for agent in [gate.legacy().await, gate.modern()] {
        assert_eq!(agent.text("polled__echo", json!({ "text": "one" })).await, "one");
        assert_eq!(agent.text("polled__end", json!({ "text": "two" })).await, "two");
        // It did not take this one, so it gets it again.
        assert_eq!(agent.text("polled__echo", json!({ "text": "three" })).await, "three");
    }
}

#[tokio::test]
async fn servers_that_break_http_fail_only_their_own_calls() {
    let url = bad_http::serve().await;
    let gate =
        Setup::new(&format!("[servers.bad]\nurl = \"{url}\"\ncall-timeout-s = 2")).start().await;
    for agent in [gate.legacy().await, gate.modern()] {
        for (tool, code) in bad_http::TOOLS {
            let tool = format!("bad__{tool}");
            // A call that answers runs beside each that does not.
            let (answered, tried) =
                tokio::join!(agent.text("bad__echo", json!({})), agent.call(&tool, json!({})));
            assert_eq!(answered, "own", "{tool}");
            match code {
                Some(code) => assert_eq!(code_of(&tried.unwrap_err()), code, "{tool}"),
                None => assert_eq!(tried.unwrap()["content"][0]["text"], "own", "{tool}"),
            }
        }
    }
    gate.stop().await;
}
