//! Settings of a registry client.

use std::{path::PathBuf, time::Duration};

use super::Logins;

/// Settings of a registry client.
#[derive(Debug, Clone, Default)]
pub struct Settings {
    /// Source of logins.
    pub logins: Logins,
    /// PEM file with certificate authorities that registries may use in addition to those of this
    /// machine.
    pub authorities: Option<PathBuf>,
    /// Hosts, as in references, that are contacted without TLS. Hosts of this machine are, unless
    /// `authorities` is set.
    pub plain_http: Vec<String>,
    /// Limits of sizes and times.
    pub limits: Limits,
}

/// Limits of sizes and times.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of a manifest, and of a list of referrers.
    pub manifest: u64,
    /// Bytes of all blobs of an artifact together.
    pub blobs: u64,
    /// Layers of an artifact.
    pub layers: usize,
    /// Time between two parts of an answer.
    pub idle: Duration,
    /// Time for all requests of one method.
    pub total: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            // The size that registries must accept.
            manifest: 4 << 20,
            blobs: 256 << 20,
            layers: 64,
            idle: Duration::from_secs(15),
            total: Duration::from_secs(120),
        }
    }
}
