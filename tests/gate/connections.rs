//! Clients with a key while other callers open as many connections as possible.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use serde_json::json;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    task::JoinSet,
};

use crate::support::{
    front::Front,
    gate::{Gate, Setup},
    in_time, until,
    wire::connect_from,
};

/// What begins a request and does not end it.
const UNFINISHED: &[u8] = b"POST /mcp HTTP/1.1\r\nHost: gate.example\r\nX-More: ";
const HERE: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// Lets this process have more connections than the usual limit of 1,024.
fn raise_open_files() {
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, most, most).unwrap();
}

/// Connections without a key that are opened again as soon as they are closed. Dropped, they end.
struct Strangers {
    /// How many were opened so far.
    opened: Arc<AtomicUsize>,
    _tasks: JoinSet<()>,
}

impl Strangers {
    /// So many from each of these addresses.
    fn open(to: SocketAddr, from: impl IntoIterator<Item = IpAddr>, each: usize) -> Self {
        let opened = Arc::new(AtomicUsize::new(0));
        let mut tasks = JoinSet::new();
        for from in from.into_iter().flat_map(|from| std::iter::repeat_n(from, each)) {
            let opened = opened.clone();
            tasks.spawn(async move {
                loop {
                    if let Ok(mut stream) = connect_from(from, to).await {
                        let _ = stream.write_all(UNFINISHED).await;
                        opened.fetch_add(1, Ordering::Relaxed);
                        let _ = stream.read(&mut [0; 1024]).await;
                    }
                    tokio::task::yield_now().await;
                }
            });
        }
        Self { opened, _tasks: tasks }
    }

    /// Waits until so many were opened.
    async fn have_opened(&self, count: usize) {
        until("strangers to connect", async || {
            (self.opened.load(Ordering::Relaxed) >= count).then_some(())
        })
        .await;
    }
}

/// One call of a tool on a connection of its own. How long it took, where it succeeded.
async fn call(from: IpAddr, to: SocketAddr, host: &str, key: &str) -> Option<Duration> {
    let body = json!({ "tool": "notes__list_notes", "arguments": {} }).to_string();
    let text = format!(
        "POST /invoke HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\nAuthorization: Bearer {key}\r\n\
         Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    let begun = Instant::now();
    let exchange = async {
        let mut stream = connect_from(from, to).await.ok()?;
        stream.write_all(text.as_bytes()).await.ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.ok()?;
        answer.starts_with("HTTP/1.1 200").then_some(())
    };
    let answered = tokio::time::timeout(Duration::from_secs(20), exchange).await;
    answered.ok().flatten().map(|()| begun.elapsed())
}

/// Makes calls one after the other, tells their times, and returns how many succeeded.
async fn calls(what: &str, count: usize, gate: &Gate, key: &str) -> usize {
    let host = gate.addr.to_string();
    // The first one starts the server.
    call(HERE, gate.addr, &host, key).await;
    let mut times = Vec::new();
    for _ in 0..count {
        times.extend(call(HERE, gate.addr, &host, key).await);
        if times.is_empty() {
            break;
        }
    }
    times.sort();
    let at = |share: usize| times.get(times.len() * share / 100).copied().unwrap_or_default();
    let succeeded = times.len();
    eprintln!("{what}: {succeeded} of {count} succeeded, p50 {:?}, p99 {:?}", at(50), at(99));
    succeeded
}

/// Red-team M2: unfinished headers without a key, opened again when they are closed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn anonymous_connections_do_not_block_clients_of_their_address() {
    raise_open_files();
    let written = Setup::notes().keyed().write();
    let key = written.add_client("ann", &[]).await;
    let gate = written.start().await;
    assert_eq!(calls("before", 100, &gate, &key).await, 100);
    let strangers = Strangers::open(gate.addr, [HERE], 1_100);
    strangers.have_opened(1_100).await;
    assert_eq!(calls("during", 100, &gate, &key).await, 100);
    drop(strangers);
    gate.stop().await;
}

/// The same from so many addresses that the total limit of connections is reached.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn anonymous_connections_of_many_networks_do_not_block_clients() {
    raise_open_files();
    let written = Setup::notes().keyed().write();
    let key = written.add_client("ann", &[]).await;
    let gate = written.start().await;
    assert_eq!(calls("before", 50, &gate, &key).await, 50);
    let networks = (10..30).map(|last| IpAddr::V4(Ipv4Addr::new(127, 0, 0, last)));
    let strangers = Strangers::open(gate.addr, networks, 210);
    strangers.have_opened(4_200).await;
    assert_eq!(calls("during", 50, &gate, &key).await, 50);
    drop(strangers);
    gate.stop().await;
}

/// The same through a proxy in TCP mode that names its clients.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn anonymous_connections_behind_a_trusted_proxy_do_not_block_clients() {
    raise_open_files();
    let written = Setup::notes()
        .keyed()
        .listen("trusted-proxies = [\"127.0.0.2\"]\nclient-address = \"proxy-protocol\"")
        .write();
    let key = written.add_client("ann", &[]).await;
    let mut gate = written.start().await;
    let front = Front::haproxy(gate.addr, "tcp", "", "send-proxy-v2 source 127.0.0.2").await;
    let strangers = Strangers::open(front.addr, [[127, 0, 0, 3].into()], 700);
    let line = gate.logged("connections to give way", |line| line.contains("make room")).await;
    assert!(line.contains("127.0.0.3"), "{line}");
    let host = gate.addr.to_string();
    for from in [[127, 0, 0, 3], [127, 0, 0, 4]] {
        for n in 0..20 {
            let called = call(from.into(), front.addr, &host, &key).await;
            assert!(called.is_some(), "call {n} from {from:?}");
        }
    }
    drop(strangers);
    gate.stop().await;
}

