//! Body of a create request: exactly the settings that Portcullis uses. The body is parsed,
//! checked, and written again from the parsed values.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
    path::{Component, Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{
    NAME, label,
    refusal::{Code, Refusal, shown},
    route,
    rules::{Allow, MountRule, Rules},
};

/// Known keys. The engine accepts them in any case; here only one case is accepted, and an unknown
/// key is refused.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "PascalCase")]
struct Body {
    image: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    cmd: Option<Vec<String>>,
    #[serde(default)]
    env: Vec<String>,
    user: String,
    #[serde(default)]
    attach_stdin: bool,
    #[serde(default)]
    attach_stdout: bool,
    #[serde(default)]
    attach_stderr: bool,
    #[serde(default)]
    open_stdin: bool,
    #[serde(default)]
    stdin_once: bool,
    #[serde(default)]
    tty: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    stop_signal: Option<String>,
    labels: BTreeMap<String, String>,
    healthcheck: Health,
    host_config: Host,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "PascalCase")]
struct Health {
    test: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    interval: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    timeout: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    retries: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    start_period: Option<i64>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "PascalCase")]
struct Host {
    #[serde(default)]
    privileged: bool,
    cap_drop: Vec<String>,
    #[serde(default)]
    cap_add: Vec<String>,
    security_opt: Vec<String>,
    #[serde(default)]
    readonly_rootfs: bool,
    #[serde(default)]
    tmpfs: BTreeMap<String, String>,
    memory: u64,
    memory_swap: u64,
    nano_cpus: u64,
    pids_limit: u64,
    #[serde(default)]
    ulimits: Vec<Limit>,
    #[serde(default)]
    oom_kill_disable: bool,
    network_mode: String,
    #[serde(default)]
    extra_hosts: Vec<String>,
    ipc_mode: String,
    cgroupns_mode: String,
    #[serde(default)]
    init: bool,
    restart_policy: Restart,
    auto_remove: bool,
    log_config: Log,
    #[serde(default)]
    publish_all_ports: bool,
    #[serde(default)]
    mounts: Vec<Mount>,
    #[serde(skip_serializing_if = "Option::is_none")]
    runtime: Option<String>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "PascalCase")]
struct Limit {
    name: String,
    soft: i64,
    hard: i64,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "PascalCase")]
struct Restart {
    name: String,
    #[serde(default)]
    maximum_retry_count: i64,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "PascalCase")]
struct Log {
    r#type: String,
    #[serde(default)]
    config: BTreeMap<String, String>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "PascalCase")]
struct Mount {
    r#type: String,
    source: PathBuf,
    target: PathBuf,
    #[serde(default)]
    read_only: bool,
    bind_options: Bind,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "PascalCase")]
struct Bind {
    propagation: String,
    #[serde(default)]
    non_recursive: bool,
}

/// A permitted create request.
#[derive(Debug)]
pub struct Checked {
    /// Body for the engine.
    pub body: Vec<u8>,
    pub image: String,
    /// Host folders, with whether they are writable.
    pub mounts: Vec<(PathBuf, bool)>,
    /// Paths inside that are memory or host folders. Volumes of the image must be among them.
    pub mount_points: BTreeSet<String>,
    /// For a pause container: what it holds. Its image must be one of pause containers.
    pub holds: Option<NamespaceHold>,
}

/// A network namespace held for another container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamespaceHold {
    /// Name of the only container that may join it.
    pub by: String,
    /// Process that launches both, its run, and the server.
    pub of: [String; 3],
}

impl NamespaceHold {
    fn of(labels: &BTreeMap<String, String>, by: String) -> Self {
        let of = [label::OWNER, label::INSTANCE, label::SERVER];
        Self { by, of: of.map(|one| labels.get(one).cloned().unwrap_or_default()) }
    }
}

