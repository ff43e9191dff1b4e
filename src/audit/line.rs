//! The canonical form of a record, as it is hashed, stored, exported and printed: one JSON line.
//!
//! `{"v":1,"seq":12,"recorded":"2026-11-21T16:00:00.123456Z","prev":"…64 hex…","record":…}`
//!
//! The head always has these members in this order and format; the record follows. The hash of a
//! record is the leaf hash (RFC 9162, section 2.1.1) of exactly these bytes, and `prev` is the hash
//! of the preceding record. So the same hashes form both the chain and the tree.

use std::{fmt, io::Write as _, str::FromStr};

use bytes::Bytes;
use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _, ser::Error as _};
use serde_json::value::RawValue;

use super::{
    proof::Hash,
    record::{Entry, VERSION},
};

/// Position of a record in the log, counted from 0 without gaps over the life of the store.
#[derive(
    Debug,
    Clone,
    Copy,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Serialize,
    Deserialize,
    JsonSchema,
)]
pub struct Seq(pub u64);

impl fmt::Display for Seq {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Text that is not a position in the log.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{}` is not the number of a record: use the `seq` of one", .0.escape_default())]
pub struct IllegalSeq(String);

impl FromStr for Seq {
    type Err = IllegalSeq;

    fn from_str(text: &str) -> Result<Self, IllegalSeq> {
        text.parse().map(Self).map_err(|_| IllegalSeq(text.chars().take(64).collect()))
    }
}

/// Head of a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LineHead {
    /// Position of the record.
    pub seq: Seq,
    /// Time of writing, to the microsecond.
    pub recorded: Timestamp,
    /// Hash of the preceding record; zeros for the first.
    pub prev: Hash,
}

/// Bytes up to and including the version: the same in all lines of this version.
const OPENING: &[u8] = b"{\"v\":1,\"seq\":";
const RECORDED: &[u8] = b",\"recorded\":\"";
const PREV: &[u8] = b"\",\"prev\":\"";
const CLOSING: &[u8] = b"\",";
const _: () = assert!(VERSION == 1, "the opening of a line names the version");

impl LineHead {
    /// Parses the head of a line. `None` if it is not in this version's canonical form.
    pub fn read(text: &[u8]) -> Option<Self> {
        let rest = text.strip_prefix(OPENING)?;
        let digits = rest.iter().position(|byte| !byte.is_ascii_digit())?;
        let (number, rest) = rest.split_at(digits);
        if number.is_empty() || (number.len() > 1 && number.first() == Some(&b'0')) {
            return None;
        }
        let seq = Seq(std::str::from_utf8(number).ok()?.parse().ok()?);
        let (time, rest) = rest.strip_prefix(RECORDED)?.split_at_checked(27)?;
        let time = std::str::from_utf8(time).ok()?;
        let recorded: Timestamp = time.parse().ok()?;
        if time_text(recorded) != time {
            return None;
        }
        let (prev, rest) = rest.strip_prefix(PREV)?.split_at_checked(64)?;
        rest.strip_prefix(CLOSING)?;
        Some(Self { seq, recorded, prev: Hash::from_hex(prev)? })
    }
}

/// Time in the format of lines: UTC, with all six digits of the microseconds.
fn time_text(time: Timestamp) -> String {
    format!("{time:.6}")
}

/// Line of one record, without the line feed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    seq: Seq,
    text: Bytes,
}

impl Line {
    /// Builds the line of a record. `record` is the JSON object without the members of the head.
    pub(crate) fn write(head: LineHead, record: &[u8]) -> Self {
        let LineHead { seq, recorded, prev } = head;
        let mut text = Vec::with_capacity(record.len() + 144);
        text.extend_from_slice(OPENING);
        // Writing to memory cannot fail.
        let _ = write!(text, "{seq}");
        text.extend_from_slice(RECORDED);
        text.extend_from_slice(time_text(recorded).as_bytes());
        text.extend_from_slice(PREV);
        let _ = write!(text, "{prev}");
        text.extend_from_slice(CLOSING);
        text.extend_from_slice(record.get(1..).unwrap_or_default());
        Self { seq, text: text.into() }
    }

    /// Wraps a stored line. `None` if its head is not canonical.
    pub(crate) fn read(text: Bytes) -> Option<Self> {
        let head = LineHead::read(&text)?;
        Some(Self { seq: head.seq, text })
    }

    /// Position of the record.
    pub fn seq(&self) -> Seq {
        self.seq
    }

    /// The canonical bytes.
    pub fn text(&self) -> &Bytes {
        &self.text
    }

    /// The canonical text.
    pub fn json(&self) -> &str {
        // `write` and `read` only accept UTF-8.
        std::str::from_utf8(&self.text).unwrap_or_default()
    }

    /// Hash of the record.
    pub fn hash(&self) -> Hash {
        Hash::leaf(&self.text)
    }

    /// Head of the line.
    pub fn head(&self) -> Option<LineHead> {
        LineHead::read(&self.text)
    }

    /// Parses the record.
    ///
    /// # Errors
    /// The reason why this version cannot parse it.
    pub fn entry(&self) -> Result<Entry, String> {
        serde_json::from_slice(&self.text).map_err(|e| format!("record {}: {e}", self.seq))
    }
}

impl Serialize for Line {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let raw: &RawValue = serde_json::from_slice(&self.text).map_err(S::Error::custom)?;
        raw.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Line {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let raw = Box::<RawValue>::deserialize(deserializer)?;
        let text = Bytes::from(String::from(Box::<str>::from(raw)).into_bytes());
        Self::read(text).ok_or_else(|| D::Error::custom("not the line of an audit record"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head() -> LineHead {
        LineHead { seq: Seq(12), recorded: Timestamp::UNIX_EPOCH, prev: Hash([0xab; 32]) }
    }

    #[test]
    fn line_head_round_trips() {
        let line = Line::write(head(), br#"{"record":"x"}"#);
        let text = std::str::from_utf8(line.text()).unwrap();
        let hash = "ab".repeat(32);
        assert_eq!(
            text,
            format!(
                r#"{{"v":1,"seq":12,"recorded":"1970-01-01T00:00:00.000000Z","prev":"{hash}","record":"x"}}"#
            )
        );
        assert_eq!(LineHead::read(line.text()), Some(head()));
        assert_eq!(Line::read(line.text().clone()), Some(line));
    }

    #[test]
    fn other_spellings_of_a_head_are_refused() {
        let line = Line::write(head(), br#"{"record":"x"}"#);
        let text = std::str::from_utf8(line.text()).unwrap();
        for (from, to) in [
            ("\"v\":1", "\"v\":2"),
            ("\"v\":1", "\"v\": 1"),
            (":12,", ":012,"),
            (":12,", ":-12,"),
            (":12,", ":99999999999999999999,"),
            (".000000Z", "Z"),
            ("1970-01-01T", "1970-01-01 "),
            ("ab\"", "aB\""),
            ("ab\"", "a\""),
        ] {
            let other = text.replacen(from, to, 1);
            assert_ne!(other, text);
            assert_eq!(LineHead::read(other.as_bytes()), None, "{other}");
        }
        for cut in 0..=text.find("\"record\"").unwrap() - 1 {
            assert_eq!(LineHead::read(&text.as_bytes()[..cut]), None);
        }
    }
}
