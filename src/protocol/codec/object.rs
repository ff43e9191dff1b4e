//! JSON object as text with the positions of its members: unedited parts stay byte for byte.

use std::{fmt, ops::Range};

use bytes::{BufMut, Bytes, BytesMut};
use serde::de::{Deserializer as _, MapAccess, Visitor};
use serde_json::value::RawValue;
use smol_str::SmolStr;

use super::strict::{Flaw, Key};

/// Text of an object, with the positions of its members.
#[derive(Debug, Clone)]
pub struct Object {
    raw: Bytes,
    members: Vec<Member>,
}

#[derive(Debug, Clone)]
struct Member {
    /// Most keys are short, so they need no allocation.
    key: SmolStr,
    /// Position of the key's opening quote.
    start: usize,
    value: Range<usize>,
}

impl Default for Object {
    /// An object without members.
    fn default() -> Self {
        Self { raw: Bytes::from_static(b"{}"), members: Vec::new() }
    }
}

impl Object {
    /// Members of a text. The text should have passed [`check`](super::check): of a duplicate key,
    /// both are kept, and [`get`](Self::get) returns the first.
    ///
    /// # Errors
    /// [`Flaw`] if the text is not an object.
    pub fn parse(raw: Bytes) -> Result<Self, Flaw> {
        let text = std::str::from_utf8(&raw).map_err(|_| Flaw::NotUtf8)?;
        let mut parser = serde_json::Deserializer::from_str(text);
        let members = parser
            .deserialize_map(Members { text })
            .and_then(|members| parser.end().map(|()| members))
            .map_err(|error| {
                if error.is_data() {
                    Flaw::Shape("expected a JSON object")
                } else {
                    Flaw::Syntax { line: error.line(), column: error.column() }
                }
            })?;
        Ok(Self { raw, members })
    }

    /// Whole text.
    pub fn raw(&self) -> &Bytes {
        &self.raw
    }

    /// Text of a member's value.
    pub fn get(&self, key: &str) -> Option<Bytes> {
        self.members.iter().find(|m| &*m.key == key).map(|m| self.raw.slice(m.value.clone()))
    }

    /// Value of a member that is a string.
    pub fn string(&self, key: &str) -> Option<String> {
        serde_json::from_slice(&self.get(key)?).ok()
    }

    /// Value of a member that is an object.
    pub fn object(&self, key: &str) -> Option<Object> {
        Object::parse(self.get(key)?).ok()
    }

    /// Keys, in order.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.members.iter().map(|m| &*m.key)
    }

    /// Keys with the positions of their values in the text, in order.
    pub fn members(&self) -> impl Iterator<Item = (&str, Range<usize>)> {
        self.members.iter().map(|m| (&*m.key, m.value.clone()))
    }

    /// Text with members replaced, appended (`Some`) or removed (`None`). The rest is unchanged,
    /// except for white space between members where one is appended or removed.
    pub fn with(&self, edits: &[(&str, Option<&[u8]>)]) -> Bytes {
        let edit = |key: &str| edits.iter().find(|(k, _)| *k == key).map(|(_, value)| *value);
        let removes = self.members.iter().any(|m| edit(&m.key) == Some(None));
        let adds: Vec<_> = edits
            .iter()
            .filter_map(|(key, value)| value.map(|value| (*key, value)))
            .filter(|(key, _)| !self.members.iter().any(|m| &*m.key == *key))
            .collect();

        let mut out = BytesMut::with_capacity(
            self.raw.len()
                + edits.iter().map(|(k, v)| k.len() + v.map_or(0, <[u8]>::len) + 4).sum::<usize>(),
        );
        if !removes && adds.is_empty() {
            let mut done = 0;
            for member in &self.members {
                if let Some(Some(value)) = edit(&member.key) {
                    out.put_slice(&self.raw[done..member.value.start]);
                    out.put_slice(value);
                    done = member.value.end;
                }
            }
            out.put_slice(&self.raw[done..]);
            return out.freeze();
        }
        let mut separator = b'{';
        for member in &self.members {
            let value = match edit(&member.key) {
                Some(None) => continue,
                Some(Some(value)) => value,
                None => &self.raw[member.value.clone()],
            };
            out.put_u8(separator);
            out.put_slice(&self.raw[member.start..member.value.start]);
            out.put_slice(value);
            separator = b',';
        }
        for (key, value) in adds {
            out.put_u8(separator);
            out.put_slice(serde_json::Value::from(key).to_string().as_bytes());
            out.put_u8(b':');
            out.put_slice(value);
            separator = b',';
        }
        if separator == b'{' {
            out.put_u8(b'{');
        }
        out.put_u8(b'}');
        out.freeze()
    }
}

