//! JSON-RPC 2.0 messages of MCP.

use std::{
    sync::OnceLock,
    time::{Duration, Instant},
};

use bytes::Bytes;
use serde_json::Value;

use super::{Caps, Counts, Flaw, Object, Text, check};
use crate::exchange::{Method, Payload};

/// Request id: its JSON text, a string or a number.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Id(Bytes);

impl Id {
    /// Text, byte for byte as received.
    pub fn raw(&self) -> &Bytes {
        &self.0
    }

    /// Id with this text.
    ///
    /// # Errors
    /// A [`Flaw`] if it is neither a string nor a number.
    pub fn parse(raw: Bytes) -> Result<Self, Flaw> {
        match raw.first() {
            Some(b'"' | b'-' | b'0'..=b'9') if raw.len() <= 1024 => Ok(Self(raw)),
            _ => Err(Flaw::Shape("`id` must be a string or a number")),
        }
    }
}

impl From<u64> for Id {
    fn from(id: u64) -> Self {
        Self(id.to_string().into())
    }
}

/// One message: its text and kind.
#[derive(Debug, Clone)]
pub struct Frame {
    envelope: Object,
    pub kind: Kind,
    /// Duration of parsing.
    pub took: Duration,
    /// Counts of values and keys.
    pub counts: Counts,
    /// Members of `params`, parsed on first use.
    params: OnceLock<Option<Object>>,
}

/// Kinds of messages, with the text of their payload.
#[derive(Debug, Clone)]
pub enum Kind {
    Request { id: Id, method: Method, params: Option<Bytes> },
    Notification { method: Method, params: Option<Bytes> },
    Result { id: Id, result: Bytes },
    Error { id: Option<Id>, error: Bytes },
}

impl Frame {
    /// Parses one message, strictly.
    ///
    /// # Errors
    /// A [`Flaw`] if it is not one JSON-RPC 2.0 message within the limits. A batch is not one.
    pub fn parse(raw: Bytes, caps: Caps) -> Result<Self, Flaw> {
        let began = Instant::now();
        let counts = check(&raw, Text::Message, caps)?;
        if raw.iter().find(|b| !b.is_ascii_whitespace()) == Some(&b'[') {
            return Err(Flaw::Shape("batches are not accepted: send one message at a time"));
        }
        let envelope = Object::parse(raw)?;
        if envelope.get("jsonrpc").as_deref() != Some(b"\"2.0\"") {
            return Err(Flaw::Shape("`jsonrpc` must be \"2.0\""));
        }
        let id = envelope.get("id");
        let params = envelope.get("params");
        let (result, error) = (envelope.get("result"), envelope.get("error"));
        if params.as_ref().is_some_and(|params| params.first() != Some(&b'{')) {
            return Err(Flaw::Shape("`params` must be an object"));
        }
        let kind = match (envelope.get("method"), result, error) {
            (Some(method), None, None) => {
                let method: String = serde_json::from_slice(&method)
                    .map_err(|_| Flaw::Shape("`method` must be a string"))?;
                if method.len() > 256 {
                    return Err(Flaw::Shape("`method` is longer than 256 bytes"));
                }
                let method = Method::new(&method);
                // A server must not receive members that no interceptor sees.
                if envelope.keys().any(|k| !["jsonrpc", "id", "method", "params"].contains(&k)) {
                    return Err(Flaw::Shape(
                        "a request may only have the members `jsonrpc`, `id`, `method` and \
                        `params`",
                    ));
                }
                match id {
                    Some(id) => Kind::Request { id: Id::parse(id)?, method, params },
                    None => Kind::Notification { method, params },
                }
            }
            (None, Some(result), None) => {
                let id = id.ok_or(Flaw::Shape("a result must have an `id`"))?;
                Kind::Result { id: Id::parse(id)?, result }
            }
            (None, None, Some(error)) => {
                let id = id.filter(|id| id != "null").map(Id::parse).transpose()?;
                Kind::Error { id, error }
            }
            _ => {
                return Err(Flaw::Shape(
                    "a message must have exactly one of `method`, `result` \
                and `error`",
                ));
            }
        };
        Ok(Self { envelope, kind, took: began.elapsed(), counts, params: OnceLock::new() })
    }

    /// Request composed by the proxy.
    pub fn request(id: u64, method: &str, params: &[u8]) -> Bytes {
        let mut text =
            format!("{{\"jsonrpc\":\"2.0\",\"id\":{id},\"method\":{}", Value::from(method))
                .into_bytes();
        if !params.is_empty() {
            text.extend_from_slice(b",\"params\":");
            text.extend_from_slice(params);
        }
        text.push(b'}');
        text.into()
    }

    /// Notification composed by the proxy.
    pub fn notification(method: &str, params: &[u8]) -> Bytes {
        let mut text =
            format!("{{\"jsonrpc\":\"2.0\",\"method\":{},\"params\":", Value::from(method))
                .into_bytes();
        text.extend_from_slice(params);
        text.push(b'}');
        text.into()
    }

    /// Response with this `result` text.
    pub fn result(id: &Id, result: &[u8]) -> Bytes {
        Self::answer(Some(id), "result", result)
    }

