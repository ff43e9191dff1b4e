//! JSON text without a tree: the strings in it, and other strings in their place. All else stays byte
//! for byte, and looking costs a fraction of what parsing does.
//!
//! The host hands over sound JSON. Of other text these functions make no sense, but no panic either.

use std::{borrow::Cow, collections::HashMap};

use memchr::memchr2;
use serde::Deserialize;
use serde_json::value::RawValue;

/// A string within JSON text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Str<'a> {
    /// What it says, without quotes and escapes.
    pub text: Cow<'a, str>,
    /// The key of the object's member that it is the value of, without escapes, if it is one.
    pub key: Option<Cow<'a, str>>,
    /// It is itself a key.
    pub is_key: bool,
}

/// The strings of JSON text in order, keys among them.
pub fn strings(json: &str) -> impl Iterator<Item = Str<'_>> {
    Tokens::of(json).filter_map(|token| token.string(json))
}

/// JSON text with other strings in it: `change` gives what should stand there instead, or nothing.
/// Nothing where nothing changes. Keys are shown, too: see [`Str::is_key`]. Beware of one that another
/// key of its object already has.
pub fn rewrite(json: &str, mut change: impl FnMut(&Str<'_>) -> Option<String>) -> Option<String> {
    let (mut out, mut done) = (String::new(), 0);
    for token in Tokens::of(json) {
        let Some(new) = token.string(json).and_then(|string| change(&string)) else { continue };
        out.push_str(&json[done..token.start]);
        out.push_str(&serde_json::Value::String(new).to_string());
        done = token.end;
    }
    if done == 0 {
        return None;
    }
    out.push_str(&json[done..]);
    Some(out)
}

/// The same within one member of an object alone.
pub fn rewrite_member(
    json: &str,
    name: &str,
    change: impl FnMut(&Str<'_>) -> Option<String>,
) -> Option<String> {
    let value = member(json, name)?;
    let new = rewrite(value, change)?;
    // The value is a part of the text: where it begins, and where it ends.
    let start = (value.as_ptr() as usize).checked_sub(json.as_ptr() as usize)?;
    Some([json.get(..start)?, &new, json.get(start + value.len()..)?].concat())
}

/// The JSON text of a member of an object, as it stands there.
pub fn member<'a>(json: &'a str, name: &str) -> Option<&'a str> {
    #[derive(Deserialize)]
    struct Members<'a>(#[serde(borrow)] HashMap<Cow<'a, str>, &'a RawValue>);

    let Members(members) = serde_json::from_str(json).ok()?;
    members.get(name).map(|value| value.get())
}

/// Where a string stands, and the key that it belongs to, quotes included.
struct Token {
    start: usize,
    end: usize,
    key: Option<(usize, usize)>,
    is_key: bool,
}

impl Token {
    fn string<'a>(&self, json: &'a str) -> Option<Str<'a>> {
        let text = plain(json.get(self.start..self.end)?)?;
        let key = self.key.and_then(|(start, end)| plain(json.get(start..end)?));
        Some(Str { text, key, is_key: self.is_key })
    }
}

/// What a string in its quotes says.
fn plain(quoted: &str) -> Option<Cow<'_, str>> {
    let plain = quoted.get(1..quoted.len().checked_sub(1)?)?;
    if plain.contains('\\') {
        Some(Cow::Owned(serde_json::from_str(quoted).ok()?))
    } else {
        Some(Cow::Borrowed(plain))
    }
}

struct Tokens<'a> {
    json: &'a [u8],
    at: usize,
    /// The key whose value is next, quotes included.
    key: Option<(usize, usize)>,
}

impl<'a> Tokens<'a> {
    fn of(json: &'a str) -> Self {
        Self { json: json.as_bytes(), at: 0, key: None }
    }

    /// Behind the quote that ends a string.
    fn end(&self, mut at: usize) -> Option<usize> {
        loop {
            at += memchr2(b'"', b'\\', self.json.get(at..)?)?;
            match self.json[at] {
                b'"' => return Some(at + 1),
                _ => at += 2,
            }
        }
    }
}

