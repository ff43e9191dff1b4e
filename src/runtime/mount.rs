//! Mounts of servers.

use std::path::PathBuf;

/// Host folder that a server sees.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// Absolute host path. After the check, without symbolic links.
    pub source: PathBuf,
    /// Absolute path inside.
    pub target: PathBuf,
    pub writable: bool,
}
