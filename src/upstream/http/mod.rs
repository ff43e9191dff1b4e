//! Transports to remote servers: streamable HTTP in both eras, and HTTP+SSE of 2024-11-05.
//!
//! `client` makes the requests, `sse_reader` reads event streams, `streams` resumes them after an
//! interruption, `sse` is the older transport.

mod client;
mod sse;
mod sse_reader;
mod streams;
#[cfg(test)]
mod tests;

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use async_trait::async_trait;
use bytes::Bytes;
use http::header::{HeaderMap, HeaderName, HeaderValue};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{
    batch,
    call_error::CallError,
    message_sink::MessageSink,
    multiplexer::{Cancel, Multiplexer, PendingCall},
    transport::{Call, Reply, ServerMessage, ServerTransport, progress_token, subscription},
};
use client::{EVENTS, JSON, PATIENCE, REVISION, Response, SESSION, Wire, body, content_type};
use portcullis_chain::{Party, Weight, in_turns};
use portcullis_protocol::{
    codec::{Caps, Frame, Kind, era::header_text},
    exchange::{Method, Revision},
};
use portcullis_vault::Secret;

pub(super) use sse::Sse;

const METHOD: HeaderName = HeaderName::from_static("mcp-method");
const NAME: HeaderName = HeaderName::from_static("mcp-name");

/// Transport to one endpoint of streamable HTTP.
pub(super) struct Http {
    line: Arc<Line>,
    /// Ends the standalone stream when dropped.
    _open: DropGuard,
}

struct Line {
    wire: Arc<Wire>,
    multiplexer: Multiplexer,
    closing: CancellationToken,
    /// Whether the server refused the handshake as a server with only HTTP+SSE does.
    older_transport_suspected: AtomicBool,
}

impl Http {
    /// A transport to `url`, with secret headers. Messages without a call go to `sink`.
    ///
    /// # Errors
    /// A [`CallError`] if the URL or a header is invalid. It has the header's name, not its value.
    pub fn new(
        url: &str,
        headers: &[(String, Secret)],
        caps: Caps,
        sink: MessageSink,
    ) -> Result<Self, CallError> {
        let wire = Arc::new(Wire::new(url, headers)?);
        let out = {
            let wire = wire.clone();
            Arc::new(move |text| {
                let wire = wire.clone();
                let sending = async move {
                    let sending = wire.post(text, HeaderMap::new());
                    if !matches!(tokio::time::timeout(PATIENCE, sending).await, Ok(Ok(_))) {
                        tracing::debug!("notification or response could not be sent");
                    }
                };
                Box::pin(sending) as _
            })
        };
        let closing = CancellationToken::new();
        let line = Arc::new(Line {
            wire,
            multiplexer: Multiplexer::new(caps, sink, out),
            closing: closing.clone(),
            older_transport_suspected: AtomicBool::new(false),
        });
        Ok(Self { line, _open: closing.drop_guard() })
    }
}

impl Line {
    fn modern(&self) -> bool {
        self.wire.revision.read().is_some_and(Revision::is_modern)
    }

    /// Ends the connection after the server ended the session. A new handshake is necessary.
    fn forgotten(&self) -> CallError {
        let why = "it ended the session";
        self.multiplexer.die(why.into());
        CallError::Unavailable(why.into())
    }

    fn call_headers(&self, call: &Call) -> Result<HeaderMap, CallError> {
        let mut headers = HeaderMap::new();
        let probing = call.method.as_str() == Method::DISCOVER;
        let modern = self.modern();
        if !modern && !probing {
            return Ok(headers);
        }
        let mut put = |name: HeaderName, value: &str| {
            let value = HeaderValue::try_from(value)
                .map_err(|_| CallError::Misbehaved("a header value cannot be sent".into()))?;
            headers.append(name, value);
            Ok::<_, CallError>(())
        };
        if probing && !modern {
            put(REVISION, Revision::LATEST_MODERN.as_str())?;
        }
        put(METHOD, call.method.as_str())?;
        if let Some(name) = &call.name {
            put(NAME, &header_text(name))?;
        }
        for (name, value) in &call.headers {
            let name = HeaderName::try_from(name).map_err(|_| {
                CallError::Misbehaved(format!("`{name}` is not a legal header name"))
            })?;
            put(name, value)?;
        }
        Ok(headers)
    }

