//! Requests and bounded answers: whom they go to, and who is told a login.

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
    error::{Asked, causes, known_code},
    redirect_policy::{Origin, Public, is_local},
};

/// How often one request is led elsewhere.
const REDIRECTS: usize = 5;
/// Bytes of an answer that is not content: of tokens and faults.
const ANSWER: u64 = 64 << 10;
/// Who asks.
const AGENT: &str = concat!("portcullis/", env!("CARGO_PKG_VERSION"));

/// What a request is for, which a login may or may not be good for.
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
    /// Whose registry it is for.
    pub to: &'a Reference,
    pub right: Right,
    pub method: Method,
    pub url: Url,
    pub headers: HeaderMap,
    pub body: Bytes,
    /// When it has to be over.
    pub until: Instant,
    /// Whether an answer of the registry, which told this URL, was seen to come from a private address.
    pub from_private: bool,
}

/// What came back. Its body is not read yet.
pub(crate) struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    /// Who answered, in the end, and where that began.
    pub url: Url,
    pub home: Origin,
    response: reqwest::Response,
    idle: Duration,
    until: Instant,
    total: Duration,
}

/// Sends requests.
pub(crate) struct Transport {
    /// For the wide world, by way of the proxies that the environment names.
    outside: reqwest::Client,
    /// For where a registry leads, of which the public addresses alone are connected to.
    led: reqwest::Client,
    /// For this machine, and for what is asked without TLS: a proxy would read that.
    direct: reqwest::Client,
    settings: Settings,
    /// `Authorization` as it was taken, by registry, repository and right.
    authorized: Mutex<HashMap<(String, String, Right), Authorization>>,
}

/// What the registry takes, and whether somebody in particular stands behind it.
#[derive(Clone)]
struct Authorization {
    header: Zeroizing<String>,
    with_login: bool,
}

