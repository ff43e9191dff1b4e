//! A compose project of `examples/deploy`, up for as long as a test needs it.

use std::{
    io::Write as _,
    net::TcpListener,
    path::PathBuf,
    process::{Command, Stdio},
    sync::OnceLock,
    time::{Duration, Instant},
};

use tempfile::TempDir;

fn root() -> PathBuf {
    concat!(env!("CARGO_MANIFEST_DIR"), "/../..").into()
}

/// The image of the executable under test, built as its users build it.
pub fn image() -> &'static str {
    static IMAGE: OnceLock<String> = OnceLock::new();
    IMAGE.get_or_init(|| {
        let tag = "portcullis-tests/deploy:latest".to_owned();
        let build = root().join("examples/deploy/build");
        output(build.to_str().unwrap(), &[env!("CARGO_BIN_EXE_portcullis"), &tag]);
        tag
    })
}

/// Debian's Prometheus in an image, in the place of the one that cannot be pulled here.
fn prometheus() -> &'static str {
    static IMAGE: OnceLock<String> = OnceLock::new();
    IMAGE.get_or_init(|| {
        let tag = "portcullis-tests/prometheus:latest".to_owned();
        let script = r#"
            set -e
            root=$(mktemp -d); trap 'rm -rf "$root"' EXIT
            install -D "$(command -v prometheus)" "$root/bin/prometheus"
            for library in $(ldd "$(command -v prometheus)" | grep -oE '/[^ ]+'); do
                install -D "$(readlink -f "$library")" "$root$library"
            done
            mkdir -p "$root/etc/prometheus" "$root/tmp"
            install -d -o 65534 -g 65534 "$root/prometheus"
            tar -C "$root" -c . | docker import -c 'ENTRYPOINT ["/bin/prometheus"]' - "$1"
        "#;
        output("bash", &["-c", script, "bash", &tag]);
        tag
    })
}

/// A project under a name of its own.
pub struct Project {
    example: &'static str,
    name: String,
    pub port: u16,
    pub prometheus: u16,
    keys: TempDir,
}

impl Project {
    pub fn new(example: &'static str) -> Self {
        image();
        if example == "monitoring" {
            prometheus();
        }
        let name = format!("portcullis-{example}-{}", std::process::id());
        let keys = tempfile::tempdir().unwrap();
        Self { example, name, port: free(), prometheus: free(), keys }
    }

    pub fn folder(&self) -> PathBuf {
        root().join("examples/deploy").join(self.example)
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let host = std::env::var("DOCKER_HOST").unwrap_or_default();
        let socket = host.strip_prefix("unix://").unwrap_or("/var/run/docker.sock").to_owned();
        let group = output("stat", &["-L", "-c", "%g", &socket]);
        let mut compose = Command::new("docker-compose");
        compose
            .args(["--ansi", "never", "-p", &self.name, "-f", "compose.yaml"])
            .args(arguments)
            .current_dir(self.folder())
            .env("PORTCULLIS_IMAGE", image())
            .env("PROMETHEUS_IMAGE", "portcullis-tests/prometheus:latest")
            .env("DOCKER_GID", group.trim())
            .env("DOCKER_SOCKET", socket)
            .env("GRAFANA_PASSWORD", format!("of-{}", std::process::id()))
            .env("PORTCULLIS_PORT", self.port.to_string())
            .env("PROMETHEUS_PORT", self.prometheus.to_string())
            .env("PROMETHEUS_KEY_FILE", self.prometheus_key());
        compose
    }

    /// The file of the key with which Prometheus asks the proxy.
    pub fn prometheus_key(&self) -> PathBuf {
        self.keys.path().join("prometheus.key")
    }

    /// Runs docker-compose, and gives what it says on standard output.
    pub fn compose(&self, arguments: &[&str]) -> String {
        run(self.command(arguments), arguments, "")
    }

    /// Adds a client, and gives its key.
    pub fn add_client(&self, name: &str, more: &[&str]) -> String {
        let add = ["exec", "-T", "portcullis", "/usr/bin/portcullis", "client", "add", name];
        self.compose(&[&add[..], more].concat()).trim().to_owned()
    }

    /// Has the agent say something, and gives what it hears.
    pub fn agent(&self, key: &str, input: &str) -> String {
        let arguments = ["run", "--rm", "-T", "agent"];
        let mut compose = self.command(&arguments);
        compose.env("PORTCULLIS_KEY", key);
        run(compose, &arguments, input)
    }

    /// A network of the project, by the engine's name for it.
    pub fn network(&self, name: &str) -> String {
        format!("{}_{name}", self.name)
    }

    /// Waits until the proxy is.
    pub fn healthy(&self) {
        let id = self.compose(&["ps", "-q", "portcullis"]);
        until("a healthy proxy", Duration::from_secs(180), || {
            let format = "{{.State.Health.Status}}";
            let state = output("docker", &["inspect", "--format", format, id.trim()]);
            (state.trim() == "healthy").then_some(())
        });
    }
}

impl Drop for Project {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let logs = self.command(&["logs", "--no-color"]).output();
            let logs = logs.map(|logs| String::from_utf8_lossy(&logs.stdout).into_owned());
            eprintln!("{}", logs.unwrap_or_default());
        }
        // The servers' containers first: who would remove them goes down with the project.
        let _ = self.command(&["stop", "-t", "20", "portcullis"]).output();
        let _ = self.command(&["down", "-v", "--remove-orphans", "-t", "5"]).output();
        let label = format!("label=dev.portcullis.guard={}", self.example);
        let project = format!("label=com.docker.compose.project={}", self.name);
        for filter in [label, project] {
            let left = output("docker", &["ps", "-aq", "--filter", &filter]);
            if !left.is_empty() {
                let ids: Vec<&str> = left.split_whitespace().collect();
                output("docker", &[&["rm", "-f"][..], &ids].concat());
                assert!(std::thread::panicking(), "{filter}: left over: {left}");
            }
        }
    }
}

/// A port of this machine that nobody has.
fn free() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn run(mut command: Command, arguments: &[&str], input: &str) -> String {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap_or_else(|error| panic!("{arguments:?}: {error}"));
    let mut stdin = child.stdin.take().unwrap();
    // Who does not read what it is told says why by its exit code.
    let _ = stdin.write_all(input.as_bytes());
    drop(stdin);
    let output = child.wait_with_output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{arguments:?}: {}", text(&output.stderr));
    text(&output.stdout)
}

/// Runs a program to its end.
pub fn output(program: &str, arguments: &[&str]) -> String {
    let mut command = Command::new(program);
    command.args(arguments);
    run(command, &[program, arguments.first().copied().unwrap_or("")], "")
}

/// Asks over HTTP, and gives the answer whatever its status.
pub fn curl(arguments: &[&str]) -> String {
    output("curl", &[&["-sS", "-m", "60", "--retry", "3"][..], arguments].concat())
}

/// Asks again and again, for what tells nobody when it happens.
pub fn until<T>(what: &str, patience: Duration, mut ask: impl FnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(found) = ask() {
            return found;
        }
        assert!(begun.elapsed() < patience, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(200));
    }
}
