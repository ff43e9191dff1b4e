//! Values with a grammar of their own.

use std::{
    borrow::Cow,
    fmt, io,
    path::{Component, Path, PathBuf},
    str::FromStr,
};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

use crate::upstream::process::Mount;

/// Where a secret comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct SecretRef {
    /// `env:NAME`: a variable of the proxy's own environment. `file:PATH`: the content of a file,
    /// without the line break at its end.
    pub from: String,
}

/// Whether an environment can hold a variable of that name.
pub(super) fn is_env_name(name: &str) -> bool {
    name.bytes()
        .enumerate()
        .all(|(at, b)| b == b'_' || b.is_ascii_alphabetic() || (at > 0 && b.is_ascii_digit()))
        && !name.is_empty()
}

/// A host folder or file that a server sees: `SOURCE:TARGET`, `SOURCE:TARGET:ro` (the same) or
/// `SOURCE:TARGET:rw`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct MountEntry {
    /// On the host: absolute once the config is loaded, symbolic links not yet resolved.
    pub source: PathBuf,
    /// Inside: absolute.
    pub target: PathBuf,
    pub writable: bool,
}

impl MountEntry {
    /// The mount with symbolic links of its source resolved, as runtimes take it.
    ///
    /// # Errors
    /// Where the source is not there or may not be looked at.
    pub fn resolve(&self) -> io::Result<Mount> {
        Ok(Mount {
            source: self.source.canonicalize()?,
            target: self.target.clone(),
            writable: self.writable,
        })
    }
}

/// A mount that is none, and why.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum IllegalMount {
    #[error("a mount is `SOURCE:TARGET`, with `:rw` behind it to let the server write")]
    Form,
    #[error("a mount's target is an absolute path without `..`")]
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
        // The last colon parts them: a source may hold colons, a target may not.
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
        // Collected from its parts: without doubled and trailing slashes and `.`.
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

/// Linux's capabilities, for `cap-add` (capabilities(7)).
pub(super) const CAPABILITIES: &[&str] = &[
    "CAP_AUDIT_CONTROL",
    "CAP_AUDIT_READ",
    "CAP_AUDIT_WRITE",
    "CAP_BLOCK_SUSPEND",
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_KILL",
    "CAP_LEASE",
    "CAP_LINUX_IMMUTABLE",
    "CAP_MAC_ADMIN",
    "CAP_MAC_OVERRIDE",
    "CAP_MKNOD",
    "CAP_NET_ADMIN",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST",
    "CAP_NET_RAW",
    "CAP_PERFMON",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
    "CAP_SYSLOG",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_CHROOT",
    "CAP_SYS_MODULE",
    "CAP_SYS_NICE",
    "CAP_SYS_PACCT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_WAKE_ALARM",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts() {
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
