//! HTTP requests to one server: URL and headers.

use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use parking_lot::RwLock;
use reqwest::{
    Method as Verb, Response, Url,
    header::{ACCEPT, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue},
};

use super::super::call_error::CallError;
use portcullis_protocol::exchange::Revision;
use portcullis_vault::Secret;

pub(super) const SESSION: HeaderName = HeaderName::from_static("mcp-session-id");
pub(super) const REVISION: HeaderName = HeaderName::from_static("mcp-protocol-version");
const LAST_EVENT: HeaderName = HeaderName::from_static("last-event-id");
/// Longest wait for the sending of a message without a response.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);
/// Content types of responses.
pub(super) const JSON: &str = "application/json";
pub(super) const EVENTS: &str = "text/event-stream";

/// HTTP client of one endpoint.
pub(super) struct Wire {
    client: reqwest::Client,
    url: Url,
    /// The operator's headers: credentials for the server, never the client's.
    headers: HeaderMap,
    pub session: RwLock<Option<HeaderValue>>,
    pub revision: RwLock<Option<Revision>>,
}

impl Wire {
    /// A client of `url`, with secret headers.
    ///
    /// # Errors
    /// A [`CallError`] if the URL or a header is invalid. It has the header's name, not its value.
    pub fn new(url: &str, headers: &[(String, Secret)]) -> Result<Self, CallError> {
        let unavailable = |what: String| CallError::Unavailable(what);
        let url = Url::parse(url).map_err(|e| unavailable(format!("its URL is bad: {e}")))?;
        let map = portcullis_vault::headers(headers)
            .map_err(|illegal| unavailable(illegal.to_string()))?;
        // A redirect, or a proxy from the environment, would send the operator's credentials to a
        // host that the config does not name.
        let client = reqwest::Client::builder()
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(Duration::from_secs(10))
            .build()
            .map_err(|e| unavailable(format!("the HTTP client could not be created: {e}")))?;
        let (session, revision) = (RwLock::default(), RwLock::default());
        Ok(Self { client, url, headers: map, session, revision })
    }

    /// URL of the endpoint.
    pub fn url(&self) -> &Url {
        &self.url
    }

    async fn send(
        &self,
        verb: Verb,
        url: Url,
        extra: HeaderMap,
        body: Option<Bytes>,
    ) -> Result<Response, CallError> {
        let mut request =
            self.client.request(verb, url).headers(self.headers.clone()).headers(extra);
        if let Some(body) = body {
            request = request.header(CONTENT_TYPE, JSON).body(body);
        }
        if let Some(session) = self.session.read().clone() {
            request = request.header(SESSION, session);
        }
        if let Some(revision) = *self.revision.read() {
            request = request.header(REVISION, revision.as_str());
        }
        request.send().await.map_err(|error| {
            CallError::Unavailable(format!(
                "it cannot be reached: {}",
                causes(&error.without_url())
            ))
        })
    }

    /// Posts a message.
    pub async fn post(&self, text: Bytes, extra: HeaderMap) -> Result<Response, CallError> {
        self.post_to(self.url.clone(), text, extra).await
    }

    /// Posts a message to another URL of the same server.
    pub async fn post_to(
        &self,
        url: Url,
        text: Bytes,
        mut extra: HeaderMap,
    ) -> Result<Response, CallError> {
        let taken = HeaderValue::from_static("application/json, text/event-stream");
        extra.insert(ACCEPT, taken);
        self.send(Verb::POST, url, extra, Some(text)).await
    }

    /// Opens an event stream, or resumes one after an event.
    pub async fn listen(&self, last: Option<&HeaderValue>) -> Result<Response, CallError> {
        let mut headers = HeaderMap::new();
        headers.insert(ACCEPT, HeaderValue::from_static(EVENTS));
        if let Some(last) = last {
            headers.insert(LAST_EVENT, last.clone());
        }
        self.send(Verb::GET, self.url.clone(), headers, None).await
    }

    /// Ends the session, if there is one.
    pub async fn leave(&self) {
        if self.session.read().is_none() {
            return;
        }
        let leaving = self.send(Verb::DELETE, self.url.clone(), HeaderMap::new(), None);
        // A server need not support this; its answer has no effect.
        let _ = tokio::time::timeout(PATIENCE, leaving).await;
        *self.session.write() = None;
    }
}

/// Content type of a response, without parameters.
pub(super) fn content_type(response: &Response) -> String {
    let kind = response.headers().get(CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or("");
    kind.split(';').next().unwrap_or("").trim().to_ascii_lowercase()
}

/// Body of a response, of at most `most` bytes.
pub(super) async fn body(response: Response, most: usize) -> Result<Bytes, CallError> {
    let mut body = bytes::BytesMut::new();
    let mut chunks = response.bytes_stream();
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk.map_err(broken)?;
        if body.len() + chunk.len() > most {
            return Err(CallError::Misbehaved(format!("its answer has more than {most} bytes")));
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body.freeze())
}

pub(super) fn broken(error: reqwest::Error) -> CallError {
    CallError::Unavailable(format!("its answer broke off: {}", causes(&error.without_url())))
}

/// An error with its causes: reqwest's text hides why a connection failed.
fn causes(error: &reqwest::Error) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}