    async fn exchange(
        &self,
        begun: &PendingCall,
        call: &Call,
        text: Bytes,
    ) -> Result<Reply, CallError> {
        let response = self.wire.post(text, self.call_headers(call)?).await?;
        let status = response.status();
        let is_initialize = call.method.as_str() == Method::INITIALIZE;
        if is_initialize
            && status.is_success()
            && let Some(session) = response.headers().get(SESSION)
        {
            *self.wire.session.write() = Some(session.clone());
        }
        if !is_initialize && status.as_u16() == 404 && self.wire.session.read().is_some() {
            self.forgotten();
            return Err(CallError::Forgotten);
        }
        if matches!(status.as_u16(), 401 | 403) {
            return Err(CallError::Unavailable(format!(
                "it answered {status}: check the server's `headers` in the config"
            )));
        }
        if is_initialize && matches!(status.as_u16(), 400 | 404 | 405) {
            return self.refused_handshake(begun, response).await;
        }
        match content_type(&response).as_str() {
            JSON => self.answer(begun, body(response, self.multiplexer.caps.bytes).await?).await,
            EVENTS if status.is_success() => self.answer_stream(begun, response).await,
            _ if !status.is_success() => Err(CallError::Unavailable(format!(
                "it answered {status} without a JSON-RPC error"
            ))),
            other => Err(CallError::Misbehaved(format!("it answered with content type `{other}`"))),
        }
    }

    /// Result of a refused `initialize`: the server's JSON-RPC error, or a sign that it has no such
    /// endpoint.
    async fn refused_handshake(
        &self,
        begun: &PendingCall,
        response: Response,
    ) -> Result<Reply, CallError> {
        let status = response.status();
        let text = body(response, self.multiplexer.caps.bytes).await?;
        match self.answer(begun, text).await {
            Ok(reply) => Ok(reply),
            Err(_) => {
                self.older_transport_suspected.store(true, Ordering::Relaxed);
                Err(CallError::Unavailable(format!(
                    "it answered {status} without a JSON-RPC error"
                )))
            }
        }
    }

    /// Parses a text that must be the response to the call.
    async fn answer(&self, begun: &PendingCall, text: Bytes) -> Result<Reply, CallError> {
        match self.text(begun, text, "its answer").await? {
            Some(reply) => Ok(reply),
            None => Err(CallError::Misbehaved("its answer answers another request".into())),
        }
    }

    /// Processes a text on a call's stream. Returns the response, if it is one.
    async fn text(
        &self,
        begun: &PendingCall,
        text: Bytes,
        what: &str,
    ) -> Result<Option<Reply>, CallError> {
        let (party, weight) =
            (Party::Server(self.multiplexer.sink.server().clone()), Weight::of(&text));
        in_turns(party, weight, self.messages(begun, text, what)).await
    }

    async fn messages(
        &self,
        begun: &PendingCall,
        text: Bytes,
        what: &str,
    ) -> Result<Option<Reply>, CallError> {
        let misbehaved = |flaw| CallError::Misbehaved(format!("{what}: {flaw}"));
        let caps = self.multiplexer.caps;
        let mut reply = None;
        for message in
            batch::messages(text, caps, self.multiplexer.revision()).map_err(misbehaved)?
        {
            let frame = Frame::parse(message, caps).map_err(misbehaved)?;
            if let Some(answer) = self.frame(begun, frame).await? {
                reply = Some(answer);
            }
        }
        Ok(reply)
    }

