//! Names and ids. Each is a separate type, parsed only by `FromStr`.

use std::{fmt, str::FromStr, sync::Arc};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// Error for a text that is not a legal [`ServerName`], [`ClientName`], [`ExportName`] or
/// [`Group`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is not a legal name: use 1 to 64 of a-z, 0-9, `-` and `_`, beginning with a letter or a digit"
)]
pub struct IllegalName(pub String);

fn legal(name: &str) -> bool {
    (1..=64).contains(&name.len())
        && name.as_bytes()[0].is_ascii_alphanumeric()
        && name.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_'))
}

macro_rules! name {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
        #[serde(try_from = "String", into = "String")]
        #[schemars(with = "String", extend("format" = "name"))]
        pub struct $name(Arc<str>);

        impl $name {
            /// Name as written in the config.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = IllegalName;

            fn from_str(name: &str) -> Result<Self, IllegalName> {
                if legal(name) { Ok(Self(name.into())) } else { Err(IllegalName(name.into())) }
            }
        }

        impl TryFrom<String> for $name {
            type Error = IllegalName;

            fn try_from(name: String) -> Result<Self, IllegalName> {
                name.parse()
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> String {
                name.0.as_ref().to_owned()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

name! {
    /// Server, by its name in the config (never by the name that it reports).
    ServerName
}
name! {
    /// Client: the holder of an API key.
    ClientName
}
name! {
    /// Export stream of audit records.
    ExportName
}
name! {
    /// Trusted signer.
    SignerName
}
name! {
    /// Group of clients, as Cedar policies see it.
    Group
}

/// Id of one decision, which a refusal shows to the agent and `portcullis audit show` accepts. A
/// UUID version 7, so ids sort by time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct DecisionId(Uuid);

impl DecisionId {
    /// New id with the present time.
    pub fn next() -> Self {
        Self(Uuid::now_v7())
    }

    /// The 16 bytes, which sort by time.
    pub fn as_bytes(&self) -> &[u8; 16] {
        self.0.as_bytes()
    }

    /// Id from its bytes.
    pub fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(Uuid::from_bytes(bytes))
    }
}

impl fmt::Display for DecisionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for DecisionId {
    type Err = uuid::Error;

    fn from_str(id: &str) -> Result<Self, uuid::Error> {
        id.parse().map(Self)
    }
}

/// Legacy MCP session, as its client sends it in `Mcp-Session-Id`. `Debug` shows only a prefix,
/// because the holder of the whole id can use the session.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct SessionId(Arc<str>);

impl SessionId {
    /// Id as a client sent it; the session store knows whether it exists.
    pub fn presented(id: &str) -> Self {
        Self(id.into())
    }

    /// Whole id, for the wire.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// Enough of the id to join records of one session, not enough to use it.
    pub fn prefix(&self) -> &str {
        self.0.get(..8).unwrap_or("")
    }
}

impl fmt::Debug for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SessionId({}…)", self.prefix())
    }
}

/// Up to three of the most similar candidates, the most similar first, for messages such as "did
/// you mean". Dissimilar ones are omitted. Pass only candidates that the reader may see.
pub fn nearest<'a>(name: &str, candidates: impl IntoIterator<Item = &'a str>) -> Vec<String> {
    let candidates = candidates.into_iter().map(|candidate| (candidate, ()));
    nearest_of(name, candidates, |()| true)
}

/// Same for candidates whose visibility is expensive to determine: only similar ones are checked,
/// up to a limit.
pub fn nearest_of<'a, T>(
    name: &str,
    candidates: impl IntoIterator<Item = (&'a str, T)>,
    seen: impl Fn(&T) -> bool,
) -> Vec<String> {
    const MAX_NAME_BYTES: usize = 128;
    const MIN_SIMILARITY: f64 = 0.8;
    const MAX_CHECKED: usize = 50;
    const MAX_COMPARED: usize = 5_000;
    // The cost of a comparison is the product of the lengths, and the name is a client's text.
    if name.len() > MAX_NAME_BYTES {
        return Vec::new();
    }
    let folded = name.to_lowercase();
    let mut alike: Vec<_> = candidates
        .into_iter()
        .take(MAX_COMPARED)
        .filter(|(candidate, _)| candidate.len() <= MAX_NAME_BYTES)
        .map(|(candidate, item)| {
            (strsim::jaro_winkler(&folded, &candidate.to_lowercase()), candidate, item)
        })
        .filter(|(likeness, ..)| *likeness >= MIN_SIMILARITY)
        .collect();
    alike.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(b.1)));
    let alike = alike.into_iter().take(MAX_CHECKED).filter(|(.., item)| seen(item));
    alike.take(3).map(|(_, candidate, _)| candidate.to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn illegal_names_are_refused() {
        for name in ["a", "github", "my-server_2", "0x"] {
            assert!(name.parse::<ServerName>().is_ok(), "{name}");
        }
        for name in ["", "-x", "_x", "A", "a b", "a/b", "ä", &"x".repeat(65)] {
            assert!(name.parse::<ServerName>().is_err(), "{name}");
        }
    }

    #[test]
    fn nearest_names_are_few_and_similar() {
        let names = ["notes__add_note", "notes__list_notes", "notes__delete_note", "git__log"];
        assert_eq!(nearest("notes__ad_note", names)[0], "notes__add_note");
        assert_eq!(nearest("NOTES__LIST_NOTES", names)[0], "notes__list_notes");
        assert!(nearest("zzz", names).is_empty());
        assert!(nearest(&"notes".repeat(1_000), names).is_empty());
        assert!(nearest("notes", ["notes1", "notes2", "notes3", "notes4"]).len() <= 3);
    }

    #[test]
    fn decision_ids_sort_by_time() {
        let (a, b) = (DecisionId::next(), DecisionId::next());
        assert!(a < b);
        assert_eq!(a.to_string().parse::<DecisionId>().unwrap(), a);
    }
}
