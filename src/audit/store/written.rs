//! Records that are durable.

use crate::{line::Line, record::Entry};

/// A written record.
#[derive(Debug, Clone, PartialEq)]
pub struct StoredRecord {
    /// Canonical line of the record.
    pub line: Line,
    /// Parsed record.
    pub entry: Entry,
}