    async fn frame(&self, begun: &PendingCall, frame: Frame) -> Result<Option<Reply>, CallError> {
        let ours = begun.id.to_string();
        match frame.kind {
            Kind::Result { id, result } if id.raw() == &ours => Ok(Some(Reply::Result(result))),
            Kind::Error { id, error } if id.as_ref().is_none_or(|id| id.raw() == &ours) => {
                Ok(Some(Reply::Error(error)))
            }
            Kind::Result { .. } | Kind::Error { .. } => {
                Err(CallError::Misbehaved("its answer answers another request".into()))
            }
            Kind::Notification { method, params } => {
                self.notification(begun, method, params).await;
                Ok(None)
            }
            Kind::Request { id, method, params } => {
                if let Some(message) = self.multiplexer.request(Some(begun.id), id, method, params)
                {
                    self.deliver(begun, message).await;
                }
                Ok(None)
            }
        }
    }

    async fn notification(&self, begun: &PendingCall, method: Method, params: Option<Bytes>) {
        if subscription(params.as_ref()).is_some_and(|named| named != begun.id) {
            return tracing::debug!("server notification for a subscription of another stream");
        }
        match method.as_str() {
            Method::CANCELLED => {
                return self.multiplexer.take_back(Some(begun.id), params.as_ref());
            }
            // Progress without a requested token is dropped.
            Method::PROGRESS
                if begun.original_ids.token.is_none()
                    || progress_token(params.as_ref()) != Some(begun.id) =>
            {
                return;
            }
            _ => {}
        }
        let params = begun.original_ids.restored(params);
        self.deliver(begun, ServerMessage::Notification { method, params }).await;
    }

    /// Delivers a message of a call's own stream.
    async fn deliver(&self, begun: &PendingCall, message: ServerMessage) {
        match &begun.messages {
            Some(call) if begun.original_ids.subscribes || !message.is_of_server() => {
                self.multiplexer.sink.send_to_stream(call, message).await;
            }
            _ => self.multiplexer.sink.send(message),
        }
    }
}

#[async_trait]
impl ServerTransport for Http {
    async fn call(&self, call: Call) -> Result<Reply, CallError> {
        let multiplexer = &self.line.multiplexer;
        // Only the end of the session ends this connection.
        if multiplexer.dead().is_some() {
            return Err(CallError::Forgotten);
        }
        let (mut begun, text) = multiplexer.begin(&call);
        // A modern server sees the closed stream; `initialize` cannot be cancelled.
        let cancels = self.line.wire.session.read().is_some() && !self.line.modern();
        let mut guard = Cancel { multiplexer, id: begun.id, cancels };
        // A response on the standalone stream is valid, too.
        let (_, never) = tokio::sync::oneshot::channel();
        let beside = std::mem::replace(&mut begun.answer, never);
        let work = async {
            tokio::select! {
                reply = self.line.exchange(&begun, &call, text) => reply,
                Ok(reply) = beside => reply,
            }
        };
        let reply = call.clock.bound(work).await;
        guard.cancels &= matches!(reply, Err(CallError::Timeout(_)));
        if let Ok(reply) = &reply {
            multiplexer.answered(begun.id, &begun.original_ids, reply);
        }
        reply
    }

    async fn notify(&self, method: &str, params: Bytes) -> Result<(), CallError> {
        let sent = self.line.wire.post(Frame::notification(method, &params), HeaderMap::new());
        match tokio::time::timeout(PATIENCE, sent).await {
            Ok(Ok(response)) => {
                let status = response.status().as_u16();
                let session = self.line.wire.session.read().is_some();
                if status == 404 && session { Err(self.line.forgotten()) } else { Ok(()) }
            }
            Ok(Err(failure)) => Err(failure),
            Err(_) => Err(CallError::Timeout(PATIENCE)),
        }
    }

    fn agreed(&self, revision: Revision) {
        *self.line.wire.revision.write() = Some(revision);
        self.line.multiplexer.agreed(revision);
    }

    fn dead(&self) -> Option<String> {
        self.line.multiplexer.dead()
    }

    fn older_transport_suspected(&self) -> bool {
        self.line.older_transport_suspected.load(Ordering::Relaxed)
    }

    fn listen(&self) {
        // The revision without sessions has no such stream.
        if !self.line.modern() {
            tokio::spawn(self.line.clone().listen());
        }
    }

    async fn leave(&self) {
        self.line.closing.cancel();
        self.line.wire.leave().await;
    }
}
