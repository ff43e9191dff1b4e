//! Tells a URL of calls that wait. It may say in its answer what becomes of one.

use std::time::Duration;

use http::{HeaderMap, StatusCode};
use http_body_util::{BodyExt as _, Limited};
use serde::Deserialize;

use super::{PendingApproval, Resolution};
use portcullis_vault::Secret;

/// Bytes of its answer.
const ANSWER: usize = 64 << 10;
/// How long a connection may take to stand.
const CONNECT: Duration = Duration::from_secs(10);

/// Where to tell.
#[derive(Clone)]
pub struct Webhook {
    client: reqwest::Client,
    url: reqwest::Url,
    headers: HeaderMap,
}

/// A webhook that cannot be used. Holds no value of a header.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Illegal(String);

/// What it may answer with: `{"decision": "allow"}` or `{"decision": "deny", "reason": "…"}`, with
/// `by` for who said so.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Reply {
    decision: Decision,
    #[serde(default)]
    by: Option<String>,
    #[serde(default)]
    reason: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Decision {
    Allow,
    Deny,
}

impl Webhook {
    /// A webhook that waits for an answer as long as calls wait.
    ///
    /// # Errors
    /// Where a header is none.
    pub fn new(
        url: reqwest::Url,
        headers: &[(String, Secret)],
        patience: Duration,
    ) -> Result<Self, Illegal> {
        let map =
            portcullis_vault::headers(headers).map_err(|illegal| Illegal(illegal.to_string()))?;
        // Neither a redirect nor a proxy of the environment is to learn of calls.
        let client = reqwest::Client::builder()
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(CONNECT)
            .timeout(patience)
            .build()
            .map_err(|error| Illegal(format!("no HTTP client could be made: {error}")))?;
        Ok(Self { client, url, headers: map })
    }

    /// Where it is, without what could be a secret.
    pub fn host(&self) -> String {
        self.url.host_str().unwrap_or_default().to_owned()
    }

    /// Tells of a call. What it says of it, if it says anything: a status of 200 with a body does;
    /// with 202 or 204, somebody will use `portcullis approve`.
    ///
    /// # Errors
    /// What went wrong, without the URL, which can hold a secret.
    pub async fn tell(&self, call: &PendingApproval) -> Result<Option<Resolution>, String> {
        let failed = |error: reqwest::Error| error.without_url().to_string();
        let request = self.client.post(self.url.clone()).headers(self.headers.clone()).json(call);
        let answer = request.send().await.map_err(failed)?;
        match answer.status() {
            StatusCode::OK => {}
            status if status.is_success() => return Ok(None),
            status => return Err(format!("it answered {status}")),
        }
        let body: reqwest::Body = answer.into();
        let body = Limited::new(body, ANSWER).collect().await.map_err(|error| error.to_string())?;
        let body = body.to_bytes();
        if body.trim_ascii().is_empty() {
            return Ok(None);
        }
        let reply: Reply = serde_json::from_slice(&body)
            .map_err(|_| "its answer is not `{\"decision\": \"allow\" or \"deny\"}`".to_owned())?;
        Ok(Some(Resolution {
            allowed: matches!(reply.decision, Decision::Allow),
            by: reply.by.map_or_else(|| "webhook".to_owned(), |by| format!("webhook: {by}")),
            reason: reply.reason,
        }))
    }
}