impl Iterator for Tokens<'_> {
    type Item = Token;

    fn next(&mut self) -> Option<Token> {
        // What is between two strings is short: punctuation, numbers and words.
        let between = self.json.get(self.at..)?;
        let until = memchr::memchr(b'"', between)?;
        // A key's value is the next string only if nothing but a colon is between.
        if !between[..until].iter().all(|byte| matches!(byte, b':') || byte.is_ascii_whitespace()) {
            self.key = None;
        }
        let start = self.at + until;
        let end = self.end(start + 1)?;
        self.at = end;
        let after = self.json[end..].iter().find(|byte| !byte.is_ascii_whitespace());
        let is_key = after == Some(&b':');
        let key = if is_key {
            self.key = None;
            Some((start, end))
        } else {
            None
        };
        let token = Token { start, end, key: self.key.take(), is_key };
        self.key = key;
        Some(token)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(json: &str) -> Vec<(String, Option<String>, bool)> {
        let told = |string: Str<'_>| {
            (string.text.into_owned(), string.key.map(Cow::into_owned), string.is_key)
        };
        strings(json).map(told).collect()
    }

    #[test]
    fn strings_are_visited_in_order_with_their_keys() {
        let json = r#"{ "a" : "x\n\"y\"", "b": ["c", {"d": 1, "e": "\u00e9"}], "f": null }"#;
        let expected = [
            ("a", None, true),
            ("x\n\"y\"", Some("a"), false),
            ("b", None, true),
            ("c", None, false),
            ("d", None, true),
            ("e", None, true),
            ("é", Some("e"), false),
            ("f", None, true),
        ];
        let expected =
            expected.map(|(text, key, is_key)| (text.to_owned(), key.map(str::to_owned), is_key));
        assert_eq!(all(json), expected);
        assert_eq!(all(r#""alone""#), [("alone".to_owned(), None, false)]);
        assert_eq!(all("17"), []);
        // However a key is spelled, it is that key.
        let spelled = all(r#"{"te\u0078t": "x"}"#);
        assert_eq!(spelled[1], ("x".to_owned(), Some("text".to_owned()), false));
    }

    #[test]
    fn other_bytes_are_unchanged() {
        let json = "{ \"n\": 1.50e+400,\t\"s\":\"caf\\u00e9\",\"t\" : [\"old\", \"\\/\"] }";
        let new = rewrite(json, |string| (string.text == "old").then(|| "a\"b\\\u{1}é".into()));
        let expected = json.replace("\"old\"", r#""a\"b\\\u0001é""#);
        assert_eq!(new, Some(expected));
        assert_eq!(rewrite(json, |_| None), None);
    }

    #[test]
    fn keys_can_be_rewritten() {
        let new = rewrite(r#"{"old":"old"}"#, |string| string.is_key.then(|| "new".into()));
        assert_eq!(new.as_deref(), Some(r#"{"new":"old"}"#));
    }

    #[test]
    fn only_the_named_member_is_rewritten() {
        let json = r#"{ "name": "old", "arguments": {"a": "old", "n": 1.50}, "_meta": "old" }"#;
        let old = |string: &Str<'_>| (string.text == "old").then(|| "new".to_owned());
        let expected = r#"{ "name": "old", "arguments": {"a": "new", "n": 1.50}, "_meta": "old" }"#;
        assert_eq!(rewrite_member(json, "arguments", old).as_deref(), Some(expected));
        assert_eq!(rewrite_member(json, "none", old), None);
        assert_eq!(rewrite_member(r#"{"arguments":{}}"#, "arguments", old), None);
    }

    #[test]
    fn members_are_returned_verbatim() {
        let json = r#"{"a": 1.50, "arg\u0075ments": { "b" : "}" } }"#;
        assert_eq!(member(json, "a"), Some("1.50"));
        assert_eq!(member(json, "arguments"), Some(r#"{ "b" : "}" }"#));
        assert_eq!(member(json, "b"), None);
        assert_eq!(member("[1]", "a"), None);
    }

    #[test]
    fn invalid_json_causes_no_panic() {
        for nonsense in ["\"", "\"\\", "{\"a\":\"", "\"\\u12\"", "\"\\ud800\"", ":\"\"\"", "é\"é"]
        {
            let _ = all(nonsense);
            let _ = rewrite(nonsense, |_| Some("x".into()));
            let _ = member(nonsense, "a");
        }
    }
}
