//! Walks the strings of a validated JSON text, with their positions, so that one string can be
//! changed while every other byte stays.

use std::{
    borrow::Cow,
    cell::{OnceCell, RefCell},
    fmt::Write as _,
    ops::Range,
};

/// Error: the text is not JSON.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Malformed;

/// Limit of the arrays within each other that a member's name names.
const MAX_ARRAYS: usize = 8;
/// Length of an escape of one byte.
const MAX_ESCAPE_BYTES: usize = 6;
/// Limit of a displayed pointer in characters.
const MAX_POINTER_CHARS: usize = 256;

/// What a text is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    Key,
    Value,
    /// Numbers, with what is between them.
    Numbers,
}

/// One string or key, or adjacent numbers.
pub(super) struct Text<'a> {
    /// Position without the quotes.
    pub span: Range<usize>,
    /// Decoded content, without escapes: UTF-8 if the JSON text is.
    pub decoded: Cow<'a, [u8]>,
    pub role: Role,
}

/// Range of a string that names another one.
type Naming = RefCell<Option<Range<usize>>>;

/// Path from the root to a string.
#[derive(Default)]
pub(super) struct Path(Vec<Frame>);

enum Frame {
    Array {
        index: usize,
        /// The last string, if it is a name of the element behind it.
        naming: Naming,
    },
    Object {
        /// The last string that is a name of members beside it.
        naming: Naming,
        /// The last string that a member behind it can name.
        value: Naming,
        /// Key, in the text.
        key: Range<usize>,
        /// The key, decoded once.
        name: OnceCell<Vec<u8>>,
        /// Whether the key must not be shown.
        hidden: bool,
        expects_key: bool,
    },
}

impl Path {
    /// Name of the innermost member, which may be an array. `None` for a long one, with more than
    /// `limit` bytes if each is escaped.
    pub(super) fn member(&self, raw: &[u8], limit: usize) -> Option<&[u8]> {
        let (key, name) = self.innermost()?;
        if key.len() > limit.saturating_mul(MAX_ESCAPE_BYTES) {
            return None;
        }
        let decoded = || raw.get(key.clone()).map_or_else(Vec::new, |key| decode(key).into_owned());
        Some(name.get_or_init(decoded))
    }

    /// Position of the name of the innermost member, which may be an array.
    pub(super) fn member_key(&self) -> Option<&Range<usize>> {
        Some(self.innermost()?.0)
    }

    fn innermost(&self) -> Option<(&Range<usize>, &OnceCell<Vec<u8>>)> {
        let mut innermost = self.0.iter().rev().take(MAX_ARRAYS + 1);
        innermost.find_map(|frame| match frame {
            Frame::Object { key, name, .. } => Some((key, name)),
            Frame::Array { .. } => None,
        })
    }

    /// Whether it is below `_meta` of the outermost object.
    pub(super) fn is_metadata(&self, raw: &[u8]) -> bool {
        match self.0.first() {
            Some(Frame::Object { key, .. }) => raw.get(key.clone()) == Some(b"_meta"),
            _ => false,
        }
    }

    /// Whether it is a member of the outermost object.
    pub(super) fn is_outermost(&self) -> bool {
        self.0.len() == 1
    }

    /// Stores the position of a string that names the next element, or members beside it. Replaces
    /// that of the string before.
    pub(super) fn set_naming(&self, name: Option<Range<usize>>) {
        if let Some(Frame::Array { naming, .. } | Frame::Object { naming, .. }) = self.0.last() {
            naming.replace(name);
        }
    }

    /// Whether it is an element of an array.
    pub(super) fn is_element(&self) -> bool {
        matches!(self.0.last(), Some(Frame::Array { .. }))
    }

    /// Position of a string that names this one.
    pub(super) fn naming(&self) -> Option<Range<usize>> {
        match self.0.last()? {
            Frame::Array { naming, .. } | Frame::Object { naming, .. } => naming.borrow().clone(),
        }
    }

    /// Stores the position of a string that a member behind it can name.
    pub(super) fn set_value(&self, text: Range<usize>) {
        if let Some(Frame::Object { value, .. }) = self.0.last() {
            value.replace(Some(text));
        }
    }

    /// Position of a string in the same object that this one can name.
    pub(super) fn value(&self) -> Option<Range<usize>> {
        match self.0.last()? {
            Frame::Object { value, .. } => value.borrow().clone(),
            Frame::Array { .. } => None,
        }
    }

    /// Whether it is below a member of the outermost object.
    pub(super) fn is_below(&self, raw: &[u8], member: &[u8]) -> bool {
        match self.0.first() {
            Some(Frame::Object { key, .. }) => {
                *decode(raw.get(key.clone()).unwrap_or_default()) == *member
            }
            _ => false,
        }
    }

