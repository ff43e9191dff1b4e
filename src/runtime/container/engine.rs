//! Finds a container engine and what it supports.

use std::{
    env, fmt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use bollard::{API_DEFAULT_VERSION, Docker, errors::Error};
use futures_util::stream::{FuturesOrdered, StreamExt as _};
use tokio::time::timeout;

use super::{
    cgroup_check,
    engine_errors::{REQUEST_TIMEOUT_SECONDS, words},
    facts::{Facts, Version},
    failure, image_builder,
    lease::Lease,
};
use crate::process::LaunchFailure;

/// Time limit for a first answer of an engine; all its sockets are tried at once.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// Time limit for an engine that answered to report its version. Podman runs programs for that.
const VERSION_TIMEOUT: Duration = Duration::from_secs(30);
/// A connection to a container engine. Cheap to clone.
#[derive(Clone)]
pub struct Engine {
    pub(super) docker: Docker,
    pub(super) facts: Arc<Facts>,
    pub(super) packed: Arc<image_builder::Cache>,
}

impl fmt::Debug for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Engine").field(&self.facts.version).finish()
    }
}

/// Failure to find a container engine.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct NoEngine {
    /// Each address in order, with its error.
    pub tried: Vec<AttemptedAddress>,
}

/// One address that was tried, and its error.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AttemptedAddress {
    pub host: String,
    /// Origin of the address: `engine.host`, `DOCKER_HOST`, `Docker's usual socket`.
    pub from: &'static str,
    pub why: String,
}

impl fmt::Display for NoEngine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("no container engine answers")?;
        for (n, AttemptedAddress { host, from, why }) in self.tried.iter().enumerate() {
            let separator = if n == 0 { ": " } else { "; " };
            write!(f, "{separator}{host} ({from}) {why}")?;
        }
        Ok(())
    }
}

impl Engine {
    /// Connects to `host`, else to `DOCKER_HOST`, else to the first of Docker's and Podman's usual
    /// sockets that answers. Takes two seconds if none answers. Addresses are `unix://PATH`, and
    /// `tcp://` or `http://` on loopback: an engine's API gives root on its host, and plain HTTP
    /// has no authentication.
    pub async fn connect(host: Option<&str>) -> Result<Self, NoEngine> {
        let candidates = candidates(host, |name| env::var_os(name).map(PathBuf::from));
        // All are tried at once. The first in order that answers is used, without waiting for later
        // ones.
        let mut tries: FuturesOrdered<_> = candidates
            .into_iter()
            .map(|(host, from)| async move {
                let late =
                    |limit: Duration| format!("did not answer within {} seconds", limit.as_secs());
                let tried = match timeout(CONNECT_TIMEOUT, reach(&host)).await {
                    Ok(Ok(docker)) => {
                        let result = timeout(VERSION_TIMEOUT, Self::of(docker, &host)).await;
                        result.unwrap_or_else(|_| Err(late(VERSION_TIMEOUT)))
                    }
                    Ok(Err(why)) => Err(why),
                    Err(_) => Err(late(CONNECT_TIMEOUT)),
                };
                tried.map_err(|why| AttemptedAddress { host, from, why })
            })
            .collect();
        let mut tried = Vec::new();
        while let Some(outcome) = tries.next().await {
            match outcome {
                Ok(engine) => return Ok(engine),
                Err(failed) => tried.push(failed),
            }
        }
        Err(NoEngine { tried })
    }

