//! Config files of MCP clients on this machine, and the connections that `client connect` made.
//!
//! # Invariants
//! - A file is replaced as a whole, with its mode, and only if it is still the file that was read.
//! - A file of another user is neither read nor written. A symbolic link is followed only to a file
//!   of this user; in a project, only to a file in the project's folder.
//! - A key is in its own file of the state folder (mode 0600), and in no other file.

use std::{
    fs::{self, DirBuilder},
    io,
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, bail};
use nix::unistd::{AccessFlags, access, geteuid};
use serde::{Deserialize, Serialize};

use portcullis_catalog::{
    MAX_BYTES,
    client_files::{Base, ClientKind, Edit},
};
use portcullis_foundation::atomic_file;
use portcullis_protocol::{identity::Key, names::ClientName};

/// Mode of a new config file of a client.
const NEW_FILE: u32 = 0o600;

/// Which config file of a client.
#[derive(Debug, Clone, Copy)]
pub enum Level<'a> {
    /// The user's.
    User,
    /// That of the project in this folder.
    Project(&'a Path),
    /// This one.
    File(&'a Path),
}

/// Absolute path of a client's config file.
///
/// # Errors
/// The client has no file of that level, or the folder does not exist.
pub fn locate(kind: &ClientKind, level: Level<'_>) -> anyhow::Result<PathBuf> {
    let (folder, names) = match level {
        Level::File(file) => return Ok(std::path::absolute(file)?),
        Level::Project(folder) => {
            let Some(names) = kind.project else {
                bail!("{} has no config file of a project: omit `--project`", kind.title);
            };
            if !folder.is_dir() {
                bail!("`--project {}`: this is not a folder", folder.display());
            }
            // `.` and links have no name of their own, and another path would be another file.
            (fs::canonicalize(folder)?, names)
        }
        Level::User => {
            let file = if cfg!(target_os = "macos") { &kind.macos } else { &kind.linux };
            (base(file.base)?, file.names)
        }
    };
    let mut paths = names.iter().map(|name| folder.join(name));
    let existing = paths.clone().find(|path| path.symlink_metadata().is_ok());
    existing.or_else(|| paths.next()).context("the client has no config file")
}

fn base(base: Base) -> anyhow::Result<PathBuf> {
    let home = || {
        let home = std::env::home_dir().filter(|home| home.is_absolute());
        home.context("the home folder is unknown: set `HOME`, or name the file with `--file`")
    };
    match base {
        Base::Home => home(),
        Base::Config => {
            let config = std::env::var_os("XDG_CONFIG_HOME").map(PathBuf::from);
            match config.filter(|config| config.is_absolute()) {
                Some(config) => Ok(config),
                None => Ok(home()?.join(".config")),
            }
        }
    }
}

/// A client's config file.
#[derive(Debug)]
pub struct ClientFile {
    path: PathBuf,
    /// The file itself, if the path is a link.
    target: PathBuf,
    /// Its content. `None` if it does not exist.
    pub text: Option<String>,
    mode: u32,
}

impl ClientFile {
    /// Reads a file that may be missing. A file of a project must be in the project's folder.
    ///
    /// # Errors
    /// If the file could not be written, is not this user's, or is not text.
    pub fn read(path: PathBuf, project: Option<&Path>) -> anyhow::Result<Self> {
        let shown = path.display();
        if let Some(project) = project {
            let project = fs::canonicalize(project)
                .with_context(|| format!("cannot find the folder {}", project.display()))?;
            let folder = existing_folder(&path)?;
            let folder = fs::canonicalize(&folder)
                .with_context(|| format!("cannot find the folder {}", folder.display()))?;
            let target = fs::canonicalize(&path).unwrap_or_default();
            if !folder.starts_with(&project) || (path.exists() && !target.starts_with(&project)) {
                bail!(
                    "{shown} is behind a link to a file outside of {}: replace the link by a file",
                    project.display()
                );
            }
        }
        let entry = match path.symlink_metadata() {
            Ok(entry) => entry,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let folder = existing_folder(&path)?;
                writable(&folder)?;
                return Ok(Self { target: path.clone(), path, text: None, mode: NEW_FILE });
            }
            Err(error) => {
                return Err(error).with_context(|| format!("cannot read {shown}"));
            }
        };
        if entry.is_symlink() && !path.exists() {
            bail!(
                "{shown} is a link to a file that does not exist: remove the link, or create the file"
            );
        }
        let target = fs::canonicalize(&path).with_context(|| format!("cannot read {shown}"))?;
        let meta = fs::metadata(&target).with_context(|| format!("cannot read {shown}"))?;
        if !meta.is_file() {
            bail!("{shown} is not a file: remove it, or name another file with `--file`");
        }
        if meta.uid() != geteuid().as_raw() {
            bail!(
                "{shown} belongs to another user (number {}): run this command as that user",
                meta.uid()
            );
        }
        if meta.mode() & 0o200 == 0 {
            bail!("{shown} is not writable: run `chmod u+w` on it");
        }
        writable(target.parent().unwrap_or(&target))?;
        if meta.len() > MAX_BYTES as u64 {
            bail!("{shown} has more than {} MiB: it is not changed", MAX_BYTES >> 20);
        }
        let bytes = fs::read(&target).with_context(|| format!("cannot read {shown}"))?;
        let Ok(text) = String::from_utf8(bytes) else {
            bail!("{shown} is not text in UTF-8: correct it");
        };
        Ok(Self { path, target, text: Some(text), mode: meta.mode() & 0o7777 })
    }

    /// Path as the client names it.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Folders that do not exist yet, the innermost first.
    pub fn missing_folders(&self) -> Vec<PathBuf> {
        let folders = self.target.ancestors().skip(1);
        folders.take_while(|folder| !folder.exists()).map(Path::to_owned).collect()
    }

    /// Writes the file, and its folders.
    ///
    /// # Errors
    /// If it was changed since it was read, or cannot be written. It then has its old content, unless
    /// only the last step, writing its folder to disk, failed.
    pub fn write(&self, text: &str) -> anyhow::Result<()> {
        self.check_unchanged()?;
        if let Some(folder) = self.target.parent() {
            DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(folder)
                .with_context(|| format!("cannot make the folder {}", folder.display()))?;
        }
        atomic_file::write_as(&self.target, text.as_bytes(), self.mode)
            .with_context(|| format!("cannot write {}", self.path.display()))
    }

    /// Removes the file, and those of the folders that are empty.
    ///
    /// # Errors
    /// If it was changed since it was read, or cannot be removed.
    pub fn delete(&self, folders: &[PathBuf]) -> anyhow::Result<()> {
        self.check_unchanged()?;
        if self.text.is_some() {
            fs::remove_file(&self.path)
                .with_context(|| format!("cannot remove {}", self.path.display()))?;
        }
        remove_empty(folders);
        Ok(())
    }

    fn check_unchanged(&self) -> anyhow::Result<()> {
        let now = match fs::read(&self.target) {
            Ok(now) => Some(now),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => {
                return Err(error).with_context(|| format!("cannot read {}", self.path.display()));
            }
        };
        if now.as_deref() != self.text.as_deref().map(str::as_bytes) {
            bail!(
                "{} was changed in the meantime, so it was not written: run the command again",
                self.path.display()
            );
        }
        Ok(())
    }
}

