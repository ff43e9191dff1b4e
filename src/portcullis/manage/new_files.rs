//! New files of a folder: all of them are written, or none.

use std::{
    fs::{self, OpenOptions},
    io::{self, Write as _},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, bail};

use portcullis_policy_tools::Rendered;

/// A file to create.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewFile {
    pub path: PathBuf,
    pub text: String,
}

/// The files of templates in a folder.
#[derive(Debug, Default)]
pub struct PlannedFiles {
    /// Files to create.
    pub new: Vec<NewFile>,
    /// Files that exist and stay: other templates and servers use them, too.
    pub kept: Vec<PathBuf>,
}

/// Plans the files of templates in a folder.
///
/// # Errors
/// A file that is not shared exists already.
pub fn plan(folder: &Path, rendered: &[Rendered]) -> anyhow::Result<PlannedFiles> {
    let mut planned = PlannedFiles::default();
    for one in rendered {
        for (name, text, _) in one.files() {
            let path = folder.join(name);
            match (path.exists(), one.shared) {
                (false, _) => planned.new.push(NewFile { path, text: text.to_owned() }),
                (true, true) => planned.kept.push(path),
                (true, false) => {
                    bail!("{} exists already: rename it or write to another folder", path.display())
                }
            }
        }
    }
    Ok(planned)
}

/// Creates files. If one cannot be created, those created before it are removed.
///
/// # Errors
/// A file exists, or cannot be written.
pub fn create<'a>(files: impl IntoIterator<Item = &'a NewFile>) -> anyhow::Result<()> {
    let mut created: Vec<&Path> = Vec::new();
    for NewFile { path, text } in files {
        match create_one(path, text) {
            Ok(()) => created.push(path),
            Err(error) => {
                created.iter().for_each(|path| drop(fs::remove_file(path)));
                return Err(error).with_context(|| format!("cannot write {}", path.display()));
            }
        }
    }
    Ok(())
}

/// Removes files that [`create`] created, after a later step failed. The error of that step is the one
/// to report.
pub fn remove<'a>(files: impl IntoIterator<Item = &'a NewFile>) {
    files.into_iter().for_each(|file| drop(fs::remove_file(&file.path)));
}

fn create_one(path: &Path, text: &str) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).open(path)?;
    let written = file.write_all(text.as_bytes()).and_then(|()| file.sync_all());
    if written.is_err() {
        let _ = fs::remove_file(path);
    }
    written
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(folder: &Path, name: &str) -> NewFile {
        NewFile { path: folder.join(name), text: name.to_owned() }
    }

    #[test]
    fn existing_file_prevents_all_files() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("b"), "mine").unwrap();
        let files = ["a", "b", "c"].map(|name| file(folder.path(), name));
        let error = create(&files).unwrap_err().to_string();
        assert!(error.contains("cannot write") && error.contains("/b"), "{error}");
        let names: Vec<_> = fs::read_dir(folder.path()).unwrap().collect();
        assert_eq!(names.len(), 1, "{names:?}");
        assert_eq!(fs::read_to_string(folder.path().join("b")).unwrap(), "mine");
        create(&files[..1]).unwrap();
        assert_eq!(fs::read_to_string(folder.path().join("a")).unwrap(), "a");
    }
}
