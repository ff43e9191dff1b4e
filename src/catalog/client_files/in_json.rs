//! Entries in JSON with comments and trailing commas.

use jsonc_parser::{
    CollectOptions, ParseOptions,
    ast::{Object, ObjectProp, Value as Parsed},
    common::Ranged as _,
    parse_to_ast,
};
use serde::Serialize as _;
use serde_json::{Map, Value, ser::PrettyFormatter};

use super::{Edit, newline};
use crate::report::{Location, Problem};

/// The change that adds an entry.
pub(super) fn insert(
    text: &str,
    section: &str,
    name: &str,
    entry: &Value,
) -> Result<Edit, Problem> {
    let servers = Value::Object(Map::from_iter([(name.to_owned(), entry.clone())]));
    if text.trim().is_empty() {
        let file = Value::Object(Map::from_iter([(section.to_owned(), servers)]));
        let newline = newline(text);
        let inserted = pretty(&file, "  ", "", newline) + newline;
        return Ok(Edit { at: text.len(), removed: String::new(), inserted, added_section: true });
    }
    let root = parsed(text);
    let Some(Parsed::Object(root)) = &root else {
        let place = Location { line: 1, column: 1 };
        return Err(Problem::at(place, "the file is not a JSON object: correct it"));
    };
    Ok(match property(root, section).map(|(_, property)| &property.value) {
        None => member(text, root, section, &servers, true),
        Some(Parsed::Object(within)) => member(text, within, name, entry, false),
        Some(other) => {
            let range = other.range();
            let indent = indent_of_line(text, range.start);
            Edit {
                at: range.start,
                removed: text[range.start..range.end].to_owned(),
                inserted: pretty(&servers, unit(text), indent, newline(text)),
                added_section: false,
            }
        }
    })
}

/// The text without an entry; without the map of servers, too, if it was added with the entry and
/// is empty now.
pub(super) fn remove(text: &str, section: &str, name: &str, added_section: bool) -> Option<String> {
    let root = parsed(text)?;
    let root = root.as_object()?;
    let (_, servers) = property(root, section)?;
    let servers = servers.value.as_object()?;
    if added_section && is_alone(text, servers) {
        cut(text, root, section)
    } else {
        cut(text, servers, name)
    }
}

/// Whether an object has one member, without a comment beside it.
fn is_alone(text: &str, object: &Object<'_>) -> bool {
    let [only] = object.properties.as_slice() else { return false };
    let inner = [
        &text[object.range.start + 1..only.range.start],
        &text[only.range.end..object.range.end - 1],
    ];
    inner.concat().trim_matches(|c: char| c.is_whitespace() || c == ',').is_empty()
}

fn parsed(text: &str) -> Option<Parsed<'_>> {
    let options = ParseOptions {
        allow_comments: true,
        allow_loose_object_property_names: false,
        allow_trailing_commas: true,
        allow_missing_commas: false,
        allow_single_quoted_strings: false,
        allow_hexadecimal_numbers: false,
        allow_unary_plus_numbers: false,
        allow_bare_decimal_point_numbers: false,
        allow_non_finite_numbers: false,
        allow_extended_string_escapes: false,
    };
    parse_to_ast(text, &CollectOptions::default(), &options).ok()?.value
}

fn property<'a, 'b>(object: &'b Object<'a>, name: &str) -> Option<(usize, &'b ObjectProp<'a>)> {
    object.properties.iter().enumerate().find(|(_, property)| property.name.as_str() == name)
}

