//! Names in the merged lists.
//!
//! A server may use any name; the strictest common clients accept `[a-zA-Z0-9_-]{1,64}`. A name
//! that fits with its prefix is unchanged. In any other, illegal characters are replaced and a part
//! of its hash is appended, so that the result is the same in every run and differs from every
//! other name.

use std::sync::LazyLock;

use regex::Regex;
use sha2::{Digest, Sha256};

/// Separator between a server's prefix and a name.
pub const SEPARATOR: &str = "__";
/// Limit of a name with its prefix in characters.
pub const MAX_NAME_CHARS: usize = 64;
/// Limit of a prefix in characters: half of a name, so that the rest remains for the tool.
pub const MAX_PREFIX_CHARS: usize = 32;

/// Number of shown hexadecimal digits of a name's hash.
const HASH_DIGITS: usize = 8;

/// Whether every client accepts this name.
pub fn is_legal(name: &str) -> bool {
    (1..=MAX_NAME_CHARS).contains(&name.len()) && name.bytes().all(fits)
}

fn fits(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-'
}

/// A server's name in the merged lists.
pub fn merged_name(prefix: &str, name: &str) -> String {
    let start = start(prefix);
    let plain = format!("{start}{name}");
    if is_legal(&plain) {
        return plain;
    }
    let room = MAX_NAME_CHARS.saturating_sub(start.len() + 1 + HASH_DIGITS);
    let mut stem = String::with_capacity(room);
    for character in name.chars() {
        if stem.len() == room {
            break;
        }
        match u8::try_from(character) {
            Ok(byte) if fits(byte) => stem.push(character),
            // One underscore for a run of them: a name in another script consists of its hash.
            _ if stem.ends_with('_') => {}
            _ => stem.push('_'),
        }
    }
    let hash = hex::encode(Sha256::digest(name.as_bytes()));
    format!("{start}{stem}_{}", &hash[..HASH_DIGITS])
}

/// Whether a name without its prefix may have been changed. Then only the server's list has the
/// original.
pub fn may_be_changed(inner: &str) -> bool {
    inner.len() > HASH_DIGITS
        && inner.is_char_boundary(inner.len() - HASH_DIGITS)
        && inner[inner.len() - HASH_DIGITS..]
            .bytes()
            .all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
        && inner.as_bytes()[inner.len() - HASH_DIGITS - 1] == b'_'
}

/// Name without this prefix.
pub fn inner<'a>(prefix: &str, outer: &'a str) -> Option<&'a str> {
    outer.strip_prefix(&start(prefix))
}

fn start(prefix: &str) -> String {
    if prefix.is_empty() { String::new() } else { format!("{prefix}{SEPARATOR}") }
}

/// Whether names with one prefix could be taken for names with the other: the prefixes are equal,
/// or equal ignoring case and look-alikes (`git1`, `gitl`), or one with its separator is the
/// beginning of the other.
pub fn run_together(one: &str, other: &str) -> bool {
    if one.is_empty() || other.is_empty() {
        return one == other;
    }
    // Case is ignored before look-alikes are replaced, where `0` is an `O`, and after.
    [one.to_owned(), one.to_lowercase()].iter().zip([other.to_owned(), other.to_lowercase()]).any(
        |(one, other)| {
            let (one, other) = (look(&start(one)), look(&start(&other)));
            one.starts_with(&other) || other.starts_with(&one)
        },
    )
}

/// Whether an unprefixed name looks as if it had this prefix.
pub fn looks_behind(prefix: &str, name: &str) -> bool {
    !prefix.is_empty()
        && (look(name).starts_with(&look(&start(prefix)))
            || look(&name.to_lowercase()).starts_with(&look(&start(&prefix.to_lowercase()))))
}

/// Normalized look of a text: its skeleton by Unicode's technical standard 39, in lower case.
pub fn look(text: &str) -> String {
    unicode_security::skeleton(text).flat_map(char::to_lowercase).collect()
}

