//! API keys and their stored hashes.

use std::{fmt, str::FromStr};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

/// Prefix of every key, so that scanners and people recognize it.
const PREFIX: &str = "pck_";
/// Characters after the prefix: 32 bytes in base64url without padding.
const BODY_CHARS: usize = 43;

/// An API key: `pck_` and 256 random bits. Shown once, never stored.
#[derive(Clone, PartialEq, Eq)]
pub struct Key(String);

/// Error: the operating system provides no random bytes.
#[derive(Debug, thiserror::Error)]
#[error("the operating system provides no random bytes: {0}")]
pub struct NoRandomness(getrandom::Error);

/// Error for text that does not have the form of a key. Does not contain the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("this is not a key of this proxy")]
pub struct NoKey;

impl Key {
    /// New key.
    ///
    /// # Errors
    /// If the operating system provides no random bytes.
    pub fn generate() -> Result<Self, NoRandomness> {
        let mut bytes = [0; 32];
        getrandom::fill(&mut bytes).map_err(NoRandomness)?;
        Ok(Self(format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(bytes))))
    }

    /// Whole key, to show it once.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// Hash that is stored instead of the key.
    ///
    /// One round of SHA-256 is sufficient: slow hashes protect guessable passwords, and 256 random
    /// bits cannot be guessed at any speed. A slow hash would only let strangers consume the
    /// proxy's time.
    pub fn hash(&self) -> KeyHash {
        KeyHash(Sha256::digest(self.0.as_bytes()).into())
    }
}

impl FromStr for Key {
    type Err = NoKey;

    fn from_str(text: &str) -> Result<Self, NoKey> {
        let body = text.strip_prefix(PREFIX).ok_or(NoKey)?;
        let legal = body.len() == BODY_CHARS
            && body.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
        if legal { Ok(Self(text.to_owned())) } else { Err(NoKey) }
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key(…)")
    }
}

/// SHA-256 of a key: `sha256:` and 64 hex digits.
#[derive(Clone, Copy, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
#[expect(clippy::derived_hash_with_manual_eq, reason = "both are of all bytes")]
pub struct KeyHash([u8; 32]);

/// In constant time. Looking keys up in a table of hashes is safe anyway: its timing reveals
/// something about a hash, from which no key can be derived.
impl PartialEq for KeyHash {
    fn eq(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

impl KeyHash {
    /// First digits, which identify the key in records and lists.
    pub fn id(&self) -> String {
        hex::encode(&self.0[..6])
    }
}

/// Error for text that is not a [`KeyHash`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a key's hash is `sha256:` and 64 characters of 0-9 and a-f")]
pub struct NoHash;

impl FromStr for KeyHash {
    type Err = NoHash;

    fn from_str(text: &str) -> Result<Self, NoHash> {
        let digits = text.strip_prefix("sha256:").ok_or(NoHash)?;
        if digits.bytes().any(|b| b.is_ascii_uppercase()) {
            return Err(NoHash);
        }
        let mut bytes = [0; 32];
        hex::decode_to_slice(digits, &mut bytes).map_err(|_| NoHash)?;
        Ok(Self(bytes))
    }
}

impl TryFrom<String> for KeyHash {
    type Error = NoHash;

    fn try_from(text: String) -> Result<Self, NoHash> {
        text.parse()
    }
}

impl From<KeyHash> for String {
    fn from(hash: KeyHash) -> String {
        hash.to_string()
    }
}

impl fmt::Display for KeyHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", hex::encode(self.0))
    }
}

impl fmt::Debug for KeyHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeyHash({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_random_and_recognized() {
        let (a, b) = (Key::generate().unwrap(), Key::generate().unwrap());
        assert_ne!(a.expose(), b.expose());
        assert_eq!(a.expose().parse::<Key>().unwrap(), a);
        assert_eq!(a.expose().len(), PREFIX.len() + BODY_CHARS);
        assert_eq!(format!("{a:?}"), "Key(…)");
        let body = "A".repeat(BODY_CHARS);
        for text in [
            "".to_owned(),
            body.clone(),
            format!("{PREFIX}{}", &body[1..]),
            format!("{PREFIX}{body}A"),
            format!("{PREFIX}{}=", &body[1..]),
            format!("{PREFIX}{} ", &body[1..]),
            format!("PCK_{body}"),
        ] {
            assert!(text.parse::<Key>().is_err(), "{text}");
        }
    }

    #[test]
    fn hashes_round_trip() {
        let hash = Key::generate().unwrap().hash();
        let text = hash.to_string();
        assert_eq!(text.parse::<KeyHash>().unwrap(), hash);
        for text in ["", "sha256:", &text[7..], &text[..70], &text.to_uppercase(), "sha256:zz"] {
            assert!(text.parse::<KeyHash>().is_err(), "{text}");
        }
    }
}
