//! `portcullis doctor`: reports what this machine offers, and problems that prevent a run.
//!
//! Exits with 11 if a problem would prevent the proxy, or one of its servers, from working.

mod audit;

use std::{
    fs, io,
    net::{SocketAddr, TcpListener},
    os::unix::{
        fs::{FileTypeExt, MetadataExt, PermissionsExt},
        net::UnixStream,
    },
    path::Path,
};

use serde::Serialize;
use serde_json::Value;

use super::{Context, Exit};
use portcullis_config::{Config, Loaded, ProxyLocation};
use portcullis_gateway::admin;
use portcullis_runtime::{
    container, egress_netns,
    process::LaunchFailure,
    sandbox::{self, Outside},
};
use portcullis_upstream::config::{Runtime, Server};

#[derive(Debug, clap::Args)]
pub struct Args {}

/// Path of the config without `--config`.
const DEFAULT_CONFIG: &str = "portcullis.toml";

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Grade {
    Ok,
    Warn,
    Fail,
}

impl Grade {
    fn text(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warn => "warn",
            Self::Fail => "FAIL",
        }
    }
}

/// Result of one check.
#[derive(Debug, Serialize)]
struct Check {
    name: String,
    status: Grade,
    detail: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    remedy: Option<String>,
}

impl Check {
    fn ok(name: impl Into<String>, detail: impl Into<String>) -> Self {
        Self { name: name.into(), status: Grade::Ok, detail: detail.into(), remedy: None }
    }

    fn warn(name: impl Into<String>, detail: impl Into<String>, remedy: &str) -> Self {
        let remedy = Some(remedy.to_owned());
        Self { name: name.into(), status: Grade::Warn, detail: detail.into(), remedy }
    }

    fn fail(name: impl Into<String>, detail: impl Into<String>, remedy: &str) -> Self {
        Self { status: Grade::Fail, ..Self::warn(name, detail, remedy) }
    }
}

/// Runs the verb.
pub async fn run(_args: Args, ctx: &Context) -> anyhow::Result<Exit> {
    let progress = ctx.progress("looking at this machine");
    let loaded = portcullis_config::load(&ctx.config);
    let config = loaded.as_ref().ok().map(|loaded| &loaded.config);
    let available = tokio::task::spawn_blocking(sandbox::available).await?;
    let host = config.and_then(|config| config.engine.host.as_deref());
    let engine = container::Engine::connect(host).await;

    let mut checks = runtimes(config, &available, &engine);
    checks.extend(outside(config, &sandbox::outside(None)).filter(|_| available.is_ok()));
    match &loaded {
        Ok(loaded) => {
            checks.push(warned("config", &shown(&loaded.path), loaded.warnings.len()));
            checks.push(state_dir(&loaded.config.state_dir));
            checks.push(policies(loaded));
            checks.push(port(&loaded.config));
            checks.extend(secrets(loaded));
            checks.extend(audit::checks(loaded));
            checks.extend(running(admin::Client::find(&loaded.config).await).await);
        }
        Err(portcullis_config::Diagnostics(findings)) => {
            checks.push(no_config(&ctx.config, findings));
            let ProxyLocation { state_dir, socket, .. } =
                portcullis_config::whereabouts(&ctx.config);
            let proxy = admin::Client::find_at(state_dir.as_deref(), socket.as_deref()).await;
            checks.extend(running(proxy).await);
        }
    }
    drop(progress);

    let failed = checks.iter().any(|check| check.status == Grade::Fail);
    if ctx.is_json() {
        ctx.json(&serde_json::json!({ "ok": !failed, "checks": checks }))?;
    } else {
        for Check { name, status, detail, remedy } in &checks {
            ctx.line(format!("{:<5} {name:<12} {detail}", status.text()))?;
            if let Some(remedy) = remedy {
                ctx.line(format!("{:<19}{remedy}", ""))?;
            }
        }
    }
    Ok(if failed { Exit::Findings } else { Exit::Ok })
}