    /// Response with this `error` text. Without an id it is `null`, as JSON-RPC requires for
    /// messages that could not be parsed.
    pub fn error(id: Option<&Id>, error: &[u8]) -> Bytes {
        Self::answer(id, "error", error)
    }

    fn answer(id: Option<&Id>, member: &str, value: &[u8]) -> Bytes {
        let id = id.map_or(&b"null"[..], |id| id.raw());
        let mut text = Vec::with_capacity(value.len() + id.len() + 40);
        text.extend_from_slice(b"{\"jsonrpc\":\"2.0\",\"id\":");
        text.extend_from_slice(id);
        text.extend_from_slice(format!(",\"{member}\":").as_bytes());
        text.extend_from_slice(value);
        text.push(b'}');
        text.into()
    }

    /// This message with another id and other params (`None`: unchanged). The rest of the envelope
    /// stays byte for byte.
    pub fn forward(&self, id: Option<&Id>, params: Option<&[u8]>) -> Bytes {
        let mut edits: Vec<(&str, Option<&[u8]>)> = Vec::with_capacity(2);
        if let Some(id) = id {
            edits.push(("id", Some(id.raw())));
        }
        if let Some(params) = params {
            edits.push(("params", Some(params)));
        }
        self.envelope.with(&edits)
    }

    /// Text as received.
    pub fn raw(&self) -> &Bytes {
        self.envelope.raw()
    }

    /// Members of `params`, parsed on first use and cached. `None` for a response, and for a
    /// message without `params`.
    pub fn params(&self) -> Option<&Object> {
        let found = || match &self.kind {
            Kind::Request { params, .. } | Kind::Notification { params, .. } => {
                Object::parse(params.clone()?).ok()
            }
            Kind::Result { .. } | Kind::Error { .. } => None,
        };
        self.params.get_or_init(found).as_ref()
    }
}

/// `params` as a payload: absent ones become an empty object.
impl From<Option<Bytes>> for Payload {
    fn from(params: Option<Bytes>) -> Self {
        Payload::new(params.unwrap_or_else(|| Bytes::from_static(b"{}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CAPS: Caps =
        Caps { bytes: 1 << 20, depth: 64, nodes: 10_000, keys: 10_000, object_keys: 10_000 };

    fn parse(text: &str) -> Result<Frame, Flaw> {
        Frame::parse(Bytes::copy_from_slice(text.as_bytes()), CAPS)
    }

    #[test]
    fn kinds_are_recognized() {
        let kind = |text| parse(text).unwrap().kind;
        assert!(matches!(
            kind(r#"{"jsonrpc":"2.0","id":1,"method":"ping"}"#),
            Kind::Request { params: None, .. }
        ));
        assert!(matches!(
            kind(r#"{"jsonrpc":"2.0","method":"x","params":{}}"#),
            Kind::Notification { .. }
        ));
        assert!(matches!(kind(r#"{"jsonrpc":"2.0","id":"a","result":{}}"#), Kind::Result { .. }));
        assert!(matches!(
            kind(r#"{"jsonrpc":"2.0","id":null,"error":{}}"#),
            Kind::Error { id: None, .. }
        ));
    }

    #[test]
    fn texts_that_are_not_messages_are_refused() {
        for (text, part) in [
            (r#"{"id":1,"method":"ping"}"#, "jsonrpc"),
            (r#"{"jsonrpc":"1.0","id":1,"method":"ping"}"#, "jsonrpc"),
            (r#"{"jsonrpc":"2.0","id":null,"method":"ping"}"#, "`id`"),
            (r#"{"jsonrpc":"2.0","id":{},"method":"ping"}"#, "`id`"),
            (r#"{"jsonrpc":"2.0","id":1,"method":7}"#, "`method`"),
            (r#"{"jsonrpc":"2.0","id":1,"method":"a","params":[1]}"#, "`params`"),
            (r#"{"jsonrpc":"2.0","id":1,"method":"a","result":{}}"#, "one of"),
            (r#"{"jsonrpc":"2.0","id":1,"method":"a","x":1}"#, "may only have the members"),
            (r#"{"jsonrpc":"2.0","id":1}"#, "one of"),
            (r#"{"jsonrpc":"2.0","result":{}}"#, "`id`"),
            (r#" [{"jsonrpc":"2.0","id":1,"method":"ping"}]"#, "batches"),
            (r#"7"#, "object"),
        ] {
            let flaw = parse(text).unwrap_err().to_string();
            assert!(flaw.contains(part), "{text}: {flaw}");
        }
    }

    #[test]
    fn forwarding_changes_only_the_id() {
        let text =
            r#"{ "jsonrpc":"2.0",  "method":"tools/call", "params": {"a":50.0}, "id":"abc" }"#;
        let frame = parse(text).unwrap();
        assert_eq!(frame.forward(Some(&Id::from(7)), None), text.replace("\"abc\"", "7"));
        assert_eq!(frame.forward(None, Some(b"{}")), text.replace("{\"a\":50.0}", "{}"));
    }
}
