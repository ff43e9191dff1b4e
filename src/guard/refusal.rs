//! Refusals of requests.

use std::fmt;

use bytes::Bytes;
use http::{Response, StatusCode, header::CONTENT_TYPE};
use http_body_util::{BodyExt, Full};

use crate::body::Body;

/// Kind of a refusal. Its text is stable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Code {
    /// Not an unambiguous request.
    Malformed,
    /// A call that Portcullis does not make, or that the operator does not allow.
    Call,
    /// A container less confined than the rules require.
    Profile,
    /// A host folder that must not be mounted.
    Mount,
    /// An image that must not be used, pulled or loaded.
    Image,
    /// A container that does not exist, or does not belong to this guard.
    Container,
    /// A limit of size, number or time is exceeded.
    Limit,
    /// The engine did not answer, or not as expected.
    Engine,
}

impl Code {
    /// Stable text.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Malformed => "guard-malformed",
            Self::Call => "guard-call",
            Self::Profile => "guard-profile",
            Self::Mount => "guard-mount",
            Self::Image => "guard-image",
            Self::Container => "guard-container",
            Self::Limit => "guard-limit",
            Self::Engine => "guard-engine",
        }
    }

    fn status(self) -> StatusCode {
        match self {
            Self::Malformed => StatusCode::BAD_REQUEST,
            Self::Call | Self::Profile | Self::Mount | Self::Image => StatusCode::FORBIDDEN,
            // Same as the engine's answer for a missing container, so that the existence of other
            // containers is not revealed.
            Self::Container => StatusCode::NOT_FOUND,
            Self::Limit => StatusCode::TOO_MANY_REQUESTS,
            Self::Engine => StatusCode::BAD_GATEWAY,
        }
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A refused request. The text contains nothing of a body except names of its keys.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{code}: {why}")]
pub struct Refusal {
    pub code: Code,
    pub why: String,
}

impl Refusal {
    pub(crate) fn new(code: Code, why: impl Into<String>) -> Self {
        Self { code, why: why.into() }
    }

    /// Response in the engine's format, so that its clients show the text.
    pub(crate) fn response(&self) -> Response<Body> {
        let text = serde_json::json!({ "message": self.to_string() }).to_string();
        let body = Full::new(Bytes::from(text)).map_err(|never| match never {}).boxed_unsync();
        let mut response = Response::new(body);
        *response.status_mut() = self.code.status();
        let json = http::HeaderValue::from_static("application/json");
        response.headers_mut().insert(CONTENT_TYPE, json);
        response
    }
}

/// Text of a client for a log line or a message: shortened, and without control characters.
pub(crate) fn shown(text: &str) -> String {
    const MAX_CHARS: usize = 120;
    let mut shown: String = text.chars().take(MAX_CHARS).flat_map(char::escape_debug).collect();
    if text.chars().count() > MAX_CHARS {
        shown.push('…');
    }
    shown
}
