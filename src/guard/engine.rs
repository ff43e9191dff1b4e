//! The engine behind the guard: one connection for each request, nothing shared between two.

use std::{
    path::{Path, PathBuf},
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use http::{
    Method, Request, Response, StatusCode,
    header::{CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, HOST, UPGRADE},
};
use http_body_util::{BodyExt, Empty, Full, Limited, combinators::UnsyncBoxBody};
use hyper::{
    body::{Body as _, Frame, Incoming, SizeHint},
    client::conn::http1,
    upgrade::Upgraded,
};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::{net::UnixStream, task::JoinHandle, time::timeout};

use crate::refusal::{Code, Refusal};

/// Any body.
pub type Body = UnsyncBoxBody<Bytes, BoxError>;
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

const CONNECT: Duration = Duration::from_secs(5);
/// For the head of an answer that nothing has to be waited for.
const ANSWER: Duration = Duration::from_secs(60);
/// Of an answer that is read here.
const LONGEST: usize = 8 << 20;

/// The guard, or its engine, does not do what it should.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Fault(pub(crate) String);

/// Asks for the engine's version, through a guard or not: whether it is there.
///
/// # Errors
/// Where nothing answers, or not as an engine does.
pub async fn version(socket: &Path) -> Result<String, Fault> {
    let engine = Engine::new(socket.to_owned());
    let answer = engine.ask(Method::GET, "/version", Vec::new()).await;
    let (status, value) = answer.map_err(|refusal| Fault(refusal.why))?;
    match value.get("Version").and_then(Value::as_str) {
        Some(version) if status.is_success() => Ok(version.to_owned()),
        _ => Err(Fault(format!("it answered {status}, and not as an engine does"))),
    }
}

/// The engine's address.
#[derive(Debug, Clone)]
pub struct Engine {
    socket: PathBuf,
}

impl Engine {
    pub fn new(socket: PathBuf) -> Self {
        Self { socket }
    }

    async fn connect(&self) -> Result<(http1::SendRequest<Body>, Task), Refusal> {
        let silent = |why: String| Refusal::new(Code::Engine, why);
        let stream = timeout(CONNECT, UnixStream::connect(&self.socket)).await;
        let stream = stream
            .map_err(|_| silent("the engine takes no connection".to_owned()))?
            .map_err(|error| silent(format!("the engine cannot be reached: {error}")))?;
        let (sender, connection) = http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| silent(format!("the engine cannot be spoken to: {error}")))?;
        let task = tokio::spawn(async move {
            let _ = connection.with_upgrades().await;
        });
        Ok((sender, Task(task)))
    }

    /// Sends a request. `patience` bounds the wait for the head of the answer; what has no end by
    /// itself, such as waiting for a container, has none.
    pub async fn send(
        &self,
        request: Request<Body>,
        patience: Option<Duration>,
    ) -> Result<(Response<Incoming>, Task), Refusal> {
        let (mut sender, task) = self.connect().await?;
        let asking = sender.send_request(request);
        let answer = match patience {
            Some(patience) => timeout(patience, asking)
                .await
                .map_err(|_| Refusal::new(Code::Engine, "the engine does not answer"))?,
            None => asking.await,
        };
        // Words of a body that was broken off are ours.
        let answer = answer.map_err(|error| {
            let told = std::error::Error::source(&error).and_then(|s| s.downcast_ref::<Refusal>());
            let lost = || Refusal::new(Code::Engine, format!("the engine broke off: {error}"));
            told.cloned().unwrap_or_else(lost)
        })?;
        Ok((answer, task))
    }

    /// Sends a request without a body and streams the answer.
    pub async fn pass(
        &self,
        request: Request<Body>,
        patience: Option<Duration>,
    ) -> Result<Response<Body>, Refusal> {
        let (answer, task) = self.send(request, patience).await?;
        Ok(answer_of(answer, task))
    }

    /// Sends a request and reads the answer whole.
    pub async fn ask(
        &self,
        method: Method,
        target: &str,
        body: Vec<u8>,
    ) -> Result<(StatusCode, Value), Refusal> {
        let body = if body.is_empty() { empty() } else { whole(body) };
        let (answer, _task) = self.send(request(method, target, body)?, Some(ANSWER)).await?;
        let status = answer.status();
        let read = timeout(ANSWER, Limited::new(answer.into_body(), LONGEST).collect());
        let bytes = read
            .await
            .map_err(|_| Refusal::new(Code::Engine, "the engine does not end its answer"))?
            .map_err(|_| Refusal::new(Code::Engine, "the engine's answer is too long"))?
            .to_bytes();
        Ok((status, serde_json::from_slice(&bytes).unwrap_or(Value::Null)))
    }

    /// Turns a connection into the streams of a container. The answer is the engine's where it does
    /// not.
    pub async fn upgrade(
        &self,
        target: &str,
    ) -> Result<Result<(UnixStream, Bytes), Response<Body>>, Refusal> {
        let mut asked = request(Method::POST, target, empty())?;
        asked.headers_mut().insert(CONNECTION, http::HeaderValue::from_static("Upgrade"));
        asked.headers_mut().insert(UPGRADE, http::HeaderValue::from_static("tcp"));
        let (mut answer, task) = self.send(asked, Some(ANSWER)).await?;
        if answer.status() != StatusCode::SWITCHING_PROTOCOLS {
            if answer.status().is_success() {
                let why = "the engine does not upgrade the connection";
                return Err(Refusal::new(Code::Engine, why));
            }
            return Ok(Err(answer_of(answer, task)));
        }
        let upgraded = hyper::upgrade::on(&mut answer).await;
        let upgraded = upgraded.map_err(|error| {
            Refusal::new(Code::Engine, format!("the engine broke off: {error}"))
        })?;
        let parts = socket(upgraded)
            .ok_or_else(|| Refusal::new(Code::Engine, "the connection is no socket"))?;
        Ok(Ok(parts))
    }
}

