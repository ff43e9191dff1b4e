//! SHA-256 for trees of RFC 9162. By `ring`, which is fast also on processors without instructions for
//! SHA: hashing is a large part of the cost of a record.

use std::{fmt, str::FromStr};

use ring::digest::{Context, SHA256, digest};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

/// Hash in the log: of a record, of a part of the tree, or of the tree. As text: 64 characters of
/// lower-case hex.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Hash(pub [u8; 32]);

impl Hash {
    /// Predecessor hash of the first record.
    pub const ZERO: Self = Self([0; 32]);

    /// Hash of a record: `SHA-256(0x00 || line)`, the line without its line feed.
    pub fn leaf(line: &[u8]) -> Self {
        let mut context = Context::new(&SHA256);
        context.update(&[0]);
        context.update(line);
        Self::of(&context.finish())
    }

    /// Hash of two adjacent subtrees: `SHA-256(0x01 || left || right)`.
    pub fn node(left: &Self, right: &Self) -> Self {
        let mut bytes = [1; 65];
        bytes[1..33].copy_from_slice(&left.0);
        bytes[33..].copy_from_slice(&right.0);
        Self::of(&digest(&SHA256, &bytes))
    }

    /// Root of a tree without records: `SHA-256()`.
    pub fn empty() -> Self {
        Self::of(&digest(&SHA256, &[]))
    }

    fn of(digest: &ring::digest::Digest) -> Self {
        let mut hash = [0; 32];
        hash.copy_from_slice(digest.as_ref());
        Self(hash)
    }

    /// Parses a hash of 64 characters in lower-case hex.
    pub fn from_hex(text: &[u8]) -> Option<Self> {
        let mut hash = [0; 32];
        let lower = !text.iter().any(u8::is_ascii_uppercase);
        (lower && hex::decode_to_slice(text, &mut hash).is_ok()).then_some(Self(hash))
    }
}

impl fmt::Display for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = [0; 64];
        hex::encode_to_slice(self.0, &mut text).map_err(|_| fmt::Error)?;
        f.write_str(std::str::from_utf8(&text).map_err(|_| fmt::Error)?)
    }
}

impl fmt::Debug for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Text that is not a hash.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a hash is 64 characters of 0-9 and a-f")]
pub struct IllegalHash;

impl FromStr for Hash {
    type Err = IllegalHash;

    fn from_str(text: &str) -> Result<Self, IllegalHash> {
        Self::from_hex(text.as_bytes()).ok_or(IllegalHash)
    }
}

impl Serialize for Hash {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Hash {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(D::Error::custom)
    }
}

impl schemars::JsonSchema for Hash {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Hash".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({
            "type": "string",
            "pattern": "^[0-9a-f]{64}$",
            "description": "SHA-256 in lower-case hex.",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_are_serialized_as_lower_case_hex() {
        let text = "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d";
        let hash = Hash::leaf(b"");
        assert_eq!(hash.to_string(), text);
        assert_eq!(text.parse(), Ok(hash));
        assert_eq!(serde_json::to_string(&hash).unwrap(), format!("\"{text}\""));
        assert_eq!(serde_json::from_str::<Hash>(&format!("\"{text}\"")).unwrap(), hash);
        for wrong in ["", &text[1..], &text.to_uppercase(), &text.replace('6', "g")] {
            assert_eq!(wrong.parse::<Hash>(), Err(IllegalHash), "{wrong}");
        }
    }
}
