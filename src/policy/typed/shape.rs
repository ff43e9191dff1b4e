//! Converts a JSON schema to a type of Cedar, as far as Cedar has one.
//!
//! Values that no type of Cedar can represent are left out: they are missing from the typed input,
//! and a policy that reads them does not load. So every value in the input is the one sent.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value};

use portcullis_protocol::codec::pointed;

/// Maximum nesting of objects and arrays in a type.
const DEPTH: usize = 16;
/// Maximum number of parts read from one tool's schema: references may refer to the same definition
/// repeatedly.
const PARTS: usize = 4000;

/// A type of Cedar for the values that a JSON schema allows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Type {
    Bool,
    Long,
    /// A number with at most four digits after the point.
    Decimal,
    String,
    Set(Box<Type>),
    Record(Record),
}

/// An object.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Record {
    pub(super) members: BTreeMap<String, Member>,
    /// Members without a type, with the reason.
    pub(super) left_out: BTreeMap<String, &'static str>,
    /// Whether other members are not allowed.
    pub(super) closed: bool,
}

/// A member of an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Member {
    pub(super) kind: Type,
    pub(super) required: bool,
    /// Whether it may be null, which is treated as absent.
    pub(super) nullable: bool,
}

/// Result of converting a schema.
enum Conversion {
    Typed {
        kind: Type,
        nullable: bool,
    },
    /// Cedar has no type for it, with the reason.
    Untyped(&'static str),
}

/// Why a tool cannot have a typed action.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Untypable {
    #[error("it describes no object, which is what arguments are")]
    NoObject,
    #[error("it has more than {PARTS} parts, with what references lead to")]
    TooLarge,
}

const SEVERAL: &str = "may be of several types";
const ANY: &str = "may be of any type";
const DEEP: &str = "is nested too deeply, or refers to itself";
const NULLS: &str = "may hold null";
const NOWHERE: &str = "refers to what is not in the schema";
const COMBINED: &str = "is put together of several schemas";

/// The type of a tool's `inputSchema`.
///
/// # Errors
/// If it is not an object, or is too large.
pub(super) fn input(schema: &Value) -> Result<Record, Untypable> {
    let mut reader = Reader { root: schema, parts: 0 };
    let found = reader.read(schema, DEPTH);
    if reader.parts > PARTS {
        return Err(Untypable::TooLarge);
    }
    match found {
        Conversion::Typed { kind: Type::Record(record), .. } => Ok(record),
        _ => Err(Untypable::NoObject),
    }
}

struct Reader<'s> {
    root: &'s Value,
    parts: usize,
}

impl<'s> Reader<'s> {
    fn read(&mut self, schema: &'s Value, depth: usize) -> Conversion {
        self.parts += 1;
        let depth = depth.checked_sub(1).filter(|_| self.parts <= PARTS);
        let Some(depth) = depth else { return Conversion::Untyped(DEEP) };
        let Value::Object(schema) = schema else { return Conversion::Untyped(ANY) };
        if let Some(target) = schema.get("$ref") {
            // Keywords beside a reference may only narrow its target.
            return match self.resolve(target) {
                Some(schema) => self.read(schema, depth),
                None => Conversion::Untyped(NOWHERE),
            };
        }
        match schema.get("type") {
            Some(Value::String(name)) => self.named(name, schema, false, depth),
            Some(Value::Array(names)) => {
                let names: BTreeSet<_> = names.iter().filter_map(Value::as_str).collect();
                let nullable = names.contains("null");
                let mut others = names.into_iter().filter(|name| *name != "null");
                match (others.next(), others.next()) {
                    (Some(name), None) => self.named(name, schema, nullable, depth),
                    _ => Conversion::Untyped(SEVERAL),
                }
            }
            Some(_) => Conversion::Untyped(ANY),
            None => self.unnamed(schema, depth),
        }
    }

    fn named(
        &mut self,
        name: &str,
        schema: &'s Map<String, Value>,
        nullable: bool,
        depth: usize,
    ) -> Conversion {
        let kind = match name {
            "boolean" => Type::Bool,
            "integer" => Type::Long,
            "number" => Type::Decimal,
            "string" => Type::String,
            "array" => match schema.get("items").map(|items| self.read(items, depth)) {
                _ if schema.contains_key("prefixItems") => return Conversion::Untyped(SEVERAL),
                Some(Conversion::Typed { kind, nullable: false }) => Type::Set(Box::new(kind)),
                Some(Conversion::Typed { nullable: true, .. }) => {
                    return Conversion::Untyped(NULLS);
                }
                Some(Conversion::Untyped(why)) => return Conversion::Untyped(why),
                None => return Conversion::Untyped(ANY),
            },
            "object" => Type::Record(self.object(schema, depth)),
            _ => return Conversion::Untyped(ANY),
        };
        Conversion::Typed { kind, nullable }
    }

