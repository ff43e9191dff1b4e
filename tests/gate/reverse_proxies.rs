//! Real reverse proxies in front of the gate, in their most common configs: what they make public,
//! and which client address counts.

use std::net::{IpAddr, SocketAddr, UdpSocket};

use serde_json::{Value, json};

use crate::support::{
    front::Front,
    gate::{Gate, Setup},
    wire::{self, Reply},
};

/// A name under which the world knows the gate.
const HOST: &str = "mcp.example.com";
/// An address that no client here has.
const FORGED: &str = "198.51.100.7";

/// The common ways to put a reverse proxy before a server, from the shortest config on.
async fn common_fronts(gate: SocketAddr) -> Vec<(&'static str, Front)> {
    let full = "proxy_set_header Host $host;\n\
        proxy_set_header X-Real-IP $remote_addr;\n\
        proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;\n\
        proxy_set_header X-Forwarded-Proto $scheme;";
    vec![
        ("nginx with proxy_pass alone", Front::nginx(gate, "").await),
        ("nginx as its guides have it", Front::nginx(gate, full).await),
        ("nginx with HTTP/1.1", Front::nginx(gate, "proxy_http_version 1.1;").await),
        ("HAProxy", Front::haproxy(gate, "http", "", "").await),
        ("HAProxy with its own Host", {
            let own = format!("http-request set-header Host {gate}");
            Front::haproxy(gate, "http", &own, "").await
        }),
        ("HAProxy with forwardfor", Front::haproxy(gate, "http", "option forwardfor", "").await),
        ("HAProxy in TCP mode", Front::haproxy(gate, "tcp", "", "").await),
        ("Caddy", Front::caddy(gate).await),
    ]
}

fn get(path: &str, host: &str, headers: &[(&str, &str)]) -> Vec<u8> {
    let headers: String =
        headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n{headers}\r\n").into()
}

async fn metrics(addr: SocketAddr, host: &str, key: Option<&str>) -> Reply {
    let bearer = key.map(|key| format!("Bearer {key}"));
    let headers: Vec<_> = bearer.iter().map(|bearer| ("Authorization", bearer.as_str())).collect();
    wire::raw(addr, &get("/metrics", host, &headers)).await
}

/// Red-team M4.
#[tokio::test]
async fn local_reverse_proxy_does_not_make_metrics_public() {
    let written = Setup::notes()
        .keyed()
        .listen(&format!("allowed-hosts = [\"{HOST}\"]"))
        .and("[telemetry]\nmetrics-clients = [\"prometheus\"]")
        .write();
    let scraper = written.add_client("prometheus", &[]).await;
    let other = written.add_client("ci", &[]).await;
    let gate = written.start().await;
    let local = gate.addr.to_string();

    // The reproduction, and what a local program sends: the same as nginx with `proxy_pass` alone.
    for (host, headers) in [
        (HOST, &[("X-Forwarded-For", "203.0.113.9")][..]),
        (&local, &[("X-Forwarded-For", "203.0.113.9")]),
        (&local, &[]),
    ] {
        let reply = wire::raw(gate.addr, &get("/metrics", host, headers)).await;
        assert_eq!(reply.status, 401, "{host} {headers:?}: {reply:#?}");
        assert!(!reply.body.contains("portcullis_"), "{host} {headers:?}: {reply:#?}");
    }
    for (name, front) in common_fronts(gate.addr).await {
        let reply = metrics(front.addr, HOST, None).await;
        assert_eq!(reply.status, 401, "{name}: {reply:#?}");
        assert!(!reply.body.contains("portcullis_"), "{name}: {reply:#?}");
        let reply = metrics(front.addr, HOST, Some(&other)).await;
        assert_eq!(reply.status, 403, "{name}: {reply:#?}");
        assert_eq!(reply.refusal(), "policy-denied", "{name}");
        // The front works, so that was not its own refusal.
        let reply = metrics(front.addr, HOST, Some(&scraper)).await;
        assert_eq!(reply.status, 200, "{name}: {reply:#?}");
        assert!(reply.body.trim_end().ends_with("# EOF"), "{name}: {reply:#?}");
    }
    assert!(gate.metrics().await.contains("portcullis_"), "the owner needs no key");
    let refused = gate.records(&["--code", "unauthenticated"]).await;
    assert!(!refused.is_empty(), "an attempt is on record");
    gate.stop().await;
}

