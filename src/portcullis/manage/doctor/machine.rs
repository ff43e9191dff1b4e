//! Checks of the machine: the sandbox, the container engine, and the rights of the proxy's user.

use std::{
    fs,
    os::unix::fs::{FileTypeExt as _, MetadataExt as _},
};

use super::Check;
use portcullis_config::Config;
use portcullis_runtime::{
    container, egress_netns,
    process::LaunchFailure,
    sandbox::{self, Outside},
};
use portcullis_upstream::config::{Runtime, Server};

/// Checks of the runtimes: the local sandbox, and a container engine.
pub(super) fn runtimes(
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
            let configured =
                servers().find_map(|(name, server)| Some((name, server.runtime.oci()?)));
            if let Some((name, runtime)) = configured {
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
pub(super) fn user(config: Option<&Config>, outside: &Outside) -> Option<Check> {
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
