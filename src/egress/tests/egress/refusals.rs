//! Ways around the list: each is refused, with its reason, before a byte was sent.

use std::{net::Ipv4Addr, sync::Arc};

use portcullis_egress::{Destinations, Egress, End, Limits};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::timeout,
};

use super::{
    hellos::{hello, with_ech},
    support::{Names, Origin, Recorder, SOON, World, code, exchange},
};

fn connect(to: &str, then: &[u8]) -> Vec<u8> {
    [format!("CONNECT {to} HTTP/1.1\r\nHost: {to}\r\n\r\n").as_bytes(), then].concat()
}

fn socks(command: u8, host: &str, port: u16, then: &[u8]) -> Vec<u8> {
    let mut bytes = vec![5, 1, 0, 5, command, 0, 3, u8::try_from(host.len()).unwrap()];
    bytes.extend(host.as_bytes());
    bytes.extend(port.to_be_bytes());
    bytes.extend(then);
    bytes
}

fn socks_address(kind: u8, address: &[u8], port: u16) -> Vec<u8> {
    [&[5, 1, 0, 5, 1, 0, kind][..], address, &port.to_be_bytes()].concat()
}

/// A ClientHello in two records.
fn in_two(hello: &[u8]) -> Vec<u8> {
    let (one, two) = hello[5..].split_at(40);
    let record = |part: &[u8]| {
        let length = u16::try_from(part.len()).unwrap().to_be_bytes();
        [&[22, 3, 1][..], &length, part].concat()
    };
    [record(one), record(two)].concat()
}

/// A ClientHello with another message in its record.
fn behind(hello: &[u8]) -> Vec<u8> {
    let mut record = [hello, &[0, 0, 0, 0]].concat();
    let length = u16::try_from(record.len() - 5).unwrap();
    record[3..5].copy_from_slice(&length.to_be_bytes());
    record
}