/// The change that adds a member behind the last one of an object.
fn member(text: &str, object: &Object<'_>, key: &str, value: &Value, added_section: bool) -> Edit {
    let newline = newline(text);
    let unit = unit(text);
    let key = Value::from(key);
    let (open, close) = (object.range.start, object.range.end - 1);
    let (Some(first), Some(last)) = (object.properties.first(), object.properties.last()) else {
        let inner = &text[open + 1..close];
        let kept = inner.trim_end().len();
        let base = indent_of_line(text, open);
        let indent = [base, unit].concat();
        let value = pretty(value, unit, &indent, newline);
        return Edit {
            at: open + 1 + kept,
            removed: inner[kept..].to_owned(),
            inserted: format!("{newline}{indent}{key}: {value}{newline}{base}"),
            added_section,
        };
    };
    let behind = &text[last.range.end..close];
    let comma = comma(behind);
    let start = comma.map_or(0, |comma| comma + 1);
    // A comment on the same line belongs to the last member.
    let comment = match behind[start..].split_once('\n') {
        Some((line, _)) if is_comment(line.trim()) => line.trim_end(),
        _ => "",
    };
    let (before, after) = if comma.is_some() { ("", ",") } else { (",", "") };
    let line = line_start(text, first.range.start);
    let inserted = if line.trim().is_empty() {
        let value = pretty(value, unit, line, newline);
        format!("{before}{comment}{newline}{line}{key}: {value}{after}")
    } else {
        format!("{before} {key}: {value}{after}{comment}")
    };
    Edit { at: last.range.end + start, removed: comment.to_owned(), inserted, added_section }
}

/// The text without a member of an object.
fn cut(text: &str, object: &Object<'_>, key: &str) -> Option<String> {
    let (at, member) = property(object, key)?;
    let (open, close) = (object.range.start, object.range.end - 1);
    let (mut start, mut end) = (member.range.start, member.range.end);
    let mut before = text[..start].to_owned();
    if let Some(comma) = comma(&text[end..close]) {
        end += comma + 1;
    } else if let Some(previous) = at.checked_sub(1).and_then(|at| object.properties.get(at)) {
        let comma = previous.range.end + comma(&text[previous.range.end..start])?;
        before.remove(comma);
        start -= 1;
    }
    let kept = before.trim_end().len();
    // A comment before the member may need the line break between them.
    let ends_line = text[end..].trim_start_matches([' ', '\t']).starts_with(['\r', '\n']);
    if ends_line || !line_start(&before, kept).contains("//") {
        start = kept;
    }
    before.truncate(start);
    let is_empty = object.properties.len() == 1
        && before.get(open + 1..).is_some_and(|inner| inner.trim().is_empty())
        && text[end..close].trim().is_empty();
    if is_empty {
        return Some([&text[..=open], &text[close..]].concat());
    }
    Some(before + &text[end..])
}

/// Offset of the comma that follows, behind white space and comments.
fn comma(text: &str) -> Option<usize> {
    let mut at = 0;
    loop {
        let rest = &text[at..];
        let next = rest.trim_start();
        at += rest.len() - next.len();
        if next.starts_with("//") {
            at += next.find('\n')?;
        } else if next.starts_with("/*") {
            at += next.find("*/")? + 2;
        } else {
            return next.starts_with(',').then_some(at);
        }
    }
}

/// Whether a line has comments only, and they end with it.
fn is_comment(line: &str) -> bool {
    line.starts_with("//") || (line.starts_with("/*") && line.ends_with("*/") && line.len() > 3)
}

/// The beginning of the line up to that offset.
fn line_start(text: &str, at: usize) -> &str {
    let before = &text[..at];
    &before[before.rfind('\n').map_or(0, |at| at + 1)..]
}

/// White space at the beginning of the line with that offset.
fn indent_of_line(text: &str, at: usize) -> &str {
    let line = line_start(text, at);
    &line[..line.len() - line.trim_start().len()]
}

/// Indentation of one level: that of the first indented line.
fn unit(text: &str) -> &str {
    let indented = text.lines().find_map(|line| {
        let content = line.trim_start();
        let indent = &line[..line.len() - content.len()];
        let counts = !indent.is_empty() && !content.is_empty() && !content.starts_with(['*', '/']);
        counts.then_some(indent)
    });
    indented.unwrap_or("  ")
}

/// A value on several lines. The first line is not indented.
fn pretty(value: &Value, unit: &str, indent: &str, newline: &str) -> String {
    let mut text = Vec::new();
    let formatter = PrettyFormatter::with_indent(unit.as_bytes());
    let mut serializer = serde_json::Serializer::with_formatter(&mut text, formatter);
    // A value without maps of other keys than text is always written to memory.
    let _ = value.serialize(&mut serializer);
    // Text in JSON has no line breaks.
    String::from_utf8_lossy(&text).replace('\n', &[newline, indent].concat())
}
