//! The line to a server over its standard input and output: one JSON text a line.

use std::{
    collections::HashMap,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::StreamExt;
use parking_lot::Mutex;
use serde::{Deserialize, de::IgnoredAny};
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt},
    sync::{mpsc, oneshot},
};
use tokio_util::codec::{AnyDelimiterCodec, AnyDelimiterCodecError, FramedRead};

use super::link::{
    Call, Failure, Link, Notice, Reply, Unsolicited, nobody, pong, progress_token, restore_token,
};
use crate::{
    codec::{Caps, Frame, Kind, one_line},
    exchange::{Method, Revision},
};

/// Messages that may wait for a server that does not read.
const QUEUE: usize = 64;

/// A line over two pipes. When its last handle is dropped, the server's standard input closes.
pub struct Pipe {
    lines: mpsc::Sender<Bytes>,
    shared: Arc<Shared>,
}

struct Shared {
    pending: Mutex<HashMap<u64, Pending>>,
    next: AtomicU64,
    dead: OnceLock<String>,
}

struct Pending {
    answer: oneshot::Sender<Result<Reply, Failure>>,
    notices: Option<mpsc::Sender<Notice>>,
    /// The client's progress token, as text.
    token: Option<Bytes>,
}

impl Pipe {
    /// Speaks over these two ends; what belongs to no request goes to `unsolicited`.
    pub fn new(
        stdin: impl AsyncWrite + Send + Unpin + 'static,
        stdout: impl AsyncRead + Send + Unpin + 'static,
        caps: Caps,
        unsolicited: mpsc::Sender<Unsolicited>,
    ) -> Self {
        let (lines, queue) = mpsc::channel(QUEUE);
        let shared = Arc::new(Shared {
            pending: Mutex::default(),
            next: AtomicU64::new(1),
            dead: OnceLock::new(),
        });
        tokio::spawn(write(stdin, queue, shared.clone()));
        let reader = Reader { shared: shared.clone(), caps, unsolicited, lines: lines.downgrade() };
        tokio::spawn(reader.run(stdout));
        Self { lines, shared }
    }

    fn unavailable(&self) -> Failure {
        let why = self.shared.dead.get().map_or("its connection ended", String::as_str);
        Failure::Unavailable(why.to_owned())
    }

    async fn send(&self, text: Bytes) -> Result<(), Failure> {
        self.lines.send(text).await.map_err(|_| self.unavailable())
    }
}

#[async_trait]
impl Link for Pipe {
    async fn call(&self, call: Call) -> Result<Reply, Failure> {
        if self.shared.dead.get().is_some() {
            return Err(self.unavailable());
        }
        let id = self.shared.next.fetch_add(1, Ordering::Relaxed);
        let (text, token) = call.text(id);
        let (sender, answer) = oneshot::channel();
        let pending = Pending { answer: sender, notices: call.notices, token };
        self.shared.pending.lock().insert(id, pending);
        let mut guard = Cancel { pipe: self, id, sent: false };
        if self.shared.dead.get().is_some() {
            // It died between the look above and the entry: nobody would answer.
            return Err(self.unavailable());
        }
        let work = async {
            self.send(text).await?;
            guard.sent = true;
            answer.await.unwrap_or_else(|_| Err(self.unavailable()))
        };
        let reply = tokio::time::timeout(call.deadline, work).await;
        match reply {
            Ok(reply) => {
                guard.sent = false;
                reply
            }
            Err(_) => Err(Failure::Timeout(call.deadline)),
        }
    }

    async fn notify(&self, method: &str, params: Bytes) -> Result<(), Failure> {
        let text = Frame::notification(method, &params);
        tokio::time::timeout(Duration::from_secs(5), self.send(text))
            .await
            .unwrap_or(Err(Failure::Timeout(Duration::from_secs(5))))
    }

    fn agreed(&self, _: Revision) {}

    fn dead(&self) -> Option<String> {
        self.shared.dead.get().cloned()
    }
}

/// Forgets a request when its caller does, and tells the server if it was sent.
struct Cancel<'a> {
    pipe: &'a Pipe,
    id: u64,
    sent: bool,
}

