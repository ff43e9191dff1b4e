//! Overwrites fields of a JSON text by JSON pointer; the rest stays byte for byte.

use std::{fmt, ops::Range, str::FromStr};

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::Object;

/// JSON pointer (RFC 6901) in which the token `*` matches every member or element.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Pointer(Vec<String>);

/// Error for text that is not a pointer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "0` for `~` and `~1` for `/`~a JSON pointer consists of names, each after a `/`, with \
    `~0` for `~` and `~1` for `/`~0` for `~` and `~1` for `/`"
)]
pub struct IllegalPointer;

impl FromStr for Pointer {
    type Err = IllegalPointer;

    fn from_str(text: &str) -> Result<Self, IllegalPointer> {
        let tokens = text.strip_prefix('/').ok_or(IllegalPointer)?.split('/');
        tokens.map(unescape).collect::<Option<_>>().map(Self).ok_or(IllegalPointer)
    }
}

fn unescape(token: &str) -> Option<String> {
    let mut parts = token.split('~');
    let mut text = parts.next()?.to_owned();
    for part in parts {
        text.push(match part.as_bytes().first()? {
            b'0' => '~',
            b'1' => '/',
            _ => return None,
        });
        text.push_str(&part[1..]);
    }
    Some(text)
}

impl fmt::Display for Pointer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0
            .iter()
            .try_for_each(|token| write!(f, "/{}", token.replace('~', "~0").replace('/', "~1")))
    }
}

impl Pointer {
    /// This pointer without its first token, if that is the given one or `*`, and not the last.
    pub fn under(&self, first: &str) -> Option<Self> {
        let (token, rest) = self.0.split_first()?;
        let matches = token == first || token == "*";
        (matches && !rest.is_empty()).then(|| Self(rest.to_vec()))
    }

    /// This pointer below a member.
    pub fn within(&self, first: &str) -> Self {
        Self(std::iter::once(first.to_owned()).chain(self.0.iter().cloned()).collect())
    }
}

/// JSON text with everything that these pointers match replaced; `None` if they match nothing, or
/// nothing would change. The text must have passed the depth limit.
pub fn overwrite(text: &Bytes, pointers: &[Pointer], with: &[u8]) -> Option<Bytes> {
    let paths: Vec<_> = pointers.iter().map(|pointer| &pointer.0[..]).collect();
    edit(text, &paths, with)
}

fn edit(text: &Bytes, paths: &[&[String]], with: &[u8]) -> Option<Bytes> {
    if paths.iter().any(|path| path.is_empty()) {
        return (text.trim_ascii() != with).then(|| Bytes::copy_from_slice(with));
    }
    // Rest of the pointers below a member.
    let below = |name: &str| -> Vec<&[String]> {
        let split = paths.iter().filter_map(|path| path.split_first());
        split.filter(|(token, _)| *token == name || *token == "*").map(|(_, rest)| rest).collect()
    };
    let edited = |name: &str, range: Range<usize>| {
        let below = below(name);
        let value =
            if below.is_empty() { None } else { edit(&text.slice(range.clone()), &below, with) };
        value.map(|value| (range, value))
    };
    let edits: Vec<_> = match text.trim_ascii_start().first()? {
        b'{' => {
            let object = Object::parse(text.clone()).ok()?;
            object.members().filter_map(|(key, range)| edited(key, range)).collect()
        }
        b'[' => {
            let items = items(text)?.into_iter().enumerate();
            items.filter_map(|(index, range)| edited(&index.to_string(), range)).collect()
        }
        _ => return None,
    };
    splice(text, edits)
}

/// Positions of an array's elements in its text; `None` if it is not an array.
pub fn items(array: &[u8]) -> Option<Vec<Range<usize>>> {
    let items: Vec<&RawValue> = serde_json::from_slice(array).ok()?;
    let start = |item: &RawValue| item.get().as_ptr() as usize - array.as_ptr() as usize;
    Some(items.iter().map(|item| start(item)..start(item) + item.get().len()).collect())
}

/// Text with these ranges replaced, which are in order; `None` without ranges.
pub fn splice(text: &[u8], edits: Vec<(Range<usize>, Bytes)>) -> Option<Bytes> {
    if edits.is_empty() {
        return None;
    }
    let mut written = Vec::with_capacity(text.len());
    let mut done = 0;
    for (range, value) in edits {
        written.extend_from_slice(text.get(done..range.start)?);
        written.extend_from_slice(&value);
        done = range.end;
    }
    written.extend_from_slice(text.get(done..)?);
    Some(written.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn over(text: &str, pointers: &[&str]) -> String {
        let pointers: Vec<_> = pointers.iter().map(|p| p.parse().unwrap()).collect();
        let written = overwrite(&Bytes::copy_from_slice(text.as_bytes()), &pointers, b"\"x\"");
        written.map_or_else(|| "-".to_owned(), |text| String::from_utf8(text.to_vec()).unwrap())
    }

    #[test]
    fn only_matched_fields_are_overwritten() {
        for (text, pointers, expected) in [
            (r#"{"a": 1.0, "b":[1 , 2]}"#, &["/a"][..], r#"{"a": "x", "b":[1 , 2]}"#),
            (r#"{"a": 1.0, "b":[1 , 2]}"#, &["/b/1"], r#"{"a": 1.0, "b":[1 , "x"]}"#),
            (
                r#"{"a": {"c": 1e2}, "b": [ {"c": 2}, 3 ]}"#,
                &["/*/*/c", "/a/c"],
                r#"{"a": {"c": "x"}, "b": [ {"c": "x"}, 3 ]}"#,
            ),
            (r#"{"a/b": {"~": null}}"#, &["/a~1b/~0"], r#"{"a/b": {"~": "x"}}"#),
            (r#"{"\u0061": 1}"#, &["/a"], r#"{"\u0061": "x"}"#),
            (r#"{"a": "x"}"#, &["/a"], "-"),
            (r#"{"a": 1}"#, &["/b", "/a/b", "/0"], "-"),
            (r#"[[1, 2], [3]]"#, &["/*/0"], r#"[["x", 2], ["x"]]"#),
            (r#"{"a": {"b": 1}}"#, &["/a", "/a/b"], r#"{"a": "x"}"#),
        ] {
            assert_eq!(over(text, pointers), expected, "{text} {pointers:?}");
        }
    }

    #[test]
    fn pointers_round_trip() {
        for text in ["/a", "/a~1b/~0/*", "/"] {
            assert_eq!(text.parse::<Pointer>().unwrap().to_string(), text);
        }
        for text in ["", "a", "/~", "/~2", "a/b"] {
            assert_eq!(text.parse::<Pointer>(), Err(IllegalPointer), "{text}");
        }
    }
}
