//! A proxy with all loadable plugins of `tests/plugins/harms` in its chain. They attack at the same
//! time while other clients work: their own messages are refused, and other clients are not
//! affected.

use std::{
    ops::Range,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use axum::{Router, body::Bytes, extract::State, http::Request, routing::any};
use futures_util::future::join_all;
use serde_json::{Value, json};
use tokio::{
    net::TcpListener,
    sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel},
};

use crate::support::{
    PERMIT_ALL,
    agent::Agent,
    gate::{Gate, Setup},
    target,
};

/// Those whose message faults, and what its record says of it. `hoard`, which does its harm with every
/// message, is tried in `tests/plugin`.
const FAULTS: [(&str, &str); 24] = [
    ("allocate", "more than its 64 MiB of memory"),
    ("crumbs", "more than its 64 MiB of memory"),
    ("flood-log", "it did not finish within 10s"),
    ("flood-log-wide", "its output exceeds twice the message"),
    ("flood-metrics", "it did not finish within 10s"),
    ("flood-random", "it trapped: it requested more than 4096 random bytes"),
    ("flood-state", "it did not finish within 10s"),
    ("forged-words", "is not a legal code"),
    ("garbage", "its replacement is not legal: "),
    ("huge-payload", "more than its 64 MiB of memory"),
    ("labels", "its output exceeds twice the message"),
    ("late", "it did not finish within 10s"),
    ("long-error", "it failed: x"),
    ("nesting", "its replacement is not legal: "),
    ("never-settles", "interceptors still changed the message in round 4"),
    ("other-tool", "its replacement changes `name`"),
    ("out-of-bounds", "out of bounds"),
    ("recurse", "exceeded its stack"),
    ("recurse-in-memory", "out of bounds"),
    ("spin", "it did not finish within 10s"),
    ("statics", "it failed: kept 1"),
    ("tarpit", "it did not finish within 10s"),
    ("trap", "it trapped: "),
    ("two-keys", "its replacement is not legal: "),
];
/// For all of it, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(400);

/// What is written of the host within the plugins that have one.
const PLACEHOLDER: &[u8] = b"localhost:54321";

/// An entry for a plugin of the harms, with what it asks for, and its file.
fn with(setup: Setup, name: &str, port: u16) -> Setup {
    let host = format!("localhost:{port:05}");
    let grants = match name {
        "flood-log" | "flood-log-wide" => "log = true".into(),
        "flood-metrics" => "metrics = true".into(),
        "flood-random" => "random = true".into(),
        "flood-state" => "state = \"1MiB\"".into(),
        "late" => "clock = true".into(),
        "tarpit" => format!("http = [\"http://{host}=127.0.0.1\"]"),
        "leak" => format!(
            "log = true\nmetrics = true\nhttp = [\"http://{host}=127.0.0.1\"]\n\
             secrets = {{ TOKEN = {{ from = \"file:token\" }} }}"
        ),
        _ => String::new(),
    };
    let mut bytes = std::fs::read(target(&format!("plugins/{name}.wasm"))).unwrap();
    let at = bytes.windows(PLACEHOLDER.len()).position(|part| part == PLACEHOLDER);
    if let Some(at) = at {
        bytes[at..at + host.len()].copy_from_slice(host.as_bytes());
    }
    // Long enough that no honest message is late, however busy the machine is.
    let entry = |called: &str| {
        format!(
            "[[interceptors]]\nuse = \"plugin\"\nname = \"{called}\"\npath = \"{name}.wasm\"\n\
             allow-unpinned = true\ndeadline-ms = 10000\n[interceptors.grants]\n{grants}\n"
        )
    };
    // One alone is not asked about what it replaced itself.
    let setup = if name == "never-settles" { setup.and(&entry("unsettling")) } else { setup };
    setup.file(&format!("{name}.wasm"), bytes).and(&entry(name))
}

/// A running proxy, and the keys of its clients.
async fn started<const N: usize>(setup: Setup, clients: [&str; N]) -> (Gate, [String; N]) {
    let written = setup.policies(PERMIT_ALL).keyed().write();
    let mut keys = Vec::new();
    for client in clients {
        keys.push(written.add_client(client, &[]).await);
    }
    (written.start().await, keys.try_into().unwrap())
}

async fn in_time<F: Future>(future: F) -> F::Output {
    tokio::time::timeout(PATIENCE, future).await.expect("it comes to an end")
}

/// A client that means no harm: each of its calls is answered, and with what it asked for.
async fn honest(agent: &Agent, calls: Range<usize>) {
    for call in calls {
        let text = format!("honest call {call}");
        assert_eq!(agent.text("crooked__echo", json!({ "text": text })).await, text);
    }
}