/// Whether a text contains invisible characters or ones that change the text around them: controls,
/// marks of writing directions, zero-width characters, and code points that are not characters.
pub fn has_unseen(text: &str) -> bool {
    static UNSEEN: LazyLock<Option<Regex>> =
        LazyLock::new(|| Regex::new(r"[\p{C}\p{Zl}\p{Zp}\p{Default_Ignorable_Code_Point}]").ok());
    UNSEEN.as_ref().is_none_or(|unseen| unseen.is_match(text))
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn fitting_names_are_unchanged() {
        assert_eq!(merged_name("notes", "add_note"), "notes__add_note");
        assert_eq!(merged_name("", "Add-Note9"), "Add-Note9");
        assert_eq!(merged_name("p", ""), "p__");
        let name = "n".repeat(MAX_NAME_CHARS - 3);
        assert_eq!(merged_name("p", &name), format!("p__{name}"));
    }

    #[test]
    fn other_names_get_a_hash() {
        for (name, expected) in [
            ("repos/list", "p__repos_list_"),
            ("admin.tools.list", "p__admin_tools_list_"),
            ("読む", "p____"),
            (" ", "p____"),
        ] {
            let merged_name = merged_name("p", name);
            assert!(merged_name.starts_with(expected), "{name}: {merged_name}");
            assert!(may_be_changed(inner("p", &merged_name).unwrap()), "{name}: {merged_name}");
        }
        assert_eq!(merged_name("p", "a.b"), "p__a_b_2e7336dc");
        assert_ne!(merged_name("p", "a.b"), merged_name("p", "a/b"));
        let long = "n".repeat(MAX_NAME_CHARS - 2);
        assert_eq!(merged_name("p", &long).len(), MAX_NAME_CHARS);
        assert_ne!(merged_name("p", &long), merged_name("p", &format!("{long}n")));
    }

    #[test]
    fn confusable_prefixes_are_found() {
        for (one, other, together) in [
            ("a", "a", true),
            ("a", "b", false),
            ("a", "ab", false),
            ("a", "A", true),
            ("a", "a__b", true),
            // `a_` with its separator is `a` with its separator and `_`.
            ("a", "a_", true),
            ("a", "A_", true),
            ("a", "a_b", false),
            ("git1", "gitl", true),
            ("git1", "gitI", true),
            ("n0tes", "notes", true),
            ("N0TES", "notes", true),
            ("modern", "modem", true),
            ("", "", true),
            ("", "a", false),
        ] {
            assert_eq!(run_together(one, other), together, "{one} {other}");
            assert_eq!(run_together(other, one), together, "{other} {one}");
        }
    }

    #[test]
    fn names_that_look_prefixed_are_found() {
        for (name, behind) in [
            ("notes__read", true),
            ("Notes__read", true),
            ("n\u{43e}tes__read", true),
            ("n0tes__read", true),
            ("notes_read", false),
            ("my_notes__read", false),
        ] {
            assert_eq!(looks_behind("notes", name), behind, "{name}");
        }
        assert!(!looks_behind("", "x"));
    }

    #[test]
    fn invisible_characters_are_found() {
        for unseen in
            ["a\u{200b}b", "a\u{202e}b", "\u{2066}a", "a\nb", "a\u{ad}b", "\u{fe0f}", "\u{e0041}"]
        {
            assert!(has_unseen(unseen), "{unseen:?}");
        }
        for seen in ["a b", "読む", "naïve", "\u{430}", "a.b/c"] {
            assert!(!has_unseen(seen), "{seen:?}");
        }
    }

    fn prefix() -> impl Strategy<Value = String> {
        "[a-zA-Z0-9_-]{0,32}"
    }

    fn name() -> impl Strategy<Value = String> {
        prop_oneof!["[a-zA-Z0-9_-]{0,70}", "[a-z./_ ]{0,70}", "\\PC{0,80}", ".{0,20}"]
    }

    proptest! {
        #[test]
        fn outward_names_are_legal(prefix in prefix(), name in name()) {
            let merged_name = merged_name(&prefix, &name);
            prop_assert!(is_legal(&merged_name), "{:?}", merged_name);
            let inner = inner(&prefix, &merged_name);
            prop_assert!(inner.is_some());
            let inner = inner.unwrap_or_default();
            prop_assert!(inner == name || may_be_changed(inner), "{:?}", merged_name);
        }

        #[test]
        fn outward_names_differ(
            prefix in prefix(),
            names in proptest::collection::hash_set(name(), 0..20),
        ) {
            let merged: HashSet<_> = names.iter().map(|name| merged_name(&prefix, name)).collect();
            prop_assert_eq!(merged.len(), names.len());
        }

        #[test]
        fn names_of_two_servers_differ(
            one in prefix(), other in prefix(), a in name(), b in name(),
        ) {
            if !one.is_empty() && !other.is_empty() && !run_together(&one, &other) {
                prop_assert_ne!(merged_name(&one, &a), merged_name(&other, &b));
            }
        }

        #[test]
        fn arbitrary_text_causes_no_panic(text in ".{0,40}") {
            let _ = (has_unseen(&text), look(&text), may_be_changed(&text), is_legal(&text));
            let _ = looks_behind(&text, &text);
        }
    }
}
