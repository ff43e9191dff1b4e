//! HTTP to the hosts that a plugin declares and the operator grants, and to no other.

use std::{
    net::SocketAddr,
    sync::{Arc, OnceLock},
    time::{Duration, Instant},
};

use reqwest::{
    Method, Url,
    dns::{Addrs, Name, Resolve, Resolving},
    header::{HeaderMap, HeaderName, HeaderValue},
};

use super::super::{
    bindings::portcullis::interceptor::http::{Error, Host, Request, Response},
    grants::Destination,
    guest::{Guest, Stage},
    output::excerpt,
};
use super::StubResponse;
use portcullis_egress::is_public;

/// Bytes of a body, one way or the other.
const BODY: usize = 1 << 20;
/// Bytes of all headers of an answer, about.
const HEADERS: usize = 64 << 10;
/// What is left of a message's time when a request is given up.
const RESERVE: Duration = Duration::from_millis(50);
/// Requests that one message may cause.
pub const A_MESSAGE: usize = 16;
/// How a request that was not sent ends on record.
pub const DENIED: &str = " denied";
/// How one ends that was not sent since the plugin is only tried.
const ON_TRIAL: &str = " not sent, on trial";

/// Whether a request left the machine, or may have.
pub fn was_sent(request: &str) -> bool {
    !request.ends_with(DENIED) && !request.ends_with(ON_TRIAL)
}
/// Headers of one request.
const HEADERS_SENT: usize = 64;
/// What may be asked. A method of the guest's own making would be a text of its own in the record.
const METHODS: [Method; 7] = [
    Method::GET,
    Method::HEAD,
    Method::POST,
    Method::PUT,
    Method::PATCH,
    Method::DELETE,
    Method::OPTIONS,
];
/// What is the connection's and not the guest's to say.
const RESERVED: [&str; 7] =
    ["host", "connection", "content-length", "transfer-encoding", "upgrade", "te", "trailer"];

/// What a plugin may speak to.
pub struct Client {
    places: Vec<Target>,
}

struct Target {
    destination: Destination,
    client: OnceLock<Result<reqwest::Client, String>>,
}

impl Client {
    /// To these places.
    pub fn to(places: impl Iterator<Item = Destination>) -> Self {
        let places = places.map(|destination| Target { destination, client: OnceLock::new() });
        Self { places: places.collect() }
    }

    fn place(&self, host: &str, port: u16, clear: bool) -> Option<&Target> {
        self.places.iter().find(|place| place.destination.is(host, port, clear))
    }
}

impl Target {
    fn client(&self) -> Result<&reqwest::Client, Error> {
        let made = self.client.get_or_init(|| {
            // Whoever runs plugins need not know that they speak TLS; a second one changes nothing.
            let _ = rustls::crypto::ring::default_provider().install_default();
            let builder = reqwest::Client::builder()
                // A redirect or a proxy of the environment would lead to a place that nobody granted.
                .no_proxy()
                .redirect(reqwest::redirect::Policy::none())
                .retry(reqwest::retry::never())
                .connect_timeout(Duration::from_secs(10))
                .pool_max_idle_per_host(2);
            let host = &self.destination.host;
            let builder = match self.destination.address {
                // The port is the URL's.
                Some(address) => builder.resolve(host, SocketAddr::new(address, 0)),
                None => builder.dns_resolver(Arc::new(Public)),
            };
            builder.build().map_err(|error| format!("no HTTP client could be made: {error}"))
        });
        made.as_ref().map_err(|why| Error::Failed(why.clone()))
    }
}

/// Finds addresses of names, and gives those alone that everybody can reach. The connection is made
/// to what was looked at here.
struct Public;

impl Resolve for Public {
    fn resolve(&self, name: Name) -> Resolving {
        Box::pin(async move {
            let found = tokio::net::lookup_host((name.as_str(), 0)).await?;
            let public: Vec<SocketAddr> = found.filter(|found| is_public(found.ip())).collect();
            if public.is_empty() {
                return Err("it has no public address: the operator grants one of a private \
                            network as `HOST:PORT=ADDRESS`"
                    .into());
            }
            Ok(Box::new(public.into_iter()) as Addrs)
        })
    }
}

