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
use parking_lot::{Mutex, RwLock};
use serde::{Deserialize, de::IgnoredAny};
use serde_json::value::RawValue;
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt},
    sync::{mpsc, oneshot},
};
use tokio_util::codec::{AnyDelimiterCodec, AnyDelimiterCodecError, FramedRead};

use super::{
    asked::Asked,
    ear::Ear,
    link::{Call, Failure, Link, Mine, Reply, Said, nobody, pong, progress_token, subscription},
};
use crate::{
    codec::{Caps, Flaw, Frame, Id, Kind, Text, check, one_line},
    exchange::{Method, Revision},
};

/// Messages that may wait for a server that does not read.
const QUEUE: usize = 64;
/// How long a message that answers no wait of ours waits for such a server.
const PATIENCE: Duration = Duration::from_secs(5);

/// A line over two pipes. When its last handle is dropped, the server's standard input closes.
pub struct Pipe {
    lines: mpsc::Sender<Bytes>,
    shared: Arc<Shared>,
}

struct Shared {
    pending: Mutex<HashMap<u64, Pending>>,
    next: AtomicU64,
    dead: OnceLock<String>,
    revision: RwLock<Option<Revision>>,
}

struct Pending {
    answer: oneshot::Sender<Result<Reply, Failure>>,
    said: Option<mpsc::Sender<Said>>,
    /// What the client calls its own in the request.
    mine: Mine,
}

impl Pipe {
    /// Speaks over these two ends; what belongs to no request goes to `ear`.
    pub fn new(
        stdin: impl AsyncWrite + Send + Unpin + 'static,
        stdout: impl AsyncRead + Send + Unpin + 'static,
        caps: Caps,
        ear: Ear,
    ) -> Self {
        let (lines, queue) = mpsc::channel(QUEUE);
        let shared = Arc::new(Shared {
            pending: Mutex::default(),
            next: AtomicU64::new(1),
            dead: OnceLock::new(),
            revision: RwLock::default(),
        });
        tokio::spawn(write(stdin, queue, shared.clone()));
        let asked = Asked::default();
        let reader = Reader { shared: shared.clone(), caps, ear, asked, lines: lines.downgrade() };
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
        let (text, mine) = call.text(id);
        let (sender, answer) = oneshot::channel();
        let pending = Pending { answer: sender, said: call.said, mine };
        self.shared.pending.lock().insert(id, pending);
        // A greeting cannot be taken back.
        let cancels = call.method.as_str() != Method::INITIALIZE;
        let mut guard = Cancel { pipe: self, id, sent: false };
        if self.shared.dead.get().is_some() {
            // It died between the look above and the entry: nobody would answer.
            return Err(self.unavailable());
        }
        let work = async {
            self.send(text).await?;
            guard.sent = cancels;
            answer.await.unwrap_or_else(|_| Err(self.unavailable()))
        };
        let reply = call.clock.bound(work).await;
        if !matches!(reply, Err(Failure::Timeout(_))) {
            guard.sent = false;
        }
        reply
    }

    async fn notify(&self, method: &str, params: Bytes) -> Result<(), Failure> {
        let text = Frame::notification(method, &params);
        tokio::time::timeout(PATIENCE, self.send(text))
            .await
            .unwrap_or(Err(Failure::Timeout(PATIENCE)))
    }

    fn agreed(&self, revision: Revision) {
        *self.shared.revision.write() = Some(revision);
    }

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
            let text = Frame::notification(Method::CANCELLED, params.as_bytes());
            if let Err(mpsc::error::TrySendError::Full(text)) = self.pipe.lines.try_send(text) {
                // There are no more of these than calls that are given up.
                tokio::spawn(late(self.pipe.lines.clone(), text));
            }
        }
    }
}

