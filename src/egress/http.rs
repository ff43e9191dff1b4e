//! HTTP requests of programs: `CONNECT`, and plain HTTP.

use std::{any::Any, convert::Infallible, future::Future, pin::Pin, sync::Arc};

use bytes::Bytes;
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri, Version,
    header,
    uri::{Authority, PathAndQuery},
};
use http_body_util::{BodyExt, Full, combinators::UnsyncBoxBody};
use hyper::{body::Incoming, client, server, service::service_fn, upgrade::Upgraded};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncWrite, DuplexStream},
    sync::oneshot,
    time::timeout,
};

use super::{
    End, Host, Protocol, Refusal, Wire,
    connect::{Connection, Shared},
    tunnel::{Opening, carry, splice},
};

/// Limit of the headers of one message.
const MAX_HEADERS: usize = 100;
/// Size in bytes of the buffer between the two halves of a request's path.
const BUFFER_BYTES: usize = 64 << 10;
/// Headers for one connection only (RFC 9110, section 7.6.1), in addition to those that
/// `Connection` names.
const HOP_BY_HOP: [HeaderName; 9] = [
    header::CONNECTION,
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
];

type Body = UnsyncBoxBody<Bytes, hyper::Error>;

/// Keeps a connection counted for as long as it is used.
pub(crate) type ConnectionToken = Arc<dyn Any + Send + Sync>;

/// What a program takes this end for.
#[derive(Debug, Clone)]
pub(crate) enum AssumedTarget {
    /// A proxy.
    Proxy,
    /// This host itself.
    Host(Host, u16),
}

/// Serves one connection. Boxed, because a connection can contain another one.
pub(crate) fn serve<S>(
    stream: S,
    toward: AssumedTarget,
    shared: Arc<Shared>,
    token: ConnectionToken,
) -> Pin<Box<dyn Future<Output = ()> + Send>>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    Box::pin(async move {
        let service = {
            let shared = shared.clone();
            service_fn(move |request| {
                let (toward, shared, token) = (toward.clone(), shared.clone(), token.clone());
                async move { Ok::<_, Infallible>(answer(request, toward, shared, token).await) }
            })
        };
        let connection = server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(shared.limits.handshake)
            .max_buf_size(shared.limits.head)
            .max_headers(MAX_HEADERS)
            .serve_connection(TokioIo::new(stream), service)
            .with_upgrades();
        let done = tokio::select! {
            done = connection => done,
            () = shared.stop.cancelled() => return,
        };
        if let Err(error) = done
            && error.is_parse()
        {
            shared.unread(Refusal::Malformed(format!("it is not HTTP: {error}")));
        }
    })
}

async fn answer(
    request: Request<Incoming>,
    toward: AssumedTarget,
    shared: Arc<Shared>,
    token: ConnectionToken,
) -> Response<Body> {
    let answered = match (&toward, request.method()) {
        (AssumedTarget::Proxy, &Method::CONNECT) => connect(request, &shared, token).await,
        _ => forward(request, &toward, &shared).await,
    };
    answered.unwrap_or_else(|refusal| refused(&refusal, &shared))
}

/// Response with a refusal, for the reader of the program's log.
fn refused(refusal: &Refusal, shared: &Shared) -> Response<Body> {
    let advice = refusal.advice(&shared.server);
    let advice = advice.map(|advice| format!("; {advice}")).unwrap_or_default();
    let text = format!("Portcullis refused egress of `{}`: {refusal}{advice}\n", shared.server);
    let mut response = Response::new(text_body(text));
    *response.status_mut() = refusal.status();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    // The rest of the request is not read.
    headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    headers.insert(
        HeaderName::from_static("x-portcullis-refusal"),
        HeaderValue::from_static(refusal.code()),
    );
    response
}

fn text_body(text: String) -> Body {
    Full::from(text).map_err(|never| match never {}).boxed_unsync()
}

fn malformed(why: &str) -> Refusal {
    Refusal::Malformed(why.to_owned())
}