#[tokio::test]
async fn ways_around_the_list_are_refused() {
    let (tls, web, db) =
        (Origin::tls("tls.example").await, Origin::clear().await, Origin::clear().await);
    let (t, w, d) = (tls.port, web.port, db.port);
    let private = [
        ("private", "10.0.0.1"),
        ("private-16", "192.168.1.1"),
        ("shared", "100.64.0.1"),
        ("loop", "127.0.0.1"),
        ("zero", "0.0.0.0"),
        ("link", "169.254.1.1"),
        ("metadata", "169.254.169.254"),
        ("metadata-azure", "168.63.129.16"),
        ("metadata-six", "fd00:ec2::254"),
        ("broadcast", "255.255.255.255"),
        ("multicast", "224.0.0.251"),
        ("six-loop", "::1"),
        ("six-link", "fe80::1"),
        ("unique", "fd00::1"),
        ("mapped", "::ffff:10.0.0.1"),
        ("compatible", "::10.0.0.1"),
        ("nat", "64:ff9b::a00:1"),
        ("nat-local", "64:ff9b:1::a00:1"),
        ("six-to-four", "2002:a00:1::1"),
        ("teredo", "2001:0:a00:1::1"),
        ("benchmark", "198.18.0.1"),
    ];
    let mut listed = vec![
        format!("tls.example:{t}=127.0.0.1"),
        format!("http://web.example:{w}=127.0.0.1"),
        format!("tcp://db.example:{d}=127.0.0.1"),
        "*.wild.example:443".to_owned(),
        "nowhere.example:443".to_owned(),
        "policy.example:443".to_owned(),
    ];
    listed.extend(private.iter().map(|(name, _)| format!("{name}.example:443")));
    let limits = Limits { attempts: 10_000.try_into().unwrap(), ..Limits::default() };
    let world = World::new(&listed, limits).await;
    for (name, address) in private {
        world.names.know(&format!("{name}.example"), &[&[address]]);
    }
    let good = hello("tls.example");
    let half = &good[..good.len() / 2];
    let tls_host = format!("tls.example:{t}");
    let db_host = format!("db.example:{d}");
    let web_host = format!("web.example:{w}");
    let get =
        |uri: &str, host: &str| format!("GET {uri} HTTP/1.1\r\nHost: {host}\r\n\r\n").into_bytes();

    let mut table: Vec<(String, Vec<u8>, &str)> = Vec::new();
    let mut try_it = |what: &str, bytes: Vec<u8>, code| table.push((what.to_owned(), bytes, code));
    for host in [
        "evil.example:443",
        "tls.example:22",
        &format!("127.0.0.1:{t}"),
        &format!("[::1]:{t}"),
        &format!("[::ffff:127.0.0.1]:{t}"),
        "169.254.169.254:80",
        "localhost:443",
        &format!("sub.tls.example:{t}"),
        &format!("xtls.example:{t}"),
        &format!("tls.example.evil.example:{t}"),
        "wild.example:443",
        "evilwild.example:443",
        "a.wild.example:80",
    ] {
        try_it("connect", connect(host, b""), "not-listed");
    }
    for host in [
        "127.1:443",
        "0x7f.0.0.1:443",
        "2130706433:443",
        "0177.0.0.1:443",
        "tls.example",
        "tls.example:0",
        "tls.example:65979",
        "u:p@tls.example:443",
        "tls.example%00.evil.example:443",
        "tls_example\u{3002}evil:443",
        "-:443",
    ] {
        try_it("connect", connect(host, b""), "malformed");
    }
    for (name, _) in private {
        try_it("address", connect(&format!("{name}.example:443"), &good), "private-address");
    }
    try_it("address", connect("nowhere.example:443", &good), "unresolved");
    try_it("address", connect("a.wild.example:443", &good), "unresolved");
    try_it("policy", connect("policy.example:443", &good), "policy");
    let two_hosts =
        format!("CONNECT {tls_host} HTTP/1.1\r\nHost: {tls_host}\r\nHost: evil.example\r\n\r\n");
    try_it("host", two_hosts.into(), "malformed");
    for (what, then, code) in [
        ("other name", hello("evil.example"), "other-server-name"),
        ("name below", hello("a.tls.example"), "other-server-name"),
        ("no name", hello("192.0.2.1"), "no-server-name"),
        ("encrypted name", with_ech(&good), "encrypted-server-name"),
        ("two records", in_two(&good), "broken-hello"),
        ("half of it", half.to_vec(), "broken-hello"),
        ("a huge record", vec![22, 3, 1, 0xff, 0xff, 1], "broken-hello"),
        ("an empty record", vec![22, 3, 1, 0, 0, 22], "broken-hello"),
        ("another handshake", vec![22, 3, 1, 0, 4, 2, 0, 0, 0], "broken-hello"),
        ("two messages", [&good[..3], &[0, 8, 1, 0, 0, 0, 1, 0, 0, 0]].concat(), "broken-hello"),
        ("a message behind it", behind(&good), "broken-hello"),
        ("clear text", b"GET / HTTP/1.1\r\nHost: evil.example\r\n\r\n".to_vec(), "not-tls"),
        ("SSH", b"SSH-2.0-x\r\n".to_vec(), "not-tls"),
        ("SSL 2", vec![0x80, 0x2e, 1, 0, 2, 0], "not-tls"),
        ("data first", vec![23, 3, 3, 0, 1, 0], "not-tls"),
        ("an alert first", vec![21, 3, 3, 0, 2, 1, 0], "not-tls"),
        ("another version", vec![22, 2, 1, 0, 4, 1, 0, 0, 0], "not-tls"),
    ] {
        try_it(what, connect(&tls_host, &then), code);
        try_it(what, socks(1, "tls.example", t, &then), code);
    }
    try_it("TLS elsewhere", connect(&db_host, &hello("evil.example")), "other-server-name");
    try_it(
        "TLS elsewhere",
        connect(&db_host, &with_ech(&hello("db.example"))),
        "encrypted-server-name",
    );
    try_it(
        "TLS elsewhere",
        socks(1, "db.example", d, &in_two(&hello("evil.example"))),
        "broken-hello",
    );
    let mut odd = hello("evil.example");
    odd[1] = 2;
    try_it("TLS elsewhere", connect(&db_host, &odd), "not-tls");
    for (uri, host, code) in [
        ("http://evil.example/", "evil.example", "not-listed"),
        (&format!("http://127.0.0.1:{w}/")[..], &format!("127.0.0.1:{w}")[..], "not-listed"),
        ("http://web.example/", "web.example", "not-listed"),
        (&format!("http://{web_host}/"), "evil.example", "malformed"),
        (&format!("http://{web_host}/"), "web.example", "malformed"),
        (&format!("http://u@{web_host}/"), &web_host, "malformed"),
        (&format!("http://{tls_host}/"), &tls_host, "other-wire"),
        (&format!("http://{db_host}/"), &db_host, "other-wire"),
        (&format!("https://{tls_host}/"), &tls_host, "malformed"),
        (&format!("ftp://{web_host}/"), &web_host, "malformed"),
        ("/", &web_host, "malformed"),
        ("*", &web_host, "malformed"),
    ] {
        try_it("plain HTTP", get(uri, host), code);
    }
    for inside in [
        get("/", "evil.example"),
        get("http://evil.example/", &web_host),
        get("/", "web.example"),
        b"GET / HTTP/1.1\r\n\r\n".to_vec(),
        good.clone(),
        b"SSH-2.0-x\r\n\r\n".to_vec(),
    ] {
        try_it("HTTP in a tunnel", connect(&web_host, &inside), "malformed");
        try_it("HTTP in a tunnel", socks(1, "web.example", w, &inside), "malformed");
    }
    try_it("a tunnel in a tunnel", connect(&web_host, &connect(&tls_host, &good)), "unsupported");
    let lengths = format!(
        "POST http://{web_host}/ HTTP/1.1\r\nHost: {web_host}\r\nContent-Length: 1\r\n\
         Content-Length: 2\r\n\r\nab"
    );
    try_it("two lengths", lengths.into(), "malformed");
    let huge = format!(
        "GET http://{web_host}/ HTTP/1.1\r\nHost: {web_host}\r\nx: {}\r\n\r\n",
        "x".repeat(1 << 20)
    );
    try_it("a huge head", huge.into(), "malformed");
    let many = format!(
        "GET http://{web_host}/ HTTP/1.1\r\nHost: {web_host}\r\n{}\r\n",
        "x: y\r\n".repeat(500)
    );
    try_it("many headers", many.into(), "malformed");
    try_it("garbage", vec![0; 64], "malformed");
    try_it("TLS with the proxy", good.clone(), "unsupported");
    try_it("SOCKS4", vec![4, 1, 1, 187, 127, 0, 0, 1, 0], "unsupported");
    try_it("SOCKS bind", socks(2, "tls.example", t, b""), "unsupported");
    try_it("SOCKS UDP", socks(3, "tls.example", t, b""), "unsupported");
    try_it("SOCKS", socks(1, "evil.example", 443, b""), "not-listed");
    try_it("SOCKS", socks(1, "tls.example\0.evil", t, b""), "malformed");
    try_it("SOCKS", socks(1, "", t, b""), "malformed");
    try_it("SOCKS", socks(1, "metadata.example", 443, &good), "private-address");
    try_it("SOCKS", socks_address(1, &[127, 0, 0, 1], t), "not-listed");
    try_it("SOCKS", socks_address(1, &[169, 254, 169, 254], 80), "not-listed");
    let mut mapped = [0; 16];
    mapped[10..].copy_from_slice(&[0xff, 0xff, 127, 0, 0, 1]);
    try_it("SOCKS", socks_address(4, &mapped, t), "not-listed");
    try_it("SOCKS", socks_address(9, &mapped, t), "malformed");

    assert!(table.len() >= 40);
    for (what, bytes, expected) in &table {
        let shown = String::from_utf8_lossy(bytes);
        let shown = shown.get(..shown.floor_char_boundary(200)).unwrap_or_default();
        let answer = world.exchange(bytes).await;
        let reported = world.reported().await;
        assert_eq!(
            code(&reported),
            *expected,
            "{what}: {shown:?}\n{reported:?}\n{}",
            String::from_utf8_lossy(&answer)
        );
        assert_eq!((reported.up, reported.down), (0, 0), "{what}: {shown:?}");
    }
    for origin in [&tls, &web, &db] {
        assert_eq!(origin.received(), "", "the host received data");
    }
    // No unlisted name was resolved.
    let requested = world.names.requested.lock().unwrap().clone();
    assert!(
        !requested.iter().any(|name| name.contains("evil") || name == "policy.example"),
        "{requested:?}"
    );
}