/// Checks of the runtimes: the local sandbox, and a container engine.
fn runtimes(
    config: Option<&Config>,
    available: &Result<sandbox::Availability, LaunchFailure>,
    engine: &Result<container::Engine, container::NoEngine>,
) -> Vec<Check> {
    let mut checks = Vec::new();
    let servers = || config.into_iter().flat_map(|config| &config.servers);
    // Servers that run only in a container.
    let needing = || -> Vec<String> {
        let in_container = |(_, server): &(_, &Server)| {
            server.image.is_some() || matches!(server.runtime, Runtime::Container | Runtime::Runsc)
        };
        servers().filter(in_container).map(|(name, _)| format!("`{name}`")).collect()
    };
    match available {
        Ok(available) => checks.extend(available.parts.iter().map(|part| match part.remedy {
            Some(remedy) => Check::warn(part.name, &part.detail, remedy),
            None => Check::ok(part.name, &part.detail),
        })),
        Err(why) => {
            let needed =
                engine.is_err() || servers().any(|(_, server)| server.runtime == Runtime::Sandbox);
            let remedy = why.remedy.as_deref().unwrap_or("run servers in a container engine");
            let check = if needed { Check::fail } else { Check::warn };
            checks.push(check("sandbox", &why.what, remedy));
        }
    }
    match engine {
        Ok(engine) => {
            let version = engine.version();
            checks.push(Check::ok("engine", version.to_string()));
            let warning = |text: &String| {
                Check::warn("engine", text, "servers still run, with one isolation layer missing")
            };
            checks.extend(version.warnings.iter().map(warning));
            if let Err(LaunchFailure { what, remedy }) = engine.confines() {
                let needing = needing();
                let remedy = remedy.unwrap_or_default();
                checks.push(if needing.is_empty() {
                    Check::warn(
                        "engine",
                        format!("{what}; programs run in the local sandbox"),
                        &remedy,
                    )
                } else {
                    Check::fail(
                        "engine",
                        format!("{what}; needed by {}", needing.join(", ")),
                        &remedy,
                    )
                });
            }
            let leading = |(_, server): &(_, &Server)| {
                !server.egress.is_empty() && server.runtime != Runtime::Sandbox
            };
            if let Some((name, server)) = servers().find(leading)
                && !egress_netns::able()
            {
                let sure = server.image.is_some() || server.runtime == Runtime::Container;
                let check = if sure { Check::fail } else { Check::warn };
                checks.push(check(
                    "egress",
                    format!("of a container (`{name}`) takes a proxy that is root, or has CAP_SYS_ADMIN"),
                    "run the proxy so, on the engine's machine, or the server with runtime = \"sandbox\"",
                ));
            }
            let asked = servers().find_map(|(name, server)| Some((name, server.runtime.oci()?)));
            if let Some((name, runtime)) = asked {
                checks.push(match engine.has_runtime(runtime) {
                    Ok(()) => Check::ok("runtime", format!("the engine has `{runtime}`")),
                    Err(LaunchFailure { what, remedy }) => Check::fail(
                        "runtime",
                        format!("{what}; needed by `{name}`"),
                        remedy.as_deref().unwrap_or("run it in an ordinary container"),
                    ),
                });
            }
        }
        Err(none) => {
            let needing = needing();
            let remedy = "install Docker or Podman, or say where it is: `engine.host`, DOCKER_HOST";
            checks.push(if needing.is_empty() {
                let detail = format!("{none}; programs run in the local sandbox");
                Check::warn("engine", detail, remedy)
            } else {
                Check::fail("engine", format!("{none}; needed by {}", needing.join(", ")), remedy)
            });
        }
    }
    checks
}

