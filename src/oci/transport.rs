//! HTTP requests with limited answers, and the rules for recipients and logins.

use std::{
    collections::HashMap,
    fs,
    sync::Mutex,
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures_util::StreamExt as _;
use http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use portcullis_egress::is_public;
use reqwest::redirect;
use serde::Deserialize;
use url::Url;
use zeroize::Zeroizing;

use super::{
    Error, Limits, Reference, Settings,
    credentials::Login,
    error::{ContactedHost, causes, known_code},
    redirect_policy::{Origin, PublicResolver, is_local},
};

/// Limit of the redirects of one request.
const MAX_REDIRECTS: usize = 5;
/// Limit in bytes of an answer without content: tokens and errors.
const MAX_ANSWER_BYTES: u64 = 64 << 10;
/// User agent of requests.
const USER_AGENT: &str = concat!("portcullis/", env!("CARGO_PKG_VERSION"));

/// Right that a request needs; a login may or may not have it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Right {
    Pull,
    Push,
}

impl Right {
    fn scope(self) -> &'static str {
        match self {
            Self::Pull => "pull",
            Self::Push => "pull,push",
        }
    }

    fn words(self) -> &'static str {
        match self {
            Self::Pull => "read this",
            Self::Push => "write this",
        }
    }
}

/// One request.
pub(crate) struct Request<'a> {
    /// Artifact, whose registry the request is for.
    pub to: &'a Reference,
    pub right: Right,
    pub method: Method,
    pub url: Url,
    pub headers: HeaderMap,
    pub body: Bytes,
    /// Deadline.
    pub until: Instant,
    /// Whether the registry's answer with this URL came from a private address.
    pub from_private: bool,
}

/// Answer with an unread body.
pub(crate) struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    /// Final URL, and the origin.
    pub url: Url,
    pub home: Origin,
    response: reqwest::Response,
    idle: Duration,
    until: Instant,
    total: Duration,
}

/// Sends requests.
pub(crate) struct Transport {
    /// For other machines, through the proxies of the environment.
    outside: reqwest::Client,
    /// For targets of redirects; connects to public addresses only.
    led: reqwest::Client,
    /// For this machine, and for hosts without TLS, where a proxy could read the content.
    direct: reqwest::Client,
    settings: Settings,
    /// Accepted `Authorization` headers, by registry, repository and right.
    authorized: Mutex<HashMap<(String, String, Right), Authorization>>,
}

/// Header that the registry accepted, and whether it is that of a login.
#[derive(Clone)]
struct Authorization {
    header: Zeroizing<String>,
    with_login: bool,
}

