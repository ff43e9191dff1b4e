//! What docker-bench-security 1.6.0 asks of containers that run (its section 5, after the CIS Docker
//! Benchmark), asked of the engine's own inspection. The numbers are its; words and code are ours.

use serde_json::Value;

/// What one check came to, in that script's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    Pass,
    Warn,
    /// For a person to see to: nothing is decided.
    Note,
    Info,
}

impl Outcome {
    pub fn words(self) -> &'static str {
        match self {
            Self::Pass => "pass",
            Self::Warn => "warn",
            Self::Note => "note",
            Self::Info => "info",
        }
    }
}

pub struct Verdict {
    pub id: &'static str,
    pub what: &'static str,
    pub outcome: Outcome,
    scored: bool,
}

/// Passed and warned, of those that count.
pub fn score(verdicts: &[Verdict]) -> (i64, i64) {
    let count = |outcome| {
        let of = verdicts.iter().filter(|verdict| verdict.scored && verdict.outcome == outcome);
        of.count() as i64
    };
    (count(Outcome::Pass), count(Outcome::Warn))
}

/// Every check, in order. `info` is of the engine, `programs` what runs inside.
pub fn verdicts(info: &Value, inspection: &Value, programs: &str) -> Vec<Verdict> {
    let host = &inspection["HostConfig"];
    let list = |value: &'_ Value| value.as_array().cloned().unwrap_or_default();
    let is_host = |field: &str| host[field] == "host";
    let options = list(&host["SecurityOpt"]);
    let option = |words: &str| {
        options.iter().any(|option| option.as_str().is_some_and(|option| option.contains(words)))
    };
    let mounts = list(&inspection["Mounts"]);
    let ports: Vec<Value> = inspection["NetworkSettings"]["Ports"]
        .as_object()
        .into_iter()
        .flatten()
        .flat_map(|(_, bound)| list(bound))
        .collect();
    let port = |bound: &Value| bound["HostPort"].as_str().and_then(|port| port.parse().ok());
    let apparmor = inspection["AppArmorProfile"].as_str().unwrap_or_default();
    let extra = |added: &Value| {
        let name = added.as_str().unwrap_or_default().to_ascii_uppercase();
        !USUAL.contains(&name.trim_start_matches("CAP_"))
    };
    let limit = |field: &str| host[field].as_i64().unwrap_or(0);

    let scored = |id, what, good: bool| {
        let outcome = if good { Outcome::Pass } else { Outcome::Warn };
        Verdict { id, what, outcome, scored: true }
    };
    let manual = |id, what, outcome| Verdict { id, what, outcome, scored: false };
    let or_info = |good: bool| if good { Outcome::Pass } else { Outcome::Info };
    vec![
        scored("5.1", "no swarm", info["Swarm"]["LocalNodeState"] == "inactive"),
        scored("5.2", "an AppArmor profile", !["", "unconfined"].contains(&apparmor)),
        scored("5.3", "security options (SELinux)", !options.is_empty()),
        scored("5.4", "no added capabilities", !list(&host["CapAdd"]).iter().any(extra)),
        scored("5.5", "not privileged", host["Privileged"] != true),
        scored("5.6", "no system folder writable", {
            let system = |mount: &Value| {
                let source = mount["Source"].as_str().unwrap_or_default();
                mount["RW"] == true && SYSTEM.contains(&source)
            };
            !mounts.iter().any(system)
        }),
        scored("5.7", "no SSH server inside", !programs.contains("sshd")),
        scored("5.8", "no privileged port", {
            !ports.iter().any(|bound| port(bound).is_some_and(|port: u16| port < 1025))
        }),
        scored("5.9", "no port open", ports.is_empty()),
        scored("5.10", "network not the host's", !is_host("NetworkMode")),
        scored("5.11", "memory limited", limit("Memory") != 0),
        scored("5.12", "processors limited", limit("CpuShares") != 0 || limit("NanoCpus") != 0),
        scored("5.13", "root read-only", host["ReadonlyRootfs"] == true),
        scored("5.14", "ports on one address", {
            !ports.iter().any(|bound| bound["HostIp"] == "0.0.0.0")
        }),
        scored("5.15", "at most five restarts", {
            host["RestartPolicy"]["MaximumRetryCount"].as_i64().unwrap_or(0) <= 5
        }),
        scored("5.16", "processes not the host's", !is_host("PidMode")),
        scored("5.17", "IPC not the host's", !is_host("IpcMode")),
        manual("5.18", "no devices", or_info(list(&host["Devices"]).is_empty())),
        manual("5.19", "resource limits set", or_info(!list(&host["Ulimits"]).is_empty())),
        scored("5.20", "no shared mounts", {
            let shared = |mount: &Value| {
                mount["Propagation"].as_str().is_some_and(|kind| kind.contains("shared"))
            };
            !mounts.iter().any(shared)
        }),
        scored("5.21", "host name not the host's", !is_host("UTSMode")),
        scored("5.22", "system calls filtered", {
            !option("seccomp:unconfined") && !option("seccomp=unconfined")
        }),
        manual("5.23", "no privileged exec", Outcome::Note),
        manual("5.24", "no exec as root", Outcome::Note),
        scored("5.25", "control group not moved", host["CgroupParent"] == ""),
        scored("5.26", "no new privileges", option("no-new-privileges")),
        scored("5.27", "health checked", inspection["State"]["Health"].is_object()),
        manual("5.28", "images up to date", Outcome::Info),
        scored("5.29", "tasks limited", limit("PidsLimit") > 0),
        manual("5.30", "not on the default bridge", {
            or_info(!inspection["NetworkSettings"]["Networks"]["bridge"].is_object())
        }),
        scored("5.31", "user namespace not asked to be the host's", !is_host("UsernsMode")),
        scored("5.32", "no socket of the engine", {
            let engine = |mount: &Value| mount.to_string().contains("docker.sock");
            !mounts.iter().any(engine)
        }),
    ]
}

/// Those that the engine gives anyway, which do not count as added.
const USUAL: [&str; 14] = [
    "AUDIT_WRITE",
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "KILL",
    "MKNOD",
    "NET_BIND_SERVICE",
    "NET_RAW",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYS_CHROOT",
];

const SYSTEM: [&str; 8] = ["/", "/boot", "/dev", "/etc", "/lib", "/proc", "/sys", "/usr"];
