//! Translation between the stateless revision (2026-07-28) and earlier ones. Only members that
//! exist in one era are added or removed; everything else stays byte for byte.

use base64::{Engine as _, prelude::BASE64_STANDARD};
use bytes::Bytes;
use serde_json::{Value, json};

use super::Object;
use crate::exchange::{Method, Revision};

/// `_meta` keys of 2026-07-28.
pub const META_REVISION: &str = "io.modelcontextprotocol/protocolVersion";
pub const META_CAPABILITIES: &str = "io.modelcontextprotocol/clientCapabilities";
pub const META_CLIENT_INFO: &str = "io.modelcontextprotocol/clientInfo";
pub const META_SERVER_INFO: &str = "io.modelcontextprotocol/serverInfo";
pub const META_LOG_LEVEL: &str = "io.modelcontextprotocol/logLevel";

/// Request that a notification belongs to (`subscriptions/listen`).
pub const META_SUBSCRIPTION: &str = "io.modelcontextprotocol/subscriptionId";

/// Extension of 2026-07-28 for calls that continue as tasks.
pub const TASKS_EXTENSION: &str = "io.modelcontextprotocol/tasks";

/// Members of a result that only 2026-07-28 has.
const MODERN_RESULT: [&str; 3] = ["resultType", "ttlMs", "cacheScope"];

/// Name and version of the proxy, for servers and clients.
pub fn implementation() -> Value {
    json!({ "name": "portcullis", "version": env!("CARGO_PKG_VERSION") })
}

/// `_meta` of the proxy's own modern requests. It declares no capability that would require a
/// client.
pub fn own_meta() -> Value {
    json!({
        META_REVISION: Revision::LATEST_MODERN.as_str(),
        META_CAPABILITIES: {},
        META_CLIENT_INFO: implementation(),
    })
}

/// Data about a client that a server of the other era needs.
#[derive(Debug, Clone)]
pub struct ClientDetails {
    pub revision: Revision,
    /// `capabilities` as text.
    pub capabilities: Bytes,
    /// `clientInfo` as text.
    pub info: Option<Bytes>,
    /// Minimum severity of requested log messages.
    pub level: Option<&'static str>,
}

impl ClientDetails {
    /// `_meta` members of a modern request that correspond to a legacy client's `initialize`.
    fn meta(&self) -> Vec<(&'static str, Bytes)> {
        let text = |value: Value| Bytes::from(value.to_string());
        let mut meta = vec![
            (META_REVISION, text(Revision::LATEST_MODERN.as_str().into())),
            (META_CAPABILITIES, self.capabilities.clone()),
            (META_CLIENT_INFO, self.info.clone().unwrap_or_else(|| text(implementation()))),
        ];
        meta.extend(self.level.map(|level| (META_LOG_LEVEL, text(level.into()))));
        meta
    }
}

/// A client's `params` translated to the server's era; `None` if they do not change. Params that
/// are not an object, or whose `_meta` is not, stay unchanged: the codec refused them before.
pub fn params(raw: &Bytes, client: &ClientDetails, server: Revision) -> Option<Bytes> {
    if client.revision.is_modern() == server.is_modern() {
        return None;
    }
    let params = Object::parse(raw.clone()).ok()?;
    let meta = params.object("_meta");
    if server.is_modern() {
        let own = client.meta();
        let edits: Vec<_> = own.iter().map(|(key, value)| (*key, Some(&value[..]))).collect();
        let meta = match meta {
            Some(meta) => meta.with(&edits),
            None => Object::parse(Bytes::from_static(b"{}")).ok()?.with(&edits),
        };
        // A client that cannot be asked cannot have answered, or got a state.
        return Some(params.with(&[
            ("_meta", Some(&meta)),
            ("inputResponses", None),
            ("requestState", None),
        ]));
    }
    let mut edits: Vec<(&str, Option<&[u8]>)> =
        vec![("inputResponses", None), ("requestState", None)];
    let modern = [META_REVISION, META_CAPABILITIES, META_CLIENT_INFO, META_LOG_LEVEL];
    let rest = meta.as_ref().map(|meta| meta.with(&modern.map(|key| (key, None))));
    if let (Some(meta), Some(rest)) = (&meta, &rest) {
        let empty = meta.keys().all(|key| modern.contains(&key));
        edits.push(("_meta", (!empty).then_some(&rest[..])));
    }
    Some(params.with(&edits))
}

