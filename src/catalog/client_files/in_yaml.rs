//! Entries in YAML. Lines are inserted and removed; all others stay.

use serde_json::Value;

use super::{Edit, newline};
use crate::{
    node::{Key, Node, NodeValue},
    report::{Location, Problem},
};

/// The change that adds an entry as the first one of its map.
pub(super) fn insert(
    text: &str,
    document: Option<&Node>,
    section: &str,
    name: &str,
    entry: &Value,
) -> Result<Edit, Problem> {
    let newline = newline(text);
    let root = document.and_then(Node::entries).unwrap_or_default();
    let flow = |place: Location| {
        let text = format!("write `{section}` in block style: one `key: value` a line");
        Problem::at(place, text)
    };
    let Some((key, servers)) = root.iter().find(|(key, _)| &*key.text == section) else {
        let indent = match root.first() {
            None => 0,
            Some((key, _)) => indent(text, key.place).ok_or_else(|| flow(key.place))?,
        };
        let mut inserted = String::new();
        if !text.is_empty() && !text.ends_with('\n') {
            inserted.push_str(newline);
        }
        inserted.push_str(&format!("{:indent$}{section}:{newline}", ""));
        inserted.push_str(&block(indent + 2, name, entry, newline));
        return Ok(Edit { at: text.len(), removed: String::new(), inserted, added_section: true });
    };
    let base = indent(text, key.place).ok_or_else(|| flow(key.place))?;
    let start = offset(text, key.place.line);
    let whole_line = text[start..].split_inclusive('\n').next().unwrap_or_default();
    let line = whole_line.trim_end_matches(['\r', '\n']);
    let first = match &servers.what {
        NodeValue::Map(entries) => entries.first(),
        _ => None,
    };
    if let Some((first, _)) = first {
        let indent = indent(text, first.place)
            .filter(|indent| first.place.line > key.place.line && *indent > base)
            .ok_or_else(|| flow(servers.place))?;
        let at = start + whole_line.len();
        let inserted = block(indent, name, entry, newline);
        return Ok(Edit { at, removed: String::new(), inserted, added_section: false });
    }
    // An empty map: nothing, `{}` or `null`.
    let colon = line.get(base + key.text.len()..).and_then(|rest| rest.find(':'));
    let colon = base + key.text.len() + colon.ok_or_else(|| flow(key.place))? + 1;
    let value = line.get(colon..).unwrap_or_default();
    let empty = ["{}", "null", "~"].into_iter().find(|empty| value.trim_start().starts_with(empty));
    let kept = empty.map_or_else(|| value.to_owned(), |empty| value.replacen(empty, "", 1));
    let kept = match kept.trim() {
        "" => String::new(),
        comment => format!(" {comment}"),
    };
    let block = block(base + 2, name, entry, newline);
    let block = block.strip_suffix(newline).unwrap_or(&block);
    Ok(Edit {
        at: start + colon,
        removed: value.to_owned(),
        inserted: format!("{kept}{newline}{block}"),
        added_section: false,
    })
}

/// The text without an entry; without the map of servers, too, if it was added with the entry and
/// is empty now.
pub(super) fn remove(
    text: &str,
    document: Option<&Node>,
    section: &str,
    name: &str,
    added_section: bool,
) -> Option<String> {
    let find = |node: &Node, name: &str| {
        node.entries()?.iter().find(|(key, _)| &*key.text == name).cloned()
    };
    let (outer, servers): (Key, Node) = find(document?, section)?;
    let (inner, _) = find(&servers, name)?;
    let is_last = servers.entries().is_some_and(|entries| entries.len() == 1);
    let key = if added_section && is_last { &outer } else { &inner };
    let own = indent(text, key.place)?;
    let start = offset(text, key.place.line);
    let mut end = start;
    let mut at = start;
    for (number, line) in text[start..].split_inclusive('\n').enumerate() {
        let content = line.trim_start();
        if number > 0 && !content.is_empty() && line.len() - content.len() <= own {
            break;
        }
        at += line.len();
        // A comment behind the entry may be of what follows.
        if !content.is_empty() && !content.starts_with('#') {
            end = at;
        }
    }
    Some([&text[..start], &text[end..]].concat())
}

/// Byte offset of a line.
fn offset(text: &str, line: u32) -> usize {
    let before = usize::try_from(line).unwrap_or(usize::MAX).saturating_sub(1);
    text.split_inclusive('\n').take(before).map(str::len).sum()
}

/// Number of spaces before that position, if nothing else is before it on its line.
fn indent(text: &str, place: Location) -> Option<usize> {
    let column = usize::try_from(place.column).ok()?.checked_sub(1)?;
    let line = text.get(offset(text, place.line)..)?;
    line.get(..column)?.bytes().all(|byte| byte == b' ').then_some(column)
}

/// The lines of an entry.
fn block(indent: usize, name: &str, entry: &Value, newline: &str) -> String {
    let mut text = format!("{:indent$}{name}:{newline}", "");
    let indent = indent + 2;
    for (key, value) in entry.as_object().into_iter().flatten() {
        match value {
            Value::Array(items) if !items.is_empty() => {
                text.push_str(&format!("{:indent$}{key}:{newline}", ""));
                for item in items {
                    text.push_str(&format!("{:indent$}- {item}{newline}", ""));
                }
            }
            // A text of JSON is a text of YAML in double quotes.
            value => text.push_str(&format!("{:indent$}{key}: {value}{newline}", "")),
        }
    }
    text
}
