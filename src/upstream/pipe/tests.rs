use tokio::io::{AsyncBufReadExt, BufReader, duplex};

use super::*;
use crate::upstream::{Heard, PartyKey};

const CAPS: Caps = Caps { bytes: 1 << 16, depth: 64, nodes: 10_000 };

struct Server {
    lines: tokio::io::Lines<BufReader<tokio::io::DuplexStream>>,
    stdout: tokio::io::DuplexStream,
}

impl Server {
    async fn read(&mut self) -> String {
        self.lines.next_line().await.unwrap().unwrap()
    }

    async fn write(&mut self, text: &str) {
        self.stdout.write_all(format!("{text}\n").as_bytes()).await.unwrap();
    }
}

fn pipe() -> (Arc<Pipe>, Server, mpsc::Receiver<Heard>) {
    line(None)
}

fn line(party: Option<PartyKey>) -> (Arc<Pipe>, Server, mpsc::Receiver<Heard>) {
    let (stdin, server_in) = duplex(1 << 16);
    let (stdout, server_out) = duplex(1 << 20);
    let (ear, heard) = Ear::test(party);
    let pipe = Pipe::new(stdin, stdout, CAPS, ear);
    let server = Server { lines: BufReader::new(server_in).lines(), stdout: server_out };
    (Arc::new(pipe), server, heard)
}

fn call(deadline: Duration) -> Call {
    Call::own("tools/call", Some(Bytes::from_static(b"{\n \"name\": \"t\"}")), deadline)
}

#[tokio::test]
async fn answers_find_their_requests_in_any_order() {
    let (pipe, mut server, _heard) = pipe();
    let first = tokio::spawn({
        let pipe = pipe.clone();
        async move { pipe.call(call(Duration::from_secs(9))).await }
    });
    let text = server.read().await;
    assert!(text.contains("\"id\":1") && text.contains("{  \"name\""), "{text}");
    let second = tokio::spawn({
        let pipe = pipe.clone();
        async move { pipe.call(call(Duration::from_secs(9))).await }
    });
    server.read().await;
    server.write("not json").await;
    server.write(r#"{"jsonrpc":"2.0","id":2,"result":{"n":2}}"#).await;
    server.write(r#"{"jsonrpc":"2.0","id":77,"result":{}}"#).await;
    server.write(r#"{"jsonrpc":"2.0","id":1,"error":{"n":1}}"#).await;
    assert!(matches!(first.await.unwrap(), Ok(Reply::Error(e)) if e == r#"{"n":1}"#));
    assert!(matches!(second.await.unwrap(), Ok(Reply::Result(r)) if r == r#"{"n":2}"#));
}

#[tokio::test]
async fn a_call_that_is_given_up_is_cancelled() {
    let (pipe, mut server, _heard) = pipe();
    let failed = pipe.call(call(Duration::from_millis(20))).await.unwrap_err();
    assert_eq!(failed, Failure::Timeout(Duration::from_millis(20)));
    server.read().await;
    let cancelled = server.read().await;
    assert!(cancelled.contains("notifications/cancelled") && cancelled.contains("\"requestId\":1"));
    assert!(pipe.shared.pending.lock().is_empty());
}

#[tokio::test]
async fn death_ends_every_wait() {
    let (pipe, mut server, _heard) = pipe();
    let waiting = tokio::spawn({
        let pipe = pipe.clone();
        async move { pipe.call(call(Duration::from_secs(9))).await }
    });
    server.read().await;
    drop(server);
    assert!(matches!(waiting.await.unwrap(), Err(Failure::Unavailable(_))));
    assert!(pipe.dead().is_some());
    assert!(matches!(pipe.call(call(Duration::from_secs(9))).await, Err(Failure::Unavailable(_))));
}

#[tokio::test]
async fn too_long_a_line_ends_the_link() {
    let (pipe, mut server, _heard) = pipe();
    let waiting = tokio::spawn({
        let pipe = pipe.clone();
        async move { pipe.call(call(Duration::from_secs(9))).await }
    });
    server.read().await;
    server.write(&"x".repeat((1 << 16) + 2)).await;
    let Err(Failure::Unavailable(why)) = waiting.await.unwrap() else { panic!("no failure") };
    assert!(why.contains("65536"), "{why}");
}

#[tokio::test]
async fn servers_ask_and_ping() {
    let (_pipe, mut server, mut heard) = pipe();
    server.write(r#"{"jsonrpc":"2.0","id":"p","method":"ping"}"#).await;
    assert_eq!(server.read().await, r#"{"jsonrpc":"2.0","id":"p","result":{}}"#);
    server.write(r#"{"jsonrpc":"2.0","id":5,"method":"roots/list"}"#).await;
    let Some(Heard { said: Said::Request { answer, .. }, .. }) = heard.recv().await else {
        panic!("no request")
    };
    drop(answer);
    assert!(server.read().await.contains("takes no requests"));
}
