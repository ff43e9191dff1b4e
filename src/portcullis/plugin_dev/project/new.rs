//! Creates a project that builds and passes its own cases without changes.

use std::{
    fs,
    path::{Path, PathBuf},
};

use super::{
    Failed, Language,
    files::{NAME, files},
};

/// Writes a project to a folder that does not exist or is empty. Returns the written files.
///
/// # Errors
/// The name is invalid in one of the languages, or a file cannot be written.
pub fn new(language: Language, name: &str, folder: &Path) -> Result<Vec<PathBuf>, Failed> {
    if !is_name(name) {
        return Err(Failed::Name { name: name.to_owned() });
    }
    let taken = fs::read_dir(folder).map(|mut entries| entries.next().is_some());
    // Existing files are never overwritten.
    if taken.unwrap_or_else(|_| folder.exists()) {
        return Err(Failed::Exists { path: folder.to_owned() });
    }
    let mut written = Vec::new();
    for (path, content) in files(language) {
        let path = folder.join(named(&path, name));
        let content = match std::str::from_utf8(content) {
            Ok(text) if path.file_name().is_some_and(|file| file == "Cargo.lock") => {
                sorted(&named(text, name)).into_bytes()
            }
            Ok(text) => named(text, name).into_bytes(),
            Err(_) => content.to_vec(),
        };
        let unwritable = |source| Failed::Unwritable { path: path.clone(), source };
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).map_err(unwritable)?;
        }
        fs::write(&path, content).map_err(unwritable)?;
        written.push(path);
    }
    Ok(written)
}

/// Whether a name is valid for a crate, an npm package, a world and, with `_`, a Python module.
fn is_name(name: &str) -> bool {
    (1..=64).contains(&name.len())
        && name.starts_with(|c: char| c.is_ascii_lowercase())
        && name.split('-').all(|word| {
            // A word in WIT begins with a letter.
            word.starts_with(|c: char| c.is_ascii_lowercase())
                && word.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit())
        })
}

/// Text of a template with the name of the plugin, in all its spellings.
fn named(text: &str, name: &str) -> String {
    let camel = |name: &str| -> String {
        let word = |word: &str| {
            let (first, rest) = word.split_at(usize::from(!word.is_empty()));
            first.to_ascii_uppercase() + rest
        };
        name.split('-').map(word).collect()
    };
    text.replace(NAME, name)
        .replace(&NAME.replace('-', "_"), &name.replace('-', "_"))
        .replace(&camel(NAME), &camel(name))
}

/// Lock file with its packages in order: cargo treats any other order as a change.
fn sorted(lock: &str) -> String {
    const BEGIN: &str = "[[package]]\n";
    let mut parts = lock.split(BEGIN);
    let head = parts.next().unwrap_or_default();
    let mut packages: Vec<&str> = parts.map(str::trim_end).collect();
    let key = |package: &str| {
        let value = |key: &str| {
            let line = package.lines().find_map(|line| line.strip_prefix(key)).unwrap_or_default();
            line.trim_matches('"').to_owned()
        };
        (value("name = "), value("version = "))
    };
    packages.sort_by_key(|package| key(package));
    let packages: Vec<_> = packages.iter().map(|package| format!("{BEGIN}{package}\n")).collect();
    format!("{head}{}", packages.join("\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_legal_in_every_language_are_accepted() {
        for name in ["a", "refunds", "redact-pii", "a1-b2"] {
            assert!(is_name(name), "{name}");
        }
        for name in ["", "A", "a_b", "1a", "a-", "-a", "a--b", "a-1", "a b", "é", &"a".repeat(65)]
        {
            assert!(!is_name(name), "{name}");
        }
    }

    #[test]
    fn every_spelling_of_the_name_is_replaced() {
        let text = "my-plugin my_plugin.py struct MyPlugin";
        assert_eq!(named(text, "no-refunds"), "no-refunds no_refunds.py struct NoRefunds");
    }

    #[test]
    fn lock_file_is_sorted() {
        let lock = "version = 4\n\n[[package]]\nname = \"a\"\nversion = \"1\"\n\n[[package]]\n\
                    name = \"z\"\nversion = \"1\"\n\n[[package]]\nname = \"b\"\nversion = \"2\"\n";
        let names: Vec<_> = sorted(lock)
            .lines()
            .filter_map(|l| l.strip_prefix("name = ").map(str::to_owned))
            .collect();
        assert_eq!(names, ["\"a\"", "\"b\"", "\"z\""]);
        assert_eq!(sorted(&sorted(lock)), sorted(lock));
        assert_eq!(sorted(lock).len(), lock.len());
    }
}
