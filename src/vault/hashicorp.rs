//! HashiCorp Vault (and OpenBao, which speaks the same): one field of one secret of a key-value
//! engine, of version 1 or 2.
//!
//! Where it is and who asks comes from the environment, by the names that Vault's own tools use:
//! `VAULT_ADDR`, `VAULT_NAMESPACE`, `VAULT_CACERT`; a token in `VAULT_TOKEN` or in the file of
//! `VAULT_TOKEN_FILE`, or a role in `VAULT_ROLE_ID` with `VAULT_SECRET_ID` or
//! `VAULT_SECRET_ID_FILE`. A token that a role was given is given back after its one use.

use std::{borrow::Cow, collections::HashMap, env, fs, net::IpAddr, time::Duration};

use http::{HeaderMap, HeaderName, HeaderValue};
use reqwest::{Certificate, Client, Method, StatusCode, Url, redirect};
use serde::Deserialize;
use serde_json::{json, value::RawValue};
use zeroize::Zeroizing;

use crate::{Secret, error::Why, headers};

/// Bytes of an answer that are read.
const MAX_ANSWER: usize = 1 << 20;
/// The time that one request may take.
const REQUEST: Duration = Duration::from_secs(8);

const NAMESPACE: HeaderName = HeaderName::from_static("x-vault-namespace");
/// Without it, Vault's agents refuse requests that a browser could be made to send.
const REQUESTED: HeaderName = HeaderName::from_static("x-vault-request");

/// One field of the secret at `path`, which is written as for `vault kv get`.
pub(crate) async fn field(path: &str, field: &str) -> Result<Zeroizing<String>, Why> {
    let vault = Vault::of_environment()?;
    let (token, given) = vault.token().await?;
    let value = vault.read(&token, path, field).await;
    if given {
        let url = vault.url(["auth", "token", "revoke-self"])?;
        // It runs out by itself, too.
        let _ = vault.ask(Method::POST, url, Some(&token), None).await;
    }
    value
}

struct Vault {
    client: Client,
    address: Url,
    namespace: Option<String>,
}

