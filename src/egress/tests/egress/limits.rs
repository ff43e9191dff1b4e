//! Limits of egress.

use std::time::{Duration, Instant};

use portcullis_egress::{End, Limits};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::timeout,
};

use super::support::{SOON, World, code};

/// Host that echoes its input.
async fn mirror() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let (mut read, mut write) = stream.split();
                let _ = tokio::io::copy(&mut read, &mut write).await;
            });
        }
    });
    port
}

async fn world(limits: Limits) -> (World, u16) {
    let port = mirror().await;
    (World::new(&[format!("tcp://mirror.example:{port}=127.0.0.1")], limits).await, port)
}

/// Tunnel to the echo host.
async fn tunnel(world: &World, port: u16) -> TcpStream {
    world.tunnel("mirror.example", port).await
}

async fn ends(mut stream: TcpStream) {
    let mut rest = Vec::new();
    let _ = timeout(SOON, stream.read_to_end(&mut rest)).await.expect("it ends");
}

#[tokio::test]
async fn connections_beyond_the_limit_are_refused() {
    let (world, port) = world(Limits { connections: 2, ..Limits::default() }).await;
    let mut one = tunnel(&world, port).await;
    let two = tunnel(&world, port).await;
    ends(TcpStream::connect(world.proxy).await.unwrap()).await;
    assert_eq!(code(&world.reported().await), "too-many");
    // Existing connections continue, and one that ends frees a slot.
    one.write_all(b"x").await.unwrap();
    assert_eq!(timeout(SOON, one.read_u8()).await.unwrap().unwrap(), b'x');
    drop(two);
    let reported = world.reported().await;
    assert!(matches!(reported.end, End::Closed | End::Broken), "{reported:?}");
    let again = async {
        loop {
            let mut stream = TcpStream::connect(world.proxy).await.unwrap();
            let ask = format!("CONNECT mirror.example:{port} HTTP/1.1\r\n\r\n");
            let _ = stream.write_all(ask.as_bytes()).await;
            if stream.read_u8().await.is_ok() {
                return;
            }
        }
    };
    timeout(SOON, again).await.expect("a slot is free again");
}

#[tokio::test]
async fn attempts_beyond_the_rate_are_refused() {
    let limits = Limits { attempts: 1.try_into().unwrap(), ..Limits::default() };
    let (world, port) = world(limits).await;
    let ask = format!("CONNECT mirror.example:{port} HTTP/1.1\r\n\r\n");
    for _ in 0..200 {
        let answer = world.exchange(ask.as_bytes()).await;
        if answer.starts_with(b"HTTP/1.1 429") {
            return;
        }
    }
    panic!("200 attempts were allowed");
}

#[tokio::test]
async fn connections_end_when_the_total_is_used_up() {
    let (world, port) = world(Limits { total: Some(100_000), ..Limits::default() }).await;
    let mut stream = tunnel(&world, port).await;
    let _ = stream.write_all(&vec![b'x'; 200_000]).await;
    ends(stream).await;
    let reported = world.reported().await;
    assert_eq!(code(&reported), "spent");
    assert!(reported.up + reported.down <= 100_000, "{reported:?}");
    // Permanently.
    let mut stream = tunnel(&world, port).await;
    let _ = stream.write_all(b"x").await;
    ends(stream).await;
    assert_eq!(code(&world.reported().await), "spent");
}

#[tokio::test]
async fn bytes_per_second_are_limited() {
    let rate = Some((64 << 10).try_into().unwrap());
    let (world, port) = world(Limits { up: rate, ..Limits::default() }).await;
    let mut stream = tunnel(&world, port).await;
    let began = Instant::now();
    let (mut read, mut write) = stream.split();
    let sent = vec![b'x'; 160 << 10];
    let mut back = vec![0; sent.len()];
    let (wrote, got) =
        timeout(SOON, async { tokio::join!(write.write_all(&sent), read.read_exact(&mut back)) })
            .await
            .unwrap();
    wrote.unwrap();
    got.unwrap();
    assert_eq!(back, sent);
    // One second's worth is available from the start.
    assert!(began.elapsed() >= Duration::from_millis(1400), "{:?}", began.elapsed());
}

#[tokio::test]
async fn idle_connections_are_closed() {
    let short = Duration::from_millis(200);
    let (world, port) = world(Limits { idle: short, ..Limits::default() }).await;
    ends(tunnel(&world, port).await).await;
    assert_eq!(world.reported().await.end, End::Idle);
}

