//! Bodies of requests and responses.

use bytes::Bytes;
use http_body_util::combinators::UnsyncBoxBody;

/// Body of any kind.
pub type Body = UnsyncBoxBody<Bytes, BoxError>;
/// Failure of a body.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;