impl Transport {
    pub fn new(settings: Settings) -> Result<Self, Error> {
        // Callers need not install a TLS provider; a second installation changes nothing.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let authorities = match &settings.authorities {
            None => Vec::new(),
            Some(path) => {
                let failed =
                    |why: String| Error::Authorities { file: path.display().to_string(), why };
                let pem = fs::read(path).map_err(|error| failed(error.to_string()))?;
                let found = reqwest::Certificate::from_pem_bundle(&pem)
                    .map_err(|error| failed(causes(error)))?;
                if found.is_empty() {
                    return Err(failed("it contains no certificate".into()));
                }
                found
            }
        };
        let builder = || {
            reqwest::Client::builder()
                .user_agent(USER_AGENT)
                .redirect(redirect::Policy::none())
                .referer(false)
                .retry(reqwest::retry::never())
                .connect_timeout(settings.limits.idle)
                .tls_certs_merge(authorities.clone())
        };
        let built = |builder: reqwest::ClientBuilder| {
            builder.build().map_err(|error| Error::Unreachable {
                host: "registry".into(),
                why: format!("the HTTP client cannot be created: {}", causes(error)),
            })
        };
        let outside = built(builder())?;
        let led = built(builder().dns_resolver(PublicResolver::resolver()))?;
        let direct = built(builder().no_proxy())?;
        Ok(Self { outside, led, direct, settings, authorized: Mutex::default() })
    }

    pub fn limits(&self) -> &Limits {
        &self.settings.limits
    }

    pub async fn login(&self, to: &Reference, until: Instant) -> Result<Option<Login>, Error> {
        self.settings.logins.of(to, until).await
    }

    /// Base URL of a registry's API.
    pub fn base(&self, to: &Reference) -> Result<Url, Error> {
        let scheme = if self.is_plain(to) { "http" } else { "https" };
        let base = format!("{scheme}://{}/v2/{}/", to.authority(), to.repository());
        base.parse().map_err(|error: url::ParseError| Error::Protocol {
            host: to.host().into(),
            why: error.to_string(),
        })
    }

    /// Whether a registry is contacted without TLS.
    fn is_plain(&self, to: &Reference) -> bool {
        // A registry on this machine with TLS is identified by the file of its certificate.
        (to.is_loopback() && self.settings.authorities.is_none())
            || self.settings.plain_http.iter().any(|host| host == to.host())
    }

    /// Sends a request, with the authorization that the registry requires, and follows redirects.
    pub async fn send(&self, mut request: Request<'_>) -> Result<Answer, Error> {
        let name = request.to.host().to_owned();
        let url = self.base(request.to)?;
        let mut home = Origin { url, name, private: request.from_private };
        let key = (request.to.host().to_owned(), request.to.repository().to_owned(), request.right);
        let (mut authenticated, mut hops) = (false, 0);
        loop {
            // Only the registry itself gets a login, and only its challenges count.
            let at_home = home.is_at(&request.url);
            let authorization = if at_home {
                self.authorized.lock().ok().and_then(|all| all.get(&key).cloned())
            } else {
                None
            };
            let with_login = authorization.as_ref().is_some_and(|one| one.with_login);
            let answer = self.once(&request, authorization, &home).await?;
            home = answer.home.clone();
            match answer.status {
                StatusCode::UNAUTHORIZED if at_home && !authenticated => {
                    authenticated = true;
                    let authorization = self.authorize(&request, &answer).await?;
                    if let Ok(mut all) = self.authorized.lock() {
                        all.insert(key.clone(), authorization);
                    }
                }
                // The operator must not be advised to log in to another host.
                StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN if !at_home => {
                    return Err(answer.fault().await);
                }
                StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                    return Err(Error::Denied {
                        host: home.name,
                        what: request.right.words(),
                        with_login,
                    });
                }
                status if status.is_redirection() && status != StatusCode::NOT_MODIFIED => {
                    if !matches!(request.method, Method::GET | Method::HEAD) {
                        let why = "a write must not be redirected";
                        return Err(home.astray(&request.url, why));
                    }
                    hops += 1;
                    if hops > MAX_REDIRECTS {
                        return Err(home.astray(&request.url, "too many redirects"));
                    }
                    request.url = answer.next()?;
                }
                _ => return Ok(answer),
            }
        }
    }

    /// Content of a URL outside of registries: without a login, over TLS or from this machine.
    pub async fn get(&self, url: &Url, until: Instant) -> Result<Answer, Error> {
        let mut home = Origin { url: url.clone(), name: host(url), private: false };
        if url.scheme() != "https" && !(url.scheme() == "http" && is_local(url)) {
            return Err(home.astray(url, "the URL is not https"));
        }
        let mut at = url.clone();
        for _ in 0..=MAX_REDIRECTS {
            let builder = self.client(&at, &home).get(at.clone());
            let answer = self.answer(builder, &at, until, false, &home).await?;
            if !answer.status.is_redirection() {
                return Ok(answer);
            }
            at = answer.next()?;
            home = answer.home;
        }
        Err(home.astray(&at, "too many redirects"))
    }

    async fn once(
        &self,
        request: &Request<'_>,
        authorization: Option<Authorization>,
        home: &Origin,
    ) -> Result<Answer, Error> {
        let Request { method, url, headers, body, until, .. } = request;
        let mut builder =
            self.client(url, home).request(method.clone(), url.clone()).headers(headers.clone());
        if !body.is_empty() || matches!(*method, Method::PUT | Method::POST) {
            builder = builder.body(body.clone());
        }
        if let Some(authorization) = authorization {
            builder = builder.header(header::AUTHORIZATION, secret(&authorization.header, url)?);
        }
        self.answer(builder, url, *until, !body.is_empty(), home).await
    }

    fn client(&self, url: &Url, home: &Origin) -> &reqwest::Client {
        match url.scheme() == "http" || is_local(url) {
            _ if !home.private && !home.is_at(url) => &self.led,
            true => &self.direct,
            false => &self.outside,
        }
    }

    async fn answer(
        &self,
        builder: reqwest::RequestBuilder,
        url: &Url,
        until: Instant,
        uploads: bool,
        home: &Origin,
    ) -> Result<Answer, Error> {
        let Limits { idle, total, .. } = *self.limits();
        let (host, mut home) = (home.contacted_host(url), home.clone());
        // Sending may use all remaining time; an answer must not be silent for too long.
        let remaining = until.saturating_duration_since(Instant::now());
        let wait = if uploads { remaining } else { remaining.min(idle) };
        let limit = if wait == remaining { total } else { idle };
        let response = match tokio::time::timeout(wait, builder.send()).await {
            Ok(Ok(response)) => response,
            Ok(Err(error)) if error.is_timeout() => {
                return Err(Error::Late { host, within: limit });
            }
            Ok(Err(error)) => {
                return Err(match PublicResolver::refused(&error) {
                    Some(why) => {
                        Error::RedirectRefused { host: ContactedHost::Named(home.name), why }
                    }
                    None => Error::Unreachable { host, why: causes(error) },
                });
            }
            Err(_) => return Err(Error::Late { host, within: limit }),
        };
        let (status, headers) = (response.status(), response.headers().clone());
        if home.is_at(url) {
            let address = response.remote_addr().map(|address| address.ip());
            home.private = address.is_some_and(|address| !is_public(address));
        }
        Ok(Answer { status, headers, url: url.clone(), home, response, idle, until, total })
    }

    /// Authorization header that the registry's challenge requires.
    async fn authorize(
        &self,
        request: &Request<'_>,
        answer: &Answer,
    ) -> Result<Authorization, Error> {
        let host = request.to.host().to_owned();
        let challenges: Vec<_> = answer.headers.get_all(header::WWW_AUTHENTICATE).iter().collect();
        let mut basic = false;
        for challenge in challenges {
            let Ok(text) = challenge.to_str() else { continue };
            for challenge in http_auth::parser::ChallengeParser::new(text) {
                let Ok(challenge) = challenge else { break };
                let param = |name: &str| {
                    let mut params = challenge.params.iter();
                    params
                        .find(|(key, _)| key.eq_ignore_ascii_case(name))
                        .map(|(_, value)| value.to_unescaped())
                };
                if challenge.scheme.eq_ignore_ascii_case("bearer") {
                    let realm = param("realm").unwrap_or_default();
                    return self.token(request, &answer.home, &realm, param("service")).await;
                }
                basic |= challenge.scheme.eq_ignore_ascii_case("basic");
            }
        }
        if !basic {
            let why = "it requires a login without naming a supported scheme".to_owned();
            return Err(Error::Protocol { host: ContactedHost::Named(host), why });
        }
        match self.settings.logins.of(request.to, request.until).await? {
            Some(Login::Password { user, password }) => {
                Ok(Authorization { header: basic_of(&user, &password), with_login: true })
            }
            Some(Login::Identity(_)) => {
                let why = "it requires a password, but the login is a token".to_owned();
                Err(Error::Login { host, why })
            }
            None => Err(Error::NoLogin { host }),
        }
    }

    /// Token of the service that the registry names. The login is sent there, because the registry
    /// could have obtained it itself. Without TLS it is sent only to this machine, or to the same
    /// host that is contacted without.
    async fn token(
        &self,
        request: &Request<'_>,
        home: &Origin,
        realm: &str,
        service: Option<String>,
    ) -> Result<Authorization, Error> {
        let host = request.to.host().to_owned();
        let mut url: Url = realm.parse().map_err(|_| Error::Protocol {
            host: ContactedHost::Named(host.clone()),
            why: "the realm of its challenge is not a URL".to_owned(),
        })?;
        home.follow(&home.url, &url)?;
        // The scope comes from this request, not from the challenge, so it is no wider than needed.
        let scope = format!("repository:{}:{}", request.to.repository(), request.right.scope());
        let login = self.settings.logins.of(request.to, request.until).await?;
        let builder = match &login {
            Some(Login::Identity(token)) => {
                let mut form = url::form_urlencoded::Serializer::new(String::new());
                form.append_pair("grant_type", "refresh_token")
                    .append_pair("service", service.as_deref().unwrap_or_default())
                    .append_pair("client_id", "portcullis")
                    .append_pair("scope", &scope)
                    .append_pair("refresh_token", token);
                let kind = "application/x-www-form-urlencoded";
                let builder = self.client(&url, home).post(url.clone());
                builder.header(header::CONTENT_TYPE, kind).body(form.finish())
            }
            other => {
                url.query_pairs_mut().append_pair("scope", &scope);
                if let Some(service) = &service {
                    url.query_pairs_mut().append_pair("service", service);
                }
                let builder = self.client(&url, home).get(url.clone());
                match other {
                    Some(Login::Password { user, password }) => {
                        let value = secret(&basic_of(user, password), &url)?;
                        builder.header(header::AUTHORIZATION, value)
                    }
                    _ => builder,
                }
            }
        };
        let answer = self.answer(builder, &url, request.until, false, home).await?;
        match answer.status {
            StatusCode::OK => {}
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                let (what, with_login) = (request.right.words(), login.is_some());
                return Err(Error::Denied { host, what, with_login });
            }
            _ => return Err(answer.fault().await),
        }
        #[derive(Deserialize)]
        struct Token {
            token: Option<String>,
            access_token: Option<String>,
        }
        let contacted = home.contacted_host(&url);
        let body = Zeroizing::new(answer.read_all("a token", MAX_ANSWER_BYTES).await?.to_vec());
        // The parse error is not shown, because it can contain most of a token.
        let token = serde_json::from_slice(&body)
            .ok()
            .and_then(|Token { token, access_token }| token.or(access_token))
            .map(Zeroizing::new)
            .ok_or_else(|| Error::Protocol {
                host: contacted,
                why: "the answer contains no \
                token"
                    .to_owned(),
            })?;
        let header = Zeroizing::new(format!("Bearer {}", *token));
        Ok(Authorization { header, with_login: login.is_some() })
    }
}

