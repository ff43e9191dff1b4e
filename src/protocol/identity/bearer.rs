//! The `Authorization` header (RFC 9110, section 11.6.2; RFC 6750, section 2.1).

use http::{HeaderMap, header::AUTHORIZATION};

use super::Key;

/// Error about an `Authorization` header. The text is for its sender, and repeats nothing of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BearerFault {
    #[error("there is more than one Authorization header")]
    Duplicate,
    #[error("the Authorization header is not of the form `Bearer KEY`")]
    Scheme,
    #[error("the Authorization header does not contain a key of this proxy")]
    Key,
}

/// Key of a request, if any.
///
/// # Errors
/// If there is a header without a valid key. Such a request is refused even if anonymous calls are
/// allowed: a client that sends a bad key is not anonymous.
pub fn bearer(headers: &HeaderMap) -> Result<Option<Key>, BearerFault> {
    let mut values = headers.get_all(AUTHORIZATION).iter();
    let Some(value) = values.next() else { return Ok(None) };
    if values.next().is_some() {
        return Err(BearerFault::Duplicate);
    }
    let text = value.to_str().map_err(|_| BearerFault::Scheme)?;
    let (scheme, key) = text.split_once(' ').ok_or(BearerFault::Scheme)?;
    if !scheme.eq_ignore_ascii_case("bearer") {
        return Err(BearerFault::Scheme);
    }
    key.trim_matches(' ').parse().map(Some).map_err(|_| BearerFault::Key)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_read_from_valid_headers_only() {
        let key = Key::generate().unwrap();
        let good = format!("Bearer {}", key.expose());
        let basic = format!("Basic {}", key.expose());
        let bare = key.expose().to_owned();
        let with = |values: &[&str]| {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append(AUTHORIZATION, value.parse().unwrap());
            }
            bearer(&headers)
        };
        assert_eq!(with(&[]), Ok(None));
        assert_eq!(with(&[&good]), Ok(Some(key.clone())));
        assert_eq!(with(&[&good.replace("Bearer ", "bEARER   ")]), Ok(Some(key)));
        assert_eq!(with(&[&good, &good]), Err(BearerFault::Duplicate));
        assert_eq!(with(&[&basic]), Err(BearerFault::Scheme));
        assert_eq!(with(&[&bare]), Err(BearerFault::Scheme));
        assert_eq!(with(&[""]), Err(BearerFault::Scheme));
        assert_eq!(with(&["Bearer x"]), Err(BearerFault::Key));
        assert_eq!(with(&[&format!("{good}, {good}")]), Err(BearerFault::Key));
    }
}
