//! Strict walk over a JSON text.

use std::{
    borrow::Cow,
    cell::{Cell, RefCell},
    collections::HashSet,
    fmt,
};

use ahash::RandomState;
use serde::de::{DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};

use super::era::{
    META_CAPABILITIES, META_CLIENT_INFO, META_LOG_LEVEL, META_REVISION, META_SUBSCRIPTION,
};
use crate::refusal::{Code, Refusal};

/// Number of levels from the top that refuse keys that differ only in case: the envelope, `params`,
/// and `arguments` or `_meta`. A server that ignores case would read another message than policy
/// did. Below that such keys may be data, such as an environment with `http_proxy` and
/// `HTTP_PROXY`. There they are refused if policies or the tool's schema name one of them
/// (`policy::index`, `proxy::argument_names`).
const FOLDED_LEVELS: usize = 3;

/// Members of a message's envelope.
const ENVELOPE: [&str; 6] = ["jsonrpc", "id", "method", "params", "result", "error"];

/// Members of `params` that affect decisions or routing.
const PARAMS: [&str; 18] = [
    "name",
    "arguments",
    "uri",
    "ref",
    "argument",
    "context",
    "cursor",
    "level",
    "requestId",
    "progressToken",
    "protocolVersion",
    "capabilities",
    "clientInfo",
    "requestState",
    "inputResponses",
    "taskId",
    "task",
    "_meta",
];

/// Members of the `_meta` of `params` that state for whom a message speaks and what belongs to it.
/// Some are added during translation to the other era; beside a look-alike they would be duplicate
/// keys.
const META: [&str; 6] = [
    "progressToken",
    META_REVISION,
    META_CAPABILITIES,
    META_CLIENT_INFO,
    META_LOG_LEVEL,
    META_SUBSCRIPTION,
];

/// Members of a response in which a server can send the client a request.
const RESULT: [&str; 6] =
    ["inputRequests", "requestState", "resultType", "ttlMs", "cacheScope", "_meta"];
const ERROR: [&str; 3] = ["code", "message", "data"];
const DATA: [&str; 1] = ["elicitations"];

/// Kind of a text. In a message and in `params`, a key that differs from a known key only in case
/// is refused, even without the known key: policy would not see it, and a server that ignores case
/// would act on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Text {
    /// Whole message.
    Message,
    /// `params` of a message.
    Params,
    /// `_meta` of `params`.
    Meta,
    /// `result` of a message.
    Result,
    /// `error` of a message.
    Error,
    /// `data` of an error.
    Data,
    /// Any other value.
    Value,
}

impl Text {
    fn known(self) -> &'static [&'static str] {
        match self {
            Self::Message => &ENVELOPE,
            Self::Params => &PARAMS,
            Self::Meta => &META,
            Self::Result => &RESULT,
            Self::Error => &ERROR,
            Self::Data => &DATA,
            Self::Value => &[],
        }
    }

    /// Kind of the value of a key.
    fn below(self, key: &str) -> Self {
        match (self, key) {
            (Self::Message, "params") => Self::Params,
            (Self::Params, "_meta") => Self::Meta,
            (Self::Message, "result") => Self::Result,
            (Self::Message, "error") => Self::Error,
            (Self::Error, "data") => Self::Data,
            _ => Self::Value,
        }
    }

    fn misspells(self, key: &str) -> bool {
        let known = self.known();
        if known.contains(&key) || known.is_empty() {
            return false;
        }
        if key.is_ascii() {
            return known.iter().any(|known| known.eq_ignore_ascii_case(key));
        }
        let folded = fold(Cow::Borrowed(key));
        known.iter().any(|known| fold(Cow::Borrowed(known)) == folded)
    }
}

/// Limits of one message.
#[derive(Debug, Clone, Copy)]
pub struct Caps {
    /// Bytes of text.
    pub bytes: usize,
    /// Nesting levels of arrays and objects.
    pub depth: usize,
    /// Values and keys.
    pub nodes: usize,
    /// Keys, over all objects.
    pub keys: usize,
    /// Keys of one object.
    pub object_keys: usize,
}

/// Counts of a text that passed [`check`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Values and keys.
    pub nodes: usize,
    /// Keys, over all objects.
    pub keys: usize,
}

