//! The keys of a segment. A record stands under `r` and its stamp; an index entry under `i`, the
//! field, a digest of the value and the stamp of the record, so that one batch holds them all and
//! a scan of either comes in the order of stamps.

use sha2::{Digest as _, Sha256};

use crate::audit::record::{Decision, Kind, Record};

const RECORD: u8 = b'r';
const INDEX: u8 = b'i';

/// What has an index. Values that nearly every record has (`tools/call`, `allowed`) are left out:
/// an index of them would be the scan over again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::audit) enum Field {
    Id = 1,
    Principal = 2,
    Server = 3,
    Tool = 4,
    Method = 5,
    Decision = 6,
    Code = 7,
    Kind = 8,
}

impl Field {
    /// Whether records with this value are in this field's index.
    pub(in crate::audit) fn indexes(self, value: &str) -> bool {
        match self {
            Self::Method => value != crate::exchange::Method::TOOLS_CALL,
            Self::Decision => value != decision(Decision::Allowed),
            Self::Kind => value == kind(Kind::Event),
            _ => true,
        }
    }
}

/// The text of a decision, as the record has it.
pub(in crate::audit) fn decision(decision: Decision) -> &'static str {
    match decision {
        Decision::Allowed => "allowed",
        Decision::Refused => "refused",
        Decision::Failed => "failed",
        Decision::Cancelled => "cancelled",
    }
}

/// The text of a kind, as the record has it.
pub(in crate::audit) fn kind(kind: Kind) -> &'static str {
    match kind {
        Kind::Intent => "intent",
        Kind::Outcome => "outcome",
        Kind::Refused => "refused",
        Kind::Event => "event",
    }
}

/// A row of keys that differ by their stamp only.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::audit) struct Span(Vec<u8>);

impl Span {
    /// All records.
    pub(in crate::audit) fn records() -> Self {
        Self(vec![RECORD])
    }

    /// Records whose field has this value, and a few more: the digest is short.
    pub(in crate::audit) fn of(field: Field, value: &str) -> Self {
        let digest = Sha256::digest(value.as_bytes());
        let mut prefix = vec![INDEX, field as u8];
        prefix.extend(digest.iter().take(8));
        Self(prefix)
    }

    /// The key with this stamp.
    pub(super) fn at(&self, stamp: u64) -> Vec<u8> {
        let mut key = self.0.clone();
        key.extend(stamp.to_be_bytes());
        key
    }
}

/// The stamp at a key's end.
pub(super) fn stamp(key: &[u8]) -> Option<u64> {
    key.last_chunk().map(|bytes| u64::from_be_bytes(*bytes))
}

/// The rows of the index that a record stands in.
pub(super) fn index(record: &Record) -> Vec<Span> {
    let mut spans = vec![Span::of(Field::Id, &record.id().to_string())];
    let mut add = |field: Field, value: Option<&str>| {
        spans.extend(value.filter(|value| field.indexes(value)).map(|v| Span::of(field, v)));
    };
    let call = record.call();
    add(Field::Principal, call.and_then(|call| call.principal.as_deref()));
    add(Field::Server, record.server());
    add(Field::Tool, record.tool());
    add(Field::Method, call.and_then(|call| call.method.as_deref()));
    add(Field::Decision, record.decision().map(decision));
    add(Field::Code, record.refusal().map(|refusal| refusal.code.as_str()));
    add(Field::Kind, Some(kind(record.kind())));
    spans
}