    /// JSON pointer (RFC 6901), shortened, without hidden keys.
    pub(super) fn pointer(&self, raw: &[u8]) -> String {
        let mut out = String::new();
        for frame in &self.0 {
            match frame {
                Frame::Array { index, .. } => {
                    let _ = write!(out, "/{index}");
                }
                Frame::Object { hidden: true, .. } => out.push_str("/[redacted]"),
                Frame::Object { key, .. } => {
                    let key = decode(raw.get(key.clone()).unwrap_or_default());
                    let key = String::from_utf8_lossy(&key);
                    let _ = write!(out, "/{}", key.replace('~', "~0").replace('/', "~1"));
                }
            }
            if out.len() > MAX_POINTER_CHARS {
                let end =
                    (0..=MAX_POINTER_CHARS).rev().find(|&i| out.is_char_boundary(i)).unwrap_or(0);
                out.truncate(end);
                out.push('…');
                break;
            }
        }
        out
    }
}

/// Visits every string, key and number of the text, in order. `see` returns whether a key must be
/// hidden in the pointers of what is below it.
pub(super) fn each_text<'a, E: From<Malformed>>(
    raw: &'a [u8],
    mut see: impl FnMut(&Path, Text<'a>) -> Result<bool, E>,
) -> Result<(), E> {
    let mut path = Path::default();
    let mut at = 0;
    let mut after_numbers = 0;
    while let Some(&byte) = raw.get(at) {
        at += 1;
        match byte {
            b'{' => {
                path.0.push(Frame::Object {
                    naming: Naming::default(),
                    value: Naming::default(),
                    key: 0..0,
                    name: OnceCell::new(),
                    hidden: false,
                    expects_key: true,
                });
            }
            b'[' => path.0.push(Frame::Array { index: 0, naming: Naming::default() }),
            b'}' | b']' => match (byte, path.0.pop()) {
                (b'}', Some(Frame::Object { .. })) | (b']', Some(Frame::Array { .. })) => {}
                _ => return Err(Malformed.into()),
            },
            b',' => match path.0.last_mut() {
                Some(Frame::Array { index, .. }) => *index += 1,
                Some(Frame::Object { expects_key, .. }) => *expects_key = true,
                None => return Err(Malformed.into()),
            },
            b'"' => {
                let first = raw.get(at..).and_then(|rest| memchr::memchr2(b'"', b'\\', rest));
                let first = at + first.ok_or(Malformed)?;
                let is_plain = raw.get(first) == Some(&b'"');
                let end = if is_plain { Some(first) } else { string_end(raw, first) };
                let span = at..end.ok_or(Malformed)?;
                at = span.end + 1;
                let text = raw.get(span.clone()).unwrap_or_default();
                let decoded = if is_plain { Cow::Borrowed(text) } else { decode(text) };
                let key_here = match path.0.last_mut() {
                    Some(Frame::Object { key, name, hidden, expects_key, .. }) if *expects_key => {
                        (*key, *hidden, *expects_key) = (span.clone(), true, false);
                        *name = OnceCell::new();
                        true
                    }
                    _ => false,
                };
                let role = if key_here { Role::Key } else { Role::Value };
                let hide = see(&path, Text { span, decoded, role })?;
                if let (true, Some(Frame::Object { hidden, .. })) = (key_here, path.0.last_mut()) {
                    *hidden = hide;
                }
            }
            b'-' | b'0'..=b'9' if at > after_numbers => {
                let span = numbers(raw, at - 1);
                after_numbers = span.end;
                let decoded = Cow::Borrowed(raw.get(span.clone()).unwrap_or_default());
                see(&path, Text { span, decoded, role: Role::Numbers })?;
            }
            b':' | b' ' | b'\t' | b'\n' | b'\r' | b'+' | b'-' | b'.' => {}
            byte if byte.is_ascii_alphanumeric() => {}
            _ => return Err(Malformed.into()),
        }
    }
    if path.0.is_empty() { Ok(()) } else { Err(Malformed.into()) }
}

/// Range of the numbers from the start of one to the end of the last one.
fn numbers(raw: &[u8], from: usize) -> Range<usize> {
    let rest = raw.get(from..).unwrap_or_default();
    let is_between = |b: u8| matches!(b, b',' | b' ' | b'\t' | b'\n' | b'\r');
    let end = rest.iter().position(|b| !is_between(*b) && !is_of_number(*b));
    let rest = rest.get(..end.unwrap_or(rest.len())).unwrap_or_default();
    let last = rest.iter().rposition(|b| is_of_number(*b)).unwrap_or_default();
    from..from + last + 1
}

