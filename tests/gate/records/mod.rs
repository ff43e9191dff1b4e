//! Records of messages and events.

mod events;
mod kept_bodies;
mod messages;

pub use kept_bodies::files;
use serde_json::Value;

/// Whether all that is wanted is there. `"*"` stands for anything that says something, `"#"` for any
/// number.
fn is_like(found: &Value, wanted: &Value) -> bool {
    match (found, wanted) {
        (found, Value::String(any)) if any == "*" => match found {
            Value::Null | Value::Bool(false) => false,
            Value::Bool(true) => true,
            Value::Number(number) => number.as_f64() != Some(0.0),
            Value::String(text) => !text.is_empty(),
            Value::Array(items) => !items.is_empty(),
            Value::Object(members) => !members.is_empty(),
        },
        (found, Value::String(any)) if any == "#" => found.is_number(),
        (Value::Object(found), Value::Object(wanted)) => wanted
            .iter()
            .all(|(name, value)| is_like(found.get(name).unwrap_or(&Value::Null), value)),
        (Value::Array(found), Value::Array(wanted)) => {
            found.len() == wanted.len() && found.iter().zip(wanted).all(|(f, w)| is_like(f, w))
        }
        (found, wanted) => found == wanted,
    }
}

/// The records that are like this.
fn like<'r>(records: &'r [Value], wanted: &Value) -> Vec<&'r Value> {
    records.iter().filter(|record| is_like(record, wanted)).collect()
}

/// The one record like this.
#[track_caller]
fn one<'r>(records: &'r [Value], wanted: &Value) -> &'r Value {
    match like(records, wanted)[..] {
        [found] => found,
        [] => panic!("no record is like {wanted:#}\nin {records:#?}"),
        ref several => panic!("more than one record is like {wanted:#}: {several:#?}"),
    }
}

/// The first of the records like this.
#[track_caller]
fn any<'r>(records: &'r [Value], wanted: &Value) -> &'r Value {
    match like(records, wanted).first() {
        Some(found) => found,
        None => panic!("no record is like {wanted:#}\nin {records:#?}"),
    }
}
