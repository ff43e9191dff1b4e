//! Arguments in the form that policies see: every leaf as text and every array's length, by JSON
//! pointer.

use std::borrow::Cow;

use serde_json::{Map, Number, Value};

/// Limit of the leaves that policies see. If a policy reads arguments, a message with more is
/// refused: showing only some would let the others pass unseen.
pub const MAX_LEAVES: usize = 10_000;

/// Limit in bytes of the pointers and values that policies see. The pointer of every leaf below a
/// long key contains the key: without this limit, a message could produce thousands of times its
/// own size.
pub const MAX_BYTES: usize = 8 * 1024 * 1024;

/// Size of a JSON text that is certainly within both limits. Two bytes have at most one leaf and
/// one array, a key that makes their pointers longer leaves room for fewer of them, and numbers
/// grow by less than the rest.
const SAFE_BYTES: usize = 2048;

/// Reason why policies cannot see the arguments.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Unshowable {
    #[error(
        "the arguments have more than {MAX_LEAVES} values, the most that policies can evaluate"
    )]
    TooMany,
    #[error(
        "the arguments with the keys that lead to each of them exceed {} MiB, the most that \
        policies can evaluate",
        MAX_BYTES / 1024 / 1024
    )]
    TooLarge,
    #[error("the arguments have a number with more digits than policies can evaluate")]
    Inexact,
    #[error("a key of the arguments differs only in case from one that a policy names")]
    Misspelled,
    #[error(
        "two keys of one object in the arguments differ only in case, and a policy may use either"
    )]
    CaseTwins,
    #[error("a path in the arguments contains NUL, which a file name cannot contain")]
    NulInPath,
    #[error(
        "a `file:` URL can be read as more than one path: write it without query, fragment, \
         backslashes and `..`, as file:///PATH"
    )]
    Ambiguous,
}

/// Scalar in the arguments, or an empty array or object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leaf {
    /// JSON pointer (RFC 6901).
    pub pointer: String,
    /// Value; `[]` and `{}` for an empty array and an empty object.
    pub value: String,
    /// Whether it is a string, and not a number, a boolean, null or empty.
    is_string: bool,
}

impl Leaf {
    /// Value of a string.
    pub fn text(&self) -> Option<&str> {
        self.is_string.then_some(&*self.value)
    }
}

/// Array in the arguments.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct List {
    /// JSON pointer (RFC 6901).
    pub pointer: String,
    /// Number of elements of any type.
    pub length: usize,
}

/// Arguments of one message, in the order of the text.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Arguments {
    pub leaves: Vec<Leaf>,
    pub lists: Vec<List>,
}

impl Arguments {
    /// # Errors
    /// [`Unshowable::TooMany`] and [`Unshowable::TooLarge`].
    pub fn of(args: &Map<String, Value>) -> Result<Self, Unshowable> {
        let mut found = Self::default();
        each_part(args, |pointer, part| {
            let pointer = pointer.to_owned();
            match part {
                Part::Leaf { value, is_string } => {
                    found.leaves.push(Leaf { pointer, value: value.into_owned(), is_string });
                }
                Part::List(length) => found.lists.push(List { pointer, length }),
            }
        })?;
        Ok(found)
    }
}

/// Part that [`each_part`] visits.
enum Part<'a> {
    Leaf { value: Cow<'a, str>, is_string: bool },
    List(usize),
}