#[tokio::test]
async fn ways_around_the_list_are_refused_at_direct_sockets() {
    let tls = Origin::tls("tls.example").await;
    let web = Origin::clear().await;
    let listed = [
        format!("tls.example:{}=127.0.0.1", tls.port),
        format!("http://web.example:{}=127.0.0.1", web.port),
    ];
    let world = World::new(&listed, Limits::default()).await;
    let at = world.direct("tls.example", tls.port).await;
    for (bytes, expected) in [
        (hello("evil.example"), "other-server-name"),
        (with_ech(&hello("tls.example")), "encrypted-server-name"),
        (in_two(&hello("tls.example")), "broken-hello"),
        (b"GET / HTTP/1.1\r\n\r\n".to_vec(), "not-tls"),
    ] {
        let answer = exchange(at, &bytes).await;
        assert_eq!(answer.first(), Some(&21), "an alert of TLS");
        assert_eq!(code(&world.reported().await), expected);
    }
    let at = world.direct("web.example", web.port).await;
    let answer = exchange(at, b"GET / HTTP/1.1\r\nHost: evil.example\r\n\r\n").await;
    assert!(answer.starts_with(b"HTTP/1.1 400"), "{}", String::from_utf8_lossy(&answer));
    assert_eq!(code(&world.reported().await), "malformed");
    let at = world.direct("elsewhere.example", 443).await;
    exchange(at, &hello("elsewhere.example")).await;
    assert_eq!(code(&world.reported().await), "not-listed");
    assert_eq!(tls.received() + &web.received(), "");
    assert!(world.gate.requested.lock().unwrap().is_empty());
}

