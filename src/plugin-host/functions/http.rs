//! HTTP requests to the hosts that a plugin declares and the operator grants.

use std::{
    net::SocketAddr,
    sync::{Arc, OnceLock},
    time::Duration,
};

use reqwest::{
    Method, Url,
    dns::{Addrs, Name, Resolve, Resolving},
    header::{HeaderMap, HeaderName, HeaderValue},
};

use super::super::{
    bindings::portcullis::interceptor::http::{Error, Request, Response},
    grants::Destination,
    output::excerpt,
};
use portcullis_egress::is_public;

/// Limit of a request or response body in bytes.
const MAX_BODY_BYTES: usize = 1 << 20;
/// Approximate limit of all headers of a response in bytes.
const MAX_HEADER_BYTES: usize = 64 << 10;
/// Part of a message's time that remains when a request is abandoned.
pub(super) const RESERVED_TIME: Duration = Duration::from_millis(50);
/// Limit of the requests for one message.
pub const MAX_REQUESTS_PER_MESSAGE: usize = 16;
/// Suffix in records of a request that was not sent.
pub const DENIED: &str = " denied";
/// Suffix in records of a request that was not sent because of `mode = "audit"`.
pub(super) const ON_TRIAL: &str = " not sent, on trial";

/// Whether a request left the machine, or may have.
pub fn was_sent(request: &str) -> bool {
    !request.ends_with(DENIED) && !request.ends_with(ON_TRIAL)
}
/// Limit of the headers of one request.
const MAX_HEADERS: usize = 64;
/// Allowed methods. A guest's own method would put arbitrary text into the record.
const METHODS: [Method; 7] = [
    Method::GET,
    Method::HEAD,
    Method::POST,
    Method::PUT,
    Method::PATCH,
    Method::DELETE,
    Method::OPTIONS,
];
/// Headers that the connection sets, not the guest.
const RESERVED: [&str; 7] =
    ["host", "connection", "content-length", "transfer-encoding", "upgrade", "te", "trailer"];

/// HTTP client for a plugin's granted hosts.
pub struct Client {
    targets: Vec<Target>,
}

pub(super) struct Target {
    pub(super) destination: Destination,
    client: OnceLock<Result<reqwest::Client, String>>,
}

impl Client {
    /// Client for these destinations.
    pub fn to(targets: impl Iterator<Item = Destination>) -> Self {
        let targets = targets.map(|destination| Target { destination, client: OnceLock::new() });
        Self { targets: targets.collect() }
    }

    pub(super) fn target(&self, host: &str, port: u16, clear: bool) -> Option<&Target> {
        self.targets.iter().find(|target| target.destination.is(host, port, clear))
    }
}

impl Target {
    pub(super) fn client(&self) -> Result<&reqwest::Client, Error> {
        let client_result = self.client.get_or_init(|| {
            // Callers need not install a TLS provider; a second installation changes nothing.
            let _ = rustls::crypto::ring::default_provider().install_default();
            let builder = reqwest::Client::builder()
                // A redirect or a proxy of the environment would reach a host that was not granted.
                .no_proxy()
                .redirect(reqwest::redirect::Policy::none())
                .retry(reqwest::retry::never())
                .connect_timeout(Duration::from_secs(10))
                .pool_max_idle_per_host(2);
            let host = &self.destination.host;
            let builder = match self.destination.address {
                // The port comes from the URL.
                Some(address) => builder.resolve(host, SocketAddr::new(address, 0)),
                None => builder.dns_resolver(Arc::new(PublicResolver)),
            };
            builder.build().map_err(|error| format!("the HTTP client cannot be created: {error}"))
        });
        client_result.as_ref().map_err(|why| Error::Failed(why.clone()))
    }
}

/// Resolves names, and returns only public addresses. The connection uses exactly these addresses.
struct PublicResolver;

impl Resolve for PublicResolver {
    fn resolve(&self, name: Name) -> Resolving {
        Box::pin(async move {
            let found = tokio::net::lookup_host((name.as_str(), 0)).await?;
            let public: Vec<SocketAddr> = found.filter(|found| is_public(found.ip())).collect();
            if public.is_empty() {
                return Err("it has no public address: the operator can grant one of a private \
                            network as `HOST:PORT=ADDRESS`"
                    .into());
            }
            Ok(Box::new(public.into_iter()) as Addrs)
        })
    }
}

/// One valid request.
pub(super) struct OutboundRequest {
    pub method: Method,
    pub url: Url,
    headers: HeaderMap,
    body: Option<Vec<u8>>,
    pub timeout: Option<Duration>,
}

