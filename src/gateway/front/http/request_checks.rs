//! Checks of a request's headers and body before it becomes a message.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use axum::{
    body::{Body, HttpBody},
    http::{HeaderMap, Uri, header},
};
use bytes::Bytes;
use http_body_util::BodyExt;

use crate::{
    Incoming,
    front::revision::{negotiate, unsupported},
    session::Session,
};
use portcullis_config::Listen;
use portcullis_protocol::{
    codec::{
        Frame, Kind, Object,
        era::{META_CAPABILITIES, META_REVISION},
        headers::{PARAM, decoded},
    },
    exchange::{Method, Revision, Transport},
    names::SessionId,
    refusal::{Code, Refusal},
};

/// Time limit of a body.
const BODY: Duration = Duration::from_secs(30);

/// The accepted `Host` and `Origin` values.
pub(super) struct Hosts {
    hosts: Vec<String>,
    origins: Vec<String>,
}

impl Hosts {
    pub fn new(listen: &Listen, address: SocketAddr) -> Self {
        let port = address.port();
        let mut hosts: Vec<String> =
            listen.allowed_hosts.iter().map(|h| h.to_lowercase()).collect();
        hosts.push(address.to_string());
        if address.ip().is_loopback() {
            hosts.extend(["localhost", "127.0.0.1", "[::1]"].map(|host| format!("{host}:{port}")));
        }
        let origins = listen.allowed_origins.iter().map(|o| o.to_lowercase()).collect();
        Self { hosts, origins }
    }

    /// Checks the headers against DNS rebinding: a web page can send requests here under its own
    /// name that resolves to this address, but only with its own `Host` and `Origin`.
    pub fn check(&self, headers: &HeaderMap, uri: &Uri) -> Result<(), Refusal> {
        let refused =
            |what: &str| Refusal::new(Code::ForbiddenOrigin, format!("this {what} is not allowed"));
        let host = match (single(headers, &header::HOST), uri.authority()) {
            (Ok(Some(host)), None) => host,
            // A URI can name the host, too (RFC 9112, 3.2.2); then they must agree.
            (Ok(None), Some(authority)) => authority.as_str(),
            (Ok(Some(host)), Some(authority)) if host.eq_ignore_ascii_case(authority.as_str()) => {
                host
            }
            _ => return Err(refused("host")),
        };
        if !self.hosts.iter().any(|own| own.eq_ignore_ascii_case(host)) {
            return Err(refused("host"));
        }
        match single(headers, &header::ORIGIN) {
            Ok(None) => Ok(()),
            Ok(Some(origin)) if self.origins.contains(&origin.to_lowercase()) => Ok(()),
            // A page of this same host, which was checked above and serves no pages.
            Ok(Some(origin))
                if origin
                    .split_once("://")
                    .is_some_and(|(_, authority)| authority.eq_ignore_ascii_case(host)) =>
            {
                Ok(())
            }
            _ => Err(refused("origin")),
        }
    }
}

/// The only value of a header, if any; an error if there are several or it is not text.
fn single<'a>(headers: &'a HeaderMap, name: &header::HeaderName) -> Result<Option<&'a str>, ()> {
    let mut values = headers.get_all(name).iter();
    match (values.next(), values.next()) {
        (None, _) => Ok(None),
        (Some(value), None) => value.to_str().map(Some).map_err(|_| ()),
        _ => Err(()),
    }
}

/// Checks a POST's headers. Returns whether the client accepts an event stream.
pub(super) fn content(headers: &HeaderMap) -> Result<bool, Refusal> {
    is_json(headers)?;
    let (json, stream) =
        (accepts(headers, "application/json"), accepts(headers, "text/event-stream"));
    if json { Ok(stream) } else { Err(not_acceptable("application/json")) }
}

/// Checks `Content-Type` of a POST.
pub(in crate::front) fn is_json(headers: &HeaderMap) -> Result<(), Refusal> {
    let kind = headers.get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or("");
    let kind = kind.split(';').next().unwrap_or("").trim();
    if !kind.eq_ignore_ascii_case("application/json")
        || headers.contains_key(header::CONTENT_ENCODING)
    {
        return Err(Refusal::new(
            Code::UnsupportedMedia,
            "send `Content-Type: application/json`, without a `Content-Encoding`",
        ));
    }
    Ok(())
}

