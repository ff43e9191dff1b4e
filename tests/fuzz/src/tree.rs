//! A JSON text as a tree that keeps what a map of members would lose: a key that stands twice.

use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};

/// A value.
pub enum Tree {
    Leaf,
    List(Vec<Tree>),
    Object(Vec<(String, Tree)>),
}

impl Tree {
    /// The tree of a text, where it is JSON.
    pub fn of(text: &[u8]) -> Option<Self> {
        serde_json::from_slice(text).ok()
    }

    /// Whether an object in it has a key twice, as it stands; in the `folded` upper levels, but for
    /// case.
    pub fn repeats(&self, folded: usize) -> bool {
        match self {
            Self::Leaf => false,
            Self::List(items) => items.iter().any(|item| item.repeats(folded.saturating_sub(1))),
            Self::Object(members) => {
                let mut keys: Vec<String> = members
                    .iter()
                    .map(|(key, _)| if folded > 0 { lenient(key) } else { key.clone() })
                    .collect();
                keys.sort();
                keys.windows(2).any(|pair| pair[0] == pair[1])
                    || members.iter().any(|(_, value)| value.repeats(folded.saturating_sub(1)))
            }
        }
    }

    /// Every key, at any depth.
    pub fn keys(&self) -> Vec<&str> {
        match self {
            Self::Leaf => Vec::new(),
            Self::List(items) => items.iter().flat_map(Self::keys).collect(),
            Self::Object(members) => members
                .iter()
                .flat_map(|(key, value)| [vec![key.as_str()], value.keys()].concat())
                .collect(),
        }
    }

    pub fn depth(&self) -> usize {
        match self {
            Self::Leaf => 0,
            Self::List(items) => 1 + items.iter().map(Self::depth).max().unwrap_or(0),
            Self::Object(members) => 1 + members.iter().map(|(_, v)| v.depth()).max().unwrap_or(0),
        }
    }
}

/// A key as a matcher without case sees it.
pub fn lenient(key: &str) -> String {
    key.to_uppercase().to_lowercase()
}

impl<'de> Deserialize<'de> for Tree {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(TreeVisitor)
    }
}

struct TreeVisitor;

impl<'de> Visitor<'de> for TreeVisitor {
    type Value = Tree;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<Tree, E> {
        Ok(Tree::Leaf)
    }

    fn visit_bool<E>(self, _: bool) -> Result<Tree, E> {
        Ok(Tree::Leaf)
    }

    fn visit_i64<E>(self, _: i64) -> Result<Tree, E> {
        Ok(Tree::Leaf)
    }

    fn visit_u64<E>(self, _: u64) -> Result<Tree, E> {
        Ok(Tree::Leaf)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Tree, E> {
        Ok(Tree::Leaf)
    }

    fn visit_str<E>(self, _: &str) -> Result<Tree, E> {
        Ok(Tree::Leaf)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Tree, A::Error> {
        let mut all = Vec::new();
        while let Some(item) = items.next_element()? {
            all.push(item);
        }
        Ok(Tree::List(all))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Tree, A::Error> {
        let mut all = Vec::new();
        while let Some(member) = members.next_entry()? {
            all.push(member);
        }
        Ok(Tree::Object(all))
    }
}
