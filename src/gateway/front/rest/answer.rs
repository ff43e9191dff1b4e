//! REST responses: a tool's result unchanged, or `{"error": {…}}` with an HTTP status.

use std::convert::Infallible;

use axum::{
    body::Body,
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use bytes::{Buf, Bytes};
use futures_util::stream;
use serde_json::{Value, json};

use crate::ExchangeResponse;
use portcullis_protocol::{
    codec::Object,
    refusal::{Code, Refusal},
};

/// Result of a call.
pub(super) struct Reply {
    status: StatusCode,
    body: Parts,
    retry_after: Option<u64>,
}

/// A text in parts. Large parts are slices of a response, and so hold its permit until they are
/// written; a copy would not.
pub(super) type Parts = Vec<Bytes>;

/// A result, unchanged.
pub(super) fn unchanged(result: Bytes) -> Option<Parts> {
    Some(vec![result])
}

/// A list of tools without the fields of MCP.
pub(super) fn tools(result: Bytes) -> Option<Parts> {
    let result = Object::parse(result).ok()?;
    let mut list = vec![Bytes::from_static(b"{\"tools\":"), result.get("tools")?];
    if let Some(cursor) = result.get("nextCursor") {
        list.extend([Bytes::from_static(b",\"nextCursor\":"), cursor]);
    }
    list.push(Bytes::from_static(b"}"));
    Some(list)
}

/// The elements of a batch's answer as one array.
pub(super) fn array(elements: Vec<Parts>) -> Parts {
    let separators = [b"[" as &[u8]].into_iter().chain(std::iter::repeat(b"," as &[u8]));
    let elements = separators.zip(elements);
    let parts = elements.flat_map(|(separator, mut element)| {
        element.insert(0, Bytes::from_static(separator));
        element
    });
    parts.chain([Bytes::from_static(b"]")]).collect()
}

/// A JSON text as a response.
pub(super) fn json(status: StatusCode, text: Parts) -> Response {
    let length: usize = text.iter().map(Bytes::len).sum();
    let body = Body::from_stream(stream::iter(text.into_iter().map(Ok::<_, Infallible>)));
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static("application/json")),
        (header::CONTENT_LENGTH, length.into()),
    ];
    (status, headers, body).into_response()
}

impl Reply {
    /// The result of a request, converted by `show`.
    pub fn of(answered: Option<ExchangeResponse>, show: fn(Bytes) -> Option<Parts>) -> Self {
        let Some(ExchangeResponse { text: Some(text), refused, .. }) = answered else {
            return Self::broken(
                StatusCode::INTERNAL_SERVER_ERROR,
                "no-answer",
                "the response is missing",
            );
        };
        if let Some(code) = refused {
            return Self::refused(code, &text);
        }
        let Ok(answer) = Object::parse(text) else {
            return Self::broken(
                StatusCode::BAD_GATEWAY,
                "no-answer",
                "the response is not a JSON object",
            );
        };
        if let Some(body) = answer.get("result").and_then(show) {
            return Self { status: StatusCode::OK, body, retry_after: None };
        }
        // The server's own error.
        let error = answer.get("error").unwrap_or_else(|| Bytes::from_static(b"null"));
        let message = Value::from("the server answered with an error");
        let head =
            format!("{{\"error\":{{\"code\":\"server-error\",\"message\":{message},\"rpc\":");
        let body = vec![head.into(), error, Bytes::from_static(b"}}")];
        Self { status: StatusCode::BAD_GATEWAY, body, retry_after: None }
    }

    /// A refusal with its JSON-RPC text, which has an error or a tool's result.
    pub fn refused(code: Code, text: &[u8]) -> Self {
        let answer: Value = serde_json::from_slice(text).unwrap_or_default();
        let (message, data) = Refusal::read_tool_result(&answer["result"])
            .unwrap_or((&answer["error"]["message"], &answer["error"]["data"]));
        let mut error = data.clone();
        let retry_after = error["retryAfterMs"].as_u64();
        error["message"] = message.clone();
        let body = vec![json!({ "error": error }).to_string().into()];
        Self { status: status(code), body, retry_after }
    }

    fn broken(status: StatusCode, code: &str, message: &str) -> Self {
        let body = json!({ "error": { "code": code, "message": message } });
        Self { status, body: vec![body.to_string().into()], retry_after: None }
    }

    /// One element of a batch's response.
    pub fn into_element(self) -> Parts {
        let Self { status, mut body, .. } = self;
        let code = status.as_u16();
        if status.is_success() {
            body.insert(0, format!("{{\"status\":{code},\"result\":").into());
            body.push(Bytes::from_static(b"}"));
        } else {
            // The body is an object that begins with its only member, `error`.
            let first = body.first_mut();
            if let Some(first) = first.filter(|first| first.starts_with(b"{")) {
                first.advance(1);
            }
            body.insert(0, format!("{{\"status\":{code},").into());
        }
        body
    }
}

