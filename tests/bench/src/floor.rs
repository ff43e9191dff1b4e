//! The floor: the least that a proxy for MCP can do. It parses the envelope of each message and frames
//! the message again, with kept connections on both sides. It checks and records nothing.

use std::{
    collections::HashMap,
    convert::Infallible,
    process::Stdio,
    sync::{
        Arc, Mutex as StdMutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use anyhow::Context as _;
use bytes::Bytes;
use futures_util::future::BoxFuture;
use http_body_util::{BodyExt as _, Full};
use hyper::{
    Request, Response, StatusCode,
    body::Incoming,
    client::conn::http1::{SendRequest, handshake},
    header::{ACCEPT, CONTENT_TYPE, HOST, HeaderName, HeaderValue},
    service::{HttpService, service_fn},
};
use hyper_util::rt::TokioIo;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader},
    process::{ChildStdin, Command},
    sync::{Mutex, oneshot},
};

/// Headers of MCP that pass.
const HEADERS: [HeaderName; 2] =
    [HeaderName::from_static("mcp-session-id"), HeaderName::from_static("mcp-protocol-version")];

#[derive(Deserialize, Serialize)]
struct Envelope<'a> {
    jsonrpc: &'a str,
    #[serde(borrow, skip_serializing_if = "Option::is_none")]
    id: Option<&'a RawValue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    method: Option<&'a str>,
    #[serde(borrow, skip_serializing_if = "Option::is_none")]
    params: Option<&'a RawValue>,
    #[serde(borrow, skip_serializing_if = "Option::is_none")]
    result: Option<&'a RawValue>,
    #[serde(borrow, skip_serializing_if = "Option::is_none")]
    error: Option<&'a RawValue>,
}

fn reframed(body: &[u8]) -> anyhow::Result<Bytes> {
    if body.is_empty() {
        return Ok(Bytes::new());
    }
    let envelope: Envelope<'_> = serde_json::from_slice(body)?;
    Ok(serde_json::to_vec(&envelope)?.into())
}

