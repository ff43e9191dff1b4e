//! The hardened default profile: everything that confines a contained server, in one struct.
//!
//! Invariant: a container is created from a [`Profile`] alone ([`Profile::host_config`]), and what
//! [`Profile::describe`] says of it is what the engine's `inspect` says of the container.

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
    process::{LaunchFailure, LaunchSpec, Mount, SECRETS},
};
use portcullis_egress::Destination;

use super::{engine::Facts, failure, mounts, podman, seccomp};

const USER: &str = "65534:65534";
const MIB: u64 = 1 << 20;
/// What is said where the OCI runtime is the engine's own choice.
pub(super) const DEFAULT_RUNTIME: &str = "the engine's default";

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
    /// The OCI runtime, where it is not left to the engine.
    runtime: Option<&'static str>,
    /// Volumes that the image declares: scratch space in memory instead of the host's disk.
    scratch: Vec<String>,
    memory: u64,
    nano_cpus: i64,
    pids: u32,
    network: bool,
    egress: Vec<Destination>,
    /// The container whose network namespace it joins, where it has a way out: none of its own. Empty
    /// before that is there.
    joins: Option<String>,
    /// Whether its program is one of ours that runs no others: nothing is to be found out about it.
    holds: bool,
    mounts: Vec<Mount>,
    /// The folder of secrets that are handed over as files.
    secrets: Option<Mount>,
    /// The names of the hosts that it may reach, for an engine that lets none have those of the
    /// container whose network it joins.
    hosts: Option<Mount>,
    init: Option<&'static str>,
    /// The profile of system calls, as the engine takes it.
    seccomp: String,
    /// Processes of the user, where the engine has a default of its own that may be more than it can
    /// set.
    nproc: Option<i64>,
}

/// Something that the config loosened (or tightened) against the default profile.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Deviation {
    /// The profile's field, by the engine's name for it.
    pub field: &'static str,
    pub default: String,
    pub actual: String,
    /// The key below `[servers.NAME]` that says so.
    pub config_key: &'static str,
}

/// `FIELD: ACTUAL (CONFIG KEY)`.
impl fmt::Display for Deviation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} ({})", self.field, self.actual, self.config_key)
    }
}

impl Profile {
    /// The profile of a server as configured, before any engine was asked. Refuses values that no
    /// container could or should have.
    pub fn of(spec: &LaunchSpec) -> Result<Self, LaunchFailure> {
        Self::new(spec, &spec.places)
    }

    pub(super) fn new(spec: &LaunchSpec, places: &MountPolicy) -> Result<Self, LaunchFailure> {
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
            mounts: mounts::check(&spec.mounts, places)?,
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

    /// Takes in what only the engine and the image can tell.
    pub(super) fn settle(&mut self, facts: &Facts, volumes: Vec<String>) {
        self.apparmor = facts.apparmor;
        let mut volumes = volumes;
        if facts.podman {
            self.init = None;
            self.nproc = Some(most_processes());
            // Where that fails, so does the engine, which can't read the text as a path.
            if let Ok(file) = podman::file("seccomp", &seccomp::JSON) {
                self.seccomp = file.to_string_lossy().into_owned();
            }
            if self.joins.is_some() {
                let lines = egress_netns::hosts(&self.egress).into_iter();
                let hosts: String =
                    lines.map(|(name, address)| format!("{address}\t{name}\n")).collect();
                // Where that fails, programs that know of no proxy find no address.
                let file = podman::file("hosts", &format!("127.0.0.1\tlocalhost\n{hosts}"));
                let target = PathBuf::from("/etc/hosts");
                self.hosts = file.ok().map(|source| Mount { source, target, writable: false });
            }
            // With a read-only root, it makes these writable, without a limit and with programs, unless
            // it is told of them.
            volumes.extend(["/run", "/var/tmp"].map(str::to_owned));
        }
        self.scratch = volumes
            .into_iter()
            .filter(|volume| !self.mounts.iter().any(|m| m.target.as_os_str() == volume.as_str()))
            .collect();
        self.scratch.sort();
        self.scratch.dedup();
    }

    /// That of the container which holds the network namespace of this one: as tight as can be.
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
        holder.settle(facts, Vec::new());
        holder
    }