/// The refusal if `Accept` does not include the available media type.
pub(super) fn not_acceptable(kind: &str) -> Refusal {
    Refusal::new(Code::NotAcceptable, format!("`Accept` must name `{kind}`"))
}

/// Whether `Accept` includes a media type. Without the header, all types are accepted.
pub(super) fn accepts(headers: &HeaderMap, wanted: &str) -> bool {
    let mut ranges = headers
        .get_all(header::ACCEPT)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(|range| range.split(';').next().unwrap_or("").trim())
        .peekable();
    if ranges.peek().is_none() {
        return true;
    }
    let group = wanted.split('/').next().unwrap_or("");
    ranges.any(|range| {
        let is_group = |kind: &str| kind == "*" || kind.eq_ignore_ascii_case(group);
        range.eq_ignore_ascii_case(wanted) || range.strip_suffix("/*").is_some_and(is_group)
    })
}

/// Reads a body of at most `most` bytes. A longer announced body is refused at once.
pub(super) async fn body(
    mut body: Body,
    most: usize,
    mut incoming: Incoming<'_>,
) -> Result<Bytes, Refusal> {
    let too_large =
        || Refusal::new(Code::TooLarge, format!("the message has more than {most} bytes"));
    if usize::try_from(body.size_hint().lower()).map_or(true, |announced| announced > most) {
        return Err(too_large());
    }
    let read = async {
        while let Some(frame) = body.frame().await {
            let frame =
                frame.map_err(|_| Refusal::new(Code::Malformed, "the request body ended early"))?;
            // Trailers are ignored.
            let Ok(data) = frame.into_data() else { continue };
            if incoming.received() + data.len() > most {
                return Err(too_large());
            }
            incoming.push(&data).await?;
        }
        Ok(incoming.finish())
    };
    let late = |_| Err(Refusal::new(Code::Malformed, "the request body did not arrive in time"));
    tokio::time::timeout(BODY, read).await.unwrap_or_else(late)
}

/// Era of a message.
#[derive(Debug)]
pub(super) enum DetectedEra {
    /// `initialize`, with the negotiated revision.
    Initialize(Revision),
    /// In a legacy session, with the revision of the header, if any.
    Legacy { session: SessionId, revision: Option<Revision> },
    /// Stateless: 2026-07-28.
    Modern,
}

/// Detects the era of a message, and checks a modern one against its headers.
pub(super) fn speaks(headers: &HeaderMap, frame: &Frame) -> Result<DetectedEra, Refusal> {
    let version = header_text(headers, "mcp-protocol-version")?;
    let method = match &frame.kind {
        Kind::Request { method, .. } | Kind::Notification { method, .. } => method.as_str(),
        Kind::Result { .. } | Kind::Error { .. } => "",
    };
    let params = frame.params();
    let meta = params.and_then(|params| params.object("_meta"));
    let claimed = meta.as_ref().and_then(|meta| meta.string(META_REVISION));
    if method == Method::INITIALIZE && claimed.is_none() {
        return Ok(DetectedEra::Initialize(negotiate(params)?));
    }
    let session = header_text(headers, "mcp-session-id")?.map(|id| SessionId::presented(&id));
    let revision = named(version.as_deref())?;
    let modern = revision.is_some_and(Revision::is_modern) || claimed.is_some();
    if !modern {
        return match session {
            Some(session) => Ok(DetectedEra::Legacy { session, revision }),
            None => Err(Refusal::new(
                Code::InvalidRequest,
                "begin with `initialize`, or speak 2026-07-28 (`MCP-Protocol-Version` and `_meta`)",
            )),
        };
    }
    if session.is_some() {
        return Err(Refusal::new(Code::InvalidRequest, "revision 2026-07-28 has no sessions"));
    }
    if matches!(frame.kind, Kind::Request { .. }) {
        modern_request(headers, version, claimed, meta.as_ref(), method, params)?;
    }
    Ok(DetectedEra::Modern)
}