/// One request, legal by itself.
struct Asked {
    method: Method,
    url: Url,
    headers: HeaderMap,
    body: Option<Vec<u8>>,
    timeout: Option<Duration>,
}

impl Asked {
    fn read(request: Request) -> Result<Self, Error> {
        let invalid = |why: &str| Error::Invalid(why.to_owned());
        let method = Method::from_bytes(request.method.as_bytes())
            .ok()
            .filter(|method| METHODS.contains(method))
            .ok_or_else(|| invalid("a method is GET, HEAD, POST, PUT, PATCH, DELETE or OPTIONS"))?;
        let url = Url::parse(&request.url).map_err(|_| invalid("this is no URL"))?;
        if !matches!(url.scheme(), "https" | "http") || url.host_str().is_none() {
            return Err(invalid("a URL begins with `https://` or `http://` and a host"));
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err(invalid("no user and no password belong into a URL"));
        }
        // Whoever grants this port means TLS: a URL with the wrong scheme would send what is secret
        // in clear text.
        if url.scheme() == "http" && url.port() == Some(443) {
            return Err(invalid("port 443 is spoken to with `https://` alone"));
        }
        if request.headers.len() > HEADERS_SENT {
            return Err(Error::Invalid(format!("a request has {HEADERS_SENT} headers at most")));
        }
        let mut headers = HeaderMap::new();
        for (name, value) in request.headers {
            let name = HeaderName::from_bytes(name.as_bytes())
                .map_err(|_| invalid("this is no name of a header"))?;
            if RESERVED.contains(&name.as_str()) || name.as_str().starts_with("proxy-") {
                return Err(Error::Invalid(format!("the header `{name}` is the host's to write")));
            }
            let value = HeaderValue::from_str(&value)
                .map_err(|_| Error::Invalid(format!("the header `{name}` has no legal value")))?;
            headers.append(name, value);
        }
        if request.body.as_ref().is_some_and(|body| body.len() > BODY) {
            return Err(Error::TooLarge);
        }
        let timeout = request.timeout_ms.map(|ms| Duration::from_millis(ms.into()));
        Ok(Self { method, url, headers, body: request.body, timeout })
    }

    /// Where it goes, as URLs and grants name it, and whether in clear text.
    fn place(&self) -> (&str, u16, bool) {
        (
            self.url.host_str().unwrap_or_default(),
            self.url.port_or_known_default().unwrap_or_default(),
            self.url.scheme() != "https",
        )
    }
}

async fn exchange(client: &reqwest::Client, asked: Asked) -> Result<Response, Error> {
    let failed = |error: reqwest::Error| {
        // The URL may hold what the operator's log should not; the innermost cause says most.
        let error = error.without_url();
        let mut cause: &dyn std::error::Error = &error;
        while let Some(deeper) = cause.source() {
            cause = deeper;
        }
        Error::Failed(excerpt(&cause.to_string(), 256))
    };
    let mut request = client.request(asked.method, asked.url).headers(asked.headers);
    if let Some(body) = asked.body {
        request = request.body(body);
    }
    let mut answer = request.send().await.map_err(failed)?;
    let mut headers = Vec::new();
    let mut size = 0;
    for (name, value) in answer.headers() {
        size += name.as_str().len() + value.len();
        if size > HEADERS {
            return Err(Error::TooLarge);
        }
        // What is no text no guest can have.
        if let Ok(value) = value.to_str() {
            headers.push((name.as_str().to_owned(), value.to_owned()));
        }
    }
    let status = answer.status().as_u16();
    let mut body = Vec::new();
    while let Some(chunk) = answer.chunk().await.map_err(failed)? {
        if body.len() + chunk.len() > BODY {
            return Err(Error::TooLarge);
        }
        body.extend_from_slice(&chunk);
    }
    Ok(Response { status, headers, body })
}