/// Removes those of the folders that are empty.
pub fn remove_empty(folders: &[PathBuf]) {
    for folder in folders {
        // A folder with other files stays.
        let _ = fs::remove_dir(folder);
    }
}

/// The innermost folder of that file that exists.
fn existing_folder(path: &Path) -> anyhow::Result<PathBuf> {
    let found = path.ancestors().skip(1).find(|folder| folder.symlink_metadata().is_ok());
    let found = found.with_context(|| format!("no folder of {} exists", path.display()))?;
    if !found.is_dir() {
        bail!("{} is not a folder: remove it", found.display());
    }
    Ok(found.to_owned())
}

fn writable(folder: &Path) -> anyhow::Result<()> {
    access(folder, AccessFlags::W_OK)
        .with_context(|| format!("the folder {} is not writable: `chmod u+w` it", folder.display()))
}

/// A connection of a client: what `client disconnect` takes back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Connection {
    /// Client whose key the entry uses.
    pub client: ClientName,
    /// Id of the key.
    pub key: String,
    /// Name of the client's kind.
    pub kind: String,
    /// Absolute path of the config file.
    pub file: PathBuf,
    /// Name of the entry in the file.
    pub entry: String,
    /// Change of the file.
    pub edit: Edit,
    /// Whether the file was created with the entry.
    pub created: bool,
    /// Folders that were created with it, the innermost first.
    pub folders: Vec<PathBuf>,
}

