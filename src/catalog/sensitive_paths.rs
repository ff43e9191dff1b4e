//! Folders of this machine that no server may see: one list, applied to descriptions by name, and
//! to final mounts with links resolved.

/// Folders that are never mounted, nor any folder above or inside one.
pub const NEVER: &[&str] = &[
    "/boot",
    "/dev",
    "/etc",
    "/proc",
    "/run",
    "/sys",
    "/var/lib/containerd",
    "/var/lib/containers",
    "/var/lib/docker",
    "/var/lib/kubelet",
    "/var/run",
    "/var/spool/cron",
];

/// Folders that are never mounted as a whole: other programs keep sockets and state in them.
pub const NEVER_WHOLE: &[&str] = &["/tmp", "/var/tmp"];

/// Folders of programs: readable, never writable.
pub const NEVER_WRITABLE: &[&str] =
    &["/bin", "/lib", "/lib32", "/lib64", "/libx32", "/opt", "/sbin", "/usr"];

/// Folders and files in which people keep keys and passwords, at any position in a path.
pub const CREDENTIALS: &[&str] = &[
    ".aws",
    ".azure",
    ".docker",
    ".git-credentials",
    ".gnupg",
    ".kube",
    ".netrc",
    ".npmrc",
    ".password-store",
    ".pgpass",
    ".pypirc",
    ".ssh",
];

/// The same, below a home folder.
pub const CREDENTIALS_AT_HOME: &[&str] =
    &[".config/gcloud", ".config/gh", ".cargo/credentials.toml"];
