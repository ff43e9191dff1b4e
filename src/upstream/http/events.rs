//! A server's event stream, event by event.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures_util::{Stream, StreamExt, stream::BoxStream};
use reqwest::header::HeaderValue;
use sse_stream::{Error, Sse, SseStream};

use super::{super::link::Failure, wire::broken};

/// The pause before a stream is taken up again, where the server names none.
const PAUSE: Duration = Duration::from_secs(1);
/// The least and the longest such pause, whatever the server says.
const PAUSES: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(30));

/// Events of a server, each of at most as many bytes as a message.
pub(super) struct Events(BoxStream<'static, Result<Sse, Failure>>);

impl Events {
    /// The events of an answer's body.
    pub fn of(response: reqwest::Response, most: usize) -> Self {
        let chunks = response.bytes_stream();
        Self::from_chunks(chunks.map(|chunk| chunk.map_err(broken)), most)
    }

    fn from_chunks(
        chunks: impl Stream<Item = Result<Bytes, Failure>> + Send + 'static,
        most: usize,
    ) -> Self {
        // Bytes since the last event: the reader below buffers one event whole.
        let since = Arc::new(AtomicUsize::new(0));
        let counter = since.clone();
        let chunks = chunks.map(move |chunk| {
            let chunk = chunk?;
            if counter.fetch_add(chunk.len(), Ordering::Relaxed) + chunk.len() > most {
                return Err(Failure::Misbehaved(format!(
                    "an event of it has more than {most} bytes"
                )));
            }
            Ok(chunk)
        });
        let events = SseStream::from_bytes_stream(Box::pin(chunks)).map(move |event| {
            since.store(0, Ordering::Relaxed);
            event.map_err(|error| match error {
                Error::Body(cause) => match cause.downcast::<Failure>() {
                    Ok(failure) => *failure,
                    Err(cause) => Failure::Unavailable(format!("its event stream broke: {cause}")),
                },
                error => Failure::Misbehaved(format!("its event stream is none: {error}")),
            })
        });
        Self(events.boxed())
    }

    /// The next event; nothing at the end.
    pub async fn next(&mut self) -> Option<Result<Sse, Failure>> {
        self.0.next().await
    }
}

/// From where a stream that ended can be taken up again.
#[derive(Debug, Default)]
pub(super) struct Resume {
    /// The id of the last event that had one.
    pub last: Option<HeaderValue>,
    retry: Option<Duration>,
}

impl Resume {
    /// Notes where the stream stands after an event.
    pub fn note(&mut self, event: &Sse) {
        if let Some(id) = &event.id {
            // An empty id takes back the one before. One that no header can hold cannot be named.
            self.last = Some(id).filter(|id| !id.is_empty()).and_then(|id| id.parse().ok());
        }
        if let Some(retry) = event.retry {
            self.retry = Some(Duration::from_millis(retry));
        }
    }

    /// How long to wait before the stream is taken up again, after so many tries that failed.
    pub fn pause(&self, failed: u32) -> Duration {
        let pause = self.retry.unwrap_or(PAUSE).clamp(PAUSES.0, PAUSES.1);
        pause.saturating_mul(1 << failed.min(10)).min(PAUSES.1)
    }
}

#[cfg(test)]
mod tests {
    use futures_util::stream;
    use proptest::prelude::*;

    use super::*;

    const MOST: usize = 100;

    async fn all(chunks: &[&[u8]]) -> Vec<Result<Sse, Failure>> {
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
    async fn events_are_bounded_and_streams_are_not() {
        let event = format!("data: {}\n\n", "x".repeat(80));
        assert_eq!(all(&[event.as_bytes(); 20]).await.len(), 20);
        let endless = [&b"data: xxxxxxxxxxxxxxxxxxxxxxxxxx\n"[..]; 10];
        let last = all(&endless).await.pop().unwrap();
        assert!(matches!(last, Err(Failure::Misbehaved(why)) if why.contains("more than 100")));
        let bad = all(&[b"data: \xff\n\n"]).await.pop().unwrap();
        assert!(matches!(bad, Err(Failure::Misbehaved(_))));
    }

    #[test]
    fn where_a_stream_is_taken_up_again() {
        let mut resume = Resume::default();
        assert_eq!(resume.pause(0), PAUSE);
        let event = |id: Option<&str>, retry| Sse {
            id: id.map(str::to_owned),
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
        fn no_bytes_of_a_server_bring_the_reader_down(
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