/// The folder `connections` of the state folder: keys of connected clients, and their connections.
#[derive(Debug)]
pub struct Connections {
    folder: PathBuf,
}

impl Connections {
    /// Connections in a state folder. Accesses no file yet.
    ///
    /// # Errors
    /// The working folder is unknown.
    pub fn within(state_dir: &Path) -> io::Result<Self> {
        Ok(Self { folder: std::path::absolute(state_dir)?.join("connections") })
    }

    /// Absolute path of the file with a client's key.
    pub fn key_file(&self, client: &ClientName) -> PathBuf {
        self.folder.join(format!("{client}.key"))
    }

    fn connection_file(&self, client: &ClientName) -> PathBuf {
        self.folder.join(format!("{client}.json"))
    }

    /// The file of a connection or a key that exists for a client.
    pub fn existing_file(&self, client: &ClientName) -> Option<PathBuf> {
        let files = [self.connection_file(client), self.key_file(client)];
        files.into_iter().find(|file| file.symlink_metadata().is_ok())
    }

    /// Connection of a kind of client by a config file.
    ///
    /// # Errors
    /// If a connection cannot be read.
    pub fn find(&self, kind: &ClientKind, file: &Path) -> anyhow::Result<Option<Connection>> {
        let entries = match fs::read_dir(&self.folder) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => {
                return Err(error)
                    .with_context(|| format!("cannot read {}", self.folder.display()));
            }
        };
        for entry in entries {
            let path = entry.with_context(|| format!("cannot read {}", self.folder.display()))?;
            let path = path.path();
            if path.extension().is_none_or(|extension| extension != "json") {
                continue;
            }
            let shown = path.display();
            let text = fs::read(&path).with_context(|| format!("cannot read {shown}"))?;
            let connection: Connection = serde_json::from_slice(&text).with_context(|| {
                format!("{shown} is damaged: remove it, and the entry that it names by hand")
            })?;
            if connection.kind == kind.name && connection.file == file {
                return Ok(Some(connection));
            }
        }
        Ok(None)
    }

    /// Writes a connection and its key.
    ///
    /// # Errors
    /// If they cannot be written, or the client has a connection. Then nothing changes.
    pub fn add(&self, connection: &Connection, key: &Key) -> anyhow::Result<()> {
        let text = serde_json::to_string_pretty(connection)?;
        let failed = || format!("cannot write to {}", self.folder.display());
        let create = || -> io::Result<()> {
            DirBuilder::new().recursive(true).mode(0o700).create(&self.folder)?;
            // Of two commands that connect a client of this name, one creates the file.
            atomic_file::create(&self.connection_file(&connection.client), text.as_bytes())
        };
        create().with_context(failed)?;
        let line = zeroize::Zeroizing::new(format!("{}\n", key.expose()));
        let written = atomic_file::write(&self.key_file(&connection.client), line.as_bytes());
        written.or_else(|error| {
            self.remove(&connection.client)?;
            Err(error).with_context(failed)
        })
    }

    /// Removes a connection and its key, if they exist.
    ///
    /// # Errors
    /// If they cannot be removed.
    pub fn remove(&self, client: &ClientName) -> anyhow::Result<()> {
        // The key first: without its connection, it would stay.
        for file in [self.key_file(client), self.connection_file(client)] {
            match fs::remove_file(&file) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(error).with_context(|| format!("cannot remove {}", file.display()));
                }
                _ => {}
            }
        }
        remove_empty(std::slice::from_ref(&self.folder));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use portcullis_catalog::client_files::named;

    use super::*;

    #[test]
    fn file_keeps_its_mode_and_is_not_overwritten_after_a_change() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("mcp.json");
        fs::write(&path, "{}").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        let file = ClientFile::read(path.clone(), None).unwrap();
        file.write("{ }").unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o640);
        assert_eq!(fs::read_to_string(&path).unwrap(), "{ }");
        // `file` was read before that.
        let error = file.write("{  }").unwrap_err().to_string();
        assert!(error.contains("was changed in the meantime"), "{error}");
        assert!(file.delete(&[]).is_err());
        assert_eq!(fs::read_to_string(&path).unwrap(), "{ }");
    }

    #[test]
    fn new_file_and_its_folders_are_removed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a/b/mcp.json");
        let file = ClientFile::read(path.clone(), Some(folder.path())).unwrap();
        let folders = file.missing_folders();
        assert_eq!(folders, [folder.path().join("a/b"), folder.path().join("a")]);
        file.write("{}").unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, NEW_FILE);
        fs::write(folder.path().join("a/other"), "").unwrap();
        ClientFile::read(path, None).unwrap().delete(&folders).unwrap();
        assert!(!folder.path().join("a/b").exists() && folder.path().join("a/other").exists());
    }

    #[test]
    fn links_are_followed_to_files_of_the_user_only() {
        let folder = tempfile::tempdir().unwrap();
        let (project, other) = (folder.path().join("project"), folder.path().join("other"));
        fs::create_dir(&project).unwrap();
        fs::create_dir(&other).unwrap();
        let (target, link) = (other.join("target.json"), project.join("mcp.json"));
        symlink(&target, &link).unwrap();
        let error = ClientFile::read(link.clone(), None).unwrap_err().to_string();
        assert!(error.contains("a link to a file that does not exist"), "{error}");
        fs::write(&target, "{}").unwrap();
        ClientFile::read(link.clone(), None).unwrap().write("{ }").unwrap();
        assert!(link.symlink_metadata().unwrap().is_symlink());
        assert_eq!(fs::read_to_string(&target).unwrap(), "{ }");
        let error = ClientFile::read(link, Some(&project)).unwrap_err().to_string();
        assert!(error.contains("outside of"), "{error}");
        symlink(&other, project.join("sub")).unwrap();
        for name in ["sub/target.json", "sub/new.json"] {
            let error = ClientFile::read(project.join(name), Some(&project)).unwrap_err();
            assert!(error.to_string().contains("outside of"), "{error}");
        }
    }

    #[test]
    fn connections_are_found_by_kind_and_file() {
        let folder = tempfile::tempdir().unwrap();
        let connections = Connections::within(folder.path()).unwrap();
        let (kind, file) = (named("cursor").unwrap(), Path::new("/home/a/.cursor/mcp.json"));
        assert!(connections.find(kind, file).unwrap().is_none());
        let key = Key::generate().unwrap();
        let connection = Connection {
            client: "cursor".parse().unwrap(),
            key: key.hash().id(),
            kind: "cursor".to_owned(),
            file: file.to_owned(),
            entry: "portcullis".to_owned(),
            edit: Edit {
                at: 0,
                removed: String::new(),
                inserted: "{}".to_owned(),
                added_section: true,
            },
            created: true,
            folders: Vec::new(),
        };
        assert!(connections.existing_file(&connection.client).is_none());
        connections.add(&connection, &key).unwrap();
        assert!(connections.existing_file(&connection.client).is_some());
        // A second connection of the client changes nothing.
        connections.add(&connection, &Key::generate().unwrap()).unwrap_err();
        let key_file = connections.key_file(&connection.client);
        assert_eq!(fs::read_to_string(&key_file).unwrap().trim(), key.expose());
        assert_eq!(fs::metadata(&key_file).unwrap().mode() & 0o777, 0o600);
        assert_eq!(connections.find(kind, file).unwrap().as_ref(), Some(&connection));
        assert!(connections.find(named("zed").unwrap(), file).unwrap().is_none());
        assert!(connections.find(kind, Path::new("/else")).unwrap().is_none());
        connections.remove(&connection.client).unwrap();
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
