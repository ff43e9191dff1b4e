//! Generates `docs/reference/config.md` from the schema, so that it lists every key.

use std::fmt::Write as _;

use serde_json::Value;

use super::{Code, schema_check::schema};

const INTRODUCTION: &str = "\
# `portcullis.toml`

<!-- Made of the schema by the test `docs_config_md_is_up_to_date`. Change `src/config`, not this. -->

The config is one TOML file: `portcullis.toml` in the working folder, or the file that
`--config FILE` or `PORTCULLIS_CONFIG` names. Relative paths are relative to the file. Unknown keys
are errors. `portcullis check` lists all errors. `portcullis schema config` prints the JSON Schema,
with which editors complete and validate.

A running proxy reloads `[servers]` and `[limits.servers]` when the file is saved, or at SIGHUP.
Other changes take effect at the next start.

The config contains no secrets: a secret is a reference, `{ from = \"env:NAME\" }` or
`{ from = \"file:PATH\" }`, and a client's key is a hash.
";

#[test]
fn docs_config_md_is_up_to_date() {
    portcullis_test_support::check_page("reference/config.md", &document());
}

fn document() -> String {
    let mut text = INTRODUCTION.to_owned();
    let root = schema();
    table(&mut text, "The top of the file", "", root, &[]);
    text.push_str("\n## Findings\n\n| code | meaning |\n|---|---|\n");
    for code in Code::ALL {
        let _ = writeln!(text, "| `{code}` | {} |", code.about());
    }
    text
}

/// Section for a table of the file with its keys, then for the tables within it. `omit`: keys
/// described elsewhere.
fn table(text: &mut String, title: &str, path: &str, schema: &Value, omit: &[&str]) {
    let Some(properties) = schema.get("properties").and_then(Value::as_object) else { return };
    let _ = write!(text, "\n## {title}\n");
    if let Some(about) = schema.get("description").and_then(Value::as_str) {
        let _ = write!(text, "\n{about}\n");
    }
    let keys: Vec<_> = properties.iter().filter(|(key, _)| !omit.contains(&key.as_str())).collect();
    if !keys.is_empty() {
        text.push_str("\n| key | value | default | |\n|---|---|---|---|\n");
    }
    let required: Vec<&Value> =
        schema.get("required").and_then(Value::as_array).into_iter().flatten().collect();
    for (key, schema) in &keys {
        let default = match schema.get("default") {
            _ if required.iter().any(|name| name.as_str() == Some(key)) => "required".into(),
            Some(Value::Null) | None => String::new(),
            Some(Value::Object(_)) => String::new(),
            Some(value) => format!("`{value}`"),
        };
        let about = schema.get("description").and_then(Value::as_str).unwrap_or_default();
        let about = about.replace('\n', " ").replace('|', "\\|");
        let _ = writeln!(text, "| `{key}` | {} | {default} | {about} |", value(schema));
    }
    for (key, schema) in keys {
        let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
        nested_tables(text, &path, schema);
    }
}

/// Sections for tables within a value.
fn nested_tables(text: &mut String, path: &str, schema: &Value) {
    let schema = not_null(schema);
    if schema.get("properties").is_some() {
        table(text, &format!("`[{path}]`"), path, schema, &[]);
    } else if let Some(each) = schema.get("additionalProperties").filter(|each| each.is_object()) {
        let path = format!("{path}.NAME");
        table(text, &format!("`[{path}]`"), &path, each, &[]);
    } else if let Some(each) = schema.get("items") {
        match each.get("oneOf").and_then(Value::as_array) {
            Some(kinds) if path == "interceptors" => interceptors(text, kinds),
            _ => table(text, &format!("`[[{path}]]`"), path, each, &[]),
        }
    }
}

fn interceptors(text: &mut String, kinds: &[Value]) {
    let settings = schemars::schema_for!(portcullis_interceptors::EntrySettings).to_value();
    let common: Vec<String> = settings["properties"].as_object().unwrap().keys().cloned().collect();
    let mut shared = kinds[0].clone();
    let own = shared["properties"].as_object_mut().unwrap();
    own.retain(|key, _| common.contains(key));
    shared["required"] = Value::Null;
    shared["description"] =
        "Keys of every entry of the chain, in addition to the interceptor's own keys.".into();
    table(text, "`[[interceptors]]`", "interceptors", &shared, &[]);
    let mut omit: Vec<&str> = common.iter().map(String::as_str).collect();
    omit.push("use");
    for kind in kinds {
        let name = kind["properties"]["use"]["const"].as_str().unwrap();
        let title = format!("`[[interceptors]]` with `use = \"{name}\"`");
        table(text, &title, "interceptors", kind, &omit);
    }
}

/// The branch of an optional value that is not null.
fn not_null(schema: &Value) -> &Value {
    schema
        .get("anyOf")
        .and_then(Value::as_array)
        .and_then(|branches| branches.iter().find(|branch| branch["type"] != "null"))
        .unwrap_or(schema)
}

/// Short description of a key's values.
fn value(schema: &Value) -> String {
    let schema = not_null(schema);
    if let Some(branches) = schema.get("oneOf").and_then(Value::as_array) {
        let options: Vec<String> = branches.iter().flat_map(options).collect();
        if !options.is_empty() {
            return options.join(", ");
        }
    }
    let options = options(schema);
    if !options.is_empty() {
        return options.join(", ");
    }
    let json = match schema.get("type") {
        Some(Value::String(name)) => name.as_str(),
        Some(Value::Array(names)) => {
            names.iter().filter_map(Value::as_str).find(|name| *name != "null").unwrap_or("")
        }
        _ => "",
    };
    match json {
        "object" if schema.get("properties").is_some() => "table".into(),
        "object" => match schema.get("additionalProperties") {
            Some(each) if each.is_object() => format!("{} by name", plural(&value(each))),
            _ => "table".into(),
        },
        "array" => match schema.get("items") {
            Some(each) if each.get("oneOf").is_none() => {
                format!("array of {}", plural(&value(each)))
            }
            _ => "array of tables".into(),
        },
        "boolean" => "`true` or `false`".into(),
        "" => "any".into(),
        other => other.into(),
    }
}

fn plural(what: &str) -> String {
    if what.starts_with('`') { what.into() } else { format!("{what}s") }
}

fn options(schema: &Value) -> Vec<String> {
    let one = schema.get("const").into_iter();
    let many = schema.get("enum").and_then(Value::as_array).into_iter().flatten();
    one.chain(many).filter(|value| !value.is_null()).map(|value| format!("`{value}`")).collect()
}