/// Parses and checks a body.
///
/// `held` finds the container with that id or name that holds exactly this and that no container
/// has joined yet. It returns the id.
///
/// # Errors
/// The first problem. The text contains no value of the environment or the command.
pub fn check(
    body: &[u8],
    name: &str,
    rules: &Rules,
    join: impl Fn(&str, &NamespaceHold) -> Option<String>,
) -> Result<Checked, Refusal> {
    let malformed = || {
        Refusal::new(
            Code::Malformed,
            "the body is not JSON, or has a duplicate \
        key",
        )
    };
    let value = portcullis_foundation::json::read(body).map_err(|_| malformed())?;
    if let Some(unknown) = unknown(&value) {
        let why = format!("Portcullis never sets `{}`", shown(&unknown));
        return Err(Refusal::new(Code::Profile, why));
    }
    let mut body: Body = serde_json::from_value(value).map_err(|error| {
        Refusal::new(
            Code::Profile,
            format!(
                "the body is not that of a container: \
            {}",
                kind(&error)
            ),
        )
    })?;
    check_texts(&body)?;
    image(&body.image)?;
    labels(&body.labels, name)?;
    user(&body.user, rules)?;
    streams(&body)?;
    health(&body.healthcheck)?;
    host(&mut body.host_config, rules)?;
    let holds = holds(&body)?;
    if let Some(holder) = body.host_config.network_mode.strip_prefix("container:") {
        let holding = NamespaceHold::of(&body.labels, name.to_owned());
        let Some(holder) = join(holder, &holding).filter(|_| holds.is_none()) else {
            return refuse(
                "it joins a network that no pause container of this guard holds for it only",
            );
        };
        body.host_config.network_mode = format!("container:{holder}");
    }
    let mounts = mounts(&body.host_config.mounts, rules)?;
    let targets = body.host_config.mounts.iter().map(|m| m.target.to_string_lossy().into_owned());
    let mount_points = targets.chain(body.host_config.tmpfs.keys().cloned()).collect();
    body.labels.insert(label::GUARD.to_owned(), rules.name.clone());
    body.labels.insert(label::CONTAINER.to_owned(), name.to_owned());
    let checked = Checked {
        // The parser's text about an invalid value may contain the value.
        body: serde_json::to_vec(&body).map_err(|_| malformed())?,
        mounts,
        mount_points,
        holds,
        image: body.image,
    };
    Ok(checked)
}

/// First unknown key of the upper levels, for the text of a refusal.
fn unknown(value: &Value) -> Option<String> {
    const BODY: &str = "Image Cmd Env User AttachStdin AttachStdout AttachStderr OpenStdin StdinOnce \
        Tty StopSignal Labels Healthcheck HostConfig";
    const HOST: &str = "Privileged CapDrop CapAdd SecurityOpt ReadonlyRootfs Tmpfs Memory MemorySwap \
        NanoCpus PidsLimit Ulimits OomKillDisable NetworkMode ExtraHosts IpcMode CgroupnsMode Init \
        RestartPolicy AutoRemove LogConfig PublishAllPorts Mounts Runtime";
    let stranger = |value: Option<&Value>, allowed: &str| {
        let allowed: BTreeSet<&str> = allowed.split_ascii_whitespace().collect();
        let keys = value?.as_object()?.keys();
        keys.into_iter().find(|key| !allowed.contains(key.as_str())).cloned()
    };
    stranger(Some(value), BODY)
        .or_else(|| stranger(value.get("HostConfig"), HOST).map(|key| format!("HostConfig.{key}")))
}

/// Problem of a body, without a value that the parser may quote.
fn kind(error: &serde_json::Error) -> String {
    let text = error.to_string();
    let quoted = ["missing field", "unknown field"].iter().any(|known| text.starts_with(known));
    if quoted { shown(&text) } else { "a value has the wrong type".to_owned() }
}

fn refuse<T>(why: impl Into<String>) -> Result<T, Refusal> {
    Err(Refusal::new(Code::Profile, why))
}

fn no_nul(texts: &[String]) -> bool {
    texts.iter().all(|text| !text.contains('\0'))
}

fn check_texts(body: &Body) -> Result<(), Refusal> {
    if !no_nul(&body.env) || !body.cmd.iter().all(|words| no_nul(words)) {
        return refuse("an argument or a variable contains a NUL byte");
    }
    if body.env.iter().any(|pair| pair.find('=').is_none_or(|at| at == 0)) {
        return refuse("a variable of the environment is not NAME=VALUE");
    }
    Ok(())
}

pub(crate) fn is_digest(text: &str) -> bool {
    text.strip_prefix("sha256:").is_some_and(|hex| {
        hex.len() == 64 && hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
    })
}

fn image(image: &str) -> Result<(), Refusal> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"._:/@-".contains(&b);
    // It becomes a part of a path and must not change the path's meaning.
    if image.len() > 512 || !image.bytes().all(plain) || !route::is_whole(image.split('/')) {
        return Err(Refusal::new(Code::Image, "the image name is invalid"));
    }
    let by_content =
        is_digest(image) || image.split_once('@').is_some_and(|(_, digest)| is_digest(digest));
    if !by_content {
        let why = format!("the image `{image}` is not named by its digest");
        return Err(Refusal::new(Code::Image, why));
    }
    Ok(())
}