/// Whether a JSON text may contain this key, at any depth. `false` is certain: without an escape, a
/// key appears literally. Checking this first spares most texts a walk for a rare key.
pub fn may_have(text: &[u8], key: &str) -> bool {
    memchr::memmem::find(text, key.as_bytes()).is_some() || memchr::memchr(b'\\', text).is_some()
}

struct Members<'a> {
    text: &'a str,
}

impl<'de: 'a, 'a> Visitor<'de> for Members<'a> {
    type Value = Vec<Member>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Vec<Member>, A::Error> {
        let mut members = Vec::new();
        let base = self.text.as_ptr() as usize;
        let mut end = 0;
        while let Some((Key(key), value)) = map.next_entry::<Key<'de>, &'de RawValue>()? {
            // Between two members are only white space and a comma (at the beginning, an opening
            // brace).
            let start = self.text[end..].find('"').map_or(end, |at| end + at);
            let from = value.get().as_ptr() as usize - base;
            end = from + value.get().len();
            members.push(Member { key: SmolStr::new(key), start, value: from..end });
        }
        Ok(members)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Map, Value};

    use super::*;

    fn object(text: &str) -> Object {
        Object::parse(Bytes::copy_from_slice(text.as_bytes())).unwrap()
    }

    fn with(text: &str, edits: &[(&str, Option<&str>)]) -> String {
        let edits: Vec<_> = edits.iter().map(|(k, v)| (*k, v.map(str::as_bytes))).collect();
        String::from_utf8(object(text).with(&edits).to_vec()).unwrap()
    }

    #[test]
    fn members_are_replaced_added_and_removed() {
        let text = "{ \"a\" : 1.0 , \"b\":\t[2], \"\\u0063\":{} }";
        assert_eq!(with(text, &[]), text);
        assert_eq!(with(text, &[("a", Some("50.00"))]), text.replace("1.0", "50.00"));
        assert_eq!(with(text, &[("c", Some("null"))]), text.replace("{} }", "null }"));
        assert_eq!(with(text, &[("b", None)]), "{\"a\" : 1.0,\"\\u0063\":{}}");
        assert_eq!(with(text, &[("a", None), ("b", None), ("c", None)]), "{}");
        assert_eq!(with("{}", &[("x", Some("1"))]), "{\"x\":1}");
        assert_eq!(with("{}", &[("x", None)]), "{}");
        assert_eq!(with("{\"a\":1}", &[("x\"", Some("1"))]), "{\"a\":1,\"x\\\"\":1}");
    }

    #[test]
    fn existing_key_is_never_missed() {
        for (text, may) in [
            (r#"{"a":{"token":1}}"#, true),
            (r#"{"a":{"t\u006fken":1}}"#, true),
            (r#"{"a":"a \"word\""}"#, true),
            (r#"{"a":"word"}"#, false),
        ] {
            assert_eq!(may_have(text.as_bytes(), "token"), may, "{text}");
        }
    }

    #[test]
    fn other_values_are_refused() {
        for text in ["[]", "1", "\"a\"", "null"] {
            let flaw = Object::parse(Bytes::copy_from_slice(text.as_bytes())).unwrap_err();
            assert_eq!(flaw, Flaw::Shape("expected a JSON object"), "{text}");
        }
        assert!(matches!(Object::parse(Bytes::from_static(b"{")), Err(Flaw::Syntax { .. })));
    }

    proptest! {
        #[test]
        fn edits_equal_those_of_a_map(
            members in proptest::collection::vec(("[a-e\"\\\\é]{0,3}", "[a-z\"\\\\]{0,5}"), 0..6),
            edits in proptest::collection::vec(("[a-e]{0,2}", proptest::option::of(0..99u8)), 0..4),
        ) {
            let mut map: Map<String, Value> =
                members.into_iter().map(|(k, v)| (k, Value::from(v))).collect();
            let text = serde_json::to_string_pretty(&map).unwrap();
            let mut edits = edits;
            edits.dedup_by(|a, b| a.0 == b.0);
            edits.sort();
            edits.dedup_by(|a, b| a.0 == b.0);
            let values: Vec<_> =
                edits.iter().map(|(k, v)| (k.as_str(), v.map(|v| v.to_string()))).collect();
            let slices: Vec<_> =
                values.iter().map(|(k, v)| (*k, v.as_ref().map(|v| v.as_bytes()))).collect();
            let edited = object(&text).with(&slices);
            for (key, value) in edits {
                match value {
                    Some(value) => { map.insert(key, value.into()); }
                    None => { map.remove(&key); }
                }
            }
            let got: Map<String, Value> = serde_json::from_slice(&edited).unwrap();
            prop_assert_eq!(&got, &map);
        }
    }
}
