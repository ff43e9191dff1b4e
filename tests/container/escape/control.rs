//! Containers as anybody starts them, made by `docker run`.

use std::process::{Command, Stdio};

use uuid::Uuid;

use super::{Outcomes, host::Host, table::With};

/// What comes of these attempts in such a container.
pub async fn outcomes(image: &str, with: With, names: &[&str], host: &Host) -> Outcomes {
    let network = format!("escape-{}", Uuid::now_v7().simple());
    let _network = (with == With::Network).then(|| Network::new(&network));
    let mut command = Command::new("docker");
    command.args(["run", "--rm", "--pull", "never"]);
    let socket = host.socket.display();
    command.arg("--volume").arg(format!("{}:/data:ro", host.folder.path().display()));
    // As where an image names no user; ours does.
    command.args(["--user", if with == With::Nobody { "65534:65534" } else { "0:0" }]);
    match with {
        With::Defaults => {
            command.arg("--volume").arg(format!("{socket}:{socket}"));
        }
        With::Nobody => {}
        With::Network => {
            command.args(["--network", &network]);
        }
        With::Loose => loosen(&mut command),
        With::Terminal => {
            loosen(&mut command);
            command.arg("--tty");
        }
        With::Host => {
            loosen(&mut command);
            command.args(["--pid", "host", "--ipc", "host", "--network", "host"]);
        }
    }
    command.arg(image).arg("--attempts").args(names).args(host.told()).stdin(Stdio::null());
    let output = tokio::task::spawn_blocking(move || command.output()).await.unwrap();
    let output = output.expect("docker");
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| {
        let said = [output.stdout, output.stderr].map(|b| String::from_utf8_lossy(&b).into_owned());
        panic!("{with:?}: {error}: {said:?}")
    })
}

fn loosen(command: &mut Command) {
    command.arg("--init");
    for option in ["seccomp=unconfined", "apparmor=unconfined", "systempaths=unconfined"] {
        command.args(["--security-opt", option]);
    }
    for devices in ["b *:* rwm", "c *:* rwm"] {
        command.args(["--device-cgroup-rule", devices]);
    }
    // The kernel's log; what else there is of devices, the attempts make themselves.
    command.args(["--device", "/dev/kmsg"]);
    for capability in CAPABILITIES {
        command.args(["--cap-add", capability]);
    }
}

/// Beside those that every container has.
const CAPABILITIES: [&str; 22] = [
    "AUDIT_CONTROL",
    "AUDIT_READ",
    "BLOCK_SUSPEND",
    "DAC_READ_SEARCH",
    "IPC_LOCK",
    "IPC_OWNER",
    "LEASE",
    "LINUX_IMMUTABLE",
    "MAC_ADMIN",
    "MAC_OVERRIDE",
    "NET_ADMIN",
    "NET_BROADCAST",
    "SYSLOG",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_MODULE",
    "SYS_NICE",
    "SYS_PACCT",
    "SYS_PTRACE",
    "SYS_RAWIO",
    "SYS_TIME",
    "WAKE_ALARM",
];

struct Network<'a>(&'a str);

impl<'a> Network<'a> {
    fn new(name: &'a str) -> Self {
        assert!(docker_network("create", name), "no network");
        Self(name)
    }
}

impl Drop for Network<'_> {
    fn drop(&mut self) {
        docker_network("rm", self.0);
    }
}

fn docker_network(verb: &str, name: &str) -> bool {
    let mut command = Command::new("docker");
    command.args(["network", verb, name]).stdout(Stdio::null());
    command.status().expect("docker").success()
}

/// This machine's address on the engine's default bridge.
pub fn gateway() -> String {
    let output = Command::new("docker")
        .args(["network", "inspect", "bridge"])
        .args(["--format", "{{(index .IPAM.Config 0).Gateway}}"])
        .output()
        .expect("docker");
    let told = String::from_utf8(output.stdout).unwrap();
    // An engine that has not used it yet has not written it down.
    match told.trim() {
        "" => "172.17.0.1".to_owned(),
        told => told.to_owned(),
    }
}
