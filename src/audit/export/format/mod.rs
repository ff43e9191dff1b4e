//! The formats: each a pure function of records. Open `columns.rs` for CSV, Parquet and
//! PostgreSQL, `ocsf/` for OCSF.

mod cef;
pub(super) mod columns;
mod csv;
mod ocsf;
mod otlp;
mod parquet;
mod syslog;
#[cfg(test)]
mod tests;

use std::{fmt, io::Write, str::FromStr};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Item;
use crate::record::{Decision, Kind, Record, Severity};

/// How records are written.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema, clap::ValueEnum,
)]
#[serde(rename_all = "kebab-case")]
pub enum Format {
    /// The records as they are stored, byte for byte, one a line.
    Jsonl,
    /// Comma-separated values with a line of names.
    Csv,
    /// Apache Parquet, compressed with zstd. Not for streams.
    Parquet,
    /// Events of the Open Cybersecurity Schema Framework 1.9, one a line.
    Ocsf,
    /// ArcSight's Common Event Format, one event a line.
    Cef,
    /// Messages of RFC 5424 with the record as text.
    Syslog,
    /// OpenTelemetry logs as OTLP's JSON.
    Otlp,
}

impl Format {
    /// All formats.
    pub const ALL: [Self; 7] =
        [Self::Jsonl, Self::Csv, Self::Parquet, Self::Ocsf, Self::Cef, Self::Syslog, Self::Otlp];

    /// The name in the config and on the command line.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Jsonl => "jsonl",
            Self::Csv => "csv",
            Self::Parquet => "parquet",
            Self::Ocsf => "ocsf",
            Self::Cef => "cef",
            Self::Syslog => "syslog",
            Self::Otlp => "otlp",
        }
    }

    /// Media type of a body in this format.
    pub(super) fn media(self) -> &'static str {
        match self {
            Self::Jsonl | Self::Ocsf => "application/x-ndjson",
            Self::Csv => "text/csv; charset=utf-8; header=present",
            Self::Parquet => "application/vnd.apache.parquet",
            Self::Cef | Self::Syslog => "text/plain; charset=utf-8",
            Self::Otlp => "application/json",
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Format {
    type Err = Fault;

    fn from_str(text: &str) -> Result<Self, Fault> {
        Self::ALL
            .into_iter()
            .find(|format| format.as_str() == text)
            .ok_or_else(|| Fault("this is not an export format".into()))
    }
}

/// Error while writing a format.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Fault(pub String);

/// Data about the log and this machine that formats include.
#[derive(Debug, Clone)]
pub struct Origin {
    /// Id of the store: the name of the hash chain.
    pub log: String,
    /// Name of this machine.
    pub host: Option<String>,
    /// Version of the proxy.
    pub version: &'static str,
    pub pid: u32,
}

impl Origin {
    /// Origin of this process, for the log with this id.
    pub fn here(log: String) -> Self {
        Self {
            log,
            host: nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok()),
            version: env!("CARGO_PKG_VERSION"),
            pid: std::process::id(),
        }
    }
}

/// Writes one record as one line, without the line feed, in a line-based format.
fn one(format: Format, item: &Item, origin: &Origin, out: &mut Vec<u8>) -> Result<(), Fault> {
    match format {
        Format::Jsonl => out.extend_from_slice(&item.line),
        Format::Ocsf => {
            let event = ocsf::event(item, origin);
            serde_json::to_writer(out, &event).map_err(|error| Fault(format!("OCSF: {error}")))?;
        }
        Format::Cef => cef::event(item, origin, out),
        Format::Syslog => syslog::message(item, origin, Format::Jsonl, out)?,
        Format::Csv | Format::Parquet | Format::Otlp => {
            return Err(Fault(format!("{format} has no lines of one record")));
        }
    }
    Ok(())
}

/// Writes one record as an RFC 5424 message with `payload` as its text.
pub(super) fn message(payload: Format, item: &Item, origin: &Origin) -> Result<Vec<u8>, Fault> {
    let mut out = Vec::with_capacity(item.line.len() + 512);
    // The payload of the format `syslog` is the canonical line.
    let payload = if payload == Format::Syslog { Format::Jsonl } else { payload };
    syslog::message(item, origin, payload, &mut out)?;
    Ok(out)
}