fn asking(name: &str) -> Value {
    json!({ "text": format!("harm:{name}") })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn plugin_attacks_affect_only_their_own_messages() {
    let pit = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = pit.local_addr().unwrap().port();
    let setup = FAULTS.iter().fold(Setup::crooked(""), |setup, (name, _)| with(setup, name, port));
    let (gate, [ann, bob, mallory]) = started(setup, ["ann", "bob", "mallory"]).await;
    let url = gate.url("/mcp");
    let ann = Agent::legacy(&url, Some(&ann)).await.expect("a session");
    let (bob, mallory) = (Agent::modern(&url, Some(&bob)), Agent::modern(&url, Some(&mallory)));
    honest(&ann, 0..1).await;

    // Others work beside all harms at once.
    let over = AtomicBool::new(false);
    let others = async |agent: &Agent| {
        honest(agent, 0..4).await;
        while !over.load(Ordering::Relaxed) {
            honest(agent, 0..1).await;
        }
    };
    let harms = async {
        let asked = FAULTS.map(|(name, _)| {
            let asked = mallory.call("crooked__echo", asking(name));
            async move { (name, asked.await) }
        });
        for (name, answer) in join_all(asked).await {
            let error = answer.expect_err(name);
            assert_eq!(error["data"]["code"], "interceptor-fault", "{name}: {error:#}");
            assert!(error.to_string().len() < 1024, "{name}: short words: {error:#}");
        }
        over.store(true, Ordering::Relaxed);
    };
    // The pit takes every connection and says nothing.
    let pitted = async {
        let mut held = Vec::new();
        loop {
            held.push(pit.accept().await.unwrap());
        }
    };
    tokio::select! {
        _ = in_time(async { tokio::join!(others(&ann), others(&bob), harms) }) => {}
        () = pitted => unreachable!("the pit has no bottom"),
    }
    honest(&ann, 0..1).await;

    // Each is on record as the plugin's own, and nobody else's message is.
    let records = gate.records(&["decision = refused and client = mallory"]).await;
    assert_eq!(records.len(), FAULTS.len());
    for (name, told) in FAULTS {
        let record = records.iter().find(|record| record["rules"][0]["id"] == name);
        let record = record.unwrap_or_else(|| panic!("{name} is on record"));
        let (rule, refusal) = (&record["rules"][0], &record["refusal"]);
        assert_eq!(
            (&record["decision"], &record["server"]),
            (&json!("refused"), &json!("crooked"))
        );
        assert!(rule["file"].as_str().is_some_and(|file| file.ends_with("portcullis.toml")));
        assert!(rule["line"].is_u64(), "{record:#}");
        assert_eq!(refusal["code"], "interceptor-fault", "{record:#}");
        let detail = refusal["detail"].as_str().unwrap_or_default();
        assert!(detail.contains(told), "{name}: {detail}");
        assert!(detail.len() < 512 && !detail.contains(['\n', '\u{1b}']), "{name}: {detail}");
    }
    let others = gate.records(&["decision in (refused, failed) and client in (ann, bob)"]).await;
    assert!(others.is_empty(), "{others:#?}");
    // No line that a plugin made up.
    assert!(!gate.log().iter().any(|line| line.starts_with("level=INFO forged")));
    tokio::time::timeout(Duration::from_secs(60), gate.stop()).await.expect("it stops");
}

/// Takes every request and tells of all that is in it.
async fn listener() -> (u16, UnboundedReceiver<String>) {
    async fn hear(
        State(told): State<UnboundedSender<String>>,
        request: Request<axum::body::Body>,
    ) -> &'static str {
        let (parts, body) = request.into_parts();
        let body: Bytes = axum::body::to_bytes(body, 1 << 20).await.unwrap();
        let _ = told.send(format!("{parts:?} {}", String::from_utf8_lossy(&body)));
        "heard"
    }
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let (told, heard) = unbounded_channel();
    let app = Router::new().fallback(any(hear)).with_state(told);
    tokio::spawn(async move { axum::serve(listener, app).await });
    (port, heard)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn plugin_secret_reaches_only_granted_hosts() {
    let (port, mut heard) = listener().await;
    let token = ["correct", "horse", "battery", "staple"].join("-");
    let setup = with(Setup::crooked("").file("token", &token), "leak", port);
    let (gate, [ann, mallory]) = started(setup, ["ann", "mallory"]).await;
    let url = gate.url("/mcp");
    let (ann, mallory) = (Agent::modern(&url, Some(&ann)), Agent::modern(&url, Some(&mallory)));

    for (how, code) in [
        ("as a refusal", "plugin-refused"),
        ("as an error", "interceptor-fault"),
        ("as a trap", "interceptor-fault"),
        ("as a label", "interceptor-fault"),
        ("as a code", "interceptor-fault"),
        ("as a refusal", "plugin-refused"),
        ("as a replacement", "interceptor-fault"),
    ] {
        let asked = json!({ "text": "harm:leak", "how": how });
        let error = mallory.call("crooked__echo", asked).await.expect_err(how);
        assert_eq!(error["data"]["code"], code, "{how}: {error:#}");
        assert!(!error.to_string().contains(&token), "{how}: {error:#}");
        // Whom the operator named got it; it was not asked with any other request.
        let told = heard.recv().await.expect("a request");
        assert!(told.contains(&format!("/{token}")) && told.contains("x-token"), "{how}: {told}");
        assert!(told.ends_with(&token), "{how}: {told}");
        assert!(heard.try_recv().is_err(), "{how}: one request alone");
        honest(&ann, 0..1).await;
    }

    let records = gate.records(&["decision = refused and client = mallory"]).await;
    assert_eq!(records.len(), 7);
    for record in &records {
        // Whom it spoke to, and whom it tried to, without what it meant to say.
        let text = record.to_string();
        assert!(text.contains(&format!("POST http://localhost:{port} 200")), "{record:#}");
        assert!(text.contains("GET http://[redacted].example:80 denied"), "{record:#}");
        assert!(text.contains("GET http://localhost:1 denied"), "{record:#}");
        assert!(!text.contains("/method") && !text.contains("/header"), "{record:#}");
        assert_eq!(record["server"], "crooked");
    }
    let records = serde_json::to_string(&gate.records(&[]).await).unwrap();
    assert!(!records.contains(&token), "{records}");
    let metrics = gate.metrics().await;
    assert!(!metrics.contains(&token), "{metrics}");
    let log = gate.log().join("\n");
    assert!(log.contains("token [redacted]") && !log.contains(&token), "{log}");
    gate.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn exhausted_session_instances_do_not_affect_other_clients() {
    let setup = with(with(Setup::crooked(""), "sessions", 0), "gossip", 0);
    let (gate, [ann, bob, mallory]) = started(setup, ["ann", "bob", "mallory"]).await;
    let url = gate.url("/mcp");
    let ann = Agent::legacy(&url, Some(&ann)).await.expect("a session");
    let bob = Agent::modern(&url, Some(&bob));
    honest(&ann, 0..1).await;

    // More sessions, and more memory in each, than one client can have kept.
    let over = AtomicBool::new(false);
    let harms = async {
        let sessions = (0..20).map(|_| async {
            let agent = Agent::legacy(&url, Some(&mallory)).await.expect("a session");
            for _ in 0..6 {
                match agent.call("crooked__echo", asking("sessions")).await {
                    Ok(_) => {}
                    Err(error) => assert_eq!(error["data"]["code"], "interceptor-fault"),
                }
            }
            // Many at once in one of them: they wait for each other and for nobody else.
            let crowd = (0..8).map(|_| agent.call("crooked__echo", asking("any")));
            join_all(crowd).await;
        });
        join_all(sessions).await;
        over.store(true, Ordering::Relaxed);
    };
    let others = async |agent: &Agent| {
        honest(agent, 0..10).await;
        while !over.load(Ordering::Relaxed) {
            honest(agent, 0..1).await;
        }
    };
    in_time(async { tokio::join!(others(&ann), others(&bob), harms) }).await;
    // What mallory did not take is there for who needs it: one that grows as others do.
    let large = json!({ "text": "x".repeat(1 << 20) });
    let large = bob.call("crooked__echo", large).await;
    large.unwrap_or_else(|error| panic!("room for others: {error:#}"));

    // Each session's instance knows its own messages, and no others.
    let mallory = Agent::legacy(&url, Some(&mallory)).await.expect("a session");
    for _ in 0..2 {
        honest(&mallory, 7_000..7_001).await;
    }
    for (agent, own) in [(&mallory, "honest call 7000 honest call 7000"), (&ann, "honest call")] {
        let error = agent.call("crooked__echo", asking("gossip")).await.expect_err("its words");
        assert_eq!(error["data"]["code"], "plugin-refused", "{error:#}");
        let reason = error["data"]["reason"].as_str().unwrap_or_default();
        assert!(reason.contains('/'), "the plugin and its code: {error:#}");
        let told = error["message"].as_str().unwrap_or_default();
        assert!(told.contains(&format!("heard: {own}")), "{error:#}");
        assert_eq!(told.contains("7000"), own.contains("7000"), "{error:#}");
        assert!(!told.contains("harm:"), "{error:#}");
    }
    let others = gate.records(&["decision in (refused, failed) and client = bob"]).await;
    assert!(others.is_empty(), "{others:#?}");
    gate.stop().await;
}