/// The name first has a public address, then one of this machine.
#[tokio::test]
async fn name_that_changes_its_address_is_refused() {
    let canary = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let port = canary.local_addr().unwrap().port();
    let world = World::new(&[format!("rebind.example:{port}")], Limits::default()).await;
    // Of a returned block that is not routed.
    world.names.know("rebind.example", &[&["3ffe::1"], &["127.0.0.1"], &["127.0.0.1", "::1"]]);
    let ask = connect(&format!("rebind.example:{port}"), &hello("rebind.example"));
    world.exchange(&ask).await;
    let reported = world.reported().await;
    assert!(["unreachable", "slow"].contains(&&*code(&reported)), "{reported:?}");
    assert_eq!(reported.address, Some(format!("[3ffe::1]:{port}").parse().unwrap()));
    for _ in 0..2 {
        world.exchange(&ask).await;
        let reported = world.reported().await;
        assert_eq!(code(&reported), "private-address");
        assert_eq!(reported.address, None);
    }
    // One lookup for each attempt: the name is not resolved again between check and connection.
    assert_eq!(world.names.requested.lock().unwrap().len(), 3);
    let nobody = tokio::time::timeout(std::time::Duration::ZERO, canary.accept()).await;
    assert!(nobody.is_err(), "the canary was connected to");
}

/// The program inside can read the remedy.
#[tokio::test]
async fn refusals_contain_the_remedy() {
    let world = World::new(&["tls.example:443".to_owned()], Limits::default()).await;
    let answer = world.exchange(&connect("evil.example:8443", b"")).await;
    let answer = String::from_utf8(answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 403 "), "{answer}");
    assert!(answer.contains("`evil.example:8443` is not in its list of hosts"), "{answer}");
    assert!(
        answer.contains("write `egress = [\"evil.example:8443\"]` below `[servers.notes]`"),
        "{answer}"
    );
    assert!(matches!(world.reported().await.end, End::Refused(_)));
    for (bytes, reply) in [
        (socks(1, "evil.example", 443, b""), 2),
        (socks(1, "tls.example", 443, b""), 4),
        (socks(2, "tls.example", 443, b""), 7),
    ] {
        let answer = world.exchange(&bytes).await;
        assert_eq!(answer[..4], [5, 0, 5, reply], "{answer:?}");
    }
}

/// A body is forwarded completely or not at all.
#[tokio::test]
async fn ambiguous_bodies_are_refused() {
    let chunked = "Transfer-Encoding: chunked";
    for (method, headers, passes) in [
        ("POST", chunked.to_owned(), true),
        ("POST", format!("Content-Length: 3\r\n{chunked}"), true),
        ("POST", format!("{chunked}\r\nContent-Length: 60"), true),
        ("GET", chunked.to_owned(), false),
        ("HEAD", chunked.to_owned(), false),
    ] {
        let web = Origin::clear().await;
        let host = format!("web.example:{}", web.port);
        let world = World::new(&[format!("http://{host}=127.0.0.1")], Limits::default()).await;
        let ask = format!(
            "{method} http://{host}/ HTTP/1.1\r\nHost: {host}\r\n{headers}\r\n\r\n3\r\nabc\r\n0\r\n\r\n"
        );
        world.exchange(ask.as_bytes()).await;
        let code = code(&world.reported().await);
        let received = web.received().to_ascii_lowercase();
        assert_eq!(code != "malformed", passes, "{method} {headers}: {code}");
        assert_eq!(!received.is_empty(), passes, "{method} {headers}: {received}");
        assert!(!received.contains("content-length"), "{received}");
    }
}

/// A server's invalid answer is refused and reported.
#[tokio::test]
async fn invalid_answers_are_refused() {
    for answer in ["HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n", "no HTTP\r\n\r\n", ""]
    {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let host = format!("web.example:{}", listener.local_addr().unwrap().port());
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = [0; 4096];
            let _ = stream.read(&mut request).await;
            stream.write_all(answer.as_bytes()).await.unwrap();
        });
        let world = World::new(&[format!("http://{host}=127.0.0.1")], Limits::default()).await;
        let ask = format!("GET http://{host}/ HTTP/1.1\r\nHost: {host}\r\n\r\n");
        // A client that closes its side may get no answer.
        let mut stream = TcpStream::connect(world.proxy).await.unwrap();
        stream.write_all(ask.as_bytes()).await.unwrap();
        let mut answered = Vec::new();
        timeout(SOON, stream.read_to_end(&mut answered)).await.unwrap().unwrap();
        assert!(answered.starts_with(b"HTTP/1.1 502"), "{}", String::from_utf8_lossy(&answered));
        let reported = world.reported().await;
        assert_eq!(code(&reported), "unreachable", "{answer:?}");
        assert!(reported.up > 0 && reported.allowed);
    }
}