/// Reason why a text is refused. Never quotes a value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Flaw {
    #[error("the message has more than {0} bytes")]
    TooLarge(usize),
    #[error("the message nests deeper than {0} levels")]
    TooDeep(usize),
    #[error("the message has more than {0} values")]
    TooMany(usize),
    #[error("the message has more than {0} keys")]
    TooManyKeys(usize),
    #[error("an object of the message has more than {0} keys")]
    CrowdedObject(usize),
    #[error("the message is not UTF-8")]
    NotUtf8,
    #[error("an object has a duplicate key, exactly or differing only in case or escapes")]
    DuplicateKey,
    #[error("a key differs from a known key only in case or a look-alike letter")]
    MisspelledKey,
    #[error("a number is too large for a 64-bit float (line {line}, column {column})")]
    NumberOutOfRange { line: usize, column: usize },
    #[error("the message is not JSON (line {line}, column {column})")]
    Syntax { line: usize, column: usize },
    #[error("{0}")]
    Shape(&'static str),
}

impl Flaw {
    /// Stable code.
    pub fn code(&self) -> Code {
        match self {
            Self::TooLarge(_)
            | Self::TooDeep(_)
            | Self::TooMany(_)
            | Self::TooManyKeys(_)
            | Self::CrowdedObject(_) => Code::TooLarge,
            Self::NotUtf8 | Self::Syntax { .. } => Code::Malformed,
            Self::DuplicateKey | Self::MisspelledKey => Code::DuplicateKey,
            Self::NumberOutOfRange { .. } => Code::NumberOutOfRange,
            Self::Shape(_) => Code::InvalidRequest,
        }
    }

    /// Flaw of a text that the parser refused.
    fn of_parser(error: &serde_json::Error) -> Self {
        let (line, column) = (error.line(), error.column());
        // The parser has no other sign of it.
        match error.to_string().starts_with("number out of range") {
            true => Self::NumberOutOfRange { line, column },
            false => Self::Syntax { line, column },
        }
    }
}

impl From<Flaw> for Refusal {
    fn from(flaw: Flaw) -> Self {
        Refusal::new(flaw.code(), flaw.to_string())
    }
}

/// Walks a whole JSON text once. Stops at the first flaw, so that a text beyond a limit costs no
/// more than one at the limit.
///
/// # Errors
/// The first [`Flaw`].
pub fn check(text: &[u8], what: Text, caps: Caps) -> Result<Counts, Flaw> {
    if text.len() > caps.bytes {
        return Err(Flaw::TooLarge(caps.bytes));
    }
    let text = std::str::from_utf8(text).map_err(|_| Flaw::NotUtf8)?;
    let state = State { caps, nodes: Cell::new(0), keys: Cell::new(0), flaw: RefCell::new(None) };
    let mut parser = serde_json::Deserializer::from_str(text);

    let walked =
        Walk { state: &state, depth: 0, what }.deserialize(&mut parser).and_then(|()| parser.end());
    match (walked, state.flaw.take()) {
        (_, Some(flaw)) => Err(flaw),
        (Ok(()), None) => Ok(Counts { nodes: state.nodes.get(), keys: state.keys.get() }),
        (Err(error), None) => Err(Flaw::of_parser(&error)),
    }
}

struct State {
    caps: Caps,
    nodes: Cell<usize>,
    keys: Cell<usize>,
    flaw: RefCell<Option<Flaw>>,
}

impl State {
    fn fail<E: serde::de::Error>(&self, flaw: Flaw) -> E {
        let error = E::custom(&flaw);
        self.flaw.replace(Some(flaw));
        error
    }

    fn count<E: serde::de::Error>(&self) -> Result<(), E> {
        self.nodes.set(self.nodes.get() + 1);
        if self.nodes.get() > self.caps.nodes {
            Err(self.fail(Flaw::TooMany(self.caps.nodes)))
        } else {
            Ok(())
        }
    }

