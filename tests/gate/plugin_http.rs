//! Records of a plugin's HTTP requests.

use serde_json::json;
use tokio::net::TcpListener;

use crate::support::{gate::Setup, in_time, target, until};

/// What is written of its host within the plugin.
const PLACEHOLDER: &[u8] = b"localhost:54321";

#[tokio::test]
async fn plugin_requests_of_a_withdrawn_message_are_recorded() {
    // It takes connections and says nothing.
    let pit = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let host = format!("localhost:{:05}", pit.local_addr().unwrap().port());
    let mut component = std::fs::read(target("plugins/tarpit.wasm")).unwrap();
    let at = component.windows(PLACEHOLDER.len()).position(|part| part == PLACEHOLDER).unwrap();
    component[at..at + host.len()].copy_from_slice(host.as_bytes());
    let entry = format!(
        "[[interceptors]]\nuse = \"plugin\"\nname = \"pit\"\npath = \"tarpit.wasm\"\n\
         allow-unpinned = true\ndeadline-ms = 600000\n\
         [interceptors.grants]\nhttp = [\"http://{host}=127.0.0.1\"]\n"
    );
    let setup = Setup::notes().without("schema").and(&entry).file("tarpit.wasm", component);
    let gate = setup.start().await;
    let agent = gate.modern();
    let note = json!({ "name": "any", "title": "harm:tarpit", "text": "x" });
    let call = tokio::spawn(async move { agent.call("notes__add_note", note).await });
    let _held = in_time("a request", pit.accept()).await.unwrap();
    call.abort();
    let events = until("the event", async || {
        let events = gate.records(&["event = plugin-http-sent"]).await;
        (!events.is_empty()).then_some(events)
    })
    .await;
    assert_eq!(events[0]["plugin"], "pit", "{events:#?}");
    assert_eq!(events[0]["requests"], json!([format!("GET http://{host} unanswered")]));
    gate.stop().await;
}