    fn object(&mut self, schema: &'s Map<String, Value>, depth: usize) -> Record {
        let required: BTreeSet<_> = schema
            .get("required")
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .collect();
        // Only if no other keyword describes further members.
        let closed = schema.get("additionalProperties") == Some(&Value::Bool(false))
            && ["patternProperties", "allOf", "anyOf", "oneOf"]
                .iter()
                .all(|other| !schema.contains_key(*other));
        let mut record = Record { closed, ..Record::default() };
        let properties = schema.get("properties").and_then(Value::as_object);
        for (name, schema) in properties.into_iter().flatten() {
            match self.read(schema, depth) {
                Conversion::Typed { kind, nullable } => {
                    let required = required.contains(name.as_str()) && !nullable;
                    record.members.insert(name.clone(), Member { kind, required, nullable });
                }
                Conversion::Untyped(why) => {
                    record.left_out.insert(name.clone(), why);
                }
            }
        }
        record
    }

    /// A schema without a type.
    fn unnamed(&mut self, schema: &'s Map<String, Value>, depth: usize) -> Conversion {
        for key in ["anyOf", "oneOf"] {
            if let Some(Value::Array(branches)) = schema.get(key) {
                return self.either(branches, depth);
            }
        }
        match (schema.get("allOf").and_then(Value::as_array).map(Vec::as_slice), schema.get("enum"))
        {
            (Some([only]), _) => self.read(only, depth),
            (Some(_), _) => Conversion::Untyped(COMBINED),
            (None, Some(Value::Array(values))) => common(values.iter().map(of_value)),
            (None, _) => match schema.get("const") {
                Some(value) => of_value(value),
                None if schema.contains_key("properties") => {
                    // Everybody reads this as an object. By the letter of the standard another type
                    // is valid here; such a value then does not fit.
                    let kind = Type::Record(self.object(schema, depth));
                    Conversion::Typed { kind, nullable: false }
                }
                None => Conversion::Untyped(ANY),
            },
        }
    }

    fn either(&mut self, branches: &'s [Value], depth: usize) -> Conversion {
        let mut found = Vec::new();
        let mut nullable = false;
        for branch in branches {
            if branch.get("type").and_then(Value::as_str) == Some("null") {
                nullable = true;
            } else {
                found.push(self.read(branch, depth));
            }
        }
        match common(found.into_iter()) {
            Conversion::Typed { kind, nullable: also } => {
                Conversion::Typed { kind, nullable: nullable || also }
            }
            untyped => untyped,
        }
    }

    /// The target of a reference within the schema.
    fn resolve(&self, target: &Value) -> Option<&'s Value> {
        pointed(self.root, target.as_str()?)
    }
}

/// The type of a constant in a schema.
fn of_value(value: &Value) -> Conversion {
    let kind = match value {
        Value::Bool(_) => Type::Bool,
        Value::String(_) => Type::String,
        Value::Number(number) if number.is_i64() => Type::Long,
        _ => return Conversion::Untyped(ANY),
    };
    Conversion::Typed { kind, nullable: false }
}

