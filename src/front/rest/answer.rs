//! What comes back over REST: a tool's result as it is, or `{"error": {…}}` with an HTTP status.

use axum::{
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use serde_json::{Value, json};

use super::json;
use crate::{codec::Object, proxy::Answered, refusal::Code};

/// What came of a call.
pub(super) struct Reply {
    status: StatusCode,
    body: Bytes,
    retry_after: Option<u64>,
}

/// A result as it is.
pub(super) fn whole(result: Bytes) -> Option<Bytes> {
    Some(result)
}

/// What a list of tools has for who does not speak MCP.
pub(super) fn tools(result: Bytes) -> Option<Bytes> {
    let result = Object::parse(result).ok()?;
    let mut list = b"{\"tools\":".to_vec();
    list.extend_from_slice(&result.get("tools")?);
    if let Some(cursor) = result.get("nextCursor") {
        list.extend_from_slice(b",\"nextCursor\":");
        list.extend_from_slice(&cursor);
    }
    list.push(b'}');
    Some(list.into())
}

impl Reply {
    /// What became of a request, its result shown as `show` does.
    pub fn of(answered: Option<Answered>, show: fn(Bytes) -> Option<Bytes>) -> Self {
        let Some(Answered { text: Some(text), refused, .. }) = answered else {
            return Self::broken(
                StatusCode::INTERNAL_SERVER_ERROR,
                "no-answer",
                "there is no answer",
            );
        };
        if let Some(code) = refused {
            return Self::refused(code, &text);
        }
        let Ok(answer) = Object::parse(text) else {
            return Self::broken(StatusCode::BAD_GATEWAY, "no-answer", "the answer is none");
        };
        if let Some(body) = answer.get("result").and_then(show) {
            return Self { status: StatusCode::OK, body, retry_after: None };
        }
        // The server's own error.
        let error = answer.get("error").unwrap_or_else(|| Bytes::from_static(b"null"));
        let message = Value::from("the server answered with an error");
        let head =
            format!("{{\"error\":{{\"code\":\"server-error\",\"message\":{message},\"rpc\":");
        let body = [head.as_bytes(), &error, b"}}"].concat().into();
        Self { status: StatusCode::BAD_GATEWAY, body, retry_after: None }
    }

    /// A refusal, of which `text` is the JSON-RPC answer.
    pub fn refused(code: Code, text: &[u8]) -> Self {
        let answer: Value = serde_json::from_slice(text).unwrap_or_default();
        let mut error = answer["error"]["data"].clone();
        let retry_after = error["retryAfterMs"].as_u64();
        error["message"] = answer["error"]["message"].clone();
        let body = json!({ "error": error }).to_string().into();
        Self { status: status(code), body, retry_after }
    }

    fn broken(status: StatusCode, code: &str, message: &str) -> Self {
        let body = json!({ "error": { "code": code, "message": message } });
        Self { status, body: body.to_string().into(), retry_after: None }
    }

    /// As one element of a batch's answer.
    pub fn into_element(self) -> Bytes {
        let status = self.status.as_u16();
        if self.status.is_success() {
            let head = format!("{{\"status\":{status},\"result\":");
            return [head.as_bytes(), &self.body, b"}"].concat().into();
        }
        // The body is an object with one member, `error`.
        let head = format!("{{\"status\":{status},");
        [head.as_bytes(), self.body.strip_prefix(b"{").unwrap_or_default()].concat().into()
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
        Code::PolicyDenied | Code::SecretFound | Code::PluginRefused => StatusCode::FORBIDDEN,
        Code::Unknown => StatusCode::NOT_FOUND,
        Code::RateLimited => StatusCode::TOO_MANY_REQUESTS,
        Code::ArgumentsInvalid => StatusCode::BAD_REQUEST,
        Code::ResultInvalid | Code::ServerMisbehaved => StatusCode::BAD_GATEWAY,
        Code::AuditUnavailable | Code::ServerUnavailable | Code::ServerOverloaded => {
            StatusCode::SERVICE_UNAVAILABLE
        }
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
    use super::*;

    #[test]
    fn every_refusal_has_a_status_that_is_one() {
        for code in Code::ALL {
            assert!(status(*code).is_client_error() || status(*code).is_server_error(), "{code}");
        }
    }

    #[test]
    fn a_result_stays_as_it_came() {
        let text = Bytes::from_static(br#"{"jsonrpc":"2.0","id":1,"result":{"a": 1.0 }}"#);
        let answered = Answered { text: Some(text), refused: None, error: None, session: None };
        let reply = Reply::of(Some(answered), whole);
        assert_eq!(reply.body, r#"{"a": 1.0 }"#);
        assert_eq!(reply.into_element(), r#"{"status":200,"result":{"a": 1.0 }}"#);
    }

    #[test]
    fn a_server_has_errors_of_its_own() {
        let text = br#"{"jsonrpc":"2.0","id":1,"error":{"code":-32000,"message":"x"}}"#;
        let text = Some(Bytes::from_static(text));
        let answered = Answered { text, refused: None, error: None, session: None };
        let element = Reply::of(Some(answered), whole).into_element();
        let element: Value = serde_json::from_slice(&element).unwrap();
        assert_eq!(element["status"], 502);
        assert_eq!(element["error"]["rpc"]["code"], -32000);
    }
}
