//! Reader of a server's event stream.

use std::time::Duration;

use bytes::Bytes;
use futures_util::{
    Stream, StreamExt,
    stream::{self, BoxStream},
};
use http::HeaderValue;

use super::{
    super::call_error::CallError,
    client::{Response, next_chunk},
};
use portcullis_foundation::backoff::Backoff;
use portcullis_protocol::codec::{Broken, Event, events};

/// Default pause before a stream is resumed.
const PAUSE: Duration = Duration::from_secs(1);
/// Bounds of the pause, also for the server's own value.
const PAUSES: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(30));

/// Events of a server, each bounded by the maximum size of a message.
pub(super) struct Events(BoxStream<'static, Result<Event, CallError>>);

impl Events {
    /// The events of a response body.
    pub fn of(response: Response, most: usize) -> Self {
        let chunks = stream::unfold(response.into_body(), async |mut body| {
            let chunk = next_chunk(&mut body).await?;
            Some((chunk, body))
        });
        Self::from_chunks(chunks, most)
    }

    fn from_chunks(
        chunks: impl Stream<Item = Result<Bytes, CallError>> + Send + 'static,
        most: usize,
    ) -> Self {
        let events = events(chunks, most).map(|event| {
            event.map_err(|broken| match broken {
                Broken::Source(failure) => failure,
                Broken::TooLarge(_) => CallError::Misbehaved(broken.to_string()),
            })
        });
        Self(events.boxed())
    }

    /// The next event; `None` at the end.
    pub async fn next(&mut self) -> Option<Result<Event, CallError>> {
        self.0.next().await
    }
}

/// Position at which an interrupted stream is resumed.
#[derive(Debug, Default)]
pub(super) struct Resume {
    /// Id of the last event with an id.
    pub last: Option<HeaderValue>,
    retry: Option<Duration>,
}

impl Resume {
    /// Records the position after an event.
    pub fn note(&mut self, event: &Event) {
        if let Some(id) = &event.id {
            // An empty id resets the position. An id that no header can hold is unusable.
            self.last = Some(id)
                .filter(|id| !id.is_empty())
                .and_then(|id| HeaderValue::from_bytes(id).ok());
        }
        if let Some(retry) = event.retry {
            self.retry = Some(Duration::from_millis(retry));
        }
    }

    /// Pause before the stream is resumed, after `failed` failed attempts.
    pub fn pause(&self, failed: u32) -> Duration {
        let first = self.retry.unwrap_or(PAUSE).clamp(PAUSES.0, PAUSES.1);
        Backoff::new(first, PAUSES.1).pause(failed)
    }
}

#[cfg(test)]
mod tests {
    use futures_util::stream;
    use proptest::prelude::*;

    use super::*;

    const MOST: usize = 100;

    async fn all(chunks: &[&[u8]]) -> Vec<Result<Event, CallError>> {
        let chunks: Vec<_> = chunks.iter().map(|c| Ok(Bytes::copy_from_slice(c))).collect();
        let mut events = Events::from_chunks(stream::iter(chunks), MOST);
        let mut all = Vec::new();
        while let Some(event) = events.next().await {
            let failed = event.is_err();
            all.push(event);
            if failed {
                break;
            }
        }
        all
    }

    #[tokio::test]
    async fn events_are_limited_and_streams_are_not() {
        let event = format!("data: {}\n\n", "x".repeat(80));
        assert_eq!(all(&[event.as_bytes(); 20]).await.len(), 20);
        let endless = [&b"data: xxxxxxxxxxxxxxxxxxxxxxxxxx\n"[..]; 10];
        let last = all(&endless).await.pop().unwrap();
        assert!(matches!(last, Err(CallError::Misbehaved(why)) if why.contains("more than 100")));
    }

    #[test]
    fn resumption_uses_the_last_id_and_retry_time() {
        let mut resume = Resume::default();
        assert_eq!(resume.pause(0), PAUSE);
        let event = |id: Option<&str>, retry| Event {
            id: id.map(|id| Bytes::copy_from_slice(id.as_bytes())),
            retry,
            ..Default::default()
        };
        for (next, last, pause) in [
            (event(Some("1"), Some(0)), Some("1"), PAUSES.0),
            (event(None, Some(500)), Some("1"), Duration::from_millis(500)),
            (event(Some("ä\u{1}"), None), None, Duration::from_millis(500)),
            (event(Some("2/x"), Some(u64::MAX)), Some("2/x"), PAUSES.1),
            (event(Some(""), Some(100)), None, Duration::from_millis(100)),
        ] {
            resume.note(&next);
            assert_eq!(resume.last.as_ref().map(|id| id.to_str().unwrap()), last);
            assert_eq!(resume.pause(0), pause);
        }
        assert_eq!(resume.pause(2), Duration::from_millis(400));
        assert_eq!(resume.pause(u32::MAX), PAUSES.1);
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_cause_no_panic(
            chunks in proptest::collection::vec(
                prop_oneof![
                    proptest::collection::vec(any::<u8>(), 0..40),
                    "(data|id|event|retry|)(: ?|)[0-9a-z]{0,3}(\r|\n|\r\n|\n\n)"
                        .prop_map(String::into_bytes),
                ],
                0..20,
            )
        ) {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            let chunks: Vec<&[u8]> = chunks.iter().map(Vec::as_slice).collect();
            let mut resume = Resume::default();
            for event in runtime.block_on(all(&chunks)).into_iter().flatten() {
                resume.note(&event);
            }
        }
    }
}
