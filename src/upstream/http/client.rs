//! HTTP requests to one server: URL and headers.

use std::{error::Error, time::Duration};

use bytes::{Bytes, BytesMut};
use http::{
    Method as Verb, Request, Uri,
    header::{ACCEPT, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue},
};
use http_body_util::{BodyExt, Full};
use hyper::body::{Body, Incoming};
use hyper_rustls::{HttpsConnector, MaybeHttpsStream};
use hyper_util::{
    client::legacy::{self, connect::HttpConnector},
    rt::{TokioExecutor, TokioIo, TokioTimer},
};
use parking_lot::RwLock;
use rustls::ClientConfig;
use rustls_platform_verifier::ConfigVerifierExt;
use tokio::net::TcpStream;
use tower::{BoxError, ServiceExt, timeout::Timeout, util::BoxCloneSyncService};
use url::Url;

use super::super::call_error::CallError;
use portcullis_protocol::exchange::Revision;
use portcullis_vault::Secret;

pub(super) const SESSION: HeaderName = HeaderName::from_static("mcp-session-id");
pub(super) const REVISION: HeaderName = HeaderName::from_static("mcp-protocol-version");
const LAST_EVENT: HeaderName = HeaderName::from_static("last-event-id");
/// Longest wait for the sending of a message without a response.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);
/// Longest wait for a connection, with its TLS handshake.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Silence after which a connection is probed, interval of the probes, and their number.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
const PROBES: u32 = 3;
/// Longest wait until the peer's system acknowledges what was sent.
const UNACKNOWLEDGED: Duration = Duration::from_secs(30);
/// Time after which an unused connection is closed.
const IDLE: Duration = Duration::from_secs(90);
/// Content types of responses.
pub(super) const JSON: &str = "application/json";
pub(super) const EVENTS: &str = "text/event-stream";
/// Bytes of a body for which memory is reserved because its header announces them.
const RESERVED: usize = 1 << 20;
/// Bytes of a body up to which it is copied out of the read buffer.
const SMALL: usize = 4 << 10;

/// Response of a server.
pub(super) type Response = http::Response<Incoming>;

/// Connects to a server.
type Connector = BoxCloneSyncService<Uri, MaybeHttpsStream<TokioIo<TcpStream>>, BoxError>;

/// HTTP client of one endpoint. It follows no redirect and uses no proxy of the environment:
/// either would send the operator's credentials to a host that the config does not name.
pub(super) struct Wire {
    client: legacy::Client<Connector, Full<Bytes>>,
    url: Url,
    uri: Uri,
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
        let uri = uri(&url)?;
        let headers = portcullis_vault::headers(headers)
            .map_err(|illegal| unavailable(illegal.to_string()))?;
        let connector = connector(url.scheme() == "https").map_err(|error| {
            unavailable(format!("the HTTP client could not be created: {error}"))
        })?;
        let client = legacy::Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE)
            .build(connector);
        let (session, revision) = (RwLock::default(), RwLock::default());
        Ok(Self { client, url, uri, headers, session, revision })
    }

    /// URL of the endpoint.
    pub fn url(&self) -> &Url {
        &self.url
    }

    async fn send(
        &self,
        verb: Verb,
        uri: Uri,
        extra: HeaderMap,
        body: Option<Bytes>,
    ) -> Result<Response, CallError> {
        let mut headers = self.headers.clone();
        headers.extend(extra);
        if body.is_some() {
            headers.insert(CONTENT_TYPE, HeaderValue::from_static(JSON));
        }
        if let Some(session) = &*self.session.read() {
            headers.insert(SESSION, session.clone());
        }
        if let Some(revision) = *self.revision.read() {
            headers.insert(REVISION, HeaderValue::from_static(revision.as_str()));
        }
        let mut request = Request::new(Full::new(body.unwrap_or_default()));
        *request.method_mut() = verb;
        *request.uri_mut() = uri;
        *request.headers_mut() = headers;
        self.client.request(request).await.map_err(|error| {
            CallError::Unavailable(format!("it cannot be reached: {}", causes(&error)))
        })
    }

    /// Posts a message.
    pub async fn post(&self, text: Bytes, extra: HeaderMap) -> Result<Response, CallError> {
        self.post_to(self.uri.clone(), text, extra).await
    }

    /// Posts a message to another URI of the same server.
    pub async fn post_to(
        &self,
        uri: Uri,
        text: Bytes,
        mut extra: HeaderMap,
    ) -> Result<Response, CallError> {
        let taken = HeaderValue::from_static("application/json, text/event-stream");
        extra.insert(ACCEPT, taken);
        self.send(Verb::POST, uri, extra, Some(text)).await
    }

    /// Opens an event stream, or resumes one after an event.
    pub async fn listen(&self, last: Option<&HeaderValue>) -> Result<Response, CallError> {
        let mut headers = HeaderMap::new();
        headers.insert(ACCEPT, HeaderValue::from_static(EVENTS));
        if let Some(last) = last {
            headers.insert(LAST_EVENT, last.clone());
        }
        self.send(Verb::GET, self.uri.clone(), headers, None).await
    }

    /// Ends the session, if there is one.
    pub async fn leave(&self) {
        if self.session.read().is_none() {
            return;
        }
        let leaving = self.send(Verb::DELETE, self.uri.clone(), HeaderMap::new(), None);
        // A server need not support this; its answer has no effect.
        let _ = tokio::time::timeout(PATIENCE, leaving).await;
        *self.session.write() = None;
    }
}