/// What `sys/internal/ui/mounts` says of the engine that a path belongs to.
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
    fn of_environment() -> Result<Self, Why> {
        let address = variable("VAULT_ADDR")?
            .ok_or_else(|| Why::new("`VAULT_ADDR` is not set: export the address of Vault"))?;
        let address = Url::parse(&address)
            .ok()
            .filter(|url| url.has_host() && !url.cannot_be_a_base())
            .ok_or_else(|| Why::new("`VAULT_ADDR` is no URL"))?;
        let loopback = address.host_str().is_some_and(|host| {
            let host = host.trim_matches(['[', ']']);
            host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
        });
        if address.scheme() != "https" && !(address.scheme() == "http" && loopback) {
            return Err(Why::new(
                "`VAULT_ADDR` is not https: plain http would show secrets on the network, and is \
                 taken for this machine only",
            ));
        }
        // An error says that a provider is there already.
        let _ = rustls::crypto::ring::default_provider().install_default();
        // A redirect or a proxy of the environment would carry the token to another place.
        let mut client =
            Client::builder().no_proxy().redirect(redirect::Policy::none()).timeout(REQUEST);
        if let Some(file) = variable("VAULT_CACERT")? {
            let bad = |why: String| Why::new(format!("`VAULT_CACERT`, {file}: {why}"));
            let pem = fs::read(&file).map_err(|error| bad(error.to_string()))?;
            let authorities = Certificate::from_pem_bundle(&pem)
                .ok()
                .filter(|all| !all.is_empty())
                .ok_or_else(|| bad("it contains no certificate".to_owned()))?;
            client = client.tls_certs_only(authorities);
        }
        let client = client
            .build()
            .map_err(|error| Why::new(format!("no HTTP client could be made: {error}")))?;
        Ok(Self { client, address, namespace: variable("VAULT_NAMESPACE")? })
    }

    /// The token, and whether it was given for this alone.
    async fn token(&self) -> Result<(Secret, bool), Why> {
        if let Some(token) = secret("VAULT_TOKEN", "VAULT_TOKEN_FILE")? {
            return Ok((token, false));
        }
        let Some(role) = variable("VAULT_ROLE_ID")? else {
            return Err(Why::new(
                "nobody asks: export `VAULT_TOKEN`, `VAULT_TOKEN_FILE`, or `VAULT_ROLE_ID` with \
                 `VAULT_SECRET_ID_FILE`",
            ));
        };
        let secret_id = secret("VAULT_SECRET_ID", "VAULT_SECRET_ID_FILE")?
            .ok_or_else(|| Why::new("`VAULT_ROLE_ID` needs a `VAULT_SECRET_ID_FILE`"))?;
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
                return Err(Why::new(format!("Vault does not let the role in (HTTP {status})")));
            }
        };
        Ok((Secret::new(login.auth.client_token), true))
    }

    async fn read(
        &self,
        token: &Secret,
        path: &str,
        field: &str,
    ) -> Result<Zeroizing<String>, Why> {
        let refused = || Why::new("Vault's policies do not let this token read there");
        let steps = ["sys", "internal", "ui", "mounts"].into_iter().chain(path.split('/'));
        let (status, body) = self.ask(Method::GET, self.url(steps)?, Some(token), None).await?;
        let mount = match status {
            StatusCode::OK => Some(read::<Answer<Mount>>(&body)?.data),
            // As Vault's own client has it: then it is an old one, which has version 1 alone.
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
                    Why::new(format!("`{mount}` is an engine: name a secret in it"))
                })?;
                format!("{mount}/data/{rest}")
            }
        };
        let url = self.url(steps.split('/'))?;
        let (status, body) = self.ask(Method::GET, url, Some(token), None).await?;
        match status {
            StatusCode::OK => {}
            StatusCode::FORBIDDEN => return Err(refused()),
            StatusCode::NOT_FOUND => return Err(Why::new("Vault has no secret there")),
            other => return Err(odd(other)),
        }
        let fields = match versioned {
            None => read::<Answer<Fields<'_>>>(&body)?.data,
            Some(_) => read::<Answer<Answer<Fields<'_>>>>(&body)?.data.data,
        };
        let value = fields.0.get(field).ok_or_else(|| Why::new("the secret has no such field"))?;
        let value = serde_json::from_str::<String>(value.get());
        value.map(Zeroizing::new).map_err(|_| Why::new("the field is not text"))
    }

    fn url<'a>(&self, steps: impl IntoIterator<Item = &'a str>) -> Result<Url, Why> {
        let mut url = self.address.clone();
        url.set_query(None);
        url.set_fragment(None);
        url.path_segments_mut()
            .map_err(|()| Why::new("`VAULT_ADDR` is no URL"))?
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
    ) -> Result<(StatusCode, Zeroizing<Vec<u8>>), Why> {
        let unreachable = |error: reqwest::Error| {
            Why::new(format!("Vault cannot be reached: {}", causes(&error.without_url())))
        };
        let mut more = match token {
            Some(token) => headers(&[("x-vault-token".to_owned(), token.clone())])
                .map_err(|_| Why::new("the token of Vault holds characters that no token has"))?,
            None => HeaderMap::new(),
        };
        more.insert(REQUESTED, HeaderValue::from_static("true"));
        if let Some(namespace) = &self.namespace {
            let namespace = HeaderValue::try_from(namespace)
                .map_err(|_| Why::new("`VAULT_NAMESPACE` is not a namespace"))?;
            more.insert(NAMESPACE, namespace);
        }
        let mut request = self.client.request(method, url).headers(more);
        if let Some(body) = body {
            request = request.body(body.as_bytes().to_vec());
        }
        let mut response = request.send().await.map_err(unreachable)?;
        let mut all = Zeroizing::new(Vec::with_capacity(MAX_ANSWER));
        while let Some(chunk) = response.chunk().await.map_err(unreachable)? {
            if all.len() + chunk.len() > MAX_ANSWER {
                return Err(Why::new("Vault's answer has more than 1 MiB"));
            }
            all.extend_from_slice(&chunk);
        }
        Ok((response.status(), all))
    }
}

fn odd(status: StatusCode) -> Why {
    Why::new(match status.as_u16() {
        503 => "Vault is sealed or under maintenance".to_owned(),
        300..400 => "Vault sends elsewhere: name its active node in `VAULT_ADDR`".to_owned(),
        code => format!("Vault answers with HTTP {code}"),
    })
}

/// What an error of the client comes from, without the URL.
fn causes(error: &dyn std::error::Error) -> String {
    let mut words = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        words = format!("{words}: {cause}");
        next = cause.source();
    }
    words
}

fn read<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Result<T, Why> {
    serde_json::from_slice(body)
        .map_err(|_| Why::new("the answer is not what Vault's API says: is it Vault?"))
}

fn variable(name: &str) -> Result<Option<String>, Why> {
    match env::var(name) {
        Ok(value) if value.is_empty() => Ok(None),
        Ok(value) => Ok(Some(value)),
        Err(env::VarError::NotPresent) => Ok(None),
        Err(env::VarError::NotUnicode(_)) => Err(Why::new(format!("`{name}` is not UTF-8 text"))),
    }
}

/// A secret of the environment, or of the file that the environment names.
fn secret(name: &str, file: &str) -> Result<Option<Secret>, Why> {
    if let Some(value) = variable(name)? {
        return Ok(Some(Secret::new(value)));
    }
    let Some(path) = variable(file)? else { return Ok(None) };
    let read = fs::read_to_string(&path).map(Zeroizing::new);
    let text = read.map_err(|error| Why::new(format!("`{file}`, {path}: {error}")))?;
    let text = text.trim();
    if text.is_empty() {
        return Err(Why::new(format!("`{file}`, {path}: it is empty")));
    }
    Ok(Some(Secret::new(text.to_owned())))
}
