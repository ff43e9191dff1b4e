//! Reasons to reject a possible signature.

use portcullis_oci::Digest;

/// Limit of an error text in characters.
const MAX_CHARS: usize = 300;

/// A rejected signature.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rejected {
    /// Manifest that contains it, if any.
    pub at: Option<Digest>,
    /// Reason.
    pub why: Rejection,
}

/// Reason why a possible signature is rejected.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Rejection {
    /// A listed manifest or layer cannot be read.
    #[error("it cannot be read: {0}")]
    Unread(String),
    /// There is more than the limits allow to check.
    #[error("more than the limits allow to check: {0}")]
    TooMuch(&'static str),
    /// The layer contains no signature.
    #[error("it is not a known signature format: {0}")]
    Layer(String),
    /// The signed content does not name an image.
    #[error("its signed content names no image: {0}")]
    Payload(String),
    /// The signed content names another image.
    #[error("it is of another image")]
    OtherImage,
    /// The signature is invalid, or not of a trusted signer.
    #[error("{0}")]
    NotTrusted(String),
}

/// Error text made printable: other parties chose parts of it.
pub(crate) fn words(text: &str) -> String {
    let mut shown: String = text.chars().flat_map(escaped).take(MAX_CHARS).collect();
    if text.len() > MAX_CHARS {
        shown.push('…');
    }
    shown
}

fn escaped(char: char) -> impl Iterator<Item = char> {
    let plain = !char.is_control() && (char.is_ascii() || char.is_alphanumeric());
    let (plain, escaped) = match plain {
        true => (Some(char), None),
        false => (None, Some(char.escape_unicode())),
    };
    plain.into_iter().chain(escaped.into_iter().flatten())
}
