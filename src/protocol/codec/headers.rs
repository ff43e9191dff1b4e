//! Headers of MCP 2026-07-28 that repeat a tool's arguments (`Mcp-Param-*`), so that intermediaries
//! can route by them without parsing the body. The tool's input schema selects the arguments, by
//! `x-mcp-header` at a property.

use std::{borrow::Cow, collections::HashSet};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use http::{HeaderMap, HeaderName};
use serde_json::{Map, Number, Value};

use super::era::header_text;

/// Prefix of the names of these headers, in lower case.
pub const PARAM: &str = "mcp-param-";

const ANNOTATION: &str = "x-mcp-header";
/// Largest number that every JSON parser treats as an integer.
const MAX_SAFE_INTEGER: f64 = 9_007_199_254_740_991.0;

/// Decoded header value; `None` if it is marked as base64 and is invalid.
pub fn decoded(value: &str) -> Option<Cow<'_, str>> {
    match value.strip_prefix("=?base64?").and_then(|rest| rest.strip_suffix("?=")) {
        Some(encoded) => {
            String::from_utf8(BASE64_STANDARD.decode(encoded).ok()?).ok().map(Cow::Owned)
        }
        None => Some(Cow::Borrowed(value)),
    }
}

/// Arguments that a tool repeats in headers.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Repeated {
    params: Vec<Param>,
}

#[derive(Debug, PartialEq, Eq)]
struct Param {
    /// Properties from the arguments to the value.
    path: Vec<String>,
    /// Name of the header, in lower case.
    header: HeaderName,
}

impl Repeated {
    /// Arguments that an input schema repeats.
    ///
    /// # Errors
    /// What is wrong with an annotation, without text of the server.
    pub fn of(schema: &Value) -> Result<Self, &'static str> {
        let mut repeated = Self::default();
        let mut seen = HashSet::new();
        if schema.get(ANNOTATION).is_some() {
            return Err("`x-mcp-header` is not on a property");
        }
        repeated.walk(schema, &mut Vec::new(), &mut seen)?;
        Ok(repeated)
    }

    /// Walks one schema that is reachable through `properties` only.
    fn walk(
        &mut self,
        schema: &Value,
        path: &mut Vec<String>,
        seen: &mut HashSet<HeaderName>,
    ) -> Result<(), &'static str> {
        let Value::Object(keywords) = schema else { return Ok(()) };
        for (keyword, value) in keywords {
            if keyword != "properties" {
                if hidden(keyword, value) {
                    return Err(
                        "`x-mcp-header` is on a property that is not reachable through `properties` only",
                    );
                }
                continue;
            }
            for (name, property) in value.as_object().into_iter().flatten() {
                path.push(name.clone());
                if let Some(annotation) = property.get(ANNOTATION) {
                    let header = header(annotation)?;
                    if !primitive(property) {
                        return Err(
                            "`x-mcp-header` is on a property that is not a string, integer or boolean",
                        );
                    }
                    if !seen.insert(header.clone()) {
                        return Err("two properties have the same `x-mcp-header`");
                    }
                    self.params.push(Param { path: path.clone(), header });
                }
                self.walk(property, path, seen)?;
                path.pop();
            }
        }
        Ok(())
    }

    /// Whether a header is one of them.
    pub fn has(&self, header: &HeaderName) -> bool {
        self.params.iter().any(|param| param.header == *header)
    }

    /// Headers for these arguments, encoded for the wire.
    pub fn headers(&self, arguments: Option<&Map<String, Value>>) -> Vec<(String, String)> {
        self.params
            .iter()
            .filter_map(|param| {
                let value = text(param.value(arguments)?)?;
                Some((param.header.to_string(), header_text(&value)))
            })
            .collect()
    }

    /// Checks that headers match the arguments.
    ///
    /// # Errors
    /// Name of a header that is missing, duplicated, unexpected or different.
    pub fn check(
        &self,
        headers: &HeaderMap,
        arguments: Option<&Map<String, Value>>,
    ) -> Result<(), &HeaderName> {
        for param in &self.params {
            let wrong = Err(&param.header);
            let mut values = headers.get_all(&param.header).iter();
            let (sent, more) = (values.next(), values.next());
            let expected = param.value(arguments).filter(|value| text(value).is_some());
            match (sent, expected) {
                (None, None) => {}
                (Some(sent), Some(expected)) if more.is_none() => {
                    let Some(sent) = sent.to_str().ok().and_then(decoded) else { return wrong };
                    if !same(&sent, expected) {
                        return wrong;
                    }
                }
                _ => return wrong,
            }
        }
        Ok(())
    }
}

impl Param {
    fn value<'a>(&self, arguments: Option<&'a Map<String, Value>>) -> Option<&'a Value> {
        let (first, rest) = self.path.split_first()?;
        rest.iter().try_fold(arguments?.get(first)?, |value, name| value.get(name))
    }
}