    async fn of(docker: Docker, host: &str) -> Result<Self, String> {
        let docker = docker.negotiate_version().await.map_err(|error| words(&error))?;
        let (version, info) =
            tokio::try_join!(docker.version(), docker.info()).map_err(|error| words(&error))?;
        let api = docker.client_version();
        if (api.major_version, api.minor_version) < (1, 41) {
            return Err(format!(
                "supports API {api} at most; Portcullis needs 1.41 (Docker 20.10) \
                or newer"
            ));
        }
        if info.os_type.as_deref().is_some_and(|os| os != "linux") {
            return Err("does not run Linux containers".to_owned());
        }
        let podman = version.components.iter().flatten().any(|c| c.name.contains("Podman"));
        let lacking = cgroup_check::lacking(&info, podman);
        let options = info.security_options.unwrap_or_default();
        let has = |name: &str| options.iter().any(|option| option.contains(name));
        let mut runtimes: Vec<String> = info.runtimes.unwrap_or_default().into_keys().collect();
        runtimes.sort();
        Ok(Self {
            docker,
            facts: Arc::new(Facts {
                version: Version {
                    name: if podman { "Podman" } else { "Docker" },
                    version: version.version.unwrap_or_default(),
                    api: api.to_string(),
                    host: host.to_owned(),
                    cgroup: info.cgroup_version.map(|v| v.to_string()).unwrap_or_default(),
                    storage: info.driver.unwrap_or_default(),
                    warnings: info.warnings.unwrap_or_default(),
                },
                podman,
                // Podman applies its own profile where it can, and refuses Docker's profile name.
                apparmor: has("apparmor") && !podman,
                arch: match info.architecture.unwrap_or_default().as_str() {
                    "amd64" | "x86_64" => "x86_64".to_owned(),
                    "arm64" | "aarch64" => "aarch64".to_owned(),
                    other => other.to_owned(),
                },
                runtimes,
                seccomp: has("seccomp"),
                lacking,
                default_runtime: info.default_runtime.unwrap_or_default(),
                data: info.docker_root_dir.map(PathBuf::from),
                owner: Lease::current(),
            }),
            packed: Arc::default(),
        })
    }

    /// Name and version of this engine.
    pub fn version(&self) -> &Version {
        &self.facts.version
    }

    /// Paths of the engine's socket and data. Access to either gives control of the machine.
    pub fn host_paths(&self) -> impl Iterator<Item = PathBuf> {
        let socket = self.facts.version.host.strip_prefix("unix://").map(PathBuf::from);
        socket.into_iter().chain(self.facts.data.clone())
    }

    /// Checks that the engine can apply the restrictions that every profile has.
    ///
    /// # Errors
    /// What the engine lacks, and the remedy.
    pub fn confines(&self) -> Result<(), LaunchFailure> {
        if !self.facts.seccomp {
            return Err(failure(
                "the engine does not apply seccomp profiles",
                "use an engine and a kernel with seccomp, or run the server in the sandbox",
            ));
        }
        cgroup_check::check(&self.facts.lacking)
    }

    /// Checks that the engine can run containers with this OCI runtime.
    ///
    /// # Errors
    /// Why it cannot, and the remedy.
    pub fn has_runtime(&self, name: &str) -> Result<(), LaunchFailure> {
        let Facts { runtimes, default_runtime, podman, .. } = &*self.facts;
        if *podman && default_runtime != name {
            // Podman's Docker API accepts the name and uses its own default anyway.
            return Err(failure(
                format!(
                    "Podman's API cannot select an OCI runtime; its default is \
                    `{default_runtime}`"
                ),
                format!(
                    "install {name} and write `runtime = \"{name}\"` below [engine] of Podman's \
                         containers.conf, or use Docker"
                ),
            ));
        }
        if !runtimes.iter().any(|runtime| runtime == name) {
            return Err(failure(
                format!(
                    "the engine does not have the OCI runtime `{name}`, only {}",
                    if runtimes.is_empty() { "none".to_owned() } else { runtimes.join(", ") }
                ),
                format!(
                    "install gVisor's {name}, name it below `runtimes` of the engine's daemon.json \
                     (`{name} install` does), and restart the engine"
                ),
            ));
        }
        Ok(())
    }
}

/// Connects to an address and waits for a first answer.
async fn reach(host: &str) -> Result<Docker, String> {
    let docker = open(host)?;
    match docker.ping().await {
        // A guard that refuses this request has answered, too.
        Ok(_) | Err(Error::DockerResponseServerError { .. }) => Ok(docker),
        Err(error) => Err(words(&error)),
    }
}

fn open(host: &str) -> Result<Docker, String> {
    if let Some(path) = host.strip_prefix("unix://") {
        if !Path::new(path).exists() {
            return Err("does not exist".to_owned());
        }
        return Docker::connect_with_unix(path, REQUEST_TIMEOUT_SECONDS, API_DEFAULT_VERSION)
            .map_err(|error| words(&error));
    }
    let Some(address) = host.strip_prefix("tcp://").or_else(|| host.strip_prefix("http://")) else {
        return Err(
            "is not the address of an engine: use unix://PATH, or tcp://127.0.0.1:PORT".to_owned()
        );
    };
    if !loopback(address) {
        return Err(
            "is not on this machine: an engine's plain API gives root without a password, \
                    so only loopback addresses are accepted (a tunnel can end on one)"
                .to_owned(),
        );
    }
    Docker::connect_with_http(host, REQUEST_TIMEOUT_SECONDS, API_DEFAULT_VERSION)
        .map_err(|error| words(&error))
}

