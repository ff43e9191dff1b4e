//! Arguments as `context.input` of a typed action: read by its type, or refused.
//!
//! INVARIANT: policies see exactly what was sent. No value is rounded, cut or converted to another
//! type. A value that the type does not allow is an error and is never dropped.

use std::collections::HashSet;

use cedar_policy::RestrictedExpression;
use serde_json::{Map, Number, Value};

use super::shape::{Record, Type};
use portcullis_protocol::arguments::{MAX_LEAVES, canonical, push_token};
use portcullis_protocol::codec::fold;

/// Position and reason of a mismatch between arguments and their type. Contains nothing of the
/// message: the pointer only has names of the type, and `*` for an index of a list.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}{problem}", if pointer.is_empty() { "they " } else { pointer })]
pub(crate) struct InputMismatch {
    pointer: String,
    problem: &'static str,
}

/// The arguments as a record of Cedar.
///
/// # Errors
/// If they do not fit their type.
pub(super) fn input(
    record: &Record,
    args: Option<&Map<String, Value>>,
) -> Result<RestrictedExpression, InputMismatch> {
    let mut reader = Reader { pointer: Vec::new(), remaining: MAX_LEAVES };
    match args {
        Some(args) => reader.record(record, args),
        None => reader.record(record, &Map::new()),
    }
}

struct Reader<'t> {
    pointer: Vec<&'t str>,
    /// Number of values that may still be added.
    remaining: usize,
}

impl<'t> Reader<'t> {
    fn value(
        &mut self,
        kind: &'t Type,
        value: &Value,
    ) -> Result<RestrictedExpression, InputMismatch> {
        self.remaining = match self.remaining.checked_sub(1) {
            Some(remaining) => remaining,
            None => return Err(self.unfit("holds more values than policies are shown")),
        };
        match (kind, value) {
            (Type::Bool, Value::Bool(value)) => Ok(RestrictedExpression::new_bool(*value)),
            (Type::String, Value::String(text)) => {
                Ok(RestrictedExpression::new_string(text.clone()))
            }
            (Type::Long, Value::Number(number)) => {
                // `5.0` and `5e0` are the integer 5 in JSON schemas.
                let long = canonical(number).parse();
                long.map(RestrictedExpression::new_long)
                    .map_err(|_| self.unfit("is not an integer of 64 bits"))
            }
            (Type::Decimal, Value::Number(number)) => decimal(number)
                .map(RestrictedExpression::new_decimal)
                .ok_or_else(|| self.unfit("is not a number that Cedar's `decimal` holds exactly")),
            (Type::Set(kind), Value::Array(values)) => {
                self.pointer.push("*");
                let values = values
                    .iter()
                    .map(|value| self.value(kind, value))
                    .collect::<Result<Vec<_>, _>>()?;
                self.pointer.pop();
                Ok(RestrictedExpression::new_set(values))
            }
            (Type::Record(record), Value::Object(members)) => self.record(record, members),
            (kind, _) => Err(self.unfit(match kind {
                Type::Bool => "is not a boolean",
                Type::Long => "is not an integer",
                Type::Decimal => "is not a number",
                Type::String => "is not a text",
                Type::Set(_) => "is not a list",
                Type::Record(_) => "is not an object",
            })),
        }
    }

    fn record(
        &mut self,
        record: &'t Record,
        members: &Map<String, Value>,
    ) -> Result<RestrictedExpression, InputMismatch> {
        let is_declared =
            |name: &String| record.members.contains_key(name) || record.left_out.contains_key(name);
        if record.closed && !members.keys().all(is_declared) {
            return Err(self.unfit("may have no members but those of its type, and has others"));
        }
        let mut others = members.keys().filter(|name| !is_declared(name)).peekable();
        if others.peek().is_some() {
            let names = record.members.keys().chain(record.left_out.keys());
            let names: HashSet<_> = names.map(|name| fold(name.into())).collect();
            if others.any(|name| names.contains(&fold(name.into()))) {
                return Err(
                    self.unfit("has a member that differs only in case from one of its type")
                );
            }
        }
        let mut shown = Vec::new();
        for (name, member) in &record.members {
            self.pointer.push(name);
            match members.get(name) {
                None if member.required => return Err(self.unfit("is missing")),
                None => {}
                Some(Value::Null) if member.nullable => {}
                Some(value) => shown.push((name.clone(), self.value(&member.kind, value)?)),
            }
            self.pointer.pop();
        }
        RestrictedExpression::new_record(shown).map_err(|_| self.unfit("has a member twice"))
    }