impl IntoResponse for Reply {
    fn into_response(self) -> Response {
        let mut response = json(self.status, self.body);
        let headers = response.headers_mut();
        if let Some(millis) = self.retry_after {
            headers.insert(header::RETRY_AFTER, millis.div_ceil(1_000).into());
        }
        if self.status == StatusCode::UNAUTHORIZED {
            let challenge = HeaderValue::from_static("Bearer realm=\"portcullis\"");
            headers.insert(header::WWW_AUTHENTICATE, challenge);
        }
        response
    }
}

/// The HTTP status of a refusal.
fn status(code: Code) -> StatusCode {
    match code {
        Code::PolicyDenied | Code::SecretFound | Code::SecretUnavailable | Code::PluginRefused => {
            StatusCode::FORBIDDEN
        }
        Code::Unknown => StatusCode::NOT_FOUND,
        Code::RateLimited => StatusCode::TOO_MANY_REQUESTS,
        Code::ArgumentsInvalid => StatusCode::BAD_REQUEST,
        Code::ResultInvalid | Code::ServerMisbehaved => StatusCode::BAD_GATEWAY,
        Code::AuditUnavailable
        | Code::ServerUnavailable
        | Code::ServerOverloaded
        | Code::ServerCircuitOpen => StatusCode::SERVICE_UNAVAILABLE,
        Code::ServerTimeout => StatusCode::GATEWAY_TIMEOUT,
        Code::InterceptorFault => StatusCode::INTERNAL_SERVER_ERROR,
        code => StatusCode::from_u16(code.http())
            .ok()
            .filter(|status| !status.is_success())
            .unwrap_or(StatusCode::FORBIDDEN),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use futures_util::StreamExt;

    use super::*;

    #[test]
    fn every_refusal_code_has_an_error_status() {
        for code in Code::ALL {
            assert!(status(*code).is_client_error() || status(*code).is_server_error(), "{code}");
        }
    }

    fn answered(text: Bytes) -> Option<ExchangeResponse> {
        Some(ExchangeResponse { text: Some(text), refused: None, error: None, session: None })
    }

    #[test]
    fn result_is_unchanged() {
        let text = Bytes::from_static(br#"{"jsonrpc":"2.0","id":1,"result":{"a": 1.0 }}"#);
        let reply = Reply::of(answered(text), unchanged);
        assert_eq!(reply.body, [r#"{"a": 1.0 }"#]);
        assert_eq!(reply.into_element().concat(), br#"{"status":200,"result":{"a": 1.0 }}"#);
    }

    #[test]
    fn server_error_has_status_502() {
        let text = br#"{"jsonrpc":"2.0","id":1,"error":{"code":-32000,"message":"x"}}"#;
        let element = Reply::of(answered(Bytes::from_static(text)), unchanged).into_element();
        let element: Value = serde_json::from_slice(&element.concat()).unwrap();
        assert_eq!(element["status"], 502);
        assert_eq!(element["error"]["rpc"]["code"], -32000);
    }

    /// A text with a guard that it holds until it is dropped.
    struct GuardedText(&'static str, #[expect(dead_code, reason = "it is held")] Arc<()>);

    impl AsRef<[u8]> for GuardedText {
        fn as_ref(&self) -> &[u8] {
            self.0.as_bytes()
        }
    }

    #[tokio::test]
    async fn response_holds_its_permit_until_written() {
        let call_permit = Arc::new(());
        for (text, show) in [
            (r#"{"result":{"a":1}}"#, unchanged as fn(Bytes) -> Option<Parts>),
            (r#"{"error":{"code":1}}"#, unchanged),
            (r#"{"result":{"tools":[]}}"#, tools),
        ] {
            let text = Bytes::from_owner(GuardedText(text, call_permit.clone()));
            let elements = vec![Reply::of(answered(text), show).into_element()];
            let mut body = json(StatusCode::OK, array(elements)).into_body().into_data_stream();
            let mut written = 0;
            while let Some(part) = body.next().await {
                written += part.unwrap().len();
                if written == 1 {
                    assert_eq!(Arc::strong_count(&call_permit), 2);
                }
            }
            assert!(written > 20);
            assert_eq!(Arc::strong_count(&call_permit), 1);
        }
    }

    #[test]
    fn batch_response_is_one_array() {
        let element = |text| vec![Bytes::from_static(text)];
        assert_eq!(array(vec![element(b"1"), element(b"2")]).concat(), b"[1,2]");
    }
}
