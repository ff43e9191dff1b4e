//! Client of the engine behind the guard. Each request has its own connection; requests share
//! nothing.

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
use http_body_util::{BodyExt, Empty, Full, Limited};
use hyper::{
    body::{Body as _, Frame, Incoming, SizeHint},
    client::conn::http1,
    upgrade::Upgraded,
};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::{net::UnixStream, task::JoinHandle, time::timeout};

use crate::{
    body::{Body, BoxError},
    refusal::{Code, Refusal},
};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Time limit for the head of an answer that needs no waiting.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);
/// Limit in bytes of an answer that is read here.
const MAX_ANSWER_BYTES: usize = 8 << 20;

/// Failure of the guard or its engine.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Fault(pub(crate) String);

/// Version of the engine, directly or through a guard; shows whether it is available.
///
/// # Errors
/// If nothing answers, or not as an engine does.
pub async fn version(socket: &Path) -> Result<String, Fault> {
    let engine = Engine::new(socket.to_owned());
    let answer = engine.ask(Method::GET, "/version", Vec::new()).await;
    let (status, value) = answer.map_err(|refusal| Fault(refusal.why))?;
    match value.get("Version").and_then(Value::as_str) {
        Some(version) if status.is_success() => Ok(version.to_owned()),
        _ => Err(Fault(format!("it answered {status}, unlike an engine"))),
    }
}

/// Address of the engine.
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
        let stream = timeout(CONNECT_TIMEOUT, UnixStream::connect(&self.socket)).await;
        let stream = stream
            .map_err(|_| silent("the engine does not accept a connection".to_owned()))?
            .map_err(|error| silent(format!("the engine cannot be reached: {error}")))?;
        let (sender, connection) =
            http1::handshake(TokioIo::new(stream)).await.map_err(|error| {
                silent(format!("the HTTP connection to the engine failed: {error}"))
            })?;
        let task = tokio::spawn(async move {
            let _ = connection.with_upgrades().await;
        });
        Ok((sender, Task(task)))
    }

    /// Sends a request. `patience` limits the wait for the head of the answer. Requests that wait
    /// by design, such as for a container's end, have no limit.
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
        // An error about an interrupted body is the guard's own.
        let answer = answer.map_err(|error| {
            let cause = std::error::Error::source(&error).and_then(|s| s.downcast_ref::<Refusal>());
            let lost = || {
                Refusal::new(
                    Code::Engine,
                    format!(
                        "the engine closed the connection: \
                {error}"
                    ),
                )
            };
            cause.cloned().unwrap_or_else(lost)
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

    /// Sends a request and reads the whole answer.
    pub async fn ask(
        &self,
        method: Method,
        target: &str,
        body: Vec<u8>,
    ) -> Result<(StatusCode, Value), Refusal> {
        let body = if body.is_empty() { empty() } else { full_body(body) };
        let (answer, _task) =
            self.send(request(method, target, body)?, Some(ANSWER_TIMEOUT)).await?;
        let status = answer.status();
        let read =
            timeout(ANSWER_TIMEOUT, Limited::new(answer.into_body(), MAX_ANSWER_BYTES).collect());
        let bytes = read
            .await
            .map_err(|_| Refusal::new(Code::Engine, "the engine does not finish its answer"))?
            .map_err(|_| Refusal::new(Code::Engine, "the engine's answer is too long"))?
            .to_bytes();
        Ok((status, serde_json::from_slice(&bytes).unwrap_or(Value::Null)))
    }

    /// Upgrades a connection to the streams of a container. If the engine does not upgrade, returns
    /// its answer.
    pub async fn upgrade(
        &self,
        target: &str,
    ) -> Result<Result<(UnixStream, Bytes), Response<Body>>, Refusal> {
        let mut upgrade_request = request(Method::POST, target, empty())?;
        upgrade_request.headers_mut().insert(CONNECTION, http::HeaderValue::from_static("Upgrade"));
        upgrade_request.headers_mut().insert(UPGRADE, http::HeaderValue::from_static("tcp"));
        let (mut answer, task) = self.send(upgrade_request, Some(ANSWER_TIMEOUT)).await?;
        if answer.status() != StatusCode::SWITCHING_PROTOCOLS {
            if answer.status().is_success() {
                let why = "the engine does not upgrade the connection";
                return Err(Refusal::new(Code::Engine, why));
            }
            return Ok(Err(answer_of(answer, task)));
        }
        let upgraded = hyper::upgrade::on(&mut answer).await;
        let upgraded = upgraded.map_err(|error| {
            Refusal::new(Code::Engine, format!("the engine closed the connection: {error}"))
        })?;
        let parts = socket(upgraded)
            .ok_or_else(|| Refusal::new(Code::Engine, "the connection is not a socket"))?;
        Ok(Ok(parts))
    }
}

/// Socket below an upgraded connection, and the bytes already read from it.
pub fn socket(upgraded: Upgraded) -> Option<(UnixStream, Bytes)> {
    let parts = upgraded.downcast::<TokioIo<UnixStream>>().ok()?;
    Some((parts.io.into_inner(), parts.read_buf))
}

/// A request composed by the guard.
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

pub fn full_body(bytes: Vec<u8>) -> Body {
    Full::new(Bytes::from(bytes)).map_err(|never| match never {}).boxed_unsync()
}

/// Answer with only the headers that describe its body.
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

/// Task of a connection. Ends when its answer is dropped.
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

/// Reads a whole body.
pub async fn read(body: Incoming, most: usize, patience: Duration) -> Result<BytesMut, Refusal> {
    let mut read = BytesMut::new();
    let mut body = Limited::new(body, most);
    let all = async {
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|_| {
                Refusal::new(
                    Code::Limit,
                    format!("the body is longer than {most} bytes, or was interrupted"),
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