fn labels(labels: &BTreeMap<String, String>, name: &str) -> Result<(), Refusal> {
    const OURS: [&str; 4] = [label::OWNER, label::INSTANCE, label::SERVER, label::PROFILE];
    for wanted in OURS {
        if labels.get(wanted).is_none_or(|value| value.is_empty() || value.len() > 512) {
            return refuse(format!("the label `{wanted}` is missing, empty or too long"));
        }
    }
    // Without a guard it is empty, so that a label of the image does not count. The guard replaces
    // it.
    let other = |(key, value): &(&String, &String)| match key.as_str() {
        label::GUARD => !value.is_empty(),
        label::HOLDS => false,
        key => !OURS.contains(&key),
    };
    if let Some((other, _)) = labels.iter().find(other) {
        return refuse(format!("the label `{}` is not one of Portcullis", shown(other)));
    }
    let server = labels.get(label::SERVER).map_or("", String::as_str);
    let rest = name.strip_prefix(NAME).and_then(|rest| rest.strip_prefix(server));
    if rest.is_none_or(|rest| !rest.starts_with('-')) {
        return refuse("the container's name is not that of its server");
    }
    Ok(())
}

/// What a pause container holds. It may have nothing else, because its program needs no more.
fn holds(body: &Body) -> Result<Option<NamespaceHold>, Refusal> {
    let Some(by) = body.labels.get(label::HOLDS) else { return Ok(None) };
    if by.is_empty() || by.len() > 200 {
        return refuse("the label `dev.portcullis.holds` names no container");
    }
    let host = &body.host_config;
    let more = body.cmd.is_some()
        || !body.env.is_empty()
        || !host.mounts.is_empty()
        || !host.cap_add.is_empty()
        || !host.readonly_rootfs
        || host.network_mode != "none";
    if more {
        return refuse("a pause container has a command, variables, mounts or other settings");
    }
    Ok(Some(NamespaceHold::of(&body.labels, by.clone())))
}

fn user(user: &str, rules: &Rules) -> Result<(), Refusal> {
    let id = |id: &str| {
        let digits = !id.is_empty() && id.bytes().all(|b| b.is_ascii_digit());
        id.parse::<u32>().ok().filter(|_| digits)
    };
    match user.split_once(':').map(|(uid, gid)| (id(uid), id(gid))) {
        Some((Some(0), Some(_)) | (Some(_), Some(0))) if !rules.allows(Allow::Root) => {
            refuse("it would run as root inside (see --allow root)")
        }
        Some((Some(_), Some(_))) => Ok(()),
        _ => refuse("`User` is not UID:GID"),
    }
}

fn streams(body: &Body) -> Result<(), Refusal> {
    if body.tty {
        return refuse("`Tty` is set");
    }
    // Without them the server's input would stay open after its proxy ended.
    if !body.open_stdin || !body.stdin_once {
        return refuse("`OpenStdin` or `StdinOnce` is not set");
    }
    match body.stop_signal.as_deref() {
        None | Some("SIGTERM") => Ok(()),
        Some(_) => refuse("`StopSignal` is not SIGTERM"),
    }
}

fn health(health: &Health) -> Result<(), Refusal> {
    use crate::health::{INTERVAL, RETRIES, START_PERIOD, TIMEOUT};
    let test: Vec<&str> = health.test.iter().map(String::as_str).collect();
    let times = [health.interval, health.timeout, health.retries, health.start_period];
    match test.as_slice() {
        ["NONE"] => Ok(()),
        ["CMD", "/sbin/docker-init", "--version"] => {
            if times == [INTERVAL, TIMEOUT, RETRIES, START_PERIOD].map(Some) {
                Ok(())
            } else {
                // The engine takes omitted values from the image.
                refuse("`Healthcheck` has other times than Portcullis sets")
            }
        }
        _ => refuse("`Healthcheck` runs another program than Portcullis sets"),
    }
}