/// Check of the rights of the proxy's user that a server in the sandbox has.
fn outside(config: Option<&Config>, outside: &Outside) -> Option<Check> {
    let Outside::Ourselves { groups, .. } = outside else { return None };
    let detail_of_user = format!("to this machine, a server in the sandbox is {outside}");
    let remedy = "run the proxy as a user of its own who is in no other group, or as root";
    let host = config.and_then(|config| config.engine.host.as_deref());
    let engine = container::sockets(host).into_iter().find(|socket| {
        fs::metadata(socket).is_ok_and(|meta| {
            meta.file_type().is_socket() && meta.mode() & 0o020 != 0 && groups.contains(&meta.gid())
        })
    });
    if let Some(engine) = engine {
        let detail =
            format!("{detail_of_user}, one of which has the engine ({})", engine.display());
        return Some(Check::warn("user", detail, remedy));
    }
    let mounting = |(_, server): &(_, &Server)| {
        server.image.is_none() && server.url.is_none() && !server.mounts.is_empty()
    };
    let mounting = config.into_iter().flat_map(|config| &config.servers).find(mounting);
    Some(match mounting {
        Some((name, _)) if groups.len() > 1 => {
            let detail =
                format!("{detail_of_user}, with their rights on what is mounted (`{name}`)");
            Check::warn("user", detail, remedy)
        }
        _ => Check::ok("user", detail_of_user),
    })
}

fn no_config(path: &Path, findings: &[portcullis_config::Finding]) -> Check {
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

/// Checks from the status of a running proxy.
async fn running(proxy: Option<admin::Client>) -> Vec<Check> {
    let Some(proxy) = proxy else { return Vec::new() };
    // A status that is unavailable, or not for this user, is not a finding.
    let status: Value = proxy.get_json("/v1/status").await.unwrap_or_default();
    let mut checks = audit::running(&status);
    if let Some(why) = status["config"]["rejected"].as_str() {
        let why = why.lines().next().unwrap_or_default();
        let detail = format!("THE ONE BEFORE IS IN FORCE: {why}");
        checks.push(Check::fail("config", detail, "`portcullis check` shows every finding"));
    }
    let waiting = status["config"]["waiting"].as_array().into_iter().flatten();
    let waiting: Vec<_> = waiting.filter_map(Value::as_str).collect();
    if !waiting.is_empty() {
        let detail = format!("changed since the proxy started: {}", waiting.join(", "));
        checks.push(Check::warn("config", detail, "start the proxy again to have that count"));
    }
    checks.extend(status["servers"].as_array().into_iter().flatten().filter_map(server));
    if let Some(why) = status["policies"]["last_error"][0]["message"].as_str() {
        let revision = status["policies"]["revision"].as_str().unwrap_or_default();
        let detail = format!("THE ONES BEFORE ARE IN FORCE (revision {revision}): {why}");
        checks.push(Check::fail("policies", detail, "`portcullis check` shows every finding"));
    }
    checks
}

/// Check of a server of a running proxy, if its state needs attention.
fn server(state: &Value) -> Option<Check> {
    let name = state["name"].as_str()?;
    let why = state["failure"].as_str().unwrap_or_default();
    // The failure may end with a remedy that is meant for other output.
    let why = why.split("; see `portcullis server logs").next().unwrap_or_default();
    let logs = format!("`portcullis server logs {name}` may say more");
    let health = state["health"].as_str()?;
    let detail = match (health, why) {
        (_, "") => format!("`{name}` is {health}"),
        _ => format!("`{name}` is {health}: {why}"),
    };
    Some(match health {
        "stopped" => return None,
        "running" | "healthy" => Check::ok("server", detail),
        "pulling" => Check::warn("server", detail, "wait until its image is there"),
        "failed" => Check::fail("server", detail, &logs),
        _ => Check::warn("server", detail, &logs),
    })
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
        for given in settings.given() {
            for (client, from) in given.references() {
                let source = from.parse::<portcullis_vault::Source>();
                let source = source.map(|source| source.relative_to(&loaded.base));
                let Err(why) = source.and_then(|source| source.resolve()) else { continue };
                let name = given.name;
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

fn shown(path: &Path) -> String {
    path.display().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_state_folder() {
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
    fn a_failed_server_is_explained_once() {
        let failed = serde_json::json!({
            "name": "time", "health": "failed",
            "failure": "it ended with exit code 2; see `portcullis server logs time`",
        });
        let check = server(&failed).unwrap();
        assert_eq!(check.detail, "`time` is failed: it ended with exit code 2");
        assert_eq!(check.remedy.unwrap(), "`portcullis server logs time` may say more");
    }

    #[test]
    fn the_port() {
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
