//! Profiles of Portcullis: named sets of servers, each a file in `profiles` beside the config.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use portcullis_foundation::atomic_file;

use crate::{name::is_legal, report::brief, write::tools_left_on};

/// Name of the folder beside the config.
pub const FOLDER: &str = "profiles";
/// Maximum size of a profile.
const LONGEST: u64 = 1 << 20;

/// A named set of servers of the config. The config defines the servers; a profile says which of
/// them run, and how they differ while they run for it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Profile {
    pub version: u32,
    /// For people.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub title: Option<String>,
    /// Names of servers in the config.
    pub servers: Vec<String>,
    /// Source of an imported profile.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// Servers that the author has removed since. Their `settings` are kept in case they return.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub left_out: Vec<String>,
    /// Differences from the config, by server.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub settings: BTreeMap<String, Settings>,
}

/// Differences of a server while it runs for a profile.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Settings {
    /// The enabled tools, by the server's own names; others are refused. `None`: all that policies
    /// permit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tools: Option<Vec<String>>,
    /// Values that replace those of the config for variables in `env`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    /// References that replace those of the config for `secrets` and `headers`. Never values.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub secrets: BTreeMap<String, String>,
}

/// Why a profile cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum NoProfile {
    #[error("`{0}` is not a name of a profile: use 1 to 64 of a-z, 0-9, `-` and `_`")]
    Name(String),
    #[error("there is no profile `{name}`: {} is not there; `portcullis profile ls` lists those that are", path.display())]
    Absent { name: String, path: PathBuf },
    #[error("cannot read {}: {why}", path.display())]
    Broken { path: PathBuf, why: String },
    #[error("cannot write {}: {why}", path.display())]
    WriteFailed { path: PathBuf, why: String },
}

impl Profile {
    /// A profile of these servers.
    #[must_use]
    pub fn of(servers: Vec<String>) -> Self {
        Self {
            version: 1,
            title: None,
            servers,
            source: None,
            left_out: Vec::new(),
            settings: BTreeMap::new(),
        }
    }

    /// Path of the file, beside the config.
    ///
    /// # Errors
    /// If the name is not valid for a profile.
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
        Ok(Self::open(folder, name)?.0)
    }

    /// The policies that limit all callers to the tools that a profile enables. Each has the line
    /// of its list in the profile's file, so that a refusal refers to it.
    ///
    /// # Errors
    /// [`NoProfile`]
    pub fn policies(folder: &Path, name: &str) -> Result<String, NoProfile> {
        let (profile, text) = Self::open(folder, name)?;
        let mut lists: Vec<(usize, String)> = profile
            .settings
            .iter()
            .filter(|(server, _)| profile.servers.contains(server))
            .filter_map(|(server, settings)| {
                let id = format!("{name}.{server}.profile-tools");
                let policy = tools_left_on(&id, server, settings.tools.as_deref()?);
                Some((line_of_tools(&text, server), policy.replace('\n', " ")))
            })
            .collect();
        lists.sort();
        let mut policies = String::new();
        let mut at = 1;
        for (line, policy) in lists {
            for _ in at..line {
                policies.push('\n');
            }
            at = at.max(line);
            policies.push_str(&policy);
        }
        Ok(policies)
    }

    fn open(folder: &Path, name: &str) -> Result<(Self, String), NoProfile> {
        let path = Self::path(folder, name)?;
        let broken = |why: String| NoProfile::Broken { path: path.clone(), why };
        let text = match std::fs::metadata(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Err(NoProfile::Absent { name: name.to_owned(), path });
            }
            Ok(meta) if meta.len() > LONGEST => return Err(broken("it is too large".into())),
            _ => std::fs::read_to_string(&path).map_err(|error| broken(error.to_string()))?,
        };
        // The file may contain a misplaced secret: messages never show its content.
        let profile: Self = toml::from_str(&text).map_err(|error| {
            let before = error.span().map_or("", |span| text.get(..span.start).unwrap_or(""));
            let line = before.matches('\n').count() + 1;
            let what = match error.message() {
                // Serde's messages on wrong types have the value, those on unknown keys the key.
                located if located.starts_with("invalid ") => "something else is expected here",
                located if located.starts_with("missing field") => located,
                located => located.split(['`', '"', '\'']).next().unwrap_or("").trim_end(),
            };
            broken(format!("line {line}: {what}"))
        })?;
        if profile.version != 1 {
            return Err(broken(format!("version {} is not known", profile.version)));
        }
        let is_listed =
            |name: &String| profile.servers.iter().chain(&profile.left_out).any(|one| one == name);
        if let Some(server) = profile.settings.keys().find(|name| !is_listed(name)) {
            let server = brief(server);
            return Err(broken(format!(
                "`settings` has `{server}`, which is not one of `servers`"
            )));
        }
        // The names are written into policies.
        if let Some(server) = profile.servers.iter().find(|name| !is_legal(name)) {
            return Err(broken(format!("`{}` is not a name of a server", brief(server))));
        }
        Ok((profile, text))
    }

    /// Writes the profile atomically. Returns whether it existed before.
    ///
    /// # Errors
    /// [`NoProfile`]
    pub fn write(&self, folder: &Path, name: &str) -> Result<bool, NoProfile> {
        let path = Self::path(folder, name)?;
        let failed = |why: String| NoProfile::WriteFailed { path: path.clone(), why };
        let there = path.exists();
        let text = toml::to_string(self).map_err(|error| failed(error.to_string()))?;
        // It could not be read again, and the list of profiles would fail.
        if text.len() as u64 > LONGEST {
            return Err(failed("it would be too large".into()));
        }
        std::fs::create_dir_all(folder.join(FOLDER)).map_err(|error| failed(error.to_string()))?;
        atomic_file::replace(&path, text.as_bytes()).map_err(|error| failed(error.to_string()))?;
        Ok(there)
    }

    /// The names of the profiles beside the config.
    ///
    /// # Errors
    /// If their folder cannot be read.
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