/// Whether numbers of JSON have this byte.
pub(super) fn is_of_number(byte: u8) -> bool {
    byte.is_ascii_digit() || matches!(byte, b'+' | b'-' | b'.' | b'e' | b'E')
}

/// Text with quotes around every number that does not fit 64 bits, so that the parser keeps its
/// digits. `None` if there is no such number.
pub(super) fn quote_long_numbers(raw: &[u8]) -> Option<Vec<u8>> {
    let mut out: Option<Vec<u8>> = None;
    let (mut at, mut copied) = (0, 0);
    while let Some(&byte) = raw.get(at) {
        match byte {
            b'"' => at = string_end(raw, at + 1)? + 1,
            b'-' | b'0'..=b'9' => {
                let rest = raw.get(at..).unwrap_or_default();
                let end = at + rest.iter().take_while(|b| is_of_number(**b)).count();
                let number = raw.get(at..end).unwrap_or_default();
                if is_long(number) {
                    let out = out.get_or_insert_default();
                    out.extend_from_slice(raw.get(copied..at).unwrap_or_default());
                    out.push(b'"');
                    out.extend_from_slice(number);
                    out.push(b'"');
                    copied = end;
                }
                at = end;
            }
            _ => at += 1,
        }
    }
    if let Some(out) = &mut out {
        out.extend_from_slice(raw.get(copied..).unwrap_or_default());
    }
    out
}

/// Whether a parser would drop digits of a number.
fn is_long(number: &[u8]) -> bool {
    // The number of digits of a float.
    if number.iter().filter(|byte| byte.is_ascii_digit()).count() <= 17 {
        return false;
    }
    let text = std::str::from_utf8(number).unwrap_or_default();
    text.parse::<u64>().is_err() && text.parse::<i64>().is_err()
}

/// Position of the quote that ends a string.
fn string_end(raw: &[u8], from: usize) -> Option<usize> {
    let mut at = from;
    loop {
        at += memchr::memchr2(b'"', b'\\', raw.get(at..)?)?;
        if raw.get(at) == Some(&b'"') {
            return Some(at);
        }
        at += 2;
    }
}

/// One character or escape of a string: its length in the text, and its decoded value.
fn unit(raw: &[u8]) -> (usize, [u8; 4], usize) {
    let single = |len, byte| (len, [byte, 0, 0, 0], 1);
    match raw {
        [b'\\', b'u', ..] => {
            let (len, c) = match (hex4(raw), raw.get(6..).and_then(hex4)) {
                (Some(high @ 0xd800..=0xdbff), Some(low @ 0xdc00..=0xdfff)) => {
                    (12, char::from_u32(0x1_0000 + ((high - 0xd800) << 10) + (low - 0xdc00)))
                }
                (Some(code), _) => (6, char::from_u32(code)),
                (None, _) => (2, None),
            };
            let mut bytes = [0; 4];
            let decoded_len =
                c.unwrap_or(char::REPLACEMENT_CHARACTER).encode_utf8(&mut bytes).len();
            (len.min(raw.len()), bytes, decoded_len)
        }
        [b'\\', escape, ..] => single(
            2,
            match escape {
                b'n' => b'\n',
                b't' => b'\t',
                b'r' => b'\r',
                b'b' => 8,
                b'f' => 12,
                other => *other,
            },
        ),
        [byte, ..] => single(1, *byte),
        [] => (0, [0; 4], 0),
    }
}

/// Code unit of a `\uXXXX` at the beginning.
fn hex4(raw: &[u8]) -> Option<u32> {
    let [b'\\', b'u', digits @ ..] = raw else { return None };
    let digits = std::str::from_utf8(digits.get(..4)?).ok()?;
    if !digits.bytes().all(|b| b.is_ascii_hexdigit()) {
        return None;
    }
    u32::from_str_radix(digits, 16).ok()
}

/// Content of a string.
pub(super) fn decode(raw: &[u8]) -> Cow<'_, [u8]> {
    if memchr::memchr(b'\\', raw).is_none() {
        return Cow::Borrowed(raw);
    }
    let mut out = Vec::with_capacity(raw.len());
    let mut rest = raw;
    while !rest.is_empty() {
        let plain = memchr::memchr(b'\\', rest).unwrap_or(rest.len());
        let (text, escaped) = rest.split_at(plain);
        out.extend_from_slice(text);
        let (len, bytes, decoded_len) = unit(escaped);
        out.extend_from_slice(bytes.get(..decoded_len).unwrap_or_default());
        rest = escaped.get(len..).unwrap_or_default();
    }
    Cow::Owned(out)
}

