//! Checks of a config: its state folder, policies, port, secrets and audit log.

use std::{
    fs, io,
    net::{SocketAddr, TcpListener},
    os::unix::{
        fs::{MetadataExt as _, PermissionsExt as _},
        net::UnixStream,
    },
    path::Path,
};

use super::{Check, audit, shown};
use portcullis_config::{Config, Loaded};
use portcullis_gateway::admin;

/// Path of the config without `--config`.
const DEFAULT_CONFIG: &str = "portcullis.toml";

/// Checks of a valid config.
pub(super) fn checks(loaded: &Loaded) -> Vec<Check> {
    let mut checks = vec![
        warned("config", &shown(&loaded.path), loaded.warnings.len()),
        state_dir(&loaded.config.state_dir),
        policies(loaded),
        port(&loaded.config),
    ];
    checks.extend(secrets(loaded));
    checks.extend(audit::checks(loaded));
    checks
}

/// Check of a config that does not exist or is invalid.
pub(super) fn no_config(path: &Path, findings: &[portcullis_config::Finding]) -> Check {
    let Some(first) = findings.first() else {
        return Check::fail("config", shown(path), "run `portcullis check`");
    };
    let place = first.position().map(|(line, column)| format!(":{line}:{column}"));
    let place = format!("{}{}", first.file().unwrap_or(&shown(path)), place.unwrap_or_default());
    if !path.exists() && path == Path::new(DEFAULT_CONFIG) {
        let remedy = first.help.as_deref().unwrap_or("name one with `--config FILE`");
        return Check::warn("config", &first.message, remedy);
    }
    let more = match findings.len() {
        1 => String::new(),
        count => format!(" (and {} more)", count - 1),
    };
    let remedy = first.help.as_deref().unwrap_or("run `portcullis check` for every finding");
    Check::fail("config", format!("{place}: {}{more}", first.message), remedy)
}

fn warned(name: &str, detail: &str, warnings: usize) -> Check {
    match warnings {
        0 => Check::ok(name, detail),
        1 => Check::warn(name, format!("{detail}, with a warning"), "`portcullis check` shows it"),
        count => {
            let detail = format!("{detail}, with {count} warnings");
            Check::warn(name, detail, "`portcullis check` shows them")
        }
    }
}

/// Whether the state folder can be used or created.
fn state_dir(dir: &Path) -> Check {
    let name = "state";
    let meta = match fs::metadata(dir) {
        Ok(meta) => meta,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let parent = dir.ancestors().skip(1).find(|folder| folder.exists());
            let writable = parent.is_some_and(|parent| tempfile::tempfile_in(parent).is_ok());
            return if writable {
                Check::ok(name, format!("{} (will be made)", dir.display()))
            } else {
                Check::fail(
                    name,
                    format!("{} is not there and can't be made", dir.display()),
                    "make it for the user who runs the proxy, or set `state-dir`",
                )
            };
        }
        Err(error) => {
            let detail = format!("{}: {error}", dir.display());
            return Check::fail(name, detail, "let the user who runs the proxy have it");
        }
    };
    let shown = shown(dir);
    if !meta.is_dir() {
        return Check::fail(name, format!("{shown} is not a folder"), "set another `state-dir`");
    }
    if meta.uid() != nix::unistd::geteuid().as_raw() {
        let detail = format!("{shown} belongs to user {}, not to you", meta.uid());
        return Check::fail(name, detail, "run as that user, or set another `state-dir`");
    }
    if let Err(error) = tempfile::tempfile_in(dir) {
        let detail = format!("{shown} can't be written to: {error}");
        return Check::fail(name, detail, "make room on the disk, or set another `state-dir`");
    }
    let mode = meta.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        let detail = format!("{shown} is open to others (mode {mode:o})");
        return Check::warn(name, detail, "`chmod 700` it; the proxy does so when it starts");
    }
    Check::ok(name, shown)
}