impl Guest {
    async fn request(&mut self, request: Request) -> Result<Response, Error> {
        let shared = self.shared.clone();
        let Some(client) = &shared.http else {
            return Err(Error::Denied("no host is granted".into()));
        };
        if self.stage != Stage::Inspecting {
            return Err(Error::Denied("`http` works in `inspect` alone".into()));
        }
        let asked = Asked::read(request)?;
        let (host, port, clear) = asked.place();
        let scheme = if clear { "http://" } else { "" };
        let shown = format!("{} {scheme}{host}:{port}", asked.method);
        let shown = excerpt(&self.covered(shown), 128);
        if self.requests.len() >= A_MESSAGE {
            return Err(Error::Denied(format!("a message is good for {A_MESSAGE} requests")));
        }
        let granted = client
            .place(host, port, clear)
            .ok_or_else(|| format!("`{scheme}{}:{port}` is not granted", excerpt(host, 128)));
        let granted = granted.and_then(|place| {
            let name = place.destination.name();
            shared.around.may_reach(&shared.entry, name, port).map(|()| place)
        });
        let place = match granted {
            Ok(place) => place,
            Err(why) => {
                self.requests.push(format!("{shown}{DENIED}"));
                return Err(Error::Denied(why));
            }
        };
        if !shared.sends {
            self.requests.push(format!("{shown}{ON_TRIAL}"));
            return Err(Error::Denied("the plugin is on trial, and nothing is sent".into()));
        }
        // On record even if this ends half way.
        self.requests.push(format!("{shown} unanswered"));
        if let Some(canned) = shared.around.answer(asked.url.as_str()) {
            let StubResponse { status, headers, body } = canned.map_err(Error::Failed)?;
            return Ok(Response { status, headers, body });
        }
        let client_of_place = place.client()?;
        // Until shortly before the end: a plugin shall be able to say what it makes of silence.
        let left = self.until.saturating_duration_since(Instant::now());
        let wait = left.saturating_sub(RESERVE.min(left / 4));
        let wait = asked.timeout.map_or(wait, |timeout| wait.min(timeout));
        // An instance has one request under way, and the instances at work are bounded for each caller.
        let done = match tokio::time::timeout(wait, exchange(client_of_place, asked)).await {
            Ok(done) => done,
            Err(_) => return Err(Error::Failed("it was not answered in time".into())),
        };
        let became = match &done {
            Ok(answer) => format!("{shown} {}", answer.status),
            Err(Error::TooLarge) => format!("{shown} too large"),
            Err(_) => format!("{shown} failed"),
        };
        if let Some(last) = self.requests.last_mut() {
            *last = became;
        }
        done
    }
}

impl Host for Guest {
    async fn send(&mut self, request: Request) -> Result<Response, Error> {
        match self.request(request).await {
            Err(Error::Denied(why)) => Err(Error::Denied(self.covered(why))),
            Err(Error::Invalid(why)) => Err(Error::Invalid(self.covered(why))),
            Err(Error::Failed(why)) => Err(Error::Failed(self.covered(why))),
            other => other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_that_make_no_sense() {
        let request = |method: &str, url: &str, header: &str| Request {
            method: method.into(),
            url: url.into(),
            headers: vec![(header.into(), "x".into())],
            body: None,
            timeout_ms: None,
        };
        assert!(Asked::read(request("GET", "https://a/b?c", "x-token")).is_ok());
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
            let read = Asked::read(request(method, url, header));
            assert!(matches!(read, Err(Error::Invalid(_))), "{method} {url} {header}");
        }
        let headers = (0..=HEADERS_SENT).map(|at| (format!("x-{at}"), "x".into())).collect();
        let many = Request { headers, ..request("GET", "https://a", "a") };
        assert!(matches!(Asked::read(many), Err(Error::Invalid(_))));
        let large = Request { body: Some(vec![0; BODY + 1]), ..request("PUT", "https://a", "a") };
        assert!(matches!(Asked::read(large), Err(Error::TooLarge)));
    }

    #[test]
    fn the_host_of_a_url_is_the_one_that_is_granted() {
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
            let asked = Asked::read(request).ok().unwrap();
            let (host, port, clear) = asked.place();
            client.place(host, port, clear).is_some()
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