impl OutboundRequest {
    pub fn read(request: Request) -> Result<Self, Error> {
        let invalid = |why: &str| Error::Invalid(why.to_owned());
        let method = Method::from_bytes(request.method.as_bytes())
            .ok()
            .filter(|method| METHODS.contains(method))
            .ok_or_else(|| {
                invalid(
                    "the method must be GET, HEAD, POST, PUT, PATCH, DELETE or \
                OPTIONS",
                )
            })?;
        let url = Url::parse(&request.url).map_err(|_| invalid("this is not a URL"))?;
        if !matches!(url.scheme(), "https" | "http") || url.host_str().is_none() {
            return Err(invalid("the URL must begin with `https://` or `http://` and a host"));
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err(invalid("a user or password in the URL is not allowed"));
        }
        // A grant of this port means TLS: a URL with the wrong scheme would send secrets in clear
        // text.
        if url.scheme() == "http" && url.port() == Some(443) {
            return Err(invalid("port 443 requires `https://`"));
        }
        if request.headers.len() > MAX_HEADERS {
            return Err(Error::Invalid(format!(
                "a request can have at most {MAX_HEADERS} headers"
            )));
        }
        let mut headers = HeaderMap::new();
        for (name, value) in request.headers {
            let name = HeaderName::from_bytes(name.as_bytes())
                .map_err(|_| invalid("this is not a header name"))?;
            if RESERVED.contains(&name.as_str()) || name.as_str().starts_with("proxy-") {
                return Err(Error::Invalid(format!("the header `{name}` is set by the host")));
            }
            let value = HeaderValue::from_str(&value).map_err(|_| {
                Error::Invalid(format!(
                    "the value of the header `{name}` is \
                    illegal"
                ))
            })?;
            headers.append(name, value);
        }
        if request.body.as_ref().is_some_and(|body| body.len() > MAX_BODY_BYTES) {
            return Err(Error::TooLarge);
        }
        let timeout = request.timeout_ms.map(|ms| Duration::from_millis(ms.into()));
        Ok(Self { method, url, headers, body: request.body, timeout })
    }

    /// Destination by the names of URLs and grants, and whether it is in clear text.
    pub fn target(&self) -> (&str, u16, bool) {
        (
            self.url.host_str().unwrap_or_default(),
            self.url.port_or_known_default().unwrap_or_default(),
            self.url.scheme() != "https",
        )
    }
}

/// Sends a request and reads its response within the limits.
pub(super) async fn exchange(
    client: &reqwest::Client,
    outbound: OutboundRequest,
) -> Result<Response, Error> {
    let failed = |error: reqwest::Error| {
        // Without the URL, which the operator's log should not contain; the innermost cause is the
        // most useful.
        let error = error.without_url();
        let mut cause: &dyn std::error::Error = &error;
        while let Some(deeper) = cause.source() {
            cause = deeper;
        }
        Error::Failed(excerpt(&cause.to_string(), 256))
    };
    let mut request = client.request(outbound.method, outbound.url).headers(outbound.headers);
    if let Some(body) = outbound.body {
        request = request.body(body);
    }
    let mut answer = request.send().await.map_err(failed)?;
    let mut headers = Vec::new();
    let mut size = 0;
    for (name, value) in answer.headers() {
        size += name.as_str().len() + value.len();
        if size > MAX_HEADER_BYTES {
            return Err(Error::TooLarge);
        }
        // Values that are not text cannot be passed to a guest.
        if let Ok(value) = value.to_str() {
            headers.push((name.as_str().to_owned(), value.to_owned()));
        }
    }
    let status = answer.status().as_u16();
    let mut body = Vec::new();
    while let Some(chunk) = answer.chunk().await.map_err(failed)? {
        if body.len() + chunk.len() > MAX_BODY_BYTES {
            return Err(Error::TooLarge);
        }
        body.extend_from_slice(&chunk);
    }
    Ok(Response { status, headers, body })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn invalid_requests_are_refused() {
        let request = |method: &str, url: &str, header: &str| Request {
            method: method.into(),
            url: url.into(),
            headers: vec![(header.into(), "x".into())],
            body: None,
            timeout_ms: None,
        };
        assert!(OutboundRequest::read(request("GET", "https://a/b?c", "x-token")).is_ok());
        for (method, url, header) in [
            ("G T", "https://a", "a"),
            ("CONNECT", "https://a", "a"),
            ("TOKEN", "https://a", "a"),
            ("GET", "http://a:443", "a"),
            ("GET", "ftp://a", "a"),
            ("GET", "file:///etc/passwd", "a"),
            ("GET", "https://user@a", "a"),
            ("GET", "a", "a"),
            ("GET", "https://a", "Host"),
            ("GET", "https://a", "content-length"),
            ("GET", "https://a", "Proxy-Authorization"),
            ("GET", "https://a", "a b"),
        ] {
            let read = OutboundRequest::read(request(method, url, header));
            assert!(matches!(read, Err(Error::Invalid(_))), "{method} {url} {header}");
        }
        let headers = (0..=MAX_HEADERS).map(|at| (format!("x-{at}"), "x".into())).collect();
        let many = Request { headers, ..request("GET", "https://a", "a") };
        assert!(matches!(OutboundRequest::read(many), Err(Error::Invalid(_))));
        let large =
            Request { body: Some(vec![0; MAX_BODY_BYTES + 1]), ..request("PUT", "https://a", "a") };
        assert!(matches!(OutboundRequest::read(large), Err(Error::TooLarge)));
    }

    #[test]
    fn host_of_a_url_must_be_granted() {
        let client = Client::to(
            ["a.example:443", "http://10.0.0.5:80"].map(|t| t.parse().unwrap()).into_iter(),
        );
        let granted = |url: &str| {
            let request = Request {
                method: "GET".into(),
                url: url.into(),
                headers: vec![],
                body: None,
                timeout_ms: None,
            };
            let outbound = OutboundRequest::read(request).ok().unwrap();
            let (host, port, clear) = outbound.target();
            client.target(host, port, clear).is_some()
        };
        for url in
            ["https://a.example/x", "https://A.EXAMPLE:443", "http://10.0.0.5/", "http://0xa.5"]
        {
            assert!(granted(url), "{url}");
        }
        for url in
            ["http://a.example", "https://a.example.", "https://b.a.example", "http://10.0.0.5:81"]
                .into_iter()
                .chain(["https://10.0.0.5:80"])
        {
            assert!(!granted(url), "{url}");
        }
    }
}
