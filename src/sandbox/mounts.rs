//! Which host folders a server may never see, and where inside none may be put.

use std::{
    env, fs, io,
    os::unix::fs::FileTypeExt,
    path::{Component, Path, PathBuf},
};

use crate::upstream::process::{LaunchFailure, Mount};

/// Host trees that hold the machine's own state, its secrets or its control sockets. Neither they
/// nor anything beneath or around them is mounted.
const FORBIDDEN: &[&str] = &[
    "/boot",
    "/dev",
    "/etc/docker",
    "/etc/gshadow",
    "/etc/kubernetes",
    "/etc/shadow",
    "/etc/ssh",
    "/etc/ssl/private",
    "/etc/sudoers",
    "/etc/sudoers.d",
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

/// Trees that are never writable inside, whatever the mount says.
const READ_ONLY: &[&str] =
    &["/bin", "/etc", "/lib", "/lib32", "/lib64", "/libx32", "/opt", "/sbin", "/usr"];

/// Trees inside that hold the system. `/etc` and `/tmp` are the sandbox's too, but have room.
const OCCUPIED: &[&str] =
    &["/bin", "/dev", "/lib", "/lib32", "/lib64", "/libx32", "/proc", "/sbin", "/sys", "/usr"];

/// Where programs keep credentials in a home folder. Neither they, nor anything beneath, nor the
/// folder that directly holds them.
const CREDENTIALS: &[&str] = &[
    ".aws",
    ".azure",
    ".config/gcloud",
    ".docker/config.json",
    ".git-credentials",
    ".gnupg",
    ".kube",
    ".local/share/keyrings",
    ".netrc",
    ".password-store",
    ".ssh",
];

/// Checks what a mount shows and where.
pub(super) fn check(mount: &Mount) -> Result<(), LaunchFailure> {
    check_target(&mount.target)?;
    check_source(&mount.source)?;
    let forbidden = READ_ONLY.iter().find(|tree| mount.source.starts_with(tree));
    if let (true, Some(tree)) = (mount.writable, forbidden) {
        return Err(denied(&mount.source, &format!("`{tree}` is never writable inside")));
    }
    Ok(())
}

/// Checks that a host path may be seen inside at all.
pub(super) fn check_source(source: &Path) -> Result<(), LaunchFailure> {
    let canonical = fs::canonicalize(source).map_err(|error| unreadable(source, &error))?;
    if canonical != source {
        return Err(denied(source, "it is not an absolute path free of symbolic links"));
    }
    let kind =
        fs::symlink_metadata(source).map_err(|error| unreadable(source, &error))?.file_type();
    if kind.is_socket() {
        return Err(denied(source, "it is a socket"));
    }
    if !kind.is_dir() && !kind.is_file() {
        return Err(denied(source, "it is neither a folder nor a regular file"));
    }
    if source.parent().is_none() {
        return Err(denied(source, "it is the host's whole file system"));
    }
    let forbidden = FORBIDDEN.iter().map(PathBuf::from).chain(engine_socket());
    for tree in forbidden.flat_map(|tree| [fs::canonicalize(&tree).ok(), Some(tree)]).flatten() {
        if source.starts_with(&tree) || tree.starts_with(source) {
            return Err(denied(source, &format!("it holds or is part of `{}`", tree.display())));
        }
    }
    if is_home(source) {
        return Err(denied(source, "it is a home folder, or holds home folders"));
    }
    for name in CREDENTIALS {
        if source.ancestors().any(|tree| tree.ends_with(name)) || source.join(name).exists() {
            return Err(denied(source, &format!("it holds or is part of `{name}`")));
        }
    }
    Ok(())
}

/// The socket of the engine that `DOCKER_HOST` names: whoever reaches it owns the host.
fn engine_socket() -> Option<PathBuf> {
    Some(env::var("DOCKER_HOST").ok()?.strip_prefix("unix://")?.into())
}

fn is_home(source: &Path) -> bool {
    let own = env::var_os("HOME").map(PathBuf::from).and_then(|home| fs::canonicalize(home).ok());
    let around = |home: &Path| home.starts_with(source);
    own.as_deref().is_some_and(around)
        || around(Path::new("/root"))
        || around(Path::new("/home"))
        || source.parent() == Some(Path::new("/home"))
}

/// Checks that a place inside is free for a mount.
fn check_target(target: &Path) -> Result<(), LaunchFailure> {
    let plain = target.is_absolute()
        && target.components().skip(1).all(|part| matches!(part, Component::Normal(_)));
    if !plain || target.parent().is_none() {
        return Err(misplaced(target, "it is not an absolute path without `.` and `..` below `/`"));
    }
    let exact = [Path::new("/etc"), Path::new("/tmp")].contains(&target);
    if exact || OCCUPIED.iter().any(|tree| target.starts_with(tree)) {
        return Err(misplaced(target, "the sandbox has its own contents there"));
    }
    Ok(())
}

fn denied(source: &Path, why: &str) -> LaunchFailure {
    LaunchFailure {
        what: format!("`{}` is not mounted: {why}", source.display()),
        remedy: Some("mount the one folder that the server needs, and nothing around it".into()),
    }
}

fn unreadable(source: &Path, error: &io::Error) -> LaunchFailure {
    LaunchFailure {
        what: format!("`{}` can't be mounted: {error}", source.display()),
        remedy: Some("create the folder, or let the user who runs the proxy read it".into()),
    }
}

fn misplaced(target: &Path, why: &str) -> LaunchFailure {
    LaunchFailure {
        what: format!("nothing can be mounted at `{}`: {why}", target.display()),
        remedy: Some("choose a place of its own, such as `/data`".into()),
    }
}