/// Sends to a server that does not read just now.
async fn late(lines: mpsc::Sender<Bytes>, text: Bytes) {
    if tokio::time::timeout(PATIENCE, lines.send(text)).await.is_err() {
        tracing::debug!("a server does not read, and misses a message that is no request");
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
    ear: Ear,
    asked: Asked,
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
                Some(Ok(line)) => match line.iter().find(|b| !b.is_ascii_whitespace()) {
                    None => {}
                    Some(b'[') => self.batch(line).await,
                    Some(_) => self.message(line).await,
                },
            }
        };
        self.shared.die(why);
    }

    async fn message(&self, text: Bytes) {
        match Frame::parse(text.clone(), self.caps) {
            Ok(frame) => self.take(frame).await,
            Err(flaw) => self.malformed(&text, &flaw),
        }
    }

    /// A batch, which one revision has: each of its elements is a message.
    async fn batch(&self, text: Bytes) {
        let taken = *self.shared.revision.read() == Some(Revision::V2025_03_26);
        let whole = check(&text, Text::Message, self.caps);
        let flaw = match (&whole, serde_json::from_slice::<Vec<&RawValue>>(&text)) {
            (Err(flaw), _) => flaw.clone(),
            (_, Ok(elements)) if taken && !elements.is_empty() => {
                for element in elements {
                    self.message(text.slice_ref(element.get().as_bytes())).await;
                }
                return;
            }
            (_, Ok(elements)) => {
                let flaw = Flaw::Shape("a batch, where its revision has none");
                for element in elements {
                    self.malformed(element.get().as_bytes(), &flaw);
                }
                return;
            }
            (_, Err(_)) => Flaw::Shape("a batch that is no array"),
        };
        tracing::debug!(%flaw, "a line of a server is no message");
    }

    fn malformed(&self, text: &[u8], flaw: &Flaw) {
        match claimed(text) {
            // Whoever waits for it would wait in vain.
            Some(id) => {
                self.settle(id, Err(Failure::Misbehaved(format!("its answer: {flaw}"))));
            }
            // Some servers print to standard output; what is no message answers nothing.
            None => tracing::debug!(%flaw, "a line of a server is no message"),
        }
    }

    async fn take(&self, frame: Frame) {
        match frame.kind {
            Kind::Result { id, result } => self.answer(id.raw(), Reply::Result(result)),
            Kind::Error { id: Some(id), error } => self.answer(id.raw(), Reply::Error(error)),
            Kind::Error { id: None, .. } => tracing::debug!("a server's error names no request"),
            Kind::Request { id, method, .. } if method.as_str() == Method::PING => {
                self.send(pong(&id));
            }
            Kind::Request { id, method, params } => self.request(id, method, params).await,
            Kind::Notification { method, params } => self.notification(method, params).await,
        }
    }

    /// Without waiting: a server that asks and does not read must not stop its own answers.
    fn send(&self, text: Bytes) {
        if let Some(lines) = self.lines.upgrade()
            && lines.try_send(text).is_err()
        {
            tracing::debug!("a server does not read, and misses an answer to what it asked");
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

    async fn request(&self, id: Id, method: Method, params: Option<Bytes>) {
        let lines = self.lines.clone();
        let place = self.asked.place(&id, move |text| async move {
            if let Some(lines) = lines.upgrade() {
                late(lines, text).await;
            }
        });
        let Some(answer) = place else { return self.send(nobody(&id)) };
        self.tell_party(Said::Request { id, method, params, answer }).await;
    }

    async fn notification(&self, method: Method, params: Option<Bytes>) {
        if let Some(id) = subscription(params.as_ref()) {
            let Some((call, mine)) = self.call(|at, _| at == id) else {
                return tracing::debug!("a server tells of a subscription that is over");
            };
            let params = mine.restored(params);
            return self.ear.tell_call(&call, Said::Notification { method, params }).await;
        }
        match method.as_str() {
            Method::PROGRESS => {
                let Some(id) = progress_token(params.as_ref()) else { return };
                // Progress that nobody asked for is dropped.
                let asked = |at, pending: &Pending| at == id && pending.mine.token.is_some();
                if let Some((call, mine)) = self.call(asked) {
                    let params = mine.restored(params);
                    self.ear.tell_call(&call, Said::Notification { method, params }).await;
                }
            }
            Method::CANCELLED => self.asked.take_back(params.as_ref()),
            Method::LOG_MESSAGE => match self.logged() {
                Some(call) => {
                    self.ear.tell_call(&call, Said::Notification { method, params }).await;
                }
                None => self.tell_party(Said::Notification { method, params }).await,
            },
            // Of what a server offers, not of what it was asked.
            "notifications/resources/updated" => {
                self.ear.tell(Said::Notification { method, params });
            }
            name if name.ends_with("/list_changed") => {
                self.ear.tell(Said::Notification { method, params });
            }
            _ => self.tell_party(Said::Notification { method, params }).await,
        }
    }

    /// Tells what names no call. All calls of a party's own instance are that party's, so the
    /// newest of them is as good as any; on a shared one nobody can be told.
    async fn tell_party(&self, said: Said) {
        let newest = || {
            let pending = self.shared.pending.lock();
            let hearing = pending.iter().filter(|(_, pending)| pending.said.is_some());
            hearing.max_by_key(|(id, _)| **id).and_then(|(_, pending)| pending.said.clone())
        };
        match self.ear.has_party().then(newest).flatten() {
            Some(call) => self.ear.tell_call(&call, said).await,
            None => self.ear.tell(said),
        }
    }

    /// The only call that asked for log messages, as 2026-07-28 has it, where it is the only call
    /// at all: a log message names no call, and one client's must not come to another.
    fn logged(&self) -> Option<mpsc::Sender<Said>> {
        let pending = self.shared.pending.lock();
        let mut calls = pending.values().filter(|pending| !pending.mine.subscribes);
        match (calls.next(), calls.next()) {
            (Some(call), None) if call.mine.logs => call.said.clone(),
            _ => None,
        }
    }

    /// The call of which this holds, where it wants to hear something.
    fn call(&self, holds: impl Fn(u64, &Pending) -> bool) -> Option<(mpsc::Sender<Said>, Mine)> {
        let pending = self.shared.pending.lock();
        let (_, call) = pending.iter().find(|(id, pending)| holds(**id, pending))?;
        Some((call.said.clone()?, call.mine.clone()))
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
mod tests;
