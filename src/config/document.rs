//! The TOML text as one plain value, with the position of every key and value.

use std::{ops::Range, path::Path};

use serde_json::{Map, Number, Value};
use toml::{
    Spanned,
    de::{DeInteger, DeTable, DeValue},
};

use super::{
    finding::{Code, Finding, MAX_FINDINGS, Source},
    spans::{Span, Spans},
};
use portcullis_foundation::json_pointer::child;

/// Config file in TOML.
#[derive(Debug, Clone)]
pub(super) struct Document {
    pub source: Source,
    pub value: Map<String, Value>,
    pub places: Spans,
}

impl Document {
    /// Parses the text. Findings mean that it is not TOML, or has values that JSON lacks.
    pub fn parse(path: &Path, text: &str) -> (Self, Vec<Finding>) {
        let source = Source::new(path, text);
        let (root, errors) = DeTable::parse_recoverable(text);
        if !errors.is_empty() {
            let findings =
                errors.iter().take(MAX_FINDINGS).map(|error| syntax(&source, error)).collect();
            return (Self { source, value: Map::new(), places: Spans::default() }, findings);
        }
        let mut reader = Reader { source: &source, places: Spans::default(), findings: vec![] };
        let value = reader.table(root.get_ref(), "");
        let Reader { mut places, findings, .. } = reader;
        places.insert(String::new(), Span { key: None, value: 0..0 });
        let mut document = Self { source, value, places };
        document.hide_secrets();
        (document, findings)
    }

    /// Finding at the value of a pointer.
    pub fn at_value(&self, pointer: &str, code: Code, message: impl Into<String>) -> Finding {
        let place = self.places.nearest(pointer).map(|place| place.value.clone());
        Finding::new(code, message).within(&self.source, place)
    }

    /// Finding at the key of a pointer.
    pub fn at_key(&self, pointer: &str, code: Code, message: impl Into<String>) -> Finding {
        let place = self.places.nearest(pointer).map(Span::head);
        Finding::new(code, message).within(&self.source, place)
    }

    /// Value at a pointer.
    pub fn get(&self, pointer: &str) -> Option<&Value> {
        let mut steps = portcullis_foundation::json_pointer::segments(pointer).into_iter();
        let mut value = self.value.get(&steps.next()?)?;
        for step in steps {
            value = match value {
                Value::Object(table) => table.get(&step)?,
                Value::Array(array) => array.get(step.parse::<usize>().ok()?)?,
                _ => return None,
            };
        }
        Some(value)
    }

    /// Whether the value at a pointer may be a secret, so that no message may repeat it.
    pub fn is_sensitive(pointer: &str) -> bool {
        let parts = portcullis_foundation::json_pointer::segments(pointer);
        match parts.as_slice() {
            [servers, _, what, _, ..] if servers == "servers" => {
                matches!(what.as_str(), "env" | "secrets" | "headers")
            }
            [audit, export, _, what, ..] if audit == "audit" && export == "export" => {
                matches!(what.as_str(), "to" | "headers")
            }
            // Settings of a plugin may contain secrets.
            [interceptors, _, config, _, ..] => {
                interceptors == "interceptors" && config == "config"
            }
            _ => false,
        }
    }

    /// Hides values at references to secrets from all messages, unless they are names.
    fn hide_secrets(&mut self) {
        let hidden: Vec<Range<usize>> = self
            .places
            .iter()
            .filter(|(pointer, _)| Self::is_sensitive(pointer))
            .filter(|(pointer, _)| match self.get(pointer) {
                Some(Value::String(text)) if is_reference(pointer) => {
                    text.parse::<portcullis_vault::Source>().is_err()
                }
                // A plain target is not secret. Other values there may contain a token.
                Some(Value::String(text)) if pointer.ends_with("/to") => {
                    !["file:", "unix:", "stdout", "syslog+"]
                        .iter()
                        .any(|kind| text.starts_with(kind))
                        || text.contains('@')
                }
                Some(Value::String(_)) => true,
                _ => false,
            })
            .map(|(_, place)| place.value.clone())
            .collect();
        self.source.hide(hidden);
    }
}

/// Whether a reference to a secret belongs there.
fn is_reference(pointer: &str) -> bool {
    let parts = portcullis_foundation::json_pointer::segments(pointer);
    let by_client = || parts.len() == 6 && parts[4] == "by-client";
    pointer.ends_with("/from") || by_client()
}

fn syntax(source: &Source, error: &toml::de::Error) -> Finding {
    Finding::new(Code::Syntax, format!("not TOML: {}", error.message()))
        .within(source, error.span())
}

struct Reader<'a> {
    source: &'a Source,
    places: Spans,
    findings: Vec<Finding>,
}

impl Reader<'_> {
    fn table(&mut self, table: &DeTable<'_>, pointer: &str) -> Map<String, Value> {
        let mut entries: Vec<_> = table.iter().collect();
        // In the order of the file: lists show servers in it, and the chain runs in it.
        entries.sort_by_key(|(key, _)| key.span().start);
        let mut map = Map::new();
        for (key, value) in entries {
            let pointer = child(pointer, key.get_ref());
            let place = Span { key: Some(key.span()), value: value.span() };
            self.places.insert(pointer.clone(), place);
            let value = self.value(value, &pointer);
            map.insert(key.get_ref().to_string(), value);
        }
        map
    }

    fn value(&mut self, value: &Spanned<DeValue<'_>>, pointer: &str) -> Value {
        match value.get_ref() {
            DeValue::String(text) => Value::String(text.to_string()),
            DeValue::Boolean(yes) => Value::Bool(*yes),
            DeValue::Integer(number) => {
                integer(number).unwrap_or_else(|| self.bad(value, "a number of more than 64 bits"))
            }
            DeValue::Float(number) => number
                .as_str()
                .parse()
                .ok()
                .and_then(Number::from_f64)
                .map_or_else(|| self.bad(value, "not a finite number"), Value::Number),
            DeValue::Datetime(_) => self.bad(value, "a date, which no key accepts"),
            DeValue::Array(array) => Value::Array(
                array
                    .iter()
                    .enumerate()
                    .map(|(at, element)| {
                        let pointer = child(pointer, at);
                        let place = Span { key: None, value: element.span() };
                        self.places.insert(pointer.clone(), place);
                        self.value(element, &pointer)
                    })
                    .collect(),
            ),
            DeValue::Table(table) => Value::Object(self.table(table, pointer)),
        }
    }

    fn bad(&mut self, value: &Spanned<DeValue<'_>>, what: &str) -> Value {
        self.findings.push(
            Finding::new(Code::BadValue, format!("this is {what}"))
                .within(self.source, Some(value.span())),
        );
        Value::Null
    }
}

fn integer(number: &DeInteger<'_>) -> Option<Value> {
    i64::from_str_radix(number.as_str(), number.radix()).ok().map(Value::from)
}
