//! The `params` of REST requests.

use bytes::Bytes;
use serde_json::{Value, json};

use portcullis_protocol::{
    codec::{Caps, Object, Text, check, era::own_meta},
    refusal::{Code, Refusal},
};

/// `params` of a list request.
pub(super) fn list(cursor: Option<&str>) -> Vec<u8> {
    let mut params = json!({ "_meta": own_meta() });
    if let Some(cursor) = cursor {
        params["cursor"] = cursor.into();
    }
    params.to_string().into_bytes()
}

/// `params` of the call in a text: `{"tool": NAME, "arguments": {…}}`. The arguments stay
/// unchanged.
///
/// # Errors
/// A refusal if the text is not a call.
pub(super) fn parse(text: Bytes, caps: Caps) -> Result<Vec<u8>, Refusal> {
    check(&text, Text::Value, caps)?;
    let call = Object::parse(text)?;
    let wrong = |what: &str| Err(Refusal::new(Code::InvalidParams, what));
    if call.keys().any(|key| !["tool", "arguments"].contains(&key)) {
        return wrong("a call may only have the members `tool` and `arguments`");
    }
    let Some(tool) = call.string("tool") else { return wrong("`tool` must be a string") };
    let arguments = call.get("arguments");
    if arguments.as_ref().is_some_and(|arguments| arguments.first() != Some(&b'{')) {
        return wrong("`arguments` must be an object");
    }
    let mut params = format!("{{\"name\":{}", Value::from(tool)).into_bytes();
    if let Some(arguments) = arguments {
        params.extend_from_slice(b",\"arguments\":");
        params.extend_from_slice(&arguments);
    }
    params.extend_from_slice(format!(",\"_meta\":{}}}", own_meta()).as_bytes());
    Ok(params)
}

#[cfg(test)]
mod tests {
    use super::*;

    const CAPS: Caps = Caps { bytes: 1 << 10, depth: 8, nodes: 100, keys: 100, object_keys: 100 };

    fn params(text: &'static str) -> Result<String, Code> {
        parse(Bytes::from_static(text.as_bytes()), CAPS)
            .map(|params| String::from_utf8(params).unwrap())
            .map_err(|refusal| refusal.code)
    }

    #[test]
    fn arguments_are_unchanged() {
        let params = params(r#"{"arguments": {"a": 1.0,  "b":[ ]}, "tool": "x\u0079"}"#).unwrap();
        assert!(params.starts_with(r#"{"name":"xy","arguments":{"a": 1.0,  "b":[ ]},"_meta":{"#));
        assert!(!self::params(r#"{"tool":"x"}"#).unwrap().contains("arguments"));
    }

    #[test]
    fn invalid_calls_are_refused() {
        for (text, code) in [
            ("7", Code::InvalidRequest),
            ("{", Code::Malformed),
            (r#"{"tool":7}"#, Code::InvalidParams),
            (r#"{"arguments":{}}"#, Code::InvalidParams),
            (r#"{"tool":"x","arguments":[]}"#, Code::InvalidParams),
            (r#"{"tool":"x","name":"y"}"#, Code::InvalidParams),
            (r#"{"tool":"x","Tool":"y"}"#, Code::DuplicateKey),
            (r#"{"tool":"x","tool":"y"}"#, Code::DuplicateKey),
        ] {
            assert_eq!(params(text), Err(code), "{text}");
        }
    }
}
