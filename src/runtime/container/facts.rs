//! Version and properties of a container engine.

use std::{fmt, path::PathBuf};

use super::lease::Lease;

/// Text for an OCI runtime that the engine chooses.
pub(super) const DEFAULT_RUNTIME: &str = "the engine's default";

/// Name and version of an engine, for `doctor` and logs.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Version {
    /// `Docker` or `Podman`.
    pub name: &'static str,
    pub version: String,
    /// Version of the API that both sides use.
    pub api: String,
    /// Address at which the engine answered, with its origin: `unix:///run/docker.sock`.
    pub host: String,
    pub cgroup: String,
    pub storage: String,
    /// Warnings of the engine about features that it lacks.
    pub warnings: Vec<String>,
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} (API {}) at {}", self.name, self.version, self.api, self.host)
    }
}

/// Properties of an engine that launches depend on.
#[derive(Debug)]
pub(super) struct Facts {
    pub version: Version,
    pub podman: bool,
    pub apparmor: bool,
    /// Architecture by Rust's target name: `x86_64`, `aarch64`.
    pub arch: String,
    /// OCI runtimes that the engine reports, and its default one.
    pub runtimes: Vec<String>,
    pub default_runtime: String,
    /// Whether the engine applies seccomp profiles.
    pub seccomp: bool,
    /// Limits that the engine cannot apply.
    pub lacking: Vec<&'static str>,
    /// The engine's data folder.
    pub data: Option<PathBuf>,
    pub owner: Lease,
}
