//! `docs/reference/records.md` is generated from the schema, with every kind and every field.

use std::{collections::BTreeMap, fmt::Write as _};

use serde_json::{Map, Value};

use super::Entry;

const INTRODUCTION: &str = include_str!("docs.md");

#[test]
fn docs_audit_records_md_is_up_to_date() {
    portcullis_test_support::check_page("reference/records.md", &document());
}

/// Fields of one kind of record or event, by name: schema, and whether the field is required.
type Fields = BTreeMap<String, (Value, bool)>;

struct Schema(Value);

impl Schema {
    fn new() -> Self {
        Self(schemars::schema_for!(Entry).to_value())
    }

    fn target<'s>(&'s self, schema: &'s Value) -> &'s Value {
        let reference = schema.get("$ref").and_then(Value::as_str);
        let path = reference.and_then(|reference| reference.strip_prefix('#'));
        path.and_then(|path| self.0.pointer(path)).unwrap_or(schema)
    }

    /// Fields of an object, including flattened ones.
    fn fields(&self, schema: &Value) -> Fields {
        let mut fields = Fields::new();
        let target = self.target(schema);
        for path in [schema, target] {
            let required: Vec<&str> = list(path, "required").filter_map(Value::as_str).collect();
            for (name, field) in members(path, "properties") {
                let required = required.contains(&name.as_str());
                fields.insert(name.clone(), (field.clone(), required));
            }
            for part in list(path, "allOf") {
                fields.extend(self.fields(part));
            }
        }
        fields
    }

    /// Variants by the value of a tag.
    fn variants<'s>(&'s self, schema: &'s Value, tag: &str) -> Vec<(String, &'s Value)> {
        let named = |variant: &'s Value| {
            let name = variant["properties"][tag]["const"].as_str()?;
            Some((name.to_owned(), variant))
        };
        list(self.target(schema), "oneOf").filter_map(named).collect()
    }

    /// Type of a value as text, with a link if it has its own section.
    fn value(&self, schema: &Value) -> String {
        let schema = not_null(schema);
        if let Some(name) = schema["$ref"].as_str().and_then(|name| name.rsplit('/').next()) {
            let target = self.target(schema);
            return match self.words(target) {
                Some(words) => words,
                None if target.get("properties").is_none() && target.get("oneOf").is_none() => {
                    self.value(target)
                }
                None => format!("[{name}](#{})", name.to_lowercase()),
            };
        }
        if let Some(constant) = schema["const"].as_str() {
            return format!("`{constant}`");
        }
        let of = |what: &str| match schema["format"].as_str() {
            Some(format @ ("uuid" | "date-time")) => format.to_owned(),
            _ => what.to_owned(),
        };
        let kinds = schema["type"].as_array().into_iter().flatten();
        let kind = kinds.chain([&schema["type"]]).filter_map(Value::as_str);
        match kind.into_iter().find(|kind| *kind != "null") {
            Some("array") => format!("list of {}", self.value(&schema["items"])),
            Some("object") if schema["additionalProperties"].is_object() => {
                format!("map to {}", self.value(&schema["additionalProperties"]))
            }
            Some("string") => of("text"),
            Some("integer" | "number") => "number".into(),
            Some("boolean") => "boolean".into(),
            _ => "JSON".into(),
        }
    }

    /// Values of an enumeration.
    fn words(&self, target: &Value) -> Option<String> {
        let mut all: Vec<&str> = list(target, "enum").filter_map(Value::as_str).collect();
        for variant in list(target, "oneOf") {
            let plain = list(variant, "enum").chain([&variant["const"]]);
            let before = all.len();
            all.extend(plain.filter_map(Value::as_str));
            if all.len() == before {
                return None;
            }
        }
        let quoted: Vec<_> = all.iter().map(|word| format!("`{word}`")).collect();
        (!quoted.is_empty()).then(|| quoted.join(", "))
    }
}

fn list<'s>(schema: &'s Value, name: &str) -> impl Iterator<Item = &'s Value> {
    schema[name].as_array().into_iter().flatten()
}