    /// Counts a key, number `of_object` of its object.
    fn count_key<E: serde::de::Error>(&self, of_object: usize) -> Result<(), E> {
        self.count()?;
        self.keys.set(self.keys.get() + 1);
        if self.keys.get() > self.caps.keys {
            Err(self.fail(Flaw::TooManyKeys(self.caps.keys)))
        } else if of_object > self.caps.object_keys {
            Err(self.fail(Flaw::CrowdedObject(self.caps.object_keys)))
        } else {
            Ok(())
        }
    }
}

#[derive(Clone, Copy)]
struct Walk<'a> {
    state: &'a State,
    depth: usize,
    what: Text,
}

impl Walk<'_> {
    fn descend<E: serde::de::Error>(self) -> Result<Self, E> {
        let depth = self.depth + 1;
        if depth > self.state.caps.depth {
            return Err(self.state.fail(Flaw::TooDeep(self.state.caps.depth)));
        }
        Ok(Self { depth, ..self })
    }
}

impl<'de> DeserializeSeed<'de> for Walk<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        self.state.count()?;
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Walk<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }

    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        Ok(())
    }

    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }

    fn visit_str<E>(self, _: &str) -> Result<(), E> {
        Ok(())
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        let inner = Walk { what: Text::Value, ..self.descend()? };
        while items.next_element_seed(inner)?.is_some() {}
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<(), A::Error> {
        let inner = self.descend()?;
        let mut keys = Keys::new(self.depth < FOLDED_LEVELS);
        while let Some(Key(key)) = members.next_key()? {
            self.state.count_key(keys.len() + 1)?;
            if self.what.misspells(&key) {
                return Err(self.state.fail(Flaw::MisspelledKey));
            }
            let inner = Walk { what: self.what.below(&key), ..inner };
            if !keys.insert(key) {
                return Err(self.state.fail(Flaw::DuplicateKey));
            }
            members.next_value_seed(inner)?;
        }
        Ok(())
    }
}

/// Keys of one object so far: a list while there are few, then a set. Each set has its own hash key
/// from the system's random numbers, so nobody can choose colliding keys.
struct Keys<'de> {
    folded: bool,
    few: Vec<Cow<'de, str>>,
    many: HashSet<Cow<'de, str>, RandomState>,
}

impl<'de> Keys<'de> {
    const MAX_LIST_KEYS: usize = 16;

    fn new(folded: bool) -> Self {
        Self { folded, few: Vec::new(), many: HashSet::default() }
    }

    fn len(&self) -> usize {
        self.few.len() + self.many.len()
    }

    fn insert(&mut self, key: Cow<'de, str>) -> bool {
        let key = if self.folded { fold(key) } else { key };
        if self.few.contains(&key) || self.many.contains(&key) {
            return false;
        }
        if self.few.len() < Self::MAX_LIST_KEYS {
            self.few.push(key);
        } else {
            self.many.insert(key);
        }
        true
    }
}

/// Case folding of the most lenient parsers: `ſ` is `s`, the Kelvin sign is `k`. Letters that
/// Unicode's simple case folding (`CaseFolding.txt`, statuses C and S; Go's `strings.EqualFold`)
/// treats as equal have one result. The first step handles letters like `ẞ`, which have a lower
/// case and are their own upper case, while their lower case has another one (`SS`).
pub fn fold(key: Cow<'_, str>) -> Cow<'_, str> {
    if key.bytes().all(|b| b.is_ascii() && !b.is_ascii_uppercase()) {
        return key;
    }
    let lower = key.chars().flat_map(char::to_lowercase);
    Cow::Owned(lower.flat_map(char::to_uppercase).flat_map(char::to_lowercase).collect())
}

/// A key, borrowed from the text unless it has escapes.
pub(super) struct Key<'de>(pub Cow<'de, str>);

