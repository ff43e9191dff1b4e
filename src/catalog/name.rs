//! Names of servers in the config, derived from names in descriptions.

use std::collections::BTreeMap;

use crate::report::brief;

/// Maximum length of a name. The config allows more, but the name is a prefix of tool names, for
/// which clients have limits.
const LONGEST: usize = 32;

/// Why a name cannot be converted or used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    #[error("`{}` has letters that others can be taken for: choose a name with `--name`", brief(.0))]
    Foreign(String),
    #[error("nothing of `{}` can stand in a name of a server: choose one with `--name`", brief(.0))]
    Empty(String),
    #[error(
        "a server named \"{0}\" already exists: replace it with `--replace`, or choose another name with `--name`"
    )]
    Exists(String),
    #[error(
        "the name \"{name}\" is too much like \"{other}\", which already exists: choose another name with `--name`"
    )]
    Alike { name: String, other: String },
}

/// Whether the config allows a name.
pub fn is_legal(name: &str) -> bool {
    (1..=64).contains(&name.len())
        && name.starts_with(|first: char| first.is_ascii_alphanumeric())
        && name.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_'))
}

/// The config name of a server: the last part of a path, in lower case, with `-` for characters
/// that a name cannot have.
///
/// # Errors
/// [`NameError`], if a name has non-ASCII letters (which look like others) or nothing is left of
/// it.
pub fn ours(original: &str) -> Result<String, NameError> {
    if !original.bytes().all(|b| b.is_ascii_graphic() || b == b' ') {
        return Err(NameError::Foreign(original.to_owned()));
    }
    let parts: Vec<&str> = original.split('/').filter(|part| !part.is_empty()).collect();
    let last = parts.last().copied().unwrap_or("");
    // In `io.github.user/mcp`, only the part before the last one is specific.
    let name_parts = match parts.as_slice() {
        [.., before, "mcp" | "server" | "mcp-server"] => {
            format!("{}-{last}", before.rsplit('.').next().unwrap_or(before))
        }
        _ => last.to_owned(),
    };
    let mut name = String::new();
    for c in name_parts.chars().map(|c| c.to_ascii_lowercase()) {
        match c {
            'a'..='z' | '0'..='9' | '_' => name.push(c),
            _ if !name.ends_with('-') => name.push('-'),
            _ => {}
        }
    }
    let name = name.trim_matches(['-', '_']);
    let name = name.get(..LONGEST).unwrap_or(name).trim_end_matches(['-', '_']);
    if is_legal(name) { Ok(name.to_owned()) } else { Err(NameError::Empty(original.to_owned())) }
}

/// The names in use, by their appearance.
#[derive(Debug, Default, Clone)]
pub struct Names(BTreeMap<String, String>);

impl Names {
    /// The names in the config.
    pub fn of<'a>(names: impl IntoIterator<Item = &'a str>) -> Self {
        Self(names.into_iter().map(|name| (look(name), name.to_owned())).collect())
    }

    /// Adds a name.
    ///
    /// # Errors
    /// [`NameError::Exists`] if it is in use, [`NameError::Alike`] if it looks like a name in use.
    pub fn take(&mut self, name: &str) -> Result<(), NameError> {
        let own = look(name);
        let near = self.0.iter().find(|(look, _)| {
            **look == own
                || own.starts_with(&format!("{look}__"))
                || look.starts_with(&format!("{own}__"))
        });
        if let Some((_, other)) = near {
            if name == other {
                return Err(NameError::Exists(name.to_owned()));
            }
            return Err(NameError::Alike { name: name.to_owned(), other: other.clone() });
        }
        self.0.insert(own, name.to_owned());
        Ok(())
    }
}

/// Appearance of a name: its skeleton by Unicode Technical Standard 39, with `-` and `_` treated as
/// equal, since names of variables cannot have `-`.
fn look(name: &str) -> String {
    let folded = name.to_lowercase().replace('-', "_");
    unicode_security::skeleton(&folded).flat_map(char::to_lowercase).collect()
}

/// A name as part of the name of a variable: in upper case, with `_` for other characters.
pub(crate) fn as_variable(name: &str) -> String {
    name.to_ascii_uppercase().replace(|c: char| !c.is_ascii_alphanumeric(), "_")
}

/// Prefix of the proxy's variables that belong to one server.
#[must_use]
pub fn own_variables(server: &str) -> String {
    format!("MCP_{}__", as_variable(server))
}

/// Whether an environment can hold a variable of that name.
pub(crate) fn is_variable(name: &str) -> bool {
    name.bytes()
        .enumerate()
        .all(|(at, b)| b == b'_' || b.is_ascii_alphabetic() || (at > 0 && b.is_ascii_digit()))
        && !name.is_empty()
        && name.len() <= 256
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn foreign_names_are_converted_or_refused() {
        for (theirs, name) in [
            ("github", "github"),
            ("GitHub Official", "github-official"),
            ("SQLite", "sqlite"),
            ("io.github.user/weather", "weather"),
            ("io.github.user/mcp", "user-mcp"),
            ("@scope/server-x", "server-x"),
            ("a.b c--d", "a-b-c-d"),
            ("-_x_-", "x"),
        ] {
            assert_eq!(ours(theirs).as_deref(), Ok(name), "{theirs}");
        }
        let long = "x".repeat(100);
        assert_eq!(ours(&long).map(|name| name.len()), Ok(LONGEST));
        for theirs in ["", "/", "---", "...", "g\u{456}thub", "a\nb", "a\u{200b}b"] {
            assert!(ours(theirs).is_err(), "{theirs:?}");
        }
    }

    #[test]
    fn confusable_names_are_refused() {
        let mut names = Names::of(["github", "my-notes"]);
        assert_eq!(names.take("github"), Err(NameError::Exists("github".into())));
        let alike = NameError::Alike { name: "my_notes".into(), other: "my-notes".into() };
        assert_eq!(names.take("my_notes"), Err(alike));
        assert!(names.take("g1thub").is_ok(), "a digit in the place of an `i` shows");
        assert!(names.take("github__x").is_err());
        assert!(names.take("modern").is_ok());
        assert!(names.take("modem").is_err());
    }
}
