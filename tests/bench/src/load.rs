//! The clients: each one connection, kept alive, one call at a time.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::{
    HeaderMap, Method, Request, StatusCode,
    client::conn::http1::SendRequest,
    header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HOST, HeaderValue},
};
use hyper_util::rt::TokioIo;
use serde_json::json;

use crate::REVISION;

/// An endpoint to call.
#[derive(Debug, Clone)]
pub struct Endpoint {
    pub port: u16,
    pub path: Arc<str>,
    pub key: Option<String>,
}

/// A client with its session, where the endpoint gives one.
pub struct Client {
    sender: SendRequest<Full<Bytes>>,
    path: Arc<str>,
    headers: HeaderMap,
    /// The text that is echoed.
    text: String,
    next: u64,
}

impl Client {
    /// Connects and greets.
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
        client.greet().await.context("greeting")?;
        Ok(client)
    }

    async fn greet(&mut self) -> anyhow::Result<()> {
        let hello = json!({ "jsonrpc": "2.0", "id": 0, "method": "initialize", "params": {
            "protocolVersion": REVISION,
            "capabilities": {},
            "clientInfo": { "name": "bench", "version": "1" },
        } });
        let mut tries = 0;
        let (status, headers, body) = loop {
            let (status, headers, body) = self.send(Method::POST, hello.to_string()).await?;
            let body: serde_json::Value = serde_json::from_slice(&body).context("the greeting")?;
            // What the same client asked in a measurement before may still be under way.
            match body["error"]["data"]["retryAfterMs"].as_u64() {
                Some(wait) if tries < 100 => {
                    tries += 1;
                    tokio::time::sleep(std::time::Duration::from_millis(wait)).await;
                }
                _ => break (status, headers, body),
            }
        };
        let agreed = &body["result"]["protocolVersion"];
        ensure!(status == StatusCode::OK && agreed == REVISION, "not greeted: {status} {body}");
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

    /// Posts a message; the body of its answer.
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

    /// Calls the tool, and is content with nothing but its text in the answer.
    pub async fn call(&mut self) -> anyhow::Result<Duration> {
        let began = Instant::now();
        let (status, _, body) = self.ask().await?;
        let took = began.elapsed();
        if status != StatusCode::OK || memchr::memmem::find(&body, self.text.as_bytes()).is_none() {
            bail!("a call failed: {status} {}", String::from_utf8_lossy(&body));
        }
        Ok(took)
    }

    /// Calls the tool with another text; says whether a check of it failed.
    pub async fn refused(&mut self, text: &str) -> anyhow::Result<bool> {
        self.text = text.to_owned();
        let (_, _, body) = self.ask().await?;
        Ok(memchr::memmem::find(&body, b"\"interceptor-fault\"").is_some())
    }

    /// Calls until the time is up; how long each call took.
    pub async fn run(&mut self, time: Duration) -> anyhow::Result<Vec<Duration>> {
        let end = Instant::now() + time;
        let mut took = Vec::new();
        while Instant::now() < end {
            took.push(self.call().await?);
        }
        Ok(took)
    }

    /// Ends the session.
    pub async fn leave(mut self) -> anyhow::Result<()> {
        if self.headers.contains_key("mcp-session-id") {
            self.send(Method::DELETE, String::new()).await?;
        }
        Ok(())
    }
}