    fn unfit(&self, problem: &'static str) -> InputMismatch {
        let mut pointer = String::new();
        for token in &self.pointer {
            push_token(&mut pointer, token);
        }
        if !pointer.is_empty() {
            pointer = format!("`{}` ", pointer.escape_debug());
        }
        InputMismatch { pointer, problem }
    }
}

/// A number as Cedar writes a `decimal`, if it is exact: at most four digits after the point, and
/// 64 bits in all.
fn decimal(number: &Number) -> Option<String> {
    let text = canonical(number);
    let (whole, fraction) = text.split_once('.').unwrap_or((&text, "0"));
    if fraction.len() > 4 {
        return None;
    }
    let digits = format!("{whole}{fraction:0<4}");
    digits.parse::<i64>().ok()?;
    Some(format!("{whole}.{fraction}"))
}

#[cfg(test)]
mod tests {
    use cedar_policy::{Context, Schema};
    use proptest::prelude::*;
    use serde_json::json;

    use super::{super::shape, *};

    fn schema() -> Value {
        json!({
            "type": "object",
            "properties": {
                "text": {"type": "string"},
                "count": {"type": "integer"},
                "share": {"type": "number"},
                "force": {"type": "boolean"},
                "until": {"type": ["string", "null"]},
                "tags": {"type": "array", "items": {"type": "string"}},
                "where": {"type": "object", "properties": {"a/b": {"type": "integer"}},
                    "required": ["a/b"], "additionalProperties": false},
                "odd": {"type": ["string", "integer"]},
                "open": {"type": "object", "properties": {"ask": {"type": "boolean"}, "any": {}}},
            },
            "required": ["text", "until"],
            "additionalProperties": false,
        })
    }

    fn read(text: &str) -> Result<RestrictedExpression, String> {
        let record = shape::input(&schema()).unwrap();
        let args: Map<String, Value> = serde_json::from_str(text).unwrap();
        input(&record, Some(&args)).map_err(|unfit| unfit.to_string())
    }