#[tokio::test]
async fn reverse_proxied_anonymous_callers_are_not_local() {
    let gate = Setup::notes().start().await;
    let host = gate.addr.to_string();
    let tools = get("/tools", &host, &[]);
    assert_eq!(wire::raw(gate.addr, &tools).await.status, 200);
    let lines = "proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;";
    for (name, front) in [
        ("nginx", Front::nginx(gate.addr, lines).await),
        ("HAProxy", Front::haproxy(gate.addr, "http", "option forwardfor", "").await),
        ("Caddy", Front::caddy(gate.addr).await),
    ] {
        let reply = wire::raw(front.addr, &tools).await;
        assert_eq!(reply.status, 401, "{name}: {reply:#?}");
    }
    gate.stop().await;
}

/// The address of the proxy that a gate trusts. Whoever connects from there must speak the PROXY
/// protocol where that is the form, and the test's own look whether the gate is ready does not.
fn proxy_of(source: &str) -> [u8; 4] {
    if source == "proxy-protocol" { [127, 0, 0, 2] } else { [127, 0, 0, 1] }
}

/// A gate that trusts one proxy and lets calls from 127.0.0.3 alone pass.
async fn trusting(source: &str) -> (Gate, String) {
    let proxy = std::net::Ipv4Addr::from(proxy_of(source));
    let policies = r#"
        @id("near")
        permit (principal, action, resource)
        when { context has source_ip && context.source_ip == ip("127.0.0.3") };
        "#;
    let written = Setup::notes()
        .keyed()
        .policies(policies)
        .listen(&format!("trusted-proxies = [\"{proxy}\"]\nclient-address = \"{source}\""))
        .write();
    let key = written.add_client("ci", &[]).await;
    (written.start().await, key)
}

/// Calls a tool from an address of this machine, with forged headers of every kind.
async fn call(from: [u8; 4], to: SocketAddr, host: &str, key: &str, more: &str) -> Reply {
    wire::raw_from(from.into(), to, call_text(host, key, more).as_bytes()).await
}

fn call_text(host: &str, key: &str, more: &str) -> String {
    let body = json!({ "tool": "notes__list_notes", "arguments": {} }).to_string();
    format!(
        "POST /invoke HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\nAuthorization: Bearer {key}\r\n\
         Content-Type: application/json\r\nContent-Length: {}\r\n{more}\r\n{body}",
        body.len()
    )
}

fn forged() -> String {
    format!(
        "X-Forwarded-For: {FORGED}\r\nForwarded: for={FORGED}\r\nX-Real-IP: {FORGED}\r\n\
         X-Forwarded-For: 127.0.0.1\r\n"
    )
}

/// The addresses in the records of calls, without their ports.
async fn recorded(gate: &Gate) -> Vec<String> {
    let records = gate.records(&["--method", "tools/call"]).await;
    let addresses = records.iter().filter_map(|record| record["client_addr"].as_str());
    addresses.map(|text| text.parse::<SocketAddr>().unwrap().ip().to_string()).collect()
}

#[tokio::test]
async fn forwarded_client_address_is_used_in_policies_and_records() {
    const APPEND: &str = "proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;";
    const FORWARDED: &str = "http-request set-header Forwarded for=%[src];proto=http";
    type Start = fn(SocketAddr) -> std::pin::Pin<Box<dyn Future<Output = Front>>>;
    let fronts: [(&str, &str, Start); 6] = [
        ("nginx", "x-forwarded-for", |gate| {
            Box::pin(async move { Front::nginx(gate, APPEND).await })
        }),
        ("HAProxy", "x-forwarded-for", |gate| {
            Box::pin(async move { Front::haproxy(gate, "http", "option forwardfor", "").await })
        }),
        ("Caddy", "x-forwarded-for", |gate| Box::pin(Front::caddy(gate))),
        ("HAProxy", "forwarded", |gate| {
            Box::pin(async move { Front::haproxy(gate, "http", FORWARDED, "").await })
        }),
        ("HAProxy, version 1", "proxy-protocol", |gate| {
            Box::pin(
                async move { Front::haproxy(gate, "tcp", "", "send-proxy source 127.0.0.2").await },
            )
        }),
        ("HAProxy, version 2", "proxy-protocol", |gate| {
            Box::pin(async move {
                Front::haproxy(gate, "tcp", "", "send-proxy-v2 source 127.0.0.2").await
            })
        }),
    ];
    for (name, source, start) in fronts {
        let (gate, key) = trusting(source).await;
        let front = start(gate.addr).await;
        let host = gate.addr.to_string();
        let near = call([127, 0, 0, 3], front.addr, &host, &key, &forged()).await;
        assert_eq!(near.status, 200, "{name}, {source}: {near:#?}");
        let far = call([127, 0, 0, 4], front.addr, &host, &key, &forged()).await;
        assert_eq!(far.status, 403, "{name}, {source}: {far:#?}");
        let mut addresses = recorded(&gate).await;
        addresses.sort();
        addresses.dedup();
        assert_eq!(addresses, ["127.0.0.3", "127.0.0.4"], "{name}, {source}");
        // Without a key: whose attempt it was is on record, too.
        let refused = call([127, 0, 0, 5], front.addr, &host, "none", &forged()).await;
        assert_eq!(refused.status, 401, "{name}, {source}: {refused:#?}");
        let records = gate.records(&["--code", "unauthenticated"]).await;
        let from = records.first().and_then(|record: &Value| record["client_addr"].as_str());
        assert!(from.is_some_and(|from| from.starts_with("127.0.0.5:")), "{records:#?}");
        gate.stop().await;
    }
}

