//! The hardened default profile: everything that confines a server in a container, in one struct.
//!
//! Invariant: a container is created only from a [`Profile`] ([`Profile::host_config`]), and
//! [`Profile::describe`] equals what the engine's `inspect` reports about the container.

use std::{collections::HashMap, fmt, path::PathBuf};

use bollard::models::{
    HealthConfig, HostConfig, HostConfigCgroupnsModeEnum, HostConfigLogConfig, Mount as Bind,
    MountBindOptions, MountBindOptionsPropagationEnum, MountType, ResourcesUlimits, RestartPolicy,
    RestartPolicyNameEnum,
};
use serde::Serialize;
use sha2::{Digest, Sha256};

use crate::{
    MountPolicy,
    config::{Hardening, Resources},
    egress_netns,
    mount::Mount,
    process::{LaunchFailure, LaunchSpec, SECRETS},
};
use portcullis_egress::Destination;

use super::{
    facts::{DEFAULT_RUNTIME, Facts},
    failure, mounts, podman, seccomp,
};

const USER: &str = "65534:65534";
const MIB: u64 = 1 << 20;

/// Everything that confines one server's container.
#[derive(Debug, Clone, PartialEq)]
pub struct Profile {
    user: String,
    cap_add: Vec<String>,
    apparmor: bool,
    readonly_root: bool,
    exec_tmp: bool,
    tmp_mib: u64,
    files: u32,
    /// OCI runtime, if the engine does not choose it.
    runtime: Option<&'static str>,
    /// Volumes that the image declares. They are scratch space in memory instead of the host's
    /// disk.
    scratch: Vec<String>,
    memory: u64,
    nano_cpus: i64,
    pids: u32,
    network: bool,
    egress: Vec<Destination>,
    /// Pause container whose network namespace a server with `egress` joins. Empty before that
    /// container exists.
    joins: Option<String>,
    /// Whether this is a pause container, whose program runs no other programs.
    holds: bool,
    mounts: Vec<Mount>,
    /// Folder of the secrets that are delivered as files.
    secrets: Option<Mount>,
    /// File with the names of the reachable hosts, for an engine that does not give a container the
    /// hosts of the container whose network it joins.
    hosts: Option<Mount>,
    init: Option<&'static str>,
    /// Seccomp profile in the form that the engine accepts.
    seccomp: String,
    /// Limit of the user's processes, for an engine whose own default may be more than it can set.
    nproc: Option<i64>,
}

/// Difference between the config and the default profile, looser or stricter.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Deviation {
    /// Field of the profile by the engine's name.
    pub field: &'static str,
    pub default: String,
    pub actual: String,
    /// Config key below `[servers.NAME]` that sets it.
    pub config_key: &'static str,
}

/// `FIELD: ACTUAL (CONFIG KEY)`.
impl fmt::Display for Deviation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} ({})", self.field, self.actual, self.config_key)
    }
}

impl Profile {
    /// Profile of a configured server, before any request to the engine. Refuses values that a
    /// container cannot or must not have.
    pub fn of(spec: &LaunchSpec) -> Result<Self, LaunchFailure> {
        Self::new(spec, &spec.mount_policy)
    }

    pub(super) fn new(
        spec: &LaunchSpec,
        mount_policy: &MountPolicy,
    ) -> Result<Self, LaunchFailure> {
        let LaunchSpec { resources, hardening, .. } = spec;
        Ok(Self {
            user: user(hardening)?,
            cap_add: capabilities(hardening)?,
            apparmor: false,
            readonly_root: !hardening.writable_root,
            exec_tmp: hardening.exec_tmp,
            tmp_mib: resources.tmp_mib,
            files: resources.files,
            runtime: spec.runtime,
            scratch: Vec::new(),
            memory: memory(resources)?,
            nano_cpus: nano_cpus(resources)?,
            pids: pids(resources)?,
            network: hardening.network,
            egress: spec.egress.clone(),
            joins: (!spec.egress.is_empty()).then(String::new),
            holds: false,
            mounts: mounts::check(&spec.mounts, mount_policy)?,
            secrets: spec.secret_files.as_ref().map(|source| Mount {
                source: source.clone(),
                target: SECRETS.into(),
                writable: false,
            }),
            hosts: None,
            init: Some("/sbin/docker-init"),
            seccomp: seccomp::JSON.clone(),
            nproc: None,
        })
    }