/// Host and port; the usual port may be omitted.
fn place(authority: &Authority, usual: Option<u16>) -> Result<(Host, u16), Refusal> {
    let text = authority.as_str();
    if text.contains('@') {
        return Err(malformed("a user or password in front of a host is not allowed"));
    }
    let host = authority
        .host()
        .parse()
        .map_err(|_| malformed("this is neither the name of a host nor an address"))?;
    // As written, because `Authority` treats an invalid port as none.
    let written = text.strip_prefix(authority.host()).unwrap_or(text);
    let port = match (written.strip_prefix(':'), usual) {
        (Some(port), _) => {
            let digits = !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit());
            port.parse().ok().filter(|port| digits && *port > 0)
        }
        (None, usual) => usual,
    };
    Ok((host, port.ok_or_else(|| malformed("a port from 1 to 65535 must follow the host"))?))
}

/// The only `Host` of a request.
fn host_header(headers: &HeaderMap) -> Result<Option<Authority>, Refusal> {
    let mut all = headers.get_all(header::HOST).iter();
    match (all.next(), all.next()) {
        (None, _) => Ok(None),
        (Some(one), None) => {
            let authority = Authority::try_from(one.as_bytes());
            authority.map(Some).map_err(|_| malformed("its `Host` is not a host"))
        }
        (Some(_), Some(_)) => Err(malformed("it has more than one `Host`")),
    }
}

async fn connect(
    request: Request<Incoming>,
    shared: &Arc<Shared>,
    token: ConnectionToken,
) -> Result<Response<Body>, Refusal> {
    let read = (|| {
        let authority = request
            .uri()
            .authority()
            .ok_or_else(|| malformed("`CONNECT` requires a host and a port"))?;
        let (host, port) = place(authority, None)?;
        // Not compared: it is not forwarded, and Node sends the proxy's own name in it.
        host_header(request.headers())?;
        Ok::<_, Refusal>((shared.requested_host(host), port))
    })();
    let (host, port) = read.inspect_err(|refusal: &Refusal| shared.unread(refusal.clone()))?;
    let wire = shared.listed(&host, port).map(|listed| listed.wire);
    let wire = wire.inspect_err(|refusal| {
        shared.refuse(host.clone(), port, Protocol::Connect, refusal);
    })?;
    if wire == Wire::Http {
        // Each request in it is a separate attempt.
        let shared = shared.clone();
        shared.tasks.clone().spawn(async move {
            if let Some(upgraded) = upgraded(request, &shared).await {
                serve(upgraded, AssumedTarget::Host(host, port), shared, token).await;
            }
        });
        return Ok(Response::new(text_body(String::new())));
    }
    let way = shared.open(host, port, Protocol::Connect).await?;
    let shared = shared.clone();
    shared.tasks.clone().spawn(async move {
        if let Some(upgraded) = upgraded(request, &shared).await {
            carry(upgraded, way, None, &shared).await;
        }
        drop(token);
    });
    Ok(Response::new(text_body(String::new())))
}

/// The rest of a connection after the response to `CONNECT`.
async fn upgraded(request: Request<Incoming>, shared: &Shared) -> Option<TokioIo<Upgraded>> {
    let upgraded = timeout(shared.limits.handshake, hyper::upgrade::on(request)).await;
    upgraded.ok()?.ok().map(TokioIo::new)
}

/// Target of a plain HTTP request.
fn target(request: &Request<Incoming>, toward: &AssumedTarget) -> Result<(Host, u16), Refusal> {
    let uri = request.uri();
    if request.method() == Method::CONNECT {
        return Err(Refusal::Unsupported("the host is not a proxy"));
    }
    let named = host_header(request.headers())?;
    let absolute = match (uri.scheme_str(), uri.authority()) {
        (Some("http"), Some(authority)) => Some(place(authority, Some(80))?),
        (None, None) => None,
        (Some("https"), Some(_)) => {
            return Err(malformed("use `CONNECT` for `https://` URLs"));
        }
        _ => return Err(malformed("this is not an `http://` URL")),
    };
    let (host, port) = match (toward, absolute) {
        (AssumedTarget::Proxy, Some(absolute)) => absolute,
        (AssumedTarget::Proxy, None) => {
            return Err(malformed("a request to a proxy needs a whole URL, `http://HOST/…`"));
        }
        (AssumedTarget::Host(host, port), None) => (host.clone(), *port),
        (AssumedTarget::Host(host, port), Some(absolute)) if absolute == (host.clone(), *port) => {
            absolute
        }
        (AssumedTarget::Host(..), Some(_)) => return Err(malformed("its URL names another host")),
    };
    match named {
        Some(named) if place(&named, Some(80))? != (host.clone(), port) => {
            Err(malformed("its `Host` differs from the host that it is sent to"))
        }
        None if request.version() > Version::HTTP_10 => Err(malformed("it has no `Host`")),
        _ => Ok((host, port)),
    }
}

