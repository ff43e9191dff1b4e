//! What the engine reports about Portcullis's containers, for `server inspect`; works from any
//! process.

use std::{collections::HashMap, path::Path, time::Duration};

use bollard::{
    errors::Error,
    models::{ContainerInspectResponse, HostConfig, MountType},
    query_parameters::ListContainersOptionsBuilder,
};
use serde::Serialize;

use crate::process::SECRETS;

use super::{
    Engine, Fault,
    facts::{DEFAULT_RUNTIME, Facts},
    label, seccomp,
};
use portcullis_guard::NAME;

/// A container of any Portcullis process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Running {
    pub id: String,
    pub name: String,
    pub image: String,
    /// Values of the labels, unchecked.
    pub server: String,
    pub instance: String,
    pub profile: String,
    pub owner: String,
    /// State in the engine's words: `running`, `created`, `exited`.
    pub state: String,
    /// For a pause container: name of the container that joins its network namespace.
    pub holds: Option<String>,
}

/// What the engine reports about one container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Inspection {
    pub id: String,
    pub name: String,
    pub image: String,
    pub started: Option<String>,
    /// Hash of the profile that the container was created from.
    pub profile: String,
    /// The items of [`Profile::describe`](super::Profile::describe), as the engine reports them.
    pub fields: Vec<(String, String)>,
    /// Names of the environment variables. Their values may be secrets.
    pub env: Vec<String>,
}

