//! Messages of a server, sorted by their receivers.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
};

use futures_util::StreamExt;
use serde_json::{Value, json};
use sse_stream::SseStream;
use tokio::sync::{mpsc, oneshot, watch};

use super::{MODERN, Wrong, lock};

/// Received messages.
pub struct Inbox {
    revision: &'static str,
    pub waiting: Mutex<HashMap<u64, oneshot::Sender<Value>>>,
    /// Notifications in the order of arrival.
    pub heard: watch::Sender<Vec<Value>>,
    /// Server requests to answer.
    asked: mpsc::UnboundedSender<Value>,
    /// Violations of the revision's rules.
    pub wrongs: Mutex<Vec<Wrong>>,
}

impl Inbox {
    pub fn take(&self, message: Value) {
        let method = message["method"].as_str();
        let id = message.get("id").filter(|id| !id.is_null());
        match (method, id) {
            (Some(_), None) => self.heard.send_modify(|heard| heard.push(message)),
            (Some(method), Some(_)) if self.revision == MODERN => {
                self.wrong(format!("a server's request in 2026-07-28: {method}"));
            }
            (Some(_), Some(_)) => drop(self.asked.send(message)),
            (None, Some(id)) => {
                let waiting = id.as_u64().and_then(|id| lock(&self.waiting).remove(&id));
                match waiting {
                    Some(waiting) => drop(waiting.send(message)),
                    None => self.wrong(format!("an answer to nothing: {message}")),
                }
            }
            (None, None) => self.wrong(format!("neither question nor answer: {message}")),
        }
    }

    pub fn wrong(&self, wrong: Wrong) {
        lock(&self.wrongs).push(wrong);
    }

    /// Ends the wait for a response that can no longer come.
    pub fn give_up(&self, id: u64, why: &str) {
        if let Some(waiting) = lock(&self.waiting).remove(&id) {
            let error = json!({ "code": 0, "message": why });
            let _ = waiting.send(json!({ "id": id, "error": error }));
        }
    }
}

/// Takes all messages of an HTTP response. Returns the error text for the case of no answer.
pub async fn read(reply: reqwest::Response, inbox: &Inbox) -> String {
    let status = reply.status();
    let kind = reply.headers().get("content-type").and_then(|kind| kind.to_str().ok());
    if kind.is_some_and(|kind| kind.starts_with("text/event-stream")) {
        let mut events = SseStream::from_bytes_stream(reply.bytes_stream());
        while let Some(event) = events.next().await {
            match event {
                Ok(event) => {
                    if let Some(data) = event.data.filter(|data| !data.is_empty()) {
                        take_text(inbox, &data);
                    }
                }
                Err(error) => return format!("{status}, then {error}"),
            }
        }
        return format!("{status} and a stream without the answer");
    }
    match reply.text().await {
        Ok(body) if body.is_empty() => format!("{status} without a body"),
        Ok(body) => {
            take_text(inbox, &body);
            format!("{status} {body}")
        }
        Err(error) => format!("{status}, then {error}"),
    }
}

pub fn take_text(inbox: &Inbox, text: &str) {
    match serde_json::from_str(text) {
        Ok(message) => inbox.take(message),
        Err(error) => inbox.wrong(format!("{error}: {text}")),
    }
}

/// An inbox, and the server requests in it.
pub fn inbox(revision: &'static str) -> (Arc<Inbox>, mpsc::UnboundedReceiver<Value>) {
    let (asked, to_answer) = mpsc::unbounded_channel();
    let inbox = Inbox {
        revision,
        waiting: Mutex::default(),
        heard: watch::Sender::default(),
        asked,
        wrongs: Mutex::default(),
    };
    (Arc::new(inbox), to_answer)
}