impl Answer {
    /// Target of a redirect.
    pub fn next(&self) -> Result<Url, Error> {
        self.home.next(&self.url, &self.headers)
    }

    /// Reads the whole body, up to that size.
    pub async fn read_all(self, what: &'static str, most: u64) -> Result<Bytes, Error> {
        let Self { url, home, response, idle, until, total, .. } = self;
        let host = home.contacted_host(&url);
        let too_large = || Error::TooLarge { what, most };
        if response.content_length().is_some_and(|length| length > most) {
            return Err(too_large());
        }
        let mut body = Vec::new();
        let mut stream = response.bytes_stream();
        loop {
            let remaining = until.saturating_duration_since(Instant::now());
            let wait = remaining.min(idle);
            let limit = if wait == remaining { total } else { idle };
            let chunk = match tokio::time::timeout(wait, stream.next()).await {
                Ok(None) => return Ok(body.into()),
                Ok(Some(Ok(chunk))) => chunk,
                Ok(Some(Err(error))) => {
                    return Err(Error::Unreachable { host, why: causes(error) });
                }
                Err(_) => return Err(Error::Late { host, within: limit }),
            };
            if (body.len() + chunk.len()) as u64 > most {
                return Err(too_large());
            }
            body.extend_from_slice(&chunk);
        }
    }

