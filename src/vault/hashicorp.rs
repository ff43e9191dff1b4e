//! HashiCorp Vault and OpenBao, which has the same API: one field of one secret of a key-value
//! engine, version 1 or 2.
//!
//! Address and credentials come from the environment, by the names of Vault's own tools:
//! `VAULT_ADDR`, `VAULT_NAMESPACE`, `VAULT_CACERT`; a token in `VAULT_TOKEN` or in the file of
//! `VAULT_TOKEN_FILE`, or a role in `VAULT_ROLE_ID` with `VAULT_SECRET_ID` or
//! `VAULT_SECRET_ID_FILE`. A role's token is revoked after its one use.

use std::{borrow::Cow, collections::HashMap, env, fs, net::IpAddr, time::Duration};

use http::{HeaderMap, HeaderName, HeaderValue};
use reqwest::{Certificate, Client, Method, StatusCode, Url, redirect};
use serde::Deserialize;
use serde_json::{json, value::RawValue};
use zeroize::Zeroizing;

use crate::{Secret, error::BackendError, headers};

/// Limit of an answer in bytes.
const MAX_ANSWER_BYTES: usize = 1 << 20;
/// Time limit for one request.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(8);

const NAMESPACE: HeaderName = HeaderName::from_static("x-vault-namespace");
/// Vault's agents refuse requests without this header, because a browser could be made to send
/// them.
const REQUEST_MARKER: HeaderName = HeaderName::from_static("x-vault-request");

/// One field of the secret at `path`, in the form of `vault kv get`.
pub(crate) async fn field(path: &str, field: &str) -> Result<Zeroizing<String>, BackendError> {
    let vault = Vault::of_environment()?;
    let (token, logged_in) = vault.token().await?;
    let value = vault.read(&token, path, field).await;
    if logged_in {
        let url = vault.url(["auth", "token", "revoke-self"])?;
        // The token also expires by itself.
        let _ = vault.ask(Method::POST, url, Some(&token), None).await;
    }
    value
}

struct Vault {
    client: Client,
    address: Url,
    namespace: Option<String>,
}

/// Mount of the engine that a path belongs to, from `sys/internal/ui/mounts`.
#[derive(Deserialize)]
struct Mount {
    path: String,
    options: Option<HashMap<String, String>>,
}

#[derive(Deserialize)]
struct Answer<T> {
    data: T,
}

#[derive(Deserialize)]
struct Fields<'a>(#[serde(borrow)] HashMap<Cow<'a, str>, &'a RawValue>);

impl Vault {
    fn of_environment() -> Result<Self, BackendError> {
        let address = variable("VAULT_ADDR")?.ok_or_else(|| {
            BackendError::new("`VAULT_ADDR` is not set: export the address of Vault")
        })?;
        let address = Url::parse(&address)
            .ok()
            .filter(|url| url.has_host() && !url.cannot_be_a_base())
            .ok_or_else(|| BackendError::new("`VAULT_ADDR` is not a URL"))?;
        let loopback = address.host_str().is_some_and(|host| {
            let host = host.trim_matches(['[', ']']);
            host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
        });
        if address.scheme() != "https" && !(address.scheme() == "http" && loopback) {
            return Err(BackendError::new(
                "`VAULT_ADDR` is not https: plain http exposes secrets on the network, and is \
                 accepted for this machine only",
            ));
        }
        // Fails only if a provider is already installed.
        let _ = rustls::crypto::ring::default_provider().install_default();
        // A redirect or a proxy of the environment would send the token elsewhere.
        let mut client = Client::builder()
            .no_proxy()
            .redirect(redirect::Policy::none())
            .timeout(REQUEST_TIMEOUT);
        if let Some(file) = variable("VAULT_CACERT")? {
            let bad = |why: String| BackendError::new(format!("`VAULT_CACERT`, {file}: {why}"));
            let pem = fs::read(&file).map_err(|error| bad(error.to_string()))?;
            let authorities = Certificate::from_pem_bundle(&pem)
                .ok()
                .filter(|all| !all.is_empty())
                .ok_or_else(|| bad("it contains no certificate".to_owned()))?;
            client = client.tls_certs_only(authorities);
        }
        let client = client.build().map_err(|error| {
            BackendError::new(format!("the HTTP client cannot be created: {error}"))
        })?;
        Ok(Self { client, address, namespace: variable("VAULT_NAMESPACE")? })
    }