/// Listens on a free port, prints it, and serves every connection.
///
/// # Errors
/// If no port can be opened.
pub async fn accept<S>(service: S) -> anyhow::Result<()>
where
    S: HttpService<Incoming, ResBody = Full<Bytes>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send + 'static,
{
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    println!("{}", listener.local_addr()?.port());
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let service = service.clone();
        tokio::spawn(async move {
            let builder = hyper::server::conn::http1::Builder::new();
            let _ = builder.serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

/// Connections to a server that speaks HTTP.
struct Pool {
    upstream: u16,
    host: HeaderValue,
    idle: StdMutex<Vec<SendRequest<Full<Bytes>>>>,
}

impl Pool {
    async fn take(&self) -> anyhow::Result<SendRequest<Full<Bytes>>> {
        let idle = || self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        while let Some(mut sender) = idle() {
            // Otherwise, the server has closed it.
            if sender.ready().await.is_ok() {
                return Ok(sender);
            }
        }
        let stream = tokio::net::TcpStream::connect(("127.0.0.1", self.upstream)).await?;
        stream.set_nodelay(true)?;
        let (mut sender, connection) = handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        sender.ready().await?;
        Ok(sender)
    }

    fn give_back(&self, sender: SendRequest<Full<Bytes>>) {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(sender);
    }
}

/// Serves as a proxy before a server that speaks HTTP.
///
/// # Errors
/// If no port can be opened.
pub async fn http(upstream: u16) -> anyhow::Result<()> {
    let host = HeaderValue::try_from(format!("127.0.0.1:{upstream}"))?;
    let pool = Arc::new(Pool { upstream, host, idle: StdMutex::default() });
    serve(move |request| Box::pin(pass(pool.clone(), request))).await
}

async fn pass(
    pool: Arc<Pool>,
    request: Request<Incoming>,
) -> anyhow::Result<Response<Full<Bytes>>> {
    let (parts, body) = request.into_parts();
    let body = reframed(&body.collect().await?.to_bytes())?;
    let mut onward = Request::new(Full::new(body));
    *onward.method_mut() = parts.method;
    *onward.uri_mut() = parts.uri;
    onward.headers_mut().insert(HOST, pool.host.clone());
    for name in [CONTENT_TYPE, ACCEPT].iter().chain(&HEADERS) {
        if let Some(value) = parts.headers.get(name) {
            onward.headers_mut().insert(name, value.clone());
        }
    }
    let mut sender = pool.take().await?;
    let (parts, body) = sender.send_request(onward).await?.into_parts();
    let body = reframed(&body.collect().await?.to_bytes())?;
    pool.give_back(sender);
    let mut response = Response::new(Full::new(body));
    *response.status_mut() = parts.status;
    for name in [CONTENT_TYPE].iter().chain(&HEADERS) {
        if let Some(value) = parts.headers.get(name) {
            response.headers_mut().insert(name, value.clone());
        }
    }
    Ok(response)
}

/// The server on standard input and output, and the calls that wait for it.
struct Piped {
    input: Mutex<ChildStdin>,
    next: AtomicU64,
    waiting: StdMutex<HashMap<u64, oneshot::Sender<String>>>,
}

/// Serves as a proxy before a server that it starts, which speaks over standard input and output.
///
/// # Errors
/// If the server cannot be started.
pub async fn stdio(command: &[String]) -> anyhow::Result<()> {
    let (program, args) = command.split_first().context("no command")?;
    let mut child = Command::new(program)
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let input = Mutex::new(child.stdin.take().context("the server has no input")?);
    let output = child.stdout.take().context("the server has no output")?;
    let piped = Arc::new(Piped { input, next: AtomicU64::new(0), waiting: Default::default() });
    let reader = piped.clone();
    tokio::spawn(async move {
        let mut lines = BufReader::new(output).lines();
        while let Ok(Some(line)) = lines.next_line().await {
            let id = serde_json::from_str::<Envelope<'_>>(&line).ok();
            let id = id.and_then(|envelope| envelope.id?.get().parse().ok());
            let waiting = id.and_then(|id: u64| reader.waiting.lock().ok()?.remove(&id));
            if let Some(waiting) = waiting {
                let _ = waiting.send(line);
            }
        }
    });
    serve(move |request| Box::pin(write(piped.clone(), request))).await
}

async fn write(
    piped: Arc<Piped>,
    request: Request<Incoming>,
) -> anyhow::Result<Response<Full<Bytes>>> {
    let body = request.into_body().collect().await?.to_bytes();
    let mut envelope: Envelope<'_> = serde_json::from_slice(&body)?;
    let own = envelope.id;
    let id = piped.next.fetch_add(1, Ordering::Relaxed);
    let raw = RawValue::from_string(id.to_string())?;
    envelope.id = own.map(|_| &*raw);
    let mut line = serde_json::to_vec(&envelope)?;
    line.push(b'\n');
    let (sender, receiver) = oneshot::channel();
    if own.is_some() {
        piped.waiting.lock().map_err(|_| anyhow::anyhow!("poisoned"))?.insert(id, sender);
    }
    piped.input.lock().await.write_all(&line).await?;
    let Some(own) = own else {
        let mut response = Response::new(Full::default());
        *response.status_mut() = StatusCode::ACCEPTED;
        return Ok(response);
    };
    let line = receiver.await?;
    let mut envelope: Envelope<'_> = serde_json::from_str(&line)?;
    envelope.id = Some(own);
    let mut response = Response::new(Full::new(serde_json::to_vec(&envelope)?.into()));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    Ok(response)
}

async fn serve<F>(handle: F) -> anyhow::Result<()>
where
    F: Fn(Request<Incoming>) -> BoxFuture<'static, anyhow::Result<Response<Full<Bytes>>>>,
    F: Clone + Send + 'static,
{
    accept(service_fn(move |request| {
        let response = handle(request);
        async move {
            Ok::<_, Infallible>(response.await.unwrap_or_else(|error| {
                let mut response = Response::new(Full::new(error.to_string().into()));
                *response.status_mut() = StatusCode::BAD_GATEWAY;
                response
            }))
        }
    }))
    .await
}
