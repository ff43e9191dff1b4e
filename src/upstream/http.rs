//! The line to a remote server over streamable HTTP, in either era.

use std::sync::{
    Arc, OnceLock,
    atomic::{AtomicU64, AtomicUsize, Ordering},
};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt};
use parking_lot::RwLock;
use reqwest::header::{ACCEPT, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use sse_stream::SseStream;
use tokio::sync::oneshot;

use super::{
    asked::Asked,
    ear::Ear,
    link::{
        Call, Failure, Link, Mine, Reply, Said, nobody, pong, progress_token, subscription,
        tells_of_lists,
    },
};
use crate::{
    codec::{Caps, Frame, Kind, era::header_text},
    exchange::{Method, Revision},
    vault::Secret,
};

const SESSION: HeaderName = HeaderName::from_static("mcp-session-id");
const REVISION: HeaderName = HeaderName::from_static("mcp-protocol-version");
const METHOD: HeaderName = HeaderName::from_static("mcp-method");
const NAME: HeaderName = HeaderName::from_static("mcp-name");

/// A line to one endpoint.
pub struct Http {
    client: reqwest::Client,
    url: reqwest::Url,
    /// The operator's own headers: the server's credentials, never the client's.
    headers: HeaderMap,
    caps: Caps,
    next: AtomicU64,
    session: RwLock<Option<HeaderValue>>,
    revision: RwLock<Option<Revision>>,
    dead: OnceLock<String>,
    ear: Ear,
    asked: Asked,
}

impl Http {
    /// A line to `url`, with secret headers.
    ///
    /// # Errors
    /// A [`Failure`] where the URL or a header is not legal. It names the header, never its value.
    pub fn new(
        url: &str,
        headers: &[(String, Secret)],
        caps: Caps,
        ear: Ear,
    ) -> Result<Self, Failure> {
        let unavailable = |what: String| Failure::Unavailable(what);
        let url =
            reqwest::Url::parse(url).map_err(|e| unavailable(format!("its URL is bad: {e}")))?;
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            let key = HeaderName::try_from(name)
                .map_err(|_| unavailable(format!("`{name}` is not a legal header name")))?;
            let mut value = HeaderValue::try_from(value.expose())
                .map_err(|_| unavailable(format!("the value of header `{name}` is not legal")))?;
            value.set_sensitive(true);
            map.insert(key, value);
        }
        // A redirect or a proxy of the environment would carry the operator's credentials to a place
        // that the config does not name.
        let client = reqwest::Client::builder()
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(std::time::Duration::from_secs(10))
            .build()
            .map_err(|e| unavailable(format!("no HTTP client could be made: {e}")))?;
        Ok(Self {
            client,
            url,
            headers: map,
            caps,
            next: AtomicU64::new(1),
            session: RwLock::default(),
            revision: RwLock::default(),
            dead: OnceLock::new(),
            ear,
            asked: Asked::default(),
        })
    }

    async fn post(&self, text: Bytes, extra: HeaderMap) -> Result<reqwest::Response, Failure> {
        let mut request = self
            .client
            .post(self.url.clone())
            .headers(self.headers.clone())
            .headers(extra)
            .header(CONTENT_TYPE, "application/json")
            .header(ACCEPT, "application/json, text/event-stream")
            .body(text);
        if let Some(session) = self.session.read().clone() {
            request = request.header(SESSION, session);
        }
        if let Some(revision) = *self.revision.read() {
            request = request.header(REVISION, revision.as_str());
        }
        request.send().await.map_err(|error| {
            Failure::Unavailable(format!("it cannot be reached: {}", causes(&error.without_url())))
        })
    }

    fn call_headers(&self, call: &Call) -> Result<HeaderMap, Failure> {
        let mut headers = HeaderMap::new();
        let probing = call.method.as_str() == Method::DISCOVER;
        let modern = self.revision.read().is_some_and(Revision::is_modern);
        if !modern && !probing {
            return Ok(headers);
        }
        let mut put = |name: HeaderName, value: &str| {
            let value = HeaderValue::try_from(value)
                .map_err(|_| Failure::Misbehaved("a header value cannot be sent".into()))?;
            headers.append(name, value);
            Ok::<_, Failure>(())
        };
        if probing && !modern {
            put(REVISION, Revision::LATEST_MODERN.as_str())?;
        }
        put(METHOD, call.method.as_str())?;
        if let Some(name) = &call.name {
            put(NAME, &header_text(name))?;
        }
        for (name, value) in &call.headers {
            let name = HeaderName::try_from(name)
                .map_err(|_| Failure::Misbehaved(format!("`{name}` is not a legal header name")))?;
            put(name, value)?;
        }
        Ok(headers)
    }

    async fn exchange(
        &self,
        id: u64,
        mine: Mine,
        call: Call,
        text: Bytes,
    ) -> Result<Reply, Failure> {
        let response = self.post(text, self.call_headers(&call)?).await?;
        let status = response.status();
        if call.method.as_str() == Method::INITIALIZE
            && let Some(session) = response.headers().get(SESSION)
        {
            *self.session.write() = Some(session.clone());
        }
        if status.as_u16() == 404 && self.session.read().is_some() {
            let _ = self.dead.set("it ended the session".into());
            return Err(Failure::Unavailable("it ended the session".into()));
        }
        if matches!(status.as_u16(), 401 | 403) {
            return Err(Failure::Unavailable(format!(
                "it answered {status}: check the server's `headers` in the config"
            )));
        }
        let kind = response.headers().get(CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or("");
        let kind = kind.split(';').next().unwrap_or("").trim().to_ascii_lowercase();
        match kind.as_str() {
            "application/json" => {
                let text = self.body(response).await?;
                match Frame::parse(text, self.caps).map(|frame| frame.kind) {
                    Ok(Kind::Result { id: got, result }) if got.raw() == &id.to_string() => {
                        Ok(Reply::Result(result))
                    }
                    Ok(Kind::Error { error, .. }) => Ok(Reply::Error(error)),
                    Ok(_) => Err(Failure::Misbehaved("its answer answers another request".into())),
                    Err(flaw) => Err(Failure::Misbehaved(format!("its answer: {flaw}"))),
                }
            }
            "text/event-stream" if status.is_success() => {
                self.stream(id, mine, call, response).await
            }
            _ if !status.is_success() => {
                Err(Failure::Unavailable(format!("it answered {status} without a JSON-RPC error")))
            }
            other => Err(Failure::Misbehaved(format!("it answered with content type `{other}`"))),
        }
    }

    async fn body(&self, response: reqwest::Response) -> Result<Bytes, Failure> {
        let mut body = bytes::BytesMut::new();
        let mut chunks = response.bytes_stream();
        while let Some(chunk) = chunks.next().await {
            let chunk = chunk.map_err(|e| broken(&e))?;
            if body.len() + chunk.len() > self.caps.bytes {
                return Err(self.too_large());
            }
            body.extend_from_slice(&chunk);
        }
        Ok(body.freeze())
    }

    fn too_large(&self) -> Failure {
        Failure::Misbehaved(format!("its answer has more than {} bytes", self.caps.bytes))
    }

    /// Reads events until the answer. Every event is a message of its own and parsed as strictly
    /// as any other.
    async fn stream(
        &self,
        id: u64,
        mine: Mine,
        call: Call,
        response: reqwest::Response,
    ) -> Result<Reply, Failure> {
        // Bytes since the last event: the reader below buffers one event whole.
        let since = Arc::new(AtomicUsize::new(0));
        let (counter, cap) = (since.clone(), self.caps.bytes);
        let chunks = response.bytes_stream().map_err(|e| broken(&e)).map(move |chunk| {
            let chunk = chunk?;
            if counter.fetch_add(chunk.len(), Ordering::Relaxed) + chunk.len() > cap {
                return Err(Failure::Misbehaved(format!(
                    "an event of it has more than {cap} bytes"
                )));
            }
            Ok(chunk)
        });
        let mut events = SseStream::from_bytes_stream(Box::pin(chunks));
        while let Some(event) = events.next().await {
            let event =
                event.map_err(|e| Failure::Misbehaved(format!("its event stream broke: {e}")))?;
            since.store(0, Ordering::Relaxed);
            let Some(data) = event.data.filter(|data| !data.is_empty()) else { continue };
            let frame = Frame::parse(data.into(), self.caps)
                .map_err(|flaw| Failure::Misbehaved(format!("an event of it: {flaw}")))?;
            match frame.kind {
                Kind::Result { id: got, result } if got.raw() == &id.to_string() => {
                    return Ok(Reply::Result(result));
                }
                Kind::Error { id: got, error }
                    if got.as_ref().is_none_or(|got| got.raw() == &id.to_string()) =>
                {
                    return Ok(Reply::Error(error));
                }
                Kind::Result { .. } | Kind::Error { .. } => {
                    return Err(Failure::Misbehaved("its answer answers another request".into()));
                }
                Kind::Notification { method, params } => {
                    self.notification(id, &mine, &call, method, params).await;
                }
                Kind::Request { id, method, params } => {
                    self.request(&call, id, method, params).await;
                }
            }
        }
        Err(Failure::Unavailable("its event stream ended before the answer".into()))
    }

    async fn notification(
        &self,
        id: u64,
        mine: &Mine,
        call: &Call,
        method: Method,
        params: Option<Bytes>,
    ) {
        if let Some(named) = subscription(params.as_ref())
            && named != id
        {
            return tracing::debug!("a server tells of a subscription on another's stream");
        }
        match method.as_str() {
            Method::CANCELLED => return self.asked.take_back(params.as_ref()),
            // Progress that nobody asked for is dropped.
            Method::PROGRESS
                if mine.token.is_none() || progress_token(params.as_ref()) != Some(id) =>
            {
                return;
            }
            _ => {}
        }
        let lists = tells_of_lists(&method) && !mine.subscribes;
        let said = Said::Notification { method, params: mine.restored(params) };
        match &call.said {
            Some(call) if !lists => self.ear.tell_call(call, said).await,
            _ => self.ear.tell(said),
        }
    }

    async fn request(
        &self,
        call: &Call,
        id: crate::codec::Id,
        method: Method,
        params: Option<Bytes>,
    ) {
        if method.as_str() == Method::PING {
            return self.answer(pong(&id)).await;
        }
        let (place, text) = oneshot::channel();
        let said = Said::Request { id: id.clone(), method, params, answer: place };
        match &call.said {
            Some(call) => self.ear.tell_call(call, said).await,
            None => self.ear.tell(said),
        }
        self.answer(text.await.unwrap_or_else(|_| nobody(&id))).await;
    }

    async fn answer(&self, text: Bytes) {
        if let Err(failure) = self.post(text, HeaderMap::new()).await {
            tracing::debug!(%failure, "an answer to a server's request could not be sent");
        }
    }
}

#[async_trait]
impl Link for Http {
    async fn call(&self, call: Call) -> Result<Reply, Failure> {
        if let Some(why) = self.dead.get() {
            return Err(Failure::Unavailable(why.clone()));
        }
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let clock = call.clock.clone();
        let (text, mine) = call.text(id);
        match clock.bound(self.exchange(id, mine, call, text)).await {
            Err(failure @ Failure::Timeout(_)) => {
                if self.session.read().is_some() {
                    let params = format!("{{\"requestId\":{id},\"reason\":\"timed out\"}}");
                    let _ = self.notify(Method::CANCELLED, params.into()).await;
                }
                Err(failure)
            }
            reply => reply,
        }
    }

    async fn notify(&self, method: &str, params: Bytes) -> Result<(), Failure> {
        let limit = std::time::Duration::from_secs(5);
        let sent = self.post(Frame::notification(method, &params), HeaderMap::new());
        match tokio::time::timeout(limit, sent).await {
            Ok(response) => response.map(drop),
            Err(_) => Err(Failure::Timeout(limit)),
        }
    }

    fn agreed(&self, revision: Revision) {
        *self.revision.write() = Some(revision);
    }

    fn dead(&self) -> Option<String> {
        self.dead.get().cloned()
    }
}

fn broken(error: &reqwest::Error) -> Failure {
    Failure::Unavailable(format!("its answer broke off: {}", causes(error)))
}

/// An error with its causes: reqwest's own words hide why a connection failed.
fn causes(error: &reqwest::Error) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}