/// Positions in the text of ranges of a decoded string. The ranges are in order and disjoint, and
/// each begins and ends between characters.
pub(super) fn locate(raw: &[u8], ranges: &[Range<usize>]) -> Vec<Range<usize>> {
    let mut places = Vec::with_capacity(ranges.len());
    let (mut at, mut decoded) = (0, 0);
    let mut go_to = |target: usize| {
        while decoded < target && at < raw.len() {
            let (len, _, bytes) = unit(raw.get(at..).unwrap_or_default());
            at += len;
            decoded += bytes;
        }
        at
    };
    for range in ranges {
        let start = go_to(range.start);
        places.push(start..go_to(range.end));
    }
    places
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    fn strings(raw: &str) -> Result<Vec<(String, String, Role)>, Malformed> {
        let mut found = Vec::new();
        each_text::<Malformed>(raw.as_bytes(), |path, text| {
            let decoded = String::from_utf8(text.decoded.into_owned()).unwrap();
            found.push((path.pointer(raw.as_bytes()), decoded, text.role));
            Ok(false)
        })?;
        Ok(found)
    }

    #[test]
    fn strings_have_their_positions() {
        let raw = r#" {"a": [1, "x", {"b/c~": "\u0079\n"}], "d":"z"} "#;
        let values: Vec<_> =
            strings(raw).unwrap().into_iter().filter(|s| s.2 == Role::Value).collect();
        let expect = [("/a/1", "x"), ("/a/2/b~1c~0", "y\n"), ("/d", "z")];
        assert_eq!(values.len(), expect.len());
        for ((pointer, decoded, _), (place, text)) in values.iter().zip(expect) {
            assert_eq!((pointer.as_str(), decoded.as_str()), (place, text));
        }
    }

    #[test]
    fn adjacent_numbers_are_visited_at_once() {
        let raw = r#"{"a": [1, -2.5e3,  3, "x", true, 4], "b": 5, "6": [[-7], 8]}"#;
        let numbers = strings(raw).unwrap().into_iter().filter(|s| s.2 == Role::Numbers);
        let numbers: Vec<_> = numbers.map(|(place, text, _)| (place, text)).collect();
        let expect = [
            ("/a/0", "1, -2.5e3,  3"),
            ("/a/5", "4"),
            ("/b", "5"),
            ("/6/0/0", "-7"),
            ("/6/1", "8"),
        ];
        assert_eq!(numbers, expect.map(|(place, text)| (place.to_owned(), text.to_owned())));
    }

    #[test]
    fn long_numbers_are_quoted() {
        let long = "123456789012345678901234567890";
        for (raw, quoted) in [
            ("[1, -2.5e3, 18446744073709551615, -9223372036854775808]".to_owned(), None),
            (format!("[{long},1]"), Some(format!("[\"{long}\",1]"))),
            (
                format!("{{\"a\\\"{long}\":-{long}.5E+1}}"),
                Some(format!("{{\"a\\\"{long}\":\"-{long}.5E+1\"}}")),
            ),
            (format!("\"{long}\""), None),
            (format!("\"{long}"), None),
        ] {
            let got = quote_long_numbers(raw.as_bytes());
            assert_eq!(got.map(|text| String::from_utf8(text).unwrap()), quoted, "{raw}");
        }
    }

    #[test]
    fn hidden_key_is_in_no_pointer() {
        let raw = br#"{"hide":{"k":"v"}}"#;
        let mut pointers = Vec::new();
        each_text::<Malformed>(raw, |path, text| {
            pointers.push(path.pointer(raw));
            Ok(text.decoded.as_ref() == b"hide")
        })
        .unwrap();
        // A key is not shown before it was checked.
        assert_eq!(pointers, ["/[redacted]", "/[redacted]/[redacted]", "/[redacted]/k"]);
    }

    #[test]
    fn name_of_a_member_is_decoded_once_and_only_if_short() {
        let raw = r#"{"\u0061b":["x",["y"],{"c":"z"}],"long":"w","n":[[[[[[[[["v"]]]]]]]]]}"#;
        let mut names: Vec<(Option<String>, *const u8)> = Vec::new();
        each_text::<Malformed>(raw.as_bytes(), |path, text| {
            if text.role == Role::Value {
                let name = path.member(raw.as_bytes(), 2);
                let shown = name.map(|name| String::from_utf8(name.to_vec()).unwrap());
                names.push((shown, name.map_or(std::ptr::null(), <[u8]>::as_ptr)));
            }
            Ok(false)
        })
        .unwrap();
        let shown: Vec<_> = names.iter().map(|(name, _)| name.as_deref()).collect();
        assert_eq!(shown, [Some("ab"), Some("ab"), Some("c"), Some("long"), None]);
        assert_eq!(names[0].1, names[1].1, "decoded again");
        let key = "k".repeat(13);
        let raw = format!(r#"{{"{key}":"x"}}"#);
        each_text::<Malformed>(raw.as_bytes(), |path, text| {
            assert!(text.role == Role::Key || path.member(raw.as_bytes(), 2).is_none());
            Ok(false)
        })
        .unwrap();
    }

    #[test]
    fn text_that_is_not_json_is_malformed() {
        for raw in ["{", "}", "[}", "\"", "\"\\\"", "{]", "[1,2", ",", "\u{1}", "[\"a\\"] {
            assert_eq!(strings(raw), Err(Malformed), "{raw:?}");
        }
        for raw in ["", " ", "1", "null", "\"\"", "[]", "{}"] {
            assert!(strings(raw).is_ok(), "{raw:?}");
        }
    }

    fn leaves(value: &Value, place: &str, out: &mut Vec<(String, String)>) {
        match value {
            Value::String(text) => out.push((place.to_owned(), text.clone())),
            Value::Array(items) => {
                for (i, item) in items.iter().enumerate() {
                    leaves(item, &format!("{place}/{i}"), out);
                }
            }
            Value::Object(members) => {
                for (key, member) in members {
                    let key = key.replace('~', "~0").replace('/', "~1");
                    leaves(member, &format!("{place}/{key}"), out);
                }
            }
            _ => {}
        }
    }

    fn json_value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
            any::<String>().prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 40, 6, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
                prop::collection::vec((any::<String>(), inner), 0..6)
                    .prop_map(|members| Value::Object(members.into_iter().collect())),
            ]
        })
    }

    /// Text of the value with characters escaped at random.
    fn escaped(value: &Value, mask: u64) -> String {
        let mut out = String::new();
        let mut i = 0;
        for c in value.to_string().chars() {
            i += 1;
            if !c.is_ascii() && mask >> (i % 64) & 1 == 1 {
                let mut units = [0; 2];
                for unit in c.encode_utf16(&mut units) {
                    out.push_str(&format!("\\u{unit:04x}"));
                }
            } else {
                out.push(c);
            }
        }
        out
    }

    proptest! {
        #[test]
        fn strings_equal_those_of_serde(value in json_value(), mask: u64) {
            let raw = escaped(&value, mask);
            prop_assert_eq!(&serde_json::from_str::<Value>(&raw).unwrap(), &value);
            let mut expected = Vec::new();
            leaves(&value, "", &mut expected);
            let mut found = Vec::new();
            for (pointer, decoded, role) in strings(&raw).unwrap() {
                if role == Role::Value {
                    found.push((pointer, decoded));
                }
            }
            prop_assert_eq!(found.len(), expected.len());
            for ((pointer, decoded), (place, text)) in found.iter().zip(&expected) {
                prop_assert_eq!(decoded, text);
                if place.len() <= MAX_POINTER_CHARS {
                    prop_assert_eq!(pointer, place);
                }
            }
        }

        #[test]
        fn decoded_range_is_located_in_the_text(
            text: String, from: prop::sample::Index, to: prop::sample::Index, mask: u64
        ) {
            let raw = escaped(&json!(text), mask);
            let body = &raw.as_bytes()[1..raw.len() - 1];
            let cuts: Vec<usize> =
                text.char_indices().map(|(i, _)| i).chain([text.len()]).collect();
            let (a, b) = (*from.get(&cuts), *to.get(&cuts));
            let range = a.min(b)..a.max(b);
            let place = locate(body, std::slice::from_ref(&range)).remove(0);
            let mut changed = body[..place.start].to_vec();
            changed.extend_from_slice(b"|cut|");
            changed.extend_from_slice(&body[place.end..]);
            let changed = format!("\"{}\"", String::from_utf8(changed).unwrap());
            let expected = format!("{}|cut|{}", &text[..range.start], &text[range.end..]);
            prop_assert_eq!(serde_json::from_str::<String>(&changed).unwrap(), expected);
        }

        #[test]
        fn arbitrary_bytes_cause_no_panic(raw: Vec<u8>) {
            let _ = each_text::<Malformed>(&raw, |path, text| {
                let _ = path.pointer(&raw);
                let _ = locate(&raw[text.span], &[0..1, 2..text.decoded.len()]);
                Ok(false)
            });
        }
    }
}
