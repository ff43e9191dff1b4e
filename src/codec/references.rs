//! References within a JSON schema.

use std::{cell::OnceCell, collections::HashMap};

use serde_json::Value;

/// What the references of one schema lead to.
pub struct References<'s> {
    root: &'s Value,
    /// Found when the first is asked for.
    anchors: OnceCell<HashMap<&'s str, Vec<&'s Value>>>,
}

impl<'s> References<'s> {
    /// Those of this schema.
    pub fn of(root: &'s Value) -> Self {
        Self { root, anchors: OnceCell::new() }
    }

    /// What one may mean: a JSON pointer or an anchor in the same document. Nothing where it means
    /// what is not there.
    pub fn targets(&self, reference: &str) -> Vec<&'s Value> {
        match reference.strip_prefix('#') {
            None => Vec::new(),
            Some(place) if place.is_empty() || place.starts_with('/') => {
                pointed(self.root, reference).into_iter().collect()
            }
            Some(anchor) => {
                let anchors = self.anchors.get_or_init(|| {
                    let mut anchors = HashMap::new();
                    collect_anchors(self.root, &mut anchors);
                    anchors
                });
                anchors.get(anchor).cloned().unwrap_or_default()
            }
        }
    }
}

/// What a reference that is a JSON pointer leads to.
pub fn pointed<'s>(root: &'s Value, reference: &str) -> Option<&'s Value> {
    root.pointer(&percent_decode(reference.strip_prefix('#')?)?)
}

fn collect_anchors<'s>(value: &'s Value, anchors: &mut HashMap<&'s str, Vec<&'s Value>>) {
    match value {
        Value::Object(members) => {
            for keyword in ["$anchor", "$dynamicAnchor"] {
                if let Some(Value::String(name)) = members.get(keyword) {
                    anchors.entry(name).or_default().push(value);
                }
            }
            members.values().for_each(|member| collect_anchors(member, anchors));
        }
        Value::Array(items) => items.iter().for_each(|item| collect_anchors(item, anchors)),
        _ => {}
    }
}

/// A URI fragment without its percent encoding, where that is UTF-8.
fn percent_decode(fragment: &str) -> Option<String> {
    let mut out = Vec::with_capacity(fragment.len());
    let mut bytes = fragment.bytes();
    while let Some(byte) = bytes.next() {
        if byte == b'%' {
            let high = char::from(bytes.next()?).to_digit(16)?;
            let low = char::from(bytes.next()?).to_digit(16)?;
            out.push(u8::try_from(high * 16 + low).ok()?);
        } else {
            out.push(byte);
        }
    }
    String::from_utf8(out).ok()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_there_is_found() {
        let root = json!({ "$defs": { "a/b c": 1, "l": [{}, 2], "n": { "$anchor": "here" } } });
        let references = References::of(&root);
        for (reference, target) in [
            ("#/$defs/a~1b%20c", &json!(1)),
            ("#/%24defs/l/1", &json!(2)),
            ("#here", &root["$defs"]["n"]),
            ("#", &root),
        ] {
            assert_eq!(references.targets(reference), [target], "{reference}");
        }
        for nowhere in
            ["", "/$defs/l", "#/$defs/x", "#there", "#/%ff", "#/%2", "https://x.example/#here"]
        {
            assert!(references.targets(nowhere).is_empty(), "{nowhere}");
        }
    }
}
