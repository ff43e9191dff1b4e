//! Folders of this machine that no server should see: one list for what is read of others, by its
//! names, and for what is mounted in the end, with links resolved.

/// Folders that no server gets, nor a folder above or inside one.
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

/// Folders that no server gets whole: other programs keep their sockets and state in them.
pub const NEVER_WHOLE: &[&str] = &["/tmp", "/var/tmp"];

/// Folders of programs: readable, never writable.
pub const NEVER_WRITABLE: &[&str] =
    &["/bin", "/lib", "/lib32", "/lib64", "/libx32", "/opt", "/sbin", "/usr"];

/// Folders and files in which people keep keys and passwords, wherever they stand in a path.
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

/// The same, below a home.
pub const CREDENTIALS_AT_HOME: &[&str] =
    &[".config/gcloud", ".config/gh", ".cargo/credentials.toml"];
