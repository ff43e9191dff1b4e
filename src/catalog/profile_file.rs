//! Profiles of ours: named sets of servers, each a file in `profiles` beside the config.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::{lock::replace, name::is_legal};

/// The folder beside the config.
pub const FOLDER: &str = "profiles";

/// A named set of servers of the config. What a server is, the config says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Profile {
    pub version: u32,
    /// For people.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub title: Option<String>,
    /// Names of the config.
    pub servers: Vec<String>,
    /// Whence it came.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
}

/// A profile that can't be used.
#[derive(Debug, thiserror::Error)]
pub enum NoProfile {
    #[error("`{0}` is no name of a profile: use 1 to 64 of a-z, 0-9, `-` and `_`")]
    Name(String),
    #[error("there is no profile `{name}`: {} is not there; `portcullis profile ls` lists those that are", path.display())]
    Absent { name: String, path: PathBuf },
    #[error("cannot read {}: {why}", path.display())]
    Broken { path: PathBuf, why: String },
    #[error("cannot write {}: {why}", path.display())]
    Unwritten { path: PathBuf, why: String },
}

impl Profile {
    /// A profile of these servers.
    #[must_use]
    pub fn of(servers: Vec<String>) -> Self {
        Self { version: 1, title: None, servers, source: None }
    }

    /// Its file, beside the config.
    ///
    /// # Errors
    /// Where the name can be none of a profile.
    pub fn path(folder: &Path, name: &str) -> Result<PathBuf, NoProfile> {
        if !is_legal(name) {
            return Err(NoProfile::Name(name.to_owned()));
        }
        Ok(folder.join(FOLDER).join(format!("{name}.toml")))
    }

    /// Reads a profile beside the config.
    ///
    /// # Errors
    /// [`NoProfile`]
    pub fn read(folder: &Path, name: &str) -> Result<Self, NoProfile> {
        let path = Self::path(folder, name)?;
        let broken = |why: String| NoProfile::Broken { path: path.clone(), why };
        let text = match std::fs::metadata(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Err(NoProfile::Absent { name: name.to_owned(), path });
            }
            Ok(meta) if meta.len() > 1 << 20 => return Err(broken("it is too large".into())),
            _ => std::fs::read_to_string(&path).map_err(|error| broken(error.to_string()))?,
        };
        let profile: Self =
            toml::from_str(&text).map_err(|error| broken(error.to_string().trim().to_owned()))?;
        if profile.version != 1 {
            return Err(broken(format!("version {} is not known", profile.version)));
        }
        Ok(profile)
    }

    /// Writes it, whole or not at all. Whether one was there before.
    ///
    /// # Errors
    /// [`NoProfile`]
    pub fn write(&self, folder: &Path, name: &str) -> Result<bool, NoProfile> {
        let path = Self::path(folder, name)?;
        let failed = |why: String| NoProfile::Unwritten { path: path.clone(), why };
        let there = path.exists();
        let text = toml::to_string(self).map_err(|error| failed(error.to_string()))?;
        std::fs::create_dir_all(folder.join(FOLDER)).map_err(|error| failed(error.to_string()))?;
        replace(&path, text.as_bytes()).map_err(|error| failed(error.to_string()))?;
        Ok(there)
    }

    /// The names of the profiles beside the config.
    ///
    /// # Errors
    /// Where their folder can't be read.
    pub fn all(folder: &Path) -> std::io::Result<Vec<String>> {
        let entries = match std::fs::read_dir(folder.join(FOLDER)) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries?,
        };
        let mut names = Vec::new();
        for entry in entries.take(10_000) {
            let name = entry?.file_name();
            let name = name.to_str().and_then(|name| name.strip_suffix(".toml"));
            names.extend(name.filter(|name| is_legal(name)).map(str::to_owned));
        }
        names.sort();
        Ok(names)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn profiles_are_read_as_they_were_written() {
        let folder = tempfile::tempdir().unwrap();
        assert!(Profile::all(folder.path()).unwrap().is_empty());
        assert!(matches!(Profile::read(folder.path(), "dev"), Err(NoProfile::Absent { .. })));
        let mut profile = Profile::of(vec!["a".into(), "b".into()]);
        profile.title = Some("Development".into());
        assert!(!profile.write(folder.path(), "dev").unwrap());
        assert!(profile.write(folder.path(), "dev").unwrap());
        assert_eq!(Profile::read(folder.path(), "dev").unwrap(), profile);
        assert_eq!(Profile::all(folder.path()).unwrap(), ["dev"]);
        for name in ["", "../x", "A", "a/b"] {
            assert!(profile.write(folder.path(), name).is_err());
        }
        std::fs::write(folder.path().join("profiles/bad.toml"), "version = 9\nservers = []\n")
            .unwrap();
        assert!(Profile::read(folder.path(), "bad").is_err());
    }
}