#[tokio::test]
async fn only_trusted_proxies_can_set_the_client_address() {
    for source in ["x-forwarded-for", "forwarded", "proxy-protocol"] {
        let (gate, key) = trusting(source).await;
        let host = gate.addr.to_string();
        let near = "X-Forwarded-For: 127.0.0.3\r\nForwarded: for=127.0.0.3\r\n";
        let reply = call([127, 0, 0, 9], gate.addr, &host, &key, near).await;
        assert_eq!(reply.status, 403, "{source}: {reply:#?}");
        assert_eq!(recorded(&gate).await, ["127.0.0.9"], "{source}");
        // Its own address counts, whatever it adds.
        let reply = call([127, 0, 0, 3], gate.addr, &host, &key, &forged()).await;
        assert_eq!(reply.status, 200, "{source}: {reply:#?}");
        // A header of the PROXY protocol is bad HTTP.
        let v2 = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\x7f\0\0\x03\x7f\0\0\x01\x10\0\x22\x6b";
        for header in [b"PROXY TCP4 127.0.0.3 127.0.0.1 4711 8811\r\n".as_slice(), v2] {
            let bytes = [header, &get("/healthz", &host, &[])].concat();
            let reply = wire::raw_from([127, 0, 0, 9].into(), gate.addr, &bytes).await;
            assert_eq!(reply.status, 400, "{source}: {reply:#?}");
        }
        gate.stop().await;
    }
}

#[tokio::test]
async fn trusted_proxy_without_a_client_address_is_refused() {
    for (source, wrong) in [
        (
            "x-forwarded-for",
            &["", "X-Forwarded-For: unknown\r\n", "Forwarded: for=127.0.0.3\r\n"][..],
        ),
        (
            "forwarded",
            &[
                "",
                "Forwarded: for=_hidden\r\n",
                "Forwarded: proto=https\r\n",
                "Forwarded: for=127.0.0.3, for=\"127.0.0.1\r\n",
                "X-Forwarded-For: 127.0.0.3\r\n",
            ],
        ),
    ] {
        let (gate, key) = trusting(source).await;
        let host = gate.addr.to_string();
        for headers in wrong {
            let reply = call(proxy_of(source), gate.addr, &host, &key, headers).await;
            assert_eq!(reply.status, 400, "{source} {headers:?}: {reply:#?}");
            assert!(reply.body.contains("invalid-request"), "{source} {headers:?}: {reply:#?}");
        }
        assert!(recorded(&gate).await.is_empty(), "{source}");
        // Its health checks need no client.
        assert_eq!(wire::raw(gate.addr, &get("/healthz", &host, &[])).await.status, 200);
        gate.stop().await;
    }
    let (gate, key) = trusting("proxy-protocol").await;
    let host = gate.addr.to_string();
    let named = "X-Forwarded-For: 127.0.0.3\r\n";
    let reply = call(proxy_of("proxy-protocol"), gate.addr, &host, &key, named).await;
    assert_eq!(reply.status, 400, "{reply:#?}");
    assert!(reply.body.contains("PROXY protocol"), "{reply:#?}");
    assert!(recorded(&gate).await.is_empty());
    gate.stop().await;
}