/// The type, if all have the same one.
fn common(mut found: impl Iterator<Item = Conversion>) -> Conversion {
    let Some(first) = found.next() else { return Conversion::Untyped(ANY) };
    found.fold(first, |all, next| match (all, next) {
        (
            Conversion::Typed { kind, nullable },
            Conversion::Typed { kind: other, nullable: also },
        ) if kind == other => Conversion::Typed { kind, nullable: nullable || also },
        (Conversion::Untyped(why), _) | (_, Conversion::Untyped(why)) => Conversion::Untyped(why),
        _ => Conversion::Untyped(SEVERAL),
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// The type of one property, in short.
    fn of(schema: Value) -> String {
        let tool = json!({
            "type": "object",
            "properties": { "p": schema },
            "required": ["p"],
            "$defs": { "Name": { "type": "string" }, "Loop": {
                "type": "object", "properties": { "again": { "$ref": "#/$defs/Loop" } } } },
        });
        let record = input(&tool).unwrap();
        match (record.members.get("p"), record.left_out.get("p")) {
            (Some(member), None) => {
                let optional = if member.required { "" } else { "?" };
                let null = if member.nullable { " or null" } else { "" };
                format!("{}{optional}{null}", short(&member.kind))
            }
            (None, Some(why)) => (*why).to_owned(),
            other => panic!("{other:?}"),
        }
    }

    fn short(kind: &Type) -> String {
        match kind {
            Type::Bool => "Bool".into(),
            Type::Long => "Long".into(),
            Type::Decimal => "decimal".into(),
            Type::String => "String".into(),
            Type::Set(kind) => format!("Set<{}>", short(kind)),
            Type::Record(record) => {
                let members = record.members.iter().map(|(name, member)| {
                    format!(
                        "{name}{}: {}",
                        if member.required { "" } else { "?" },
                        short(&member.kind)
                    )
                });
                let members = members.collect::<Vec<_>>().join(", ");
                format!("{{{members}}}{}", if record.closed { " closed" } else { "" })
            }
        }
    }

    #[test]
    fn schemas_become_cedar_types_if_possible() {
        for (schema, expected) in [
            (json!({"type": "string"}), "String"),
            (
                json!({"type": "string", "enum": ["open", "closed"], "format": "date-time"}),
                "String",
            ),
            (json!({"type": "integer", "minimum": 1}), "Long"),
            (json!({"type": "number"}), "decimal"),
            (json!({"type": "boolean"}), "Bool"),
            (json!({"type": "array", "items": {"type": "string"}}), "Set<String>"),
            (json!({"type": "array"}), ANY),
            (json!({"type": "array", "items": {"type": ["string", "null"]}}), NULLS),
            (json!({"type": "array", "items": [{"type": "string"}]}), ANY),
            (
                json!({"type": "array", "prefixItems": [{"type": "string"}], "items": false}),
                SEVERAL,
            ),
            (json!({"type": ["string", "null"]}), "String? or null"),
            (json!({"type": ["string", "integer"]}), SEVERAL),
            (json!({"anyOf": [{"type": "string"}, {"type": "null"}]}), "String? or null"),
            (json!({"anyOf": [{"type": "string"}, {"type": "integer"}]}), SEVERAL),
            (json!({"oneOf": [{"const": "a"}, {"const": "b", "title": "B"}]}), "String"),
            (json!({"enum": ["a", "b"]}), "String"),
            (json!({"enum": [1, 2]}), "Long"),
            (json!({"enum": [1, "2"]}), SEVERAL),
            (json!({"enum": ["a", null]}), ANY),
            (json!({"const": true}), "Bool"),
            (json!({"allOf": [{"$ref": "#/$defs/Name"}], "default": "x"}), "String"),
            (json!({"allOf": [{"type": "string"}, {"type": "integer"}]}), COMBINED),
            (json!({"$ref": "#/$defs/Name"}), "String"),
            (json!({"$ref": "#/$defs/Nobody"}), NOWHERE),
            (json!({"$ref": "https://example.com/schema"}), NOWHERE),
            (json!(true), ANY),
            (json!({}), ANY),
            (json!({"type": "null"}), ANY),
            (
                json!({"type": "object", "properties": {"a": {"type": "string"}, "b": {}},
                    "required": ["a"], "additionalProperties": false}),
                "{a: String} closed",
            ),
            (
                json!({"properties": {"a": {"type": "integer"}}, "additionalProperties": false,
                    "patternProperties": {"^x": {}}}),
                "{a?: Long}",
            ),
        ] {
            assert_eq!(of(schema.clone()), expected, "{schema}");
        }
    }

    #[test]
    fn recursive_schema_is_cut_off() {
        let text = of(json!({"$ref": "#/$defs/Loop"}));
        assert!(text.starts_with("{again?: {again?: "), "{text}");
    }

    #[test]
    fn non_object_or_oversized_schema_is_refused() {
        for schema in [json!({}), json!({"type": "string"}), json!(true), json!({"type": "array"})]
        {
            assert_eq!(input(&schema), Err(Untypable::NoObject), "{schema}");
        }
        // Ten references in each of ten definitions.
        let mut defs = Map::new();
        for level in 0..10 {
            let next = json!({"$ref": format!("#/$defs/d{}", level + 1)});
            let properties: Map<_, _> =
                (0..10).map(|at| (format!("p{at}"), next.clone())).collect();
            defs.insert(format!("d{level}"), json!({"type": "object", "properties": properties}));
        }
        defs.insert("d10".into(), json!({"type": "object"}));
        let schema = json!({"$ref": "#/$defs/d0", "$defs": defs});
        assert_eq!(input(&schema), Err(Untypable::TooLarge));
    }
}
