//! Compares the file with the JSON Schema of [`Config`], so that what editors complete from
//! `portcullis schema config` equals what is accepted here.

use std::{net::SocketAddr, sync::LazyLock};

use jsonschema::{
    ValidationError, Validator,
    error::{TypeKind, ValidationErrorKind as Kind},
};
use schemars::generate::SchemaSettings;
use serde_json::Value;

use super::{
    Config, ProxyNetwork,
    document::Document,
    finding::{Code, Finding, MAX_FINDINGS},
};
use portcullis_foundation::json_pointer::child;
use portcullis_foundation::units::{Age, Size};
use portcullis_plugin_host::{Destination, Versions};
use portcullis_protocol::identity::Member;
use portcullis_protocol::names::ServerName;
use portcullis_runtime::config::MountEntry;

/// Schema without references, so that the path of a failed keyword leads to its position.
static SCHEMA: LazyLock<Value> = LazyLock::new(|| {
    let settings =
        SchemaSettings::draft2020_12().with(|settings| settings.inline_subschemas = true);
    settings.into_generator().into_root_schema_for::<Config>().to_value()
});

static VALIDATOR: LazyLock<Validator> = LazyLock::new(|| {
    #[expect(clippy::unwrap_used, reason = "a constant, compiled by every test of the loader")]
    let validator = FORMATS
        .iter()
        .fold(jsonschema::options(), |options, (name, fault)| {
            options.with_format(*name, |text| fault(text).is_none())
        })
        .should_validate_formats(true)
        .build(&SCHEMA)
        .unwrap();
    validator
});

/// Schema without references.
#[cfg(test)]
pub(super) fn schema() -> &'static Value {
    &SCHEMA
}

/// Error text for a text of some format.
type Fault = fn(&str) -> Option<String>;

/// Custom formats, so that every invalid text is found, not only the first.
const FORMATS: &[(&str, Fault)] = &[
    ("name", |text| text.parse::<ServerName>().err().map(|error| error.to_string())),
    ("age", |text| text.parse::<Age>().err().map(|error| error.to_string())),
    ("size", |text| text.parse::<Size>().err().map(|error| error.to_string())),
    ("member", |text| text.parse::<Member>().err().map(|error| error.to_string())),
    ("mount", |text| text.parse::<MountEntry>().err().map(|error| error.to_string())),
    ("proxy-network", |text| text.parse::<ProxyNetwork>().err().map(|error| error.to_string())),
    ("versions", |text| text.parse::<Versions>().err().map(|error| error.to_string())),
    ("destination", |text| text.parse::<Destination>().err().map(|error| error.to_string())),
    ("egress-destination", |text| {
        text.parse::<portcullis_egress::Destination>().err().map(|error| error.to_string())
    }),
    ("socket-address", |text| {
        let error = text.parse::<SocketAddr>().err()?;
        Some(format!("{error}: write an address and a port, such as `127.0.0.1:8811`"))
    }),
];

/// Finding, with the pointer of the part that it invalidates.
pub(super) struct SchemaViolation {
    pub pointer: String,
    pub finding: Finding,
}

/// All differences between the file and the schema.
pub(super) fn check(document: &Document) -> Vec<SchemaViolation> {
    let value = Value::Object(document.value.clone());
    let mut findings = Vec::new();
    for error in VALIDATOR.iter_errors(&value).take(MAX_FINDINGS) {
        explain(document, &error, &mut findings);
    }
    findings
}

/// Part of the schema around the failed keyword.
fn around<'a>(error: &ValidationError<'_>) -> Option<&'a Value> {
    let keyword = error.schema_path().as_str();
    let (parent, _) = keyword.rsplit_once('/')?;
    SCHEMA.pointer(parent)
}

