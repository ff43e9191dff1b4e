//! Attempts to bypass policies by HTTP itself: headers that contradict the body, manipulated paths,
//! other methods; and the REST front, which has its own form of a call.

use serde_json::Value;

use super::{
    House, POLICIES,
    doors::{Door, refusals},
};
use crate::support::wire::{self, Reply};

/// One attempt over HTTP.
struct Request {
    verb: &'static str,
    path: &'static str,
    /// Beside those that say what kind of body it is, unless it says so itself.
    headers: &'static [(&'static str, &'static str)],
    body: &'static str,
    /// The codes with which it may be refused.
    codes: &'static [&'static str],
}

const fn post(
    path: &'static str,
    headers: &'static [(&'static str, &'static str)],
    body: &'static str,
    codes: &'static [&'static str],
) -> Request {
    Request { verb: "POST", path, headers, body, codes }
}

const fn verb(verb: &'static str, path: &'static str, codes: &'static [&'static str]) -> Request {
    Request { verb, path, headers: &[], body: r#"{"tool":"@wipe@"}"#, codes }
}

/// A call over REST.
const fn rest(body: &'static str, codes: &'static [&'static str]) -> Request {
    post("/invoke", &[], body, codes)
}

const DENIED: &[&str] = &["policy-denied"];
const NONE: &[&str] = &["policy-denied", "unknown-target"];
const TWICE: &[&str] = &["duplicate-key"];
const SHAPE: &[&str] = &["invalid-params"];
const MISMATCH: &[&str] = &["header-mismatch"];
const VERB: &[&str] = &["http-method-not-allowed"];
const MEDIA: &[&str] = &["unsupported-media"];
const NOWHERE: &[&str] = &["unknown-target"];

const VERSION: (&str, &str) = ("MCP-Protocol-Version", "2026-07-28");
const CALLS: (&str, &str) = ("Mcp-Method", "tools/call");
const WIPES: (&str, &str) = ("Mcp-Name", "@wipe@");

const WIPE: &str = r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"@wipe@","arguments":{}@meta@}}"#;
const VIP: &str = r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"@vip@","arguments":{}@meta@}}"#;
const OKAY: &str = r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"@look@","arguments":{"path":"/srv/ok"}@meta@}}"#;
const EU: &str = r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"@say@","arguments":{"word":"x","region":"eu"}@meta@}}"#;
const US: &str = r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"@say@","arguments":{"word":"x","region":"us"}@meta@}}"#;
const NOTICE: &str =
    r#"{"jsonrpc":"2.0","method":"tools/call","params":{"name":"@wipe@","arguments":{}@meta@}}"#;
const OLD: &str =
    r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"@wipe@","arguments":{}}}"#;

