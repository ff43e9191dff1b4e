//! Ceilings of the settings of servers.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Ceilings: maximum values of the settings of all servers in this file. A server above a ceiling
/// is an error, also if its value is the default.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Ceilings {
    /// Maximum of `resources.memory-mib`.
    #[schemars(range(min = 8))]
    pub memory_mib: Option<u64>,
    /// Maximum of `resources.cpus`.
    #[schemars(range(min = 0.01, max = 1024.0))]
    pub cpus: Option<f64>,
    /// Maximum of `resources.pids`.
    #[schemars(range(min = 1))]
    pub pids: Option<u32>,
    /// Maximum of `resources.tmp-mib`.
    #[schemars(range(min = 1))]
    pub tmp_mib: Option<u64>,
    /// Maximum of `resources.files`.
    #[schemars(range(min = 64))]
    pub files: Option<u32>,
    /// Maximum of `instances`.
    #[schemars(range(min = 1))]
    pub instances: Option<usize>,
    /// Maximum of `warm`.
    pub warm: Option<usize>,
    /// Maximum of `replicas`.
    #[schemars(range(min = 1))]
    pub replicas: Option<usize>,
    /// Deviations from the hardened profile that servers may have, by their keys (`egress`,
    /// `mounts`, `hardening.network`); `[]` permits none. Default: all. In addition, policies
    /// decide at each start.
    pub deviations: Option<Vec<Loosening>>,
}

/// Key of a server that weakens the hardened profile, named as in policies (`resource.deviations`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Loosening {
    #[serde(rename = "egress")]
    Egress,
    /// Any mount, including read-only mounts.
    #[serde(rename = "mounts")]
    Mounts,
    #[serde(rename = "hardening.network")]
    Network,
    #[serde(rename = "hardening.writable-root")]
    WritableRoot,
    #[serde(rename = "hardening.user")]
    User,
    #[serde(rename = "hardening.cap-add")]
    CapAdd,
    #[serde(rename = "hardening.exec-tmp")]
    ExecTmp,
    #[serde(rename = "pod-socket")]
    PodSocket,
}

impl Loosening {
    /// All deviations with their keys.
    pub(crate) const ALL: [(Self, &str); 8] = [
        (Self::Egress, "egress"),
        (Self::Mounts, "mounts"),
        (Self::Network, "hardening.network"),
        (Self::WritableRoot, "hardening.writable-root"),
        (Self::User, "hardening.user"),
        (Self::CapAdd, "hardening.cap-add"),
        (Self::ExecTmp, "hardening.exec-tmp"),
        (Self::PodSocket, "pod-socket"),
    ];
}
