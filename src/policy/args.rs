//! Arguments as policies see them: every scalar leaf as text, under its JSON pointer.

use serde_json::{Map, Number, Value};

/// Leaves that are shown to policies. A message with more is refused where a policy looks at
/// arguments at all: to show only some would let the others pass unseen.
pub(super) const MAX_LEAVES: usize = 10_000;

/// More leaves than [`MAX_LEAVES`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the arguments hold more than {MAX_LEAVES} values, which is more than policies are shown")]
pub(super) struct TooMany;

/// All leaves of an object, in its order, by JSON pointer (RFC 6901). Empty arrays and objects
/// have none.
pub(super) fn leaves(args: &Map<String, Value>) -> Result<Vec<(String, String)>, TooMany> {
    enum Children<'a> {
        Object(serde_json::map::Iter<'a>),
        Array(std::iter::Enumerate<std::slice::Iter<'a, Value>>),
    }
    let mut found = Vec::new();
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
        let text = match child {
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
            Some(Value::String(text)) => text.clone(),
            Some(Value::Number(number)) => canonical(number),
            Some(Value::Bool(value)) => value.to_string(),
            Some(Value::Null) => "null".to_owned(),
        };
        if found.len() == MAX_LEAVES {
            return Err(TooMany);
        }
        found.push((pointer.clone(), text));
    }
    Ok(found)
}

fn push_token(pointer: &mut String, token: &str) {
    pointer.push('/');
    for char in token.chars() {
        match char {
            '~' => pointer.push_str("~0"),
            '/' => pointer.push_str("~1"),
            char => pointer.push(char),
        }
    }
}

/// One text for one number, however it was written: `50`, `50.0` and `5e1` are all `50`. Plain
/// decimal, without exponent. What no 64-bit integer holds is the nearest double.
fn canonical(number: &Number) -> String {
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