/// Whether an annotation occurs anywhere below a keyword where it is not allowed.
fn hidden(keyword: &str, value: &Value) -> bool {
    match keyword {
        // Values of instances, not schemas.
        "default" | "const" | "enum" | "examples" => false,
        // The keys here are names.
        "$defs" | "definitions" | "dependentSchemas" | "patternProperties" => {
            value.as_object().into_iter().flatten().any(|(_, schema)| annotated(schema))
        }
        _ => annotated(value),
    }
}

fn annotated(schema: &Value) -> bool {
    match schema {
        Value::Array(schemas) => schemas.iter().any(annotated),
        Value::Object(keywords) => keywords.iter().any(|(keyword, value)| match keyword.as_str() {
            ANNOTATION => true,
            "properties" => {
                value.as_object().into_iter().flatten().any(|(_, schema)| annotated(schema))
            }
            keyword => hidden(keyword, value),
        }),
        _ => false,
    }
}

fn header(annotation: &Value) -> Result<HeaderName, &'static str> {
    let name = annotation.as_str().ok_or("`x-mcp-header` is not a string")?;
    if name.is_empty() {
        return Err("`x-mcp-header` is empty");
    }
    HeaderName::try_from(format!("{PARAM}{name}"))
        .map_err(|_| "`x-mcp-header` is not a valid header name")
}

/// Whether a schema has a type that headers can repeat; `null` beside it means that there may be no
/// value.
fn primitive(schema: &Value) -> bool {
    let repeatable = |of: &Value| matches!(of.as_str(), Some("string" | "integer" | "boolean"));
    match schema.get("type") {
        Some(Value::Array(types)) => {
            let mut types = types.iter().filter(|of| of.as_str() != Some("null"));
            types.next().is_some_and(repeatable) && types.next().is_none()
        }
        Some(of) => repeatable(of),
        None => false,
    }
}

/// Value in the form of a header; `None` for values that headers do not repeat.
fn text(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Bool(value) => Some(value.to_string()),
        Value::Number(number) => Some(match integer(number) {
            Some(integer) => integer.to_string(),
            None => number.to_string(),
        }),
        Value::Null | Value::Array(_) | Value::Object(_) => None,
    }
}

/// Integer, however it is written: `42.0` is one.
#[expect(clippy::cast_possible_truncation, reason = "it is whole and within 53 bits")]
fn integer(number: &Number) -> Option<i128> {
    if let Some(integer) = number.as_i128() {
        return Some(integer);
    }
    let float =
        number.as_f64().filter(|float| float.fract() == 0.0 && float.abs() <= MAX_SAFE_INTEGER)?;
    Some(i128::from(float as i64))
}

