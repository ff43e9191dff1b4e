//! Errors of the container engine in this program's words.

use bollard::errors::Error;

/// Time limit in seconds for the start of an answer to a later request. Loading an image has a
/// longer one.
pub(super) const REQUEST_TIMEOUT_SECONDS: u64 = 60;

/// Text of an engine's error, with its causes.
pub(super) fn words(error: &Error) -> String {
    match error {
        Error::DockerResponseServerError { message, .. } => message.trim().to_owned(),
        Error::RequestTimeoutError => format!("no answer within {REQUEST_TIMEOUT_SECONDS} seconds"),
        Error::SocketNotFoundError(_) => "does not exist".to_owned(),
        other => {
            // The innermost cause is the useful one: `Permission denied`.
            let mut cause: &dyn std::error::Error = other;
            while let Some(inner) = cause.source() {
                cause = inner;
            }
            cause.to_string()
        }
    }
}

/// Whether the engine answered that the object does not exist.
pub(super) fn missing(error: &Error) -> bool {
    matches!(error, Error::DockerResponseServerError { status_code: 404, .. })
}
