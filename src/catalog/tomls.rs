//! TOML, as Codex writes it.

use toml_edit::{Document, Item, TableLike, Value};

use crate::{
    json::Lines,
    node::{Budget, Key, Node, NodeValue, once},
    report::{Location, Problem},
};

/// Reads a document.
pub(crate) fn read(text: &str) -> Result<Node, Problem> {
    let lines = Lines::of(text);
    let document = Document::parse(text).map_err(|error| {
        let place = lines.place(error.span().map_or(0, |span| span.start));
        Problem::at(place, format!("this is not TOML: {}", error.message()))
    })?;
    let place = Location { line: 1, column: 1 };
    let mut budget = Budget::default();
    Ok(Node { place, what: table(document.as_table(), place, &lines, &mut budget, 0)? })
}

fn table(
    table: &dyn TableLike,
    parent: Location,
    lines: &Lines<'_>,
    budget: &mut Budget,
    depth: usize,
) -> Result<NodeValue, Problem> {
    let mut entries = Vec::new();
    for (name, value) in table.iter() {
        let span = table.key(name).and_then(toml_edit::Key::span);
        let place = span.map_or(parent, |span| lines.place(span.start));
        let key = Key { place, text: name.into() };
        entries.push((key, item(value, place, lines, budget, depth + 1)?));
    }
    once(entries)
}

fn item(
    item: &Item,
    parent: Location,
    lines: &Lines<'_>,
    budget: &mut Budget,
    depth: usize,
) -> Result<Node, Problem> {
    let place = item.span().map_or(parent, |span| lines.place(span.start));
    budget.take(place, depth)?;
    let what = match item {
        Item::None => NodeValue::Null,
        Item::Value(value) => return self::value(value, parent, lines, budget, depth),
        Item::Table(inner) => table(inner, place, lines, budget, depth)?,
        Item::ArrayOfTables(tables) => NodeValue::List(
            tables
                .iter()
                .map(|inner| {
                    Ok(Node { place, what: table(inner, place, lines, budget, depth + 1)? })
                })
                .collect::<Result<_, Problem>>()?,
        ),
    };
    Ok(Node { place, what })
}

fn value(
    value: &Value,
    parent: Location,
    lines: &Lines<'_>,
    budget: &mut Budget,
    depth: usize,
) -> Result<Node, Problem> {
    let place = value.span().map_or(parent, |span| lines.place(span.start));
    budget.take(place, depth)?;
    let what = match value {
        Value::String(text) => NodeValue::Text(text.value().as_str().into()),
        Value::Integer(number) => NodeValue::Number(number.value().to_string().into()),
        Value::Float(number) => NodeValue::Number(number.value().to_string().into()),
        Value::Boolean(flag) => NodeValue::Flag(*flag.value()),
        Value::Datetime(time) => NodeValue::Text(time.value().to_string().into()),
        Value::Array(items) => NodeValue::List(
            items
                .iter()
                .map(|item| self::value(item, place, lines, budget, depth + 1))
                .collect::<Result<_, _>>()?,
        ),
        Value::InlineTable(inner) => table(inner, place, lines, budget, depth)?,
    };
    Ok(Node { place, what })
}
