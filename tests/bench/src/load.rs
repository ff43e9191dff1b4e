//! The load generator. A client is a connection that is kept, with one call at a time.

use std::{
    cell::RefCell,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use bytes::Bytes;
use futures_util::future::try_join_all;
use hdrhistogram::Histogram;
use http_body_util::{BodyExt as _, Full};
use hyper::{
    HeaderMap, Method, Request, StatusCode,
    client::conn::http1::SendRequest,
    header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HOST, HeaderValue},
};
use hyper_util::rt::TokioIo;
use serde_json::json;

use crate::REVISION;

/// Where clients call.
#[derive(Debug, Clone)]
pub struct Endpoint {
    pub port: u16,
    pub path: Arc<str>,
    pub key: Option<String>,
}

/// A client with its session, if the endpoint gives one.
pub struct Client {
    sender: SendRequest<Full<Bytes>>,
    path: Arc<str>,
    headers: HeaderMap,
    /// The argument.
    text: String,
    next: u64,
}

impl Client {
    /// Connects and opens a session.
    ///
    /// # Errors
    /// If the endpoint is unavailable or refuses the handshake.
    pub async fn connect(endpoint: &Endpoint, bytes: usize) -> anyhow::Result<Self> {
        let address = ("127.0.0.1", endpoint.port);
        let stream = tokio::net::TcpStream::connect(address).await.context("connecting")?;
        stream.set_nodelay(true)?;
        let (sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        let mut headers = HeaderMap::new();
        headers.insert(HOST, HeaderValue::try_from(format!("127.0.0.1:{}", endpoint.port))?);
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        let accept = HeaderValue::from_static("application/json, text/event-stream");
        headers.insert(ACCEPT, accept);
        if let Some(key) = &endpoint.key {
            headers.insert(AUTHORIZATION, HeaderValue::try_from(format!("Bearer {key}"))?);
        }
        let text = "lorem ipsum dolor sit amet ".chars().cycle().take(bytes).collect();
        let mut client = Self { sender, path: endpoint.path.clone(), headers, text, next: 1 };
        client.handshake().await.context("handshake")?;
        Ok(client)
    }

    async fn handshake(&mut self) -> anyhow::Result<()> {
        let hello = json!({ "jsonrpc": "2.0", "id": 0, "method": "initialize", "params": {
            "protocolVersion": REVISION,
            "capabilities": {},
            "clientInfo": { "name": "bench", "version": "1" },
        } });
        let mut tries = 0;
        let (status, headers, body) = loop {
            let (status, headers, body) = self.send(Method::POST, hello.to_string()).await?;
            let body: serde_json::Value =
                serde_json::from_slice(&body).context("the response to initialize")?;
            // Calls of an earlier measurement may still be in flight.
            match body["error"]["data"]["retryAfterMs"].as_u64() {
                Some(wait) if tries < 100 => {
                    tries += 1;
                    tokio::time::sleep(std::time::Duration::from_millis(wait)).await;
                }
                _ => break (status, headers, body),
            }
        };
        let agreed = &body["result"]["protocolVersion"];
        ensure!(
            status == StatusCode::OK && agreed == REVISION,
            "the handshake failed: {status} {body}"
        );
        self.headers.insert("mcp-protocol-version", HeaderValue::from_static(REVISION));
        if let Some(session) = headers.get("mcp-session-id") {
            self.headers.insert("mcp-session-id", session.clone());
        }
        let ready = json!({ "jsonrpc": "2.0", "method": "notifications/initialized" });
        let (status, ..) = self.send(Method::POST, ready.to_string()).await?;
        ensure!(status == StatusCode::ACCEPTED, "`initialized` was answered with {status}");
        Ok(())
    }

    async fn send(
        &mut self,
        method: Method,
        text: String,
    ) -> anyhow::Result<(StatusCode, HeaderMap, Bytes)> {
        let mut request = Request::new(Full::new(Bytes::from(text)));
        *request.method_mut() = method;
        *request.uri_mut() = self.path.parse()?;
        *request.headers_mut() = self.headers.clone();
        self.sender.ready().await?;
        let (parts, body) = self.sender.send_request(request).await?.into_parts();
        Ok((parts.status, parts.headers, body.collect().await?.to_bytes()))
    }

    /// Posts a message; the body of the response.
    ///
    /// # Errors
    /// If the connection failed.
    pub async fn post(&mut self, text: String) -> anyhow::Result<Bytes> {
        Ok(self.send(Method::POST, text).await?.2)
    }

    async fn ask(&mut self) -> anyhow::Result<(StatusCode, HeaderMap, Bytes)> {
        let text = format!(
            "{{\"jsonrpc\":\"2.0\",\"id\":{},\"method\":\"tools/call\",\
             \"params\":{{\"name\":\"echo\",\"arguments\":{{\"text\":\"{}\"}}}}}}",
            self.next, self.text
        );
        self.next += 1;
        self.send(Method::POST, text).await
    }

    /// Calls the tool and checks that its text is in the response.
    ///
    /// # Errors
    /// If the call is refused.
    pub async fn call(&mut self) -> anyhow::Result<Duration> {
        let began = Instant::now();
        let (status, _, body) = self.ask().await?;
        let took = began.elapsed();
        if status != StatusCode::OK || memchr::memmem::find(&body, self.text.as_bytes()).is_none() {
            bail!("a call failed: {status} {}", String::from_utf8_lossy(&body));
        }
        Ok(took)
    }

    /// Calls the tool with another text; says whether an interceptor failed.
    ///
    /// # Errors
    /// If the connection failed.
    pub async fn refused(&mut self, text: &str) -> anyhow::Result<bool> {
        self.text = text.to_owned();
        let (_, _, body) = self.ask().await?;
        Ok(memchr::memmem::find(&body, b"\"interceptor-fault\"").is_some())
    }

    /// Calls the tool and also takes a refusal; says whether the call was answered.
    ///
    /// # Errors
    /// If the connection failed.
    pub async fn try_call(&mut self) -> anyhow::Result<bool> {
        let (status, _, body) = self.ask().await?;
        Ok(status == StatusCode::OK && memchr::memmem::find(&body, self.text.as_bytes()).is_some())
    }

    /// Calls until the time is up.
    ///
    /// # Errors
    /// If a call is refused.
    pub async fn run(&mut self, time: Duration) -> anyhow::Result<()> {
        let end = Instant::now() + time;
        while Instant::now() < end {
            self.call().await?;
        }
        Ok(())
    }

    /// Opens another session, and leaves the one before open.
    ///
    /// # Errors
    /// If the handshake fails.
    pub async fn another_session(&mut self) -> anyhow::Result<()> {
        self.headers.remove("mcp-session-id");
        self.headers.remove("mcp-protocol-version");
        self.handshake().await
    }

    /// Ends the session.
    ///
    /// # Errors
    /// If the connection failed.
    pub async fn leave(mut self) -> anyhow::Result<()> {
        if self.headers.contains_key("mcp-session-id") {
            self.send(Method::DELETE, String::new()).await?;
        }
        Ok(())
    }
}

/// When a client calls.
#[derive(Debug, Clone, Copy)]
pub enum Pace {
    /// As soon as its last call is answered.
    Closed,
    /// At fixed times, so many calls a second by all clients together. If a call takes longer than
    /// until the next one is due, the time of the next one counts from when it was due.
    Fixed(f64),
}

/// A measurement: a histogram of nanoseconds.
#[derive(Debug, Clone)]
pub struct Load {
    pub times: Histogram<u64>,
    /// Calls that were refused.
    pub refused: Histogram<u64>,
    pub elapsed: Duration,
}

impl Load {
    /// Calls a second that were answered.
    pub fn rate(&self) -> f64 {
        self.times.len() as f64 / self.elapsed.as_secs_f64()
    }

