//! Entries in TOML.

use serde_json::Value;
use toml_edit::{Document, DocumentMut, InlineTable, Item};

use super::{Edit, newline};
use crate::report::{Location, Problem};

/// The change that adds an entry as a table at the end.
pub(super) fn insert(
    text: &str,
    section: &str,
    name: &str,
    entry: &Value,
) -> Result<Edit, Problem> {
    let place = Location { line: 1, column: 1 };
    let document =
        Document::parse(text).map_err(|error| Problem::at(place, error.message().to_owned()))?;
    let servers = document.as_table().get(section);
    if let Some(Item::Value(_)) = servers {
        let text = format!(
            "`{section}` is an inline table, which cannot be extended: write its servers as tables, \
             `[{section}.NAME]`"
        );
        return Err(Problem::of(text));
    }
    let newline = newline(text);
    let mut inserted = String::new();
    if !text.is_empty() && !text.ends_with('\n') {
        inserted.push_str(newline);
    }
    if !text.trim().is_empty() {
        inserted.push_str(newline);
    }
    inserted.push_str(&format!("[{section}.{name}]{newline}"));
    for (key, json) in entry.as_object().into_iter().flatten() {
        inserted.push_str(&format!("{key} = {}{newline}", value(json)));
    }
    let added_section = servers.is_none();
    Ok(Edit { at: text.len(), removed: String::new(), inserted, added_section })
}

/// The text without an entry; without the table of servers, too, if it was added with the entry and
/// is empty now.
pub(super) fn remove(text: &str, section: &str, name: &str, added_section: bool) -> Option<String> {
    let mut document: DocumentMut = text.parse().ok()?;
    let servers = document.as_table_mut().get_mut(section)?.as_table_like_mut()?;
    servers.remove(name)?;
    if added_section && servers.is_empty() {
        document.as_table_mut().remove(section);
    }
    Some(document.to_string())
}

fn value(json: &Value) -> toml_edit::Value {
    match json {
        Value::String(text) => text.as_str().into(),
        Value::Bool(flag) => (*flag).into(),
        Value::Number(number) => number.as_i64().unwrap_or_default().into(),
        Value::Array(items) => toml_edit::Value::Array(items.iter().map(value).collect()),
        Value::Object(_) | Value::Null => InlineTable::new().into(),
    }
}
