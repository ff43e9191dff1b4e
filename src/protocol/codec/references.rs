//! References within a JSON schema.

use std::{cell::OnceCell, collections::HashMap};

use serde_json::Value;

/// Targets of the references of one schema.
pub struct References<'s> {
    root: &'s Value,
    /// Collected on first use.
    named: OnceCell<NamedTargets<'s>>,
}

/// Names within a document that references can use.
#[derive(Default)]
struct NamedTargets<'s> {
    anchors: HashMap<&'s str, Vec<&'s Value>>,
    /// Schemas with an identifier: `$id`, or `id` in draft 4.
    resources: Vec<(&'s str, &'s Value)>,
}

impl<'s> References<'s> {
    /// References of this schema.
    pub fn of(root: &'s Value) -> Self {
        Self { root, named: OnceCell::new() }
    }

    /// Targets of a reference: a JSON pointer or an anchor in the same document. Empty if the
    /// target does not exist.
    pub fn targets(&self, reference: &str) -> Vec<&'s Value> {
        match reference.strip_prefix('#') {
            None => Vec::new(),
            Some(fragment) if fragment.is_empty() || fragment.starts_with('/') => {
                pointed(self.root, reference).into_iter().collect()
            }
            Some(anchor) => self.named().anchors.get(anchor).cloned().unwrap_or_default(),
        }
    }

    /// All targets that any parser may find. Parsers differ by their draft (`$id` and `$anchor`
    /// changed in each), and in their treatment of references into an embedded resource. So a
    /// reference without a URI is searched in the document and in each of its resources, and one
    /// with a URI in each resource whose identifier ends in the same path segment: resolving both
    /// by RFC 3986 changes only the text before it.
    ///
    /// `None` if no target is possible here: the reference leaves the document, or has no target.
    pub fn possible_targets(&self, reference: &str) -> Option<Vec<&'s Value>> {
        let (uri, fragment) = reference.split_once('#').unwrap_or((reference, ""));
        let resources = || self.named().resources.iter();
        let candidates: Vec<_> = match uri {
            "" => {
                let others =
                    resources().map(|(_, of)| *of).filter(|of| !std::ptr::eq(*of, self.root));
                std::iter::once(self.root).chain(others).collect()
            }
            uri => resources().filter(|(id, _)| may_identify(id, uri)).map(|(_, of)| *of).collect(),
        };
        let fragment = percent_decode(fragment)?;
        let targets: Vec<_> = match fragment.as_str() {
            fragment if fragment.is_empty() || fragment.starts_with('/') => {
                candidates.into_iter().filter_map(|resource| resource.pointer(fragment)).collect()
            }
            _ if candidates.is_empty() => Vec::new(),
            anchor => self.named().anchors.get(anchor).cloned().unwrap_or_default(),
        };
        (!targets.is_empty()).then_some(targets)
    }

    /// Upper bound of the places that [`Self::possible_targets`] searches for one reference.
    pub fn breadth(&self) -> usize {
        1 + self.named().resources.len()
    }

    fn named(&self) -> &NamedTargets<'s> {
        self.named.get_or_init(|| {
            let mut named = NamedTargets::default();
            named.collect(self.root);
            named
        })
    }
}

/// Whether a URI may identify a resource with this identifier.
fn may_identify(id: &str, uri: &str) -> bool {
    // A URI with one of these endings gets its last segment from its base URI.
    fn last(uri: &str) -> Option<&str> {
        let segment = uri.rsplit(['/', ':']).next()?;
        (!matches!(segment, "" | "." | "..") && !segment.starts_with('?')).then_some(segment)
    }
    match (last(id), last(uri)) {
        (Some(id), Some(uri)) => id == uri,
        _ => true,
    }
}

/// Target of a reference that is a JSON pointer.
pub fn pointed<'s>(root: &'s Value, reference: &str) -> Option<&'s Value> {
    root.pointer(&percent_decode(reference.strip_prefix('#')?)?)
}

impl<'s> NamedTargets<'s> {
    fn collect(&mut self, value: &'s Value) {
        match value {
            Value::Object(members) => {
                for keyword in ["$anchor", "$dynamicAnchor"] {
                    if let Some(Value::String(name)) = members.get(keyword) {
                        self.anchors.entry(name).or_default().push(value);
                    }
                }
                for keyword in ["$id", "id"] {
                    if let Some(Value::String(id)) = members.get(keyword) {
                        let (uri, name) = id.split_once('#').unwrap_or((id, ""));
                        // Anchors of drafts 4 to 7.
                        if !name.is_empty() {
                            self.anchors.entry(name).or_default().push(value);
                        }
                        if !uri.is_empty() {
                            self.resources.push((uri, value));
                        }
                    }
                }
                members.values().for_each(|member| self.collect(member));
            }
            Value::Array(items) => items.iter().for_each(|item| self.collect(item)),
            _ => {}
        }
    }
}

/// URI fragment without percent encoding, if the result is UTF-8.
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
    use serde_json::{Map, json};

    use super::*;

    #[test]
    fn reference_has_all_targets_that_any_parser_finds() {
        let of = |name: &str| json!({ "properties": { (name): {} } });
        let root = json!({
            "$id": "https://h.example/a/s.json",
            "$defs": {
                "O": of("root"),
                "E": { "$id": "e.json", "$defs": { "O": of("embedded") } },
                "four": { "id": "urn:four", "definitions": { "O": of("four") } },
                "named": { "$id": "#here", "properties": { "named": {} } },
            },
        });
        let references = References::of(&root);
        let names = |reference: &str| {
            let targets = references.possible_targets(reference)?;
            let names =
                targets.into_iter().filter_map(|target| target.get("properties")?.as_object());
            Some(names.flat_map(Map::keys).cloned().collect::<Vec<_>>().join(" "))
        };
        for (reference, expected) in [
            ("#/$defs/O", Some("root embedded")),
            ("s.json#/$defs/O", Some("root")),
            ("/a/s.json#/%24defs/O", Some("root")),
            ("https://h.example/a/s.json#/$defs/O", Some("root")),
            ("https://h.example/a/e.json#/$defs/O", Some("embedded")),
            ("e.json#/$defs/O", Some("embedded")),
            ("urn:four#/definitions/O", Some("four")),
            ("#here", Some("named")),
            ("s.json#here", Some("named")),
            ("", Some("")),
            ("other.json#/$defs/O", None),
            ("other.json#here", None),
            ("urn:x", None),
            ("#/$defs/none", None),
            ("#nowhere", None),
            ("#/%f", None),
        ] {
            assert_eq!(names(reference).as_deref(), expected, "{reference}");
        }
    }

    #[test]
    fn existing_targets_are_found() {
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
