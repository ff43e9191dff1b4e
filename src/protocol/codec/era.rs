//! Translation between the stateless revision (2026-07-28) and earlier ones. Only members that
//! exist in one era are added or removed; everything else stays byte for byte.

use base64::{Engine as _, prelude::BASE64_STANDARD};
use bytes::Bytes;
use serde_json::{Value, json};

use super::{Object, may_have};
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
pub const MODERN_RESULT: [&str; 3] = ["resultType", "ttlMs", "cacheScope"];

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
            (META_CAPABILITIES, without_tasks(&self.capabilities)),
            (META_CLIENT_INFO, self.info.clone().unwrap_or_else(|| text(implementation()))),
        ];
        meta.extend(self.level.map(|level| (META_LOG_LEVEL, text(level.into()))));
        meta
    }
}

/// A legacy client's capabilities without the tasks extension: the client has no method to follow
/// such a task, so the server must not create one.
fn without_tasks(capabilities: &Bytes) -> Bytes {
    if !may_have(capabilities, TASKS_EXTENSION) {
        return capabilities.clone();
    }
    let rest = || {
        let capabilities = Object::parse(capabilities.clone()).ok()?;
        let extensions = capabilities.object("extensions")?.with(&[(TASKS_EXTENSION, None)]);
        Some(capabilities.with(&[("extensions", Some(&extensions))]))
    };
    rest().unwrap_or_else(|| capabilities.clone())
}

/// A client's `params` translated to the server's era; `None` if they do not change. Params that
/// are not an object, or whose `_meta` is not, stay unchanged: the codec refused them before.
pub fn params(
    raw: &Bytes,
    method: &Method,
    client: &ClientDetails,
    server: Revision,
) -> Option<Bytes> {
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
    if method.as_str() == Method::TOOLS_CALL {
        // A modern client does not request a task, and could not follow one of a legacy server.
        edits.push(("task", None));
    }
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
        // The server created a task by the extension, without its revision.
        let creates = method.as_str() == Method::TOOLS_CALL;
        if creates && ResultKind::of(&result) == ResultKind::Task {
            return Ok(raw);
        }
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

/// Error code of a legacy server for a missing resource.
pub const RESOURCE_NOT_FOUND: i32 = -32002;
/// In 2026-07-28 it is this one, which has other meanings too: there, the error's data has the `uri`.
const INVALID_PARAMS: i32 = -32602;

/// A server's `error` translated to the client's era.
pub fn error(raw: Bytes, method: &Method, server: Revision, client: Revision) -> Bytes {
    if server.is_modern() == client.is_modern() || method.as_str() != Method::RESOURCES_READ {
        return raw;
    }
    let (from, to) = match client.is_modern() {
        true => (RESOURCE_NOT_FOUND, INVALID_PARAMS),
        false => (INVALID_PARAMS, RESOURCE_NOT_FOUND),
    };
    let Ok(error) = Object::parse(raw.clone()) else { return raw };
    let is_missing = error.get("code").is_some_and(|code| code == from.to_string())
        && (client.is_modern()
            || error.object("data").is_some_and(|data| data.string("uri").is_some()));
    match is_missing {
        true => error.with(&[("code", Some(to.to_string().as_bytes()))]),
        false => raw,
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
    fn missing_resource_has_the_code_of_the_clients_era() {
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
        let modern = bytes(r#"{"code":-32602,"message":"m","data":{"uri":"u"}}"#);
        assert_eq!(error(modern.clone(), &read, NEW, OLD), missing);
        assert_eq!(error(modern.clone(), &call, NEW, OLD), modern);
        // Another error of the parameters.
        let other = bytes(r#"{"code":-32602,"message":"m","data":{"key":"u"}}"#);
        assert_eq!(error(other.clone(), &read, NEW, OLD), other);
    }

    #[test]
    fn params_gain_and_lose_what_the_modern_era_adds() {
        let call = Method::new(Method::TOOLS_CALL);
        let plain = bytes(r#"{"name":"t","arguments":{"x":1.0},"_meta":{"progressToken":1}}"#);
        let modern = params(&plain, &call, &client_details(OLD), NEW).unwrap();
        let value: Value = serde_json::from_slice(&modern).unwrap();
        assert_eq!(value["_meta"][META_REVISION], "2026-07-28");
        assert_eq!(value["_meta"][META_LOG_LEVEL], "error");
        assert_eq!(value["_meta"][META_CLIENT_INFO]["name"], "c");
        assert_eq!(value["_meta"]["progressToken"], 1);
        assert!(modern.starts_with(br#"{"name":"t","arguments":{"x":1.0},"#));
        assert!(may_have(&modern, r#"{"roots":{ "x":1.0}}"#));
        assert_eq!(params(&modern, &call, &client_details(NEW), OLD).unwrap(), plain);

        let bare = params(&bytes("{}"), &call, &client_details(OLD), NEW).unwrap();
        assert_eq!(params(&bare, &call, &client_details(NEW), OLD).unwrap(), "{}");
        let retried = bytes(r#"{"name":"t","inputResponses":{},"requestState":"s"}"#);
        assert_eq!(params(&retried, &call, &client_details(NEW), OLD).unwrap(), r#"{"name":"t"}"#);
        let forged = params(&retried, &call, &client_details(OLD), NEW).unwrap();
        assert!(!may_have(&forged, "inputResponses") && !may_have(&forged, "requestState"));
        let task = bytes(r#"{"name":"t","task":{}}"#);
        assert_eq!(params(&task, &call, &client_details(NEW), OLD).unwrap(), r#"{"name":"t"}"#);
        let other = Method::new("acme/run");
        assert_eq!(params(&task, &other, &client_details(NEW), OLD).unwrap(), task);
        let extension = format!(r#"{{"extensions":{{"{TASKS_EXTENSION}":{{}},"acme/x":{{}}}}}}"#);
        let able = ClientDetails { capabilities: extension.into(), ..client_details(OLD) };
        let value = params(&plain, &call, &able, NEW).unwrap();
        let value: Value = serde_json::from_slice(&value).unwrap();
        let declared = json!({ "extensions": { "acme/x": {} } });
        assert_eq!(value["_meta"][META_CAPABILITIES], declared);
        assert_eq!(params(&plain, &call, &client_details(OLD), OLD), None);
        assert_eq!(params(&plain, &call, &client_details(NEW), NEW), None);
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
        let task = bytes(r#"{"resultType":"task","taskId":"1"}"#);
        assert_eq!(result(task.clone(), &call, OLD, NEW).unwrap(), task);
        let other = result(task.clone(), &Method::new("tasks/get"), OLD, NEW).unwrap();
        assert_eq!(other, r#"{"resultType":"complete","taskId":"1"}"#);
        assert!(result(task, &call, NEW, OLD).is_err());
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