    /// The token, and whether it was issued for this request only.
    async fn token(&self) -> Result<(Secret, bool), BackendError> {
        if let Some(token) = secret("VAULT_TOKEN", "VAULT_TOKEN_FILE")? {
            return Ok((token, false));
        }
        let Some(role) = variable("VAULT_ROLE_ID")? else {
            return Err(BackendError::new(
                "no credentials: export `VAULT_TOKEN`, `VAULT_TOKEN_FILE`, or `VAULT_ROLE_ID` with \
                 `VAULT_SECRET_ID_FILE`",
            ));
        };
        let secret_id = secret("VAULT_SECRET_ID", "VAULT_SECRET_ID_FILE")?
            .ok_or_else(|| BackendError::new("`VAULT_ROLE_ID` needs a `VAULT_SECRET_ID_FILE`"))?;
        let body = json!({ "role_id": role, "secret_id": secret_id.expose() });
        let body = Zeroizing::new(body.to_string());
        let url = self.url(["auth", "approle", "login"])?;
        let answer = self.ask(Method::POST, url, None, Some(body)).await?;
        #[derive(Deserialize)]
        struct Login {
            auth: Auth,
        }
        #[derive(Deserialize)]
        struct Auth {
            client_token: String,
        }
        let login: Login = match answer {
            (StatusCode::OK, body) => read(&body)?,
            (status, _) => {
                return Err(BackendError::new(format!(
                    "Vault refuses the role's login (HTTP {status})"
                )));
            }
        };
        Ok((Secret::new(login.auth.client_token), true))
    }

    async fn read(
        &self,
        token: &Secret,
        path: &str,
        field: &str,
    ) -> Result<Zeroizing<String>, BackendError> {
        let refused =
            || BackendError::new("Vault's policies do not permit this token to read that path");
        let steps = ["sys", "internal", "ui", "mounts"].into_iter().chain(path.split('/'));
        let (status, body) = self.ask(Method::GET, self.url(steps)?, Some(token), None).await?;
        let mount = match status {
            StatusCode::OK => Some(read::<Answer<Mount>>(&body)?.data),
            // As in Vault's own client: then it is an old version, which has only version 1 of the
            // engine.
            StatusCode::NOT_FOUND => None,
            StatusCode::FORBIDDEN => return Err(refused()),
            other => return Err(odd(other)),
        };
        let versioned = mount.filter(|mount| {
            let options = mount.options.as_ref();
            options.and_then(|options| options.get("version")).is_some_and(|two| two == "2")
        });
        let steps = match &versioned {
            None => path.to_owned(),
            Some(mount) => {
                let mount = mount.path.trim_matches('/');
                let rest = path.strip_prefix(mount).and_then(|rest| rest.strip_prefix('/'));
                let rest = rest.filter(|rest| !rest.is_empty()).ok_or_else(|| {
                    BackendError::new(format!("`{mount}` is an engine: add the path of a secret"))
                })?;
                format!("{mount}/data/{rest}")
            }
        };
        let url = self.url(steps.split('/'))?;
        let (status, body) = self.ask(Method::GET, url, Some(token), None).await?;
        match status {
            StatusCode::OK => {}
            StatusCode::FORBIDDEN => return Err(refused()),
            StatusCode::NOT_FOUND => {
                return Err(BackendError::new("Vault has no secret at that path"));
            }
            other => return Err(odd(other)),
        }
        let fields = match versioned {
            None => read::<Answer<Fields<'_>>>(&body)?.data,
            Some(_) => read::<Answer<Answer<Fields<'_>>>>(&body)?.data.data,
        };
        let value = fields.0.get(field).ok_or_else(|| {
            BackendError::new(
                "the secret does not have this \
            field",
            )
        })?;
        let value = serde_json::from_str::<String>(value.get());
        value.map(Zeroizing::new).map_err(|_| BackendError::new("the field is not text"))
    }