fn host(host: &mut Host, rules: &Rules) -> Result<(), Refusal> {
    let flags = [
        (host.privileged, "`Privileged` is set"),
        (host.oom_kill_disable, "`OomKillDisable` is set"),
        (host.publish_all_ports, "`PublishAllPorts` is set"),
        (!host.auto_remove, "`AutoRemove` is not set"),
        (host.cap_drop != ["ALL"], "`CapDrop` is not ALL"),
        (host.ipc_mode != "private", "`IpcMode` is not private"),
        (host.cgroupns_mode != "private", "`CgroupnsMode` is not private"),
        (
            host.restart_policy.name != "no" || host.restart_policy.maximum_retry_count != 0,
            "`RestartPolicy` is not no",
        ),
        (
            host.log_config.r#type != "none" || !host.log_config.config.is_empty(),
            "`LogConfig` is not none",
        ),
        (
            !host.readonly_rootfs && !rules.allows(Allow::WritableRoot),
            "the root is writable (see --allow writable-root)",
        ),
    ];
    if let Some((_, why)) = flags.iter().find(|(wrong, _)| *wrong) {
        return refuse(*why);
    }
    for capability in &host.cap_add {
        if !rules.capabilities.contains(capability) {
            let capability = shown(capability);
            return refuse(format!("the capability `{capability}` is added (see --cap-add)"));
        }
    }
    security(host, rules)?;
    tmpfs(&host.tmpfs, rules)?;
    for (what, value, most) in [
        ("Memory", host.memory, rules.memory),
        ("NanoCpus", host.nano_cpus, rules.nano_cpus),
        ("PidsLimit", host.pids_limit, rules.pids),
    ] {
        if value == 0 || value > most {
            return refuse(format!("`{what}` is {value}; the allowed range is 1 to {most}"));
        }
    }
    if host.memory_swap != host.memory {
        return refuse("`MemorySwap` differs from `Memory`, which would allow swap");
    }
    for limit in &host.ulimits {
        let most = match limit.name.as_str() {
            "core" => 0,
            "nofile" => 65536,
            _ => -1,
        };
        if !(0..=most).contains(&limit.soft) || !(0..=most).contains(&limit.hard) {
            return refuse(format!("the limit `{}` is not one of Portcullis", shown(&limit.name)));
        }
    }
    match host.network_mode.as_str() {
        "none" => {}
        // Its owner is checked separately.
        joined if joined.starts_with("container:") => {
            if !host.extra_hosts.is_empty() {
                return refuse("it has `ExtraHosts` and joins a network");
            }
        }
        "bridge" if rules.allows(Allow::Network) => {}
        "bridge" => return refuse("it has a network (see --allow network)"),
        _ => return refuse("`NetworkMode` is not none, bridge or a pause container"),
    }
    for entry in &host.extra_hosts {
        // Addresses in the network of Portcullis's sockets inside. Split where the engine splits:
        // at the first colon.
        let word = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
        let (name, address) = entry.split_once(':').unwrap_or_default();
        let address = address.parse::<Ipv4Addr>().ok();
        let named = !name.is_empty() && name.bytes().all(word);
        if !named || !address.is_some_and(|a| a.octets().starts_with(&rules.synthetic_prefix)) {
            return refuse(
                "an entry of `ExtraHosts` has an address outside of Portcullis's \
                network",
            );
        }
    }
    match &host.runtime {
        Some(runtime) if !runtime.is_empty() && !rules.runtimes.contains(runtime) => {
            refuse(format!("the runtime `{}` is not allowed (see --runtime)", shown(runtime)))
        }
        _ => Ok(()),
    }
}

fn security(host: &mut Host, rules: &Rules) -> Result<(), Refusal> {
    let (mut privileges, mut seccomp) = (false, false);
    for option in &mut host.security_opt {
        match option.split_once([':', '=']) {
            Some(("no-new-privileges", "true")) => privileges = true,
            Some(("apparmor", "docker-default")) => {}
            Some(("seccomp", profile)) => {
                if portcullis_foundation::json::read(profile.as_bytes()).ok().as_ref()
                    != Some(&rules.seccomp)
                {
                    return refuse(
                        "its seccomp profile differs from this guard's: the guard and the proxy \
                        must have \
                         the same version",
                    );
                }
                *option = format!("seccomp={}", rules.seccomp);
                seccomp = true;
            }
            _ => return refuse("`SecurityOpt` has an option that Portcullis never sets"),
        }
    }
    if !privileges || !seccomp {
        return refuse("`SecurityOpt` lacks a seccomp profile or `no-new-privileges`");
    }
    Ok(())
}

