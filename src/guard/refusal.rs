//! Why a request was not passed on.

use std::fmt;

use bytes::Bytes;
use http::{Response, StatusCode, header::CONTENT_TYPE};
use http_body_util::{BodyExt, Full};

use crate::engine::Body;

/// What kind of refusal it is. The words are stable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Code {
    /// Not a request that can be read in one way only.
    Malformed,
    /// A call that Portcullis does not make, or that the operator does not allow.
    Call,
    /// A container that would be less confined than the rules say.
    Profile,
    /// A folder of the host that no container may have.
    Mount,
    /// An image that may not be used, pulled or loaded.
    Image,
    /// A container that is not there, or not one of this guard's.
    Container,
    /// Too much, too many or too slow.
    Limit,
    /// The engine did not answer, or not as expected.
    Engine,
}

impl Code {
    /// The stable word.
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
            // The same as the engine's for one that is not there: whose others are is nobody's
            // business.
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

/// A request that was not passed on. The words hold nothing of a body but names of its keys.
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

    /// In the engine's form, so that its clients show the words.
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

/// Something that a client wrote, for a line of a log or a message: short, and without control
/// characters.
pub(crate) fn shown(text: &str) -> String {
    const LONGEST: usize = 120;
    let mut shown: String = text.chars().take(LONGEST).flat_map(char::escape_debug).collect();
    if text.chars().count() > LONGEST {
        shown.push('…');
    }
    shown
}