impl Drop for Cancel<'_> {
    fn drop(&mut self) {
        self.pipe.shared.pending.lock().remove(&self.id);
        if self.sent {
            let params = format!("{{\"requestId\":{},\"reason\":\"cancelled\"}}", self.id);
            // A full queue means that the server does not read; it would not hear this either.
            let _ =
                self.pipe.lines.try_send(Frame::notification(Method::CANCELLED, params.as_bytes()));
        }
    }
}

async fn write(
    mut stdin: impl AsyncWrite + Unpin,
    mut queue: mpsc::Receiver<Bytes>,
    shared: Arc<Shared>,
) {
    while let Some(text) = queue.recv().await {
        let line = one_line(text);
        let written = async {
            stdin.write_all(&line).await?;
            stdin.write_all(b"\n").await?;
            stdin.flush().await
        };
        if let Err(error) = written.await {
            shared.die(format!("its standard input cannot be written: {error}"));
            return;
        }
    }
}

impl Shared {
    fn die(&self, why: String) {
        let _ = self.dead.set(why);
        // Dropping the senders ends every wait.
        self.pending.lock().clear();
    }
}

struct Reader {
    shared: Arc<Shared>,
    caps: Caps,
    unsolicited: mpsc::Sender<Unsolicited>,
    lines: mpsc::WeakSender<Bytes>,
}

impl Reader {
    async fn run(self, stdout: impl AsyncRead + Unpin) {
        let codec =
            AnyDelimiterCodec::new_with_max_length(b"\n".to_vec(), b"\n".to_vec(), self.caps.bytes);
        let mut lines = FramedRead::new(stdout, codec);
        let why = loop {
            match lines.next().await {
                None => break "it ended".to_owned(),
                Some(Err(AnyDelimiterCodecError::Io(error))) => {
                    break format!("its standard output cannot be read: {error}");
                }
                Some(Err(AnyDelimiterCodecError::MaxChunkLengthExceeded)) => {
                    break format!("it wrote a message of more than {} bytes", self.caps.bytes);
                }
                Some(Ok(line)) if line.iter().all(u8::is_ascii_whitespace) => {}
                Some(Ok(line)) => match Frame::parse(line.clone(), self.caps) {
                    Ok(frame) => self.take(frame),
                    Err(flaw) => match claimed(&line) {
                        // Whoever waits for it would wait in vain.
                        Some(id) => {
                            self.settle(
                                id,
                                Err(Failure::Misbehaved(format!("its answer: {flaw}"))),
                            );
                        }
                        // Some servers print to standard output; what is no message answers nothing.
                        None => tracing::debug!(%flaw, "a line of a server is no message"),
                    },
                },
            }
        };
        self.shared.die(why);
    }

    fn take(&self, frame: Frame) {
        match frame.kind {
            Kind::Result { id, result } => self.answer(id.raw(), Reply::Result(result)),
            Kind::Error { id: Some(id), error } => self.answer(id.raw(), Reply::Error(error)),
            Kind::Error { id: None, .. } => tracing::debug!("a server's error names no request"),
            Kind::Request { id, method, .. } if method.as_str() == Method::PING => {
                self.send(pong(&id));
            }
            Kind::Request { id, method, params } => {
                let (answer, text) = oneshot::channel();
                let unsolicited = Unsolicited::Request { id: id.clone(), method, params, answer };
                match self.unsolicited.try_send(unsolicited) {
                    Ok(()) => {
                        let lines = self.lines.clone();
                        tokio::spawn(async move {
                            let text = text.await.unwrap_or_else(|_| nobody(&id));
                            // As below: a server that does not read is not waited for.
                            if let Some(lines) = lines.upgrade() {
                                let _ = lines.try_send(text);
                            }
                        });
                    }
                    Err(_) => self.send(nobody(&id)),
                }
            }
            Kind::Notification { method, params } => self.notice(method, params),
        }
    }

    /// Without waiting: a server that asks and does not read must not stop its own answers.
    fn send(&self, text: Bytes) {
        if let Some(lines) = self.lines.upgrade() {
            let _ = lines.try_send(text);
        }
    }