/// Connects to servers. With TLS, they are verified by the certificates of the system at this time.
fn connector(uses_tls: bool) -> Result<Connector, rustls::Error> {
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(!uses_tls);
    tcp.set_nodelay(true);
    // Of several addresses, each gets its share of this time.
    tcp.set_connect_timeout(Some(CONNECT_TIMEOUT));
    tcp.set_keepalive(Some(KEEP_ALIVE));
    tcp.set_keepalive_interval(Some(KEEP_ALIVE));
    tcp.set_keepalive_retries(Some(PROBES));
    tcp.set_tcp_user_timeout(Some(UNACKNOWLEDGED));
    if !uses_tls {
        return Ok(Connector::new(Timeout::new(
            tcp.map_response(MaybeHttpsStream::Http),
            CONNECT_TIMEOUT,
        )));
    }
    let mut tls = ClientConfig::with_platform_verifier()?;
    tls.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Connector::new(Timeout::new(HttpsConnector::from((tcp, tls)), CONNECT_TIMEOUT)))
}

/// A URL in the form that requests need.
pub(super) fn uri(url: &Url) -> Result<Uri, CallError> {
    Uri::try_from(url.as_str())
        .map_err(|e| CallError::Unavailable(format!("its URL cannot be requested: {e}")))
}

/// Content type of a response, without parameters.
pub(super) fn content_type(response: &Response) -> String {
    let kind = response.headers().get(CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or("");
    kind.split(';').next().unwrap_or("").trim().to_ascii_lowercase()
}

/// Body of a response, of at most `most` bytes.
pub(super) async fn body(response: Response, most: usize) -> Result<Bytes, CallError> {
    let mut body = response.into_body();
    let Some(first) = next_chunk(&mut body).await.transpose()? else { return Ok(Bytes::new()) };
    let too_large = || CallError::Misbehaved(format!("its answer has more than {most} bytes"));
    // The header's length, if there is one, without what was read.
    let announced = usize::try_from(body.size_hint().lower()).unwrap_or(usize::MAX);
    if first.len().saturating_add(announced) > most {
        return Err(too_large());
    }
    if body.is_end_stream() {
        // A part of the read buffer would keep all of it.
        return Ok(if first.len() > SMALL { first } else { Bytes::copy_from_slice(&first) });
    }
    let announced = announced.min(RESERVED);
    let mut text = BytesMut::with_capacity(first.len() + announced);
    text.extend_from_slice(&first);
    while let Some(chunk) = next_chunk(&mut body).await.transpose()? {
        if text.len() + chunk.len() > most {
            return Err(too_large());
        }
        text.extend_from_slice(&chunk);
    }
    Ok(text.freeze())
}

/// Next part of a body. `None` at its end.
pub(super) async fn next_chunk(body: &mut Incoming) -> Option<Result<Bytes, CallError>> {
    loop {
        match body.frame().await? {
            Ok(frame) => {
                // Trailers have no meaning here.
                if let Ok(chunk) = frame.into_data() {
                    return Some(Ok(chunk));
                }
            }
            Err(error) => {
                let why = format!("its answer broke off: {}", causes(&error));
                return Some(Err(CallError::Unavailable(why)));
            }
        }
    }
}

/// An error with its causes: the text alone hides why a connection failed.
fn causes(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}
