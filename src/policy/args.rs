//! Arguments as policies see them: every scalar leaf as text, under its JSON pointer.

use std::borrow::Cow;

use serde_json::{Map, Number, Value};

/// Leaves that are shown to policies. A message with more is refused where a policy looks at
/// arguments at all: to show only some would let the others pass unseen.
pub(super) const MAX_LEAVES: usize = 10_000;

/// Bytes of pointers and values that are shown to policies. A long key stands in the pointer of
/// every leaf below it: without this bound, a message could make thousands of times its own size.
pub(super) const MAX_BYTES: usize = 8 * 1024 * 1024;

/// Bytes of a JSON text that is surely within both bounds. It is at most twice as long in pointers,
/// for one leaf in two bytes, and what numbers are longer in full is less than the rest.
const FEW_BYTES: usize = 2048;

/// Why arguments cannot be shown to policies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Unshowable {
    #[error(
        "the arguments hold more than {MAX_LEAVES} values, which is more than policies are shown"
    )]
    TooMany,
    #[error(
        "the arguments and the keys that lead to each of them are more than {} MiB together, which \
         is more than policies are shown",
        MAX_BYTES / 1024 / 1024
    )]
    TooLarge,
    #[error("the arguments hold a number with more digits than policies are shown")]
    Inexact,
    #[error(
        "a `file:` URL can be read as more than one path: write it without query, fragment, \
         backslashes and `..`, as file:///PATH"
    )]
    Ambiguous,
}

/// A scalar among the arguments.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Leaf {
    /// Where it stands, by JSON pointer (RFC 6901).
    pub(super) pointer: String,
    pub(super) value: String,
    /// Whether it is a string, and not a number, a boolean or null.
    is_string: bool,
}

impl Leaf {
    /// The value of a string.
    pub(super) fn text(&self) -> Option<&str> {
        self.is_string.then_some(&*self.value)
    }
}

/// All leaves of an object, in its order. Empty arrays and objects have none.
pub(super) fn leaves(args: &Map<String, Value>) -> Result<Vec<Leaf>, Unshowable> {
    let mut found = Vec::new();
    each_leaf(args, |pointer, value, is_string| {
        let (pointer, value) = (pointer.to_owned(), value.into_owned());
        found.push(Leaf { pointer, value, is_string });
    })?;
    Ok(found)
}

