//! A record as formats see it: its canonical line, its content, and its position in the chain.

use std::ops::Deref;

use bytes::Bytes;

use crate::{
    line::Line,
    proof::Hash,
    record::{Body, Entry, Record},
};

/// One record for an export.
#[derive(Debug, Clone)]
pub struct Item {
    pub entry: Entry,
    pub hash: Hash,
    /// Canonical line; `hash` is its hash.
    pub line: Bytes,
}

impl Deref for Item {
    type Target = Entry;

    fn deref(&self) -> &Entry {
        &self.entry
    }
}

impl Item {
    /// Parses a line.
    ///
    /// # Errors
    /// The reason why this version cannot parse it.
    pub fn of(line: &Line) -> Result<Self, String> {
        Ok(Self { entry: line.entry()?, hash: line.hash(), line: line.text().clone() })
    }

    /// The canonical line as text.
    pub(super) fn text(&self) -> &str {
        // The line was parsed as JSON, which is UTF-8.
        std::str::from_utf8(&self.line).unwrap_or_default()
    }

    pub(super) fn request(&self) -> Option<&Body> {
        match &self.record {
            Record::Intent(intent) => Some(&intent.request),
            Record::Refused(refused) => refused.request.as_ref(),
            Record::Outcome(_) | Record::Event(_) => None,
        }
    }

    pub(super) fn response(&self) -> Option<&Body> {
        match &self.record {
            Record::Outcome(outcome) => outcome.response.as_ref(),
            _ => None,
        }
    }

    /// Members of an event in JSON, with its name as `event`.
    pub(super) fn happening(&self) -> Option<serde_json::Map<String, serde_json::Value>> {
        match &self.record {
            Record::Event(event) => match serde_json::to_value(&event.what) {
                Ok(serde_json::Value::Object(members)) => Some(members),
                _ => None,
            },
            _ => None,
        }
    }
}
