//! Names and ids, each a type of its own, parsed at one gate (`FromStr`).

use std::{fmt, str::FromStr, sync::Arc};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// A name that is no legal [`ServerName`], [`ClientName`], [`ExportName`] or [`Group`].
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
            /// The name as it stands in the config.
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
    /// A server, by the operator's name for it (never by what the server says of itself).
    ServerName
}
name! {
    /// A client: the holder of an API key.
    ClientName
}
name! {
    /// A stream of audit records to somewhere else.
    ExportName
}
name! {
    /// Somebody whose signatures count.
    SignerName
}
name! {
    /// A group that clients belong to, as Cedar policies see it.
    Group
}

/// One decision: the id that a refusal shows to the agent and that `portcullis audit show` takes.
/// A UUID version 7, so ids sort by time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct DecisionId(Uuid);

impl DecisionId {
    /// A new id, of now.
    pub fn next() -> Self {
        Self(Uuid::now_v7())
    }

    /// The 16 bytes, which sort by time.
    pub fn as_bytes(&self) -> &[u8; 16] {
        self.0.as_bytes()
    }

    /// The id that these bytes are.
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

/// A legacy MCP session, as its client presents it in `Mcp-Session-Id`. Its `Debug` shows a
/// prefix only: whoever holds the whole id can speak in the session.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct SessionId(Arc<str>);

impl SessionId {
    /// The id as a client sent it; whether it exists is the session store's to say.
    pub fn presented(id: &str) -> Self {
        Self(id.into())
    }

    /// The whole id, for the wire.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// Enough of the id to join records of one session, not enough to speak in it.
    pub fn prefix(&self) -> &str {
        self.0.get(..8).unwrap_or("")
    }
}

impl fmt::Debug for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SessionId({}…)", self.prefix())
    }
}

/// Up to three of the candidates that are most like a name, the likest first, for a message such
/// as "did you mean". What is not alike is left out. Hand in only what the reader may see.
pub fn nearest<'a>(name: &str, candidates: impl IntoIterator<Item = &'a str>) -> Vec<String> {
    let candidates = candidates.into_iter().map(|candidate| (candidate, ()));
    nearest_of(name, candidates, |()| true)
}

/// The same among candidates of which it takes time to know whether the reader may see them: only
/// those that are alike are asked about, and only so many.
pub fn nearest_of<'a, T>(
    name: &str,
    candidates: impl IntoIterator<Item = (&'a str, T)>,
    seen: impl Fn(&T) -> bool,
) -> Vec<String> {
    const LONGEST: usize = 128;
    const ALIKE: f64 = 0.8;
    const ASKED: usize = 50;
    const COMPARED: usize = 5_000;
    // The comparison takes time by the product of the lengths, and the name is a client's text.
    if name.len() > LONGEST {
        return Vec::new();
    }
    let folded = name.to_lowercase();
    let mut alike: Vec<_> = candidates
        .into_iter()
        .take(COMPARED)
        .filter(|(candidate, _)| candidate.len() <= LONGEST)
        .map(|(candidate, item)| {
            (strsim::jaro_winkler(&folded, &candidate.to_lowercase()), candidate, item)
        })
        .filter(|(likeness, ..)| *likeness >= ALIKE)
        .collect();
    alike.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(b.1)));
    let alike = alike.into_iter().take(ASKED).filter(|(.., item)| seen(item));
    alike.take(3).map(|(_, candidate, _)| candidate.to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn legal_and_illegal_names() {
        for name in ["a", "github", "my-server_2", "0x"] {
            assert!(name.parse::<ServerName>().is_ok(), "{name}");
        }
        for name in ["", "-x", "_x", "A", "a b", "a/b", "ä", &"x".repeat(65)] {
            assert!(name.parse::<ServerName>().is_err(), "{name}");
        }
    }

    #[test]
    fn nearest_names_are_few_and_alike() {
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
