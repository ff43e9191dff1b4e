//! Large messages. Those of one client or server do not delay others, have no more keys than the
//! limits, and together use limited memory, which is released afterwards.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use futures_util::future::{join, join_all};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    net::TcpStream,
};

use crate::support::{
    PERMIT_ALL,
    agent::{Agent, code_of},
    events::Events,
    gate::{Gate, Setup},
    in_time, until,
    wire::{self, ORDINARY},
};

/// The attack's number of keys: about 3 MB of them.
const KEYS: usize = 250_000;

/// An object with so many keys.
fn object(keys: usize) -> String {
    let members: Vec<_> = (0..keys).map(|i| format!("\"k{i:07}\":0")).collect();
    format!("{{{}}}", members.join(","))
}

/// A call of a tool with these arguments, as a legacy client words it.
fn call(tool: &str, arguments: &str) -> String {
    format!(
        r#"{{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{{"name":"{tool}","arguments":{arguments}}}}}"#
    )
}

/// The codes of all refusals in a text, at any depth: doors answer in different forms.
fn codes(text: &str) -> Vec<String> {
    fn find(value: &Value, found: &mut Vec<String>) {
        match value {
            Value::Object(members) => {
                if let (Some(Value::String(code)), true) =
                    (members.get("code"), members.contains_key("decision"))
                {
                    found.push(code.clone());
                }
                members.values().for_each(|member| find(member, found));
            }
            Value::Array(items) => items.iter().for_each(|item| find(item, found)),
            _ => {}
        }
    }
    let mut found = Vec::new();
    find(&serde_json::from_str(text).unwrap_or_default(), &mut found);
    found
}