    fn answer(&self, id: &Bytes, reply: Reply) {
        match std::str::from_utf8(id).ok().and_then(|id| id.parse().ok()) {
            Some(id) => self.settle(id, Ok(reply)),
            None => tracing::debug!("a server answered with an id that was never given"),
        }
    }

    fn settle(&self, id: u64, reply: Result<Reply, Failure>) {
        let pending = self.shared.pending.lock().remove(&id);
        match pending {
            Some(pending) => drop(pending.answer.send(reply)),
            None => tracing::debug!("a server answered a request that is not under way"),
        }
    }

    fn notice(&self, method: Method, params: Option<Bytes>) {
        if method.as_str() == Method::PROGRESS {
            let Some(id) = progress_token(params.as_ref()) else { return };
            let pending = self.shared.pending.lock();
            // Progress that nobody asked for is dropped.
            let Some(Pending { notices: Some(notices), token: Some(token), .. }) = pending.get(&id)
            else {
                return;
            };
            let _ = notices.try_send(Notice { method, params: restore_token(params, token) });
        } else {
            let _ = self.unsolicited.try_send(Unsolicited::Notification { method, params });
        }
    }
}

/// The request that a line answers, or would, were it a legal message.
fn claimed(line: &[u8]) -> Option<u64> {
    #[derive(Deserialize)]
    struct Claim {
        id: u64,
        method: Option<IgnoredAny>,
    }
    let claim: Claim = serde_json::from_slice(line).ok()?;
    claim.method.is_none().then_some(claim.id)
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncBufReadExt, BufReader, duplex};

    use super::*;

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

    fn pipe() -> (Arc<Pipe>, Server, mpsc::Receiver<Unsolicited>) {
        let (stdin, server_in) = duplex(1 << 16);
        let (stdout, server_out) = duplex(1 << 20);
        let (sender, unsolicited) = mpsc::channel(4);
        let pipe = Pipe::new(stdin, stdout, CAPS, sender);
        let server = Server { lines: BufReader::new(server_in).lines(), stdout: server_out };
        (Arc::new(pipe), server, unsolicited)
    }

    fn call(deadline: Duration) -> Call {
        Call::own("tools/call", Some(Bytes::from_static(b"{\n \"name\": \"t\"}")), deadline)
    }

    #[tokio::test]
    async fn answers_find_their_requests_in_any_order() {
        let (pipe, mut server, _unsolicited) = pipe();
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
        let (pipe, mut server, _unsolicited) = pipe();
        let failed = pipe.call(call(Duration::from_millis(20))).await.unwrap_err();
        assert_eq!(failed, Failure::Timeout(Duration::from_millis(20)));
        server.read().await;
        let cancelled = server.read().await;
        assert!(
            cancelled.contains("notifications/cancelled") && cancelled.contains("\"requestId\":1")
        );
        assert!(pipe.shared.pending.lock().is_empty());
    }

    #[tokio::test]
    async fn death_ends_every_wait() {
        let (pipe, mut server, _unsolicited) = pipe();
        let waiting = tokio::spawn({
            let pipe = pipe.clone();
            async move { pipe.call(call(Duration::from_secs(9))).await }
        });
        server.read().await;
        drop(server);
        assert!(matches!(waiting.await.unwrap(), Err(Failure::Unavailable(_))));
        assert!(pipe.dead().is_some());
        assert!(matches!(
            pipe.call(call(Duration::from_secs(9))).await,
            Err(Failure::Unavailable(_))
        ));
    }

    #[tokio::test]
    async fn too_long_a_line_ends_the_link() {
        let (pipe, mut server, _unsolicited) = pipe();
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
        let (_pipe, mut server, mut unsolicited) = pipe();
        server.write(r#"{"jsonrpc":"2.0","id":"p","method":"ping"}"#).await;
        assert_eq!(server.read().await, r#"{"jsonrpc":"2.0","id":"p","result":{}}"#);
        server.write(r#"{"jsonrpc":"2.0","id":5,"method":"roots/list"}"#).await;
        let Some(Unsolicited::Request { answer, .. }) = unsolicited.recv().await else {
            panic!("no request")
        };
        drop(answer);
        assert!(server.read().await.contains("takes no requests"));
    }
}