/// A request to a name's address inside is a request to the name.
#[tokio::test]
async fn address_inside_stands_for_its_name() {
    let web = Origin::clear().await;
    let port = web.port;
    let listed = format!("http://web.example:{port}=127.0.0.1").parse().unwrap();
    let (gate, mut reported) = Recorder::new();
    let synthetic_address = ("192.0.2.7".parse().unwrap(), "web.example".parse().unwrap());
    let egress = Egress::with_synthetic_addresses(
        "notes",
        Destinations::new(vec![listed]).unwrap(),
        Limits::default(),
        gate,
        Arc::new(Names::default()),
        [synthetic_address],
    );
    let (mut near, far) = tokio::io::duplex(1 << 16);
    let ask = format!(
        "GET http://192.0.2.7:{port}/ HTTP/1.1\r\nHost: 192.0.2.7:{port}\r\nConnection: close\r\n\r\n"
    );
    near.write_all(ask.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    let (_, read) = tokio::join!(egress.converse(far, None), near.read_to_end(&mut answer));
    read.unwrap();
    assert!(
        web.received().contains(&format!("\r\nhost: web.example:{port}\r\n")),
        "{}",
        web.received()
    );
    let reported = reported.recv().await.unwrap();
    assert_eq!(reported.attempt.unwrap().host.to_string(), "web.example");
}

/// A forwarded plain HTTP request is the permitted one, with new framing.
#[tokio::test]
async fn smuggled_requests_are_not_forwarded() {
    let web = Origin::clear().await;
    let host = format!("web.example:{}", web.port);
    let world = World::new(&[format!("http://{host}=127.0.0.1")], Limits::default()).await;
    let smuggled = format!(
        "POST http://{host}/a HTTP/1.1\r\nHost: {host}\r\nContent-Length: 60\r\n\
         Transfer-Encoding: chunked\r\nConnection: x-hop, host, keep-alive\r\nX-Hop: 1\r\n\
         Proxy-Authorization: Basic eA==\r\nUpgrade: websocket\r\nX-End: 1\r\n\r\n\
         0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: evil.example\r\n\r\n"
    );
    world.exchange(smuggled.as_bytes()).await;
    let received = web.received().to_ascii_lowercase();
    assert!(!received.contains("smuggled") && !received.contains("evil"), "{received}");
    if !received.is_empty() {
        assert!(received.contains(&format!("\r\nhost: {host}\r\n")), "{received}");
        assert!(received.contains("\r\nx-end: 1\r\n"), "{received}");
        for gone in ["x-hop", "proxy-auth", "upgrade", "keep-alive"] {
            assert!(!received.contains(gone), "{gone}: {received}");
        }
        assert!(
            !(received.contains("content-length") && received.contains("transfer-encoding")),
            "{received}"
        );
    }
}