/// The socket below an upgraded connection, and what was read from it already.
pub fn socket(upgraded: Upgraded) -> Option<(UnixStream, Bytes)> {
    let parts = upgraded.downcast::<TokioIo<UnixStream>>().ok()?;
    Some((parts.io.into_inner(), parts.read_buf))
}

/// A request of our own words.
pub fn request(method: Method, target: &str, body: Body) -> Result<Request<Body>, Refusal> {
    let json = body.size_hint().exact() != Some(0);
    let mut builder = Request::builder().method(method).uri(target).header(HOST, "docker");
    if json {
        builder = builder.header(CONTENT_TYPE, "application/json");
    }
    builder.body(body).map_err(|_| Refusal::new(Code::Malformed, "the request cannot be rewritten"))
}

pub fn empty() -> Body {
    Empty::new().map_err(|never| match never {}).boxed_unsync()
}

pub fn whole(bytes: Vec<u8>) -> Body {
    Full::new(Bytes::from(bytes)).map_err(|never| match never {}).boxed_unsync()
}

/// An answer with the headers that say something about its body, and no others.
fn answer_of(answer: Response<Incoming>, task: Task) -> Response<Body> {
    let (head, body) = answer.into_parts();
    let mut response = Response::new(Answer { body, _task: task }.boxed_unsync());
    *response.status_mut() = head.status;
    for name in [CONTENT_TYPE, CONTENT_LENGTH] {
        if let Some(value) = head.headers.get(&name) {
            response.headers_mut().insert(name, value.clone());
        }
    }
    response
}

/// The task of a connection, which ends with whoever waits for its answer.
pub struct Task(JoinHandle<()>);

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

struct Answer {
    body: Incoming,
    _task: Task,
}

impl hyper::body::Body for Answer {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        Pin::new(&mut self.body).poll_frame(cx).map_err(Into::into)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Reads a body whole.
pub async fn read(body: Incoming, most: usize, patience: Duration) -> Result<BytesMut, Refusal> {
    let mut read = BytesMut::new();
    let mut body = Limited::new(body, most);
    let all = async {
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|_| {
                Refusal::new(
                    Code::Limit,
                    format!("the body is longer than {most} bytes, or broke off"),
                )
            })?;
            if let Ok(data) = frame.into_data() {
                read.extend_from_slice(&data);
            }
        }
        Ok(())
    };
    timeout(patience, all)
        .await
        .map_err(|_| Refusal::new(Code::Limit, "the body does not end"))??;
    Ok(read)
}