    /// Completes the profile with properties of the engine and the image.
    pub(super) fn complete(&mut self, facts: &Facts, volumes: Vec<String>) {
        self.apparmor = facts.apparmor;
        let mut volumes = volumes;
        if facts.podman {
            self.init = None;
            self.nproc = Some(most_processes());
            // If this fails, the engine fails, too, because it cannot read the text as a path.
            if let Ok(file) = podman::file("seccomp", &seccomp::JSON) {
                self.seccomp = file.to_string_lossy().into_owned();
            }
            if self.joins.is_some() {
                let lines = egress_netns::hosts(&self.egress).into_iter();
                let hosts: String =
                    lines.map(|(name, address)| format!("{address}\t{name}\n")).collect();
                // If this fails, programs that do not support a proxy find no address.
                let file = podman::file("hosts", &format!("127.0.0.1\tlocalhost\n{hosts}"));
                let target = PathBuf::from("/etc/hosts");
                self.hosts = file.ok().map(|source| Mount { source, target, writable: false });
            }
            // With a read-only root, Podman makes these writable, without a limit and with
            // execution, unless the request lists them.
            volumes.extend(["/run", "/var/tmp"].map(str::to_owned));
        }
        self.scratch = volumes
            .into_iter()
            .filter(|volume| !self.mounts.iter().any(|m| m.target.as_os_str() == volume.as_str()))
            .collect();
        self.scratch.sort();
        self.scratch.dedup();
    }

    /// Profile of the pause container of this one, as strict as possible.
    pub(super) fn holder(&self, facts: &Facts) -> Self {
        let mut holder = Self {
            user: USER.to_owned(),
            cap_add: Vec::new(),
            readonly_root: true,
            exec_tmp: false,
            tmp_mib: 1,
            files: 64,
            // The engine's own processes that start it count, too.
            memory: 16 * MIB,
            pids: 32,
            joins: None,
            holds: true,
            mounts: Vec::new(),
            secrets: None,
            ..self.clone()
        };
        holder.complete(facts, Vec::new());
        holder
    }

    /// Makes the container join the network namespace of that pause container.
    pub(super) fn join(&mut self, holder: &str) {
        self.joins = Some(holder.to_owned());
    }

    /// Hosts that the server may reach.
    pub(super) fn egress(&self) -> &[Destination] {
        &self.egress
    }

    /// The checked host folders.
    pub(super) fn mounts(&self) -> &[Mount] {
        &self.mounts
    }

    pub(super) fn user(&self) -> &str {
        &self.user
    }

    /// Memory limit in bytes.
    pub(super) fn memory(&self) -> u64 {
        self.memory
    }

    fn security_opt(&self) -> Vec<String> {
        let mut options =
            vec!["no-new-privileges:true".to_owned(), format!("seccomp={}", self.seccomp)];
        if self.apparmor {
            options.push("apparmor=docker-default".to_owned());
        }
        options
    }

    fn tmpfs(&self) -> HashMap<String, String> {
        let scratch =
            self.scratch.iter().map(|mount_path| (mount_path.clone(), tmp(false, self.tmp_mib)));
        scratch.chain([("/tmp".to_owned(), tmp(self.exec_tmp, self.tmp_mib))]).collect()
    }

