//! Settings of a server's process in the config: limits, hardening and mounts.

use std::{
    borrow::Cow,
    fmt,
    path::{Component, Path, PathBuf},
    str::FromStr,
};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

use crate::mount::Mount;

/// Resource limits of one process of a server.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Resources {
    /// Memory in MiB, including swap.
    #[schemars(range(min = 8))]
    pub memory_mib: u64,
    /// Number of processors.
    #[schemars(range(min = 0.01, max = 1024.0))]
    pub cpus: f64,
    /// Maximum number of processes and threads.
    #[schemars(range(min = 1))]
    pub pids: u32,
    /// Size of `/tmp` in MiB. It is in memory and counts as memory.
    #[schemars(range(min = 1, max = 1024))]
    pub tmp_mib: u64,
    /// Maximum number of open files of one process.
    #[schemars(range(min = 64, max = 65_536))]
    pub files: u32,
}

impl Default for Resources {
    fn default() -> Self {
        Self { memory_mib: 512, cpus: 1.0, pids: 128, tmp_mib: 64, files: 1024 }
    }
}

/// Deviations from the hardened profile. Each is off by default, and `portcullis server inspect`
/// shows it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Hardening {
    /// Attach the default network of the engine. In a sandbox: the network of the host.
    pub network: bool,
    /// Make the root file system writable.
    pub writable_root: bool,
    /// Run as `UID:GID` instead of 65534:65534.
    pub user: Option<String>,
    /// Capabilities to add, such as `CAP_NET_BIND_SERVICE`.
    pub cap_add: Vec<String>,
    /// Allow the execution of programs in `/tmp`; in the sandbox also in writable mounts.
    pub exec_tmp: bool,
}

/// Host folder or file mounted into a server: `SOURCE:TARGET`, `SOURCE:TARGET:ro` (the same) or
/// `SOURCE:TARGET:rw`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct MountEntry {
    /// Path on the host: absolute once the config is loaded, symbolic links not yet resolved.
    pub source: PathBuf,
    /// Absolute path in the server's file system.
    pub target: PathBuf,
    pub writable: bool,
}

impl MountEntry {
    /// This mount in the form that the runtimes use.
    pub fn as_mount(&self) -> Mount {
        let Self { source, target, writable } = self.clone();
        Mount { source, target, writable }
    }
}

/// Reason why a text is not a valid mount.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum IllegalMount {
    #[error("a mount is `SOURCE:TARGET`, and `:rw` at the end lets the server write")]
    Form,
    #[error("a mount's target must be an absolute path without `..`")]
    Target,
    #[error("nothing can be mounted on `/`, `/proc`, `/sys` or `/dev`")]
    Reserved,
}

impl FromStr for MountEntry {
    type Err = IllegalMount;

    fn from_str(text: &str) -> Result<Self, IllegalMount> {
        let (rest, writable) = match text.rsplit_once(':') {
            Some((rest, "rw")) => (rest, true),
            Some((rest, "ro")) => (rest, false),
            _ => (text, false),
        };
        // The last colon separates them: a source can contain colons, a target cannot.
        let (source, target) = rest.rsplit_once(':').ok_or(IllegalMount::Form)?;
        if source.is_empty() || target.is_empty() || text.contains('\0') {
            return Err(IllegalMount::Form);
        }
        let path = Path::new(target);
        if !path.is_absolute() || path.components().any(|part| part == Component::ParentDir) {
            return Err(IllegalMount::Target);
        }
        let reserved = ["/proc", "/sys", "/dev"].iter().any(|top| path.starts_with(top));
        if reserved || path == Path::new("/") {
            return Err(IllegalMount::Reserved);
        }
        // Collected from components: removes doubled and trailing slashes and `.`.
        Ok(Self { source: source.into(), target: path.components().collect(), writable })
    }
}

impl fmt::Display for MountEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { source, target, writable } = self;
        let mode = if *writable { "rw" } else { "ro" };
        write!(f, "{}:{}:{mode}", source.display(), target.display())
    }
}

impl TryFrom<String> for MountEntry {
    type Error = IllegalMount;

    fn try_from(text: String) -> Result<Self, IllegalMount> {
        text.parse()
    }
}

impl From<MountEntry> for String {
    fn from(mount: MountEntry) -> String {
        mount.to_string()
    }
}

impl JsonSchema for MountEntry {
    fn schema_name() -> Cow<'static, str> {
        "MountEntry".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "format": "mount",
            "description": "`SOURCE:TARGET`, `SOURCE:TARGET:ro` or `SOURCE:TARGET:rw`.",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_entries_are_parsed_or_refused() {
        for (text, read) in [
            ("./data:/data", Ok(("./data", "/data", false))),
            ("/a:/b:ro", Ok(("/a", "/b", false))),
            ("/a:/b:rw", Ok(("/a", "/b", true))),
            ("/a:b:/c//d/", Ok(("/a:b", "/c/d", false))),
            ("", Err(IllegalMount::Form)),
            ("/a", Err(IllegalMount::Form)),
            (":/b", Err(IllegalMount::Form)),
            ("/a:", Err(IllegalMount::Form)),
            ("/a:rw", Err(IllegalMount::Form)),
            ("/a:b", Err(IllegalMount::Target)),
            ("/a:/b/../etc", Err(IllegalMount::Target)),
            ("/a:/b:RW", Err(IllegalMount::Target)),
            ("/a:/", Err(IllegalMount::Reserved)),
            ("/a:/proc/self", Err(IllegalMount::Reserved)),
        ] {
            let parsed = text.parse::<MountEntry>();
            let read = read.map(|(source, target, writable)| MountEntry {
                source: source.into(),
                target: target.into(),
                writable,
            });
            assert_eq!(parsed, read, "{text}");
        }
    }
}
