//! Transport to a server: requests and their responses.

use std::{
    fmt,
    sync::{Arc, OnceLock},
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use serde_json::Value;
use tokio::sync::{Notify, mpsc, oneshot};

use super::{call_error::CallError, deadline::Deadline, instance_key::InstanceKey};
use portcullis_protocol::{
    codec::{
        Frame, Id, Kind, Object,
        era::{META_LOG_LEVEL, META_SUBSCRIPTION},
        may_have,
    },
    exchange::{Method, Revision},
    identity::PrincipalKind,
};

/// A request to a server.
#[derive(Debug, Clone)]
pub struct Call {
    pub method: Method,
    /// Value of `Mcp-Name` for a modern HTTP server: the tool, the prompt or the URI.
    pub name: Option<String>,
    /// Further headers for a modern HTTP server (`Mcp-Param-*`), encoded for the wire.
    pub headers: Vec<(String, String)>,
    /// The client's message, if the request forwards one. Its unchanged parts are sent byte
    /// for byte.
    pub frame: Option<Frame>,
    /// `params`, if any.
    pub params: Option<Bytes>,
    /// Receiver of the server's messages that belong to this request.
    pub messages: Option<mpsc::Sender<ServerMessage>>,
    /// The client whose request it is; `None` for a request of the proxy itself.
    pub client: Option<PrincipalKind>,
    /// Deadline of the response.
    pub clock: Deadline,
    /// Whether the request may still be sent; `None` for a request of the proxy itself.
    pub send_check: Option<SendCheck>,
}

/// Check directly before a request is sent: whether the decision on it still holds. A request whose
/// decision does not hold keeps its turn and waits for a renewed decision.
#[derive(Clone)]
pub struct SendCheck(Arc<DecisionCheck<dyn Fn() -> bool + Send + Sync>>);

struct DecisionCheck<F: ?Sized> {
    /// Notified when the request waits for a renewed decision.
    outdated: Notify,
    /// The check of the renewed decision, and its notification.
    next: OnceLock<SendCheck>,
    renewed: Notify,
    holds: F,
}

impl SendCheck {
    pub fn new(holds: impl Fn() -> bool + Send + Sync + 'static) -> Self {
        let (outdated, renewed) = (Notify::new(), Notify::new());
        Self(Arc::new(DecisionCheck { outdated, next: OnceLock::new(), renewed, holds }))
    }

    /// Waits until the request waits for a renewed decision. Cancel safe.
    pub async fn outdated(&self) {
        self.0.outdated.notified().await;
    }

    /// Sends the request under a renewed decision, if this check of it holds.
    pub fn renew(&self, check: Self) {
        // Only the first one counts.
        let _ = self.0.next.set(check);
        self.0.renewed.notify_one();
    }

    /// Requests a renewed decision. Returns its check.
    async fn renewed(&self) -> Self {
        self.0.outdated.notify_one();
        loop {
            match self.0.next.get() {
                Some(next) => return next.clone(),
                None => self.0.renewed.notified().await,
            }
        }
    }
}

impl fmt::Debug for SendCheck {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SendCheck")
    }
}

impl Call {
    /// A request of the proxy itself.
    pub fn own(method: &str, params: Option<Bytes>, deadline: Duration) -> Self {
        Self {
            method: Method::new(method),
            name: None,
            headers: Vec::new(),
            frame: None,
            params,
            messages: None,
            client: None,
            clock: Deadline::new(deadline),
            send_check: None,
        }
    }

    /// Waits until the decision on the request holds: if it does not, until it is renewed.
    ///
    /// # Errors
    /// [`CallError::Timeout`] after the deadline of the request.
    pub(super) async fn ensure_decided(&mut self) -> Result<(), CallError> {
        while let Some(check) = self.send_check.as_ref().filter(|check| !(check.0.holds)()) {
            let renewed = self.clock.bound(async { Ok(check.renewed().await) }).await?;
            self.send_check = Some(renewed);
        }
        Ok(())
    }

    /// The text to send, and the client's ids in it. Ids and tokens of many clients share one
    /// connection, so they are replaced by `id`.
    pub(super) fn text(&self, id: u64) -> (Bytes, OriginalIds) {
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
        let client = match self.frame.as_ref().map(|frame| &frame.kind) {
            Some(Kind::Request { id, .. }) => Some(id.raw().clone()),
            _ => None,
        };
        let original_ids = OriginalIds {
            token,
            id: client,
            subscribes: self.method.as_str() == Method::LISTEN,
            logs: self.params.as_ref().is_some_and(|params| may_have(params, META_LOG_LEVEL)),
        };
        (text, original_ids)
    }
}

fn swap_token(params: &Object, id: u64) -> Option<(Bytes, Bytes)> {
    let meta = params.object("_meta")?;
    let token = meta.get("progressToken")?;
    let meta = meta.with(&[("progressToken", Some(id.to_string().as_bytes()))]);
    Some((params.with(&[("_meta", Some(&meta))]), token))
}

