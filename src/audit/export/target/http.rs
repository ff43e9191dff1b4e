//! HTTP endpoints, including OTLP, that receive a batch as the body of a `POST`. A batch is
//! acknowledged by a 2xx status.

use std::{path::Path, sync::Arc, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;
use http::{HeaderMap, StatusCode, header};
use reqwest::Url;
use serde::Deserialize;

use super::{
    super::{Format, Item, Origin, format},
    Illegal, PATIENCE, Sink, Undelivered, causes, in_time, tls,
};
use portcullis_vault::Secret;

/// Maximum delay that an endpoint can set with `Retry-After`.
const LATEST: Duration = Duration::from_secs(300);
/// Maximum bytes of a response that are read.
const ANSWER: usize = 64 << 10;

pub(super) struct Endpoint {
    client: reqwest::Client,
    url: Url,
    format: Format,
    origin: Origin,
    headers: HeaderMap,
}

impl Endpoint {
    pub fn new(
        url: Url,
        format: Format,
        origin: Origin,
        headers: &[(String, Secret)],
        ca_file: Option<&Path>,
    ) -> Result<Self, Illegal> {
        let map =
            portcullis_vault::headers(headers).map_err(|illegal| Illegal(illegal.to_string()))?;
        // A redirect or a proxy of the environment would send records and credentials to a host
        // that the config does not name.
        let mut client = reqwest::Client::builder()
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(PATIENCE)
            .timeout(PATIENCE);
        if ca_file.is_some() {
            client = client.tls_backend_preconfigured(tls::client(ca_file)?.as_ref().clone());
        }
        let client = client
            .build()
            .map_err(|error| Illegal(format!("the HTTP client could not be created: {error}")))?;
        Ok(Self { client, url, format, origin, headers: map })
    }
}

/// Response of an OTLP receiver that accepted part of a request.
#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct OtlpResponse {
    partial_success: Option<Partial>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct Partial {
    /// A 64-bit number. The mapping writes it as text; some receivers write a number.
    rejected_log_records: serde_json::Value,
}

impl OtlpResponse {
    fn rejected(&self) -> u64 {
        self.partial_success.as_ref().map_or(0, |partial| match &partial.rejected_log_records {
            serde_json::Value::String(text) => text.parse().unwrap_or(0),
            number => number.as_u64().unwrap_or(0),
        })
    }
}

#[async_trait]
impl Sink for Endpoint {
    async fn deliver(&mut self, items: Arc<Vec<Item>>) -> Result<(), Undelivered> {
        let (Some(first), Some(last)) = (items.first(), items.last()) else { return Ok(()) };
        let body = Bytes::from(format::lines(self.format, &items, &self.origin, true)?);
        let request = self
            .client
            .post(self.url.clone())
            .header(header::CONTENT_TYPE, self.format.media())
            .header("portcullis-log", &self.origin.log)
            .header("portcullis-records", format!("{}-{}", first.seq, last.seq))
            .headers(self.headers.clone())
            .body(body);
        let answer = request.send().await.map_err(|error| {
            let what = causes(&error.without_url());
            Undelivered::Failed(format!("the endpoint can't be reached: {what}"))
        })?;
        let status = answer.status();
        if status.is_success() {
            if self.format == Format::Otlp {
                log_rejected(answer).await?;
            }
            return Ok(());
        }
        let what = format!("the endpoint answered {status}");
        Err(match (status, retry_after(answer.headers())) {
            (StatusCode::PAYLOAD_TOO_LARGE, _) => Undelivered::TooLarge(what),
            (_, Some(wait)) => Undelivered::Later { what, wait },
            (_, None) => Undelivered::Failed(what),
        })
    }
}

/// Logs records that a receiver rejected from a batch: OTLP forbids sending them again.
async fn log_rejected(mut answer: reqwest::Response) -> Result<(), Undelivered> {
    let read = async {
        let mut text = Vec::new();
        while let Ok(Some(chunk)) = answer.chunk().await {
            if text.len() + chunk.len() > ANSWER {
                break;
            }
            text.extend_from_slice(&chunk);
        }
        Ok(text)
    };
    let text = in_time("the endpoint's answer", read).await?;
    let rejected = serde_json::from_slice::<OtlpResponse>(&text).unwrap_or_default().rejected();
    if rejected > 0 {
        tracing::error!(
            rejected,
            "the receiver of an audit export took a request but rejected records of it"
        );
    }
    Ok(())
}

/// Seconds of `Retry-After`; a date is ignored.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let seconds = headers.get(header::RETRY_AFTER)?.to_str().ok()?.trim().parse().ok()?;
    Some(Duration::from_secs(seconds).min(LATEST))
}