fn loopback(address: &str) -> bool {
    let authority = address.split('/').next().unwrap_or("");
    let Ok(authority) = authority.parse::<http::uri::Authority>() else { return false };
    // Refuses `user@127.0.0.1`.
    if authority.as_str().contains('@') {
        return false;
    }
    let host = authority.host().trim_matches(['[', ']']);
    host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

/// Addresses to try. A configured address is the only one: a fallback to another engine would start
/// servers where nobody asked for them.
fn candidates(
    host: Option<&str>,
    env: impl Fn(&str) -> Option<PathBuf>,
) -> Vec<(String, &'static str)> {
    if let Some(host) = host {
        return vec![(host.to_owned(), "`engine.host`")];
    }
    if let Some(host) = env("DOCKER_HOST").filter(|host| !host.as_os_str().is_empty()) {
        return vec![(host.to_string_lossy().into_owned(), "DOCKER_HOST")];
    }
    let runtime = env("XDG_RUNTIME_DIR");
    let below = |base: &Option<PathBuf>, path| base.as_ref().map(|base| base.join(path));
    [
        (Some("/var/run/docker.sock".into()), "Docker's usual socket"),
        (below(&runtime, "docker.sock"), "rootless Docker"),
        (below(&env("HOME"), ".docker/run/docker.sock"), "Docker Desktop"),
        (Some("/run/podman/podman.sock".into()), "Podman"),
        (below(&runtime, "podman/podman.sock"), "rootless Podman"),
    ]
    .into_iter()
    .filter_map(|(path, from)| Some((format!("unix://{}", path?.display()), from)))
    .collect()
}

/// Every socket at which an engine may listen: the configured one and the usual ones.
pub fn sockets(host: Option<&str>) -> Vec<PathBuf> {
    let env = |name: &str| env::var_os(name).map(PathBuf::from);
    let usual = |name: &str| env(name).filter(|_| name != "DOCKER_HOST");
    [candidates(host, env), candidates(None, env), candidates(None, usual)]
        .into_iter()
        .flatten()
        .filter_map(|(host, _)| host.strip_prefix("unix://").map(PathBuf::from))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn remote_plain_addresses_are_refused() {
        for (address, taken) in [
            ("127.0.0.1:2375", true),
            ("localhost:2375", true),
            ("[::1]:2375", true),
            ("127.9.9.9", true),
            ("10.0.0.1:2375", false),
            ("localhost.example.com:2375", false),
            ("127.0.0.1@example.com:2375", false),
            ("127.0.0.1.example.com", false),
            ("0.0.0.0:2375", false),
            ("", false),
        ] {
            assert_eq!(loopback(address), taken, "{address}");
        }
    }

    #[test]
    fn configured_host_is_the_only_one_tried() {
        let env = |name: &str| match name {
            "XDG_RUNTIME_DIR" => Some(PathBuf::from("/run/user/1")),
            "HOME" => Some(PathBuf::from("/home/me")),
            _ => None,
        };
        assert_eq!(candidates(Some("unix:///x"), env).len(), 1);
        assert_eq!(candidates(None, |_| Some("unix:///y".into()))[0].0, "unix:///y");
        let usual: Vec<String> = candidates(None, env).into_iter().map(|(host, _)| host).collect();
        assert_eq!(
            usual,
            [
                "unix:///var/run/docker.sock",
                "unix:///run/user/1/docker.sock",
                "unix:///home/me/.docker/run/docker.sock",
                "unix:///run/podman/podman.sock",
                "unix:///run/user/1/podman/podman.sock",
            ]
        );
    }

    #[tokio::test]
    async fn missing_engine_error_names_each_address() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("none.sock");
        let host = format!("unix://{}", socket.display());
        let result = Engine::connect(Some(&host)).await.unwrap_err().to_string();
        assert_eq!(
            result,
            format!("no container engine answers: {host} (`engine.host`) does not exist")
        );
        for host in ["ssh://x", "tcp://10.1.2.3:2375", "/var/run/docker.sock", ""] {
            let result = Engine::connect(Some(host)).await.unwrap_err();
            assert!(result.tried[0].why.starts_with("is no"), "{result}");
        }
        // A listener that never answers.
        let silent = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        let result = Engine::connect(Some(&host)).await.unwrap_err().to_string();
        assert!(result.ends_with("did not answer within 2 seconds"), "{result}");
        drop(silent);
    }
}
