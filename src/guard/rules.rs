//! What the operator allows in addition to the hardened default.

use std::{collections::BTreeSet, path::PathBuf};

use serde_json::Value;

/// A deviation of containers from the default, or an optional call. [`Allow::about`] describes
/// each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Allow {
    WritableRoot,
    ExecTmp,
    Network,
    Root,
    Pack,
    Pull,
}

/// Host folder that containers may mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountRule {
    /// The folder; includes everything below it.
    pub path: PathBuf,
    pub writable: bool,
}

/// Requirements for containers.
#[derive(Debug, Clone)]
pub struct Rules {
    /// Label value that identifies this guard's containers.
    pub name: String,
    /// Seccomp profile of every container, in the engine's format (JSON).
    pub seccomp: Value,
    /// Network of the addresses of Portcullis's sockets inside, which `/etc/hosts` may name.
    pub synthetic_prefix: [u8; 3],
    /// Layers (`sha256:…`) of pause containers' images. Each such image has exactly one of them. If
    /// empty, no pause container is permitted.
    pub holders: BTreeSet<String>,
    pub allow: BTreeSet<Allow>,
    /// Capabilities that may be added, such as `CAP_NET_BIND_SERVICE`.
    pub capabilities: BTreeSet<String>,
    pub mounts: Vec<MountRule>,
    /// Runtimes in addition to the engine's default, such as `runsc`.
    pub runtimes: BTreeSet<String>,
    /// Memory limit of one container in bytes.
    pub memory: u64,
    /// Processor limit in billionths of a processor.
    pub nano_cpus: u64,
    pub pids: u64,
    /// Limit of simultaneous containers.
    pub containers: u32,
    /// Limit of simultaneous connections.
    pub connections: usize,
    /// Size limit of a loaded image in bytes.
    pub image: u64,
}

impl Allow {
    /// All variants.
    pub const ALL: [Self; 6] =
        [Self::WritableRoot, Self::ExecTmp, Self::Network, Self::Root, Self::Pack, Self::Pull];

    /// Name of the option, that of the config where there is one.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::WritableRoot => "writable-root",
            Self::ExecTmp => "exec-tmp",
            Self::Network => "network",
            Self::Root => "root",
            Self::Pack => "pack",
            Self::Pull => "pull",
        }
    }

    /// Description.
    pub fn about(self) -> &'static str {
        match self {
            Self::WritableRoot => "A writable root (`hardening.writable-root`)",
            Self::ExecTmp => "Programs in /tmp (`hardening.exec-tmp`)",
            Self::Network => {
                "The engine's bridge, with all that is behind it (`hardening.network`)"
            }
            Self::Root => "Root inside (`hardening.user = \"0:…\"`)",
            Self::Pack => "Loading images that Portcullis packs from programs",
            Self::Pull => "Pulling images, by digest",
        }
    }
}

impl Rules {
    /// Default rules: only the hardened profile.
    pub fn new(name: impl Into<String>, seccomp: Value, synthetic_prefix: [u8; 3]) -> Self {
        Self {
            name: name.into(),
            seccomp,
            synthetic_prefix,
            holders: BTreeSet::new(),
            allow: BTreeSet::new(),
            capabilities: BTreeSet::new(),
            mounts: Vec::new(),
            runtimes: BTreeSet::new(),
            memory: 4 << 30,
            nano_cpus: 4_000_000_000,
            pids: 1024,
            containers: 128,
            connections: 1024,
            image: 2 << 30,
        }
    }

    /// Reduces the limit of connections to what a process with that many descriptors supports: each
    /// has one to the engine. Each container needs one for its removal, and two for the attached
    /// client.
    pub fn fit(&mut self, files: u64) {
        const OTHERS: u64 = 64;
        let remaining = files.saturating_sub(OTHERS + 3 * u64::from(self.containers));
        let most = usize::try_from(remaining / 2).unwrap_or(usize::MAX);
        self.connections = self.connections.min(most).max(1);
    }

    pub(crate) fn allows(&self, what: Allow) -> bool {
        self.allow.contains(&what)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_are_limited_by_the_descriptors() {
        let mut rules = Rules::new("test", Value::Null, [192, 31, 196]);
        rules.fit(65536);
        assert_eq!(rules.connections, 1024);
        rules.fit(1024);
        assert_eq!(rules.connections, (1024 - 64 - 3 * 128) / 2);
        rules.fit(16);
        assert_eq!(rules.connections, 1);
    }
}