    fn url<'a>(&self, steps: impl IntoIterator<Item = &'a str>) -> Result<Url, BackendError> {
        let mut url = self.address.clone();
        url.set_query(None);
        url.set_fragment(None);
        url.path_segments_mut()
            .map_err(|()| BackendError::new("`VAULT_ADDR` is not a URL"))?
            .pop_if_empty()
            .push("v1")
            .extend(steps);
        Ok(url)
    }

    async fn ask(
        &self,
        method: Method,
        url: Url,
        token: Option<&Secret>,
        body: Option<Zeroizing<String>>,
    ) -> Result<(StatusCode, Zeroizing<Vec<u8>>), BackendError> {
        let unreachable = |error: reqwest::Error| {
            BackendError::new(format!("Vault cannot be reached: {}", causes(&error.without_url())))
        };
        let mut more = match token {
            Some(token) => {
                headers(&[("x-vault-token".to_owned(), token.clone())]).map_err(|_| {
                    BackendError::new("the token contains characters that are not legal in one")
                })?
            }
            None => HeaderMap::new(),
        };
        more.insert(REQUEST_MARKER, HeaderValue::from_static("true"));
        if let Some(namespace) = &self.namespace {
            let namespace = HeaderValue::try_from(namespace)
                .map_err(|_| BackendError::new("`VAULT_NAMESPACE` is not a namespace"))?;
            more.insert(NAMESPACE, namespace);
        }
        let mut request = self.client.request(method, url).headers(more);
        if let Some(body) = body {
            request = request.body(body.as_bytes().to_vec());
        }
        let mut response = request.send().await.map_err(unreachable)?;
        let mut all = Zeroizing::new(Vec::with_capacity(MAX_ANSWER_BYTES));
        while let Some(chunk) = response.chunk().await.map_err(unreachable)? {
            if all.len() + chunk.len() > MAX_ANSWER_BYTES {
                return Err(BackendError::new("Vault's answer is larger than 1 MiB"));
            }
            all.extend_from_slice(&chunk);
        }
        Ok((response.status(), all))
    }
}

fn odd(status: StatusCode) -> BackendError {
    BackendError::new(match status.as_u16() {
        503 => "Vault is sealed or under maintenance".to_owned(),
        300..400 => "Vault redirects: set `VAULT_ADDR` to its active node".to_owned(),
        code => format!("Vault answers with HTTP {code}"),
    })
}

/// Causes of a client error, without the URL.
fn causes(error: &dyn std::error::Error) -> String {
    let mut words = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        words = format!("{words}: {cause}");
        next = cause.source();
    }
    words
}

fn read<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Result<T, BackendError> {
    serde_json::from_slice(body)
        .map_err(|_| BackendError::new("the answer does not match Vault's API: check `VAULT_ADDR`"))
}

fn variable(name: &str) -> Result<Option<String>, BackendError> {
    match env::var(name) {
        Ok(value) if value.is_empty() => Ok(None),
        Ok(value) => Ok(Some(value)),
        Err(env::VarError::NotPresent) => Ok(None),
        Err(env::VarError::NotUnicode(_)) => {
            Err(BackendError::new(format!("`{name}` is not UTF-8 text")))
        }
    }
}

/// Secret from an environment variable, or from the file that a variable names.
fn secret(name: &str, file: &str) -> Result<Option<Secret>, BackendError> {
    if let Some(value) = variable(name)? {
        return Ok(Some(Secret::new(value)));
    }
    let Some(path) = variable(file)? else { return Ok(None) };
    let read = fs::read_to_string(&path).map(Zeroizing::new);
    let text = read.map_err(|error| BackendError::new(format!("`{file}`, {path}: {error}")))?;
    let text = text.trim();
    if text.is_empty() {
        return Err(BackendError::new(format!("`{file}`, {path}: it is empty")));
    }
    Ok(Some(Secret::new(text.to_owned())))
}
