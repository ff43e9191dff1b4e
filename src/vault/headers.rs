//! Secrets as HTTP headers.

use http::{HeaderMap, HeaderName, HeaderValue};

use super::Secret;

/// Error for a header that cannot be sent. Names it, never its value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IllegalHeader {
    #[error("`{}` is not a header name", .0.escape_default())]
    Name(String),
    #[error("the value of the header `{0}` is not legal")]
    Value(HeaderName),
}

/// Headers marked as sensitive, so that HTTP clients neither show nor index them.
///
/// # Errors
/// The first header that cannot be sent.
pub fn headers(secrets: &[(String, Secret)]) -> Result<HeaderMap, IllegalHeader> {
    let mut map = HeaderMap::new();
    for (name, value) in secrets {
        let key = HeaderName::try_from(name).map_err(|_| IllegalHeader::Name(name.clone()))?;
        let mut value =
            HeaderValue::try_from(value.expose()).map_err(|_| IllegalHeader::Value(key.clone()))?;
        value.set_sensitive(true);
        map.insert(key, value);
    }
    Ok(map)
}