    #[test]
    fn fitting_arguments_are_converted() {
        for (text, expected) in [
            (r#"{"text": "a"}"#, r#"{"text": "a"}"#),
            (r#"{"text": "a", "until": null}"#, r#"{"text": "a"}"#),
            (r#"{"text": "a", "until": "x"}"#, r#"{"text": "a", "until": "x"}"#),
            (r#"{"text": "a", "count": -0.0}"#, r#"{"count": 0, "text": "a"}"#),
            (r#"{"text": "a", "count": 5e1}"#, r#"{"count": 50, "text": "a"}"#),
            (
                r#"{"text": "a", "count": -9223372036854775808}"#,
                r#"{"count": (-9223372036854775808), "text": "a"}"#,
            ),
            (r#"{"text": "a", "share": 0.25}"#, r#"{"share": decimal("0.25"), "text": "a"}"#),
            (r#"{"text": "a", "share": -7}"#, r#"{"share": decimal("-7.0"), "text": "a"}"#),
            (r#"{"text": "a", "tags": []}"#, r#"{"tags": [], "text": "a"}"#),
            (r#"{"text": "a", "where": {"a/b": 1}}"#, r#"{"text": "a", "where": {"a/b": 1}}"#),
            // A member without a type may have any value.
            (r#"{"text": "a", "odd": [null]}"#, r#"{"text": "a"}"#),
            // Keys that the type does not name may differ only in case.
            (
                r#"{"text": "a", "open": {"ask": true, "http_proxy": 1, "HTTP_PROXY": 2}}"#,
                r#"{"open": {"ask": true}, "text": "a"}"#,
            ),
        ] {
            let shown = |value: RestrictedExpression| {
                Context::from_pairs([("input".to_owned(), value)])
                    .unwrap()
                    .get("input")
                    .map(|value| value.to_string())
            };
            let expected: RestrictedExpression = expected.parse().unwrap();
            assert_eq!(shown(read(text).unwrap()), shown(expected), "{text}");
        }
    }

    #[test]
    fn mismatch_is_reported_without_the_value() {
        for (text, expected) in [
            ("{}", "`/text` is missing"),
            (r#"{"text": 1}"#, "`/text` is not a text"),
            (r#"{"text": null}"#, "`/text` is not a text"),
            (r#"{"text": ["s3cret"]}"#, "`/text` is not a text"),
            (
                r#"{"text": "a", "Text": "b"}"#,
                "they may have no members but those of its type, and has others",
            ),
            (r#"{"text": "a", "count": "5"}"#, "`/count` is not an integer"),
            (r#"{"text": "a", "count": 5.5}"#, "`/count` is not an integer of 64 bits"),
            (
                r#"{"text": "a", "count": 9223372036854775808}"#,
                "`/count` is not an integer of 64 bits",
            ),
            (r#"{"text": "a", "count": 1e300}"#, "`/count` is not an integer of 64 bits"),
            (r#"{"text": "a", "count": null}"#, "`/count` is not an integer"),
            (r#"{"text": "a", "force": 1}"#, "`/force` is not a boolean"),
            (r#"{"text": "a", "force": "true"}"#, "`/force` is not a boolean"),
            (
                r#"{"text": "a", "share": 0.12345}"#,
                "`/share` is not a number that Cedar's `decimal` holds exactly",
            ),
            (
                r#"{"text": "a", "share": 922337203685478}"#,
                "`/share` is not a number that Cedar's `decimal` holds exactly",
            ),
            (r#"{"text": "a", "tags": "x"}"#, "`/tags` is not a list"),
            (r#"{"text": "a", "tags": ["x", 1]}"#, "`/tags/*` is not a text"),
            (r#"{"text": "a", "where": {}}"#, "`/where/a~1b` is missing"),
            (
                r#"{"text": "a", "open": {"ask": false, "ASK": true}}"#,
                "`/open` has a member that differs only in case from one of its type",
            ),
            (
                r#"{"text": "a", "open": {"a\u017fk": true}}"#,
                "`/open` has a member that differs only in case from one of its type",
            ),
            (
                r#"{"text": "a", "open": {"Any": true}}"#,
                "`/open` has a member that differs only in case from one of its type",
            ),
            (
                r#"{"text": "a", "where": {"a/b": 1, "c": 2}}"#,
                "`/where` may have no members but those of its type, and has others",
            ),
        ] {
            assert_eq!(read(text).unwrap_err(), expected, "{text}");
        }
    }

    #[test]
    fn too_many_values_are_refused() {
        let args = json!({"text": "a", "tags": vec!["x"; MAX_LEAVES]});
        let unfit = read(&args.to_string()).unwrap_err();
        assert_eq!(unfit, "`/tags/*` holds more values than policies are shown");
    }

    fn json_value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<u64>().prop_map(Value::from),
            (-1e6..1e6_f64).prop_map(Value::from),
            "[a-z]{0,3}".prop_map(Value::from),
        ];
        leaf.prop_recursive(3, 12, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::vec(("a/b|x|y", inner), 0..3)
                    .prop_map(|members| Value::Object(members.into_iter().collect())),
            ]
        })
    }

    proptest! {
        /// Cedar's own validation of requests accepts every input: a policy that was validated
        /// against the type never gets a value of another type.
        #[test]
        fn converted_values_pass_cedars_validation(
            members in prop::collection::vec((prop::sample::select(vec![
                "text", "count", "share", "force", "until", "tags", "where", "odd", "other",
            ]), json_value()), 0..7),
        ) {
            let record = shape::input(&schema()).unwrap();
            let args: Map<_, _> =
                members.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
            if let Ok(shown) = input(&record, Some(&args)) {
                let text = format!(
                    "entity E; action a appliesTo {{ principal: E, resource: E, context: {{ \
                     input: {} }} }};",
                    super::super::text::record(&record, 0),
                );
                let (schema, _) = Schema::from_cedarschema_str(&text).unwrap();
                let context = Context::from_pairs([("input".to_owned(), shown)]).unwrap();
                let uid: cedar_policy::EntityUid = r#"E::"e""#.parse().unwrap();
                let action: cedar_policy::EntityUid = r#"Action::"a""#.parse().unwrap();
                let request =
                    cedar_policy::Request::new(uid.clone(), action, uid, context, Some(&schema));
                prop_assert!(request.is_ok(), "{:?}", request.err());
            }
        }
    }
}