/// Kind of a modern result, by its `resultType`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ResultKind {
    Complete,
    /// The server first needs input of the client.
    InputRequired,
    /// The call continues as a task.
    Task,
    /// A kind that the revision does not define, which makes the result invalid.
    Unknown,
}

impl ResultKind {
    /// Kind of a modern server's result.
    pub fn of(result: &Object) -> Self {
        match result.get("resultType") {
            None => Self::Complete,
            Some(_) => match result.string("resultType").as_deref() {
                Some("complete") => Self::Complete,
                Some("input_required") => Self::InputRequired,
                Some("task") => Self::Task,
                _ => Self::Unknown,
            },
        }
    }
}

/// A server's `result` translated to the client's era.
///
/// # Errors
/// If a modern server answers a legacy client with a kind of result that the legacy era lacks.
pub fn result(
    raw: Bytes,
    method: &Method,
    server: Revision,
    client: Revision,
) -> Result<Bytes, &'static str> {
    if client.is_modern() == server.is_modern() {
        return Ok(raw);
    }
    let Ok(result) = Object::parse(raw.clone()) else { return Ok(raw) };
    if client.is_modern() {
        let mut edits: Vec<(&str, Option<&[u8]>)> = vec![("resultType", Some(b"\"complete\""))];
        if method.as_str() == Method::RESOURCES_READ {
            edits.push(("ttlMs", Some(b"0")));
            edits.push(("cacheScope", Some(b"\"private\"")));
        }
        return Ok(result.with(&edits));
    }
    match ResultKind::of(&result) {
        ResultKind::Complete => Ok(result.with(&MODERN_RESULT.map(|key| (key, None)))),
        _ => Err("it answered with a kind of result that does not exist in this client's revision"),
    }
}

/// Error code of a legacy server for a missing resource. In 2026-07-28 it is `-32602`, which has
/// other meanings too, so the reverse has no translation.
const RESOURCE_NOT_FOUND: &[u8] = b"-32002";

/// A server's `error` translated to the client's era.
pub fn error(raw: Bytes, method: &Method, server: Revision, client: Revision) -> Bytes {
    if server.is_modern() || !client.is_modern() || method.as_str() != Method::RESOURCES_READ {
        return raw;
    }
    match Object::parse(raw.clone()) {
        Ok(error) if error.get("code").is_some_and(|code| &code[..] == RESOURCE_NOT_FOUND) => {
            error.with(&[("code", Some(b"-32602"))])
        }
        _ => raw,
    }
}