impl Transport {
    pub fn new(settings: Settings) -> Result<Self, Error> {
        // Whoever asks registries need not know that they speak TLS; a second one changes nothing.
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
                    return Err(failed("there is none".into()));
                }
                found
            }
        };
        let builder = || {
            reqwest::Client::builder()
                .user_agent(AGENT)
                .redirect(redirect::Policy::none())
                .referer(false)
                .retry(reqwest::retry::never())
                .connect_timeout(settings.limits.idle)
                .tls_certs_merge(authorities.clone())
        };
        let built = |builder: reqwest::ClientBuilder| {
            builder.build().map_err(|error| Error::Unreachable {
                host: "registry".into(),
                why: format!("no HTTP client could be made: {}", causes(error)),
            })
        };
        let outside = built(builder())?;
        let led = built(builder().dns_resolver(Public::resolver()))?;
        let direct = built(builder().no_proxy())?;
        Ok(Self { outside, led, direct, settings, authorized: Mutex::default() })
    }

    pub fn limits(&self) -> &Limits {
        &self.settings.limits
    }

    pub async fn login(&self, to: &Reference, until: Instant) -> Result<Option<Login>, Error> {
        self.settings.logins.of(to, until).await
    }

    /// Where a registry's API begins.
    pub fn base(&self, to: &Reference) -> Result<Url, Error> {
        let scheme = if self.is_plain(to) { "http" } else { "https" };
        let base = format!("{scheme}://{}/v2/{}/", to.authority(), to.repository());
        base.parse().map_err(|error: url::ParseError| Error::Protocol {
            host: to.host().into(),
            why: error.to_string(),
        })
    }

    /// Whether a registry is asked without TLS.
    fn is_plain(&self, to: &Reference) -> bool {
        // A registry on this machine that does speak TLS is named as such by its certificate's file.
        (to.is_loopback() && self.settings.authorities.is_none())
            || self.settings.plain_http.iter().any(|host| host == to.host())
    }

    /// Sends it, with what the registry wants for it, and follows where it is led.
    pub async fn send(&self, mut request: Request<'_>) -> Result<Answer, Error> {
        let name = request.to.host().to_owned();
        let url = self.base(request.to)?;
        let mut home = Origin { url, name, private: request.from_private };
        let key = (request.to.host().to_owned(), request.to.repository().to_owned(), request.right);
        let (mut asked, mut hops) = (false, 0);
        loop {
            // Nobody but the registry itself is told a login, and nobody else is heard on which.
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
                StatusCode::UNAUTHORIZED if at_home && !asked => {
                    asked = true;
                    let authorization = self.authorize(&request, &answer).await?;
                    if let Ok(mut all) = self.authorized.lock() {
                        all.insert(key.clone(), authorization);
                    }
                }
                // Another host's wish for a login is nothing that an operator should be told to fulfil.
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
                        let why = "what is written is written at the registry";
                        return Err(home.astray(&request.url, why));
                    }
                    hops += 1;
                    if hops > REDIRECTS {
                        return Err(home.astray(&request.url, "it leads on and on"));
                    }
                    request.url = answer.next()?;
                }
                _ => return Ok(answer),
            }
        }
    }

    /// Gets what is at a URL of nobody's registry: without a login, and by TLS, or from this machine.
    pub async fn get(&self, url: &Url, until: Instant) -> Result<Answer, Error> {
        let mut home = Origin { url: url.clone(), name: host(url), private: false };
        if url.scheme() != "https" && !(url.scheme() == "http" && is_local(url)) {
            return Err(home.astray(url, "it is not asked for over TLS"));
        }
        let mut at = url.clone();
        for _ in 0..=REDIRECTS {
            let builder = self.client(&at, &home).get(at.clone());
            let answer = self.answer(builder, &at, until, false, &home).await?;
            if !answer.status.is_redirection() {
                return Ok(answer);
            }
            at = answer.next()?;
            home = answer.home;
        }
        Err(home.astray(&at, "it leads on and on"))
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
        let (host, mut home) = (home.asked(url), home.clone());
        // What is sent may take as long as there is time; an answer may not let us wait for it.
        let left = until.saturating_duration_since(Instant::now());
        let within = if uploads { left } else { left.min(idle) };
        let told = if within == left { total } else { idle };
        let response = match tokio::time::timeout(within, builder.send()).await {
            Ok(Ok(response)) => response,
            Ok(Err(error)) if error.is_timeout() => return Err(Error::Late { host, within: told }),
            Ok(Err(error)) => {
                return Err(match Public::refused(&error) {
                    Some(why) => Error::Astray { host: Asked::Itself(home.name), why },
                    None => Error::Unreachable { host, why: causes(error) },
                });
            }
            Err(_) => return Err(Error::Late { host, within: told }),
        };
        let (status, headers) = (response.status(), response.headers().clone());
        if home.is_at(url) {
            let address = response.remote_addr().map(|address| address.ip());
            home.private = address.is_some_and(|address| !is_public(address));
        }
        Ok(Answer { status, headers, url: url.clone(), home, response, idle, until, total })
    }

    /// What the registry wants to see with a request, by its challenge.
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
            let why = "it wants a login and does not say which kind".to_owned();
            return Err(Error::Protocol { host: Asked::Itself(host), why });
        }
        match self.settings.logins.of(request.to, request.until).await? {
            Some(Login::Password { user, password }) => {
                Ok(Authorization { header: basic_of(&user, &password), with_login: true })
            }
            Some(Login::Identity(_)) => {
                let why = "it wants a password, and the login is a token".to_owned();
                Err(Error::Login { host, why })
            }
            None => Err(Error::NoLogin { host }),
        }
    }

    /// A token of the service that the registry names. The login goes there, as the registry could
    /// have had it itself; without TLS only to this machine, or to the very host that is asked without.
    async fn token(
        &self,
        request: &Request<'_>,
        home: &Origin,
        realm: &str,
        service: Option<String>,
    ) -> Result<Authorization, Error> {
        let host = request.to.host().to_owned();
        let mut url: Url = realm.parse().map_err(|_| Error::Protocol {
            host: Asked::Itself(host.clone()),
            why: "the realm of its logins is no URL".to_owned(),
        })?;
        home.follow(&home.url, &url)?;
        // Asked for by us, not by the challenge: no more than what this is for.
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
        let asked = home.asked(&url);
        let body = Zeroizing::new(answer.whole("a token", ANSWER).await?.to_vec());
        // What is wrong with it is not told: it can be most of a token.
        let token = serde_json::from_slice(&body)
            .ok()
            .and_then(|Token { token, access_token }| token.or(access_token))
            .map(Zeroizing::new)
            .ok_or_else(|| Error::Protocol { host: asked, why: "it gives no token".to_owned() })?;
        let header = Zeroizing::new(format!("Bearer {}", *token));
        Ok(Authorization { header, with_login: login.is_some() })
    }
}

impl Answer {
    /// Where it leads.
    pub fn next(&self) -> Result<Url, Error> {
        self.home.next(&self.url, &self.headers)
    }

    /// Reads all of the body, if it is no larger than that.
    pub async fn whole(self, what: &'static str, most: u64) -> Result<Bytes, Error> {
        let Self { url, home, response, idle, until, total, .. } = self;
        let host = home.asked(&url);
        let too_large = || Error::TooLarge { what, most };
        if response.content_length().is_some_and(|length| length > most) {
            return Err(too_large());
        }
        let mut body = Vec::new();
        let mut stream = response.bytes_stream();
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let within = left.min(idle);
            let told = if within == left { total } else { idle };
            let chunk = match tokio::time::timeout(within, stream.next()).await {
                Ok(None) => return Ok(body.into()),
                Ok(Some(Ok(chunk))) => chunk,
                Ok(Some(Err(error))) => {
                    return Err(Error::Unreachable { host, why: causes(error) });
                }
                Err(_) => return Err(Error::Late { host, within: told }),
            };
            if (body.len() + chunk.len()) as u64 > most {
                return Err(too_large());
            }
            body.extend_from_slice(&chunk);
        }
    }

    /// What a status means that is not the one hoped for.
    pub async fn fault(self) -> Error {
        let (host, status) = (self.home.asked(&self.url), self.status.as_u16());
        let body = self.whole("an answer", ANSWER).await.unwrap_or_default();
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

/// A header that no `Debug` shows.
fn secret(text: &str, url: &Url) -> Result<HeaderValue, Error> {
    let mut value = HeaderValue::from_str(text).map_err(|_| Error::Login {
        host: host(url),
        why: "it has characters that no HTTP header can hold".to_owned(),
    })?;
    value.set_sensitive(true);
    Ok(value)
}