fn explain(document: &Document, error: &ValidationError<'_>, findings: &mut Vec<SchemaViolation>) {
    let pointer = error.instance_path().as_str();
    let mut add = |pointer: &str, finding: Finding| {
        findings.push(SchemaViolation { pointer: pointer.into(), finding });
    };
    let bad = |message: String| {
        let finding = document.at_value(pointer, Code::BadValue, message);
        match around(error).and_then(|schema| schema.get("description")?.as_str()) {
            Some(description) => finding.help(first_paragraph(description)),
            None => finding,
        }
    };
    match error.kind() {
        Kind::AdditionalProperties { unexpected } => {
            let known = around(error).map(known_keys).unwrap_or_default();
            for key in unexpected {
                add(&child(pointer, key), unknown_key(document, pointer, key, &known));
            }
        }
        Kind::Required { property } => {
            let key = property.as_str().unwrap_or_default();
            add(pointer, missing_key(document, pointer, key, around(error)));
        }
        Kind::OneOfNotValid { context } | Kind::AnyOf { context } => {
            let branches = SCHEMA
                .pointer(error.schema_path().as_str())
                .and_then(Value::as_array)
                .map_or(&[][..], Vec::as_slice);
            if let Some(options) = constants(branches) {
                add(pointer, not_one_of(document, pointer, error.instance(), &options));
            } else if let Some((tag, options)) = tag(branches) {
                let chosen = error.instance().get(&tag);
                match options.iter().position(|option| Some(*option) == chosen) {
                    Some(at) => {
                        for error in context.get(at).into_iter().flatten() {
                            explain(document, error, findings);
                        }
                    }
                    None if !error.instance().is_object() => {
                        add(pointer, bad("this must be a table".into()));
                    }
                    None => match chosen {
                        Some(value) => {
                            let pointer = child(pointer, &tag);
                            let finding = not_one_of(document, &pointer, value, &options);
                            add(&pointer, finding);
                        }
                        None => {
                            let finding = missing_key(document, pointer, &tag, None)
                                .help(format!("one of {}", list(&options)));
                            add(pointer, finding);
                        }
                    },
                }
            } else {
                // The branch that fails deepest is probably the intended one.
                let depth = |errors: &Vec<ValidationError<'_>>| {
                    errors.iter().map(|error| error.instance_path().as_str().len()).max()
                };
                let closest = context.iter().max_by_key(|errors| {
                    let wrong_type = errors.iter().any(|error| {
                        matches!(error.kind(), Kind::Type { .. })
                            && error.instance_path().as_str() == pointer
                    });
                    (!wrong_type, depth(errors))
                });
                for error in closest.into_iter().flatten() {
                    explain(document, error, findings);
                }
            }
        }
        Kind::Enum { options } => {
            let options: Vec<&Value> = options.as_array().into_iter().flatten().collect();
            add(pointer, not_one_of(document, pointer, error.instance(), &options));
        }
        Kind::Constant { expected_value } => {
            add(pointer, not_one_of(document, pointer, error.instance(), &[&**expected_value]));
        }
        Kind::Type { kind } => {
            add(
                pointer,
                bad(format!("expected {}, found {}", expected(kind), found(error.instance()))),
            );
        }
        Kind::Minimum { limit } => add(pointer, bad(format!("this must be at least {limit}"))),
        Kind::Maximum { limit } => add(pointer, bad(format!("this must be at most {limit}"))),
        Kind::ExclusiveMinimum { limit } => {
            add(pointer, bad(format!("this must be more than {limit}")))
        }
        Kind::ExclusiveMaximum { limit } => {
            add(pointer, bad(format!("this must be less than {limit}")))
        }
        Kind::MinItems { limit } => {
            add(pointer, bad(format!("this must have at least {limit} elements")))
        }
        Kind::MaxItems { limit } => {
            add(pointer, bad(format!("this must have at most {limit} elements")))
        }
        Kind::MinLength { limit } => {
            add(pointer, bad(format!("this must have at least {limit} characters")))
        }
        Kind::MaxLength { limit } => {
            add(pointer, bad(format!("this must have at most {limit} characters")))
        }
        Kind::UniqueItems => add(pointer, bad("this has a duplicate element".into())),
        Kind::Format { format } => {
            let fault = FORMATS.iter().find(|(name, _)| name == format).map(|(_, fault)| fault);
            let text = error.instance().as_str();
            let message = fault.zip(text).and_then(|(fault, text)| fault(text));
            add(pointer, bad(message.unwrap_or_else(|| format!("this is not a valid {format}"))));
        }
        Kind::Pattern { .. } => {
            add(pointer, bad("this does not have the required form".into()));
        }
        _ => add(pointer, bad(format!("this does not fit: {}", error.masked()))),
    }
}

fn unknown_key(document: &Document, pointer: &str, key: &str, known: &[&str]) -> Finding {
    let finding = document.at_key(
        &child(pointer, key),
        Code::UnknownKey,
        format!("unknown key `{}`", brief(key)),
    );
    let finding = match nearest(key, known.iter().copied()) {
        Some(known) => finding.label(format!("did you mean `{known}`?")),
        None => finding.label("unknown here"),
    };
    if known.is_empty() {
        finding
    } else {
        let known: Vec<String> = known.iter().map(|key| format!("`{key}`")).collect();
        finding.help(format!("known here: {}", known.join(", ")))
    }
}

