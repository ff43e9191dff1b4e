//! Which folders of the host a server may see. Checked with symbolic links resolved, and again at
//! each launch: what the config said yesterday may point elsewhere today.

use std::{
    fs, io,
    os::unix::ffi::OsStrExt,
    path::{Component, Path, PathBuf},
};

use crate::{
    catalog::places::{CREDENTIALS, CREDENTIALS_AT_HOME, NEVER, NEVER_WHOLE, NEVER_WRITABLE},
    upstream::process::{LaunchFailure, Mount},
};

use super::failure;

/// Places inside that the profile or the engine owns.
const NEVER_TARGETS: &[&str] = &["/dev", "/proc", "/run", "/sbin", "/sys", "/tmp"];

/// Where things are on this host that no constant can know.
#[derive(Debug, Clone, Default)]
pub(crate) struct Places {
    /// Home folders.
    pub homes: Vec<PathBuf>,
    /// The engine's socket and data.
    pub engine: Vec<PathBuf>,
}

impl Places {
    /// The homes of this host.
    pub fn of_host() -> Self {
        let mut homes: Vec<PathBuf> = std::env::home_dir().into_iter().collect();
        homes.push("/root".into());
        if let Ok(entries) = fs::read_dir("/home") {
            homes.extend(entries.flatten().map(|entry| entry.path()));
        }
        let homes = homes.into_iter().map(|home| fs::canonicalize(&home).unwrap_or(home)).collect();
        Self { homes, engine: Vec::new() }
    }
}

/// The mounts with their sources resolved, or the first that is refused.
pub(super) fn check(mounts: &[Mount], places: &Places) -> Result<Vec<Mount>, LaunchFailure> {
    let mut checked: Vec<Mount> = Vec::with_capacity(mounts.len());
    for mount in mounts {
        let source = check_source(mount, places)?;
        let target = check_target(&mount.target)?;
        if checked.iter().any(|other| other.target == target) {
            return Err(failure(
                format!("two mounts have the same place inside, {}", target.display()),
                "give each mount a place of its own",
            ));
        }
        checked.push(Mount { source, target, writable: mount.writable });
    }
    Ok(checked)
}

/// The source with its links resolved, or why it is refused. The local sandbox has the same rule.
pub(crate) fn check_source(mount: &Mount, places: &Places) -> Result<PathBuf, LaunchFailure> {
    let given = &mount.source;
    if given.as_os_str().as_bytes().starts_with(b"-") || !given.is_absolute() {
        return Err(failure(
            format!("the mount source {} is not an absolute path", given.display()),
            "write the folder's whole path, or one relative to the config file",
        ));
    }
    let source = fs::canonicalize(given).map_err(|error| {
        let why = match error.kind() {
            io::ErrorKind::NotFound => "does not exist".to_owned(),
            _ => format!("cannot be read: {error}"),
        };
        failure(
            format!("the mount source {} {why}", given.display()),
            "make the folder, or correct the path in `mounts`",
        )
    })?;
    let refused = |why: &str| {
        let resolved = if source == *given {
            String::new()
        } else {
            format!(" (which is {})", source.display())
        };
        failure(
            format!("{}{resolved} may not be mounted: {why}", given.display()),
            "mount a folder that holds only what the server needs",
        )
    };
    let kind = fs::metadata(&source)
        .map_err(|error| refused(&format!("it cannot be read: {error}")))?
        .file_type();
    if !kind.is_dir() && !kind.is_file() {
        return Err(refused("it is a socket, a device or a pipe"));
    }
    let engine = places.engine.iter().map(PathBuf::as_path);
    for never in NEVER.iter().map(Path::new).chain(engine) {
        // The constant may itself be a link: /var/run is one nearly everywhere.
        let resolved = fs::canonicalize(never).unwrap_or_else(|_| never.to_owned());
        for never in [never, &resolved] {
            if source.starts_with(never) {
                return Err(refused(&format!("it is in {}", never.display())));
            }
            if never.starts_with(&source) {
                return Err(refused(&format!("{} is inside it", never.display())));
            }
        }
    }
    for home in &places.homes {
        if home.starts_with(&source) {
            return Err(refused("it holds a whole home folder, with its keys"));
        }
        // A folder such as ~/.config, with the credentials of a tool inside.
        for within in CREDENTIALS_AT_HOME {
            let within = home.join(within);
            if source.starts_with(&within) || (within.starts_with(&source) && within.exists()) {
                return Err(refused(&format!("credentials are in {}", within.display())));
            }
        }
    }
    if let Some(name) = credentials_in(&source) {
        return Err(refused(&format!("`{name}` is where credentials are kept")));
    }
    if let Some(name) = CREDENTIALS.iter().find(|name| source.join(name).exists()) {
        return Err(refused(&format!("`{name}` is inside it")));
    }
    if NEVER_WHOLE.iter().any(|whole| source == Path::new(whole)) {
        return Err(refused("other programs keep their sockets and files in it"));
    }
    if mount.writable && NEVER_WRITABLE.iter().any(|never| source.starts_with(never)) {
        return Err(refused("programs of the host are in it, and it would be writable"));
    }
    Ok(source)
}

