//! Reader of event streams.

use std::{future::ready, pin::Pin};

use futures_util::{Stream, StreamExt};
use serde_json::Value;
use sse_stream::{Sse, SseStream};

use super::{gate::reqwest_client, in_time};

/// A stream that a client reads. Dropping it closes the connection.
pub struct Events {
    pub status: u16,
    events: Pin<Box<dyn Stream<Item = Sse> + Send>>,
}

/// One event.
#[derive(Debug)]
pub struct Event {
    pub name: Option<String>,
    pub id: Option<String>,
    pub retry: Option<u64>,
    pub data: String,
}

impl Event {
    pub fn message(&self) -> Value {
        serde_json::from_str(&self.data).unwrap_or_else(|e| panic!("{e}: {self:?}"))
    }
}

impl Events {
    /// Opens a stream with `GET` and these headers.
    pub async fn get(url: &str, headers: &[(&str, &str)]) -> Self {
        Self::of(with(reqwest_client().get(url), headers)).await
    }

    /// Posts a message whose response is a stream.
    pub async fn post(url: &str, headers: &[(&str, &str)], body: String) -> Self {
        let post = with(reqwest_client().post(url), headers);
        let post = post.header("content-type", "application/json");
        Self::of(post.header("accept", "application/json, text/event-stream").body(body)).await
    }

    async fn of(request: reqwest::RequestBuilder) -> Self {
        let response = in_time("the head of a stream", request.send()).await.unwrap();
        let status = response.status().as_u16();
        let kind = response.headers().get("content-type").cloned();
        let events: Pin<Box<dyn Stream<Item = Sse> + Send>> =
            if kind.is_some_and(|kind| kind == "text/event-stream") {
                let events = SseStream::from_bytes_stream(response.bytes_stream());
                // An interrupted stream counts as ended.
                let events = events.take_while(|event| ready(event.is_ok()));
                Box::pin(events.filter_map(|event| ready(event.ok())))
            } else {
                let body = in_time("a body", response.text()).await.unwrap();
                let whole = Sse { event: None, data: Some(body), id: None, retry: None };
                Box::pin(futures_util::stream::iter([whole]))
            };
        Self { status, events }
    }

    /// The next event; `None` at the end.
    pub async fn next(&mut self) -> Option<Event> {
        let event = in_time("an event", self.events.next()).await?;
        Some(Event {
            name: event.event,
            id: event.id,
            retry: event.retry,
            data: event.data.unwrap_or_default(),
        })
    }

    /// The next message.
    pub async fn message(&mut self) -> Value {
        self.next().await.expect("a message").message()
    }
}

fn with(mut request: reqwest::RequestBuilder, headers: &[(&str, &str)]) -> reqwest::RequestBuilder {
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request
}
