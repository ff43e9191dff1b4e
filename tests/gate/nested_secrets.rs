//! Secrets in JSON text that stands in a text block, as many servers answer with.

use serde_json::{Value, json};

use crate::support::{credential, gate::Setup};

/// Texts that hold the credential at the start of a line, each nested in another way.
fn texts(secret: &str) -> Vec<String> {
    let inner = json!({ "n": 1.50, "log": format!("first line\n{secret}\nlast line") }).to_string();
    vec![
        inner.clone(),
        json!({ "inner": inner }).to_string(),
        json!([json!({ "inner": inner }).to_string()]).to_string(),
        format!("{{\"i\":1}}\n{inner}\n{{\"i\":2}}\n"),
        format!("Here it is:\n```json\n{inner}\n```\n"),
        format!("event: message\ndata: {inner}\n\n"),
        format!("12:00 INFO body={inner} took 3 ms"),
        inner[1..inner.len() - 3].to_owned(),
        format!("{{'log': 'first line\\n{secret}\\nlast line', 'n': None}}"),
    ]
}

#[tokio::test]
async fn token_at_the_start_of_a_line_in_json_text_does_not_leave() {
    let gate = Setup::crooked("").start().await;
    let secret = credential();
    for agent in [gate.legacy().await, gate.modern()] {
        for text in texts(&secret) {
            let code = agent.refused("crooked__echo", json!({ "text": text })).await;
            assert_eq!(code, "secret-found", "{text}");
        }
    }
    let told = format!("{:?}{:?}", gate.records(&[]).await, gate.log());
    assert!(!told.contains(&secret), "{told}");
    gate.stop().await;
}

#[tokio::test]
async fn token_in_json_text_is_redacted_and_the_rest_is_unchanged() {
    let secrets = "[[interceptors]]\nuse = \"secrets\"\nrequest = \"off\"";
    let gate = Setup::crooked("")
        .and(secrets)
        .policies(
            "@id(\"kept\")\n@keep(\"arguments, result\")\npermit (principal, action, resource);",
        )
        .start()
        .await;
    let secret = credential();
    let agent = gate.modern();
    let expected = texts("[redacted:aws-access-key-id]");
    for (text, expected) in texts(&secret).into_iter().zip(expected) {
        let answer = agent.text("crooked__echo", json!({ "text": text })).await;
        assert_eq!(answer, expected);
        if let Ok(value) = serde_json::from_str::<Value>(&text) {
            let shown: Value = serde_json::from_str(&answer).unwrap();
            assert_eq!(value.is_object(), shown.is_object());
        }
    }
    let told = format!("{:?}{:?}", gate.records(&[]).await, gate.log());
    assert!(!told.contains(&secret) && told.contains("aws-access-key-id"), "{told}");
    gate.stop().await;
}