/// Whether a header's text equals the value: numbers by value, everything else exactly.
fn same(sent: &str, expected: &Value) -> bool {
    let Value::Number(expected) = expected else { return text(expected).as_deref() == Some(sent) };
    let Ok(sent) = sent.parse::<Number>() else { return false };
    match (integer(&sent), integer(expected)) {
        (Some(sent), Some(expected)) => sent == expected,
        (None, None) => sent == *expected,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn of(properties: Value) -> Result<Repeated, &'static str> {
        Repeated::of(&json!({ "type": "object", "properties": properties }))
    }

    fn map(headers: &[(&'static str, &str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(*name, value.parse().unwrap());
        }
        map
    }

    #[test]
    fn values_are_encoded_by_the_specification() {
        for (value, expected) in [
            (json!("us-west1"), Some("us-west1")),
            (json!("Hello, 世界"), Some("=?base64?SGVsbG8sIOS4lueVjA==?=")),
            (json!(" padded "), Some("=?base64?IHBhZGRlZCA=?=")),
            (json!("line1\nline2"), Some("=?base64?bGluZTEKbGluZTI=?=")),
            (json!("=?base64?literal?="), Some("=?base64?PT9iYXNlNjQ/bGl0ZXJhbD89?=")),
            (json!(""), Some("")),
            (json!(42), Some("42")),
            (json!(-7), Some("-7")),
            (json!(42.0), Some("42")),
            (json!(true), Some("true")),
            (json!(null), None),
            (json!([1]), None),
            (json!({}), None),
        ] {
            let repeated = of(json!({ "v": { "type": "string", "x-mcp-header": "Val" } })).unwrap();
            let arguments = json!({ "v": value });
            let headers = repeated.headers(arguments.as_object());
            assert_eq!(headers.first().map(|(_, v)| v.as_str()), expected, "{value}");
            let mut sent = HeaderMap::new();
            for (name, value) in headers {
                assert_eq!(name, "mcp-param-val");
                sent.append("mcp-param-val", value.parse().unwrap());
            }
            assert_eq!(repeated.check(&sent, arguments.as_object()), Ok(()), "{value}");
        }
    }

    #[test]
    fn nested_values_are_read_at_their_position() {
        let repeated = of(json!({
            "location": {
                "type": "object",
                "properties": { "region": { "type": ["string", "null"], "x-mcp-header": "Region" } },
            },
            "x-mcp-header": { "type": "string" },
        }))
        .unwrap();
        let got = |arguments: Value| repeated.headers(arguments.as_object());
        let there = got(json!({ "location": { "region": "eu" } }));
        assert_eq!(there, [("mcp-param-region".to_owned(), "eu".to_owned())]);
        for elsewhere in [
            json!({}),
            json!({ "region": "eu" }),
            json!({ "location": "eu" }),
            json!({ "location": { "region": null } }),
        ] {
            assert_eq!(got(elsewhere), []);
        }
        assert_eq!(repeated.headers(None), []);
    }

    #[test]
    fn headers_that_differ_are_refused() {
        let repeated = of(json!({
            "region": { "type": "string", "x-mcp-header": "Region" },
            "count": { "type": "integer", "x-mcp-header": "Count" },
        }))
        .unwrap();
        let arguments = json!({ "region": "eu", "count": 42 });
        for (headers, right) in [
            (&[("mcp-param-region", "eu"), ("mcp-param-count", "42")][..], true),
            (&[("mcp-param-region", "eu"), ("mcp-param-count", "42.0")], true),
            (&[("mcp-param-region", "=?base64?ZXU=?="), ("mcp-param-count", "42")], true),
            (&[("mcp-param-region", "EU"), ("mcp-param-count", "42")], false),
            (&[("mcp-param-region", "=?base64?ZXU?="), ("mcp-param-count", "42")], false),
            (&[("mcp-param-region", "eu"), ("mcp-param-count", "43")], false),
            (&[("mcp-param-region", "eu"), ("mcp-param-count", "x")], false),
            (&[("mcp-param-region", "eu")], false),
            (
                &[
                    ("mcp-param-region", "eu"),
                    ("mcp-param-region", "eu"),
                    ("mcp-param-count", "42"),
                ],
                false,
            ),
        ] {
            let checked = repeated.check(&map(headers), arguments.as_object());
            assert_eq!(checked.is_ok(), right, "{headers:?}");
        }
        // Without a value to repeat, the header must be absent.
        assert!(repeated.check(&map(&[]), None).is_ok());
        assert!(repeated.check(&map(&[("mcp-param-region", "eu")]), None).is_err());
        // Unknown headers are ignored.
        assert!(repeated.check(&map(&[("mcp-param-other", "eu")]), None).is_ok());
    }

    #[test]
    fn misplaced_annotations_are_refused() {
        let annotated = json!({ "type": "string", "x-mcp-header": "A" });
        for schema in [
            json!({ "x-mcp-header": "A" }),
            json!({ "properties": { "a": { "type": "array", "items": annotated } } }),
            json!({ "properties": { "a": { "anyOf": [annotated] } } }),
            json!({ "properties": { "a": { "type": "object", "additionalProperties": annotated } } }),
            json!({ "if": { "properties": { "a": annotated } } }),
            json!({ "$defs": { "x": annotated } }),
            json!({ "$defs": { "x": { "properties": { "a": annotated } } } }),
            json!({ "properties": { "a": { "type": "string", "x-mcp-header": "" } } }),
            json!({ "properties": { "a": { "type": "string", "x-mcp-header": 1 } } }),
            json!({ "properties": { "a": { "type": "string", "x-mcp-header": "a b" } } }),
            json!({ "properties": { "a": { "type": "string", "x-mcp-header": "a:" } } }),
            json!({ "properties": { "a": { "type": "string", "x-mcp-header": "a\r\nb" } } }),
            json!({ "properties": { "a": { "type": "string", "x-mcp-header": "Région" } } }),
            json!({ "properties": { "a": { "type": "number", "x-mcp-header": "A" } } }),
            json!({ "properties": { "a": { "type": "null", "x-mcp-header": "A" } } }),
            json!({ "properties": { "a": { "type": ["string", "integer"], "x-mcp-header": "A" } } }),
            json!({ "properties": { "a": { "x-mcp-header": "A" } } }),
            json!({ "properties": {
                "a": annotated,
                "b": { "type": "string", "x-mcp-header": "a" },
            } }),
        ] {
            assert!(Repeated::of(&schema).is_err(), "{schema}");
        }
        for schema in [
            json!({}),
            json!(true),
            json!({ "properties": { "x-mcp-header": { "type": "number" } } }),
            json!({ "default": { "x-mcp-header": 1 } }),
            json!({ "properties": { "a": { "const": { "x-mcp-header": "" } } } }),
            json!({ "$defs": { "x-mcp-header": {} } }),
        ] {
            assert_eq!(Repeated::of(&schema), Ok(Repeated::default()), "{schema}");
        }
    }

    proptest! {
        #[test]
        fn encoded_values_round_trip(text in "\\PC{0,20}|[ \t=?a-z0-9/]{0,20}|.{0,8}") {
            let written = header_text(&text);
            let written: &str = &written;
            let value: http::HeaderValue = written.parse().unwrap();
            let decoded = decoded(value.to_str().unwrap()).unwrap();
            prop_assert_eq!(decoded.as_ref(), text.as_str());
        }

        #[test]
        fn numbers_are_compared_by_value(number in any::<i64>()) {
            prop_assert!(same(&number.to_string(), &json!(number)));
            prop_assert!(!same(&number.wrapping_add(1).to_string(), &json!(number)));
        }
    }
}
