//! The shape of arguments: which members there are and of which types, never what they hold.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use serde_json::{Map, Value};

use super::v1::Shape;
use crate::audit::digest::DigestKey;

/// Members of a shape; what is beyond is counted.
const MEMBERS: usize = 48;
/// Levels that are entered.
const DEPTH: usize = 6;
/// Values looked at, for huge arrays.
const VISITS: usize = 4096;
/// Longest key that is shown.
const KEY: usize = 64;
/// Property names collected of a schema.
const NAMES: usize = 1024;

/// The shape of `arguments`, and how many members were left out. Keys that `schema` declares are
/// shown; others stand as keyed digests.
pub(super) fn of(
    arguments: &Map<String, Value>,
    schema: Option<&Value>,
    key: &DigestKey,
) -> (Shape, u32) {
    let mut names = HashSet::new();
    if let Some(schema) = schema {
        declared(schema, DEPTH * 2, &mut names);
    }
    let mut walk = Walk { names, key, types: BTreeMap::new(), visits: 0, omitted: 0 };
    walk.object(arguments, "", DEPTH);
    let shape = walk
        .types
        .into_iter()
        .map(|(pointer, types)| (pointer, types.into_iter().collect::<Vec<_>>().join("|")))
        .collect();
    (shape, walk.omitted)
}

/// Collects the keys of every `properties` object.
fn declared<'a>(schema: &'a Value, depth: usize, names: &mut HashSet<&'a str>) {
    if depth == 0 || names.len() >= NAMES {
        return;
    }
    match schema {
        Value::Object(members) => {
            if let Some(Value::Object(properties)) = members.get("properties") {
                names.extend(
                    properties.keys().map(String::as_str).filter(|k| k.len() <= KEY).take(NAMES),
                );
            }
            for member in members.values() {
                declared(member, depth - 1, names);
            }
        }
        Value::Array(items) => {
            for item in items {
                declared(item, depth - 1, names);
            }
        }
        _ => {}
    }
}

struct Walk<'a> {
    names: HashSet<&'a str>,
    key: &'a DigestKey,
    types: BTreeMap<String, BTreeSet<&'static str>>,
    visits: usize,
    omitted: u32,
}

impl Walk<'_> {
    fn omit(&mut self, members: usize) {
        self.omitted = self.omitted.saturating_add(u32::try_from(members).unwrap_or(u32::MAX));
    }

    fn object(&mut self, members: &Map<String, Value>, at: &str, depth: usize) {
        for (seen, (name, value)) in members.iter().enumerate() {
            if self.visits > VISITS {
                self.omit(members.len() - seen);
                return;
            }
            let step = if self.names.contains(name.as_str()) {
                name.replace('~', "~0").replace('/', "~1")
            } else {
                self.key.stand_in(name)
            };
            self.value(value, format!("{at}/{step}"), depth);
        }
    }

    fn value(&mut self, value: &Value, at: String, depth: usize) {
        self.visits += 1;
        let known = self.types.contains_key(&at);
        if self.visits > VISITS || (!known && self.types.len() >= MEMBERS) {
            self.omit(1);
            return;
        }
        let kind = match value {
            Value::Null => "null",
            Value::Bool(_) => "boolean",
            Value::Number(_) => "number",
            Value::String(_) => "string",
            Value::Array(_) => "array",
            Value::Object(_) => "object",
        };
        self.types.entry(at.clone()).or_default().insert(kind);
        if depth <= 1 {
            return;
        }
        match value {
            Value::Array(items) => {
                for (seen, item) in items.iter().enumerate() {
                    if self.visits > VISITS {
                        self.omit(items.len() - seen);
                        return;
                    }
                    self.value(item, format!("{at}/*"), depth - 1);
                }
            }
            Value::Object(members) => self.object(members, &at, depth - 1),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn shape(arguments: Value, schema: Value) -> (Shape, u32) {
        of(arguments.as_object().unwrap(), Some(&schema), &DigestKey::for_tests())
    }

    #[test]
    fn declared_keys_are_shown_and_others_are_not() {
        let (shape, omitted) = shape(
            json!({"path": "v", "tags": ["v", 1], "opts": {"deep": null, "s3cret": true}}),
            json!({"properties": {"path": {}, "tags": {}, "opts": {"properties": {"deep": {}}}}}),
        );
        let hidden = DigestKey::for_tests().stand_in("s3cret");
        let expected: Shape = [
            ("/path".to_owned(), "string"),
            ("/tags".to_owned(), "array"),
            ("/tags/*".to_owned(), "number|string"),
            ("/opts".to_owned(), "object"),
            ("/opts/deep".to_owned(), "null"),
            (format!("/opts/{hidden}"), "boolean"),
        ]
        .into_iter()
        .map(|(k, v)| (k, v.to_owned()))
        .collect();
        assert_eq!((shape, omitted), (expected, 0));
    }

    #[test]
    fn a_shape_is_bounded() {
        let wide: Map<String, Value> = (0..500).map(|i| (i.to_string(), json!(1))).collect();
        let (shape, omitted) = of(&wide, None, &DigestKey::for_tests());
        assert_eq!(shape.len(), MEMBERS);
        assert_eq!(omitted as usize, 500 - MEMBERS);

        let mut deep = json!(1);
        for _ in 0..60 {
            deep = json!({ "a": deep });
        }
        let (shape, _) = of(deep.as_object().unwrap(), None, &DigestKey::for_tests());
        assert_eq!(shape.len(), DEPTH);

        let long = json!({ "a": vec![json!({"b": 1}); 100_000] });
        let (shape, omitted) = of(long.as_object().unwrap(), None, &DigestKey::for_tests());
        assert!(shape.len() == 3 && omitted > 0);
    }
}
