//! Webhook for waiting calls. Its response may resolve a call.

use std::time::Duration;

use http::{HeaderMap, StatusCode};
use http_body_util::{BodyExt as _, Limited};
use serde::Deserialize;

use super::{PendingApproval, Resolution};
use portcullis_vault::Secret;

/// Limit in bytes of its response.
const ANSWER: usize = 64 << 10;
/// Time limit for connecting.
const CONNECT: Duration = Duration::from_secs(10);

/// Target of notifications.
#[derive(Clone)]
pub struct Webhook {
    client: reqwest::Client,
    url: reqwest::Url,
    headers: HeaderMap,
}

/// Cause why a webhook cannot be used. Contains no header values.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Illegal(String);

/// Body of its response: `{"decision": "allow"}` or `{"decision": "deny", "reason": "…"}`, with
/// `by` for the approver.
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
    /// A webhook whose time limit is that of waiting calls.
    ///
    /// # Errors
    /// If a header is invalid.
    pub fn new(
        url: reqwest::Url,
        headers: &[(String, Secret)],
        patience: Duration,
    ) -> Result<Self, Illegal> {
        let map =
            portcullis_vault::headers(headers).map_err(|illegal| Illegal(illegal.to_string()))?;
        // Calls must not be disclosed to redirects or to proxies of the environment.
        let client = reqwest::Client::builder()
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(CONNECT)
            .timeout(patience)
            .build()
            .map_err(|error| Illegal(format!("the HTTP client could not be created: {error}")))?;
        Ok(Self { client, url, headers: map })
    }

    /// Its host, without parts that could be secret.
    pub fn host(&self) -> String {
        self.url.host_str().unwrap_or_default().to_owned()
    }

    /// Notifies the webhook of a call. Returns its resolution, if any: status 200 with a body
    /// resolves the call; with 202 or 204, an operator will use `portcullis approve`.
    ///
    /// # Errors
    /// The cause, without the URL, which can contain a secret.
    pub async fn notify(&self, call: &PendingApproval) -> Result<Option<Resolution>, String> {
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