    /// OCI runtime to request from the engine.
    pub(super) fn runtime(&self) -> Option<&'static str> {
        self.runtime
    }

    /// The profile as a request to the engine.
    pub(super) fn host_config(&self) -> HostConfig {
        let limit = |name: &str, n| ResourcesUlimits {
            name: Some(name.to_owned()),
            soft: Some(n),
            hard: Some(n),
        };
        HostConfig {
            privileged: Some(false),
            cap_drop: Some(vec!["ALL".to_owned()]),
            cap_add: Some(self.cap_add.clone()),
            security_opt: Some(self.security_opt()),
            readonly_rootfs: Some(self.readonly_root),
            tmpfs: Some(self.tmpfs()),
            memory: i64::try_from(self.memory).ok(),
            memory_swap: i64::try_from(self.memory).ok(),
            nano_cpus: Some(self.nano_cpus),
            pids_limit: Some(i64::from(self.pids)),
            ulimits: Some(
                [("core", Some(0)), ("nofile", Some(self.files.into())), ("nproc", self.nproc)]
                    .into_iter()
                    .filter_map(|(name, most)| Some(limit(name, most?)))
                    .collect(),
            ),
            runtime: self.runtime.map(str::to_owned),
            oom_kill_disable: Some(false),
            network_mode: Some(match &self.joins {
                Some(holder) => format!("container:{holder}"),
                None => self.network_mode().to_owned(),
            }),
            // For programs that do not support a proxy (see `egress_netns`). A container that joins
            // has the hosts of its pause container.
            extra_hosts: self.holds.then(|| self.extra_hosts()),
            ipc_mode: Some("private".to_owned()),
            // On cgroup v1, the engine's default is the host's namespace.
            cgroupns_mode: Some(HostConfigCgroupnsModeEnum::PRIVATE),
            init: Some(true),
            restart_policy: Some(RestartPolicy {
                name: Some(RestartPolicyNameEnum::NO),
                maximum_retry_count: Some(0),
            }),
            auto_remove: Some(true),
            // Standard output is protocol traffic: the engine's logs would contain results and
            // secrets.
            log_config: Some(HostConfigLogConfig {
                typ: Some("none".to_owned()),
                config: Some(HashMap::new()),
            }),
            publish_all_ports: Some(false),
            mounts: Some(
                self.mounts.iter().chain(&self.secrets).chain(&self.hosts).map(bind).collect(),
            ),
            ..HostConfig::default()
        }
    }

    /// Replaces the image's health check (which would run a program of its choice) by one that
    /// shows that the container can still start a process.
    pub(super) fn health(&self) -> HealthConfig {
        use portcullis_guard::health::{INTERVAL, RETRIES, START_PERIOD, TIMEOUT};
        match self.init.filter(|_| !self.holds) {
            Some(init) => HealthConfig {
                test: Some(["CMD", init, "--version"].map(str::to_owned).to_vec()),
                interval: Some(INTERVAL),
                timeout: Some(TIMEOUT),
                retries: Some(RETRIES),
                start_period: Some(START_PERIOD),
                start_interval: None,
            },
            None => HealthConfig { test: Some(vec!["NONE".to_owned()]), ..HealthConfig::default() },
        }
    }

    fn extra_hosts(&self) -> Vec<String> {
        let hosts = egress_netns::hosts(&self.egress).into_iter();
        hosts.map(|(name, address)| format!("{name}:{address}")).collect()
    }

    fn listed(&self) -> Vec<String> {
        self.egress.iter().map(ToString::to_string).collect()
    }

    fn network_mode(&self) -> &'static str {
        if self.network { "bridge" } else { "none" }
    }

    /// Each item of the profile by the engine's name, with its value.
    pub fn describe(&self) -> Vec<(String, String)> {
        let mut tmpfs: Vec<String> = self
            .tmpfs()
            .iter()
            .map(|(mount_path, options)| format!("{mount_path} {options}"))
            .collect();
        tmpfs.sort();
        let mut security = vec![
            "no-new-privileges:true".to_owned(),
            format!("seccomp={}", super::inspect::seccomp_name(&seccomp::JSON)),
        ];
        if self.apparmor {
            security.push("apparmor=docker-default".to_owned());
        }
        [
            ("User", self.user.clone()),
            ("Privileged", "false".to_owned()),
            ("CapDrop", "ALL".to_owned()),
            ("CapAdd", or_none(&self.cap_add)),
            ("SecurityOpt", security.join(", ")),
            ("ReadonlyRootfs", self.readonly_root.to_string()),
            ("Tmpfs", tmpfs.join(", ")),
            ("Memory", self.memory.to_string()),
            ("MemorySwap", self.memory.to_string()),
            ("NanoCpus", self.nano_cpus.to_string()),
            ("PidsLimit", self.pids.to_string()),
            ("Ulimits", format!("core=0:0, nofile={0}:{0}", self.files)),
            ("Runtime", self.runtime.unwrap_or(DEFAULT_RUNTIME).to_owned()),
            (
                "NetworkMode",
                match self.joins {
                    Some(_) => super::inspect::pause_container_network(self.network_mode()),
                    None => self.network_mode().to_owned(),
                },
            ),
            ("ExtraHosts", or_none(&self.extra_hosts())),
            ("IpcMode", "private".to_owned()),
            ("PidMode", "private".to_owned()),
            ("UTSMode", "private".to_owned()),
            ("CgroupnsMode", "private".to_owned()),
            ("Init", "true".to_owned()),
            ("RestartPolicy", "no".to_owned()),
            ("AutoRemove", "true".to_owned()),
            ("LogConfig", "none".to_owned()),
            ("Healthcheck", self.health().test.unwrap_or_default().join(" ")),
            ("Devices", "none".to_owned()),
            ("PortBindings", "none".to_owned()),
            (
                "Mounts",
                or_none(
                    &self
                        .mounts
                        .iter()
                        .chain(&self.secrets)
                        .chain(&self.hosts)
                        .map(describe_mount)
                        .collect::<Vec<_>>(),
                ),
            ),
        ]
        .map(|(field, value)| (field.to_owned(), value))
        .to_vec()
    }

    /// Short hash over [`Profile::describe`]. Containers with the same hash are confined alike.
    pub fn hash(&self) -> String {
        let mut hash = Sha256::new();
        // The engine has only the names of the reachable hosts.
        let egress = ("Egress".to_owned(), or_none(&self.listed()));
        for (field, value) in self.describe().into_iter().chain([egress]) {
            hash.update(field);
            hash.update([0]);
            hash.update(value);
            hash.update([0]);
        }
        hex::encode(&hash.finalize()[..8])
    }

    /// Differences from the default profile, each with its config key.
    pub fn deviations(&self) -> Vec<Deviation> {
        let resources = Resources::default();
        let memory = resources.memory_mib.saturating_mul(MIB);
        let sized = |mib| format!("/tmp {mib} MiB");
        let mounted = or_none(&self.mounts.iter().map(describe_mount).collect::<Vec<_>>());
        [
            ("User", USER.to_owned(), self.user.clone(), "hardening.user"),
            ("CapAdd", "none".to_owned(), or_none(&self.cap_add), "hardening.cap-add"),
            (
                "ReadonlyRootfs",
                "true".to_owned(),
                self.readonly_root.to_string(),
                "hardening.writable-root",
            ),
            (
                "Tmpfs",
                format!("/tmp {}", tmp(false, self.tmp_mib)),
                format!("/tmp {}", tmp(self.exec_tmp, self.tmp_mib)),
                "hardening.exec-tmp",
            ),
            ("NetworkMode", "none".to_owned(), self.network_mode().to_owned(), "hardening.network"),
            ("Egress", "none".to_owned(), or_none(&self.listed()), "egress"),
            ("Memory", memory.to_string(), self.memory.to_string(), "resources.memory-mib"),
            (
                "NanoCpus",
                ((resources.cpus * 1e9) as i64).to_string(),
                self.nano_cpus.to_string(),
                "resources.cpus",
            ),
            ("PidsLimit", resources.pids.to_string(), self.pids.to_string(), "resources.pids"),
            ("Tmpfs", sized(resources.tmp_mib), sized(self.tmp_mib), "resources.tmp-mib"),
            ("Ulimits", nofile(resources.files), nofile(self.files), "resources.files"),
            ("Mounts", "none".to_owned(), mounted, "mounts"),
        ]
        .into_iter()
        .filter(|(_, default, actual, _)| default != actual)
        .map(|(field, default, actual, config_key)| Deviation {
            field,
            default,
            actual,
            config_key,
        })
        .collect()
    }
}

