//! JSON that every parser reads as one and the same.

use std::{collections::HashSet, fmt};

use serde::de::{self, Deserialize, DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

/// Reads JSON in which no object has a key twice: parsers disagree on which of the two counts.
pub(crate) fn read(bytes: &[u8]) -> Result<Value, String> {
    serde_json::from_slice::<Strict>(bytes).map(|Strict(value)| value).map_err(|error| {
        // The error's own words repeat what is there.
        let what = match error.classify() {
            serde_json::error::Category::Data => "it has a key twice",
            _ => "it is no JSON",
        };
        format!("{what}: line {}, column {}", error.line(), error.column())
    })
}

/// Whether keys of this object differ by case alone: Go's parser, which cosign has, takes those for
/// one.
pub(crate) fn ambiguous(object: &Map<String, Value>) -> bool {
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

    fn visit_f64<E>(self, number: f64) -> Result<Value, E> {
        Ok(number.into())
    }

    fn visit_str<E>(self, text: &str) -> Result<Value, E> {
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
    fn a_key_that_stands_twice_is_refused_at_any_depth() {
        for good in ["{}", r#"[1,-1,0.5,null,true,"x",{"a":{"a":1}}]"#] {
            assert_eq!(read(good.as_bytes()), Ok(serde_json::from_str(good).unwrap()));
        }
        for bad in [r#"{"a":1,"a":1}"#, r#"[{"x":[{"a":1,"\u0061":2}]}]"#] {
            assert!(read(bad.as_bytes()).unwrap_err().contains("a key twice"), "{bad}");
        }
        let deep = "[".repeat(100_000);
        for bad in ["", "{", "{} {}", "\u{feff}{}", deep.as_str()] {
            assert!(read(bad.as_bytes()).unwrap_err().contains("no JSON"));
        }
        let ambiguous = |text: &str| ambiguous(read(text.as_bytes()).unwrap().as_object().unwrap());
        assert!(ambiguous(r#"{"subject":1,"Subject":2}"#));
        assert!(ambiguous(r#"{"subject":1,"\u017fubject":2}"#));
        assert!(!ambiguous(r#"{"subject":1,"subjects":2}"#));
    }
}
