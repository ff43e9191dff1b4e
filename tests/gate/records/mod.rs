//! What happens, and the record that there is of it.

mod events;
mod kept;
mod messages;

use serde_json::Value;

/// Whether all that is wanted is there. `"*"` stands for anything that is there.
fn is_like(found: &Value, wanted: &Value) -> bool {
    match (found, wanted) {
        (Value::Null, Value::String(any)) if any == "*" => false,
        (_, Value::String(any)) if any == "*" => true,
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

/// The first record like this.
#[track_caller]
fn one<'r>(records: &'r [Value], wanted: &Value) -> &'r Value {
    match like(records, wanted).first() {
        Some(found) => found,
        None => panic!("no record is like {wanted:#}\nin {records:#?}"),
    }
}
