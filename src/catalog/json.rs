//! JSON with the comments and trailing commas that desktop clients accept in their files.

use jsonc_parser::{
    CollectOptions, ParseOptions,
    ast::{ObjectPropName, Value},
    common::Ranged as _,
    parse_to_ast,
};

use crate::{
    node::{Budget, Key, Node, NodeValue, once},
    report::{Location, Problem},
};

/// Reads a document.
pub(crate) fn read(text: &str) -> Result<Node, Problem> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let lines = Lines::of(text);
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
    let parsed = parse_to_ast(text, &CollectOptions::default(), &options).map_err(|error| {
        let place = lines.place(error.range().start);
        Problem::at(place, format!("this is not JSON: {}", error.kind()))
    })?;
    match parsed.value {
        Some(value) => node(&value, &lines, &mut Budget::default(), 0),
        None => Err(Problem::at(Location { line: 1, column: 1 }, "the file is empty")),
    }
}

fn node(
    value: &Value<'_>,
    lines: &Lines<'_>,
    budget: &mut Budget,
    depth: usize,
) -> Result<Node, Problem> {
    let place = lines.place(value.range().start);
    budget.take(place, depth)?;
    let what = match value {
        Value::NullKeyword(_) => NodeValue::Null,
        Value::BooleanLit(flag) => NodeValue::Flag(flag.value),
        Value::NumberLit(number) => NodeValue::Number(number.value.into()),
        Value::StringLit(text) => NodeValue::Text(text.value.as_ref().into()),
        Value::Array(array) => NodeValue::List(
            array
                .elements
                .iter()
                .map(|value| node(value, lines, budget, depth + 1))
                .collect::<Result<_, _>>()?,
        ),
        Value::Object(object) => {
            let mut entries = Vec::with_capacity(object.properties.len());
            for property in &object.properties {
                let place = lines.place(property.range.start);
                let ObjectPropName::String(name) = &property.name else {
                    return Err(Problem::at(place, "a key stands in double quotes"));
                };
                let key = Key { place, text: name.value.as_ref().into() };
                entries.push((key, node(&property.value, lines, budget, depth + 1)?));
            }
            once(entries)?
        }
    };
    Ok(Node { place, what })
}

/// Offsets of the beginnings of lines.
pub(crate) struct Lines<'a> {
    text: &'a str,
    starts: Vec<usize>,
}

impl<'a> Lines<'a> {
    pub fn of(text: &'a str) -> Self {
        let breaks = text.bytes().enumerate().filter(|(_, byte)| *byte == b'\n');
        Self { text, starts: std::iter::once(0).chain(breaks.map(|(at, _)| at + 1)).collect() }
    }

    /// Position of the byte at that offset.
    pub fn place(&self, offset: usize) -> Location {
        let line = self.starts.partition_point(|start| *start <= offset).max(1);
        let start = self.starts.get(line - 1).copied().unwrap_or(0);
        // Counting is bounded: a minified file is one line, and it is done for each value.
        const FAR: usize = 4_096;
        let before = self.text.get(start..offset).unwrap_or("");
        let column = match before.len() {
            far if far > FAR => far,
            _ => before.chars().count(),
        };
        let number = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        Location { line: number(line), column: number(column.saturating_add(1)) }
    }
}
