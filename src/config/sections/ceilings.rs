//! What servers may be given at most.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The operator's ceilings: what any server of this file may be given at most. A server above one is
/// an error, whether its number stands in the file or is the default.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Ceilings {
    /// Of `resources.memory-mib`.
    #[schemars(range(min = 8))]
    pub memory_mib: Option<u64>,
    /// Of `resources.cpus`.
    #[schemars(range(min = 0.01, max = 1024.0))]
    pub cpus: Option<f64>,
    /// Of `resources.pids`.
    #[schemars(range(min = 1))]
    pub pids: Option<u32>,
    /// Of `resources.tmp-mib`.
    #[schemars(range(min = 1))]
    pub tmp_mib: Option<u64>,
    /// Of `resources.files`.
    #[schemars(range(min = 64))]
    pub files: Option<u32>,
    /// Of `instances`.
    #[schemars(range(min = 1))]
    pub instances: Option<usize>,
    /// Of `warm`.
    pub warm: Option<usize>,
    /// Of `replicas`.
    #[schemars(range(min = 1))]
    pub replicas: Option<usize>,
    /// The deviations from the hardened default profile that servers may ask for, by their keys
    /// (`egress`, `mounts`, `hardening.network`); `[]` is none. Default: all. Policies decide beside
    /// that, at each start.
    pub deviations: Option<Vec<Loosening>>,
}

/// A key of a server by which it gets more than the hardened default profile gives, by the name that
/// policies have for it (`resource.deviations`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Loosening {
    #[serde(rename = "egress")]
    Egress,
    /// Read-only ones, too.
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
    /// All of them, with their keys.
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
