//! Entries in TOML.

use serde_json::Value;
use toml_edit::{Document, InlineTable, Item, Key};

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

/// The text without the tables of an entry. `None` if it has no tables of its own, or other tables
/// are between them: the change would not be at one place.
pub(super) fn remove(text: &str, section: &str, name: &str) -> Option<String> {
    without_tables(text, &[section, name]).filter(|without| without != text)
}

/// The text without the lines of a table and of the tables within it. A comment between a removed
/// table and another one stays: it may be of the other one. `None` if other tables are between the
/// removed ones.
fn without_tables(text: &str, path: &[&str]) -> Option<String> {
    let mut kept = String::with_capacity(text.len());
    // Blank lines and comments since the last other line.
    let mut between = String::new();
    let mut is_removed = false;
    let mut places = 0;
    for line in text.split_inclusive('\n') {
        let content = line.trim();
        if content.is_empty() || content.starts_with('#') {
            between.push_str(line);
            continue;
        }
        let was_removed = is_removed;
        if let Some(header) = header(content) {
            is_removed = header.iter().map(Key::get).take(path.len()).eq(path.iter().copied());
        }
        match (was_removed, is_removed) {
            (true, true) => {}
            (true, false) => kept.push_str(between.trim_start()),
            (false, _) => {
                kept.push_str(&between);
                places += usize::from(is_removed);
            }
        }
        between.clear();
        if !is_removed {
            kept.push_str(line);
        }
    }
    (places < 2).then_some(kept + &between)
}

/// Path of a table's header on a line.
fn header(line: &str) -> Option<Vec<Key>> {
    let rest = line.strip_prefix('[')?;
    let inner = rest.strip_prefix('[').unwrap_or(rest);
    // The first bracket that ends a key: a quoted key can have others.
    inner.match_indices(']').find_map(|(end, _)| Key::parse(inner.get(..end)?).ok())
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