/// The revision of the header, if any.
pub(super) fn revision(headers: &HeaderMap) -> Result<Option<Revision>, Refusal> {
    named(header_text(headers, "mcp-protocol-version")?.as_deref())
}

fn named(version: Option<&str>) -> Result<Option<Revision>, Refusal> {
    version.map(|version| Revision::parse(version).ok_or_else(|| unsupported(version))).transpose()
}

/// Checks a request by the rules of MCP 2026-07-28: `_meta` with revision and capabilities, and
/// headers that match the body.
fn modern_request(
    headers: &HeaderMap,
    version: Option<String>,
    claimed: Option<String>,
    meta: Option<&Object>,
    method: &str,
    params: Option<&Object>,
) -> Result<(), Refusal> {
    let missing = |what: &str| Refusal::new(Code::InvalidParams, format!("`_meta` lacks `{what}`"));
    let mismatch = |what: &str| {
        Refusal::new(
            Code::HeaderMismatch,
            format!("header `{what}` is missing or differs from the body"),
        )
    };
    let claimed = claimed.ok_or_else(|| missing(META_REVISION))?;
    if version.as_deref() != Some(claimed.as_str()) {
        return Err(mismatch("MCP-Protocol-Version"));
    }
    if !Revision::parse(&claimed).is_some_and(Revision::is_modern) {
        return Err(unsupported(&claimed));
    }
    if meta.and_then(|meta| meta.object(META_CAPABILITIES)).is_none() {
        return Err(missing(META_CAPABILITIES));
    }
    if header_text(headers, "mcp-method")?.as_deref() != Some(method) {
        return Err(mismatch("Mcp-Method"));
    }
    let name = match method {
        Method::TOOLS_CALL | Method::PROMPTS_GET => "name",
        Method::RESOURCES_READ => "uri",
        // The tasks extension defines this rule.
        method if Method::TASK.contains(&method) && method != Method::TASKS_RESULT => "taskId",
        _ => return Ok(()),
    };
    let in_body = params.and_then(|params| params.string(name));
    let header = header_text(headers, "mcp-name")?;
    if in_body.is_none() || header.as_deref().and_then(decoded).as_deref() != in_body.as_deref() {
        return Err(mismatch("Mcp-Name"));
    }
    Ok(())
}

/// Refuses clients of 2026-07-28, which has neither a stream to `GET` nor a session to `DELETE`.
pub(super) fn legacy(headers: &HeaderMap) -> Result<(), Refusal> {
    match revision(headers)? {
        Some(revision) if revision.is_modern() => Err(Refusal::new(
            Code::HttpMethodNotAllowed,
            "revision 2026-07-28 only uses the HTTP method POST",
        )),
        _ => Ok(()),
    }
}

/// The last event that a client received of a broken stream.
pub(super) fn last_event(headers: &HeaderMap) -> Result<Option<String>, Refusal> {
    header_text(headers, "last-event-id")
}

/// A header's text, if it occurs once.
fn header_text(headers: &HeaderMap, name: &'static str) -> Result<Option<String>, Refusal> {
    let name = header::HeaderName::from_static(name);
    single(headers, &name).map(|value| value.map(|v| v.trim().to_owned())).map_err(|()| {
        Refusal::new(Code::HeaderMismatch, format!("header `{name}` is repeated or is not text"))
    })
}

/// The headers that repeat arguments, for a later check against the body, since the tool is not
/// known yet. Over a local socket, the peer may be a bridge of standard input that sends none;
/// headers that are sent must match there, too.
pub(super) fn params(headers: &HeaderMap, transport: Transport) -> Option<Arc<HeaderMap>> {
    let params: HeaderMap = headers
        .iter()
        .filter(|(name, _)| name.as_str().starts_with(PARAM))
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect();
    (transport == Transport::Http || !params.is_empty()).then(|| Arc::new(params))
}

/// The session, if the header does not name a revision other than the negotiated one.
pub(super) fn agreed(
    revision: Option<Revision>,
    session: Arc<Session>,
) -> Result<Arc<Session>, Refusal> {
    match revision {
        Some(revision) if revision != session.revision => Err(unsupported(revision.as_str())),
        _ => Ok(session),
    }
}