/// Header value by MCP 2026-07-28: plain if it is visible ASCII without surrounding space and
/// cannot be taken for the sentinel, else `=?base64?…?=`.
pub fn header_text(value: &str) -> String {
    let plain = value.bytes().all(|b| (0x20..0x7f).contains(&b))
        && value.trim() == value
        && !value.starts_with("=?base64?");
    if plain { value.to_owned() } else { format!("=?base64?{}?=", BASE64_STANDARD.encode(value)) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::may_have;

    const OLD: Revision = Revision::V2025_06_18;
    const NEW: Revision = Revision::V2026_07_28;

    fn client_details(revision: Revision) -> ClientDetails {
        ClientDetails {
            revision,
            capabilities: bytes(r#"{"roots":{ "x":1.0}}"#),
            info: Some(bytes(r#"{"name":"c"}"#)),
            level: Some("error"),
        }
    }

    fn bytes(text: &str) -> Bytes {
        Bytes::copy_from_slice(text.as_bytes())
    }

    #[test]
    fn missing_resource_has_the_modern_code_for_modern_clients_only() {
        let read = Method::new(Method::RESOURCES_READ);
        let call = Method::new(Method::TOOLS_CALL);
        let missing = bytes(r#"{"code":-32002,"message":"m","data":{"uri":"u"}}"#);
        assert_eq!(
            error(missing.clone(), &read, OLD, NEW),
            bytes(r#"{"code":-32602,"message":"m","data":{"uri":"u"}}"#)
        );
        assert_eq!(error(missing.clone(), &read, OLD, OLD), missing);
        assert_eq!(error(missing.clone(), &call, OLD, NEW), missing);
        assert_eq!(error(missing.clone(), &read, NEW, NEW), missing);
    }

    #[test]
    fn params_gain_and_lose_what_the_modern_era_adds() {
        let plain = bytes(r#"{"name":"t","arguments":{"x":1.0},"_meta":{"progressToken":1}}"#);
        let modern = params(&plain, &client_details(OLD), NEW).unwrap();
        let value: Value = serde_json::from_slice(&modern).unwrap();
        assert_eq!(value["_meta"][META_REVISION], "2026-07-28");
        assert_eq!(value["_meta"][META_LOG_LEVEL], "error");
        assert_eq!(value["_meta"][META_CLIENT_INFO]["name"], "c");
        assert_eq!(value["_meta"]["progressToken"], 1);
        assert!(modern.starts_with(br#"{"name":"t","arguments":{"x":1.0},"#));
        assert!(may_have(&modern, r#"{"roots":{ "x":1.0}}"#));
        assert_eq!(params(&modern, &client_details(NEW), OLD).unwrap(), plain);

        let bare = params(&bytes("{}"), &client_details(OLD), NEW).unwrap();
        assert_eq!(params(&bare, &client_details(NEW), OLD).unwrap(), "{}");
        let retried = bytes(r#"{"name":"t","inputResponses":{},"requestState":"s"}"#);
        assert_eq!(params(&retried, &client_details(NEW), OLD).unwrap(), r#"{"name":"t"}"#);
        let forged = params(&retried, &client_details(OLD), NEW).unwrap();
        assert!(!may_have(&forged, "inputResponses") && !may_have(&forged, "requestState"));
        assert_eq!(params(&plain, &client_details(OLD), OLD), None);
        assert_eq!(params(&plain, &client_details(NEW), NEW), None);
    }

    #[test]
    fn results_gain_and_lose_what_the_modern_era_adds() {
        let call = Method::new(Method::TOOLS_CALL);
        let read = Method::new(Method::RESOURCES_READ);
        let plain = bytes(r#"{"content":[],"x":50.0}"#);
        let modern = result(plain.clone(), &call, OLD, NEW).unwrap();
        assert_eq!(modern, r#"{"content":[],"x":50.0,"resultType":"complete"}"#);
        assert_eq!(result(modern, &call, NEW, OLD).unwrap(), plain);
        let read = result(plain.clone(), &read, OLD, NEW).unwrap();
        assert!(read.ends_with(br#""ttlMs":0,"cacheScope":"private"}"#));
        let question = bytes(r#"{"resultType":"input_required"}"#);
        assert!(result(question.clone(), &call, NEW, OLD).is_err());
        assert_eq!(result(question.clone(), &call, NEW, NEW).unwrap(), question);
        for (text, kind) in [
            ("{}", ResultKind::Complete),
            (r#"{"resultType":"complete"}"#, ResultKind::Complete),
            (r#"{"resultType":"input_required"}"#, ResultKind::InputRequired),
            (r#"{"resultType":"task"}"#, ResultKind::Task),
            (r#"{"resultType":"other"}"#, ResultKind::Unknown),
            (r#"{"resultType":1}"#, ResultKind::Unknown),
        ] {
            assert_eq!(ResultKind::of(&Object::parse(bytes(text)).unwrap()), kind, "{text}");
        }
    }

    #[test]
    fn header_values_are_encoded_if_needed() {
        for (value, text) in [
            ("get_weather", "get_weather"),
            ("a b", "a b"),
            (" a", "=?base64?IGE=?="),
            ("é", "=?base64?w6k=?="),
            ("=?base64?x", "=?base64?PT9iYXNlNjQ/eA==?="),
            ("a\nb", "=?base64?YQpi?="),
        ] {
            assert_eq!(header_text(value), text, "{value:?}");
        }
    }
}