impl<'de> serde::Deserialize<'de> for Key<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct KeyVisitor;

        impl<'de> Visitor<'de> for KeyVisitor {
            type Value = Key<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a key")
            }

            fn visit_borrowed_str<E>(self, key: &'de str) -> Result<Key<'de>, E> {
                Ok(Key(Cow::Borrowed(key)))
            }

            fn visit_str<E>(self, key: &str) -> Result<Key<'de>, E> {
                Ok(Key(Cow::Owned(key.to_owned())))
            }
        }

        deserializer.deserialize_str(KeyVisitor).map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const CAPS: Caps =
        Caps { bytes: 1 << 20, depth: 64, nodes: 10_000, keys: 5_000, object_keys: 1_000 };

    #[test]
    fn flaws_are_found() {
        let deep = format!("{}{}", "[".repeat(65), "]".repeat(65));
        let bottomless = "[".repeat(200_000);
        let crowded = format!("[{}1]", "1,".repeat(10_000));
        for (text, flaw) in [
            (&br#"{"a":1,"a":2}"#[..], Some(Flaw::DuplicateKey)),
            (br#"{"name":1,"\u006eame":2}"#, Some(Flaw::DuplicateKey)),
            (br#"{"name":1,"Name":2}"#, Some(Flaw::DuplicateKey)),
            ("{\"params\":1,\"param\u{17f}\":2}".as_bytes(), Some(Flaw::DuplicateKey)),
            (br#"{"p":{"a":{"k":1,"K":2}}}"#, Some(Flaw::DuplicateKey)),
            (br#"{"p":{"a":{"e":{"k":1,"K":2}}}}"#, None),
            (br#"{"p":{"a":{"e":{"k":1,"k":2}}}}"#, Some(Flaw::DuplicateKey)),
            (br#"[{"a":1},{"a":2}]"#, None),
            (b"{\"a\":\"\xff\"}", Some(Flaw::NotUtf8)),
            (br#""\ud800""#, Some(Flaw::Syntax { line: 1, column: 8 })),
            (b"1e999", Some(Flaw::NumberOutOfRange { line: 1, column: 5 })),
            (br#"{"a":[-1E400]}"#, Some(Flaw::NumberOutOfRange { line: 1, column: 12 })),
            (b"[1e308, 1e-400, 18446744073709551616]", None),
            (b"{} {}", Some(Flaw::Syntax { line: 1, column: 4 })),
            (b"", Some(Flaw::Syntax { line: 1, column: 0 })),
            (b"\xef\xbb\xbf{}", Some(Flaw::Syntax { line: 1, column: 1 })),
            (deep.as_bytes(), Some(Flaw::TooDeep(64))),
            (bottomless.as_bytes(), Some(Flaw::TooDeep(64))),
            (crowded.as_bytes(), Some(Flaw::TooMany(10_000))),
        ] {
            let got = check(text, Text::Value, CAPS).err();
            assert_eq!(got, flaw, "{}", String::from_utf8_lossy(&text[..text.len().min(60)]));
        }
        assert_eq!(
            check(&[b' '; 11], Text::Value, Caps { bytes: 10, ..CAPS }),
            Err(Flaw::TooLarge(10))
        );
    }

    #[test]
    fn known_keys_with_another_spelling_are_refused() {
        for (text, what, flaw) in [
            (r#"{"method":"m","Params":{}}"#, Text::Message, Some(Flaw::MisspelledKey)),
            (r#"{"params":{"Arguments":{}}}"#, Text::Message, Some(Flaw::MisspelledKey)),
            ("{\"params\":{\"argument\u{17f}\":{}}}", Text::Message, Some(Flaw::MisspelledKey)),
            (r#"{"params":{"requeststate":""}}"#, Text::Message, Some(Flaw::MisspelledKey)),
            (r#"{"params":{"arguments":{"Name":1}}}"#, Text::Message, None),
            (r#"{"result":{"Name":1}}"#, Text::Message, None),
            (r#"{"result":{"InputRequests":{}}}"#, Text::Message, Some(Flaw::MisspelledKey)),
            (r#"{"error":{"data":{"Elicitations":[]}}}"#, Text::Message, Some(Flaw::MisspelledKey)),
            (r#"{"error":{"Data":{}}}"#, Text::Message, Some(Flaw::MisspelledKey)),
            (r#"{"params":{"TaskId":1}}"#, Text::Message, Some(Flaw::MisspelledKey)),
            (r#"{"Name":1}"#, Text::Params, Some(Flaw::MisspelledKey)),
            (
                r#"{"params":{"_meta":{"ProgressToken":1}}}"#,
                Text::Message,
                Some(Flaw::MisspelledKey),
            ),
            (
                r#"{"_meta":{"io.modelcontextprotocol/clientCapabilitieS":{}}}"#,
                Text::Params,
                Some(Flaw::MisspelledKey),
            ),
            (r#"{"_meta":{"io.ModelContextProtocol/other":{},"Name":1}}"#, Text::Params, None),
            (r#"{"result":{"TtlMs":1}}"#, Text::Message, Some(Flaw::MisspelledKey)),
            (r#"{"Name":1}"#, Text::Value, None),
            (r#"[{"Name":1}]"#, Text::Params, None),
        ] {
            assert_eq!(check(text.as_bytes(), what, CAPS).err(), flaw, "{text}");
        }
    }

    #[test]
    fn letters_that_differ_only_in_case_fold_to_one() {
        // Go's orbits of more than two letters, and letters without a one-letter upper case.
        for letters in [
            "kK\u{212a}",
            "sS\u{17f}",
            "\u{e5}\u{c5}\u{212b}",
            "\u{3c9}\u{3a9}\u{2126}",
            "\u{b5}\u{39c}\u{3bc}",
            "\u{df}\u{1e9e}",
            "\u{3c3}\u{3c2}\u{3a3}",
            "\u{3b8}\u{398}\u{3d1}\u{3f4}",
            "\u{1c4}\u{1c5}\u{1c6}",
            "\u{1fb3}\u{1fbc}",
            "\u{345}\u{399}\u{3b9}\u{1fbe}",
            "\u{1e60}\u{1e61}\u{1e9b}",
            "\u{13a0}\u{ab70}",
        ] {
            let folded: HashSet<_> =
                letters.chars().map(|letter| fold(letter.to_string().into())).collect();
            assert_eq!(folded.len(), 1, "{letters}: {folded:?}");
        }
        assert_ne!(fold("a".into()), fold("b".into()));
    }

    #[test]
    fn duplicates_among_many_keys_are_found() {
        let keys: Vec<_> = (0..100).map(|i| format!("\"k{i}\":0")).collect();
        let counts = check(format!("{{{}}}", keys.join(",")).as_bytes(), Text::Value, CAPS);
        assert_eq!(counts, Ok(Counts { nodes: 201, keys: 100 }));
        let twice = format!("{{{},\"K77\":0}}", keys.join(","));
        assert_eq!(check(twice.as_bytes(), Text::Value, CAPS), Err(Flaw::DuplicateKey));
    }

    #[test]
    fn keys_are_limited_by_object_and_by_message() {
        let object = |keys: usize| {
            let keys: Vec<_> = (0..keys).map(|i| format!("\"k{i}\":0")).collect();
            format!("{{{}}}", keys.join(","))
        };
        let objects =
            |count: usize, keys: usize| format!("[{}]", vec![object(keys); count].join(","));
        for (text, flaw) in [
            (object(1_000), None),
            (object(1_001), Some(Flaw::CrowdedObject(1_000))),
            (objects(4, 1_000), None),
            (objects(6, 999), Some(Flaw::TooMany(10_000))),
            (format!("[{},{}]", object(17), object(17)), None),
        ] {
            assert_eq!(check(text.as_bytes(), Text::Value, CAPS).err(), flaw);
        }
        let roomy = Caps { nodes: usize::MAX, ..CAPS };
        for (text, flaw) in [
            (objects(5, 1_000), None),
            (objects(5_001, 1), Some(Flaw::TooManyKeys(5_000))),
            // Elements of arrays are not keys.
            (format!("[{}0]", "0,".repeat(100_000)), None),
        ] {
            assert_eq!(check(text.as_bytes(), Text::Value, roomy).err(), flaw);
        }
        // Text beyond a limit is not parsed, so the flaw after it is not found.
        let late = format!("{}x", object(1_001));
        assert_eq!(check(late.as_bytes(), Text::Value, CAPS), Err(Flaw::CrowdedObject(1_000)));
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_cause_no_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = check(&bytes, Text::Message, CAPS);
        }

        #[test]
        fn text_that_passes_is_json(text in "[\\[\\]{}:,\"a-c0-2 ]{0,40}") {
            if check(text.as_bytes(), Text::Message, CAPS).is_ok() {
                prop_assert!(serde_json::from_str::<serde_json::Value>(&text).is_ok());
            }
        }
    }
}
