//! Batches: several messages in one array, which only revision 2025-03-26 has.

use std::fmt;

use bytes::Bytes;
use serde::de::{Deserializer as _, Error as _, SeqAccess, Visitor};
use serde_json::value::RawValue;

use super::{Caps, Flaw, Text, check};

/// Whether a text begins like an array.
pub fn is_batch(text: &[u8]) -> bool {
    text.iter().find(|b| !b.is_ascii_whitespace()) == Some(&b'[')
}

/// Elements of a batch of at most `most`, each as received. [`Frame::parse`](super::Frame::parse)
/// checks whether each is a message. The limits are those of one message, and apply to all elements
/// together.
///
/// # Errors
/// A [`Flaw`] if the text exceeds a limit, has a duplicate key, is not an array, or has no or too
/// many elements.
pub fn elements(text: &Bytes, most: usize, caps: Caps) -> Result<Vec<Bytes>, Flaw> {
    check(text, Text::Value, caps)?;
    let str = std::str::from_utf8(text).map_err(|_| Flaw::NotUtf8)?;
    let mut parser = serde_json::Deserializer::from_str(str);
    let found = parser
        .deserialize_seq(Elements { most })
        .and_then(|found| parser.end().map(|()| found))
        .map_err(|error| match error.is_data() {
            true => Flaw::TooMany(most),
            false => Flaw::Syntax { line: error.line(), column: error.column() },
        })?;
    if found.is_empty() {
        return Err(Flaw::Shape("a batch must have at least one message"));
    }
    Ok(found.into_iter().map(|element| text.slice_ref(element.get().as_bytes())).collect())
}

struct Elements {
    most: usize,
}

impl<'de> Visitor<'de> for Elements {
    type Value = Vec<&'de RawValue>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "an array of at most {} messages", self.most)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
        let mut found = Vec::new();
        while let Some(element) = seq.next_element()? {
            if found.len() == self.most {
                return Err(A::Error::custom("too many messages"));
            }
            found.push(element);
        }
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split(text: &'static str) -> Result<Vec<Bytes>, Flaw> {
        let caps = Caps { bytes: 100, depth: 8, nodes: 20, keys: 4, object_keys: 4 };
        elements(&Bytes::from_static(text.as_bytes()), 2, caps)
    }

    #[test]
    fn elements_stay_unchanged() {
        let text = " [ {\"a\": 1.0 } ,\n7 ] ";
        assert!(is_batch(text.as_bytes()));
        assert_eq!(split(text).unwrap(), ["{\"a\": 1.0 }", "7"]);
        assert_eq!(split("[1,2,3]"), Err(Flaw::TooMany(2)));
        assert!(matches!(split("[]"), Err(Flaw::Shape(_))));
        for broken in ["[1", "[1,]", "[1] 2", "[1}", "["] {
            assert!(matches!(split(broken), Err(Flaw::Syntax { .. })), "{broken}");
        }
        assert!(!is_batch(b"{}") && !is_batch(b""));
    }

    #[test]
    fn limits_apply_to_all_elements_together() {
        assert!(split(r#"[{"a":1,"b":2},{"a":1,"b":2}]"#).is_ok());
        let more = split(r#"[{"a":1,"b":2},{"a":1,"b":2,"c":3}]"#);
        assert_eq!(more, Err(Flaw::TooManyKeys(4)));
        assert_eq!(split(r#"[{"a":1,"a":2},7]"#), Err(Flaw::DuplicateKey));
    }
}
