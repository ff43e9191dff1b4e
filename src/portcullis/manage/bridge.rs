//! Bridge between a client's stdio and a proxy: each line becomes an HTTP request, and each response
//! a line.

use std::{collections::HashMap, io, path::Path, sync::Arc};

use bytes::Bytes;
use futures_util::StreamExt;
use parking_lot::Mutex;
use reqwest::header::{ACCEPT, CONTENT_TYPE};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncRead, AsyncWrite, AsyncWriteExt as _, BufReader},
    sync::mpsc,
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;

use portcullis_config::Limits;
use portcullis_gateway::admin;
use portcullis_protocol::{
    codec::{Frame, Kind, Object, era, events, one_line},
    exchange::Method,
    names::ServerName,
};

/// Properties of a message that its headers need.
struct Message {
    id: Option<Bytes>,
    method: Option<String>,
    /// Modern revision in `_meta`.
    revision: Option<String>,
    name: Option<String>,
    /// Id of the request that it cancels.
    cancels: Option<Bytes>,
}

impl Message {
    fn of(text: &Bytes) -> Self {
        let caps = Limits::default().request_caps();
        let nothing = Self { id: None, method: None, revision: None, name: None, cancels: None };
        let Ok(frame) = Frame::parse(text.clone(), caps) else { return nothing };
        let (id, method, params) = match frame.kind {
            Kind::Request { id, method, params } => (Some(id.raw().clone()), method, params),
            Kind::Notification { method, params } => (None, method, params),
            Kind::Result { .. } | Kind::Error { .. } => return nothing,
        };
        let params = params.and_then(|params| Object::parse(params).ok());
        let revision = params
            .as_ref()
            .and_then(|params| params.object("_meta"))
            .and_then(|meta| meta.string(era::META_REVISION));
        let key = match method.as_str() {
            Method::TOOLS_CALL | Method::PROMPTS_GET => Some("name"),
            Method::RESOURCES_READ => Some("uri"),
            "tasks/get" | "tasks/update" | "tasks/cancel" => Some("taskId"),
            _ => None,
        };
        let name = key.and_then(|key| params.as_ref().and_then(|params| params.string(key)));
        let cancels = (method.as_str() == Method::CANCELLED)
            .then(|| params.as_ref().and_then(|params| params.get("requestId")))
            .flatten();
        Self { id, method: Some(method.as_str().to_owned()), revision, name, cancels }
    }
}

/// A client's connection to a proxy.
pub struct Bridge {
    client: reqwest::Client,
    url: String,
    key: Option<String>,
    session: Mutex<Option<String>>,
    /// Negotiated legacy revision.
    agreed: Mutex<Option<String>>,
    /// Requests in flight, by their ids as the client wrote them.
    open: Mutex<HashMap<Bytes, CancellationToken>>,
    /// Keeps the path of the socket valid.
    _socket: Option<admin::Address>,
}

impl Bridge {
    /// Bridge to the endpoint `url` over HTTP, with a client's key.
    ///
    /// # Errors
    /// The HTTP client cannot be made.
    pub fn to_url(url: String, key: Option<String>) -> anyhow::Result<Self> {
        let client =
            reqwest::Client::builder().redirect(reqwest::redirect::Policy::none()).build()?;
        let key = key.map(|key| key.trim().to_owned());
        Ok(Self::new(client, url, key, None))
    }

    /// Bridge to the local socket of the proxy with that state folder, as the local user; to one
    /// server only, if it is named.
    ///
    /// # Errors
    /// The socket has no usable path, or the HTTP client cannot be made.
    pub fn to_socket(state_dir: &Path, server: Option<&ServerName>) -> anyhow::Result<Self> {
        let socket = admin::Address::of(state_dir)?;
        let client =
            reqwest::Client::builder().no_proxy().unix_socket(socket.path.clone()).build()?;
        let path = match server {
            Some(server) => format!("/servers/{server}/mcp"),
            None => "/mcp".to_owned(),
        };
        Ok(Self::new(client, format!("http://portcullis{path}"), None, Some(socket)))
    }