/// Headers beside the body, both ways round.
const HEADERS: &[Request] = &[
    post("/mcp", &[VERSION, CALLS, WIPES], WIPE, DENIED),
    post("/mcp", &[VERSION, CALLS, ("Mcp-Name", "@look@")], WIPE, MISMATCH),
    post("/mcp", &[VERSION, CALLS, WIPES], OKAY, MISMATCH),
    post("/mcp", &[VERSION, CALLS, WIPES, ("Mcp-Name", "@look@")], WIPE, MISMATCH),
    post("/mcp", &[VERSION, CALLS, ("Mcp-Name", "@wipe@, @look@")], WIPE, MISMATCH),
    post("/mcp", &[VERSION, CALLS, ("Mcp-Name", "=?base64?b2xkX19sb29r?=")], WIPE, MISMATCH),
    post("/mcp", &[VERSION, CALLS, ("Mcp-Name", "=?base64?!?=")], WIPE, MISMATCH),
    post("/mcp", &[VERSION, CALLS], WIPE, MISMATCH),
    post("/mcp", &[VERSION, ("Mcp-Method", "tools/list"), WIPES], WIPE, MISMATCH),
    post("/mcp", &[VERSION, ("Mcp-Method", "Tools/Call"), WIPES], WIPE, MISMATCH),
    post("/mcp", &[VERSION, CALLS, ("Mcp-Method", "tools/list"), WIPES], WIPE, MISMATCH),
    post("/mcp", &[("MCP-Protocol-Version", "2025-11-25"), CALLS, WIPES], WIPE, MISMATCH),
    post("/mcp", &[VERSION, VERSION, CALLS, WIPES], WIPE, MISMATCH),
    post(
        "/mcp",
        &[("MCP-Protocol-Version", "2031-01-01"), CALLS, WIPES],
        WIPE,
        &["revision-unsupported"],
    ),
    post("/mcp", &[VERSION, CALLS, WIPES, ("Mcp-Session-Id", "x")], WIPE, &["invalid-request"]),
    post("/mcp", &[VERSION, CALLS, WIPES], OLD, SHAPE),
    post("/mcp", &[], OLD, &["invalid-request"]),
    post("/mcp", &[("Mcp-Session-Id", "x")], OLD, &["session-unknown"]),
    post("/mcp", &[VERSION], NOTICE, DENIED),
    post("/mcp", &[VERSION, ("Mcp-Method", "ping")], NOTICE, DENIED),
    // What a header repeats of the arguments.
    post("/mcp", &[VERSION, CALLS, ("Mcp-Name", "@say@"), ("Mcp-Param-Region", "us")], EU, DENIED),
    post(
        "/mcp",
        &[VERSION, CALLS, ("Mcp-Name", "@say@"), ("Mcp-Param-Region", "eu")],
        US,
        MISMATCH,
    ),
    post(
        "/mcp",
        &[VERSION, CALLS, ("Mcp-Name", "@say@"), ("Mcp-Param-Region", "=?base64?ZXU=?=")],
        US,
        MISMATCH,
    ),
    post(
        "/mcp",
        &[
            VERSION,
            CALLS,
            ("Mcp-Name", "@say@"),
            ("Mcp-Param-Region", "us"),
            ("mcp-param-region", "eu"),
        ],
        US,
        MISMATCH,
    ),
    post("/mcp", &[VERSION, CALLS, ("Mcp-Name", "@say@")], US, MISMATCH),
    // Who one is.
    post("/mcp", &[VERSION, CALLS, ("Mcp-Name", "@vip@"), ("Portcullis-As", "root")], VIP, DENIED),
    post(
        "/mcp",
        &[VERSION, CALLS, ("Mcp-Name", "@vip@"), ("X-Forwarded-User", "root")],
        VIP,
        DENIED,
    ),
    post(
        "/mcp",
        &[VERSION, CALLS, ("Mcp-Name", "@vip@"), ("Authorization", "Bearer root")],
        VIP,
        &["unauthenticated"],
    ),
    post(
        "/mcp",
        &[VERSION, CALLS, ("Mcp-Name", "@vip@"), ("Authorization", "Basic cm9vdDo=")],
        VIP,
        &["unauthenticated"],
    ),
    post(
        "/mcp",
        &[VERSION, CALLS, ("Mcp-Name", "@vip@"), ("Origin", "http://evil.example")],
        VIP,
        &["forbidden-origin"],
    ),
    post(
        "/mcp",
        &[VERSION, CALLS, ("Mcp-Name", "@vip@"), ("Host", "evil.example")],
        VIP,
        &["forbidden-origin"],
    ),
    // What kind of body it is.
    post(
        "/mcp",
        &[VERSION, CALLS, WIPES, ("Content-Type", "application/json; charset=utf-16")],
        WIPE,
        DENIED,
    ),
    post("/mcp", &[VERSION, CALLS, WIPES, ("Content-Type", "text/plain")], WIPE, MEDIA),
    post("/mcp", &[VERSION, CALLS, WIPES, ("Content-Type", "application/jsonx")], WIPE, MEDIA),
    post("/mcp", &[VERSION, CALLS, WIPES, ("Content-Encoding", "identity")], WIPE, MEDIA),
    // What path it has.
    post("/mcp?server=new", &[VERSION, CALLS, WIPES], WIPE, DENIED),
    post("/servers/@server@/mcp", &[VERSION, CALLS, WIPES], WIPE, NONE),
    post("/servers/%6fld/mcp", &[VERSION, CALLS, WIPES], WIPE, NONE),
    post("/servers/OLD/mcp", &[VERSION, CALLS, WIPES], WIPE, NONE),
    post("/servers/@server@%2f..%2fnew/mcp", &[VERSION, CALLS, WIPES], WIPE, NONE),
    post("/servers/%ff/mcp", &[VERSION, CALLS, WIPES], WIPE, NONE),
    post("/servers/%2e%2e/mcp", &[VERSION, CALLS, WIPES], WIPE, NONE),
    post("/servers/../mcp", &[VERSION, CALLS, WIPES], WIPE, NONE),
    post("//mcp", &[VERSION, CALLS, WIPES], WIPE, NOWHERE),
    post("/mcp/", &[VERSION, CALLS, WIPES], WIPE, NOWHERE),
    post("/MCP", &[VERSION, CALLS, WIPES], WIPE, NOWHERE),
    post("/./mcp", &[VERSION, CALLS, WIPES], WIPE, NOWHERE),
    post("/mcp;x", &[VERSION, CALLS, WIPES], WIPE, NOWHERE),
    post("/servers//mcp", &[VERSION, CALLS, WIPES], WIPE, NOWHERE),
    post("/servers/@server@/tools/call", &[VERSION, CALLS, WIPES], WIPE, NOWHERE),
    post("/sse", &[], OLD, VERB),
    post("/sse/x", &[], OLD, &["session-unknown"]),
    post("/sse/..", &[], OLD, &["session-unknown"]),
    post("/sse/%2e%2e%2fmcp", &[], OLD, &["session-unknown"]),
    verb("PUT", "/mcp", VERB),
    verb("PATCH", "/mcp", VERB),
    verb("CALL", "/mcp", VERB),
    verb("post", "/mcp", VERB),
    Request {
        verb: "GET",
        path: "/mcp",
        headers: &[("X-HTTP-Method-Override", "POST"), VERSION, CALLS, WIPES],
        body: WIPE,
        codes: VERB,
    },
    Request {
        verb: "PUT",
        path: "/mcp",
        headers: &[("X-HTTP-Method", "POST"), VERSION, CALLS, WIPES],
        body: WIPE,
        codes: VERB,
    },
];