#[tokio::test]
async fn body_with_250_000_keys_is_refused_on_every_transport() {
    let setup = Setup::crooked("").listen("rest = true");
    let mut gate = setup.write().start_with(&["--stdio"]).await;
    let arguments = object(KEYS);
    let whole = call("crooked__echo", &arguments);

    let session = async |revision| {
        let agent = Agent::legacy_of(&gate.url("/mcp"), None, revision).await.expect("a session");
        agent.session.unwrap()
    };
    let (legacy, batches) = (session("2025-11-25").await, session("2025-03-26").await);
    let modern = r#"{"io.modelcontextprotocol/protocolVersion":"2026-07-28","io.modelcontextprotocol/clientCapabilities":{}}"#;
    let meta = format!(
        r#"{{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{{"name":"echo","arguments":{arguments},"_meta":{modern}}}}}"#
    );
    let invoked = format!(r#"{{"tool":"crooked__echo","arguments":{arguments}}}"#);
    let modern: &[(&str, &str)] = &[
        ("MCP-Protocol-Version", "2026-07-28"),
        ("Mcp-Method", "tools/call"),
        ("Mcp-Name", "echo"),
    ];
    let mut stream = Events::get(&gate.url("/sse"), &[("accept", "text/event-stream")]).await;
    let paired = stream.next().await.unwrap().data;
    for (path, headers, body) in [
        ("/mcp", &[("Mcp-Session-Id", legacy.as_str())][..], whole.clone()),
        ("/mcp", &[("Mcp-Session-Id", batches.as_str())], format!("[{whole}]")),
        ("/servers/crooked/mcp", modern, meta),
        (paired.as_str(), &[], whole.clone()),
        ("/invoke", &[], invoked.clone()),
        ("/batch", &[], format!("[{invoked}]")),
    ] {
        let headers = [ORDINARY, headers].concat();
        let reply = wire::post(gate.addr, path, &headers, body.as_bytes()).await;
        let words = "an object of the message has more than 10000 keys";
        assert_eq!(codes(&reply.body), ["too-large"], "{path}: {reply:#?}");
        assert!(reply.body.contains(words), "{path}: {reply:#?}");
    }

    let mut stdin = gate.stdin.take().unwrap();
    let mut lines = BufReader::new(gate.stdout.take().unwrap()).lines();
    stdin.write_all(format!("{whole}\n").as_bytes()).await.unwrap();
    let line = in_time("a refusal", lines.next_line()).await.unwrap().unwrap();
    assert_eq!(codes(&line), ["too-large"], "{line}");

    // Elements are no keys: what programs send each other passes, at the limit, too.
    let agent = gate.modern();
    for arguments in [
        json!({ "text": "rows", "rows": vec![0; 300_000] }),
        serde_json::from_str(&object(9_990)).unwrap(),
    ] {
        let answer = agent.call("crooked__echo", arguments).await;
        assert!(answer.is_ok(), "{answer:?}");
    }
    // Nor is it a way round to have the keys in many objects.
    let many = format!(r#"{{"all":[{}]}}"#, vec![object(9_000); 6].join(","));
    let refused = agent.call("crooked__echo", serde_json::from_str(&many).unwrap()).await;
    assert_eq!(code_of(&refused.unwrap_err()), "too-large");
    drop(stdin);
    gate.ended().await;
}

#[tokio::test]
async fn key_limits_are_configurable() {
    let limits = "[limits]\nobject-keys = 40\nrequest-keys = 60\nresponse-keys = 1000\n";
    let gate = Setup::crooked("").and(limits).start().await;
    let agent = gate.modern();
    let with = |keys: usize| serde_json::from_str::<Value>(&object(keys)).unwrap();
    assert!(agent.call("crooked__echo", with(40)).await.is_ok());
    for (arguments, words) in [
        (with(41), "an object of the message has more than 40 keys"),
        (json!({ "a": with(30), "b": with(30) }), "the message has more than 60 keys"),
    ] {
        let refused = agent.call("crooked__echo", arguments).await.unwrap_err();
        assert_eq!(code_of(&refused), "too-large");
        assert!(refused["message"].as_str().unwrap().contains(words), "{refused:#}");
    }
    for (objects, keys, passes) in [(1, 40, true), (1, 41, false), (20, 40, true), (25, 40, false)]
    {
        let answer =
            agent.call("crooked__crowd", json!({ "objects": objects, "keys": keys })).await;
        assert_eq!(answer.is_ok(), passes, "{objects} of {keys}: {answer:?}");
    }
    gate.stop().await;
}

#[tokio::test]
async fn response_with_too_many_keys_fails_only_its_call() {
    let gate = Setup::crooked("").start().await;
    let agent = gate.modern();
    let refused = agent.refused("crooked__crowd", json!({ "keys": KEYS })).await;
    assert_eq!(refused, "server-misbehaved");
    // Said unasked, it is dropped.
    let heard = agent.text("crooked__crowd", json!({ "keys": KEYS, "aside": true })).await;
    assert_eq!(heard, "told");
    let rows = agent.call("crooked__crowd", json!({ "rows": 400_000 })).await.unwrap();
    assert_eq!(rows["structuredContent"]["rows"].as_array().unwrap().len(), 400_001);
    gate.stop().await;
}

/// The median of durations.
fn median(mut times: Vec<Duration>) -> Duration {
    assert!(times.len() >= 3, "too few to say: {times:?}");
    times.sort();
    times[times.len() / 2]
}

/// How long attacks took, and how long each call of the victim took meanwhile.
async fn run_in_parallel(
    attacks: impl Future<Output = Vec<Duration>>,
    victim: &Agent,
    tool: &str,
) -> (Duration, Duration) {
    let over = AtomicBool::new(false);
    let attacked = async {
        let times = attacks.await;
        over.store(true, Ordering::Relaxed);
        times
    };
    let worked = async {
        let mut times = Vec::new();
        while !over.load(Ordering::Relaxed) {
            let began = Instant::now();
            assert_eq!(victim.text(tool, json!({ "text": "x" })).await, "x");
            times.push(began.elapsed());
        }
        times
    };
    let (attacked, worked) = join(attacked, worked).await;
    (median(attacked), median(worked))
}

/// Two servers, and the keys of two clients.
async fn two_clients_and_servers() -> (Gate, [String; 2]) {
    let written = Setup::new(
        r#"
        [servers.one]
        command = ["{crooked}"]
        runtime = "sandbox"
        env = { GATE = "{mark}" }
        [servers.two]
        command = ["{crooked}"]
        runtime = "sandbox"
        env = { GATE = "{mark}" }
        "#,
    )
    .without("rate-limit")
    .policies(PERMIT_ALL)
    .keyed()
    .write();
    let keys = [written.add_client("ann", &[]).await, written.add_client("mallory", &[]).await];
    (written.start().await, keys)
}

/// The most expensive body within the limits: it is parsed, decided and recorded.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_bodies_of_one_client_do_not_delay_others() {
    let (gate, [ann, mallory]) = two_clients_and_servers().await;
    let ann = Agent::modern(&gate.url("/servers/two/mcp"), Some(&ann));
    let mallory = format!("Bearer {mallory}");
    let meta = r#"{"io.modelcontextprotocol/protocolVersion":"2026-07-28","io.modelcontextprotocol/clientCapabilities":{}}"#;
    let body = format!(
        r#"{{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{{"name":"no_such","arguments":{{"a":[{}0]}},"_meta":{meta}}}}}"#,
        "0,".repeat(900_000)
    );
    let headers: &[(&str, &str)] = &[
        ("Authorization", &mallory),
        ("MCP-Protocol-Version", "2026-07-28"),
        ("Mcp-Method", "tools/call"),
        ("Mcp-Name", "no_such"),
    ];
    let headers = [ORDINARY, headers].concat();
    assert_eq!(ann.text("echo", json!({ "text": "x" })).await, "x");
    let attack = async || {
        let mut times = Vec::new();
        for _ in 0..3 {
            let began = Instant::now();
            let reply = wire::post(gate.addr, "/servers/one/mcp", &headers, body.as_bytes()).await;
            assert!(["unknown-target", "rate-limited"].contains(&&*reply.refusal()), "{reply:#?}");
            times.push(began.elapsed());
        }
        times
    };
    let attacks = async { join_all((0..8).map(|_| attack())).await.concat() };
    let (attacked, worked) = run_in_parallel(attacks, &ann, "echo").await;
    // Where they stall others, these wait as long as they do themselves.
    assert!(worked * 4 < attacked, "ann waited {worked:?}, mallory {attacked:?}");
    gate.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_responses_of_one_server_do_not_delay_others() {
    let (gate, [ann, mallory]) = two_clients_and_servers().await;
    let ann = Agent::modern(&gate.url("/servers/two/mcp"), Some(&ann));
    let mallory = Agent::modern(&gate.url("/servers/one/mcp"), Some(&mallory));
    assert_eq!(ann.text("echo", json!({ "text": "x" })).await, "x");
    assert_eq!(mallory.text("echo", json!({ "text": "x" })).await, "x");
    let attack = async || {
        let mut times = Vec::new();
        for _ in 0..3 {
            let began = Instant::now();
            let answered = mallory.call("crowd", json!({ "rows": 900_000 })).await;
            assert!(answered.is_ok(), "{answered:?}");
            times.push(began.elapsed());
        }
        times
    };
    let attacks = async { join_all((0..4).map(|_| attack())).await.concat() };
    let (attacked, worked) = run_in_parallel(attacks, &ann, "echo").await;
    assert!(worked * 4 < attacked, "ann waited {worked:?}, mallory {attacked:?}");
    gate.stop().await;
}

/// Resident memory of the proxy, in bytes.
fn resident(gate: &Gate) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", gate.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unfinished_bodies_use_limited_memory_and_release_it() {
    const BODY: usize = 3_900_000;
    let memory = 128 << 20;
    let limits = format!("[limits]\nmessage-memory-bytes = {memory}\n");
    let written = Setup::crooked("").and(&limits).keyed().write();
    let keys = [written.add_client("ann", &[]).await, written.add_client("mallory", &[]).await];
    let gate = written.start().await;
    let ann = Agent::modern(&gate.url("/mcp"), Some(&keys[0]));
    assert_eq!(ann.text("crooked__echo", json!({ "text": "x" })).await, "x");
    let quiet = resident(&gate);

    let head = format!(
        "POST /mcp HTTP/1.1\r\nHost: {}\r\nAuthorization: Bearer {}\r\n\
         Content-Type: application/json\r\nAccept: application/json, text/event-stream\r\n\
         Content-Length: {}\r\n\r\n",
        gate.addr,
        keys[1],
        BODY + 1
    );
    let (written, mut arrived) = tokio::sync::watch::channel(0);
    let mut unfinished = tokio::task::JoinSet::new();
    for _ in 0..300 {
        let (address, head, written) = (gate.addr, head.clone(), written.clone());
        unfinished.spawn(async move {
            let mut stream = TcpStream::connect(address).await.unwrap();
            stream.write_all(head.as_bytes()).await?;
            stream.write_all(&vec![b' '; BODY]).await?;
            written.send_modify(|written| *written += 1);
            // Held open, and never finished.
            std::future::pending::<()>().await;
            Ok::<_, std::io::Error>(stream)
        });
    }
    // As many as are received at once. What is not received is not read.
    in_time("bodies to arrive", arrived.wait_for(|written| *written >= 8)).await.unwrap();
    // Others work on, with large messages, too.
    let text = "x".repeat(1_000_000);
    let mut full = 0;
    for _ in 0..20 {
        assert_eq!(ann.text("crooked__echo", json!({ "text": text })).await, text);
        full = full.max(resident(&gate));
    }
    // Without a bound they are 1,170 MB.
    assert!(full < quiet * 5, "{quiet} bytes grew to {full}");

    drop(unfinished);
    until("the memory to be given back", async || {
        (resident(&gate) < quiet + quiet / 2).then_some(())
    })
    .await;
    // And there is room for the next.
    let mallory = Agent::modern(&gate.url("/mcp"), Some(&keys[1]));
    assert_eq!(mallory.text("crooked__echo", json!({ "text": text })).await, text);
    gate.stop().await;
}