    fn new(
        client: reqwest::Client,
        url: String,
        key: Option<String>,
        socket: Option<admin::Address>,
    ) -> Self {
        Self {
            client,
            url,
            key,
            session: Mutex::default(),
            agreed: Mutex::default(),
            open: Mutex::default(),
            _socket: socket,
        }
    }

    /// Forwards the lines of `from`, and writes all responses to `to`, until `from` ends.
    ///
    /// # Errors
    /// `from` cannot be read.
    pub async fn run(
        self: Arc<Self>,
        from: impl AsyncRead + Unpin,
        mut to: impl AsyncWrite + Send + Unpin + 'static,
    ) -> io::Result<()> {
        let (output, mut lines) = mpsc::channel::<Bytes>(64);
        let writer = tokio::spawn(async move {
            while let Some(line) = lines.recv().await {
                to.write_all(&one_line(line)).await?;
                to.write_all(b"\n").await?;
                to.flush().await?;
            }
            Ok::<_, std::io::Error>(())
        });
        let mut tasks = JoinSet::new();
        let mut input = BufReader::new(from);
        let mut line = Vec::new();
        loop {
            line.clear();
            if input.read_until(b'\n', &mut line).await? == 0 {
                break;
            }
            let text = Bytes::copy_from_slice(line.trim_ascii());
            if text.is_empty() {
                continue;
            }
            let message = Message::of(&text);
            if self.closes(&message) {
                continue;
            }
            let is_initialize = message.method.as_deref() == Some(Method::INITIALIZE);
            let sent = self.clone().send(message, text, output.clone());
            if is_initialize {
                // Later messages need the session that this message opens.
                sent.await;
                if self.session.lock().is_some() {
                    tokio::spawn(self.clone().listen(output.clone()));
                }
            } else {
                tasks.spawn(sent);
            }
            while tasks.try_join_next().is_some() {}
        }
        while tasks.join_next().await.is_some() {}
        self.end().await;
        drop(output);
        let _ = tokio::time::timeout(std::time::Duration::from_secs(2), writer).await;
        Ok(())
    }

    fn headers(&self, mut request: reqwest::RequestBuilder) -> reqwest::RequestBuilder {
        if let Some(key) = &self.key {
            request = request.bearer_auth(key);
        }
        if let Some(session) = self.session.lock().as_ref() {
            request = request.header("mcp-session-id", session);
        }
        if let Some(revision) = self.agreed.lock().as_ref() {
            request = request.header("mcp-protocol-version", revision);
        }
        request
    }

    /// Cancels a request as revision 2026-07-28 does over HTTP: it closes the stream. In a session,
    /// the caller forwards the message instead.
    fn closes(&self, message: &Message) -> bool {
        let Some(id) = &message.cancels else { return false };
        if self.session.lock().is_some() {
            return false;
        }
        if let Some(open) = self.open.lock().remove(id) {
            open.cancel();
        }
        true
    }

    /// Posts a message and forwards all responses.
    fn send(
        self: Arc<Self>,
        message: Message,
        text: Bytes,
        output: mpsc::Sender<Bytes>,
    ) -> impl Future<Output = ()> + Send {
        // Registered now, not when the future is first polled: the next message may cancel it.
        let closed = CancellationToken::new();
        if let Some(id) = &message.id {
            self.open.lock().insert(id.clone(), closed.clone());
        }
        async move {
            let id = message.id.clone();
            tokio::select! {
                () = closed.cancelled() => {}
                () = self.carry(message, text, output) => {}
            }
            if let Some(id) = id {
                self.open.lock().remove(&id);
            }
        }
    }

    async fn carry(&self, message: Message, text: Bytes, output: mpsc::Sender<Bytes>) {
        let id = message.id.clone();
        if let Err(error) = self.post(message, text, &output).await {
            // The client waits for a response, so it gets an error.
            let error = serde_json::json!({
                "code": -32603,
                "message": format!("the proxy cannot be reached: {error:#}"),
            });
            let id = id.as_deref().unwrap_or(b"null");
            let text = [
                &b"{\"jsonrpc\":\"2.0\",\"id\":"[..],
                id,
                b",\"error\":",
                error.to_string().as_bytes(),
                b"}",
            ]
            .concat();
            let _ = output.send(text.into()).await;
        }
    }