/// Visits every leaf and every array with its pointer, within the limits. An empty array is both.
fn each_part<'a>(
    args: &'a Map<String, Value>,
    mut show: impl FnMut(&str, Part<'a>),
) -> Result<(), Unshowable> {
    enum Children<'a> {
        Object(serde_json::map::Iter<'a>),
        Array(std::iter::Enumerate<std::slice::Iter<'a, Value>>),
    }
    let mut count = 0;
    let mut bytes = 0_usize;
    let mut take = |more: usize| {
        bytes = bytes.saturating_add(more);
        if bytes > MAX_BYTES { Err(Unshowable::TooLarge) } else { Ok(()) }
    };
    let mut pointer = String::new();
    // An explicit stack: nesting is limited before, but a stack overflow must not depend on that.
    // Each level stores the pointer's length above it.
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
        if let Some(Value::Array(items)) = child {
            take(pointer.len())?;
            show(&pointer, Part::List(items.len()));
        }
        let is_string = matches!(child, Some(Value::String(_)));
        let value = match child {
            None => {
                stack.pop();
                continue;
            }
            Some(Value::Object(members)) if members.is_empty() => Cow::Borrowed("{}"),
            Some(Value::Object(members)) => {
                stack.push((pointer.len(), Children::Object(members.iter())));
                continue;
            }
            Some(Value::Array(items)) if items.is_empty() => Cow::Borrowed("[]"),
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
        take(pointer.len().saturating_add(value.len()))?;
        show(&pointer, Part::Leaf { value, is_string });
    }
    Ok(())
}

/// Whether policies can see all values of `params`: the number of leaves is within the limit, and
/// every number is exact. Counts only, because it runs for every message.
pub fn are_showable(params: &Value, written: &[u8]) -> bool {
    let few = written.len() <= SAFE_BYTES
        || params.as_object().is_none_or(|params| each_part(params, |_, _| ()).is_ok());
    few && exact(written).is_ok()
}

pub fn push_token(pointer: &mut String, token: &str) {
    pointer.push('/');
    for char in token.chars() {
        match char {
            '~' => pointer.push_str("~0"),
            '/' => pointer.push_str("~1"),
            char => pointer.push(char),
        }
    }
}

/// Checks that policies see every number of a JSON text with its exact value. A parsed number is a
/// 64-bit integer or a double; the server parses the text, and may use all of its digits.
pub fn exact(json: &[u8]) -> Result<(), Unshowable> {
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

/// Text after the string whose first quote has been read.
fn past_string(mut rest: &[u8]) -> &[u8] {
    while let Some(at) = memchr::memchr2(b'"', b'\\', rest) {
        if rest[at] == b'"' {
            return &rest[at + 1..];
        }
        rest = rest.get(at + 2..).unwrap_or_default();
    }
    &[]
}

fn survives(number: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(number) else { return false };
    let Ok(number) = text.parse::<Number>() else { return false };
    let value = value(text);
    value.is_some() && value == self::value(&canonical(&number))
}

/// Value of a decimal: whether it is negative, its digits without zeros at either end, and the
/// power of ten of the last one. `None` if the exponent is out of any reasonable range.
fn value(text: &str) -> Option<(bool, String, i64)> {
    let (mantissa, exponent) = text.split_once(['e', 'E']).unwrap_or((text, "0"));
    let (negative, mantissa) = match mantissa.strip_prefix('-') {
        Some(mantissa) => (true, mantissa),
        None => (false, mantissa),
    };
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let digits = format!("{whole}{fraction}");
    let digits = digits.trim_start_matches('0');
    let significant = digits.trim_end_matches('0');
    if significant.is_empty() {
        return Some((false, String::new(), 0));
    }
    let zeros = i64::try_from(digits.len() - significant.len()).ok()?;
    let places = i64::try_from(fraction.len()).ok()?;
    let exponent = exponent.parse::<i64>().ok()?.checked_add(zeros)?.checked_sub(places)?;
    Some((negative, significant.to_owned(), exponent))
}

/// Canonical text of a number: `50`, `50.0` and `5e1` are all `50`. Plain decimal without exponent.
/// A value that no 64-bit integer holds is the nearest double, in the shortest decimal that parses
/// to it: see [`exact`].
///
/// Two decimals of the same length may be equally near (-608775385858597.2 and .3 both represent a
/// double that ends in .25). serde_json writes the one with the even digit, as JavaScript and
/// Python do; `f64`'s own `Display` rounds up, which would refuse the numbers of such clients.
pub fn canonical(number: &Number) -> String {
    if let Some(integer) = number.as_i64() {
        return integer.to_string();
    }
    if let Some(integer) = number.as_u64() {
        return integer.to_string();
    }
    if number.as_f64() == Some(0.0) {
        return "0".to_owned();
    }
    plain_decimal(&number.to_string())
}

/// Decimal without exponent, and without zeros at the end of the fraction.
fn plain_decimal(text: &str) -> String {
    let (mantissa, exponent) = text.split_once(['e', 'E']).unwrap_or((text, "0"));
    let (sign, mantissa) = match mantissa.strip_prefix('-') {
        Some(mantissa) => ("-", mantissa),
        None => ("", mantissa),
    };
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let fraction = fraction.trim_end_matches('0');
    // A double's exponent has at most three digits.
    let Ok(exponent) = exponent.parse::<i16>() else { return text.to_owned() };
    let digits = format!("{whole}{fraction}");
    let point = whole.len() as i64 + i64::from(exponent);
    let zeros = |count: i64| "0".repeat(usize::try_from(count).unwrap_or(0));
    let (whole, fraction) = match usize::try_from(point) {
        Ok(point) if point < digits.len() => digits.split_at(point),
        Ok(_) => {
            let zeros = zeros(point - digits.len() as i64);
            return format!("{sign}{}{zeros}", digits.trim_start_matches('0'));
        }
        Err(_) => return format!("{sign}0.{}{digits}", zeros(-point)),
    };
    let whole = whole.trim_start_matches('0');
    format!("{sign}{}.{fraction}", if whole.is_empty() { "0" } else { whole })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn pairs(args: &Map<String, Value>) -> Vec<(String, String)> {
        let leaves = Arguments::of(args).unwrap().leaves;
        leaves.into_iter().map(|leaf| (leaf.pointer, leaf.value)).collect()
    }

    fn of(value: &Value) -> Vec<(String, String)> {
        pairs(value.as_object().unwrap())
    }

    #[test]
    fn numbers_have_one_canonical_text() {
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
            ("1e-1", "0.1"),
            ("1.5e-7", "0.00000015"),
            ("-123456.789", "-123456.789"),
            ("9007199254740993.0", "9007199254740992"),
            ("1.25e21", "1250000000000000000000"),
            // The double ends in .25; .2 and .3 are equally near.
            ("-608775385858597.2", "-608775385858597.2"),
            ("608775385858597.3", "608775385858597.2"),
        ] {
            let value: Value = serde_json::from_str(&format!(r#"{{"n": {json}}}"#)).unwrap();
            assert_eq!(of(&value), [("/n".to_owned(), text.to_owned())], "{json}");
        }
    }

    #[test]
    fn inexact_numbers_are_refused() {
        for json in [
            r#"{"a": [0, -0.0, 0e5, 50.0, 5E+1, 1e-3, 0.1, 1e20, 1.5e300], "b": -0.25}"#,
            "[18446744073709551615, -9223372036854775808, 9007199254740993]",
            "[0.30000000000000004, 5e-324, 100000000000000000000]",
            // The shortest decimal of a double that lies between two of them, as JSON writers
            // choose it.
            "[-608775385858597.2, 608775385858597.2, 1152921504606846.8]",
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
    fn pointers_are_escaped_and_empty_containers_are_leaves() {
        let value = json!({
            "a/b": {"~1": "x"}, "": [null, [], {}, [true]], "ключ": {"\u{1f512}": ""},
        });
        let expected = [
            ("/a~1b/~01", "x"),
            ("//0", "null"),
            ("//1", "[]"),
            ("//2", "{}"),
            ("//3/0", "true"),
            ("/ключ/\u{1f512}", ""),
        ];
        assert_eq!(of(&value), expected.map(|(a, b)| (a.to_owned(), b.to_owned())));
    }

    #[test]
    fn lists_have_the_lengths_of_arrays_only() {
        let lengths = |value: Value| {
            let lists = Arguments::of(value.as_object().unwrap()).unwrap().lists;
            lists.into_iter().map(|list| (list.pointer, list.length)).collect::<Vec<_>>()
        };
        for (value, expected) in [
            (json!({}), vec![]),
            (json!({ "l": "ok" }), vec![]),
            (json!({ "l": { "0": "ok" } }), vec![]),
            (json!({ "l": ["ok"] }), vec![("/l", 1)]),
            (json!({ "l": ["ok", {}] }), vec![("/l", 2)]),
            (json!({ "l": ["ok", []] }), vec![("/l", 2), ("/l/1", 0)]),
            (
                json!({ "l": [[["ok"]], { "a": [] }] }),
                vec![("/l", 2), ("/l/0", 1), ("/l/0/0", 1), ("/l/1/a", 0)],
            ),
        ] {
            let expected: Vec<_> = expected
                .into_iter()
                .map(|(pointer, length)| (pointer.to_owned(), length))
                .collect();
            assert_eq!(lengths(value.clone()), expected, "{value}");
        }
    }

    #[test]
    fn depth_does_not_overflow_the_stack() {
        // Built and dropped iteratively: serde_json's own parse and drop are recursive.
        let mut value = json!("leaf");
        for _ in 0..100_000 {
            value = Value::Object(Map::from_iter([(String::new(), value)]));
        }
        let mut args = Map::from_iter([("a".to_owned(), value)]);
        let found = pairs(&args);
        assert_eq!((found.len(), found[0].0.len()), (1, 2 + 100_000));
        let mut rest = args.remove("a");
        while let Some(Value::Object(mut members)) = rest {
            rest = members.remove("");
        }
    }

    #[test]
    fn too_many_leaves_are_an_error() {
        let array = |length| Map::from_iter([("a".to_owned(), Value::from(vec![1; length]))]);
        assert_eq!(pairs(&array(MAX_LEAVES)).len(), MAX_LEAVES);
        assert_eq!(Arguments::of(&array(MAX_LEAVES + 1)), Err(Unshowable::TooMany));
        let empty = Value::from(vec![json!({}); MAX_LEAVES + 1]);
        let empty = Map::from_iter([("a".to_owned(), empty)]);
        assert_eq!(Arguments::of(&empty), Err(Unshowable::TooMany));
    }

    #[test]
    fn long_key_over_many_values_is_too_large() {
        let under = |key: usize, values: usize| {
            let value = Value::from(vec![0; values]);
            Map::from_iter([("k".repeat(key), value)])
        };
        let large = under(100_000, MAX_LEAVES);
        assert_eq!(Arguments::of(&large), Err(Unshowable::TooLarge));
        let written = Value::from(large.clone()).to_string();
        assert!(!are_showable(&Value::from(large), written.as_bytes()));
        // Within the limit, both agree.
        let small = under(700, MAX_LEAVES);
        assert_eq!(pairs(&small).len(), MAX_LEAVES);
        let written = Value::from(small.clone()).to_string();
        assert!(are_showable(&Value::from(small), written.as_bytes()));
        // The last byte counts.
        let text = |bytes: usize| Map::from_iter([("a".to_owned(), "x".repeat(bytes).into())]);
        assert!(Arguments::of(&text(MAX_BYTES - 2)).is_ok());
        assert_eq!(Arguments::of(&text(MAX_BYTES - 1)), Err(Unshowable::TooLarge));
    }

    #[test]
    fn few_bytes_are_within_all_bounds() {
        let most = |text: &str| {
            let value: Value = serde_json::from_str(text).unwrap();
            each_part(value.as_object().unwrap(), |_, _| ())
        };
        for (key, value) in [("~", "0"), ("k", "1e308"), ("~", "[]"), ("~", "{}"), ("~", "[[]]")] {
            for share in 1..10 {
                let key = key.repeat(SAFE_BYTES * share / 10);
                let values = (SAFE_BYTES - key.len() - 8) / (value.len() + 1);
                let text = format!(r#"{{"{key}":[{}]}}"#, vec![value; values].join(","));
                assert!(text.len() <= SAFE_BYTES);
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
            // Quarters, half of which lie between two shortest decimals.
            (1_u64 << 52..1 << 53).prop_map(|quarters| Value::from(quarters as f64 / 4.0)),
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

    fn leaves(value: &Value) -> usize {
        match value {
            Value::Array(items) if !items.is_empty() => items.iter().map(leaves).sum(),
            Value::Object(members) if !members.is_empty() => members.values().map(leaves).sum(),
            _ => 1,
        }
    }

    proptest! {
        #[test]
        fn numbers_that_survive_parsing_are_exact(value in json()) {
            prop_assert_eq!(exact(value.to_string().as_bytes()), Ok(()));
        }

        #[test]
        fn tags_mirror_the_leaves(value in json()) {
            let args = Map::from_iter([("args".to_owned(), value)]);
            let found = pairs(&args);
            let args = Value::Object(args);
            // As many as there are scalars and empty containers, each with a distinct pointer that
            // serde_json's own pointer lookup resolves.
            prop_assert_eq!(found.len(), leaves(&args));
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
                    Value::Array(items) => {
                        prop_assert!(items.is_empty());
                        prop_assert_eq!(text, "[]");
                    }
                    Value::Object(members) => {
                        prop_assert!(members.is_empty());
                        prop_assert_eq!(text, "{}");
                    }
                }
            }
        }
    }
}