/// Idle connections of a trusted proxy are displaced: the oldest by the proxy's next connection,
/// and others by a client.
#[tokio::test]
async fn idle_connections_of_a_trusted_proxy_do_not_block_clients() {
    let written = Setup::notes()
        .keyed()
        .listen("trusted-proxies = [\"127.0.0.2\"]\nclient-address = \"forwarded\"")
        .and("[limits.connections]\ntotal = 8\nper-client = 4")
        .write();
    let key = written.add_client("ann", &[]).await;
    let gate = written.start().await;
    let mut open = Vec::new();
    for _ in 0..9 {
        open.push(connect_from([127, 0, 0, 2].into(), gate.addr).await.unwrap());
    }
    let closed = in_time("the end of the oldest", open[0].read(&mut [0; 1])).await;
    assert!(!closed.is_ok_and(|read| read > 0));
    let newest = open.last_mut().unwrap();
    let request =
        format!("GET /mcp HTTP/1.1\r\nHost: {}\r\nForwarded: for=127.0.0.3\r\n\r\n", gate.addr);
    newest.write_all(request.as_bytes()).await.unwrap();
    let answered = in_time("the answer on the newest", newest.read(&mut [0; 1])).await;
    assert_eq!(answered.unwrap(), 1);
    assert_eq!(calls("during", 5, &gate, &key).await, 5);
    drop(open);
    gate.stop().await;
}

/// The log reports that a trusted proxy's new connections are refused while all of its others are
/// busy.
#[tokio::test]
async fn busy_connections_of_a_trusted_proxy_are_not_displaced() {
    let written = Setup::notes()
        .keyed()
        .listen("trusted-proxies = [\"127.0.0.2\"]\nclient-address = \"forwarded\"")
        .and("[limits.connections]\ntotal = 8\nper-client = 6")
        .write();
    let key = written.add_client("ann", &[]).await;
    let mut gate = written.start().await;
    let proxy = IpAddr::from([127, 0, 0, 2]);
    let mut streams = Vec::new();
    for _ in 0..6 {
        let (stream, status) = stream(proxy, gate.addr, &key).await;
        assert_eq!(status, 200);
        streams.push(stream);
    }
    let mut refused = connect_from(proxy, gate.addr).await.unwrap();
    let line = gate.logged("a connection that is not taken", |line| {
        line.contains("connections of trusted proxies closed: too many are open")
    });
    assert!(line.await.contains("127.0.0.2"));
    let closed = in_time("the end of a connection", refused.read(&mut [0; 1])).await;
    assert!(!closed.is_ok_and(|read| read > 0));
    drop(streams);
    gate.stop().await;
}

/// Opens an event stream from an address, and returns it with the status of its answer.
async fn stream(from: IpAddr, to: SocketAddr, key: &str) -> (TcpStream, u16) {
    let exchange = async {
        let mut stream = connect_from(from, to).await.unwrap();
        let text = format!(
            "GET /sse HTTP/1.1\r\nHost: {to}\r\nAuthorization: Bearer {key}\r\n\
             Forwarded: for=127.0.0.3\r\nAccept: text/event-stream\r\n\r\n"
        );
        stream.write_all(text.as_bytes()).await.unwrap();
        let mut answer = vec![0; 1024];
        let read = stream.read(&mut answer).await.unwrap();
        let status = std::str::from_utf8(&answer[..read]).unwrap().split(' ').nth(1);
        let status = status.and_then(|status| status.parse().ok());
        (stream, status.unwrap_or_else(|| panic!("no status: {answer:?}")))
    };
    in_time("an event stream", exchange).await
}

/// Red-team M2: one key with a thousand event streams.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_of_one_key_do_not_block_others() {
    raise_open_files();
    let written = Setup::notes().keyed().write();
    let greedy = written.add_client("greedy", &[]).await;
    let ann = written.add_client("ann", &[]).await;
    let gate = written.start().await;
    assert_eq!(calls("before", 50, &gate, &ann).await, 50);
    let mut streams = Vec::new();
    let mut statuses = Vec::new();
    for _ in 0..1_100 {
        let (stream, status) = stream(HERE, gate.addr, &greedy).await;
        streams.push(stream);
        statuses.push(status);
    }
    let open = statuses.iter().filter(|status| **status == 200).count();
    assert_eq!(open, 512, "as many as `per-client`");
    assert_eq!(calls("during", 50, &gate, &ann).await, 50);
    // The client is on record with what it was refused, and gets its places back.
    let refused = gate.records(&["--code", "rate-limited"]).await;
    assert!(refused.iter().any(|record| record["principal"] == "greedy"), "{refused:#?}");
    drop(streams);
    until("a place for the client", async || {
        (stream(HERE, gate.addr, &greedy).await.1 == 200).then_some(())
    })
    .await;
    gate.stop().await;
}

/// These keys together may have more connections than the total limit.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_of_many_keys_leave_slots_for_other_clients() {
    raise_open_files();
    let written = Setup::notes().keyed().and("[limits.connections]\ntotal = 128").write();
    let ann = written.add_client("ann", &[]).await;
    let mut greedy = Vec::new();
    for n in 0..6 {
        greedy.push(written.add_client(&format!("greedy-{n}"), &[]).await);
    }
    let gate = written.start().await;
    let (mut streams, mut open) = (Vec::new(), 0);
    for key in &greedy {
        for _ in 0..20 {
            let (stream, status) = stream(HERE, gate.addr, key).await;
            streams.push(stream);
            open += usize::from(status == 200);
        }
    }
    assert_eq!(open, 5 * 16 + 8, "the last of 96 places are not for clients that have 8");
    assert_eq!(calls("during", 20, &gate, &ann).await, 20);
    drop(streams);
    gate.stop().await;
}