    /// Error for an unexpected status.
    pub async fn fault(self) -> Error {
        let (host, status) = (self.home.contacted_host(&self.url), self.status.as_u16());
        let body = self.read_all("an answer", MAX_ANSWER_BYTES).await.unwrap_or_default();
        Error::Failed { host, status, code: known_code(&body) }
    }
}

fn host(url: &Url) -> String {
    match (url.host_str(), url.port()) {
        (Some(host), Some(port)) => format!("{host}:{port}"),
        (host, _) => host.unwrap_or_default().to_owned(),
    }
}

fn basic_of(user: &str, password: &str) -> Zeroizing<String> {
    use base64::prelude::{BASE64_STANDARD, Engine as _};
    let pair = Zeroizing::new(format!("{user}:{password}"));
    let encoded = Zeroizing::new(BASE64_STANDARD.encode(&*pair));
    Zeroizing::new(format!("Basic {}", *encoded))
}

/// Header value that no `Debug` shows.
fn secret(text: &str, url: &Url) -> Result<HeaderValue, Error> {
    let mut value = HeaderValue::from_str(text).map_err(|_| Error::Login {
        host: host(url),
        why: "it has characters that are illegal in an HTTP header".to_owned(),
    })?;
    value.set_sensitive(true);
    Ok(value)
}