/// Ids of a client in a request, which the proxy replaces by its own.
#[derive(Debug, Clone)]
pub(super) struct OriginalIds {
    /// Text of the progress token.
    pub token: Option<Bytes>,
    /// Text of the request id, also of its subscription. `None` for the proxy's own requests.
    pub id: Option<Bytes>,
    /// Whether the request opens a subscription.
    pub subscribes: bool,
    /// Whether the request asks for log messages.
    pub logs: bool,
}

impl OriginalIds {
    /// A copy that does not keep the client's message in memory. `None` without a progress token,
    /// or if the ids have more than `most` bytes.
    pub fn copied(&self, most: usize) -> Option<Self> {
        let copy = |text: &Bytes| Bytes::copy_from_slice(text);
        let (token, id) = (self.token.as_ref()?, self.id.as_ref());
        let bytes = token.len() + id.map_or(0, Bytes::len);
        (bytes <= most).then(|| Self { token: Some(copy(token)), id: id.map(copy), ..*self })
    }

    /// `params` of a notification with the client's ids restored.
    pub fn restored(&self, params: Option<Bytes>) -> Option<Bytes> {
        let params = params?;
        let Ok(object) = Object::parse(params.clone()) else { return Some(params) };
        let meta = object
            .object("_meta")
            .filter(|meta| meta.get(META_SUBSCRIPTION).is_some())
            .map(|meta| meta.with(&[(META_SUBSCRIPTION, self.id.as_deref())]));
        let mut edits: Vec<(&str, Option<&[u8]>)> = Vec::new();
        if let Some(token) = &self.token
            && object.get("progressToken").is_some()
        {
            edits.push(("progressToken", Some(token)));
        }
        if let Some(meta) = &meta {
            // Without a client's id, the subscription has no other name.
            let empty = Object::parse(meta.clone()).is_ok_and(|meta| meta.keys().next().is_none());
            edits.push(("_meta", (!empty).then_some(&meta[..])));
        }
        Some(if edits.is_empty() { params } else { object.with(&edits) })
    }
}

/// Response of a server: the text of `result` or `error`.
#[derive(Debug, Clone)]
pub enum Reply {
    Result(Bytes),
    Error(Bytes),
}

/// Message of a server other than a response.
#[derive(Debug)]
pub enum ServerMessage {
    /// A server request. Its receiver sends the text of the whole response to `answer`, which is
    /// closed when the server has cancelled the request, or is gone.
    Request { id: Id, method: Method, params: Option<Bytes>, answer: oneshot::Sender<Bytes> },
    /// A notification. It has the client's own progress token or subscription id.
    Notification { method: Method, params: Option<Bytes> },
}

impl ServerMessage {
    /// Method of the message.
    pub fn method(&self) -> &Method {
        match self {
            Self::Request { method, .. } | Self::Notification { method, .. } => method,
        }
    }

    /// Text of `params`, if any.
    pub fn params(&self) -> Option<&Bytes> {
        match self {
            Self::Request { params, .. } | Self::Notification { params, .. } => params.as_ref(),
        }
    }
}

impl ServerMessage {
    /// Whether the message is about the server's lists or resources, and not about a call.
    pub(super) fn is_of_server(&self) -> bool {
        let method = self.method();
        is_list_change(method) || method.as_str() == Method::UPDATED
    }
}

/// Message of a server that belongs to no call.
#[derive(Debug)]
pub struct UnroutedMessage {
    /// Key of the instance that sent it; `None` for the shared one.
    pub party: Option<InstanceKey>,
    pub message: ServerMessage,
}

/// Transport to one instance.
#[async_trait]
pub trait ServerTransport: Send + Sync {
    /// Sends a request and waits for the response. Dropping the future cancels the request.
    ///
    /// # Errors
    /// A [`CallError`] if no response came.
    async fn call(&self, call: Call) -> Result<Reply, CallError>;

    /// Sends a notification.
    ///
    /// # Errors
    /// A [`CallError`] if it could not be sent.
    async fn notify(&self, method: &str, params: Bytes) -> Result<(), CallError>;

    /// Sets the revision of the handshake.
    fn agreed(&self, revision: Revision);

    /// Reason why the connection is dead; `None` while it lives.
    fn dead(&self) -> Option<String>;

    /// Opens the stream for the server's own messages, after the handshake.
    fn listen(&self) {}

    /// Whether the server refused the handshake as a server of an older transport does.
    fn older_transport_suspected(&self) -> bool {
        false
    }

    /// Ends the session, if the transport has one.
    async fn leave(&self) {}
}

/// Whether a notification reports the change of a list.
pub(super) fn is_list_change(method: &Method) -> bool {
    method.as_str().ends_with("/list_changed")
}

/// Error response to a server request without a receiver.
pub(super) fn nobody(id: &Id) -> Bytes {
    let message = "the client accepts no requests at present";
    let error = serde_json::json!({ "code": -32603, "message": message });
    Frame::error(Some(id), error.to_string().as_bytes())
}

/// Response to a ping of a server.
pub(super) fn pong(id: &Id) -> Bytes {
    Frame::result(id, b"{}")
}