/// Highest process limit that an engine on this machine can set for a user. Podman knows only the
/// kernel's maximum, and requests more.
fn most_processes() -> i64 {
    use nix::sys::resource::{Resource, getrlimit};
    let own = getrlimit(Resource::RLIMIT_NPROC).map_or(u64::MAX, |(_, hard)| hard);
    let kernel = std::fs::read_to_string("/proc/sys/kernel/pid_max").unwrap_or_default();
    let kernel = kernel.trim().parse().unwrap_or(32_768);
    i64::try_from(own.min(kernel)).unwrap_or(32_768)
}

fn tmp(exec: bool, mib: u64) -> String {
    format!("rw,{},nosuid,nodev,size={mib}m,mode=1777", if exec { "exec" } else { "noexec" })
}

fn nofile(files: u32) -> String {
    format!("nofile={files}:{files}")
}

fn or_none(items: &[String]) -> String {
    if items.is_empty() { "none".to_owned() } else { items.join(", ") }
}

fn describe_mount(mount: &Mount) -> String {
    super::inspect::mount_line(
        &mount.source.to_string_lossy(),
        &mount.target.to_string_lossy(),
        mount.writable,
    )
}

fn bind(mount: &Mount) -> Bind {
    Bind {
        typ: Some(MountType::BIND),
        source: Some(mount.source.to_string_lossy().into_owned()),
        target: Some(mount.target.to_string_lossy().into_owned()),
        read_only: Some(!mount.writable),
        bind_options: Some(MountBindOptions {
            propagation: Some(MountBindOptionsPropagationEnum::RPRIVATE),
            // Mounts below the folder were not checked, and engines before version 25 would leave
            // them writable in a read-only mount.
            non_recursive: Some(true),
            ..MountBindOptions::default()
        }),
        ..Bind::default()
    }
}