#[tokio::test]
async fn half_closed_connections_end_sooner() {
    // Sends nothing and closes nothing.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let limits = Limits { half_closed: Duration::from_millis(200), ..Limits::default() };
    let world = World::new(&[format!("tcp://mirror.example:{port}=127.0.0.1")], limits).await;
    let mut stream = tunnel(&world, port).await;
    stream.shutdown().await.unwrap();
    ends(stream).await;
    assert_eq!(world.reported().await.end, End::Idle);
}

#[tokio::test]
async fn incomplete_requests_time_out() {
    let handshake = Duration::from_millis(200);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let limits = Limits { handshake, ..Limits::default() };
    let world = World::new(&[format!("tls.example:{port}=127.0.0.1")], limits).await;
    for begun in [
        &b""[..],
        b"G",
        b"GET http://a/ HTTP/1.1\r\nHost:",
        b"\x05",
        b"\x05\x01\x00\x05\x01",
        format!("CONNECT tls.example:{port} HTTP/1.1\r\n\r\n\x16\x03\x01").as_bytes(),
    ] {
        let mut stream = TcpStream::connect(world.proxy).await.unwrap();
        stream.write_all(begun).await.unwrap();
        ends(stream).await;
    }
}

/// A ClientHello that arrives byte by byte is assembled.
#[tokio::test]
async fn client_hello_in_small_writes_passes() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let listed = [format!("tcp://mirror.example:{port}=127.0.0.1")];
    let world = World::new(&listed, Limits::default()).await;
    let mut stream = tunnel(&world, port).await;
    let (mut server, _) = timeout(SOON, listener.accept()).await.unwrap().unwrap();
    stream.set_nodelay(true).unwrap();
    let hello = super::hellos::hello("mirror.example");
    for byte in &hello {
        stream.write_all(&[*byte]).await.unwrap();
        stream.flush().await.unwrap();
        tokio::task::yield_now().await;
    }
    let mut back = vec![0; hello.len()];
    timeout(SOON, server.read_exact(&mut back)).await.unwrap().unwrap();
    assert_eq!(back, hello);
}

#[tokio::test]
async fn stop_reports_all_outcomes() {
    let (world, port) = world(Limits::default()).await;
    let mut stream = tunnel(&world, port).await;
    stream.write_all(b"x").await.unwrap();
    timeout(SOON, stream.read_u8()).await.unwrap().unwrap();
    timeout(SOON, world.egress.stop()).await.expect("it stops");
    let reported = world.reported().await;
    assert_eq!(reported.end, End::Stopped);
    assert_eq!((reported.up, reported.down), (1, 1));
    ends(stream).await;
}

/// A revoked connection ends at once, and no other does.
#[tokio::test]
async fn revoked_connection_ends() {
    let port = mirror().await;
    let listed = ["mirror", "other"].map(|name| format!("tcp://{name}.example:{port}=127.0.0.1"));
    let world = World::new(&listed, Limits::default()).await;
    let mut gone = tunnel(&world, port).await;
    let mut stays = world.tunnel("other.example", port).await;
    gone.write_all(b"x").await.unwrap();
    timeout(SOON, gone.read_u8()).await.unwrap().unwrap();
    world.gate.forbid("mirror.example");
    ends(gone).await;
    let reported = world.reported().await;
    assert_eq!(reported.end, End::Revoked("no longer".into()));
    assert!(reported.allowed && reported.grounds.is_some(), "{:?}", reported.end);
    assert_eq!((reported.up, reported.down), (1, 1));
    stays.write_all(b"y").await.unwrap();
    assert_eq!(timeout(SOON, stays.read_u8()).await.unwrap().unwrap(), b'y');
}

/// An attempt whose decision is pending.
async fn undecided() -> (World, TcpStream) {
    let listed = ["tcp://undecided.example:1".to_owned()];
    let world = World::new(&listed, Limits::default()).await;
    let stream = world.ask_for("undecided.example", 1).await;
    let requested = async {
        while world.gate.requested.lock().unwrap().is_empty() {
            tokio::task::yield_now().await;
        }
    };
    timeout(SOON, requested).await.unwrap();
    (world, stream)
}

/// An attempt that is forbidden while its decision is pending is refused.
#[tokio::test]
async fn attempt_revoked_before_it_is_open_is_refused() {
    let (world, stream) = undecided().await;
    world.gate.forbid("undecided.example");
    ends(stream).await;
    let reported = world.reported().await;
    assert_eq!(code(&reported), "policy");
    assert!(!reported.allowed && reported.grounds.is_some(), "{:?}", reported.end);
}

/// An attempt whose program disconnects during the decision is reported, too.
#[tokio::test]
async fn abandoned_attempt_is_reported() {
    let (world, _stream) = undecided().await;
    timeout(SOON, world.egress.stop()).await.expect("it stops");
    let reported = world.reported().await;
    assert_eq!(reported.end, End::Stopped);
    assert!(!reported.allowed);
}
