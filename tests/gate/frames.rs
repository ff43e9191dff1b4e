//! Hostile and invalid messages over HTTP: each gets one clear refusal, and the proxy continues.

use serde_json::json;

use crate::support::{
    agent::Agent,
    gate::{Gate, Setup},
    wire::{self, ORDINARY, Reply},
};

type Headers<'a> = &'a [(&'a str, &'a str)];

async fn gate() -> Gate {
    Setup::crooked("").and("[limits]\nrequest-bytes = 65536").start().await
}

/// Sends a body in a legacy session.
async fn in_session(gate: &Gate, agent: &Agent, body: &[u8]) -> Reply {
    let session = agent.session.clone().unwrap();
    let more = [("Mcp-Session-Id", session.as_str()), ("MCP-Protocol-Version", "2025-11-25")];
    wire::post(gate.addr, "/mcp", &[ORDINARY, &more].concat(), body).await
}

async fn assert_answers(agent: &Agent) {
    assert_eq!(agent.text("crooked__echo", json!({ "text": "x" })).await, "x");
}

#[tokio::test]
async fn each_invalid_frame_has_its_code() {
    let gate = gate().await;
    let agent = gate.legacy().await;
    let call = |params: &str| {
        format!(r#"{{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{params}}}"#)
    };
    let deep = format!("{}1{}", "[".repeat(70), "]".repeat(70));
    let bottomless = "[".repeat(60_000);
    let cases: Vec<(&str, Vec<u8>, &str)> = vec![
        ("nothing", b"".to_vec(), "malformed"),
        ("no JSON", b"{".to_vec(), "malformed"),
        (
            "two messages",
            br#"{"jsonrpc":"2.0","method":"a"}{"jsonrpc":"2.0","method":"a"}"#.to_vec(),
            "malformed",
        ),
        ("a trailing comma", br#"{"jsonrpc":"2.0","id":1,"method":"ping",}"#.to_vec(), "malformed"),
        (
            "bad UTF-8",
            b"{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"ping\",\"params\":{\"a\":\"\xff\"}}"
                .to_vec(),
            "malformed",
        ),
        (
            "a lone surrogate",
            call(r#"{"name":"crooked__echo","arguments":{"text":"\ud800"}}"#).into(),
            "malformed",
        ),
        (
            "a byte order mark",
            b"\xef\xbb\xbf{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"ping\"}".to_vec(),
            "malformed",
        ),
        (
            "a number beyond every float",
            call(r#"{"name":"crooked__echo","arguments":{"text":1e400}}"#).into(),
            "number-out-of-range",
        ),
        (
            "a handshake without params",
            br#"{"jsonrpc":"2.0","id":1,"method":"initialize"}"#.to_vec(),
            "invalid-params",
        ),
        (
            "a handshake without a revision",
            br#"{"jsonrpc":"2.0","id":1,"method":"initialize","params":{}}"#.to_vec(),
            "invalid-params",
        ),
        ("bottomless", bottomless.into(), "too-large"),
        ("a string", b"\"ping\"".to_vec(), "invalid-request"),
        ("no version", br#"{"id":1,"method":"ping"}"#.to_vec(), "invalid-request"),
        (
            "another version",
            br#"{"jsonrpc":"1.0","id":1,"method":"ping"}"#.to_vec(),
            "invalid-request",
        ),
        (
            "a method that is a number",
            br#"{"jsonrpc":"2.0","id":1,"method":7}"#.to_vec(),
            "invalid-request",
        ),
        (
            "an id that is an object",
            br#"{"jsonrpc":"2.0","id":{},"method":"ping"}"#.to_vec(),
            "invalid-request",
        ),
        (
            "an id that is null",
            br#"{"jsonrpc":"2.0","id":null,"method":"ping"}"#.to_vec(),
            "invalid-request",
        ),
        (
            "request and answer in one",
            br#"{"jsonrpc":"2.0","id":1,"method":"ping","result":{}}"#.to_vec(),
            "invalid-request",
        ),
        ("a batch", br#"[{"jsonrpc":"2.0","id":1,"method":"ping"}]"#.to_vec(), "invalid-request"),
        (
            "params that are a list",
            br#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":[1]}"#.to_vec(),
            "invalid-request",
        ),
        ("no name", call(r#"{"arguments":{}}"#).into(), "invalid-params"),
        ("a name that is a number", call(r#"{"name":7,"arguments":{}}"#).into(), "invalid-params"),
        (
            "arguments that are a list",
            call(r#"{"name":"crooked__echo","arguments":[1]}"#).into(),
            "invalid-params",
        ),
        (
            "arguments that are a string",
            call(r#"{"name":"crooked__echo","arguments":"x"}"#).into(),
            "invalid-params",
        ),
        (
            "method twice",
            br#"{"jsonrpc":"2.0","id":1,"method":"ping","method":"tools/list"}"#.to_vec(),
            "duplicate-key",
        ),
        (
            "method twice but for case",
            br#"{"jsonrpc":"2.0","id":1,"method":"ping","Method":"tools/list"}"#.to_vec(),
            "duplicate-key",
        ),
        (
            "params twice",
            br#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{},"params":{}}"#.to_vec(),
            "duplicate-key",
        ),
        (
            "name twice",
            call(r#"{"name":"crooked__echo","name":"crooked__die","arguments":{}}"#).into(),
            "duplicate-key",
        ),
        (
            "name twice but for case",
            call(r#"{"name":"crooked__echo","Name":"crooked__die","arguments":{}}"#).into(),
            "duplicate-key",
        ),
        (
            "name twice but for escapes",
            call(r#"{"name":"crooked__echo","\u006eame":"crooked__die","arguments":{}}"#).into(),
            "duplicate-key",
        ),
        (
            "a key twice in arguments",
            call(r#"{"name":"crooked__echo","arguments":{"text":"a","text":"b"}}"#).into(),
            "duplicate-key",
        ),
        (
            "a key twice deep in arguments",
            call(r#"{"name":"crooked__echo","arguments":{"a":[{"b":1,"\u0062":2}]}}"#).into(),
            "duplicate-key",
        ),
        (
            "too deep",
            call(&format!(r#"{{"name":"crooked__echo","arguments":{{"a":{deep}}}}}"#)).into(),
            "too-large",
        ),
        (
            "too long",
            call(&format!(
                r#"{{"name":"crooked__echo","arguments":{{"a":"{}"}}}}"#,
                "x".repeat(70_000)
            ))
            .into(),
            "too-large",
        ),
        (
            "an unknown method",
            br#"{"jsonrpc":"2.0","id":1,"method":"no/such"}"#.to_vec(),
            "method-unknown",
        ),
    ];
    for (name, body, code) in cases {
        let reply = in_session(&gate, &agent, &body).await;
        assert_eq!(reply.refusal(), code, "{name}: {reply:#?}");
        assert!(reply.status < 500, "{name}: {reply:#?}");
        assert_answers(&agent).await;
    }
    gate.stop().await;
}

#[tokio::test]
async fn extreme_numbers_are_harmless() {
    let gate = gate().await;
    let agent = gate.legacy().await;
    for number in ["1e999999", "-1e-999999", &"9".repeat(1_000), "0.1e1"] {
        let body = format!(
            r#"{{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{{"name":"crooked__echo","arguments":{{"text":"x","n":{number}}}}}}}"#
        );
        let reply = in_session(&gate, &agent, body.as_bytes()).await;
        assert!(reply.status < 500, "{number}: {reply:#?}");
        assert_answers(&agent).await;
    }
    gate.stop().await;
}

#[tokio::test]
async fn invalid_posts_are_refused() {
    let gate = gate().await;
    let agent = gate.legacy().await;
    let ping = br#"{"jsonrpc":"2.0","id":1,"method":"ping"}"#;
    let accept = ("Accept", "application/json, text/event-stream");
    let cases: &[(&str, Headers, &[u16])] = &[
        ("text", &[("Content-Type", "text/plain"), accept], &[415]),
        ("a form", &[("Content-Type", "application/x-www-form-urlencoded"), accept], &[415]),
        ("no type", &[accept], &[415]),
        (
            "two types",
            &[("Content-Type", "application/json"), ("Content-Type", "text/plain"), accept],
            &[400, 415],
        ),
        (
            "gzip",
            &[("Content-Type", "application/json"), ("Content-Encoding", "gzip"), accept],
            &[415],
        ),
        (
            "nothing that we could answer with",
            &[("Content-Type", "application/json"), ("Accept", "image/png")],
            &[406],
        ),
    ];
    for (name, headers, statuses) in cases {
        let reply = wire::post(gate.addr, "/mcp", headers, ping).await;
        assert!(statuses.contains(&reply.status), "{name}: {reply:#?}");
        match reply.status {
            415 => assert_eq!(reply.refusal(), "unsupported-media", "{name}"),
            406 => assert_eq!(reply.refusal(), "not-acceptable", "{name}"),
            _ => {}
        }
        assert_answers(&agent).await;
    }
    // Refusals have a code, whatever they are for, also where there is no endpoint.
    for (line, status, code) in [
        ("PUT /mcp", 405, "http-method-not-allowed"),
        ("GET /mcp", 405, "http-method-not-allowed"),
        ("DELETE /mcp", 400, "invalid-request"),
        ("POST /servers/nope/mcp", 404, "unknown-target"),
        ("POST /", 404, "unknown-target"),
        ("GET /.well-known/oauth-protected-resource", 404, "unknown-target"),
    ] {
        let text = format!(
            "{line} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\nContent-Length: 0\r\n\r\n",
            gate.addr
        );
        let reply = wire::raw(gate.addr, text.as_bytes()).await;
        assert_eq!((reply.status, reply.refusal().as_str()), (status, code), "{line}: {reply:#?}");
        assert!(reply.messages()[0]["error"]["data"]["decision"].is_string(), "{line}");
    }
    // Other verbs and other places.
    for (line, statuses) in [
        ("PUT /mcp", &[405][..]),
        ("OPTIONS /mcp", &[403, 404, 405, 204]),
        ("POST /mcp/../metrics", &[404, 400]),
        ("POST /servers/../mcp", &[404, 400]),
        ("POST /servers/%00/mcp", &[404, 400]),
    ] {
        let text = format!(
            "{line} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: 0\r\n\r\n",
            gate.addr
        );
        let reply = wire::raw(gate.addr, text.as_bytes()).await;
        assert!(statuses.contains(&reply.status), "{line}: {reply:#?}");
    }
    gate.stop().await;
}

#[tokio::test]
async fn false_length_and_endless_body_are_refused() {
    let gate = gate().await;
    let agent = gate.legacy().await;
    let head = format!(
        "POST /mcp HTTP/1.1\r\nHost: {}\r\nConnection: close\r\nContent-Type: application/json\r\n",
        gate.addr
    );
    let huge = format!("{head}Content-Length: 99999999999\r\n\r\n");
    let reply = wire::raw(gate.addr, huge.as_bytes()).await;
    assert_eq!(reply.status, 413, "{reply:#?}");
    let mut chunks = format!("{head}Transfer-Encoding: chunked\r\n\r\n").into_bytes();
    for _ in 0..40 {
        chunks.extend_from_slice(b"1000\r\n");
        chunks.extend_from_slice(&[b' '; 0x1000]);
        chunks.extend_from_slice(b"\r\n");
    }
    assert_eq!(wire::raw(gate.addr, &chunks).await.status, 413);
    let both = format!("{head}Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n");
    assert_eq!(wire::raw(gate.addr, both.as_bytes()).await.status, 400);
    assert_answers(&agent).await;
    gate.stop().await;
}

#[tokio::test]
async fn modern_headers_must_match_the_body() {
    let gate = gate().await;
    let meta = json!({
        "io.modelcontextprotocol/protocolVersion": "2026-07-28",
        "io.modelcontextprotocol/clientCapabilities": {},
    });
    let body = json!({
        "jsonrpc": "2.0", "id": 1, "method": "tools/call",
        "params": { "name": "crooked__echo", "arguments": { "text": "x" }, "_meta": meta },
    })
    .to_string();
    const VERSION: (&str, &str) = ("MCP-Protocol-Version", "2026-07-28");
    const METHOD: (&str, &str) = ("Mcp-Method", "tools/call");
    const NAME: (&str, &str) = ("Mcp-Name", "crooked__echo");
    // `crooked__echo` in the encoding that the revision has for what a header cannot hold.
    const ENCODED: (&str, &str) = ("Mcp-Name", "=?base64?Y3Jvb2tlZF9fZWNobw==?=");
    let cases: &[(&str, Headers, Option<&str>)] = &[
        ("all", &[VERSION, METHOD, NAME], None),
        ("an encoded name", &[VERSION, METHOD, ENCODED], None),
        ("no method", &[VERSION, NAME], Some("header-mismatch")),
        ("no name", &[VERSION, METHOD], Some("header-mismatch")),
        ("another method", &[VERSION, ("Mcp-Method", "tools/list"), NAME], Some("header-mismatch")),
        ("another case", &[VERSION, ("Mcp-Method", "Tools/Call"), NAME], Some("header-mismatch")),
        ("another name", &[VERSION, METHOD, ("Mcp-Name", "crooked__die")], Some("header-mismatch")),
        (
            "another encoded name",
            &[VERSION, METHOD, ("Mcp-Name", "=?base64?Y3Jvb2tlZF9fZGll?=")],
            Some("header-mismatch"),
        ),
        (
            "two names",
            &[VERSION, METHOD, NAME, ("Mcp-Name", "crooked__die")],
            Some("header-mismatch"),
        ),
        (
            "another version",
            &[("MCP-Protocol-Version", "2025-11-25"), METHOD, NAME],
            Some("header-mismatch"),
        ),
        (
            "a version that nobody knows",
            &[("MCP-Protocol-Version", "2031-01-01"), METHOD, NAME],
            Some("*"),
        ),
    ];
    for (name, headers, code) in cases {
        let reply =
            wire::post(gate.addr, "/mcp", &[ORDINARY, headers].concat(), body.as_bytes()).await;
        match code {
            None => assert_eq!(
                reply.messages()[0]["result"]["content"][0]["text"],
                "x",
                "{name}: {reply:#?}"
            ),
            Some(code) => {
                assert_eq!(reply.status, 400, "{name}: {reply:#?}");
                if *code != "*" {
                    assert_eq!(reply.refusal(), *code, "{name}");
                    assert_eq!(reply.messages()[0]["error"]["code"], -32020, "{name}");
                }
            }
        }
    }
    // Without what every request must say of itself.
    let bare =
        json!({ "jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": {} }).to_string();
    let headers = [ORDINARY, &[VERSION, ("Mcp-Method", "tools/list")]].concat();
    let reply = wire::post(gate.addr, "/mcp", &headers, bare.as_bytes()).await;
    assert_eq!((reply.status, reply.refusal().as_str()), (400, "invalid-params"), "{reply:#?}");
    assert_eq!(reply.messages()[0]["error"]["code"], -32602);
    // A revision that nobody speaks.
    let unknown = body.replace("2026-07-28", "2031-01-01");
    let headers = [ORDINARY, &[("MCP-Protocol-Version", "2031-01-01"), METHOD, NAME]].concat();
    let reply = wire::post(gate.addr, "/mcp", &headers, unknown.as_bytes()).await;
    assert_eq!(
        (reply.status, reply.refusal().as_str()),
        (400, "revision-unsupported"),
        "{reply:#?}"
    );
    assert_eq!(reply.messages()[0]["error"]["code"], -32022);
    gate.stop().await;
}

#[tokio::test]
async fn slow_writers_do_not_block_others() {
    use tokio::io::AsyncWriteExt;
    let gate = gate().await;
    let agent = gate.legacy().await;
    let mut slow = Vec::new();
    for _ in 0..100 {
        let mut stream = tokio::net::TcpStream::connect(gate.addr).await.unwrap();
        let head =
            format!("POST /mcp HTTP/1.1\r\nHost: {}\r\nContent-Length: 100\r\n\r\n{{", gate.addr);
        stream.write_all(head.as_bytes()).await.unwrap();
        slow.push(stream);
    }
    assert_answers(&agent).await;
    drop(slow);
    gate.stop().await;
}