fn user(hardening: &Hardening) -> Result<String, LaunchFailure> {
    let Some(user) = &hardening.user else { return Ok(USER.to_owned()) };
    let id = |id: &str| {
        !id.is_empty() && id.bytes().all(|b| b.is_ascii_digit()) && id.parse::<i32>().is_ok()
    };
    match user.split_once(':') {
        Some((uid, gid)) if id(uid) && id(gid) => Ok(user.clone()),
        _ => Err(failure(
            format!("`{}` is not UID:GID", user.escape_debug()),
            "write `hardening.user` as two numbers, such as \"1000:1000\"",
        )),
    }
}

fn capabilities(hardening: &Hardening) -> Result<Vec<String>, LaunchFailure> {
    let mut added = Vec::new();
    for capability in &hardening.cap_add {
        let upper = capability.to_ascii_uppercase();
        let name = upper.strip_prefix("CAP_").unwrap_or(&upper);
        if !CAPABILITIES.contains(&name) {
            return Err(failure(
                format!("`{}` is not a capability that can be added", capability.escape_debug()),
                "name single capabilities in `hardening.cap-add`, such as CAP_NET_BIND_SERVICE",
            ));
        }
        added.push(format!("CAP_{name}"));
    }
    added.sort();
    added.dedup();
    Ok(added)
}

fn memory(resources: &Resources) -> Result<u64, LaunchFailure> {
    // Engines refuse less than 6 MiB; docker-init and a C library need nearly that much.
    match resources.memory_mib {
        mib @ 6..=0xff_ffff => Ok(mib * MIB),
        mib => Err(failure(
            format!("a container cannot have a memory limit of {mib} MiB"),
            "set `resources.memory-mib` to 6 or more",
        )),
    }
}

fn nano_cpus(resources: &Resources) -> Result<i64, LaunchFailure> {
    match resources.cpus {
        cpus @ 0.01..=1024.0 => Ok((cpus * 1e9) as i64),
        cpus => Err(failure(
            format!("a container cannot have a limit of {cpus} processors"),
            "set `resources.cpus` to 0.01 or more",
        )),
    }
}

fn pids(resources: &Resources) -> Result<u32, LaunchFailure> {
    match resources.pids {
        // 0 would mean no limit. The init process needs one.
        pids @ 2..=4_194_304 => Ok(pids),
        pids => Err(failure(
            format!("a container cannot have a limit of {pids} processes"),
            "set `resources.pids` to 2 or more",
        )),
    }
}

/// From capabilities(7), without the prefix.
const CAPABILITIES: &[&str] = &[
    "AUDIT_CONTROL",
    "AUDIT_READ",
    "AUDIT_WRITE",
    "BLOCK_SUSPEND",
    "BPF",
    "CHECKPOINT_RESTORE",
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "IPC_LOCK",
    "IPC_OWNER",
    "KILL",
    "LEASE",
    "LINUX_IMMUTABLE",
    "MAC_ADMIN",
    "MAC_OVERRIDE",
    "MKNOD",
    "NET_ADMIN",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_RAW",
    "PERFMON",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYSLOG",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_CHROOT",
    "SYS_MODULE",
    "SYS_NICE",
    "SYS_PACCT",
    "SYS_PTRACE",
    "SYS_RAWIO",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "WAKE_ALARM",
];
