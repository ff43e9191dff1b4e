//! Errors of admin requests.

use axum::{
    Json,
    response::{IntoResponse, Response},
};
use http::StatusCode;
use serde::{Deserialize, Serialize};

use portcullis_audit::Unavailable;

/// An error of the admin interface. On the wire `{"error": {"code", "message", "remedy"?}}`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Problem {
    /// The HTTP status.
    pub status: StatusCode,
    /// Stable code for programs.
    pub code: String,
    /// Message for a person.
    pub message: String,
    /// Remedy, if there is one.
    pub remedy: Option<String>,
}

#[derive(Serialize, Deserialize)]
pub(super) struct Wire {
    error: WireError,
}

#[derive(Serialize, Deserialize)]
struct WireError {
    #[serde(default)]
    code: String,
    message: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    remedy: Option<String>,
}

impl Problem {
    /// A problem without a remedy.
    pub fn new(status: StatusCode, message: impl Into<String>) -> Self {
        let code = match status {
            StatusCode::NOT_FOUND => "not-found",
            StatusCode::FORBIDDEN => "forbidden",
            StatusCode::CONFLICT => "conflict",
            status if status.is_client_error() => "bad-request",
            StatusCode::SERVICE_UNAVAILABLE => "unavailable",
            _ => "internal",
        };
        Self { status, code: code.into(), message: message.into(), remedy: None }
    }

    /// Sets the code.
    pub fn code(mut self, code: impl Into<String>) -> Self {
        self.code = code.into();
        self
    }

    /// Sets the remedy.
    pub fn remedy(mut self, remedy: impl Into<String>) -> Self {
        self.remedy = Some(remedy.into());
        self
    }

    /// The problem of an item that does not exist.
    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, message)
    }

    /// Message and remedy in one line.
    pub(super) fn advice(&self) -> String {
        match &self.remedy {
            Some(remedy) => format!("{}: {remedy}", self.message),
            None => self.message.clone(),
        }
    }

    /// The problem in a response.
    pub(super) fn read(status: StatusCode, body: &[u8]) -> Self {
        match serde_json::from_slice::<Wire>(body) {
            Ok(Wire { error }) => {
                let WireError { code, message, remedy } = error;
                Self { status, code, message, remedy }
            }
            Err(_) => {
                let text: String = String::from_utf8_lossy(body).chars().take(500).collect();
                Self::new(status, if text.is_empty() { status.to_string() } else { text })
            }
        }
    }
}

impl From<Unavailable> for Problem {
    fn from(unavailable: Unavailable) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, unavailable.to_string())
            .code("audit-unavailable")
            .remedy(unavailable.remedy())
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let error = WireError { code: self.code, message: self.message, remedy: self.remedy };
        (self.status, Json(Wire { error })).into_response()
    }
}
