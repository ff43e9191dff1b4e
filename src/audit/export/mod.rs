//! Exports of records: once into a file (`portcullis audit export`), or as a stream to a target of
//! the config (`[[audit.export]]`).
//!
//! - A format is a pure function of records (`format/`).
//! - A stream delivers every record at least once: its cursor moves past acknowledged records, is
//!   kept on disk, and is all that a restart needs (`exporter.rs`).
//! - A slow, broken or missing target affects only its own stream, which waits and logs failures.
//! - No message, metric or `Debug` output contains a target's credentials.

mod cursor;
mod export_record;
mod exporter;
mod exporters;
pub(crate) mod format;
mod source;
mod target;
#[cfg(test)]
mod tests;

pub use export_record::Item;
pub use exporter::Meters;
pub use exporters::{Settings, Streams};
pub use format::{Fault, Format, Origin, Writer};
pub use target::{Illegal, Target};

use std::sync::Arc;

use super::Audit;
use portcullis_protocol::names::ExportName;

impl Audit {
    /// Starts streams of this log's records.
    ///
    /// # Errors
    /// If a target's headers or certificates cannot be used, with the stream's name.
    pub fn export(
        &self,
        settings: Vec<Settings>,
        meters: impl Fn(&ExportName) -> Meters,
    ) -> Result<Streams, Illegal> {
        let segment_set = self.segment_set();
        let source: Arc<dyn exporter::Source> = Arc::new(source::Stored(segment_set.clone()));
        let origin = Origin::here(self.id().to_owned());
        Streams::start(settings, segment_set.dir(), &origin, &source, meters)
    }
}