/// A header of the PROXY protocol without an address does not identify a loopback caller.
#[tokio::test]
async fn proxy_protocol_without_a_client_grants_no_local_access() {
    let listen = "trusted-proxies = [\"127.0.0.2\"]\nclient-address = \"proxy-protocol\"";
    let gate = Setup::notes().listen(listen).start().await;
    let host = gate.addr.to_string();
    let local = b"\r\n\r\n\0\r\nQUIT\n\x20\x00\0\x00".as_slice();
    let named = b"PROXY TCP4 127.0.0.3 127.0.0.1 4711 8811\r\n".as_slice();
    let ask = async |header: &[u8], path, headers: &[(&str, &str)]| {
        let bytes = [header, &get(path, &host, headers)].concat();
        wire::raw_from([127, 0, 0, 2].into(), gate.addr, &bytes).await
    };
    for header in [b"PROXY UNKNOWN\r\n".as_slice(), local] {
        let reply = ask(header, "/tools", &[]).await;
        assert_eq!(reply.status, 400, "{reply:#?}");
        assert!(reply.body.contains("invalid-request"), "{reply:#?}");
        assert_eq!(ask(header, "/healthz", &[]).await.status, 200);
        assert_eq!(ask(header, "/readyz", &[]).await.status, 200);
    }
    let reply = ask(named, "/tools", &[]).await;
    assert_eq!(reply.status, 401, "a key is needed: {reply:#?}");
    gate.stop().await;
}

/// Forwarded calls are never local, whatever address a trusted proxy reports.
#[tokio::test]
async fn callers_behind_a_trusted_proxy_are_never_local() {
    for (source, name) in [("forwarded", "Forwarded"), ("x-forwarded-for", "X-Forwarded-For")] {
        let listen = format!("trusted-proxies = [\"127.0.0.2\"]\nclient-address = \"{source}\"");
        let gate = Setup::notes().listen(&listen).start().await;
        let host = gate.addr.to_string();
        for address in ["127.0.0.1", "127.0.0.2", "\"[::1]\"", "[::1]", "::ffff:127.0.0.1"] {
            let value =
                if source == "forwarded" { format!("for={address}") } else { address.to_owned() };
            let text = get("/tools", &host, &[(name, &value)]);
            let reply = wire::raw_from([127, 0, 0, 2].into(), gate.addr, &text).await;
            assert!([400, 401].contains(&reply.status), "{source} {address}: {reply:#?}");
        }
        let reply = wire::raw(gate.addr, &get("/tools", &host, &[])).await;
        assert_eq!(reply.status, 200, "a local caller: {reply:#?}");
        gate.stop().await;
    }
}

/// An address of this machine that is not a loopback one, where it has any.
fn own_address() -> Option<IpAddr> {
    let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
    // Nothing is sent: the system looks up by which address it would send.
    socket.connect("203.0.113.1:9").ok()?;
    let address = socket.local_addr().unwrap().ip();
    (!address.is_loopback() && !address.is_unspecified()).then_some(address)
}

/// Another machine's loopback address is not one of this machine.
#[tokio::test]
async fn remote_trusted_proxy_cannot_name_a_loopback_client() {
    let Some(proxy) = own_address() else {
        eprintln!("not run: this machine has no address but loopback");
        return;
    };
    let loopback = "127.0.0.3";
    for (source, headers, header) in [
        ("forwarded", format!("Forwarded: for={loopback}\r\n"), String::new()),
        ("x-forwarded-for", format!("X-Forwarded-For: {loopback}\r\n"), String::new()),
        ("proxy-protocol", String::new(), format!("PROXY TCP4 {loopback} 127.0.0.1 4711 8811\r\n")),
    ] {
        let written = Setup::notes()
            .keyed()
            .listen(&format!("trusted-proxies = [\"{proxy}\"]\nclient-address = \"{source}\""))
            .write();
        let key = written.add_client("ci", &[]).await;
        let gate = written.start().await;
        let host = gate.addr.to_string();
        let text = format!("{header}{}", call_text(&host, &key, &headers));
        let reply = wire::raw_from(proxy, gate.addr, text.as_bytes()).await;
        assert_eq!(reply.status, 400, "{source}: {reply:#?}");
        assert!(reply.body.contains("invalid-request"), "{source}: {reply:#?}");
        assert!(recorded(&gate).await.is_empty(), "{source}");
        gate.stop().await;
    }
}