fn credentials_in(path: &Path) -> Option<&'static str> {
    path.components().find_map(|component| match component {
        Component::Normal(name) => CREDENTIALS.iter().copied().find(|c| name == *c),
        _ => None,
    })
}

fn check_target(target: &Path) -> Result<PathBuf, LaunchFailure> {
    let refused = |why: &str| {
        failure(
            format!("a mount cannot be placed at {}: {why}", target.display()),
            "choose an absolute path of its own, such as /data",
        )
    };
    let plain = |c: Component| matches!(c, Component::RootDir | Component::Normal(_));
    if !target.is_absolute() || !target.components().all(plain) || target.to_str().is_none() {
        return Err(refused("it is not a plain absolute path"));
    }
    if target.components().count() < 2 {
        return Err(refused("it is the root"));
    }
    if let Some(taken) = NEVER_TARGETS.iter().find(|taken| target.starts_with(taken)) {
        return Err(refused(&format!("{taken} belongs to the container itself")));
    }
    Ok(target.components().collect())
}

#[cfg(test)]
mod tests {
    use std::os::unix::{fs::symlink, net::UnixListener};

    use super::*;

    fn mount(source: impl Into<PathBuf>, target: &str, writable: bool) -> Mount {
        Mount { source: source.into(), target: target.into(), writable }
    }

    fn refusal(mount: Mount, places: &Places) -> Option<String> {
        check(&[mount], places).err().map(|failure| failure.what)
    }

    #[test]
    fn folders_of_the_host_that_no_server_gets() {
        let places = Places::of_host();
        for source in [
            "/",
            "/proc",
            "/proc/self",
            "/sys",
            "/dev",
            "/dev/null",
            "/dev/shm",
            "/etc",
            "/etc/ssl",
            "/etc/passwd",
            "/run",
            "/var/run",
            "/var",
            "/var/lib",
            "/root",
            "/home",
            "/boot",
            "/tmp",
            "/var/tmp",
            "-v",
            "relative",
            "",
            "/no/such/folder",
            "/tmp/../etc",
            "/proc/1/root",
            "/usr/../root",
        ] {
            assert!(refusal(mount(source, "/data", false), &places).is_some(), "{source}");
        }
        assert_eq!(refusal(mount("/usr/share", "/data", false), &places), None);
        assert!(refusal(mount("/usr/share", "/data", true), &places).is_some());
    }

    #[test]
    fn links_are_resolved_before_the_check() {
        let folder = tempfile::tempdir().unwrap();
        let places = Places::of_host();
        for (name, to) in [("a", "/etc"), ("b", "/"), ("c", "/var/run"), ("d", "/proc/self/root")] {
            let link = folder.path().join(name);
            symlink(to, &link).unwrap();
            let why = refusal(mount(&link, "/data", false), &places).unwrap();
            assert!(why.contains("which is /"), "{why}");
        }
        let data = folder.path().join("data");
        fs::create_dir(&data).unwrap();
        symlink(&data, folder.path().join("link")).unwrap();
        let checked = check(&[mount(folder.path().join("link"), "/data/", true)], &places).unwrap();
        assert_eq!(checked, [mount(fs::canonicalize(&data).unwrap(), "/data", true)]);
    }

    #[test]
    fn credentials_sockets_and_the_engine_are_refused_wherever_they_are() {
        let folder = tempfile::tempdir().unwrap();
        let home = folder.path().join("home/me");
        for within in [".ssh", "project/.aws", ".config/gh", "plain", "engine"] {
            fs::create_dir_all(home.join(within)).unwrap();
        }
        let _socket = UnixListener::bind(home.join("plain/agent.sock")).unwrap();
        let places = Places { homes: vec![home.clone()], engine: vec![home.join("engine")] };
        for within in [
            "",
            ".ssh",
            "project",
            "project/.aws",
            ".config",
            ".config/gh",
            "plain/agent.sock",
            "engine",
        ] {
            assert!(
                refusal(mount(home.join(within), "/data", false), &places).is_some(),
                "{within}"
            );
        }
        assert!(refusal(mount(folder.path().join("home"), "/data", false), &places).is_some());
        assert_eq!(refusal(mount(home.join("plain"), "/data", false), &places), None);
    }

    #[test]
    fn places_inside() {
        let folder = tempfile::tempdir().unwrap();
        let places = Places::default();
        for target in [
            "/",
            "data",
            "",
            "/proc",
            "/proc/sys",
            "/sys",
            "/dev/x",
            "/tmp",
            "/a/../b",
            "-v",
            "/sbin",
        ] {
            assert!(refusal(mount(folder.path(), target, false), &places).is_some(), "{target}");
        }
        for target in ["/data", "/srv/notes", "/tmpdata"] {
            assert_eq!(refusal(mount(folder.path(), target, false), &places), None, "{target}");
        }
        let twice = [mount(folder.path(), "/data", false), mount(folder.path(), "/data/", false)];
        assert!(check(&twice, &places).is_err());
    }
}