    /// A quantile of the times in µs.
    pub fn micros(&self, quantile: f64) -> f64 {
        self.times.value_at_quantile(quantile) as f64 / 1e3
    }
}

/// Opens clients at one endpoint.
///
/// # Errors
/// If a handshake fails.
pub async fn connect(
    endpoint: &Endpoint,
    clients: usize,
    bytes: usize,
) -> anyhow::Result<Vec<Client>> {
    try_join_all((0..clients).map(|_| Client::connect(endpoint, bytes))).await
}

/// Has all clients call until the time is up.
///
/// # Errors
/// If a call fails; if it is refused, too, unless `refusals` are expected.
pub async fn load(
    clients: &mut [Client],
    pace: Pace,
    time: Duration,
    refusals: bool,
) -> anyhow::Result<Load> {
    let new = || Histogram::<u64>::new(3).map(RefCell::new);
    let (times, refused) = (new()?, new()?);
    let count = clients.len();
    let began = Instant::now();
    let end = began + time;
    try_join_all(clients.iter_mut().enumerate().map(|(at, client)| {
        let (times, refused) = (&times, &refused);
        async move {
            let every = match pace {
                Pace::Closed => Duration::ZERO,
                Pace::Fixed(rate) => Duration::from_secs_f64(count as f64 / rate),
            };
            // Clients at a fixed rate take turns.
            let mut due = began + every.mul_f64(at as f64 / count as f64);
            loop {
                let now = Instant::now();
                let mut start = match pace {
                    Pace::Closed => now,
                    Pace::Fixed(_) => due,
                };
                if start >= end || now >= end + time {
                    return anyhow::Ok(());
                }
                if start > now {
                    tokio::time::sleep_until(start.into()).await;
                    // The timer may be late by a millisecond, which is not a delay of the call.
                    start = Instant::now();
                }
                let answered = if refusals {
                    client.try_call().await?
                } else {
                    client.call().await?;
                    true
                };
                let histogram = if answered { times } else { refused };
                let nanos = u64::try_from(start.elapsed().as_nanos())?;
                histogram.borrow_mut().record(nanos.max(1))?;
                due += every;
            }
        }
    }))
    .await?;
    Ok(Load { times: times.into_inner(), refused: refused.into_inner(), elapsed: began.elapsed() })
}
