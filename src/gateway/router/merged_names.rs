//! The merged lists' view of one server's list, by merged names.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use crate::app_uris;
use portcullis_protocol::exchange::Definition;
use portcullis_protocol::tool_names;
use portcullis_upstream::{Items, ListKind, Notices};

/// One list of a server, as in the merged lists.
#[derive(Debug, Default)]
pub struct MergedNames {
    items: Items,
    entries: Vec<Entry>,
    /// Indexes of the entries by merged name.
    positions: HashMap<String, usize>,
    notices: Notices,
}

/// One item with its merged name.
#[derive(Debug)]
pub struct Entry {
    pub name: String,
    pub item: Arc<Definition>,
}

impl MergedNames {
    /// The entries of a list under this prefix. Without a prefix, names that look like those with a
    /// prefix of `others` are left out.
    pub fn of(items: Items, offer: ListKind, prefix: &str, others: &[String]) -> Self {
        let named = matches!(offer, ListKind::Tools | ListKind::Prompts);
        let merged_names: Vec<String> = items
            .iter()
            .map(|item| {
                if named {
                    return tool_names::merged_name(prefix, &item.name);
                }
                app_uris::scoped(&item.server, &item.name).unwrap_or_else(|| item.name.clone())
            })
            .collect();
        // A name that fits takes precedence over a changed one, whatever their order.
        let fits =
            |item: &Definition, name: &str| tool_names::inner(prefix, name) == Some(&*item.name);
        let fitting: HashSet<&str> = (items.iter().zip(&merged_names))
            .filter(|(item, name)| named && fits(item, name))
            .map(|(_, name)| &**name)
            .collect();
        let strange = named && items.iter().any(|item| !item.name.is_ascii());
        let mut looks: HashSet<String> = (items.iter().filter(|_| strange))
            .filter(|item| item.name.is_ascii())
            .map(|item| tool_names::look(&item.name))
            .collect();
        let mut catalog = Self {
            entries: Vec::with_capacity(items.len()),
            positions: HashMap::with_capacity(items.len()),
            notices: Notices::default(),
            items: items.clone(),
        };
        for (item, name) in items.iter().zip(&merged_names) {
            let why = if tool_names::has_unseen(&item.name) {
                Some("its name has invisible characters")
            } else if !named {
                None
            } else if prefix.is_empty()
                && others.iter().any(|other| tool_names::looks_behind(other, &item.name))
            {
                Some("its name looks like one of another server")
            } else if !item.name.is_ascii() && !looks.insert(tool_names::look(&item.name)) {
                Some("its name looks like another one of the list")
            } else if catalog.positions.contains_key(name)
                || (!fits(item, name) && fitting.contains(&**name))
            {
                Some("its prefixed name is the name of another item")
            } else {
                None
            };
            match why {
                Some(why) => catalog.notices.item(&item.name, why),
                None => {
                    catalog.positions.insert(name.clone(), catalog.entries.len());
                    catalog.entries.push(Entry { name: name.clone(), item: item.clone() });
                }
            }
        }
        catalog
    }

    /// The server's own list.
    pub fn items(&self) -> &Items {
        &self.items
    }

    /// The entries of merged lists, in the server's order.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// The item with a merged name.
    pub fn get(&self, name: &str) -> Option<&Arc<Definition>> {
        self.positions.get(name).map(|at| &self.entries[*at].item)
    }

    /// The items that were left out, with the causes.
    pub fn notices(&self) -> impl Iterator<Item = String> {
        self.items.notices().iter().chain(self.notices.iter())
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use proptest::prelude::*;

    use super::*;
    use portcullis_protocol::exchange::Payload;

    fn items<'a>(names: impl IntoIterator<Item = &'a str>) -> Items {
        let item = |name: &str| {
            let text = serde_json::json!({ "name": name }).to_string();
            let definition = Payload::new(Bytes::from(text));
            let server = "s".parse().unwrap();
            Arc::new(Definition::new(server, name.to_owned(), definition))
        };
        Arc::new(names.into_iter().map(item).collect())
    }

