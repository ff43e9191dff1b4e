//! Why what was found does not count.

use portcullis_oci::Digest;

/// Characters that are told of a fault.
const WORDS: usize = 300;

/// Something that was found and does not count.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rejected {
    /// The manifest that it is in, where it has one.
    pub at: Option<Digest>,
    /// Why.
    pub why: Rejection,
}

/// Why something that was found does not count.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Rejection {
    /// What is listed cannot be had.
    #[error("it cannot be had: {0}")]
    Unread(String),
    /// There is more than is looked at.
    #[error("there is more than is looked at: {0}")]
    TooMuch(&'static str),
    /// The layer holds no signature.
    #[error("it is no signature that is known: {0}")]
    Layer(String),
    /// What is signed does not speak of an image.
    #[error("what is signed names no image: {0}")]
    Payload(String),
    /// What is signed speaks of another image.
    #[error("it is of another image")]
    OtherImage,
    /// It is a signature of nobody who is trusted, or none.
    #[error("{0}")]
    NotTrusted(String),
}

/// What a fault says, as a person can read it: others chose some of its words.
pub(crate) fn words(text: &str) -> String {
    let mut told: String = text.chars().flat_map(escaped).take(WORDS).collect();
    if text.len() > WORDS {
        told.push('…');
    }
    told
}

fn escaped(char: char) -> impl Iterator<Item = char> {
    let plain = !char.is_control() && (char.is_ascii() || char.is_alphanumeric());
    let (plain, escaped) = match plain {
        true => (Some(char), None),
        false => (None, Some(char.escape_unicode())),
    };
    plain.into_iter().chain(escaped.into_iter().flatten())
}