async fn forward(
    mut request: Request<Incoming>,
    toward: &AssumedTarget,
    shared: &Arc<Shared>,
) -> Result<Response<Body>, Refusal> {
    let read = target(&request, toward);
    let (host, port) = read.inspect_err(|refusal| shared.unread(refusal.clone()))?;
    // Without a length, the body of such a request would be dropped.
    if matches!(*request.method(), Method::GET | Method::HEAD)
        && request.headers().contains_key(header::TRANSFER_ENCODING)
    {
        let refusal = malformed("the body of such a request needs a `Content-Length`");
        shared.unread(refusal.clone());
        return Err(refusal);
    }
    // The server gets the permitted host, in normalized form.
    let host = shared.requested_host(host);
    let named = if port == 80 { host.to_string() } else { format!("{host}:{port}") };
    let named = HeaderValue::try_from(named).map_err(|_| malformed("its host is illegal"))?;
    let path = request.uri().path_and_query().cloned();
    *request.uri_mut() = Uri::from(path.unwrap_or_else(|| PathAndQuery::from_static("/")));
    *request.version_mut() = Version::HTTP_11;
    end_to_end(request.headers_mut());
    request.headers_mut().insert(header::HOST, named);
    request.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));

    let Connection { mut stream, ticket, .. } =
        shared.open(host.clone(), port, Protocol::Http).await?;
    let ticket = Arc::new(ticket);
    let (near, mut far) = tokio::io::duplex(BUFFER_BYTES);
    let (judging, judged) = oneshot::channel::<Infallible>();
    let (carrier, carried) = (shared.clone(), ticket.clone());
    // All data is counted and timed as in a tunnel.
    shared.tasks.spawn(async move {
        let end = splice(&mut far, &mut stream, Opening::Clear, &carried, &carrier).await;
        // A server that closes the connection may have sent an invalid answer.
        if matches!(end, End::Closed | End::Broken) {
            drop(far);
            let _ = judged.await;
        }
        carried.ended(end);
    });
    let answered = exchange(request, near, &host, shared).await;
    if let Err(refusal) = &answered {
        ticket.refused(refusal);
    }
    drop(judging);
    answered
}

/// Sends a request and checks the head of the answer.
async fn exchange(
    request: Request<Incoming>,
    near: DuplexStream,
    host: &Host,
    shared: &Shared,
) -> Result<Response<Body>, Refusal> {
    let failed = |_| Refusal::Unreachable(host.clone(), "its answer is not HTTP".into());
    let (mut sender, connection) = client::conn::http1::Builder::new()
        .max_buf_size(shared.limits.head.max(BUFFER_BYTES))
        .max_headers(MAX_HEADERS)
        .handshake(TokioIo::new(near))
        .await
        .map_err(failed)?;
    shared.tasks.spawn(async move {
        let _ = connection.await;
    });
    // As long as data moves; otherwise the tunnel ends it.
    let mut response = sender.send_request(request).await.map_err(failed)?;
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        return Err(failed_switch(host));
    }
    end_to_end(response.headers_mut());
    *response.version_mut() = Version::HTTP_11;
    Ok(response.map(BodyExt::boxed_unsync))
}

fn failed_switch(host: &Host) -> Refusal {
    Refusal::Unreachable(host.clone(), "it switches to a protocol that was not requested".into())
}

/// Removes headers that are not end-to-end.
fn end_to_end(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .collect();
    for name in named.iter().chain(&HOP_BY_HOP) {
        headers.remove(name);
    }
}