    fn shown<'a>(prefix: &str, names: impl IntoIterator<Item = &'a str>) -> (Vec<String>, usize) {
        let others = ["notes".to_owned()];
        let catalog = MergedNames::of(items(names), ListKind::Tools, prefix, &others);
        let shown = catalog.entries().iter().map(|entry| entry.name.clone()).collect();
        (shown, catalog.notices().count())
    }

    #[test]
    fn merged_names_are_legal_and_resolve() {
        let names = ["add", "repos/list", "repos.list", "読む"];
        let (shown, notices) = shown("p", names);
        assert_eq!((shown.len(), notices), (4, 0), "{shown:?}");
        assert_eq!(shown[0], "p__add");
        let catalog = MergedNames::of(items(names), ListKind::Tools, "p", &[]);
        for (merged_name, name) in shown.iter().zip(names) {
            assert!(tool_names::is_legal(merged_name));
            assert_eq!(catalog.get(merged_name).unwrap().name, name);
            let own = catalog.get(&format!("p__{name}"));
            assert_eq!(own.is_some(), merged_name.ends_with(name));
        }
    }

    #[test]
    fn confusable_names_are_omitted() {
        // A Cyrillic letter, a zero-width space, and a right-to-left override.
        let names = ["re\u{430}d", "read", "re\u{200b}ad", "\u{202e}daer", "\u{440}\u{443}"];
        let (shown, notices) = shown("p", names);
        assert_eq!(shown.len(), 2, "{shown:?}");
        assert_eq!((shown[0].as_str(), notices), ("p__read", 3));
    }

    #[test]
    fn server_without_prefix_cannot_imitate_another() {
        let names = ["notes__read", "NOTES__read", "n0tes__read", "n\u{43e}tes__read", "notes"];
        assert_eq!(shown("", names), (vec!["notes".to_owned()], 4));
    }

    #[test]
    fn changed_name_does_not_hide_a_literal_one() {
        let changed = tool_names::merged_name("p", "a.b");
        let literal = tool_names::inner("p", &changed).unwrap().to_owned();
        for names in [["a.b", &*literal], [&*literal, "a.b"]] {
            let catalog = MergedNames::of(items(names), ListKind::Tools, "p", &[]);
            assert_eq!(catalog.get(&changed).unwrap().name, literal);
            assert_eq!(catalog.entries().len(), 1);
        }
    }

    #[test]
    fn resources_keep_their_names() {
        let names = ["file:///a b.txt", "note:///\u{e4}", "note:///\u{202e}x"];
        let catalog = MergedNames::of(items(names), ListKind::Resources, "p", &[]);
        let shown: Vec<_> = catalog.entries().iter().map(|entry| entry.name.as_str()).collect();
        assert_eq!(shown, names[..2]);
    }

    proptest! {
        #[test]
        fn every_shown_name_is_legal_and_resolves(
            prefix in "[a-z0-9_-]{0,32}",
            names in proptest::collection::hash_set("[a-z./]{0,6}|\\PC{0,70}|.{0,8}", 0..20),
        ) {
            let list = items(names.iter().map(String::as_str));
            let catalog = MergedNames::of(list.clone(), ListKind::Tools, &prefix, &[]);
            let mut seen = HashSet::new();
            for entry in catalog.entries() {
                prop_assert!(tool_names::is_legal(&entry.name));
                prop_assert!(seen.insert(&entry.name));
                prop_assert!(Arc::ptr_eq(catalog.get(&entry.name).unwrap(), &entry.item));
            }
            let repeated = MergedNames::of(list.clone(), ListKind::Tools, &prefix, &[]);
            let name = |catalog: &MergedNames| {
                catalog.entries().iter().map(|entry| entry.name.clone()).collect::<Vec<_>>()
            };
            prop_assert_eq!(name(&catalog), name(&repeated));
            // All names of ASCII letters, digits and punctuation are present.
            let plain = list.iter().filter(|item| item.name.bytes().all(|b| b.is_ascii_graphic()));
            prop_assert!(plain.count() <= catalog.entries().len());
        }
    }
}
