//! Secrets that only their name reveals: they reach the server, but neither records nor people.

use std::sync::Arc;

use axum::{Json, Router, extract::State, http::StatusCode, routing::post};
use serde_json::{Value, json};
use tokio::sync::mpsc;

use crate::support::{gate::Setup, in_time, until};

/// Names as tools, environments and files of well-known programs have them.
const NAMES: [&str; 36] = [
    "password",
    "db_password",
    "PGPASSWORD",
    "newPassword",
    "passwd",
    "pwd",
    "passphrase",
    "pin",
    "otp",
    "api_key",
    "apiKey",
    "x-api-key",
    "OPENAI_API_KEY",
    "Ocp-Apim-Subscription-Key",
    "token",
    "access_token",
    "refreshToken",
    "GITHUB_PERSONAL_ACCESS_TOKEN",
    "SLACK_BOT_TOKEN",
    "id_token",
    "bearer",
    "jwt",
    "secret",
    "client_secret",
    "clientSecret",
    "secretAccessKey",
    "SecretString",
    "AccountKey",
    "private_key",
    "signing_key",
    "authorization",
    "Proxy-Authorization",
    "cookie",
    "set-cookie",
    "session_cookie",
    "_auth",
];

/// What no person may see. Nothing about it but its name says so.
fn value(n: usize) -> String {
    format!("hunter-{n}")
}

/// Arguments with a value under each name, and in each other form.
fn arguments() -> (Value, usize) {
    let mut arguments = serde_json::Map::new();
    for (n, name) in NAMES.iter().enumerate() {
        arguments.insert((*name).to_owned(), value(n).into());
    }
    let mut count = NAMES.len();
    let mut next = || {
        count += 1;
        value(count - 1)
    };
    let inner = json!({ "env": [{ "name": "TOKEN", "value": next() }] }).to_string();
    let more = json!({
        "credentials": { "user": next(), "list": [next(), { "x": next() }] },
        "env": [{ "name": "API_KEY", "value": next() }],
        "headers": [["Authorization", format!("Basic {}", next())]],
        "args": ["run", "--password", next(), format!("--token={}", next())],
        "url": format!("https://bob:{}@h.example/x?token={}&n=1", next(), next()),
        "form": format!("user=bob&client_secret={}&n=1", next()),
        "dotenv": format!("A=1\nexport DB_PASSWORD=\"{}\"\nB=2", next()),
        "request": format!("GET / HTTP/1.1\r\nAuthorization: Digest {}\r\nHost: a", next()),
        "curl": format!("curl -H 'X-Api-Key: {}' https://h.example", next()),
        "yaml": format!("user: bob\npassword: {}\n", next()),
        "json": inner,
        "ndjson": format!("{{\"a\":1}}\n{{\"secret\":\"{}\"}}\n", next()),
        "log": format!("got {{\\\"password\\\": \\\"{}\\\"}} and more", next()),
    });
    arguments.extend(more.as_object().unwrap().clone());
    arguments.insert("text".to_owned(), "the rest".into());
    (arguments.into(), count)
}

const POLICIES: &str = r#"
    @id("rest")
    permit (principal, action, resource)
    unless { action == Portcullis::Action::"call_tool" && resource.name == "reflect" };

    @id("by-a-person")
    @approve("it leaves the house")
    @keep("arguments, result")
    permit (principal, action, resource)
    when { action == Portcullis::Action::"call_tool" && resource.name == "reflect" };
"#;

#[tokio::test]
async fn secrets_recognized_only_by_name_are_never_shown() {
    let (told, mut calls) = mpsc::channel::<Value>(8);
    let hook = post(async |State(told): State<mpsc::Sender<Value>>, Json(call): Json<Value>| {
        told.send(call).await.unwrap();
        StatusCode::ACCEPTED
    });
    let app = Router::new().route("/hook", hook).with_state(told);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, app).await });
    let gate = Setup::crooked("")
        .without("secrets")
        .and(&format!("[approvals]\nwebhook = {{ url = \"http://{address}/hook\" }}"))
        .policies(POLICIES)
        .start()
        .await;
    let agent = Arc::new(gate.modern());
    let (arguments, count) = arguments();
    let asked = tokio::spawn({
        let (agent, arguments) = (agent.clone(), arguments.clone());
        async move { agent.call("crooked__reflect", arguments).await }
    });
    let hooked = in_time("the webhook", calls.recv()).await.unwrap();
    let waiting = until("the call to wait", async || {
        let listed = gate.cli(&["approve", "ls", "--format", "json"]).await.expect(0);
        listed.as_array().unwrap().first().cloned()
    })
    .await;
    let listed = gate.cli(&["approve", "ls"]).await.stdout;
    let id = waiting["id"].as_str().unwrap();
    assert_eq!(gate.cli(&["approve", "allow", id]).await.code, Some(0));
    let result = in_time("the call", asked).await.unwrap().unwrap();
    let result = result["content"][0]["text"].as_str().unwrap().to_owned();

    let records = gate.records(&[]).await;
    let shown = gate.cli(&["audit", "show", id]).await.stdout;
    let exported = gate.cli(&["audit", "export"]).await.stdout;
    let log = gate.log();
    for (place, text) in [
        ("the webhook", hooked.to_string()),
        ("`approve ls`", waiting.to_string()),
        ("`approve ls` for people", listed),
        ("the records", format!("{records:?}")),
        ("`audit show`", shown),
        ("an export", exported),
        ("the log", format!("{log:?}")),
    ] {
        let seen: Vec<_> = (0..count).filter(|n| text.contains(&value(*n))).collect();
        assert!(!text.contains("hunter-"), "{place} shows {seen:?}: {text}");
        let is_filled = place == "the log" || text.contains("[redacted:secret-name]");
        assert!(is_filled, "{place} shows nothing: {text}");
    }
    // Everybody sees the rest, and the server what was sent.
    let body = &hooked["params"]["body"]["arguments"];
    assert_eq!(body["text"], "the rest", "{hooked:#}");
    for name in NAMES {
        assert_eq!(body[name], "[redacted:secret-name]", "{name}");
    }
    for n in 0..count {
        assert!(result.contains(&value(n)), "{n}: {result}");
    }
    let written = gate.stop().await;
    for file in super::records::files(&written.path("state")) {
        let holds = file.windows(7).any(|window| window == b"hunter-");
        assert!(!holds, "a value is in the state folder");
    }
}
