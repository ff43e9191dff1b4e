//! CSV (RFC 4180): a header line, then one line per record.
//!
//! A cell that a spreadsheet would evaluate as a formula gets a leading apostrophe, which
//! spreadsheets use to mark text: tool names are untrusted. The column `line` has the record
//! unchanged.

use super::{
    super::Item,
    Fault,
    columns::{COLUMNS, Value},
};

pub(super) fn header(out: &mut Vec<u8>) -> Result<(), Fault> {
    write(out, COLUMNS.iter().map(|column| column.name.to_owned()))
}

pub(super) fn row(item: &Item, out: &mut Vec<u8>) -> Result<(), Fault> {
    write(out, COLUMNS.iter().map(|column| cell((column.value)(item))))
}

fn write(out: &mut Vec<u8>, cells: impl Iterator<Item = String>) -> Result<(), Fault> {
    let mut writer = csv::WriterBuilder::new().terminator(csv::Terminator::CRLF).from_writer(out);
    writer.write_record(cells).map_err(|error| Fault(format!("CSV: {error}")))?;
    writer.flush().map_err(|error| Fault(format!("CSV: {error}")))
}

fn cell(value: Value<'_>) -> String {
    match value {
        Value::Absent => String::new(),
        Value::Text(text) if text.starts_with(['=', '+', '-', '@', '\t', '\r']) => {
            format!("'{text}")
        }
        Value::Text(text) => text.into_owned(),
        Value::Integer(number) => number.to_string(),
        Value::Boolean(yes) => yes.to_string(),
        Value::Time(time) => format!("{time:.6}"),
    }
}
