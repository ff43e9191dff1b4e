//! A project that builds and passes its own cases as it stands.

use std::{
    fs,
    path::{Path, PathBuf},
};

use super::{
    Failed, Language,
    files::{NAME, files},
};

/// Writes a project into a folder that is not there yet, or is empty. What it wrote.
///
/// # Errors
/// A name that some language would not take, and files that cannot be written.
pub fn new(language: Language, name: &str, folder: &Path) -> Result<Vec<PathBuf>, Failed> {
    if !is_name(name) {
        return Err(Failed::Name { name: name.to_owned() });
    }
    let taken = fs::read_dir(folder).map(|mut entries| entries.next().is_some());
    // What is there already is somebody's.
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

/// A legal name of a crate, a package of npm, a world and, with `_`, a module of Python.
fn is_name(name: &str) -> bool {
    (1..=64).contains(&name.len())
        && name.starts_with(|c: char| c.is_ascii_lowercase())
        && name.split('-').all(|word| {
            // The words of WIT begin with a letter.
            word.starts_with(|c: char| c.is_ascii_lowercase())
                && word.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit())
        })
}

/// A text of a template with the plugin's name in all its spellings.
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

/// A lock file with its packages in order: cargo takes no other as unchanged.
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
    fn names_that_every_language_takes() {
        for name in ["a", "refunds", "redact-pii", "a1-b2"] {
            assert!(is_name(name), "{name}");
        }
        for name in ["", "A", "a_b", "1a", "a-", "-a", "a--b", "a-1", "a b", "é", &"a".repeat(65)]
        {
            assert!(!is_name(name), "{name}");
        }
    }

    #[test]
    fn a_name_in_all_its_spellings() {
        let text = "my-plugin my_plugin.py struct MyPlugin";
        assert_eq!(named(text, "no-refunds"), "no-refunds no_refunds.py struct NoRefunds");
    }

    #[test]
    fn a_lock_file_stays_in_order() {
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
