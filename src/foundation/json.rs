//! Unambiguous JSON: parsers disagree about objects with duplicate keys. For documents that are
//! parsed as a whole; messages have their own strict parser.

use std::{collections::HashSet, fmt};

use serde::de::{self, Deserialize, DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value, error::Category};

/// Text that cannot be parsed. The error repeats nothing of the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Unreadable {
    #[error("it has a duplicate key: line {line}, column {column}")]
    Twice { line: usize, column: usize },
    #[error("it is not JSON: line {line}, column {column}")]
    NotJson { line: usize, column: usize },
}

/// Parses JSON without duplicate keys. The parser limits the depth.
///
/// # Errors
/// [`Unreadable`].
pub fn read(bytes: &[u8]) -> Result<Value, Unreadable> {
    serde_json::from_slice::<Strict>(bytes).map(|Strict(value)| value).map_err(|error| {
        let (line, column) = (error.line(), error.column());
        match error.classify() {
            Category::Data => Unreadable::Twice { line, column },
            _ => Unreadable::NotJson { line, column },
        }
    })
}

/// Whether keys of this object differ only in case. Go's parser treats them as equal.
pub fn ambiguous(object: &Map<String, Value>) -> bool {
    let mut seen = HashSet::new();
    !object.keys().all(|key| seen.insert(key.to_uppercase().to_lowercase()))
}

struct Strict(Value);

impl<'de> Deserialize<'de> for Strict {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Reading).map(Self)
    }
}

struct Reading;

impl<'de> DeserializeSeed<'de> for Reading {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Reading {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, flag: bool) -> Result<Value, E> {
        Ok(flag.into())
    }

    fn visit_i64<E>(self, number: i64) -> Result<Value, E> {
        Ok(number.into())
    }

    fn visit_u64<E>(self, number: u64) -> Result<Value, E> {
        Ok(number.into())
    }

    fn visit_f64<E: de::Error>(self, number: f64) -> Result<Value, E> {
        Number::from_f64(number).map(Value::Number).ok_or_else(|| E::custom("not a finite number"))
    }

    fn visit_str<E>(self, text: &str) -> Result<Value, E> {
        Ok(text.into())
    }

    fn visit_string<E>(self, text: String) -> Result<Value, E> {
        Ok(text.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Value, A::Error> {
        let mut all = Vec::new();
        while let Some(one) = list.next_element_seed(Reading)? {
            all.push(one);
        }
        Ok(all.into())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut all = Map::new();
        while let Some(key) = map.next_key::<String>()? {
            let value = map.next_value_seed(Reading)?;
            if all.insert(key, value).is_some() {
                return Err(de::Error::custom("a key twice"));
            }
        }
        Ok(all.into())
    }
}

#[cfg(test)]
mod tests {

    use super::*;

    #[test]
    fn duplicate_key_is_refused_at_any_depth() {
        for good in ["{}", r#"[1,-1,0.5,null,true,"x",{"a":{"a":1}}]"#, r#"{"a":1,"A":1}"#] {
            assert_eq!(read(good.as_bytes()), Ok(serde_json::from_str(good).unwrap()));
        }
        for bad in
            [r#"{"a":1,"a":1}"#, r#"{"a":1,"\u0061":1}"#, r#"[{"x":[{"a":1,"c":2,"\u0061":2}]}]"#]
        {
            let unread = read(bad.as_bytes()).unwrap_err();
            assert!(matches!(unread, Unreadable::Twice { .. }), "{bad}: {unread}");
        }
        let deep = "[".repeat(100_000);
        for bad in ["", "{", "{} {}", r#"{"a":1}}"#, "\u{feff}{}", "1e999", deep.as_str()] {
            let unread = read(bad.as_bytes()).unwrap_err();
            assert!(matches!(unread, Unreadable::NotJson { .. }), "{unread}");
        }
        assert_eq!(
            read(b"{\"a\":1,\n\"a\":2}").unwrap_err().to_string(),
            "it has a duplicate key: line 2, column 6"
        );
    }

    #[test]
    fn keys_that_differ_in_case_are_found() {
        let ambiguous = |text: &str| ambiguous(read(text.as_bytes()).unwrap().as_object().unwrap());
        assert!(ambiguous(r#"{"subject":1,"Subject":2}"#));
        assert!(ambiguous(r#"{"subject":1,"\u017fubject":2}"#));
        assert!(!ambiguous(r#"{"subject":1,"subjects":2}"#));
    }
}
