//! Messages that no interceptor changed are forwarded byte for byte: params to the server, results
//! and errors to the client, through every front that speaks MCP to every kind of server:
//! streamable HTTP and standard input and output in both eras, and HTTP+SSE. The only exceptions
//! are those of the translation, and each is spelled out here: ids, progress tokens, the operator's
//! prefix, line ends in messages on one line, and members that only one era has.
//!
//! The messages are generated: unknown members, unusual keys, numbers that a decode and encode
//! would rewrite, escapes, white space. `PORTCULLIS_SEED=NUMBER` generates others, for longer
//! searches.

mod client;
mod message;

use proptest::{
    strategy::{Strategy, ValueTree},
    test_runner::{Config, RngSeed, TestRunner},
};

use crate::support::recorder::{self, Recorder};
use client::Client;
use message::{Message, members};

/// The seed where none is given. It is fixed: a test that finds something now and then is no test.
const SEED: u64 = 3;

/// Messages for each pair of a front and a server.
const MESSAGES: usize = 24;

/// Members of `_meta` that 2026-07-28 has every request carry.
const MODERN_META: [&str; 3] = [
    "\"io.modelcontextprotocol/protocolVersion\"",
    "\"io.modelcontextprotocol/clientCapabilities\"",
    "\"io.modelcontextprotocol/clientInfo\"",
];
/// Members of a result that only 2026-07-28 has.
const MODERN_RESULT: [&str; 3] = ["\"resultType\"", "\"ttlMs\"", "\"cacheScope\""];

/// A server of the config.
#[derive(Clone, Copy)]
struct Upstream {
    name: &'static str,
    modern: bool,
    pipe: bool,
}

const UPSTREAMS: [Upstream; 5] = [
    Upstream { name: "pipe-legacy", modern: false, pipe: true },
    Upstream { name: "pipe-modern", modern: true, pipe: true },
    Upstream { name: "http-legacy", modern: false, pipe: false },
    Upstream { name: "http-modern", modern: true, pipe: false },
    Upstream { name: "sse-legacy", modern: false, pipe: false },
];

#[tokio::test]
async fn unchanged_messages_are_forwarded_byte_for_byte() {
    let paired = Recorder::start("legacy", "sse").await;
    let more = format!(
        r#"
        [servers.sse-legacy]
        url = "{}"
        [[interceptors]]
        use = "schema"
        [[interceptors]]
        use = "secrets"
        "#,
        paired.url
    );
    let (mut gate, _servers) = recorder::gate(&more).await;
    let seed = seed();
    // Shown where the test fails.
    println!("PORTCULLIS_SEED={seed}");
    let config = Config { rng_seed: RngSeed::Fixed(seed), ..Config::default() };
    let mut runner = TestRunner::new(config);
    let messages = message::any();
    let servers = UPSTREAMS.map(|upstream| upstream.name);
    let mut clients = vec![
        Client::http(&gate, false, &servers).await,
        Client::http(&gate, true, &servers).await,
        Client::paired(&gate, &servers).await,
        Client::pipe(&mut gate).await,
    ];
    let mut rounds = async |client: &mut Client| {
        for upstream in UPSTREAMS {
            for _ in 0..MESSAGES {
                let message = messages.new_tree(&mut runner).unwrap().current();
                passes(client, upstream, &message).await;
            }
        }
    };
    for client in &mut clients {
        rounds(client).await;
    }
    let pipe = clients.last_mut().unwrap();
    pipe.modern = true;
    rounds(pipe).await;
    // The end of its input ends the proxy.
    drop(clients);
    assert_eq!(gate.ended().await.code(), Some(0));
}

fn seed() -> u64 {
    match std::env::var("PORTCULLIS_SEED") {
        Ok(seed) => seed.parse().unwrap_or_else(|e| panic!("PORTCULLIS_SEED={seed}: {e}")),
        Err(std::env::VarError::NotPresent) => SEED,
        Err(error) => panic!("PORTCULLIS_SEED: {error}"),
    }
}

async fn passes(client: &mut Client, upstream: Upstream, message: &Message) {
    let cell = format!("{} to {}", client.name(), upstream.name);
    let sent = message.request(client.modern, &client.tool(upstream.name, "record"));
    let answer = client.send(upstream.name, &sent).await;
    let received = client.received(upstream.name).await;

    // On the way in.
    let whole = members(&received);
    let params = value(&whole, "\"params\"");
    let ours = value(&whole, "\"id\"").expect("an id");
    let token = params
        .as_deref()
        .and_then(|params| value(&members(params), "\"_meta\""))
        .and_then(|meta| value(&members(&meta), "\"progressToken\""));
    let expected = message.clone().under(&ours, token.as_deref()).request(client.modern, "record");
    let expected = lined(&expected, upstream.pipe || client.sends_lines());
    if client.modern == upstream.modern {
        assert_eq!(received, expected, "{cell}: {message:#?}");
    } else {
        // What was added or taken out takes its comma and white space with it.
        let split = |text: &str| {
            let whole = members(text);
            let params = members(&value(&whole, "\"params\"").expect("params"));
            let meta = value(&params, "\"_meta\"").map(|meta| members(&meta)).unwrap_or_default();
            (
                without(whole, &["\"params\""]),
                without(params, &["\"_meta\""]),
                without(meta, &MODERN_META),
            )
        };
        assert_eq!(split(&received), split(&expected), "{cell}: {message:#?}");
    }

    // On the way out.
    let whole = members(&answer);
    assert_eq!(value(&whole, "\"id\""), Some(message.id.clone()), "{cell}: {message:#?}");
    let told = members(&format!("{{{}}}", message.answer(upstream.modern)));
    let [(kind, told)] = told.as_slice() else { panic!("one member expected: {told:?}") };
    let got = value(&whole, kind).unwrap_or_else(|| panic!("{cell}: {answer}: {message:#?}"));
    let told = lined(told, upstream.pipe || client.gets_lines());
    if client.modern == upstream.modern || kind == "\"error\"" {
        assert_eq!(got, told, "{cell}: {message:#?}");
    } else {
        let split = |text: &str| without(members(text), &MODERN_RESULT);
        assert_eq!(split(&got), split(&told), "{cell}: {message:#?}");
        let typed = value(&members(&got), "\"resultType\"");
        assert_eq!(typed.is_some(), client.modern, "{cell}: {message:#?}");
    }
}

/// A text as it travels where a line is a message: line ends between values become spaces.
fn lined(text: &str, lines: bool) -> String {
    if lines { text.replace('\n', " ") } else { text.to_owned() }
}

fn value(members: &[(String, String)], key: &str) -> Option<String> {
    members.iter().find(|(known, _)| known == key).map(|(_, value)| value.clone())
}

fn without(mut members: Vec<(String, String)>, keys: &[&str]) -> Vec<(String, String)> {
    members.retain(|(key, _)| !keys.contains(&key.as_str()));
    members
}
