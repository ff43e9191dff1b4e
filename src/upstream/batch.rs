//! Batches: one text of a server with several messages, in revision 2025-03-26 only.

use bytes::Bytes;
use serde_json::value::RawValue;

use portcullis_protocol::{
    codec::{Caps, Flaw, Text, check},
    exchange::Revision,
};

/// Splits a text of a server into the texts of its messages.
///
/// # Errors
/// A [`Flaw`] for an array in any other revision, and for an empty array.
pub(super) fn messages(
    text: Bytes,
    caps: Caps,
    revision: Option<Revision>,
) -> Result<Vec<Bytes>, Flaw> {
    if text.iter().find(|b| !b.is_ascii_whitespace()) != Some(&b'[') {
        return Ok(vec![text]);
    }
    if revision != Some(Revision::V2025_03_26) {
        return Err(Flaw::Shape("a batch, which its revision has not"));
    }
    // Each element is checked later as well; this bounds all of them together.
    check(&text, Text::Message, caps)?;
    let elements = elements(&text);
    if elements.is_empty() { Err(Flaw::Shape("an empty batch")) } else { Ok(elements) }
}

/// The elements of a JSON array. Empty if the text is not an array.
pub(super) fn elements(text: &Bytes) -> Vec<Bytes> {
    let elements: Vec<&RawValue> = serde_json::from_slice(text).unwrap_or_default();
    elements.iter().map(|element| text.slice_ref(element.get().as_bytes())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const CAPS: Caps = Caps { bytes: 1_000, depth: 8, nodes: 20, keys: 20, object_keys: 20 };

    #[test]
    fn batch_is_split_if_the_revision_supports_batches() {
        let batches = Some(Revision::V2025_03_26);
        let texts = |text: &'static str, revision| {
            messages(Bytes::from_static(text.as_bytes()), CAPS, revision)
        };
        assert_eq!(
            texts(r#" [{"a":1.0}, {"b":2}]"#, batches).unwrap(),
            [r#"{"a":1.0}"#, r#"{"b":2}"#]
        );
        assert_eq!(texts(" 7", batches).unwrap(), [" 7"]);
        for revision in [None, Some(Revision::V2025_06_18), Some(Revision::V2024_11_05)] {
            assert!(texts("[{}]", revision).is_err());
            assert_eq!(texts("{}", revision).unwrap(), ["{}"]);
        }
        let many = "[1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1]";
        for text in ["[]", "[1,]", "[", "[[[[[[[[[[]]]]]]]]]]", many, r#"[{"a":1,"a":2}]"#] {
            assert!(texts(text, batches).is_err(), "{text}");
        }
    }
}
