//! The person's settings of a server, validated by the schemas of its catalog.

use jsonschema::PatternOptions;
use serde_json::{Map, Value, json};

use crate::{
    node::Node,
    report::{Kind, Report, brief},
};

/// Maximum size of a schema.
const LONGEST: usize = 64 << 10;

/// The person's settings: by the name of the server in its catalog, then by key.
pub type Values = Map<String, Value>;

/// Reads `KEY=VALUE`, or `SERVER.KEY=VALUE` if the key begins with the server's name. A value in
/// JSON is parsed.
///
/// # Errors
/// If there is no `=`, or a key is used as both a value and a map.
pub fn set(values: &mut Values, server: &str, text: &str) -> Result<(), String> {
    let (path, value) = text
        .split_once('=')
        .filter(|(path, _)| !path.is_empty())
        .ok_or_else(|| format!("`{}` is not of the form KEY=VALUE", brief(text)))?;
    let value = serde_json::from_str(value).unwrap_or_else(|_| Value::String(value.to_owned()));
    let path = path.strip_prefix(server).and_then(|rest| rest.strip_prefix('.')).unwrap_or(path);
    let mut at = values.entry(server).or_insert_with(|| Value::Object(Map::new()));
    for key in path.split('.') {
        let Value::Object(map) = at else {
            return Err(format!("`{}` is set to a value and has keys within", brief(path)));
        };
        at = map.entry(key).or_insert_with(|| Value::Object(Map::new()));
    }
    *at = value;
    Ok(())
}

/// The person's settings of one server, or those of a profile (`theirs`) if there are none, with the
/// defaults of their schemas, and validated by these. Settings of other servers are not included.
pub(crate) fn server_settings(
    schemas: &[Node],
    set: Option<&Value>,
    theirs: Option<&Value>,
    server: &str,
    report: &mut Report,
) -> Value {
    let own = set.or(theirs).cloned();
    let mut own = own.unwrap_or_else(|| Value::Object(Map::new()));
    for node in schemas {
        let Some(name) = node.get("name").and_then(Node::text) else {
            report.left_out(node.place, "a config without a name cannot be set");
            continue;
        };
        if name != server {
            let text = format!(
                "its `config` is called `{}`, and settings of others are not for it",
                brief(name)
            );
            report.left_out(node.place, text);
            continue;
        }
        let schema = node.to_json();
        defaults(&mut own, &schema, 0);
        let schema = schema_of(&schema);
        if schema.to_string().len() > LONGEST {
            report.left_out(node.place, format!("the schema of `{}` is too long", brief(name)));
            continue;
        }
        let validator = jsonschema::options()
            .with_pattern_options(
                PatternOptions::regex().size_limit(1 << 20).dfa_size_limit(1 << 20),
            )
            .build(&schema);
        match validator {
            Err(_) => report.left_out(
                node.place,
                format!(
                    "the schema for the settings of `{}` is invalid: its values are not checked",
                    brief(name)
                ),
            ),
            Ok(validator) => {
                for error in validator.iter_errors(&own).take(8) {
                    let at = error.instance_path().to_string();
                    let at = at.trim_start_matches('/').replace('/', ".");
                    // The person may have set a secret, so the value is never shown.
                    let message = error.masked_with("the value").to_string();
                    let dot = if at.is_empty() { "" } else { "." };
                    report.problem(
                        node.place,
                        format!(
                            "{}: set it with `--set {}{dot}{}=VALUE`",
                            brief(&message),
                            brief(name),
                            brief(&at)
                        ),
                    );
                }
            }
        }
    }
    if (set.is_some() || theirs.is_some()) && schemas.is_empty() {
        let text = "there is nothing to set: the catalog has no `config` for it";
        report.notes.push(crate::report::Note {
            kind: Kind::LeftOut,
            place: None,
            text: text.into(),
        });
    }
    Value::Object([(server.to_owned(), own)].into_iter().collect())
}

/// The keywords of JSON Schema; a catalog may have others beside them.
fn schema_of(schema: &Value) -> Value {
    let mut subset = Map::new();
    subset.insert("type".into(), json!("object"));
    for key in ["properties", "required", "anyOf", "oneOf"] {
        if let Some(value) = schema.get(key) {
            subset.insert(key.into(), value.clone());
        }
    }
    Value::Object(subset)
}

fn defaults(value: &mut Value, schema: &Value, depth: usize) {
    let (Value::Object(map), Some(Value::Object(properties))) = (value, schema.get("properties"))
    else {
        return;
    };
    for (key, property) in properties {
        if let Some(default) = property.get("default") {
            map.entry(key).or_insert_with(|| default.clone());
        }
        if let (Some(inner), true) = (map.get_mut(key), depth < 8) {
            defaults(inner, property, depth + 1);
        }
    }
}
