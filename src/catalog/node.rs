//! A document as a tree of values with positions: the common form of YAML, JSON and TOML.

use serde_json::{Map, Number, Value};

use crate::report::{Location, Problem, brief};

/// Maximum size of one document.
pub const MAX_BYTES: usize = 16 << 20;
/// Maximum nesting of lists and maps.
pub const MAX_DEPTH: usize = 64;
/// Maximum number of values in one document.
pub const MAX_NODES: usize = 1_000_000;

/// A value and its position.
#[derive(Debug, Clone, PartialEq)]
pub struct Node {
    pub place: Location,
    pub what: NodeValue,
}

/// A value. Numbers keep their original text.
#[derive(Debug, Clone, PartialEq)]
pub enum NodeValue {
    Null,
    Flag(bool),
    Number(Box<str>),
    Text(Box<str>),
    List(Vec<Node>),
    /// In the file's order, without duplicate keys.
    Map(Vec<(Key, Node)>),
}

/// A key of a map.
#[derive(Debug, Clone, PartialEq)]
pub struct Key {
    pub place: Location,
    pub text: Box<str>,
}

impl Node {
    /// The member of a map.
    pub fn get(&self, key: &str) -> Option<&Node> {
        self.entries()?.iter().find(|(known, _)| &*known.text == key).map(|(_, node)| node)
    }

    /// The members of a map.
    pub fn entries(&self) -> Option<&[(Key, Node)]> {
        match &self.what {
            NodeValue::Map(entries) => Some(entries),
            _ => None,
        }
    }

    /// The items of a list.
    pub fn items(&self) -> Option<&[Node]> {
        match &self.what {
            NodeValue::List(items) => Some(items),
            _ => None,
        }
    }

    /// A text.
    pub fn text(&self) -> Option<&str> {
        match &self.what {
            NodeValue::Text(text) => Some(text),
            _ => None,
        }
    }

    /// A text, a number or a flag, in its original text.
    pub fn scalar(&self) -> Option<&str> {
        match &self.what {
            NodeValue::Text(text) | NodeValue::Number(text) => Some(text),
            NodeValue::Flag(true) => Some("true"),
            NodeValue::Flag(false) => Some("false"),
            NodeValue::Null | NodeValue::List(_) | NodeValue::Map(_) => None,
        }
    }

    /// Kind of the value, for a message.
    pub fn kind(&self) -> &'static str {
        match self.what {
            NodeValue::Null => "nothing",
            NodeValue::Flag(_) => "true or false",
            NodeValue::Number(_) => "a number",
            NodeValue::Text(_) => "a text",
            NodeValue::List(_) => "a list",
            NodeValue::Map(_) => "a map",
        }
    }

    /// The value as JSON. A number that JSON cannot represent becomes a text.
    pub fn to_json(&self) -> Value {
        match &self.what {
            NodeValue::Null => Value::Null,
            NodeValue::Flag(flag) => Value::Bool(*flag),
            NodeValue::Number(text) => {
                number(text).map_or_else(|| Value::String(text.to_string()), Value::Number)
            }
            NodeValue::Text(text) => Value::String(text.to_string()),
            NodeValue::List(items) => Value::Array(items.iter().map(Self::to_json).collect()),
            NodeValue::Map(entries) => Value::Object(
                entries
                    .iter()
                    .map(|(key, node)| (key.text.to_string(), node.to_json()))
                    .collect::<Map<_, _>>(),
            ),
        }
    }
}

fn number(text: &str) -> Option<Number> {
    if let Ok(whole) = text.parse::<i64>() {
        return Some(whole.into());
    }
    text.parse::<f64>().ok().and_then(Number::from_f64)
}

/// Counts the values of a document, and refuses excess and duplicates.
#[derive(Debug, Default)]
pub(crate) struct Budget {
    nodes: usize,
}

impl Budget {
    /// Counts one more value at that depth.
    pub fn take(&mut self, place: Location, depth: usize) -> Result<(), Problem> {
        self.nodes += 1;
        if self.nodes > MAX_NODES {
            return Err(Problem::at(place, format!("more than {MAX_NODES} values in one file")));
        }
        if depth > MAX_DEPTH {
            return Err(Problem::at(place, format!("nested deeper than {MAX_DEPTH} levels")));
        }
        Ok(())
    }
}

/// The members of a map. A duplicate key is refused, because readers differ about it.
pub(crate) fn once(entries: Vec<(Key, Node)>) -> Result<NodeValue, Problem> {
    let mut seen = std::collections::HashMap::with_capacity(entries.len());
    for (key, _) in &entries {
        if let Some(first) = seen.insert(&key.text, key.place) {
            return Err(Problem::at(
                key.place,
                format!("the key `{}` stands twice, first at {first}", brief(&key.text)),
            ));
        }
    }
    Ok(NodeValue::Map(entries))
}
