//! A line to a server: requests with their answers, whatever carries them.

use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use serde_json::Value;
use tokio::sync::{mpsc, oneshot};

use crate::{
    codec::{Frame, Id, Object, may_have},
    exchange::{Method, Revision},
    refusal::{Code, Refusal},
};

/// A request for a server.
#[derive(Debug)]
pub struct Call {
    pub method: Method,
    /// What a modern HTTP server wants in `Mcp-Name`: the tool, the prompt or the URI.
    pub name: Option<String>,
    /// Further headers for a modern HTTP server (`Mcp-Param-*`), encoded for the wire.
    pub headers: Vec<(String, String)>,
    /// The client's own message, where the request forwards one: all that nobody changed in it
    /// goes on byte for byte.
    pub frame: Option<Frame>,
    /// `params`, where there are any.
    pub params: Option<Bytes>,
    /// Where notifications that belong to this request go.
    pub notices: Option<mpsc::Sender<Notice>>,
    /// How long to wait for the answer.
    pub deadline: Duration,
}

impl Call {
    /// A request of our own.
    pub fn own(method: &str, params: Option<Bytes>, deadline: Duration) -> Self {
        Self {
            method: Method::new(method),
            name: None,
            headers: Vec::new(),
            frame: None,
            params,
            notices: None,
            deadline,
        }
    }

    /// The text to send under an id of ours, and the client's progress token where it gave one:
    /// ids and tokens of many clients meet on one link, so both become ours.
    pub(super) fn text(&self, id: u64) -> (Bytes, Option<Bytes>) {
        let token = self
            .params
            .as_ref()
            .filter(|params| may_have(params, "progressToken"))
            .and_then(|params| Object::parse(params.clone()).ok());
        let (params, token) = match token.and_then(|params| swap_token(&params, id)) {
            Some((params, token)) => (Some(params), Some(token)),
            None => (self.params.clone(), None),
        };
        let text = match &self.frame {
            Some(frame) => frame.forward(Some(&Id::from(id)), params.as_deref()),
            None => Frame::request(id, self.method.as_str(), params.as_deref().unwrap_or_default()),
        };
        (text, token)
    }
}

fn swap_token(params: &Object, id: u64) -> Option<(Bytes, Bytes)> {
    let meta = params.object("_meta")?;
    let token = meta.get("progressToken")?;
    let meta = meta.with(&[("progressToken", Some(id.to_string().as_bytes()))]);
    Some((params.with(&[("_meta", Some(&meta))]), token))
}

/// A notification that belongs to a request, with the client's own progress token in it.
#[derive(Debug, Clone)]
pub struct Notice {
    pub method: Method,
    pub params: Option<Bytes>,
}

/// What a server answered: the text of `result` or `error`.
#[derive(Debug, Clone)]
pub enum Reply {
    Result(Bytes),
    Error(Bytes),
}

/// Why there is no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// It is not there: it did not start, it ended, it cannot be reached.
    #[error("{0}")]
    Unavailable(String),
    #[error("it did not answer within {} s", .0.as_secs_f32())]
    Timeout(Duration),
    #[error("it has {0} calls under way, which is its limit")]
    Overloaded(usize),
    #[error("{0}")]
    Misbehaved(String),
}

impl Failure {
    /// What the agent is told; the operator's detail goes with it.
    pub fn refusal(&self, server: &crate::names::ServerName) -> Refusal {
        let (code, message) = match self {
            Self::Unavailable(_) => {
                (Code::ServerUnavailable, format!("server `{server}` is not available"))
            }
            Self::Timeout(_) => {
                (Code::ServerTimeout, format!("server `{server}` did not answer in time"))
            }
            Self::Overloaded(_) => {
                (Code::ServerOverloaded, format!("server `{server}` has too many calls under way"))
            }
            Self::Misbehaved(_) => (
                Code::ServerMisbehaved,
                format!("server `{server}` did not answer as the protocol has it"),
            ),
        };
        Refusal::new(code, message).detail(self.to_string())
    }
}

/// What a server says that belongs to no request of ours.
#[derive(Debug)]
pub enum Unsolicited {
    /// A request of the server's. Whoever takes it must send the text of the whole answer.
    Request {
        id: Id,
        method: Method,
        params: Option<Bytes>,
        answer: oneshot::Sender<Bytes>,
    },
    Notification {
        method: Method,
        params: Option<Bytes>,
    },
}

/// A line to one server.
#[async_trait]
pub trait Link: Send + Sync {
    /// Sends a request and waits for its answer. Dropping the future cancels the request.
    ///
    /// # Errors
    /// A [`Failure`] where no answer came.
    async fn call(&self, call: Call) -> Result<Reply, Failure>;

    /// Sends a notification.
    ///
    /// # Errors
    /// A [`Failure`] where it could not be sent.
    async fn notify(&self, method: &str, params: Bytes) -> Result<(), Failure>;

    /// Tells the link which revision was agreed on.
    fn agreed(&self, revision: Revision);

    /// Why the link is dead, once it is.
    fn dead(&self) -> Option<String>;
}

/// The answer to a server's request that nobody takes.
pub(super) fn nobody(id: &Id) -> Bytes {
    let error =
        serde_json::json!({ "code": -32603, "message": "the client side takes no requests now" });
    Frame::error(Some(id), error.to_string().as_bytes())
}

/// The empty result, for a server's ping.
pub(super) fn pong(id: &Id) -> Bytes {
    Frame::result(id, b"{}")
}

/// A server's notification with the client's own token put back, where it is about progress.
pub(super) fn restore_token(params: Option<Bytes>, token: &Bytes) -> Option<Bytes> {
    let object = Object::parse(params?).ok()?;
    Some(object.with(&[("progressToken", Some(token))]))
}

/// The token of ours that a progress notification names.
pub(super) fn progress_token(params: Option<&Bytes>) -> Option<u64> {
    let token = Object::parse(params?.clone()).ok()?.get("progressToken")?;
    serde_json::from_slice::<Value>(&token).ok()?.as_u64()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_tokens_become_ours_and_come_back() {
        let params = Bytes::from_static(br#"{"name":"t","_meta":{"progressToken":"abc","x":1.0}}"#);
        let mut call = Call::own("tools/call", Some(params), Duration::from_secs(1));
        let (text, token) = call.text(7);
        assert_eq!(
            text,
            r#"{"jsonrpc":"2.0","id":7,"method":"tools/call","params":{"name":"t","_meta":{"progressToken":7,"x":1.0}}}"#
        );
        let token = token.unwrap();
        assert_eq!(token, "\"abc\"");
        let notice = Bytes::from_static(br#"{"progressToken":7,"progress":0.50}"#);
        assert_eq!(progress_token(Some(&notice)), Some(7));
        assert_eq!(
            restore_token(Some(notice), &token).unwrap(),
            r#"{"progressToken":"abc","progress":0.50}"#
        );

        let hidden = br#"{"_meta":{"progress\u0054oken":"abc"}}"#;
        call.params = Some(Bytes::from_static(hidden));
        assert_eq!(call.text(9).1.unwrap(), "\"abc\"");
        call.params = Some(Bytes::from_static(br#"{"name":"t"}"#));
        assert_eq!(call.text(8).1, None);
    }
}