fn policies(loaded: &Loaded) -> Check {
    match portcullis_policy::Engine::open(
        portcullis_policy::Source::of(&loaded.config.policy, &loaded.config.state_dir),
        &loaded.base,
    ) {
        Ok(engine) => {
            let status = engine.status().borrow().clone();
            if status.policies == 0 {
                let detail = "no policy: everything is refused";
                return Check::warn("policies", detail, "write one, or correct `policy.paths`");
            }
            let bundle = status.bundle.map(|bundle| {
                format!(", of the bundle {} version {}", bundle.name, bundle.version)
            });
            let detail = format!("{} in use{}", status.policies, bundle.unwrap_or_default());
            warned("policies", &detail, status.warnings.len())
        }
        Err(found) => {
            let text = found.to_string();
            let first = text.lines().next().unwrap_or("they can't be loaded");
            Check::fail("policies", first, "run `portcullis check` for every finding")
        }
    }
}

/// Whether the proxy could listen, or a proxy with this config already does.
fn port(config: &Config) -> Check {
    let address = config.listen.http;
    match TcpListener::bind(address) {
        Ok(_) => listening(address, ""),
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            if UnixStream::connect(config.state_dir.join(admin::SOCKET)).is_ok() {
                return listening(address, " (a proxy with this state folder runs)");
            }
            Check::fail(
                "port",
                format!("{address} is in use by another program"),
                "end that program, or set another port in `listen.http`",
            )
        }
        Err(error) => Check::fail(
            "port",
            format!("{address}: {error}"),
            "set an address of this machine, and a port above 1023, in `listen.http`",
        ),
    }
}

fn listening(address: SocketAddr, more: &str) -> Check {
    let detail = format!("{address}{more}");
    if address.ip().is_loopback() {
        return Check::ok("port", detail);
    }
    let remedy = "put a proxy with TLS in front of it, or listen on loopback";
    Check::warn("port", format!("{detail} can be reached from outside, without TLS"), remedy)
}

/// Secrets that do not resolve now. They may resolve when the proxy starts.
fn secrets(loaded: &Loaded) -> Vec<Check> {
    let mut checks = Vec::new();
    for (server, settings) in &loaded.config.servers {
        for binding in settings.secret_bindings() {
            for (client, from) in binding.references() {
                let source = from.parse::<portcullis_vault::Source>();
                let source = source.map(|source| source.relative_to(&loaded.base));
                let Err(why) = source.and_then(|source| source.resolve()) else { continue };
                let name = binding.name;
                checks.push(match client {
                    None => Check::warn(
                        "secrets",
                        format!("`{name}` of server `{server}`: {why}"),
                        "the server can't be started without it",
                    ),
                    Some(client) => Check::warn(
                        "secrets",
                        format!("`{name}` of server `{server}` for `{client}`: {why}"),
                        "the server can't be started for this client without it",
                    ),
                });
            }
        }
    }
    checks
}

#[cfg(test)]
mod tests {
    use super::{super::Grade, *};

    #[test]
    fn state_folder_is_graded_by_its_permissions() {
        let dir = tempfile::tempdir().unwrap();
        let grade = |path: &Path| state_dir(path).status;
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o700)).unwrap();
        assert_eq!(grade(dir.path()), Grade::Ok);
        assert_eq!(grade(&dir.path().join("new/folder")), Grade::Ok);
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        assert_eq!(grade(dir.path()), Grade::Warn);
        let file = dir.path().join("file");
        fs::write(&file, "").unwrap();
        assert_eq!(grade(&file), Grade::Fail);
        assert_eq!(grade(Path::new("/proc/nothing/here")), Grade::Fail);
    }

    #[test]
    fn port_in_use_by_another_process_fails() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let dir = tempfile::tempdir().unwrap();
        let text = format!("[listen]\nhttp = \"{}\"\n", taken.local_addr().unwrap());
        let config =
            portcullis_config::parse(&dir.path().join("portcullis.toml"), &text).unwrap().config;
        assert_eq!(port(&config).status, Grade::Fail);
        fs::create_dir(&config.state_dir).unwrap();
        let _proxy =
            std::os::unix::net::UnixListener::bind(config.state_dir.join(admin::SOCKET)).unwrap();
        assert_eq!(port(&config).status, Grade::Ok);
        drop(taken);
        assert_eq!(port(&config).status, Grade::Ok);
        assert_eq!(listening("0.0.0.0:8811".parse().unwrap(), "").status, Grade::Warn);
    }
}