/// Shows every leaf as long as they are within bounds: its pointer, its value, and whether that is
/// a string.
fn each_leaf(
    args: &Map<String, Value>,
    mut show: impl FnMut(&str, Cow<'_, str>, bool),
) -> Result<(), Unshowable> {
    enum Children<'a> {
        Object(serde_json::map::Iter<'a>),
        Array(std::iter::Enumerate<std::slice::Iter<'a, Value>>),
    }
    let mut count = 0;
    let mut bytes = 0_usize;
    let mut pointer = String::new();
    // A stack of our own: nesting is capped before, but must not be what keeps us from overflow.
    // Each level remembers how long the pointer was above it.
    let mut stack = vec![(0, Children::Object(args.iter()))];
    while let Some((above, children)) = stack.last_mut() {
        pointer.truncate(*above);
        let child = match children {
            Children::Object(members) => members.next().map(|(key, value)| {
                push_token(&mut pointer, key);
                value
            }),
            Children::Array(items) => items.next().map(|(index, value)| {
                push_token(&mut pointer, &index.to_string());
                value
            }),
        };
        let is_string = matches!(child, Some(Value::String(_)));
        let value = match child {
            None => {
                stack.pop();
                continue;
            }
            Some(Value::Object(members)) => {
                stack.push((pointer.len(), Children::Object(members.iter())));
                continue;
            }
            Some(Value::Array(items)) => {
                stack.push((pointer.len(), Children::Array(items.iter().enumerate())));
                continue;
            }
            Some(Value::String(text)) => Cow::Borrowed(text.as_str()),
            Some(Value::Number(number)) => Cow::Owned(canonical(number)),
            Some(Value::Bool(true)) => Cow::Borrowed("true"),
            Some(Value::Bool(false)) => Cow::Borrowed("false"),
            Some(Value::Null) => Cow::Borrowed("null"),
        };
        if count == MAX_LEAVES {
            return Err(Unshowable::TooMany);
        }
        count += 1;
        bytes = bytes.saturating_add(pointer.len()).saturating_add(value.len());
        if bytes > MAX_BYTES {
            return Err(Unshowable::TooLarge);
        }
        show(&pointer, value, is_string);
    }
    Ok(())
}

/// Whether policies can be shown all values of `params`: no more leaves than they are shown, and
/// every number in full. Counts only: it is asked of every message.
pub fn are_showable(params: &Value, written: &[u8]) -> bool {
    let few = written.len() <= FEW_BYTES
        || params.as_object().is_none_or(|params| each_leaf(params, |_, _, _| ()).is_ok());
    few && exact(written).is_ok()
}

pub(super) fn push_token(pointer: &mut String, token: &str) {
    pointer.push('/');
    for char in token.chars() {
        match char {
            '~' => pointer.push_str("~0"),
            '/' => pointer.push_str("~1"),
            char => pointer.push(char),
        }
    }
}

/// Checks that policies are shown every number of a JSON text at its full value. A parsed number is
/// a 64-bit integer or a double; the server reads the text, and may read all of its digits.
pub(super) fn exact(json: &[u8]) -> Result<(), Unshowable> {
    let mut rest = json;
    while let Some((&first, after)) = rest.split_first() {
        rest = match first {
            b'"' => past_string(after),
            b'-' | b'0'..=b'9' => {
                let is_part = |b: &u8| matches!(b, b'0'..=b'9' | b'.' | b'e' | b'E' | b'+' | b'-');
                let end = rest.iter().position(|b| !is_part(b)).unwrap_or(rest.len());
                let (number, after) = rest.split_at(end);
                if !survives(number) {
                    return Err(Unshowable::Inexact);
                }
                after
            }
            _ => after,
        };
    }
    Ok(())
}

/// What follows the string whose first quote is behind us.
fn past_string(mut rest: &[u8]) -> &[u8] {
    while let Some((&first, after)) = rest.split_first() {
        rest = match first {
            b'"' => return after,
            b'\\' => after.get(1..).unwrap_or_default(),
            _ => after,
        };
    }
    rest
}

fn survives(number: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(number) else { return false };
    let Ok(number) = text.parse::<Number>() else { return false };
    let value = value(text);
    value.is_some() && value == self::value(&canonical(&number))
}

/// The value of a decimal: whether it is negative, its digits without zeros at either end, and the
/// power of ten of the last one. `None` where the exponent is beyond all reason.
fn value(text: &str) -> Option<(bool, String, i64)> {
    let (mantissa, exponent) = text.split_once(['e', 'E']).unwrap_or((text, "0"));
    let (negative, mantissa) = match mantissa.strip_prefix('-') {
        Some(mantissa) => (true, mantissa),
        None => (false, mantissa),
    };
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let digits = format!("{whole}{fraction}");
    let digits = digits.trim_start_matches('0');
    let kept = digits.trim_end_matches('0');
    if kept.is_empty() {
        return Some((false, String::new(), 0));
    }
    let zeros = i64::try_from(digits.len() - kept.len()).ok()?;
    let places = i64::try_from(fraction.len()).ok()?;
    let exponent = exponent.parse::<i64>().ok()?.checked_add(zeros)?.checked_sub(places)?;
    Some((negative, kept.to_owned(), exponent))
}

/// One text for one number, however it was written: `50`, `50.0` and `5e1` are all `50`. Plain
/// decimal, without exponent. What no 64-bit integer holds is the nearest double: see [`exact`].
pub(super) fn canonical(number: &Number) -> String {
    if let Some(integer) = number.as_i64() {
        return integer.to_string();
    }
    if let Some(integer) = number.as_u64() {
        return integer.to_string();
    }
    match number.as_f64() {
        Some(0.0) => "0".to_owned(),
        Some(double) => double.to_string(),
        None => number.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn pairs(args: &Map<String, Value>) -> Vec<(String, String)> {
        leaves(args).unwrap().into_iter().map(|leaf| (leaf.pointer, leaf.value)).collect()
    }

    fn of(value: &Value) -> Vec<(String, String)> {
        pairs(value.as_object().unwrap())
    }

    #[test]
    fn numbers_have_one_text() {
        for (json, text) in [
            ("50", "50"),
            ("50.0", "50"),
            ("5e1", "50"),
            ("-0.0", "0"),
            ("-0", "0"),
            ("0.1", "0.1"),
            ("1e-3", "0.001"),
            ("-9223372036854775808", "-9223372036854775808"),
            ("18446744073709551615", "18446744073709551615"),
            ("1e20", "100000000000000000000"),
        ] {
            let value: Value = serde_json::from_str(&format!(r#"{{"n": {json}}}"#)).unwrap();
            assert_eq!(of(&value), [("/n".to_owned(), text.to_owned())], "{json}");
        }
    }

    #[test]
    fn numbers_are_shown_in_full_or_not_at_all() {
        for json in [
            r#"{"a": [0, -0.0, 0e5, 50.0, 5E+1, 1e-3, 0.1, 1e20, 1.5e300], "b": -0.25}"#,
            "[18446744073709551615, -9223372036854775808, 9007199254740993]",
            "[0.30000000000000004, 5e-324, 100000000000000000000]",
            // Digits in strings and keys are not numbers.
            r#"{"12345678901234567890123": "1e-999 \" 1e-999 \\", "x": "\\\"1e-999"}"#,
            "",
        ] {
            assert_eq!(exact(json.as_bytes()), Ok(()), "{json}");
        }
        for number in [
            "12345678901234567890123",
            "18446744073709551617",
            "-9223372036854775809",
            "9007199254740993.0",
            "0.1000000000000000055",
            "1.00000000000000000001",
            "1e-400",
            "1e400",
            "1e99999999999999999999",
        ] {
            let json = format!(r#"{{"\\": "\"", "a": [1, {number}]}}"#);
            assert_eq!(exact(json.as_bytes()), Err(Unshowable::Inexact), "{json}");
        }
    }

    #[test]
    fn pointers_are_escaped_and_empty_containers_have_no_leaf() {
        let value = json!({
            "a/b": {"~1": "x"}, "": [null, [], {}, [true]], "ключ": {"\u{1f512}": ""},
        });
        let expected =
            [("/a~1b/~01", "x"), ("//0", "null"), ("//3/0", "true"), ("/ключ/\u{1f512}", "")];
        assert_eq!(of(&value), expected.map(|(a, b)| (a.to_owned(), b.to_owned())));
    }

    #[test]
    fn depth_does_not_overflow_the_stack() {
        // Built and taken apart by hand: serde_json's own parse and drop are recursive.
        let mut value = json!("leaf");
        for _ in 0..100_000 {
            value = Value::Array(vec![value]);
        }
        let mut args = Map::from_iter([("a".to_owned(), value)]);
        let found = pairs(&args);
        assert_eq!((found.len(), found[0].0.len()), (1, 2 + 2 * 100_000));
        let mut rest = args.remove("a");
        while let Some(Value::Array(mut items)) = rest {
            rest = items.pop();
        }
    }

    #[test]
    fn too_many_leaves_are_an_error() {
        let array = |length| Map::from_iter([("a".to_owned(), Value::from(vec![1; length]))]);
        assert_eq!(leaves(&array(MAX_LEAVES)).unwrap().len(), MAX_LEAVES);
        assert_eq!(leaves(&array(MAX_LEAVES + 1)), Err(Unshowable::TooMany));
    }

    #[test]
    fn a_long_key_over_many_values_is_too_large() {
        let under = |key: usize, values: usize| {
            let value = Value::from(vec![0; values]);
            Map::from_iter([("k".repeat(key), value)])
        };
        let large = under(100_000, MAX_LEAVES);
        assert_eq!(leaves(&large), Err(Unshowable::TooLarge));
        let written = Value::from(large.clone()).to_string();
        assert!(!are_showable(&Value::from(large), written.as_bytes()));
        // Within the bound, both say so.
        let small = under(700, MAX_LEAVES);
        assert_eq!(leaves(&small).unwrap().len(), MAX_LEAVES);
        let written = Value::from(small.clone()).to_string();
        assert!(are_showable(&Value::from(small), written.as_bytes()));
        // The last byte counts.
        let text = |bytes: usize| Map::from_iter([("a".to_owned(), "x".repeat(bytes).into())]);
        assert!(leaves(&text(MAX_BYTES - 2)).is_ok());
        assert_eq!(leaves(&text(MAX_BYTES - 1)), Err(Unshowable::TooLarge));
    }

    #[test]
    fn few_bytes_are_within_all_bounds() {
        let most = |text: &str| {
            let value: Value = serde_json::from_str(text).unwrap();
            each_leaf(value.as_object().unwrap(), |_, _, _| ())
        };
        for (key, value) in [("~", "0"), ("k", "1e308")] {
            for share in 1..10 {
                let key = key.repeat(FEW_BYTES * share / 10);
                let values = (FEW_BYTES - key.len() - 8) / (value.len() + 1);
                let text = format!(r#"{{"{key}":[{}]}}"#, vec![value; values].join(","));
                assert!(text.len() <= FEW_BYTES);
                assert_eq!(most(&text), Ok(()), "{share}");
            }
        }
    }

    fn json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
            any::<String>().prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 64, 5, |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
                proptest::collection::hash_map("[a/~0-1]{0,3}|\\PC{0,4}", inner, 0..5)
                    .prop_map(|members| Value::Object(members.into_iter().collect())),
            ]
        })
    }

    fn scalars(value: &Value) -> usize {
        match value {
            Value::Array(items) => items.iter().map(scalars).sum(),
            Value::Object(members) => members.values().map(scalars).sum(),
            _ => 1,
        }
    }

    proptest! {
        #[test]
        fn what_a_parse_keeps_is_exact(value in json()) {
            prop_assert_eq!(exact(value.to_string().as_bytes()), Ok(()));
        }

        #[test]
        fn tags_mirror_the_leaves(value in json()) {
            let args = Map::from_iter([("args".to_owned(), value)]);
            let found = pairs(&args);
            let args = Value::Object(args);
            // As many as there are scalars, each under its own pointer, which serde_json's own
            // reading of pointers finds again.
            prop_assert_eq!(found.len(), scalars(&args));
            let pointers: std::collections::HashSet<_> =
                found.iter().map(|(pointer, _)| pointer).collect();
            prop_assert_eq!(pointers.len(), found.len());
            for (pointer, text) in &found {
                match args.pointer(pointer).unwrap() {
                    Value::String(string) => prop_assert_eq!(text, string),
                    Value::Number(number) => prop_assert_eq!(
                        text.parse::<f64>().unwrap(), number.as_f64().unwrap()
                    ),
                    Value::Bool(bool) => prop_assert_eq!(text, &bool.to_string()),
                    Value::Null => prop_assert_eq!(text, "null"),
                    other => prop_assert!(false, "no leaf: {other}"),
                }
            }
        }
    }
}
