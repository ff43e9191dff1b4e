//! A proxy with all plugins of `tests/plugins/harms` in its chain that can be loaded. Each does its harm
//! while other clients work: its own message is refused, and nobody else notices.

use std::{
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    time::Duration,
};

use futures_util::future::join_all;
use serde_json::{Value, json};
use tokio::net::TcpListener;

use crate::support::{gate::Setup, in_time, target};

/// Those whose message faults.
const FAULTS: [&str; 25] = [
    "allocate",
    "crumbs",
    "flood-log",
    "flood-log-wide",
    "flood-metrics",
    "flood-random",
    "flood-state",
    "forged-words",
    "garbage",
    "hoard",
    "huge-payload",
    "labels",
    "late",
    "long-error",
    "nesting",
    "never-settles",
    "other-tool",
    "out-of-bounds",
    "recurse",
    "recurse-in-memory",
    "spin",
    "statics",
    "tarpit",
    "trap",
    "two-keys",
];
/// The one that hands out what it was told in confidence, and the one that keeps what it can.
const OTHERS: [&str; 2] = ["leak", "sessions"];

/// What is written of the tarpit's host within the plugin.
const PLACEHOLDER: &[u8] = b"localhost:54321";

fn entry(name: &str, port: u16) -> String {
    let grants = match name {
        "flood-log" | "flood-log-wide" => "log = true".into(),
        "flood-metrics" => "metrics = true".into(),
        "flood-random" => "random = true".into(),
        "flood-state" => "state = \"1MiB\"".into(),
        "late" => "clock = true".into(),
        "tarpit" => format!("http = [\"localhost:{port:05}=127.0.0.1\"]"),
        "leak" => {
            "log = true\nmetrics = true\nsecrets = { TOKEN = { from = \"file:token\" } }".into()
        }
        _ => String::new(),
    };
    // Long enough that no honest message is late, however busy the machine is.
    format!(
        "[[interceptors]]\nuse = \"plugin\"\nname = \"{name}\"\npath = \"{name}.wasm\"\n\
         allow-unpinned = true\ndeadline-ms = 10000\n[interceptors.grants]\n{grants}\n"
    )
}

fn component(name: &str, port: u16) -> Vec<u8> {
    let mut bytes = std::fs::read(target(&format!("plugins/{name}.wasm"))).unwrap();
    if name == "tarpit" {
        let at = bytes.windows(PLACEHOLDER.len()).position(|part| part == PLACEHOLDER).unwrap();
        let host = format!("localhost:{port:05}");
        bytes[at..at + host.len()].copy_from_slice(host.as_bytes());
    }
    bytes
}

fn asking(name: &str) -> Value {
    json!({ "name": "any", "title": format!("harm:{name}"), "text": "x" })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_harm_ends_at_its_own_message() {
    let pit = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = pit.local_addr().unwrap().port();
    let token = ["correct", "horse", "battery", "staple"].join("-");
    let mut setup = Setup::notes().file("token", &token);
    for name in FAULTS.into_iter().chain(OTHERS) {
        setup = setup.and(&entry(name, port)).file(&format!("{name}.wasm"), component(name, port));
    }
    let gate = setup.start().await;
    gate.modern().call("notes__list_notes", json!({})).await.expect("before any harm");

    // Others work as long as there is harm.
    let (over, answered) = (AtomicBool::new(false), AtomicUsize::new(0));
    let others = async |agent: crate::support::agent::Agent| {
        while !over.load(Ordering::Relaxed) {
            let answer = agent.call("notes__list_notes", json!({})).await;
            answer.unwrap_or_else(|error| panic!("another client's call: {error:#}"));
            answered.fetch_add(1, Ordering::Relaxed);
        }
    };
    // The pit takes every connection and says nothing.
    let pitted = async {
        let mut held = Vec::new();
        loop {
            held.push(pit.accept().await.unwrap());
        }
    };
    let harms = async {
        let asked = FAULTS.map(|name| {
            let agent = gate.modern();
            async move { (name, agent.call("notes__add_note", asking(name)).await) }
        });
        for (name, answer) in join_all(asked).await {
            let error = answer.expect_err(name);
            assert_eq!(error["data"]["code"], "interceptor-fault", "{name}: {error:#}");
            assert!(error.to_string().len() < 2048, "{name}: short words");
        }
        for text in ["as a refusal", "as an error"] {
            let leak = json!({ "name": "any", "title": "harm:leak", "text": text });
            let error = gate.modern().call("notes__add_note", leak).await.expect_err("leak");
            assert!(!error.to_string().contains(&token), "{error:#}");
        }
        // Enough for more memory than it may have.
        let keeper = gate.legacy().await;
        for _ in 0..12 {
            if let Err(error) = keeper.call("notes__add_note", asking("sessions")).await {
                assert_ne!(error["data"]["code"], "internal", "{error:#}");
            }
        }
        over.store(true, Ordering::Relaxed);
    };
    let (one, two, three) = (gate.modern(), gate.modern(), gate.legacy().await);
    let work = async { tokio::join!(others(one), others(two), others(three), harms) };
    tokio::select! {
        _ = in_time("all harms", work) => {}
        () = pitted => unreachable!("the pit has no bottom"),
    }

    assert!(answered.load(Ordering::Relaxed) > 0, "others were served meanwhile");
    gate.modern().call("notes__list_notes", json!({})).await.expect("after all harm");
    // No word of the secret anywhere, and no line that a plugin made up.
    let log = gate.log().join("\n");
    assert!(!log.contains(&token));
    assert!(!log.lines().any(|line| line.starts_with("level=INFO forged")));
    let records = serde_json::to_string(&gate.records(&[]).await).unwrap();
    assert!(!records.contains(&token));
    for name in FAULTS {
        assert!(records.contains(name), "{name} is on record");
    }
    tokio::time::timeout(Duration::from_secs(60), gate.stop()).await.expect("it stops");
}