impl Engine {
    /// All Portcullis containers on this engine, of every instance of the proxy.
    pub async fn list(&self) -> Result<Vec<Running>, Fault> {
        let filters = HashMap::from([("label", vec![label::OWNER, label::INSTANCE])]);
        let options = ListContainersOptionsBuilder::new().all(true).filters(&filters).build();
        let mut retries = 0..20;
        let found = loop {
            match self.docker.list_containers(Some(options.clone())).await {
                // Between the end of a program and its removal, Podman reports a state (`stopped`)
                // that Docker's API does not have.
                Err(Error::JsonDataError { .. })
                    if self.facts.podman && retries.next().is_some() =>
                {
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
                found => break found.map_err(Fault::of("list containers"))?,
            }
        };
        Ok(found
            .into_iter()
            .filter_map(|container| {
                let name = container.names?.first()?.trim_start_matches('/').to_owned();
                let labels = container.labels?;
                let label = |key| labels.get(key).cloned();
                let server = label(label::SERVER)?;
                // An image can set labels, but only the launcher sets the name.
                name.strip_prefix(NAME)?.strip_prefix(&server)?.strip_prefix('-')?;
                Some(Running {
                    id: container.id?,
                    name,
                    image: container.image.unwrap_or_default(),
                    server,
                    instance: label(label::INSTANCE)?,
                    profile: label(label::PROFILE).unwrap_or_default(),
                    owner: label(label::OWNER)?,
                    holds: label(label::HOLDS),
                    state: container.state.map(|state| state.to_string()).unwrap_or_default(),
                })
            })
            .collect())
    }

    /// What the engine reports about a container, by id or name.
    pub async fn inspect(&self, container: &str) -> Result<Inspection, Fault> {
        let found = self.docker.inspect_container(container, None).await;
        let mut found = found.map_err(Fault::of("inspect the container"))?;
        let mode = found.host_config.as_ref().and_then(|host| host.network_mode.as_deref());
        if let Some(holder) = mode.and_then(|mode| mode.strip_prefix("container:")) {
            let holder = self.docker.inspect_container(holder, None).await;
            let holder = holder.map_err(Fault::of("inspect its pause container"))?;
            replace_network_settings(&mut found, holder);
        }
        Ok(Inspection::of(found, &self.facts))
    }
}

/// Replaces the id of a pause container by its own network settings, which are the effective ones.
fn replace_network_settings(
    container: &mut ContainerInspectResponse,
    holder: ContainerInspectResponse,
) {
    let holds = holder.config.and_then(|config| config.labels?.remove(label::HOLDS));
    let name = container.name.as_deref().map(|name| name.trim_start_matches('/'));
    let of_holder = holder.host_config.filter(|_| holds.is_some() && holds.as_deref() == name);
    if let (Some(host), Some(of_holder)) = (&mut container.host_config, of_holder) {
        host.network_mode = of_holder.network_mode.map(|mode| pause_container_network(&mode));
        host.extra_hosts = of_holder.extra_hosts;
    }
}

/// Description of a network whose namespace a pause container holds.
pub(super) fn pause_container_network(mode: &str) -> String {
    format!("{mode}, held by a pause container")
}

impl Inspection {
    fn of(container: ContainerInspectResponse, facts: &Facts) -> Self {
        let config = container.config.unwrap_or_default();
        let host = container.host_config.unwrap_or_default();
        let health = config.healthcheck.and_then(|check| check.test).unwrap_or_default();
        let labels = config.labels.unwrap_or_default();
        let env = config.env.unwrap_or_default();
        let name = |pair: &String| pair.split('=').next().unwrap_or("").to_owned();
        Self {
            id: container.id.unwrap_or_default(),
            name: container.name.unwrap_or_default().trim_start_matches('/').to_owned(),
            image: container.image.unwrap_or_default(),
            started: container.state.and_then(|state| state.started_at),
            profile: labels.get(label::PROFILE).cloned().unwrap_or_default(),
            fields: fields(config.user.unwrap_or_default(), host, &health.join(" "), facts),
            env: env.iter().map(name).collect(),
        }
    }
}

fn fields(user: String, host: HostConfig, health: &str, facts: &Facts) -> Vec<(String, String)> {
    let runtime = host.runtime.filter(|name| *name != facts.default_runtime);
    let number = |n: Option<i64>| n.unwrap_or(0).to_string();
    let yes = |b: Option<bool>| b.unwrap_or(false).to_string();
    let list = |items: Option<Vec<String>>| joined(items.unwrap_or_default());
    let mode = |mode: Option<String>| match mode {
        Some(mode) if !mode.is_empty() => mode,
        _ => "private".to_owned(),
    };
    let security = host.security_opt.unwrap_or_default().into_iter().map(|option| {
        option
            .strip_prefix("seccomp=")
            .map_or(option.clone(), |json| format!("seccomp={}", seccomp_name(json)))
    });
    let mut tmpfs: Vec<String> = host
        .tmpfs
        .unwrap_or_default()
        .into_iter()
        .map(|(mount_path, options)| format!("{mount_path} {options}"))
        .collect();
    tmpfs.sort();
    let mut ulimits: Vec<String> = host
        .ulimits
        .unwrap_or_default()
        .into_iter()
        .map(|limit| {
            let name = limit.name.unwrap_or_default();
            format!("{name}={}:{}", limit.soft.unwrap_or(-1), limit.hard.unwrap_or(-1))
        })
        .collect();
    ulimits.sort();
    let devices = host.devices.unwrap_or_default().into_iter();
    let devices = devices.map(|device| device.path_on_host.unwrap_or_default()).collect();
    let ports = host.port_bindings.unwrap_or_default().into_keys().collect();
    let mounts = host.mounts.unwrap_or_default().into_iter().map(|mount| {
        let line = mount_line(
            &mount.source.unwrap_or_default(),
            &mount.target.unwrap_or_default(),
            !mount.read_only.unwrap_or(false),
        );
        match mount.typ {
            Some(MountType::BIND) => line,
            other => format!("{other:?} {line}"),
        }
    });
    let mounts = mounts.chain(host.binds.unwrap_or_default()).collect();
    [
        ("User", user),
        ("Privileged", yes(host.privileged)),
        ("CapDrop", list(host.cap_drop)),
        ("CapAdd", list(host.cap_add)),
        ("SecurityOpt", joined(security.collect())),
        ("ReadonlyRootfs", yes(host.readonly_rootfs)),
        ("Tmpfs", joined(tmpfs)),
        ("Memory", number(host.memory)),
        ("MemorySwap", number(host.memory_swap)),
        ("NanoCpus", number(host.nano_cpus)),
        ("PidsLimit", number(host.pids_limit)),
        ("Ulimits", joined(ulimits)),
        ("Runtime", runtime.unwrap_or_else(|| DEFAULT_RUNTIME.to_owned())),
        ("NetworkMode", mode(host.network_mode)),
        ("ExtraHosts", joined(host.extra_hosts.unwrap_or_default())),
        ("IpcMode", mode(host.ipc_mode)),
        ("PidMode", mode(host.pid_mode)),
        ("UTSMode", mode(host.uts_mode)),
        ("CgroupnsMode", mode(host.cgroupns_mode.map(|mode| mode.to_string()))),
        ("Init", yes(host.init)),
        (
            "RestartPolicy",
            host.restart_policy
                .and_then(|policy| policy.name)
                .map_or(String::new(), |n| n.to_string()),
        ),
        ("AutoRemove", yes(host.auto_remove)),
        ("LogConfig", host.log_config.and_then(|config| config.typ).unwrap_or_default()),
        ("Healthcheck", health.to_owned()),
        ("Devices", joined(devices)),
        ("PortBindings", joined(ports)),
        ("Mounts", joined(mounts)),
    ]
    .map(|(field, value)| (field.to_owned(), value))
    .to_vec()
}

fn joined(items: Vec<String>) -> String {
    if items.is_empty() { "none".to_owned() } else { items.join(", ") }
}

/// `SOURCE:TARGET:ro`, as in the config. The folder of a server's secrets is shown without its
/// path, which differs at every start.
pub(super) fn mount_line(source: &str, target: &str, writable: bool) -> String {
    let source = match target {
        SECRETS if portcullis_vault::is_folder(Path::new(source)) => "(secrets in memory)",
        _ => source,
    };
    format!("{source}:{target}:{}", if writable { "rw" } else { "ro" })
}

/// Short name of a seccomp profile, whose text would be too long.
pub(super) fn seccomp_name(json: &str) -> String {
    if seccomp::is_ours(json) {
        format!("portcullis:{}", *seccomp::DIGEST)
    } else {
        "not ours".to_owned()
    }
}