/// Writes records as lines or, in OTLP, as one request. `first` means that nothing precedes them,
/// so that CSV begins with its header line.
pub(super) fn lines(
    format: Format,
    items: &[Item],
    origin: &Origin,
    first: bool,
) -> Result<Vec<u8>, Fault> {
    let mut out = Vec::with_capacity(items.iter().map(|item| item.line.len() + 64).sum());
    match format {
        Format::Otlp => {
            if !items.is_empty() {
                otlp::request(items, origin, &mut out)?;
                out.push(b'\n');
            }
        }
        Format::Csv => {
            if first {
                csv::header(&mut out)?;
            }
            for item in items {
                csv::row(item, &mut out)?;
            }
        }
        _ => {
            for item in items {
                one(format, item, origin, &mut out)?;
                out.push(b'\n');
            }
        }
    }
    Ok(out)
}

/// Writer for a whole file in one format.
pub struct Writer<W: Write + Send> {
    inner: Inner<W>,
    origin: Origin,
}

enum Inner<W: Write + Send> {
    Lines { format: Format, out: W, first: bool },
    Parquet(Box<parquet::File<W>>),
}

impl<W: Write + Send> Writer<W> {
    /// Begins a file.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn new(format: Format, origin: Origin, out: W) -> Result<Self, Fault> {
        let inner = match format {
            Format::Parquet => Inner::Parquet(Box::new(parquet::File::new(&origin, out)?)),
            format => Inner::Lines { format, out, first: true },
        };
        Ok(Self { inner, origin })
    }

    /// Writes records.
    ///
    /// # Errors
    /// If the records cannot be written.
    pub fn write(&mut self, items: Vec<Item>) -> Result<(), Fault> {
        match &mut self.inner {
            Inner::Lines { format, out, first } => {
                let text = lines(*format, &items, &self.origin, *first)?;
                *first = false;
                out.write_all(&text).map_err(unwritable)
            }
            Inner::Parquet(file) => file.write(items),
        }
    }

    /// Ends the file.
    ///
    /// # Errors
    /// If the end of the file cannot be written.
    pub fn finish(self) -> Result<W, Fault> {
        match self.inner {
            Inner::Lines { format, mut out, first } => {
                if first {
                    let text = lines(format, &[], &self.origin, true)?;
                    out.write_all(&text).map_err(unwritable)?;
                }
                out.flush().map_err(unwritable)?;
                Ok(out)
            }
            Inner::Parquet(file) => file.finish(),
        }
    }
}

fn unwritable(error: std::io::Error) -> Fault {
    Fault(format!("the export can't be written: {error}"))
}

/// The severity in each format.
impl Severity {
    fn ocsf(self) -> (u8, &'static str) {
        match self {
            Self::Informational => (1, "Informational"),
            Self::Low => (2, "Low"),
            Self::Medium => (3, "Medium"),
            Self::High => (4, "High"),
            Self::Critical => (5, "Critical"),
        }
    }

    /// From 0 to 10.
    fn cef(self) -> u8 {
        match self {
            Self::Informational => 1,
            Self::Low => 3,
            Self::Medium => 5,
            Self::High => 8,
            Self::Critical => 10,
        }
    }

    /// RFC 5424, table 2: from critical (2) to informational (6).
    fn syslog(self) -> u8 {
        match self {
            Self::Informational => 6,
            Self::Low => 5,
            Self::Medium => 4,
            Self::High => 3,
            Self::Critical => 2,
        }
    }

    /// OpenTelemetry's numbers and their short names.
    fn otel(self) -> (u8, &'static str) {
        match self {
            Self::Informational => (9, "INFO"),
            Self::Low => (10, "INFO2"),
            Self::Medium => (13, "WARN"),
            Self::High => (17, "ERROR"),
            Self::Critical => (21, "FATAL"),
        }
    }
}

fn severity(item: &Item) -> Severity {
    if let Record::Event(event) = &item.record {
        let refused = event.what.decision() == Some(Decision::Refused);
        return if refused { Severity::Medium } else { event.what.category().severity };
    }
    let code = item.record.refusal().map_or("", |refusal| refusal.code.as_str());
    match (item.record.decision(), code) {
        (_, "secret-found" | "audit-unavailable" | "interceptor-fault") => Severity::High,
        (
            _,
            "policy-denied" | "plugin-refused" | "unauthenticated" | "forbidden-origin"
            | "session-unknown" | "header-mismatch" | "server-misbehaved",
        ) => Severity::Medium,
        (Some(Decision::Refused | Decision::Failed), _) => Severity::Low,
        _ => Severity::Informational,
    }
}

fn decision_word(decision: Decision) -> &'static str {
    match decision {
        Decision::Allowed => "allowed",
        Decision::Refused => "refused",
        Decision::Failed => "failed",
        Decision::Cancelled => "cancelled",
    }
}

fn kind_word(kind: Kind) -> &'static str {
    match kind {
        Kind::Intent => "intent",
        Kind::Outcome => "outcome",
        Kind::Refused => "refused",
        Kind::Event => "event",
    }
}
