//! Capabilities that a client declares.

use bytes::Bytes;
use serde_json::Value;

use portcullis_protocol::exchange::{Method, Payload};

/// The `capabilities` of a handshake or of a modern request's `_meta`: the server requests that the
/// client accepts.
#[derive(Debug, Clone)]
pub struct ClientCapabilities(Payload);

impl Default for ClientCapabilities {
    fn default() -> Self {
        Self(Payload::new(Bytes::from_static(b"{}")))
    }
}

impl ClientCapabilities {
    /// Capabilities from a JSON text; empty if it is not an object.
    pub fn new(capabilities: Option<Bytes>) -> Self {
        capabilities
            .map(|text| Self(Payload::new(text)))
            .filter(|abilities| abilities.0.value().is_object())
            .unwrap_or_default()
    }

    /// The same capabilities with another copy of their text. It has no parsed value, which is made
    /// again when it is needed.
    pub fn map_text(&self, copy: impl FnOnce(Bytes) -> Bytes) -> Self {
        Self(Payload::new(copy(self.raw().clone())))
    }

    /// The text as the client sent it.
    pub fn raw(&self) -> &Bytes {
        self.0.raw()
    }

    fn has(&self, path: &[&str]) -> bool {
        let value = path.iter().try_fold(self.0.value(), |value, member| value.get(member));
        value.is_some_and(|value| !value.is_null())
    }

    /// Whether the client accepts any server requests.
    pub fn is_askable(&self) -> bool {
        ["sampling", "elicitation", "roots"].into_iter().any(|ability| self.has(&[ability]))
    }

    /// Whether the client declares this extension.
    pub fn extension(&self, name: &str) -> bool {
        self.0.value().get("extensions").is_some_and(|extensions| extensions.get(name).is_some())
    }

    /// Whether the client declares that it accepts this request. Methods that MCP does not define
    /// are between the client and the server.
    pub fn takes(&self, method: &Method, params: &Value) -> bool {
        match method.as_str() {
            Method::SAMPLE => self.has(&["sampling"]),
            Method::ROOTS_LIST => self.has(&["roots"]),
            // Without a mode it is a form, and an empty `elicitation` means forms (MCP 2025-11-25,
            // client features, elicitation).
            Method::ELICIT if params.get("mode").and_then(Value::as_str) == Some("url") => {
                self.has(&["elicitation", "url"])
            }
            Method::ELICIT => {
                self.has(&["elicitation"])
                    && (self.has(&["elicitation", "form"]) || !self.has(&["elicitation", "url"]))
            }
            _ => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn capabilities_decide_the_accepted_requests() {
        let url = json!({ "mode": "url" });
        let form = json!({ "mode": "form" });
        for (capabilities, method, params, takes) in [
            ("{}", Method::SAMPLE, &form, false),
            (r#"{"sampling":{}}"#, Method::SAMPLE, &form, true),
            (r#"{"roots":{"listChanged":true}}"#, Method::ROOTS_LIST, &form, true),
            (r#"{"elicitation":{}}"#, Method::ELICIT, &form, true),
            (r#"{"elicitation":{}}"#, Method::ELICIT, &Value::Null, true),
            (r#"{"elicitation":{}}"#, Method::ELICIT, &url, false),
            (r#"{"elicitation":{"url":{}}}"#, Method::ELICIT, &url, true),
            (r#"{"elicitation":{"url":{}}}"#, Method::ELICIT, &form, false),
            (r#"{"elicitation":{"url":{},"form":{}}}"#, Method::ELICIT, &form, true),
            ("[]", Method::ELICIT, &form, false),
            ("{}", "acme/ask", &form, true),
        ] {
            let abilities = ClientCapabilities::new(Some(Bytes::from(capabilities)));
            assert_eq!(
                abilities.takes(&Method::new(method), params),
                takes,
                "{capabilities} {method} {params}"
            );
        }
        assert!(!ClientCapabilities::default().is_askable());
        assert!(ClientCapabilities::new(Some(Bytes::from_static(b"{\"roots\":{}}"))).is_askable());
    }
}