fn missing_key(document: &Document, pointer: &str, key: &str, schema: Option<&Value>) -> Finding {
    let finding = document
        .at_key(pointer, Code::MissingKey, format!("the key `{}` is missing", brief(key)))
        .label("in this table");
    match schema.and_then(|schema| schema.pointer(&format!("/properties/{key}/description"))) {
        Some(Value::String(text)) => finding.help(format!("`{key}`: {}", first_paragraph(text))),
        _ => finding,
    }
}

fn not_one_of(document: &Document, pointer: &str, value: &Value, options: &[&Value]) -> Finding {
    let help = format!("one of {}", list(options));
    let Value::String(text) = value else {
        return document
            .at_value(pointer, Code::BadValue, format!("expected a string, found {}", found(value)))
            .help(help);
    };
    let finding = document
        .at_value(pointer, Code::BadValue, format!("`{}` is not a value of this key", brief(text)))
        .help(help);
    match nearest(text, options.iter().filter_map(|option| option.as_str())) {
        Some(option) => finding.label(format!("did you mean `{option}`?")),
        None => finding,
    }
}

/// Values that branches allow, if all are lists of constants.
fn constants(branches: &[Value]) -> Option<Vec<&Value>> {
    let mut options = Vec::new();
    for branch in branches {
        match (branch.get("const"), branch.get("enum")) {
            (Some(value), _) => options.push(value),
            (None, Some(Value::Array(values))) => options.extend(values),
            (None, _) if branch.get("type")? == "null" => {}
            _ => return None,
        }
    }
    (!options.is_empty()).then_some(options)
}

/// Key whose constant value distinguishes branches, with the value of each.
fn tag(branches: &[Value]) -> Option<(String, Vec<&Value>)> {
    let first = branches.first()?.get("properties")?.as_object()?;
    first.keys().find_map(|key| {
        let values: Option<Vec<&Value>> = branches
            .iter()
            .map(|branch| branch.get("properties")?.get(key)?.get("const"))
            .collect();
        Some((key.clone(), values?))
    })
}

fn known_keys(schema: &Value) -> Vec<&str> {
    let properties = schema.get("properties").and_then(Value::as_object);
    properties.into_iter().flat_map(|map| map.keys()).map(String::as_str).collect()
}

fn list(options: &[&Value]) -> String {
    let options: Vec<String> = options
        .iter()
        .map(|option| {
            option.as_str().map_or_else(|| option.to_string(), |text| format!("`{text}`"))
        })
        .collect();
    options.join(", ")
}

fn first_paragraph(text: &str) -> String {
    text.split("\n\n").next().unwrap_or(text).replace('\n', " ")
}

/// TOML's names of JSON's types.
fn type_name(json: &str) -> &'static str {
    match json {
        "object" => "a table",
        "array" => "an array",
        "string" => "a string",
        "integer" => "an integer",
        "number" => "a number",
        "boolean" => "true or false",
        _ => "nothing",
    }
}

fn expected(kind: &TypeKind) -> String {
    let names: Vec<&str> = match kind {
        TypeKind::Single(one) => vec![type_name(one.as_str())],
        TypeKind::Multiple(several) => several
            .iter()
            .map(|one| type_name(one.as_str()))
            .filter(|name| *name != "nothing")
            .collect(),
    };
    names.join(" or ")
}

fn found(value: &Value) -> &'static str {
    match value {
        Value::Null => "nothing",
        Value::Bool(_) => "true or false",
        Value::Number(number) if number.is_f64() => "a number with a fraction",
        Value::Number(_) => "an integer",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "a table",
    }
}

/// Text of the file, shortened for a message.
pub(super) fn brief(text: &str) -> String {
    match text.char_indices().nth(60) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.into(),
    }
}

/// Option that was probably intended: at most one edit for every three characters.
pub(super) fn nearest<'a>(
    text: &str,
    options: impl IntoIterator<Item = &'a str>,
) -> Option<&'a str> {
    if text.len() > 100 {
        return None;
    }
    let text = text.to_ascii_lowercase().replace('_', "-");
    options
        .into_iter()
        .map(|option| {
            let other = option.to_ascii_lowercase().replace('_', "-");
            (strsim::osa_distance(&text, &other), option)
        })
        .filter(|(distance, option)| *distance <= 1.max(option.len() / 3))
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, option)| option)
}
