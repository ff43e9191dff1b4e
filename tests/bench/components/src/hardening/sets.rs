//! The four ways in which one image is started.

use std::{
    io::{BufRead as _, BufReader},
    process::{Child, ChildStdin, Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, bail, ensure};
use portcullis_runtime::{container::Engine, process::LaunchSpec, started::Process};
use serde_json::Value;
use tokio::io::AsyncBufReadExt as _;

use super::docker;

/// A set of flags.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Set {
    Defaults,
    Gateway,
    Toolhive,
    Ours,
}

impl Set {
    pub const ALL: [Self; 4] = [Self::Defaults, Self::Gateway, Self::Toolhive, Self::Ours];

    pub fn name(self) -> &'static str {
        match self {
            Self::Defaults => "engine defaults",
            Self::Gateway => "docker/mcp-gateway",
            Self::Toolhive => "toolhive",
            Self::Ours => "portcullis",
        }
    }

    /// What is given to the engine beside the image.
    fn flags(self, name: &str) -> Vec<String> {
        let words: &[&str] = match self {
            Self::Defaults | Self::Ours => &[],
            // docker/mcp-gateway at 2bd20fe83dd0, `baseArgs` and `argsAndEnv` in
            // pkg/gateway/clientpool.go, with the defaults of cmd/docker-mcp/commands/gateway.go for
            // processors and memory. Without labels, and for a server of which the catalog says
            // nothing: on the default bridge, as where the gateway itself is in no container.
            Self::Gateway => &[
                "--rm",
                "--init",
                "--security-opt",
                "no-new-privileges",
                "--cpus",
                "1",
                "--memory",
                "2Gb",
                "--pull",
                "never",
            ],
            // stacklok/toolhive at e25de16cf972, `getPermissionConfigFromProfile` and
            // `createMcpContainer` in pkg/container/docker/client.go. Isolated, as is its default
            // (cmd/thv/app/run_flags.go): a network of its own that is internal. Its proxy and its
            // name server, which are the way out of that network, are not started.
            Self::Toolhive => &[
                "--cap-drop",
                "ALL",
                "--security-opt",
                "label:disable",
                "--restart",
                "unless-stopped",
                "--network",
                name,
            ],
        };
        words.iter().map(|word| (*word).to_owned()).collect()
    }

    /// Starts the probe, and waits for what it has to tell. `ports` are of a service of this host,
    /// TCP and UDP.
    pub async fn start(
        self,
        engine: &Engine,
        image: &str,
        ports: (u16, u16),
    ) -> anyhow::Result<Running> {
        let name = format!("bench-hardening-{}", std::process::id());
        let words = |gateway: &str| {
            let (tcp, udp) = ports;
            vec![
                "--stay".to_owned(),
                format!("gateway={gateway}:{tcp}"),
                format!("gateway-udp={gateway}:{udp}"),
                format!("loopback={tcp}"),
                // More than our default, and less than the most that the others set.
                "memory=640".to_owned(),
            ]
        };
        if self == Self::Ours {
            return Running::launch(engine, image, words(&gateway("bridge")?)).await;
        }
        let network = (self == Self::Toolhive).then(|| Network::new(&name)).transpose()?;
        let gateway = gateway(network.as_ref().map_or("bridge", |_| name.as_str()))?;
        let mut create = vec!["create".to_owned(), "--interactive".into(), "--name".into()];
        create.push(name.clone());
        create.extend(self.flags(&name));
        create.push(image.to_owned());
        create.extend(words(&gateway));
        docker(&create.iter().map(String::as_str).collect::<Vec<_>>())?;
        // From here on it goes when this does.
        let mut container = Made { name, attached: None, _network: network };
        let mut child = Command::new("docker")
            .args(["start", "--attach", "--interactive", &container.name])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("docker")?;
        let stdout = child.stdout.take().context("no output")?;
        let stdin = child.stdin.take().context("no input")?;
        container.attached = Some((child, stdin));
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line)?;
        let told = serde_json::from_str(&line).context("the probe told nothing")?;
        Ok(Running { told, id: container.name.clone(), of: Of::Docker(container) })
    }
}

/// A container that has told what it found, and stays until it is stopped.
pub struct Running {
    told: Value,
    id: String,
    of: Of,
}

enum Of {
    Docker(Made),
    Ours(Process),
}

impl Running {
    /// As a server is started by its proxy.
    async fn launch(engine: &Engine, image: &str, command: Vec<String>) -> anyhow::Result<Self> {
        let instance = format!("bench-{}", std::process::id());
        let bare = LaunchSpec::bare("probe".parse()?, command, instance.clone());
        let spec = LaunchSpec { image: Some(image.to_owned()), ..bare };
        let mut process = engine.launch(&spec).await?;
        let mut line = String::new();
        tokio::io::BufReader::new(&mut process.stdout).read_line(&mut line).await?;
        let told = serde_json::from_str(&line).context("the probe told nothing")?;
        let all = engine.list().await?;
        let Some(this) = all.into_iter().find(|container| container.instance == instance) else {
            bail!("the engine does not list it");
        };
        Ok(Self { told, id: this.id, of: Of::Ours(process) })
    }

    pub fn id(&self) -> &str {
        &self.id
    }

    pub fn told(&self) -> &Value {
        &self.told
    }

    pub async fn stop(self) {
        match self.of {
            Of::Docker(container) => drop(container),
            Of::Ours(process) => process.handle.stop(Duration::ZERO).await,
        }
    }
}

struct Made {
    name: String,
    attached: Option<(Child, ChildStdin)>,
    _network: Option<Network>,
}

impl Drop for Made {
    fn drop(&mut self) {
        if let Err(error) = docker(&["rm", "--force", &self.name]) {
            eprintln!("{error}");
        }
        if let Some((mut child, stdin)) = self.attached.take() {
            drop(stdin);
            let _ = child.wait();
        }
    }
}

/// A network from which nothing is routed.
struct Network(String);

impl Network {
    fn new(name: &str) -> anyhow::Result<Self> {
        docker(&["network", "create", "--internal", name])?;
        Ok(Self(name.to_owned()))
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        if let Err(error) = docker(&["network", "rm", &self.0]) {
            eprintln!("{error}");
        }
    }
}

/// This machine's address on a bridge.
fn gateway(network: &str) -> anyhow::Result<String> {
    let format = "{{(index .IPAM.Config 0).Gateway}}";
    let told = docker(&["network", "inspect", network, "--format", format])?;
    let told = String::from_utf8_lossy(&told).trim().to_owned();
    ensure!(!told.is_empty(), "the network {network} has no gateway");
    Ok(told)
}