    async fn post(
        &self,
        message: Message,
        text: Bytes,
        output: &mpsc::Sender<Bytes>,
    ) -> anyhow::Result<()> {
        let mut request = self
            .headers(self.client.post(&self.url))
            .header(CONTENT_TYPE, "application/json")
            .header(ACCEPT, "application/json, text/event-stream");
        if let Some(revision) = &message.revision {
            request = request.header("mcp-protocol-version", revision);
            if let Some(method) = &message.method {
                request = request.header("mcp-method", method);
            }
            if let Some(name) = &message.name {
                request = request.header("mcp-name", era::header_text(name));
            }
        }
        let response = request.body(text).send().await?;
        let is_initialize = message.method.as_deref() == Some(Method::INITIALIZE);
        if is_initialize && let Some(session) = response.headers().get("mcp-session-id") {
            *self.session.lock() = session.to_str().ok().map(str::to_owned);
        }
        let kind = response.headers().get(CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or("");
        if kind.starts_with("text/event-stream") {
            return self.relay(response, is_initialize, output).await;
        }
        let status = response.status();
        if kind.starts_with("application/json") {
            let body = addressed(response.bytes().await?, message.id.as_deref());
            if is_initialize {
                self.agree(&body);
            }
            output.send(body).await?;
        } else if message.id.is_some() {
            anyhow::bail!("it answered {status}");
        }
        Ok(())
    }

    async fn relay(
        &self,
        response: reqwest::Response,
        is_initialize: bool,
        output: &mpsc::Sender<Bytes>,
    ) -> anyhow::Result<()> {
        // The proxy already limits the size of events.
        let mut events = std::pin::pin!(events(response.bytes_stream(), usize::MAX));
        while let Some(event) = events.next().await {
            let text = event?.data;
            if text.is_empty() {
                continue;
            }
            if is_initialize {
                self.agree(&text);
            }
            output.send(text).await?;
        }
        Ok(())
    }

    /// Stores the revision in the response to `initialize`, for later headers.
    fn agree(&self, text: &Bytes) {
        let result = Object::parse(text.clone()).ok().and_then(|answer| answer.object("result"));
        if let Some(revision) = result.and_then(|result| result.string("protocolVersion")) {
            *self.agreed.lock() = Some(revision);
        }
    }

    /// Forwards the session's messages that are not responses.
    async fn listen(self: Arc<Self>, output: mpsc::Sender<Bytes>) {
        let request = self.headers(self.client.get(&self.url)).header(ACCEPT, "text/event-stream");
        if let Ok(response) = request.send().await
            && response.status().is_success()
        {
            let _ = self.relay(response, false, &output).await;
        }
    }

    async fn end(&self) {
        if self.session.lock().is_some() {
            let request = self.headers(self.client.delete(&self.url));
            let limit = std::time::Duration::from_secs(2);
            let _ = tokio::time::timeout(limit, request.send()).await;
        }
    }
}

/// Response with the id of its request. A refusal before the proxy has read the message (a missing
/// key, for example) has no id, and the client would wait forever for one with its id.
fn addressed(body: Bytes, id: Option<&[u8]>) -> Bytes {
    let Some(id) = id else { return body };
    match Object::parse(body.clone()) {
        Ok(answer) if answer.get("id").is_none_or(|id| id.as_ref() == b"null") => {
            answer.with(&[("id", Some(id))])
        }
        _ => body,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn response_without_id_gets_the_request_id() {
        let body = |text: &'static str| Bytes::from_static(text.as_bytes());
        let refused = body(r#"{"jsonrpc":"2.0","id":null,"error":{"code":-31000,"message":"x"}}"#);
        assert_eq!(
            addressed(refused.clone(), Some(b"\"a\"")),
            r#"{"jsonrpc":"2.0","id":"a","error":{"code":-31000,"message":"x"}}"#
        );
        assert_eq!(addressed(refused.clone(), None), refused);
        let answer = body(r#"{"jsonrpc":"2.0","id":7,"result":{}}"#);
        assert_eq!(addressed(answer.clone(), Some(b"7")), answer);
    }
}