/// Calls over REST.
const REST: &[Request] = &[
    rest(r#"{"tool":"@wipe@"}"#, DENIED),
    rest(r#"{"tool":"@shred@","arguments":{}}"#, DENIED),
    rest(r#"{"tool":"@alias@"}"#, DENIED),
    rest(r#"{"tool":"@vip@"}"#, DENIED),
    rest(r#"{"t\u006fol":"@prefix@w\u0069pe"}"#, DENIED),
    rest(r#"{"tool":"@look@","arguments":{"path":"/etc"}}"#, DENIED),
    rest(r#"{"tool":"@look@","arguments":{"p\u0061th":"\/srv\/..\/etc"}}"#, DENIED),
    rest(r#"{"tool":"@look@","arguments":{"path":["/srv/ok"]}}"#, DENIED),
    rest(r#"{"tool":"@look@"}"#, DENIED),
    rest(r#"{"tool":"@fetch@","arguments":{"url":"https://evil.example/"}}"#, DENIED),
    rest(r#"{"tool":"@say@","arguments":{"word":"\u0066orbidden"}}"#, DENIED),
    rest(r#"{"tool":"@say@","arguments":{"Word":"forbidden"}}"#, DENIED),
    rest(r#"{"tool":"@say@","arguments":{"word":"x","region":"eu"}}"#, DENIED),
    rest(r#"{"tool":"@look@","tool":"@wipe@"}"#, TWICE),
    rest(r#"{"tool":"@wipe@","Tool":"@look@"}"#, TWICE),
    rest(r#"{"tool":"@look@","t\u006fol":"@wipe@"}"#, TWICE),
    rest(r#"{"tool":"@look@","arguments":{"path":"/srv/ok"},"arguments":{"path":"/etc"}}"#, TWICE),
    rest(r#"{"tool":"@look@","arguments":{"path":"/srv/ok"},"Arguments":{"path":"/etc"}}"#, TWICE),
    rest(r#"{"tool":"@look@","arguments":{"path":"/srv/ok","path":"/etc"}}"#, TWICE),
    rest(r#"{"tool":"@look@","arguments":{"path":"/srv/ok","Path":"/etc"}}"#, TWICE),
    rest(r#"{"tool":"@look@","arguments":{"path":"/srv/ok"},"name":"@wipe@"}"#, SHAPE),
    rest(r#"{"tool":"@look@","arguments":{"path":"/srv/ok"},"method":"prompts/get"}"#, SHAPE),
    rest(r#"{"tool":"@look@","arguments":{"path":"/srv/ok"},"_meta":{}}"#, SHAPE),
    rest(r#"{"tool":"@look@","arguments":{"path":"/srv/ok"},"task":{}}"#, SHAPE),
    rest(r#"{"tool":"@look@","arguments":{"path":"/srv/ok"},"inputResponses":{}}"#, SHAPE),
    rest(r#"{"tool":"@look@","arguments":{"path":"/srv/ok"},"requestState":"x"}"#, SHAPE),
    rest(r#"{"Tool":"@wipe@"}"#, SHAPE),
    rest(r#"{"name":"@wipe@","arguments":{}}"#, SHAPE),
    rest(r#"{"tool":["@wipe@"]}"#, SHAPE),
    rest(r#"{"tool":{"tool":"@wipe@"}}"#, SHAPE),
    rest(r#"{"tool":null}"#, SHAPE),
    rest(r#"{"tool":"@wipe@","arguments":[]}"#, SHAPE),
    rest(r#"{"tool":"@wipe@","arguments":"{}"}"#, SHAPE),
    rest(r#"{"tool":"@wipe@","arguments":null}"#, SHAPE),
    rest(r#"[{"tool":"@wipe@"}]"#, &["invalid-request"]),
    rest(r#""@wipe@""#, &["invalid-request"]),
    rest(r#"{"tool":"@wipe@"}{"tool":"@look@"}"#, &["malformed"]),
    rest("\u{feff}{\"tool\":\"@wipe@\"}", &["malformed"]),
    rest(r#"{"tool":"@wipe@\ud800"}"#, &["malformed"]),
    // What the name could bring into the message that is made of it.
    rest(r#"{"tool":"@look@\",\"name\":\"@wipe@"}"#, NONE),
    rest(r#"{"tool":"@look@\"},\"x\":{\"name\":\"@wipe@"}"#, NONE),
    rest(r#"{"tool":"@prefix@WIPE"}"#, NONE),
    rest(r#"{"tool":"@wipe@ "}"#, NONE),
    rest(r#"{"tool":"@prefix@wi\u0440e"}"#, NONE),
    rest(r#"{"tool":"@prefix@wi\u200bpe"}"#, NONE),
    rest(r#"{"tool":"@server@__@server@__wipe"}"#, NONE),
    rest(r#"{"tool":"@server@/wipe"}"#, NONE),
    rest(r#"{"tool":"@prefix@w%69pe"}"#, NONE),
    rest(r#"{"tool":"wipe"}"#, NONE),
    post("/invoke?server=@server@", &[], r#"{"tool":"wipe"}"#, DENIED),
    post("/invoke?server=@server@", &[], r#"{"tool":"wipe/all"}"#, DENIED),
    post("/invoke?server=@server@", &[], r#"{"tool":"WIPE"}"#, NONE),
    post("/invoke?server=@server@", &[], r#"{"tool":"@wipe@"}"#, NONE),
    post("/invoke?server=%6fld", &[], r#"{"tool":"w\u0069pe"}"#, DENIED),
    post("/invoke?server=OLD", &[], r#"{"tool":"wipe"}"#, NONE),
    post("/invoke?server=@server@%00", &[], r#"{"tool":"wipe"}"#, NONE),
    post("/invoke?server=@server@%2f", &[], r#"{"tool":"wipe"}"#, NONE),
    post("/invoke?server=old&server=new", &[], r#"{"tool":"wipe"}"#, &["invalid-request"]),
    post("/invoke?Server=@server@", &[], r#"{"tool":"wipe"}"#, &["invalid-request"]),
    post(
        "/invoke?tool=@wipe@",
        &[],
        r#"{"tool":"@look@","arguments":{"path":"/srv/ok"}}"#,
        &["invalid-request"],
    ),
    post("/invoke?cursor=x", &[], r#"{"tool":"@wipe@"}"#, &["invalid-request"]),
    post("/invoke", &[("Content-Type", "application/x-www-form-urlencoded")], "tool=@wipe@", MEDIA),
    post("/invoke", &[("Content-Type", "text/plain")], r#"{"tool":"@wipe@"}"#, MEDIA),
    post("/invoke", &[("Content-Encoding", "gzip")], r#"{"tool":"@wipe@"}"#, MEDIA),
    post("/invoke", &[("Portcullis-As", "root")], r#"{"tool":"@vip@"}"#, DENIED),
    post("/invoke", &[("Mcp-Name", "@look@")], r#"{"tool":"@wipe@"}"#, DENIED),
    post(
        "/invoke",
        &[("Origin", "http://evil.example")],
        r#"{"tool":"@wipe@"}"#,
        &["forbidden-origin"],
    ),
    post("/invoke/", &[], r#"{"tool":"@wipe@"}"#, NOWHERE),
    post("//invoke", &[], r#"{"tool":"@wipe@"}"#, NOWHERE),
    post("/invoke/@wipe@", &[], "{}", NOWHERE),
    post("/INVOKE", &[], r#"{"tool":"@wipe@"}"#, NOWHERE),
    post("/tools/@wipe@", &[], "{}", NOWHERE),
    post("/tools/../invoke", &[], r#"{"tool":"@wipe@"}"#, NOWHERE),
    post("/tools%2f..%2finvoke", &[], r#"{"tool":"@wipe@"}"#, NOWHERE),
    post("/tools", &[], r#"{"tool":"@wipe@"}"#, VERB),
    verb("GET", "/invoke?tool=@wipe@", VERB),
    verb("PUT", "/invoke", VERB),
    verb("PATCH", "/invoke", VERB),
    verb("DELETE", "/batch", VERB),
    verb("GET", "/batch", VERB),
    Request {
        verb: "GET",
        path: "/invoke",
        headers: &[("X-HTTP-Method-Override", "POST")],
        body: r#"{"tool":"@wipe@"}"#,
        codes: VERB,
    },
    post(
        "/batch",
        &[],
        r#"[{"tool":"@look@","arguments":{"path":"/srv/ok","mark":"control"}},{"tool":"@wipe@"}]"#,
        DENIED,
    ),
    post(
        "/batch",
        &[],
        r#"[{"tool":"@wipe@"},{"tool":"@look@","arguments":{"path":"/etc"}}]"#,
        DENIED,
    ),
    post("/batch", &[], r#"[[{"tool":"@wipe@"}]]"#, &["invalid-request"]),
    post("/batch", &[], r#"{"tool":"@wipe@"}"#, &["malformed", "invalid-request", "too-large"]),
    post("/batch", &[], r#"[{"tool":"@look@","tool":"@wipe@"}]"#, TWICE),
    post("/batch", &[], r#"[{"tool":"@wipe@"}]x"#, &["malformed"]),
];

async fn send(house: &House, door: &mut Door, request: &Request) -> (String, Reply) {
    let (path, body) = (door.fill(request.path), door.fill(request.body));
    let addr = house.gate.addr;
    let mut head = format!("{} {path} HTTP/1.1\r\nConnection: close\r\n", request.verb);
    let says = |name: &str| request.headers.iter().any(|(n, _)| n.eq_ignore_ascii_case(name));
    for (name, value) in [
        ("Host", addr.to_string().as_str()),
        ("Content-Type", "application/json"),
        ("Accept", "application/json, text/event-stream"),
    ] {
        if !says(name) {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
    }
    for (name, value) in request.headers {
        head.push_str(&format!("{name}: {}\r\n", door.fill(value)));
    }
    head.push_str(&format!("Content-Length: {}\r\n\r\n{body}", body.len()));
    let reply = wire::raw(addr, head.as_bytes()).await;
    (head, reply)
}

#[tokio::test]
async fn http_and_rest_cannot_bypass_policies() {
    let mut house = House::open(POLICIES).await;
    for server in ["old", "new"] {
        let mut door = Door::http(&house.gate, server, true, true).await;
        house.pass(&mut door).await;
        for request in HEADERS.iter().chain(REST) {
            let (what, reply) = send(&house, &mut door, request).await;
            let answers: Value = serde_json::from_str(&reply.body)
                .unwrap_or_else(|e| panic!("{e}: {what}: {reply:#?}"));
            house.refused(&what, request.codes, refusals(&[answers]));
        }
        house.pass(&mut door).await;
        // What is allowed passes over REST, too.
        let arguments = r#"{ "path":"/srv/ok",  "n":50.0, "mark":"control" }"#;
        let call = format!(r#"{{"tool":"{}","arguments":{arguments}}}"#, door.name("look"));
        let json = [("Content-Type", "application/json")];
        let reply = wire::post(house.gate.addr, "/invoke", &json, call.as_bytes()).await;
        assert_eq!(reply.status, 200, "{reply:#?}");
        let reached = house.servers[usize::from(server == "new")].reached();
        assert!(reached.len() == 1 && reached[0].contains(arguments), "{reached:#?}");
    }
    house.stop().await;
}