/// The proxy's token in a progress notification.
pub(super) fn progress_token(params: Option<&Bytes>) -> Option<u64> {
    let token = Object::parse(params?.clone()).ok()?.get("progressToken")?;
    serde_json::from_slice::<Value>(&token).ok()?.as_u64()
}

/// The proxy's id of the subscription that a notification names.
pub(super) fn subscription(params: Option<&Bytes>) -> Option<u64> {
    let params = params.filter(|params| may_have(params, META_SUBSCRIPTION))?;
    let id = Object::parse(params.clone()).ok()?.object("_meta")?.get(META_SUBSCRIPTION)?;
    // Some servers write every id as a string.
    match serde_json::from_slice(&id).ok()? {
        Value::Number(id) => id.as_u64(),
        Value::String(id) => id.parse().ok(),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    #[tokio::test]
    async fn outdated_request_waits_for_a_decision_until_its_deadline() {
        let check = |holds| SendCheck::new(move || holds);
        let call = |check, limit| {
            let send_check = Some(check);
            Call { send_check, ..Call::own("tools/call", None, limit) }
        };
        // A renewed decision can be outdated, too.
        let (first, second) = (check(false), check(false));
        let mut request = call(first.clone(), Duration::MAX);
        let mut waiting = Box::pin(request.ensure_decided());
        for (outdated, next) in [(&first, &second), (&second, &check(true))] {
            assert!((&mut waiting).now_or_never().is_none());
            outdated.outdated().now_or_never().unwrap();
            outdated.renew(next.clone());
        }
        waiting.now_or_never().unwrap().unwrap();

        let late = call(check(false), Duration::ZERO).ensure_decided().await;
        assert_eq!(late, Err(CallError::Timeout(Duration::ZERO)));
    }

    #[test]
    fn progress_tokens_are_replaced_and_restored() {
        let params = Bytes::from_static(br#"{"name":"t","_meta":{"progressToken":"abc","x":1.0}}"#);
        let mut call = Call::own("tools/call", Some(params), Duration::from_secs(1));
        let (text, original_ids) = call.text(7);
        assert_eq!(
            text,
            r#"{"jsonrpc":"2.0","id":7,"method":"tools/call","params":{"name":"t","_meta":{"progressToken":7,"x":1.0}}}"#
        );
        assert_eq!(original_ids.token.as_deref(), Some(&b"\"abc\""[..]));
        let message = Bytes::from_static(br#"{"progressToken":7,"progress":0.50}"#);
        assert_eq!(progress_token(Some(&message)), Some(7));
        assert_eq!(
            original_ids.restored(Some(message)).unwrap(),
            r#"{"progressToken":"abc","progress":0.50}"#
        );

        let hidden = br#"{"_meta":{"progress\u0054oken":"abc"}}"#;
        call.params = Some(Bytes::from_static(hidden));
        assert_eq!(call.text(9).1.token.unwrap(), "\"abc\"");
        call.params = Some(Bytes::from_static(br#"{"name":"t"}"#));
        assert_eq!(call.text(8).1.token, None);
    }

    #[test]
    fn subscription_ids_are_mapped_between_client_and_server() {
        let caps = portcullis_protocol::codec::Caps {
            bytes: 1_000,
            depth: 9,
            nodes: 99,
            keys: 99,
            object_keys: 99,
        };
        let text = br#"{"jsonrpc":"2.0","id":"mine","method":"subscriptions/listen","params":{}}"#;
        let mut call = Call::own(Method::LISTEN, None, Duration::from_secs(1));
        call.frame = Some(Frame::parse(Bytes::from_static(text), caps).unwrap());
        let original_ids = call.text(5).1;
        assert!(original_ids.subscribes);
        let own = Call::own(Method::LISTEN, None, Duration::from_secs(1)).text(5).1;
        let key = META_SUBSCRIPTION;
        for (message, clients, ours) in [
            (
                format!(r#"{{"uri":"u","_meta":{{"{key}":5,"x":1.0}}}}"#),
                format!(r#"{{"uri":"u","_meta":{{"{key}":"mine","x":1.0}}}}"#),
                r#"{"uri":"u","_meta":{"x":1.0}}"#.to_owned(),
            ),
            (
                format!(r#"{{"_meta":{{"{key}":"5"}}}}"#),
                format!(r#"{{"_meta":{{"{key}":"mine"}}}}"#),
                "{}".to_owned(),
            ),
        ] {
            let message = Some(Bytes::from(message));
            assert_eq!(subscription(message.as_ref()), Some(5));
            assert_eq!(original_ids.restored(message.clone()).unwrap(), clients);
            assert_eq!(own.restored(message).unwrap(), ours);
        }
        for message in ["{}", r#"{"_meta":{}}"#, r#"{"_meta":1}"#, "["] {
            let message = Some(Bytes::copy_from_slice(message.as_bytes()));
            assert_eq!(subscription(message.as_ref()), None);
            assert_eq!(original_ids.restored(message.clone()), message);
        }
    }
}