fn tmpfs(mount_points: &BTreeMap<String, String>, rules: &Rules) -> Result<(), Refusal> {
    const MAX_MIB: u64 = 1024;
    for (mount_point, options) in mount_points {
        if !is_plain(Path::new(mount_point)) || is_engines(Path::new(mount_point)) {
            return refuse(format!("`Tmpfs` is at {}", shown(mount_point)));
        }
        let (mut nosuid, mut nodev, mut noexec, mut size) = (false, false, false, false);
        let mut seen = BTreeSet::new();
        for option in options.split(',') {
            // The engine uses the last of two, and `exec` cancels `noexec`, so each flag may occur
            // once.
            let key = option.split_once('=').map_or(option, |(key, _)| key);
            if !seen.insert(key.strip_prefix("no").unwrap_or(key)) {
                return refuse("`Tmpfs` has a duplicate option, or one with its opposite");
            }
            match option {
                "rw" | "mode=1777" => {}
                "exec" if rules.allows(Allow::ExecTmp) => {}
                "exec" => return refuse("`Tmpfs` allows execution (see --allow exec-tmp)"),
                "nosuid" => nosuid = true,
                "nodev" => nodev = true,
                "noexec" => noexec = true,
                _ => match option.strip_prefix("size=").and_then(|mib| mib.strip_suffix('m')) {
                    Some(mib) if mib.bytes().all(|b| b.is_ascii_digit()) => {
                        size = mib.parse::<u64>().is_ok_and(|mib| (1..=MAX_MIB).contains(&mib));
                    }
                    _ => return refuse("`Tmpfs` has an option that Portcullis never sets"),
                },
            }
        }
        if !nosuid || !nodev || !size {
            return refuse(format!("`Tmpfs` lacks nosuid, nodev, or a size up to {MAX_MIB} MiB"));
        }
        if !noexec && !rules.allows(Allow::ExecTmp) {
            return refuse("`Tmpfs` allows execution (see --allow exec-tmp)");
        }
    }
    Ok(())
}

fn is_plain(path: &Path) -> bool {
    path.is_absolute()
        && path.components().all(|c| matches!(c, Component::RootDir | Component::Normal(_)))
        // Components drop trailing and doubled slashes.
        && path.components().collect::<PathBuf>().as_os_str() == path.as_os_str()
        && path.components().count() > 1
}

/// Paths inside that belong to the engine, or to the loader of its init.
fn is_engines(path: &Path) -> bool {
    ["/dev", "/proc", "/sys", "/sbin"].iter().any(|taken| path.starts_with(taken))
}

fn mounts(mounts: &[Mount], rules: &Rules) -> Result<Vec<(PathBuf, bool)>, Refusal> {
    let mut checked = Vec::with_capacity(mounts.len());
    for mount in mounts {
        let refuse = |why: &str| {
            let source = shown(&mount.source.to_string_lossy());
            Err(Refusal::new(Code::Mount, format!("{source} must not be mounted: {why}")))
        };
        if mount.r#type != "bind" {
            return refuse("it is not a folder or file of the host");
        }
        if mount.bind_options.propagation != "rprivate" || !mount.bind_options.non_recursive {
            return refuse("mounts below it would be mounted, too");
        }
        if !is_plain(&mount.target) || is_engines(&mount.target) {
            return refuse("its target belongs to the engine, or is not a plain path");
        }
        source(&mount.source, !mount.read_only, rules)?;
        checked.push((mount.source.clone(), !mount.read_only));
    }
    Ok(checked)
}

/// Whether a host folder may be mounted. Checked again when the container starts, because a folder
/// may have become a link.
pub fn source(path: &Path, writable: bool, rules: &Rules) -> Result<(), Refusal> {
    let refuse = |why: &str| {
        let source = shown(&path.to_string_lossy());
        Err(Refusal::new(Code::Mount, format!("{source} must not be mounted: {why}")))
    };
    if !is_plain(path) {
        return refuse("it is not a plain absolute path");
    }
    let Some(rule) = rules.mounts.iter().filter(|rule| path.starts_with(&rule.path)).max_by_key(
        // The narrowest rule decides about write access.
        |rule| rule.path.components().count(),
    ) else {
        return refuse("it is not below a folder of --mount");
    };
    if writable && !rule.writable {
        return refuse("it is read-only (see --mount PATH:rw)");
    }
    // Write access to a folder includes the folders below it.
    if writable && rules.mounts.iter().any(|rule| !rule.writable && rule.path.starts_with(path)) {
        return refuse("it, or a folder in it, is read-only (see --mount)");
    }
    // The engine follows links, so the path must have none. A rule's own path is trusted, except if
    // a container may write above it and could replace it.
    let above = |other: &MountRule| other.path != path && path.starts_with(&other.path);
    if path == rule.path && !rules.mounts.iter().any(|rule| rule.writable && above(rule)) {
        return Ok(());
    }
    match std::fs::canonicalize(path) {
        Ok(real) if real != path => refuse("its path contains a link"),
        // A socket or a device acts on behalf of its clients even on a read-only mount.
        Ok(real) => match std::fs::metadata(real) {
            Ok(found) if found.is_dir() || found.is_file() => Ok(()),
            _ => refuse("it is neither a folder nor a regular file"),
        },
        Err(_) => refuse(
            "the guard cannot see it: mount the folder of --mount for the guard at the same path, \
            read-only",
        ),
    }
}

#[cfg(test)]
mod tests;