fn members<'s>(schema: &'s Value, name: &str) -> impl Iterator<Item = (&'s String, &'s Value)> {
    schema[name].as_object().into_iter().flat_map(Map::iter)
}

/// Non-null branch of an optional value.
fn not_null(schema: &Value) -> &Value {
    list(schema, "anyOf").find(|branch| branch["type"] != "null").unwrap_or(schema)
}

fn about(schema: &Value) -> String {
    let about = schema["description"].as_str().unwrap_or_default();
    // Rustdoc links do not work in a page.
    about.replace(['\n'], " ").replace('|', "\\|").replace("[`", "`").replace("`]", "`")
}

fn document() -> String {
    let schema = Schema::new();
    let mut text = INTRODUCTION.to_owned();
    text.push_str("\n## Every record\n\n| field | value | |\n|---|---|---|\n");
    rows(&mut text, &schema, &schema.fields(&schema.0), &["record"]);

    let kinds = schema.variants(&schema.0, "record");
    text.push_str("\n## Kinds\n\n| `record` | |\n|---|---|\n");
    for (name, variant) in &kinds {
        let _ = writeln!(text, "| `{name}` | {} |", about(variant));
    }
    let messages: Vec<_> = kinds.iter().filter(|(name, _)| name != "event").collect();
    text.push_str("\n## Messages\n\nThe fields of `intent` (I), `outcome` (O) and `refused` (R). ");
    text.push_str(
        "Those in bold are always there.\n\n| field | in | value | |\n|---|---|---|---|\n",
    );
    let mut all: BTreeMap<String, (Value, String)> = BTreeMap::new();
    for (name, variant) in messages {
        let letter = name[..1].to_uppercase();
        for (field, (value, required)) in schema.fields(variant) {
            let here = all.entry(field).or_insert_with(|| (value, String::new()));
            here.1.push_str(&if required { format!("**{letter}**") } else { letter.clone() });
        }
    }
    all.remove("record");
    for (field, (value, kinds)) in &all {
        let (what, about) = (schema.value(value), about(value));
        let _ = writeln!(text, "| `{field}` | {kinds} | {what} | {about} |");
    }

    text.push_str("\n## Events\n\nEvery event has its own `id` and the time `at` which it ");
    text.push_str("happened. Fields in bold are always there.\n");
    let event = kinds.iter().find(|(name, _)| name == "event").unwrap().1;
    for (name, variant) in schema.variants(event, "event") {
        let about = about(schema.target(variant)).replace("\\|", "|");
        let _ = write!(text, "\n### `{name}`\n\n{about}\n");
        let fields = schema.fields(variant);
        if fields.len() > 1 {
            text.push_str("\n| field | value | |\n|---|---|---|\n");
            rows(&mut text, &schema, &fields, &["event"]);
        }
    }

    text.push_str("\n## Values\n");
    for name in [
        "Target",
        "PolicyInput",
        "Claimed",
        "Body",
        "KeptBody",
        "Refusal",
        "Rule",
        "Finding",
        "DeliveredSecret",
        "Orphan",
        "Attested",
    ] {
        let target = &schema.0["$defs"][name];
        let _ = write!(text, "\n### {name}\n\n{}\n\n", about(target).replace("\\|", "|"));
        text.push_str("| field | value | |\n|---|---|---|\n");
        let one_of: Fields = list(target, "oneOf").flat_map(|one| schema.fields(one)).collect();
        let fields = if one_of.is_empty() { schema.fields(target) } else { one_of };
        rows(&mut text, &schema, &fields, &[]);
    }
    text
}

fn rows(text: &mut String, schema: &Schema, fields: &Fields, omit: &[&str]) {
    for (name, (field, required)) in fields {
        if omit.contains(&name.as_str()) {
            continue;
        }
        let name = if *required { format!("**`{name}`**") } else { format!("`{name}`") };
        let _ = writeln!(text, "| {name} | {} | {} |", schema.value(field), about(field));
    }
}
