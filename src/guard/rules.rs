//! What the operator allows beyond the hardened default.

use std::{collections::BTreeSet, path::PathBuf};

use serde_json::Value;

/// A way in which a container may be less confined than the default, or a call that is not needed
/// by all. [`Allow::about`] says what each is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Allow {
    WritableRoot,
    ExecTmp,
    Network,
    Root,
    Pack,
    Pull,
}

/// A folder of the host that containers may have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountRule {
    /// It, and what is below it.
    pub path: PathBuf,
    pub writable: bool,
}

/// What containers may be.
#[derive(Debug, Clone)]
pub struct Rules {
    /// Tells this guard's containers from those of others, by a label.
    pub name: String,
    /// The seccomp profile that every container has: the engine's format, as JSON.
    pub seccomp: Value,
    /// The network in which Portcullis puts its own sockets inside: what `/etc/hosts` may name.
    pub stand_ins: [u8; 3],
    /// The layers (`sha256:…`) that images have whose program does nothing but hold a network namespace:
    /// each such image has one layer, which is one of these. None: nothing holds one.
    pub holders: BTreeSet<String>,
    pub allow: BTreeSet<Allow>,
    /// Capabilities that may be added: `CAP_NET_BIND_SERVICE`.
    pub capabilities: BTreeSet<String>,
    pub mounts: Vec<MountRule>,
    /// Runtimes beside the engine's default, such as `runsc`.
    pub runtimes: BTreeSet<String>,
    /// Bytes that one container may have at most.
    pub memory: u64,
    /// Billionths of a processor.
    pub nano_cpus: u64,
    pub pids: u64,
    /// Containers at one time.
    pub containers: u32,
    /// Connections at one time.
    pub connections: usize,
    /// Bytes of an image that is loaded.
    pub image: u64,
}

impl Allow {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::WritableRoot, Self::ExecTmp, Self::Network, Self::Root, Self::Pack, Self::Pull];

    /// The word for it: that of the config, where that has one.
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

    /// What it stands for.
    pub fn about(self) -> &'static str {
        match self {
            Self::WritableRoot => "A writable root (`hardening.writable-root`)",
            Self::ExecTmp => "Programs in /tmp (`hardening.exec-tmp`)",
            Self::Network => {
                "The engine's bridge, with all that is behind it (`hardening.network`)"
            }
            Self::Root => "Root inside (`hardening.user = \"0:…\"`)",
            Self::Pack => "Loading images that Portcullis packs of programs",
            Self::Pull => "Pulling images, by digest",
        }
    }
}

impl Rules {
    /// The default: nothing but the hardened profile.
    pub fn new(name: impl Into<String>, seccomp: Value, stand_ins: [u8; 3]) -> Self {
        Self {
            name: name.into(),
            seccomp,
            stand_ins,
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

    /// Takes no more connections than a process with that many descriptors can: each has one to the
    /// engine. Each container has a removal, and two for whoever is attached to it.
    pub fn fit(&mut self, files: u64) {
        const OTHERS: u64 = 64;
        let left = files.saturating_sub(OTHERS + 3 * u64::from(self.containers));
        let most = usize::try_from(left / 2).unwrap_or(usize::MAX);
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
    fn connections_fit_the_descriptors() {
        let mut rules = Rules::new("test", Value::Null, [192, 31, 196]);
        rules.fit(65536);
        assert_eq!(rules.connections, 1024);
        rules.fit(1024);
        assert_eq!(rules.connections, (1024 - 64 - 3 * 128) / 2);
        rules.fit(16);
        assert_eq!(rules.connections, 1);
    }
}
