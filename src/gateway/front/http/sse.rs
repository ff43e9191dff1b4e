//! Encoding of event streams.
//!
//! Frames are encoded here, since axum's `Sse` copies each message twice. A response of 50 MB is
//! written without a copy, and its text is dropped as soon as it is written.

use std::{convert::Infallible, time::Duration};

use axum::{
    body::Body,
    http::{HeaderName, HeaderValue, header},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use futures_util::{Stream, StreamExt, stream};

use crate::session::Event;
use portcullis_protocol::codec::one_line;

/// Interval between keep-alives.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// Milliseconds after which a client should resume a broken stream.
const RETRY: u32 = 1_000;

/// A text on one line that holds the permits of its source.
struct OneLine {
    line: Bytes,
    _of: Bytes,
}

impl AsRef<[u8]> for OneLine {
    fn as_ref(&self) -> &[u8] {
        &self.line
    }
}

fn line(text: Bytes) -> Bytes {
    let line = one_line(text.clone());
    if line.as_ptr() == text.as_ptr() {
        return line;
    }
    Bytes::from_owner(OneLine { line, _of: text })
}

/// The frames of an event.
pub(super) fn event(event: Event) -> [Bytes; 3] {
    let id = event.id.map(|id| format!("id: {id}\n")).unwrap_or_default();
    let head = if event.text.is_empty() {
        format!("{id}retry: {RETRY}\ndata: ")
    } else {
        format!("event: message\n{id}data: ")
    };
    [head.into(), line(event.text), Bytes::from_static(b"\n\n")]
}

/// The frames of an event of another name.
pub(super) fn named(name: &str, data: &str) -> [Bytes; 3] {
    let text = format!("event: {name}\ndata: {data}\n\n");
    [text.into(), Bytes::new(), Bytes::new()]
}

/// A response with a stream of events and keep-alives.
pub(super) fn response(events: impl Stream<Item = [Bytes; 3]> + Send + 'static) -> Response {
    let frames = stream::unfold(Box::pin(events), |mut events| async move {
        let frames = match tokio::time::timeout(KEEP_ALIVE, events.next()).await {
            Ok(frames) => frames?,
            Err(_) => [Bytes::from_static(b":\n\n"), Bytes::new(), Bytes::new()],
        };
        Some((stream::iter(frames).filter(|part| std::future::ready(!part.is_empty())), events))
    });
    let body = Body::from_stream(frames.flatten().map(Ok::<_, Infallible>));
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream")),
        (header::CACHE_CONTROL, HeaderValue::from_static("no-cache")),
        // Proxies in between must not buffer events.
        (HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no")),
    ];
    (headers, body).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wire(id: Option<&str>, text: &'static str) -> String {
        let event = Event { id: id.map(str::to_owned), text: Bytes::from_static(text.as_bytes()) };
        String::from_utf8(super::event(event).concat()).unwrap()
    }

    #[test]
    fn events_are_serialized() {
        assert_eq!(wire(None, "{}"), "event: message\ndata: {}\n\n");
        assert_eq!(wire(Some("1-2"), "{\n}"), "event: message\nid: 1-2\ndata: { }\n\n");
        assert_eq!(wire(Some("1-1"), ""), "id: 1-1\nretry: 1000\ndata: \n\n");
    }
}