/// Line of the tool list of a server in a profile's text, from 1.
fn line_of_tools(text: &str, server: &str) -> usize {
    let document = toml_edit::Document::parse(text).ok();
    let key = document.as_ref().and_then(|document| {
        let settings = document.get("settings")?.as_table_like()?;
        let server = settings.get(server)?.as_table_like()?;
        server.get_key_value("tools")?.0.span()
    });
    let before = key.and_then(|key| text.get(..key.start)).unwrap_or_default();
    before.matches('\n').count() + 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn profiles_round_trip() {
        let folder = tempfile::tempdir().unwrap();
        assert!(Profile::all(folder.path()).unwrap().is_empty());
        assert!(matches!(Profile::read(folder.path(), "dev"), Err(NoProfile::Absent { .. })));
        let mut profile = Profile::of(vec!["a".into(), "b".into()]);
        profile.title = Some("Development".into());
        assert!(!profile.write(folder.path(), "dev").unwrap());
        assert!(profile.write(folder.path(), "dev").unwrap());
        assert_eq!(Profile::read(folder.path(), "dev").unwrap(), profile);
        assert_eq!(Profile::all(folder.path()).unwrap(), ["dev"]);
        // An unreadable profile is not written, and a removed server has no policies.
        let tools = |tool: String| Settings { tools: Some(vec![tool]), ..Settings::default() };
        let mut large = profile.clone();
        large.settings.insert("a".into(), tools("x".repeat(2 << 20)));
        large.write(folder.path(), "dev").unwrap_err();
        let mut left = profile.clone();
        left.left_out = vec!["c".into()];
        left.settings.insert("c".into(), tools("find".into()));
        left.write(folder.path(), "left").unwrap();
        assert_eq!(Profile::read(folder.path(), "left").unwrap(), left);
        assert_eq!(Profile::policies(folder.path(), "left").unwrap(), "");
        std::fs::remove_file(folder.path().join("profiles/left.toml")).unwrap();
        for name in ["", "../x", "A", "a/b"] {
            assert!(profile.write(folder.path(), name).is_err());
        }
        for bad in [
            "version = 9\nservers = []\n",
            "version = 1\nservers = [\"a\"]\nsettings.b.tools = []\n",
            "version = 1\nservers = ['a\"']\nsettings.'a\"'.tools = []\n",
            "version = 1\nservers = [\"a\"]\nsettings.a.tols = []\n",
            "version = 1\nservers = [\"a\"]\nsettings.a.secrets.K.from = \"env:K\"\n",
        ] {
            std::fs::write(folder.path().join("profiles/bad.toml"), bad).unwrap();
            assert!(Profile::read(folder.path(), "bad").is_err(), "{bad}");
            assert!(Profile::policies(folder.path(), "bad").is_err(), "{bad}");
        }
        // Misplaced content is not shown.
        let misplaced = "version = 1\nservers = [\"a\"]\nsettings.a.secrets = \"hunter2-value\"\n";
        std::fs::write(folder.path().join("profiles/bad.toml"), misplaced).unwrap();
        let error = Profile::read(folder.path(), "bad").unwrap_err().to_string();
        assert!(error.contains("line 3") && !error.contains("hunter2"), "{error}");
        let misplaced = "version = 1\nservers = [\"a\"]\nsettings.a.hunter2-value = 1\n";
        std::fs::write(folder.path().join("profiles/bad.toml"), misplaced).unwrap();
        let error = Profile::read(folder.path(), "bad").unwrap_err().to_string();
        assert!(error.contains("unknown field") && !error.contains("hunter2"), "{error}");
    }

    #[test]
    fn tool_lists_become_policies_in_their_lines() {
        let folder = tempfile::tempdir().unwrap();
        let none = Profile::of(vec!["a".into()]);
        none.write(folder.path(), "none").unwrap();
        assert_eq!(Profile::policies(folder.path(), "none").unwrap(), "");
        let text = "version = 1\nservers = [\"a\", \"b\", \"c\"]\n\n# Some\n[settings.b]\nenv = { X = \"1\" }\n\
                    tools = [\n  \"find\",\n  \"a\\\"\\n);permit(principal,action,resource);\",\n]\n\n\
                    [settings]\na = { tools = [] }\nc = { env = {} }\n";
        std::fs::write(folder.path().join("profiles/some.toml"), text).unwrap();
        let policies = Profile::policies(folder.path(), "some").unwrap();
        let lines: Vec<(usize, &str)> =
            policies.lines().enumerate().filter(|(_, line)| !line.is_empty()).collect();
        let [(6, b), (12, a)] = lines.as_slice() else { panic!("{policies}") };
        assert!(
            b.starts_with("@id(\"some.b.profile-tools\")") && b.contains("Tool::\"b/find\""),
            "{b}"
        );
        assert!(b.contains("\\\"\\u{a});permit(") && b.matches("forbid (").count() == 1, "{b}");
        assert!(a.contains("Server::\"a\"") && !a.contains("unless"), "{a}");
    }
}