    /// Has it join the network namespace of that container.
    pub(super) fn join(&mut self, holder: &str) {
        self.joins = Some(holder.to_owned());
    }

    /// The hosts that it may reach.
    pub(super) fn egress(&self) -> &[Destination] {
        &self.egress
    }

    /// The host's folders, as they were checked.
    pub(super) fn mounts(&self) -> &[Mount] {
        &self.mounts
    }

    pub(super) fn user(&self) -> &str {
        &self.user
    }

    /// Bytes.
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
        let scratch = self.scratch.iter().map(|place| (place.clone(), tmp(false, self.tmp_mib)));
        scratch.chain([("/tmp".to_owned(), tmp(self.exec_tmp, self.tmp_mib))]).collect()
    }

    /// The OCI runtime that the engine must be asked for.
    pub(super) fn runtime(&self) -> Option<&'static str> {
        self.runtime
    }

    /// What the engine is told.
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
            // For programs that know nothing of proxies: see `outward`. Who joins has the holder's.
            extra_hosts: self.holds.then(|| self.extra_hosts()),
            ipc_mode: Some("private".to_owned()),
            // The engine's own default is the host's namespace on cgroup v1.
            cgroupns_mode: Some(HostConfigCgroupnsModeEnum::PRIVATE),
            init: Some(true),
            restart_policy: Some(RestartPolicy {
                name: Some(RestartPolicyNameEnum::NO),
                maximum_retry_count: Some(0),
            }),
            auto_remove: Some(true),
            // Standard output is protocol traffic: the engine's logs would hold results and secrets.
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

    /// Replaces a health check that the image brings (which would run a program of its choosing)
    /// by one that shows that the container can still start a process.
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

    /// Each item of the profile by the engine's name for it, with its value.
    pub fn describe(&self) -> Vec<(String, String)> {
        let mut tmpfs: Vec<String> =
            self.tmpfs().iter().map(|(place, options)| format!("{place} {options}")).collect();
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
                    Some(_) => super::inspect::held(self.network_mode()),
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

    /// A short hash over [`Profile::describe`]: containers with the same hash are confined alike.
    pub fn hash(&self) -> String {
        let mut hash = Sha256::new();
        // The engine knows the names alone of what it may reach.
        let egress = ("Egress".to_owned(), or_none(&self.listed()));
        for (field, value) in self.describe().into_iter().chain([egress]) {
            hash.update(field);
            hash.update([0]);
            hash.update(value);
            hash.update([0]);
        }
        hex::encode(&hash.finalize()[..8])
    }

    /// Where this profile differs from the default one, and which line of the config says so.
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

/// As many processes as an engine on this machine can let a user have: Podman itself keeps to the
/// kernel's highest number, and asks for more.
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
            // What is mounted below the folder was not checked, and engines before 25 would leave
            // it writable in a read-only mount.
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
    for given in &hardening.cap_add {
        let upper = given.to_ascii_uppercase();
        let name = upper.strip_prefix("CAP_").unwrap_or(&upper);
        if !CAPABILITIES.contains(&name) {
            return Err(failure(
                format!("`{}` is not a capability that can be added", given.escape_debug()),
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
    // Engines refuse less than 6 MiB; docker-init and a C library alone need nearly that.
    match resources.memory_mib {
        mib @ 6..=0xff_ffff => Ok(mib * MIB),
        mib => Err(failure(
            format!("{mib} MiB is no memory limit that a container can have"),
            "set `resources.memory-mib` to 6 or more",
        )),
    }
}

fn nano_cpus(resources: &Resources) -> Result<i64, LaunchFailure> {
    match resources.cpus {
        cpus @ 0.01..=1024.0 => Ok((cpus * 1e9) as i64),
        cpus => Err(failure(
            format!("{cpus} processors is no limit that a container can have"),
            "set `resources.cpus` to 0.01 or more",
        )),
    }
}

fn pids(resources: &Resources) -> Result<u32, LaunchFailure> {
    match resources.pids {
        // 0 would be no limit at all. The init takes one.
        pids @ 2..=4_194_304 => Ok(pids),
        pids => Err(failure(
            format!("{pids} is no limit of processes that a container can have"),
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
