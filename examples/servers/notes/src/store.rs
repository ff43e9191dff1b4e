//! Where notes are kept.

use std::{
    collections::BTreeMap,
    fmt, io,
    path::{Path, PathBuf},
};

use tokio::{fs, sync::RwLock};

/// Characters of one note.
pub const MAX_TEXT: usize = 65_536;
/// Notes at once.
const MAX_NOTES: usize = 1_000;
/// Characters of a name.
pub const MAX_NAME: usize = 64;

/// What could not be done, in words for the one who asked.
#[derive(Debug)]
pub enum Failure {
    IllegalName,
    Unknown { name: String },
    Exists { name: String },
    TooLong,
    Full,
    Folder { what: &'static str, source: io::Error },
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::IllegalName => {
                write!(f, "a name is 1 to {MAX_NAME} of a-z, 0-9 and `-`")
            }
            Self::Unknown { name } => write!(f, "there is no note `{name}`"),
            Self::Exists { name } => {
                write!(f, "there is a note `{name}` already; say `replace` to overwrite it")
            }
            Self::TooLong => write!(f, "a note has at most {MAX_TEXT} characters"),
            Self::Full => write!(f, "there are {MAX_NOTES} notes already; delete one first"),
            // The folder's path is the operator's business, not the client's.
            Self::Folder { what, source } => {
                write!(f, "the notes folder cannot be {what}: {}", source.kind())
            }
        }
    }
}

impl std::error::Error for Failure {}

/// Notes by name, and the folder they are written to where there is one.
#[derive(Debug)]
pub struct Store {
    notes: RwLock<BTreeMap<String, String>>,
    folder: Option<PathBuf>,
}

impl Store {
    /// Two notes to begin with, gone when the process ends.
    pub fn in_memory() -> Self {
        let notes = [
            ("welcome", "# Welcome\nThese notes live behind Portcullis.\n"),
            ("groceries", "# Groceries\n- bread\n- olives\n- two lemons\n"),
        ];
        let notes = notes.map(|(name, text)| (name.to_owned(), text.to_owned()));
        Self { notes: RwLock::new(notes.into()), folder: None }
    }

    /// The `NAME.md` files of a folder. Other files in it are left alone.
    ///
    /// # Errors
    /// A folder or a file in it that cannot be read.
    pub async fn in_folder(folder: PathBuf) -> Result<Self, Failure> {
        let read = |source| Failure::Folder { what: "read", source };
        let mut notes = BTreeMap::new();
        let mut entries = fs::read_dir(&folder).await.map_err(read)?;
        while let Some(entry) = entries.next_entry().await.map_err(read)? {
            if let Some(name) = note_name(&entry.path()) {
                notes.insert(name, fs::read_to_string(entry.path()).await.map_err(read)?);
            }
        }
        Ok(Self { notes: RwLock::new(notes), folder: Some(folder) })
    }

    /// Every name, sorted, with the number of characters of its note.
    pub async fn list(&self) -> Vec<(String, usize)> {
        let notes = self.notes.read().await;
        notes.iter().map(|(name, text)| (name.clone(), text.chars().count())).collect()
    }

    /// The text of a note.
    ///
    /// # Errors
    /// [`Failure::Unknown`].
    pub async fn read(&self, name: &str) -> Result<String, Failure> {
        let notes = self.notes.read().await;
        notes.get(name).cloned().ok_or_else(|| Failure::Unknown { name: name.to_owned() })
    }

    /// Keeps a note. True where it took the place of another.
    ///
    /// # Errors
    /// An illegal name, a text too long, one note too many, or a folder that cannot be written.
    pub async fn add(&self, name: &str, text: &str, replace: bool) -> Result<bool, Failure> {
        if !legal(name) {
            return Err(Failure::IllegalName);
        }
        if text.chars().count() > MAX_TEXT {
            return Err(Failure::TooLong);
        }
        let mut notes = self.notes.write().await;
        let exists = notes.contains_key(name);
        if exists && !replace {
            return Err(Failure::Exists { name: name.to_owned() });
        }
        if !exists && notes.len() >= MAX_NOTES {
            return Err(Failure::Full);
        }
        if let Some(folder) = &self.folder {
            let written = |source| Failure::Folder { what: "written", source };
            // A reader of the folder never sees half a note.
            let partial = folder.join(format!(".{name}.part"));
            fs::write(&partial, text).await.map_err(written)?;
            fs::rename(&partial, folder.join(file_name(name))).await.map_err(written)?;
        }
        notes.insert(name.to_owned(), text.to_owned());
        Ok(exists)
    }

    /// Forgets a note.
    ///
    /// # Errors
    /// [`Failure::Unknown`], or a folder that cannot be written.
    pub async fn delete(&self, name: &str) -> Result<(), Failure> {
        let mut notes = self.notes.write().await;
        if !notes.contains_key(name) {
            return Err(Failure::Unknown { name: name.to_owned() });
        }
        if let Some(folder) = &self.folder {
            fs::remove_file(folder.join(file_name(name)))
                .await
                .map_err(|source| Failure::Folder { what: "written", source })?;
        }
        notes.remove(name);
        Ok(())
    }
}

fn legal(name: &str) -> bool {
    (1..=MAX_NAME).contains(&name.len())
        && name.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-'))
}

fn file_name(name: &str) -> String {
    format!("{name}.md")
}

fn note_name(path: &Path) -> Option<String> {
    let name = path.file_name()?.to_str()?.strip_suffix(".md")?;
    (legal(name) && path.is_file()).then(|| name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn names_outside_the_folder_are_refused() {
        let store = Store::in_memory();
        for name in ["", "../up", "a/b", "A", ".hidden", "a b", &"x".repeat(MAX_NAME + 1)] {
            let refused = store.add(name, "text", true).await;
            assert!(matches!(refused, Err(Failure::IllegalName)), "{name}");
        }
    }

    #[tokio::test]
    async fn note_is_replaced_only_on_request() {
        let store = Store::in_memory();
        assert!(matches!(store.add("welcome", "x", false).await, Err(Failure::Exists { .. })));
        assert!(store.add("welcome", "x", true).await.unwrap());
        assert_eq!(store.read("welcome").await.unwrap(), "x");
        assert!(!store.add("new", "y", true).await.unwrap());
    }

    #[tokio::test]
    async fn note_length_is_limited() {
        let store = Store::in_memory();
        assert!(store.add("long", &"ä".repeat(MAX_TEXT), false).await.is_ok());
        let refused = store.add("longer", &"ä".repeat(MAX_TEXT + 1), false).await;
        assert!(matches!(refused, Err(Failure::TooLong)));
    }

    #[tokio::test]
    async fn folder_store_changes_only_note_files() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("old.md"), "old").unwrap();
        std::fs::write(folder.path().join("other.txt"), "other").unwrap();
        let store = Store::in_folder(folder.path().into()).await.unwrap();
        assert_eq!(store.list().await, [("old".to_owned(), 3)]);
        store.add("new", "new", false).await.unwrap();
        store.delete("old").await.unwrap();
        let mut left: Vec<_> = std::fs::read_dir(folder.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        left.sort();
        assert_eq!(left, ["new.md", "other.txt"]);
    }
}
