//! HTTP+SSE transport of revision 2024-11-05: one event stream for all messages of the server,
//! which names the endpoint for all messages to the server.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use http::{HeaderMap, StatusCode, Uri};
use tokio_util::sync::{CancellationToken, DropGuard};
use url::Url;

use super::{
    super::{
        call_error::CallError,
        message_sink::MessageSink,
        multiplexer::{Cancel, Multiplexer, StreamKind},
        transport::{Call, Reply, ServerTransport},
    },
    client::{EVENTS, PATIENCE, Wire, content_type, uri},
    sse_reader::Events,
};
use portcullis_protocol::{
    codec::{Caps, Frame},
    exchange::{Method, Revision},
};
use portcullis_vault::Secret;

/// Transport to one HTTP+SSE server.
pub(crate) struct Sse {
    wire: Arc<Wire>,
    /// Endpoint for messages to the server.
    endpoint: Uri,
    multiplexer: Arc<Multiplexer>,
    _open: DropGuard,
}

impl Sse {
    /// Opens the stream at `url`, with secret headers, and waits for the endpoint. Messages without
    /// a call go to `sink`.
    ///
    /// # Errors
    /// A [`CallError`] if there is no such stream, or its endpoint has another origin: the
    /// operator's headers are sent only to the host in the config.
    pub async fn open(
        url: &str,
        headers: &[(String, Secret)],
        caps: Caps,
        sink: MessageSink,
    ) -> Result<Self, CallError> {
        let wire = Arc::new(Wire::new(url, headers)?);
        let response = wire.listen(None).await?;
        let status = response.status();
        if matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) {
            return Err(CallError::Unavailable(format!(
                "it answered {status}: check the server's `headers` in the config"
            )));
        }
        if status != StatusCode::OK || content_type(&response) != EVENTS {
            return Err(CallError::Unavailable(format!("it has no event stream: {status}")));
        }
        let mut events = Events::of(response, caps.bytes);
        let endpoint = loop {
            let event = events.next().await.ok_or_else(|| {
                CallError::Unavailable("its event stream ended before the endpoint".into())
            })??;
            if event.name.as_deref() == Some(b"endpoint") {
                break endpoint(wire.url(), &String::from_utf8_lossy(&event.data))?;
            }
        };
        let out = {
            let (wire, endpoint) = (wire.clone(), endpoint.clone());
            Arc::new(move |text| {
                let (wire, endpoint) = (wire.clone(), endpoint.clone());
                let sending = async move {
                    if let Err(failure) = soon(post(&wire, endpoint, text)).await {
                        tracing::debug!(%failure, "notification or response could not be sent");
                    }
                };
                Box::pin(sending) as _
            })
        };
        let multiplexer = Arc::new(Multiplexer::new(caps, sink, out));
        let closing = CancellationToken::new();
        tokio::spawn(read(events, multiplexer.clone(), closing.clone()));
        Ok(Self { wire, endpoint, multiplexer, _open: closing.drop_guard() })
    }
}

/// The endpoint that a server names. It must have the server's origin.
fn endpoint(url: &Url, named: &str) -> Result<Uri, CallError> {
    let endpoint = url
        .join(named)
        .map_err(|_| CallError::Misbehaved("it names an endpoint that is not a URL".into()))?;
    let credentials = !endpoint.username().is_empty() || endpoint.password().is_some();
    if endpoint.origin() != url.origin() || credentials {
        return Err(CallError::Misbehaved("it names an endpoint of another origin".into()));
    }
    uri(&endpoint)
}

/// Posts a message whose response, if any, comes on the stream. The caller bounds the time: some
/// servers answer a POST only after the work is done.
async fn post(wire: &Wire, endpoint: Uri, text: Bytes) -> Result<(), CallError> {
    let response = wire.post_to(endpoint, text, HeaderMap::new()).await?;
    let status = response.status();
    if status.is_success() {
        Ok(())
    } else {
        Err(CallError::Unavailable(format!("it answered {status} to a message")))
    }
}

/// Bounds work without a call's deadline.
async fn soon(work: impl Future<Output = Result<(), CallError>>) -> Result<(), CallError> {
    tokio::time::timeout(PATIENCE, work).await.unwrap_or(Err(CallError::Timeout(PATIENCE)))
}

async fn read(mut events: Events, multiplexer: Arc<Multiplexer>, closing: CancellationToken) {
    let reading = async {
        loop {
            match events.next().await {
                Some(Ok(event)) => {
                    let message = event.name.as_deref().is_none_or(|name| name == b"message");
                    if message && !event.data.is_empty() {
                        multiplexer.take(event.data, StreamKind::Shared).await;
                    }
                }
                Some(Err(failure)) => return failure.to_string(),
                None => return "its event stream ended".to_owned(),
            }
        }
    };
    let why = tokio::select! {
        why = reading => why,
        () = closing.cancelled() => "the line was closed".to_owned(),
    };
    multiplexer.die(why);
}

#[async_trait]
impl ServerTransport for Sse {
    async fn call(&self, call: Call) -> Result<Reply, CallError> {
        if self.multiplexer.dead().is_some() {
            return Err(self.multiplexer.unavailable());
        }
        let (mut begun, text) = self.multiplexer.begin(&call);
        // `initialize` cannot be cancelled.
        let cancels = call.method.as_str() != Method::INITIALIZE;
        let mut guard = Cancel { multiplexer: &self.multiplexer, id: begun.id, cancels };
        let work = async {
            let (wire, endpoint) = (self.wire.clone(), self.endpoint.clone());
            let gone = |_| Err(self.multiplexer.unavailable());
            // The response may come before the server has accepted the POST.
            tokio::select! {
                answer = &mut begun.answer => return answer.unwrap_or_else(gone),
                posted = post(&wire, endpoint, text) => posted?,
            }
            begun.answer.await.unwrap_or_else(gone)
        };
        let reply = call.clock.bound(work).await;
        guard.cancels &= matches!(reply, Err(CallError::Timeout(_)));
        reply
    }

    async fn notify(&self, method: &str, params: Bytes) -> Result<(), CallError> {
        let text = Frame::notification(method, &params);
        soon(post(&self.wire, self.endpoint.clone(), text)).await
    }

    fn agreed(&self, revision: Revision) {
        *self.wire.revision.write() = Some(revision);
        self.multiplexer.agreed(revision);
    }

    fn dead(&self) -> Option<String> {
        self.multiplexer.dead()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoint_must_have_the_servers_origin() {
        let url = Url::parse("https://a.example/base/sse?x=1").unwrap();
        for (named, whole) in [
            ("/messages?session=1", "https://a.example/messages?session=1"),
            ("messages", "https://a.example/base/messages"),
            ("https://a.example:443/m", "https://a.example/m"),
        ] {
            assert_eq!(endpoint(&url, named).unwrap(), whole);
        }
        for named in [
            "http://a.example/m",
            "https://a.example:444/m",
            "https://b.example/m",
            "//b.example/m",
            "https://u:p@a.example/m",
            "data:x",
            "https://",
        ] {
            assert!(endpoint(&url, named).is_err(), "{named}");
        }
    }
}
